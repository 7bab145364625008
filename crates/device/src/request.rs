//! A request, parsed from its chain: every length and range that does not need the zones is checked here and nowhere else.

use virtio_zbd_spec::{DiscardWriteZeroes, Features, OutHeader, RequestType, SegmentFlags, Status};
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
    /// APPEND only: the sector's place, 8 bytes, and the padding that may follow. By the specification (5.2.6) the status
    /// comes right behind the sector; Linux' virtio_blk has the two in a structure with 7 bytes between them. Sector first and
    /// status last is right for both.
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

/// Length of the sector in the in-header of an append.
pub(crate) const APPEND_SECTOR_LEN: u32 = len_of::<u64>();

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
                // All that is left is in-header: an append has no data for the driver.
                let rest = std::mem::take(&mut chain.writable);
                if rest.len_bytes() >= APPEND_SECTOR_LEN {
                    in_header.data_len_bytes = 0;
                    in_header.append_sector = Some(rest);
                }
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

#[cfg(test)]
mod tests {
    use virtio_zbd_zones::{Geometry, GeometryConfig};
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::config::Offer;

    const HEADER: u64 = 0x100;
    const DATA: u64 = 0x1000;
    const ROOM: u64 = 0x4000;
    const SECTOR: u64 = 0x0123_4567_89ab_cdef;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap()
    }

    /// All that a disk offers.
    fn negotiated(geometry: Option<Geometry>) -> Negotiated {
        let offer =
            Offer { capacity_sectors: 1 << 20, block_len_bytes: 512, geometry, queues: 1, read_only: false };
        Negotiated::new(&offer, offer.features().bits()).unwrap()
    }

    fn plain_disk() -> Negotiated {
        negotiated(None)
    }

    fn zoned_disk() -> Negotiated {
        let geometry = Geometry::new(GeometryConfig {
            capacity_sectors: 1 << 20,
            zone_sectors: 1 << 10,
            zone_capacity_sectors: 1 << 10,
            conventional_zones: 0,
            max_open_zones: 0,
            max_active_zones: 0,
            max_append_sectors: 8,
            write_granularity_bytes: 512,
        });
        negotiated(Some(geometry.unwrap()))
    }

    fn spans(parts: &[(u64, u32)]) -> Spans {
        let mut spans = Spans::default();
        for &(addr, len) in parts {
            spans.push((GuestAddress(addr), len)).unwrap();
        }
        spans
    }

    fn header(kind: u32) -> OutHeader {
        OutHeader { request_type: kind.into(), reserved: u32::MAX.into(), sector: SECTOR.into() }
    }

    /// Parses a request of `kind` with so many bytes of data, and so many to be written; each direction is one buffer.
    fn parse_one(kind: u32, out_len: u32, in_len: u32, negotiated: &Negotiated) -> Parsed {
        let memory = memory();
        memory.write_slice(header(kind).as_bytes(), GuestAddress(HEADER)).unwrap();
        let mut chain = Chain { readable: spans(&[(HEADER, 16)]), writable: Spans::default() };
        for (part, addr, len) in [(&mut chain.readable, DATA, out_len), (&mut chain.writable, ROOM, in_len)] {
            if len > 0 {
                part.push((GuestAddress(addr), len)).unwrap();
            }
        }
        parse(&memory, chain, negotiated)
    }

    fn zoned(kind: RequestType, out_len: u32, in_len: u32) -> Parsed {
        parse_one(kind.into(), out_len, in_len, &zoned_disk())
    }

    fn plain(kind: RequestType, out_len: u32, in_len: u32) -> Parsed {
        parse_one(kind.into(), out_len, in_len, &plain_disk())
    }

    #[test]
    fn each_type_becomes_its_request() {
        use RequestType as T;
        let sector = SECTOR;
        for (kind, out_len, in_len, expected) in [
            (T::In, 0, 1025, Request::Read { sector, data: spans(&[(ROOM, 1024)]) }),
            (T::In, 0, 1, Request::Read { sector, data: Spans::default() }),
            (T::Out, 512, 1, Request::Write { sector, data: spans(&[(DATA, 512)]) }),
            (T::Out, 0, 1, Request::Write { sector, data: Spans::default() }),
            (T::Flush, 0, 1, Request::Flush),
            (T::Flush, 77, 78, Request::Flush),
            (T::GetId, 0, 21, Request::GetId { data: spans(&[(ROOM, 20)]) }),
            (T::ZoneAppend, 1024, 9, Request::Append { sector, data: spans(&[(DATA, 1024)]) }),
            (T::ZoneReport, 0, 129, Request::ZoneReport { sector, data: spans(&[(ROOM, 128)]) }),
            (T::ZoneReport, 0, 1, Request::ZoneReport { sector, data: Spans::default() }),
            (T::ZoneOpen, 0, 1, Request::ZoneOpen { sector }),
            (T::ZoneClose, 0, 1, Request::ZoneClose { sector }),
            (T::ZoneFinish, 0, 1, Request::ZoneFinish { sector }),
            (T::ZoneReset, 0, 1, Request::ZoneReset { sector }),
            (T::ZoneResetAll, 0, 1, Request::ZoneResetAll),
        ] {
            let parsed = zoned(kind, out_len, in_len);
            assert_eq!(parsed.request, Ok(expected), "{kind:?}");
            let in_header = if kind == T::ZoneAppend { 9 } else { 1 };
            assert_eq!(parsed.in_header.data_len_bytes, in_len - in_header);
            assert_eq!(parsed.in_header.status, spans(&[(ROOM + u64::from(in_len) - 1, 1)]));
        }
    }

    #[test]
    fn what_was_not_negotiated_is_not_supported() {
        for kind in RequestType::ALL.iter().copied() {
            let (zoned, plain) = (zoned(kind, 16, 600).request, plain(kind, 16, 600).request);
            let ranged = matches!(kind, RequestType::Discard | RequestType::WriteZeroes);
            let never = matches!(kind, RequestType::SecureErase | RequestType::GetLifetime);
            assert_eq!(zoned == Err(Status::Unsupp), ranged || never, "{kind:?}");
            assert_eq!(plain == Err(Status::Unsupp), kind.is_zoned() || never, "{kind:?}");
        }
        for kind in [2, 3, 5, 12, 17, 27, 0x8000_0000, u32::MAX] {
            let parsed = parse_one(kind, 16, 600, &zoned_disk());
            assert_eq!(parsed.request, Err(Status::Unsupp));
        }
    }

    #[test]
    fn a_refused_driver_gets_nothing() {
        let refused = Negotiated::nothing();
        for kind in 0..40 {
            assert_eq!(parse_one(kind, 512, 513, &refused).request, Err(Status::IoErr), "type {kind}");
        }
    }

    #[test]
    fn data_is_whole_sectors() {
        for len in [1, 511, 513, 1023] {
            assert_eq!(zoned(RequestType::In, 0, len + 1).request, Err(Status::IoErr));
            assert_eq!(zoned(RequestType::Out, len, 1).request, Err(Status::IoErr));
            assert_eq!(zoned(RequestType::ZoneAppend, len, 9).request, Err(Status::IoErr));
        }
        assert_eq!(zoned(RequestType::GetId, 0, 1).request, Err(Status::IoErr));
    }

    #[test]
    fn the_in_header_is_the_end_of_what_can_be_written() {
        let append = |in_len| zoned(RequestType::ZoneAppend, 512, in_len);
        let whole = append(9).in_header;
        assert_eq!(whole.append_sector, Some(spans(&[(ROOM, 8)])));
        assert_eq!((whole.status, whole.data_len_bytes), (spans(&[(ROOM + 8, 1)]), 0));
        // Linux': padding between the sector and the status.
        let padded = append(16).in_header;
        assert_eq!(padded.append_sector, Some(spans(&[(ROOM, 15)])));
        assert_eq!((padded.status, padded.data_len_bytes), (spans(&[(ROOM + 15, 1)]), 0));
        for in_len in 1..9 {
            let short = append(in_len);
            assert_eq!(short.request, Err(Status::IoErr));
            assert_eq!(short.in_header.append_sector, None);
            assert_eq!(short.in_header.status, spans(&[(ROOM + u64::from(in_len) - 1, 1)]));
            assert_eq!(short.in_header.data_len_bytes, in_len - 1);
        }
        for kind in RequestType::ALL.iter().copied() {
            let none = zoned(kind, 512, 0);
            assert_eq!((none.request, none.in_header), (Err(Status::IoErr), InHeader::default()));
        }
    }

    #[test]
    fn the_header_may_be_cut_anywhere_and_must_be_whole() {
        let memory = memory();
        let bytes = header(RequestType::Out.into());
        for first in 0..=16u32 {
            for second in 0..=16 - first {
                let parts = [(0x100, first), (0x200, second), (0x300, 16 - first - second)];
                let mut rest = bytes.as_bytes();
                let mut readable = Spans::default();
                for (addr, len) in parts.into_iter().filter(|part| part.1 > 0) {
                    let (part, behind) = rest.split_at(len as usize);
                    memory.write_slice(part, GuestAddress(addr)).unwrap();
                    readable.push((GuestAddress(addr), len)).unwrap();
                    rest = behind;
                }
                // The data begins in the same buffer as the header ends, and goes on in another.
                readable.push((GuestAddress(DATA), 500)).unwrap();
                readable.push((GuestAddress(DATA + 1000), 12)).unwrap();
                let parsed = parse(&memory, Chain { readable, writable: spans(&[(ROOM, 1)]) }, &plain_disk());
                let data = spans(&[(DATA, 500), (DATA + 1000, 12)]);
                assert_eq!(parsed.request, Ok(Request::Write { sector: SECTOR, data }));
            }
        }
        for len in 0..16 {
            let readable = if len == 0 { Spans::default() } else { spans(&[(0x100, len)]) };
            let parsed = parse(&memory, Chain { readable, writable: spans(&[(ROOM, 5)]) }, &plain_disk());
            assert_eq!(parsed.request, Err(Status::IoErr));
            assert_eq!(parsed.in_header.status, spans(&[(ROOM + 4, 1)]));
            assert_eq!(parsed.in_header.data_len_bytes, 4);
        }
    }

    /// Parses segments of (sector, sectors, flags).
    fn ranged(kind: RequestType, segments: &[(u64, u32, u32)]) -> Result<Request, Status> {
        let memory = memory();
        memory.write_slice(header(kind.into()).as_bytes(), GuestAddress(HEADER)).unwrap();
        let mut readable = spans(&[(HEADER, 16)]);
        for (i, &(sector, sectors, flags)) in (0..).zip(segments) {
            let segment = DiscardWriteZeroes {
                sector: sector.into(),
                num_sectors: sectors.into(),
                flags: flags.into(),
            };
            memory.write_slice(segment.as_bytes(), GuestAddress(DATA + 16 * i)).unwrap();
            readable.push((GuestAddress(DATA + 16 * i), 16)).unwrap();
        }
        parse(&memory, Chain { readable, writable: spans(&[(ROOM, 1)]) }, &plain_disk()).request
    }

    #[test]
    fn segments_become_ranges() {
        use RequestType::{Discard, WriteZeroes};
        let range = |sector, sectors, may_unmap| SectorRange { sector, sectors, may_unmap };
        let segments = [(7, 8, 0), (u64::MAX, MAX_DISCARD_SECTORS, 0)];
        let ranges = vec![range(7, 8, true), range(u64::MAX, MAX_DISCARD_SECTORS, true)];
        assert_eq!(ranged(Discard, &segments), Ok(Request::Discard { ranges }));
        let ranges = vec![range(7, 8, false), range(9, 0, true)];
        assert_eq!(ranged(WriteZeroes, &[(7, 8, 0), (9, 0, 1)]), Ok(Request::WriteZeroes { ranges }));

        for kind in [Discard, WriteZeroes] {
            assert_eq!(ranged(kind, &[]), Err(Status::IoErr));
            assert!(ranged(kind, &[(0, 1, 0); 32]).is_ok());
            assert_eq!(ranged(kind, &[(0, 1, 0); 33]), Err(Status::IoErr));
            let long = (0, MAX_DISCARD_SECTORS + 1, 0);
            assert_eq!(ranged(kind, &[(0, 1, 0), long]), Err(Status::IoErr));
            // An unknown flag is what is told, wherever it stands.
            assert_eq!(ranged(kind, &[long, (0, 1, 2)]), Err(Status::Unsupp));
            assert_eq!(ranged(kind, &[(0, 1, 1 << 31), long]), Err(Status::Unsupp));
        }
        assert_eq!(ranged(Discard, &[(0, 1, 1)]), Err(Status::Unsupp));
    }
}
