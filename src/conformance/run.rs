//! [`run`]: a program against a store and the model at once.

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use bytes::Bytes;

use super::literal::{Shown, literal};
use super::op::{KeyBound, Op};
use super::snapshots::{check_snapshot, read_on_thread};
use super::{Make, Rule};
use crate::{MAX_KEY_LEN, StateError, StateSnapshot, StateStore, StateStoreExt};

/// What a store must hold.
pub(super) type Model = BTreeMap<Bytes, Bytes>;

/// A comparison that failed.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) rule: Rule,
    /// Rust source that shows it after the program.
    pub(super) assertion: String,
    pub(super) found: String,
    pub(super) expected: String,
}

/// A failure, and how many calls of the program it takes.
#[derive(Clone, Debug)]
pub(super) struct Stop {
    pub(super) calls: usize,
    pub(super) failure: Failure,
}

pub(super) type Checked = Result<(), Failure>;

/// Fails unless `found` is `expected`; `expression` is what yields `found`, as Rust source.
pub(super) fn ensure<T: Shown>(rule: Rule, expression: impl Fn() -> String, found: &T, expected: &T) -> Checked {
    if found == expected {
        return Ok(());
    }
    let (assertion, expression) = (expected.assertion(&expression()), expression());
    Err(Failure { rule, assertion, found: format!("{expression} is {}", found.text()), expected: expected.text() })
}

/// As [`ensure`] for a scan: the right entries in the wrong order break [`Rule::Order`].
pub(super) fn ensure_scan(
    rule: Rule,
    expression: impl Fn() -> String,
    found: &Vec<(Bytes, Bytes)>,
    expected: &Vec<(Bytes, Bytes)>,
) -> Checked {
    let is_reordered = found != expected && {
        let mut sorted = found.clone();
        sorted.sort();
        sorted == *expected
    };
    ensure(if is_reordered { Rule::Order } else { rule }, expression, found, expected)
}

/// Collects a scan, but no more of it than shows that it is too long: it may be endless.
pub(super) fn collect<T>(scan: impl Iterator<Item = T>, expected_len: usize) -> Vec<T> {
    scan.take(expected_len + 2).collect()
}

/// The entries of the model within the bounds, by comparing each key: a second opinion on what a range is.
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

