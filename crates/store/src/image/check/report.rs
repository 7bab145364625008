//! What a check has found, for programs and for people.

use std::fmt;
use std::ops::Range;

use uuid::Uuid;
use virtio_zbd_zones::Geometry;

use super::repair::Plan;
use crate::image::{LastUse, ZoneRanges};

/// How a check is done.
#[derive(Clone, Copy, Debug)]
pub struct CheckOptions {
    /// As in [`OpenOptions`](crate::OpenOptions): what stands for this boot of the machine.
    pub boot_id: Option<[u8; 16]>,
    /// How many findings are kept; the others are only counted ([`CheckReport::omitted`]).
    pub findings_max: usize,
    /// What lies behind write pointers in a closed image counts as repairable: a repair removes it, and keeps a copy. It is
    /// no data by the format, but if the structures were another image's, or an older copy of this one's, it would be.
    pub clear_behind: bool,
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self { boot_id: None, findings_max: 1000, clear_behind: false }
    }
}

/// All that is to be said of a file as an image.
#[derive(Clone, Debug)]
pub struct CheckReport {
    /// Its path.
    pub name: String,
    /// Length of the file.
    pub file_len_bytes: u64,
    /// How much space of the host the file takes.
    pub allocated_bytes: u64,
    /// What the superblock says; `None`: there is none that counts.
    pub image: Option<CheckedImage>,
    /// Whether an opening would take it.
    pub opens: Opens,
    /// What an opening for writing will do first; `None`: it would refuse.
    pub next_opening: Option<NextOpening>,
    /// What was found, from the file's start to its end within each area.
    pub findings: Vec<Finding>,
    /// Findings that were counted but not kept.
    pub omitted: Omitted,
    pub(super) plan: Plan,
}

/// How many findings were not kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Omitted {
    /// Problems that a repair would mend.
    pub repairable: u64,
    /// Other problems.
    pub problems: u64,
    /// Notes.
    pub notes: u64,
}

/// What the superblock says.
#[derive(Clone, Debug)]
pub struct CheckedImage {
    /// Which image this is.
    pub uuid: Uuid,
    /// The version of the format.
    pub version: u32,
    /// The superblock's sequence number: how often it was written.
    pub sequence: u64,
    /// The disk's shape; `None`: what stands there can't be.
    pub geometry: Option<Geometry>,
    /// How it was left.
    pub last_use: LastUse,
    /// The boot that had it open for writing; all zeros: it was closed.
    pub live_boot_id: Uuid,
    /// This boot.
    pub boot_id: Uuid,
}

/// Whether [`ImageStore::open`](crate::ImageStore::open) takes the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opens {
    /// For reading and for writing.
    Yes,
    /// For reading only: why not for writing.
    ReadOnly(String),
    /// Not at all: why.
    No(String),
}

/// What an opening for writing does before anything else (`docs/format.md`, "Opening").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NextOpening {
    /// The live area counts (D5), not the zone-state pages.
    pub live_area_counts: bool,
    /// Zones whose live state is not on the medium yet: a power cut before the opening would take them back.
    pub unflushed_zones: u32,
    /// Zones that were open and will be closed (D4).
    pub open_zones: u32,
    /// Zone-state pages that are written anew.
    pub pages_written: u32,
    /// How much is removed behind the ends of zones' data, in whole stretches of the file.
    pub swept_bytes: u64,
    /// In how many zones.
    pub swept_zones: u32,
    /// What the zones are afterwards.
    pub zones: ZoneCounts,
}

