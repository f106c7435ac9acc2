//! The conformance kit: checks that any implementation of [`StateStore`] can run against itself.
//!
//! Call [`check`] in a test with a function that makes an empty store. The kit runs programs, which are sequences of
//! calls. Fixed programs cover every edge of the contract. Random programs follow, over keys and values chosen to cause
//! trouble. Every call goes to the store and to a `BTreeMap`, and the answers must agree. Scans are walked up, down and
//! from both ends in turns. Handles, scans and snapshots are kept while the store changes, and must not change
//! themselves. Snapshots are also read by other threads, and after the store is gone. Restores of damaged images must
//! fail and change nothing.
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
//! The stores of this crate keep one rule that others need not keep: values lie at aligned addresses. A store that
//! promises this as well is checked with [`Conformance::aligned_values`].
//!
//! ```
//! use opstate::{InMemoryStore, conformance::Conformance};
//!
//! Conformance::new().aligned_values(true).check(InMemoryStore::new);
//! ```
//!
//! Depend on `opstate` with the feature `conformance` under `[dev-dependencies]`, so that only tests carry the kit.
//!
//! # Reading a report
//!
//! A [`Violation`] names the broken [`Rule`], what was found and what was expected. It ends in Rust code that
//! reproduces the violation. The kit drops calls and shortens values for as long as the same rule stays broken, and
//! prints what is left. A panic of the store breaks a rule, too. It is caught, but its message is printed at every
//! attempt.
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
//! The kit does not check costs, and it does not detect a store that never returns. A store that ends the process gives
//! no report, for example if a recursion over a key of 65,535 bytes overflows the stack. Errors of the store's own
//! medium are not provoked. `memory_bytes` is an estimate and is not checked. [`StateError::ValueTooLong`] would take a
//! value of 4 GiB.
//!
//! [`StateError::ValueTooLong`]: crate::StateError::ValueTooLong

mod check;
mod edges;
mod literal;
mod op;
mod random;
mod rule;
mod run;
mod shrink;
mod snapshots;
mod values;
mod walk;

use std::error::Error;
use std::fmt;

use crate::store::StateStore;

pub use rule::Rule;
use run::Subject;
use values::Values;

/// Checks the stores that `make` makes against the contract of [`StateStore`], with the default [`Conformance`].
///
/// Takes some seconds in an unoptimized build, and about one in an optimized one, for a store on a `BTreeMap`.
///
/// # Panics
///
/// If the store breaks a rule, with the [`Violation`] as the message.
///
/// ```
/// opstate::conformance::check(opstate::InMemoryStore::new);
/// ```
#[track_caller]
pub fn check<S: StateStore + 'static>(make: impl Fn() -> S) {
    Conformance::new().check(make);
}

/// Checks the stores that `make` makes like [`check`], but returns the first violation instead of panicking.
///
/// # Errors
///
/// Returns the first violation found.
///
/// ```
/// assert!(opstate::conformance::try_check(opstate::InMemoryStore::new).is_ok());
/// ```
pub fn try_check<S: StateStore + 'static>(make: impl Fn() -> S) -> Result<(), Violation> {
    Conformance::new().try_check(make)
}

/// The conformance kit with its settings. [`check`] runs the default, which makes the same programs every time.
///
/// ```
/// use opstate::{InMemoryStore, conformance::Conformance};
///
/// // Run other random programs, fewer and longer.
/// Conformance::new().seed(2024).cases(4).calls(1_000).check(InMemoryStore::new);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Conformance {
    seed: u64,
    cases: usize,
    calls: usize,
    aligned_values: bool,
}

impl Default for Conformance {
    fn default() -> Self {
        Self { seed: 0, cases: 48, calls: 200, aligned_values: false }
    }
}

impl Conformance {
    /// Returns the default settings: seed 0, 48 random programs of 200 calls, values at any address.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the seed of the first random program. Each further program has the next seed.
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

    /// Sets whether the store promises aligned values, as the stores of this crate do. The default is `false`.
    ///
    /// Every nonempty value that the store hands out as [`Bytes`](bytes::Bytes) must then start at a multiple of
    /// [`VALUE_ALIGNMENT`](crate::VALUE_ALIGNMENT) in memory. The kit checks this for `get`, `try_get`, `get_many`,
    /// `get_or_insert`, `take`, all scans and snapshots. It does not check slices that closures borrow. The handles and
    /// images that the kit passes to the store are misaligned on purpose.
    ///
    /// Turn it on if users of your store call `rkyv::access` on its values. A store that allocates each value
    /// separately may pass only because its allocator happens to align them.
    ///
    /// ```
    /// use opstate::{HotStore, conformance::Conformance};
    ///
    /// Conformance::new().aligned_values(true).check(HotStore::new);
    /// ```
    pub fn aligned_values(mut self, aligned_values: bool) -> Self {
        self.aligned_values = aligned_values;
        self
    }

    /// Checks the stores that `make` makes.
    ///
    /// # Panics
    ///
    /// If the store breaks a rule, with the [`Violation`] as the message.
    #[track_caller]
    pub fn check<S: StateStore + 'static>(&self, make: impl Fn() -> S) {
        if let Err(violation) = self.try_check(make) {
            panic!("{violation}");
        }
    }

    /// Checks the stores that `make` makes.
    ///
    /// # Errors
    ///
    /// Returns the first violation found.
    pub fn try_check<S: StateStore + 'static>(&self, make: impl Fn() -> S) -> Result<(), Violation> {
        let make: &dyn Fn() -> Box<dyn StateStore> = &|| Box::new(make());
        let subject = Subject { make, values: Values { are_aligned: self.aligned_values } };
        for program in edges::programs() {
            self.try_program(subject, program, None)?;
        }
        for case in 0..self.cases {
            let seed = self.seed.wrapping_add(case as u64);
            self.try_program(subject, random::program(seed, self.calls), Some(seed))?;
        }
        Ok(())
    }

    fn try_program(&self, subject: Subject<'_>, program: Vec<op::Op>, seed: Option<u64>) -> Result<(), Violation> {
        let Err(stop) = run::run(subject, &program) else { return Ok(()) };
        let calls = program.len();
        let (program, stop) = shrink::shrink(subject, program, stop);
        let check::Failure { rule, assertion, found, expected } = stop.failure;
        let aligned_values = if self.aligned_values { ".aligned_values(true)" } else { "" };
        let origin = match seed {
            Some(seed) => {
                format!("a random program of {calls} calls, `Conformance::new().seed({seed}).cases(1){aligned_values}`")
            }
            None => format!("a fixed program of {calls} calls"),
        };
        let program = op::source(&program, &assertion, subject.values);
        Err(Violation { rule, found, expected, seed, origin, program })
    }
}

/// A broken rule, with the proof. [`Display`](fmt::Display) prints the whole report.
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

    /// Returns what the store should have done.
    pub fn expected(&self) -> &str {
        &self.expected
    }

    /// Returns the seed of the random program that showed the violation, or `None` if a fixed program did.
    pub fn seed(&self) -> Option<u64> {
        self.seed
    }

    /// Returns Rust code that shows the violation. It calls `make`, the function that was given to the kit.
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
