//! [`Held`]: a snapshot and the entries it must hold.

use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;

use super::check::{
    Checked, Failure, KeyBound, Model, borrow, collect, ensure, ensure_scan, entries_with_prefix, entries_within,
    size_of, succeeded, succeeded_as,
};
use super::literal::{literal, slice};
use super::op::{image_source, range_source};
use super::rule::Rule;
use super::values::Values;
use super::walk::Walk;
use crate::error::StateError;
use crate::snapshot::state_snapshot::StateSnapshot;

/// Number of times a thread reads a snapshot. It must still be reading when the writer goes on.
const READS_ON_THREAD: usize = 4;

/// Number of keys of a snapshot to look up and scan between in a thorough check.
const PROBES: usize = 3;

/// Walks that take turns in a thorough check.
const WALKS: [Walk; 3] = [Walk::Down, Walk::Turns(0b1010_1010), Walk::Turns(0b1111_0001)];

/// The rule that a failing snapshot breaks.
const RULE: Rule = Rule::Snapshots;

/// A snapshot, and the entries it must hold.
#[derive(Clone)]
pub(super) struct Held {
    /// Name of the variable in a printed program.
    pub(super) name: String,
    pub(super) snapshot: StateSnapshot,
    pub(super) model: Arc<Model>,
    pub(super) values: Values,
}

impl Held {
    /// Checks the snapshot several times, the last time thoroughly.
    pub(super) fn read_on_thread(&self) -> Checked {
        (0..READS_ON_THREAD).try_for_each(|_| self.check())?;
        self.check_thoroughly()
    }

    /// Fails unless the snapshot holds the entries of the model.
    pub(super) fn check(&self) -> Checked {
        let Self { name, snapshot, model, values } = self;
        let expected = entries_with_prefix(model, b"");
        let found = collect(snapshot.iter(), expected.len());
        values.ensure_scan(RULE, || format!("{name}.iter().collect::<Vec<_>>()"), &found, &expected)?;
        ensure(RULE, || format!("{name}.len()"), &snapshot.len(), &model.len())?;
        ensure(RULE, || format!("{name}.is_empty()"), &snapshot.is_empty(), &model.is_empty())?;
        ensure(RULE, || format!("{name}.size_bytes()"), &snapshot.size_bytes(), &size_of(model))?;
        for (key, value) in expected {
            let get = || format!("{name}.get({})", literal(&key));
            values.ensure(RULE, get, &snapshot.get(&key), &Some(value))?;
        }
        Ok(())
    }

    /// Fails unless every way to read the snapshot gives the entries of the model.
    pub(super) fn check_thoroughly(&self) -> Checked {
        self.check()?;
        self.check_ends()?;
        self.check_ranges()?;
        self.check_image()
    }

    fn check_ends(&self) -> Checked {
        let Self { name, snapshot, model, values } = self;
        let entry = |entry: Option<(&Bytes, &Bytes)>| entry.map(|(key, value)| (key.clone(), value.clone()));
        let (first, last) = (entry(model.first_key_value()), entry(model.last_key_value()));
        values.ensure(RULE, || format!("{name}.first()"), &snapshot.first(), &first)?;
        values.ensure(RULE, || format!("{name}.last()"), &snapshot.last(), &last)
    }

