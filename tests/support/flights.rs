//! Jobs of the example `flights` as processes, and the same results computed without a store.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use tempfile::TempDir;

use super::examples;

pub(crate) const INPUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/flights-20k.csv");

/// The lateness that the example allows by default.
pub(crate) const ALLOWED_LATENESS_MIN: i64 = 60;

/// Returns the path of the example, built like this test.
pub(crate) fn example() -> &'static Path {
    static EXAMPLE: OnceLock<PathBuf> = OnceLock::new();
    EXAMPLE.get_or_init(|| examples::built("flights"))
}

/// A job with a directory of its own for checkpoints and results.
pub(crate) struct Job {
    pub(crate) dir: TempDir,
    args: Vec<&'static str>,
}

impl Job {
    pub(crate) fn new(args: &[&'static str]) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), args: args.to_vec() }
    }

    pub(crate) fn checkpoint_dir(&self) -> PathBuf {
        self.dir.path().join("checkpoints")
    }

    pub(crate) fn run(&self, more: &[&str]) -> Output {
        self.command(more).output().unwrap()
    }

    pub(crate) fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(example());
        // Core dumps go to the current directory, if they are on.
        command.current_dir(self.dir.path());
        command.arg("--checkpoint-dir").arg(self.checkpoint_dir());
        command.arg("--results").arg(self.dir.path().join("results.csv"));
        command.args(&self.args).args(more);
        command
    }

    /// Runs to the end, and returns the results and the output on stderr.
    #[track_caller]
    pub(crate) fn complete(&self, more: &[&str]) -> (String, String) {
        let output = self.run(more);
        let said = stderr(&output);
        assert!(output.status.success(), "{said}");
        (fs::read_to_string(self.dir.path().join("results.csv")).unwrap(), said)
    }

    /// Runs until the process kills itself, and returns its output on stderr.
    #[track_caller]
    pub(crate) fn crash(&self, more: &[&str]) -> String {
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

    /// Removes the results of earlier runs, and runs until the process kills itself.
    #[track_caller]
    pub(crate) fn crash_afresh(&self, more: &[&str]) -> String {
        let _ = fs::remove_file(self.dir.path().join("results.csv"));
        self.crash(more)
    }

    /// Runs into an error that a user can make, and returns its text.
    #[track_caller]
    pub(crate) fn fail(&self, more: &[&str]) -> String {
        let output = self.run(more);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.starts_with("error: ") && said.lines().count() == 1, "{said}");
        said
    }

    /// Returns the paths of the full checkpoints, oldest first.
    pub(crate) fn checkpoints(&self) -> Vec<PathBuf> {
        let mut paths: Vec<_> = self.files().iter().map(|name| self.checkpoint_dir().join(name)).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "checkpoint"));
        paths
    }

    /// Returns the names of all files with checkpoints, in ascending order.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.checkpoint_dir()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    pub(crate) fn change_file(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.checkpoint_dir().join(name);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    }
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Returns the number in front of `what` in a report, or 0 if `what` is not in it.
pub(crate) fn number_of(what: &str, report: &str) -> u64 {
    let before = report.split_once(what).and_then(|(before, _)| before.split_whitespace().next_back());
    before.map_or(0, |number| number.replace(',', "").parse().unwrap())
}

pub(crate) fn checkpoints_written(report: &str) -> u64 {
    number_of(" checkpoints written", report) + number_of(" checkpoint written", report)
}

/// Returns the median and the longest time in a row about checkpoints.
#[track_caller]
pub(crate) fn times_of(row: &str, report: &str) -> String {
    report.split_once(row).unwrap().1.lines().next().unwrap().trim().to_owned()
}

/// Returns the number of events at which a run resumed, if it reports one.
pub(crate) fn resumed_at(said: &str) -> Option<u64> {
    let (number, _) = said.split_once("resumed at event ")?.1.split_once(' ')?;
    number.replace(',', "").parse().ok()
}

#[derive(Default)]
pub(crate) struct Naive {
    flights: u32,
    delayed: u32,
    total_min: i64,
    worst: Option<(i64, String)>,
    days: BTreeSet<String>,
}

impl Naive {
    pub(crate) fn add(&mut self, delay_min: i64, day: &str) {
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
pub(crate) fn naive_results(allowed_lateness_min: i64) -> (String, Vec<usize>) {
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

/// Returns the results of an undisturbed run.
pub(crate) fn expected() -> &'static str {
    static EXPECTED: OnceLock<String> = OnceLock::new();
    EXPECTED.get_or_init(|| naive_results(ALLOWED_LATENESS_MIN).0)
}

/// Compares two files of some thousand lines, and prints only the first difference.
#[track_caller]
pub(crate) fn assert_same(found: &str, expected: &str) {
    let differing = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
    assert_eq!(differing, None);
    assert_eq!(found.len(), expected.len());
}
