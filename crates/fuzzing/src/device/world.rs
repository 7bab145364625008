//! A disk with one queue, made from the bytes, and its driver's side.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use virtio_zbd_device::{Disk, DiskConfig, Negotiated, Queue, QueueConfig, RingConfig, StartError};
use virtio_zbd_spec::{Features, ZoneType};
use virtio_zbd_store::{EngineChoice, Event, ImageStore, IoBuffer, OpenOptions, RamStore, Store};
use virtio_zbd_zones::{Geometry, GeometryConfig, Model, ZoneKind, ZoneLayout, ZoneRun};
use vm_memory::GuestAddress;

use super::memory::Memory;
use super::oracle::Oracle;
use crate::input::Input;
use crate::medium::MemMedium;
use crate::naive::NaiveDisk;
use crate::space::Space;

/// What is waited for at most, so many times: whoever takes longer hangs.
const MOMENT: Duration = Duration::from_millis(100);
const MOMENTS: u32 = 150;

/// Where the sectors are.
enum Place {
    Ram(Arc<dyn Store>),
    Image(Arc<MemMedium>),
}

/// Where the rings are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rings {
    pub(super) size: u16,
    pub(super) desc: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
    pub(super) event_idx: bool,
}

impl Rings {
    /// All words of the available ring, and those of the used ring.
    pub(super) fn areas(&self) -> [(u64, u64); 2] {
        let size = u64::from(self.size);
        [(self.avail, 6 + 2 * size), (self.used, 6 + 8 * size)]
    }

    /// The words by which the device says whether it wants to be kicked: it may write them at any time.
    pub(super) fn wishes(&self) -> [(u64, u64); 2] {
        [(self.used, 2), (self.used + 4 + 8 * u64::from(self.size), 2)]
    }
}

pub(super) struct World {
    place: Place,
    pub(super) store: Arc<dyn Store>,
    pub(super) disk: Arc<Disk>,
    pub(super) negotiated: Arc<Negotiated>,
    pub(super) memory: Memory,
    pub(super) rings: Rings,
    /// The next entry of the available ring, and what stands in the used one.
    pub(super) next_avail: u16,
    pub(super) oracle: Oracle,
    accepted: u64,
    pub(super) space: Space,
    queue: Option<Queue>,
    kick: OwnedFd,
    called: Receiver<()>,
    caller: Sender<()>,
    broken: Arc<AtomicUsize>,
}

impl World {
    /// A disk of the shape, with the driver's features, that the bytes say.
    pub(super) fn new(input: &mut Input<'_>) -> Self {
        let how = input.u8();
        let shape = (how & 7 != 0).then(|| shape(input));
        let geometry =
            shape.map(|shape| if how & 7 > 5 { odd(shape, input) } else { Geometry::new(shape).unwrap() });
        let aware = geometry.as_ref().is_some_and(|geometry| geometry.model() == Model::HostAware);
        let place = match geometry.clone() {
            None => Place::Ram(Arc::new(RamStore::plain((1 + u64::from(input.u8() % 200)) * 512).unwrap())),
            Some(geometry) if how & 0x18 == 0x18 => {
                let medium = MemMedium::default();
                ImageStore::create_on(&medium, geometry).unwrap();
                Place::Image(Arc::new(medium))
            }
            Some(geometry) => Place::Ram(Arc::new(RamStore::new(geometry).unwrap())),
        };
        let shape = geometry.as_ref().map(|geometry| *geometry.config());
        let store = place.open();
        let disk = disk(&store);
        let offered = disk.features();
        let accepted = match how >> 5 {
            0..=4 => offered,
            // Without some that make no disk impossible.
            5 => offered & !(1 << 28),
            6 => offered & !(u64::from(input.u16()) | u64::from(input.u8()) << 24),
            _ => input.u64(),
        };
        let possible = accepted & !offered == 0
            && accepted & Features::VERSION_1.bits() != 0
            && (shape.is_none() || aware || accepted & Features::ZONED.bits() != 0);
        let regular = shape.is_none() || possible && accepted & Features::ZONED.bits() == 0;
        let negotiated = disk.negotiate(accepted);
        assert_eq!(negotiated.is_ok(), possible, "features {accepted:#x} of {offered:#x}");
        let serial = store.identity().serial;
        let mut naive = match &geometry {
            Some(geometry) => NaiveDisk::of_zones(*geometry.config(), zones_of(geometry), serial),
            None => NaiveDisk::plain(store.capacity_bytes() / 512, serial),
        };
        naive.regular = regular;
        let features = possible.then(|| Features::from_bits_retain(accepted));
        let space = Space {
            shape,
            model: match (regular, aware) {
                (true, _) => 0,
                (false, aware) => 1 + u32::from(aware),
            },
            sectors: store.capacity_bytes() / 512,
            queues: 1,
            write_back: features.is_none_or(|has| has.contains(Features::FLUSH)),
            wce: features.is_some_and(|has| has.contains(Features::CONFIG_WCE)),
        };
        let oracle = Oracle { naive, zoned: !regular, features };
        let event_idx = features.is_some_and(|features| features.contains(Features::EVENT_IDX));
        let size = 1 << input.below(8);
        let rings = Rings { size, desc: 0x1_0000, avail: 0x1_0800, used: 0x1_0c00, event_idx };
        let (caller, called) = channel();
        Self {
            negotiated: negotiated.unwrap_or_else(|_| disk.not_negotiated()),
            place,
            store,
            disk,
            memory: Memory::new(),
            rings,
            next_avail: 0,
            oracle,
            accepted,
            space,
            queue: None,
            kick: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap(),
            called,
            caller,
            broken: Arc::default(),
        }
    }

