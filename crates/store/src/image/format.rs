//! The bytes of an image, as `docs/format.md` gives them. No I/O here, and no decision.

use std::io;
use std::mem::{offset_of, size_of};
use std::ops::Range;

use virtio_zbd_zones::{Geometry, GeometryConfig, Model, SECTOR_LEN_BYTES, ZoneKind, ZoneLayout, ZoneRun};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::fault::ImageFault;

/// Length of a superblock copy and of a slot of a zone-state page: what a medium is expected to write in one
/// piece, or to leave in a state that the checksum tells from both the old and the new.
pub(crate) const BLOCK_LEN_BYTES: u64 = 4096;

/// Where the two superblock copies are.
pub(crate) const SUPERBLOCK_OFFSETS_BYTES: [u64; 2] = [0, BLOCK_LEN_BYTES];

/// Where the other areas may begin.
pub(crate) const SUPERBLOCKS_END_BYTES: u64 = 2 * BLOCK_LEN_BYTES;

/// The first bytes of both superblock copies.
pub(crate) const MAGIC: [u8; 8] = *b"VZBDIMG\x1a";

/// The first bytes of every zone-state page.
pub(crate) const PAGE_MAGIC: [u8; 8] = *b"VZBDZNS\x1a";

/// The version that this code writes, and the only one that it reads.
pub(crate) const VERSION: u32 = 1;

/// The same, where bytes are counted in memory.
pub(crate) const BLOCK_LEN: usize = 4096;

/// Zones in one zone-state page.
pub(crate) const PAGE_ZONES: u32 = 504;

/// The live area begins at a multiple of this: of every page size that Linux maps files with.
const LIVE_ALIGN_BYTES: u64 = 64 << 10;

/// The data area begins at a multiple of this.
const DATA_ALIGN_BYTES: u64 = 1 << 20;

/// Sequence numbers stay below this, so that one more is always a larger one. At a million commits a second
/// it is reached in 146,000 years.
const SEQUENCE_END: u64 = 1 << 62;

/// `live_boot_id` of an image that was closed cleanly.
pub(crate) const BOOT_ID_CLEAN: [u8; 16] = [0; 16];

/// `live_boot_id` after a sync has failed: no boot has it, so the live area is not believed.
pub(crate) const BOOT_ID_IN_DOUBT: [u8; 16] = [0xff; 16];

/// The incompat feature of an image whose zones are not all said by `conventional_zones` and `zone_capacity_sectors`: the layout counts.
pub(crate) const FEATURE_LAYOUT: u64 = 1 << 0;

/// Incompat: the zone-state pages lie behind the live area, where they went when the image grew. Who does not know it expects them before
/// it.
pub(crate) const FEATURE_PAGES_BEHIND: u64 = 1 << 1;

/// The incompat features that this code knows.
pub(crate) const FEATURES_INCOMPAT: u64 = FEATURE_LAYOUT | FEATURE_PAGES_BEHIND;

/// The most runs that a layout may have in an image, those of its head and of its cycle together.
pub(crate) const LAYOUT_RUNS_MAX: usize = 256;

/// `layout_model`.
const LAYOUT_HOST_MANAGED: u32 = 0;
const LAYOUT_HOST_AWARE: u32 = 1;

