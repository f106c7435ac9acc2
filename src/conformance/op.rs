//! [`Op`]: one call of a program, and its source code.

use std::ops::Bound;

use bytes::Bytes;

use super::check::KeyBound;
use super::literal::{HANDLE, PATTERN, list, literal, slice};
use super::values::{MISALIGNED, Values};
use super::walk::{IN_TURNS, Walk};
use crate::image::inspect::ImageInfo;
use crate::limits::MAX_KEY_LEN;
use crate::snapshot::state_snapshot::StateSnapshot;

/// One call to the store under test, with the checks around it.
///
/// Snapshots have explicit numbers, so a program stays valid when calls are dropped from it. A call that refers to a
/// snapshot which is not held does nothing. Handles and scans are named by their call's place in the program.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Get(Bytes),
    TryGet(Bytes),
    Contains(Bytes),
    Read(Bytes),
    GetMany(Vec<Bytes>),
    PrefixScan(Bytes),
    RangeScan(Bytes, Bytes),
    Entries(KeyBound, KeyBound, Walk),
    /// Visits a range, and stops after this many entries.
    VisitRange(KeyBound, KeyBound, usize),
    /// Visits a range with `try_visit_range`, and stops after this many entries.
    TryVisitRange(KeyBound, KeyBound, usize),
    Put(Bytes, Bytes),
    PutBytes(Bytes, Bytes),
    PutMany(Vec<(Bytes, Bytes)>),
    GetOrInsert(Bytes, Bytes),
    /// Adds this to every byte of the value.
    Modify(Bytes, u8),
    Delete(Bytes),
    Take(Bytes),
    /// Deletes at most this many entries.
    DeleteWithin(KeyBound, KeyBound, usize),
    Clear,
    Flush,
    Snapshot(usize),
    /// Restores a snapshot that stays held.
    Restore(usize),
    /// Restores a snapshot of which the store has the last handle.
    RestoreLast(usize),
    /// Restores a snapshot with `try_restore`. The snapshot stays held.
    TryRestore(usize),
    RestoreImage(usize),
    /// Restores an unverified image, which is the purpose of `try_restore`.
    RestoreUnverified(usize),
    /// Restores a damaged image of these entries, at least one. The restore must fail and change nothing.
    RestoreDamaged(Vec<(Bytes, Bytes)>),
    RestoreEntries(Vec<(Bytes, Bytes)>),
    /// Restores into a new store that replaces the old one.
    Recover(usize),
    DropSnapshot(usize),
    /// Starts a thread that reads a snapshot while the program continues.
    ReadOnThread(usize),
    /// Compares the store, and everything that is held, with the model.
    Verify,
    /// Compares all handles, then drops them.
    DropHandles,
}

impl Op {
    /// Returns the snapshot that the call needs, if any. The call does nothing unless that snapshot is held.
    fn needs(&self) -> Option<usize> {
        match *self {
            Self::Restore(id)
            | Self::RestoreLast(id)
            | Self::TryRestore(id)
            | Self::RestoreImage(id)
            | Self::RestoreUnverified(id)
            | Self::Recover(id)
            | Self::DropSnapshot(id)
            | Self::ReadOnThread(id) => Some(id),
            _ => None,
        }
    }

    /// Returns the same call with shorter values, the simplest first.
    pub(super) fn simpler(&self) -> Vec<Self> {
        let with_value: &dyn Fn(Bytes) -> Self = match self {
            Self::Put(key, _) => &|value| Self::Put(key.clone(), value),
            Self::PutBytes(key, _) => &|value| Self::PutBytes(key.clone(), value),
            Self::GetOrInsert(key, _) => &|value| Self::GetOrInsert(key.clone(), value),
            _ => return Vec::new(),
        };
        let (Self::Put(_, old) | Self::PutBytes(_, old) | Self::GetOrInsert(_, old)) = self else { return Vec::new() };
        let simple = [&b""[..], b"v", b"12345678"].into_iter().take_while(|simple| simple.len() < old.len());
        simple.map(|value| with_value(Bytes::from_static(value))).collect()
    }

