//! [`shrink`]: the shortest program that still breaks the same rule.

use super::Make;
use super::op::Op;
use super::run::{Stop, run};

/// How many programs are tried at most; a report some calls too long is better than a test that takes minutes.
const ATTEMPTS: usize = 2_000;

/// Drops calls, at first many at once and in the end one by one, as long as the same rule stays broken (Zeller and
/// Hildebrandt, *Simplifying and Isolating Failure-Inducing Input*, TSE 2002); then shortens values likewise.
///
/// The result is a program that did fail, even where failing is a matter of chance.
pub(super) fn shrink(make: Make<'_>, mut program: Vec<Op>, stop: Stop) -> (Vec<Op>, Stop) {
    program.truncate(stop.calls);
    let mut shrinker = Shrinker { make, program, stop, attempts: 0 };
    shrinker.drop_calls();
    shrinker.simplify_calls();
    (shrinker.program, shrinker.stop)
}

struct Shrinker<'a> {
    make: Make<'a>,
    /// Stops as `stop` says.
    program: Vec<Op>,
    stop: Stop,
    attempts: usize,
}

impl Shrinker<'_> {
    fn drop_calls(&mut self) {
        let mut chunk = self.program.len();
        while chunk > 0 {
            let len = self.program.len();
            // From the end: what a later call needs comes before it.
            let mut end = len;
            while end > 0 {
                let start = end.saturating_sub(chunk);
                self.accept([&self.program[..start], &self.program[end..]].concat());
                end = start.min(self.program.len());
            }
            if chunk > 1 {
                chunk = chunk.div_ceil(2);
            } else if self.program.len() == len {
                break;
            }
        }
    }

    fn simplify_calls(&mut self) {
        for at in 0..self.program.len() {
            for simpler in self.program.get(at).map(Op::simpler).unwrap_or_default() {
                let mut candidate = self.program.clone();
                candidate[at] = simpler;
                if self.accept(candidate) {
                    break;
                }
            }
        }
    }

    /// Takes the candidate for the program if it breaks the same rule.
    fn accept(&mut self, mut candidate: Vec<Op>) -> bool {
        self.attempts += 1;
        if self.attempts > ATTEMPTS {
            return false;
        }
        match run(self.make, &candidate) {
            Err(stop) if stop.failure.rule == self.stop.failure.rule => {
                candidate.truncate(stop.calls);
                self.program = candidate;
                self.stop = stop;
                true
            }
            _ => false,
        }
    }
}
