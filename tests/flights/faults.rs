//! Real faults: processes that are killed whenever it may be, and a disk that is full.
//!
//! `OPSTATE_KILLS` sets the number of kills. The long form is 1,000 of them:
//!
//! ```sh
//! OPSTATE_KILLS=1000 cargo test --release --test main a_kill_at_any_moment
//! ```

use std::process::{Command, Output, Stdio};
use std::time::Duration;
use std::{env, fs, thread};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::support::flights::*;

/// Returns the event of the last checkpoint that the process reported to be on disk.
fn acknowledged_at(said: &str) -> u64 {
    // The last line may have been cut by the kill.
    let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let last = whole.lines().rfind(|line| line.starts_with("the checkpoint at event "));
    last.map_or(0, |line| number_of(" is on disk", line))
}

#[test]
fn a_kill_at_any_moment_changes_nothing() {
    let kills = env::var("OPSTATE_KILLS").map_or(24, |kills| kills.parse().expect("OPSTATE_KILLS is a number"));
    let mut random = StdRng::seed_from_u64(9);
    let job = Job::new(&["--resume", "--log-checkpoints"]);
    let (mut acknowledged, mut ended) = (0, 0);
    for kill in 0..kills {
        let workers = random.random_range(1..4).to_string();
        let store = if random.random() { "hot" } else { "memory" };
        let barrier_every = random.random_range(20..200).to_string();
        let compact_every = random.random_range(1..8).to_string();
        let mut command = job.command(&["--workers", &workers, "--store", store, "--barrier-every", &barrier_every]);
        command.args(["--compact-every", &compact_every]).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        thread::sleep(Duration::from_micros(random.random_range(0..60_000)));
        process.kill().unwrap();
        let output = process.wait_with_output().unwrap();
        let said = stderr(&output);
        assert!(
            !said.contains("skipped") && !said.contains("failed") && !said.contains("error"),
            "kill {kill}: {said}"
        );
        // It may have been killed before it had come so far as to say it.
        let resumed = resumed_at(&said);
        assert!(resumed.is_none_or(|at| at >= acknowledged), "kill {kill}, {acknowledged} acknowledged: {said}");
        assert!(acknowledged == 0 || !said.contains("there is no checkpoint"), "kill {kill}, {acknowledged}: {said}");
        acknowledged = acknowledged.max(resumed.unwrap_or(0)).max(acknowledged_at(&said));
        if output.status.success() {
            ended += 1;
            assert_same(&fs::read_to_string(job.dir.path().join("results.csv")).unwrap(), expected());
            fs::remove_dir_all(job.checkpoint_dir()).unwrap();
            acknowledged = 0;
        }
    }
    let (results, said) = job.complete(&[]);
    assert!(resumed_at(&said).unwrap_or(0) >= acknowledged, "{said}");
    assert_same(&results, expected());
    println!("{kills} kills, {ended} of which came after the end of the job");
}

/// Runs the job twice on a disk of its own, of so many KiB: until it crashes, and to its end.
///
/// The disk is there only for the shell that makes it, in a namespace of its own. `None` where that is not allowed.
#[cfg(target_os = "linux")]
fn on_a_disk_of(job: &Job, kib: u32) -> Option<[Output; 2]> {
    fs::create_dir_all(job.checkpoint_dir()).unwrap();
    let in_namespace = |script: &str| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]).arg(job.checkpoint_dir());
        unshare
    };
    let mount = format!("mount -t tmpfs -o size={kib}k none \"$1\"");
    if !in_namespace(&mount).output().is_ok_and(|mounted| mounted.status.success()) {
        return None;
    }
    let [first, second] = ["first", "second"].map(|name| job.dir.path().join(name));
    let run = format!(
        "{mount} && shift && first=\"$1\" && second=\"$2\" && shift 2 || exit 9\n\
         \"$@\" --crash-after 17000 >\"$first.out\" 2>\"$first\" && exit 8\n\
         \"$@\" --resume >\"$second.out\" 2>\"$second\""
    );
    let command = job.command(&["--log-checkpoints"]);
    let mut shell = in_namespace(&run);
    shell.arg(&first).arg(&second).arg(command.get_program()).args(command.get_args());
    let status = shell.current_dir(job.dir.path()).output().unwrap().status;
    Some([first, second].map(|said| {
        let stdout = fs::read(said.with_extension("out")).unwrap();
        Output { status, stdout, stderr: fs::read(said).unwrap() }
    }))
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_fails_checkpoints_and_loses_none() {
    // The images have some 130 KB in the end.
    let (mut failed, mut written) = (0, 0);
    for kib in [4, 16, 40, 64, 100, 150, 200, 300, 400, 600, 4000] {
        let job = Job::new(&["--barrier-every", "500", "--compact-every", "3", "--workers", "2"]);
        let Some([first, second]) = on_a_disk_of(&job, kib) else {
            println!("skipped: no disk can be mounted here");
            return;
        };
        let (said, then) = (stderr(&first), stderr(&second));
        assert!(second.status.success(), "{kib} KiB: {said}{then}");
        assert!(!then.contains("skipped"), "{kib} KiB: {then}");
        let acknowledged = acknowledged_at(&said);
        assert!(resumed_at(&then).unwrap_or(0) >= acknowledged, "{kib} KiB: {said}{then}");
        let results = fs::read_to_string(job.dir.path().join("results.csv")).unwrap();
        assert_same(&results, expected());
        let failures = said.lines().filter(|line| line.starts_with("a checkpoint failed")).count();
        assert!(said.lines().filter(|line| line.contains("No space left on device")).count() >= failures, "{said}");
        failed += failures;
        written += said.matches(" is on disk\n").count();
        println!("{kib} KiB: {failures} failed, resumed at {acknowledged}");
        assert_eq!(failures == 0, kib == 4000, "{kib} KiB: {said}");
    }
    assert!(failed > 20 && written > 20, "{failed} failed, {written} written");
}