/// How many zones are in which condition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "named after the conditions")]
pub struct ZoneCounts {
    pub conventional: u32,
    pub empty: u32,
    pub closed: u32,
    pub full: u32,
    pub read_only: u32,
    pub offline: u32,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub kind: FindingKind,
    /// How bad.
    pub severity: Severity,
    /// The zones that it is about; none: the whole image.
    pub zones: ZoneRanges,
    /// Where in the file.
    pub bytes: Range<u64>,
    /// What is there, in a sentence's end: "the superblock copy at byte 0 has checksum …".
    pub found: String,
    /// What should be there.
    pub expected: String,
    /// Who can mend it.
    pub remedy: Remedy,
    /// What to do, or what will be done.
    pub advice: String,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Nothing is wrong: good to know.
    Note,
    /// The image opens and has everything, but it is not as it should be: another damage could be the last one.
    Damage,
    /// An opening refuses the image, or a part of its data is gone.
    Fatal,
}

/// Who can mend what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// There is nothing to mend.
    None,
    /// [`ImageStore::repair`](crate::ImageStore::repair), without losing anything.
    Repair,
    /// The next opening for writing.
    NextOpening,
    /// Somebody who knows more: the advice says what to do.
    Advice,
    /// A newer program.
    NewerProgram,
    /// Nothing but a copy of the image.
    Copy,
}

/// What was found. [`code`](Self::code) is its name for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FindingKind {
    /// No superblock copy has the magic number.
    NotAnImage,
    /// A superblock copy is not whole.
    SuperblockDamaged,
    /// A superblock copy is the version before: whoever wrote both was stopped between them.
    SuperblockOlder,
    /// A superblock copy is older than a crash can explain.
    SuperblockStale,
    /// Both superblock copies are whole and of one version, but not the same.
    SuperblocksDiffer,
    /// A superblock copy belongs to another image.
    SuperblockForeign,
    /// A format version that this program does not know.
    Version,
    /// Features that this program does not know.
    Features,
    /// Bytes that version 1 does not describe are not zero.
    Undescribed,
    /// A geometry that can't be.
    Geometry,
    /// An offset, a length or a count that can't be.
    Layout,
    /// The file ends before the image.
    FileTooShort,
    /// A zone has lost data with the file's end.
    ZoneCut,
    /// The file is longer than the image.
    FileLonger,
    /// A place of a zone-state page is not whole.
    SlotDamaged,
    /// A place of a zone-state page holds an old version, older than the one before.
    SlotStale,
    /// Both places of a zone-state page are damaged.
    PageLost,
    /// The newest version of a zone-state page is gone.
    PageNewestLost,
    /// The pages' sequence numbers are not those that were noted when the image was closed.
    SequenceSum,
    /// A state that its zone can't be in.
    ZoneState,
    /// More zones are active than the disk allows.
    TooManyActive,
    /// The live area's space is not taken from the host.
    LiveUnallocated,
    /// Data behind the end of a zone's data.
    BehindWritePointer,
    /// Holes below write pointers.
    HolesBelowWritePointer,
    /// A part of the file can't be read.
    Unreadable,
    /// An opening refuses the image for a reason that is not among the others.
    Refused,
}

impl FindingKind {
    /// Its name for programs: lower case, words joined by `-`. It stays the same in later versions.
    pub fn code(self) -> &'static str {
        match self {
            Self::NotAnImage => "not-an-image",
            Self::SuperblockDamaged => "superblock-damaged",
            Self::SuperblockOlder => "superblock-older",
            Self::SuperblockStale => "superblock-stale",
            Self::SuperblocksDiffer => "superblocks-differ",
            Self::SuperblockForeign => "superblock-foreign",
            Self::Version => "version",
            Self::Features => "features",
            Self::Undescribed => "undescribed-bytes",
            Self::Geometry => "geometry",
            Self::Layout => "layout",
            Self::FileTooShort => "file-too-short",
            Self::ZoneCut => "zone-cut",
            Self::FileLonger => "file-longer",
            Self::SlotDamaged => "page-slot-damaged",
            Self::SlotStale => "page-slot-stale",
            Self::PageLost => "page-lost",
            Self::PageNewestLost => "page-newest-lost",
            Self::SequenceSum => "sequence-sum",
            Self::ZoneState => "zone-state",
            Self::TooManyActive => "too-many-active",
            Self::LiveUnallocated => "live-unallocated",
            Self::BehindWritePointer => "behind-write-pointer",
            Self::HolesBelowWritePointer => "holes-below-write-pointer",
            Self::Unreadable => "unreadable",
            Self::Refused => "refused",
        }
    }
}

