//! The device as the driver meets it: a `Transport`, with the disk and the rings behind it, and what a test may change.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PhysAddr};
use virtio_zbd_spec::{BlkConfig, Features, Model, OutHeader, RequestType, Status};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::disk::{Disk, Shape};
use super::reply::{Logged, Reply, Request, honest};
use super::ring::{Chain, Ring};

/// The driver's end. Made by [`FakeDevice::transport`].
#[derive(Debug)]
pub struct FakeTransport(FakeDevice);

impl FakeTransport {
    /// The device, for a wait that makes it go on.
    pub fn device(&self) -> &FakeDevice {
        &self.0
    }
}

/// The test's end: looks into the device and makes it lie. Clones are the same device.
#[derive(Clone)]
pub struct FakeDevice(Arc<Mutex<Inner>>);

/// What can be seen of the device from outside, and changed by a lie.
pub struct Face {
    /// What it is, for the transport.
    pub device_type: DeviceType,
    /// What it offers.
    pub offered: u64,
    /// FEATURES_OK never stands.
    pub refuses_features: bool,
    /// The configuration space. `None`: there is none.
    pub config: Option<Vec<u8>>,
    /// How the generation moves.
    pub generation: Generation,
    /// Called before each read of the configuration space, with the number of reads so far.
    pub on_config_read: Option<ConfigHook>,
    /// The sizes of its queues. What is beyond them has size 0.
    pub queue_sizes: Vec<u32>,
    /// The device status.
    pub status: DeviceStatus,
    /// What a reset leaves of the status.
    pub status_after_reset: DeviceStatus,
    /// Pending interrupts.
    pub interrupts: InterruptStatus,
    /// Finished requests wait for [`FakeDevice::deliver`].
    pub holds_answers: bool,
    /// Notifications are not wanted, and not heard.
    pub deaf: bool,
    /// Whether the driver is held to what is offered.
    pub checks_features: bool,
    /// Whether the driver is held to SIZE_MAX and SEG_MAX. Not where they change under it.
    pub checks_limits: bool,
    /// The disk behind it.
    pub disk: Disk,
}

/// See [`Face::on_config_read`].
pub type ConfigHook = Box<dyn FnMut(u64, &mut ConfigView<'_>) + Send>;

/// The part of a [`Face`] that a hook may change.
pub struct ConfigView<'a> {
    /// How far the driver is.
    pub status: DeviceStatus,
    /// The configuration space.
    pub config: &'a mut Vec<u8>,
    /// Its generation.
    pub generation: &'a mut Generation,
}

/// How the generation of the configuration space moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// It stays.
    Steady(u32),
    /// Another one at each look.
    Restless(u32),
    /// Another one at each of the next looks, then it stays.
    RestlessFor(u32, u32),
}

type Lie = Box<dyn FnMut(&Request, &mut Reply, &mut Face) + Send>;

struct Inner {
    face: Face,
    accepted: Option<Features>,
    /// What the driver has set the status to, since the beginning.
    statuses: Vec<DeviceStatus>,
    config_reads: u64,
    queues: Vec<Option<Ring>>,
    notified: Vec<u64>,
    held: Vec<Held>,
    /// See [`FakeDevice::lose_track`].
    lost: bool,
    lies: Vec<Lie>,
    log: Vec<Logged>,
}

struct Held {
    queue: u16,
    chain: Chain,
    /// `None` once it was answered: a lie may answer with the id of a chain that stays.
    reply: Option<Reply>,
}

impl FakeDevice {
    /// An honest device of this shape.
    pub fn new(shape: Shape) -> Self {
        let config = shape.config().as_bytes().to_vec();
        let queues = usize::from(shape.queues.unwrap_or(1));
        let face = Face {
            device_type: DeviceType::Block,
            offered: shape.features().bits(),
            refuses_features: false,
            config: Some(config),
            generation: Generation::Steady(0),
            on_config_read: None,
            queue_sizes: vec![shape.queue_size.into(); queues],
            status: DeviceStatus::empty(),
            status_after_reset: DeviceStatus::empty(),
            interrupts: InterruptStatus::empty(),
            holds_answers: false,
            deaf: false,
            checks_features: true,
            checks_limits: true,
            disk: Disk::new(shape),
        };
        Self(Arc::new(Mutex::new(Inner {
            face,
            accepted: None,
            statuses: Vec::new(),
            config_reads: 0,
            queues: Vec::new(),
            notified: vec![0; queues],
            held: Vec::new(),
            lost: false,
            lies: Vec::new(),
            log: Vec::new(),
        })))
    }

