//! `vzbd create`: a new disk in a file.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};
use virtio_zbd_store::{CreateOptions, ImageStore};

use crate::cli::{CreateArgs, Zoned};
use crate::{geometry, wrong_call};

pub(crate) fn run(args: &CreateArgs) -> anyhow::Result<()> {
    match args.zoned {
        Zoned::HostManaged => {
            let geometry = geometry::of(args.size, &args.geometry)?;
            ImageStore::create(
                &args.path,
                geometry,
                CreateOptions { overwrite: args.force, ..CreateOptions::default() },
            )?;
        }
        Zoned::None => {
            geometry::refuse(&args.geometry, "--zoned none")?;
            args.size.sectors("--size").map_err(wrong_call)?;
            if args.size.bytes == 0 {
                return Err(wrong_call("--size is 0; a disk has at least one sector of 512 bytes"));
            }
            raw_file(&args.path, args.size.bytes, args.force)
                .with_context(|| format!("{} could not be made", args.path.display()))?;
        }
    }
    Ok(())
}

/// A sparse file of zeros: the sectors of a regular disk and nothing else.
fn raw_file(path: &Path, len_bytes: u64, overwrite: bool) -> anyhow::Result<()> {
    let file = match OpenOptions::new().write(true).create_new(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && overwrite => emptied(path)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            anyhow::bail!("the file exists; --force replaces it")
        }
        other => other?,
    };
    let filled = file.set_len(len_bytes).and_then(|()| file.sync_all());
    if filled.is_err() && !overwrite {
        // Nothing is left behind; if this fails too there is no more to be done.
        let _ = std::fs::remove_file(path);
    }
    Ok(filled?)
}

/// The file that is there, emptied; refused where a disk in it is in use.
fn emptied(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().write(true).open(path)?;
    if !file.metadata()?.is_file() {
        anyhow::bail!("it is no regular file");
    }
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => anyhow::bail!("it is in use by another program"),
        other => other?,
    }
    file.set_len(0)?;
    Ok(file)
}
