//! The list of watched mappings, and the handler that looks into it.
//!
//! The handler may run at any moment on any thread, so it takes no lock and allocates nothing. The list only grows;
//! a place in it is never freed, but used again.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU8, AtomicUsize};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

use rustix::param::page_size;

use crate::Alarm;

/// A mapping that is watched. Dropping it ends the watch, not the mapping.
#[derive(Debug)]
pub struct MapGuard {
    place: &'static Place,
    alarm: Alarm,
}

impl MapGuard {
    /// Watches the mapping of `len_bytes` bytes at `addr`, with an alarm of its own.
    ///
    /// # Safety
    ///
    /// As for [`watch_with`](Self::watch_with).
    ///
    /// # Errors
    ///
    /// As for [`watch_with`](Self::watch_with), or there are no file descriptors left.
    pub unsafe fn watch(addr: *mut u8, len_bytes: usize) -> io::Result<Self> {
        // SAFETY: what is asked for is what the caller promises.
        unsafe { Self::watch_with(addr, len_bytes, &Alarm::new()?) }
    }

    /// Watches the mapping of `len_bytes` bytes at `addr`, as they were given to mmap, and raises `alarm` when it is
    /// lost.
    ///
    /// # Safety
    ///
    /// The range is one mapping of the caller's, whole (its last page may be counted in part), and stays mapped until
    /// the guard is dropped. While it is watched its bytes may become zeros at any moment: nobody holds Rust
    /// references to them; volatile and atomic accesses, and those of the kernel, are fine.
    ///
    /// # Errors
    ///
    /// The range is empty, not at a page's start or longer than the address space; or the handler could not be
    /// installed.
    pub unsafe fn watch_with(addr: *mut u8, len_bytes: usize, alarm: &Alarm) -> io::Result<Self> {
        let start = addr.expose_provenance();
        let len_bytes = len_bytes.checked_next_multiple_of(page_size());
        let range = len_bytes.filter(|len| {
            *len > 0 && start != 0 && start.is_multiple_of(page_size()) && start.checked_add(*len).is_some()
        });
        let Some(len_bytes) = range else {
            let what = format!("a mapping at {start:#x} can't be watched: it is empty or not made of pages");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        };
        install()?;
        let place = Place::take();
        place.watch(start, len_bytes, alarm.as_fd());
        Ok(Self { place, alarm: alarm.clone() })
    }

    /// Whether a fault has replaced the mapping by zeros. True before the first zero can be read, and for good.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.place.lost.load(SeqCst)
    }

    /// Becomes readable when the mapping is lost, for poll. Shared with whatever shares its alarm.
    #[must_use]
    pub fn lost_fd(&self) -> BorrowedFd<'_> {
        self.alarm.as_fd()
    }
}

impl Drop for MapGuard {
    fn drop(&mut self) {
        self.place.give_back();
    }
}

/// The mapping is the file's.
const INTACT: u8 = 0;
/// A handler is replacing it.
const REPLACING: u8 = 1;
/// It is zeros.
const REPLACED: u8 = 2;

/// One place of the list.
#[derive(Debug)]
struct Place {
    /// The place that was made before this one. Never changes once the list has this place.
    next: AtomicPtr<Place>,
    /// How many handlers look at this place now. It does not change under them: who wants to change it first clears
    /// `watched`, then waits for them.
    readers: AtomicUsize,
    watched: AtomicBool,
    start: AtomicUsize,
    len_bytes: AtomicUsize,
    alarm: AtomicI32,
    state: AtomicU8,
    lost: AtomicBool,
}

/// The place that was made last.
static PLACES: AtomicPtr<Place> = AtomicPtr::new(ptr::null_mut());
/// Places that nobody uses. Not for the handler.
static FREE: Mutex<Vec<&'static Place>> = Mutex::new(Vec::new());

