//! Out of memory: the process aborts, and earlier checkpoints stay whole.
//!
//! An allocator must not unwind, and Rust aborts when an allocation fails. So these tests start this binary again as a
//! child process that aborts. (A nightly compiler can unwind instead: see `failures.rs`.)

#![cfg(all(target_os = "linux", not(miri)))]

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};
use std::{env, process};

use opstate::{HotStore, StateError, StateSnapshot, StateStore};

use crate::support::allocator::{fail_after, fail_no_more};

const DIR: &str = "OPSTATE_TEST_DIR";
const FAILING: &str = "OPSTATE_TEST_FAILING_ALLOCATION";
const SIGABRT: i32 = 6;
const REFUSED: i32 = 7;

/// Writes a checkpoint without a sync, because the process ends but the system does not.
fn checkpoint(snapshot: &StateSnapshot, dir: &Path) {
    let (new, path) = (dir.join("new"), dir.join("checkpoint"));
    snapshot.write_to(File::create(&new).unwrap()).unwrap();
    fs::rename(new, path).unwrap();
}

fn numbered(count: u32, value_len: usize) -> StateSnapshot {
    StateSnapshot::from_sorted((0..count).map(|i| (i.to_be_bytes(), vec![7; value_len])).map(|(k, v)| (k.to_vec(), v)))
        .unwrap()
}

fn read(dir: &Path) -> StateSnapshot {
    StateSnapshot::from_bytes(fs::read(dir.join("checkpoint")).unwrap()).unwrap()
}

/// Runs one of the tests below in a child process, with an optional limit of its address space in KiB.
fn run(test: &str, dir: &Path, failing: Option<usize>, limit_kib: Option<usize>) -> Output {
    let limit = limit_kib.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -c 0; ulimit -v $1; shift; exec \"$@\"", "sh", &limit]);
    command.arg(env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture", "--test-threads", "1"]).env(DIR, dir);
    if let Some(failing) = failing {
        command.env(FAILING, failing.to_string());
    }
    command.output().unwrap()
}

#[test]
fn a_process_without_memory_aborts_and_its_checkpoint_stays() {
    let dir = tempfile::tempdir().unwrap();
    let ended = run("memory::grow_without_end", dir.path(), None, Some(400_000));
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.signal(), Some(SIGABRT), "{}: {said}", ended.status);
    assert!(said.contains("memory allocation of"), "{said}");
    assert_eq!(read(dir.path()), numbered(1000, 100));
}

#[test]
#[ignore = "a process that is to be aborted; another test starts it"]
fn grow_without_end() {
    // Do nothing if the test was not started by [`run`].
    let Some(dir) = env::var_os(DIR) else { return };
    let mut store = HotStore::new();
    store.restore(numbered(1000, 100));
    checkpoint(&store.snapshot(), dir.as_ref());
    let mut held = Vec::new();
    for i in 0..u32::MAX {
        store.put(&(i % 2_000_000).to_be_bytes(), &[1; 400]).unwrap();
        if i % 100_000 == 0 {
            held.push(store.snapshot());
        }
    }
}

#[test]
fn wherever_an_allocation_fails_the_checkpoint_is_the_old_or_the_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let (mut aborted, mut refused, mut is_new) = (0, 0, false);
    for failing in 0.. {
        checkpoint(&numbered(5, 600), dir.path());
        let ended = run("memory::checkpoint_once_more", dir.path(), Some(failing), None);
        let found = read(dir.path());
        assert!(found == numbered(5, 600) || found == numbered(9, 30), "{failing}");
        // Once a new checkpoint exists, it stays.
        assert!(!is_new || found == numbered(9, 30), "{failing}");
        is_new |= found == numbered(9, 30);
        match (ended.status.signal(), ended.status.code()) {
            (Some(SIGABRT), _) => aborted += 1,
            (_, Some(REFUSED)) => refused += 1,
            (_, Some(0)) => break,
            _ => panic!("{failing}: {}: {}", ended.status, String::from_utf8_lossy(&ended.stderr)),
        }
    }
    assert!(is_new && aborted > 50 && refused > 0, "{aborted} aborted, {refused} refused");
}

#[test]
#[ignore = "a process that is to be aborted; another test starts it"]
fn checkpoint_once_more() {
    let (Some(dir), Ok(failing)) = (env::var_os(DIR), env::var(FAILING)) else { return };
    let dir: &Path = dir.as_ref();
    let file = File::open(dir.join("checkpoint")).unwrap();
    let mut store = HotStore::new();
    let before = store.snapshot();
    fail_after(failing.parse().unwrap());
    match StateSnapshot::read_from(file).and_then(|snapshot| store.try_restore(snapshot)) {
        // Reading a file reports a failed allocation as an error.
        Err(StateError::Io(error)) if error.kind() == std::io::ErrorKind::OutOfMemory => {
            assert_eq!(store.snapshot(), before);
            process::exit(REFUSED);
        }
        outcome => outcome.unwrap(),
    }
    for i in 0..9_u32 {
        store.put(&i.to_be_bytes(), &[7; 30]).unwrap();
    }
    checkpoint(&store.snapshot(), dir);
    fail_no_more();
}
