//! The example `flights`, run as a process, killed, resumed, and compared with a computation that knows no store.

#![cfg(not(miri))]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use std::{env, fs, thread};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

const INPUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/flights-20k.csv");

/// The lateness that the example allows by default.
const ALLOWED_LATENESS_MIN: i64 = 60;

/// The path of the example, which belongs to the build this test belongs to.
fn example() -> &'static Path {
    static EXAMPLE: OnceLock<PathBuf> = OnceLock::new();
    EXAMPLE.get_or_init(|| {
        let test = env::current_exe().unwrap();
        let profile_dir = test.parent().and_then(Path::parent).unwrap();
        let example = profile_dir.join("examples").join(format!("flights{}", env::consts::EXE_SUFFIX));
        // `cargo test --test main` builds no examples: without this, the one of an earlier build would be tested.
        let profile = profile_dir.file_name().and_then(|name| name.to_str()).unwrap();
        let build = Command::new(env!("CARGO"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["build", "--quiet", "--example", "flights"])
            .args(["--profile", if profile == "debug" { "dev" } else { profile }])
            .arg("--target-dir")
            .arg(profile_dir.parent().unwrap())
            .output();
        match build {
            Ok(build) => assert!(build.status.success(), "{}", String::from_utf8_lossy(&build.stderr)),
            Err(error) => eprintln!("cannot run cargo, so the example is tested as it is: {error}"),
        }
        assert!(example.exists(), "{} is missing; build it with `cargo build --example flights`", example.display());
        example
    })
}

/// A job with a directory of its own for checkpoints and results.
struct Job {
    dir: TempDir,
    args: Vec<&'static str>,
}

impl Job {
    fn new(args: &[&'static str]) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), args: args.to_vec() }
    }

    fn checkpoint_dir(&self) -> PathBuf {
        self.dir.path().join("checkpoints")
    }

    fn run(&self, more: &[&str]) -> Output {
        self.command(more).output().unwrap()
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(example());
        // Where core dumps are on, they go to the current directory.
        command.current_dir(self.dir.path());
        command.arg("--checkpoint-dir").arg(self.checkpoint_dir());
        command.arg("--results").arg(self.dir.path().join("results.csv"));
        command.args(&self.args).args(more);
        command
    }

    /// Runs to the end and returns the results and what was said on stderr.
    #[track_caller]
    fn complete(&self, more: &[&str]) -> (String, String) {
        let output = self.run(more);
        let said = stderr(&output);
        assert!(output.status.success(), "{said}");
        (fs::read_to_string(self.dir.path().join("results.csv")).unwrap(), said)
    }

    /// Runs until the process kills itself; returns what was said on stderr.
    #[track_caller]
    fn crash(&self, more: &[&str]) -> String {
        let output = self.run(more);
        assert!(!output.status.success());
        #[cfg(unix)]
        assert!(std::os::unix::process::ExitStatusExt::signal(&output.status).is_some(), "{}", stderr(&output));
        assert!(!self.dir.path().join("results.csv").exists());
        let said = stderr(&output);
        let last = said.lines().next_back().unwrap_or_default();
        assert!(last.starts_with("crashing ") && last.ends_with(", as asked; go on with --resume"), "{said}");
        said
    }

    /// As [`crash`](Self::crash), after earlier runs.
    #[track_caller]
    fn crash_afresh(&self, more: &[&str]) -> String {
        let _ = fs::remove_file(self.dir.path().join("results.csv"));
        self.crash(more)
    }

    /// Runs into an error that a user can make, and returns its text.
    #[track_caller]
    fn fail(&self, more: &[&str]) -> String {
        let output = self.run(more);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.starts_with("error: ") && said.lines().count() == 1, "{said}");
        said
    }

    /// The checkpoints that are written in full, oldest first.
    fn checkpoints(&self) -> Vec<PathBuf> {
        let mut paths: Vec<_> = self.files().iter().map(|name| self.checkpoint_dir().join(name)).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "checkpoint"));
        paths
    }

    /// The names of all files with checkpoints, in ascending order.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.checkpoint_dir()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn change_file(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.checkpoint_dir().join(name);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The number in front of `what` in a report; 0 if it does not say.
fn number_of(what: &str, report: &str) -> u64 {
    let before = report.split_once(what).and_then(|(before, _)| before.split_whitespace().next_back());
    before.map_or(0, |number| number.replace(',', "").parse().unwrap())
}

fn checkpoints_written(report: &str) -> u64 {
    number_of(" checkpoints written", report) + number_of(" checkpoint written", report)
}