impl Place {
    /// A place that nobody uses, on the list.
    fn take() -> &'static Self {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = free.pop() {
            return place;
        }
        let place = Box::leak(Box::new(Self {
            next: AtomicPtr::new(PLACES.load(Relaxed)),
            readers: AtomicUsize::new(0),
            watched: AtomicBool::new(false),
            start: AtomicUsize::new(0),
            len_bytes: AtomicUsize::new(0),
            alarm: AtomicI32::new(-1),
            state: AtomicU8::new(INTACT),
            lost: AtomicBool::new(false),
        }));
        // The lock is held: no other place comes in between.
        PLACES.store(place, Release);
        place
    }

    fn watch(&self, start: usize, len_bytes: usize, alarm: BorrowedFd<'_>) {
        self.start.store(start, Relaxed);
        self.len_bytes.store(len_bytes, Relaxed);
        self.alarm.store(alarm.as_raw_fd(), Relaxed);
        self.state.store(INTACT, Relaxed);
        self.lost.store(false, Relaxed);
        self.watched.store(true, SeqCst);
    }

    /// Ends the watch. Afterwards no handler uses the mapping or the alarm.
    fn give_back(&'static self) {
        self.watched.store(false, SeqCst);
        // Only handlers on other threads are waited for: one on this thread has returned.
        while self.readers.load(SeqCst) != 0 {
            thread::yield_now();
        }
        FREE.lock().unwrap_or_else(PoisonError::into_inner).push(self);
    }

    /// In the handler: whether the fault was in this mapping and the access may be tried again.
    fn take_fault(&self, fault: &Fault) -> bool {
        self.readers.fetch_add(1, SeqCst);
        let inside = self.watched.load(SeqCst)
            && fault.address.wrapping_sub(self.start.load(Relaxed)) < self.len_bytes.load(Relaxed);
        let taken = inside && self.replace(fault);
        self.readers.fetch_sub(1, SeqCst);
        taken
    }

    /// In the handler: puts zeros in the mapping's place. All of it at once: page by page, one that is touched here
    /// and there would fall into more pieces than a process may have, and huge pages have no parts.
    fn replace(&self, fault: &Fault) -> bool {
        match self.state.compare_exchange(INTACT, REPLACING, SeqCst, SeqCst) {
            Ok(_) => {}
            // Another thread is at it: this one comes back until it is done.
            Err(REPLACING) => return true,
            // It was done after this fault and before we looked. Zeros have no file to end early; they can only have
            // failing memory, and that is not to be tried again.
            Err(_) => return fault.code != libc::BUS_MCEERR_AR,
        }
        // First: who reads a zero and then asks must be told.
        self.lost.store(true, SeqCst);
        let whole = map_zeros(self.start.load(Relaxed), self.len_bytes.load(Relaxed));
        // A host that counts every page may not have that many.
        let done = whole || map_zeros(fault.address & !(fault.page_bytes - 1), fault.page_bytes);
        self.state.store(if whole { REPLACED } else { INTACT }, SeqCst);
        ring(self.alarm.load(Relaxed));
        done
    }
}

/// What a SIGBUS says.
struct Fault {
    address: usize,
    code: c_int,
    page_bytes: usize,
}

/// The disposition of SIGBUS that ours has replaced.
static BEFORE: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());
/// A page's length, which the handler does not have to ask for.
static PAGE_BYTES: AtomicUsize = AtomicUsize::new(4096);

/// Installs the handler, once in a process.
fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        PAGE_BYTES.store(page_size(), Relaxed);
        // Known before ours can run.
        let before = Box::leak(Box::new(current()?));
        BEFORE.store(before, Release);
        // SAFETY: all zeros is an empty mask, no flags and SIG_DFL.
        let mut ours: libc::sigaction = unsafe { std::mem::zeroed() };
        ours.sa_sigaction = on_sigbus as *const () as usize;
        // On the stack that a thread has for it: the fault may be an overflow of its own, for the handler before.
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: `ours` is a whole sigaction with a handler of the three-argument form, as its flag says.
        match unsafe { libc::sigaction(libc::SIGBUS, &raw const ours, ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(errno()),
        }
    });
    installed.map_err(io::Error::from_raw_os_error)
}

/// What is done on SIGBUS now.
fn current() -> Result<libc::sigaction, i32> {
    // SAFETY: all zeros is a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: `action` is there to be written to.
    match unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut action) } {
        0 => Ok(action),
        _ => Err(errno()),
    }
}

