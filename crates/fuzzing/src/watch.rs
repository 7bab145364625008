//! Panics on other threads: a worker that dies must not go unnoticed because nobody waits for what it says.

use std::panic;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, ThreadId};

static ELSEWHERE: AtomicUsize = AtomicUsize::new(0);

/// Sees the panics of all threads but its own.
pub(crate) struct Watch {
    before: usize,
    own: ThreadId,
}

impl Watch {
    pub(crate) fn begin() -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                if thread::current().name().is_some_and(is_ours) {
                    ELSEWHERE.fetch_add(1, Ordering::SeqCst);
                }
                before(info);
            }));
        });
        Self { before: ELSEWHERE.load(Ordering::SeqCst), own: thread::current().id() }
    }

    /// Panics here if another thread has.
    #[track_caller]
    pub(crate) fn end(self) {
        assert_eq!(self.own, thread::current().id(), "a watch stays on its thread");
        assert_eq!(ELSEWHERE.load(Ordering::SeqCst), self.before, "a thread of the program has panicked");
    }
}

/// Whether a thread of this name is the program's. A test's own thread has the test's name.
pub(crate) fn is_ours(name: &str) -> bool {
    name.starts_with("queue ") || ["commit", "vhost-user"].contains(&name)
}