    /// The driver's end of it.
    pub fn transport(&self) -> FakeTransport {
        FakeTransport(self.clone())
    }

    /// From now on each answer goes through `lie` before it is given.
    pub fn lie(&self, lie: impl FnMut(&Request, &mut Reply, &mut Face) + Send + 'static) {
        self.inner().lies.push(Box::new(lie));
    }

    /// As [`Self::lie`], for requests of one type.
    pub fn lie_to(&self, kind: RequestType, mut lie: impl FnMut(&Request, &mut Reply) + Send + 'static) {
        self.lie(move |request, reply, _| {
            if request.is(kind) {
                lie(request, reply);
            }
        });
    }

    /// From now on it is honest. Chains that it never answered stay with it.
    pub fn be_honest(&self) {
        self.inner().lies.clear();
    }

    /// Looks at, or changes, what can be seen.
    pub fn face<R>(&self, with: impl FnOnce(&mut Face) -> R) -> R {
        with(&mut self.inner().face)
    }

    /// Changes the configuration space in place, without telling anybody.
    pub fn set_config(&self, change: impl FnOnce(&mut BlkConfig)) {
        self.face(|face| face.set_config(change));
    }

    /// Looks at the disk.
    pub fn disk<R>(&self, with: impl FnOnce(&mut Disk) -> R) -> R {
        self.face(|face| with(&mut face.disk))
    }

    /// Tells the driver that the configuration has changed.
    pub fn config_interrupt(&self) {
        self.face(|face| {
            face.interrupts |= InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT;
            face.generation = match face.generation {
                Generation::Steady(generation) => Generation::Steady(generation.wrapping_add(1)),
                restless => restless,
            };
        });
    }

    /// The features that the driver has taken.
    pub fn accepted(&self) -> Option<Features> {
        self.inner().accepted
    }

    /// The statuses that the driver has set, in order, since the beginning.
    pub fn statuses(&self) -> Vec<DeviceStatus> {
        self.inner().statuses.clone()
    }

    /// How often the configuration space was read.
    pub fn config_reads(&self) -> u64 {
        self.inner().config_reads
    }

    /// How often a queue was notified.
    pub fn notified(&self, queue: u16) -> u64 {
        self.inner().notified.get(usize::from(queue)).copied().unwrap_or(0)
    }

    /// How many queues are set up, and their sizes.
    pub fn ring_sizes(&self) -> Vec<u16> {
        self.inner().queues.iter().flatten().map(Ring::size).collect()
    }

    /// The requests that were done since the last call.
    pub fn take_log(&self) -> Vec<Logged> {
        std::mem::take(&mut self.inner().log)
    }

    /// How many chains the device has in its hands, on all queues.
    pub fn held(&self) -> usize {
        self.inner().held.len()
    }

    /// How many of a queue's finished requests wait to be delivered.
    pub fn waiting(&self, queue: u16) -> usize {
        self.inner().held.iter().filter(|held| held.queue == queue && held.reply.is_some()).count()
    }

    /// Delivers the `index`-th of a queue's finished requests.
    pub fn deliver(&self, queue: u16, index: usize) {
        self.inner().deliver(queue, index);
    }

    /// Looks at a queue's ring without having been notified.
    pub fn poll(&self, queue: u16) {
        self.inner().serve(queue);
    }

    /// From now on the device reads and writes no chain, and only the used ring tells of them. After a lie about ids one can't know which
    /// chains the driver takes for its own, and when.
    pub fn lose_track(&self) {
        let inner = &mut *self.inner();
        inner.lost = true;
        for held in &mut inner.held {
            held.chain.let_go();
        }
    }

    /// Says that a chain is used, whatever was done to it.
    pub fn used(&self, queue: u16, id: u32, len: u32) {
        self.inner().used(queue, id, len);
    }

    /// Moves a queue's used index over elements that were not written.
    pub fn jump(&self, queue: u16, by: u16) {
        self.inner().jump(queue, by);
    }

