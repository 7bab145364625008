//! From the options to a checked geometry, and what Linux will say of it.

use virtio_zbd_zones::{Geometry, GeometryConfig, Model, ZoneKind, ZoneLayout, ZoneRun};

use crate::cli::GeometryArgs;
use crate::parse::ZoneSet;
use crate::size::Size;
use crate::wrong_call;

const ZONE_SIZE_BYTES: u64 = 64 << 20;
const MAX_OPEN_ZONES: u32 = 14;
const MAX_ACTIVE_ZONES: u32 = 14;
const BLOCK_SIZE_BYTES: u64 = 4096;
const MAX_APPEND_BYTES: u64 = 512 << 10;

/// The geometry of a zoned disk of `size`.
///
/// # Errors
/// A value that can't be: says which, what it is and what it may be.
pub(crate) fn of(size: Size, model: Model, args: &GeometryArgs) -> anyhow::Result<Geometry> {
    let aware = model == Model::HostAware;
    let zone_size = args.zone_size.unwrap_or(ZONE_SIZE_BYTES.into());
    // Zones that take every write can't have limits, and no append.
    let preferred = aware || args.preferred.as_ref().is_some_and(|zones| *zones != ZoneSet::First(0));
    let max_active_default = if preferred { 0 } else { MAX_ACTIVE_ZONES };
    let max_active_zones = args.max_active.unwrap_or(max_active_default);
    // A lower active limit that was asked for lowers the open limit that was not.
    let max_open_default = match max_active_zones {
        _ if preferred => 0,
        0 => MAX_OPEN_ZONES,
        active => MAX_OPEN_ZONES.min(active),
    };
    let max_append_default = if aware { 0 } else { MAX_APPEND_BYTES };
    let block_size = args.block_size.unwrap_or(BLOCK_SIZE_BYTES.into());
    let config = || -> Result<GeometryConfig, String> {
        Ok(GeometryConfig {
            capacity_sectors: size.sectors("--size")?,
            zone_sectors: zone_size.sectors_u32("--zone-size")?,
            zone_capacity_sectors: 0,
            conventional_zones: 0,
            max_open_zones: args.max_open.unwrap_or(max_open_default),
            max_active_zones,
            max_append_sectors: args
                .max_append
                .unwrap_or(max_append_default.into())
                .sectors_u32("--max-append")?,
            write_granularity_bytes: u32::try_from(block_size.bytes).map_err(|_| {
                format!("--block-size is {block_size}; it must be a power of two from 512 to 64K")
            })?,
        })
    };
    let config = config().map_err(wrong_call)?;
    let layout = layout(&config, model, args).map_err(wrong_call)?;
    Geometry::with_layout(config, layout).map_err(wrong_call)
}

/// What each zone is: the first ones as they are named, then the capacities in turn.
fn layout(config: &GeometryConfig, model: Model, args: &GeometryArgs) -> Result<ZoneLayout, String> {
    if model == Model::HostAware && args.preferred.is_some() {
        return Err("--preferred does not go with --zoned host-aware: there all zones are preferred that are not conventional".into());
    }
    let none = ZoneSet::First(0);
    let conventional = args.conventional.as_ref().unwrap_or(&none);
    let preferred = args.preferred.as_ref().unwrap_or(&none);
    let capacities = match &args.zone_capacity {
        Some(capacities) => capacities
            .iter()
            .map(|capacity| capacity.sectors_u32("--zone-capacity"))
            .collect::<Result<_, _>>()?,
        None => vec![config.zone_sectors],
    };
    let zones = match config.zone_sectors {
        0 => 0,
        zone_sectors => config.capacity_sectors.div_ceil(zone_sectors.into()),
    };
    // A number of zones is for the geometry to judge.
    let count = u32::try_from(zones).unwrap_or(u32::MAX).min(Geometry::MAX_ZONES);
    let mut turn = 0;
    let mut next = |zone: u32| match () {
        () if conventional.contains(zone) => ZoneRun::conventional(1),
        () if model == Model::HostAware || preferred.contains(zone) => {
            ZoneRun::preferred(1, capacities.first().copied().unwrap_or(config.zone_sectors))
        }
        () => {
            let capacity = capacities.get(turn).copied().unwrap_or(config.zone_sectors);
            turn = (turn + 1) % capacities.len().max(1);
            ZoneRun::required(1, capacity)
        }
    };
    if let ZoneSet::First(first) = conventional
        && preferred.settled_from() == 0
    {
        // Nothing is behind the conventional zones but the pattern.
        let head = if *first == 0 { Vec::new() } else { vec![ZoneRun::conventional(*first)] };
        let cycle = (*first..).take(capacities.len().max(1)).map(next).collect();
        return Ok(ZoneLayout { model, head, cycle });
    }
    for (set, name) in [(conventional, "--conventional"), (preferred, "--preferred")] {
        if set.settled_from() > zones {
            let last = set.settled_from() - 1;
            return Err(format!("{name} names zone {last}, but the disk has {zones} zones in all"));
        }
    }
    let settled = conventional.settled_from().max(preferred.settled_from());
    let settled = u32::try_from(settled).unwrap_or(u32::MAX).min(count);
    let head = (0..settled).map(&mut next).collect();
    // As the disk goes on behind its end, too.
    let cycle = (settled..).take(capacities.len().max(1)).map(next).collect();
    Ok(ZoneLayout { model, head, cycle })
}

