//! Real Linux guests, for tests and for the curious.
//!
//! A guest is a User-mode Linux kernel: it runs as an ordinary process, needs no virtualization, and attaches a vhost-user
//! socket as `/dev/vda`. Its root is the host's own file system under a writable layer of memory, so the guest has the host's
//! tools and leaves no trace. Or it is a machine of QEMU's with a distribution's kernel ([`Guest::in_qemu`]): slower, otherwise the
//! same. The way from nothing to a command in a guest:
//!
//! 1. [`packages`]: what the build and the tests need from Debian is installed (as root) or named.
//! 2. [`Kernel::ensure`]: the kernel is built once, from Debian's source package, and kept in the [`cache`].
//! 3. [`ServedDisk`]: `vzbd` makes a disk and serves it on a socket.
//! 4. [`Guest`]: boots, runs a command, gives back its status and its output.
//!
//! For QEMU's machines [`Qemu::ensure`] and [`StockKernel::ensure`] stand in the place of the second.
//!
//! And for our driver, guests without Linux:
//!
//! 1. [`Qemu::ensure`]: a QEMU with zoned disks, the machine's own or one that is downloaded once.
//! 2. [`BareMetal::build`]: the kernels in `guest/baremetal`, one with the driver's test list and one for an example.
//! 3. [`TestMachine`]: runs a kernel on one of QEMU's machines (in a [`Guest`], if the disk is there), gives back its verdict
//!    and its words.
//!
//! ```no_run
//! use virtio_zbd_guest::{Geometry, Guest, Kernel, ServedDisk};
//!
//! # fn main() -> Result<(), virtio_zbd_guest::Error> {
//! let kernel = Kernel::cached()?;
//! let disk = ServedDisk::create(&Geometry::new("4G", "64M"))?;
//! let output = Guest::new(&kernel).disk(disk.socket()).sh("blkzone report /dev/vda")?;
//! assert!(output.status.success());
//! # Ok(())
//! # }
//! ```
//!
//! What runs as process 1 of the guest is the program `guest-init` of this package; [`job`] is what the two say to each other.
#![forbid(unsafe_code)]

mod baremetal;
mod boot;
pub mod cache;
mod command;
mod disk;
mod error;
pub mod job;
mod kernel;
mod memory;
pub mod modules;
pub mod packages;
mod process;
pub mod programs;
pub mod qemu;
mod terminal;
pub mod tools;
pub mod work;

pub use baremetal::{BareMetal, Machine, Report, TestMachine, Verdict};
pub use boot::{Guest, Output, RunningGuest};
pub use disk::{DiskTarget, Geometry, ServedDisk};
pub use error::{Error, Result};
pub use job::Status;
pub use kernel::{KERNEL_VARIABLE, Kernel};
pub use qemu::{FrontEnd, Qemu, StockKernel};

/// Where long work says how far it is: called with a short line now and then.
pub type Progress<'a> = &'a mut dyn FnMut(&str);
