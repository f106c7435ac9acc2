//! The indexes of a store, in the sizes that it uses.

use super::sizes::{BRANCH, BUCKETS, INNER, LEAF, PAGE};
use super::{entry_table, hash_index, sorted};

pub(super) type HashIndex = hash_index::HashIndex<BUCKETS>;
pub(super) type EntryTable = entry_table::EntryTable<PAGE, BRANCH>;
pub(super) type EntryView = entry_table::EntryView<PAGE, BRANCH>;
pub(super) type SortedIndex = sorted::SortedIndex<LEAF, INNER>;
pub(super) type SortedView = sorted::SortedView<LEAF, INNER>;
pub(super) type Ids<'a, R, const DESCENDING: bool = false> = sorted::Ids<'a, R, LEAF, INNER, DESCENDING>;
