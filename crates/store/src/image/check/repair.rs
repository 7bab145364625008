//! Repair: what can't lose anything, and a copy of what was there before.

use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{CheckOptions, CheckReport, kept};
use crate::error::StoreError;
use crate::image::create::{Unfinished, sync_directory};
use crate::image::{ImageStore, open_file};
use crate::medium::{FileMedium, Medium, clear};

/// How a repair ended.
#[derive(Clone, Debug)]
pub struct Repaired {
    /// What was found before.
    pub before: CheckReport,
    /// What is found now; `None`: there was nothing to repair, and nothing was written.
    pub after: Option<CheckReport>,
    /// The file with what was changed, as it was before.
    pub kept: Option<PathBuf>,
}

impl ImageStore {
    /// Checks an image and does what can't lose anything: see [`Remedy::Repair`](super::Remedy::Repair). What it changes is
    /// kept before, as it was, in a new file beside the image (`PATH.repair-N`, by `docs/reliability.md`), from which
    /// [`undo_repair`](Self::undo_repair) brings it back.
    ///
    /// It may be killed, or the machine stop, at any moment: each change is right by itself, and the next repair does the
    /// others.
    ///
    /// # Errors
    /// As [`check`](Self::check); somebody reads the image; there is no room for the copy, and nothing was changed; the image
    /// can't be written.
    pub fn repair(path: &Path, options: CheckOptions) -> Result<Repaired, StoreError> {
        // Who has nothing to write needs no right to write.
        let before = Self::check(path, options)?;
        if before.plan.changes.is_empty() {
            return Ok(Repaired { before, after: None, kept: None });
        }
        let medium = open_file(path, false)?;
        let before = Self::check_on(&medium, options)?;
        if before.plan.changes.is_empty() {
            return Ok(Repaired { before, after: None, kept: None });
        }
        let kept = keep_beside(path, &before.plan, &medium)?;
        apply(&before.plan, &medium).map_err(|source| StoreError::Repair {
            name: path.display().to_string(),
            kept: kept.display().to_string(),
            source,
        })?;
        let after = Self::check_on(&medium, options)?;
        Ok(Repaired { before, after: Some(after), kept: Some(kept) })
    }

    /// As [`repair`](Self::repair), on any medium, with another one, empty as yet, for the copy; without a lock.
    ///
    /// # Errors
    /// As [`repair`](Self::repair).
    pub fn repair_on(
        medium: &dyn Medium,
        options: CheckOptions,
        kept: &dyn Medium,
    ) -> Result<Repaired, StoreError> {
        let before = Self::check_on(medium, options)?;
        if before.plan.changes.is_empty() {
            return Ok(Repaired { before, after: None, kept: None });
        }
        let io = |what| StoreError::io(kept.name(), what);
        kept::write(kept, &before.plan, medium).map_err(io("keeping what will be changed"))?;
        apply(&before.plan, medium).map_err(|source| StoreError::Repair {
            name: medium.name().to_owned(),
            kept: kept.name().to_owned(),
            source,
        })?;
        let after = Self::check_on(medium, options)?;
        Ok(Repaired { before, after: Some(after), kept: None })
    }
}

/// A new file beside the image, with what will be changed. It has its name once it is whole and on the medium.
fn keep_beside(path: &Path, plan: &Plan, medium: &FileMedium) -> Result<PathBuf, StoreError> {
    let name = path.display().to_string();
    let io = |what| StoreError::io(name.clone(), what);
    let unfinished = Unfinished::new(path).map_err(io("making a file beside it"))?;
    let file = unfinished.file.try_clone().map_err(io("making a file beside it"))?;
    // It has the image's data: whoever may not read that may not read this.
    let permissions = std::fs::metadata(path).map_err(io("looking for it"))?.permissions();
    file.set_permissions(permissions).map_err(io("making a file beside it"))?;
    let kept = FileMedium::new(file, path);
    kept::write(&kept, plan, medium).map_err(io("keeping what will be changed"))?;
    let kept_path = free_name(path);
    unfinished.take_name(&kept_path, false).map_err(io("giving the copy its name"))?;
    sync_directory(&kept_path).map_err(io("bringing the copy's name to the medium"))?;
    Ok(kept_path)
}

/// The first of `PATH.repair-1`, `PATH.repair-2`, … that there is not.
fn free_name(path: &Path) -> PathBuf {
    let numbered = |number: u32| {
        let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
        name.push(format!(".repair-{number}"));
        path.with_file_name(name)
    };
    (1..).map(numbered).find(|path| path.symlink_metadata().is_err()).unwrap_or_else(|| numbered(0))
}

/// Does what the plan says.
fn apply(plan: &Plan, medium: &dyn Medium) -> io::Result<()> {
    // After a kill the live area may speak of data that is in the page cache only, and pages that are made of it may not.
    medium.sync_data()?;
    for change in &plan.changes {
        match change {
            Change::Write { offset_bytes, block } => medium.write_at(block, *offset_bytes)?,
            Change::Clear(bytes) => clear(medium, bytes.clone())?,
            Change::SetLen(len_bytes) => medium.set_len(*len_bytes)?,
        }
    }
    medium.sync_data()
}

/// The changes that can't lose anything. Each is right by itself, so any of them may be done without the others, in any part.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    pub(super) changes: Vec<Change>,
}

/// One change of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A block is written over one that is damaged.
    Write { offset_bytes: u64, block: Vec<u8> },
    /// What is there goes.
    Clear(Range<u64>),
    /// The file gets its length back; what is new is a hole.
    SetLen(u64),
}

impl Plan {
    pub(super) fn write(&mut self, offset_bytes: u64, block: &[u8]) {
        self.changes.push(Change::Write { offset_bytes, block: block.to_vec() });
    }

    pub(super) fn clear(&mut self, bytes: Range<u64>) {
        self.changes.push(Change::Clear(bytes));
    }

    pub(super) fn set_len(&mut self, len_bytes: u64) {
        self.changes.push(Change::SetLen(len_bytes));
    }

    pub(super) fn changed_bytes(&self) -> u64 {
        let changed = |change: &Change| match change {
            Change::Write { block, .. } => block.len() as u64,
            Change::Clear(bytes) => bytes.end - bytes.start,
            Change::SetLen(_) => 0,
        };
        self.changes.iter().map(changed).sum()
    }
}