    /// Changes a queue's ring by hand.
    pub fn ring<R>(&self, queue: u16, with: impl FnOnce(&mut Ring) -> R) -> R {
        with(self.inner().ring(queue))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic while the device works is already failing the test; the driver's drop still comes by.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for FakeDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeDevice")
    }
}

impl Face {
    /// Changes the configuration space in place.
    pub fn set_config(&mut self, change: impl FnOnce(&mut BlkConfig)) {
        let bytes = self.config.as_mut().expect("a configuration space");
        let mut config = BlkConfig::read_from_bytes(bytes).expect("96 bytes");
        change(&mut config);
        bytes.copy_from_slice(config.as_bytes());
    }

    fn model_is_host_managed(&self) -> bool {
        let model = self.config.as_ref().and_then(|config| config.get(92));
        self.offered & Features::ZONED.bits() != 0 && model == Some(&u8::from(Model::HostManaged))
    }
}

impl Generation {
    fn look(&mut self) -> u32 {
        match self {
            Self::Steady(generation) => *generation,
            Self::Restless(generation) => {
                *generation = generation.wrapping_add(1);
                *generation
            }
            Self::RestlessFor(0, generation) => *generation,
            Self::RestlessFor(looks, generation) => {
                *looks -= 1;
                *generation = generation.wrapping_add(1);
                *generation
            }
        }
    }
}

impl Inner {
    fn set_status(&mut self, status: DeviceStatus) {
        self.statuses.push(status);
        if status.is_empty() {
            self.reset();
            return;
        }
        let had = self.face.status;
        let lost = had - status - DeviceStatus::DEVICE_NEEDS_RESET;
        assert!(lost.is_empty(), "the driver clears {lost:?} without a reset (2.1.1)");
        let mut now = status | (had & DeviceStatus::DEVICE_NEEDS_RESET);
        if (status - had).contains(DeviceStatus::FEATURES_OK) {
            let accepted = self.accepted.expect("FEATURES_OK comes after the features");
            let hm_refused = self.face.model_is_host_managed() && !accepted.contains(Features::ZONED); // V4
            if self.face.refuses_features || hm_refused {
                now -= DeviceStatus::FEATURES_OK;
            }
        }
        if (status - had).contains(DeviceStatus::DRIVER_OK) {
            assert!(
                had.contains(DeviceStatus::FEATURES_OK),
                "DRIVER_OK where FEATURES_OK does not stand (R4)"
            );
        }
        self.face.status = now;
    }

    fn reset(&mut self) {
        for mut held in self.held.drain(..) {
            held.chain.let_go();
        }
        self.lost = false;
        for ring in self.queues.drain(..).flatten() {
            ring.let_go();
        }
        self.accepted = None;
        self.face.status = self.face.status_after_reset;
        self.face.interrupts = InterruptStatus::empty();
    }

    fn has(&self, feature: Features) -> bool {
        self.accepted.is_some_and(|accepted| accepted.contains(feature))
    }

    fn notify(&mut self, queue: u16) {
        assert!(
            self.face.status.contains(DeviceStatus::DRIVER_OK),
            "a notification before DRIVER_OK (3.1.1): {:?}",
            self.face.status
        );
        *self.notified.get_mut(usize::from(queue)).expect("a queue that there is") += 1;
        if !self.face.deaf {
            self.serve(queue);
        }
    }

    /// Does all that is in the ring.
    fn serve(&mut self, queue: u16) {
        let (indirect, lost) = (self.has(Features::INDIRECT_DESC), self.lost);
        while let Some(ring) = self.queues.get_mut(usize::from(queue)).and_then(Option::as_mut)
            && let Some(chain) = if lost { ring.pop_blindly() } else { ring.pop(indirect) }
        {
            if lost {
                let used = vec![(chain.head.into(), 0)];
                let reply = Reply { data: Vec::new(), in_header: Vec::new(), used, idx_jump: 0 };
                self.held.push(Held { queue, chain, reply: Some(reply) });
            } else {
                self.execute(queue, chain);
            }
            if !self.face.holds_answers {
                self.deliver_all(queue);
            }
        }
    }

