//! Requests and replies.

use alloc::borrow::Cow;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use virtio_zbd_spec::{OutHeader, RequestType, SECTOR_LEN_BYTES, Status};
use zerocopy::IntoBytes;

/// A request, before it is cut into descriptors.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// A [`RequestType`], or another number.
    pub(crate) kind: u32,
    pub(crate) sector: u64,
    /// What the device reads behind the header.
    pub(crate) data: Vec<u8>,
    /// How many bytes it may write before the in-header.
    pub(crate) room: usize,
}

impl Request {
    /// A request without data.
    pub(crate) fn op(kind: RequestType, sector: u64) -> Self {
        Self { kind: kind.into(), sector, data: Vec::new(), room: 0 }
    }

    pub(crate) fn read(sector: u64, sectors: u64) -> Self {
        Self { room: bytes(sectors), ..Self::op(RequestType::In, sector) }
    }

    pub(crate) fn write(sector: u64, data: Vec<u8>) -> Self {
        Self { data, ..Self::op(RequestType::Out, sector) }
    }

    pub(crate) fn append(zone_start: u64, data: Vec<u8>) -> Self {
        Self { data, ..Self::op(RequestType::ZoneAppend, zone_start) }
    }

    /// A report into `room` bytes.
    pub(crate) fn report(sector: u64, room: usize) -> Self {
        Self { room, ..Self::op(RequestType::ZoneReport, sector) }
    }

    pub(crate) fn open(zone_start: u64) -> Self {
        Self::op(RequestType::ZoneOpen, zone_start)
    }

    pub(crate) fn close(zone_start: u64) -> Self {
        Self::op(RequestType::ZoneClose, zone_start)
    }

    pub(crate) fn finish(zone_start: u64) -> Self {
        Self::op(RequestType::ZoneFinish, zone_start)
    }

    pub(crate) fn reset(zone_start: u64) -> Self {
        Self::op(RequestType::ZoneReset, zone_start)
    }

    pub(crate) fn reset_all() -> Self {
        Self::op(RequestType::ZoneResetAll, 0)
    }

    pub(crate) fn with_room(self, room: usize) -> Self {
        Self { room, ..self }
    }

    pub(crate) fn is(&self, kind: RequestType) -> bool {
        self.kind == u32::from(kind)
    }

    /// The out-header.
    pub(crate) fn header(&self) -> [u8; 16] {
        let mut header = [0; 16];
        let fields =
            OutHeader { request_type: self.kind.into(), reserved: 0.into(), sector: self.sector.into() };
        header.copy_from_slice(fields.as_bytes());
        header
    }

    /// The length of the in-header.
    pub(crate) fn in_header_len_bytes(&self) -> usize {
        if self.is(RequestType::ZoneAppend) { 9 } else { 1 }
    }

    /// How many sectors the request names; at least one.
    pub(crate) fn sectors(&self) -> u64 {
        let len = if self.is(RequestType::In) { self.room } else { self.data.len() };
        (len as u64).div_ceil(SECTOR_LEN_BYTES).max(1)
    }

    pub(crate) fn is_report(&self) -> bool {
        self.is(RequestType::ZoneReport)
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at sector {}", kind_name(self.kind), self.sector)?;
        if !self.data.is_empty() {
            write!(f, ", {} bytes", self.data.len())?;
        }
        if self.room > 0 {
            write!(f, ", room for {} bytes", self.room)?;
        }
        Ok(())
    }
}

/// What a device answered.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    /// The last device-writable byte.
    pub(crate) status: u8,
    /// What stands before the in-header.
    pub(crate) data: Vec<u8>,
    /// The in-header of an append; else 0.
    pub(crate) append_sector: u64,
    /// How many bytes the device says that it wrote.
    pub(crate) used_len: u32,
}

/// What is in device-writable memory before the device writes: no status has this number.
pub(crate) const UNTOUCHED: u8 = 0xee;

impl Reply {
    pub(crate) fn is(&self, status: Status) -> bool {
        self.status == u8::from(status)
    }

    pub(crate) fn is_ok(&self) -> bool {
        self.is(Status::Ok)
    }

    /// The reply in a few words.
    pub(crate) fn text(&self, request: &Request) -> String {
        let status = status_name(self.status);
        if self.is_ok() && request.is(RequestType::ZoneAppend) {
            format!("{status}, append_sector {}", self.append_sector)
        } else if self.is_ok() && request.is(RequestType::In) {
            format!("{status}, {} bytes", self.data.len())
        } else {
            status.into_owned()
        }
    }
}

/// A status byte for people.
pub(crate) fn status_name(status: u8) -> Cow<'static, str> {
    match Status::try_from(status) {
        Ok(Status::Ok) => "OK".into(),
        Ok(Status::IoErr) => "IOERR".into(),
        Ok(Status::Unsupp) => "UNSUPP".into(),
        Ok(Status::ZoneInvalidCmd) => "ZONE_INVALID_CMD".into(),
        Ok(Status::ZoneUnalignedWp) => "ZONE_UNALIGNED_WP".into(),
        Ok(Status::ZoneOpenResource) => "ZONE_OPEN_RESOURCE".into(),
        Ok(Status::ZoneActiveResource) => "ZONE_ACTIVE_RESOURCE".into(),
        Err(_) if status == UNTOUCHED => "no status".into(),
        Err(_) => format!("the unknown status {status}").into(),
    }
}

/// A request type for people.
fn kind_name(kind: u32) -> Cow<'static, str> {
    match RequestType::try_from(kind) {
        Ok(RequestType::In) => "IN".into(),
        Ok(RequestType::Out) => "OUT".into(),
        Ok(RequestType::Flush) => "FLUSH".into(),
        Ok(RequestType::GetId) => "GET_ID".into(),
        Ok(RequestType::GetLifetime) => "GET_LIFETIME".into(),
        Ok(RequestType::Discard) => "DISCARD".into(),
        Ok(RequestType::WriteZeroes) => "WRITE_ZEROES".into(),
        Ok(RequestType::SecureErase) => "SECURE_ERASE".into(),
        Ok(RequestType::ZoneAppend) => "ZONE_APPEND".into(),
        Ok(RequestType::ZoneReport) => "ZONE_REPORT".into(),
        Ok(RequestType::ZoneOpen) => "ZONE_OPEN".into(),
        Ok(RequestType::ZoneClose) => "ZONE_CLOSE".into(),
        Ok(RequestType::ZoneFinish) => "ZONE_FINISH".into(),
        Ok(RequestType::ZoneReset) => "ZONE_RESET".into(),
        Ok(RequestType::ZoneResetAll) => "ZONE_RESET_ALL".into(),
        Err(_) => format!("request type {kind}").into(),
    }
}

/// Sectors in bytes; too many for memory are cut to what fits a descriptor.
pub(crate) fn bytes(sectors: u64) -> usize {
    usize::try_from(sectors.saturating_mul(SECTOR_LEN_BYTES)).unwrap_or(usize::MAX).min(1 << 31)
}
