//! Who is connected, and is told when the disk has grown.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use virtio_zbd_device::Disk;
use virtio_zbd_vhost_user::{FrontendNotifier, Inflight};

use crate::backend::Buffer;

/// The connected front-ends. As a rule there is one.
#[derive(Default)]
pub(crate) struct Frontends(Mutex<State>);

#[derive(Default)]
struct State {
    next: u64,
    connected: BTreeMap<u64, Frontend>,
}

struct Frontend {
    notifier: FrontendNotifier,
    /// Where to put down that it was told, for the process after this one.
    inflight: Option<Inflight>,
    /// It does not know of the disk's size, and could not be told yet.
    untold: bool,
}

impl Frontends {
    /// Takes a front-end in. Returns what it is called from now on.
    pub(crate) fn connected(&self, notifier: FrontendNotifier) -> u64 {
        let mut state = self.0.lock();
        let id = state.next;
        state.next += 1;
        state.connected.insert(id, Frontend { notifier, inflight: None, untold: false });
        id
    }

    pub(crate) fn gone(&self, id: u64) {
        self.0.lock().connected.remove(&id);
    }

    /// The front-end has shown its buffer of requests under way, which was taken up. If that says that its driver knows another size than the
    /// disk has now, the process before this one has died before it could tell.
    pub(crate) fn has_buffer(&self, id: u64, buffer: &Inflight, disk: &Disk) {
        let mut state = self.0.lock();
        let Some(frontend) = state.connected.get_mut(&id) else { return };
        frontend.inflight = Some(buffer.clone());
        frontend.untold |= !disk.capacity_is_told(&Buffer(buffer));
        match frontend.untold {
            true => frontend.tell(disk),
            false => disk.keep_capacity(&Buffer(buffer)),
        }
    }

    /// Tells a front-end what it could not be told before: its queues begin, so its channel must be there.
    pub(crate) fn begins(&self, id: u64, disk: &Disk) {
        if let Some(frontend) = self.0.lock().connected.get_mut(&id)
            && frontend.untold
        {
            frontend.tell(disk);
        }
    }

    /// The disk has grown. Returns how many front-ends see that.
    pub(crate) fn tell_all(&self, disk: &Disk) -> usize {
        let mut state = self.0.lock();
        state.connected.values_mut().for_each(|frontend| frontend.tell(disk));
        state.connected.values().filter(|frontend| !frontend.untold).count()
    }
}

impl Frontend {
    fn tell(&mut self, disk: &Disk) {
        self.untold = !self.notifier.config_changed();
        if let (false, Some(buffer)) = (self.untold, &self.inflight) {
            disk.keep_capacity(&Buffer(buffer));
        }
    }
}
