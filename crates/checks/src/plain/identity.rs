//! What the disk says of itself.

use virtio_zbd_driver::{Command, Done, Error, Features, Invalid, Model, RequestType};

use crate::data::len_bytes;
use crate::peer::Expected;
use crate::rig::{Outcome, Rig, Stop, failed, holds, not_here, ok, refused, same};

pub(super) fn disk(rig: &mut Rig<'_>) -> Outcome {
    let zoned = rig.disk.zoned();
    match rig.peer.expected {
        Expected::HostManaged => {
            same("the model", &rig.disk.model(), &Model::HostManaged)?;
            holds("a host-managed disk has zones", zoned.is_some())?;
        }
        Expected::Regular => {
            holds("a regular disk has no zones", zoned.is_none())?;
            holds("its model is not host-managed", rig.disk.model() != Model::HostManaged)?;
        }
    }
    let limits = rig.disk.limits();
    let block_len_bytes = rig.disk.block_len_bytes();
    holds(
        "the block is a power of two from 512 on",
        block_len_bytes.is_power_of_two() && block_len_bytes >= 512,
    )?;
    holds("a request carries a block", limits.transfer_len_bytes_max >= len_bytes(rig.block_sectors()))?;
    holds(
        "there is a queue with room for a request",
        rig.disk.queue_count() >= 1 && rig.disk.queue_depth() >= 4,
    )?;
    same(
        "read-only, beside the feature RO",
        &rig.disk.read_only(),
        &rig.disk.features().contains(Features::RO),
    )?;
    holds("VERSION_1 is negotiated", rig.disk.features().contains(Features::VERSION_1))?;
    if zoned.is_some() {
        same("discard on a host-managed disk (R2)", &limits.discard, &None)?;
        let offered = limits.write_zeroes.is_some();
        let expected = rig.peer.write_zeroes_on_zones && !rig.disk.read_only();
        same("write zeroes on a host-managed disk (G3, Q4)", &offered, &expected)?;
        if expected {
            rig.note("Q4: WRITE_ZEROES stays offered");
        }
    }
    Ok(())
}

pub(super) fn id(rig: &mut Rig<'_>) -> Outcome {
    let first = ok("id", rig.disk.id())?;
    let second = ok("id", rig.disk.id())?;
    same("the id, asked again", &second, &first)?;
    holds("an id has at most 20 bytes", first.as_bytes().len() <= 20)
}

pub(super) fn flush(rig: &mut Rig<'_>) -> Outcome {
    ok("flush", rig.disk.flush())?;
    if rig.disk.limits().flush {
        let completion = rig.one(0, Command::Flush)?;
        same("a submitted flush", &completion.result, &Ok(Done::Plain))
    } else {
        let rejected = rig.disk.submit(0, Command::Flush).map_err(|rejected| rejected.error);
        refused("a submitted flush", rejected, Invalid::NotOffered(RequestType::Flush))
    }
}

/// Switched off and on again where it can be; data goes through either way.
pub(super) fn cache_mode(rig: &mut Rig<'_>) -> Outcome {
    if !rig.disk.features().contains(Features::CONFIG_WCE) {
        refused("switching the cache", rig.disk.set_write_back(false), Invalid::CacheModeFixed)?;
        return Err(not_here("the disk does not offer CONFIG_WCE"));
    }
    let before = rig.disk.write_back();
    let result = switch(rig);
    ok("switching the cache back", rig.disk.set_write_back(before))?;
    result
}

fn switch(rig: &mut Rig<'_>) -> Outcome {
    for write_back in [false, true, false] {
        ok(format_args!("write-back {write_back}"), rig.disk.set_write_back(write_back))?;
        same("the cache's mode", &rig.disk.write_back(), &write_back)?;
        let area = match rig.area() {
            Err(Stop::NotHere(_)) => continue,
            other => other?,
        };
        let mut contents = rig.contents();
        let sectors = 4 * rig.block_sectors();
        rig.write(&mut contents, area.start_sector, sectors)?;
        ok("flush", rig.disk.flush())?;
        rig.compare(&contents, area.start_sector, sectors)?;
    }
    Ok(())
}

/// Every change is refused before it is sent, and nothing has changed.
pub(super) fn read_only(rig: &mut Rig<'_>) -> Outcome {
    if !rig.disk.read_only() {
        return Err(not_here("the disk can be written"));
    }
    let block_sectors = rig.block_sectors();
    let sectors = (8 * block_sectors).min(rig.disk.capacity_sectors());
    let mut before = alloc::vec![0; len_bytes(sectors)];
    ok("read", rig.disk.read(0, &mut before))?;
    let read_only = Error::Invalid(Invalid::ReadOnly);
    let data = rig.piece(block_sectors).bytes;
    refused("write", rig.disk.write(0, &data), read_only)?;
    let rejected = rig.disk.submit(0, Command::Write { sector: 0, buffer: data.clone() });
    match rejected {
        Err(rejected) if rejected.error == read_only && rejected.buffer.as_ref() == Some(&data) => {}
        other => {
            return Err(failed(format_args!(
                "submitted write: expected ReadOnly and the buffer, found {other:?}"
            )));
        }
    }
    let limits = rig.disk.limits();
    let ranged = |offered: bool, request| {
        if offered { read_only } else { Invalid::NotOffered(request).into() }
    };
    let expected = ranged(limits.discard.is_some(), RequestType::Discard);
    refused("discard", rig.disk.discard(0, block_sectors), expected)?;
    let expected = ranged(limits.write_zeroes.is_some(), RequestType::WriteZeroes);
    refused("write zeroes", rig.disk.write_zeroes(0, block_sectors, false), expected)?;
    let expected = ranged(limits.secure_erase.is_some(), RequestType::SecureErase);
    refused("secure erase", rig.disk.secure_erase(0, block_sectors), expected)?;
    if let Some(zoned) = rig.disk.zoned() {
        let zones = ok("report", rig.disk.zones(0))?;
        for sector in [0, zones.last().map_or(0, |zone| zone.start_sector)] {
            refused("open", rig.disk.open_zone(sector), read_only)?;
            refused("close", rig.disk.close_zone(sector), read_only)?;
            refused("finish", rig.disk.finish_zone(sector), read_only)?;
            refused("reset", rig.disk.reset_zone(sector), read_only)?;
            if zoned.append_sectors_max > 0 {
                let data = alloc::vec![1; len_bytes(rig.grain_sectors())];
                refused("append", rig.disk.append(sector, &data), read_only)?;
            }
        }
        refused("reset all", rig.disk.reset_all_zones(), read_only)?;
        same("all zones afterwards", &ok("report", rig.disk.zones(0))?, &zones)?;
    }
    ok("flush", rig.disk.flush())?;
    let mut after = alloc::vec![0xa5; len_bytes(sectors)];
    ok("read", rig.disk.read(0, &mut after))?;
    holds("the data is what it was", before == after)
}