/// The median and the longest of a row about checkpoints.
#[track_caller]
fn times_of(row: &str, report: &str) -> String {
    report.split_once(row).unwrap().1.lines().next().unwrap().trim().to_owned()
}

/// Where a run says that it resumed: at a number of events, or not at all.
fn resumed_at(said: &str) -> Option<u64> {
    let (number, _) = said.split_once("resumed at event ")?.1.split_once(' ')?;
    number.replace(',', "").parse().ok()
}

#[derive(Default)]
struct Naive {
    flights: u32,
    delayed: u32,
    total_min: i64,
    worst: Option<(i64, String)>,
    days: BTreeSet<String>,
}

impl Naive {
    fn add(&mut self, delay_min: i64, day: &str) {
        self.flights += 1;
        self.delayed += u32::from(delay_min > 15);
        self.total_min += delay_min;
        self.days.insert(day.to_owned());
        let is_worse = self.worst.as_ref().is_none_or(|(worst, of)| (delay_min, of.as_str()) > (*worst, day));
        if is_worse {
            self.worst = Some((delay_min, day.to_owned()));
        }
    }
}

/// Computes the results file without a stream, windows or a store. Returns it with the positions of the late events.
fn naive_results(allowed_lateness_min: i64) -> (String, Vec<usize>) {
    struct Row {
        scheduled: i64,
        delay_min: i64,
        day: String,
        origin: String,
        route: String,
    }
    let mut rows: Vec<Row> = csv::Reader::from_path(INPUT)
        .unwrap()
        .records()
        .map(|record| {
            let record = record.unwrap();
            let number = |range: Range<usize>| -> i64 { record[0][range].parse().unwrap() };
            assert!(record[0].starts_with("2001-0"), "the days of other years are not known here");
            let days = [0, 31, 59][number(5..7) as usize - 1] + number(8..10) - 1;
            Row {
                scheduled: days * 1440 + number(11..13) * 60 + number(14..16),
                delay_min: record[1].parse().unwrap(),
                day: record[0][..10].to_owned(),
                origin: record[3].to_owned(),
                route: format!("{}-{}", &record[3], &record[4]),
            }
        })
        .collect();
    rows.sort_by_key(|row| row.scheduled + row.delay_min);

    let (mut routes, mut airports) = (BTreeMap::<String, Naive>::new(), BTreeMap::<String, Naive>::new());
    let (mut newest, mut late, mut days) = (i64::MIN / 2, Vec::new(), BTreeSet::new());
    for (position, row) in rows.iter().enumerate() {
        airports.entry(row.origin.clone()).or_default().add(row.delay_min, &row.day);
        let end_of_day = (row.scheduled / 1440 + 1) * 1440;
        if newest - allowed_lateness_min >= end_of_day {
            late.push(position);
        } else {
            routes.entry(row.route.clone()).or_default().add(row.delay_min, &row.day);
            days.insert(&row.day);
        }
        newest = newest.max(row.scheduled);
    }

    let mut csv = String::from("of,name,flights,delayed,total_min,worst_min,days,worst_day\n");
    for (route, Naive { flights, delayed, total_min, worst, days }) in routes {
        let (worst_min, worst_day) = worst.unwrap();
        let days = days.len();
        writeln!(csv, "route,{route},{flights},{delayed},{total_min},{worst_min},{days},{worst_day}").unwrap();
    }
    for (airport, Naive { flights, delayed, total_min, worst, .. }) in airports {
        let (worst_min, _) = worst.unwrap();
        writeln!(csv, "airport,{airport},{flights},{delayed},{total_min},{worst_min},,").unwrap();
    }
    writeln!(csv, "all,events,{},,,,{},", rows.len(), days.len()).unwrap();
    writeln!(csv, "all,late,{},,,,,", late.len()).unwrap();
    (csv, late)
}

/// The results of a run that nothing happens to.
fn expected() -> &'static str {
    static EXPECTED: OnceLock<String> = OnceLock::new();
    EXPECTED.get_or_init(|| naive_results(ALLOWED_LATENESS_MIN).0)
}

/// Compares without printing two files of some thousand lines.
#[track_caller]
fn assert_same(found: &str, expected: &str) {
    let differing = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
    assert_eq!(differing, None);
    assert_eq!(found.len(), expected.len());
}

#[test]
fn results_are_those_of_a_computation_without_a_store() {
    for (allowed_lateness, late) in [("0", 40), ("60", 8), ("1440", 0)] {
        let (expected, expected_late) = naive_results(allowed_lateness.parse().unwrap());
        assert_eq!(expected_late.len(), late);
        assert_same(&Job::new(&["--allowed-lateness", allowed_lateness]).complete(&[]).0, &expected);
    }
}