/// The handler. Everything that it calls is async-signal-safe: mmap is a system call.
extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let errno = errno();
    // SAFETY: the kernel hands a siginfo to a handler with SA_SIGINFO.
    let told = unsafe { &*info };
    let code = told.si_code;
    // Zero and below: sent by a process, and without an address.
    let taken = code > 0 && {
        // SAFETY: SIGBUS of the kernel has an address.
        let address = unsafe { told.si_addr() };
        let fault = Fault { address: address.addr(), code, page_bytes: PAGE_BYTES.load(Relaxed) };
        // A misaligned access is the program's mistake, wherever it happens.
        code != libc::BUS_ADRALN && places().any(|place| place.take_fault(&fault))
    };
    if !taken {
        hand_on(signal, info, context, code <= 0);
    }
    set_errno(errno);
}

/// All places, those in use and the others.
fn places() -> impl Iterator<Item = &'static Place> {
    let mut next = PLACES.load(Acquire);
    std::iter::from_fn(move || {
        // SAFETY: null, or a place that was leaked before it was published.
        let place = unsafe { next.as_ref() }?;
        next = place.next.load(Relaxed);
        Some(place)
    })
}

/// In the handler: has the signal done what it would have done without us.
fn hand_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void, sent: bool) {
    // SAFETY: null, or what `install` has leaked.
    let before = unsafe { BEFORE.load(Acquire).as_ref() };
    match before.map(|before| (before.sa_sigaction, before.sa_flags & libc::SA_SIGINFO != 0)) {
        None | Some((libc::SIG_DFL, _)) => {
            set_default(signal);
            // A fault comes again when this returns; a signal that was sent does not.
            if sent {
                raise(signal);
            }
        }
        Some((libc::SIG_IGN, _)) if sent => {}
        // A fault cannot be ignored: the kernel ends the process.
        Some((libc::SIG_IGN, _)) => set_default(signal),
        Some((handler, three_arguments)) => {
            if three_arguments {
                type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut libc::c_void);
                // SAFETY: it was installed as a handler of this form.
                let handler = unsafe { std::mem::transmute::<usize, Handler>(handler) };
                handler(signal, info, context);
            } else {
                // SAFETY: it was installed as a handler of this form.
                let handler = unsafe { std::mem::transmute::<usize, extern "C" fn(c_int)>(handler) };
                handler(signal);
            }
            // Rust's own takes itself (and so us) out and trusts that a fault comes again. One that was sent does
            // not, and nobody must run on unguarded.
            if sent && current().is_ok_and(|now| now.sa_sigaction == libc::SIG_DFL) {
                raise(signal);
            }
        }
    }
}

/// Puts private zero pages at an address range that is mapped.
fn map_zeros(start: usize, len_bytes: usize) -> bool {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    let start = ptr::with_exposed_provenance_mut(start);
    // SAFETY: the range is a mapping whose owner has agreed to this (`MapGuard::watch_with`).
    let mapped = unsafe { libc::mmap(start, len_bytes, protection, flags, -1, 0) };
    mapped != libc::MAP_FAILED
}

/// Makes an eventfd readable. That it is full does not matter: then it is readable.
fn ring(alarm: c_int) {
    let one = 1_u64.to_ne_bytes();
    // SAFETY: eight bytes are read from `one`; the eventfd is open as long as the guard is watched.
    let _ = unsafe { libc::write(alarm, one.as_ptr().cast(), one.len()) };
}

fn set_default(signal: c_int) {
    // SAFETY: SIG_DFL is a disposition for every signal.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// Has the signal delivered to this thread when the handler returns.
fn raise(signal: c_int) {
    // SAFETY: no memory is involved.
    unsafe { libc::raise(signal) };
}

fn errno() -> c_int {
    // SAFETY: every thread has one.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: this thread's errno.
    unsafe { *place }
}

fn set_errno(value: c_int) {
    // SAFETY: every thread has one.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: this thread's errno.
    unsafe { *place = value };
}
