//! Requests on their way, cut into descriptors.

use alloc::format;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use virtio_zbd_spec::{RequestType, SECTOR_LEN_BYTES, Status};

use super::request::UNTOUCHED;
use super::{Bench, Reply, Request, Stop, Zone, status_name};
use crate::link::{Chain, LinkError};

impl Bench<'_> {
    /// Sends one request in the usual descriptors: header, data, in-header.
    pub(crate) fn send(&mut self, request: &Request) -> Result<Reply, Stop> {
        let segment = self.segment_len();
        let readable = cuts_of(16, request.data.len(), segment);
        let writable = cuts_of(0, request.room, segment);
        self.send_cut(request, &readable, &writable)
    }

    /// Sends one request with header and data in a row cut after each of the `readable` byte offsets, and the room and
    /// in-header after the `writable` ones.
    pub(crate) fn send_cut(
        &mut self,
        request: &Request,
        readable: &[usize],
        writable: &[usize],
    ) -> Result<Reply, Stop> {
        self.touch(request);
        let (out, mut room) = buffers(request);
        let sent = self.link.send(&pieces(&out, readable), &mut pieces_mut(&mut room, writable));
        let reply = sent.map(|used_len| reply(request, &room, used_len));
        self.note_sent(request, reply.as_ref());
        Ok(reply?)
    }

    /// Sends raw descriptors; the device may not know what to do with them. Returns the used length.
    pub(crate) fn send_raw(
        &mut self,
        what: &str,
        readable: &[&[u8]],
        writable: &mut [&mut [u8]],
    ) -> Result<u32, Stop> {
        self.last_sent = what.into();
        let sent = self.link.send(readable, writable);
        let came = match &sent {
            Ok(len) => format!("used, length {len}"),
            Err(error) => error.to_string(),
        };
        self.note(what.into(), came);
        Ok(sent?)
    }

    /// Sends all requests at once, over all queues in turn if `spread`; as many at a time as the link takes.
    pub(crate) fn send_all(&mut self, requests: &[Request], spread: bool) -> Result<Vec<Reply>, Stop> {
        let queues = if spread { self.queue_count() } else { 1 };
        let mut replies = Vec::with_capacity(requests.len());
        for batch in requests.chunks(self.batch_max()) {
            let mut chains: Vec<Chain> = batch.iter().map(chain).collect();
            for (chain, queue) in chains.iter_mut().zip((0..queues).cycle()) {
                chain.queue = queue;
            }
            for request in batch {
                self.touch(request);
            }
            let sent = self.link.send_all(&mut chains);
            for (request, chain) in batch.iter().zip(&chains) {
                let room: Vec<u8> = chain.writable.concat();
                let came = match chain.used_len {
                    Some(used_len) => Ok(reply(request, &room, used_len)),
                    None => Err(sent.clone().err().unwrap_or(LinkError::TimedOut)),
                };
                self.note_sent(request, came.as_ref());
                replies.push(came);
            }
            sent?;
        }
        Ok(replies.into_iter().collect::<Result<_, _>>()?)
    }

    /// How many chains [`Self::send_all`] makes available at once.
    pub(crate) fn batch_max(&self) -> usize {
        usize::from(self.queue_size() / 4).max(1)
    }

    /// Sends a request that has to be answered with OK.
    pub(crate) fn ok(&mut self, request: &Request) -> Result<Reply, Stop> {
        let reply = self.send(request)?;
        self.check(reply.is_ok(), "OK", status_name(reply.status))?;
        Ok(reply)
    }

    /// Sends a request that a case needs before it can begin.
    pub(crate) fn prepare(&mut self, request: &Request) -> Result<Reply, Stop> {
        let reply = self.send(request)?;
        if reply.is_ok() {
            return Ok(reply);
        }
        Err(Stop::Unready(format!("{request} was answered {}", status_name(reply.status))))
    }

    /// Sends a request that has to be answered with one of `statuses`.
    pub(crate) fn answers(&mut self, request: &Request, statuses: &[Status]) -> Result<Reply, Stop> {
        let reply = self.send(request)?;
        self.judge_status(&reply, statuses)?;
        Ok(reply)
    }

    pub(super) fn judge_status(&self, reply: &Reply, statuses: &[Status]) -> Result<(), Stop> {
        if statuses.iter().any(|&status| reply.is(status)) {
            return Ok(());
        }
        let names: Vec<_> = statuses.iter().map(|&status| status_name(status.into())).collect();
        self.fail(names.join(" or "), status_name(reply.status))
    }

    /// The longest data of one request in bytes, whole sectors.
    pub(crate) fn request_max_bytes(&self) -> u64 {
        let disk = self.disk.map_or(u64::MAX, |disk| disk.data_max_bytes());
        let queue =
            u64::from(self.link.queue_size().saturating_sub(3)).saturating_mul(self.segment_len() as u64);
        let max = disk.min(queue).min(self.options.request_max_bytes as u64);
        (max - max % SECTOR_LEN_BYTES).max(SECTOR_LEN_BYTES)
    }

    /// The longest data of one write or append to a sequential zone in sectors: whole granules, one at least.
    pub(crate) fn write_max_sectors(&self, granule: u64) -> u64 {
        let sectors = self.request_max_bytes() / SECTOR_LEN_BYTES;
        (sectors - sectors % granule).max(granule)
    }

    /// The longest descriptor in bytes, whole sectors.
    fn segment_len(&self) -> usize {
        let max = self.disk.map_or(u64::MAX, |disk| disk.segment_max_bytes()).min(1 << 20);
        usize::try_from((max - max % SECTOR_LEN_BYTES).max(SECTOR_LEN_BYTES)).unwrap_or(512)
    }

    /// Notes that a zone may not be empty any more, by something that does not name it.
    pub(crate) fn touch_zone(&mut self, zone: &Zone) {
        self.touched.insert(zone.start);
    }

    /// Notes which zones may not be empty after a request.
    fn touch(&mut self, request: &Request) {
        let Some(zoned) = self.disk.and_then(|disk| disk.zoned) else { return };
        if request.is(RequestType::In) || request.is_report() || zoned.zone_sectors == 0 {
            return;
        }
        let last = request.sector.saturating_add(request.sectors() - 1);
        for sector in [request.sector, last] {
            self.touched.insert(sector - sector % zoned.zone_sectors);
        }
    }

    fn note_sent(&mut self, request: &Request, reply: Result<&Reply, &LinkError>) {
        self.last_sent = request.to_string();
        let came = match reply {
            Ok(reply) => reply.text(request),
            Err(error) => error.to_string(),
        };
        self.note(request.to_string(), came);
    }
}