#[test]
fn results_do_not_depend_on_barriers() {
    for every in ["1", "777", "1000000"] {
        // A checkpoint at every second event would be a long wait.
        assert_same(&Job::new(&["--skip-when-busy", "--barrier-every", every]).complete(&[]).0, expected());
    }
}

#[test]
fn a_crash_changes_nothing() {
    // As the loop waits for the writer, the checkpoint before the last one taken is on disk for certain, the last one
    // perhaps.
    for (crash_after, resumed) in [
        ("500", None),
        ("2000", None),
        ("4000", Some(2000)),
        ("4001", Some(2000)),
        ("11111", Some(8000)),
        ("12000", Some(10_000)),
        ("20000", Some(18_000)),
    ] {
        let job = Job::new(&[]);
        job.crash(&["--crash-after", crash_after]);
        let (results, said) = job.complete(&["--resume"]);
        let at = resumed_at(&said);
        assert!(at == resumed || at == Some(resumed.unwrap_or(0) + 2000), "after {crash_after} events: {said}");
        assert_eq!(at.is_none(), said.contains("there is no checkpoint"), "{said}");
        assert_same(&results, expected());
    }
}

#[test]
fn crash_after_crash_changes_nothing() {
    let job = Job::new(&["--barrier-every", "500"]);
    job.crash(&["--crash-after", "7000"]);
    job.crash(&["--crash-after", "5000", "--resume"]);
    job.crash(&["--crash-after", "300", "--resume"]);
    let (results, said) = job.complete(&["--resume"]);
    assert!(resumed_at(&said).is_some_and(|at| at >= 9000), "{said}");
    assert_same(&results, expected());
}

#[test]
fn a_crash_while_checkpoints_are_skipped_changes_nothing() {
    let job = Job::new(&["--skip-when-busy", "--barrier-every", "10", "--checkpoint-every", "1"]);
    job.crash(&["--crash-after", "15000"]);
    assert_same(&job.complete(&["--resume"]).0, expected());
}

#[test]
fn a_checkpoint_waits_for_the_one_before_it() {
    let output = Job::new(&["--barrier-every", "100"]).run(&[]);
    let report = stdout(&output);
    assert_eq!((checkpoints_written(&report), number_of(" skipped", &report)), (100, 0), "{report}");
    assert!(times_of("wait for the writer", &report).starts_with(|first: char| first.is_ascii_digit()), "{report}");
    assert!(report.contains(" of it waiting for the writer"), "{report}");
}

#[test]
fn a_checkpoint_is_skipped_when_the_writer_is_busy() {
    let output = Job::new(&["--skip-when-busy", "--barrier-every", "1"]).run(&[]);
    let report = stdout(&output);
    // Under load there may be time for a single one.
    let (written, skipped) = (checkpoints_written(&report), number_of(" skipped", &report));
    assert_eq!(written + skipped, 10_000, "{report}");
    // Nobody writes a durable file in the time of two events, least of all ten thousand times.
    assert!(written > 0 && skipped > 0, "{report}");
    let times = times_of("wait for the writer", &report);
    assert!(times.split_whitespace().eq(["-", "-"]), "{report}");
    assert!(!report.contains("waiting for the writer"), "{report}");
}

#[test]
fn a_crash_that_does_not_come_is_mentioned() {
    let job = Job::new(&[]);
    let (results, said) = job.complete(&["--crash-after", "20001"]);
    assert_eq!(said, "did not crash: this run ended after 20,000 events, before the 20,001 asked for\n");
    assert_same(&results, expected());

    let (_, said) = job.complete(&["--crash-after", "1", "--resume"]);
    assert!(said.ends_with("did not crash: this run ended after 0 events, before the 1 asked for\n"), "{said}");
}

#[test]
fn reports_are_narrow_and_in_plain_english() {
    let report = stdout(&Job::new(&[]).run(&[]));
    assert!(report.lines().all(|line| line.chars().count() <= 95), "{report}");
    assert!(report.contains(" 8 dropped as late, 90 days closed"), "{report}");

    let job = Job::new(&[]);
    let input = job.dir.path().join("input.csv");
    let mut rows = "departure,delay_min,origin,destination\n".to_owned();
    for (row, summary) in [
        ("", " 0 events: 0 dropped as late, 0 days closed"),
        ("2001-01-01 00:47,66,DTW,LAS\n", " 1 event from 2001-01-01 to 2001-01-01: 0 dropped as late, 1 day closed"),
    ] {
        rows.push_str(row);
        fs::write(&input, &rows).unwrap();
        let report =
            stdout(&job.run(&["--barrier-every", "1", "--checkpoint-every", "1", "--input", input.to_str().unwrap()]));
        assert!(report.lines().any(|line| line == summary), "{report}");
        assert_eq!(report.contains(" 1 checkpoint written, "), !row.is_empty(), "{report}");
    }
}

