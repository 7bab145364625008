//! Looking at an image without opening it: everything that is wrong, not only the first.
//!
//! An opening stops at the first fault; a check goes on as far as what it has found lets it. How the modules share the work:
//! `superblocks`, `pages` and `sectors` look, each at its area; `report` is what they say; `repair` does what
//! can't lose anything, `kept` keeps what it replaces, `undo` brings that back.

mod bits;
mod kept;
mod pages;
mod repair;
mod report;
mod sectors;
mod superblocks;
mod undo;

use std::io;
use std::ops::Range;
use std::path::Path;

use uuid::Uuid;
use virtio_zbd_zones::{Geometry, ZoneState};

use super::format::{BLOCK_LEN, BOOT_ID_CLEAN, BOOT_ID_IN_DOUBT, Layout, Superblock, Unusable};
use super::recover::{Checked, boot_id};
use super::{ImageFault, ImageStore, LastUse, open_file};
use crate::error::StoreError;
use crate::medium::Medium;
use repair::Plan;
pub use repair::Repaired;
pub use report::{
    CheckOptions, CheckReport, CheckedImage, Finding, FindingKind, NextOpening, Omitted, Opens, Remedy,
    Severity, ZoneCounts,
};
use report::{Findings, finding};
pub use undo::UndoFault;

impl ImageStore {
    /// Looks at all of an image that nobody writes to, and says everything that is wrong with it, whether an
    /// opening would take it or not. Nothing is written. The file is locked as by a reader.
    ///
    /// # Errors
    /// There is no such file, it is not a regular one, it is in use, or it can't be asked for its length.
    /// What can't be read in it is a finding.
    pub fn check(path: &Path, options: CheckOptions) -> Result<CheckReport, StoreError> {
        Self::check_on(&open_file(path, true)?, options)
    }

    /// As [`check`](Self::check), on any medium; without a lock.
    ///
    /// # Errors
    /// The medium can't be asked for its length.
    pub fn check_on(medium: &dyn Medium, options: CheckOptions) -> Result<CheckReport, StoreError> {
        let name = medium.name();
        let len_bytes = medium.len_bytes().map_err(StoreError::io(name, "finding the file's length"))?;
        let allocated_bytes =
            medium.allocated_bytes().map_err(StoreError::io(name, "finding the file's allocated size"))?;
        let boot_id = options.boot_id.unwrap_or_else(boot_id);
        let mut walk = Walk {
            medium,
            len_bytes,
            findings: Findings::new(options.findings_max),
            plan: Plan::default(),
            foreign: false,
            clear_behind: options.clear_behind,
            next: NextOpening::default(),
        };
        let image = walk.image(boot_id);
        let opens = walk.verdict(boot_id);
        let next_opening = (opens == Opens::Yes).then_some(walk.next);
        Ok(CheckReport {
            name: name.to_owned(),
            file_len_bytes: len_bytes,
            allocated_bytes,
            image,
            opens,
            next_opening,
            findings: walk.findings.kept,
            omitted: walk.findings.omitted,
            plan: walk.plan,
        })
    }
}

/// One way through an image.
struct Walk<'a> {
    medium: &'a dyn Medium,
    len_bytes: u64,
    findings: Findings,
    plan: Plan,
    /// Something of another image is in the file.
    foreign: bool,
    clear_behind: bool,
    next: NextOpening,
}

/// What the superblock has told, for those who look at the rest.
struct Frame {
    superblock: Superblock,
    geometry: Geometry,
    layout: Layout,
    last_use: LastUse,
    /// The image may be written by this program: nothing in it is unknown.
    writable: bool,
}

/// The state of each zone that counts; `None`: it is lost.
#[derive(Clone)]
struct States {
    zones: Vec<Option<ZoneState>>,
    /// Nothing newer is known to be missing.
    certain: bool,
}

impl States {
    fn of(&self, zone: u32) -> Option<ZoneState> {
        usize::try_from(zone).ok().and_then(|index| self.zones.get(index).copied()).flatten()
    }

    fn all_known(&self) -> bool {
        self.certain && self.zones.iter().all(Option::is_some)
    }
}