/// One copy of the superblock.
#[derive(Clone, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Superblock {
    pub(crate) magic: [u8; 8],
    pub(crate) version: U32,
    pub(crate) crc32c: U32,
    pub(crate) sequence: U64,
    pub(crate) uuid: [u8; 16],
    pub(crate) live_boot_id: [u8; 16],
    pub(crate) features_compat: U64,
    pub(crate) features_ro_compat: U64,
    pub(crate) features_incompat: U64,
    pub(crate) capacity_sectors: U64,
    pub(crate) zone_sectors: U32,
    pub(crate) zone_capacity_sectors: U32,
    pub(crate) conventional_zones: U32,
    pub(crate) max_open_zones: U32,
    pub(crate) max_active_zones: U32,
    pub(crate) max_append_sectors: U32,
    pub(crate) write_granularity_bytes: U32,
    pub(crate) zone_count: U32,
    pub(crate) pages_offset_bytes: U64,
    pub(crate) pages_len_bytes: U64,
    pub(crate) live_offset_bytes: U64,
    pub(crate) live_len_bytes: U64,
    pub(crate) data_offset_bytes: U64,
    pub(crate) data_len_bytes: U64,
    pub(crate) page_sequence_sum: U64,
    pub(crate) history: U64,
    pub(crate) layout_model: U32,
    pub(crate) layout_head_runs: U32,
    pub(crate) layout_cycle_runs: U32,
    pub(crate) reserved: [u8; 828],
    pub(crate) layout_runs: [LayoutRun; LAYOUT_RUNS_MAX],
}

/// Zones in a row that are alike.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct LayoutRun {
    zones: U32,
    /// As virtio numbers the kinds of zones.
    kind: U32,
    capacity_sectors: U32,
}

/// One slot of a zone-state page.
#[derive(Clone, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct StatePage {
    magic: [u8; 8],
    page_index: U32,
    crc32c: U32,
    pub(crate) sequence: U64,
    uuid: [u8; 16],
    pub(crate) reserved: [u8; 24],
    pub(crate) entries: [U64; 504],
}

const _: () = {
    assert!(size_of::<Superblock>() == BLOCK_LEN && size_of::<StatePage>() == BLOCK_LEN);
    // The checksum is at the same place in both, in this and every later version.
    assert!(offset_of!(Superblock, version) == 8);
    assert!(offset_of!(Superblock, crc32c) == 12 && offset_of!(StatePage, crc32c) == 12);
    assert!(offset_of!(Superblock, sequence) == 16 && offset_of!(StatePage, sequence) == 16);
    assert!(offset_of!(Superblock, uuid) == 24 && offset_of!(StatePage, uuid) == 24);
    assert!(offset_of!(Superblock, live_boot_id) == 40);
    assert!(offset_of!(Superblock, features_compat) == 56);
    assert!(offset_of!(Superblock, features_ro_compat) == 64);
    assert!(offset_of!(Superblock, features_incompat) == 72);
    assert!(offset_of!(Superblock, capacity_sectors) == 80);
    assert!(offset_of!(Superblock, zone_sectors) == 88);
    assert!(offset_of!(Superblock, zone_capacity_sectors) == 92);
    assert!(offset_of!(Superblock, conventional_zones) == 96);
    assert!(offset_of!(Superblock, max_open_zones) == 100);
    assert!(offset_of!(Superblock, max_active_zones) == 104);
    assert!(offset_of!(Superblock, max_append_sectors) == 108);
    assert!(offset_of!(Superblock, write_granularity_bytes) == 112);
    assert!(offset_of!(Superblock, zone_count) == 116);
    assert!(offset_of!(Superblock, pages_offset_bytes) == 120);
    assert!(offset_of!(Superblock, pages_len_bytes) == 128);
    assert!(offset_of!(Superblock, live_offset_bytes) == 136);
    assert!(offset_of!(Superblock, live_len_bytes) == 144);
    assert!(offset_of!(Superblock, data_offset_bytes) == 152);
    assert!(offset_of!(Superblock, data_len_bytes) == 160);
    assert!(offset_of!(Superblock, page_sequence_sum) == 168);
    assert!(offset_of!(Superblock, history) == 176);
    assert!(offset_of!(Superblock, layout_model) == 184);
    assert!(offset_of!(Superblock, layout_head_runs) == 188);
    assert!(offset_of!(Superblock, layout_cycle_runs) == 192);
    assert!(offset_of!(Superblock, reserved) == 196);
    assert!(offset_of!(Superblock, layout_runs) == 1024 && size_of::<LayoutRun>() == 12);
    assert!(offset_of!(StatePage, page_index) == 8);
    assert!(offset_of!(StatePage, reserved) == 40);
    assert!(offset_of!(StatePage, entries) == 64);
};

