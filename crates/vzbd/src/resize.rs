//! `vzbd resize`: a disk becomes longer, used or not.

use std::path::Path;

use anyhow::Context;
use virtio_zbd_store::{ImageFault, ImageStore, OpenOptions, RawStore, Store, StoreError};
use vzbd::control::{self, ControlError, Resized};

use crate::cli::{ResizeArgs, Zoned};
use crate::size::Size;
use crate::target::is_socket;
use crate::{say, store_error, wrong_call};

pub(crate) fn run(args: &ResizeArgs) -> anyhow::Result<()> {
    let sectors = args.size.sectors("--size").map_err(wrong_call)?;
    let path = args.target.as_path();
    let resized = if is_socket(path)? {
        if args.zoned.is_some() {
            return Err(wrong_call("--zoned goes with files; who serves a socket knows what is behind it"));
        }
        control::resize(path, args.size.bytes, args.timeout).map_err(|error| unasked(path, &error))?
    } else {
        offline(path, args.zoned, sectors)?
    };
    match args.json {
        true => say(&serde_json::to_string(&resized)?),
        false => say(&text(path, is_socket(path)?, &resized)),
    }
}

/// The disk in a file that nobody uses.
fn offline(path: &Path, zoned: Option<Zoned>, sectors: u64) -> anyhow::Result<Resized> {
    if zoned == Some(Zoned::None) {
        return grown(&RawStore::open(path, false).map_err(in_use)?, sectors);
    }
    let store = ImageStore::open(path, OpenOptions::default()).map_err(|error| match error {
        StoreError::Image { fault: ImageFault::NotAFile { .. } | ImageFault::NotAnImage { .. }, .. } => {
            anyhow::anyhow!("{error} (--zoned none makes a file longer that is a disk without zones)")
        }
        error => in_use(error),
    })?;
    grown(&store, sectors)
}

fn grown(store: &dyn Store, sectors: u64) -> anyhow::Result<Resized> {
    let zones = || store.geometry().map_or(0, |geometry| geometry.zone_count());
    let (size_bytes_before, zones_before) = (store.capacity_bytes(), zones());
    let grown = store.grow(sectors);
    // Opened for writing it is marked as in use: that mark goes, whatever has come of it.
    let closed = store.close().context("it could not be closed cleanly");
    grown?;
    closed?;
    Ok(Resized {
        size_bytes: store.capacity_bytes(),
        size_bytes_before,
        zones: zones(),
        zones_before,
        frontends_told: 0,
    })
}

fn text(path: &Path, served: bool, resized: &Resized) -> String {
    let Resized { size_bytes, size_bytes_before, zones, zones_before, frontends_told } = *resized;
    let name = path.display();
    let sizes = format!("{} (it had {})", Size::from(size_bytes), Size::from(size_bytes_before));
    let zones = match zones {
        0 => String::new(),
        zones => format!(", {zones} zones ({zones_before})"),
    };
    let told = match (served, frontends_told) {
        (false, _) => "",
        (true, 0) => {
            "; no guest was told: none is connected, or it can't be told; it sees the new size when it connects again"
        }
        (true, _) => "; its guest was told",
    };
    match size_bytes == size_bytes_before {
        true => format!("{name}: it has {} already", Size::from(size_bytes)),
        false => format!("{name}: {sizes}{zones}{told}"),
    }
}

fn in_use(error: StoreError) -> anyhow::Error {
    match error {
        StoreError::InUse { .. } => anyhow::anyhow!(
            "{error}; a disk that is served grows if it was started with `vzbd serve --control SOCK`: name SOCK instead of the image"
        ),
        error => store_error(error),
    }
}

fn unasked(path: &Path, error: &ControlError) -> anyhow::Error {
    let name = path.display();
    match error {
        ControlError::Refused(why) => anyhow::anyhow!("{name}: {why}"),
        ControlError::Unreachable(_) => anyhow::anyhow!("{name}: {error}; was `vzbd serve` ended?"),
        ControlError::Io(_) => anyhow::anyhow!(
            "{name}: {error}; is it the socket of `vzbd serve --control`, and not the one for virtual machines? --timeout waits longer"
        ),
        ControlError::NotControl(_) => anyhow::anyhow!(
            "{name}: {error}; name the socket of `vzbd serve --control`, not the one for virtual machines"
        ),
    }
}
