//! Which zone of a disk is of which kind, and how much of it can be written.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use crate::geometry::{GeometryConfig, GeometryError, Model};

/// What may be done with a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ZoneKind {
    /// Written in any order; there is no write pointer.
    Conventional,
    /// Written at the write pointer only.
    SequentialRequired,
    /// Better written at the write pointer, but it takes every write.
    SequentialPreferred,
}

/// Zones in a row that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneRun {
    /// How many there are; at least one.
    pub zones: u32,
    /// What they are.
    pub kind: ZoneKind,
    /// How many sectors of each can be written. Not looked at for conventional zones, of which it is all; and all it must be for
    /// preferred ones. A last zone that is shorter has as much of it as it has.
    pub capacity_sectors: u32,
}

impl ZoneRun {
    /// Conventional zones.
    pub const fn conventional(zones: u32) -> Self {
        Self { zones, kind: ZoneKind::Conventional, capacity_sectors: 0 }
    }

    /// Zones that must be written sequentially.
    pub const fn required(zones: u32, capacity_sectors: u32) -> Self {
        Self { zones, kind: ZoneKind::SequentialRequired, capacity_sectors }
    }

    /// Zones that should be written sequentially, of this length.
    pub const fn preferred(zones: u32, zone_sectors: u32) -> Self {
        Self { zones, kind: ZoneKind::SequentialPreferred, capacity_sectors: zone_sectors }
    }

    fn is_like(&self, other: &Self) -> bool {
        (self.kind, self.capacity_sectors) == (other.kind, other.capacity_sectors)
    }
}

/// What each zone of a disk is: the runs of `head` from the first zone on, then those of `cycle`, again and again to the end. So a disk
/// with a pattern takes as little room as a uniform one, and how it goes on when it grows is said, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneLayout {
    /// What the disk asks of those who write to it.
    pub model: Model,
    /// The first zones. May be empty.
    pub head: Vec<ZoneRun>,
    /// What is repeated behind them; at least one run.
    pub cycle: Vec<ZoneRun>,
}

impl ZoneLayout {
    /// Conventional zones at the start, and all others alike.
    pub(crate) fn uniform(config: &GeometryConfig) -> Self {
        let head = match config.conventional_zones {
            0 => Vec::new(),
            zones => vec![ZoneRun::conventional(zones)],
        };
        let cycle = vec![ZoneRun::required(1, config.zone_capacity_sectors)];
        Self { model: Model::HostManaged, head, cycle }
    }

    /// The layout of a disk whose zones are known one by one: kind, and writable sectors. What a disk goes on with behind its end is more of
    /// its last zone. `None` without any zone.
    pub fn of_zones(model: Model, zones: impl IntoIterator<Item = (ZoneKind, u32)>) -> Option<Self> {
        let mut head: Vec<ZoneRun> = Vec::new();
        for (kind, capacity_sectors) in zones {
            push(&mut head, ZoneRun { zones: 1, kind, capacity_sectors });
        }
        let last = head.last()?;
        let cycle = vec![ZoneRun { zones: 1, ..*last }];
        Some(Self { model, head, cycle })
    }

    /// The same, in the one form that geometries have: so that two that are the same disk are equal, and small.
    pub(crate) fn normal(self, zone_sectors: u32) -> Self {
        let joined = |runs: Vec<ZoneRun>| {
            let mut joined = Vec::with_capacity(runs.len());
            for mut run in runs {
                if run.kind == ZoneKind::Conventional {
                    run.capacity_sectors = zone_sectors;
                }
                push(&mut joined, run);
            }
            joined
        };
        let (mut head, mut cycle) = (joined(self.head), joined(self.cycle));
        if let [run] = cycle.as_mut_slice() {
            run.zones = run.zones.min(1);
            while head.pop_if(|last| last.zones != 0 && last.is_like(run)).is_some() {}
        }
        Self { model: self.model, head, cycle }
    }

    /// Whether a disk of `zone_count` zones can be like this.
    ///
    /// # Errors
    /// What is wrong.
    pub(crate) fn check(&self, zone_count: u32, config: &GeometryConfig) -> Result<(), GeometryError> {
        if self.cycle.is_empty() {
            return Err(GeometryError::LayoutEmpty { what: "cycle" });
        }
        let runs = || self.head.iter().chain(&self.cycle);
        if runs().any(|run| run.zones == 0) {
            return Err(GeometryError::LayoutEmpty { what: "run" });
        }
        let head_zones = self.head.iter().map(|run| u64::from(run.zones)).sum();
        if head_zones > u64::from(zone_count) {
            return Err(match self.head.as_slice() {
                [run] if run.kind == ZoneKind::Conventional => {
                    GeometryError::ConventionalZones { conventional_zones: run.zones, zone_count }
                }
                _ => GeometryError::LayoutTooLong { layout_zones: head_zones, zone_count },
            });
        }
        let cycle_zones = self.cycle.iter().map(|run| u64::from(run.zones)).sum();
        if cycle_zones > u64::from(u32::MAX) {
            return Err(GeometryError::LayoutTooLong { layout_zones: cycle_zones, zone_count });
        }
        let has = |kind| runs().any(|run| run.kind == kind);
        if self.model == Model::HostAware && has(ZoneKind::SequentialRequired) {
            return Err(GeometryError::HostAwareRequired);
        }
        let preferred = runs().filter(|run| run.kind == ZoneKind::SequentialPreferred);
        if let Some(run) = preferred.clone().find(|run| run.capacity_sectors != config.zone_sectors) {
            return Err(GeometryError::PreferredCapacity {
                zone_capacity_sectors: run.capacity_sectors,
                zone_sectors: config.zone_sectors,
            });
        }
        if preferred.count() != 0 && (config.max_open_zones, config.max_active_zones) != (0, 0) {
            return Err(GeometryError::PreferredLimits {
                max_open_zones: config.max_open_zones,
                max_active_zones: config.max_active_zones,
            });
        }
        Ok(())
    }
}

