//! A device that writes down what happens to it, checks what the server promises, and echoes.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use virtio_zbd_vhost_user::{
    Backend, ConfigRefused, FeaturesRefused, FrontendNotifier, Inflight, RunningQueue, Session, StartError,
    Vring,
};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

pub const VERSION_1: u64 = 1 << 32;
/// What the toy can insist on, as a zoned disk insists on ZONED.
pub const ZONED: u64 = 1 << 17;
pub const MQ: u64 = 1 << 12;
/// The toy's configuration space: byte n is n; only byte 32 is writable.
pub const CONFIG_BYTES: usize = 96;
pub const WRITABLE_OFFSET: u32 = 32;
/// By so much a queue of a toy that does not echo moves on before it is stopped.
pub const STRIDE: u16 = 3;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Connect,
    Accept(u64),
    Refuse(u64),
    WriteConfig(u32, Vec<u8>),
    Start(u16),
    Stop(u16),
    Reset,
    /// A buffer for so many queues of so many entries.
    Inflight(u16, u16),
    Disconnect,
}

/// The device. Its fields are what a test sets; its log is what a test reads.
pub struct Toy {
    pub features: u64,
    /// Features without which `accept_features` refuses.
    pub wanted: u64,
    pub queue_count: u16,
    pub queue_size_max: u16,
    /// Queues have a worker that echoes; otherwise they just count on.
    pub echo: bool,
    /// What is under way is kept for the next process.
    pub inflight: bool,
    /// So many requests are taken, and neither done nor answered.
    pub swallow: Arc<AtomicU32>,
    /// No queue can be started.
    pub broken: AtomicBool,
    pub shared: Arc<Shared>,
}

#[derive(Default)]
pub struct Shared {
    events: Mutex<Vec<Event>>,
    running: Mutex<BTreeMap<u16, Vring>>,
    config: Mutex<Vec<u8>>,
    frontend: Mutex<Option<FrontendNotifier>>,
}

impl Toy {
    pub fn new() -> Self {
        let shared = Shared::default();
        *shared.config.lock().unwrap() = (0..CONFIG_BYTES).map(|n| u8::try_from(n).unwrap()).collect();
        Self {
            features: VERSION_1 | ZONED | MQ,
            wanted: 0,
            queue_count: 4,
            queue_size_max: 256,
            echo: true,
            inflight: false,
            swallow: Arc::default(),
            broken: AtomicBool::new(false),
            shared: Arc::new(shared),
        }
    }

    /// What has happened since this was called last.
    pub fn take_events(&self) -> Vec<Event> {
        std::mem::take(&mut self.shared.events.lock().unwrap())
    }

    pub fn running(&self) -> BTreeMap<u16, Vring> {
        self.shared.running.lock().unwrap().clone()
    }

    /// Changes a byte of the configuration space, without telling anybody.
    pub fn set_config(&self, offset: usize, byte: u8) {
        self.shared.config.lock().unwrap()[offset] = byte;
    }

    /// The way to the front-end that connected last.
    pub fn frontend(&self) -> FrontendNotifier {
        self.shared.frontend.lock().unwrap().clone().unwrap()
    }
}

pub struct ToySession {
    features: u64,
    wanted: u64,
    queue_count: u16,
    queue_size_max: u16,
    echo: bool,
    swallow: Arc<AtomicU32>,
    broken: bool,
    accepted: Option<u64>,
    shared: Arc<Shared>,
}

pub struct ToyQueue {
    index: u16,
    work: Work,
    shared: Arc<Shared>,
}

enum Work {
    Count(Vring),
    Echo { stop: Arc<OwnedFd>, worker: JoinHandle<Vring> },
}

impl Backend for Toy {
    type Session = ToySession;

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_count(&self) -> u16 {
        self.queue_count
    }

    fn queue_size_max(&self) -> u16 {
        self.queue_size_max
    }

    fn keeps_inflight(&self) -> bool {
        self.inflight
    }

