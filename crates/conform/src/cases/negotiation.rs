//! What is offered, and what may be accepted: V1 to V4, V12.

use alloc::format;
use alloc::vec;

use virtio_zbd_spec::{BlkConfig, Features, Model, RequestType, Status};
use zerocopy::FromBytes;

use crate::bench::{Bench, Request, Stop, Verdict, feature_names, skip};
use crate::case::Case;
use crate::link::Started;

pub(super) const CASES: &[Case] = &[
    Case::recommended(
        "V1-a",
        "a disk without zones does not offer ZONED",
        "A device that is not zoned does not offer ZONED; one that does and says NONE is drive-managed (5.2.5.2).",
        no_zones_no_feature,
    ),
    Case::required(
        "V2-a",
        "ZONED is offered together with VERSION_1",
        "ZONED can't be negotiated without FEATURES_OK; a legacy device does not offer it (5.2.5.2).",
        zoned_means_version_1,
    ),
    Case::ours(
        "V2-b",
        "a driver without VERSION_1 gets no zones",
        "The specification speaks of devices that are legacy, not of drivers; a driver that leaves VERSION_1 out has \
         no FEATURES_OK to negotiate ZONED with (5.2.5.2, 6.1).",
        no_zones_for_legacy_drivers,
    ),
    Case::recommended(
        "V3-a",
        "ZONED not accepted: a disk that is not host-managed goes on",
        "The device proceeds with the initialization where the model is HA or NONE (5.2.5.2).",
        goes_on_without_zoned,
    ),
    Case::recommended(
        "V3-b",
        "ZONED not accepted: the zoned fields are 0",
        "The device sets all zoned characteristics to 0 where the model is HA or NONE (5.2.5.2).",
        zoned_fields_are_zero_without_zoned,
    ),
    Case::required(
        "V4-a",
        "host-managed, only ZONED not accepted: refused",
        "A host-managed device does not set FEATURES_OK for a driver that has not accepted ZONED (5.2.5.2).",
        |bench| refused_without_zoned(bench, |offered| offered),
    ),
    Case::required(
        "V4-b",
        "host-managed, only VERSION_1 accepted: refused",
        "A host-managed device does not set FEATURES_OK for a driver that has not accepted ZONED (5.2.5.2).",
        |bench| refused_without_zoned(bench, |offered| offered & NEEDED),
    ),
    Case::required(
        "V4-c",
        "host-managed, after a refusal a driver with ZONED is served",
        "A reset brings the device back to its initial state, whatever was refused before (2.4, 5.2.5.2).",
        served_after_a_refusal,
    ),
    unsupported(
        "V12-a",
        "ZONE_REPORT without ZONED",
        unsupported_without_zoned::<{ RequestType::ZoneReport as u32 }>,
    ),
    unsupported(
        "V12-b",
        "ZONE_OPEN without ZONED",
        unsupported_without_zoned::<{ RequestType::ZoneOpen as u32 }>,
    ),
    unsupported(
        "V12-c",
        "ZONE_CLOSE without ZONED",
        unsupported_without_zoned::<{ RequestType::ZoneClose as u32 }>,
    ),
    unsupported(
        "V12-d",
        "ZONE_FINISH without ZONED",
        unsupported_without_zoned::<{ RequestType::ZoneFinish as u32 }>,
    ),
    unsupported(
        "V12-e",
        "ZONE_APPEND without ZONED",
        unsupported_without_zoned::<{ RequestType::ZoneAppend as u32 }>,
    ),
    unsupported(
        "V12-f",
        "ZONE_RESET without ZONED",
        unsupported_without_zoned::<{ RequestType::ZoneReset as u32 }>,
    ),
    unsupported(
        "V12-g",
        "ZONE_RESET_ALL without ZONED",
        unsupported_without_zoned::<{ RequestType::ZoneResetAll as u32 }>,
    ),
    Case::required(
        "S4-a",
        "a feature that is not offered is refused",
        "Where the accepted features are no subset of the offered ones, FEATURES_OK is not set (2.2.2).",
        unoffered_features_are_refused,
    ),
    Case::recommended(
        "S4-b",
        "VERSION_1 and ZONED alone are enough",
        "The device accepts any valid subset of what it offers (2.2.2).",
        the_least_is_accepted,
    ),
    Case::required(
        "S5-a",
        "CONFIG_WCE is offered together with FLUSH",
        "A device that offers CONFIG_WCE offers FLUSH (5.2.5.2).",
        cache_mode_means_flush,
    ),
    Case::recommended("S5-b", "FLUSH is offered", "Devices always offer FLUSH (5.2.5.2).", flush_is_offered),
    Case::required(
        "S5-c",
        "CONFIG_WCE without FLUSH means write-through",
        "Where CONFIG_WCE is negotiated and FLUSH is not, `writeback` begins with 0 (5.2.5.2).",
        cache_mode_without_flush,
    ),
    Case::required(
        "S5-d",
        "the cache mode is set through writeback",
        "With CONFIG_WCE negotiated, the cache mode can be read and set through `writeback`, 0 or 1 (5.2.5).",
        cache_mode_is_set,
    ),
];

