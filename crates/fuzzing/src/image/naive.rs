//! An image as `docs/format.md` describes it, read as plainly as that: does it open, and with which states?

use virtio_zbd_store::LastUse;
use virtio_zbd_zones::{Geometry, GeometryConfig, Model, ZoneKind, ZoneLayout, ZoneRun, ZoneState};

use crate::medium::{BLOCK, Content};

/// Where the fields of a superblock are.
pub(super) mod field {
    pub(crate) const VERSION: usize = 8;
    pub(crate) const CRC: usize = 12;
    pub(crate) const SEQUENCE: usize = 16;
    pub(crate) const UUID: usize = 24;
    pub(crate) const BOOT_ID: usize = 40;
    pub(crate) const RO_COMPAT: usize = 64;
    pub(crate) const INCOMPAT: usize = 72;
    pub(crate) const CAPACITY: usize = 80;
    pub(crate) const ZONE_COUNT: usize = 116;
    pub(crate) const PAGES: usize = 120;
    pub(crate) const LIVE: usize = 136;
    pub(crate) const DATA: usize = 152;
    pub(crate) const SUM: usize = 168;
    pub(crate) const MODEL: usize = 184;
    pub(crate) const HEAD_RUNS: usize = 188;
    pub(crate) const CYCLE_RUNS: usize = 192;
    pub(crate) const RUNS: usize = 1024;
    /// Of a page.
    pub(crate) const ENTRIES: usize = 64;
}

/// An image that opens.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) geometry: Geometry,
    pub(super) last_use: LastUse,
    /// As a restart finds them.
    pub(super) states: Vec<ZoneState>,
    pub(super) data_start: u64,
    /// Only reading is allowed: features are in use that version 1 does not know.
    pub(super) read_only: bool,
}

/// Places for runs of zones.
const RUNS: usize = 256;

/// Zones in a page.
pub(super) const PAGE_ZONES: usize = 504;

/// What an opening in this boot must find. `None`: it is refused.
pub(super) fn open(content: &Content, boot_id: [u8; 16]) -> Option<Opened> {
    let superblock = superblock(content)?;
    let word = |at| u32_at(&superblock, at);
    let long = |at| u64_at(&superblock, at);
    if word(field::VERSION) != 1 || long(field::INCOMPAT) > 1 {
        return None;
    }
    let config = GeometryConfig {
        capacity_sectors: long(field::CAPACITY),
        zone_sectors: word(88),
        zone_capacity_sectors: word(92),
        conventional_zones: word(96),
        max_open_zones: word(100),
        max_active_zones: word(104),
        max_append_sectors: word(108),
        write_granularity_bytes: word(112),
    };
    let geometry = match long(field::INCOMPAT) {
        0 => Geometry::new(config).ok()?,
        _ => Geometry::with_layout(config, layout(&superblock)?).ok()?,
    };
    if *geometry.config() != config {
        return None;
    }
    let zones = usize::try_from(geometry.zone_count()).unwrap();
    let pages = zones.div_ceil(PAGE_ZONES);
    let lengths = [
        pages as u64 * 2 * BLOCK as u64,
        (zones as u64 * 8).next_multiple_of(64 << 10),
        geometry.capacity_sectors().checked_mul(512)?,
    ];
    let mut end = 2 * BLOCK as u64;
    let mut starts = [0; 3];
    for (i, (at, align)) in
        [(field::PAGES, 4096), (field::LIVE, 64 << 10), (field::DATA, 1 << 20)].into_iter().enumerate()
    {
        let (start, len) = (long(at), long(at + 8));
        if len != lengths[i] || start < end || start % align != 0 {
            return None;
        }
        end = start.checked_add(len).filter(|end| i64::try_from(*end).is_ok())?;
        starts[i] = start;
    }
    if geometry.zone_count() != word(field::ZONE_COUNT) || end > content.len() {
        return None;
    }

    let uuid = &superblock[field::UUID..field::UUID + 16];
    let mut bits = Vec::new();
    let mut sum = 0u64;
    for page in 0..pages {
        let slot = |slot: usize| {
            let at = starts[0] + ((slot * pages + page) * BLOCK) as u64;
            let block = content.read(at, BLOCK);
            let good = is_whole(&block, b"VZBDZNS\x1a")
                && u32_at(&block, 8) as usize == page
                && &block[24..40] == uuid;
            good.then_some(block)
        };
        let newest = match (slot(0), slot(1)) {
            (Some(a), Some(b)) => match (u64_at(&a, 16), u64_at(&b, 16)) {
                (first, second) if first == second && a != b => return None,
                (first, second) if first < second => b,
                _ => a,
            },
            (a, b) => a.or(b)?,
        };
        sum = sum.wrapping_add(u64_at(&newest, 16));
        let here = PAGE_ZONES.min(zones - page * PAGE_ZONES);
        bits.extend((0..here).map(|zone| u64_at(&newest, field::ENTRIES + 8 * zone)));
    }
    let pages_states = states(&geometry, &bits)?;
    let last_use = match &superblock[field::BOOT_ID..field::BOOT_ID + 16] {
        [0, rest @ ..] if rest.iter().all(|byte| *byte == 0) => LastUse::Closed,
        [0xff, rest @ ..] if rest.iter().all(|byte| *byte == 0xff) => LastUse::MediumFailed,
        live if live == boot_id => LastUse::Killed,
        _ => LastUse::PowerLost,
    };
    if last_use == LastUse::Closed && sum != long(field::SUM) {
        return None;
    }
    let states = match last_use {
        LastUse::Killed => {
            let words = content.read(starts[1], 8 * zones);
            let bits: Vec<u64> = (0..zones).map(|zone| u64_at(&words, 8 * zone)).collect();
            states(&geometry, &bits)?
        }
        _ => pages_states,
    };
    let active = states.iter().filter(|state| state.condition.is_active()).count();
    let most = usize::try_from(geometry.config().max_active_zones).unwrap();
    if most != 0 && active > most {
        return None;
    }
    let read_only = long(field::RO_COMPAT) != 0;
    Some(Opened { geometry, last_use, states, data_start: starts[2], read_only })
}

