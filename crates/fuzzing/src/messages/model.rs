//! The connection as the protocol has it (QEMU's `docs/interop/vhost-user.rst`, and `crates/vhost-user`'s own words where that is
//! silent): what has been said, what must be answered, and whether the connection lives.

use virtio_zbd_spec::Features;

use super::things::Thing;
use crate::space::Space;

/// How many queues the disk has.
pub(super) const QUEUES: usize = 2;

/// The largest queue that may be set up.
const QUEUE_SIZE_MAX: u32 = 1024;

/// The most memory regions.
const SLOTS_MAX: usize = 509;

/// MQ, REPLY_ACK, BACKEND_REQ, CONFIG, RESET_DEVICE, CONFIGURE_MEM_SLOTS, STATUS.
const PROTOCOL_FEATURES: u64 = 1 << 0 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 13 | 1 << 15 | 1 << 16;

pub(super) const REPLY_ACK: u64 = 1 << 3;
const BACKEND_REQ: u64 = 1 << 5;
pub(super) const CONFIG: u64 = 1 << 9;
const MEM_SLOTS: u64 = 1 << 15;
pub(super) const STATUS: u64 = 1 << 16;
pub(super) const INFLIGHT: u64 = 1 << 12;

/// The bit that stands for protocol features.
pub(super) const F_PROTOCOL: u64 = 1 << 30;

/// FEATURES_OK in the device status.
const FEATURES_OK: u8 = 8;

/// What comes of a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Reply(Vec<u8>),
    /// A buffer for requests under way, as long as the server likes, with this behind its length.
    Buffer(Vec<u8>),
    /// GET_VRING_BASE of a queue that may have taken something in the meantime: this index, and any number.
    BaseOf(u32),
    Nothing,
    End,
}

/// Why nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum No {
    /// Nothing is wrong with it: who did not ask for an answer gets none.
    Refused,
    /// The two sides see things differently: who did not ask for an answer is cut off.
    Wrong,
}

enum Yes {
    Done,
    Reply(Vec<u8>),
    BaseOf(u32),
    Buffer(Vec<u8>),
}

/// What a driver has said of features, and whether the disk can live with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Driver {
    Silent,
    Accepted(u64),
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    guest: u64,
    size: u64,
    user: u64,
    offset: u64,
    file: Thing,
}

impl Region {
    fn parse(bytes: &[u8], file: Thing) -> Self {
        let word = |n: usize| u64::from_ne_bytes(bytes[8 * n..8 * n + 8].try_into().unwrap());
        Self { guest: word(0), size: word(1), user: word(2), offset: word(3), file }
    }

    /// Its file can be mapped there: all of it within the file and the address space, in whole pages of the file.
    fn fits(&self) -> bool {
        let ends = [self.guest, self.user, self.offset].map(|start| start.checked_add(self.size));
        let inside = ends[2].zip(self.file.memory_len()).is_some_and(|(end, len)| end <= len);
        self.size > 0 && !ends.contains(&None) && inside && self.guest >= self.offset % 4096
    }

    fn apart(&self, other: &Self) -> bool {
        let apart =
            |a: u64, b: u64| b.checked_add(other.size).is_some_and(|end| a >= end || b >= a + self.size);
        apart(self.guest, other.guest) && apart(self.user, other.user)
    }

    /// What is mapped: from the page of the file on that it begins in.
    fn mapped(&self) -> (u64, u64) {
        let before = self.offset % 4096;
        (self.guest - before, self.guest + self.size)
    }
}

/// What is known of a queue.
#[derive(Clone, Debug, Default)]
pub(super) struct Ring {
    pub(super) size: Option<u16>,
    /// User addresses of the descriptor table, the available and the used ring.
    place: Option<[u64; 3]>,
    /// `None`: the device may have taken something.
    pub(super) next_avail: Option<u16>,
    pub(super) kick: Option<Thing>,
    enabled: Option<bool>,
    pub(super) running: bool,
}

