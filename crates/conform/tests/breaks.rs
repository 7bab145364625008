//! Every case can fail: a device that is wrong in one way at a time, and the cases that have to see it.
//!
//! `cargo test -p virtio-zbd-conform --test breaks -- --nocapture` lists all cases that see each break.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests")]

mod naive;

use std::collections::{BTreeMap, BTreeSet};

use naive::Break::*;
use naive::{Break, Naive, Shape, shape};
use virtio_zbd_conform::{Outcome, RunOptions, cases, run};

/// What is wrong, on which disk, and the cases that have to fail.
type Row = (Break, fn() -> Shape, &'static [&'static str]);

const BREAKS: &[Row] = &[
    (PlainOffersZoned, shape::plain, &["V1-a"]),
    (ZonedWithoutVersion1, shape::usual, &["V2-a"]),
    (LegacyDriversGetZones, shape::usual, &["V2-b"]),
    (HostAwareInsistsOnZoned, shape::host_aware, &["V3-a"]),
    (FieldsStayWithoutZoned, shape::host_aware, &["V3-b"]),
    (HostManagedGoesOnWithoutZoned, shape::usual, &["V4-a", "V4-b"]),
    (RefusalSticks, shape::usual, &["V4-c"]),
    (AcceptsWhatIsNotOffered, shape::usual, &["S4-a"]),
    (WantsEverything, shape::usual, &["S4-b"]),
    (CacheModeWithoutFlush, shape::usual, &["S5-a"]),
    (NoFlush, shape::usual, &["S5-b"]),
    (WriteBackWithoutFlush, shape::usual, &["S5-c"]),
    (WriteBackStuck, shape::usual, &["S5-d"]),
    (OffersWriteZeroes, shape::usual, &["G3-a"]),
    (OffersDiscard, shape::usual, &["G3-b"]),
    (UnknownModel, shape::usual, &["V5-a"]),
    (ZoneSectorsZero, shape::usual, &["V6-a"]),
    (MaxOpenAboveMaxActive, shape::usual, &["V8-b"]),
    (AppendLimitBeyondRequests, shape::usual, &["V9-a"]),
    (GranularityZero, shape::usual, &["V10-a"]),
    (GranularityOfThreeSectors, shape::usual, &["V10-b", "V10-c"]),
    (PaddingBehindModel, shape::usual, &["V11-a"]),
    (PaddingInside, shape::usual, &["S1-a"]),
    (ShortConfiguration, shape::usual, &["S2-a"]),
    (WritableConfiguration, shape::usual, &["S2-b"]),
    (NoQueues, shape::usual, &["S3-a"]),
    (EraseAlignmentOfOne, shape::usual, &["V32-a"]),
    (DeviceResetWipes, shape::usual, &["S23-a", "S23-b", "G6-a", "G6-b"]),
    (ZonesWithoutZoned, shape::host_aware, &["V12-a", "V12-b", "V12-c", "V12-d", "V12-e", "V12-f", "V12-g"]),
    (PreferredOnHostManaged, shape::usual, &["V5-b"]),
    (UnknownType, shape::usual, &["S7-a"]),
    (UnknownState, shape::usual, &["S7-b"]),
    (ConventionalIsEmpty, shape::usual, &["S7-c"]),
    (ZonesWithGaps, shape::usual, &["V6-b"]),
    (LastCapacityBeyondDisk, shape::adjoining, &["V6-c"]),
    (CapacityBeyondZone, shape::usual, &["S10-a"]),
    (CapacityShrinks, shape::usual, &["S10-b"]),
    (ReportEndsEarly, shape::usual, &["S8-a"]),
    (CountsPartialDescriptors, shape::usual, &["S8-b"]),
    (HeaderAloneRefused, shape::usual, &["S8-c"]),
    (CountsRoom, shape::usual, &["S8-d"]),
    (LongReportsAreStale, shape::usual, &["S8-e", "S9-a"]),
    (ReservedInDescriptor, shape::usual, &["S8-f"]),
    (ReservedInHeader, shape::usual, &["S8-g"]),
    (EmptyPointsToZero, shape::usual, &["S9-a"]),
    (WritePointerBehind, shape::usual, &["S9-b", "S9-c", "S9-d"]),
    (FullShowsData, shape::usual, &["S9-e", "S9-f"]),
    (ReportFromNextZone, shape::usual, &["R7-a", "R7-b", "R7-c"]),
    (ReportPastTheEnd, shape::usual, &["G4-a", "G4-b"]),
    (ReportWithoutRoom, shape::usual, &["G4-c"]),
    (ManagesConventional, shape::usual, &["V13-a", "V13-b", "V13-c", "V13-d"]),
    (ManagesReadOnly, shape::usual, &["V15-e", "V16-d", "V17-d", "V18-e"]),
    (ManagesFromInside, shape::usual, &["R8-a", "R8-b", "R8-c", "R8-d"]),
    (ManagesPastTheEnd, shape::usual, &["R8-e"]),
    (ServesOffline, shape::usual, &["V29-a", "V29-b", "V29-c", "V29-d", "V29-e", "V29-f", "V29-g"]),
    (OpenDoesNothing, shape::usual, &["V15-a", "V15-b", "V15-c", "V7-a", "S22-a", "S22-b"]),
    (CloseDoesNothing, shape::usual, &["V16-a", "V16-b", "V16-c", "V8-a"]),
    (FinishDoesNothing, shape::usual, &["V17-a", "V17-b", "V17-c", "G1-a", "G1-b"]),
    (ResetDoesNothing, shape::usual, &["V18-a", "V18-b", "V18-c", "V18-d", "V18-f"]),
    (ResetLeavesHole, shape::usual, &["V18-a", "V18-f", "V23-k"]),
    (ResetAllDoesNothing, shape::usual, &["V19-a", "V19-b", "V19-c", "V19-d", "V19-e"]),
    (OpensFull, shape::usual, &["V15-d"]),
    (OpenOfOpenFails, shape::usual, &["S6-a"]),
    (CloseOfClosedFails, shape::usual, &["S6-b"]),
    (FinishOfFullFails, shape::usual, &["S6-c"]),
    (ResetOfEmptyFails, shape::usual, &["S6-d"]),
    (FinishOfOpenOnly, shape::usual, &["G1-a", "G1-b"]),
    (CloseOfAnything, shape::usual, &["G2-a", "G2-b"]),
    (FinishNeedsNothing, shape::usual, &["G1-c", "G1-d"]),
    (ResetAllTakesConventional, shape::usual, &["V19-f"]),
    (ResetAllTakesWorn, shape::usual, &["V19-g"]),
    (ResetAllWantsSectorZero, shape::usual, &["R9-a"]),
    (ManagementReachesNeighbour, shape::usual, &["S22-d"]),
    (OneOpenLess, shape::usual, &["V7-a"]),
    (OneActiveLess, shape::usual, &["V8-a"]),
    (NoOpenLimit, shape::usual, &["V7-b", "V15-f", "V15-g", "V20-e", "V20-f", "V20-i", "V20-j"]),
    (NoActiveLimit, shape::usual, &["V15-h", "V20-g", "V20-k"]),
    (NoActiveLimit, shape::coarse, &["V7-b", "V15-h", "V20-g", "V20-k"]),
    (HiddenLimit, shape::no_limits, &["V7-c", "V8-c"]),
    (BothIsOpen, shape::usual, &["V15-i", "V20-h", "V20-l"]),
    (BothIsOpen, shape::one_of_each, &["V15-i", "V20-h", "V20-l"]),
    (RoomLosesData, shape::usual, &["V27-a"]),
    (RoomFromExplicit, shape::usual, &["V27-b"]),
    (NoRoomForWrites, shape::usual, &["V27-c"]),
    (NoRoomForOpen, shape::usual, &["V27-d"]),
    (CloseLeaks, shape::usual, &["S11-a", "S11-b"]),
    (ResetLeaks, shape::usual, &["S11-c"]),
    (FinishLeaks, shape::usual, &["S11-d"]),
    (ResetAllLeaks, shape::usual, &["S11-e"]),
    (FullLeaks, shape::usual, &["S11-f"]),
    (RefusalLeaks, shape::usual, &["S11-g"]),
    (OpenCountsTwice, shape::usual, &["S11-h"]),
    (CloseFreesTwice, shape::usual, &["S11-i"]),
    (WriteOpensExplicitly, shape::usual, &["V20-a", "V20-b", "V20-c", "V20-d"]),
    (WriteToExplicitMakesImplicit, shape::usual, &["S19-b", "S19-g"]),
    (MovesByOneGranule, shape::usual, &["S19-a", "S19-c"]),
    (NoDataOpens, shape::usual, &["S19-d", "S19-f"]),
    (NoOrder, shape::usual, &["S19-e"]),
    (OverwritesBehind, shape::usual, &["V26-a", "V26-d", "V26-f", "V26-i"]),
    (SkipsAhead, shape::usual, &["V26-b", "V26-c", "V26-e"]),
    (
        MisplacedIsIoErr,
        shape::usual,
        &["V26-a", "V26-b", "V26-c", "V26-d", "V26-e", "V26-f", "V26-g", "V26-h", "V26-i"],
    ),
    (PartialGranules, shape::usual, &["V26-g"]),
    (PartialAppends, shape::usual, &["V26-h"]),
    (LongWritesAreCut, shape::usual, &["V22-a"]),
    (LongWritesAreCut, shape::adjoining, &["V22-b", "V25-a"]),
    (LongAppendsAreCut, shape::usual, &["V22-e"]),
    (LongAppendsAreCut, shape::adjoining, &["V22-e", "V25-d"]),
    (WritesFull, shape::usual, &["V22-c", "V22-f"]),
    (GapIsWritable, shape::usual, &["V22-d"]),
    (NeverFull, shape::usual, &["S20-a", "S20-b", "S20-c", "S20-e", "V23-j"]),
    (NeverFull, shape::adjoining, &["S20-d", "V6-d"]),
    (FullTooEarly, shape::odd_capacities, &["S10-c"]),
    (CrossingWrites, shape::adjoining, &["V25-a", "V25-b"]),
    (CrossingWrites, shape::one_of_each, &["V25-c"]),
    (CrossingReads, shape::adjoining, &["V25-e"]),
    (CrossingReads, shape::one_of_each, &["V25-f"]),
    (CrossingFromConventional, shape::usual, &["V25-g", "V25-h"]),
    (WritesReadOnlyZones, shape::usual, &["V28-a", "V28-b"]),
    (AppendToConventional, shape::usual, &["V14-a"]),
    (AppendToPreferred, shape::host_aware, &["V14-b"]),
    (AppendAnywhere, shape::usual, &["V21-a", "V21-b", "V21-c"]),
    (AppendTellsEnd, shape::usual, &["V23-a", "V23-b", "V23-c", "V23-d", "V23-e"]),
    (AppendsRace, shape::usual, &["V23-f", "V23-g", "V23-h", "V23-i", "V23-j"]),
    (NoAppendIsInvalid, shape::no_limits, &["V24-a"]),
    (AppendLimitIgnored, shape::usual, &["V24-b"]),
    (LongestAppendRefused, shape::usual, &["V9-b"]),
    (ConventionalInOrder, shape::usual, &["S12-a"]),
    (ConventionalNotCrossed, shape::usual, &["S12-b"]),
    (ConventionalOpens, shape::usual, &["S12-d"]),
    (PreferredIsRequired, shape::host_aware, &["S13-a", "S13-b"]),
    (ReadOnlyDiskWrites, shape::read_only, &["S18-a", "S18-b"]),
    (ReadOnlyDiskManages, shape::read_only, &["G5-a"]),
    (PastTheEndIsOk, shape::usual, &["S21-a", "S21-b", "S21-c", "S21-d"]),
    (ReadsWrongData, shape::usual, &["S14-a", "S14-b", "S14-d", "S16-a", "S12-c"]),
    (ReadsWrongData, shape::plain, &["S17-h"]),
    (ReadMovesWritePointer, shape::usual, &["S14-d"]),
    (ReadOnlyUnreadable, shape::usual, &["S14-c"]),
    (OldDataShows, shape::usual, &["V30-a", "V30-b", "V30-c", "V30-d"]),
    (UnwrittenIsUnknown, shape::usual, &["V31-a", "V31-c"]),
    (UnwrittenHidesWritten, shape::usual, &["V31-b"]),
    (UnwrittenFails, shape::usual, &["V31-d"]),
    (PatternChanges, shape::usual, &["V31-e"]),
    (PatternOfOnes, shape::usual, &["V31-f"]),
    (WholeBlocksOnly, shape::odd_capacities, &["S14-e", "S14-f"]),
    (ShortZoneDead, shape::adjoining, &["V6-e", "V6-f"]),
    (FirstZoneDead, shape::usual, &["S22-a"]),
    (LastZoneDead, shape::usual, &["S22-b"]),
    (LastSectorDead, shape::adjoining, &["S22-c"]),
    (EraseDoesNothing, shape::usual, &["V32-b"]),
    (ErasesParts, shape::usual, &["V32-c"]),
    (ErasesConventional, shape::usual, &["V32-d"]),
    (UnknownFlagsIgnored, shape::usual, &["V32-e"]),
    (UnknownFlagsIgnored, shape::plain, &["S17-d", "S17-e"]),
    (DiscardUnmaps, shape::plain, &["S17-f"]),
    (ZeroesNothing, shape::plain, &["S17-g"]),
    (UnknownTypeIsOk, shape::usual, &["S17-a"]),
    (IdOfGarbage, shape::usual, &["S17-b"]),
    (FlushFails, shape::usual, &["S17-c"]),
    (LifetimeReserved, shape::usual, &["S17-i"]),
    (HeaderAlone, shape::usual, &["S15-a", "S15-b", "S15-c", "S15-d", "S15-i", "S15-l", "S15-o"]),
    (DataInSectors, shape::usual, &["S15-e"]),
    (StatusAlone, shape::usual, &["S15-f", "S15-h", "S15-m"]),
    (RoomInSectors, shape::usual, &["S15-g", "S15-n"]),
    (InHeaderWhole, shape::usual, &["S15-j", "S15-k", "S15-l"]),
    (StatusFirst, shape::usual, &["S16-a"]),
    (AppendStatusFirst, shape::usual, &["S16-b"]),
    (UsedTooLong, shape::usual, &["S16-c"]),
    (MalformedHangs, shape::usual, &["G7-a", "G7-b"]),
    (AppendWithoutRoom, shape::usual, &["G7-c"]),
    (PartialSectorsAreOk, shape::usual, &["G7-d"]),
];