/// For a disk without zones: none of the zones' options may be given.
///
/// # Errors
/// One is.
pub(crate) fn refuse(args: &GeometryArgs, why: &str) -> anyhow::Result<()> {
    let GeometryArgs {
        profile,
        zone_size,
        zone_capacity,
        conventional,
        preferred,
        max_open,
        max_active,
        block_size,
        max_append,
    } = args;
    let sizes = [
        ("--profile", profile.is_some()),
        ("--zone-size", zone_size.is_some()),
        ("--zone-capacity", zone_capacity.is_some()),
        ("--conventional", conventional.is_some()),
        ("--preferred", preferred.is_some()),
        ("--max-open", max_open.is_some()),
        ("--max-active", max_active.is_some()),
        ("--block-size", block_size.is_some()),
        ("--max-append", max_append.is_some()),
    ];
    match sizes.iter().find(|(_, given)| *given) {
        Some((option, _)) => Err(wrong_call(format!("{option} does not go with {why}"))),
        None => Ok(()),
    }
}

/// No more different capacities are counted.
pub(crate) const CAPACITIES_MAX: usize = 8;

/// How many zones of a disk are of which kind, and what they hold.
pub(crate) struct Kinds {
    pub(crate) conventional: u32,
    pub(crate) required: u32,
    pub(crate) preferred: u32,
    /// The capacities of the sequential zones of full length, each once, in their order; not more than a few.
    pub(crate) capacities_sectors: Vec<u32>,
}

impl Kinds {
    pub(crate) fn of(geometry: &Geometry) -> Self {
        let mut kinds = Self { conventional: 0, required: 0, preferred: 0, capacities_sectors: Vec::new() };
        for (zones, kind, capacity) in geometry.runs() {
            let count = zones.end - zones.start;
            match kind {
                ZoneKind::Conventional => kinds.conventional += count,
                ZoneKind::SequentialRequired => kinds.required += count,
                ZoneKind::SequentialPreferred => kinds.preferred += count,
            }
            let capacities = &mut kinds.capacities_sectors;
            let is_new = kind != ZoneKind::Conventional && !capacities.contains(&capacity);
            if is_new && capacities.len() < CAPACITIES_MAX {
                capacities.push(capacity);
            }
        }
        kinds
    }
}

pub(crate) fn model_name(model: Model) -> &'static str {
    match model {
        Model::HostManaged => "host-managed",
        Model::HostAware => "host-aware",
    }
}

/// A length in one short word: a drive's length in bytes is rarely a round number.
pub(crate) fn rounded(bytes: u64) -> String {
    let exact = Size::from(bytes).to_string();
    if exact.len() <= 7 {
        return exact;
    }
    let units = ["B", "K", "M", "G", "T", "P", "E"];
    let (mut scaled, mut unit) = (bytes, 0);
    while scaled >= 10_240 {
        (scaled, unit) = (scaled / 1024, unit + 1);
    }
    format!("~{scaled}{}", units.get(unit).copied().unwrap_or(""))
}

