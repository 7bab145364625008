//! A mutex for tests of one thread: it fails where another would wait for ever, and lets something else happen at the moment
//! when the thread has let go of its last lock.
#![allow(unsafe_code)]
#![allow(dead_code, reason = "not every test has something happen")]

use std::cell::{Cell, RefCell};

use lock_api::RawMutex;

/// Locks like `parking_lot`'s mutex.
pub(crate) struct HookedMutex(parking_lot::RawMutex);

thread_local! {
    static HELD: Cell<u32> = const { Cell::new(0) };
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

struct Hook {
    moments_to_go: u32,
    act: Box<dyn FnOnce()>,
}

/// Does `act` when this thread has let go of its last lock for the `moment`th time from now.
pub(crate) fn at_moment(moment: u32, act: impl FnOnce() + 'static) {
    HOOK.set(Some(Hook { moments_to_go: moment, act: Box::new(act) }));
}

/// Does not do what was asked for, if it was not done yet.
pub(crate) fn forget() {
    HOOK.set(None);
}

// SAFETY: each call goes to parking_lot's mutex, which keeps the contract; what happens besides does not touch the lock.
unsafe impl RawMutex for HookedMutex {
    #[allow(clippy::declare_interior_mutable_const, reason = "the trait has it so")]
    const INIT: Self = Self(parking_lot::RawMutex::INIT);

    type Guard = <parking_lot::RawMutex as RawMutex>::Guard;

    fn lock(&self) -> Self::Guard {
        // One thread does it all here: waiting for a lock would be for ever.
        self.try_lock().expect("a lock is taken twice: this call would never come back")
    }

    fn try_lock(&self) -> Option<Self::Guard> {
        let guard = self.0.try_lock()?;
        HELD.set(HELD.get() + 1);
        Some(guard)
    }

    fn is_locked(&self) -> bool {
        self.0.is_locked()
    }

    unsafe fn unlock(&self, guard: Self::Guard) {
        // SAFETY: the guard is this lock's, as the trait asks of our caller.
        unsafe { self.0.unlock(guard) };
        HELD.set(HELD.get() - 1);
        if HELD.get() > 0 {
            return;
        }
        let due = HOOK.with_borrow_mut(|hook| {
            hook.take_if(|hook| {
                hook.moments_to_go -= 1;
                hook.moments_to_go == 0
            })
        });
        if let Some(hook) = due {
            (hook.act)();
        }
    }
}
