//! The codec of typed values: rkyv archives, checked on every read.
//!
//! # Design
//!
//! A value is written through a buffer of the thread. It is read in place if its bytes are a valid archive at their
//! address, or from a copy in such a buffer. Nothing here depends on stores.
//!
//! # Alignment
//!
//! The validator checks the alignment of addresses. A result must depend on the bytes alone, not on where a store keeps
//! them. So each value is tried at both [`STARTS`]: at 0, where its type would have put it, and at 8, where a
//! `HotStore` has every other value. Only forged bytes are valid at 8 and not at 0.

use std::any::type_name;
use std::cell::Cell;
use std::num::NonZeroUsize;

use rkyv::api::access_with_context;
use rkyv::api::high::{HighDeserializer, HighSerializer, HighValidator, access_mut, deserialize, to_bytes_in};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::Error;
use rkyv::seal::Seal;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;
use rkyv::validation::Validator;
use rkyv::validation::archive::ArchiveValidator;
use rkyv::validation::shared::SharedValidator;
use rkyv::{Archive, Deserialize, Portable, Serialize};

use crate::aligned::VALUE_ALIGNMENT;
use crate::error::{StateError, shown};

/// The deepest nesting of a typed value that can be read, in pointers from the root to the innermost value.
///
/// An empty vector counts as a pointer.
///
/// Reading recurses once for each level, in rkyv's check, in `Deserialize` and in the destructor of the type. The limit
/// keeps that within a stack of 2 MiB for types of usual size. A deeper value is [`StateError::WrongType`]. Writing has
/// no limit: a value nested so deeply that its own `Serialize` overflows the stack ends the process, as does the
/// destructor of such a value.
pub const MAX_VALUE_DEPTH: usize = 512;

/// A type whose archived values can be read in place. The bound of [`StateStoreExt::view`](crate::StateStoreExt::view).
///
/// Implemented for every type that derives [`rkyv::Archive`], if its fields implement it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be read in place as a typed value",
    label = "its archived form cannot be checked",
    note = "derive `rkyv::Archive` for `{Self}`, with rkyv's feature `bytecheck` on, as it is by default"
)]
pub trait ViewValue: Archive<Archived: for<'a> CheckBytes<HighValidator<'a, Error>>> {}

#[diagnostic::do_not_recommend]
impl<T> ViewValue for T
where
    T: Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, Error>>,
{
}

/// A type whose archived values can be read. The bound of
/// [`StateStoreExt::get_typed`](crate::StateStoreExt::get_typed).
///
/// Implemented for every type that derives [`rkyv::Archive`] and [`rkyv::Deserialize`], if its fields implement it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be read as a typed value",
    label = "it cannot be made of archived bytes",
    note = "derive `rkyv::Archive` and `rkyv::Deserialize` for `{Self}`"
)]
pub trait ReadValue: ViewValue + Archive<Archived: Deserialize<Self, HighDeserializer<Error>>> + Sized {}

#[diagnostic::do_not_recommend]
impl<T> ReadValue for T
where
    T: ViewValue,
    T::Archived: Deserialize<T, HighDeserializer<Error>>,
{
}

/// A type whose values can be archived. The bound of [`StateStoreExt::put_typed`](crate::StateStoreExt::put_typed).
///
/// Implemented for every type that derives [`rkyv::Archive`] and [`rkyv::Serialize`], if its fields implement it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be written as a typed value",
    label = "it cannot be archived",
    note = "derive `rkyv::Archive` and `rkyv::Serialize` for `{Self}`"
)]
pub trait WriteValue: for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, Error>> {}

#[diagnostic::do_not_recommend]
impl<T> WriteValue for T where T: for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, Error>> {}