/// What no session can do without.
const NEEDED: Features = Features::VERSION_1.union(Features::ACCESS_PLATFORM);

const fn unsupported(id: &'static str, title: &'static str, run: fn(&mut Bench<'_>) -> Verdict) -> Case {
    let asks = "Where ZONED is not negotiated, the seven zone requests are answered with UNSUPP (5.2.6.2).";
    Case::required(id, title, asks, run)
}

/// The zoned model, if ZONED is offered.
fn model(bench: &mut Bench<'_>) -> Result<Option<u8>, Stop> {
    Ok(bench.disk()?.zoned.map(|zoned| zoned.model))
}

fn is(model: u8, wanted: Model) -> bool {
    model == u8::from(wanted)
}

fn no_zones_no_feature(bench: &mut Bench<'_>) -> Verdict {
    match model(bench)? {
        Some(model) if is(model, Model::None) => {
            bench.fail("no ZONED, if it is not drive-managed", "ZONED is offered, and the model is NONE")
        }
        Some(_) => skip("the disk has zones"),
        None => Ok(()),
    }
}

fn zoned_means_version_1(bench: &mut Bench<'_>) -> Verdict {
    let offered = bench.offered()?;
    if !offered.contains(Features::ZONED) {
        return skip("the disk does not offer ZONED");
    }
    bench.check(offered.contains(Features::VERSION_1), "VERSION_1 beside ZONED", feature_names(offered))
}

fn no_zones_for_legacy_drivers(bench: &mut Bench<'_>) -> Verdict {
    let disk = bench.disk()?;
    if disk.zoned.is_none() {
        return skip("the disk does not offer ZONED");
    }
    if bench.start(disk.accepted - Features::VERSION_1)? == Started::Refused {
        return Ok(());
    }
    let reply = bench.send(&Request::report(0, 128))?;
    bench.check(!reply.is_ok(), "FEATURES_OK is refused, or no zone request is served", "a zone report")
}

/// Starts a device that is not host-managed without ZONED. A device that does not offer it is plain.
fn start_without_zoned(bench: &mut Bench<'_>) -> Result<Started, Stop> {
    let disk = bench.disk()?;
    if disk.zoned.is_some_and(|zoned| zoned.is_host_managed()) {
        return skip("a host-managed disk can't be used without ZONED");
    }
    bench.start(disk.accepted - Features::ZONED)
}

fn goes_on_without_zoned(bench: &mut Bench<'_>) -> Verdict {
    if model(bench)?.is_none() {
        return skip("the disk does not offer ZONED");
    }
    let block = bench.block()?;
    let started = start_without_zoned(bench)?;
    bench.check(started == Started::Accepted, "FEATURES_OK stays set", "it is refused")?;
    bench.ok(&Request::read(0, block)).map(drop)
}

fn zoned_fields_are_zero_without_zoned(bench: &mut Bench<'_>) -> Verdict {
    if model(bench)?.is_none() {
        return skip("the disk does not offer ZONED");
    }
    if start_without_zoned(bench)? == Started::Refused {
        return skip("the disk refuses to go on without ZONED (V3-a)");
    }
    let config = bench.config()?;
    bench.check(config[72..] == [0; 24], "24 bytes of 0 at 72", format!("{:?}", &config[72..]))
}

fn refused_without_zoned(bench: &mut Bench<'_>, choose: fn(Features) -> Features) -> Verdict {
    let disk = host_managed(bench)?;
    let started = bench.start(choose(disk) - Features::ZONED)?;
    bench.check(started == Started::Refused, "FEATURES_OK is refused", "it stays set")
}

/// What a host-managed disk was started with.
fn host_managed(bench: &mut Bench<'_>) -> Result<Features, Stop> {
    match bench.disk()? {
        disk if disk.zoned.is_some_and(|zoned| zoned.is_host_managed()) => Ok(disk.accepted),
        disk => skip(format!("the zoned model is {}", disk.model_name())),
    }
}

fn served_after_a_refusal(bench: &mut Bench<'_>) -> Verdict {
    let accepted = host_managed(bench)?;
    bench.start(accepted - Features::ZONED)?;
    let started = bench.start(accepted)?;
    bench.check(started == Started::Accepted, "FEATURES_OK stays set", "it is refused")?;
    bench.ok(&Request::report(0, 128)).map(drop)
}

fn unsupported_without_zoned<const KIND: u32>(bench: &mut Bench<'_>) -> Verdict {
    if start_without_zoned(bench)? == Started::Refused {
        return skip("the disk refuses to go on without ZONED (V3-a)");
    }
    let is = |kind| KIND == u32::from(kind);
    let data = if is(RequestType::ZoneAppend) { vec![0; 4096] } else { vec![] };
    let room = if is(RequestType::ZoneReport) { 128 } else { 0 };
    bench.answers(&Request { kind: KIND, sector: 0, data, room }, &[Status::Unsupp]).map(drop)
}

fn unoffered_features_are_refused(bench: &mut Bench<'_>) -> Verdict {
    let disk = bench.disk()?;
    if !bench.shows_features_ok() {
        return skip("the device is not asked for FEATURES_OK here: its front-end keeps the status");
    }
    // Bits of the block device; those of the ring and of vhost-user are not the device's to judge alone.
    for bit in 0..24 {
        let feature = Features::from_bits_retain(1 << bit);
        if disk.offered.intersects(feature) {
            continue;
        }
        let started = bench.start(disk.accepted | feature)?;
        let found = format!("it stays set, with bit {bit} that was not offered");
        bench.check(started == Started::Refused, "FEATURES_OK is refused", found)?;
    }
    Ok(())
}

fn the_least_is_accepted(bench: &mut Bench<'_>) -> Verdict {
    let disk = bench.disk()?;
    let started = bench.start(disk.accepted & (NEEDED | Features::ZONED))?;
    bench.check(started == Started::Accepted, "FEATURES_OK stays set", "it is refused")?;
    bench.ok(&Request::op(RequestType::GetId, 0).with_room(20)).map(drop)
}

fn cache_mode_means_flush(bench: &mut Bench<'_>) -> Verdict {
    let offered = bench.offered()?;
    if !offered.contains(Features::CONFIG_WCE) {
        return skip("the disk does not offer CONFIG_WCE");
    }
    bench.check(offered.contains(Features::FLUSH), "FLUSH beside CONFIG_WCE", feature_names(offered))
}

fn flush_is_offered(bench: &mut Bench<'_>) -> Verdict {
    let offered = bench.offered()?;
    bench.check(offered.contains(Features::FLUSH), "FLUSH", feature_names(offered))
}

fn cache_mode_without_flush(bench: &mut Bench<'_>) -> Verdict {
    let disk = bench.disk()?;
    if !disk.offered.contains(Features::CONFIG_WCE) {
        return skip("the disk does not offer CONFIG_WCE");
    }
    if bench.start((disk.accepted | Features::CONFIG_WCE) - Features::FLUSH)? == Started::Refused {
        return skip("the disk refuses CONFIG_WCE without FLUSH");
    }
    let config = BlkConfig::read_from_bytes(&bench.config()?).unwrap_or_default();
    bench.check(config.writeback == 0, "writeback 0", format!("{}", config.writeback))
}

fn cache_mode_is_set(bench: &mut Bench<'_>) -> Verdict {
    let disk = bench.disk()?;
    if !disk.offered.contains(Features::CONFIG_WCE | Features::FLUSH) {
        return skip("the disk does not offer CONFIG_WCE and FLUSH");
    }
    if bench.start(disk.accepted | Features::CONFIG_WCE)? == Started::Refused {
        return skip("the disk refuses CONFIG_WCE");
    }
    let before = bench.config()?[32];
    for mode in [0, 1, before] {
        bench.write_config(32, mode)?;
        let found = bench.link_config()?[32];
        bench.check(found == mode, format!("writeback {mode}"), format!("{found}"))?;
    }
    Ok(())
}
