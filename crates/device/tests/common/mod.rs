//! A disk with its queues running in this process, and what can be seen of it.

#![allow(dead_code, unused_imports, unused_macros, reason = "each test program uses a part of it")]

mod attack;
mod faulty;
mod gate;
pub(crate) mod mortal;
mod probe;
mod seen;
mod store;

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use virtio_zbd_device::{Disk, DiskConfig, Negotiated, QueueConfig, RingConfig, StartError};
use virtio_zbd_spec::{BlkConfig, Features, Status, ZoneState};
use virtio_zbd_store::{EngineChoice, RamStore, Store};
use virtio_zbd_testkit::{Completion, GuestRam, InProcess, Queue, QueueOptions, Request, UNTOUCHED};
use virtio_zbd_zones::{Geometry, GeometryConfig};
use zerocopy::{FromZeros, IntoBytes};

pub(crate) use attack::{Outcome, attack, memory, wait_used};
pub(crate) use faulty::{Call, FaultyMedium};
pub(crate) use gate::Gate;
pub(crate) use probe::{CommitSeen, Probe};
pub(crate) use seen::{DiskState, Zone, assert_same_bytes, blocks, raw_bytes, sectors};
pub(crate) use store::{Backing, Place};

/// Length of a sector in bytes.
pub(crate) const SECTOR: usize = 512;

/// The zoned disk of most tests: two conventional zones, six sequential ones of which the last quarter can't be written,
/// and a runt of half a zone. Blocks of eight sectors.
pub(crate) const SHAPE: GeometryConfig = GeometryConfig {
    capacity_sectors: 8 * 128 + 64,
    zone_sectors: 128,
    zone_capacity_sectors: 96,
    conventional_zones: 2,
    max_open_zones: 3,
    max_active_zones: 4,
    max_append_sectors: 32,
    write_granularity_bytes: 4096,
};

/// The same with zones that are no power of two long.
pub(crate) const ODD_SHAPE: GeometryConfig =
    GeometryConfig { capacity_sectors: 8 * 120 + 40, zone_sectors: 120, zone_capacity_sectors: 88, ..SHAPE };

/// First sector of a zone of [`SHAPE`].
pub(crate) fn start_of(zone: u64) -> u64 {
    zone * u64::from(SHAPE.zone_sectors)
}

/// How a disk is used.
pub(crate) struct How {
    /// How many queues are started.
    pub(crate) queues: u16,
    /// Features that are offered but not accepted.
    pub(crate) without: Features,
    /// What the queues are like.
    pub(crate) options: QueueOptions,
    /// How the workers do their I/O.
    pub(crate) engine: EngineChoice,
    /// Length of guest memory in bytes.
    pub(crate) ram_len: usize,
    /// Length of a hole in guest memory, between two regions of that length (0: they touch). `None`: one region.
    pub(crate) ram_hole: Option<usize>,
}

impl Default for How {
    fn default() -> Self {
        Self {
            queues: 1,
            without: Features::empty(),
            options: QueueOptions::default(),
            engine: EngineChoice::Auto,
            ram_len: 4 << 20,
            ram_hole: None,
        }
    }
}

/// A disk, a guest's memory and running queues. Stops the queues when dropped.
pub(crate) struct Rig {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) disk: Arc<Disk>,
    pub(crate) negotiated: Arc<Negotiated>,
    pub(crate) ram: GuestRam,
    pub(crate) queues: Vec<Served>,
    accepted: u64,
    engine: EngineChoice,
    /// Where a file lies, until the rig is gone.
    place: Option<Place>,
}

/// A queue, its driver's side and its worker.
pub(crate) struct Served {
    pub(crate) queue: Queue,
    index: u16,
    worker: Option<virtio_zbd_device::Queue>,
    /// Where the last worker has stopped.
    next_avail: u16,
    broken: Arc<AtomicUsize>,
}