/// What a stock Linux has against a disk, or does not see of it. The specification allows all of it.
pub(crate) fn linux_notes(geometry: &Geometry) -> Vec<String> {
    let config = geometry.config();
    if geometry.model() == Model::HostAware {
        return vec!["Linux since 6.9 uses a host-aware disk as a regular one: it sees no zones".into()];
    }
    let mut notes = Vec::new();
    let mut refuses = |why: String| notes.push(format!("stock Linux refuses this disk: {why}"));
    if !config.zone_sectors.is_power_of_two() {
        let zone = Size::from(u64::from(config.zone_sectors) * 512);
        refuses(format!("its zones are {zone} long, which is no power of two"));
    }
    if config.max_append_sectors == 0 {
        refuses("it has no zone append (--max-append 0)".into());
    } else if u64::from(config.max_append_sectors) * 512 < config.write_granularity_bytes.into() {
        refuses("its append limit is shorter than a block".into());
    }
    let kinds = Kinds::of(geometry);
    if kinds.preferred != 0 {
        refuses("it has sequential-write-preferred zones".into());
    }
    if kinds.capacities_sectors.len() > 1 {
        refuses("its sequential zones have several capacities".into());
    }
    // The last zone's may differ: it may be a runt.
    if config.write_granularity_bytes > 4096 {
        let block = Size::from(u64::from(config.write_granularity_bytes));
        refuses(format!(
            "its blocks are {block} long, and Linux 6.12 takes none longer than a page of memory (4K)"
        ));
    }
    if u64::from(config.max_append_sectors) >= 1 << 23 {
        refuses("its append limit is 4G or more".into());
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(change: impl FnOnce(&mut GeometryArgs)) -> GeometryArgs {
        let mut args = GeometryArgs { zone_size: Some(Size::from(1 << 20)), ..GeometryArgs::default() };
        change(&mut args);
        args
    }

    fn made(model: Model, args: &GeometryArgs) -> anyhow::Result<Geometry> {
        of(Size::from(16 << 20), model, args)
    }

    fn set(text: &str) -> Option<ZoneSet> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn capacities_are_given_out_in_turn_to_the_sequential_zones() {
        let sizes: Vec<Size> = [1 << 20, 512 << 10, 4096].map(Size::from).to_vec();
        let geometry = made(
            Model::HostManaged,
            &args(|a| {
                a.zone_capacity = Some(sizes.clone());
                a.conventional = set("0,3..5");
            }),
        )
        .unwrap();
        let found: Vec<_> = (0..16).map(|zone| geometry.zone_capacity_sectors(zone)).collect();
        let (c, a, b, d) = (2048, 2048, 1024, 8);
        assert_eq!(found, [c, a, b, c, c, d, a, b, d, a, b, d, a, b, d, a]);
        let at_start = made(
            Model::HostManaged,
            &args(|a| {
                a.zone_capacity = Some(sizes);
                a.conventional = set("2");
            }),
        );
        let found: Vec<_> =
            (0..7).map(|zone| at_start.as_ref().unwrap().zone_capacity_sectors(zone)).collect();
        assert_eq!(found, [c, c, a, b, d, a, b]);
    }

    #[test]
    fn a_host_aware_disk_has_no_limits_and_no_append_unless_they_are_asked_for() {
        let geometry = made(Model::HostAware, &args(|a| a.conventional = set("1"))).unwrap();
        assert_eq!(
            (geometry.kind(0), geometry.kind(1)),
            (ZoneKind::Conventional, ZoneKind::SequentialPreferred)
        );
        assert_eq!(
            (geometry.max_open_zones(), geometry.max_active_zones(), geometry.max_append_sectors()),
            (0, 0, 0)
        );
        let limited = made(Model::HostAware, &args(|a| a.max_open = Some(1))).unwrap_err().to_string();
        assert!(limited.contains("can't have such limits"), "{limited}");
        let short = made(Model::HostAware, &args(|a| a.zone_capacity = Some(vec![Size::from(4096)])));
        assert!(short.unwrap_err().to_string().contains("they must be the same"));
        let both = made(Model::HostAware, &args(|a| a.preferred = set("3..4"))).unwrap_err();
        assert!(both.to_string().contains("--preferred"));
    }

    #[test]
    fn zones_that_the_disk_does_not_have_are_named() {
        for set_text in ["17", "0..17", "20..21"] {
            let error = made(Model::HostManaged, &args(|a| a.conventional = set(set_text))).unwrap_err();
            assert!(error.to_string().contains("the disk has 16 zones in all"), "{error}");
        }
        let rest = made(Model::HostManaged, &args(|a| a.preferred = set("3.."))).unwrap();
        assert_eq!(
            (rest.kind(2), rest.kind(3), rest.kind(15)),
            (ZoneKind::SequentialRequired, ZoneKind::SequentialPreferred, ZoneKind::SequentialPreferred)
        );
    }

    #[test]
    fn what_linux_refuses_is_said() {
        let notes =
            |change: fn(&mut GeometryArgs)| linux_notes(&made(Model::HostManaged, &args(change)).unwrap());
        assert_eq!(notes(|_| {}), [""; 0]);
        for (change, said) in [
            ((|a| a.zone_size = Some(Size::from(3 << 20))) as fn(&mut GeometryArgs), "no power of two"),
            (|a| a.max_append = Some(Size::from(0)), "no zone append"),
            (|a| a.preferred = set("3..5"), "sequential-write-preferred"),
            (|a| a.block_size = Some(Size::from(8192)), "page of memory"),
            (|a| a.zone_capacity = Some([4096, 8192].map(Size::from).to_vec()), "several capacities"),
        ] {
            let notes = notes(change);
            assert!(notes.len() == 1 && notes[0].contains(said), "{notes:?}");
        }
        // Conventional zones anywhere, a runt, a capacity below the size, one zone open: that Linux takes.
        let taken = args(|a| {
            a.conventional = set("3..5");
            a.zone_capacity = Some(vec![Size::from(4096)]);
            a.max_open = Some(1);
        });
        assert_eq!(
            linux_notes(&of(Size::from((15 << 20) + 8192), Model::HostManaged, &taken).unwrap()),
            [""; 0]
        );
        assert!(linux_notes(&made(Model::HostAware, &args(|_| {})).unwrap())[0].contains("regular"));
    }
}
