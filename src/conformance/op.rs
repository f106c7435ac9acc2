//! [`Op`]: one call of a program, and how it is printed.

use std::ops::Bound;

use bytes::Bytes;

use super::literal::{HANDLE, PATTERN, entries, handle, list, literal, slice};
use crate::MAX_KEY_LEN;

/// One call to the store under test, with what the kit does around it.
///
/// Snapshots have numbers of their own, so that a program stays meaningful when calls are dropped from it; a call that
/// refers to a snapshot which is not held does nothing. Everything else that is kept is named by its place.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Get(Bytes),
    Contains(Bytes),
    Read(Bytes),
    GetMany(Vec<Bytes>),
    PrefixScan(Bytes),
    RangeScan(Bytes, Bytes),
    /// `StateStoreExt::scan`.
    Scan(KeyBound, KeyBound),
    /// Stops after this many entries.
    VisitRange(KeyBound, KeyBound, usize),
    Put(Bytes, Bytes),
    PutBytes(Bytes, Bytes),
    PutMany(Vec<(Bytes, Bytes)>),
    GetOrInsert(Bytes, Bytes),
    /// Adds this to every byte of the value.
    Modify(Bytes, u8),
    Delete(Bytes),
    DeleteRange(Bytes, Bytes),
    Clear,
    Flush,
    Snapshot(usize),
    /// Restores a snapshot that stays held.
    Restore(usize),
    /// Restores a snapshot that only the store has from then on.
    RestoreLast(usize),
    RestoreImage(usize),
    RestoreEntries(Vec<(Bytes, Bytes)>),
    /// Restores into a new store, which takes the place of the old one.
    Recover(usize),
    DropSnapshot(usize),
    /// Has another thread read a snapshot while the program goes on.
    ReadOnThread(usize),
    /// Compares everything that is held, and the store, with the model.
    Verify,
    /// Drops all handles, after a comparison.
    DropHandles,
}

pub(super) type KeyBound = Bound<Bytes>;

impl Op {
    /// The snapshot that must be held for the call to do anything.
    fn needs(&self) -> Option<usize> {
        match *self {
            Self::Restore(id)
            | Self::RestoreLast(id)
            | Self::RestoreImage(id)
            | Self::Recover(id)
            | Self::DropSnapshot(id)
            | Self::ReadOnThread(id) => Some(id),
            _ => None,
        }
    }

    /// Calls that do the same with a shorter value, the simplest first.
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

    /// The call at place `at` as Rust source, and the name of the variable that keeps a handle, if any.
    fn source(&self, at: usize) -> (String, Option<String>) {
        let write = |key: &Bytes, call: String| match key.len() {
            0..=MAX_KEY_LEN => format!("{call}.unwrap()"),
            len => {
                format!("assert!(matches!({call}, Err(StateError::KeyTooLong {{ len: {len}, limit: {MAX_KEY_LEN} }})))")
            }
        };
        let kept = |name: &str, call: String| (format!("let {name}_{at} = {call};"), Some(format!("{name}_{at}")));
        let line = |line: String| (line, None);
        match self {
            Self::Get(key) => kept("handle", format!("store.get({})", literal(key))),
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
            Self::Scan(start, end) => {
                kept("scan", format!("store.scan({}).collect::<Vec<_>>()", bounds_source(start, end)))
            }
            Self::VisitRange(start, end, stop) => line(format!(
                "let mut visited_{at} = vec![];\n\
                 store.visit_range({}, &mut |key, value| {{\n    \
                     visited_{at}.push((handle(key), handle(value)));\n    \
                     if visited_{at}.len() < {stop} {{ ControlFlow::Continue(()) }} else {{ ControlFlow::Break(()) }}\n\
                 }});",
                bounds_source(start, end)
            )),
            Self::Put(key, value) => line(write(key, format!("store.put({}, {})", literal(key), literal(value))) + ";"),
            Self::PutBytes(key, value) => {
                let call = write(key, format!("store.put_bytes({}, handle_{at}.clone())", literal(key)));
                (format!("let handle_{at} = {};\n{call};", handle(value)), Some(format!("handle_{at}")))
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
            Self::DeleteRange(start, end) => {
                line(format!("let removed_{at} = store.delete_range({}..{}).unwrap();", slice(start), slice(end)))
            }
            Self::Clear => line("store.clear();".into()),
            Self::Flush => line("store.flush().unwrap();".into()),
            Self::Snapshot(id) => line(format!("let snapshot_{id} = store.snapshot();")),
            Self::Restore(id) => line(format!("store.restore(snapshot_{id}.clone());")),
            Self::RestoreLast(id) => line(format!("store.restore(snapshot_{id});")),
            Self::RestoreImage(id) => {
                line(format!("store.restore(StateSnapshot::from_bytes(snapshot_{id}.to_bytes()).unwrap());"))
            }
            Self::RestoreEntries(list) if list.is_empty() => {
                line("store.restore(StateSnapshot::from_iter(Vec::<(Bytes, Bytes)>::new()));".into())
            }
            Self::RestoreEntries(list) => line(format!("store.restore(StateSnapshot::from_iter({}));", entries(list))),
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

/// The program and the assertion that fails after it, as Rust source.
pub(super) fn source(program: &[Op], assertion: &str) -> String {
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
        let (call, handle) = op.source(at);
        handles.extend(handle);
        if !call.is_empty() {
            body += &call;
            body.push('\n');
        }
    }
    body += assertion;

    let mut imports = vec!["StateStore"];
    imports.extend(["StateError", "StateSnapshot"].into_iter().filter(|name| body.contains(name)));
    if body.contains("store.scan(") {
        imports.push("StateStoreExt");
    }
    imports.sort_unstable();
    let imports = if imports.len() == 1 { imports[0].into() } else { format!("{{{}}}", imports.join(", ")) };
    let mut source = format!("use opstate::{imports};\n");
    if body.contains("handle(") || body.contains("Bytes") {
        source.insert_str(0, "use bytes::Bytes;\n");
    }
    let uses = [("Bound::", "use std::ops::Bound;\n"), ("ControlFlow::", "use std::ops::ControlFlow;\n")];
    source.extend(uses.iter().filter(|(used, _)| body.contains(used)).map(|(_, import)| *import));
    source.push('\n');
    for (used, definition) in [("handle(", HANDLE), ("pattern(", PATTERN)] {
        if body.contains(used) {
            source += definition;
            source.push('\n');
        }
    }
    source + "let mut store = make();\n" + &body
}

/// The bounds as Rust source.
pub(super) fn bounds_source(start: &KeyBound, end: &KeyBound) -> String {
    let source = |bound: &KeyBound| match bound {
        Bound::Included(key) => format!("Bound::Included({})", slice(key)),
        Bound::Excluded(key) => format!("Bound::Excluded({})", slice(key)),
        Bound::Unbounded => "Bound::Unbounded".into(),
    };
    format!("({}, {})", source(start), source(end))
}