    fn execute(&mut self, queue: u16, chain: Chain) {
        let readable = chain.read();
        let (header, data) = OutHeader::read_from_prefix(&readable).expect("a whole header");
        let request = Request {
            queue,
            head: chain.head,
            kind: header.request_type.get(),
            sector: header.sector.get(),
            data: data.to_vec(),
            writable_len: chain.writable_len(),
            writable: chain.writable.clone(),
        };
        assert_eq!(header.reserved.get(), 0, "the header's reserved field");
        assert!(self.face.status.contains(DeviceStatus::DRIVER_OK), "a request before DRIVER_OK");
        if self.face.checks_limits {
            self.check_limits(&chain);
        }
        let zoned = self.has(Features::ZONED);
        let answer =
            self.face.disk.request(request.kind, request.sector, &request.data, request.room(), zoned);
        self.log.push(Logged {
            queue,
            kind: request.kind,
            sector: request.sector,
            readable: chain.readable.iter().map(|piece| piece.len).collect(),
            writable: chain.writable.iter().map(|piece| piece.len).collect(),
            status: answer.status,
        });
        let mut reply = honest(&request, answer);
        for lie in &mut self.lies {
            lie(&request, &mut reply, &mut self.face);
        }
        self.held.push(Held { queue, chain, reply: Some(reply) });
    }

    /// The driver keeps to SIZE_MAX and SEG_MAX: data pieces, the header and the in-header not counted.
    fn check_limits(&self, chain: &Chain) {
        let config = self.face.config.as_ref().and_then(|config| BlkConfig::read_from_prefix(config).ok());
        let Some((config, _)) = config else { return };
        let data = chain.readable.iter().skip(1).chain(chain.writable.iter().rev().skip(1));
        let (mut count, mut longest) = (0, 0);
        for piece in data {
            count += 1;
            longest = longest.max(piece.len);
        }
        let (size_max, seg_max) = (config.size_max.get() as usize, config.seg_max.get() as usize);
        if self.has(Features::SIZE_MAX) && size_max != 0 {
            assert!(longest <= size_max, "a segment of {longest} bytes, SIZE_MAX is {size_max}");
        }
        if self.has(Features::SEG_MAX) && seg_max != 0 {
            assert!(count <= seg_max, "{count} segments, SEG_MAX is {seg_max}");
        }
    }

    fn deliver_all(&mut self, queue: u16) {
        while self.held.iter().any(|held| held.queue == queue && held.reply.is_some()) {
            self.deliver(queue, 0);
        }
    }

    fn deliver(&mut self, queue: u16, index: usize) {
        let mut waiting = self.held.iter_mut().filter(|held| held.queue == queue && held.reply.is_some());
        let held = waiting.nth(index).expect("a finished request");
        let reply = held.reply.take().expect("its answer");
        if !self.lost {
            held.chain.write(0, &reply.data);
            let end = held.chain.writable_len();
            held.chain.write(end - reply.in_header.len(), &reply.in_header);
        }
        for &(id, len) in &reply.used {
            self.used(queue, id, len);
        }
        self.jump(queue, reply.idx_jump);
    }

    fn used(&mut self, queue: u16, id: u32, len: u32) {
        self.let_go(queue, id);
        if self.ring(queue).push(id, len) {
            self.face.interrupts |= InterruptStatus::QUEUE_INTERRUPT;
        }
    }

    /// Moves the used index over elements that were not written.
    fn jump(&mut self, queue: u16, by: u16) {
        for ahead in 0..by.min(self.ring(queue).size()) {
            let id = self.ring(queue).id_ahead(ahead);
            self.let_go(queue, id);
        }
        if by != 0 {
            self.ring(queue).advance(by);
        }
    }

    /// As the driver sees it, the chain of this id is its own again.
    fn let_go(&mut self, queue: u16, id: u32) {
        let given = |held: &Held| held.queue == queue && u32::from(held.chain.head) == id;
        if let Some(index) = self.held.iter().position(given) {
            self.held.remove(index).chain.let_go();
        }
    }

    fn ring(&mut self, queue: u16) -> &mut Ring {
        self.queues.get_mut(usize::from(queue)).and_then(Option::as_mut).expect("a queue that is set up")
    }
}

impl Transport for FakeTransport {
    fn device_type(&self) -> DeviceType {
        self.0.face(|face| face.device_type)
    }

