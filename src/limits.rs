//! The limits of the contract: the longest key and the longest value.

use crate::error::StateError;

/// The longest key, in bytes.
pub const MAX_KEY_LEN: usize = 65_535;

/// The longest value, in bytes: 4 GiB - 1.
pub const MAX_VALUE_LEN: usize = u32::MAX as usize;

/// Checks that an entry is within the limits of [`StateStore`](crate::StateStore), for stores of your own.
///
/// # Errors
///
/// [`StateError::KeyTooLong`] and [`StateError::ValueTooLong`].
///
/// ```
/// assert!(opstate::check_entry_len(b"key", b"value").is_ok());
/// assert!(opstate::check_entry_len(&[0; 65_536], b"value").is_err());
/// ```
pub fn check_entry_len(key: &[u8], value: &[u8]) -> Result<(), StateError> {
    if key.len() > MAX_KEY_LEN {
        return Err(StateError::KeyTooLong { len: key.len(), limit: MAX_KEY_LEN });
    }
    if value.len() > MAX_VALUE_LEN {
        return Err(StateError::ValueTooLong { len: value.len(), limit: MAX_VALUE_LEN });
    }
    Ok(())
}

/// Checks that all entries of a batch are within the limits.
pub(crate) fn check_entry_lens(entries: &[(&[u8], &[u8])]) -> Result<(), StateError> {
    entries.iter().try_for_each(|&(key, value)| check_entry_len(key, value))
}
