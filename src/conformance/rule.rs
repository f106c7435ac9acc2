//! [`Rule`]: the contract as separate rules that a report can name. `run.rs` checks them.

use std::fmt;

macro_rules! rules {
    ($($(#[doc = $doc:literal])* $name:ident: $text:literal,)*) => {
        /// A rule of the contract of [`StateStore`](crate::StateStore). [`Display`](fmt::Display) prints its text.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Rule {
            $(#[doc = $text] $(#[doc = ""] #[doc = $doc])* $name,)*
        }

        impl Rule {
            /// All rules.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
        }

        impl fmt::Display for Rule {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$name => $text,)*
                })
            }
        }
    };
}

rules! {
    StartsEmpty: "a new store is empty, whatever other stores hold",
    NoPanic: "no call panics, whatever its arguments",
    Keys: "the empty key and keys of up to 65,535 bytes are keys; writing a longer one is `KeyTooLong`",
    Errors: "a call that returns an error has changed nothing",
    Contents: "a store holds exactly the entries that were written and not removed",
    Order: "scans are in unsigned lexicographic order of the keys' bytes, and from their ends in the opposite order",
    Counts: "`len`, `is_empty` and `size_bytes` are exact after every call",
    Handles: "bytes handed out never change",
    Snapshots: "a snapshot holds the entries of the instant it was taken and never changes",
    Get: "`get` returns the value of a key that is present, and nothing for one that is absent",
    TryGet: "`try_get` returns what `get` returns",
    Put: "`put` accepts every entry within the limits, and sets the value whether the key is new or not",
    Delete: "`delete` removes the entry, and is no error for a key that is absent",
    Take: "`take` removes the entry and returns its value, or nothing for a key that is absent",
    PrefixScan: "`prefix_scan` yields exactly the entries whose keys start with the prefix",
    RangeScan: "`range_scan` yields exactly the entries from the start, included, to the end, excluded",
    Entries: "`entries` yields each entry within the bounds once, whichever of its two ends is asked",
    Restore: "`restore` replaces the contents by those of the snapshot",
    TryRestore: "`try_restore` replaces the contents by those of the snapshot, and fails if that is damaged",
    Clear: "`clear` removes every entry",
    Contains: "`contains` says whether there is an entry",
    Flush: "`flush` succeeds and changes nothing",
    GetOrInsert: "`get_or_insert` returns the value that is there, and sets it only if there is none",
    Read: "`read` calls its function once with the value, or not at all, and says which",
    Modify: "`modify` calls its function once with the value and keeps the change, or not at all, and says which",
    PutBytes: "`put_bytes` does what `put` does",
    PutMany: "`put_many` does what one `put` for each entry in turn does, or nothing if one is too long",
    DeleteWithin: "`delete_within` deletes the first entries within the bounds, up to the limit, and says how it went",
    VisitRange: "`visit_range` visits exactly the entries within the bounds, until it is told to stop",
    TryVisitRange: "`try_visit_range` visits what `visit_range` visits",
    GetMany: "`get_many` leaves one answer for each key in `out`, in their order, and nothing else",
    /// Checked only with [`Conformance::aligned_values`](super::Conformance::aligned_values).
    Alignment: "every value handed out as `Bytes` starts at a multiple of 16 in memory, unless it is empty",
}
