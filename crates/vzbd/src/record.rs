//! `vzbd serve --record` and `--power-cut-after`: a disk that writes down what is done to it, and one that loses its power.

use std::process::exit;
use std::sync::Arc;
use std::thread;

use anyhow::Context;
use virtio_zbd_store::Store;
use virtio_zbd_store::record::{CutReport, Keep, PowerCut, RecordError, RecordOptions, Recorder};

use crate::cli::ServeArgs;
use crate::size::Size;
use crate::{in_one_line, wrong_call};

/// How the program ends when the power was cut on purpose.
const POWER_CUT_STATUS: i32 = 3;

/// A power cut that was asked for, and is yet to come.
pub(crate) struct Cut {
    recorder: Arc<Recorder>,
    target: String,
    after: u64,
    seed: u64,
}

/// The store with what was asked for around it. The recording is made here: no file is opened later. Who waits for a cut is to be started.
///
/// # Errors
/// The recording can't be made; a power cut was asked for of a disk that has none.
pub(crate) fn around(
    store: Arc<dyn Store>,
    args: &ServeArgs,
) -> anyhow::Result<(Arc<dyn Store>, Option<Cut>)> {
    let seed = args.power_cut_seed.unwrap_or_else(|| fastrand::u64(..));
    let cut = args.power_cut_after.map(|after| PowerCut { after, keep: Keep::Random(seed) });
    if args.record.is_none() && cut.is_none() {
        return Ok((store, None));
    }
    if store.keeps_conditions() {
        return Err(wrong_call(
            "--record and --power-cut-after do not go with a zoned device of the host: it keeps its zones itself, and what is done to it can't be held back or done again elsewhere",
        ));
    }
    if args.read_only {
        return Err(wrong_call(
            "--record and --power-cut-after do not go with --read-only: nothing is changed",
        ));
    }
    if cut.is_some() && (args.target == "ram" || store.geometry().is_none()) {
        return Err(wrong_call(
            "--power-cut-after goes with an image of a zoned disk: nothing else is left behind by a cut",
        ));
    }
    let options = RecordOptions { log: args.record.as_deref(), cut };
    let recorder = Recorder::new(store, options).map_err(|error| match error {
        RecordError::Exists { .. } => wrong_call(error),
        other => other.into(),
    })?;
    let recorder = Arc::new(recorder);
    let cut = cut.map(|PowerCut { after, .. }| Cut {
        recorder: Arc::clone(&recorder),
        target: args.target.clone(),
        after,
        seed,
    });
    Ok((recorder, cut))
}

impl Cut {
    /// Starts the thread that waits for it and ends the program.
    pub(crate) fn start(self) -> anyhow::Result<()> {
        let Self { recorder, target, after, seed } = self;
        thread::Builder::new()
            .name("power cut".into())
            .spawn(move || match recorder.wait_for_cut() {
                Ok(None) => {}
                Ok(Some(report)) => {
                    log::warn!("{}", cut_line(&target, after, seed, report));
                    exit(POWER_CUT_STATUS);
                }
                Err(error) => {
                    log::error!(
                        "{target}: the power was cut, but the disk is not as a cut leaves it: {error}"
                    );
                    exit(1);
                }
            })
            .context("the thread that cuts the power can't be started")?;
        Ok(())
    }
}

/// Where the end of the serving has met a power cut: waits for the thread that ends the program.
pub(crate) fn wait_if_cut(error: &anyhow::Error) {
    use virtio_zbd_store::StoreError;
    if let Some(StoreError::PowerCut { .. }) = error.chain().find_map(|cause| cause.downcast_ref()) {
        log::info!("{}", in_one_line(error));
        loop {
            thread::park();
        }
    }
}

fn cut_line(target: &str, after: u64, seed: u64, report: CutReport) -> String {
    let CutReport { zones_set_back, bytes_changed } = report;
    let changes = if after == 1 { "the first change".into() } else { format!("change {after}") };
    format!(
        "{target}: the power is cut at {changes}, seed {seed}: {zones_set_back} write pointers set back, {} of data as it was \
         before or gone; the image opens as after a power cut",
        Size::from(bytes_changed)
    )
}
