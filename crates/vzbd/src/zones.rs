//! `vzbd open`, `close`, `finish`, `reset`: the state of zones.

use virtio_zbd_driver::{Error, Zone, ZoneState, ZoneType, Zoned};
use virtio_zbd_store::{ImageStore, OpenOptions, Store, StoreError, ZoneFate};

use crate::cli::{Fate, SetStateArgs, ZonesArgs};
use crate::parse::ZoneRange;
use crate::progress::Progress;
use crate::target::{Access, Driver, Target, in_use};
use crate::{noted, wrong_call};

/// What to do with each zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Open,
    Close,
    Finish,
    Reset,
}

pub(crate) fn run(args: &ZonesArgs, action: Action) -> anyhow::Result<()> {
    let mut target = Target::open(&args.disk, Access::Write)?;
    let zoned = target.zoned()?;
    if target.is_offline() && matches!(action, Action::Open | Action::Close) {
        return Err(wrong_call(format!(
            "{}: nobody serves this image, so none of its zones is open: an end of use closes them all. Serve it, and \
             name the socket",
            target.name()
        )));
    }
    let done = match (args.all, action) {
        (true, Action::Reset) => target.call(Driver::reset_all_zones),
        (true, _) => all(&mut target, &zoned, action),
        (false, _) => {
            let ranges: Vec<_> =
                args.zones.iter().map(|range| checked(range, &zoned)).collect::<anyhow::Result<_>>()?;
            let zones = ranges.into_iter().flatten();
            each(&mut target, &zoned, action, zones)
        }
    };
    // Also after an error: zones that were done before it are done.
    let closed = target.close();
    done?;
    closed
}

/// `vzbd zone set-state`.
pub(crate) fn set_state(args: &SetStateArgs) -> anyhow::Result<()> {
    let store = ImageStore::open(&args.image, OpenOptions::default()).map_err(in_use)?;
    let count = u64::from(store.geometry().map_or(0, |geometry| geometry.zone_count()));
    let name = args.image.display();
    let mut zones = Vec::new();
    for range in &args.zones {
        let end = range.end.unwrap_or(count);
        if range.first >= count || end > count {
            let last = count.saturating_sub(1);
            let missing = end.saturating_sub(1).max(range.first);
            return Err(wrong_call(format!(
                "{name}: there is no zone {missing}: the disk has {count} zones, 0 to {last}"
            )));
        }
        zones.extend((range.first..end).filter_map(|zone| u32::try_from(zone).ok()));
    }
    let fate = match args.state {
        Fate::ReadOnly => ZoneFate::ReadOnly,
        Fate::Offline => ZoneFate::Offline,
        Fate::Good => ZoneFate::Good,
    };
    store.set_zones(&zones, fate).map_err(|error| match error {
        StoreError::Conventional { .. } | StoreError::TooManyActive { .. } => wrong_call(error),
        error => error.into(),
    })?;
    Ok(store.close()?)
}

/// The zones of a range, all of which the disk has.
fn checked(range: &ZoneRange, zoned: &Zoned) -> anyhow::Result<std::ops::Range<u64>> {
    let end = range.end.unwrap_or(zoned.zones);
    zone_exists(end.saturating_sub(1).max(range.first), zoned)?;
    Ok(range.first..end)
}

/// Whether the disk has this zone.
///
/// # Errors
/// It has not.
pub(crate) fn zone_exists(zone: u64, zoned: &Zoned) -> anyhow::Result<()> {
    if zone < zoned.zones {
        return Ok(());
    }
    let last = zoned.zones.saturating_sub(1);
    Err(wrong_call(format!("there is no zone {zone}: the disk has {} zones, 0 to {last}", zoned.zones)))
}

/// Every zone that the action can change.
fn all(target: &mut Target, zoned: &Zoned, action: Action) -> anyhow::Result<()> {
    let zone_sectors = u64::from(zoned.zone_sectors);
    let zones = target.call(|driver| {
        let mut zones = Vec::new();
        for zone in driver.zones(0)? {
            let zone = zone?;
            if changes(&zone, action) {
                zones.push(zone.start_sector / zone_sectors);
            }
        }
        Ok(zones)
    })?;
    each(target, zoned, action, zones.into_iter())
}

fn changes(zone: &Zone, action: Action) -> bool {
    use ZoneState::{Closed, Empty, ExplicitOpen, Full, ImplicitOpen};
    let states: &[ZoneState] = match action {
        Action::Open => &[Empty, ImplicitOpen, Closed],
        Action::Close => &[ImplicitOpen, ExplicitOpen],
        Action::Finish => &[Empty, ImplicitOpen, ExplicitOpen, Closed],
        Action::Reset => &[ImplicitOpen, ExplicitOpen, Closed, Full],
    };
    zone.kind != ZoneType::Conventional && states.contains(&zone.state)
}

fn each(
    target: &mut Target,
    zoned: &Zoned,
    action: Action,
    zones: impl Iterator<Item = u64>,
) -> anyhow::Result<()> {
    let mut progress = Progress::of_zones(zones.size_hint().1);
    for (done, zone) in zones.enumerate() {
        let start_sector = zone * u64::from(zoned.zone_sectors);
        target.call(|driver| act(driver, action, start_sector)).map_err(|error| match done {
            0 => error,
            1 => noted(&error, format_args!("one zone was done before")),
            done => noted(&error, format_args!("{done} zones were done before")),
        })?;
        progress.advance(1);
    }
    Ok(())
}

fn act(driver: &mut Driver, action: Action, start_sector: u64) -> Result<(), Error> {
    match action {
        Action::Open => driver.open_zone(start_sector),
        Action::Close => driver.close_zone(start_sector),
        Action::Finish => driver.finish_zone(start_sector),
        Action::Reset => driver.reset_zone(start_sector),
    }
}