#[test]
fn a_finished_job_resumes_to_the_same_results() {
    let job = Job::new(&[]);
    job.complete(&[]);
    let (results, said) = job.complete(&["--resume"]);
    assert_eq!(resumed_at(&said), Some(20_000));
    assert_same(&results, expected());
}

#[test]
fn a_resumed_job_knows_which_events_are_late() {
    let (expected, late) = naive_results(ALLOWED_LATENESS_MIN);
    let last_late = late[late.len() - 1];
    assert!(
        last_late > 10_000,
        "two barriers fit before the end, so the checkpoint to resume from is not the one meant"
    );
    // The only checkpoint is right before a late event, which is late only by a watermark from before the checkpoint.
    let job = Job::new(&[]);
    job.complete(&["--checkpoint-every", "1", "--barrier-every", &last_late.to_string()]);
    let (results, said) = job.complete(&["--resume"]);
    assert_eq!(resumed_at(&said), Some(last_late as u64), "{said}");
    assert_same(&results, &expected);
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let damages: [fn(&mut Vec<u8>); 6] = [
        |bytes| bytes[0] ^= 1,
        |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x80;
        },
        // The position in the stream, or what is next to it: a valid archive but for the checksum.
        |bytes| {
            let near_the_end = bytes.len() - 40;
            bytes[near_the_end] ^= 1;
        },
        |bytes| *bytes.last_mut().unwrap() ^= 1,
        |bytes| bytes.truncate(bytes.len() - 1),
        Vec::clear,
    ];
    let job = Job::new(&["--compact-every", "1"]);
    for damage in damages {
        job.complete(&[]);
        let checkpoints = job.checkpoints();
        assert_eq!(checkpoints.len(), 3);
        let mut bytes = fs::read(&checkpoints[2]).unwrap();
        damage(&mut bytes);
        fs::write(&checkpoints[2], bytes).unwrap();

        let (results, said) = job.complete(&["--resume"]);
        assert!(said.contains("skipped a damaged checkpoint"), "{said}");
        assert_eq!(resumed_at(&said), Some(18_000), "{said}");
        assert_same(&results, expected());
    }

    for checkpoint in job.checkpoints() {
        fs::write(checkpoint, "damaged").unwrap();
    }
    let (results, said) = job.complete(&["--resume"]);
    assert_eq!(said.matches("skipped a damaged checkpoint").count(), 3, "{said}");
    assert_eq!(resumed_at(&said), None);
    assert_same(&results, expected());
}

/// Arguments under which there are chains of three, and twelve checkpoints and more in all.
const CHAINS_OF_THREE: [&str; 4] = ["--barrier-every", "800", "--compact-every", "3"];

#[test]
fn results_do_not_depend_on_the_number_of_workers() {
    for store in ["hot", "memory"] {
        for workers in ["1", "2", "3", "8", "128"] {
            let (results, said) = Job::new(&["--store", store, "--workers", workers]).complete(&[]);
            assert_same(&results, expected());
            assert_eq!(said, "");
        }
    }
    for workers in ["0", "129", "two"] {
        let output = Job::new(&[]).run(&["--workers", workers]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("--workers"), "{}", stderr(&output));
    }
}

#[test]
fn a_resume_with_another_number_of_workers_changes_nothing() {
    for store in ["hot", "memory"] {
        for (before, after) in [("1", "2"), ("2", "1"), ("2", "3"), ("3", "2"), ("4", "7"), ("7", "4"), ("5", "128")] {
            let job = Job::new(&["--store", store]);
            job.crash(&["--workers", before, "--crash-after", "12345"]);
            let (results, said) = job.complete(&["--workers", after, "--resume"]);
            assert!(resumed_at(&said).is_some_and(|at| at >= 10_000), "{said}");
            assert_same(&results, expected());
        }
    }
    // And again and again, from one store to the other.
    let job = Job::new(&["--barrier-every", "300"]);
    job.crash(&["--workers", "3", "--crash-after", "5000"]);
    job.crash(&["--workers", "8", "--crash-after", "5000", "--resume", "--store", "memory"]);
    job.crash(&["--workers", "1", "--crash-after", "5000", "--resume"]);
    let (results, said) = job.complete(&["--workers", "2", "--resume", "--store", "memory"]);
    assert!(resumed_at(&said).is_some_and(|at| at >= 9000), "{said}");
    assert_same(&results, expected());
}