    /// Returns the call at place `at` as Rust source, and the name of the variable that keeps a handle, if any.
    fn source(&self, at: usize, values: Values) -> (String, Option<String>) {
        let write = |key: &Bytes, call: String| match key.len() {
            0..=MAX_KEY_LEN => format!("{call}.unwrap()"),
            len => {
                format!("assert!(matches!({call}, Err(StateError::KeyTooLong {{ len: {len}, limit: {MAX_KEY_LEN} }})))")
            }
        };
        let kept = |name: &str, call: String| (format!("let {name}_{at} = {call};"), Some(format!("{name}_{at}")));
        let line = |line: String| (line, None);
        let visit = |call: &str, start: &KeyBound, end: &KeyBound, stop: usize, unwrap: &str| {
            format!(
                "let mut visited_{at} = vec![];\n\
                 store.{call}({}, &mut |key, value| {{\n    \
                     visited_{at}.push((handle(key), handle(value)));\n    \
                     if visited_{at}.len() < {stop} {{ ControlFlow::Continue(()) }} else {{ ControlFlow::Break(()) }}\n\
                 }}){unwrap};",
                bounds_source(start, end)
            )
        };
        match self {
            Self::Get(key) => kept("handle", format!("store.get({})", literal(key))),
            Self::TryGet(key) => kept("handle", format!("store.try_get({}).unwrap()", literal(key))),
            Self::Contains(key) => line(format!("let contains_{at} = store.contains({});", literal(key))),
            Self::Read(key) => line(format!(
                "let mut values_{at} = vec![];\n\
                 let found_{at} = store.read({}, &mut |value| values_{at}.push(handle(value)));",
                literal(key)
            )),
            Self::GetMany(keys) => {
                let keys = if keys.is_empty() { "[]".into() } else { list(keys, |key| slice(key)) };
                let call = format!(
                    "let mut answers_{at} = vec![Some(handle(b\"stale\")), None];\n\
                     store.get_many(&{keys}, &mut answers_{at});"
                );
                (call, Some(format!("answers_{at}")))
            }
            Self::PrefixScan(prefix) => {
                kept("scan", format!("store.prefix_scan({}).collect::<Vec<_>>()", literal(prefix)))
            }
            Self::RangeScan(start, end) => {
                kept("scan", format!("store.range_scan({}..{}).collect::<Vec<_>>()", slice(start), slice(end)))
            }
            Self::Entries(start, end, walk) => {
                kept("scan", walk.source(&format!("store.entries({})", bounds_source(start, end))))
            }
            Self::VisitRange(start, end, stop) => line(visit("visit_range", start, end, *stop, "")),
            Self::TryVisitRange(start, end, stop) => line(visit("try_visit_range", start, end, *stop, ".unwrap()")),
            Self::Put(key, value) => line(write(key, format!("store.put({}, {})", literal(key), literal(value))) + ";"),
            Self::PutBytes(key, value) => {
                let call = write(key, format!("store.put_bytes({}, handle_{at}.clone())", literal(key)));
                (format!("let handle_{at} = {};\n{call};", values.source(value)), Some(format!("handle_{at}")))
            }
            Self::PutMany(batch) => {
                let longest = batch.iter().map(|(key, _)| key).max_by_key(|key| key.len());
                let batch = match &batch[..] {
                    [] => "[]".into(),
                    batch => list(batch, |(key, value)| format!("({}, {})", slice(key), slice(value))),
                };
                line(write(longest.unwrap_or(&Bytes::new()), format!("store.put_many(&{batch})")) + ";")
            }
            Self::GetOrInsert(key, value) => {
                let call = write(key, format!("store.get_or_insert({}, {})", literal(key), literal(value)));
                if key.len() > MAX_KEY_LEN { line(call + ";") } else { kept("handle", call) }
            }
            Self::Modify(key, delta) => line(format!(
                "let mut values_{at} = vec![];\n\
                 let found_{at} = store.modify({}, &mut |value| {{\n    \
                     values_{at}.push(handle(value));\n    \
                     value.iter_mut().for_each(|byte| *byte = byte.wrapping_add({delta}));\n\
                 }}).unwrap();",
                literal(key)
            )),
            Self::Delete(key) => line(format!("store.delete({}).unwrap();", literal(key))),
            Self::Take(key) => kept("handle", format!("store.take({}).unwrap()", literal(key))),
            Self::DeleteWithin(start, end, limit) => {
                let limit = if *limit == usize::MAX { "usize::MAX".into() } else { limit.to_string() };
                let bounds = bounds_source(start, end);
                line(format!("let deleted_{at} = store.delete_within({bounds}, {limit}).unwrap();"))
            }
            Self::Clear => line("store.clear();".into()),
            Self::Flush => line("store.flush().unwrap();".into()),
            Self::Snapshot(id) => line(format!("let snapshot_{id} = store.snapshot();")),
            Self::Restore(id) => line(format!("store.restore(snapshot_{id}.clone());")),
            Self::RestoreLast(id) => line(format!("store.restore(snapshot_{id});")),
            Self::TryRestore(id) => line(format!("store.try_restore(snapshot_{id}.clone()).unwrap();")),
            Self::RestoreImage(id) => {
                let image = image_source(&format!("snapshot_{id}"), values);
                line(format!("store.restore(StateSnapshot::from_bytes({image}).unwrap());"))
            }
            Self::RestoreUnverified(id) => {
                let image = image_source(&format!("snapshot_{id}"), values);
                line(format!("UnverifiedImage::from_bytes({image}).unwrap().restore_into(&mut store).unwrap();"))
            }
            Self::RestoreDamaged(entries) => {
                let (_, place) = damaged_image(entries);
                line(format!(
                    "let mut image_{at} = StateSnapshot::from_iter({}).to_bytes().to_vec();\n\
                     image_{at}[{place}] ^= 1;\n\
                     UnverifiedImage::from_bytes(image_{at}).unwrap().restore_into(&mut store).unwrap_err();",
                    values.entries_source(entries.iter().map(|(key, value)| (key, value)))
                ))
            }
            Self::RestoreEntries(entries) if entries.is_empty() => {
                line("store.restore(StateSnapshot::from_iter(Vec::<(Bytes, Bytes)>::new()));".into())
            }
            Self::RestoreEntries(entries) => {
                let entries = values.entries_source(entries.iter().map(|(key, value)| (key, value)));
                line(format!("store.restore(StateSnapshot::from_iter({entries}));"))
            }
            Self::Recover(id) => line(format!(
                "let mut recovered_{at} = make();\n\
                 recovered_{at}.restore(snapshot_{id}.clone());\n\
                 store = recovered_{at};"
            )),
            Self::DropSnapshot(id) => line(format!("drop(snapshot_{id});")),
            Self::ReadOnThread(id) => line(format!(
                "let reader_{at} = std::thread::spawn({{\n    \
                     let snapshot_{id} = snapshot_{id}.clone();\n    \
                     move || snapshot_{id}.iter().collect::<Vec<_>>()\n\
                 }});"
            )),
            Self::Verify | Self::DropHandles => line(String::new()),
        }
    }
}

