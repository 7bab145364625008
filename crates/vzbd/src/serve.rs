//! `vzbd serve`: a disk on a socket, until a signal.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use virtio_zbd_device::{Disk, DiskConfig};
use virtio_zbd_store::{
    EngineChoice, FaultRule, Faults, HostStore, ImageStore, OpenOptions, RamStore, RawStore, Store,
};
use virtio_zbd_zones::Model;
use vzbd::DiskBackend;
use vzbd::control::Control;

use crate::cli::{IoEngine, ServeArgs, Zoned};
use crate::profile::Wish;
use crate::size::Size;
use crate::{attach, geometry, host, record, sandbox, say, store_error, wrong_call};

/// Length of a disk in RAM where none is given.
const RAM_SIZE_BYTES: u64 = 1 << 30;
/// Block size of a disk without zones.
const PLAIN_BLOCK_LEN_BYTES: u32 = 512;

pub(crate) fn run(args: &ServeArgs) -> anyhow::Result<()> {
    // Before anything else: from here on a signal ends us in order.
    let stop = stop_signal().context("signals can't be handled")?;
    let (store, power_cut) = record::around(store(args)?, args)?;
    let engine = match args.io {
        IoEngine::Auto => EngineChoice::Auto,
        IoEngine::Uring => EngineChoice::IoUring,
        IoEngine::Sync => EngineChoice::Sync,
    };
    let config = DiskConfig { queues: args.queues, block_len_bytes: PLAIN_BLOCK_LEN_BYTES, engine };
    let server = sandbox::listen(args)?;
    let control = args.control.as_deref().map(Control::bind).transpose()?;
    // Before the first thread, and before a front-end's first byte.
    sandbox::enter(args, &server, &*store)?;
    if let Some(cut) = power_cut {
        cut.start()?;
    }
    let disk =
        Disk::new(Arc::clone(&store), config).with_context(|| format!("{} can't be served", args.target))?;
    let zoned = store.geometry().is_some();
    let greeting = format!(
        "{}\n{}",
        disk_line(&*store, args, server.path()),
        attach::lines(server.path(), args.queues, zoned)
    );
    // A reader that has gone is no reason to end.
    if let Err(error) = say(&greeting) {
        log::debug!("nobody reads the greeting: {error}");
    }

    let backend = DiskBackend::new(Arc::clone(&disk));
    let control = control.map(|control| control.start(backend.clone())).transpose();
    let control = control.context("the control socket can't be served")?;
    let served = server.serve(&backend, &stop);
    drop(control);
    // The queues are stopped and drained: now what they wrote is made to last, however the serving ended.
    let closed = disk.close().with_context(|| format!("{} could not be closed cleanly", args.target));
    if let Err(error) = &closed {
        record::wait_if_cut(error);
    }
    served?;
    closed?;
    log::info!("{} is closed", args.target);
    Ok(())
}

fn store(args: &ServeArgs) -> anyhow::Result<Arc<dyn Store>> {
    let ram = args.target == "ram";
    if !ram {
        geometry::refuse(&args.geometry, "a disk that exists already")?;
        if args.size.is_some() {
            return Err(wrong_call("--size goes with `ram`; a disk that exists already has its size"));
        }
    }
    if ram && args.read_only {
        return Err(wrong_call("--read-only does not go with `ram`: there would be nothing to read"));
    }
    let wish = Wish::new(args.size, args.zoned, &args.geometry)?;
    let size = wish.size.unwrap_or(Size::from(RAM_SIZE_BYTES));
    let rules = &args.inject;
    if !ram && host::is_host_managed(args.target.as_ref(), wish.zoned)? {
        let store = HostStore::open(args.target.as_ref(), args.read_only).map_err(store_error)?;
        return failing(store, HostStore::inject, rules);
    }
    let in_ram = |model| {
        let geometry = geometry::of(size, model, &wish.geometry)?;
        for note in geometry::linux_notes(&geometry) {
            log::info!("{note}");
        }
        failing(RamStore::new(geometry)?, RamStore::inject, rules)
    };
    match (ram, wish.zoned) {
        (true, Zoned::HostManaged) => in_ram(Model::HostManaged),
        (true, Zoned::HostAware) => in_ram(Model::HostAware),
        (true, Zoned::None) => {
            geometry::refuse(&args.geometry, "--zoned none")?;
            size.sectors("--size").map_err(wrong_call)?;
            failing(RamStore::plain(size.bytes)?, RamStore::inject, rules)
        }
        (false, Zoned::HostManaged | Zoned::HostAware) => {
            let options = OpenOptions { read_only: args.read_only, ..OpenOptions::default() };
            let store = ImageStore::open(args.target.as_ref(), options).map_err(store_error)?;
            is_as_asked(&store, args)?;
            failing(store, ImageStore::inject, rules)
        }
        (false, Zoned::None) => {
            let store = RawStore::open(args.target.as_ref(), args.read_only).map_err(store_error)?;
            failing(store, RawStore::inject, rules)
        }
    }
}

/// Whether an image is of the kind that was asked for, if one was.
fn is_as_asked(store: &ImageStore, args: &ServeArgs) -> anyhow::Result<()> {
    let asked = match args.zoned {
        Some(Zoned::HostAware) => Model::HostAware,
        Some(Zoned::HostManaged) => Model::HostManaged,
        _ => return Ok(()),
    };
    match store.geometry().map(|geometry| geometry.model()) {
        Some(found) if found != asked => Err(wrong_call(format!(
            "{} is {}, not {}; leave --zoned out",
            args.target,
            geometry::model_name(found),
            geometry::model_name(asked)
        ))),
        _ => Ok(()),
    }
}

/// The store, with the faults that were asked for.
fn failing<S: Store + 'static>(
    mut store: S,
    inject: impl Fn(&mut S, Faults),
    rules: &[FaultRule],
) -> anyhow::Result<Arc<dyn Store>> {
    let faults = Faults::new(rules, &store).map_err(|error| wrong_call(format!("--inject {error}")))?;
    inject(&mut store, faults);
    Ok(Arc::new(store))
}

/// The first line, for people and for programs that wait for it.
fn disk_line(store: &dyn Store, args: &ServeArgs, socket: &Path) -> String {
    let size = Size::from(store.capacity_bytes());
    let kind = match store.geometry() {
        Some(geometry) => {
            let zone = Size::from(u64::from(geometry.config().zone_sectors) * 512);
            format!("{}, {} zones of {zone}", geometry::model_name(geometry.model()), geometry.zone_count())
        }
        None => "no zones".into(),
    };
    let read_only = if args.read_only { ", read-only" } else { "" };
    format!("serving {} ({size}, {kind}{read_only}) on {}", args.target, socket.display())
}

/// A socket that becomes readable on SIGTERM or SIGINT. A limit on files is an error from now on and no longer the end.
pub(crate) fn stop_signal() -> std::io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    signal_hook::flag::register(SIGXFSZ, Arc::default())?;
    signal_hook::low_level::pipe::register(SIGTERM, theirs.try_clone()?)?;
    signal_hook::low_level::pipe::register(SIGINT, theirs)?;
    Ok(ours)
}
