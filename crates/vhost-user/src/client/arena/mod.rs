//! The memory that a process shares with its back-ends: one memfd, one mapping.
//!
//! [`Hal`](virtio_drivers::Hal) is a set of static functions, so there is one arena a process. It is made
//! when it is first needed: [`ARENA_BYTES`] of address space, of which only touched pages take memory. Each
//! back-end gets all of it as one memory region, so **back-ends are not protected from each other**: a
//! process that does not trust one of them talks to it alone. It must not be used on both sides of a `fork`.
//!
//! Addresses are made up: guest addresses begin at [`GUEST_BASE`], user addresses (which the protocol uses
//! for rings) at [`USER_BASE`]. Nothing of this process's own layout is told to a back-end.
//!
//! # Back-ends that are lost
//!
//! A connection that ends in an orderly way has had all its rings stopped, and the back-end is done with the
//! memory. One that is lost (the socket closed, an answer did not come in time, nonsense came) may have a
//! back-end behind it that goes on writing: its requests may still be in flight, and nothing can take the
//! mapping away from it. The rule is: **what is in use when a connection is lost is never given out again**.
//! Whoever has it may keep it; when it is given back it goes to quarantine instead of to the free memory
//! (whole pages give their memory back to the system; only their addresses are spent).
//!
//! This is sound because a back-end writes only where a descriptor or a ring told it to, and all of that is
//! in use until the driver has seen the used entry, or has stopped the ring. It is coarse because the arena
//! does not know whose memory is whose: other connections' memory of that moment goes to quarantine too, when
//! it is given back. A loss is rare, and costs no more than what was in use at that moment.

mod heap;
mod memory;

pub(crate) use self::memory::{Arena, arena};
pub use self::memory::{ArenaBuffer, ArenaHal};

/// How much address space the arena has. Memory is taken only for pages that are used.
pub(crate) const ARENA_BYTES: usize = 4 << 30;

/// The guest address of the arena's first byte. Not 0, which stands for "no memory".
pub(crate) const GUEST_BASE: u64 = 0x1_0000_0000;

/// The user address of the arena's first byte, as far as back-ends know.
pub(crate) const USER_BASE: u64 = 0x4000_0000_0000;

/// The granularity of rings and large buffers.
pub(crate) const PAGE_BYTES: usize = virtio_drivers::PAGE_SIZE;

/// Why there is no arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory to share with back-ends: cannot {action}: {errno}")]
pub struct ArenaError {
    /// What was tried.
    pub action: &'static str,
    /// What the system said.
    pub errno: rustix::io::Errno,
}
