//! What a connection has agreed on, and what each request does to it.
//!
//! This is the protocol without its socket: a [`Request`] comes in, an [`Answer`] or a [`Fault`] goes out.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_zbd_mapguard::Alarm;
use vm_memory::{Address, Bytes, GuestAddress};

use crate::backend::FeaturesRefused;
use crate::fault::Fault;
use crate::inflight::{Inflight, InflightQueue, RingState};
use crate::memory::MemoryTable;
use crate::message::{
    CONFIG_BYTES_MAX, ConfigHead, FEATURE_PROTOCOL_FEATURES, FEATURES_NEVER_OFFERED, InflightRegion,
    MEMORY_SLOTS_MAX, ProtocolFeatures, STATUS_FEATURES_OK, VringAddr, VringState,
};
use crate::notifier::{NotAnEvent, event_kind, set_nonblocking};
use crate::request::{Request, VringFd};
use crate::ring::{Areas, Place, Ring};
use crate::{Backend, FrontendNotifier, Notifier, Session, Vring};

/// The state of a connection.
pub(crate) struct State<B: Backend> {
    session: B::Session,
    frontend: FrontendNotifier,
    /// The virtio features on offer, with bit 30.
    offered: u64,
    queue_size_max: u16,
    /// The protocol features on offer.
    served: ProtocolFeatures,
    protocol: ProtocolFeatures,
    /// What SET_FEATURES said last, with bit 30.
    acked: Option<u64>,
    driver: Driver,
    status: u8,
    memory: MemoryTable,
    /// The buffer for requests under way that the front-end keeps, once it has shown it.
    inflight: Option<Inflight>,
    /// Raised when memory that the front-end shares is lost.
    alarm: Alarm,
    rings: Vec<Ring<<B::Session as Session>::Queue>>,
}

/// What a driver has said of virtio features, and what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Driver {
    /// None has spoken: a front-end sends SET_FEATURES with only bit 30 when it comes up.
    Silent,
    Accepted(u64),
    Refused(u64),
}

/// What a front-end is answered when its request was done.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Zero, if it asked for a reply at all.
    Done,
    U64(u64),
    Vring(VringState),
    Config(ConfigHead, Vec<u8>),
    /// A new buffer for requests under way; and how much of the description to send.
    Inflight(InflightRegion, usize, OwnedFd),
    /// GET_CONFIG failed: a reply without payload.
    NoConfig,
}

impl<B: Backend> State<B> {
    /// A front-end has connected. `alarm` is raised when memory that it shares is lost.
    pub(crate) fn new(backend: &B, alarm: Alarm) -> Self {
        let frontend = FrontendNotifier::default();
        // The messages that give a queue its file descriptors have eight bits for its index.
        let queue_count = backend.queue_count().min(256);
        let mut served = ProtocolFeatures::all();
        served.set(ProtocolFeatures::INFLIGHT_SHMFD, backend.keeps_inflight());
        Self {
            session: backend.connect(frontend.clone()),
            frontend,
            offered: backend.features() & !FEATURES_NEVER_OFFERED | FEATURE_PROTOCOL_FEATURES,
            queue_size_max: backend.queue_size_max(),
            served,
            protocol: ProtocolFeatures::empty(),
            acked: None,
            driver: Driver::Silent,
            status: 0,
            memory: MemoryTable::empty(),
            inflight: None,
            alarm,
            rings: (0..queue_count).map(|_| Ring::new()).collect(),
        }
    }

    /// Whether a protocol feature has been negotiated.
    pub(crate) fn has(&self, feature: ProtocolFeatures) -> bool {
        self.protocol.contains(feature)
    }