/// The state of a connection.
pub(super) struct Model {
    offered: u64,
    pub(super) protocol_offered: u64,
    protocol: u64,
    acked: Option<u64>,
    driver: Driver,
    status: u8,
    regions: Vec<Region>,
    pub(super) rings: Vec<Ring>,
    space: Space,
    /// The available index that stands in each queue's slot of the guest's memory. `None`: a device may have written there whatever
    /// it was told to.
    pub(super) avail_idx: [Option<u16>; QUEUES],
}

/// A message, whole.
pub(super) struct Message<'a> {
    pub(super) request: u32,
    pub(super) need_reply: bool,
    pub(super) payload: &'a [u8],
    pub(super) fds: &'a [Thing],
}

impl Message<'_> {
    /// A payload of this length and no descriptors, or what is wrong.
    fn bare(&self, len: usize) -> Result<(), No> {
        self.with_fds(len, 0)
    }

    fn with_fds(&self, len: usize, fds: usize) -> Result<(), No> {
        if self.payload.len() == len && self.fds.len() == fds { Ok(()) } else { Err(No::Wrong) }
    }

    fn u64(&self) -> Result<u64, No> {
        self.bare(8)?;
        Ok(u64::from_ne_bytes(self.payload.try_into().unwrap()))
    }

    fn word(&self, n: usize) -> u32 {
        u32::from_ne_bytes(self.payload[4 * n..4 * n + 4].try_into().unwrap())
    }

    /// A queue's index and a number.
    fn pair(&self) -> Result<(u32, u32), No> {
        self.bare(8)?;
        Ok((self.word(0), self.word(1)))
    }

    /// A queue's index, and the descriptor for it or none.
    fn vring_fd(&self) -> Result<(u32, Option<Thing>), No> {
        if self.payload.len() != 8 {
            return Err(No::Wrong);
        }
        let word = u64::from_ne_bytes(self.payload.try_into().unwrap());
        let without = word & 0x100 != 0;
        if word & !0x1ff != 0 || self.fds.len() != usize::from(!without) {
            return Err(No::Wrong);
        }
        Ok((u32::try_from(word & 0xff).unwrap(), self.fds.first().copied()))
    }
}

impl Model {
    /// A front-end has connected to a disk that offers these features.
    pub(super) fn new(features: u64, keeps_inflight: bool, space: Space) -> Self {
        let ring = Ring { next_avail: Some(0), ..Ring::default() };
        Self {
            offered: features | F_PROTOCOL,
            protocol_offered: PROTOCOL_FEATURES | if keeps_inflight { INFLIGHT } else { 0 },
            protocol: 0,
            acked: None,
            driver: Driver::Silent,
            status: 0,
            regions: Vec::new(),
            rings: vec![ring; QUEUES],
            space,
            avail_idx: [Some(0); QUEUES],
        }
    }

    /// Whether the driver's features are good enough for the disk to be reached.
    pub(super) fn accepted(&self) -> Option<u64> {
        match self.driver {
            Driver::Accepted(features) => Some(features),
            _ => None,
        }
    }

    /// The front-end has written over its queues.
    pub(super) fn forget_slots(&mut self) {
        self.rings.iter_mut().for_each(|ring| ring.next_avail = None);
        self.avail_idx = [None; QUEUES];
    }

    /// Where in which file a user address is.
    fn file_of(&self, user: u64, len: u64) -> Option<(Thing, u64, u64)> {
        self.regions.iter().find_map(|region| {
            let inside = user.checked_sub(region.user)?;
            let whole = inside.checked_add(len)? <= region.size;
            whole.then(|| (region.file, region.offset + inside, region.guest + inside))
        })
    }

    /// The guest address of a byte of the guest's memory, if only one region has it.
    pub(super) fn guest_address(&self, offset: u64) -> Option<u64> {
        let mut having = self.regions.iter().filter(|region| {
            region.file == Thing::Main && (region.offset..region.offset + region.size).contains(&offset)
        });
        let region = having.next()?;
        having.next().is_none().then(|| region.guest + (offset - region.offset))
    }