/// A type whose values can be written and read. A generic operator needs only this bound.
///
/// ```
/// use opstate::{StateError, StateStore, StateStoreExt, StateValue};
///
/// struct Latest<S, T> {
///     store: S,
///     last: Option<T>,
/// }
///
/// impl<S: StateStore, T: StateValue> Latest<S, T> {
///     fn push(&mut self, key: &[u8], value: T) -> Result<(), StateError> {
///         self.last = self.store.get_typed(key)?;
///         self.store.put_typed(key, &value)
///     }
/// }
/// # let mut latest = Latest { store: opstate::HotStore::new(), last: None };
/// # latest.push(b"key", 1_u64)?;
/// # latest.push(b"key", 2_u64)?;
/// # assert_eq!(latest.last, Some(1));
/// # Ok::<(), StateError>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be written and read as a typed value",
    label = "it cannot be archived and made of archived bytes",
    note = "derive `rkyv::Archive`, `rkyv::Serialize` and `rkyv::Deserialize` for `{Self}`"
)]
pub trait StateValue: ReadValue + WriteValue {}

#[diagnostic::do_not_recommend]
impl<T: ReadValue + WriteValue> StateValue for T {}

/// The largest capacity of a scratch buffer that is kept for the next call. Larger buffers are freed.
const SCRATCH_KEPT: usize = 64 << 10;

thread_local! {
    static SCRATCH: Cell<AlignedVec> = Cell::new(AlignedVec::new());
}

/// An empty, aligned buffer borrowed from the thread, so that small values cost no allocation.
///
/// A nested call gets a new buffer.
struct Scratch(AlignedVec);

impl Scratch {
    /// Takes the buffer of the thread.
    fn take() -> Self {
        // While a thread ends, its buffer may be gone already.
        Self(SCRATCH.try_with(Cell::take).unwrap_or_default())
    }

    /// Copies `bytes` to `start` bytes behind the buffer's alignment.
    fn copy_of(bytes: &[u8], start: usize) -> Self {
        let mut scratch = Self::take();
        scratch.0.resize(start, 0);
        scratch.0.extend_from_slice(bytes);
        scratch
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.0);
        if buffer.capacity() <= SCRATCH_KEPT {
            buffer.clear();
            let _ = SCRATCH.try_with(|kept| kept.set(buffer));
        }
    }
}

/// Archives `value` and calls `f` with the bytes. `key` is for errors.
pub(crate) fn with_encoded<T: WriteValue, R>(
    key: &[u8],
    value: &T,
    f: impl FnOnce(&[u8]) -> Result<R, StateError>,
) -> Result<R, StateError> {
    let mut scratch = Scratch::take();
    scratch.0 = to_bytes_in::<_, Error>(value, std::mem::take(&mut scratch.0)).map_err(|_| {
        StateError::NotSerializable { key: shown(key), key_len: key.len(), type_name: type_name::<T>() }
    })?;
    f(&scratch.0)
}

/// Reads the value of `key` as a `T`. `key` is for errors.
pub(crate) fn decode<T: ReadValue>(key: &[u8], value: &[u8]) -> Result<T, StateError> {
    with_archived::<T, _>(value, |archived| deserialize::<T, Error>(archived))
        .and_then(|decoded| decoded.map_err(|_| "it is such an archive, but no value can be made of it"))
        .map_err(|problem| wrong_type::<T>(key, value.len(), problem))
}

/// Calls `f` with the value of `key` as an archived `T`.
pub(crate) fn view<T: ViewValue, R>(
    key: &[u8],
    value: &[u8],
    f: impl FnOnce(&T::Archived) -> R,
) -> Result<R, StateError> {
    with_archived::<T, _>(value, f).map_err(|problem| wrong_type::<T>(key, value.len(), problem))
}