    /// Does what a front-end asks for.
    pub(crate) fn handle(&mut self, request: Request) -> Result<Answer, Fault> {
        match request {
            Request::GetFeatures => return Ok(Answer::U64(self.offered)),
            Request::SetFeatures(features) => self.set_features(features)?,
            Request::GetProtocolFeatures => {
                return Ok(Answer::U64(self.served.bits()));
            }
            Request::SetProtocolFeatures(features) => self.set_protocol_features(features)?,
            // Each connection has one front-end, which owns it from the start.
            Request::SetOwner => {}
            Request::ResetOwner => self.reset_owner(),
            Request::ResetDevice => self.reset_device(),
            Request::SetStatus(status) => self.set_status(status)?,
            Request::GetStatus => {
                self.need(ProtocolFeatures::STATUS, "STATUS")?;
                return Ok(Answer::U64(self.status.into()));
            }
            Request::SetMemTable(regions) => self.set_memory(MemoryTable::of(regions, &self.alarm)?),
            Request::GetMaxMemSlots => {
                self.need_mem_slots()?;
                return Ok(Answer::U64(u64::try_from(MEMORY_SLOTS_MAX).unwrap_or(u64::MAX)));
            }
            Request::AddMemReg(region, fd) => {
                self.need_mem_slots()?;
                self.set_memory(self.memory.with(region, fd, &self.alarm)?);
            }
            Request::RemMemReg(region) => {
                self.need_mem_slots()?;
                self.set_memory(self.memory.without(&region)?);
            }
            Request::GetQueueNum => {
                return Ok(Answer::U64(u64::try_from(self.rings.len()).unwrap_or(u64::MAX)));
            }
            Request::SetVringNum(vring) => self.set_vring_num(vring)?,
            Request::SetVringAddr(vring) => self.set_vring_addr(&vring)?,
            Request::SetVringBase(vring) => self.set_vring_base(vring)?,
            Request::GetVringBase(vring) => return self.get_vring_base(vring.index),
            Request::SetVringEnable(vring) => self.set_vring_enable(vring)?,
            Request::SetVringKick(vring) => self.set_vring_kick(vring)?,
            Request::SetVringCall(vring) => self.set_vring_call(vring)?,
            Request::SetVringErr(vring) => self.set_vring_err(vring)?,
            Request::GetConfig(head) => {
                self.need(ProtocolFeatures::CONFIG, "CONFIG")?;
                return Ok(self.get_config(head));
            }
            Request::SetConfig(head, data) => self.set_config(head, &data)?,
            Request::SetBackendReqFd(fd) => {
                self.need(ProtocolFeatures::BACKEND_REQ, "BACKEND_REQ")?;
                self.frontend.set_channel(fd)?;
            }
            Request::GetInflightFd(asked, length) => {
                self.need_inflight()?;
                let (region, fd) = Inflight::create(&asked, self.rings.len())?;
                return Ok(Answer::Inflight(region, length, fd));
            }
            Request::SetInflightFd(region, fd) => {
                self.need_inflight()?;
                self.set_inflight(Inflight::map(&region, self.rings.len(), fd, &self.alarm)?);
            }
            Request::NotOffered => return Err(Fault::NotOffered),
            Request::Unknown => return Err(Fault::Unknown),
        }
        Ok(Answer::Done)
    }

    fn need(&self, feature: ProtocolFeatures, name: &'static str) -> Result<(), Fault> {
        if self.has(feature) { Ok(()) } else { Err(Fault::NotNegotiated(name)) }
    }

    fn need_mem_slots(&self) -> Result<(), Fault> {
        self.need(ProtocolFeatures::CONFIGURE_MEM_SLOTS, "CONFIGURE_MEM_SLOTS")
    }

    fn need_inflight(&self) -> Result<(), Fault> {
        self.need(ProtocolFeatures::INFLIGHT_SHMFD, "INFLIGHT_SHMFD")
    }
}

/// Features, status, reset.
impl<B: Backend> State<B> {
    fn set_protocol_features(&mut self, features: u64) -> Result<(), Fault> {
        let features = ProtocolFeatures::from_bits(features)
            .filter(|features| self.served.contains(*features))
            .ok_or(Fault::ProtocolFeatures(features & !self.served.bits()))?;
        self.protocol = features;
        self.frontend.set_config(features.contains(ProtocolFeatures::CONFIG));
        Ok(())
    }

