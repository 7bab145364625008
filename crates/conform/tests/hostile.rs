//! A device that says anything, and one that is right most of the time: the suite never panics, and every run ends.
//!
//! `CONFORM_SEED=n` repeats a run, `CONFORM_RUNS=n` makes it longer.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests")]

mod naive;

use std::env;

use fastrand::Rng;
use naive::{Naive, shape};
use virtio_zbd_conform::{CONFIG_LEN_BYTES, Chain, Link, LinkError, RunOptions, Started, cases, run};

#[test]
fn no_answer_brings_the_suite_down() {
    for_each_seed(300, |seed| {
        let mut link = Hostile::new(seed);
        judge(&mut link, seed);
        assert!(link.calls < 1_000_000, "{} calls", link.calls);
    });
}

#[test]
fn nor_does_a_wrong_one_among_many_good_ones() {
    for_each_seed(60, |seed| {
        let mut rng = Rng::with_seed(seed);
        let shapes = shape::all();
        let naive = Naive::new(shapes[rng.usize(..shapes.len())].clone(), None);
        let wrong = [0.001, 0.01, 0.1][rng.usize(..3)];
        judge(&mut Unsteady { naive, wrong, rng }, seed);
    });
}

fn for_each_seed(runs: u64, mut test: impl FnMut(u64)) {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let first = number("CONFORM_SEED").unwrap_or_else(|| fastrand::u64(..1 << 60));
    for seed in first..first + number("CONFORM_RUNS").unwrap_or(runs) {
        println!("CONFORM_SEED={seed}");
        test(seed);
    }
}

fn judge(link: &mut dyn Link, seed: u64) {
    let options = RunOptions {
        seed,
        limit_max_zones: 8,
        fill_max_sectors: 512,
        request_max_bytes: 1 << 17,
        survey_max_zones: 64,
        exchanges_max: 4,
        ..RunOptions::default()
    };
    let summary = run(link, &options, &mut |result| assert!(result.exchange.len() <= 4));
    assert_eq!(summary.total(), cases().len());
}

/// The naive device, but now and then something else happens.
struct Unsteady {
    naive: Naive,
    wrong: f64,
    rng: Rng,
}

impl Unsteady {
    fn slips(&mut self) -> bool {
        self.rng.f64() < self.wrong
    }

    /// An answer in which a byte is another one, a status mostly.
    fn spoil(&mut self, writable: &mut [&mut [u8]]) {
        let pieces = writable.len();
        let piece =
            if self.rng.bool() { pieces.checked_sub(1) } else { Some(self.rng.usize(..pieces.max(1))) };
        if let Some(piece) = piece.and_then(|piece| writable.get_mut(piece)).filter(|piece| !piece.is_empty())
        {
            let at = self.rng.usize(..piece.len().min(128));
            piece[at] = [self.rng.u8(..), self.rng.u8(..8), 0xff][self.rng.usize(..3)];
        }
    }
}

impl Link for Unsteady {
    fn offered(&mut self) -> Result<u64, LinkError> {
        let bit = if self.slips() { 1 << self.rng.u8(..64) } else { 0 };
        Ok(self.naive.offered()? ^ bit)
    }

    fn start(&mut self, features: u64) -> Result<Started, LinkError> {
        if self.slips() { Ok(Started::Refused) } else { self.naive.start(features) }
    }

    fn config(&mut self) -> Result<[u8; CONFIG_LEN_BYTES], LinkError> {
        let mut config = self.naive.config()?;
        if self.slips() {
            config[self.rng.usize(..CONFIG_LEN_BYTES)] = self.rng.u8(..);
        }
        Ok(config)
    }

    fn config_len_bytes(&mut self) -> usize {
        self.naive.config_len_bytes()
    }

    fn write_config(&mut self, offset: usize, byte: u8) -> Result<(), LinkError> {
        self.naive.write_config(offset, byte)
    }

    fn queue_size(&self) -> u16 {
        self.naive.queue_size()
    }

