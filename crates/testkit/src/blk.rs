//! Block requests as bytes (virtio 1.3, 5.2.6), and what came back.

use virtio_zbd_spec::{
    DiscardWriteZeroes, ID_LEN_BYTES, Lifetime, OutHeader, ReportHeader, RequestType, SegmentFlags, Status,
    UnknownValue, ZoneDescriptor,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::error::{Error, Result};

/// What device-writable memory is filled with before a request: a status of this value was never written.
pub const UNTOUCHED: u8 = 0xdb;

/// A request as the bytes that the device gets and the room that it may fill.
///
/// The constructors make honest requests; a test that wants another one changes the fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The out-header, 16 bytes if it is honest.
    pub header: Vec<u8>,
    /// The device-readable data behind it.
    pub out_data: Vec<u8>,
    /// The room for device-written data in bytes.
    pub in_data_len: usize,
    /// The room for the in-header behind that in bytes: 1, for ZONE_APPEND 9.
    pub in_header_len: usize,
}

impl Request {
    /// IN: reads `len_bytes` bytes from `sector` on.
    #[must_use]
    pub fn read(sector: u64, len_bytes: usize) -> Self {
        Self::raw(RequestType::In.into(), sector, &[], len_bytes)
    }

    /// OUT: writes `data` from `sector` on.
    #[must_use]
    pub fn write(sector: u64, data: &[u8]) -> Self {
        Self::raw(RequestType::Out.into(), sector, data, 0)
    }

    /// FLUSH.
    #[must_use]
    pub fn flush() -> Self {
        Self::raw(RequestType::Flush.into(), 0, &[], 0)
    }

    /// GET_ID: the disk's serial, 20 bytes.
    #[must_use]
    pub fn get_id() -> Self {
        Self::raw(RequestType::GetId.into(), 0, &[], ID_LEN_BYTES)
    }

    /// GET_LIFETIME: a [`Lifetime`].
    #[must_use]
    pub fn get_lifetime() -> Self {
        Self::raw(RequestType::GetLifetime.into(), 0, &[], size_of::<Lifetime>())
    }

    /// DISCARD of the ranges given as (sector, sectors).
    #[must_use]
    pub fn discard(ranges: &[(u64, u32)]) -> Self {
        Self::ranges(RequestType::Discard, ranges, SegmentFlags::empty())
    }

    /// WRITE_ZEROES to the ranges given as (sector, sectors); with `unmap` their space may be given back.
    #[must_use]
    pub fn write_zeroes(ranges: &[(u64, u32)], unmap: bool) -> Self {
        let flags = if unmap { SegmentFlags::UNMAP } else { SegmentFlags::empty() };
        Self::ranges(RequestType::WriteZeroes, ranges, flags)
    }

    /// SECURE_ERASE of the ranges given as (sector, sectors).
    #[must_use]
    pub fn secure_erase(ranges: &[(u64, u32)]) -> Self {
        Self::ranges(RequestType::SecureErase, ranges, SegmentFlags::empty())
    }

    /// ZONE_APPEND of `data` to the zone that begins at `zone_start` (R10).
    #[must_use]
    pub fn zone_append(zone_start: u64, data: &[u8]) -> Self {
        Self::raw(RequestType::ZoneAppend.into(), zone_start, data, 0)
    }

    /// ZONE_REPORT from the zone with `sector` in it on, into `buf_len_bytes` bytes (R7).
    #[must_use]
    pub fn zone_report(sector: u64, buf_len_bytes: usize) -> Self {
        Self::raw(RequestType::ZoneReport.into(), sector, &[], buf_len_bytes)
    }

    /// ZONE_OPEN of the zone that begins at `zone_start` (R8).
    #[must_use]
    pub fn zone_open(zone_start: u64) -> Self {
        Self::raw(RequestType::ZoneOpen.into(), zone_start, &[], 0)
    }

    /// ZONE_CLOSE of the zone that begins at `zone_start` (R8).
    #[must_use]
    pub fn zone_close(zone_start: u64) -> Self {
        Self::raw(RequestType::ZoneClose.into(), zone_start, &[], 0)
    }