/// Why a superblock copy or a page slot counts for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// Reading it failed: a sector that was being written when the power failed may be so until it is written again.
    Unreadable {
        errno: Option<i32>,
    },
    Magic,
    Checksum {
        expected: u32,
        found: u32,
    },
    OtherImage,
    OtherPage {
        found: u32,
    },
    Sequence {
        found: u64,
    },
}

impl std::fmt::Display for Unusable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreadable { errno: Some(errno) } => {
                write!(f, "can't be read ({})", io::Error::from_raw_os_error(*errno))
            }
            Self::Unreadable { errno: None } => f.write_str("can't be read"),
            Self::Magic => f.write_str("does not begin with the magic number"),
            Self::Checksum { expected, found } => {
                write!(f, "has checksum {found:#010x} where its content gives {expected:#010x}")
            }
            Self::OtherImage => f.write_str("belongs to another image"),
            Self::OtherPage { found } => write!(f, "says that it is page {found}"),
            Self::Sequence { found } => write!(f, "has the impossible sequence number {found}"),
        }
    }
}

impl Unusable {
    pub(crate) fn unreadable(error: &io::Error) -> Self {
        Self::Unreadable { errno: error.raw_os_error() }
    }
}

/// CRC32C over a block whose bytes 12 to 15, the checksum's own place, count as zeros.
pub(crate) fn checksum(block: &[u8]) -> u32 {
    let (head, tail) = block.split_at(block.len().min(16));
    let crc = crc32c::crc32c(&head[..head.len().min(12)]);
    crc32c::crc32c_append(crc32c::crc32c_append(crc, &[0; 4]), tail)
}

impl Superblock {
    /// The superblock of a new image, closed cleanly.
    ///
    /// # Errors
    /// More runs of zones than it has room for.
    pub(crate) fn new(
        geometry: &Geometry,
        layout: &Layout,
        uuid: [u8; 16],
        page_sequence_sum: u64,
    ) -> Result<Self, ImageFault> {
        let config = geometry.config();
        let len = |range: &Range<u64>| U64::new(range.end - range.start);
        let mut superblock = Self {
            magic: MAGIC,
            version: VERSION.into(),
            crc32c: 0.into(),
            sequence: 1.into(),
            uuid,
            live_boot_id: BOOT_ID_CLEAN,
            features_compat: 0.into(),
            features_ro_compat: 0.into(),
            features_incompat: 0.into(),
            capacity_sectors: config.capacity_sectors.into(),
            zone_sectors: config.zone_sectors.into(),
            zone_capacity_sectors: config.zone_capacity_sectors.into(),
            conventional_zones: config.conventional_zones.into(),
            max_open_zones: config.max_open_zones.into(),
            max_active_zones: config.max_active_zones.into(),
            max_append_sectors: config.max_append_sectors.into(),
            write_granularity_bytes: config.write_granularity_bytes.into(),
            zone_count: geometry.zone_count().into(),
            pages_offset_bytes: layout.pages.start.into(),
            pages_len_bytes: len(&layout.pages),
            live_offset_bytes: layout.live.start.into(),
            live_len_bytes: len(&layout.live),
            data_offset_bytes: layout.data.start.into(),
            data_len_bytes: len(&layout.data),
            page_sequence_sum: page_sequence_sum.into(),
            history: 0.into(),
            layout_model: LAYOUT_HOST_MANAGED.into(),
            layout_head_runs: 0.into(),
            layout_cycle_runs: 0.into(),
            reserved: [0; 828],
            layout_runs: [LayoutRun::new_zeroed(); LAYOUT_RUNS_MAX],
        };
        if !geometry.is_uniform() {
            superblock.features_incompat = FEATURE_LAYOUT.into();
            superblock.set_zone_layout(geometry.layout())?;
        }
        Ok(superblock)
    }

