//! The command line of a machine of QEMU's with Linux: the host's files come over 9p, the kernel's log over a serial line.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::initramfs::Initramfs;
use super::{Qemu, StockKernel};
use crate::Result;
use crate::boot::{Disk, Guest};
use crate::job::{self, HOST_TAG, JOB_TAG};

/// The queues' size: what QEMU's virtio-blk has by default is 256, and this is enough for any request of ours.
const QUEUE_SIZE: u16 = 128;

/// The size of virtio-blk's configuration space with its zoned part (virtio 1.3, 5.2.4).
const CONFIG_LEN_BYTES: u32 = 96;

/// virtio's number for a block device.
const BLOCK_DEVICE: u32 = 2;

/// The device by which QEMU attaches a vhost-user socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontEnd {
    /// `vhost-user-test-device-pci`: each feature bit and the whole configuration are passed on, so the disk may be zoned. It tracks
    /// no requests in flight and does not connect again.
    TestDevice,
    /// `vhost-user-blk-pci`: for disks without zones, whose feature it does not know. It tracks requests in flight, and when the
    /// connection is closed it tries to connect again, every so many milliseconds; with 0 it does not.
    Blk {
        /// The time between two attempts.
        reconnect_ms: u32,
    },
}

/// What a machine has of its own.
#[derive(Clone, Debug)]
pub(crate) struct QemuMachine {
    qemu: PathBuf,
    pub(crate) kernel: StockKernel,
    pub(crate) processors: u16,
    pub(crate) front_end: FrontEnd,
    pub(crate) args: Vec<OsString>,
    /// The guest that QEMU runs in, and the script that starts it there.
    pub(crate) host: Option<Box<(Guest, OsString)>>,
}

/// What a machine is told of the guest.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    /// The directory that it shares with us.
    pub(crate) dir: &'a Path,
    /// Where the kernel's log goes, in it.
    pub(crate) log: &'a Path,
    pub(crate) guest_init: &'a Path,
    pub(crate) memory_mib: u32,
    pub(crate) disks: &'a [Disk],
    pub(crate) shares: &'a [PathBuf],
    pub(crate) kernel_args: &'a [String],
    pub(crate) is_interactive: bool,
}

impl QemuMachine {
    pub(crate) fn new(qemu: &Qemu, kernel: &StockKernel) -> QemuMachine {
        QemuMachine {
            qemu: qemu.path().to_path_buf(),
            kernel: kernel.clone(),
            processors: 1,
            front_end: FrontEnd::TestDevice,
            args: Vec::new(),
            host: None,
        }
    }