pub(super) fn entries_with_prefix(model: &Model, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
    model.iter().filter(|(key, _)| key.starts_with(prefix)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

pub(super) fn size_of(model: &Model) -> usize {
    model.iter().map(|(key, value)| key.len() + value.len()).sum()
}

pub(super) fn borrow(bound: &KeyBound) -> Bound<&[u8]> {
    bound.as_ref().map(|key| &key[..])
}

/// Runs the program; the end of it is a comparison of everything that is held, before and after the store is dropped.
pub(super) fn run(make: Make<'_>, program: &[Op]) -> Result<(), Stop> {
    let stop = |calls: usize| move |failure| Stop { calls, failure };
    let mut run = guarded(|| Run::start(make)).map_err(stop(0))?;
    for (at, op) in program.iter().enumerate() {
        let checked = guarded(|| run.call(at, op));
        if let Err(failure) = checked {
            // What a store that broke its word does when it is dropped is of no further interest.
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
    make: Make<'a>,
    store: Box<dyn StateStore>,
    model: Model,
    kept: Kept,
}

/// What outlives changes of the store, and the store.
#[derive(Default)]
struct Kept {
    /// Each compares what a call returned with a copy.
    handles: Vec<Box<dyn Fn() -> Checked>>,
    snapshots: BTreeMap<usize, (StateSnapshot, Arc<Model>)>,
    readers: Vec<JoinHandle<Checked>>,
}

impl Kept {
    fn verify(&mut self, thoroughly: bool) -> Checked {
        self.handles.iter().try_for_each(|handle| handle())?;
        for (id, (snapshot, model)) in &self.snapshots {
            check_snapshot(&format!("snapshot_{id}"), snapshot, model, thoroughly)?;
        }
        // A thread that is done has nothing left to wait for; the others go on reading.
        let (done, reading) = std::mem::take(&mut self.readers)
            .into_iter()
            .partition::<Vec<_>, _>(|reader| thoroughly || reader.is_finished());
        self.readers = reading;
        done.into_iter().try_for_each(|reader| reader.join().unwrap_or_else(|payload| Err(panicked(&*payload))))
    }
}

impl<'a> Run<'a> {
    fn start(make: Make<'a>) -> Result<Self, Failure> {
        let run = Self { make, store: make(), model: Model::new(), kept: Kept::default() };
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
            Op::Scan(start, end) => {
                let expected = entries_within(&self.model, start, end);
                let found = collect(self.store.scan((borrow(start), borrow(end))), expected.len());
                self.keep_scan(Rule::RangeScan, at, found, expected)
            }
            Op::VisitRange(start, end, stop) => self.visit_range(at, start, end, *stop),
            Op::Put(key, value) => {
                let outcome = self.store.put(key, value);
                if written(Rule::Put, key, outcome)?.is_some() {
                    self.model.insert(key.clone(), value.clone());
                }
                self.after_write(Rule::Put, key)
            }
            Op::PutBytes(key, value) => {
                // Handing over the model's own bytes would let a store that changes them change the model.
                let handed_over = Bytes::copy_from_slice(value);
                let outcome = self.store.put_bytes(key, handed_over.clone());
                if written(Rule::PutBytes, key, outcome)?.is_some() {
                    self.model.insert(key.clone(), value.clone());
                }
                self.after_write(Rule::PutBytes, key)?;
                self.keep(Rule::Handles, format!("handle_{at}"), Some(handed_over), Some(value.clone()))
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
                    self.after_write(Rule::GetOrInsert, key)?;
                    return self.keep(Rule::Handles, format!("Some(handle_{at})"), Some(found), Some(expected));
                }
                self.after_write(Rule::GetOrInsert, key)
            }
            Op::Modify(key, delta) => self.modify(at, key, *delta),
            Op::Delete(key) => {
                succeeded(Rule::Delete, self.store.delete(key))?;
                self.model.remove(key);
                self.after_write(Rule::Delete, key)
            }
            Op::DeleteRange(start, end) => {
                let removed = succeeded(Rule::DeleteRange, self.store.delete_range(start..end))?;
                let len = self.model.len();
                self.model.retain(|key, _| !(start <= key && key < end));
                ensure(Rule::DeleteRange, || format!("removed_{at}"), &removed, &(len - self.model.len()))?;
                self.after_bulk_write(Rule::DeleteRange)
            }
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
                let snapshot = self.store.snapshot();
                check_snapshot(&format!("snapshot_{id}"), &snapshot, &self.model, false)?;
                self.kept.snapshots.insert(*id, (snapshot, Arc::new(self.model.clone())));
                Ok(())
            }
            Op::RestoreEntries(entries) => {
                self.model = entries.iter().cloned().collect();
                let copies = entries.iter().map(|(k, v)| (Bytes::copy_from_slice(k), Bytes::copy_from_slice(v)));
                self.store.restore(copies.collect());
                self.after_bulk_write(Rule::Restore)
            }
            Op::Restore(id)
            | Op::RestoreLast(id)
            | Op::RestoreImage(id)
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
        let Some((snapshot, model)) = self.kept.snapshots.get(&id).cloned() else { return Ok(()) };
        match op {
            Op::ReadOnThread(_) => {
                let reader = move || read_on_thread(&format!("snapshot_{id}"), &snapshot, &model);
                self.kept.readers.push(thread::spawn(reader));
                return Ok(());
            }
            Op::DropSnapshot(_) => {
                check_snapshot(&format!("snapshot_{id}"), &snapshot, &model, false)?;
                self.kept.snapshots.remove(&id);
                return Ok(());
            }
            Op::RestoreLast(_) => {
                self.kept.snapshots.remove(&id);
                self.store.restore(snapshot);
            }
            Op::RestoreImage(_) => {
                self.store.restore(opened(&snapshot)?);
            }
            Op::Recover(_) => {
                let mut recovered = (self.make)();
                ensure_empty("make()", &*recovered)?;
                recovered.restore(snapshot);
                self.store = recovered;
            }
            _ => self.store.restore(snapshot),
        }
        self.model = (*model).clone();
        self.after_bulk_write(Rule::Restore)
    }

    fn visit_range(&mut self, at: usize, start: &KeyBound, end: &KeyBound, stop: usize) -> Checked {
        let mut expected = entries_within(&self.model, start, end);
        expected.truncate(stop);
        // One entry more than expected is kept to show that the store went on.
        let mut visited = Vec::new();
        self.store.visit_range((borrow(start), borrow(end)), &mut |key, value| {
            if visited.len() <= expected.len() {
                visited.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            }
            if visited.len() < stop { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        ensure_scan(Rule::VisitRange, || format!("visited_{at}"), &visited, &expected)
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

    /// Compares an answer with the model's, and keeps it to see whether it changes later.
    fn keep<T: Shown + 'static>(&mut self, rule: Rule, name: String, found: T, expected: T) -> Checked {
        ensure(rule, || name.clone(), &found, &expected)?;
        self.kept.handles.push(Box::new(move || ensure(Rule::Handles, || name.clone(), &found, &expected)));
        Ok(())
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

    /// What can be compared after every write without slowing the kit down.
    fn after_write(&mut self, rule: Rule, key: &Bytes) -> Checked {
        if key.len() > MAX_KEY_LEN {
            ensure(Rule::Keys, || format!("store.get({})", literal(key)), &self.store.get(key), &None)?;
            return self.after_bulk_write(Rule::Errors);
        }
        let expected = self.model.get(key).cloned();
        ensure(rule, || format!("store.get({})", literal(key)), &self.store.get(key), &expected)?;
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
        ensure_scan(rule, || "store.prefix_scan(b\"\").collect::<Vec<_>>()".into(), &found, &expected)?;
        for (key, value) in expected {
            ensure(rule, || format!("store.get({})", literal(&key)), &self.store.get(&key), &Some(value))?;
        }
        Ok(())
    }

    fn verify(&mut self, rule: Rule) -> Checked {
        self.kept.verify(false)?;
        self.ensure_contents(rule)?;
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

/// The snapshot by way of its image.
pub(super) fn opened(snapshot: &StateSnapshot) -> Result<StateSnapshot, Failure> {
    succeeded(Rule::Snapshots, StateSnapshot::from_bytes(snapshot.to_bytes()))
}

fn succeeded<T>(rule: Rule, outcome: Result<T, StateError>) -> Result<T, Failure> {
    outcome.map_err(|error| Failure {
        rule,
        assertion: "// The last call returns an error.".into(),
        found: format!("the error \"{error}\""),
        expected: "success".into(),
    })
}

/// The outcome of a write under `key`: `None` where the key is too long and the store says so, as it must.
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