    fn set_zone_layout(&mut self, layout: &ZoneLayout) -> Result<(), ImageFault> {
        let runs = layout.head.len() + layout.cycle.len();
        let too_many = |_| ImageFault::TooManyRuns { runs, most: LAYOUT_RUNS_MAX };
        if runs > LAYOUT_RUNS_MAX {
            return Err(too_many(()));
        }
        let count = |runs: &[ZoneRun]| u32::try_from(runs.len()).map_err(|_| too_many(())).map(U32::new);
        self.layout_model = match layout.model {
            Model::HostManaged => LAYOUT_HOST_MANAGED,
            Model::HostAware => LAYOUT_HOST_AWARE,
        }
        .into();
        self.layout_head_runs = count(&layout.head)?;
        self.layout_cycle_runs = count(&layout.cycle)?;
        for (to, run) in self.layout_runs.iter_mut().zip(layout.head.iter().chain(&layout.cycle)) {
            *to = LayoutRun::new(run);
        }
        Ok(())
    }

    /// The superblock in `block`, if it is one and whole. Its version and everything in it are still to be judged.
    pub(crate) fn parse(block: &[u8]) -> Result<Self, Unusable> {
        let superblock = Self::read_from_bytes(block).map_err(|_| Unusable::Magic)?;
        if superblock.magic != MAGIC {
            return Err(Unusable::Magic);
        }
        let (expected, found) = (checksum(block), superblock.crc32c.get());
        if expected != found {
            return Err(Unusable::Checksum { expected, found });
        }
        match superblock.sequence.get() {
            found if found >= SEQUENCE_END => Err(Unusable::Sequence { found }),
            _ => Ok(superblock),
        }
    }

    /// The bytes, with the checksum in place.
    pub(crate) fn seal(&mut self) -> &[u8] {
        self.crc32c = checksum(self.as_bytes()).into();
        self.as_bytes()
    }

    /// The disk becomes another one, in other places.
    pub(crate) fn set_shape(&mut self, geometry: &Geometry, layout: &Layout) {
        let len = |range: &Range<u64>| U64::new(range.end - range.start);
        let behind = if layout.pages.start > layout.live.start { FEATURE_PAGES_BEHIND } else { 0 };
        self.features_incompat = (self.features_incompat.get() & !FEATURE_PAGES_BEHIND | behind).into();
        let config = geometry.config();
        self.capacity_sectors = config.capacity_sectors.into();
        // A disk with a layout of its own may go on with conventional zones.
        self.conventional_zones = config.conventional_zones.into();
        self.zone_capacity_sectors = config.zone_capacity_sectors.into();
        self.zone_count = geometry.zone_count().into();
        self.pages_offset_bytes = layout.pages.start.into();
        self.pages_len_bytes = len(&layout.pages);
        self.live_offset_bytes = layout.live.start.into();
        self.live_len_bytes = len(&layout.live);
        self.data_offset_bytes = layout.data.start.into();
        self.data_len_bytes = len(&layout.data);
    }

    /// The disk's shape. The features are known.
    ///
    /// # Errors
    /// It is none that can be.
    pub(crate) fn geometry(&self) -> Result<Geometry, ImageFault> {
        let config = self.geometry_config();
        match self.features_incompat.get() & FEATURE_LAYOUT {
            0 => Ok(Geometry::new(config)?),
            _ => Ok(Geometry::with_layout(config, self.zone_layout()?)?),
        }
    }

    /// What each zone is, unchecked.
    fn zone_layout(&self) -> Result<ZoneLayout, ImageFault> {
        let model = match self.layout_model.get() {
            LAYOUT_HOST_MANAGED => Model::HostManaged,
            LAYOUT_HOST_AWARE => Model::HostAware,
            found => return Err(ImageFault::LayoutModel { found }),
        };
        let (head, cycle) = (self.layout_head_runs.get(), self.layout_cycle_runs.get());
        let too_many = || ImageFault::LayoutRuns { head, cycle, most: LAYOUT_RUNS_MAX };
        let count = |count: u32| usize::try_from(count).map_err(|_| too_many());
        let (head_len, cycle_len) = (count(head)?, count(cycle)?);
        let end = head_len.checked_add(cycle_len).ok_or_else(too_many)?;
        let used = self.layout_runs.get(..end).ok_or_else(too_many)?;
        let runs: Vec<ZoneRun> = used
            .iter()
            .zip(0..)
            .map(|(run, number)| run.parse().ok_or(ImageFault::LayoutKind { number, found: run.kind.get() }))
            .collect::<Result<_, _>>()?;
        let (head, cycle) = runs.split_at(head_len);
        Ok(ZoneLayout { model, head: head.to_vec(), cycle: cycle.to_vec() })
    }