impl Rig {
    /// A zoned disk with one queue.
    #[track_caller]
    pub(crate) fn zoned(on: Backing, shape: GeometryConfig) -> Self {
        Self::zoned_with(on, shape, How::default())
    }

    /// A zoned disk, used as `how` says.
    #[track_caller]
    pub(crate) fn zoned_with(on: Backing, shape: GeometryConfig, how: How) -> Self {
        Self::of(on, Geometry::new(shape).unwrap(), how)
    }

    /// A disk of any geometry, used as `how` says.
    #[track_caller]
    pub(crate) fn of(on: Backing, geometry: Geometry, how: How) -> Self {
        let (store, place) = on.of(geometry);
        let mut rig = Self::over(store, How { engine: on.engine(), ..how });
        rig.place = place;
        rig
    }

    /// A plain disk with one queue.
    #[track_caller]
    pub(crate) fn plain(on: Backing, len_bytes: u64) -> Self {
        Self::plain_with(on, len_bytes, How::default())
    }

    /// A plain disk, used as `how` says.
    #[track_caller]
    pub(crate) fn plain_with(on: Backing, len_bytes: u64, how: How) -> Self {
        let (store, place) = on.plain(len_bytes);
        let mut rig = Self::over(store, How { engine: on.engine(), ..how });
        rig.place = place;
        rig
    }

    /// A disk over any store, used as `how` says.
    #[track_caller]
    pub(crate) fn over(store: Arc<dyn Store>, how: How) -> Self {
        let disk = disk_over(&store, &how);
        let accepted = disk.features() & !how.without.bits();
        let negotiated = disk.negotiate(accepted).expect("these features are enough");
        Self::with(store, disk, negotiated, &how)
    }

    /// A disk whose driver has not accepted any features, with its queues running all the same.
    #[track_caller]
    pub(crate) fn never_negotiated(store: Arc<dyn Store>) -> Self {
        let how = How::default();
        let disk = disk_over(&store, &how);
        let negotiated = disk.not_negotiated();
        Self::with(store, disk, negotiated, &how)
    }

    fn with(store: Arc<dyn Store>, disk: Arc<Disk>, negotiated: Arc<Negotiated>, how: &How) -> Self {
        let ram = match how.ram_hole {
            None => GuestRam::new(how.ram_len),
            Some(hole) => GuestRam::with_hole(how.ram_len, hole),
        };
        let accepted = disk.features() & !how.without.bits();
        let mut rig = Self {
            store,
            disk,
            negotiated,
            ram,
            queues: Vec::new(),
            accepted,
            engine: how.engine,
            place: None,
        };
        for index in 0..how.queues {
            let queue = Queue::new(&rig.ram, &how.options).unwrap();
            let next_avail = queue.ring.base();
            let mut served = Served { queue, index, worker: None, next_avail, broken: Arc::default() };
            served.start(&rig.disk, &rig.negotiated);
            rig.queues.push(served);
        }
        rig
    }