    /// Where in the guest's memory a queue's areas are, if they are in there.
    pub(super) fn areas(&self, queue: usize) -> Option<[u64; 3]> {
        let ring = &self.rings[queue];
        let (place, size) = (ring.place?, ring.size?);
        let mut found = [0; 3];
        for (i, (user, len)) in place.into_iter().zip(lengths(size)).enumerate() {
            let (Thing::Main, offset, _) = self.file_of(user, len)? else { return None };
            found[i] = offset;
        }
        Some(found)
    }

    /// What comes of a message.
    pub(super) fn take(&mut self, message: &Message<'_>) -> Outcome {
        let result = self.handle(message);
        let own = matches!(message.request, 1 | 11 | 15 | 17 | 24 | 26 | 28 | 30 | 31 | 36 | 40..=44);
        let ack = message.need_reply && self.protocol & REPLY_ACK != 0 && !own;
        match result {
            Ok(Yes::Reply(payload)) => Outcome::Reply(payload),
            Ok(Yes::BaseOf(index)) => Outcome::BaseOf(index),
            Ok(Yes::Buffer(described)) => Outcome::Buffer(described),
            Ok(Yes::Done) if ack => Outcome::Reply(0u64.to_ne_bytes().to_vec()),
            Err(_) if ack => Outcome::Reply(1u64.to_ne_bytes().to_vec()),
            Ok(Yes::Done) | Err(No::Refused) => Outcome::Nothing,
            Err(No::Wrong) => Outcome::End,
        }
    }

    fn handle(&mut self, message: &Message<'_>) -> Result<Yes, No> {
        let number = |value: u64| Ok(Yes::Reply(value.to_ne_bytes().to_vec()));
        match message.request {
            1 => message.bare(0).and_then(|()| number(self.offered)),
            2 => {
                let features = message.u64()?;
                self.set_features(features)
            }
            3 => message.bare(0).map(|()| Yes::Done),
            4 => {
                message.bare(0)?;
                for ring in &mut self.rings {
                    ring.running = false;
                    ring.kick = None;
                }
                Ok(Yes::Done)
            }
            5 => self.set_mem_table(message),
            8..=10 | 18 => self.set_vring(message),
            11 => {
                let (index, _) = message.pair()?;
                let ring = self.ring(index)?;
                (ring.running, ring.kick) = (false, None);
                Ok(match ring.next_avail {
                    Some(next) => Yes::Reply([index, next.into()].map(u32::to_ne_bytes).concat()),
                    None => Yes::BaseOf(index),
                })
            }
            12..=14 => self.set_vring_fd(message),
            15 => message.bare(0).and_then(|()| number(self.protocol_offered)),
            16 => {
                let features = message.u64()?;
                if features & !self.protocol_offered != 0 {
                    return Err(No::Wrong);
                }
                self.protocol = features;
                Ok(Yes::Done)
            }
            17 => message.bare(0).and_then(|()| number(QUEUES as u64)),
            21 => {
                message.with_fds(0, 1)?;
                self.need(BACKEND_REQ)?;
                if message.fds[0].carries_messages() { Ok(Yes::Done) } else { Err(No::Wrong) }
            }
            24 | 25 => self.config(message),
            31 | 32 => self.inflight(message),
            34 => {
                message.bare(0)?;
                self.reset();
                Ok(Yes::Done)
            }
            36 => {
                message.bare(0)?;
                self.need(MEM_SLOTS)?;
                number(SLOTS_MAX as u64)
            }
            37 | 38 => self.change_memory(message),
            39 => {
                let status = message.u64()?;
                self.set_status(status)
            }
            40 => {
                message.bare(0)?;
                self.need(STATUS)?;
                number(self.status.into())
            }
            // Of its future, or nobody's.
            0 | 45.. => Err(No::Refused),
            // Messages of the specification that need what is not offered.
            _ => Err(No::Wrong),
        }
    }

