//! [`StateError`]: everything that can go wrong, with the numbers a person needs to act on it.

use std::error::Error;
use std::io;

use crate::Fingerprint;

/// The error of every fallible operation of this crate.
///
/// An operation that returns an error has changed nothing, unless its own documentation says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// A key is longer than [`MAX_KEY_LEN`](crate::MAX_KEY_LEN).
    #[error("the key has {len} bytes, the limit is {limit}; hash or shorten the key")]
    KeyTooLong {
        /// Length of the key in bytes.
        len: usize,
        /// The longest key allowed, in bytes.
        limit: usize,
    },

    /// A value is longer than [`MAX_VALUE_LEN`](crate::MAX_VALUE_LEN).
    #[error("the value has {len} bytes, the limit is {limit}; split the value over several keys")]
    ValueTooLong {
        /// Length of the value in bytes.
        len: usize,
        /// The longest value allowed, in bytes.
        limit: usize,
    },

    /// The store would need more memory than it was given.
    #[error(
        "the memory budget is {budget} bytes, of which {used} are used, and the write needs {asked} more; delete entries, \
         drop snapshots or raise the budget"
    )]
    OverBudget {
        /// The budget in bytes.
        budget: usize,
        /// The bytes in use, those kept for snapshots included.
        used: usize,
        /// The bytes that the write would have needed.
        asked: usize,
    },

    /// The stored bytes are not a valid archive of the type that was asked for.
    #[error(
        "the value (bytes: {value_len}) of the key `{key}` (bytes: {key_len}) does not validate as `{type_name}`: \
         {cause}; read it as the type it was written as"
    )]
    WrongType {
        /// The start of the key, as text with escapes.
        key: String,
        /// Length of the key in bytes.
        key_len: usize,
        /// Length of the stored value in bytes.
        value_len: usize,
        /// Name of the type asked for.
        type_name: &'static str,
        /// What the validation found.
        cause: Box<dyn Error + Send + Sync>,
    },

    /// A value could not be turned into archived bytes.
    #[error("a value of type `{type_name}` for a key of {key_len} bytes could not be serialized: {cause}")]
    NotSerializable {
        /// Length of the key in bytes.
        key_len: usize,
        /// Name of the value's type.
        type_name: &'static str,
        /// What the serializer reported.
        cause: Box<dyn Error + Send + Sync>,
    },

    /// Entries handed over as sorted are not strictly ascending by key.
    #[error(
        "entry {index} does not sort after the one before it; hand over entries in strictly ascending byte order of \
         their keys, or collect them with `FromIterator`, which sorts"
    )]
    NotSorted {
        /// Position of the first offending entry, counted from 0.
        index: usize,
    },

    /// The bytes do not start as an image does.
    #[error("the bytes start with `{}`, an image starts with `{}`; this is some other file", found.escape_ascii(), expected.escape_ascii())]
    NotAnImage {
        /// The first bytes, at most eight.
        found: Vec<u8>,
        /// What every image starts with.
        expected: [u8; 8],
    },

    /// The image was written by a newer version of this crate.
    #[error("the image has format version {found}, this build reads up to version {supported}; update `opstate`")]
    UnsupportedVersion {
        /// The version in the image.
        found: u16,
        /// The newest version this build reads.
        supported: u16,
    },

    /// The image ends before it is complete.
    #[error("the image has {len} bytes where at least {needed} are needed; it was cut short, use an older checkpoint")]
    Truncated {
        /// Number of bytes there are.
        len: u64,
        /// Number of bytes that are needed at least.
        needed: u64,
    },

    /// The image does not end as images do.
    #[error(
        "the {len} bytes start as an image but do not end as one; they were cut short or something was appended, use \
         another copy or an older checkpoint"
    )]
    NoEnd {
        /// Number of bytes there are.
        len: u64,
    },

    /// A part of an image does not match its checksum.
    #[error(
        "the {part} at byte {offset} has checksum {computed:#018x}, expected {stored:#018x}; the image is damaged, use \
         another copy or an older checkpoint"
    )]
    ChecksumMismatch {
        /// The damaged part.
        part: &'static str,
        /// Where that part starts, in bytes from the start of the image.
        offset: u64,
        /// The checksum in the image.
        stored: u64,
        /// The checksum of the bytes found.
        computed: u64,
    },

    /// A part of an image breaks a rule of the format although its checksum may be right.
    #[error(
        "the {part} at byte {offset} of the image is malformed: {problem} (found {found}, expected {expected}); whoever \
         wrote it did not follow the format, use another copy"
    )]
    Malformed {
        /// The offending part.
        part: &'static str,
        /// Where that part starts, in bytes from the start of the image.
        offset: u64,
        /// The rule that is broken.
        problem: &'static str,
        /// What was found.
        found: u64,
        /// What the rule asks for.
        expected: u64,
    },

    /// A number of key groups that there cannot be.
    #[error("{found} key groups were asked for, there can be 1 to {most}; 128 is a usual choice")]
    KeyGroupCount {
        /// The number asked for.
        found: u32,
        /// The largest number allowed.
        most: u32,
    },

    /// A function that assigns keys to slices named one that does not exist.
    #[error("the key `{key}` was assigned to slice {slice}, but there are {slices}, counted from 0; mend the function")]
    NoSuchSlice {
        /// The start of the key, as text with escapes.
        key: String,
        /// The slice it was assigned to.
        slice: usize,
        /// The number of slices.
        slices: usize,
    },

    /// Slices that should be merged hold the same keys.
    #[error(
        "{conflicts} keys are in more than one of the slices: {}; merge slices of one checkpoint that hold each key once",
        listed(keys, *conflicts)
    )]
    ConflictingKeys {
        /// The starts of the first of these keys, at most eight, as text with escapes.
        keys: Vec<String>,
        /// How many such keys there are. (Where entries are read one by one, those found until then: 1.)
        conflicts: usize,
    },

    /// Whoever watched the progress of an operation told it to stop.
    #[error("the operation was cancelled after {bytes} bytes, as its progress callback asked")]
    Cancelled {
        /// How many bytes had been read or written. Those written are not a complete image.
        bytes: u64,
    },

    /// The image is sound, but holds something else than what was asked for.
    #[error(
        "the image holds a {found}, expected a {expected}; open it as a `StateSnapshot`, a `StateDelta` or a \
         `GroupedImage`, whichever it is"
    )]
    UnexpectedKind {
        /// What the image holds.
        found: &'static str,
        /// What was asked for.
        expected: &'static str,
    },

    /// A delta was to be applied to other contents than those it was taken against, or merged with a delta that it does
    /// not follow.
    #[error(
        "the contents have fingerprint {found}, the delta was taken against contents with fingerprint {expected}; apply \
         and merge the deltas of a chain in order, none left out, beginning at the snapshot the first was taken against"
    )]
    WrongBase {
        /// The fingerprint of the contents at hand, or of those that the delta before leads to.
        found: Fingerprint,
        /// The fingerprint of the contents that the delta was taken against.
        expected: Fingerprint,
    },

    /// A delta is not what its own fingerprints say, although its base is the right one.
    #[error(
        "the delta does not fit the contents that it says it was taken against: {problem} (at the key `{key}`, bytes: \
         {key_len}); whoever wrote it did not follow the format, use another copy or a full image"
    )]
    InconsistentDelta {
        /// What does not fit.
        problem: &'static str,
        /// The start of the key where that shows, as text with escapes.
        key: String,
        /// Length of that key in bytes.
        key_len: usize,
    },

    /// Reading or writing outside of memory failed. What was written so far is not a complete image.
    #[error("input or output failed: {0}")]
    Io(#[from] io::Error),

    /// A store that is not part of this crate failed in its own way.
    #[error("the store failed: {0}")]
    Store(#[source] Box<dyn Error + Send + Sync>),
}

impl StateError {
    /// Wraps the error of a third-party store.
    ///
    /// ```
    /// use opstate::StateError;
    ///
    /// let error = StateError::store("the backing file is read-only");
    /// assert_eq!(error.to_string(), "the store failed: the backing file is read-only");
    /// ```
    pub fn store(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Store(cause.into())
    }
}

/// The start of a key as text, for an error.
pub(crate) fn shown(key: &[u8]) -> String {
    key[..key.len().min(32)].escape_ascii().to_string()
}

fn listed(keys: &[String], all: usize) -> String {
    let mut list: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
    if keys.len() < all {
        list.push("...".to_owned());
    }
    list.join(", ")
}
