//! Guards shared file mappings against SIGBUS.
//!
//! Whoever can truncate a file can end every process that has it mapped: touching a page past the file's end raises
//! SIGBUS. So does a page that the file system cannot allocate, and one whose memory has failed. Here a mapping is
//! watched instead: at the first such fault all of it is replaced by pages of zeros, the access goes on with those,
//! [`MapGuard::is_lost`] is true from then on, and an [`Alarm`] becomes readable for whoever waits for it with poll.
//! A SIGBUS anywhere else goes to the handler that was there before, or ends the process as it did before.
//!
//! What the kernel touches on our behalf (read, write, io_uring) never raises the signal: there the call fails with
//! EFAULT, and nothing is replaced until the process itself touches the mapping.
//!
//! ```
//! use virtio_zbd_mapguard::{Alarm, MapGuard};
//! # use vm_memory::{Bytes, FileOffset, GuestMemoryRegion, MmapRegion, VolatileMemory};
//! # use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
//! # let file = std::fs::File::from(memfd_create("shared", MemfdFlags::CLOEXEC)?);
//! # file.set_len(8192)?;
//! let mapping = MmapRegion::<()>::from_file(FileOffset::new(file.try_clone()?, 0), 8192)?;
//! // SAFETY: the mapping is ours and is unmapped after the guard is gone; it is touched by volatile accesses only.
//! let guard = unsafe { MapGuard::watch(mapping.as_ptr(), mapping.size()) }?;
//! file.set_len(0)?;
//! let byte: u8 = mapping.as_volatile_slice().read_obj(4096)?;
//! assert!(byte == 0 && guard.is_lost());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The handler is installed by the first [`MapGuard::watch`] and stays. A program that installs one of its own later
//! must hand on what it does not know; a thread that blocks SIGBUS dies of the first fault, guarded or not.

// A signal handler needs some: one module allows it for itself.
#![deny(unsafe_code)]

mod alarm;
mod handler;

pub use alarm::Alarm;
pub use handler::MapGuard;
