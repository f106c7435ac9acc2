//! [`run`]: runs a program on a store and the model at once.

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use bytes::Bytes;

use super::check::{
    Checked, Failure, KeyBound, Model, borrow, collect, ensure, ensure_scan, entries_with_prefix, entries_within,
    size_of, succeeded,
};
use super::literal::{Shown, literal};
use super::op::{Op, damaged_image};
use super::rule::Rule;
use super::snapshots::{Held, opened};
use super::values::{HandedOut, Values};
use super::walk::Walk;
use crate::error::StateError;
use crate::limits::MAX_KEY_LEN;
use crate::snapshot::unverified::UnverifiedImage;
use crate::store::StateStore;

/// The stores under test.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    /// Makes an empty store.
    pub(super) make: &'a dyn Fn() -> Box<dyn StateStore>,
    pub(super) values: Values,
}

/// A failure, and the number of calls that lead to it.
#[derive(Clone, Debug)]
pub(super) struct Stop {
    pub(super) calls: usize,
    pub(super) failure: Failure,
}

/// Runs the program. At its end, everything held is compared before and after the store is dropped.
pub(super) fn run(subject: Subject<'_>, program: &[Op]) -> Result<(), Stop> {
    let stop = |calls: usize| move |failure| Stop { calls, failure };
    let mut run = guarded(|| Run::start(subject)).map_err(stop(0))?;
    for (at, op) in program.iter().enumerate() {
        let checked = guarded(|| run.call(at, op));
        if let Err(failure) = checked {
            // Ignore panics while a store that already broke a rule is dropped.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(run)));
            return Err(stop(at + 1)(failure));
        }
    }
    guarded(|| run.finish()).map_err(stop(program.len()))
}

/// Turns a panic into a failure.
fn guarded<T>(f: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|payload| Err(panicked(&*payload)))
}

fn panicked(payload: &(dyn Any + Send)) -> Failure {
    let message = payload.downcast_ref::<&str>().copied();
    let message = message.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no message)");
    Failure {
        rule: Rule::NoPanic,
        assertion: "// The last call panics, or a read of everything after it.".into(),
        found: format!("a panic: {message}"),
        expected: "no panic".into(),
    }
}

struct Run<'a> {
    subject: Subject<'a>,
    store: Box<dyn StateStore>,
    model: Model,
    kept: Kept,
}

/// The store, and everything that outlives its changes.
#[derive(Default)]
struct Kept {
    /// Comparisons of returned values with copies made at the time of the call.
    handles: Vec<Box<dyn Fn() -> Checked>>,
    snapshots: BTreeMap<usize, Held>,
    readers: Vec<JoinHandle<Checked>>,
}

impl Kept {
    fn verify(&mut self, thoroughly: bool) -> Checked {
        self.handles.iter().try_for_each(|handle| handle())?;
        for snapshot in self.snapshots.values() {
            if thoroughly { snapshot.check_thoroughly()? } else { snapshot.check()? }
        }
        // Finished threads can be joined without waiting. The others go on reading.
        let (done, reading) = std::mem::take(&mut self.readers)
            .into_iter()
            .partition::<Vec<_>, _>(|reader| thoroughly || reader.is_finished());
        self.readers = reading;
        done.into_iter().try_for_each(|reader| reader.join().unwrap_or_else(|payload| Err(panicked(&*payload))))
    }
}

impl<'a> Run<'a> {
    fn start(subject: Subject<'a>) -> Result<Self, Failure> {
        let run = Self { subject, store: (subject.make)(), model: Model::new(), kept: Kept::default() };
        ensure_empty("store", &*run.store)?;
        Ok(run)
    }

    fn finish(mut self) -> Checked {
        self.verify(Rule::Contents)?;
        let Self { store, mut kept, .. } = self;
        drop(store);
        kept.verify(true).map_err(|failure| {
            let assertion = format!("drop(store);\n{}", failure.assertion);
            Failure { assertion, ..failure }
        })
    }