    /// Where the first byte is that is not zero in a place for a run that no layout uses.
    pub(crate) fn unused_run_byte(&self) -> Option<usize> {
        let used = match self.features_incompat.get() & FEATURE_LAYOUT {
            0 => 0,
            _ => self.layout_head_runs.get().saturating_add(self.layout_cycle_runs.get()),
        };
        let used = usize::try_from(used).unwrap_or(LAYOUT_RUNS_MAX).min(LAYOUT_RUNS_MAX);
        let at = self.layout_runs[used..].as_bytes().iter().position(|&byte| byte != 0)?;
        Some(offset_of!(Self, layout_runs) + used * size_of::<LayoutRun>() + at)
    }

    /// The wish for the geometry, but for its layout; unchecked.
    fn geometry_config(&self) -> GeometryConfig {
        GeometryConfig {
            capacity_sectors: self.capacity_sectors.get(),
            zone_sectors: self.zone_sectors.get(),
            zone_capacity_sectors: self.zone_capacity_sectors.get(),
            conventional_zones: self.conventional_zones.get(),
            max_open_zones: self.max_open_zones.get(),
            max_active_zones: self.max_active_zones.get(),
            max_append_sectors: self.max_append_sectors.get(),
            write_granularity_bytes: self.write_granularity_bytes.get(),
        }
    }
}

impl LayoutRun {
    fn new(run: &ZoneRun) -> Self {
        let kind: u32 = match run.kind {
            ZoneKind::Conventional => 1,
            ZoneKind::SequentialRequired => 2,
            ZoneKind::SequentialPreferred => 3,
        };
        Self { zones: run.zones.into(), kind: kind.into(), capacity_sectors: run.capacity_sectors.into() }
    }

    fn parse(&self) -> Option<ZoneRun> {
        let kind = match self.kind.get() {
            1 => ZoneKind::Conventional,
            2 => ZoneKind::SequentialRequired,
            3 => ZoneKind::SequentialPreferred,
            _ => return None,
        };
        Some(ZoneRun { zones: self.zones.get(), kind, capacity_sectors: self.capacity_sectors.get() })
    }
}

impl StatePage {
    /// A page of zone states, sealed.
    pub(crate) fn new(uuid: [u8; 16], page_index: u32, sequence: u64, states: &[u64]) -> Self {
        let mut page = Self::new_zeroed();
        page.magic = PAGE_MAGIC;
        page.page_index = page_index.into();
        page.sequence = sequence.into();
        page.uuid = uuid;
        for (entry, &state) in page.entries.iter_mut().zip(states) {
            *entry = state.into();
        }
        page.crc32c = checksum(page.as_bytes()).into();
        page
    }

    /// The same content as one version before: what the other slot of a page may hold, whatever it held. It
    /// changes neither which slot counts nor the sum of the sequence numbers.
    pub(crate) fn one_before(&self) -> Self {
        let mut page = self.clone();
        page.sequence = self.sequence.get().saturating_sub(1).into();
        page.crc32c = checksum(page.as_bytes()).into();
        page
    }

    /// The page in `block`, if it is this page of this image, and whole.
    pub(crate) fn parse(block: &[u8], uuid: [u8; 16], page_index: u32) -> Result<Self, Unusable> {
        let page = Self::read_from_bytes(block).map_err(|_| Unusable::Magic)?;
        if page.magic != PAGE_MAGIC {
            return Err(Unusable::Magic);
        }
        let (expected, found) = (checksum(block), page.crc32c.get());
        if expected != found {
            return Err(Unusable::Checksum { expected, found });
        }
        if page.uuid != uuid {
            return Err(Unusable::OtherImage);
        }
        if page.page_index.get() != page_index {
            return Err(Unusable::OtherPage { found: page.page_index.get() });
        }
        match page.sequence.get() {
            found if found >= SEQUENCE_END => Err(Unusable::Sequence { found }),
            _ => Ok(page),
        }
    }
}

