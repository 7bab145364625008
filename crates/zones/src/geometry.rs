//! The fixed shape of a zoned disk: how long it is, how it is cut into zones, which limits it has.

use thiserror::Error;

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

/// The checked shape of a zoned disk.
///
/// A value of this type can't be wrong: every constructor checks, every field is private.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    config: GeometryConfig,
    zone_count: u32,
}

impl Geometry {
    /// Checks `config`.
    ///
    /// # Errors
    /// Says which value is wrong, what it was and what it may be.
    pub fn new(config: GeometryConfig) -> Result<Self, GeometryError> {
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
        if config.zone_capacity_sectors == 0 || config.zone_capacity_sectors > config.zone_sectors {
            return Err(GeometryError::ZoneCapacity {
                zone_capacity_sectors: config.zone_capacity_sectors,
                zone_sectors: config.zone_sectors,
            });
        }
        aligned("the disk's capacity", config.capacity_sectors)?;
        aligned("the zone length", config.zone_sectors.into())?;
        aligned("the zone capacity", config.zone_capacity_sectors.into())?;
        aligned("the append limit", config.max_append_sectors.into())?;

        let zones = config.capacity_sectors.div_ceil(config.zone_sectors.into());
        let zone_count = match u32::try_from(zones) {
            Ok(count) if count <= Self::MAX_ZONES => count,
            _ => return Err(GeometryError::TooManyZones { zones }),
        };
        if config.conventional_zones > zone_count {
            return Err(GeometryError::ConventionalZones {
                conventional_zones: config.conventional_zones,
                zone_count,
            });
        }
        if config.max_active_zones != 0 && config.max_open_zones > config.max_active_zones {
            return Err(GeometryError::OpenAboveActive {
                max_open_zones: config.max_open_zones,
                max_active_zones: config.max_active_zones,
            });
        }
        Ok(Self { config, zone_count })
    }

    /// The most zones a disk may have: an image keeps a few dozen bytes for each.
    pub const MAX_ZONES: u32 = 1 << 24;

    /// The values that this geometry was made from.
    pub fn config(&self) -> &GeometryConfig {
        &self.config
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
        let len = self.zone_len_sectors(zone);
        if self.is_conventional(zone) { len } else { len.min(self.config.zone_capacity_sectors) }
    }

    /// Whether `zone` is one of the conventional zones at the start of the disk.
    pub fn is_conventional(&self, zone: u32) -> bool {
        zone < self.config.conventional_zones
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