    /// ZONE_FINISH of the zone that begins at `zone_start` (R8).
    #[must_use]
    pub fn zone_finish(zone_start: u64) -> Self {
        Self::raw(RequestType::ZoneFinish.into(), zone_start, &[], 0)
    }

    /// ZONE_RESET of the zone that begins at `zone_start` (R8).
    #[must_use]
    pub fn zone_reset(zone_start: u64) -> Self {
        Self::raw(RequestType::ZoneReset.into(), zone_start, &[], 0)
    }

    /// ZONE_RESET_ALL (R9).
    #[must_use]
    pub fn zone_reset_all() -> Self {
        Self::raw(RequestType::ZoneResetAll.into(), 0, &[], 0)
    }

    /// Any request: type, sector, device-readable data, room for device-written data in bytes. The in-header is what
    /// the type has; unknown types get one status byte.
    #[must_use]
    pub fn raw(request_type: u32, sector: u64, out_data: &[u8], in_data_len: usize) -> Self {
        let header =
            OutHeader { request_type: request_type.into(), reserved: 0.into(), sector: sector.into() };
        let in_header_len = RequestType::try_from(request_type).map_or(1, RequestType::in_header_len_bytes);
        Self { header: header.as_bytes().to_vec(), out_data: out_data.to_vec(), in_data_len, in_header_len }
    }

    fn ranges(request_type: RequestType, ranges: &[(u64, u32)], flags: SegmentFlags) -> Self {
        let data: Vec<u8> = ranges
            .iter()
            .flat_map(|&(sector, num_sectors)| {
                let range = DiscardWriteZeroes {
                    sector: sector.into(),
                    num_sectors: num_sectors.into(),
                    flags: flags.bits().into(),
                };
                range.as_bytes().to_vec()
            })
            .collect();
        Self::raw(request_type.into(), 0, &data, 0)
    }

    /// All that the device reads: header, then data.
    pub(crate) fn out_bytes(&self) -> Vec<u8> {
        [self.header.as_slice(), self.out_data.as_slice()].concat()
    }

    /// The length of all that the device writes: data, then in-header.
    pub(crate) fn in_len(&self) -> usize {
        self.in_data_len + self.in_header_len
    }
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The status byte; [`UNTOUCHED`] if the device did not write it (or the request had no room for it).
    pub status: u8,
    /// The whole room for data, whatever part of it the device wrote; the rest is [`UNTOUCHED`].
    pub data: Vec<u8>,
    /// For an in-header of 9 bytes: where the data went. Counts with status OK only (R11).
    pub append_sector: Option<u64>,
    /// `len` of the used ring: how many bytes the device says to have written.
    pub used_len: u32,
}

impl Completion {
    /// Cuts the device-written part of `request` up.
    pub(crate) fn new(request: &Request, in_bytes: &[u8], used_len: u32) -> Self {
        let (data, in_header) = in_bytes.split_at(request.in_data_len);
        let append_sector = in_header.first_chunk::<8>().filter(|_| in_header.len() == 9).copied();
        Self {
            status: in_header.last().copied().unwrap_or(UNTOUCHED),
            data: data.to_vec(),
            append_sector: append_sector.map(u64::from_le_bytes),
            used_len,
        }
    }

    /// The status by name, or the number that has none.
    pub fn outcome(&self) -> Result<Status, UnknownValue> {
        Status::try_from(self.status)
    }

    /// Goes on with the completion if its status is `status`; panics otherwise, in the caller's line.
    #[track_caller]
    pub fn expect(self, status: Status) -> Self {
        match self.outcome() {
            Ok(found) => assert_eq!(found, status, "the device answered with another status"),
            Err(_) if self.status == UNTOUCHED => panic!("the device wrote no status"),
            Err(error) => panic!("the device answered with status {error}"),
        }
        self
    }