/// A request as a chain of the usual descriptors.
fn chain(request: &Request) -> Chain {
    let (out, room) = buffers(request);
    let cut =
        |buffer: &[u8], cuts: &[usize]| pieces(buffer, cuts).iter().map(|piece| piece.to_vec()).collect();
    let readable = cut(&out, &[16]);
    let writable = cut(&room, &[request.room]);
    Chain { queue: 0, readable, writable, used_len: None }
}

/// All that is readable and all that is writable.
fn buffers(request: &Request) -> (Vec<u8>, Vec<u8>) {
    let mut out = Vec::with_capacity(16 + request.data.len());
    out.extend_from_slice(&request.header());
    out.extend_from_slice(&request.data);
    (out, vec![UNTOUCHED; request.room + request.in_header_len_bytes()])
}

fn reply(request: &Request, room: &[u8], used_len: u32) -> Reply {
    let (data, in_header) = room.split_at(request.room.min(room.len()));
    let mut sector = [0; 8];
    if let Some(bytes) = in_header.get(..8) {
        sector.copy_from_slice(bytes);
    }
    Reply {
        status: in_header.last().copied().unwrap_or(UNTOUCHED),
        data: data.to_vec(),
        append_sector: u64::from_le_bytes(sector),
        used_len,
    }
}

/// Where the usual request is cut: after `first` bytes, then after each `segment` of `len`, then before what follows.
fn cuts_of(first: usize, len: usize, segment: usize) -> Vec<usize> {
    let mut cuts: Vec<usize> = (0..len).step_by(segment.max(1)).map(|offset| first + offset).collect();
    cuts.push(first + len);
    cuts
}

/// `buffer`, cut after each of the ascending `cuts`; no piece is empty.
fn pieces<'b>(buffer: &'b [u8], cuts: &[usize]) -> Vec<&'b [u8]> {
    let mut pieces = Vec::with_capacity(cuts.len() + 1);
    let mut rest = buffer;
    let mut offset = 0;
    for &cut in cuts {
        let (piece, behind) = rest.split_at(cut.saturating_sub(offset).min(rest.len()));
        offset += piece.len();
        rest = behind;
        pieces.push(piece);
    }
    pieces.push(rest);
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

fn pieces_mut<'b>(buffer: &'b mut [u8], cuts: &[usize]) -> Vec<&'b mut [u8]> {
    let mut pieces = Vec::with_capacity(cuts.len() + 1);
    let mut rest = buffer;
    let mut offset = 0;
    for &cut in cuts {
        let (piece, behind) = rest.split_at_mut(cut.saturating_sub(offset).min(rest.len()));
        offset += piece.len();
        rest = behind;
        pieces.push(piece);
    }
    pieces.push(rest);
    pieces.retain(|piece| !piece.is_empty());
    pieces
}
