//! The bare-metal kernels (`guest/baremetal`) and the machines that they run on.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::command::run_logged;
use crate::process::{Process, Role, launch};
use crate::{Error, Qemu, Result, programs};

/// Enough for the kernel and the largest test.
const MEMORY_MIB: u32 = 256;

/// The kernels of `guest/baremetal`, built.
#[derive(Clone, Debug)]
pub struct BareMetal {
    dir: PathBuf,
}

impl BareMetal {
    /// The kernels, built by cargo if their sources have changed. They are built beside this workspace, in `target/baremetal`.
    ///
    /// # Errors
    /// They do not compile: the error has the compiler's last words.
    pub fn build() -> Result<BareMetal> {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("baremetal");
        let target = programs::target_dir()?.join("baremetal");
        fs::create_dir_all(&target).map_err(Error::io("make the directory", &target))?;
        let log = target.join(format!("build-{}.log", std::process::id()));
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.arg("build").current_dir(&sources).env("CARGO_TARGET_DIR", &target);
        // Meant for the workspace that we come from.
        for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "CARGO_BUILD_RUSTFLAGS"] {
            command.env_remove(name);
        }
        run_logged(&mut command, "building the bare-metal kernels", &log, &mut |_| {})?;
        let _ = fs::remove_file(&log);
        Ok(BareMetal { dir: target.join("debug") })
    }

    /// The kernel that runs the driver's test list.
    #[must_use]
    pub fn test_kernel(&self) -> PathBuf {
        self.dir.join("test-kernel")
    }

    /// The example of a kernel that uses the driver. It knows PCI only.
    #[must_use]
    pub fn example(&self) -> PathBuf {
        self.dir.join("example")
    }
}

/// Which of QEMU's machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// `microvm`: virtio-mmio devices, named on the kernel's command line. Device names end in `-device`.
    Microvm,
    /// `q35`: PCI, set up by firmware. Device names end in `-pci`.
    Q35,
}

/// A machine with one of the [`BareMetal`] kernels, to be run once or more.
///
/// It needs no virtualization (TCG). The thread that runs it holds it: if the thread dies, so does QEMU.
#[derive(Clone, Debug)]
pub struct TestMachine {
    qemu: PathBuf,
    kernel: PathBuf,
    machine: Machine,
    shared_memory: bool,
    words: Vec<String>,
    args: Vec<OsString>,
}

/// What a run left.
#[derive(Clone, Debug)]
pub struct Report {
    /// What the kernel said of itself.
    pub verdict: Verdict,
    /// The serial line, and QEMU's own words.
    pub console: String,
}

/// How a run of a kernel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Each check passed.
    Passed,
    /// A check failed, or there was no disk; the console says which.
    Failed,
    /// The kernel panicked or the processor raised an exception.
    Crashed,
    /// QEMU ended on its own, with this exit code (128 and the signal's number for one that was killed).
    Qemu(i32),
}

impl TestMachine {
    /// A machine without disks.
    #[must_use]
    pub fn new(qemu: &Qemu, kernel: impl Into<PathBuf>, machine: Machine) -> TestMachine {
        TestMachine {
            qemu: qemu.path().to_path_buf(),
            kernel: kernel.into(),
            machine,
            shared_memory: false,
            words: Vec::new(),
            args: Vec::new(),
        }
    }

    /// Adds a word to the kernel's command line: `list=full`, `log=debug`. the head of the test kernel (`main.rs`) has them all.
    #[must_use]
    pub fn word(mut self, word: impl Into<String>) -> TestMachine {
        self.words.push(word.into());
        self
    }

    /// Adds arguments for QEMU.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> TestMachine {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Opens a file or a block device for [`virtio_blk`](TestMachine::virtio_blk). A zoned device keeps its zones. `options`
    /// begins with a comma or is empty: `,read-only=on`.
    #[must_use]
    pub fn block_node(self, path: &Path, options: &str) -> TestMachine {
        // What lies in /dev may be there in a guest only, so nothing can be asked of it here.
        let driver = if path.starts_with("/dev") { "host_device,cache.direct=on" } else { "file" };
        let mut node =
            OsString::from(format!("driver={driver},node-name=disk,discard=unmap{options},filename="));
        // A comma ends an option's value, two are one.
        node.push(path.to_string_lossy().replace(',', ",,"));
        self.args(["-blockdev".into(), node])
    }