    /// Stops all queues, closes the disk and makes a new one over the same store, as a restart of the program does.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        self.stop_all();
        let config = DiskConfig {
            queues: self.disk.queue_count(),
            block_len_bytes: self.config().blk_size.get(),
            engine: self.engine,
        };
        if let Some(place) = &self.place {
            self.disk.close().unwrap();
            // A file is locked for as long as anybody has its store: all who have it get another one.
            self.store = Arc::new(RamStore::plain(512).unwrap());
            self.disk = Disk::new(Arc::clone(&self.store), config).unwrap();
            self.store = place.open();
        }
        self.disk = Disk::new(Arc::clone(&self.store), config).unwrap();
        self.negotiated = self.disk.negotiate(self.accepted).unwrap();
        for served in &mut self.queues {
            served.start(&self.disk, &self.negotiated);
        }
    }

    /// Stops all queues.
    pub(crate) fn stop_all(&mut self) {
        for served in &mut self.queues {
            served.stop();
        }
    }

    /// The driver's side of the first queue.
    pub(crate) fn queue(&mut self) -> &mut Queue {
        &mut self.queues[0].queue
    }

    /// Makes a request on the first queue and waits for its end.
    #[track_caller]
    pub(crate) fn call(&mut self, request: Request) -> Completion {
        self.queue().call(request).unwrap()
    }

    /// Makes a request that must be refused with `status`, without a trace: nothing moved, nothing written, on the disk or in the
    /// request's data.
    #[track_caller]
    pub(crate) fn refuse(&mut self, request: Request, status: Status) {
        let before = self.state();
        self.refuse_quickly(request, status);
        before.assert_same(&self.state());
    }

    /// As [`Self::refuse`], without a look at the disk.
    #[track_caller]
    pub(crate) fn refuse_quickly(&mut self, request: Request, status: Status) {
        let (in_data_len, in_header_len) = (request.in_data_len, request.in_header_len);
        let done = self.call(request).expect(status);
        assert!(done.data.iter().all(|&byte| byte == UNTOUCHED), "data was written by a refused request");
        // What is counted has no hole: behind data that was left alone, nothing counts.
        let written = if in_data_len == 0 { in_header_len } else { 0 };
        assert_eq!(done.used_len as usize, written, "used length");
    }

    /// Makes a request that must end well; what it wrote must be all that it may write.
    #[track_caller]
    pub(crate) fn accept(&mut self, request: Request) -> Completion {
        let written = request.in_data_len + request.in_header_len;
        let done = self.call(request).expect(Status::Ok);
        assert_eq!(done.used_len as usize, written, "used length");
        done
    }

    /// Reads `sectors` from `sector` on.
    #[track_caller]
    pub(crate) fn read(&mut self, sector: u64, sectors: usize) -> Vec<u8> {
        self.accept(Request::read(sector, sectors * SECTOR)).data
    }

    /// Appends to the zone that starts at `zone_start`. Returns where the data went.
    #[track_caller]
    pub(crate) fn append(&mut self, zone_start: u64, data: &[u8]) -> u64 {
        self.accept(Request::zone_append(zone_start, data)).append_sector.unwrap()
    }

    /// All that a driver can see of zones, and all bytes that the store has, whether a driver can see them or not.
    #[track_caller]
    pub(crate) fn state(&mut self) -> DiskState {
        let is_zoned = self.accepted & Features::ZONED.bits() != 0;
        let zones = match self.store.geometry() {
            Some(_) if is_zoned => {
                let config = self.config();
                self.queue().zone_report_all(&config).unwrap()
            }
            _ => Vec::new(),
        };
        let bytes = raw_bytes(&*self.store);
        DiskState { zones, bytes, open_and_active: self.disk.open_and_active() }
    }

    /// Brings an empty zone of [`SHAPE`] into a condition with nothing, or one block, written.
    #[track_caller]
    pub(crate) fn bring(&mut self, zone: u64, to: ZoneState, written: bool) {
        let start = start_of(zone);
        if to == ZoneState::ExplicitOpen {
            self.accept(Request::zone_open(start));
        }
        if written {
            self.accept(Request::write(start, &blocks(zone, 1)));
        }
        match to {
            ZoneState::Closed => drop(self.accept(Request::zone_close(start))),
            ZoneState::Full => drop(self.accept(Request::zone_finish(start))),
            _ => {}
        }
        let block_sectors = u64::from(SHAPE.write_granularity_bytes) / 512;
        let wp = match to {
            ZoneState::Full => SHAPE.zone_sectors.into(),
            _ => block_sectors * u64::from(written),
        };
        assert_eq!(self.zone(zone), Zone(to, wp), "zone {zone} is brought into its condition");
    }

    /// A zone's condition and where its write pointer is from its start.
    #[track_caller]
    pub(crate) fn zone(&mut self, zone: u64) -> Zone {
        let start = zone * u64::from(self.store.geometry().unwrap().config().zone_sectors);
        let report = self.accept(Request::zone_report(start, 128)).zones().unwrap();
        Zone::new(&report[0])
    }

    /// The configuration space.
    pub(crate) fn config(&self) -> BlkConfig {
        let mut config = BlkConfig::new_zeroed();
        self.disk.read_config(&self.negotiated, 0, config.as_mut_bytes());
        config
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if thread::panicking() {
            // A worker that hangs must not keep the failed test from saying so.
            self.queues.iter_mut().for_each(|served| mem::forget(served.worker.take()));
        } else {
            self.stop_all();
        }
    }
}

