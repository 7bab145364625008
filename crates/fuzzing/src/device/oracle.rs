//! What must become of a chain: what is written where, and what the used ring says.

use virtio_zbd_spec::{Features, RequestType, Status};
use virtio_zbd_testkit::Request;

use super::memory::Memory;
use super::walk::{Piece, Walked, len, overlap, spread, walk};
use super::world::Rings;
use crate::naive::NaiveDisk;

/// What is known of the disk and its driver.
pub(super) struct Oracle {
    pub(super) naive: NaiveDisk,
    pub(super) zoned: bool,
    /// `None`: they were refused, or there are none.
    pub(super) features: Option<Features>,
}

/// What the device must do.
#[derive(Debug, Default)]
pub(super) struct Foretold {
    /// In this order; a status is the last.
    pub(super) writes: Vec<(u64, Vec<u8>)>,
    /// The data's pieces overlap: which of them is written first is nobody's business.
    pub(super) any_order: bool,
    pub(super) used_len: u32,
}

impl Oracle {
    /// Does on the naive disk what the chain at `head` asks for. `None`: the chain lies over the device's own words in the rings, so
    /// that nothing can be foretold, and nothing of the naive disk either.
    pub(super) fn take(&mut self, memory: &Memory, rings: &Rings, head: u16) -> Option<Foretold> {
        let indirect = self.features.is_some_and(|features| features.contains(Features::INDIRECT_DESC));
        let walked = walk(memory, rings.desc, rings.size, head, indirect);
        let wide = |piece: &Piece| (piece.0, u64::from(piece.1));
        let mut read = walked.readable.iter().chain(&walked.tables).map(wide);
        if read.any(|read| rings.wishes().into_iter().any(|wish| overlap(wish, read))) {
            return None;
        }
        let foretold = if !walked.ended {
            Foretold::default()
        } else if walked.bad {
            let status = walked.last.map(|(at, len)| (at + u64::from(len) - 1, vec![Status::IoErr as u8]));
            Foretold { writes: status.into_iter().collect(), ..Foretold::default() }
        } else {
            self.answer(memory, &walked)
        };
        let mut written = foretold.writes.iter().map(|(at, bytes)| (*at, bytes.len() as u64));
        let wild = written.any(|written| rings.areas().into_iter().any(|area| overlap(area, written)));
        (!wild).then_some(foretold)
    }

    fn answer(&mut self, memory: &Memory, walked: &Walked) -> Foretold {
        let Some(data_len) = len(&walked.writable).checked_sub(1) else {
            return Foretold::default();
        };
        let readable: Vec<u8> = walked
            .readable
            .iter()
            .flat_map(|&(at, len)| memory.get(at, usize::try_from(len).unwrap()).unwrap())
            .collect();
        let (status, data) = self.outcome(&readable, usize::try_from(data_len).unwrap());
        let mut writes = Vec::new();
        let mut any_order = false;
        if let Some(data) = &data {
            assert_eq!(data.len() as u64, data_len);
            writes = spread(&walked.writable, 0, data);
            any_order = (1..writes.len()).any(|i| {
                let span = |i: usize| (writes[i].0, writes[i].1.len() as u64);
                (0..i).any(|j| overlap(span(i), span(j)))
            });
        }
        writes.extend(spread(&walked.writable, data_len, &[status as u8]));
        let counts = data.is_some() || data_len == 0;
        let used_len = if counts { u32::try_from(data_len + 1).unwrap() } else { 0 };
        Foretold { writes, any_order, used_len }
    }

    /// The status, and all that stands before it if anything is written there.
    fn outcome(&mut self, readable: &[u8], data_len: usize) -> (Status, Option<Vec<u8>>) {
        let Some((header, out_data)) = readable.split_at_checked(16) else {
            return (Status::IoErr, None);
        };
        let Some(features) = self.features else {
            return (Status::IoErr, None);
        };
        let kind = RequestType::try_from(u32::from_le_bytes(header[..4].try_into().unwrap()));
        let append = kind == Ok(RequestType::ZoneAppend);
        match kind {
            Ok(RequestType::Discard) if !features.contains(Features::DISCARD) => {
                return (Status::Unsupp, None);
            }
            Ok(RequestType::WriteZeroes) if !features.contains(Features::WRITE_ZEROES) => {
                return (Status::Unsupp, None);
            }
            Ok(RequestType::ZoneAppend) if data_len < 8 => {
                return (if self.zoned { Status::IoErr } else { Status::Unsupp }, None);
            }
            _ => {}
        }
        let in_header_len = if append { 9 } else { 1 };
        let in_data_len = data_len + 1 - in_header_len;
        let request =
            Request { header: header.to_vec(), out_data: out_data.to_vec(), in_data_len, in_header_len };
        let done = self.naive.call(&request);
        let mut data = done.data;
        data.extend(done.append_sector.into_iter().flat_map(u64::to_le_bytes));
        (Status::try_from(done.status).unwrap(), (done.used_len != 0 && data_len != 0).then_some(data))
    }
}