    fn connect(&self, frontend: FrontendNotifier) -> ToySession {
        assert!(self.running().is_empty(), "a queue of the last connection is still running");
        self.shared.log(Event::Connect);
        *self.shared.frontend.lock().unwrap() = Some(frontend);
        ToySession {
            features: self.features,
            wanted: self.wanted,
            queue_count: self.queue_count,
            queue_size_max: self.queue_size_max,
            echo: self.echo,
            swallow: Arc::clone(&self.swallow),
            broken: self.broken.load(Ordering::Relaxed),
            accepted: None,
            shared: Arc::clone(&self.shared),
        }
    }
}

impl Session for ToySession {
    type Queue = ToyQueue;

    fn accept_features(&mut self, features: u64) -> Result<(), FeaturesRefused> {
        assert_eq!(features & !self.features, 0, "features that were not offered");
        self.assert_nothing_runs();
        if features & self.wanted == self.wanted {
            self.accepted = Some(features);
            self.shared.log(Event::Accept(features));
            Ok(())
        } else {
            self.accepted = None;
            self.shared.log(Event::Refuse(features));
            Err(FeaturesRefused::new(format!("{:#x} is wanted", self.wanted)))
        }
    }

    fn read_config(&self, offset_bytes: u32, out: &mut [u8]) {
        assert!((1..=256).contains(&out.len()));
        let config = self.shared.config.lock().unwrap();
        for (n, byte) in out.iter_mut().enumerate() {
            let at = usize::try_from(offset_bytes).unwrap() + n;
            *byte = config.get(at).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset_bytes: u32, data: &[u8]) -> Result<(), ConfigRefused> {
        assert!((1..=256).contains(&data.len()));
        if offset_bytes != WRITABLE_OFFSET || data.len() != 1 {
            return Err(ConfigRefused::new("only byte 32 is writable"));
        }
        self.shared.config.lock().unwrap()[32] = data[0];
        self.shared.log(Event::WriteConfig(offset_bytes, data.to_vec()));
        Ok(())
    }

    fn use_inflight(&mut self, buffer: &Inflight) {
        self.assert_nothing_runs();
        self.shared.log(Event::Inflight(buffer.queue_count(), buffer.queue_size()));
    }

    fn start_queue(&mut self, index: u16, vring: Vring) -> Result<ToyQueue, StartError> {
        assert!(index < self.queue_count);
        assert!(vring.size.is_power_of_two() && vring.size <= self.queue_size_max);
        let size = usize::from(vring.size);
        for (area, length, align) in
            [(vring.desc, 16 * size, 16), (vring.avail, 6 + 2 * size, 2), (vring.used, 6 + 8 * size, 4)]
        {
            assert_eq!(area.raw_value() % align, 0);
            assert!(vring.memory.check_range(area, length), "{area:?}, {length} bytes are not memory");
        }
        assert_eq!(vring.features & !self.features, 0);
        if let Some(accepted) = self.accepted {
            assert_eq!(vring.features, accepted);
        }
        if self.broken {
            return Err(StartError::new("the toy is broken"));
        }
        let before = self.shared.running.lock().unwrap().insert(index, vring.clone());
        assert!(before.is_none(), "queue {index} is running already");
        self.shared.log(Event::Start(index));

        let work = if self.echo {
            let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
            let (stopped, swallow) = (Arc::clone(&stop), Arc::clone(&self.swallow));
            Work::Echo { stop, worker: thread::spawn(move || echo(vring, &stopped, &swallow)) }
        } else {
            Work::Count(vring)
        };
        Ok(ToyQueue { index, work, shared: Arc::clone(&self.shared) })
    }

    fn reset(&mut self) {
        self.assert_nothing_runs();
        self.accepted = None;
        self.shared.log(Event::Reset);
    }
}

impl ToySession {
    fn assert_nothing_runs(&self) {
        assert!(self.shared.running.lock().unwrap().is_empty(), "a queue is running");
    }
}

impl Drop for ToySession {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.assert_nothing_runs();
        }
        self.shared.log(Event::Disconnect);
    }
}

