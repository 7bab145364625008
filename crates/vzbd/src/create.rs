//! `vzbd create`: a new disk in a file.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};
use virtio_zbd_store::{CreateOptions, ImageStore};
use virtio_zbd_zones::Model;

use crate::cli::{CreateArgs, ProfilesArgs, Zoned};
use crate::profile::{self, Wish};
use crate::{geometry, wrong_call};

pub(crate) fn run(args: &CreateArgs) -> anyhow::Result<()> {
    if Wish::is_list(&args.geometry) {
        return profile::list(&ProfilesArgs { json: false });
    }
    let Some(path) = &args.path else {
        return Err(wrong_call("the file to make is missing"));
    };
    let wish = Wish::new(args.size, args.zoned, &args.geometry)?;
    let Some(size) = wish.size else {
        return Err(wrong_call("--size is missing, and the profile says none"));
    };
    let model = match wish.zoned {
        Zoned::HostManaged => Model::HostManaged,
        Zoned::HostAware => Model::HostAware,
        Zoned::None => {
            geometry::refuse(&args.geometry, "--zoned none")?;
            if args.grow_to.is_some() {
                return Err(wrong_call(
                    "--grow-to does not go with --zoned none: such a file needs no room for zones",
                ));
            }
            size.sectors("--size").map_err(wrong_call)?;
            if size.bytes == 0 {
                return Err(wrong_call("--size is 0; a disk has at least one sector of 512 bytes"));
            }
            return raw_file(path, size.bytes, args.force)
                .with_context(|| format!("{} could not be made", path.display()));
        }
    };
    let geometry = geometry::of(size, model, &wish.geometry)?;
    let notes = geometry::linux_notes(&geometry);
    let grow_to_sectors = args.grow_to.map(|size| size.sectors("--grow-to")).transpose();
    let grow_to_sectors = grow_to_sectors.map_err(wrong_call)?;
    let options = CreateOptions { overwrite: args.force, grow_to_sectors };
    ImageStore::create(path, geometry, options)?;
    for note in notes {
        eprintln!("vzbd: note: {note}");
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
