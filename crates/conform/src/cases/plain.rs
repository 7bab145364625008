//! What every block device has to do, zones or not, and SECURE_ERASE on zones (V32).

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use virtio_zbd_spec::request::{LIFETIME_EXCEEDED, PreEolInfo};
use virtio_zbd_spec::{
    DiscardWriteZeroes, Features, Lifetime, RequestType, SECTOR_LEN_BYTES, Status, ZoneState,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::bench::{Bench, Request, Stop, Verdict, Zone, feature_names, skip, status_name};
use crate::case::Case;
use crate::link::Started;

pub(super) const CASES: &[Case] = &[
    Case::required(
        "V32-b",
        "SECURE_ERASE of a zone is a RESET",
        "SECURE_ERASE is handled as ZONE_RESET of the zones in its range (5.2.6.2).",
        |bench| {
            let zone = erasable(bench)?;
            bench.bring(&zone, ZoneState::Closed)?;
            bench.ok(&range(RequestType::SecureErase, zone.start, zone.len, 0))?;
            bench.is(&zone, ZoneState::Empty, zone.start)
        },
    ),
    Case::required(
        "V32-c",
        "SECURE_ERASE of a part of a zone",
        "The data size of SECURE_ERASE is a multiple of `zone_sectors` where ZONED is negotiated (5.2.6.2).",
        |bench| {
            let zone = erasable(bench)?;
            bench.bring(&zone, ZoneState::Full)?;
            let block = bench.block()?;
            let request = range(RequestType::SecureErase, zone.start, zone.len - block, 0);
            let reply = bench.send(&request)?;
            bench.check(!reply.is_ok(), "an error", status_name(reply.status))?;
            bench.is(&zone, ZoneState::Full, 0)
        },
    ),
    Case::required(
        "V32-d",
        "SECURE_ERASE of a conventional zone",
        "SECURE_ERASE is handled as ZONE_RESET: ZONE_INVALID_CMD for a conventional zone (5.2.6.2).",
        |bench| {
            needs_erase(bench)?;
            let zone = bench.conventional()?;
            let request = range(RequestType::SecureErase, zone.start, zone.len, 0);
            bench.answers(&request, &[Status::ZoneInvalidCmd]).map(drop)
        },
    ),
    Case::required("V32-e", "SECURE_ERASE with an unknown flag", UNKNOWN_FLAG, |bench| {
        let zone = erasable(bench)?;
        bench.bring(&zone, ZoneState::Closed)?;
        bench.answers(&range(RequestType::SecureErase, zone.start, zone.len, 2), &[Status::Unsupp]).map(drop)
    }),
    Case::required(
        "S17-a",
        "a request type that there is not",
        "A request that the device does not support is answered with UNSUPP (5.2.6).",
        |bench| {
            bench.disk()?;
            // None with a past: older versions had SCSI commands (2, 3) and barriers (5, the highest bit).
            for kind in [17, 27, 99, 0x7fff_0000] {
                bench.answers(&Request { kind, sector: 0, data: Vec::new(), room: 0 }, &[Status::Unsupp])?;
            }
            Ok(())
        },
    ),
    Case::required(
        "S17-b",
        "GET_ID",
        "GET_ID fetches the ID, 20 bytes of ASCII padded with NUL (5.2.6).",
        |bench| {
            bench.disk()?;
            let reply = bench.ok(&Request::op(RequestType::GetId, 0).with_room(20))?;
            let text = reply.data.iter().position(|&byte| byte == 0).unwrap_or(reply.data.len());
            let (text, padding) = reply.data.split_at(text);
            let fits = text.is_ascii() && padding.iter().all(|&byte| byte == 0);
            bench.check(fits, "ASCII, then NUL", format!("{:?}", reply.data))
        },
    ),
    Case::required(
        "S17-c",
        "FLUSH",
        "FLUSH makes completed writes stable, and is answered (5.2.6.2).",
        |bench| {
            if !bench.disk()?.accepted.contains(Features::FLUSH) {
                return skip("the disk does not offer FLUSH");
            }
            bench.ok(&Request::op(RequestType::Flush, 0)).map(drop)
        },
    ),
    Case::required("S17-d", "WRITE_ZEROES with an unknown flag", UNKNOWN_FLAG, |bench| {
        let block = with(bench, Features::WRITE_ZEROES)?;
        bench.answers(&range(RequestType::WriteZeroes, 0, block, 2), &[Status::Unsupp]).map(drop)
    }),
    Case::required("S17-e", "DISCARD with an unknown flag", UNKNOWN_FLAG, |bench| {
        let block = with(bench, Features::DISCARD)?;
        bench.answers(&range(RequestType::Discard, 0, block, 2), &[Status::Unsupp]).map(drop)
    }),
    Case::required(
        "S17-f",
        "DISCARD with unmap",
        "DISCARD with the unmap flag is answered with UNSUPP (5.2.6.2).",
        |bench| {
            let block = with(bench, Features::DISCARD)?;
            bench.answers(&range(RequestType::Discard, 0, block, 1), &[Status::Unsupp]).map(drop)
        },
    ),
    Case::required(
        "S17-g",
        "WRITE_ZEROES is read as zeros",
        "After WRITE_ZEROES the range is read as zeros, with unmap or without (5.2.6.2).",
        zeroes,
    ),
    Case::required(
        "S17-h",
        "a plain disk keeps what is written to it",
        "OUT writes and IN reads sectors of 512 bytes (5.2.6).",
        |bench| {
            let block = bench.block()?;
            let blocks = plain(bench)? / block;
            let mut written = Vec::new();
            for place in [blocks / 2, 0, blocks.saturating_sub(4)] {
                let sector = place * block;
                let data = bench.blocks(4.min(blocks))?;
                bench.ok(&Request::write(sector, data.clone()))?;
                written.push((sector, data));
            }
            for (sector, data) in written {
                bench.holds(sector, &data)?;
            }
            Ok(())
        },
    ),
    Case::required(
        "S17-i",
        "GET_LIFETIME has no reserved values",
        "Where LIFETIME is offered, the device sends no reserved values (5.2.6.2).",
        lifetime,
    ),
];

const UNKNOWN_FLAG: &str = "DISCARD, SECURE_ERASE and WRITE_ZEROES with a flag that there is not are answered with UNSUPP (5.2.6.2).";

/// A request with one range.
fn range(kind: RequestType, sector: u64, sectors: u64, flags: u32) -> Request {
    let num_sectors = u32::try_from(sectors).unwrap_or(u32::MAX);
    let range =
        DiscardWriteZeroes { sector: sector.into(), num_sectors: num_sectors.into(), flags: flags.into() };
    Request { kind: kind.into(), sector: 0, data: range.as_bytes().to_vec(), room: 0 }
}

fn needs_erase(bench: &mut Bench<'_>) -> Verdict {
    let (disk, _) = bench.writable()?;
    if !disk.accepted.contains(Features::SECURE_ERASE) {
        return skip("the disk does not offer SECURE_ERASE");
    }
    Ok(())
}

/// A sequential zone of the usual length on a disk that erases.
fn erasable(bench: &mut Bench<'_>) -> Result<Zone, Stop> {
    needs_erase(bench)?;
    let (disk, zoned) = bench.writable()?;
    let zone = bench.sequential(3)?;
    bench.touch_zone(&zone);
    if zone.len != zoned.zone_sectors || zone.len > disk.config.max_secure_erase_sectors.get().into() {
        return skip("the zone can't be erased as a whole");
    }
    Ok(zone)
}

/// A session with a feature that is not in all of them. Returns the disk's block in sectors.
fn with(bench: &mut Bench<'_>, feature: Features) -> Result<u64, Stop> {
    let disk = bench.disk()?;
    if !disk.offered.contains(feature) {
        return skip(format!("the disk does not offer {}", feature_names(feature)));
    }
    if disk.read_only {
        return skip("the disk is read-only");
    }
    if feature == Features::DISCARD && disk.zoned.is_some_and(|zoned| zoned.is_host_managed()) {
        return skip("a driver does not accept DISCARD of a host-managed disk");
    }
    if bench.start(disk.accepted | feature)? == Started::Refused {
        return skip("the disk refuses these features");
    }
    Ok(disk.block())
}

/// The capacity of a disk without zones that can be written, in sectors.
fn plain(bench: &mut Bench<'_>) -> Result<u64, Stop> {
    let disk = bench.disk()?;
    if disk.zoned.is_some_and(|zoned| zoned.has_zones()) {
        return skip("the disk has zones");
    }
    if disk.read_only || disk.capacity_sectors < 8 * disk.block() {
        return skip("the disk is read-only or too small");
    }
    Ok(disk.capacity_sectors)
}

fn zeroes(bench: &mut Bench<'_>) -> Verdict {
    let disk = bench.disk()?;
    let sector = if disk.zoned.is_some_and(|zoned| zoned.has_zones()) {
        bench.conventional()?.start
    } else {
        let block = bench.block()?;
        let middle = plain(bench)? / 2;
        middle - middle % block
    };
    let block = with(bench, Features::WRITE_ZEROES)?;
    for flags in [0, 1] {
        let len = usize::try_from(block * SECTOR_LEN_BYTES).unwrap_or(512);
        let data = bench.random.bytes(2 * len);
        bench.prepare(&Request::write(sector, data.clone()))?;
        bench.ok(&range(RequestType::WriteZeroes, sector, block, flags))?;
        bench.holds(sector, &vec![0; len])?;
        bench.holds(sector + block, &data[len..])?;
    }
    Ok(())
}

fn lifetime(bench: &mut Bench<'_>) -> Verdict {
    if !bench.disk()?.accepted.contains(Features::LIFETIME) {
        return skip("the disk does not offer LIFETIME");
    }
    let reply = bench.ok(&Request::op(RequestType::GetLifetime, 0).with_room(6))?;
    let lifetime = Lifetime::read_from_bytes(&reply.data).unwrap_or_default();
    let estimates = [lifetime.device_lifetime_est_typ_a.get(), lifetime.device_lifetime_est_typ_b.get()];
    let known = PreEolInfo::try_from(lifetime.pre_eol_info.get()).is_ok()
        && estimates.iter().all(|&estimate| estimate <= LIFETIME_EXCEEDED);
    bench.check(known, "no reserved value", format!("{lifetime:?}"))
}