    /// Whether the disk is in an image, which a restart reads again.
    pub(super) fn is_image(&self) -> bool {
        matches!(self.place, Place::Image(_))
    }

    /// Hands the queue to the device.
    pub(super) fn start(&mut self) -> Result<(), StartError> {
        assert!(self.queue.is_none());
        let caller = self.caller.clone();
        let broken = Arc::clone(&self.broken);
        let Rings { size, desc, avail, used, event_idx } = self.rings;
        let config = QueueConfig {
            memory: Arc::clone(self.memory.guest()),
            ring: RingConfig {
                size,
                descriptor_table: GuestAddress(desc),
                avail_ring: GuestAddress(avail),
                used_ring: GuestAddress(used),
                next_avail: self.next_avail,
                event_idx,
            },
            inflight: None,
            kick: self.kick.try_clone().unwrap(),
            call: Box::new(move || {
                let _ = caller.send(());
            }),
            broken: Box::new(move || {
                broken.fetch_add(1, Ordering::SeqCst);
            }),
        };
        self.queue = Some(self.disk.start_queue(0, Arc::clone(&self.negotiated), config)?);
        Ok(())
    }

    /// Takes the queue back. Returns where the device would go on.
    pub(super) fn stop(&mut self) -> Option<u16> {
        let stopped = self.queue.take().map(Queue::stop);
        // Nobody answers any more.
        while self.called.try_recv().is_ok() {}
        let _ = rustix::io::read(&self.kick, &mut [0; 8]);
        stopped
    }

    pub(super) fn kick(&self) {
        let _ = rustix::io::write(&self.kick, &1u64.to_ne_bytes());
    }

    /// Waits for the next call.
    #[track_caller]
    pub(super) fn wait_for_call(&self) {
        let called = (0..MOMENTS).any(|_| self.called.recv_timeout(MOMENT).is_ok());
        assert!(called, "the driver is not called");
    }

    /// Whether there were calls that nobody has waited for.
    pub(super) fn was_called(&self) -> bool {
        self.called.try_recv().is_ok()
    }

    /// How often the device has given the queue up.
    pub(super) fn broken(&self) -> usize {
        self.broken.load(Ordering::SeqCst)
    }

    /// The front-end has seen it.
    pub(super) fn forget_broken(&self) {
        self.broken.store(0, Ordering::SeqCst);
    }

    /// How much is written at once at least, in bytes.
    pub(super) fn block_bytes(&self) -> usize {
        self.space.shape.map_or(512, |shape| shape.write_granularity_bytes as usize)
    }

    /// Panics if so many zones can't be open and active.
    #[track_caller]
    pub(super) fn within_limits(&self, open: u32, active: u32) {
        let Some(shape) = self.space.shape else { return };
        assert!(shape.max_open_zones == 0 || open <= shape.max_open_zones, "{open} open zones");
        assert!(shape.max_active_zones == 0 || active <= shape.max_active_zones, "{active} active zones");
    }

    /// Restarts the program, with the queue stopped: in order, or (`killed`) without closing the disk.
    pub(super) fn restart(&mut self, killed: bool) {
        assert!(self.queue.is_none());
        if self.is_image() && !killed {
            self.disk.close().unwrap();
        }
        self.store = self.place.open();
        self.disk = disk(&self.store);
        self.negotiated = self.disk.negotiate(self.accepted).unwrap_or_else(|_| self.disk.not_negotiated());
        self.space.write_back = self.oracle.features.is_none_or(|has| has.contains(Features::FLUSH));
        self.oracle.naive.restart();
    }

