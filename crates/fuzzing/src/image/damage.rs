//! What happens to a file.

use super::naive::{PAGE_ZONES, checksum, field, superblock, u32_at, u64_at};
use crate::input::Input;
use crate::medium::{BLOCK, Content};

/// No file is longer: so that no geometry makes an opening read for minutes.
const LEN_MAX: u64 = 3 << 20;

/// The fields of a superblock, each with its length.
const FIELDS: [(usize, usize); 32] = [
    (0, 8),
    (field::VERSION, 4),
    (field::CRC, 4),
    (field::SEQUENCE, 8),
    (field::UUID, 8),
    (field::BOOT_ID, 8),
    (48, 8),
    (56, 8),
    (field::RO_COMPAT, 8),
    (field::INCOMPAT, 8),
    (field::CAPACITY, 8),
    (88, 4),
    (92, 4),
    (96, 4),
    (100, 4),
    (104, 4),
    (108, 4),
    (112, 4),
    (field::ZONE_COUNT, 4),
    (field::PAGES, 8),
    (128, 8),
    (field::LIVE, 8),
    (144, 8),
    (field::DATA, 8),
    (field::SUM, 8),
    (field::MODEL, 4),
    (field::HEAD_RUNS, 4),
    (field::CYCLE_RUNS, 4),
    (field::RUNS, 4),
    (field::RUNS + 4, 4),
    (field::RUNS + 8, 4),
    (field::RUNS + 12, 8),
];

/// The image with whatever the bytes say done to it.
pub(super) fn damage(image: &Content, input: &mut Input<'_>) -> Content {
    let places = Places::of(image);
    let mut image = image.clone();
    for _ in 0..input.u8() % 6 {
        let what = input.u8();
        let block = places.block(input);
        match what % 16 {
            0..6 => {
                let (at, len) = places.field(block, input);
                let old = image.read(block + at as u64, len);
                let new = value(&old, input);
                image.write(block + at as u64, &new);
                // The copies of a superblock are two, and mostly both of them say it.
                if block < 2 * BLOCK as u64 && what & 0x10 != 0 {
                    let other = BLOCK as u64 - block;
                    image.write(other + at as u64, &new);
                    seal(&mut image, other, at);
                }
                seal(&mut image, block, if what & 0x80 == 0 { at } else { field::CRC });
            }
            6..9 => {
                let at = usize::from(input.u16()) % BLOCK;
                let len = usize::from(input.u8() % 32);
                image.write(block + at as u64, input.bytes(len));
                seal(&mut image, block, if what & 0x80 == 0 { at } else { field::CRC });
            }
            9 => image.write(block, &[0; BLOCK]),
            10 => {
                let from = places.block(input);
                let bytes = image.read(from, BLOCK);
                image.write(block, &bytes);
            }
            11 => {
                // An older or newer version of a block.
                let sequence = u64_at(&image.read(block, BLOCK), field::SEQUENCE);
                let by = i64::from(input.u8()) - 128;
                let sequence = sequence.wrapping_add_signed(by);
                image.write(block + field::SEQUENCE as u64, &sequence.to_le_bytes());
                seal(&mut image, block, 0);
            }
            12 => image.set_len(image.len() - u64::from(input.u16()).min(image.len())),
            13 => image.set_len((image.len() + (u64::from(input.u16()) << 4)).min(LEN_MAX)),
            14 => image.set_len(u64::from(input.u32()) % LEN_MAX),
            _ if what & 0x10 != 0 => places.change_states(&mut image, input),
            _ => {
                let at = u64::from(input.u32()) % image.len().max(1);
                let len = usize::from(input.u8());
                image.write(at, input.bytes(len));
            }
        }
    }
    image
}

/// Puts a block's checksum right, unless the checksum itself was changed.
fn seal(image: &mut Content, block: u64, changed: usize) {
    let bytes = image.read(block, BLOCK);
    if changed != field::CRC && (bytes.starts_with(b"VZBDIMG") || bytes.starts_with(b"VZBDZNS")) {
        image.write(block + field::CRC as u64, &checksum(&bytes).to_le_bytes());
    }
}

/// Another value of a field.
fn value(old: &[u8], input: &mut Input<'_>) -> Vec<u8> {
    let mut number = [0; 8];
    number[..old.len()].copy_from_slice(old);
    let number = u64::from_le_bytes(number);
    let new = match input.u8() % 8 {
        0 => number.wrapping_add(u64::from(input.u8())),
        1 => number.wrapping_sub(u64::from(input.u8())),
        2 => number ^ 1 << (input.u8() % 64),
        3 => u64::from(input.u8()) << (input.u8() % 64),
        4 => u64::MAX,
        5 => 0,
        6 => number.wrapping_add(u64::from(input.u16()) << 12),
        _ => input.u64(),
    };
    new.to_le_bytes()[..old.len()].to_vec()
}

/// Where an image has what.
struct Places {
    pages: u64,
    page_count: u64,
    live: u64,
    data: u64,
}

impl Places {
    fn of(image: &Content) -> Self {
        let superblock = superblock(image).unwrap();
        let zones = u64::from(u32_at(&superblock, field::ZONE_COUNT));
        Self {
            pages: u64_at(&superblock, field::PAGES),
            page_count: zones.div_ceil(PAGE_ZONES as u64),
            live: u64_at(&superblock, field::LIVE),
            data: u64_at(&superblock, field::DATA),
        }
    }

    /// A block: mostly one of those that say something.
    fn block(&self, input: &mut Input<'_>) -> u64 {
        let page = |input: &mut Input<'_>| u64::from(input.u8()) % (2 * self.page_count);
        match input.u8() % 8 {
            0..2 => 0,
            2..4 => BLOCK as u64,
            4 | 5 => self.pages + page(input) * BLOCK as u64,
            6 => self.live,
            _ => self.data + u64::from(input.u8()) * BLOCK as u64,
        }
    }

    /// Some zones get another state, likely or not, in both places of their page or in the live area.
    fn change_states(&self, image: &mut Content, input: &mut Input<'_>) {
        let live = input.u8() & 1 == 1;
        for _ in 0..input.u8() % 6 {
            let zone = u64::from(input.u8());
            let condition = [1, 2, 3, 4, 4, 4, 13, 14, 15, 0, 7][usize::from(input.u8()) % 11];
            let wp_sectors = u64::from(input.u8()) << (input.u8() % 8);
            let word = (condition << 56 | wp_sectors).to_le_bytes();
            if live {
                image.write(self.live + 8 * zone, &word);
                continue;
            }
            for slot in 0..2 {
                let block = self.pages + slot * self.page_count * BLOCK as u64;
                image.write(block + field::ENTRIES as u64 + 8 * zone, &word);
                seal(image, block, 0);
            }
        }
    }

    /// A field of that block: offset and length.
    fn field(&self, block: u64, input: &mut Input<'_>) -> (usize, usize) {
        if block < 2 * BLOCK as u64 {
            return FIELDS[usize::from(input.u8()) % FIELDS.len()];
        }
        // A word; of a page the first are its head.
        (8 * (usize::from(input.u8()) % (BLOCK / 8)), 8)
    }
}