    fn call(&mut self, at: usize, op: &Op) -> Checked {
        match op {
            Op::Get(key) => {
                let expected = self.model.get(key).cloned();
                self.keep(Rule::Get, format!("handle_{at}"), self.store.get(key), expected)
            }
            Op::TryGet(key) => {
                let expected = self.model.get(key).cloned();
                let found = succeeded(Rule::TryGet, self.store.try_get(key))?;
                self.keep(Rule::TryGet, format!("handle_{at}"), found, expected)
            }
            Op::Contains(key) => {
                let (found, expected) = (self.store.contains(key), self.model.contains_key(key));
                ensure(Rule::Contains, || format!("contains_{at}"), &found, &expected)
            }
            Op::Read(key) => {
                let mut values = Vec::new();
                let found = self.store.read(key, &mut |value| values.push(Bytes::copy_from_slice(value)));
                let expected: Vec<Bytes> = self.model.get(key).cloned().into_iter().collect();
                ensure(Rule::Read, || format!("values_{at}"), &values, &expected)?;
                ensure(Rule::Read, || format!("found_{at}"), &found, &!expected.is_empty())
            }
            Op::GetMany(keys) => {
                let mut answers = vec![Some(Bytes::from_static(b"stale")), None];
                self.store.get_many(&keys.iter().map(|key| &key[..]).collect::<Vec<_>>(), &mut answers);
                let expected = keys.iter().map(|key| self.model.get(key).cloned()).collect();
                self.keep(Rule::GetMany, format!("answers_{at}"), answers, expected)
            }
            Op::PrefixScan(prefix) => {
                let expected = entries_with_prefix(&self.model, prefix);
                let found = collect(self.store.prefix_scan(prefix), expected.len());
                self.keep_scan(Rule::PrefixScan, at, found, expected)
            }
            Op::RangeScan(start, end) => {
                let bounds = (Bound::Included(start.clone()), Bound::Excluded(end.clone()));
                let expected = entries_within(&self.model, &bounds.0, &bounds.1);
                let found = collect(self.store.range_scan(start..end), expected.len());
                self.keep_scan(Rule::RangeScan, at, found, expected)
            }
            Op::Entries(start, end, walk) => {
                let expected = walk.order(entries_within(&self.model, start, end));
                let found = walk.collect(self.store.entries((borrow(start), borrow(end))), expected.len());
                self.keep_scan(Rule::Entries, at, found, expected)
            }
            Op::VisitRange(start, end, stop) | Op::TryVisitRange(start, end, stop) => {
                self.visit_range(at, op, start, end, *stop)
            }
            Op::Put(key, value) => {
                let outcome = self.store.put(key, value);
                if written(Rule::Put, key, outcome)?.is_some() {
                    self.model.insert(key.clone(), value.clone());
                }
                self.after_write(Rule::Put, key)
            }
            Op::PutBytes(key, value) => {
                // Pass a copy. A store that changes the model's own bytes would change the model.
                let handed_over = self.subject.values.hand_in(value);
                let outcome = self.store.put_bytes(key, handed_over.clone());
                if written(Rule::PutBytes, key, outcome)?.is_some() {
                    self.model.insert(key.clone(), value.clone());
                }
                self.after_write(Rule::PutBytes, key)?;
                self.keep_unchanged(format!("handle_{at}"), Some(handed_over), Some(value.clone()));
                Ok(())
            }
            Op::PutMany(batch) => {
                let longest = batch.iter().map(|(key, _)| key).max_by_key(|key| key.len()).cloned().unwrap_or_default();
                let borrowed: Vec<(&[u8], &[u8])> = batch.iter().map(|(key, value)| (&key[..], &value[..])).collect();
                let outcome = self.store.put_many(&borrowed);
                if written(Rule::PutMany, &longest, outcome)?.is_some() {
                    self.model.extend(batch.iter().cloned());
                }
                batch.iter().try_for_each(|(key, _)| self.after_write(Rule::PutMany, key))
            }
            Op::GetOrInsert(key, default) => {
                let outcome = self.store.get_or_insert(key, default);
                if let Some(found) = written(Rule::GetOrInsert, key, outcome)? {
                    let expected = self.model.entry(key.clone()).or_insert_with(|| default.clone()).clone();
                    ensure(Rule::GetOrInsert, || format!("&handle_{at}[..]"), &found, &expected)?;
                    self.subject.values.ensure_aligned(|| format!("handle_{at}"), &found)?;
                    self.after_write(Rule::GetOrInsert, key)?;
                    self.keep_unchanged(format!("Some(handle_{at})"), Some(found), Some(expected));
                    return Ok(());
                }
                self.after_write(Rule::GetOrInsert, key)
            }
            Op::Modify(key, delta) => self.modify(at, key, *delta),
            Op::Delete(key) => {
                succeeded(Rule::Delete, self.store.delete(key))?;
                self.model.remove(key);
                self.after_write(Rule::Delete, key)
            }
            Op::Take(key) => {
                let found = succeeded(Rule::Take, self.store.take(key))?;
                let expected = self.model.remove(key);
                self.keep(Rule::Take, format!("handle_{at}"), found, expected)?;
                self.after_write(Rule::Take, key)
            }
            Op::DeleteWithin(start, end, limit) => self.delete_within(at, start, end, *limit),
            Op::Clear => {
                self.store.clear();
                self.model.clear();
                self.after_bulk_write(Rule::Clear)
            }
            Op::Flush => {
                succeeded(Rule::Flush, self.store.flush())?;
                self.after_bulk_write(Rule::Flush)
            }
            Op::Snapshot(id) => {
                let held = Held {
                    name: format!("snapshot_{id}"),
                    snapshot: self.store.snapshot(),
                    model: Arc::new(self.model.clone()),
                    values: self.subject.values,
                };
                held.check()?;
                self.kept.snapshots.insert(*id, held);
                Ok(())
            }
            Op::RestoreEntries(entries) => {
                self.model = entries.iter().cloned().collect();
                let entries = self.subject.values.hand_in_all(entries.iter().map(|(key, value)| (key, value)));
                self.store.restore(entries.into_iter().collect());
                self.after_bulk_write(Rule::Restore)
            }
            Op::RestoreDamaged(entries) => self.restore_damaged(entries),
            Op::Restore(id)
            | Op::RestoreLast(id)
            | Op::TryRestore(id)
            | Op::RestoreImage(id)
            | Op::RestoreUnverified(id)
            | Op::Recover(id)
            | Op::DropSnapshot(id)
            | Op::ReadOnThread(id) => self.use_snapshot(op, *id),
            Op::Verify => self.verify(Rule::Contents),
            Op::DropHandles => {
                self.kept.handles.iter().try_for_each(|handle| handle())?;
                self.kept.handles.clear();
                Ok(())
            }
        }
    }