    fn set_features(&mut self, features: u64) -> Result<(), Fault> {
        if features & !self.offered != 0 {
            return Err(Fault::Features(features & !self.offered));
        }
        self.stop_queues();
        self.acked = Some(features);
        let accepted = features & !FEATURE_PROTOCOL_FEATURES;
        let result = if accepted == 0 {
            self.driver = Driver::Silent;
            Ok(())
        } else {
            self.negotiate(accepted)
        };
        self.restart_queues();
        match result {
            // With STATUS the front-end reads the refusal there.
            Err(source) if !self.has(ProtocolFeatures::STATUS) => {
                Err(Fault::FeaturesRefused { features: accepted, source })
            }
            _ => Ok(()),
        }
    }

    /// Puts the driver's features to the device. On refusal FEATURES_OK is cleared.
    fn negotiate(&mut self, features: u64) -> Result<(), FeaturesRefused> {
        match self.session.accept_features(features) {
            Ok(()) => {
                log::debug!("the driver accepted features {features:#x}");
                self.driver = Driver::Accepted(features);
                Ok(())
            }
            Err(refused) => {
                log::warn!("features {features:#x} of the driver are refused: {refused}");
                self.driver = Driver::Refused(features);
                self.status &= !STATUS_FEATURES_OK;
                Err(refused)
            }
        }
    }

    fn set_status(&mut self, status: u64) -> Result<(), Fault> {
        self.need(ProtocolFeatures::STATUS, "STATUS")?;
        let mut status = u8::try_from(status).map_err(|_| Fault::Status(status))?;
        if status == 0 {
            self.reset_device();
            return Ok(());
        }
        if status & STATUS_FEATURES_OK != 0 {
            if self.driver == Driver::Silent {
                // A driver that accepts nothing at all. The refusal shows in the status.
                let _ = self.negotiate(0);
            }
            if matches!(self.driver, Driver::Refused(_)) {
                status &= !STATUS_FEATURES_OK;
            }
        }
        self.status = status;
        Ok(())
    }

    /// Status 0, or RESET_DEVICE. Memory, protocol features and the back-end channel belong to the
    /// connection, and stay.
    fn reset_device(&mut self) {
        self.rings.iter_mut().for_each(Ring::reset);
        // The rings are set up anew; nothing of the old ones is under way.
        if let Some(inflight) = &self.inflight {
            inflight.forget();
        }
        self.session.reset();
        self.acked = None;
        self.driver = Driver::Silent;
        self.status = 0;
    }

    /// Deprecated, and read in different ways: here all queues stop, until they get a new kick.
    fn reset_owner(&mut self) {
        for ring in &mut self.rings {
            ring.stop();
            ring.kick = None;
        }
    }
}

/// Memory and configuration space.
impl<B: Backend> State<B> {
    /// Puts a new memory table in place of the old one. Queues that run are stopped over it.
    fn set_memory(&mut self, memory: MemoryTable) {
        self.stop_queues();
        self.memory = memory;
        self.restart_queues();
    }

    /// Puts a new buffer for requests under way in place of the old one. Queues that run are stopped over it.
    fn set_inflight(&mut self, inflight: Inflight) {
        self.stop_queues();
        self.session.use_inflight(&inflight);
        self.inflight = Some(inflight);
        self.restart_queues();
    }

    fn get_config(&self, head: ConfigHead) -> Answer {
        let ConfigHead { offset_bytes, size_bytes, .. } = head;
        let length = usize::try_from(size_bytes).unwrap_or(usize::MAX);
        if !(1..=CONFIG_BYTES_MAX).contains(&size_bytes) {
            log::warn!("GET_CONFIG asks for {size_bytes} bytes, 1 to {CONFIG_BYTES_MAX} are expected");
            return Answer::NoConfig;
        }
        let mut data = vec![0; length];
        self.session.read_config(offset_bytes, &mut data);
        Answer::Config(head, data)
    }

    fn set_config(&mut self, head: ConfigHead, data: &[u8]) -> Result<(), Fault> {
        self.need(ProtocolFeatures::CONFIG, "CONFIG")?;
        if !(1..=CONFIG_BYTES_MAX).contains(&head.size_bytes) {
            return Err(Fault::ConfigSize(head.size_bytes));
        }
        // 0: the driver writes. 1: live migration writes, or, by rust-vmm's numbering, the driver. The device
        // takes from both what a driver may write.
        if head.flags > 1 {
            return Err(Fault::ConfigFlags(head.flags));
        }
        Ok(self.session.write_config(head.offset_bytes, data)?)
    }
}