    fn check_ranges(&self) -> Checked {
        let Self { name, snapshot, model, values } = self;
        let step = model.len().div_ceil(PROBES).max(1);
        let mut probes: Vec<Bytes> = vec![Bytes::new(), Bytes::from_static(b"\xFF\xFF"), Bytes::from_static(b"absent")];
        probes.extend(model.keys().step_by(step).cloned());
        let mut turn = 0;
        let mut check_bounds = |start: &KeyBound, end: &KeyBound| {
            turn += 1;
            self.check_bounds(start, end, turn)
        };
        check_bounds(&Bound::Unbounded, &Bound::Unbounded)?;
        for probe in &probes {
            self.check_key(probe)?;

            let expected = entries_with_prefix(model, probe);
            let found = collect(snapshot.prefix_scan(probe), expected.len());
            let scan = || format!("{name}.prefix_scan({}).collect::<Vec<_>>()", literal(probe));
            values.ensure_scan(RULE, scan, &found, &expected)?;

            for other in &probes {
                let (from, to) = (Bound::Included(probe.clone()), Bound::Excluded(other.clone()));
                let expected = entries_within(model, &from, &to);
                let found = collect(snapshot.range_scan(probe..other), expected.len());
                let scan = || format!("{name}.range_scan({}..{}).collect::<Vec<_>>()", slice(probe), slice(other));
                values.ensure_scan(RULE, scan, &found, &expected)?;
                check_bounds(&Bound::Excluded(probe.clone()), &Bound::Included(other.clone()))?;
                check_bounds(&Bound::Excluded(probe.clone()), &to)?;
            }
            check_bounds(&Bound::Included(probe.clone()), &Bound::Unbounded)?;
            check_bounds(&Bound::Unbounded, &Bound::Included(probe.clone()))?;
        }
        Ok(())
    }

    /// Checks the value of a key and the entries beside it.
    fn check_key(&self, key: &Bytes) -> Checked {
        let Self { name, snapshot, model, values } = self;
        let expected = model.get(key).cloned();
        let call = |method: &str| format!("{name}.{method}({})", literal(key));
        values.ensure(RULE, || call("get"), &snapshot.get(key), &expected)?;
        let found = read(|| call("try_get"), snapshot.try_get(key))?;
        values.ensure(RULE, || call("try_get") + ".unwrap()", &found, &expected)?;
        ensure(RULE, || call("contains"), &snapshot.contains(key), &expected.is_some())?;

        let before = entries_within(model, &Bound::Unbounded, &Bound::Excluded(key.clone())).pop();
        values.ensure(RULE, || call("entry_before"), &snapshot.entry_before(key), &before)?;
        let after = entries_within(model, &Bound::Excluded(key.clone()), &Bound::Unbounded).into_iter().next();
        values.ensure(RULE, || call("entry_after"), &snapshot.entry_after(key), &after)
    }

    /// Checks the entries within the bounds. Each turn uses every way to read, but only one of the walks.
    fn check_bounds(&self, start: &KeyBound, end: &KeyBound, turn: usize) -> Checked {
        let Self { name, snapshot, model, values } = self;
        let bounds = (borrow(start), borrow(end));
        let ascending = entries_within(model, start, end);
        let found = collect(snapshot.scan(bounds), ascending.len());
        let scan = || Walk::Up.source(&format!("{name}.scan({})", range_source(start, end)));
        values.ensure_scan(RULE, scan, &found, &ascending)?;

        let walk = WALKS[turn % WALKS.len()];
        let expected = walk.order(ascending.clone());
        let found = walk.collect(snapshot.scan(bounds), expected.len());
        let scan = || walk.source(&format!("{name}.scan({})", range_source(start, end)));
        values.ensure_scan(RULE, scan, &found, &expected)?;

        let walk = [Walk::Up, Walk::Down][turn % 2];
        let expected = walk.order(ascending.clone());
        let found = walk.collect(snapshot.try_scan(bounds), expected.len());
        let scan = || {
            let scan = walk.source(&format!("{name}.try_scan({})", range_source(start, end)));
            scan.replace("Vec<_>", "Result<Vec<_>, _>")
        };
        let found = read(scan, found.into_iter().collect())?;
        values.ensure_scan(RULE, || scan() + ".unwrap()", &found, &expected)?;

        // Stop after half of the entries, to check that the visit ends when told.
        let stop = ascending.len().div_ceil(2).max(1);
        let expected: Vec<_> = ascending.into_iter().take(stop).collect();
        let visit = |call: &str, unwrap: &str| {
            format!(
                "{{\n    \
                     let mut visited = vec![];\n    \
                     {name}.{call}({}, |key, value| {{\n        \
                         visited.push((handle(key), handle(value)));\n        \
                         if visited.len() < {stop} {{ ControlFlow::Continue(()) }} else {{ ControlFlow::Break(()) }}\n    \
                     }}){unwrap};\n    \
                     visited\n\
                 }}",
                range_source(start, end)
            )
        };
        let (visited, ()) = visit_until(stop, |f| snapshot.visit_range(bounds, f));
        ensure_scan(RULE, || visit("visit_range", ""), &visited, &expected)?;
        let (visited, outcome) = visit_until(stop, |f| snapshot.try_visit_range(bounds, f));
        read(|| visit("try_visit_range", ""), outcome)?;
        ensure_scan(RULE, || visit("try_visit_range", ".unwrap()"), &visited, &expected)
    }