    fn use_snapshot(&mut self, op: &Op, id: usize) -> Checked {
        let Some(held) = self.kept.snapshots.get(&id).cloned() else { return Ok(()) };
        match op {
            Op::ReadOnThread(_) => {
                self.kept.readers.push(thread::spawn(move || held.read_on_thread()));
                return Ok(());
            }
            Op::DropSnapshot(_) => {
                held.check()?;
                self.kept.snapshots.remove(&id);
                return Ok(());
            }
            _ => {}
        }
        let Held { snapshot, model, values, .. } = held;
        let mut rule = Rule::Restore;
        match op {
            Op::RestoreLast(_) => {
                self.kept.snapshots.remove(&id);
                self.store.restore(snapshot);
            }
            Op::TryRestore(_) => {
                rule = Rule::TryRestore;
                succeeded(rule, self.store.try_restore(snapshot))?;
            }
            Op::RestoreImage(_) => {
                self.store.restore(opened(&snapshot, values)?);
            }
            Op::RestoreUnverified(_) => {
                rule = Rule::TryRestore;
                let image =
                    succeeded(Rule::Snapshots, UnverifiedImage::from_bytes(values.hand_in(&snapshot.to_bytes())))?;
                succeeded(rule, image.restore_into(&mut *self.store))?;
            }
            Op::Recover(_) => {
                let mut recovered = (self.subject.make)();
                ensure_empty("make()", &*recovered)?;
                recovered.restore(snapshot);
                self.store = recovered;
            }
            _ => self.store.restore(snapshot),
        }
        self.model = (*model).clone();
        self.after_bulk_write(rule)
    }

