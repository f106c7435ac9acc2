//! The example `flights`, run as a process, killed, resumed, and compared with a computation that knows no store.

#![cfg(not(miri))]

mod chains;
mod faults;

use std::collections::BTreeSet;
use std::fs;

use crate::support::flights::*;

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
    // The loop waits for the writer. So the last checkpoint may be on disk, and the one before it is.
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
fn a_crash_in_a_checkpoint_that_does_not_come_is_mentioned() {
    // Nothing is there to be removed yet.
    let (results, said) = Job::new(&[]).complete(&["--crash-in", "2:removing"]);
    assert_eq!(said, "did not crash: no checkpoint of this run came to what --crash-in asked for\n");
    assert_same(&results, expected());
    for (asked, explanation) in [
        ("3", "found \"3\", expected a number and a step, such as 3:renamed"),
        ("3:torn", "found the step \"torn\", expected one of half-written, written, renamed, durable, removing"),
    ] {
        let output = Job::new(&[]).run(&["--crash-in", asked]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(explanation), "{}", stderr(&output));
    }
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