impl Walk<'_> {
    fn image(&mut self, boot_id: [u8; 16]) -> Option<CheckedImage> {
        let superblock = superblocks::check(self)?;
        let last_use = match superblock.live_boot_id {
            BOOT_ID_CLEAN => LastUse::Closed,
            BOOT_ID_IN_DOUBT => LastUse::MediumFailed,
            live if live == boot_id => LastUse::Killed,
            _ => LastUse::PowerLost,
        };
        let mut image = CheckedImage {
            uuid: Uuid::from_bytes(superblock.uuid),
            version: superblock.version.get(),
            sequence: superblock.sequence.get(),
            geometry: None,
            last_use,
            live_boot_id: Uuid::from_bytes(superblock.live_boot_id),
            boot_id: Uuid::from_bytes(boot_id),
        };
        let Some(writable) = superblocks::check_features(self, &superblock) else { return Some(image) };
        let Some(geometry) = superblocks::check_geometry(self, &superblock) else { return Some(image) };
        image.geometry = Some(geometry.clone());
        let Some(layout) = superblocks::check_layout(self, &superblock, &geometry) else {
            return Some(image);
        };
        let frame = Frame { superblock, geometry, layout, last_use, writable };
        let states = pages::check(self, &frame);
        sectors::check_length(self, &frame, &states);
        sectors::check(self, &frame, &states);
        sectors::check_undescribed(self, &frame);
        if !frame.writable {
            self.repair_nothing(Remedy::NewerProgram, "A newer program may repair it");
        } else if self.foreign && self.findings.count() > 1 {
            // More than one thing that was written to the wrong place: then it may be the rest that is another image's.
            self.repair_nothing(
                Remedy::Copy,
                "Together with what else was found, a repair would be a guess: use a copy of the image",
            );
        }
        Some(image)
    }

    /// What was found to be repairable is not, for another reason.
    fn repair_nothing(&mut self, remedy: Remedy, advice: &str) {
        self.plan.changes.clear();
        for finding in self.findings.kept.iter_mut().filter(|finding| finding.remedy == Remedy::Repair) {
            finding.remedy = remedy;
            advice.clone_into(&mut finding.advice);
        }
        self.findings.omitted.problems += std::mem::take(&mut self.findings.omitted.repairable);
    }

    /// What an opening says. It is asked, so that a check can't be of another opinion.
    fn verdict(&mut self, boot_id: [u8; 16]) -> Opens {
        let read = |read_only| Checked::read(self.medium, boot_id, read_only).map(|_| ());
        let opens = match (read(true), read(false)) {
            (Ok(()), Ok(())) => Opens::Yes,
            (Ok(()), Err(why)) => Opens::ReadOnly(why.to_string()),
            (Err(why), _) => Opens::No(why.to_string()),
        };
        if let (Opens::No(why) | Opens::ReadOnly(why), false) = (&opens, self.findings.fatal) {
            let refused = finding(FindingKind::Refused, Severity::Fatal, 0..0, why.clone());
            self.findings.add(refused.remedy(Remedy::Copy, "If there is a copy of this image, use that"));
        }
        opens
    }

    /// A block of the image.
    fn block(&self, offset_bytes: u64) -> Result<[u8; BLOCK_LEN], Unusable> {
        let mut block = [0; BLOCK_LEN];
        if offset_bytes + BLOCK_LEN as u64 > self.len_bytes {
            return Err(Unusable::Unreadable { errno: None });
        }
        self.medium.read_at(&mut block, offset_bytes).map_err(|error| Unusable::unreadable(&error))?;
        Ok(block)
    }

    fn unreadable(&mut self, bytes: Range<u64>, what: &str, error: &io::Error) {
        let text = format!("{what} can't be read ({error})");
        self.findings.add(finding(FindingKind::Unreadable, Severity::Fatal, bytes, text).remedy(
            Remedy::Advice,
            "Look at the host's disk and its log; copy the file to a sound one before anything else",
        ));
    }

    /// The first and the last byte of a range that are not zero.
    fn nonzero(&mut self, range: Range<u64>, what: &str) -> Option<Range<u64>> {
        let mut found: Option<Range<u64>> = None;
        let mut rest = range.start..range.end.min(self.len_bytes);
        let most = usize::try_from(rest.end.saturating_sub(rest.start)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; most.min(1 << 20)];
        while !rest.is_empty() {
            let data = match self.medium.next_data(rest.clone()) {
                Ok(Some(data)) => data,
                Ok(None) => break,
                Err(error) => {
                    self.unreadable(rest, what, &error);
                    break;
                }
            };
            let mut at = data.start;
            while at < data.end {
                let part = usize::try_from(data.end - at).unwrap_or(usize::MAX).min(bytes.len());
                let into = &mut bytes[..part];
                if let Err(error) = self.medium.read_at(into, at) {
                    self.unreadable(at..at + part as u64, what, &error);
                } else if let Some(first) = into.iter().position(|&byte| byte != 0) {
                    let last = into.iter().rposition(|&byte| byte != 0).unwrap_or(first);
                    let start = found.map_or(at + first as u64, |found| found.start);
                    found = Some(start..at + last as u64 + 1);
                }
                at += part as u64;
            }
            rest.start = data.end;
        }
        found
    }
}

/// A fault in the words of an opening.
fn fault_text(fault: &ImageFault) -> String {
    fault.to_string()
}