/// What each zone is, where `conventional_zones` and `zone_capacity_sectors` do not say it.
fn layout(superblock: &[u8]) -> Option<ZoneLayout> {
    let word = |at| u32_at(superblock, at);
    let model = match word(field::MODEL) {
        0 => Model::HostManaged,
        1 => Model::HostAware,
        _ => return None,
    };
    let (head, cycle) = (word(field::HEAD_RUNS) as usize, word(field::CYCLE_RUNS) as usize);
    if head > RUNS || cycle > RUNS || head + cycle > RUNS {
        return None;
    }
    let run = |index: usize| {
        let at = field::RUNS + 12 * index;
        let kind = match word(at + 4) {
            1 => ZoneKind::Conventional,
            2 => ZoneKind::SequentialRequired,
            3 => ZoneKind::SequentialPreferred,
            _ => return None,
        };
        Some(ZoneRun { zones: word(at), kind, capacity_sectors: word(at + 8) })
    };
    let head_runs = (0..head).map(run).collect::<Option<_>>()?;
    let cycle_runs = (head..head + cycle).map(run).collect::<Option<_>>()?;
    Some(ZoneLayout { model, head: head_runs, cycle: cycle_runs })
}

/// The superblock copy that counts.
pub(super) fn superblock(content: &Content) -> Option<Vec<u8>> {
    if content.len() < 2 * BLOCK as u64 {
        return None;
    }
    let copy = |at: u64| Some(content.read(at, BLOCK)).filter(|block| is_whole(block, b"VZBDIMG\x1a"));
    match (copy(0), copy(BLOCK as u64)) {
        (Some(a), Some(b)) if a[field::UUID..field::UUID + 16] != b[field::UUID..field::UUID + 16] => None,
        (Some(a), Some(b)) if u64_at(&a, field::SEQUENCE) < u64_at(&b, field::SEQUENCE) => Some(b),
        (a, b) => a.or(b),
    }
}

/// Each zone's state, as a restart makes it; `None` if one can't be.
fn states(geometry: &Geometry, bits: &[u64]) -> Option<Vec<ZoneState>> {
    let state = |(zone, bits): (u32, &u64)| {
        let state = ZoneState::from_bits(*bits)?;
        state.check(geometry, zone).ok()?;
        Some(state.after_restart(geometry, zone))
    };
    (0..).zip(bits).map(state).collect()
}

/// Magic number, checksum, and a sequence number that can be.
fn is_whole(block: &[u8], magic: &[u8; 8]) -> bool {
    block.starts_with(magic) && u32_at(block, field::CRC) == checksum(block) && u64_at(block, 16) < 1 << 62
}

/// The checksum that a block should have.
pub(super) fn checksum(block: &[u8]) -> u32 {
    let mut block = block.to_vec();
    block[field::CRC..field::CRC + 4].fill(0);
    crc32c::crc32c(&block)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}