impl Severity {
    /// Its name for programs.
    pub fn code(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Damage => "damage",
            Self::Fatal => "fatal",
        }
    }
}

impl Remedy {
    /// Its name for programs.
    pub fn code(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Repair => "repair",
            Self::NextOpening => "next-opening",
            Self::Advice => "advice",
            Self::NewerProgram => "newer-program",
            Self::Copy => "copy",
        }
    }
}

impl CheckReport {
    /// Nothing is wrong. There may be notes.
    pub fn is_clean(&self) -> bool {
        self.problems() == 0
    }

    /// How many findings are more than notes.
    pub fn problems(&self) -> u64 {
        let kept = self.findings.iter().filter(|finding| finding.is_problem()).count();
        kept as u64 + self.omitted.problems + self.omitted.repairable
    }

    /// How many of the problems a repair would mend.
    pub fn repairable(&self) -> u64 {
        let repairable = |finding: &&Finding| finding.is_problem() && finding.remedy == Remedy::Repair;
        self.findings.iter().filter(repairable).count() as u64 + self.omitted.repairable
    }

    /// How much of the file a repair would change, in bytes.
    pub fn repair_len_bytes(&self) -> u64 {
        self.plan.changed_bytes()
    }
}

impl Finding {
    /// More than a note.
    pub fn is_problem(&self) -> bool {
        self.severity > Severity::Note
    }
}

impl fmt::Display for Finding {
    /// What, where, expected, found, what to do; one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.found)?;
        if !self.expected.is_empty() {
            write!(f, "; expected: {}", self.expected)?;
        }
        if !self.advice.is_empty() {
            write!(f, ". {}", self.advice)?;
        }
        Ok(())
    }
}

/// Takes findings as they come, and keeps as many as are wanted.
pub(super) struct Findings {
    pub(super) kept: Vec<Finding>,
    pub(super) omitted: Omitted,
    pub(super) fatal: bool,
    limit: usize,
}

impl Findings {
    pub(super) fn new(limit: usize) -> Self {
        Self { kept: Vec::new(), omitted: Omitted::default(), fatal: false, limit }
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        let Omitted { repairable, problems, notes } = self.omitted;
        self.kept.len() as u64 + repairable + problems + notes
    }

    pub(super) fn add(&mut self, finding: Finding) {
        self.fatal |= finding.severity == Severity::Fatal;
        if self.kept.len() < self.limit {
            self.kept.push(finding);
        } else if !finding.is_problem() {
            self.omitted.notes += 1;
        } else if finding.remedy == Remedy::Repair {
            self.omitted.repairable += 1;
        } else {
            self.omitted.problems += 1;
        }
    }
}

/// A finding with its parts to be filled in.
pub(super) fn finding(
    kind: FindingKind,
    severity: Severity,
    bytes: Range<u64>,
    found: impl Into<String>,
) -> Finding {
    Finding {
        kind,
        severity,
        zones: ZoneRanges::default(),
        bytes,
        found: found.into(),
        expected: String::new(),
        remedy: Remedy::None,
        advice: String::new(),
    }
}

impl Finding {
    pub(super) fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = expected.into();
        self
    }

    pub(super) fn zones(mut self, zones: Range<u32>) -> Self {
        if !zones.is_empty() {
            self.zones = ZoneRanges(vec![zones.start..=zones.end - 1]);
        }
        self
    }

    pub(super) fn remedy(mut self, remedy: Remedy, advice: impl Into<String>) -> Self {
        self.remedy = remedy;
        self.advice = advice.into();
        self
    }

    /// Nothing but a copy helps.
    pub(super) fn lost(self) -> Self {
        self.remedy(Remedy::Copy, "Nothing in the file can replace it: use a copy of the image")
    }
}
