//! Requests that reach from one zone into the next (V25).
//!
//! Synchronous calls end each request at the zone's end; a submitted one goes out as it is.

use alloc::vec;

use virtio_zbd_driver::{Command, DeviceError, Done, Error, RequestType, Zone, ZoneType};

use super::in_state;
use crate::data::{Contents, len_bytes};
use crate::peer::Refusals;
use crate::rig::{Outcome, Rig, not_here, ok, read_is, refused, same};

pub(super) fn write(rig: &mut Rig<'_>) -> Outcome {
    let (first, second) = neighbours(rig)?;
    cuts_writes(rig)?;
    let grain = rig.grain_sectors();
    let sector = second.start_sector - grain;
    for sectors in [2 * grain, 4 * grain] {
        let buffer = rig.piece(sectors).bytes;
        let completion = rig.one(0, Command::Write { sector, buffer })?;
        let expected = rig.refusal(RequestType::Out, sector, DeviceError::InvalidCommand);
        refused("a write across two zones", completion.result, expected)?;
        rig.zone_is("a write across two zones: the first", &first)?;
        rig.zone_is("a write across two zones: the second", &second)?;
    }
    Ok(())
}

pub(super) fn read(rig: &mut Rig<'_>) -> Outcome {
    let (first, second) = neighbours(rig)?;
    let grain = rig.grain_sectors();
    let mut contents = rig.contents();
    rig.write(&mut contents, first.start_sector, grain)?;
    // Otherwise both are active.
    ok("finish", rig.disk.finish_zone(first.start_sector))?;
    rig.write(&mut contents, second.start_sector, 2 * grain)?;
    crossed(rig, &contents, second.start_sector, grain)
}

/// Reads around `border`: submitted as one request, and by a call that ends its requests there.
fn crossed(rig: &mut Rig<'_>, contents: &Contents, border: u64, grain: u64) -> Outcome {
    let sector = border - grain;
    let buffer = vec![0xa5; len_bytes(2 * grain)];
    let completion = rig.one(0, Command::Read { sector, buffer: buffer.clone() })?;
    if rig.peer.reads_across_zones {
        rig.note("reads across zones are served");
        read_is(&completion, contents, sector)?;
    } else {
        let expected =
            Error::Device { request: RequestType::In, sector, status: DeviceError::InvalidCommand };
        refused("a submitted read across two zones", completion.result, expected)?;
    }
    let mut found = buffer;
    ok("a read across two zones", rig.disk.read(sector, &mut found))?;
    contents.check(sector, &found)?;
    rig.compare(contents, border - 4 * grain, 8 * grain)
}

pub(super) fn mixed(rig: &mut Rig<'_>) -> Outcome {
    rig.zoned()?;
    rig.writable()?;
    ok("reset all", rig.disk.reset_all_zones())?;
    let zones = ok("a report", rig.disk.zones(0))?;
    let border = zones.windows(2).find_map(|pair| match pair {
        [first, second] if first.kind == ZoneType::Conventional && second.kind != ZoneType::Conventional => {
            Some((*first, *second))
        }
        _ => None,
    });
    let Some((conventional, sequential)) = border else {
        return Err(not_here("no sequential zone follows a conventional one"));
    };
    let grain = rig.grain_sectors();
    let border = sequential.start_sector;
    let mut contents = rig.contents();
    if conventional.len_sectors < 4 * grain || sequential.capacity_sectors < 4 * grain {
        return Err(not_here("zones are too small"));
    }
    rig.write(&mut contents, border - 4 * grain, 4 * grain)?;
    if cuts_writes(rig).is_ok() {
        let buffer = rig.piece(2 * grain).bytes;
        let completion = rig.one(0, Command::Write { sector: border - grain, buffer })?;
        let expected = rig.refusal(RequestType::Out, border - grain, DeviceError::InvalidCommand);
        refused("a write into a sequential zone", completion.result, expected)?;
        rig.zone_is("a write into a sequential zone", &sequential)?;
    }
    rig.write(&mut contents, border, 2 * grain)?;
    crossed(rig, &contents, border, grain)?;
    // Between conventional zones a request may go where it likes.
    let pair = zones.windows(2).find(|pair| pair.iter().all(|zone| zone.kind == ZoneType::Conventional));
    if let Some([_, second]) = pair {
        let sector = second.start_sector - grain;
        let piece = rig.piece(2 * grain);
        let completion = rig.one(0, Command::Write { sector, buffer: piece.bytes.clone() })?;
        same("a write across two conventional zones", &completion.result, &Ok(Done::Plain))?;
        contents.write(sector, &piece);
        let buffer = vec![0xa5; len_bytes(2 * grain)];
        let completion = rig.one(0, Command::Read { sector, buffer })?;
        read_is(&completion, &contents, sector)?;
    }
    rig.zone_is(
        "the sequential zone",
        &in_state(&sequential, virtio_zbd_driver::ZoneState::ImplicitOpen, 2 * grain),
    )
}

/// Two sequential zones side by side.
fn neighbours(rig: &mut Rig<'_>) -> Result<(Zone, Zone), crate::rig::Stop> {
    let zones = rig.roomy_zones(2, 4)?;
    match zones.as_slice() {
        [first, second] if first.end_sector() == second.start_sector => Ok((*first, *second)),
        _ => Err(not_here("the first two sequential zones do not lie side by side")),
    }
}

fn cuts_writes(rig: &Rig<'_>) -> Outcome {
    match rig.peer.refusals {
        Refusals::AsSpecified => Ok(()),
        Refusals::Qemu => Err(not_here("QEMU's host cuts such a write in two, and may do one half")),
    }
}
