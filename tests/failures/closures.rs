//! Closures, iterators, readers and writers of the caller that panic.

use super::readers_and_writers::{Failing, Kind};
use super::*;

/// An operation that calls a closure, an iterator or a reader of the caller.
type Step = fn(&mut dyn StateStore, &Fuse);

fn steps() -> Vec<(&'static str, Step)> {
    vec![
        ("read", |store, fuse| assert!(store.read(b"b\x04", &mut |_| fuse.tick()))),
        ("view_bytes", |store, fuse| assert!(store.view_bytes(b"b\x05", |_| fuse.tick()).is_some())),
        ("view", |store, fuse| assert!(store.view::<u64, _>(b"number", |_| fuse.tick()).unwrap().is_some())),
        ("modify", |store, fuse| {
            let change = &mut |value: &mut [u8]| {
                fuse.tick();
                value.fill(99);
            };
            assert!(store.modify(b"b\x05", change).unwrap());
        }),
        ("modify a large one", |store, fuse| {
            let change = &mut |value: &mut [u8]| {
                value.fill(99);
                fuse.tick();
            };
            assert!(store.modify(b"b\x04", change).unwrap());
        }),
        ("modify_typed", |store, fuse| {
            assert!(store.modify_typed::<u64, _>(b"number", |_| fuse.tick()).unwrap().is_some());
        }),
        ("update", |store, fuse| {
            store
                .update(b"number", |number: &mut Option<u64>| {
                    // The value that a panicking closure leaves is not put.
                    *number = number.map(|number| number + 1);
                    fuse.tick();
                })
                .unwrap();
        }),
        ("update to nothing", |store, fuse| {
            store
                .update(b"number", |number: &mut Option<u64>| {
                    *number = None;
                    fuse.tick();
                })
                .unwrap();
        }),
        ("visit_range", |store, fuse| {
            store.visit_range(ALL, &mut |_, _| {
                fuse.tick();
                ControlFlow::Continue(())
            });
        }),
        ("visit_prefix", |store, fuse| {
            store.visit_prefix(b"b", |_, _| {
                fuse.tick();
                ControlFlow::Continue(())
            });
        }),
        ("try_update", |store, fuse| {
            let updated = store.try_update(b"number", |number: &mut Option<u64>| {
                *number = Some(9);
                fuse.tick();
                Ok::<_, StateError>(())
            });
            updated.unwrap();
        }),
        ("try_update that fails", |store, fuse| {
            let updated = store.try_update(b"number", |number: &mut Option<u64>| {
                *number = None;
                fuse.tick();
                Err::<(), _>(StateError::store("no"))
            });
            assert!(updated.is_err());
        }),
        ("try_visit_range", |store, fuse| {
            let visit = &mut |_: &[u8], _: &[u8]| {
                fuse.tick();
                ControlFlow::Continue(())
            };
            store.try_visit_range(ALL, visit).unwrap();
        }),
        ("visit a snapshot", |store, fuse| {
            store.snapshot().visit_range(ALL, |_, _| {
                fuse.tick();
                ControlFlow::Continue(())
            });
        }),
        ("visit a delta", |store, fuse| {
            let empty = StateSnapshot::from_iter::<[(Bytes, Bytes); 0]>([]);
            store.snapshot().delta_since(&empty).visit(|_, _| {
                fuse.tick();
                ControlFlow::Continue(())
            });
        }),
        ("split", |store, fuse| {
            let slices = store.snapshot().split(KeyGroups::new(3).unwrap(), |key| {
                fuse.tick();
                key
            });
            assert_eq!(slices.unwrap().len(), 3);
        }),
        ("split_with", |store, fuse| {
            let slices = store.snapshot().split_with(3, |key| {
                fuse.tick();
                key.len() % 3
            });
            assert_eq!(slices.unwrap().len(), 3);
        }),
        ("write_grouped", |store, fuse| {
            let three = KeyGroups::new(3).unwrap();
            let written = store.snapshot().write_grouped(
                three,
                |key| {
                    fuse.tick();
                    key
                },
                OPTIONS(),
                io::sink(),
            );
            written.unwrap();
        }),
        ("write_with_progress", |store, fuse| {
            let progress = |_| {
                fuse.tick();
                ControlFlow::Continue(())
            };
            store.snapshot().write_with_progress(OPTIONS(), io::sink(), progress).unwrap();
        }),
        ("write", |store, fuse| {
            store.snapshot().write_with(OPTIONS(), Failing::new(io::sink(), fuse, Kind::Panic)).unwrap();
        }),
        ("read_with_progress", |store, fuse| {
            let image = store.snapshot().to_bytes();
            let read = StateSnapshot::read_with_progress(&image[..], |_| {
                fuse.tick();
                ControlFlow::Continue(())
            });
            assert_eq!(read.unwrap(), store.snapshot());
        }),
        ("restore what is collected", |store, fuse| {
            let entries = model().into_iter().rev().inspect(|_| fuse.tick());
            store.restore(entries.map(|(key, value)| (key, [value, vec![1]].concat())).collect());
        }),
        ("restore what is sorted", |store, fuse| {
            let entries = model().into_iter().take(9).inspect(|_| fuse.tick());
            store.restore(StateSnapshot::from_sorted(entries).unwrap());
        }),
        ("restore what is merged", |store, fuse| {
            let slices = store.snapshot().split(KeyGroups::new(5).unwrap(), |key| key).unwrap();
            store.restore(StateSnapshot::merge(slices.into_iter().take(2).inspect(|_| fuse.tick())).unwrap());
        }),
    ]
}

#[test]
fn a_closure_that_panics_leaves_the_store_usable() {
    for (kind, make) in stores() {
        for (name, step) in steps() {
            let mut after = make();
            fill(&mut *after);
            step(&mut *after, &Fuse::off());
            let after = contents(&*after);
            for is_snapshot_alive in [false, true] {
                let mut calls = 0;
                loop {
                    let outcome = || {
                        let mut store = make();
                        fill(&mut *store);
                        let held = is_snapshot_alive.then(|| store.snapshot());
                        let fuse = Fuse::after(calls);
                        let outcome = catch_unwind(AssertUnwindSafe(|| step(&mut *store, &fuse)));
                        if let Err(payload) = &outcome {
                            assert!(payload.is::<Blown>(), "{kind}, {name}, {calls}");
                        }
                        let (mut found, before) = (contents(&*store), model());
                        if name == "modify a large one" && outcome.is_err() {
                            // The closure has changed the whole value by then.
                            let value = found.get_mut(&b"b\x04"[..]).unwrap();
                            assert!(*value == [99; 700] || *value == [4; 700]);
                        } else {
                            assert_eq!(
                                &found,
                                if outcome.is_ok() { &after } else { &before },
                                "{kind}, {name}, {calls}"
                            );
                        }
                        assert_works(&mut *store, &found);
                        if let Some(held) = held {
                            assert_eq!(held, StateSnapshot::from_sorted(model()).unwrap());
                        }
                        outcome.is_ok()
                    };
                    // Run it once before counting, because the thread keeps its buffers.
                    if calls == 0 {
                        outcome();
                    }
                    let (succeeded, allocated) = allocated_by(outcome);
                    assert_eq!(allocated.kept_bytes, 0, "{kind}, {name}, {calls}");
                    if succeeded {
                        break;
                    }
                    calls += 1;
                }
                assert!(calls > 0, "{name} calls");
            }
        }
    }
}
