//! [`Fault`]: the ways in which a broken store is wrong, and the rule that each one breaks.

use opstate::conformance::Rule;

macro_rules! faults {
    ($($name:ident => $rule:ident,)*; $($harmless:ident,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Fault {
            $($name,)*
            $($harmless,)*
        }

        /// All faults, each with the rule that it breaks.
        pub(crate) const FAULTS: &[(Fault, Rule)] = &[$((Fault::$name, Rule::$rule)),*];

        /// Variants that look like faults but break no rule.
        pub(crate) const HARMLESS: &[Fault] = &[$(Fault::$harmless),*];
    };
}

faults! {
    StartsFilled => StartsEmpty,
    EmptyKeyRefused => Keys,
    TooLongKeyAccepted => Keys,
    TooLongKeyTruncated => Keys,
    ErrorWithWrongNumbers => Keys,
    ErrorThatClears => Errors,
    ReversedScan => Order,
    SignedOrder => Order,
    EndlessScan => Contents,
    SizeWithoutKeys => Counts,
    SizeIgnoresOverwrites => Counts,
    LenCountsOverwrites => Counts,
    ClearForgetsSize => Counts,
    KeysCutAt256 => Counts,
    NeverEmpty => Counts,
    ValuesCutAt255 => Put,
    FullAt300 => Put,
    LostDelete => Delete,
    DeleteOfAbsentFails => Delete,
    ContainsEverything => Contains,
    HighestPrefixYieldsNothing => PrefixScan,
    PrefixYieldsNeighbours => PrefixScan,
    EmptyPrefixYieldsNothing => Contents,
    InvertedRangePanics => NoPanic,
    DeleteOfAbsentPanics => NoPanic,
    RangeEndIncluded => RangeScan,
    RangeStartExcluded => RangeScan,
    VisitIgnoresBreak => VisitRange,
    EntriesIgnoreStart => Entries,
    EntriesIgnoreEnd => Entries,
    EntriesDownIncludeEnd => Entries,
    EntriesLoseTheMiddle => Entries,
    EntriesDoubleTheMiddle => Entries,
    EntriesGoOnAtTheOtherEnd => Entries,
    EntriesDownGoUp => Order,
    EntriesPanicWhereInverted => NoPanic,
    TryGetMisses => TryGet,
    TryGetFailsForAbsent => TryGet,
    TryVisitIgnoresBreak => TryVisitRange,
    TryVisitMissesLast => TryVisitRange,
    VisitIncludesExcludedStart => VisitRange,
    VisitExcludesIncludedEnd => VisitRange,
    GetManyAppends => GetMany,
    GetManyLosesOrder => GetMany,
    GetManySkipsAbsent => GetMany,
    ReadCallsForAbsent => Read,
    ReadCallsTwice => Read,
    GetOrInsertOverwrites => GetOrInsert,
    GetOrInsertReturnsDefault => GetOrInsert,
    LostModify => Modify,
    ModifyInsertsAbsent => Modify,
    ModifySaysAbsent => Modify,
    PutBytesLosesValue => PutBytes,
    PutManyKeepsFirst => PutMany,
    PutManyLosesLast => PutMany,
    PutManyBeforeRefusing => PutMany,
    FlushFails => Flush,
    FlushForgets => Flush,
    TakeKeeps => Take,
    TakeReturnsEmpty => Take,
    TakeOfAbsentFails => Take,
    DeleteWithinMiscounts => DeleteWithin,
    DeleteWithinRemovesEnd => DeleteWithin,
    DeleteWithinIgnoresLimit => DeleteWithin,
    DeleteWithinTakesNoLimitForZero => DeleteWithin,
    DeleteWithinIsAlwaysDone => DeleteWithin,
    DeleteWithinIsNotDoneAtLimit => DeleteWithin,
    DeleteWithinStartsAtEnd => DeleteWithin,
    ClearKeepsEmptyKey => Clear,
    RestoreMerges => Restore,
    RestoreLosesEmptyValues => Restore,
    TryRestoreMerges => TryRestore,
    TryRestoreTakesDamaged => TryRestore,
    TryRestoreStopsHalfway => Errors,
    SourceMissesGet => Snapshots,
    SourceIgnoresBounds => Snapshots,
    SourceVisitIgnoresBreak => Snapshots,
    SourceDownMissesFirst => Snapshots,
    SourceDownGoesUp => Snapshots,
    SnapshotMissesLast => Snapshots,
    SnapshotSeesPut => Snapshots,
    SnapshotSeesModify => Snapshots,
    RestoreSharesWithSnapshot => Snapshots,
    HandleSeesPut => Handles,
    HandleSeesModify => Handles,
    ScanSeesModify => Handles,
    PackedGet => Alignment,
    PackedTryGet => Alignment,
    PackedGetMany => Alignment,
    PackedGetOrInsert => Alignment,
    PackedTake => Alignment,
    PackedPrefixScan => Alignment,
    PackedRangeScan => Alignment,
    PackedEntries => Alignment,
    PackedLargeValues => Alignment,
    AlignedToEight => Alignment,
    KeepsHandles => Alignment,
    ;
    // Slices that closures borrow may be unaligned, and snapshots align the values of their sources.
    PackedBorrows,
    SourcePacks,
}
