//! The conformance kit: stores that keep the contract pass it, and stores that break it are caught by the right rule.
//!
//! Miri takes hours for whole runs of the kit, and some broken stores break its rules on purpose: it skips those tests.

mod broken;
mod counting;
#[path = "../examples/custom_store.rs"]
#[allow(dead_code, unreachable_pub)]
mod custom_store;

use broken::{Broken, FAULTS, Fault};
use opstate::conformance::{Conformance, Rule, check, try_check};
use opstate::{HotStore, InMemoryStore, StateStore};

#[test]
#[cfg_attr(miri, ignore)]
fn the_reference_store_conforms() {
    check(InMemoryStore::new);
}

#[test]
#[cfg_attr(miri, ignore)]
fn trait_objects_conform() {
    check(|| Box::new(InMemoryStore::new()) as Box<dyn StateStore>);
}

#[test]
#[cfg_attr(miri, ignore)]
fn forwarded_stores_conform() {
    check(|| Box::new(Box::new(InMemoryStore::new())));
}

#[test]
#[cfg_attr(miri, ignore)]
fn a_store_of_only_the_required_methods_conforms() {
    check(custom_store::SortedVecStore::default);
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
    // Only a random program puts so many entries.
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
        match try_check(|| Broken::new(fault)) {
            Err(violation) if violation.rule() == rule => {}
            Err(violation) => wrong.push(format!("{fault:?} should break {rule:?}, but {violation}")),
            Ok(()) => wrong.push(format!("{fault:?} was not caught")),
        }
    }
    assert!(wrong.is_empty(), "{} of {} faults:\n{}", wrong.len(), FAULTS.len(), wrong.join("\n"));
}

#[test]
fn every_rule_but_get_is_broken_by_some_fault() {
    // A wrong `get` is seen right after the write before it, and then breaks the rule of that write.
    let unbroken = Rule::ALL.iter().filter(|rule| FAULTS.iter().all(|(_, broken)| broken != *rule));
    assert_eq!(unbroken.collect::<Vec<_>>(), [&Rule::Get]);
}

#[test]
#[cfg_attr(miri, ignore)]
fn the_hot_store_conforms() {
    check(HotStore::new);
}
