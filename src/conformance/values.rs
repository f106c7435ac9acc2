//! [`Values`]: the alignment of values that the kit passes in, and of values that a store hands out.
//!
//! An aligned value proves nothing if it is aligned by chance. So the kit passes in misaligned handles, and checks
//! every value that comes back.

use bytes::Bytes;

use super::check::{Checked, ensure, ensure_scan};
use super::literal::{Shown, handle, list, literal};
use super::rule::Rule;
use crate::aligned::{VALUE_ALIGNMENT, is_aligned};

/// Properties of values to check in addition to their bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Values {
    /// `true` if every value that is handed out must be aligned.
    pub(super) are_aligned: bool,
}

impl Values {
    /// Returns a copy of `bytes` to pass to a store or a snapshot. The copy is misaligned if alignment is checked.
    pub(super) fn hand_in(self, bytes: &[u8]) -> Bytes {
        if self.are_aligned { misaligned(bytes) } else { Bytes::copy_from_slice(bytes) }
    }

    /// Returns copies of the entries, with values made by [`hand_in`](Self::hand_in).
    pub(super) fn hand_in_all<'a>(
        self,
        entries: impl IntoIterator<Item = (&'a Bytes, &'a Bytes)>,
    ) -> Vec<(Bytes, Bytes)> {
        entries.into_iter().map(|(key, value)| (Bytes::copy_from_slice(key), self.hand_in(value))).collect()
    }

    /// Returns the handle that [`hand_in`](Self::hand_in) makes, as Rust source.
    pub(super) fn source(self, bytes: &[u8]) -> String {
        if self.are_aligned { format!("misaligned({})", literal(bytes)) } else { handle(bytes) }
    }

    /// Returns the entries that [`hand_in_all`](Self::hand_in_all) makes, as Rust source of an array.
    pub(super) fn entries_source<'a>(self, entries: impl IntoIterator<Item = (&'a Bytes, &'a Bytes)>) -> String {
        list(entries, |(key, value)| format!("({}, {})", handle(key), self.source(value)))
    }

    /// Compares a value like [`ensure`], and checks its alignment.
    pub(super) fn ensure<T: Shown + HandedOut>(
        self,
        rule: Rule,
        expression: impl Fn() -> String,
        found: &T,
        expected: &T,
    ) -> Checked {
        ensure(rule, &expression, found, expected)?;
        self.ensure_aligned(expression, found)
    }

    /// Compares a scan like [`ensure_scan`], and checks the alignment of its values.
    pub(super) fn ensure_scan(
        self,
        rule: Rule,
        expression: impl Fn() -> String,
        found: &Vec<(Bytes, Bytes)>,
        expected: &Vec<(Bytes, Bytes)>,
    ) -> Checked {
        ensure_scan(rule, &expression, found, expected)?;
        self.ensure_aligned(expression, found)
    }

    /// Fails if a value must be aligned and is not.
    pub(super) fn ensure_aligned(self, expression: impl Fn() -> String, found: &impl HandedOut) -> Checked {
        if !self.are_aligned {
            return Ok(());
        }
        let Some((path, value)) = found.first_misaligned() else { return Ok(()) };
        let address = || format!("{}{path}.as_ptr().addr() % {VALUE_ALIGNMENT}", expression());
        ensure(Rule::Alignment, address, &(value.as_ptr().addr() % VALUE_ALIGNMENT), &0)
    }
}

/// Values that a store has handed out.
pub(super) trait HandedOut {
    /// Returns the first misaligned value, and the Rust source that leads from the whole to that value.
    fn first_misaligned(&self) -> Option<(String, &Bytes)>;
}

impl HandedOut for Bytes {
    fn first_misaligned(&self) -> Option<(String, &Bytes)> {
        (!is_aligned(self)).then(|| (String::new(), self))
    }
}

impl HandedOut for Option<Bytes> {
    fn first_misaligned(&self) -> Option<(String, &Bytes)> {
        let value = self.as_ref().filter(|value| !is_aligned(value))?;
        Some((".as_ref().unwrap()".into(), value))
    }
}

impl HandedOut for Option<(Bytes, Bytes)> {
    fn first_misaligned(&self) -> Option<(String, &Bytes)> {
        let (_, value) = self.as_ref().filter(|(_, value)| !is_aligned(value))?;
        Some((".as_ref().unwrap().1".into(), value))
    }
}

impl HandedOut for Vec<Option<Bytes>> {
    fn first_misaligned(&self) -> Option<(String, &Bytes)> {
        let mut misaligned = self.iter().enumerate().filter_map(|(i, value)| Some((i, value.first_misaligned()?)));
        misaligned.next().map(|(i, (path, value))| (format!("[{i}]{path}"), value))
    }
}

impl HandedOut for Vec<(Bytes, Bytes)> {
    fn first_misaligned(&self) -> Option<(String, &Bytes)> {
        let (i, (_, value)) = self.iter().enumerate().find(|(_, (_, value))| !is_aligned(value))?;
        Some((format!("[{i}].1"), value))
    }
}

/// Returns a copy of `bytes` that starts 1, 2, 4 or 8 bytes after a multiple of 16, depending on its length.
fn misaligned(bytes: &[u8]) -> Bytes {
    let mut padded = vec![0; 24 + bytes.len()];
    let start = 16 - padded.as_ptr().addr() % 16 + (1 << (bytes.len() % 4));
    padded[start..start + bytes.len()].copy_from_slice(bytes);
    Bytes::from(padded).slice(start..start + bytes.len())
}

/// Definition of [`misaligned`] for printed programs.
pub(super) const MISALIGNED: &str = "\
let misaligned = |bytes: &[u8]| {
    let mut padded = vec![0; 24 + bytes.len()];
    let start = 16 - padded.as_ptr().addr() % 16 + (1 << (bytes.len() % 4));
    padded[start..start + bytes.len()].copy_from_slice(bytes);
    Bytes::from(padded).slice(start..start + bytes.len())
};";
