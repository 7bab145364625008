//! The guest's end of the directory in which host and guest leave things for each other.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use virtio_zbd_guest::job::{self, Job, Outcome};

use crate::host::Host;

/// All files are opened at once: they stay usable when the root is exchanged under them.
pub(crate) struct Mailbox {
    dir: PathBuf,
    pub(crate) stdin: File,
    pub(crate) stdout: File,
    pub(crate) stderr: File,
    result: File,
    /// The host's path of this program.
    pub(crate) guest_init: PathBuf,
}

impl Mailbox {
    /// `dir` is the host's path of the directory.
    pub(crate) fn open(host: Host, dir: &Path) -> Result<Mailbox> {
        host.mount_job(dir)?;
        let append = |name: &str| {
            let file = File::options().append(true).create(true).open(dir.join(name));
            file.with_context(|| format!("can't open {}", dir.join(name).display()))
        };
        Ok(Mailbox {
            stdin: File::open(dir.join(job::STDIN)).context("can't open the command's input")?,
            stdout: append(job::STDOUT)?,
            stderr: append(job::STDERR)?,
            result: append(job::RESULT)?,
            guest_init: fs::read_link(dir.join(job::INIT)).context("can't find the way to this program")?,
            dir: dir.to_path_buf(),
        })
    }

    /// The job, which can be had once: a second time means that the kernel started itself again.
    pub(crate) fn job(&self) -> Result<Job> {
        match File::create_new(self.dir.join(job::BEGUN)) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!("the command rebooted the guest"),
            Err(error) => return Err(error).context("can't note that the job has begun"),
        }
        let bytes = fs::read(self.dir.join(job::JOB)).context("can't read the job")?;
        Job::decode(&bytes).map_err(|problem| anyhow!(problem))
    }

    pub(crate) fn post(&mut self, outcome: &Outcome) -> Result<()> {
        self.result.write_all(outcome.encode().as_bytes())?;
        self.result.sync_all()?;
        Ok(())
    }
}