    /// QEMU's program and arguments. The guest's first files are written into its directory.
    pub(crate) fn words(&self, guest: &Surroundings<'_>) -> Result<Vec<OsString>> {
        let files = guest.dir.join("initramfs");
        self.first_files(guest.guest_init)?.write(&files)?;
        let Self { processors, .. } = self;
        let memory_mib = guest.memory_mib;
        let mut line = Line(vec![self.qemu.clone().into()]);
        // A daemon can see the memory.
        line.add("-object", format!("memory-backend-memfd,id=memory,size={memory_mib}M,share=on"));
        line.add("-m", format!("{memory_mib}M"));
        line.add("-machine", "q35,memory-backend=memory");
        line.add("-accel", if *processors == 1 { "tcg,thread=single" } else { "tcg" });
        line.add("-cpu", "max");
        line.add("-smp", processors.to_string());
        line.0.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(OsString::from));
        line.add("-display", "none");
        line.path("-chardev", "file,id=log,append=on,path=", guest.log);
        line.add("-serial", "chardev:log");
        if guest.is_interactive {
            line.add("-chardev", "stdio,id=terminal,signal=off");
            line.add("-device", "virtio-serial-pci");
            line.add("-device", "virtconsole,chardev=terminal");
        }
        // Reading is all that it may do to the host's files.
        host_directory(&mut line, HOST_TAG, Path::new("/"), ",readonly=on");
        host_directory(&mut line, JOB_TAG, guest.dir, "");
        for (number, share) in guest.shares.iter().enumerate() {
            host_directory(&mut line, &job::share_tag(number), share, "");
        }
        for (number, disk) in guest.disks.iter().enumerate() {
            self.disk(&mut line, number, disk);
        }
        line.add("-kernel", self.kernel.image());
        line.add("-initrd", files);
        let mut words = "console=ttyS0 quiet panic=-1 rdinit=/init".to_owned();
        for arg in guest.kernel_args {
            words.push(' ');
            words.push_str(arg);
        }
        // A plain word, and process 1's own.
        line.add("-append", format!("{words} -- {}", guest.dir.display()));
        line.0.extend(self.args.iter().cloned());
        Ok(line.0)
    }

    /// Process 1, and the modules without which it does not come to the host's files.
    fn first_files(&self, guest_init: &Path) -> Result<Initramfs> {
        let mut files = Initramfs::new();
        for dir in ["/dev", "/proc", "/sys", job::HOST_DIR, job::FIRST_MODULES_DIR] {
            files.directory(Path::new(dir));
        }
        files.program(guest_init, Path::new("/init"))?;
        for (number, module) in self.kernel.first_modules()?.iter().enumerate() {
            files.copy(module, &Path::new(job::FIRST_MODULES_DIR).join(format!("{number:03}.ko")))?;
        }
        Ok(files)
    }

    fn disk(&self, line: &mut Line, number: usize, disk: &Disk) {
        let Self { processors, .. } = self;
        let path = match disk {
            Disk::Qemus(path) => {
                // What lies in /dev may be there in another guest only, so nothing can be asked of it here.
                let driver = if path.starts_with("/dev") { "host_device,cache.direct=on" } else { "file" };
                let options = format!("driver={driver},node-name=disk{number},discard=unmap,filename=");
                line.path("-blockdev", &options, path);
                line.add("-device", format!("virtio-blk-pci,drive=disk{number},num-queues={processors}"));
                return;
            }
            Disk::Socket(path) => path,
        };
        let (reconnect, device) = match self.front_end {
            FrontEnd::TestDevice => (
                String::new(),
                format!(
                    "vhost-user-test-device-pci,chardev=disk{number},virtio-id={BLOCK_DEVICE},num_vqs={processors},\
                     vq_size={QUEUE_SIZE},config_size={CONFIG_LEN_BYTES}"
                ),
            ),
            FrontEnd::Blk { reconnect_ms } => (
                format!("reconnect-ms={reconnect_ms},"),
                format!(
                    "vhost-user-blk-pci,chardev=disk{number},num-queues={processors},queue-size={QUEUE_SIZE}"
                ),
            ),
        };
        line.path("-chardev", &format!("socket,id=disk{number},{reconnect}path="), path);
        line.add("-device", device);
    }
}

/// A directory that the guest mounts by its tag.
fn host_directory(line: &mut Line, tag: &str, path: &Path, options: &str) {
    // Files are of the user who runs QEMU; other file systems below the directory have numbers of their own for their files.
    line.path("-fsdev", &format!("local,id={tag},security_model=none,multidevs=remap{options},path="), path);
    line.add("-device", format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"));
}

/// A command line that grows.
struct Line(Vec<OsString>);

impl Line {
    fn add(&mut self, option: &str, value: impl Into<OsString>) {
        self.0.extend([option.into(), value.into()]);
    }

    /// A value with a path in it. A comma ends a part of a value, two are one.
    fn path(&mut self, option: &str, before: &str, path: &Path) {
        let mut value = OsString::from(before);
        let mut parts = path.as_os_str().as_encoded_bytes().split(|byte| *byte == b',');
        value.push(parts.next().map(os_str).unwrap_or_default());
        for part in parts {
            value.push(",,");
            value.push(os_str(part));
        }
        self.add(option, value);
    }
}

fn os_str(bytes: &[u8]) -> &OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(bytes)
}
