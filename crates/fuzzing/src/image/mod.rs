//! A hostile file: an image with a past, damaged anywhere, with its checksums put right where the bytes say so.
//!
//! A naive reader of the format ([`naive`]) foretells whether it opens and with which states. What opens must work: it is used,
//! left in some way, and opened again.

mod damage;
mod life;
mod naive;

use std::sync::Arc;

use virtio_zbd_device::{Disk, DiskConfig};
use virtio_zbd_store::{
    CheckOptions, EngineChoice, ImageStore, LastUse, OpenOptions, Opens, Severity, Store, StoreError,
};
use virtio_zbd_zones::{Condition, Geometry, GeometryConfig, ZoneState};

use crate::device::{odd, shape};
use crate::input::Input;
use crate::medium::{Content, MemMedium};
use crate::watch::Watch;
use life::{Life, sectors};
use naive::Opened;

/// Two boots of the machine.
const BOOTS: [[u8; 16]; 2] = [[0x42; 16], [0x43; 16]];

/// An image file that has been through whatever the bytes say.
///
/// # Panics
/// It is opened where it should be refused, or the other way round; it is not what it was; it does not work.
pub fn image(data: &[u8]) {
    let watch = Watch::begin();
    let mut input = Input::new(data);
    let (past, expected) = past(&mut input);
    let boot = BOOTS[usize::from(input.u8() & 1)];
    let damaged = damage::damage(&past, &mut input);
    if damaged == past {
        let opened = naive::open(&past, boot).expect("an undamaged image opens");
        assert_eq!(opened.states, expected.states(&opened), "the states after {:?}", opened.last_use);
    }
    look(&damaged, boot);
    if let Some(store) = open(&damaged, boot) {
        use_it(&damaged, boot, store, &mut input);
    }
    watch.end();
}

/// What the past has left.
struct Expected {
    now: Vec<ZoneState>,
    durable: Vec<ZoneState>,
}

impl Expected {
    fn states(&self, opened: &Opened) -> Vec<ZoneState> {
        let states = match opened.last_use {
            LastUse::Closed | LastUse::Killed => &self.now,
            _ => &self.durable,
        };
        restarted(&opened.geometry, states)
    }
}

fn restarted(geometry: &Geometry, states: &[ZoneState]) -> Vec<ZoneState> {
    (0..).zip(states).map(|(zone, state)| state.after_restart(geometry, zone)).collect()
}

/// An image that was used for a while, and closed or not.
fn past(input: &mut Input<'_>) -> (Content, Expected) {
    let how = input.u8();
    let shape = if how & 0x0f == 0x0f { many_zones(input) } else { shape(input) };
    let medium = Arc::new(MemMedium::default());
    let geometry = if how & 0x20 == 0 { Geometry::new(shape).unwrap() } else { odd(shape, input) };
    ImageStore::create_on(&*medium, geometry).unwrap();
    let options = OpenOptions { boot_id: Some(BOOTS[0]), ..OpenOptions::default() };
    let store = Arc::new(ImageStore::open_on(Arc::clone(&medium) as _, options).unwrap());
    let states = store.initial_states();
    let data = vec![0; usize::try_from(store.capacity_bytes()).unwrap()];
    let mut life = Life::new(store, states, data);
    life.run(input);
    let (now, mut durable) = (life.now.clone(), life.durable.clone());
    if how & 0x10 == 0 {
        life.close();
        durable.clone_from(&now);
    }
    (medium.content(), Expected { now, durable })
}

/// More than go into one page.
fn many_zones(input: &mut Input<'_>) -> GeometryConfig {
    let zones = 500 + u32::from(input.u8()) * 3;
    GeometryConfig {
        capacity_sectors: u64::from(zones) * 2 - u64::from(input.u8() & 1),
        zone_sectors: 2,
        zone_capacity_sectors: 1 + input.below(2),
        conventional_zones: input.below(3),
        max_open_zones: 0,
        max_active_zones: input.below(6),
        max_append_sectors: 2,
        write_granularity_bytes: 512,
    }
}

/// Looks at an image in every way in which nothing is written.
fn look(content: &Content, boot: [u8; 16]) {
    let expected = naive::open(content, boot);
    let medium = Arc::new(MemMedium::new(content.clone()));
    let options = OpenOptions { read_only: true, boot_id: Some(boot) };
    let opened = ImageStore::open_on(Arc::clone(&medium) as _, options);
    match (&expected, &opened) {
        (Some(expected), Ok(store)) => {
            let info = store.info().unwrap();
            assert_eq!(info.states, expected.states);
            assert_eq!((&info.geometry, info.last_use), (&expected.geometry, expected.last_use));
            assert_eq!(info.data_offset_bytes, expected.data_start);
            assert_eq!(info.file_len_bytes, content.len());
            let count = |is: fn(Condition) -> bool| {
                expected.states.iter().filter(|state| is(state.condition)).count()
            };
            assert_eq!(info.open_zones as usize, 0);
            assert_eq!(info.active_zones as usize, count(Condition::is_active));
            assert_eq!(store.initial_states(), expected.states);
            store.close().unwrap();
        }
        (None, Err(_)) => {}
        _ => panic!("foretold {:?}, found {:?}", expected.is_some(), opened.err()),
    }
    let options = CheckOptions { boot_id: Some(boot), ..CheckOptions::default() };
    let report = ImageStore::check_on(&*medium, options).unwrap();
    let worst = report.findings.iter().map(|finding| finding.severity).max();
    match &report.opens {
        Opens::Yes => assert!(expected.as_ref().is_some_and(|opened| !opened.read_only)),
        Opens::ReadOnly(_) => assert!(expected.as_ref().is_some_and(|opened| opened.read_only)),
        Opens::No(_) => assert!(expected.is_none()),
    }
    assert!(
        report.opens == Opens::Yes || worst == Some(Severity::Fatal),
        "refused ({:?}), and nothing fatal found",
        report.opens
    );
    assert_eq!(medium.changes(), 0, "who looks does not write");
    assert!(medium.content() == *content, "who looks does not write");
}

