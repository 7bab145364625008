//! A Linux guest in a machine of QEMU's, with a disk behind a vhost-user socket: QEMU itself is the front-end.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use super::initramfs::{Initramfs, write_words};
use super::{Qemu, StockKernel};
use crate::command::{tail, tail_of_file};
use crate::process::{Process, Role, launch};
use crate::{Error, Result, packages, programs};

/// Enough for a kernel, the programs in memory and what they do.
const MEMORY_MIB: u32 = 768;

/// What process 1 is told, so that it knows where it is.
const ROLE: &str = "initramfs";

/// A Linux guest that runs one command, on a disk that is `/dev/vda`.
///
/// It needs no virtualization (TCG). It has no files but the programs that were given to it.
#[derive(Clone, Debug)]
pub struct QemuGuest {
    qemu: Qemu,
    kernel: StockKernel,
    processors: u32,
    disk: OsString,
    programs: Vec<String>,
    argv: Vec<OsString>,
}

/// A guest that runs. It is killed when this is dropped.
#[derive(Debug)]
pub struct RunningGuest {
    process: Process,
    dir: tempfile::TempDir,
}

impl QemuGuest {
    /// A guest with the disk at `socket`, which QEMU's `vhost-user-blk-pci` attaches. It connects again, every so many
    /// milliseconds, when the connection is closed; with 0 it does not.
    #[must_use]
    pub fn new(
        qemu: &Qemu,
        kernel: &StockKernel,
        socket: &Path,
        queues: u16,
        reconnect_ms: u32,
    ) -> QemuGuest {
        let mut disk = OsString::from(format!("socket,id=disk,reconnect-ms={reconnect_ms},path="));
        // A comma ends an option's value, two are one.
        disk.push(socket.to_string_lossy().replace(',', ",,"));
        QemuGuest {
            qemu: qemu.clone(),
            kernel: kernel.clone(),
            processors: queues.into(),
            disk,
            programs: Vec::new(),
            argv: Vec::new(),
        }
    }

    /// Takes a program of this machine into the guest, with its libraries.
    #[must_use]
    pub fn program(mut self, name: impl Into<String>) -> QemuGuest {
        self.programs.push(name.into());
        self
    }

    /// The command to run: the first word is a path in the guest, `/bin/NAME` for a [`program`](QemuGuest::program).
    #[must_use]
    pub fn command<A: Into<OsString>>(mut self, argv: impl IntoIterator<Item = A>) -> QemuGuest {
        self.argv = argv.into_iter().map(Into::into).collect();
        self
    }

    /// Boots it.
    ///
    /// # Errors
    /// A program is not there, or QEMU can't be started.
    pub fn start(&self) -> Result<RunningGuest> {
        let dir = tempfile::Builder::new()
            .prefix("zbd-guest-")
            .tempdir()
            .map_err(Error::io("make a directory in", std::env::temp_dir()))?;
        let files = dir.path().join("initramfs");
        self.write_files(&files)?;

        let console = File::create(dir.path().join(LOG)).map_err(Error::io("make", dir.path()))?;
        let errors = console.try_clone().map_err(Error::io("duplicate", dir.path()))?;
        let mut command = launch(&programs::guest_init()?, Role::Kernel, self.qemu.path());
        command.args(self.args(&files, &dir.path().join(OUTPUT)));
        command.stdin(Stdio::null()).stdout(console).stderr(errors);
        Ok(RunningGuest { process: Process::start(&mut command)?, dir })
    }

    fn write_files(&self, to: &Path) -> Result<()> {
        let mut files = Initramfs::new();
        for dir in ["/dev", "/proc", "/sys", "/tmp", "/modules"] {
            files.directory(Path::new(dir));
        }
        files.program(&programs::guest_init()?, Path::new("/init"))?;
        for (number, module) in self.kernel.modules().iter().enumerate() {
            let contents = fs::read(module).map_err(Error::io("read", module))?;
            files.file(&PathBuf::from(format!("/modules/{number:03}.ko")), &contents);
        }
        for name in &self.programs {
            let missing = || Error::MissingPackages { names: vec![name.clone()] };
            let source = packages::program(name).ok_or_else(missing)?;
            files.program(&source, &Path::new("/bin").join(name))?;
        }
        files.file(Path::new("/job"), &write_words(&self.argv));
        files.write(to)
    }

    fn args(&self, files: &Path, output: &Path) -> Vec<OsString> {
        let Self { processors, .. } = self;
        let mut output_option = OsString::from("file:");
        output_option.push(output);
        let mut args: Vec<OsString> = vec!["-object".into()];
        args.push(format!("memory-backend-memfd,id=memory,size={MEMORY_MIB}M,share=on").into());
        args.extend(
            ["-machine", "q35,memory-backend=memory", "-accel", "tcg", "-cpu", "max"].map(Into::into),
        );
        args.extend(["-m".into(), format!("{MEMORY_MIB}M").into()]);
        args.extend(["-smp".into(), processors.to_string().into()]);
        args.extend(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"].map(Into::into));
        // The kernel's console, and one for the command's output alone.
        args.extend(["-serial".into(), "stdio".into(), "-serial".into(), output_option]);
        args.extend(["-kernel".into(), self.kernel.image().into(), "-initrd".into(), files.into()]);
        // Its words behind the dashes are for process 1.
        let words = format!("console=ttyS0 quiet panic=-1 rdinit=/init -- {ROLE}");
        args.extend(["-append".into(), words.into(), "-chardev".into(), self.disk.clone()]);
        let device = format!("vhost-user-blk-pci,chardev=disk,num-queues={processors},queue-size=128");
        args.extend(["-device".into(), device.into()]);
        args
    }
}

/// In the guest's directory: what kernel and QEMU say, and what the command does.
const LOG: &str = "log";
const OUTPUT: &str = "output";

/// Before the command's exit status, at the end of its output.
const STATUS: &str = "\nguest-init: the command ended with ";

impl RunningGuest {
    /// What the command has written until now, on standard output and standard error.
    #[must_use]
    pub fn output(&self) -> String {
        let bytes = fs::read(self.dir.path().join(OUTPUT)).unwrap_or_default();
        // The line discipline of a terminal.
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// The end of what the kernel has logged, and QEMU.
    #[must_use]
    pub fn log(&self) -> String {
        tail_of_file(&self.dir.path().join(LOG))
    }

    /// How QEMU ended, if it has.
    ///
    /// # Errors
    /// The system does not say.
    pub fn poll(&mut self) -> Result<Option<ExitStatus>> {
        self.process.poll()
    }

    /// Waits for the command's end: its exit status and its output.
    ///
    /// # Errors
    /// It did not end in time (it is killed then), or the guest ended without it.
    pub fn finish(mut self, limit: Duration) -> Result<(i32, String)> {
        let ended = self.process.wait(limit)?;
        self.process.kill();
        let (output, log) = (self.output(), self.log());
        let Some(status) = ended else {
            let stdout = tail(output.as_bytes());
            return Err(Error::TimedOut { after: limit, stdout, stderr: String::new(), log });
        };
        let ended = output
            .rsplit_once(STATUS)
            .and_then(|(output, status)| Some((status.trim().parse().ok()?, output.to_owned())));
        ended.ok_or(Error::Ended { status, stderr: tail(output.as_bytes()), log })
    }
}
