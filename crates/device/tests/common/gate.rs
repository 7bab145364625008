//! A gate: what comes to it waits, and the test knows that it does.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The test does not wait longer than this for anybody.
const PATIENCE: Duration = Duration::from_secs(20);

/// A gate, open until it is closed.
#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    closed: bool,
    waiting: usize,
}

impl Gate {
    /// Whoever passes from now on waits.
    pub(crate) fn close(&self) {
        self.state().closed = true;
    }

    /// Lets all go on who wait, and all who come.
    pub(crate) fn open(&self) {
        self.state().closed = false;
        self.changed.notify_all();
    }

    /// Waits where the gate is closed.
    pub(crate) fn pass(&self) {
        let mut state = self.state();
        state.waiting += 1;
        self.changed.notify_all();
        while state.closed {
            let (again, wait) =
                self.changed.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner);
            state = again;
            // The test has failed and is gone.
            if wait.timed_out() {
                break;
            }
        }
        state.waiting -= 1;
    }

    /// Waits until `count` are waiting at the gate.
    #[track_caller]
    pub(crate) fn wait_for(&self, count: usize) {
        let state = self.state();
        let (state, wait) = self
            .changed
            .wait_timeout_while(state, PATIENCE, |state| state.waiting < count)
            .unwrap_or_else(PoisonError::into_inner);
        assert!(!wait.timed_out(), "{} have come to the gate, {count} were expected", state.waiting);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