#[test]
fn a_crash_at_any_step_of_a_checkpoint_changes_nothing() {
    // The eleventh is a delta; the tenth begins the fourth chain, for which the first goes. What is not on disk by then
    // cannot be resumed from, and the rest has to be.
    for (checkpoint, step, position) in [
        ("1", "half-written", None),
        ("1", "written", None),
        ("1", "renamed", Some(1600)),
        ("1", "durable", Some(1600)),
        ("2", "half-written", Some(1600)),
        ("2", "written", Some(1600)),
        ("2", "renamed", Some(3200)),
        ("2", "durable", Some(3200)),
        ("4", "written", Some(4800)),
        ("4", "renamed", Some(6400)),
        ("10", "half-written", Some(14_400)),
        ("10", "written", Some(14_400)),
        ("10", "renamed", Some(16_000)),
        ("10", "durable", Some(16_000)),
        ("10", "removing", Some(16_000)),
        ("11", "written", Some(16_000)),
        ("11", "renamed", Some(17_600)),
    ] {
        for (before, after) in [("1", "1"), ("2", "3")] {
            let job = Job::new(&CHAINS_OF_THREE);
            let said = job.crash(&["--workers", before, "--crash-in", &format!("{checkpoint}:{step}")]);
            assert_eq!(
                said,
                format!("crashing in checkpoint {checkpoint} of this run at {step}, as asked; go on with --resume\n")
            );
            let unfinished = job.files().iter().filter(|name| name.ends_with(".tmp")).count();
            assert_eq!(unfinished, usize::from(matches!(step, "half-written" | "written")), "{:?}", job.files());

            let (results, said) = job.complete(&["--workers", after, "--resume"]);
            assert_eq!(resumed_at(&said), position, "{checkpoint}:{step}: {said}");
            assert!(!said.contains("skipped"), "{said}");
            assert_same(&results, expected());
            assert!(job.files().iter().all(|name| !name.ends_with(".tmp")), "{:?}", job.files());
        }
    }
}