/// Where the areas of an image are, in bytes from the file's start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The zone-state pages: first slot 0 of all pages, then slot 1 of all pages.
    pub(crate) pages: Range<u64>,
    /// One word a zone.
    pub(crate) live: Range<u64>,
    /// The sectors.
    pub(crate) data: Range<u64>,
    pub(crate) page_count: u32,
    zone_count: u32,
}

impl Layout {
    /// The layout of a new image with room for the states of `room_zones` zones, in as many steps of growth as may be; `None` if its file
    /// would be longer than a file can be.
    pub(crate) fn new(geometry: &Geometry, room_zones: u32) -> Option<Self> {
        let zone_count = geometry.zone_count();
        let page_count = page_count_of(zone_count);
        let pages_start = SUPERBLOCKS_END_BYTES;
        let pages = pages_start..pages_start + pages_len_bytes(page_count);
        let live_start = pages.end.next_multiple_of(LIVE_ALIGN_BYTES);
        let live = live_start..live_start + live_len_bytes(zone_count);
        // The live area grows where it is. The pages move: the old ones must stay until the new ones count.
        let most_zones = room_zones.max(zone_count);
        let moves = if most_zones > zone_count { 2 * pages_len_bytes(page_count_of(most_zones)) } else { 0 };
        let room_end = live_start + live_len_bytes(most_zones) + moves;
        let data_start = room_end.next_multiple_of(DATA_ALIGN_BYTES);
        let data_len = geometry.capacity_sectors().checked_mul(SECTOR_LEN_BYTES.into())?;
        let data = data_start..data_start.checked_add(data_len)?;
        i64::try_from(data.end).ok()?;
        Some(Self { pages, live, data, page_count, zone_count })
    }

    /// The layout that a superblock gives, held against the geometry and the file's length.
    ///
    /// # Errors
    /// The first value that can't be.
    pub(crate) fn check(
        superblock: &Superblock,
        geometry: &Geometry,
        file_len_bytes: u64,
    ) -> Result<Self, ImageFault> {
        if let Some(fault) = Self::faults(superblock, geometry).into_iter().next() {
            return Err(fault);
        }
        let area = |offset: U64, len: U64| offset.get()..offset.get().saturating_add(len.get());
        let data = area(superblock.data_offset_bytes, superblock.data_len_bytes);
        if data.end > file_len_bytes {
            return Err(ImageFault::TooShort { expected_bytes: data.end, found_bytes: file_len_bytes });
        }
        let zone_count = geometry.zone_count();
        Ok(Self {
            pages: area(superblock.pages_offset_bytes, superblock.pages_len_bytes),
            live: area(superblock.live_offset_bytes, superblock.live_len_bytes),
            data,
            page_count: page_count_of(zone_count),
            zone_count,
        })
    }