/// Calls `f` with the value of `key` as an archived `T` that may be changed in place.
pub(crate) fn view_mut<T: ViewValue, R>(
    key: &[u8],
    value: &mut [u8],
    f: impl FnOnce(Seal<'_, T::Archived>) -> R,
) -> Result<R, StateError> {
    let len = value.len();
    with_archived_mut::<T, _>(value, f).map_err(|problem| wrong_type::<T>(key, len, problem))
}

/// The offsets within [`VALUE_ALIGNMENT`] bytes at which an archive is tried.
const STARTS: [usize; 2] = [0, 8];

/// The reason why a value cannot be read, as the middle of a sentence.
type Problem = &'static str;

const INVALID: Problem = "its bytes are no valid archive of that type, or one nested more than 512 levels deep";
const UNUSED: Problem = "bytes at its start belong to no archive of that type";

/// Returns the offset of the bytes from the alignment.
fn start_of(bytes: &[u8]) -> usize {
    bytes.as_ptr().addr() % VALUE_ALIGNMENT
}

/// Checks the root at the end of `bytes`, and everything it points to, as an archived `T`.
fn access<T>(bytes: &[u8]) -> Result<&T, Problem>
where
    T: Portable + for<'a> CheckBytes<HighValidator<'a, Error>>,
{
    // rkyv counts the root as a level, and refuses a pointer when one level is left.
    let archive = ArchiveValidator::with_max_depth(bytes, NonZeroUsize::new(MAX_VALUE_DEPTH + 2));
    access_with_context::<T, _, Error>(bytes, &mut Validator::new(archive, SharedValidator::new())).map_err(|_| INVALID)
}

/// Checks all of `bytes` as an archived `T`.
///
/// rkyv looks for the root at the end, and ignores bytes that it does not point to. So the first field of a longer type
/// would pass for a shorter type. If the root validates without the bytes before it, they do not belong to it.
fn access_all<T>(bytes: &[u8]) -> Result<&T, Problem>
where
    T: Portable + for<'a> CheckBytes<HighValidator<'a, Error>>,
{
    let archived = access::<T>(bytes)?;
    match bytes.len().checked_sub(size_of::<T>()) {
        Some(rest @ 1..) if access::<T>(&bytes[rest..]).is_ok() => Err(UNUSED),
        _ => Ok(archived),
    }
}

/// Checks `bytes` as an archived `T` and calls `f` with it. Copies them only if they are not valid in place.
fn with_archived<T: ViewValue, R>(bytes: &[u8], f: impl FnOnce(&T::Archived) -> R) -> Result<R, Problem> {
    if STARTS.contains(&start_of(bytes)) {
        if let Ok(archived) = access_all::<T::Archived>(bytes) {
            return Ok(f(archived));
        }
    }
    let (copy, start) = valid_copy::<T>(bytes)?;
    access_all::<T::Archived>(&copy.0[start..]).map(f)
}

/// Checks `bytes` as an archived `T` and calls `f` to change it in place. A copy is written back after `f` returns.
fn with_archived_mut<T: ViewValue, R>(
    bytes: &mut [u8],
    f: impl FnOnce(Seal<'_, T::Archived>) -> R,
) -> Result<R, Problem> {
    // `access_mut` checks again, without a limit of its own on the depth; the check before has one.
    let access_mut = |bytes| access_mut::<T::Archived, Error>(bytes).map_err(|_| INVALID);
    if STARTS.contains(&start_of(bytes)) && access_all::<T::Archived>(bytes).is_ok() {
        return Ok(f(access_mut(bytes)?));
    }
    let (mut copy, start) = valid_copy::<T>(bytes)?;
    let result = f(access_mut(&mut copy.0[start..])?);
    bytes.copy_from_slice(&copy.0[start..]);
    Ok(result)
}

/// Copies `bytes` to the first of the [`STARTS`] where they are a valid archive of a `T`, and returns the start.
///
/// Returns the error at the first start if there is none.
fn valid_copy<T: ViewValue>(bytes: &[u8]) -> Result<(Scratch, usize), Problem> {
    let mut error = None;
    for start in STARTS {
        let copy = Scratch::copy_of(bytes, start);
        match access_all::<T::Archived>(&copy.0[start..]).map(drop) {
            Ok(()) => return Ok((copy, start)),
            Err(problem) => error = error.or(Some(problem)),
        }
    }
    Err(error.expect("there are starts"))
}

/// Returns the error of a value that cannot be read as a `T`.
fn wrong_type<T>(key: &[u8], value_len: usize, problem: Problem) -> StateError {
    StateError::WrongType { key: shown(key), key_len: key.len(), value_len, type_name: type_name::<T>(), problem }
}
