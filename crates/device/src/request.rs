//! A request, parsed from its chain: every length and range that does not need the zones is checked here and nowhere else.

use virtio_zbd_spec::{
    AppendInHeader, DiscardWriteZeroes, Features, OutHeader, RequestType, SegmentFlags, Status,
};
use virtio_zbd_zones::SECTOR_LEN_BYTES;
use vm_memory::GuestMemoryMmap;
use zerocopy::{FromZeros, IntoBytes};

use crate::chain::Chain;
use crate::config::{MAX_DISCARD_SECTORS, MAX_DISCARD_SEGMENTS, Negotiated};
use crate::spans::{Spans, len_of};

/// What the driver wants. Sectors are 512 bytes and not yet checked against the disk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Read { sector: u64, data: Spans },
    Write { sector: u64, data: Spans },
    Append { sector: u64, data: Spans },
    Flush,
    GetId { data: Spans },
    Discard { ranges: Vec<SectorRange> },
    WriteZeroes { ranges: Vec<SectorRange> },
    ZoneReport { sector: u64, data: Spans },
    ZoneOpen { sector: u64 },
    ZoneClose { sector: u64 },
    ZoneFinish { sector: u64 },
    ZoneReset { sector: u64 },
    ZoneResetAll,
}

/// One range of a DISCARD or WRITE_ZEROES.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SectorRange {
    pub(crate) sector: u64,
    pub(crate) sectors: u32,
    /// The storage may be given back.
    pub(crate) may_unmap: bool,
}

/// Where the answer goes: the in-header at the end of what the device may write.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct InHeader {
    /// The status byte; empty where the chain has no room for one, so that nothing can be answered.
    pub(crate) status: Spans,
    /// APPEND only: 8 bytes for the sector.
    pub(crate) append_sector: Option<Spans>,
    /// Length of the data before the in-header that the device may write.
    pub(crate) data_len_bytes: u32,
}

/// A parsed chain: where to answer, and what was asked or the status that refuses it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Parsed {
    pub(crate) in_header: InHeader,
    pub(crate) request: Result<Request, Status>,
}

/// Parses `chain`. Header, data and in-header may be cut into descriptors in any way (2.7.4).
pub(crate) fn parse(memory: &GuestMemoryMmap, mut chain: Chain, negotiated: &Negotiated) -> Parsed {
    let mut in_header = InHeader::default();
    let Some(status) = chain.writable.split_back(1) else {
        return Parsed { in_header, request: Err(Status::IoErr) };
    };
    in_header.status = status;
    in_header.data_len_bytes = chain.writable.len_bytes();

    let mut header = OutHeader::new_zeroed();
    let Some(bytes) = chain.readable.split_front(len_of::<OutHeader>()) else {
        return Parsed { in_header, request: Err(Status::IoErr) };
    };
    bytes.read(memory, header.as_mut_bytes());

    let request = match RequestType::try_from(header.request_type.get()) {
        // Refused features (V4): the driver never reaches the disk, whatever it sends.
        _ if negotiated.is_refused() => Err(Status::IoErr),
        Err(_) => Err(Status::Unsupp),
        Ok(kind) => {
            if kind == RequestType::ZoneAppend {
                let append_sector = chain.writable.split_back(len_of::<AppendInHeader>() - 1);
                in_header.data_len_bytes = chain.writable.len_bytes();
                in_header.append_sector = append_sector;
            }
            let has_append_sector = in_header.append_sector.is_some();
            request(memory, kind, header.sector.get(), chain, negotiated, has_append_sector)
        }
    };
    Parsed { in_header, request }
}

fn request(
    memory: &GuestMemoryMmap,
    kind: RequestType,
    sector: u64,
    chain: Chain,
    negotiated: &Negotiated,
    has_append_sector: bool,
) -> Result<Request, Status> {
    use RequestType as T;
    // V12
    if kind.is_zoned() && !negotiated.has(Features::ZONED) {
        return Err(Status::Unsupp);
    }
    let Chain { readable, writable } = chain;
    match kind {
        T::In => Ok(Request::Read { sector, data: whole_sectors(writable)? }),
        T::Out => Ok(Request::Write { sector, data: whole_sectors(readable)? }),
        // Without room for the sector the answer could not be given: nothing is appended.
        T::ZoneAppend if !has_append_sector => Err(Status::IoErr),
        T::ZoneAppend => Ok(Request::Append { sector, data: whole_sectors(readable)? }),
        T::Flush => Ok(Request::Flush),
        T::GetId if writable.is_empty() => Err(Status::IoErr),
        T::GetId => Ok(Request::GetId { data: writable }),
        T::Discard if negotiated.has(Features::DISCARD) => {
            Ok(Request::Discard { ranges: ranges(memory, &readable, SegmentFlags::empty())? })
        }
        T::WriteZeroes if negotiated.has(Features::WRITE_ZEROES) => {
            Ok(Request::WriteZeroes { ranges: ranges(memory, &readable, SegmentFlags::UNMAP)? })
        }
        T::Discard | T::WriteZeroes | T::SecureErase | T::GetLifetime => Err(Status::Unsupp),
        T::ZoneReport => Ok(Request::ZoneReport { sector, data: writable }),
        T::ZoneOpen => Ok(Request::ZoneOpen { sector }),
        T::ZoneClose => Ok(Request::ZoneClose { sector }),
        T::ZoneFinish => Ok(Request::ZoneFinish { sector }),
        T::ZoneReset => Ok(Request::ZoneReset { sector }),
        T::ZoneResetAll => Ok(Request::ZoneResetAll),
    }
}

/// Data comes in sectors (5.2.6.1).
fn whole_sectors(data: Spans) -> Result<Spans, Status> {
    if data.len_bytes().is_multiple_of(SECTOR_LEN_BYTES) { Ok(data) } else { Err(Status::IoErr) }
}

/// The ranges of a DISCARD or WRITE_ZEROES: whole structures, not too many, no flag but `known` (5.2.6.2).
fn ranges(memory: &GuestMemoryMmap, data: &Spans, known: SegmentFlags) -> Result<Vec<SectorRange>, Status> {
    const LEN: u32 = len_of::<DiscardWriteZeroes>();
    let count = data.len_bytes() / LEN;
    if !data.len_bytes().is_multiple_of(LEN) || !(1..=MAX_DISCARD_SEGMENTS).contains(&count) {
        return Err(Status::IoErr);
    }
    let mut segments = [DiscardWriteZeroes::new_zeroed(); MAX_DISCARD_SEGMENTS as usize];
    let segments = &mut segments[..count as usize];
    data.read(memory, segments.as_mut_bytes());
    let flags_of = |segment: &DiscardWriteZeroes| SegmentFlags::from_bits_retain(segment.flags.get());
    // Any unknown flag, whatever else is wrong.
    if !segments.iter().all(|segment| known.contains(flags_of(segment))) {
        return Err(Status::Unsupp);
    }
    segments
        .iter()
        .map(|segment| {
            let sectors = segment.num_sectors.get();
            if sectors > MAX_DISCARD_SECTORS {
                return Err(Status::IoErr);
            }
            let may_unmap = known.is_empty() || flags_of(segment).contains(SegmentFlags::UNMAP);
            Ok(SectorRange { sector: segment.sector.get(), sectors, may_unmap })
        })
        .collect()
}
