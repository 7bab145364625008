//! The fixed shape of a zoned disk: how long it is, how it is cut into zones, which limits it has.

use alloc::boxed::Box;
use core::ops::Range;

use thiserror::Error;

use crate::layout::{ZoneKind, ZoneLayout, ZoneRun, ends, find};

/// Length of a sector in bytes: the unit of every address and length in this crate, whatever the disk's block size is.
pub const SECTOR_LEN_BYTES: u32 = 512;

/// The wish for a [`Geometry`], not yet checked. All lengths are in 512-byte sectors unless the name says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeometryConfig {
    /// Length of the whole disk.
    pub capacity_sectors: u64,
    /// Length of every zone but the last, which may be shorter (V6).
    pub zone_sectors: u32,
    /// Sectors of a sequential zone that can be written; the rest of the zone is never writable.
    pub zone_capacity_sectors: u32,
    /// How many zones at the start of the disk are conventional.
    pub conventional_zones: u32,
    /// How many zones may be open at once; 0: no limit (V7).
    pub max_open_zones: u32,
    /// How many zones may be active (open or closed) at once; 0: no limit (V8).
    pub max_active_zones: u32,
    /// Longest zone append; 0: the disk has no append (V9).
    pub max_append_sectors: u32,
    /// Writes to sequential zones start and end on multiples of this (V10).
    pub write_granularity_bytes: u32,
}

/// What a disk asks of those who write to it (V5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Model {
    /// Its sequential zones must be written at their write pointers: a driver has to know zones (V4).
    #[default]
    HostManaged,
    /// Its zones should be written so, but take any write: a driver may use it as a regular disk (R5).
    HostAware,
}

/// The checked shape of a zoned disk.
///
/// A value of this type can't be wrong: every constructor checks, every field is private. To ask for a zone takes no lock and no
/// longer than a search among the runs of its [`ZoneLayout`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    config: GeometryConfig,
    layout: ZoneLayout,
    /// Where the runs of the layout's head and of its cycle end, in zones from the beginning of each.
    head_ends: Box<[u32]>,
    cycle_ends: Box<[u32]>,
    zone_count: u32,
}

impl Geometry {
    /// Checks `config`: a host-managed disk that begins with its conventional zones, all others being alike.
    ///
    /// # Errors
    /// Says which value is wrong, what it was and what it may be.
    pub fn new(config: GeometryConfig) -> Result<Self, GeometryError> {
        Self::with_layout(config, ZoneLayout::uniform(&config))
    }

    /// Checks `config` together with `layout`, which says of each zone what it is. Of `config` the two fields that say less, `conventional_zones` and
    /// `zone_capacity_sectors`, are not looked at: [`config`](Self::config) gives the number of conventional zones at the
    /// start and the largest capacity of a sequential zone in their place.
    ///
    /// # Errors
    /// As [`new`](Self::new); and a layout that is longer than the disk, or that its model does not allow.
    pub fn with_layout(config: GeometryConfig, layout: ZoneLayout) -> Result<Self, GeometryError> {
        let granularity_bytes = config.write_granularity_bytes;
        if !granularity_bytes.is_power_of_two() || !(512..=65536).contains(&granularity_bytes) {
            return Err(GeometryError::Granularity { granularity_bytes });
        }
        let granularity_sectors = granularity_bytes / SECTOR_LEN_BYTES;
        let aligned = |what, sectors: u64| {
            if sectors.is_multiple_of(u64::from(granularity_sectors)) {
                Ok(())
            } else {
                Err(GeometryError::Unaligned { what, sectors, granularity_bytes })
            }
        };
        if config.capacity_sectors == 0 {
            return Err(GeometryError::NoCapacity);
        }
        if config.zone_sectors == 0 {
            return Err(GeometryError::NoZoneLength);
        }
        let layout = layout.normal(config.zone_sectors);
        for run in layout.head.iter().chain(&layout.cycle) {
            if run.capacity_sectors == 0 || run.capacity_sectors > config.zone_sectors {
                return Err(GeometryError::ZoneCapacity {
                    zone_capacity_sectors: run.capacity_sectors,
                    zone_sectors: config.zone_sectors,
                });
            }
        }
        aligned("the disk's capacity", config.capacity_sectors)?;
        aligned("the zone length", config.zone_sectors.into())?;
        for run in layout.head.iter().chain(&layout.cycle) {
            aligned("the zone capacity", run.capacity_sectors.into())?;
        }
        aligned("the append limit", config.max_append_sectors.into())?;

        let zones = config.capacity_sectors.div_ceil(config.zone_sectors.into());
        let zone_count = match u32::try_from(zones) {
            Ok(count) if count <= Self::MAX_ZONES => count,
            _ => return Err(GeometryError::TooManyZones { zones }),
        };
        layout.check(zone_count, &config)?;
        if config.max_active_zones != 0 && config.max_open_zones > config.max_active_zones {
            return Err(GeometryError::OpenAboveActive {
                max_open_zones: config.max_open_zones,
                max_active_zones: config.max_active_zones,
            });
        }
        let (head_ends, cycle_ends) = (ends(&layout.head), ends(&layout.cycle));
        let mut geometry = Self { config, layout, head_ends, cycle_ends, zone_count };
        geometry.config.conventional_zones = geometry.leading_conventional_zones();
        geometry.config.zone_capacity_sectors = geometry.largest_capacity_sectors();
        Ok(geometry)
    }

