//! Chains of checkpoints and numbers of workers: crashes, failures and damage in the middle of them.

use std::fs;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::support::flights::*;

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
    // Twelve checkpoints, once as four chains and once in full. Runs resumed at the same event must be equal.
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
        // The file after checkpoints 0 to 4 is then number 6, which does not follow 4.
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