impl Served {
    /// Starts the queue's worker where the last one has stopped.
    #[track_caller]
    pub(crate) fn start(&mut self, disk: &Arc<Disk>, negotiated: &Arc<Negotiated>) {
        assert!(self.worker.is_none(), "the queue is running");
        let here = self.queue.in_process().unwrap();
        let ring = RingConfig { next_avail: self.next_avail, ..ring_config(&here) };
        let broken = Arc::clone(&self.broken);
        let started = start_queue(disk, negotiated, self.index, ring, here, move || {
            broken.fetch_add(1, Ordering::SeqCst);
        });
        self.worker = Some(started.unwrap());
    }

    /// Stops the worker, if there is one. Returns the index of the next entry of the available ring.
    #[track_caller]
    pub(crate) fn stop(&mut self) -> Option<u16> {
        let worker = self.worker.take()?;
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || sender.send(worker.stop()));
        let next_avail = receiver.recv_timeout(Duration::from_secs(30));
        self.next_avail = next_avail.expect("the worker does not stop");
        Some(self.next_avail)
    }

    /// Where the last worker has stopped.
    pub(crate) fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// Counts from nothing again.
    pub(crate) fn forget_broken(&self) {
        self.broken.store(0, Ordering::SeqCst);
    }

    /// How often the worker has given the queue up.
    pub(crate) fn broken(&self) -> usize {
        self.broken.load(Ordering::SeqCst)
    }
}

/// Where the ring is, as the device wants to hear it.
pub(crate) fn ring_config(queue: &InProcess) -> RingConfig {
    RingConfig {
        size: queue.size,
        descriptor_table: queue.desc_table,
        avail_ring: queue.avail_ring,
        used_ring: queue.used_ring,
        next_avail: queue.base,
        event_idx: queue.event_idx,
    }
}

/// Starts a queue whose ring is where `ring` says.
pub(crate) fn start_queue(
    disk: &Arc<Disk>,
    negotiated: &Arc<Negotiated>,
    index: u16,
    ring: RingConfig,
    queue: InProcess,
    broken: impl Fn() + Send + 'static,
) -> Result<virtio_zbd_device::Queue, StartError> {
    let InProcess { memory, kick, call, .. } = queue;
    let call = Box::new(move || {
        // A full counter is a call, too.
        let _ = rustix::io::write(&call, &1u64.to_ne_bytes());
    });
    let config = QueueConfig { memory, ring, kick, call, broken: Box::new(broken), inflight: None };
    disk.start_queue(index, Arc::clone(negotiated), config)
}

#[track_caller]
fn disk_over(store: &Arc<dyn Store>, how: &How) -> Arc<Disk> {
    let config = DiskConfig { queues: how.queues, block_len_bytes: 512, engine: how.engine };
    Disk::new(Arc::clone(store), config).unwrap()
}

/// Runs each test on every store and engine: the test takes the [`Backing`].
macro_rules! on_every_store {
    ($($name:ident),* $(,)?) => {
        crate::common::on_every_store! { @ ram Ram $($name)* }
        crate::common::on_every_store! { @ file_io_uring FileIoUring $($name)* }
        crate::common::on_every_store! { @ file_sync FileSync $($name)* }
    };
    (@ $module:ident $backing:ident $($name:ident)*) => {
        mod $module {
            $(#[test] fn $name() { super::$name(crate::common::Backing::$backing); })*
        }
    };
}
pub(crate) use on_every_store;