    fn queue_count(&self) -> u16 {
        self.naive.queue_count()
    }

    fn send(&mut self, readable: &[&[u8]], writable: &mut [&mut [u8]]) -> Result<u32, LinkError> {
        if self.slips() {
            return match self.rng.u8(..12) {
                0 => Err(LinkError::TimedOut),
                1 => Err(LinkError::Lost("gone".into())),
                // Forgotten, but answered with OK.
                2..6 => {
                    writable.iter_mut().for_each(|piece| piece.fill(0));
                    Ok(1)
                }
                _ => {
                    let used = self.naive.send(readable, writable)?;
                    self.spoil(writable);
                    Ok(used ^ self.rng.u32(..4))
                }
            };
        }
        self.naive.send(readable, writable)
    }

    fn send_all(&mut self, chains: &mut [Chain]) -> Result<(), LinkError> {
        self.naive.send_all(chains)?;
        for chain in chains {
            if self.slips() {
                let mut pieces: Vec<&mut [u8]> =
                    chain.writable.iter_mut().map(|piece| &mut piece[..]).collect();
                self.spoil(&mut pieces);
            }
        }
        Ok(())
    }
}

/// Says what comes to its mind, more or less likely what it should say.
struct Hostile {
    rng: Rng,
    calls: u64,
    features: u64,
    config: [u8; CONFIG_LEN_BYTES],
    /// How likely an answer is garbage, of 256.
    garbage: u8,
    /// How likely an answer is an error of the link, of 256.
    errors: u8,
    /// How likely a status is OK, of 256.
    ok: u8,
    queue_size: u16,
    queues: u16,
}

impl Hostile {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut config = [0; CONFIG_LEN_BYTES];
        rng.fill(&mut config);
        if rng.u8(..) > 40 {
            // Numbers that something can be done with, each of them maybe not.
            let pick = |rng: &mut Rng, numbers: &[u64]| match rng.u8(..) {
                0..20 => rng.u64(..),
                _ => numbers[rng.usize(..numbers.len())],
            };
            let mut put = |at: usize, len: usize, number: u64| {
                config[at..at + len].copy_from_slice(&number.to_le_bytes()[..len]);
            };
            put(0, 8, pick(&mut rng, &[0, 1, 100, 1000, 4096, 1 << 54, u64::MAX / 512, u64::MAX]));
            put(8, 4, pick(&mut rng, &[0, 1, 511, 512, 4096, 1 << 20, 0xffff_ffff]));
            put(12, 4, pick(&mut rng, &[0, 1, 2, 126, 0xffff_ffff]));
            put(72, 4, pick(&mut rng, &[0, 1, 3, 64, 100, 0x8000_0000, 0xffff_ffff]));
            put(76, 4, pick(&mut rng, &[0, 1, 2, 0xffff_ffff]));
            put(80, 4, pick(&mut rng, &[0, 1, 4, 0xffff_ffff]));
            put(84, 4, pick(&mut rng, &[0, 1, 8, 0xffff_ffff]));
            put(88, 4, pick(&mut rng, &[0, 1, 512, 512, 4096, 65536, 0xffff_fe00, 0xffff_ffff]));
            put(92, 1, pick(&mut rng, &[0, 1, 1, 1, 2, 2]));
        }
        let features = rng.u64(..) | if rng.u8(..) > 60 { 1 << 32 | 1 << 17 } else { 0 };
        let features = if rng.u8(..) > 60 { features & !(1 << 5) } else { features };
        Self {
            calls: 0,
            features,
            config,
            garbage: [0, 10, 80, 255][rng.usize(..4)],
            errors: [0, 0, 1, 20][rng.usize(..4)],
            ok: [40, 128, 200, 255][rng.usize(..4)],
            queue_size: [0, 1, 4, 16, 256, 65535][rng.usize(..6)],
            queues: [0, 1, 3][rng.usize(..3)],
            rng,
        }
    }

    fn call(&mut self) -> Result<(), LinkError> {
        self.calls += 1;
        if self.rng.u8(..) < self.errors {
            return Err(match self.rng.u8(..3) {
                0 => LinkError::TimedOut,
                1 => LinkError::Lost("gone".into()),
                _ => LinkError::Unsupported("not today"),
            });
        }
        Ok(())
    }

    fn scribble(&mut self, readable: &[u8], writable: &mut [&mut [u8]]) -> u32 {
        let status = match self.rng.u8(..) < self.ok {
            true => 0,
            false => self.rng.u8(..9),
        };
        let garbage = self.rng.u8(..) < self.garbage;
        let is_report = readable.first() == Some(&16);
        let sector = readable.get(8..16).map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap()));
        let zone_sectors = u64::from(u32::from_le_bytes(self.config[72..76].try_into().unwrap()));
        for piece in writable.iter_mut() {
            match self.rng.u8(..8) {
                _ if garbage => self.rng.fill(piece),
                0 => piece.fill(self.rng.u8(..)),
                _ => {}
            }
            if is_report && piece.len() >= 64 && !garbage {
                // A report that looks like one.
                piece.fill(0);
                let zones = piece.len() / 64 - 1;
                piece[..8].copy_from_slice(&(zones as u64).to_le_bytes());
                for (index, zone) in (0_u64..).zip(piece[64..].chunks_exact_mut(64)) {
                    let start = (sector / zone_sectors.max(1) + index).wrapping_mul(zone_sectors);
                    zone[..8].copy_from_slice(&zone_sectors.to_le_bytes());
                    zone[8..16].copy_from_slice(&start.to_le_bytes());
                    zone[16..24].copy_from_slice(&start.wrapping_add(self.rng.u64(..3)).to_le_bytes());
                    zone[24] = if self.rng.u8(..) > 40 { 2 } else { self.rng.u8(..5) };
                    zone[25] = if self.rng.u8(..) > 90 { 1 } else { self.rng.u8(..16) };
                }
            }
        }
        if let Some(last) = writable.iter_mut().rev().find_map(|piece| piece.last_mut()) {
            *last = status;
        }
        self.rng.u32(..)
    }
}

