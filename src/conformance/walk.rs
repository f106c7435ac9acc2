//! [`Walk`]: the order in which the entries of a scan are taken from its two ends.

use std::collections::VecDeque;

/// The end of a scan to take from at each step.
#[derive(Clone, Copy, Debug)]
pub(super) enum Walk {
    Up,
    Down,
    /// Step `i` takes from the back if bit `i % 8` is set. Once one end is exhausted, the other must be, too.
    Turns(u8),
}

impl Walk {
    /// Takes the entries of a scan until an end is exhausted, or until there are too many. If the other end then still
    /// has an entry, that is one too many.
    pub(super) fn collect<T>(self, mut scan: impl DoubleEndedIterator<Item = T>, expected_len: usize) -> Vec<T> {
        let most = expected_len + 2;
        match self {
            Self::Up => scan.take(most).collect(),
            Self::Down => scan.rev().take(most).collect(),
            Self::Turns(from_back) => {
                let mut taken = Vec::new();
                for step in 0..most {
                    let is_back = is_back(from_back, step);
                    let next = if is_back { scan.next_back() } else { scan.next() };
                    let Some(next) = next else {
                        // If entries are missing, the extra entry must not make up for them.
                        if taken.len() >= expected_len {
                            taken.extend(if is_back { scan.next() } else { scan.next_back() });
                        }
                        break;
                    };
                    taken.push(next);
                }
                taken
            }
        }
    }

    /// Returns ascending entries in the order in which the walk takes them.
    pub(super) fn order<T>(self, ascending: Vec<T>) -> Vec<T> {
        let mut left = VecDeque::from(ascending);
        let mut step = 0;
        std::iter::from_fn(|| {
            let is_back = match self {
                Self::Up => false,
                Self::Down => true,
                Self::Turns(from_back) => is_back(from_back, step),
            };
            step += 1;
            if is_back { left.pop_back() } else { left.pop_front() }
        })
        .collect()
    }

    /// Returns Rust source that takes the entries of `scan`. [`IN_TURNS`] holds the definition it needs.
    pub(super) fn source(self, scan: &str) -> String {
        match self {
            Self::Up => format!("{scan}.collect::<Vec<_>>()"),
            Self::Down => format!("{scan}.rev().collect::<Vec<_>>()"),
            Self::Turns(from_back) => format!("in_turns({scan}, {from_back:#010b})"),
        }
    }
}

fn is_back(from_back: u8, step: usize) -> bool {
    (from_back >> (step % 8)) & 1 == 1
}

/// Definition of `in_turns` for printed programs.
pub(super) const IN_TURNS: &str = "\
fn in_turns(mut scan: opstate::Scan<'_>, from_back: u8) -> Vec<(Bytes, Bytes)> {
    let mut taken = vec![];
    for step in 0.. {
        let is_back = (from_back >> (step % 8)) & 1 == 1;
        let next = if is_back { scan.next_back() } else { scan.next() };
        let Some(next) = next else {
            let other = if is_back { scan.next() } else { scan.next_back() };
            assert_eq!(other, None, \"one end has nothing left, but the other has\");
            break;
        };
        taken.push(next);
    }
    taken
}";