    /// Attaches QEMU's own virtio-blk device with what [`block_node`](TestMachine::block_node) opened. `properties` begins with
    /// a comma or is empty: `,num-queues=2`.
    #[must_use]
    pub fn virtio_blk(self, properties: &str) -> TestMachine {
        let device = match self.machine {
            Machine::Microvm => "virtio-blk-device",
            Machine::Q35 => "virtio-blk-pci",
        };
        self.args(["-device".to_owned(), format!("{device},drive=disk{properties}")])
    }

    /// Attaches a vhost-user-blk socket. QEMU's device for that passes all feature bits and the whole configuration on, which
    /// its vhost-user-blk does not.
    #[must_use]
    pub fn vhost_user(mut self, socket: &Path, queues: u16) -> TestMachine {
        let device = match self.machine {
            Machine::Microvm => "vhost-user-test-device",
            Machine::Q35 => "vhost-user-test-device-pci",
        };
        self.shared_memory = true;
        let mut chardev = OsString::from("socket,id=disk,path=");
        chardev.push(socket);
        // 96 bytes: the configuration with its zoned part (virtio 1.3, 5.2.4). 2 is a block device.
        let device = format!("{device},chardev=disk,virtio-id=2,num_vqs={queues},vq_size=128,config_size=96");
        self.args(["-chardev".into(), chardev, "-device".into(), device.into()])
    }

    /// QEMU's program and arguments: to be run in a [`Guest`](crate::Guest), for a disk that is there only. Its exit code is
    /// for [`Verdict::from_code`].
    #[must_use]
    pub fn argv(&self) -> Vec<OsString> {
        let mut machine = match self.machine {
            // With ACPI tables the command line would not name the devices.
            Machine::Microvm => "microvm,acpi=off".to_owned(),
            Machine::Q35 => "q35".to_owned(),
        };
        let mut argv: Vec<OsString> = vec![self.qemu.clone().into()];
        if self.shared_memory {
            machine.push_str(",memory-backend=memory");
            let memory = format!("memory-backend-memfd,id=memory,size={MEMORY_MIB}M,share=on");
            argv.extend(["-object".into(), memory.into()]);
        }
        let memory = format!("{MEMORY_MIB}M");
        let words = [
            "-machine",
            &machine,
            "-m",
            &memory,
            "-accel",
            "tcg,thread=single",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-monitor",
            "none",
            "-serial",
            "stdio",
            "-no-reboot",
            // The devices are those of today's specification.
            "-global",
            "virtio-mmio.force-legacy=false",
            "-device",
            "isa-debug-exit,iobase=0xf4,iosize=0x04",
            "-kernel",
        ];
        argv.extend(words.map(OsString::from));
        argv.push(self.kernel.clone().into());
        argv.extend(["-append".into(), self.words.join(" ").into()]);
        argv.extend(self.args.iter().cloned());
        argv
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// QEMU can't be started, or did not end within `limit`: then it is killed, and the error has what it printed.
    pub fn run(&self, limit: Duration) -> Result<Report> {
        let dir = tempfile::Builder::new()
            .prefix("zbd-machine-")
            .tempdir()
            .map_err(Error::io("make a directory in", std::env::temp_dir()))?;
        let path = dir.path().join("console");
        let console = File::options().create(true).append(true).open(&path);
        let console = console.map_err(Error::io("open", &path))?;

        let argv = self.argv();
        let mut command = launch(&programs::guest_init()?, Role::Kernel, Path::new(&argv[0]));
        command.args(&argv[1..]).stdin(Stdio::null());
        command.stdout(console.try_clone().map_err(Error::io("duplicate", &path))?).stderr(console);
        let mut process = Process::start(&mut command)?;
        let ended = process.wait(limit)?;
        process.kill();
        let console = fs::read(&path).map_err(Error::io("read", &path))?;
        let console = String::from_utf8_lossy(&console).into_owned();
        match ended {
            Some(status) => {
                use std::os::unix::process::ExitStatusExt;
                let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
                Ok(Report { verdict: Verdict::from_code(code), console })
            }
            None => Err(Error::TimedOut {
                after: limit,
                stdout: crate::command::tail(console.as_bytes()),
                stderr: String::new(),
                log: String::new(),
            }),
        }
    }
}

impl Verdict {
    /// From QEMU's exit code: its debug exit makes twice the kernel's value and one of it. `exit.rs` of the kernel has the
    /// values.
    #[must_use]
    pub fn from_code(code: i32) -> Verdict {
        match code {
            0x21 => Verdict::Passed,
            0x23 => Verdict::Failed,
            0x25 => Verdict::Crashed,
            code => Verdict::Qemu(code),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Machine::Microvm => "microvm",
            Machine::Q35 => "q35",
        })
    }
}
