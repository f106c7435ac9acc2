//! [`shrink`]: reduces a program to a short one that breaks the same rule.

use super::op::Op;
use super::run::{Stop, Subject, run};

/// Maximum number of programs to try. A report that is a few calls too long is better than a test that takes minutes.
const ATTEMPTS: usize = 2_000;

/// Drops calls, first many at once and finally one by one, while the same rule stays broken. Then shortens values in
/// the same way. The method is that of Zeller and Hildebrandt, *Simplifying and Isolating Failure-Inducing Input*, TSE
/// 2002.
///
/// The returned program did fail when it ran, even if the failure depends on chance.
pub(super) fn shrink(subject: Subject<'_>, mut program: Vec<Op>, stop: Stop) -> (Vec<Op>, Stop) {
    program.truncate(stop.calls);
    let mut shrinker = Shrinker { subject, program, stop, attempts: 0 };
    shrinker.drop_calls();
    shrinker.simplify_calls();
    (shrinker.program, shrinker.stop)
}

struct Shrinker<'a> {
    subject: Subject<'a>,
    /// The shortest failing program so far. `stop` is its failure.
    program: Vec<Op>,
    stop: Stop,
    attempts: usize,
}

impl Shrinker<'_> {
    fn drop_calls(&mut self) {
        let mut chunk = self.program.len();
        while chunk > 0 {
            let len = self.program.len();
            // Go from the end, because a call only needs calls before it.
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

    /// Replaces the program with the candidate if the candidate breaks the same rule.
    fn accept(&mut self, mut candidate: Vec<Op>) -> bool {
        self.attempts += 1;
        if self.attempts > ATTEMPTS {
            return false;
        }
        match run(self.subject, &candidate) {
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