    fn read_device_features(&mut self) -> u64 {
        self.0.face(|face| face.offered)
    }

    fn write_driver_features(&mut self, features: u64) {
        let mut inner = self.0.inner();
        let not_offered = features & !inner.face.offered;
        assert!(
            not_offered == 0 || !inner.face.checks_features,
            "the driver takes features that are not offered: {not_offered:#x}"
        );
        assert!(!inner.face.status.contains(DeviceStatus::FEATURES_OK), "features after FEATURES_OK");
        inner.accepted = Some(Features::from_bits_retain(features));
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.0.face(|face| face.queue_sizes.get(usize::from(queue)).copied().unwrap_or(0))
    }

    fn notify(&mut self, queue: u16) {
        self.0.inner().notify(queue);
    }

    fn get_status(&self) -> DeviceStatus {
        self.0.face(|face| face.status)
    }

    fn set_status(&mut self, status: DeviceStatus) {
        if thread::panicking() {
            return;
        }
        self.0.inner().set_status(status);
    }

    fn set_guest_page_size(&mut self, _guest_page_size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        let mut inner = self.0.inner();
        let status = inner.face.status;
        assert!(status.contains(DeviceStatus::FEATURES_OK), "a queue before FEATURES_OK");
        assert!(!status.contains(DeviceStatus::DRIVER_OK), "a queue after DRIVER_OK");
        let most = inner.face.queue_sizes.get(usize::from(queue)).copied().unwrap_or(0);
        assert!(size.is_power_of_two() && size <= most, "queue {queue} of {size} entries, {most} at most");
        assert!(
            descriptors.is_multiple_of(16) && driver_area.is_multiple_of(2) && device_area.is_multiple_of(4)
        );
        let index = usize::from(queue);
        if inner.queues.len() <= index {
            inner.queues.resize_with(index + 1, || None);
            let notified = inner.notified.len().max(index + 1);
            inner.notified.resize(notified, 0);
        }
        assert!(inner.queues[index].is_none(), "queue {queue} is set up twice");
        let size = u16::try_from(size).expect("a queue size");
        let event_idx = inner.has(Features::EVENT_IDX);
        inner.queues[index] = Some(Ring::new(size, descriptors, driver_area, device_area, event_idx));
    }

    // As virtio-pci, where a queue that was set up stays until the device is reset.
    fn queue_unset(&mut self, _queue: u16) {}

    fn queue_used(&mut self, queue: u16) -> bool {
        self.0.inner().queues.get(usize::from(queue)).is_some_and(Option::is_some)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.0.face(|face| std::mem::take(&mut face.interrupts))
    }

    fn read_config_generation(&self) -> u32 {
        self.0.face(|face| face.generation.look())
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        let len = size_of::<T>();
        assert_access::<T>(offset);
        let inner = &mut *self.0.inner();
        let config = inner.face.config.as_mut().ok_or(Error::ConfigSpaceMissing)?;
        inner.config_reads += 1;
        if let Some(hook) = &mut inner.face.on_config_read {
            let (status, generation) = (inner.face.status, &mut inner.face.generation);
            hook(inner.config_reads, &mut ConfigView { status, config, generation });
        }
        let bytes = config.get(offset..offset + len).ok_or(Error::ConfigSpaceTooSmall)?;
        Ok(T::read_from_bytes(bytes).expect("as many bytes as it is long"))
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Result<(), Error> {
        assert_access::<T>(offset);
        let inner = &mut *self.0.inner();
        let config = inner.face.config.as_mut().ok_or(Error::ConfigSpaceMissing)?;
        assert_eq!((offset, size_of::<T>()), (32, 1), "only `writeback` may be written");
        *config.get_mut(offset).ok_or(Error::ConfigSpaceTooSmall)? = value.as_bytes()[0];
        Ok(())
    }
}

/// Real transports take accesses as wide as a field, 32 bits at most, where they are aligned (4.1.3.1, 4.2.2.2).
fn assert_access<T>(offset: usize) {
    assert!([1, 2, 4].contains(&size_of::<T>()), "an access of {} bytes", size_of::<T>());
    assert!(align_of::<T>() <= 4 && offset.is_multiple_of(size_of::<T>()), "an access at {offset}");
}