    /// Every value of a superblock's layout that can't be.
    pub(crate) fn faults(superblock: &Superblock, geometry: &Geometry) -> Vec<ImageFault> {
        let zone_count = geometry.zone_count();
        let data_len = geometry.capacity_sectors().checked_mul(SECTOR_LEN_BYTES.into());
        let pages_len = pages_len_bytes(page_count_of(zone_count));
        let mut faults = Vec::new();
        for (what, expected, found) in [
            ("the number of zones", zone_count.into(), superblock.zone_count.get().into()),
            (
                "the number of conventional zones at the start",
                geometry.config().conventional_zones.into(),
                superblock.conventional_zones.get().into(),
            ),
            (
                "the largest zone capacity",
                geometry.config().zone_capacity_sectors.into(),
                superblock.zone_capacity_sectors.get().into(),
            ),
            ("the length of the zone-state area", pages_len, superblock.pages_len_bytes.get()),
            ("the length of the live area", live_len_bytes(zone_count), superblock.live_len_bytes.get()),
            ("the length of the data area", data_len.unwrap_or(u64::MAX), superblock.data_len_bytes.get()),
        ] {
            if expected != found {
                faults.push(ImageFault::Value { what, expected, found });
            }
        }
        let mut end_bytes = SUPERBLOCKS_END_BYTES;
        let mut areas = [
            ("zone-state area", superblock.pages_offset_bytes, superblock.pages_len_bytes, BLOCK_LEN_BYTES),
            ("live area", superblock.live_offset_bytes, superblock.live_len_bytes, LIVE_ALIGN_BYTES),
            ("data area", superblock.data_offset_bytes, superblock.data_len_bytes, DATA_ALIGN_BYTES),
        ];
        if superblock.features_incompat.get() & FEATURE_PAGES_BEHIND != 0 {
            areas.swap(0, 1);
        }
        for (what, offset, len, align_bytes) in areas {
            let start = offset.get();
            let end = start.checked_add(len.get()).filter(|&end| i64::try_from(end).is_ok());
            match end {
                Some(end) if start >= end_bytes && start.is_multiple_of(align_bytes) => end_bytes = end,
                _ => faults.push(ImageFault::Place {
                    what,
                    offset_bytes: start,
                    lowest_offset_bytes: end_bytes,
                    align_bytes,
                }),
            }
        }
        faults
    }

    /// The layout of the same image with another disk in it: its pages at `pages_start`, everything else where it is.
    pub(crate) fn grown(&self, geometry: &Geometry, pages_start: u64) -> Option<Self> {
        let zone_count = geometry.zone_count();
        let page_count = page_count_of(zone_count);
        let data_len = geometry.capacity_sectors().checked_mul(SECTOR_LEN_BYTES.into())?;
        let data_end = self.data.start.checked_add(data_len)?;
        i64::try_from(data_end).ok()?;
        Some(Self {
            pages: pages_start..pages_start + pages_len_bytes(page_count),
            live: self.live.start..self.live.start + live_len_bytes(zone_count),
            data: self.data.start..data_end,
            page_count,
            zone_count,
        })
    }

    /// Where slot `slot` (0 or 1) of a page is.
    pub(crate) fn slot_offset_bytes(&self, page: u32, slot: u8) -> u64 {
        let index = u64::from(page) + u64::from(slot) * u64::from(self.page_count);
        self.pages.start + index * BLOCK_LEN_BYTES
    }

    /// The zones of a page.
    pub(crate) fn page_zones(&self, page: u32) -> Range<u32> {
        let start = page.saturating_mul(PAGE_ZONES).min(self.zone_count);
        start..start.saturating_add(PAGE_ZONES).min(self.zone_count)
    }

    /// The page that a zone's state is in.
    pub(crate) fn page_of(zone: u32) -> u32 {
        zone / PAGE_ZONES
    }

    /// Where the sectors of a zone are.
    pub(crate) fn zone_bytes(&self, geometry: &Geometry, zone: u32) -> Range<u64> {
        let sector_len = u64::from(SECTOR_LEN_BYTES);
        let start = self.data.start + geometry.zone_start(zone) * sector_len;
        start..start + u64::from(geometry.zone_len_sectors(zone)) * sector_len
    }
}

pub(crate) fn page_count_of(zone_count: u32) -> u32 {
    zone_count.div_ceil(PAGE_ZONES)
}

/// Length of the zone-state area.
pub(crate) fn pages_len_bytes(page_count: u32) -> u64 {
    u64::from(page_count) * BLOCK_LEN_BYTES * 2
}

/// Whole blocks, so that nothing else shares a memory page with a live word.
pub(crate) fn live_len_bytes(zone_count: u32) -> u64 {
    (u64::from(zone_count) * 8).next_multiple_of(LIVE_ALIGN_BYTES)
}
