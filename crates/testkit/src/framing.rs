//! How a request's bytes are spread over the descriptors of a chain: free framing (virtio 1.3, 2.7.4).

use vm_memory::GuestAddress;

use crate::blk::{Completion, Request, UNTOUCHED};
use crate::error::{Error, Result};
use crate::ram::{GuestRam, as_u64};
use crate::ring::{Buf, Table};

/// Where a request's bytes are cut into buffers. All of them mean the same to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// One buffer each for header, data and in-header, as Linux does it; the data is aligned to 4096 bytes.
    Classic,
    /// [`Framing::Classic`] in an indirect table.
    Indirect,
    /// [`Framing::Classic`] with the header in the queue's table and the rest in an indirect one.
    TailIndirect,
    /// Header and data in one buffer, device-written data and in-header in another.
    Joined,
    /// Cut after every so many bytes, headers too, each piece somewhere else; mind the number of descriptors.
    Every(u32),
    /// Cut at up to 4 random places in each direction, each piece somewhere else at any alignment; the seed decides.
    Random(u64),
    /// [`Framing::Random`] in an indirect table.
    IndirectRandom(u64),
}

impl Framing {
    /// A random framing with another seed, any other as it is: so that requests in a row are cut differently.
    #[must_use]
    pub(crate) fn vary(self, by: u64) -> Self {
        match self {
            Self::Random(seed) => Self::Random(seed.wrapping_add(by)),
            Self::IndirectRandom(seed) => Self::IndirectRandom(seed.wrapping_add(by)),
            other => other,
        }
    }

    fn table(self) -> Table {
        match self {
            Self::Indirect | Self::IndirectRandom(_) => Table::Indirect,
            Self::TailIndirect => Table::Tail(1),
            Self::Classic | Self::Joined | Self::Every(_) | Self::Random(_) => Table::Direct,
        }
    }

    /// The lengths of the pieces of `len` bytes, of which a header or in-header begins or ends at `seam`.
    fn pieces(self, len: usize, seam: usize, rng: &mut fastrand::Rng) -> Vec<usize> {
        let mut cuts = match self {
            Self::Classic | Self::Indirect | Self::TailIndirect => vec![seam],
            Self::Joined => vec![],
            Self::Every(step) => (0..len).step_by(usize::try_from(step.max(1)).unwrap()).collect(),
            Self::Random(_) | Self::IndirectRandom(_) => {
                (0..rng.usize(0..=4)).map(|_| rng.usize(0..=len)).collect()
            }
        };
        cuts.extend([0, len]);
        cuts.sort_unstable();
        cuts.dedup();
        cuts.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }
}

/// A request in guest memory, ready to be given to the device, once or again. Gives the memory back when dropped.
pub struct Placed {
    ram: GuestRam,
    request: Request,
    out_pieces: Vec<Piece>,
    in_pieces: Vec<Piece>,
    table: Table,
}

#[derive(Clone, Copy)]
struct Piece {
    addr: GuestAddress,
    len: usize,
}

/// What lies behind each buffer: a device that writes on past its end is found out.
const CANARY: [u8; 8] = *b"\xc5canary\x5c";

impl Placed {
    /// Puts `request` into `ram`. Panics when there is no room.
    #[track_caller]
    #[must_use]
    pub fn new(ram: &GuestRam, request: Request, framing: Framing) -> Self {
        let seed = match framing {
            Framing::Random(seed) | Framing::IndirectRandom(seed) => seed,
            _ => 0,
        };
        let mut rng = fastrand::Rng::with_seed(seed);
        let out_bytes = request.out_bytes();
        let out_lens = framing.pieces(out_bytes.len(), request.header.len(), &mut rng);
        let in_lens = framing.pieces(request.in_len(), request.in_data_len, &mut rng);
        let mut place = |len: usize| {
            let align_bytes = match framing {
                Framing::Classic | Framing::Indirect | Framing::TailIndirect if len >= 512 => 4096,
                Framing::Classic | Framing::Indirect | Framing::TailIndirect => 16,
                Framing::Joined => 16,
                Framing::Every(_) | Framing::Random(_) | Framing::IndirectRandom(_) => 1 << rng.u32(0..10),
            };
            let addr = ram.alloc(len + CANARY.len(), align_bytes);
            ram.write(GuestAddress(addr.0 + as_u64(len)), &CANARY);
            Piece { addr, len }
        };
        let out_pieces: Vec<Piece> = out_lens.into_iter().map(&mut place).collect();
        let in_pieces: Vec<Piece> = in_lens.into_iter().map(&mut place).collect();
        let placed = Self { ram: ram.clone(), request, out_pieces, in_pieces, table: framing.table() };
        let mut rest = out_bytes.as_slice();
        for piece in &placed.out_pieces {
            let (bytes, behind) = rest.split_at(piece.len);
            placed.ram.write(piece.addr, bytes);
            rest = behind;
        }
        placed.reset();
        placed
    }

    /// Makes what the device writes [`UNTOUCHED`] again, to give the request to the device once more.
    pub fn reset(&self) {
        for piece in &self.in_pieces {
            self.ram.fill(piece.addr, piece.len, UNTOUCHED);
        }
    }