    /// Compares the image, the fingerprint and the contents with snapshots built from the model.
    fn check_image(&self) -> Checked {
        let Self { name, snapshot, model, values } = self;
        let entries = || match &values.entries_source(&**model)[..] {
            "[]" => "Vec::<(Bytes, Bytes)>::new()".into(),
            entries => entries.to_owned(),
        };
        let from_iter = || format!("StateSnapshot::from_iter({})", entries());
        let built = StateSnapshot::from_iter(values.hand_in_all(&**model));
        self.check_made(from_iter, &built)?;
        let from_sorted = || format!("StateSnapshot::from_sorted({})", entries());
        let sorted = read(from_sorted, StateSnapshot::from_sorted(values.hand_in_all(&**model)))?;
        self.check_made(|| from_sorted() + ".unwrap()", &sorted)?;

        ensure(RULE, || format!("{name} == {}", from_iter()), &(*snapshot == built), &true)?;
        let fingerprints = || format!("{name}.fingerprint() == {}.fingerprint()", from_iter());
        ensure(RULE, fingerprints, &(snapshot.fingerprint() == built.fingerprint()), &true)?;

        let image =
            || format!("{name}.with_timestamp_ns(0).to_bytes() == {}.with_timestamp_ns(0).to_bytes()", from_iter());
        let images = snapshot.with_timestamp_ns(0).to_bytes() == built.with_timestamp_ns(0).to_bytes();
        ensure(RULE, image, &images, &true)?;
        let from_bytes = || format!("StateSnapshot::from_bytes({}).unwrap()", image_source(name, *values));
        let found = opened(snapshot, *values)?;
        ensure(RULE, || format!("{} == {name}", from_bytes()), &(found == *snapshot), &true)?;
        self.check_made(from_bytes, &found)
    }

    /// Checks the entries of a snapshot that the kit made from the model or from an image.
    fn check_made(&self, expression: impl Fn() -> String, made: &StateSnapshot) -> Checked {
        let expected = entries_with_prefix(&self.model, b"");
        let found = collect(made.iter(), expected.len());
        self.values.ensure_scan(RULE, || expression() + ".iter().collect::<Vec<_>>()", &found, &expected)
    }
}

/// Opens the image of the snapshot.
pub(super) fn opened(snapshot: &StateSnapshot, values: Values) -> Result<StateSnapshot, Failure> {
    succeeded(RULE, StateSnapshot::from_bytes(values.hand_in(&snapshot.to_bytes())))
}

/// Returns the result of a read, or fails if the read returned an error.
fn read<T>(expression: impl Fn() -> String, outcome: Result<T, StateError>) -> Result<T, Failure> {
    succeeded_as(RULE, || format!("{}.unwrap();", expression()), outcome)
}

/// Returns the entries that a visit reaches if it is told to stop after `stop` entries, and the result of the visit.
fn visit_until<R>(
    stop: usize,
    visit: impl FnOnce(&mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>) -> R,
) -> (Vec<(Bytes, Bytes)>, R) {
    let mut visited = Vec::new();
    let result = visit(&mut |key, value| {
        // Keep one entry more than expected, to show that the visit went on.
        if visited.len() <= stop {
            visited.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        }
        if visited.len() < stop { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    (visited, result)
}
