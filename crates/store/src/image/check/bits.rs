//! A single flipped bit in a block, found by the block's own checksum.

use crate::image::format::{BLOCK_LEN, checksum};

/// Where a block's checksum is.
const CRC_BYTES: std::ops::Range<usize> = 12..16;

/// The polynomial of CRC32C, reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The block as it was before one of its bits flipped, if that is what has happened to it.
///
/// Two different flips never leave the same difference in a CRC32C of this length (its Hamming distance is at least 4
/// up to 2^31 bits), so there is at most one answer. Damage of another kind looks like a flipped bit once in
/// 130,000 times: who asks must know something else that the block must say.
pub(super) fn with_bit_restored(block: &[u8; BLOCK_LEN]) -> Option<[u8; BLOCK_LEN]> {
    let mut stored = [0; 4];
    stored.copy_from_slice(&block[CRC_BYTES]);
    let difference = checksum(block) ^ u32::from_le_bytes(stored);
    let mut restored = *block;
    if difference.count_ones() == 1 {
        // In the checksum itself.
        restored[CRC_BYTES].copy_from_slice(&checksum(block).to_le_bytes());
        return Some(restored);
    }
    // What a flip leaves, from the last bit of the block back to its first.
    let mut flip: u32 = 1;
    for byte in (0..BLOCK_LEN).rev() {
        for bit in (0..8).rev() {
            flip = flip >> 1 ^ if flip & 1 == 1 { POLYNOMIAL } else { 0 };
            if flip == difference && !CRC_BYTES.contains(&byte) {
                restored[byte] ^= 1 << bit;
                return Some(restored);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_single_bit_comes_back_and_nothing_else_does() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut good = [0; BLOCK_LEN];
        rng.fill(&mut good);
        let crc = checksum(&good).to_le_bytes();
        good[CRC_BYTES].copy_from_slice(&crc);
        assert!(with_bit_restored(&good).is_none_or(|restored| restored == good));
        for byte in (0..64).chain((64..BLOCK_LEN).step_by(61)).chain([BLOCK_LEN - 1]) {
            for bit in 0..8 {
                let mut bad = good;
                bad[byte] ^= 1 << bit;
                assert!(with_bit_restored(&bad) == Some(good), "byte {byte}, bit {bit}");
                let (other, second) = (rng.usize(..BLOCK_LEN), rng.usize(..8));
                bad[other] ^= 1 << second;
                if bad != good {
                    assert!(with_bit_restored(&bad).is_none(), "{byte}.{bit} and {other}.{second}");
                }
            }
        }
    }
}