#[test]
fn each_break_is_seen_by_the_cases_that_look_for_it() {
    let mut missed = Vec::new();
    for &(broken, shape, expected) in BREAKS {
        for &id in expected {
            // Each on a device that no other case has met: what a break leaves behind may keep a case from beginning.
            let outcome = outcomes(shape(), broken, &[id]).remove(id).unwrap();
            if !matches!(outcome, Outcome::Failed(_)) {
                missed.push(format!("{id} on {broken:?}: {outcome:?}"));
            }
        }
    }
    assert!(missed.is_empty(), "not seen:\n{}", missed.join("\n"));
}

#[test]
fn each_case_can_fail() {
    let seen: BTreeSet<&str> = BREAKS.iter().flat_map(|(_, _, expected)| expected.iter().copied()).collect();
    let never: Vec<&str> = cases().iter().map(|case| case.id).filter(|id| !seen.contains(id)).collect();
    assert!(never.is_empty(), "no break is seen by {never:?}");
    let known: BTreeSet<&str> = cases().iter().map(|case| case.id).collect();
    assert!(seen.is_subset(&known), "no such cases: {:?}", seen.difference(&known));
}

#[test]
fn a_whole_run_sees_each_break() {
    for &(broken, shape, expected) in BREAKS {
        let outcomes = outcomes(shape(), broken, &[]);
        let failed: Vec<&str> = outcomes
            .iter()
            .filter(|(_, outcome)| matches!(outcome, Outcome::Failed(_)))
            .map(|(id, _)| *id)
            .collect();
        println!("{broken:?}: {}", failed.join(" "));
        assert!(!failed.is_empty(), "{broken:?}");
        // What a break has left behind may keep a case from beginning, but none of them passes.
        for id in expected {
            assert_ne!(outcomes[id], Outcome::Passed, "{id} on {broken:?}, failed: {failed:?}");
        }
    }
}

/// What came of the cases with these ids, all if there are none.
fn outcomes(shape: Shape, broken: Break, only: &[&str]) -> BTreeMap<&'static str, Outcome> {
    let only = only.iter().map(ToString::to_string).collect();
    let options = RunOptions { seed: 5, only, ..RunOptions::default() };
    let mut outcomes = BTreeMap::new();
    run(&mut Naive::new(shape, Some(broken)), &options, &mut |result| {
        outcomes.insert(result.case.id, result.outcome.clone());
    });
    outcomes
}