impl RunningQueue for ToyQueue {
    fn stop(self) -> Vring {
        let vring = match self.work {
            Work::Count(vring) => Vring { next_avail: vring.next_avail.wrapping_add(STRIDE), ..vring },
            Work::Echo { stop, worker } => {
                rustix::io::write(&*stop, &1_u64.to_ne_bytes()).unwrap();
                worker.join().unwrap()
            }
        };
        self.shared.running.lock().unwrap().remove(&self.index);
        self.shared.log(Event::Stop(self.index));
        vring
    }
}

impl Shared {
    fn log(&self, event: Event) {
        self.events.lock().unwrap().push(event);
    }
}

/// Works on a queue until told to stop: what is in the first descriptor's buffer is written, inverted, to the
/// second's. What an earlier process has taken comes first.
fn echo(mut vring: Vring, stop: &OwnedFd, swallow: &AtomicU32) -> Vring {
    let mut kick_lives = true;
    let resubmit = vring.inflight.as_ref().map_or_else(Vec::new, |inflight| inflight.resubmit().to_vec());
    for head in resubmit {
        let _ = echo_chain(&mut vring, head);
    }
    loop {
        while let Ok(true) = echo_one(&mut vring, swallow) {
            if let Some(call) = &vring.call {
                call.notify();
            }
        }
        let mut fds = vec![PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN)];
        if kick_lives {
            fds.push(PollFd::from_borrowed_fd(vring.kick.as_fd(), PollFlags::IN));
        }
        poll(&mut fds, None).unwrap();
        if !fds[0].revents().is_empty() {
            return vring;
        }
        let read = rustix::io::read(&*vring.kick, &mut [0; 512]);
        kick_lives = matches!(read, Ok(1..) | Err(rustix::io::Errno::AGAIN));
    }
}

/// One entry of the available ring, if there is one.
fn echo_one(vring: &mut Vring, swallow: &AtomicU32) -> Result<bool, vm_memory::GuestMemoryError> {
    let memory: &GuestMemoryMmap = &vring.memory;
    let available: u16 = memory.load(vring.avail.unchecked_add(2), Ordering::Acquire)?;
    if available == vring.next_avail {
        return Ok(false);
    }
    let slot = |index: u16| u64::from(index % vring.size);
    let head: u16 = memory.read_obj(vring.avail.unchecked_add(4 + 2 * slot(vring.next_avail)))?;
    vring.next_avail = vring.next_avail.wrapping_add(1);
    if let Some(inflight) = &mut vring.inflight {
        inflight.taken(head);
    }
    if swallow.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_err() {
        echo_chain(vring, head)?;
    }
    Ok(true)
}

fn echo_chain(vring: &mut Vring, head: u16) -> Result<(), vm_memory::GuestMemoryError> {
    let memory: &GuestMemoryMmap = &vring.memory;
    let slot = |index: u16| u64::from(index % vring.size);
    let mut written = 0;
    let first = vring.desc.unchecked_add(16 * slot(head));
    let next: u16 = memory.read_obj(first.unchecked_add(14))?;
    let second = vring.desc.unchecked_add(16 * slot(next));
    let length: u32 = memory.read_obj(first.unchecked_add(8))?;
    let mut bytes = vec![0; usize::try_from(length.min(4096)).unwrap()];
    if memory.read_slice(&mut bytes, GuestAddress(memory.read_obj(first)?)).is_ok() {
        bytes.iter_mut().for_each(|byte| *byte = !*byte);
        if memory.write_slice(&bytes, GuestAddress(memory.read_obj(second)?)).is_ok() {
            written = length.min(4096);
        }
    }
    let used: u16 = memory.load(vring.used.unchecked_add(2), Ordering::Relaxed)?;
    let entry = vring.used.unchecked_add(4 + 8 * slot(used));
    memory.write_obj(u32::from(head), entry)?;
    memory.write_obj(written, entry.unchecked_add(4))?;
    let used = used.wrapping_add(1);
    if let Some(inflight) = &mut vring.inflight {
        inflight.used(head);
    }
    memory.store(used, vring.used.unchecked_add(2), Ordering::Release)?;
    if let Some(inflight) = &mut vring.inflight {
        inflight.published(used);
    }
    Ok(())
}