    /// The zones of a ZONE_REPORT. Fails if the header is not there or counts more zones than there is room for (B1).
    pub fn zones(&self) -> Result<Vec<ZoneDescriptor>> {
        let bad = |why: String| Error::BadReport { sector: 0, why };
        let (header, rest) = ReportHeader::read_from_prefix(&self.data)
            .map_err(|_| bad(format!("{} bytes have no room for the header", self.data.len())))?;
        let count = header.nr_zones.get();
        let room = rest.len() / size_of::<ZoneDescriptor>();
        match usize::try_from(count) {
            Ok(count) if count <= room => Ok(rest
                .chunks_exact(size_of::<ZoneDescriptor>())
                .take(count)
                .filter_map(|zone| ZoneDescriptor::read_from_bytes(zone).ok())
                .collect()),
            _ => Err(bad(format!("nr_zones is {count}, there is room for {room}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use virtio_zbd_spec::{ZoneState, ZoneType};

    use super::*;

    #[test]
    fn requests_are_the_bytes_of_the_specification() {
        let request = Request::zone_append(0x0807_0605_0403_0201, b"data");
        assert_eq!(request.header, [15, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!((request.out_bytes().len(), request.in_data_len, request.in_header_len), (20, 0, 9));

        let request = Request::write_zeroes(&[(1, 2), (3, 4)], true);
        assert_eq!(request.header[0], 13);
        assert_eq!(request.out_data[..16], [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(request.out_data[16..], [3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(Request::discard(&[(1, 2)]).out_data[12..], [0; 4]);

        for (request, number, in_len) in [
            (Request::read(0, 512), 0, 513),
            (Request::write(0, &[0; 512]), 1, 1),
            (Request::flush(), 4, 1),
            (Request::get_id(), 8, 21),
            (Request::get_lifetime(), 10, 7),
            (Request::discard(&[]), 11, 1),
            (Request::secure_erase(&[]), 14, 1),
            (Request::zone_report(0, 128), 16, 129),
            (Request::zone_open(0), 18, 1),
            (Request::zone_close(0), 20, 1),
            (Request::zone_finish(0), 22, 1),
            (Request::zone_reset(0), 24, 1),
            (Request::zone_reset_all(), 26, 1),
            (Request::raw(0xffff, 0, &[], 3), 0xffff, 4),
        ] {
            assert_eq!(u32::read_from_bytes(&request.header[..4]), Ok(number));
            assert_eq!(request.in_len(), in_len, "type {number}");
        }
    }

    #[test]
    fn a_completion_is_cut_where_the_request_says() {
        let read = Completion::new(&Request::read(0, 2), &[1, 2, 3], 3);
        assert_eq!((read.data.as_slice(), read.append_sector), ([1, 2].as_slice(), None));
        assert_eq!(read.outcome(), Ok(Status::ZoneInvalidCmd));

        let append = Request::zone_append(0, &[]);
        let append = Completion::new(&append, &[8, 0, 0, 0, 0, 0, 0, 1, 0], 9);
        assert_eq!(append.append_sector, Some(0x0100_0000_0000_0008));
        assert_eq!(append.expect(Status::Ok).used_len, 9);

        let mut no_room = Request::flush();
        no_room.in_header_len = 0;
        assert_eq!(Completion::new(&no_room, &[], 0).status, UNTOUCHED);
    }

    #[test]
    #[should_panic(expected = "wrote no status")]
    fn a_missing_status_is_never_ok() {
        let _ = Completion::new(&Request::flush(), &[UNTOUCHED], 0).expect(Status::Ok);
    }

    #[test]
    fn a_report_with_more_zones_than_room_is_refused() {
        let zone = ZoneDescriptor::new(ZoneType::SequentialRequired, ZoneState::Empty, 8, 8, 8);
        let report = |nr_zones: u64, zones: usize| {
            let mut bytes = ReportHeader::new(nr_zones).as_bytes().to_vec();
            bytes.extend(zone.as_bytes().repeat(zones));
            bytes.push(0);
            let request = Request::zone_report(0, bytes.len() - 1);
            Completion::new(&request, &bytes, 0).zones()
        };
        assert_eq!(report(2, 3).unwrap(), [zone, zone]);
        assert_eq!(report(0, 0).unwrap(), []);
        let error = report(3, 2).unwrap_err().to_string();
        assert!(error.ends_with("nr_zones is 3, there is room for 2"), "{error}");
        assert!(report(u64::MAX, 2).is_err());
        let short = Completion::new(&Request::zone_report(0, 63), &[0; 64], 0);
        assert!(short.zones().is_err());
    }
}
