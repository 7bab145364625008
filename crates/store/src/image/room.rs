//! Room for the states of more zones: between the superblock and the data.
//!
//! The live area grows where it is, because others store to it. The zone-state pages move, because the old ones must count until the
//! superblock names the new ones.

use std::ops::Range;

use virtio_zbd_zones::Geometry;

use super::format::{Layout, SUPERBLOCKS_END_BYTES, live_len_bytes, page_count_of, pages_len_bytes};

/// Where the zone-state pages go when the disk has `zone_count` zones, at least as many as it has now: one place, or two, one after the
/// other, where they are in the way. The last is for the pages of all zones. `None`: there is no room.
pub(super) fn plan(layout: &Layout, zone_count: u32) -> Option<Vec<u64>> {
    let live = layout.live.start..layout.live.start + live_len_bytes(zone_count);
    if live.end > layout.data.start {
        return None;
    }
    let room = Room(SUPERBLOCKS_END_BYTES..layout.data.start);
    let len = pages_len_bytes(page_count_of(zone_count));
    if apart(&live, &layout.pages)
        && let Some(place) = room.best([&live, &layout.pages], len, &live)
    {
        return Some(vec![place]);
    }
    let now = layout.pages.end - layout.pages.start;
    for first in room.places([&layout.live, &layout.pages], now) {
        let moved = first..first + now;
        if apart(&moved, &live)
            && let Some(place) = room.best([&live, &moved], len, &live)
        {
            return Some(vec![first, place]);
        }
    }
    None
}

/// The most zones whose states find room.
pub(super) fn zones_max(layout: &Layout, zone_count: u32) -> u32 {
    let (mut fits, mut too_many) = (zone_count, Geometry::MAX_ZONES + 1);
    while too_many - fits > 1 {
        let middle = fits + (too_many - fits) / 2;
        if plan(layout, middle).is_some() { fits = middle } else { too_many = middle }
    }
    fits
}

/// What lies between the superblock and the data.
struct Room(Range<u64>);

impl Room {
    /// Of all places, the one that leaves the longest stretch free once only `live` and what is put there are taken.
    fn best(&self, taken: [&Range<u64>; 2], len_bytes: u64, live: &Range<u64>) -> Option<u64> {
        let left = |place: &u64| {
            let new = *place..*place + len_bytes;
            let free = self.free([live, &new]);
            free.iter().map(|free| free.end - free.start).max()
        };
        // Of equals the last: nothing stands there in the way of the live area.
        self.places(taken, len_bytes).into_iter().max_by_key(left)
    }

    /// Both ends of every free stretch that is long enough.
    fn places(&self, taken: [&Range<u64>; 2], len_bytes: u64) -> Vec<u64> {
        let free = self.free(taken);
        let long = free.into_iter().filter(|free| free.end - free.start >= len_bytes);
        long.flat_map(|free| [free.start, free.end - len_bytes]).collect()
    }

    /// What is free beside two areas, in order.
    fn free(&self, taken: [&Range<u64>; 2]) -> Vec<Range<u64>> {
        let mut taken = taken;
        taken.sort_by_key(|area| area.start);
        let [first, second] = taken;
        let free = [self.0.start..first.start, first.end..second.start, second.end..self.0.end];
        free.into_iter().filter(|free| !free.is_empty()).collect()
    }
}

fn apart(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.end <= b.start || b.end <= a.start
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_zbd_zones::GeometryConfig;

    fn geometry(zones: u32) -> Geometry {
        Geometry::new(GeometryConfig {
            capacity_sectors: u64::from(zones) * 8,
            zone_sectors: 8,
            zone_capacity_sectors: 8,
            conventional_zones: 0,
            max_open_zones: 0,
            max_active_zones: 0,
            max_append_sectors: 0,
            write_granularity_bytes: 512,
        })
        .unwrap()
    }

    /// Goes through a plan, and looks at each step: nothing that counts is written over, all is in the room.
    fn grow(layout: Layout, from: u32, to: u32) -> Option<Layout> {
        let plan = plan(&layout, to)?;
        let mut layout = layout;
        for (step, &place) in plan.iter().enumerate() {
            let zones = if step + 1 == plan.len() { to } else { from };
            let next = layout.grown(&geometry(zones), place).unwrap();
            assert!(apart(&next.pages, &layout.pages), "{layout:?} {next:?}");
            for layout_with in [&next.live, &layout.live] {
                assert!(apart(&next.pages, layout_with), "{layout:?} {next:?}");
            }
            assert!(apart(&next.live, &layout.pages), "{layout:?} {next:?}");
            assert!(next.pages.start >= SUPERBLOCKS_END_BYTES && next.pages.end <= next.data.start);
            assert!(next.live.start == layout.live.start && next.live.end <= next.data.start);
            assert!(next.pages.start.is_multiple_of(4096));
            layout = next;
        }
        Some(layout)
    }

    #[test]
    fn room_that_was_reserved_is_enough_in_any_steps() {
        let seed = fastrand::u64(..);
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..300 {
            let bound = [600, 5_000, 40_000, 300_000][rng.usize(..4)];
            let from = rng.u32(1..bound);
            let most = from * rng.u32(2..10);
            let mut layout = Layout::new(&geometry(from), most).unwrap();
            let mut zones = from;
            while zones < most {
                // Few large steps, or many small ones.
                let next = (zones + rng.u32(1..=(most / 4).max(1))).min(most);
                layout = grow(layout, zones, next).unwrap_or_else(|| {
                    panic!("seed {seed}: {from} to {most}: no room at {zones} for {next}")
                });
                zones = next;
            }
            assert!(zones_max(&layout, zones) >= most, "seed {seed}");
        }
    }

    #[test]
    fn a_small_disk_has_room_for_many_more_zones_though_nothing_was_reserved() {
        for (zones, at_least) in [(1, 39_000), (64, 39_000), (504, 39_000), (3_000, 35_000)] {
            let layout = Layout::new(&geometry(zones), zones).unwrap();
            assert_eq!(layout.data.start, 1 << 20);
            let most = zones_max(&layout, zones);
            assert!(most >= at_least, "{zones}: {most}");
            assert!(grow(layout.clone(), zones, most).is_some() && plan(&layout, most + 1).is_none());
        }
    }

    #[test]
    fn without_room_there_is_no_place() {
        let layout = Layout::new(&geometry(40_000), 40_000).unwrap();
        let free = layout.data.start - layout.live.end + layout.live.start - layout.pages.end;
        assert!(free < layout.pages.end - layout.pages.start, "{layout:?}");
        assert_eq!((plan(&layout, 40_001), zones_max(&layout, 40_000)), (None, 40_000));
    }
}
