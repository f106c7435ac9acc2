//! Comparisons of a store with a [`Model`], such as [`ensure`]. They fail with a [`Failure`].

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::literal::Shown;
use super::rule::Rule;
use crate::error::StateError;

/// The entries that a store must hold.
pub(super) type Model = BTreeMap<Bytes, Bytes>;

/// Start or end of a range.
pub(super) type KeyBound = Bound<Bytes>;

/// A failed comparison.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) rule: Rule,
    /// Rust source that shows the failure after the program.
    pub(super) assertion: String,
    pub(super) found: String,
    pub(super) expected: String,
}

pub(super) type Checked = Result<(), Failure>;

/// Fails unless `found` is `expected`. `expression` returns Rust source that evaluates to `found`.
pub(super) fn ensure<T: Shown>(rule: Rule, expression: impl Fn() -> String, found: &T, expected: &T) -> Checked {
    if found == expected {
        return Ok(());
    }
    let (assertion, expression) = (expected.assertion(&expression()), expression());
    Err(Failure { rule, assertion, found: format!("{expression} is {}", found.text()), expected: expected.text() })
}

/// Compares a scan. The right entries in the wrong order break [`Rule::Order`].
pub(super) fn ensure_scan(
    rule: Rule,
    expression: impl Fn() -> String,
    found: &Vec<(Bytes, Bytes)>,
    expected: &Vec<(Bytes, Bytes)>,
) -> Checked {
    let sorted = |entries: &Vec<(Bytes, Bytes)>| {
        let mut entries = entries.clone();
        entries.sort();
        entries
    };
    let is_reordered = found != expected && sorted(found) == sorted(expected);
    ensure(if is_reordered { Rule::Order } else { rule }, expression, found, expected)
}

/// Returns the result of a call, or fails if the call returned an error.
pub(super) fn succeeded<T>(rule: Rule, outcome: Result<T, StateError>) -> Result<T, Failure> {
    succeeded_as(rule, || "// The last call returns an error.".into(), outcome)
}

/// Returns the result of a call, or fails with `assertion` if the call returned an error.
pub(super) fn succeeded_as<T>(
    rule: Rule,
    assertion: impl Fn() -> String,
    outcome: Result<T, StateError>,
) -> Result<T, Failure> {
    outcome.map_err(|error| Failure {
        rule,
        assertion: assertion(),
        found: format!("the error \"{error}\""),
        expected: "success".into(),
    })
}

/// Collects a scan, which may be endless. Stops at one entry too many.
pub(super) fn collect<T>(scan: impl Iterator<Item = T>, expected_len: usize) -> Vec<T> {
    scan.take(expected_len + 2).collect()
}

/// Returns the model's entries within the bounds. It compares each key, independently of the map's own ranges.
pub(super) fn entries_within(model: &Model, start: &KeyBound, end: &KeyBound) -> Vec<(Bytes, Bytes)> {
    let is_within = |key: &Bytes| {
        let after_start = match start {
            Bound::Included(start) => key >= start,
            Bound::Excluded(start) => key > start,
            Bound::Unbounded => true,
        };
        after_start
            && match end {
                Bound::Included(end) => key <= end,
                Bound::Excluded(end) => key < end,
                Bound::Unbounded => true,
            }
    };
    model.iter().filter(|(key, _)| is_within(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Returns the entries of the model whose keys start with `prefix`.
pub(super) fn entries_with_prefix(model: &Model, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
    model.iter().filter(|(key, _)| key.starts_with(prefix)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Returns the sum of the lengths of all keys and values of the model.
pub(super) fn size_of(model: &Model) -> usize {
    model.iter().map(|(key, value)| key.len() + value.len()).sum()
}

/// Returns the bound as the contract's methods take it.
pub(super) fn borrow(bound: &KeyBound) -> Bound<&[u8]> {
    bound.as_ref().map(|key| &key[..])
}
