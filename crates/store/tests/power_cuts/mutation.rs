//! What can be done wrong on purpose, without touching the store: the medium drops, holds back or misplaces
//! calls.

use crate::disk::{Area, World};

/// What the store is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Open,
    Write,
    Flush,
    Finish,
    Reset,
    Grow,
    Close,
}

/// What a sync is for, by what was written before it in its phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncKind {
    /// Of no page and no superblock copy.
    Data,
    /// Of pages, the n-th of its phase.
    Pages(u32),
    /// Of a superblock copy, the n-th of its phase.
    Superblock(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// All is as it should be.
    None,
    /// One sync fewer.
    NoSync(Phase, SyncKind),
    /// The image is marked without any sync.
    NoSyncOfMark(Phase),
    /// Page and data are brought to the medium the other way round.
    PageBeforeData,
    /// The pages that lose active zones are synced together with those that gain some.
    PagesAtOnce,
    /// A reset punches before its page is durable.
    HoleBeforePage,
    /// A reset never punches.
    NoHole,
    /// A reset puts down the states of all zones of the page, not of its own only.
    ResetTakesAll,
    /// There is only the first copy of the superblock.
    OneSuperblock,
    /// There is only one slot for each page.
    OneSlot,
    /// A page is written over the version that counts.
    PageInPlace,
    /// Checksums are always right.
    NoChecksum,
    /// Opening leaves what lies behind the zones' data.
    NoSweep,
    /// Opening sweeps before it writes pages.
    SweepBeforePages,
    /// Opening fills the live area after the superblock has named the boot.
    MarkBeforeLive,
    /// Closing marks the image before its pages are written.
    MarkBeforePages,
    /// The live area counts after a power cut.
    LiveTrusted,
    /// The live area does not count after a kill.
    LiveForgotten,
}

impl Mutation {
    pub fn drops_sync(self, phase: Phase, kind: SyncKind) -> bool {
        match self {
            Self::NoSync(of, this) => of == phase && this == kind,
            Self::NoSyncOfMark(of) => of == phase && matches!(kind, SyncKind::Superblock(_)),
            Self::ResetTakesAll => phase == Phase::Reset && kind == SyncKind::Data,
            Self::PagesAtOnce => phase == Phase::Flush && kind == SyncKind::Pages(1),
            Self::PageBeforeData => phase == Phase::Flush && kind == SyncKind::Data,
            _ => false,
        }
    }

    pub fn drops_punch(self, phase: Phase) -> bool {
        self == Self::NoSweep && phase == Phase::Open || self == Self::NoHole && phase == Phase::Reset
    }

    /// Whether a write to `area` waits, and the sync after it.
    pub fn holds(self, phase: Phase, area: Area) -> bool {
        match self {
            Self::HoleBeforePage => phase == Phase::Reset && area == Area::Pages,
            Self::SweepBeforePages => phase == Phase::Open && area == Area::Pages,
            Self::MarkBeforeLive => phase == Phase::Open && area == Area::Live,
            Self::MarkBeforePages => phase == Phase::Close && area == Area::Pages,
            _ => false,
        }
    }

    /// Whether what was held back is done before anything comes to `area`.
    pub fn releases(self, phase: Phase, area: Area) -> bool {
        self == Self::SweepBeforePages
            && phase == Phase::Open
            && matches!(area, Area::Live | Area::Superblock)
    }

    /// Where a sector is read; `None`: nowhere, it reads as zeros.
    pub fn place_read(self, sector: usize, world: &World) -> Option<usize> {
        match self {
            Self::OneSuperblock if (8..16).contains(&sector) => None,
            Self::OneSlot => Some(first_slot(sector, world)),
            _ => Some(sector),
        }
    }

    /// Where a sector is written; `None`: nowhere.
    pub fn place_write(self, sector: usize, world: &World) -> Option<usize> {
        let slots = world.slot_sectors();
        match self {
            Self::PageInPlace if (16..16 + slots).contains(&sector) => Some(sector + slots),
            Self::PageInPlace if (16 + slots..16 + 2 * slots).contains(&sector) => Some(sector - slots),
            _ => self.place_read(sector, world),
        }
    }
}

fn first_slot(sector: usize, world: &World) -> usize {
    let slots = world.slot_sectors();
    if (16 + slots..16 + 2 * slots).contains(&sector) { sector - slots } else { sector }
}