    /// Whether a protocol feature is negotiated.
    pub(super) fn has(&self, feature: u64) -> bool {
        self.protocol & feature != 0
    }

    fn need(&self, feature: u64) -> Result<(), No> {
        if self.protocol & feature != 0 { Ok(()) } else { Err(No::Wrong) }
    }
}

/// Features, status, reset.
impl Model {
    fn set_features(&mut self, features: u64) -> Result<Yes, No> {
        if features & !self.offered != 0 {
            return Err(No::Wrong);
        }
        self.stop_all();
        self.acked = Some(features);
        let accepted = features & !F_PROTOCOL;
        let good = if accepted == 0 {
            self.driver = Driver::Silent;
            true
        } else {
            self.negotiate(accepted)
        };
        self.start_all();
        if good || self.protocol & STATUS != 0 { Ok(Yes::Done) } else { Err(No::Refused) }
    }

    /// A zoned disk needs a driver that knows virtio 1 and zones.
    fn negotiate(&mut self, features: u64) -> bool {
        let wanted = Features::VERSION_1 | Features::ZONED;
        let features = Features::from_bits_retain(features);
        let good = features.contains(wanted);
        self.space.wce = good && features.contains(Features::CONFIG_WCE);
        self.space.write_back = !good || features.contains(Features::FLUSH);
        if good {
            self.driver = Driver::Accepted(features.bits());
        } else {
            self.driver = Driver::Refused;
            self.status &= !FEATURES_OK;
        }
        good
    }

    fn set_status(&mut self, status: u64) -> Result<Yes, No> {
        self.need(STATUS)?;
        let mut status = u8::try_from(status).map_err(|_| No::Wrong)?;
        if status == 0 {
            self.reset();
            return Ok(Yes::Done);
        }
        if status & FEATURES_OK != 0 {
            if self.driver == Driver::Silent {
                self.negotiate(0);
            }
            if self.driver == Driver::Refused {
                status &= !FEATURES_OK;
            }
        }
        self.status = status;
        Ok(Yes::Done)
    }

    fn reset(&mut self) {
        self.rings = vec![Ring { next_avail: Some(0), ..Ring::default() }; QUEUES];
        self.acked = None;
        self.driver = Driver::Silent;
        self.status = 0;
        (self.space.wce, self.space.write_back) = (false, true);
    }

    fn config(&mut self, message: &Message<'_>) -> Result<Yes, No> {
        let get = message.request == 24;
        if message.payload.len() < 12 || !message.fds.is_empty() {
            return Err(No::Wrong);
        }
        let (offset, size, flags) = (message.word(0), message.word(1), message.word(2));
        let (head, data) = message.payload.split_at(12);
        let len = usize::try_from(size).unwrap();
        if !get && len != data.len() {
            return Err(No::Wrong);
        }
        self.need(CONFIG)?;
        let possible = (1..=256).contains(&size);
        if get {
            let bytes = if possible { [head, &self.space.at(offset, len)].concat() } else { Vec::new() };
            return Ok(Yes::Reply(bytes));
        }
        if !possible || flags > 1 {
            return Err(No::Wrong);
        }
        if self.space.write(offset, data) { Ok(Yes::Done) } else { Err(No::Refused) }
    }
}

/// Memory.
impl Model {
    fn set_mem_table(&mut self, message: &Message<'_>) -> Result<Yes, No> {
        if message.payload.len() < 8 {
            return Err(No::Wrong);
        }
        let count = usize::try_from(message.word(0)).unwrap();
        let all = &message.payload[8..];
        if !(1..=32).contains(&count) || message.fds.len() != count || all.len() < 32 * count {
            return Err(No::Wrong);
        }
        let regions: Vec<_> =
            all.chunks_exact(32).zip(message.fds).map(|(bytes, fd)| Region::parse(bytes, *fd)).collect();
        self.set_memory(regions)
    }