#[test]
fn a_crash_at_any_event_changes_nothing() {
    let mut random = StdRng::seed_from_u64(7);
    for _ in 0..24 {
        let job = Job::new(&[]);
        let mut more: Vec<String> = Vec::new();
        for resume in [None, Some("--resume")] {
            more = vec![
                format!("--workers={}", random.random_range(1..6)),
                format!("--store={}", if random.random() { "hot" } else { "memory" }),
                format!("--barrier-every={}", random.random_range(80..700)),
                format!("--compact-every={}", random.random_range(1..9)),
            ];
            more.extend(random.random::<bool>().then(|| "--skip-when-busy".into()));
            more.extend(resume.map(String::from));
            let crash_after = format!("--crash-after={}", random.random_range(1..9000));
            job.crash(&more.iter().chain([&crash_after]).map(String::as_str).collect::<Vec<_>>());
        }
        let (results, said) = job.complete(&more.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(!said.contains("skipped"), "{said}");
        assert_same(&results, expected());
    }
}

#[test]
fn a_kill_at_any_moment_changes_nothing() {
    // Whenever that is: each time some more gets done, or at least nothing is lost.
    let job = Job::new(&["--barrier-every", "40", "--compact-every", "6"]);
    let mut reached = 0;
    for (delay_ms, workers) in (5..).step_by(7).zip(["1", "2", "3"].into_iter().cycle()).take(24) {
        let mut command = job.command(&["--workers", workers, "--resume"]);
        let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        thread::sleep(Duration::from_millis(delay_ms));
        process.kill().unwrap();
        let said = stderr(&process.wait_with_output().unwrap());
        assert!(!said.contains("skipped"), "{said}");
        if let Some(at) = resumed_at(&said) {
            assert!(at >= reached, "{at} after {reached}");
            reached = at;
        }
    }
    let (results, said) = job.complete(&["--resume"]);
    assert!(resumed_at(&said).unwrap_or(0) >= reached, "{said}");
    assert_same(&results, expected());
}

#[test]
fn chains_are_removed_when_newer_ones_are_on_disk() {
    let chain = |first: u32| {
        [(0, "checkpoint"), (1, "delta"), (2, "delta")]
            .map(|(at, suffix)| format!("flights-{:08}.{suffix}", first + at))
    };
    let job = Job::new(&CHAINS_OF_THREE);
    job.crash(&["--crash-in", "9:durable"]);
    assert_eq!(job.files(), [chain(0), chain(3), chain(6)].concat());
    // A fourth begins, and the first is still whole.
    job.crash(&["--crash-in", "10:durable"]);
    assert_eq!(job.files()[..9], [chain(0), chain(3), chain(6)].concat());
    assert_eq!(job.files()[9..], ["flights-00000009.checkpoint"]);
    // A crash in the middle of the removal leaves no delta without what it builds on.
    job.crash(&["--crash-in", "10:removing"]);
    assert_eq!(job.files()[..2], chain(0)[..2]);
    assert_eq!(job.files()[2..9], [&chain(3)[..], &chain(6), &["flights-00000009.checkpoint".into()]].concat());
    // A run that resumes begins a chain of its own, and removes what another left.
    let (_, said) = job.complete(&["--resume"]);
    assert!(said.ends_with("flights-00000009.checkpoint\n"), "{said}");
    let names = ["06.checkpoint", "07.delta", "08.delta", "09.checkpoint", "10.checkpoint", "11.delta"];
    assert_eq!(job.files(), names.map(|name| format!("flights-000000{name}")));
}

#[test]
fn a_chain_holds_what_a_full_image_does() {
    // The same twelve checkpoints, as four chains and each in full: from the same place on, a resumed run is the same.
    for workers in ["1", "3"] {
        for crash_in in ["8:durable", "9:durable"] {
            let reached: Vec<_> = ["1", "2", "3", "100"]
                .map(|compact_every| {
                    let job = Job::new(&["--barrier-every", "800", "--workers", workers]);
                    job.crash(&["--compact-every", compact_every, "--crash-in", crash_in]);
                    let (results, said) = job.complete(&["--resume"]);
                    assert_same(&results, expected());
                    resumed_at(&said)
                })
                .into();
            assert!(reached[0].is_some() && reached.iter().all(|at| *at == reached[0]), "{reached:?}");
        }
    }
}

#[test]
fn a_delta_is_smaller_than_what_it_is_applied_to() {
    // Few events from one checkpoint to the next, so that little changes.
    let report = stdout(&Job::new(&["--barrier-every", "50"]).run(&[]));
    let sizes = ["in full: ", "of what changed: "].map(|kind| {
        let line = report.split_once(kind).unwrap().1;
        number_of(" bytes on average", line)
    });
    assert!(sizes[1] > 0 && sizes[1] * 5 < sizes[0], "{sizes:?}: {report}");
    let counts = [number_of(" in full: ", &report), number_of(" of what changed: ", &report)];
    assert_eq!(counts, [50, 150], "{report}");
}

#[test]
fn skipped_checkpoints_leave_no_gap_in_a_chain() {
    // Deltas are taken against what is on disk, not against the barrier before.
    for workers in ["1", "3"] {
        let job =
            Job::new(&["--skip-when-busy", "--barrier-every", "1", "--compact-every", "1000", "--workers", workers]);
        job.crash(&["--crash-after", "19000"]);
        let (results, said) = job.complete(&["--resume"]);
        assert!(!said.contains("skipped"), "{said}");
        assert_same(&results, expected());
    }
}

#[test]
fn a_failed_checkpoint_leaves_the_one_before_it() {
    // The fourth begins a chain, the third is a delta. What is written next must build on the last one that
    // was acknowledged.
    for (failing, next) in [("3", "4"), ("4", "5")] {
        for step in ["half-written", "written", "renamed", "durable"] {
            let job = Job::new(&CHAINS_OF_THREE);
            let output = job.run(&["--fail-in", &format!("{failing}:{step}"), "--workers", "2"]);
            let (report, said) = (stdout(&output), stderr(&output));
            assert!(said.starts_with("a checkpoint failed, the one before it still counts: "), "{said}");
            assert!(said.contains(&format!("fails at {step}, as asked")), "{said}");
            assert_eq!((checkpoints_written(&report), number_of(" failed", &report)), (11, 1), "{report}");

            for crash_in in [next, "7"] {
                let fail_in = format!("{failing}:{step}");
                job.crash_afresh(&["--fail-in", &fail_in, "--crash-in", &format!("{crash_in}:durable")]);
                let (results, said) = job.complete(&["--resume"]);
                assert!(!said.contains("skipped"), "{said}");
                assert_eq!(resumed_at(&said), Some(crash_in.parse::<u64>().unwrap() * 1600), "{said}");
                assert_same(&results, expected());
            }
        }
    }
    // That old files stay is no failure.
    let job = Job::new(&CHAINS_OF_THREE);
    let output = job.run(&["--fail-in", "10:removing"]);
    assert!(stderr(&output).starts_with("a checkpoint is written, but old ones remain: "), "{}", stderr(&output));
    assert!(!stdout(&output).contains(" failed"), "{}", stdout(&output));
    assert_eq!(checkpoints_written(&stdout(&output)), 12);
    let (results, _) = job.complete(&["--resume"]);
    assert_same(&results, expected());
    // One that always fails.
    let job = Job::new(&CHAINS_OF_THREE);
    fs::create_dir_all(job.checkpoint_dir().join("flights-00000001.delta/in-the-way")).unwrap();
    let output = job.run(&[]);
    assert_eq!(number_of(" failed", &stdout(&output)), 11, "{}", stdout(&output));
    let (results, said) = job.complete(&["--resume"]);
    assert_eq!(resumed_at(&said), Some(1600), "{said}");
    assert_same(&results, expected());
}

#[test]
fn a_damaged_delta_is_passed_over_with_all_that_builds_on_it() {
    let damages: [(fn(&mut Vec<u8>), &str); 4] = [
        (|bytes| bytes[100] ^= 1, "its checksum is wrong: found 0x"),
        (|bytes| *bytes.last_mut().unwrap() ^= 1, "its checksum is wrong: found 0x"),
        (|bytes| bytes.truncate(bytes.len() / 2), "its checksum is wrong: found 0x"),
        (Vec::clear, "it has 0 bytes, expected at least 8; it was cut short, use another copy"),
    ];
    // Chains of 0 to 4, 5 to 9.
    let job = Job::new(&["--compact-every", "5"]);
    for (damage, problem) in damages {
        for (workers, damaged, position) in [("1", 9, 18_000), ("3", 7, 14_000), ("2", 6, 12_000)] {
            job.complete(&["--workers", workers]);
            let name = format!("flights-{damaged:08}.delta");
            job.change_file(&name, damage);
            let (results, said) = job.complete(&["--resume"]);
            assert!(said.contains(&format!("{name}: {problem}")), "{said}");
            let rest = 9 - damaged;
            let mentioned = format!("skipped {rest} {} that build on it", if rest == 1 { "delta" } else { "deltas" });
            assert_eq!(said.contains(&mentioned), rest > 0, "{said}");
            assert_eq!(resumed_at(&said), Some(position), "{said}");
            assert_same(&results, expected());
        }
    }
    // Without its image a chain is worth nothing, and the chain before counts.
    job.complete(&[]);
    job.change_file("flights-00000005.checkpoint", |bytes| bytes[100] ^= 1);
    let (results, said) = job.complete(&["--resume"]);
    assert!(said.contains("flights-00000005.checkpoint: its checksum is wrong"), "{said}");
    assert!(said.contains("skipped 4 deltas that build on it"), "{said}");
    assert_eq!(resumed_at(&said), Some(10_000), "{said}");
    assert_same(&results, expected());
}

#[test]
fn a_missing_link_ends_a_chain() {
    let job = Job::new(&["--compact-every", "5", "--workers", "2"]);
    for (missing, at, said_of, position) in [
        ("flights-00000007.delta", "flights-00000008.delta", "flights-00000007.delta", Some(14_000)),
        ("flights-00000006.delta", "flights-00000007.delta", "flights-00000006.delta", Some(12_000)),
        // What follows chain 0 to 4 then is 6, which does not follow 4.
        ("flights-00000005.checkpoint", "flights-00000006.delta", "flights-00000005.checkpoint", Some(10_000)),
        ("flights-00000009.delta", "", "", Some(18_000)),
    ] {
        job.complete(&[]);
        fs::remove_file(job.checkpoint_dir().join(missing)).unwrap();
        let (results, said) = job.complete(&["--resume"]);
        assert_eq!(said.contains("it builds on "), !at.is_empty(), "{said}");
        if !at.is_empty() {
            let (_, problem) = said.split_once(&format!("{at}: it builds on ")).expect(&said);
            assert!(problem.lines().next().unwrap().contains(said_of), "{said}");
        }
        assert_eq!(resumed_at(&said), position, "{said}");
        assert_same(&results, expected());
    }
    // All that is left is deltas.
    job.complete(&[]);
    for image in job.checkpoints() {
        fs::remove_file(image).unwrap();
    }
    let (results, said) = job.complete(&["--resume"]);
    assert!(said.contains("flights-00000001.delta: it builds on flights-00000000.checkpoint"), "{said}");
    assert_eq!(resumed_at(&said), None);
    assert_same(&results, expected());
}

#[test]
fn a_delta_on_a_wrong_base_is_an_error() {
    let job = Job::new(&["--compact-every", "5"]);
    // Another delta of the same chain, sound in itself, under the name of the one that belongs there.
    job.complete(&[]);
    let dir = job.checkpoint_dir();
    fs::copy(dir.join("flights-00000008.delta"), dir.join("flights-00000007.delta")).unwrap();
    let (results, said) = job.complete(&["--resume"]);
    let (_, problem) = said.split_once("flights-00000007.delta: ").expect(&said);
    assert!(problem.starts_with("it does not fit the checkpoint before it, at \"airports\" of worker 0: "), "{said}");
    assert!(problem.contains("the contents have fingerprint "), "{said}");
    assert_eq!(resumed_at(&said), Some(14_000), "{said}");
    assert_same(&results, expected());

    // One of a run with another number of workers.
    job.complete(&["--workers", "2"]);
    let other = fs::read(dir.join("flights-00000007.delta")).unwrap();
    job.complete(&["--workers", "3"]);
    job.change_file("flights-00000007.delta", |bytes| *bytes = other);
    let (results, said) = job.complete(&["--resume"]);
    assert!(said.contains("flights-00000007.delta: it has the state of 2 workers, expected 3"), "{said}");
    assert_same(&results, expected());

    // Files under names of the other kind.
    for (from, to, problem) in [
        ("flights-00000006.delta", "flights-00000005.checkpoint", "it is a delta, expected a full image by its name"),
        ("flights-00000005.checkpoint", "flights-00000006.delta", "it is a full image, expected a delta by its name"),
    ] {
        job.complete(&[]);
        fs::copy(dir.join(from), dir.join(to)).unwrap();
        let (results, said) = job.complete(&["--resume"]);
        assert!(said.contains(&format!("{to}: {problem}")), "{said}");
        assert_same(&results, expected());
    }
}

#[test]
fn a_fresh_run_removes_the_checkpoints_of_earlier_ones_and_nothing_else() {
    let job = Job::new(&["--checkpoint-every", "20"]);
    fs::create_dir(job.checkpoint_dir()).unwrap();
    for name in ["flights-00000007.checkpoint", "flights-00000008.checkpoint.tmp", "flights-7.checkpoint", "notes.txt"]
    {
        fs::write(job.checkpoint_dir().join(name), "").unwrap();
    }
    job.complete(&[]);
    let names: BTreeSet<_> = fs::read_dir(job.checkpoint_dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let expected = ["flights-00000000.checkpoint", "flights-7.checkpoint", "notes.txt"];
    assert_eq!(names, expected.map(String::from).into());
}

#[test]
fn a_checkpoint_of_another_job_is_refused() {
    let job = Job::new(&[]);
    job.complete(&[]);
    let said = job.fail(&["--resume", "--allowed-lateness", "61"]);
    assert!(said.contains("another --input or --allowed-lateness"), "{said}");
}

#[test]
fn mistakes_are_explained() {
    let job = Job::new(&[]);
    let header = "departure,delay_min,distance_mi,origin,destination\n2001-01-01 00:47,66,1750,DTW,LAS\n";
    for (row, explanation) in [
        ("2001-01-01 01:10,early,2399,HNL,SFO", "line 3: delay_min is \"early\""),
        (
            "2001-01-01 01:10,9999999999,2399,HNL,SFO",
            "line 3: delay_min is \"9999999999\", expected whole minutes, at most 10,080 (a week)",
        ),
        ("2001-02-29 01:10,95,2399,HNL,SFO", "line 3: departure is \"2001-02-29 01:10\""),
        ("2001-01-01,95,2399,HNL,SFO", "line 3: departure is \"2001-01-01\""),
        ("2001-01-01 01:10,95,2399,Honolulu,SFO", "line 3: the airport is \"Honolulu\""),
        ("2001-01-01 01:10,95,2399,HNL", "line: 3"),
    ] {
        let input = job.dir.path().join("input.csv");
        fs::write(&input, format!("{header}{row}\n")).unwrap();
        let said = job.fail(&["--input", input.to_str().unwrap()]);
        assert!(said.contains(explanation), "{said}");
    }

    let input = job.dir.path().join("input.csv");
    fs::write(&input, "when,where\n").unwrap();
    assert!(job.fail(&["--input", input.to_str().unwrap()]).contains("no column \"departure\""));
    assert!(job.fail(&["--input", "/no/such/file.csv"]).contains("cannot read /no/such/file.csv"));

    let job = Job::new(&[]);
    fs::write(job.checkpoint_dir(), "a file where a directory should be").unwrap();
    let said = job.fail(&[]);
    assert!(said.contains("cannot create the checkpoint directory"), "{said}");
    assert!(said.ends_with("; choose another with --checkpoint-dir\n"), "{said}");
}