    /// The chain: device-readable buffers, then device-writable ones.
    #[must_use]
    pub fn bufs(&self) -> Vec<Buf> {
        let len = |piece: &Piece| u32::try_from(piece.len).unwrap();
        let out = self.out_pieces.iter().map(|piece| Buf::readable(piece.addr, len(piece)));
        let r#in = self.in_pieces.iter().map(|piece| Buf::writable(piece.addr, len(piece)));
        out.chain(r#in).collect()
    }

    /// Where the chain's descriptors belong.
    #[must_use]
    pub fn table(&self) -> Table {
        self.table
    }

    /// The request.
    #[must_use]
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// The status byte alone, without a look at anything else.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self.in_pieces.last() {
            Some(piece) if self.request.in_header_len > 0 => {
                self.ram.read(GuestAddress(piece.addr.0 + as_u64(piece.len - 1)), 1)[0]
            }
            _ => UNTOUCHED,
        }
    }

    /// What the device made of it. `used_len` is what the used ring says.
    ///
    /// Fails with [`Error::Trespass`] if the device wrote what it must only read, or past the end of a buffer.
    pub fn completion(&self, used_len: u32) -> Result<Completion> {
        let out_bytes = self.gather(&self.out_pieces)?;
        if out_bytes != self.request.out_bytes() {
            let addr = self.out_pieces.first().map_or(0, |piece| piece.addr.0);
            return Err(Error::Trespass { what: "a device-readable buffer", addr });
        }
        let in_bytes = self.gather(&self.in_pieces)?;
        Ok(Completion::new(&self.request, &in_bytes, used_len))
    }

    fn gather(&self, pieces: &[Piece]) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for piece in pieces {
            let mut found = self.ram.read(piece.addr, piece.len + CANARY.len());
            if found.split_off(piece.len) != CANARY {
                let addr = piece.addr.0 + as_u64(piece.len);
                return Err(Error::Trespass { what: "past the end of a buffer", addr });
            }
            bytes.append(&mut found);
        }
        Ok(bytes)
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        for piece in self.out_pieces.iter().chain(&self.in_pieces) {
            // Gone already if the test went back to a mark; no reason to panic in here.
            self.ram.try_free(piece.addr);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn lens(request: &Request, framing: Framing) -> (Vec<u32>, Vec<u32>) {
        let ram = GuestRam::new(MIB);
        let placed = Placed::new(&ram, request.clone(), framing);
        let (r#in, out): (Vec<Buf>, Vec<Buf>) =
            placed.bufs().into_iter().partition(|buf| buf.device_writable);
        (out.iter().map(|buf| buf.len).collect(), r#in.iter().map(|buf| buf.len).collect())
    }

    #[test]
    fn each_framing_cuts_where_it_says() {
        let write = Request::write(0, &[1; 1024]);
        let read = Request::read(0, 1024);
        let append = Request::zone_append(0, &[1; 40]);
        assert_eq!(lens(&write, Framing::Classic), (vec![16, 1024], vec![1]));
        assert_eq!(lens(&read, Framing::Indirect), (vec![16], vec![1024, 1]));
        assert_eq!(lens(&append, Framing::TailIndirect), (vec![16, 40], vec![9]));
        assert_eq!(lens(&Request::flush(), Framing::Classic), (vec![16], vec![1]));
        assert_eq!(lens(&write, Framing::Joined), (vec![1040], vec![1]));
        assert_eq!(lens(&read, Framing::Joined), (vec![16], vec![1025]));
        assert_eq!(lens(&append, Framing::Every(20)), (vec![20, 20, 16], vec![9]));
        assert_eq!(lens(&append, Framing::Every(5)), ([vec![5; 11], vec![1]].concat(), vec![5, 4]));
    }

    #[test]
    fn random_cuts_keep_every_byte_and_fall_into_headers_too() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let data: Vec<u8> = (0..=255).collect();
        let append = Request::zone_append(7, &data);
        let (mut in_header_cut, mut in_in_header_cut) = (false, false);
        for i in 0..300 {
            let ram = GuestRam::new(MIB);
            let placed = Placed::new(&ram, append.clone(), Framing::Random(seed).vary(i));
            let bufs = placed.bufs();
            let (mut out_bytes, mut in_len) = (Vec::new(), 0);
            for buf in &bufs {
                assert_ne!(buf.len, 0);
                let len = usize::try_from(buf.len).unwrap();
                if buf.device_writable {
                    in_len += len;
                } else {
                    out_bytes.extend(ram.read(buf.addr, len));
                }
            }
            assert_eq!((out_bytes, in_len), (append.out_bytes(), 9));
            in_header_cut |= bufs[0].len < 16;
            in_in_header_cut |= bufs.iter().filter(|buf| buf.device_writable).count() > 1;
            drop(placed);
            assert_eq!(ram.used_bytes(), 0);
        }
        assert!(in_header_cut && in_in_header_cut);
    }

    #[test]
    fn what_the_device_wrote_comes_back_and_trespassing_is_found() {
        let ram = GuestRam::new(MIB);
        let placed = Placed::new(&ram, Request::read(0, 600), Framing::Every(200));
        let bufs = placed.bufs();
        assert_eq!(placed.status(), UNTOUCHED);
        ram.fill(bufs[1].addr, 200, 1);
        ram.fill(bufs[3].addr, 200, 3);
        ram.write(bufs[4].addr, &[5]);
        let completion = placed.completion(601).unwrap();
        assert_eq!(completion.data, [[1; 200], [UNTOUCHED; 200], [3; 200]].concat());
        assert_eq!((completion.status, placed.status(), completion.used_len), (5, 5, 601));
        placed.reset();
        assert_eq!(placed.completion(0).unwrap().status, UNTOUCHED);

        ram.write(bufs[4].addr, &[5, 6]);
        let error = placed.completion(0).unwrap_err().to_string();
        assert!(error.contains("past the end of a buffer"), "{error}");

        let placed = Placed::new(&ram, Request::flush(), Framing::Classic);
        ram.write(placed.bufs()[0].addr, &[9]);
        let error = placed.completion(0).unwrap_err().to_string();
        assert!(error.contains("a device-readable buffer"), "{error}");
    }
}