    fn change_memory(&mut self, message: &Message<'_>) -> Result<Yes, No> {
        let add = message.request == 37;
        let fds = message.fds.len();
        if message.payload.len() != 40 || add && fds != 1 || fds > 1 {
            return Err(No::Wrong);
        }
        self.need(MEM_SLOTS)?;
        let mut regions = self.regions.clone();
        let region =
            Region::parse(&message.payload[8..], message.fds.first().copied().unwrap_or(Thing::Null));
        if add {
            if regions.len() >= SLOTS_MAX {
                return Err(No::Wrong);
            }
            regions.push(region);
        } else {
            let key = |region: &Region| (region.guest, region.size, region.user);
            regions.retain(|other| key(other) != key(&region));
            if regions.len() == self.regions.len() {
                return Err(No::Wrong);
            }
        }
        self.set_memory(regions)
    }

    fn set_memory(&mut self, regions: Vec<Region>) -> Result<Yes, No> {
        for (i, region) in regions.iter().enumerate() {
            let apart = regions[..i].iter().all(|other| {
                let ((a, a_end), (b, b_end)) = (other.mapped(), region.mapped_if_fits());
                other.apart(region) && (a >= b_end || b >= a_end)
            });
            if !region.fits() || !apart {
                return Err(No::Wrong);
            }
        }
        self.stop_all();
        self.regions = regions;
        self.start_all();
        Ok(Yes::Done)
    }
}

impl Region {
    /// As [`Self::mapped`]; nothing where it can't be mapped.
    fn mapped_if_fits(&self) -> (u64, u64) {
        if self.fits() { self.mapped() } else { (0, 0) }
    }
}

/// The buffer for requests under way.
impl Model {
    fn inflight(&mut self, message: &Message<'_>) -> Result<Yes, No> {
        let get = message.request == 31;
        // With or without the C structure's padding.
        if !(20..=24).contains(&message.payload.len()) || message.fds.len() != usize::from(!get) {
            return Err(No::Wrong);
        }
        self.need(INFLIGHT)?;
        let long = |at: usize| u64::from_ne_bytes(message.payload[at..at + 8].try_into().unwrap());
        let short = |at: usize| u16::from_ne_bytes(message.payload[at..at + 2].try_into().unwrap());
        let (size, offset) = (long(0), long(8));
        let (queues, queue_size) = (usize::from(short(16)), short(18));
        if !(1..=QUEUES).contains(&queues) || !(1..=32768).contains(&queue_size) {
            return Err(No::Wrong);
        }
        if get {
            return Ok(Yes::Buffer([&[0; 8], &message.payload[16..]].concat()));
        }
        let least = least_buffer(queues, queue_size);
        let file_len = message.fds[0].memory_len().ok_or(No::Wrong)?;
        let end = offset.checked_add(size).ok_or(No::Wrong)?;
        if size < least || end > file_len || offset % 8 != 0 {
            return Err(No::Wrong);
        }
        self.stop_all();
        if !matches!(message.fds[0], Thing::Buffer(_)) {
            // What stands in there nobody knows.
            self.forget_slots();
        }
        self.start_all();
        Ok(Yes::Done)
    }
}

/// How long the specification's part of a buffer is: for each queue a head of 16 bytes and 16 for each descriptor, padded to 64.
pub(super) fn least_buffer(queues: usize, queue_size: u16) -> u64 {
    queues as u64 * (16 + 16 * u64::from(queue_size)).next_multiple_of(64)
}

/// Queues.
impl Model {
    fn ring(&mut self, index: u32) -> Result<&mut Ring, No> {
        self.rings.get_mut(usize::try_from(index).unwrap()).ok_or(No::Wrong)
    }

