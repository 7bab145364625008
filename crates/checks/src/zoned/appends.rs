//! Appends: where they land, that they fit together, and which are refused.

use virtio_zbd_driver::{Command, DeviceError, Invalid, RequestType, ZoneState, Zoned};

use super::in_state;
use crate::data::len_bytes;
use crate::rig::{Outcome, Rig, Stop, holds, not_here, ok, refused, same};

pub(super) fn with_append(rig: &Rig<'_>) -> Result<Zoned, Stop> {
    let zoned = rig.zoned()?;
    rig.writable()?;
    if zoned.append_sectors_max == 0 { Err(not_here("the disk knows no append (B5)")) } else { Ok(zoned) }
}

/// The longest append of one request, in sectors.
pub(super) fn append_sectors_max(rig: &Rig<'_>, zoned: &Zoned) -> u64 {
    rig.transfer_sectors(zoned.append_sectors_max.into())
}

/// All sizes one after the other, between writes at the write pointer.
pub(super) fn single(rig: &mut Rig<'_>) -> Outcome {
    let zoned = with_append(rig)?;
    let zones = rig.roomy_zones(1, 3)?;
    let [zone] = zones.as_slice() else { return Err(not_here("a zone is needed")) };
    let grain = rig.grain_sectors();
    let longest = append_sectors_max(rig, &zoned);
    let start = zone.start_sector;
    let mut contents = rig.contents();
    let mut written = 0;
    for sectors in [grain, 2 * grain, longest, 3 * grain, grain] {
        let sectors = sectors.min(longest);
        if written + sectors + grain >= zone.capacity_sectors {
            continue;
        }
        let piece = rig.piece(sectors);
        let found = ok("append", rig.disk.append(start, &piece.bytes))?;
        same("where the append landed", &found, &(start + written))?;
        contents.write(found, &piece);
        written += sectors;
        rig.zone_is("append", &in_state(zone, ZoneState::ImplicitOpen, written))?;
        rig.write(&mut contents, start + written, grain)?;
        written += grain;
        rig.compare(&contents, start, written + grain.min(zone.len_sectors - written))?;
    }
    holds("an append was tried", written > 0)
}

/// R10, B5: nothing of this is sent.
pub(super) fn refused_by_driver(rig: &mut Rig<'_>) -> Outcome {
    let zoned = rig.zoned()?;
    rig.writable()?;
    let zones = rig.empty_zones(1)?;
    let [zone] = zones.as_slice() else { return Err(not_here("a zone is needed")) };
    let sector = zone.start_sector;
    let granularity_bytes = zoned.write_granularity_bytes;
    let grain_bytes = len_bytes(u64::from(granularity_bytes) / 512);
    if zoned.append_sectors_max == 0 {
        let data = rig.piece(rig.grain_sectors()).bytes;
        let expected = Invalid::NotOffered(RequestType::ZoneAppend);
        refused("append on a disk without", rig.disk.append(sector, &data), expected)?;
        return rig.zone_is("append on a disk without", zone);
    }
    let transfer_bytes = rig.disk.limits().transfer_len_bytes_max as u64;
    let max_bytes = (u64::from(zoned.append_sectors_max) * 512).min(transfer_bytes);
    let mut cases = alloc::vec![
        (0, Invalid::Empty { sector }),
        (1, Invalid::Misaligned { sector, len_bytes: 1, unit_bytes: granularity_bytes }),
        (
            grain_bytes - 1,
            Invalid::Misaligned { sector, len_bytes: grain_bytes as u64 - 1, unit_bytes: granularity_bytes }
        ),
    ];
    if grain_bytes > 512 {
        let len_bytes = grain_bytes as u64 + 512;
        cases.push((
            grain_bytes + 512,
            Invalid::Misaligned { sector, len_bytes, unit_bytes: granularity_bytes },
        ));
    }
    let beyond = max_bytes - max_bytes % u64::from(granularity_bytes) + u64::from(granularity_bytes);
    if let Some(beyond) = usize::try_from(beyond).ok().filter(|beyond| *beyond <= 64 << 20) {
        cases.push((beyond, Invalid::TooLong { len_bytes: beyond as u64, max_bytes }));
    }
    for (len, expected) in cases {
        let data = alloc::vec![0x77; len];
        let what = alloc::format!("append of {len} bytes");
        refused(&what, rig.disk.append(sector, &data), expected)?;
        let result = rig.disk.submit(0, Command::Append { zone_start_sector: sector, buffer: data });
        refused(&what, result.map_err(|rejected| rejected.error), expected)?;
        rig.zone_is(&what, zone)?;
    }
    Ok(())
}

pub(super) fn beyond_capacity(rig: &mut Rig<'_>) -> Outcome {
    /// Larger zones are not filled.
    const FILLED_SECTORS_MAX: u64 = 16 << 11;
    let zoned = with_append(rig)?;
    let zones = rig.empty_zones(1)?;
    let [zone] = zones.as_slice() else { return Err(not_here("a zone is needed")) };
    let grain = rig.grain_sectors();
    if append_sectors_max(rig, &zoned) < 2 * grain {
        return Err(not_here("an append is one write granularity long"));
    }
    if zone.capacity_sectors > FILLED_SECTORS_MAX {
        return Err(not_here("zones are too large to be written full here"));
    }
    if rig.peer.appends_behind_full_zones && zone.capacity_sectors == zone.len_sectors {
        return Err(not_here("QEMU's host cuts such an append in two, and may do one half"));
    }
    let start = zone.start_sector;
    let nearly = zone.capacity_sectors - grain;
    let mut contents = rig.contents();
    rig.write(&mut contents, start, nearly)?;
    let data = rig.piece(2 * grain).bytes;
    let expected = rig.refusal(RequestType::ZoneAppend, start, DeviceError::InvalidCommand);
    refused("append beyond the capacity", rig.disk.append(start, &data), expected)?;
    rig.zone_is("append beyond the capacity", &in_state(zone, ZoneState::ImplicitOpen, nearly))?;
    let piece = rig.piece(grain);
    let found = ok("the last append", rig.disk.append(start, &piece.bytes))?;
    same("where the last append landed", &found, &(start + nearly))?;
    contents.write(found, &piece);
    let full = in_state(zone, ZoneState::Full, 0);
    rig.zone_is("a zone filled by an append", &full)?;
    refused("append to a zone that is written full", rig.disk.append(start, &piece.bytes), expected)?;
    rig.zone_is("append to a zone that is written full", &full)?;
    rig.compare(&contents, start, zone.len_sectors)
}
