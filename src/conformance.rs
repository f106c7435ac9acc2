//! The conformance kit: checks that any implementation of [`StateStore`] can run against itself.
//!
//! Call [`check`] in a test with a function that makes an empty store. It runs two kinds of programs, a program being a
//! sequence of calls: fixed ones for every edge of the contract, then random ones over keys and values chosen to cause
//! trouble. Every call goes to the store and to a `BTreeMap`, and the answers must agree. Handles, scans and snapshots
//! are kept while the store changes under them and must not change; snapshots are also read by other threads and after
//! the store is gone.
//!
//! ```
//! use opstate::{InMemoryStore, StateStore, conformance};
//!
//! // In your crate, a test:
//! conformance::check(InMemoryStore::new);
//!
//! // Trait objects are stores as well.
//! conformance::check(|| Box::new(InMemoryStore::new()) as Box<dyn StateStore>);
//! ```
//!
//! Depend on `opstate` with the feature `conformance` under `[dev-dependencies]`, so that only tests carry the kit.
//!
//! # Reading a report
//!
//! A [`Violation`] names the [`Rule`] that is broken, what was found and what was expected, and ends in Rust code that
//! shows it: what is left of a program after dropping calls and shortening values while the same rule stayed broken. A
//! store that panics breaks a rule too; the panic is caught, but the standard message of it appears at every attempt.
//!
//! ```text
//! the store breaks the rule Counts: `len`, `is_empty` and `size_bytes` are exact after every call
//!    found: store.size_bytes() is 1
//! expected: 0
//! Shown by this code, which is what is left of a fixed program of 127 calls:
//!
//!     use opstate::StateStore;
//!
//!     let mut store = make();
//!     store.put(b"", b"1").unwrap();
//!     store.put(b"", b"").unwrap();
//!     assert_eq!(store.size_bytes(), 0);
//! ```
//!
//! # What is not checked
//!
//! Costs, a store that never returns, one that ends the process (a recursion over a key of 65,535 bytes that overflows the
//! stack, say: there will be no report), errors of the store's own medium, and [`StateError::ValueTooLong`], for which a
//! test would need a value of 4 GiB.
//!
//! [`StateError::ValueTooLong`]: crate::StateError::ValueTooLong

mod edges;
mod literal;
mod op;
mod random;
mod rule;
mod run;
mod shrink;
mod snapshots;

use std::error::Error;
use std::fmt;

use crate::StateStore;

pub use rule::Rule;

/// Makes one empty store of the kind under test.
type Make<'a> = &'a dyn Fn() -> Box<dyn StateStore>;

/// Checks the stores that `make` makes against the contract of [`StateStore`], with the default [`Conformance`].
///
/// Takes one to two seconds in an unoptimized build for a store on a `BTreeMap`.
///
/// # Panics
///
/// If the store breaks a rule, with the [`Violation`] as the message.
///
/// ```
/// opstate::conformance::check(opstate::InMemoryStore::new);
/// ```
pub fn check<S: StateStore + 'static>(make: impl Fn() -> S) {
    Conformance::new().check(make);
}

/// As [`check`], without the panic.
///
/// # Errors
///
/// The first violation found.
///
/// ```
/// assert!(opstate::conformance::try_check(opstate::InMemoryStore::new).is_ok());
/// ```
pub fn try_check<S: StateStore + 'static>(make: impl Fn() -> S) -> Result<(), Violation> {
    Conformance::new().try_check(make)
}

/// The kit with its settings. The default is what [`check`] runs: the same programs every time.
///
/// ```
/// use opstate::{InMemoryStore, conformance::Conformance};
///
/// // Another set of random programs, fewer and longer.
/// Conformance::new().seed(2024).cases(4).calls(1_000).check(InMemoryStore::new);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Conformance {
    seed: u64,
    cases: usize,
    calls: usize,
}

impl Default for Conformance {
    fn default() -> Self {
        Self { seed: 0, cases: 48, calls: 200 }
    }
}

impl Conformance {
    /// Returns the default settings: seed 0, 48 random programs of 200 calls.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the seed of the first random program; every further one has the next seed.
    ///
    /// To repeat the random program of a [`Violation`], set its [seed](Violation::seed) and one [case](Self::cases).
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets the number of random programs. With 0 only the fixed ones run.
    pub fn cases(mut self, cases: usize) -> Self {
        self.cases = cases;
        self
    }

    /// Sets the number of calls in each random program.
    pub fn calls(mut self, calls: usize) -> Self {
        self.calls = calls;
        self
    }

    /// Checks the stores that `make` makes.
    ///
    /// # Panics
    ///
    /// If the store breaks a rule, with the [`Violation`] as the message.
    pub fn check<S: StateStore + 'static>(&self, make: impl Fn() -> S) {
        if let Err(violation) = self.try_check(make) {
            panic!("{violation}");
        }
    }

    /// Checks the stores that `make` makes.
    ///
    /// # Errors
    ///
    /// The first violation found.
    pub fn try_check<S: StateStore + 'static>(&self, make: impl Fn() -> S) -> Result<(), Violation> {
        let make: Make<'_> = &|| Box::new(make());
        for program in edges::programs() {
            self.try_program(make, program, None)?;
        }
        for case in 0..self.cases {
            let seed = self.seed.wrapping_add(case as u64);
            self.try_program(make, random::program(seed, self.calls), Some(seed))?;
        }
        Ok(())
    }

    fn try_program(&self, make: Make<'_>, program: Vec<op::Op>, seed: Option<u64>) -> Result<(), Violation> {
        let Err(stop) = run::run(make, &program) else { return Ok(()) };
        let calls = program.len();
        let (program, stop) = shrink::shrink(make, program, stop);
        let run::Failure { rule, assertion, found, expected } = stop.failure;
        let origin = match seed {
            Some(seed) => format!("a random program of {calls} calls, `Conformance::new().seed({seed}).cases(1)`"),
            None => format!("a fixed program of {calls} calls"),
        };
        Err(Violation { rule, found, expected, seed, origin, program: op::source(&program, &assertion) })
    }
}

/// A rule that a store breaks, with the proof. [`Display`](fmt::Display) prints the whole report.
#[derive(Clone, Debug)]
pub struct Violation {
    rule: Rule,
    found: String,
    expected: String,
    seed: Option<u64>,
    origin: String,
    program: String,
}

impl Violation {
    /// Returns the rule that is broken.
    pub fn rule(&self) -> Rule {
        self.rule
    }

    /// Returns what the store did.
    pub fn found(&self) -> &str {
        &self.found
    }

    /// Returns what it should have done.
    pub fn expected(&self) -> &str {
        &self.expected
    }

    /// Returns the seed of the random program that showed it, or `None` if a fixed one did.
    pub fn seed(&self) -> Option<u64> {
        self.seed
    }

    /// Returns Rust code that shows it, once `make` is defined as the function that was given to the kit.
    pub fn program(&self) -> &str {
        &self.program
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, found, expected, origin, program, .. } = self;
        writeln!(f, "the store breaks the rule {rule:?}: {rule}")?;
        writeln!(f, "   found: {found}")?;
        writeln!(f, "expected: {expected}")?;
        writeln!(f, "Shown by this code, which is what is left of {origin}:")?;
        writeln!(f)?;
        program.lines().try_for_each(|line| if line.is_empty() { writeln!(f) } else { writeln!(f, "    {line}") })
    }
}

impl Error for Violation {}