/// Queues.
impl<B: Backend> State<B> {
    fn set_vring_num(&mut self, vring: VringState) -> Result<(), Fault> {
        let max = self.queue_size_max;
        let (index, ring) = self.stopped_ring(vring.index)?;
        let size = u16::try_from(vring.num)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= max)
            .ok_or(Fault::QueueSize { found: vring.num, max })?;
        ring.size = Some(size);
        self.start_if_ready(index)
    }

    fn set_vring_base(&mut self, vring: VringState) -> Result<(), Fault> {
        let (index, ring) = self.stopped_ring(vring.index)?;
        ring.next_avail = u16::try_from(vring.num).map_err(|_| Fault::QueueBase(vring.num))?;
        self.start_if_ready(index)
    }

    fn set_vring_addr(&mut self, vring: &VringAddr) -> Result<(), Fault> {
        let (index, ring) = self.ring(vring.index)?;
        let size = ring.size.unwrap_or(1);
        if vring.flags != 0 {
            return Err(Fault::QueueFlags(vring.flags));
        }
        let place = Place { desc: vring.desc, avail: vring.avail, used: vring.used };
        place.find(&self.memory, size)?;
        self.change(index, |ring| ring.place = Some(place))
    }

    fn get_vring_base(&mut self, index: u32) -> Result<Answer, Fault> {
        let (_, ring) = self.ring(index)?;
        ring.stop();
        ring.kick = None;
        ring.call = None;
        Ok(Answer::Vring(VringState { index, num: ring.next_avail.into() }))
    }

    fn set_vring_enable(&mut self, vring: VringState) -> Result<(), Fault> {
        let (index, ring) = self.ring(vring.index)?;
        let enable = match vring.num {
            0 => false,
            1 => true,
            other => return Err(Fault::QueueEnable(other)),
        };
        ring.enabled = Some(enable);
        if !enable {
            // The front-end may free the queue's memory next: it is drained when this returns.
            ring.stop();
        }
        self.start_if_ready(index)
    }

    fn set_vring_kick(&mut self, vring: VringFd) -> Result<(), Fault> {
        let (index, _) = self.ring(vring.index)?;
        let kick = vring.fd.ok_or(Fault::Polling)?;
        event_kind(&kick)?;
        // The front-end only writes to it: the mode, which an eventfd shares with it, makes no difference
        // there.
        set_nonblocking(&kick).map_err(NotAnEvent::from)?;
        self.change(index, |ring| ring.kick = Some(Arc::new(kick)))
    }

    fn set_vring_call(&mut self, vring: VringFd) -> Result<(), Fault> {
        let (index, ring) = self.ring(vring.index)?;
        let was_running = ring.running.is_some();
        let call = vring.fd.map(Notifier::new).transpose()?;
        let result = self.change(index, |ring| ring.call = call.clone());
        // What was used before this change was signalled to the old descriptor, which nobody may have read.
        if let Some(call) = call.filter(|_| was_running) {
            call.notify();
        }
        result
    }

    fn set_vring_err(&mut self, vring: VringFd) -> Result<(), Fault> {
        let (index, _) = self.ring(vring.index)?;
        let err = vring.fd.map(Notifier::new).transpose()?;
        self.change(index, |ring| ring.err = err)
    }

    /// The queue of an index that a front-end named.
    fn ring(&mut self, index: u32) -> Result<(u16, &mut RingOf<B>), Fault> {
        let count = self.rings.len();
        let no_queue = Fault::QueueIndex { index, count };
        let Ok(short) = u16::try_from(index) else {
            return Err(no_queue);
        };
        match self.rings.get_mut(usize::from(short)) {
            Some(ring) => Ok((short, ring)),
            None => Err(no_queue),
        }
    }

    /// The queue of an index that a front-end named, if it is not running.
    fn stopped_ring(&mut self, index: u32) -> Result<(u16, &mut RingOf<B>), Fault> {
        match self.ring(index)? {
            (_, ring) if ring.running.is_some() => Err(Fault::QueueRunning),
            found => Ok(found),
        }
    }

    /// Changes something of a queue that may be running: it is stopped over the change.
    fn change(&mut self, index: u16, change: impl FnOnce(&mut RingOf<B>)) -> Result<(), Fault> {
        if let Some(ring) = self.rings.get_mut(usize::from(index)) {
            ring.stop();
            change(ring);
        }
        self.start_if_ready(index)
    }

    /// Hands a queue to the device if everything it needs is there and the device does not have it.
    ///
    /// By the letter a queue starts with the first kick after this. Nothing is in it before, and kicks may be
    /// lost over a stop: so it starts when it could be kicked.
    fn start_if_ready(&mut self, index: u16) -> Result<(), Fault> {
        let (Some(ring), Some(acked)) = (self.rings.get(usize::from(index)), self.acked) else {
            return Ok(());
        };
        let enabled = ring.enabled.unwrap_or(acked & FEATURE_PROTOCOL_FEATURES == 0);
        let (Some(size), Some(place), Some(kick)) = (ring.size, ring.place, &ring.kick) else {
            return Ok(());
        };
        if !enabled || ring.running.is_some() {
            return Ok(());
        }
        let areas = place.find(&self.memory, size).map_err(|source| Fault::Unplaced { index, source })?;
        let (inflight, next_avail) = self.attach_inflight(index, size, &areas, ring.next_avail);
        let vring = Vring {
            memory: self.memory.guest(),
            size,
            desc: areas.desc,
            avail: areas.avail,
            used: areas.used,
            next_avail,
            features: 0,
            kick: Arc::clone(kick),
            call: ring.call.clone(),
            err: ring.err.clone(),
            inflight,
        };

        if self.driver == Driver::Silent {
            // A driver that accepted nothing goes on: it is asked for, as it would be by FEATURES_OK. The
            // refusal has been logged.
            let _ = self.negotiate(0);
        }
        let features = match self.driver {
            Driver::Silent => 0,
            Driver::Accepted(features) | Driver::Refused(features) => features,
        };
        let err = vring.err.clone();
        match self.session.start_queue(index, Vring { features, ..vring }) {
            Ok(queue) => {
                if let Some(ring) = self.rings.get_mut(usize::from(index)) {
                    ring.running = Some(queue);
                }
                Ok(())
            }
            Err(source) => {
                // Not every front-end asks for a reply.
                if let Some(err) = err {
                    err.notify();
                }
                Err(Fault::Start { index, source })
            }
        }
    }

    /// A queue's part of the buffer for requests under way, and where the queue goes on in the available ring: behind those that are made
    /// again. The front-end can't know that, and gives the used ring's index in its place.
    fn attach_inflight(
        &self,
        index: u16,
        size: u16,
        areas: &Areas,
        next_avail: u16,
    ) -> (Option<InflightQueue>, u16) {
        let Some(buffer) = &self.inflight else { return (None, next_avail) };
        let memory = self.memory.guest();
        let idx = |ring: GuestAddress| {
            memory.load(ring.unchecked_add(2), Ordering::Acquire).map(u16::from_le).unwrap_or_default()
        };
        let ring = RingState { size, avail_idx: idx(areas.avail), used_idx: idx(areas.used) };
        match InflightQueue::attach(buffer, index, ring) {
            Some((queue, at)) => (Some(queue), at.unwrap_or(next_avail)),
            None => (None, next_avail),
        }
    }

    fn stop_queues(&mut self) {
        for ring in &mut self.rings {
            ring.stop();
        }
    }

    /// Starts what can run. A queue that cannot is not the fault of the request at hand: its memory may come
    /// with the next one.
    fn restart_queues(&mut self) {
        for index in 0..u16::try_from(self.rings.len()).unwrap_or(u16::MAX) {
            if let Err(fault) = self.start_if_ready(index) {
                log::warn!("queue {index} stays stopped: {fault}");
            }
        }
    }
}

type RingOf<B> = Ring<<<B as Backend>::Session as Session>::Queue>;

impl<B: Backend> Drop for State<B> {
    /// The connection has ended: nothing runs when the session goes.
    fn drop(&mut self) {
        self.stop_queues();
        self.frontend.close();
    }
}