    /// The shape of this disk when it is longer: its zones as they are, a shorter last one at its full length, and behind them what the
    /// [`layout`](Self::layout) goes on with.
    ///
    /// # Errors
    /// Shorter than now, no whole number of blocks, or too many zones.
    pub fn grown(&self, capacity_sectors: u64) -> Result<Self, GeometryError> {
        let now_sectors = self.config.capacity_sectors;
        if capacity_sectors < now_sectors {
            return Err(GeometryError::Shorter { capacity_sectors, now_sectors });
        }
        Self::with_layout(GeometryConfig { capacity_sectors, ..self.config }, self.layout.clone())
    }

    /// The most zones a disk may have: an image keeps a few dozen bytes for each.
    pub const MAX_ZONES: u32 = 1 << 24;

    /// The values that this geometry was made from. With a [`layout`](Self::layout) of more than one kind of sequential zone they do not
    /// say all.
    pub fn config(&self) -> &GeometryConfig {
        &self.config
    }

    /// What each zone is.
    pub fn layout(&self) -> &ZoneLayout {
        &self.layout
    }

    /// What the disk asks of those who write to it.
    pub fn model(&self) -> Model {
        self.layout.model
    }

    /// Length of the whole disk in sectors.
    pub fn capacity_sectors(&self) -> u64 {
        self.config.capacity_sectors
    }

    /// Number of zones, the shorter last one included.
    pub fn zone_count(&self) -> u32 {
        self.zone_count
    }

    /// The zone that `sector` lies in; `None` past the end of the disk.
    pub fn zone_of(&self, sector: u64) -> Option<u32> {
        if sector >= self.config.capacity_sectors {
            return None;
        }
        u32::try_from(sector / u64::from(self.config.zone_sectors)).ok()
    }

    /// First sector of `zone`.
    pub fn zone_start(&self, zone: u32) -> u64 {
        u64::from(zone) * u64::from(self.config.zone_sectors)
    }

    /// Length of `zone` in sectors: the last zone may be shorter than the others (V6). 0 past the last zone.
    pub fn zone_len_sectors(&self, zone: u32) -> u32 {
        let rest = self.config.capacity_sectors.saturating_sub(self.zone_start(zone));
        // A rest that does not fit is longer than any zone.
        u32::try_from(rest).unwrap_or(u32::MAX).min(self.config.zone_sectors)
    }

    /// Writable sectors of `zone`: all of a conventional one, at most its length of a sequential one.
    pub fn zone_capacity_sectors(&self, zone: u32) -> u32 {
        self.zone_len_sectors(zone).min(self.run_of(zone).capacity_sectors)
    }

    /// What kind of zone `zone` is. Behind the disk's end: what a disk that goes on like this one would have there.
    pub fn kind(&self, zone: u32) -> ZoneKind {
        self.run_of(zone).kind
    }

    /// Whether `zone` is conventional: it has no write pointer.
    pub fn is_conventional(&self, zone: u32) -> bool {
        self.kind(zone) == ZoneKind::Conventional
    }

    /// Whether all zones but the conventional ones at the start are of one kind that must be written sequentially, with one capacity, on
    /// a host-managed disk: [`config`](Self::config) says all.
    pub fn is_uniform(&self) -> bool {
        let head = match self.layout.head.as_slice() {
            [] => true,
            [run] => run.kind == ZoneKind::Conventional,
            _ => false,
        };
        let cycle = matches!(self.layout.cycle.as_slice(), [run] if run.kind == ZoneKind::SequentialRequired);
        self.layout.model == Model::HostManaged && head && cycle
    }