    fn restore_damaged(&mut self, entries: &[(Bytes, Bytes)]) -> Checked {
        let (image, _) = damaged_image(entries);
        let image = succeeded(Rule::Snapshots, UnverifiedImage::from_bytes(image))?;
        if image.restore_into(&mut *self.store).is_ok() {
            return Err(Failure {
                rule: Rule::TryRestore,
                assertion: "// The last call succeeds, although the image is damaged.".into(),
                found: "success".into(),
                expected: "an error".into(),
            });
        }
        self.after_bulk_write(Rule::Errors)
    }

    fn delete_within(&mut self, at: usize, start: &KeyBound, end: &KeyBound, limit: usize) -> Checked {
        let rule = Rule::DeleteWithin;
        let deleted = succeeded(rule, self.store.delete_within((borrow(start), borrow(end)), limit))?;
        let within = entries_within(&self.model, start, end);
        for (key, _) in within.iter().take(limit) {
            self.model.remove(key);
        }
        ensure(rule, || format!("deleted_{at}.count"), &deleted.count, &within.len().min(limit))?;
        ensure(rule, || format!("deleted_{at}.is_done"), &deleted.is_done, &(within.len() <= limit))?;
        self.after_bulk_write(rule)
    }

    fn visit_range(&mut self, at: usize, op: &Op, start: &KeyBound, end: &KeyBound, stop: usize) -> Checked {
        let mut expected = entries_within(&self.model, start, end);
        expected.truncate(stop);
        // Keep one entry more than expected, to show that the store went on.
        let mut visited = Vec::new();
        let bounds = (borrow(start), borrow(end));
        let visit = &mut |key: &[u8], value: &[u8]| {
            if visited.len() <= expected.len() {
                visited.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            }
            if visited.len() < stop { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let rule = if matches!(op, Op::TryVisitRange(..)) {
            succeeded(Rule::TryVisitRange, self.store.try_visit_range(bounds, visit))?;
            Rule::TryVisitRange
        } else {
            self.store.visit_range(bounds, visit);
            Rule::VisitRange
        };
        ensure_scan(rule, || format!("visited_{at}"), &visited, &expected)
    }

    fn modify(&mut self, at: usize, key: &Bytes, delta: u8) -> Checked {
        let mut values = Vec::new();
        let outcome = self.store.modify(key, &mut |value| {
            values.push(Bytes::copy_from_slice(value));
            value.iter_mut().for_each(|byte| *byte = byte.wrapping_add(delta));
        });
        let found = succeeded(Rule::Modify, outcome)?;
        let expected: Vec<Bytes> = self.model.get(key).cloned().into_iter().collect();
        ensure(Rule::Modify, || format!("values_{at}"), &values, &expected)?;
        ensure(Rule::Modify, || format!("found_{at}"), &found, &!expected.is_empty())?;
        if let Some(value) = self.model.get_mut(key) {
            *value = value.iter().map(|byte| byte.wrapping_add(delta)).collect();
        }
        self.after_write(Rule::Modify, key)
    }

    /// Compares an answer with the model's, and keeps it to check later that it does not change.
    fn keep<T: Shown + HandedOut + 'static>(&mut self, rule: Rule, name: String, found: T, expected: T) -> Checked {
        self.subject.values.ensure(rule, || name.clone(), &found, &expected)?;
        self.keep_unchanged(name, found, expected);
        Ok(())
    }

    /// Keeps compared bytes to check later that they do not change.
    fn keep_unchanged<T: Shown + 'static>(&mut self, name: String, found: T, expected: T) {
        self.kept.handles.push(Box::new(move || ensure(Rule::Handles, || name.clone(), &found, &expected)));
    }

    fn keep_scan(
        &mut self,
        rule: Rule,
        at: usize,
        found: Vec<(Bytes, Bytes)>,
        expected: Vec<(Bytes, Bytes)>,
    ) -> Checked {
        ensure_scan(rule, || format!("scan_{at}"), &found, &expected)?;
        self.keep(rule, format!("scan_{at}"), found, expected)
    }

