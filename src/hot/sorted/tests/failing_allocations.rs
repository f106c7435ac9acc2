//! Allocations that fail and unwind, which needs a nightly compiler. The tree must hold its invariants after each.

use super::*;
use crate::hot::tests::counting;

/// Inserts and removes while every allocation fails, one at a time. Returns the greatest height, and the number of
/// failures.
fn run_failing<const L: usize, const I: usize>() -> (usize, usize) {
    counting::unwind_where_allocations_fail();
    let count = 300;
    // Separators have all lengths, so that a join needs room for those of the neighbour.
    let keys: Vec<_> = (0..count).map(|i| format!("{}{}/{i}", i % 7, "long".repeat(i % 7 * 5)).into_bytes()).collect();
    let mut pair = Pair::<L, I>::new(keys);
    let (mut failures, mut height) = (0, 0);
    let orders: [Vec<usize>; 3] = [shuffled(count).collect(), (0..count).collect(), (0..count).rev().collect()];
    for order in orders {
        for (step, &at) in order.iter().chain(&order).enumerate() {
            if step % 10 == 0 {
                pair.freeze();
                pair.snapshots.drain(..pair.snapshots.len().saturating_sub(3));
            }
            let (keys, id) = (Arc::clone(&pair.keys), id(at));
            let key = &keys[at];
            for succeeding in 0.. {
                let Pair { index, epochs, .. } = &mut pair;
                let done = counting::failing_after(succeeding, || {
                    if step < count {
                        index.insert(epochs, &*keys, key, id)
                    } else {
                        index.remove(epochs, &*keys, key, id)
                    }
                });
                pair.index.validate(&*keys);
                height = height.max(pair.index.height);
                if done.is_ok() {
                    break;
                }
                failures += 1;
                pair.check();
            }
            if step < count {
                pair.model.insert(key.clone(), id);
            } else {
                pair.model.remove(key);
            }
            pair.check();
        }
        pair.check_snapshots();
    }
    pair.end();
    (height, failures)
}

/// Removes leaf after leaf while every allocation fails, one at a time. Returns the number of leaves and of failures.
fn run_failing_by_leaf<const L: usize, const I: usize>() -> (usize, usize) {
    counting::unwind_where_allocations_fail();
    let keys: Vec<_> = (0..300).map(|i| format!("{}{}/{i}", i % 7, "long".repeat(i % 7 * 5)).into_bytes()).collect();
    let mut pair = Pair::<L, I>::new(keys);
    let (mut leaves, mut failures) = (0, 0);
    for round in 0..10 {
        (0..300).for_each(|at| pair.insert(at));
        // Leaves of all sizes.
        shuffled(300).take(20 * round).for_each(|at| pair.remove(at));
        let keys = Arc::clone(&pair.keys);
        for step in shuffled(300) {
            if step % 3 == 0 {
                pair.freeze();
                pair.snapshots.drain(..pair.snapshots.len().saturating_sub(3));
            }
            let Some((ids, _)) = pair.index.view().first_leaf(&*keys, (Included(&keys[step]), Unbounded)) else {
                continue;
            };
            let ids = ids.to_vec();
            for succeeding in 0.. {
                let Pair { index, epochs, .. } = &mut pair;
                let done = counting::failing_after(succeeding, || index.remove_leaf(epochs, &*keys, &ids));
                if let Ok(is_removed) = done {
                    leaves += usize::from(is_removed);
                    pair.model.retain(|_, id| !is_removed || !ids.contains(id));
                    pair.check();
                    break;
                }
                failures += 1;
                pair.check();
            }
        }
        pair.check_snapshots();
    }
    pair.end();
    (leaves, failures)
}

#[test]
#[cfg_attr(miri, ignore)]
fn failing_allocations_leave_the_tree_with_its_leaves() {
    let (leaves, failures) = run_failing_by_leaf::<3, 3>();
    assert!(leaves > 500 && failures > 500, "{leaves}, {failures}");
    let (leaves, failures) = run_failing_by_leaf::<5, 8>();
    assert!(leaves > 300 && failures > 300, "{leaves}, {failures}");
}

#[test]
#[cfg_attr(miri, ignore)]
fn failing_allocations_leave_the_tree_whole() {
    let (height, failures) = run_failing::<3, 3>();
    assert!(height >= 6 && failures > 1000, "{height}, {failures}");
    let (height, failures) = run_failing::<3, 8>();
    assert!(height >= 3 && failures > 1000, "{height}, {failures}");
}

/// Two inner nodes become so small that they are joined, and so are the leaves where they meet. The keys of one are
/// short, those of the other long. A snapshot shares all nodes.
#[test]
fn a_join_without_memory_leaves_the_tree_whole() {
    counting::unwind_where_allocations_fail();
    let outcome = |succeeding| {
        let short = (0..98).map(|i| vec![0, i]);
        let long = (98..196).map(|i| [&[1; 1000][..], &[i]].concat());
        let mut pair = Pair::<16, 8>::new(short.chain(long).collect());
        pair.model = pair.keys.iter().cloned().zip((0..).map(id)).collect();
        pair.rebuild();
        // The first node keeps two leaves, of 14 and 2 keys; the other keeps three, of 2, 5 and 14.
        let gone = [0..70, 86..98, 100..112, 117..126, 140..196];
        gone.into_iter().flatten().for_each(|at| pair.remove(at));
        pair.check();
        pair.freeze();
        let Pair { keys, epochs, index, model, .. } = &mut pair;
        let done = counting::failing_after(succeeding, || index.remove(epochs, &**keys, &keys[112], id(112))).is_ok();
        if done {
            model.remove(&keys[112]);
        }
        let height = index.height;
        pair.check();
        pair.check_snapshots();
        pair.end();
        (done, height)
    };
    let mut outcomes: Vec<_> = (0..20).map(outcome).collect();
    outcomes.dedup();
    assert_eq!(outcomes, [(false, 3), (true, 2)]);
}