    /// Stretches of zones that are alike, in order, to the disk's end. The last zone's capacity may be less: it may be shorter.
    pub fn runs(&self) -> impl Iterator<Item = (Range<u32>, ZoneKind, u32)> + '_ {
        let mut at = 0u32;
        let cycle = self.layout.cycle.iter().cycle();
        self.layout.head.iter().chain(cycle).map_while(move |run| {
            let zones = at..self.zone_count.min(at.saturating_add(run.zones));
            at = zones.end;
            (!zones.is_empty()).then_some((zones, run.kind, run.capacity_sectors))
        })
    }

    /// The run that `zone` is in.
    fn run_of(&self, zone: u32) -> ZoneRun {
        let head_zones = self.head_ends.last().copied().unwrap_or(0);
        let found = match zone.checked_sub(head_zones) {
            None => find(&self.layout.head, &self.head_ends, zone),
            // Where all are alike there is nothing to look for.
            Some(_) if self.layout.cycle.len() == 1 => self.layout.cycle.first(),
            Some(rest) => {
                let period = self.cycle_ends.last().copied().unwrap_or(1).max(1);
                find(&self.layout.cycle, &self.cycle_ends, rest % period)
            }
        };
        // There is one: `check` has seen to it.
        found.copied().unwrap_or(ZoneRun::conventional(1))
    }

    fn leading_conventional_zones(&self) -> u32 {
        let conventional = self.runs().take_while(|(_, kind, _)| *kind == ZoneKind::Conventional);
        conventional.map(|(zones, ..)| zones.end).last().unwrap_or(0)
    }

    fn largest_capacity_sectors(&self) -> u32 {
        let runs = self.layout.head.iter().chain(&self.layout.cycle);
        let sequential = runs.filter(|run| run.kind != ZoneKind::Conventional);
        sequential.map(|run| run.capacity_sectors).max().unwrap_or(self.config.zone_sectors)
    }

    /// How many zones may be open at once; 0: no limit.
    pub fn max_open_zones(&self) -> u32 {
        self.config.max_open_zones
    }

    /// How many zones may be active at once; 0: no limit.
    pub fn max_active_zones(&self) -> u32 {
        self.config.max_active_zones
    }

    /// Longest append in sectors; 0: the disk has no append.
    pub fn max_append_sectors(&self) -> u32 {
        self.config.max_append_sectors
    }

    /// Writes to sequential zones start and end on multiples of this many sectors.
    pub fn granularity_sectors(&self) -> u32 {
        self.config.write_granularity_bytes / SECTOR_LEN_BYTES
    }
}