    /// Runs the comparisons that are cheap enough to repeat after every write.
    fn after_write(&mut self, rule: Rule, key: &Bytes) -> Checked {
        if key.len() > MAX_KEY_LEN {
            ensure(Rule::Keys, || format!("store.get({})", literal(key)), &self.store.get(key), &None)?;
            return self.after_bulk_write(Rule::Errors);
        }
        let expected = self.model.get(key).cloned();
        self.ensure_get(rule, key, &expected)?;
        self.ensure_counts(Rule::Counts)
    }

    fn after_bulk_write(&mut self, rule: Rule) -> Checked {
        self.ensure_contents(rule)?;
        self.ensure_counts(if rule == Rule::Errors { rule } else { Rule::Counts })
    }

    fn ensure_counts(&self, rule: Rule) -> Checked {
        ensure(rule, || "store.len()".into(), &self.store.len(), &self.model.len())?;
        ensure(rule, || "store.is_empty()".into(), &self.store.is_empty(), &self.model.is_empty())?;
        ensure(rule, || "store.size_bytes()".into(), &self.store.size_bytes(), &size_of(&self.model))
    }

    /// Compares all entries, by scan and by key.
    fn ensure_contents(&self, rule: Rule) -> Checked {
        let expected = entries_with_prefix(&self.model, b"");
        let found = collect(self.store.prefix_scan(b""), expected.len());
        let scan = || "store.prefix_scan(b\"\").collect::<Vec<_>>()".into();
        self.subject.values.ensure_scan(rule, scan, &found, &expected)?;
        expected.into_iter().try_for_each(|(key, value)| self.ensure_get(rule, &key, &Some(value)))
    }

    fn ensure_get(&self, rule: Rule, key: &[u8], expected: &Option<Bytes>) -> Checked {
        let get = || format!("store.get({})", literal(key));
        self.subject.values.ensure(rule, get, &self.store.get(key), expected)
    }

    /// Compares all entries of scans from both ends.
    fn ensure_ends(&self) -> Checked {
        for walk in [Walk::Down, Walk::Turns(0b0101_0101)] {
            let expected = walk.order(entries_with_prefix(&self.model, b""));
            let found = walk.collect(self.store.entries((Bound::Unbounded, Bound::Unbounded)), expected.len());
            let scan = || walk.source("store.entries((Bound::Unbounded, Bound::Unbounded))");
            self.subject.values.ensure_scan(Rule::Entries, scan, &found, &expected)?;
        }
        Ok(())
    }

    fn verify(&mut self, rule: Rule) -> Checked {
        self.kept.verify(false)?;
        self.ensure_contents(rule)?;
        self.ensure_ends()?;
        self.ensure_counts(Rule::Counts)
    }
}

fn ensure_empty(name: &str, store: &dyn StateStore) -> Checked {
    ensure(Rule::StartsEmpty, || format!("{name}.len()"), &store.len(), &0)?;
    ensure(Rule::StartsEmpty, || format!("{name}.size_bytes()"), &store.size_bytes(), &0)?;
    ensure(Rule::StartsEmpty, || format!("{name}.is_empty()"), &store.is_empty(), &true)?;
    let scan = || format!("{name}.prefix_scan(b\"\").collect::<Vec<_>>()");
    ensure(Rule::StartsEmpty, scan, &collect(store.prefix_scan(b""), 0), &vec![])
}

/// Returns the result of a write under `key`. Returns `None` if the key is too long and the store correctly reports
/// that.
fn written<T>(rule: Rule, key: &[u8], outcome: Result<T, StateError>) -> Result<Option<T>, Failure> {
    if key.len() <= MAX_KEY_LEN {
        let is_extreme = key.is_empty() || key.len() == MAX_KEY_LEN;
        return succeeded(if is_extreme { Rule::Keys } else { rule }, outcome).map(Some);
    }
    let found = match outcome {
        Err(StateError::KeyTooLong { len, limit }) if len == key.len() && limit == MAX_KEY_LEN => return Ok(None),
        Err(error) => format!("the error {error:?}"),
        Ok(_) => "success".into(),
    };
    Err(Failure {
        rule: Rule::Keys,
        assertion: "// The last call returns something else than the right error.".into(),
        found,
        expected: format!("the error {:?}", StateError::KeyTooLong { len: key.len(), limit: MAX_KEY_LEN }),
    })
}
