//! The conformance kit: correct stores pass it, and each broken store is caught by the right rule.
//!
//! Miri skips whole runs of the kit, which take hours. It also skips broken stores that violate Miri's rules on
//! purpose.

#[cfg(not(miri))]
use std::process::Command;

use opstate::conformance::{Conformance, Rule, check, try_check};
use opstate::{HotStore, InMemoryStore, StateStore};

use crate::support::broken::{Broken, FAULTS, Fault, HARMLESS};
#[cfg(not(miri))]
use crate::support::examples;

/// Checks a store with the rule that values are aligned.
fn check_aligned<S: StateStore + 'static>(make: impl Fn() -> S) {
    Conformance::new().aligned_values(true).check(make);
}

#[test]
#[cfg_attr(miri, ignore)]
fn the_reference_store_conforms() {
    check_aligned(InMemoryStore::new);
}

#[test]
#[cfg_attr(miri, ignore)]
fn the_hot_store_conforms() {
    check_aligned(HotStore::new);
}

#[test]
#[cfg_attr(miri, ignore)]
fn trait_objects_conform() {
    check_aligned(|| Box::new(InMemoryStore::new()) as Box<dyn StateStore>);
}

#[test]
#[cfg_attr(miri, ignore)]
fn forwarded_stores_conform() {
    check_aligned(|| Box::new(Box::new(InMemoryStore::new())));
}

#[test]
#[cfg(not(miri))]
fn the_example_conforms() {
    // It runs the kit itself, and panics if its store breaks a rule.
    let output = Command::new(examples::built("custom_store")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("SharedMapStore keeps the contract of StateStore.\n"), "{text}");
}

#[test]
#[cfg_attr(miri, ignore)]
fn a_report_ends_in_code_that_shows_the_violation() {
    let violation = try_check(|| Broken::new(Fault::SizeIgnoresOverwrites)).unwrap_err();
    let expected = "\
use opstate::StateStore;

let mut store = make();
store.put(b\"\", b\"1\").unwrap();
store.put(b\"\", b\"\").unwrap();
assert_eq!(store.size_bytes(), 0);";
    assert_eq!(violation.program(), expected);
    assert_eq!((violation.found(), violation.expected()), ("store.size_bytes() is 1", "0"));
    assert!(violation.to_string().ends_with("    assert_eq!(store.size_bytes(), 0);\n"), "{violation}");
}

#[test]
#[cfg_attr(miri, ignore)]
#[should_panic(expected = "the store breaks the rule Delete: ")]
fn check_panics_with_the_report() {
    check(|| Broken::new(Fault::LostDelete));
}

#[test]
#[cfg_attr(miri, ignore)]
fn a_seed_repeats_its_program() {
    // Only a random program puts this many entries.
    let make = || Broken::new(Fault::FullAt300);
    let violation = try_check(make).unwrap_err();
    let seed = violation.seed().unwrap();
    let repeated = Conformance::new().seed(seed).cases(1).try_check(make).unwrap_err();
    assert_eq!(repeated.to_string(), violation.to_string());
    assert!(Conformance::new().cases(0).try_check(make).is_ok());
}

#[test]
#[cfg_attr(miri, ignore)]
fn every_fault_is_caught_by_the_rule_it_breaks() {
    let mut wrong = Vec::new();
    for &(fault, rule) in FAULTS {
        // An alignment fault breaks no rule unless the store promises aligned values.
        let is_aligned = rule == Rule::Alignment;
        let kit = Conformance::new().aligned_values(is_aligned);
        match kit.try_check(|| Broken::new(fault)) {
            Err(violation) if violation.rule() == rule => {}
            Err(violation) => wrong.push(format!("{fault:?} should break {rule:?}, but {violation}")),
            Ok(()) => wrong.push(format!("{fault:?} was not caught")),
        }
    }
    assert!(wrong.is_empty(), "{} of {} faults:\n{}", wrong.len(), FAULTS.len(), wrong.join("\n"));
}

#[test]
#[cfg_attr(miri, ignore)]
fn a_misaligned_value_is_shown_by_its_address() {
    let kit = Conformance::new().aligned_values(true);
    let violation = kit.try_check(|| Broken::new(Fault::PackedGet)).unwrap_err();
    let assertion = "assert_eq!(store.get(b\"\").as_ref().unwrap().as_ptr().addr() % 16, 0);";
    assert!(violation.program().ends_with(assertion), "{violation}");
    assert_eq!(violation.expected(), "0");
}

#[test]
#[cfg_attr(miri, ignore)]
fn the_random_program_of_aligned_values_is_repeated_with_them() {
    let kit = Conformance::new().aligned_values(true);
    let violation = kit.try_check(|| Broken::new(Fault::FullAt300)).unwrap_err();
    let call = format!("`Conformance::new().seed({}).cases(1).aligned_values(true)`", violation.seed().unwrap());
    assert!(violation.to_string().contains(&call), "{violation}");
}

#[test]
#[cfg_attr(miri, ignore)]
fn values_may_lie_at_any_address_by_default() {
    for fault in [Fault::PackedGet, Fault::PackedEntries, Fault::KeepsHandles] {
        Conformance::new().cases(1).check(|| Broken::new(fault));
    }
}

#[test]
#[cfg_attr(miri, ignore)]
fn what_breaks_no_rule_passes() {
    for &fault in HARMLESS {
        Conformance::new().aligned_values(true).cases(4).check(|| Broken::new(fault));
    }
}

#[test]
fn every_rule_but_get_is_broken_by_some_fault() {
    // A wrong `get` is seen right after a write, and then breaks the rule of that write.
    let unbroken = Rule::ALL.iter().filter(|rule| FAULTS.iter().all(|(_, broken)| broken != *rule));
    assert_eq!(unbroken.collect::<Vec<_>>(), [&Rule::Get]);
}