/// Why a [`GeometryConfig`] was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the message of each variant names its fields")]
pub enum GeometryError {
    #[error("the block size is {granularity_bytes} bytes; it must be a power of two from 512 to 65536")]
    Granularity { granularity_bytes: u32 },
    #[error("the disk's capacity is 0; give it at least one zone")]
    NoCapacity,
    #[error(
        "the disk has {now_sectors} sectors of 512 bytes, and can't be made shorter ({capacity_sectors})"
    )]
    Shorter { capacity_sectors: u64, now_sectors: u64 },
    #[error("the zone length is 0; every zone needs at least one block")]
    NoZoneLength,
    #[error(
        "the zone capacity is {zone_capacity_sectors} sectors; it must be at least one block and at most the zone \
         length, {zone_sectors} sectors"
    )]
    ZoneCapacity { zone_capacity_sectors: u32, zone_sectors: u32 },
    #[error(
        "{what} is {sectors} sectors of 512 bytes, which is no multiple of the block size, {granularity_bytes} bytes"
    )]
    Unaligned { what: &'static str, sectors: u64, granularity_bytes: u32 },
    #[error("the disk would have {zones} zones; at most {max} are possible, so make the zones longer", max = Geometry::MAX_ZONES)]
    TooManyZones { zones: u64 },
    #[error(
        "{conventional_zones} conventional zones were asked for, but the disk has {zone_count} zones in all"
    )]
    ConventionalZones { conventional_zones: u32, zone_count: u32 },
    #[error(
        "the layout names {layout_zones} zones before it repeats itself, but the disk has {zone_count} zones in all"
    )]
    LayoutTooLong { layout_zones: u64, zone_count: u32 },
    #[error(
        "the layout of the zones has an empty {what}; each of its runs has at least one zone, and one run is repeated to the end"
    )]
    LayoutEmpty { what: &'static str },
    #[error(
        "a sequential-write-preferred zone has a capacity of {zone_capacity_sectors} sectors and a length of {zone_sectors}; they must be the \
         same, because it can be written everywhere"
    )]
    PreferredCapacity { zone_capacity_sectors: u32, zone_sectors: u32 },
    #[error(
        "at most {max_open_zones} zones may be open and {max_active_zones} active; a disk with sequential-write-preferred zones can't have such limits (0), \
         because they must take every write"
    )]
    PreferredLimits { max_open_zones: u32, max_active_zones: u32 },
    #[error(
        "a host-aware disk can't have zones that must be written sequentially: make them preferred, or the disk host-managed"
    )]
    HostAwareRequired,
    #[error(
        "{max_open_zones} zones may be open but only {max_active_zones} active; every open zone is active, so the \
         open limit must not be larger"
    )]
    OpenAboveActive { max_open_zones: u32, max_active_zones: u32 },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> GeometryConfig {
        GeometryConfig {
            capacity_sectors: 1000,
            zone_sectors: 96,
            zone_capacity_sectors: 80,
            conventional_zones: 2,
            max_open_zones: 3,
            max_active_zones: 5,
            max_append_sectors: 16,
            write_granularity_bytes: 4096,
        }
    }

    #[test]
    fn a_runt_last_zone_is_shorter_and_so_is_its_capacity() {
        let g = Geometry::new(config()).unwrap();
        assert_eq!(g.zone_count(), 11);
        assert_eq!(g.zone_len_sectors(9), 96);
        assert_eq!(g.zone_capacity_sectors(9), 80);
        assert_eq!(g.zone_len_sectors(10), 40);
        assert_eq!(g.zone_capacity_sectors(10), 40);
        assert_eq!(g.zone_len_sectors(11), 0);
    }

    #[test]
    fn conventional_zones_are_writable_to_their_end() {
        let g = Geometry::new(config()).unwrap();
        assert!(g.is_conventional(1) && !g.is_conventional(2));
        assert_eq!(g.zone_capacity_sectors(1), 96);
        assert_eq!(g.zone_capacity_sectors(2), 80);
    }

    #[test]
    fn a_sector_belongs_to_one_zone_or_to_none() {
        let g = Geometry::new(config()).unwrap();
        assert_eq!(g.zone_of(0), Some(0));
        assert_eq!(g.zone_of(95), Some(0));
        assert_eq!(g.zone_of(96), Some(1));
        assert_eq!(g.zone_of(999), Some(10));
        assert_eq!(g.zone_of(1000), None);
        assert_eq!(g.zone_of(u64::MAX), None);
    }

    #[test]
    fn each_bad_value_is_named() {
        let with = |change: fn(&mut GeometryConfig)| {
            let mut c = config();
            change(&mut c);
            Geometry::new(c).unwrap_err()
        };
        assert_eq!(
            with(|c| c.write_granularity_bytes = 1536),
            GeometryError::Granularity { granularity_bytes: 1536 }
        );
        assert_eq!(
            with(|c| c.write_granularity_bytes = 256),
            GeometryError::Granularity { granularity_bytes: 256 }
        );
        assert_eq!(with(|c| c.capacity_sectors = 0), GeometryError::NoCapacity);
        assert_eq!(with(|c| c.zone_sectors = 0), GeometryError::NoZoneLength);
        assert!(matches!(with(|c| c.zone_capacity_sectors = 0), GeometryError::ZoneCapacity { .. }));
        assert!(matches!(with(|c| c.zone_capacity_sectors = 104), GeometryError::ZoneCapacity { .. }));
        assert!(matches!(
            with(|c| c.capacity_sectors = 1001),
            GeometryError::Unaligned { sectors: 1001, .. }
        ));
        assert!(matches!(
            with(|c| c.zone_capacity_sectors = 79),
            GeometryError::Unaligned { sectors: 79, .. }
        ));
        assert!(matches!(with(|c| c.max_append_sectors = 1), GeometryError::Unaligned { sectors: 1, .. }));
        assert!(matches!(
            with(|c| c.capacity_sectors = u64::MAX / 8 * 8),
            GeometryError::TooManyZones { .. }
        ));
        assert!(matches!(with(|c| c.conventional_zones = 12), GeometryError::ConventionalZones { .. }));
        assert!(matches!(with(|c| c.max_open_zones = 6), GeometryError::OpenAboveActive { .. }));
    }

    #[test]
    fn no_limit_on_active_zones_leaves_the_open_limit_free() {
        let g = Geometry::new(GeometryConfig { max_active_zones: 0, max_open_zones: 100, ..config() });
        assert!(g.is_ok());
    }
}