/// The run that the `zone`th zone from the beginning of `runs` is in; `ends` are theirs.
pub(crate) fn find<'a>(runs: &'a [ZoneRun], ends: &[u32], zone: u32) -> Option<&'a ZoneRun> {
    runs.get(ends.partition_point(|end| *end <= zone))
}

/// Adds a run, to the last one if it is like it.
fn push(runs: &mut Vec<ZoneRun>, run: ZoneRun) {
    if let Some(last) = runs.last_mut()
        && last.is_like(&run)
        && last.zones != 0
        && run.zones != 0
        && let Some(zones) = last.zones.checked_add(run.zones)
    {
        last.zones = zones;
        return;
    }
    runs.push(run);
}

/// Where each run ends, in zones from the beginning of the first.
pub(crate) fn ends(runs: &[ZoneRun]) -> Box<[u32]> {
    let mut end = 0u32;
    runs.iter()
        .map(|run| {
            end = end.saturating_add(run.zones);
            end
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Geometry;

    const LEN: u32 = 96;

    fn config(zones: u64) -> GeometryConfig {
        GeometryConfig {
            capacity_sectors: zones * u64::from(LEN) - 16,
            zone_sectors: LEN,
            zone_capacity_sectors: 1,
            conventional_zones: 7,
            max_open_zones: 0,
            max_active_zones: 0,
            max_append_sectors: 8,
            write_granularity_bytes: 4096,
        }
    }

    fn layout(model: Model, head: &[ZoneRun], cycle: &[ZoneRun]) -> ZoneLayout {
        ZoneLayout { model, head: head.to_vec(), cycle: cycle.to_vec() }
    }

    fn with(zones: u64, layout: ZoneLayout) -> Result<Geometry, GeometryError> {
        Geometry::with_layout(config(zones), layout)
    }

    const HM: Model = Model::HostManaged;
    const HA: Model = Model::HostAware;

    #[test]
    fn each_zone_is_what_the_layout_says() {
        use ZoneKind::{Conventional as C, SequentialPreferred as P, SequentialRequired as R};
        let head = [ZoneRun::conventional(2), ZoneRun::required(1, 48), ZoneRun::conventional(1)];
        let cycle = [ZoneRun::required(2, 64), ZoneRun::preferred(1, LEN), ZoneRun::required(1, 8)];
        let g = with(14, layout(HM, &head, &cycle)).unwrap();
        let expected = [
            (C, 96),
            (C, 96),
            (R, 48),
            (C, 96),
            (R, 64),
            (R, 64),
            (P, 96),
            (R, 8),
            (R, 64),
            (R, 64),
            (P, 96),
            (R, 8),
            (R, 64),
            (R, 64),
        ];
        for (zone, (kind, capacity)) in (0..).zip(expected) {
            assert_eq!((g.kind(zone), g.zone_capacity_sectors(zone)), (kind, capacity), "zone {zone}");
            assert_eq!(g.is_conventional(zone), kind == C);
        }
        assert_eq!((g.zone_len_sectors(13), g.zone_len_sectors(14), g.zone_capacity_sectors(14)), (80, 0, 0));
        assert_eq!(g.kind(14), P, "as it would go on");
        assert_eq!((g.config().conventional_zones, g.config().zone_capacity_sectors), (2, 96));
        assert!(!g.is_uniform());
        let runs: Vec<_> = g.runs().collect();
        assert_eq!(runs.first(), Some(&(0..2, C, 96)));
        assert_eq!(runs.last(), Some(&(12..14, R, 64)));
        assert_eq!(runs.len(), 3 + 3 + 3 + 1);
        // The runt has what there is of it.
        let g = with(14, layout(HM, &[], &[ZoneRun::required(1, 88)])).unwrap();
        assert_eq!((g.zone_capacity_sectors(12), g.zone_capacity_sectors(13)), (88, 80));
    }

    #[test]
    fn a_disk_that_is_told_zone_by_zone_is_the_same() {
        let pattern =
            layout(HM, &[ZoneRun::conventional(3)], &[ZoneRun::required(1, 16), ZoneRun::required(2, 24)]);
        let g = with(40, pattern).unwrap();
        let zones = (0..40).map(|zone| (g.kind(zone), g.zone_capacity_sectors(zone)));
        let told = with(40, ZoneLayout::of_zones(HM, zones).unwrap()).unwrap();
        for zone in 0..40 {
            assert_eq!(
                (told.kind(zone), told.zone_capacity_sectors(zone)),
                (g.kind(zone), g.zone_capacity_sectors(zone))
            );
        }
        assert_eq!(ZoneLayout::of_zones(HM, []), None);
    }

    #[test]
    fn a_uniform_disk_is_one_however_it_is_told() {
        let uniform = GeometryConfig { conventional_zones: 3, zone_capacity_sectors: 80, ..config(9) };
        let uniform = Geometry::new(uniform).unwrap();
        assert!(uniform.is_uniform());
        let told = [ZoneRun::conventional(1), ZoneRun::conventional(2), ZoneRun::required(2, 80)];
        let cycles = [&[ZoneRun::required(4, 80)][..], &[ZoneRun::required(1, 80), ZoneRun::required(1, 80)]];
        for cycle in cycles {
            assert_eq!(with(9, layout(HM, &told, cycle)).unwrap(), uniform);
        }
        let zones = (0..9).map(|zone| (uniform.kind(zone), if zone < 3 { 96 } else { 80 }));
        assert_eq!(with(9, ZoneLayout::of_zones(HM, zones).unwrap()).unwrap(), uniform);
    }

    #[test]
    fn a_disk_grows_as_its_layout_goes_on() {
        let (conv, a, b) = (ZoneRun::conventional(1), ZoneRun::required(1, 48), ZoneRun::required(2, 96));
        let g = with(6, layout(HM, &[conv], &[a, b])).unwrap();
        assert_eq!(g.zone_capacity_sectors(5), 80, "a runt");
        let longer = g.grown(10 * u64::from(LEN)).unwrap();
        assert_eq!(longer, g.grown(704).unwrap().grown(10 * u64::from(LEN)).unwrap());
        let capacities: Vec<_> = (0..10).map(|zone| longer.zone_capacity_sectors(zone)).collect();
        assert_eq!(capacities, [96, 48, 96, 96, 48, 96, 96, 48, 96, 96]);
        let now_sectors = g.capacity_sectors();
        assert_eq!(g.grown(now_sectors).unwrap(), g);
        assert_eq!(g.grown(80), Err(GeometryError::Shorter { capacity_sectors: 80, now_sectors }));
        assert!(matches!(g.grown(now_sectors + 1), Err(GeometryError::Unaligned { .. })));
    }

    #[test]
    fn what_no_disk_is_has_a_name() {
        let refused = |layout| with(4, layout).unwrap_err();
        let (conv, req, pref) =
            (ZoneRun::conventional(1), ZoneRun::required(1, 8), ZoneRun::preferred(1, LEN));
        assert_eq!(refused(layout(HM, &[req], &[])), GeometryError::LayoutEmpty { what: "cycle" });
        let none = ZoneRun { zones: 0, ..req };
        for (head, cycle) in [(&[none][..], &[req][..]), (&[], &[none]), (&[req, none], &[req])] {
            assert_eq!(refused(layout(HM, head, cycle)), GeometryError::LayoutEmpty { what: "run" });
        }
        assert_eq!(
            refused(layout(HM, &[conv, ZoneRun::required(4, 8)], &[ZoneRun::required(1, 16)])),
            GeometryError::LayoutTooLong { layout_zones: 5, zone_count: 4 }
        );
        let many = ZoneRun::required(u32::MAX, 8);
        assert!(matches!(
            refused(layout(HM, &[many, conv, many], &[req])),
            GeometryError::LayoutTooLong { .. }
        ));
        assert!(matches!(refused(layout(HM, &[], &[many, conv])), GeometryError::LayoutTooLong { .. }));
        assert!(matches!(
            refused(layout(HM, &[ZoneRun::required(1, 104)], &[req])),
            GeometryError::ZoneCapacity { zone_capacity_sectors: 104, .. }
        ));
        assert!(matches!(
            refused(layout(HM, &[], &[req, ZoneRun::required(1, 0)])),
            GeometryError::ZoneCapacity { zone_capacity_sectors: 0, .. }
        ));
        assert!(matches!(
            refused(layout(HM, &[], &[req, ZoneRun::required(1, 9)])),
            GeometryError::Unaligned { sectors: 9, .. }
        ));
        assert_eq!(
            refused(layout(HA, &[conv], &[ZoneRun::preferred(1, 88)])),
            GeometryError::PreferredCapacity { zone_capacity_sectors: 88, zone_sectors: 96 }
        );
        assert_eq!(refused(layout(HA, &[conv], &[pref, req])), GeometryError::HostAwareRequired);
        let limited = GeometryConfig { max_open_zones: 0, max_active_zones: 1, ..config(4) };
        assert!(matches!(
            Geometry::with_layout(limited, layout(HA, &[], &[pref])),
            Err(GeometryError::PreferredLimits { max_active_zones: 1, .. })
        ));
        assert!(with(4, layout(HA, &[conv], &[pref])).is_ok());
        assert!(with(4, layout(HM, &[conv], &[pref, req])).is_ok(), "ZBC has such disks");
    }
}
