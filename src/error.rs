//! [`StateError`]: every error of this crate, with the numbers a person needs to act on it.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use crate::fingerprint::Fingerprint;

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
        "the memory budget is {budget} bytes, of which {used} are used, and the write needs {needed} more; delete entries, \
         drop snapshots or raise the budget"
    )]
    OverBudget {
        /// The budget in bytes.
        budget: usize,
        /// The bytes in use, those kept for snapshots included.
        used: usize,
        /// The bytes that the write needs.
        needed: usize,
    },

    /// A stored value cannot be read as the type that was asked for.
    #[error(
        "the value (bytes: {value_len}) of the key `{key}` (bytes: {key_len}) cannot be read as `{type_name}`: {problem}; \
         read it as the type it was written as"
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
        /// Reason why the value cannot be read.
        problem: &'static str,
    },

    /// A value could not be archived.
    #[error(
        "the value for the key `{key}` (bytes: {key_len}) cannot be written, because `Serialize` of `{type_name}` failed; \
         look for a part of it that can fail, such as a snapshot beyond 2 GiB or a cycle of shared pointers"
    )]
    NotSerializable {
        /// The start of the key, as text with escapes.
        key: String,
        /// Length of the key in bytes.
        key_len: usize,
        /// Name of the value's type.
        type_name: &'static str,
    },

    /// Entries that should be sorted are not in strictly ascending order of keys.
    #[error(
        "entry {index} does not sort after the one before it; hand over entries in strictly ascending byte order of \
         their keys, or collect them with `FromIterator`, which sorts"
    )]
    NotSorted {
        /// Index of the first entry that is out of order, counted from 0.
        index: usize,
    },

    /// The bytes do not start like an image.
    #[error("the bytes start with `{}`, an image starts with `{}`; this is some other file", found.escape_ascii(), expected.escape_ascii())]
    NotAnImage {
        /// The first bytes, at most eight.
        found: Vec<u8>,
        /// The bytes that every image starts with.
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

    /// The image is cut short.
    #[error("the image has {len} bytes where at least {needed} are needed; it was cut short, use an older checkpoint")]
    Truncated {
        /// Number of bytes there are.
        len: u64,
        /// Number of bytes that are needed at least.
        needed: u64,
    },

    /// The image does not end like an image.
    #[error(
        "the {len} bytes start as an image but do not end as one; they were cut short or something was appended, use \
         another copy or an older checkpoint"
    )]
    MissingTrailer {
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
        /// The offset of that part, in bytes from the start of the image.
        offset: u64,
        /// The checksum in the image.
        stored: u64,
        /// The checksum of the bytes found.
        computed: u64,
    },

    /// A part of an image breaks a rule of the format, although its checksum may match.
    #[error(
        "the {part} at byte {offset} of the image is malformed: {problem} (found {found}, expected {expected}); whoever \
         wrote it did not follow the format, use another copy"
    )]
    Malformed {
        /// The malformed part.
        part: &'static str,
        /// The offset of that part, in bytes from the start of the image.
        offset: u64,
        /// The rule that is broken.
        problem: &'static str,
        /// The number that was found.
        found: u64,
        /// The number that the rule requires.
        expected: u64,
    },

    /// Invalid number of key groups.
    #[error("{found} key groups were asked for, there can be 1 to {max}; 128 is a usual choice")]
    InvalidKeyGroupCount {
        /// The number asked for.
        found: u32,
        /// The largest number allowed.
        max: u32,
    },

    /// A function that assigns keys to slices returned a slice that does not exist.
    #[error("the key `{key}` was assigned to slice {slice}, but there are {slices}, counted from 0; fix the function")]
    NoSuchSlice {
        /// The start of the key, as text with escapes.
        key: String,
        /// The slice that the function returned.
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
        /// The starts of the first such keys, at most eight, as text with escapes.
        keys: Vec<String>,
        /// The number of such keys. It is 1 if entries are read one by one.
        conflicts: usize,
    },

    /// An operation was stopped by its progress callback.
    #[error("the operation was cancelled after {bytes} bytes, as its progress callback asked")]
    Cancelled {
        /// The number of bytes read or written. Bytes written so far are not a complete image.
        bytes: u64,
    },

    /// The image is sound, but of another kind than the one asked for.
    #[error(
        "the image holds a {found}, expected a {expected}; open it as a `StateSnapshot`, a `StateDelta` or a \
         `GroupedImage`, whichever it is"
    )]
    UnexpectedKind {
        /// Kind of the image found.
        found: &'static str,
        /// Kind that was asked for.
        expected: &'static str,
    },

    /// A delta was applied to contents other than its base, or composed with a delta that it does not follow.
    #[error(
        "the contents have fingerprint {found}, the delta was taken against contents with fingerprint {expected}; apply \
         and compose the deltas of a chain in order, none left out, beginning at the snapshot the first was taken against"
    )]
    WrongBase {
        /// The fingerprint of the contents at hand, or of the contents after the delta before.
        found: Fingerprint,
        /// The fingerprint of the contents that the delta was taken against.
        expected: Fingerprint,
    },

    /// A delta contradicts itself or its base, although the base has the right fingerprint.
    #[error(
        "the delta does not fit the contents that it says it was taken against: {problem} (at the key `{key}`, bytes: \
         {key_len}); whoever wrote it did not follow the format, use another copy or a full image"
    )]
    InconsistentDelta {
        /// Description of the contradiction.
        problem: &'static str,
        /// The start of the key where this was found, as text with escapes.
        key: String,
        /// Length of that key in bytes.
        key_len: usize,
    },

    /// An image has a section that this build does not know and must not ignore.
    #[error("the image has a section `{name}` that this build does not know; update `opstate`")]
    UnknownSection {
        /// Name of the section, as text with escapes.
        name: String,
    },

    /// A segment of an image has an encoding that this build does not know.
    #[error(
        "the segment at byte {offset} of the image has codec {codec}, this build reads codec 0 (plain); update `opstate`"
    )]
    UnknownCodec {
        /// Number of the codec.
        codec: u8,
        /// The offset of the segment, in bytes from the start of the image.
        offset: u64,
    },

    /// An image belongs to another operator or job than the one that asks for it.
    #[error("the {part} in the label is `{found}`, expected `{expected}`; open the state of the right {part}")]
    WrongLabel {
        /// The part of the label that differs: `operator`, `job` or `user bytes`.
        part: &'static str,
        /// The part in the label of the image, as text with escapes.
        found: String,
        /// The part that was asked for, as text with escapes.
        expected: String,
    },

    /// An image changed while it was read.
    #[error("the image changed while it was read; write images to a new file and rename it over the old one")]
    ImageChanged,

    /// The lengths of all entries add up to more than this machine can address.
    #[error(
        "the lengths of the entries add up to more than the address space of this machine; read the image on one of 64 bits"
    )]
    BeyondAddressSpace,

    /// Reading or writing outside of memory failed. Bytes written so far are not a complete image.
    #[error("input or output failed: {0}")]
    Io(#[from] io::Error),

    /// Reading a file failed, or its contents are damaged.
    #[error("`{}`: {source}", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// The error of reading the file.
        source: Box<StateError>,
    },

    /// A store that is not part of this crate failed.
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

    /// Adds the path of a file to an error, unless it has one already.
    #[cfg_attr(not(feature = "mmap"), allow(dead_code, reason = "only mapped images have a path"))]
    pub(crate) fn in_file(self, path: &Path) -> Self {
        match self {
            named @ Self::File { .. } => named,
            source => Self::File { path: path.to_owned(), source: Box::new(source) },
        }
    }
}

/// Returns the value of a successful read, and panics with the error of a failed one.
///
/// Used by methods that have no error to return.
#[track_caller]
pub(crate) fn expect_sound<T>(result: Result<T, StateError>) -> T {
    result.unwrap_or_else(|error| panic!("the snapshot cannot be read: {error}"))
}

/// Returns the start of a key as text with escapes, for error texts.
pub(crate) fn shown(key: &[u8]) -> String {
    key[..key.len().min(32)].escape_ascii().to_string()
}

/// Returns a list of keys for an error text. It ends with `...` if there are more keys than `keys`.
fn listed(keys: &[String], all: usize) -> String {
    let mut list: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
    if keys.len() < all {
        list.push("...".to_owned());
    }
    list.join(", ")
}