/// Returns the program, and the assertion that fails after it, as Rust source.
pub(super) fn source(program: &[Op], assertion: &str, values: Values) -> String {
    let mut body = String::new();
    let mut held = Vec::new();
    let mut handles = Vec::new();
    for (at, op) in program.iter().enumerate() {
        if op.needs().is_some_and(|id| !held.contains(&id)) {
            continue;
        }
        match op {
            Op::Snapshot(id) => held.push(*id),
            Op::RestoreLast(id) | Op::DropSnapshot(id) => held.retain(|other| other != id),
            Op::DropHandles => body.extend(handles.drain(..).map(|name| format!("drop({name});\n"))),
            _ => {}
        }
        let (call, handle) = op.source(at, values);
        handles.extend(handle);
        if !call.is_empty() {
            body += &call;
            body.push('\n');
        }
    }
    body += assertion;

    let mut imports = vec!["StateStore"];
    imports.extend(["StateError", "StateSnapshot", "UnverifiedImage"].into_iter().filter(|name| body.contains(name)));
    imports.sort_unstable();
    let imports = if imports.len() == 1 { imports[0].into() } else { format!("{{{}}}", imports.join(", ")) };
    let mut source = format!("use opstate::{imports};\n");
    let definitions =
        [("handle(", HANDLE), ("pattern(", PATTERN), ("misaligned(", MISALIGNED), ("in_turns(", IN_TURNS)];
    let definitions = definitions.into_iter().filter(|(used, _)| body.contains(used)).map(|(_, definition)| definition);
    let definitions: String = definitions.map(|definition| format!("{definition}\n")).collect();
    if body.contains("Bytes") || definitions.contains("Bytes") {
        source.insert_str(0, "use bytes::Bytes;\n");
    }
    let uses = [("Bound::", "use std::ops::Bound;\n"), ("ControlFlow::", "use std::ops::ControlFlow;\n")];
    source.extend(uses.iter().filter(|(used, _)| body.contains(used)).map(|(_, import)| *import));
    source.push('\n');
    source + &definitions + "let mut store = make();\n" + &body
}

/// Returns the bounds as Rust source of a `KeyRange`, with a type that does not depend on the bounds.
pub(super) fn range_source(start: &KeyBound, end: &KeyBound) -> String {
    match (start, end) {
        (Bound::Unbounded, Bound::Unbounded) => "..".into(),
        _ => bounds_source(start, end),
    }
}

/// Returns the bounds as Rust source of `KeyBounds`.
fn bounds_source(start: &KeyBound, end: &KeyBound) -> String {
    let source = |bound: &KeyBound| match bound {
        Bound::Included(key) => format!("Bound::Included({})", slice(key)),
        Bound::Excluded(key) => format!("Bound::Excluded({})", slice(key)),
        Bound::Unbounded => "Bound::Unbounded".into(),
    };
    format!("({}, {})", source(start), source(end))
}

/// Returns Rust source for the image of a snapshot, as an argument to the function that opens it.
pub(super) fn image_source(snapshot: &str, values: Values) -> String {
    let image = format!("{snapshot}.to_bytes()");
    if values.are_aligned { format!("misaligned(&{image})") } else { image }
}

/// Returns an image of the entries with one flipped bit in its last segment, and the offset of the flipped byte.
pub(super) fn damaged_image(entries: &[(Bytes, Bytes)]) -> (Vec<u8>, usize) {
    let mut image = StateSnapshot::from_iter(entries.iter().cloned()).to_bytes().to_vec();
    let info = ImageInfo::from_bytes(image.clone()).expect("the image is sound");
    let place = info.segments().last().expect("there are entries").offset() as usize;
    image[place] ^= 1;
    (image, place)
}
