//! Which bytes of the disk a command means, and how far it can go there.

use std::ops::Range;

use virtio_zbd_driver::{Zone, ZoneState, ZoneType, Zoned};

use super::SECTOR_LEN_BYTES;
use crate::cli::PlaceArgs;
use crate::size::Size;
use crate::target::Target;
use crate::wrong_call;
use crate::zones::zone_exists;

/// The first sector of a zone that the disk has.
///
/// # Errors
/// It has not.
pub(super) fn sector_of_zone(zone: u64, zoned: &Zoned) -> anyhow::Result<u64> {
    zone_exists(zone, zoned)?;
    Ok(zone * u64::from(zoned.zone_sectors))
}

/// The bytes to read; in a zone without a length, those that are written.
pub(super) fn to_read(
    target: &mut Target,
    place: &PlaceArgs,
    length: Option<Size>,
) -> anyhow::Result<Range<u64>> {
    let (start_byte, end_byte, what) = match (place.zone, place.sector) {
        (Some(index), _) => {
            let zone = zone(target, index)?;
            let start_byte = offset_in(&zone, index, place.offset)?;
            let end_byte = zone.end_sector() * SECTOR_LEN_BYTES;
            if length.is_none() {
                let data_end_byte = data_end_sector(&zone) * SECTOR_LEN_BYTES;
                return Ok(start_byte..data_end_byte.max(start_byte));
            }
            (start_byte, end_byte, format!("zone {index}"))
        }
        (None, sector) => {
            let start_byte = sector.unwrap_or(0).checked_mul(SECTOR_LEN_BYTES);
            let end_byte = target.driver.capacity_sectors() * SECTOR_LEN_BYTES;
            (start_byte.unwrap_or(u64::MAX), end_byte, "the disk".to_owned())
        }
    };
    let len_bytes = length.map_or(0, |length| length.bytes);
    match start_byte.checked_add(len_bytes) {
        Some(read_end_byte) if read_end_byte <= end_byte => Ok(start_byte..read_end_byte),
        _ => Err(wrong_call(format!(
            "{len_bytes} bytes from there on reach past the end of {what}, which is at byte {end_byte}"
        ))),
    }
}

/// The sector to write to first, and the room from there on.
pub(super) fn to_write(target: &mut Target, place: &PlaceArgs) -> anyhow::Result<(u64, Room)> {
    let Some(index) = place.zone else {
        let sector = place.sector.unwrap_or(0);
        let capacity_sectors = target.driver.capacity_sectors();
        if sector >= capacity_sectors {
            return Err(wrong_call(format!(
                "sector {sector} is past the end of the disk, which has {capacity_sectors}"
            )));
        }
        return Ok((sector, Room { zone: None, one_zone: false }));
    };
    let zone = zone(target, index)?;
    let sector = match (place.offset, zone.write_pointer_sector) {
        (Some(_), _) => {
            let byte = offset_in(&zone, index, place.offset)?;
            if !byte.is_multiple_of(SECTOR_LEN_BYTES) {
                return Err(wrong_call(format!(
                    "--offset is {}; what is written begins at a multiple of {SECTOR_LEN_BYTES} bytes",
                    place.offset.unwrap_or(0.into())
                )));
            }
            byte / SECTOR_LEN_BYTES
        }
        // A full zone's is its end; there is no room there, and that is what will be said.
        (None, Some(wp)) => wp,
        (None, None) => zone.start_sector,
    };
    Ok((sector, Room { zone: Some(zone), one_zone: true }))
}

/// How far can be written.
pub(super) struct Room {
    /// The zone that is being written; none yet, or a disk without zones.
    zone: Option<Zone>,
    /// The command means this zone and no other.
    one_zone: bool,
}

impl Room {
    /// The room in the zone at `start_sector`.
    pub(super) fn of_zone(target: &mut Target, start_sector: u64) -> anyhow::Result<Self> {
        let zone = target.call(|driver| driver.zone(start_sector))?;
        Ok(Self { zone: Some(zone), one_zone: true })
    }

    /// What a write's length is a multiple of.
    pub(super) fn unit_bytes(&self, target: &Target) -> u64 {
        let anywhere = self.zone.is_some_and(|zone| zone.kind != ZoneType::SequentialRequired);
        match anywhere {
            true => target.driver.block_len_bytes().into(),
            false => target.driver.physical_block_len_bytes().into(),
        }
    }