    /// All bytes that the store has, whether a driver can see them or not.
    pub(super) fn raw_bytes(&self) -> Vec<u8> {
        let len = usize::try_from(self.store.capacity_bytes()).unwrap();
        let mut lane = self.store.open_lane(EngineChoice::Sync).unwrap();
        lane.read(1, IoBuffer::owned(vec![0; len]), len, 0);
        let mut events = Vec::new();
        lane.wait(Some(MOMENT * MOMENTS), &mut events).unwrap();
        let Some(Event::Done { token: 1, buffer: Some(buffer), result: Ok(()) }) = events.pop() else {
            panic!("the store can't be read");
        };
        buffer.into_owned().unwrap()
    }

    /// Compares what the disk holds with the naive one.
    #[track_caller]
    pub(super) fn compare_disks(&self) {
        assert_eq!(self.disk.open_and_active(), self.oracle.naive.open_and_active(), "open and active zones");
        let (found, expected) = (self.raw_bytes(), self.oracle.naive.bytes());
        if found == expected {
            return;
        }
        if let Some(at) = found.iter().zip(&expected).position(|(found, expected)| found != expected) {
            panic!("the disk's byte {at:#x} is {:#x} and should be {:#x}", found[at], expected[at]);
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
            self.disk.close().unwrap();
        }
    }
}

impl Place {
    fn open(&self) -> Arc<dyn Store> {
        match self {
            Self::Ram(store) => Arc::clone(store),
            Self::Image(medium) => {
                Arc::new(ImageStore::open_on(Arc::clone(medium) as _, OpenOptions::default()).unwrap())
            }
        }
    }
}

fn disk(store: &Arc<dyn Store>) -> Arc<Disk> {
    let config = DiskConfig { queues: 1, block_len_bytes: 512, engine: EngineChoice::Sync };
    Disk::new(Arc::clone(store), config).unwrap()
}

/// What each zone is.
fn zones_of(geometry: &Geometry) -> Vec<(ZoneType, u32)> {
    let kind = |zone| match geometry.kind(zone) {
        ZoneKind::Conventional => ZoneType::Conventional,
        ZoneKind::SequentialRequired => ZoneType::SequentialRequired,
        ZoneKind::SequentialPreferred => ZoneType::SequentialPreferred,
    };
    (0..geometry.zone_count()).map(|zone| (kind(zone), geometry.zone_capacity_sectors(zone))).collect()
}

/// A disk of this shape, or one of zones of several kinds and capacities.
pub(crate) fn odd(mut shape: GeometryConfig, input: &mut Input<'_>) -> Geometry {
    let how = input.u8();
    let aware = how & 3 == 3;
    if how & 1 != 0 {
        (shape.max_open_zones, shape.max_active_zones) = (0, 0);
    }
    let granularity = shape.write_granularity_bytes / 512;
    let run = |input: &mut Input<'_>| {
        let zones = 1 + input.below(3);
        match input.below(4) {
            0 => ZoneRun::conventional(zones),
            1 if how & 1 != 0 => ZoneRun::preferred(zones, shape.zone_sectors),
            _ if aware => ZoneRun::preferred(zones, shape.zone_sectors),
            _ => ZoneRun::required(zones, (1 + input.below(shape.zone_sectors / granularity)) * granularity),
        }
    };
    let mut rest = u32::try_from(shape.capacity_sectors.div_ceil(shape.zone_sectors.into())).unwrap();
    let mut head = Vec::new();
    for _ in 0..input.below(4) {
        let run = run(input);
        if run.zones <= rest {
            rest -= run.zones;
            head.push(run);
        }
    }
    let cycle = (0..1 + input.below(3)).map(|_| run(input)).collect();
    let model = if aware { Model::HostAware } else { Model::HostManaged };
    Geometry::with_layout(shape, ZoneLayout { model, head, cycle }).unwrap()
}

/// Few small zones, each limit set or not, a runt or none, conventional zones or none.
pub(crate) fn shape(input: &mut Input<'_>) -> GeometryConfig {
    let block = 1 << input.below(4);
    let zone_blocks = 1 + input.below(12);
    let zones = 1 + input.below(7);
    let runt_blocks = input.below(zone_blocks);
    let zone_sectors = zone_blocks * block;
    let max_open_zones = input.below(5);
    let max_active_zones = match input.below(5) {
        0 => 0,
        active => active.max(max_open_zones),
    };
    GeometryConfig {
        capacity_sectors: u64::from(zones * zone_sectors + runt_blocks * block),
        zone_sectors,
        zone_capacity_sectors: (1 + input.below(2 * zone_blocks)).min(zone_blocks) * block,
        conventional_zones: input.below(4).min(zones),
        max_open_zones,
        max_active_zones,
        max_append_sectors: input.below(zone_blocks + 3) * block,
        write_granularity_bytes: block * 512,
    }
}
