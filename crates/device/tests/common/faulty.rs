//! An image whose medium fails, tears writes, or holds them up, where and when the test wants.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use virtio_zbd_store::{FileMedium, ImageStore, LiveWords, Medium, OpenOptions};
use virtio_zbd_zones::{Geometry, GeometryConfig};

use super::SECTOR;
use super::gate::Gate;

/// A file in memory that is reached by calls only, so that each can be looked at.
pub(crate) struct FaultyMedium {
    inner: FileMedium,
    rules: Mutex<Vec<Rule>>,
    /// Where the disk's first sector is.
    data_offset_bytes: Mutex<u64>,
}

/// A call that a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Read,
    Write,
    Punch,
    Sync,
}

/// What a rule does.
#[derive(Clone)]
enum Act {
    /// The call fails and has done nothing; with this errno if there is one.
    Fail(Option<Errno>),
    /// The first half is written, then the call fails.
    Tear,
    /// The call waits at the gate before anything else. With `true` only one that touches nothing outside the range.
    Hold(Arc<Gate>, bool),
}

#[derive(Clone)]
struct Rule {
    call: Call,
    /// In bytes of the file.
    range: Range<u64>,
    act: Act,
}

impl FaultyMedium {
    /// A new zoned disk on such a medium.
    #[track_caller]
    pub(crate) fn zoned(shape: GeometryConfig) -> (Arc<Self>, Arc<ImageStore>) {
        let memfd = memfd_create("image", MemfdFlags::CLOEXEC).unwrap();
        let inner = FileMedium::new(File::from(memfd), Path::new("the image"));
        let medium = Arc::new(Self { inner, rules: Mutex::default(), data_offset_bytes: Mutex::new(0) });
        ImageStore::create_on(&*medium, Geometry::new(shape).unwrap()).unwrap();
        let store = Arc::new(ImageStore::open_on(medium.clone(), OpenOptions::default()).unwrap());
        *medium.data_offset_bytes.lock().unwrap() = store.info().unwrap().data_offset_bytes;
        (medium, store)
    }

    /// Calls of this kind that touch these sectors of the disk fail from now on.
    pub(crate) fn fail(&self, call: Call, sectors: Range<u64>) {
        self.rule(call, sectors, Act::Fail(None));
    }

    /// The same with an errno.
    pub(crate) fn fail_with(&self, call: Call, sectors: Range<u64>, errno: Errno) {
        self.rule(call, sectors, Act::Fail(Some(errno)));
    }

    /// Opens the image again as after a power cut: what was not made durable does not count.
    pub(crate) fn after_a_power_cut(self: &Arc<Self>) -> Arc<ImageStore> {
        let options = OpenOptions { boot_id: Some([9; 16]), ..OpenOptions::default() };
        Arc::new(ImageStore::open_on(Arc::<Self>::clone(self), options).unwrap())
    }

    /// Writes that touch these sectors are torn from now on.
    pub(crate) fn tear(&self, sectors: Range<u64>) {
        self.rule(Call::Write, sectors, Act::Tear);
    }

    /// Calls of this kind that touch these sectors wait at the gate from now on, until it is opened.
    pub(crate) fn hold(&self, call: Call, sectors: Range<u64>) -> Arc<Gate> {
        self.hold_some(call, sectors, false)
    }

    /// As [`Self::hold`], for calls that touch nothing but these sectors.
    pub(crate) fn hold_inside(&self, call: Call, sectors: Range<u64>) -> Arc<Gate> {
        self.hold_some(call, sectors, true)
    }

    fn hold_some(&self, call: Call, sectors: Range<u64>, inside: bool) -> Arc<Gate> {
        let gate = Arc::new(Gate::default());
        gate.close();
        self.rule(call, sectors, Act::Hold(Arc::clone(&gate), inside));
        gate
    }

    /// Syncs fail from now on.
    pub(crate) fn fail_syncs(&self) {
        self.rules.lock().unwrap().push(Rule { call: Call::Sync, range: 0..1, act: Act::Fail(None) });
    }

    /// All is well again.
    pub(crate) fn heal(&self) {
        self.rules.lock().unwrap().clear();
    }

    fn rule(&self, call: Call, sectors: Range<u64>, act: Act) {
        let base = *self.data_offset_bytes.lock().unwrap();
        let byte = |sector: u64| base + sector * SECTOR as u64;
        let range = byte(sectors.start)..byte(sectors.end);
        self.rules.lock().unwrap().push(Rule { call, range, act });
    }

    /// Waits where a rule says so. Returns what else is to happen to a call.
    fn meet(&self, call: Call, range: &Range<u64>) -> Option<Act> {
        let touches =
            |rule: &&Rule| rule.call == call && rule.range.start < range.end && range.start < rule.range.end;
        let rules: Vec<Rule> = self.rules.lock().unwrap().iter().filter(touches).cloned().collect();
        let mut held = false;
        for rule in &rules {
            let inside = rule.range.start <= range.start && range.end <= rule.range.end;
            match &rule.act {
                Act::Hold(gate, only_inside) if inside || !only_inside => {
                    gate.pass();
                    held = true;
                }
                _ => {}
            }
        }
        // What was ordered while the call was held counts, too.
        let rules =
            if held { self.rules.lock().unwrap().iter().filter(touches).cloned().collect() } else { rules };
        rules.into_iter().map(|rule| rule.act).find(|act| !matches!(act, Act::Hold(..)))
    }
}

fn error(act: Act) -> io::Error {
    match act {
        Act::Fail(Some(errno)) => errno.into(),
        _ => io::Error::other("the test wants it so"),
    }
}

impl Medium for FaultyMedium {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn len_bytes(&self) -> io::Result<u64> {
        self.inner.len_bytes()
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.inner.allocated_bytes()
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.inner.set_len(len_bytes)
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.inner.allocate(range)
    }

    fn read_at(&self, into: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        match self.meet(Call::Read, &(offset_bytes..offset_bytes + into.len() as u64)) {
            Some(act) => Err(error(act)),
            None => self.inner.read_at(into, offset_bytes),
        }
    }

    fn write_at(&self, from: &[u8], offset_bytes: u64) -> io::Result<()> {
        match self.meet(Call::Write, &(offset_bytes..offset_bytes + from.len() as u64)) {
            Some(Act::Tear) => {
                self.inner.write_at(&from[..from.len() / 2], offset_bytes)?;
                Err(error(Act::Tear))
            }
            Some(act) => Err(error(act)),
            None => self.inner.write_at(from, offset_bytes),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        match self.meet(Call::Sync, &(0..1)) {
            Some(act) => Err(error(act)),
            None => self.inner.sync_data(),
        }
    }

    fn punch_hole(&self, range: Range<u64>) -> io::Result<()> {
        match self.meet(Call::Punch, &range) {
            Some(act) => Err(error(act)),
            None => self.inner.punch_hole(range),
        }
    }

    fn next_data(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        self.inner.next_data(range)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn map_words(&self, offset_bytes: u64, count: usize) -> io::Result<LiveWords> {
        self.inner.map_words(offset_bytes, count)
    }
}