    fn set_vring(&mut self, message: &Message<'_>) -> Result<Yes, No> {
        if message.request == 9 {
            message.bare(40)?;
            let word = |at: usize| u64::from_ne_bytes(message.payload[at..at + 8].try_into().unwrap());
            let (index, flags) = (message.word(0), message.word(1));
            let place = [word(8), word(24), word(16)];
            let size = self.ring(index)?.size.unwrap_or(1);
            if flags != 0 || !self.is_place(place, size) {
                return Err(No::Wrong);
            }
            let ring = self.ring(index)?;
            (ring.running, ring.place) = (false, Some(place));
            return self.start(index);
        }
        let (index, value) = message.pair()?;
        let ring = self.ring(index)?;
        if message.request == 18 {
            if value > 1 {
                return Err(No::Wrong);
            }
            ring.enabled = Some(value == 1);
            ring.running &= value == 1;
            return self.start(index);
        }
        if ring.running {
            return Err(No::Wrong);
        }
        let short = u16::try_from(value).map_err(|_| No::Wrong)?;
        if message.request == 10 {
            ring.next_avail = Some(short);
        } else {
            if !short.is_power_of_two() || value > QUEUE_SIZE_MAX {
                return Err(No::Wrong);
            }
            ring.size = Some(short);
        }
        self.start(index)
    }

    fn set_vring_fd(&mut self, message: &Message<'_>) -> Result<Yes, No> {
        let (index, fd) = message.vring_fd()?;
        let ring = self.ring(index)?;
        match fd {
            // It would have to be polled.
            None if message.request == 12 => return Err(No::Refused),
            Some(fd) if !fd.carries_events() => return Err(No::Wrong),
            _ => {}
        }
        ring.running = false;
        if message.request == 12 {
            ring.kick = fd;
        }
        self.start(index)
    }

    /// Whether a queue's areas are aligned, each in one region.
    fn is_place(&self, place: [u64; 3], size: u16) -> bool {
        let aligns = [16, 2, 4];
        place.into_iter().zip(lengths(size)).zip(aligns).all(|((user, len), align)| {
            self.file_of(user, len).is_some_and(|(_, _, guest)| guest % align == 0)
        })
    }

    /// Hands the queue to the device if all that it needs is there.
    fn start(&mut self, index: u32) -> Result<Yes, No> {
        let Some(acked) = self.acked else { return Ok(Yes::Done) };
        let ring = self.ring(index)?;
        let enabled = ring.enabled.unwrap_or(acked & F_PROTOCOL == 0);
        let (Some(size), Some(place), Some(_)) = (ring.size, ring.place, ring.kick) else {
            return Ok(Yes::Done);
        };
        if !enabled || ring.running {
            return Ok(Yes::Done);
        }
        if !self.is_place(place, size) {
            return Err(No::Refused);
        }
        if self.driver == Driver::Silent {
            self.negotiate(0);
        }
        let queue = usize::try_from(index).unwrap();
        let idle =
            self.areas(queue) == Some(slot(queue)) && self.rings[queue].next_avail == self.avail_idx[queue];
        self.rings[queue].running = true;
        if !idle {
            self.rings[queue].next_avail = None;
            self.avail_idx = [None; QUEUES];
        }
        Ok(Yes::Done)
    }

    fn stop_all(&mut self) {
        self.rings.iter_mut().for_each(|ring| ring.running = false);
    }

    fn start_all(&mut self) {
        for index in 0..u32::try_from(QUEUES).unwrap() {
            // A queue that can't start is not this message's fault.
            let _ = self.start(index);
        }
    }
}

/// Where in the guest's memory each queue has its areas, if it is set up as it should be.
pub(super) fn slot(queue: usize) -> [u64; 3] {
    let base = 0x1_0000 * queue as u64;
    [base, base + 0x4000, base + 0x5000]
}

/// How long the areas are.
pub(super) fn lengths(size: u16) -> [u64; 3] {
    let size = u64::from(size);
    [16 * size, 6 + 2 * size, 6 + 8 * size]
}
