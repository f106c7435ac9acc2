//! A snapshot against the entries it must hold.

use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use super::Rule;
use super::literal::{self, literal, slice};
use super::op::{KeyBound, bounds_source};
use super::run::{
    Checked, Model, borrow, collect, ensure, ensure_scan, entries_with_prefix, entries_within, opened, size_of,
};
use crate::StateSnapshot;

/// How often a thread reads a snapshot, so that it is still reading when the writer goes on.
const READS_ON_THREAD: usize = 4;

/// What keys are looked up and scanned between in a thorough check of a snapshot of many entries.
const PROBES: usize = 3;

pub(super) fn read_on_thread(name: &str, snapshot: &StateSnapshot, model: &Model) -> Checked {
    (0..READS_ON_THREAD).try_for_each(|_| check_snapshot(name, snapshot, model, false))?;
    check_snapshot(name, snapshot, model, true)
}

/// Fails unless the snapshot holds the entries of the model, by every way to read it if `thoroughly`.
pub(super) fn check_snapshot(name: &str, snapshot: &StateSnapshot, model: &Model, thoroughly: bool) -> Checked {
    let rule = Rule::Snapshots;
    let expected = entries_with_prefix(model, b"");
    let found = collect(snapshot.iter(), expected.len());
    ensure_scan(rule, || format!("{name}.iter().collect::<Vec<_>>()"), &found, &expected)?;
    ensure(rule, || format!("{name}.len()"), &snapshot.len(), &model.len())?;
    ensure(rule, || format!("{name}.is_empty()"), &snapshot.is_empty(), &model.is_empty())?;
    ensure(rule, || format!("{name}.size_bytes()"), &snapshot.size_bytes(), &size_of(model))?;
    for (key, value) in expected {
        ensure(rule, || format!("{name}.get({})", literal(&key)), &snapshot.get(&key), &Some(value))?;
    }
    if thoroughly {
        check_ranges(name, snapshot, model)?;
        check_image(name, snapshot, model)?;
    }
    Ok(())
}

fn check_ranges(name: &str, snapshot: &StateSnapshot, model: &Model) -> Checked {
    let rule = Rule::Snapshots;
    let step = model.len().div_ceil(PROBES).max(1);
    let mut probes: Vec<Bytes> = vec![Bytes::new(), Bytes::from_static(b"\xFF\xFF"), Bytes::from_static(b"absent")];
    probes.extend(model.keys().step_by(step).cloned());
    for probe in &probes {
        let expected = model.get(probe).cloned();
        ensure(rule, || format!("{name}.get({})", literal(probe)), &snapshot.get(probe), &expected)?;
        let contains = || format!("{name}.contains({})", literal(probe));
        ensure(rule, contains, &snapshot.contains(probe), &expected.is_some())?;

        let expected = entries_with_prefix(model, probe);
        let found = collect(snapshot.prefix_scan(probe), expected.len());
        let scan = || format!("{name}.prefix_scan({}).collect::<Vec<_>>()", literal(probe));
        ensure_scan(rule, scan, &found, &expected)?;

        for other in &probes {
            let (from, to) = (Bound::Included(probe.clone()), Bound::Excluded(other.clone()));
            let expected = entries_within(model, &from, &to);
            let found = collect(snapshot.range_scan(probe..other), expected.len());
            let scan = || format!("{name}.range_scan({}..{}).collect::<Vec<_>>()", slice(probe), slice(other));
            ensure_scan(rule, scan, &found, &expected)?;
            check_bounds(name, snapshot, model, &Bound::Excluded(probe.clone()), &Bound::Included(other.clone()))?;
            check_bounds(name, snapshot, model, &Bound::Excluded(probe.clone()), &to)?;
        }
        check_bounds(name, snapshot, model, &Bound::Included(probe.clone()), &Bound::Unbounded)?;
    }
    Ok(())
}

fn check_bounds(name: &str, snapshot: &StateSnapshot, model: &Model, start: &KeyBound, end: &KeyBound) -> Checked {
    let expected = entries_within(model, start, end);
    let found = collect(snapshot.scan((borrow(start), borrow(end))), expected.len());
    let scan = || format!("{name}.scan({}).collect::<Vec<_>>()", bounds_source(start, end));
    ensure_scan(Rule::Snapshots, scan, &found, &expected)?;

    // Half of the entries, to see that the visit ends when told.
    let stop = expected.len().div_ceil(2).max(1);
    let mut visited = Vec::new();
    snapshot.visit_range((borrow(start), borrow(end)), |key, value| {
        // One entry more than expected is kept to show that the visit went on.
        if visited.len() <= stop {
            visited.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        }
        if visited.len() < stop { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    let visit = || {
        format!(
            "{{\n    \
                 let mut visited = vec![];\n    \
                 {name}.visit_range({}, |key, value| {{\n        \
                     visited.push((handle(key), handle(value)));\n        \
                     if visited.len() < {stop} {{ ControlFlow::Continue(()) }} else {{ ControlFlow::Break(()) }}\n    \
                 }});\n    \
                 visited\n\
             }}",
            bounds_source(start, end)
        )
    };
    let expected = expected.into_iter().take(stop).collect();
    ensure_scan(Rule::Snapshots, visit, &visited, &expected)
}

/// The image, the fingerprint and equality, against a snapshot that was built from the model.
fn check_image(name: &str, snapshot: &StateSnapshot, model: &Model) -> Checked {
    let rule = Rule::Snapshots;
    let built: StateSnapshot = model.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    let entries = || {
        let entries: Vec<_> = model.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        format!("StateSnapshot::from_iter({})", literal::entries(&entries))
    };
    ensure(rule, || format!("{name} == {}", entries()), &(*snapshot == built), &true)?;
    let fingerprints = || format!("{name}.fingerprint() == {}.fingerprint()", entries());
    ensure(rule, fingerprints, &(snapshot.fingerprint() == built.fingerprint()), &true)?;

    let image = || format!("{name}.with_timestamp_ns(0).to_bytes() == {}.with_timestamp_ns(0).to_bytes()", entries());
    let images = snapshot.with_timestamp_ns(0).to_bytes() == built.with_timestamp_ns(0).to_bytes();
    ensure(rule, image, &images, &true)?;
    let found = opened(snapshot)?;
    ensure(
        rule,
        || format!("StateSnapshot::from_bytes({name}.to_bytes()).unwrap() == {name}"),
        &(found == *snapshot),
        &true,
    )
}