/// Opens an image for writing, and compares with what is foretold.
fn open(content: &Content, boot: [u8; 16]) -> Option<(Arc<MemMedium>, Arc<ImageStore>)> {
    let expected = naive::open(content, boot).filter(|opened| !opened.read_only);
    let medium = Arc::new(MemMedium::new(content.clone()));
    let options = OpenOptions { read_only: false, boot_id: Some(boot) };
    match (expected, ImageStore::open_on(Arc::clone(&medium) as _, options)) {
        (None, Err(StoreError::Image { .. })) => {
            assert_eq!(medium.changes(), 0, "a refused image is left as it was");
            assert!(medium.content() == *content, "a refused image is left as it was");
            None
        }
        (Some(expected), Ok(store)) => {
            assert_eq!(store.initial_states(), expected.states);
            let found = sectors(&store);
            let before = content.read(expected.data_start, found.len());
            compare_sectors(&expected, &before, &found);
            Some((medium, Arc::new(store)))
        }
        (expected, found) => panic!("foretold {:?}, found {:?}", expected.is_some(), found.err()),
    }
}

/// Below write pointers nothing has changed. Behind them nothing is, unless the image was closed: then nobody looks there.
fn compare_sectors(opened: &Opened, before: &[u8], found: &[u8]) {
    let geometry = &opened.geometry;
    for (zone, state) in (0..).zip(&opened.states) {
        let sector = |sectors: u64| usize::try_from(sectors * 512).unwrap();
        let start = geometry.zone_start(zone);
        let end = (start + u64::from(geometry.config().zone_sectors)).min(geometry.capacity_sectors());
        let kept = match state.condition {
            Condition::NotWp | Condition::Offline => end,
            _ if opened.last_use == LastUse::Closed => end,
            _ => start + u64::from(state.wp_sectors),
        };
        let (kept, gone) = (sector(start)..sector(kept), sector(kept)..sector(end));
        assert!(found[kept.clone()] == before[kept], "zone {zone} ({state:?}) has lost data");
        let zeros = vec![0; gone.len()];
        assert!(found[gone] == zeros, "zone {zone} ({state:?}) has data behind its end");
    }
}

/// Uses what was opened, leaves it in some way, and opens it again.
fn use_it(
    content: &Content,
    boot: [u8; 16],
    (medium, store): (Arc<MemMedium>, Arc<ImageStore>),
    input: &mut Input<'_>,
) {
    let config = DiskConfig { queues: 1, block_len_bytes: 512, engine: EngineChoice::Sync };
    if input.one_in(4) {
        // Every state that opens is one that a disk can be in; only a limit on appends may be too much for it.
        let most_sectors = 126 * 2048;
        let possible = store.geometry().unwrap().config().max_append_sectors <= most_sectors;
        let disk = Disk::new(Arc::clone(&store) as _, config);
        assert_eq!(disk.is_ok(), possible, "{:?}", disk.err());
    }
    let opened = naive::open(content, boot).unwrap();
    let data = sectors(&store);
    let mut life = Life::new(store, opened.states, data);
    life.run(input);
    let (now, durable, data) = (life.now.clone(), life.durable.clone(), life.data.clone());
    let closed = input.u8() & 1 == 0;
    if closed {
        life.close();
    } else {
        drop(life);
    }
    let left = medium.content();
    for next_boot in BOOTS {
        let again = naive::open(&left, next_boot).expect("what was used opens again");
        let (last_use, states) = match (closed, next_boot == boot) {
            (true, _) => (LastUse::Closed, &now),
            (false, true) => (LastUse::Killed, &now),
            (false, false) => (LastUse::PowerLost, &durable),
        };
        assert_eq!(again.last_use, last_use);
        assert_eq!(again.states, restarted(&again.geometry, states), "the states after {last_use:?}");
        look(&left, next_boot);
        let (_, store) = open(&left, next_boot).unwrap();
        if last_use != LastUse::PowerLost {
            let found = sectors(&store);
            for (zone, state) in (0..).zip(&again.states) {
                let start = usize::try_from(again.geometry.zone_start(zone) * 512).unwrap();
                let end = start + usize::try_from(state.wp_sectors).unwrap() * 512;
                assert!(found[start..end] == data[start..end], "zone {zone} has other data than was written");
            }
        }
    }
}