    /// Whether so many bytes can be written at `sector`: what can be known before anything is written.
    pub(super) fn check(&mut self, target: &mut Target, sector: u64, len_bytes: u64) -> anyhow::Result<()> {
        if self.one_zone {
            let left_bytes = self.left_bytes(target, sector)?;
            return if len_bytes > left_bytes {
                Err(self.too_long(target, len_bytes, left_bytes))
            } else {
                Ok(())
            };
        }
        let left_bytes = (target.driver.capacity_sectors() - sector) * SECTOR_LEN_BYTES;
        if len_bytes > left_bytes { Err(self.too_long(target, len_bytes, left_bytes)) } else { Ok(()) }
    }

    /// Whether so many bytes can be appended.
    pub(super) fn check_append(&self, target: &Target, len_bytes: u64) -> anyhow::Result<()> {
        let left_bytes = self.zone.map_or(0, |zone| zone.remaining_sectors()) * SECTOR_LEN_BYTES;
        let sequential = self.zone.is_some_and(|zone| zone.kind != ZoneType::Conventional);
        // The disk itself says that it does not append to a conventional zone.
        if sequential && len_bytes > left_bytes {
            return Err(self.too_long(target, len_bytes, left_bytes));
        }
        Ok(())
    }

    /// How much can be written from `sector` on without a look at another zone; 0: nothing.
    pub(super) fn left_bytes(&mut self, target: &mut Target, sector: u64) -> anyhow::Result<u64> {
        let capacity_sectors = target.driver.capacity_sectors();
        if target.driver.zoned().is_none() || sector >= capacity_sectors {
            return Ok(capacity_sectors.saturating_sub(sector) * SECTOR_LEN_BYTES);
        }
        let zone = match self.zone {
            Some(zone) if sector < zone.end_sector() || self.one_zone => zone,
            _ => target.call(|driver| driver.zone(sector))?,
        };
        self.zone = Some(zone);
        let end_sector = match zone.state {
            // A preferred one takes data even then.
            ZoneState::Full if zone.kind == ZoneType::SequentialRequired => sector,
            _ => zone.start_sector + zone.capacity_sectors,
        };
        Ok(end_sector.saturating_sub(sector) * SECTOR_LEN_BYTES)
    }

    /// Why nothing more can be written at `sector`.
    pub(super) fn exhausted(&self, target: &Target, sector: u64) -> anyhow::Error {
        match self.zone {
            Some(zone) => {
                let index = index_of(target, &zone);
                anyhow::anyhow!(
                    "{}: zone {index} takes no more at sector {sector}: {}, and there is more to write",
                    target.name(),
                    zone_end_text(&zone)
                )
            }
            None => anyhow::anyhow!(
                "{}: the disk ends at sector {sector}, and there is more to write",
                target.name()
            ),
        }
    }

    fn too_long(&self, target: &Target, len_bytes: u64, left_bytes: u64) -> anyhow::Error {
        let name = target.name();
        wrong_call(match self.zone {
            Some(zone) => format!(
                "{name}: there are {len_bytes} bytes to write, and zone {} takes {left_bytes} from there on: {}",
                index_of(target, &zone),
                zone_end_text(&zone)
            ),
            None => format!(
                "{name}: there are {len_bytes} bytes to write, and only {left_bytes} from there to the end of the disk"
            ),
        })
    }
}

fn zone_end_text(zone: &Zone) -> String {
    match zone.state {
        ZoneState::Full => "it is full; reset it before it is written again".into(),
        _ => format!("it can be written up to sector {}", zone.start_sector + zone.capacity_sectors),
    }
}

fn index_of(target: &Target, zone: &Zone) -> u64 {
    target.driver.zoned().map_or(0, |zoned| zone.start_sector / u64::from(zoned.zone_sectors))
}

/// The zone of this number, as it is now.
fn zone(target: &mut Target, index: u64) -> anyhow::Result<Zone> {
    let start_sector = sector_of_zone(index, &target.zoned()?)?;
    target.call(|driver| driver.zone(start_sector))
}

/// The byte of the disk that is `offset` into the zone.
fn offset_in(zone: &Zone, index: u64, offset: Option<Size>) -> anyhow::Result<u64> {
    let offset = offset.unwrap_or(0.into());
    let len_bytes = zone.len_sectors * SECTOR_LEN_BYTES;
    if offset.bytes > len_bytes {
        return Err(wrong_call(format!("--offset is {offset}; zone {index} has {}", Size::from(len_bytes))));
    }
    Ok(zone.start_sector * SECTOR_LEN_BYTES + offset.bytes)
}

/// Where the data of a zone ends.
fn data_end_sector(zone: &Zone) -> u64 {
    let end_sector = zone.start_sector + zone.capacity_sectors;
    zone.write_pointer_sector.map_or(end_sector, |wp| wp.min(end_sector))
}