impl Link for Hostile {
    fn offered(&mut self) -> Result<u64, LinkError> {
        self.call()?;
        if self.rng.u8(..) < self.garbage / 8 {
            self.features ^= 1 << self.rng.u8(..64);
        }
        Ok(self.features)
    }

    fn start(&mut self, _: u64) -> Result<Started, LinkError> {
        self.call()?;
        Ok(if self.rng.u8(..) < self.garbage / 4 { Started::Refused } else { Started::Accepted })
    }

    fn config(&mut self) -> Result<[u8; CONFIG_LEN_BYTES], LinkError> {
        self.call()?;
        if self.rng.u8(..) < self.garbage / 4 {
            self.config[self.rng.usize(..CONFIG_LEN_BYTES)] = self.rng.u8(..);
        }
        Ok(self.config)
    }

    fn config_len_bytes(&mut self) -> usize {
        self.rng.usize(..)
    }

    fn write_config(&mut self, _: usize, _: u8) -> Result<(), LinkError> {
        self.call()
    }

    fn queue_size(&self) -> u16 {
        self.queue_size
    }

    fn queue_count(&self) -> u16 {
        self.queues
    }

    fn send(&mut self, readable: &[&[u8]], writable: &mut [&mut [u8]]) -> Result<u32, LinkError> {
        self.call()?;
        Ok(self.scribble(&readable.concat(), writable))
    }

    fn send_all(&mut self, chains: &mut [Chain]) -> Result<(), LinkError> {
        self.call()?;
        for chain in chains {
            let mut pieces: Vec<&mut [u8]> = chain.writable.iter_mut().map(|piece| &mut piece[..]).collect();
            let used = self.scribble(&chain.readable.concat(), &mut pieces);
            // Now and then it forgets one.
            chain.used_len = (self.rng.u8(..) > self.errors / 2).then_some(used);
        }
        Ok(())
    }
}
