//! Operators in the style of existing stream engines, on any store of this crate. They are generic over the value, use
//! rkyv's own bounds and read scanned values in place.

use std::collections::BTreeMap;

use opstate::{HotStore, InMemoryStore, StateError, StateStore, StateStoreExt, StateValue};
use rkyv::api::high::{HighDeserializer, HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::Error;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};

fn stores() -> [Box<dyn StateStore>; 2] {
    [Box::new(HotStore::new()), Box::new(InMemoryStore::new())]
}

/// A windowed aggregate that is generic over its accumulator.
#[derive(Debug)]
struct Windows<F> {
    store: Box<dyn StateStore>,
    width: u64,
    fold: F,
}

impl<F> Windows<F> {
    fn push<A>(&mut self, group: &str, time: u64, value: u64) -> Result<(), StateError>
    where
        F: Fn(&mut A, u64),
        A: Archive + Default + for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, Error>>,
        A::Archived: for<'a> CheckBytes<HighValidator<'a, Error>> + Deserialize<A, HighDeserializer<Error>>,
    {
        let end = (time / self.width + 1) * self.width;
        let key = [&end.to_be_bytes(), group.as_bytes()].concat();
        let mut window = self.store.get_typed::<A>(&key)?.unwrap_or_default();
        (self.fold)(&mut window, value);
        self.store.put_typed(&key, &window)
    }

    /// Closes at most two windows that end at or before the watermark.
    fn close<A: StateValue>(&mut self, watermark: u64) -> Result<Vec<(String, A)>, StateError> {
        let mut closed = Vec::new();
        loop {
            let due = ..(watermark + 1).to_be_bytes();
            for entry in self.store.scan_typed::<A>(due).take(2) {
                let (key, window) = entry?;
                closed.push((String::from_utf8_lossy(&key[8..]).into_owned(), window));
            }
            if self.store.delete_range(due, 2)?.is_done {
                return Ok(closed);
            }
        }
    }
}

#[derive(Archive, Serialize, Deserialize, Debug, Default, PartialEq)]
struct Sum {
    count: u64,
    total: u64,
    last: Option<Box<u64>>,
}

#[test]
fn a_generic_windowed_aggregate() {
    for store in stores() {
        let fold = |sum: &mut Sum, value| {
            sum.count += 1;
            sum.total += value;
            sum.last = Some(Box::new(value));
        };
        let mut windows = Windows { store, width: 10, fold };
        for time in 0..50 {
            windows.push(if time % 3 == 0 { "fizz" } else { "other" }, time, time).unwrap();
        }
        let closed = windows.close::<Sum>(30).unwrap();
        assert_eq!(closed.len(), 6);
        assert_eq!(closed[0], ("fizz".into(), Sum { count: 4, total: 18, last: Some(Box::new(9)) }));
        assert_eq!(windows.store.len(), 4);
        assert_eq!(windows.close::<Sum>(u64::MAX - 1).unwrap().len(), 4);
        assert!(windows.store.is_empty());
    }
}

#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
struct Row {
    id: u64,
    name: String,
    tags: Vec<u16>,
}

/// A stream join that scans one side by a prefix and reads the rows in place with rkyv's own function.
#[derive(Debug)]
struct Join {
    right: Box<dyn StateStore>,
}

impl Join {
    fn insert(&mut self, join_key: u32, row: &Row) {
        let key = [&join_key.to_be_bytes()[..], &row.id.to_be_bytes()].concat();
        let bytes = rkyv::to_bytes::<Error>(row).unwrap();
        self.right.put(&key, &bytes).unwrap();
    }

    fn matches(&self, join_key: u32) -> Vec<(u64, String)> {
        let prefix = join_key.to_be_bytes();
        let rows = self.right.prefix_scan(&prefix);
        rows.map(|(_, value)| {
            let row = rkyv::access::<ArchivedRow, Error>(&value).expect("a scanned value can be read in place");
            (row.id.to_native(), row.name.to_string())
        })
        .collect()
    }
}

#[test]
fn a_join_reads_scanned_rows_in_place() {
    for right in stores() {
        let mut join = Join { right };
        let mut expected = BTreeMap::<u32, Vec<(u64, String)>>::new();
        for id in 0..2_000_u64 {
            let name = "x".repeat((id * 7 % 61) as usize);
            join.insert((id % 37) as u32, &Row { id, name: name.clone(), tags: vec![1; (id % 5) as usize] });
            expected.entry((id % 37) as u32).or_default().push((id, name));
        }
        for (key, rows) in expected {
            assert_eq!(join.matches(key), rows);
        }
    }
}

/// Reading needs no `Serialize`, and writing needs no `Deserialize`.
#[test]
fn reading_and_writing_need_their_own_half_of_rkyv_only() {
    #[derive(Archive, Serialize)]
    struct Written(u64);

    #[derive(Archive, Deserialize, Debug, PartialEq)]
    struct Read(u64);

    for mut store in stores() {
        store.put_typed(b"key", &Written(7)).unwrap();
        assert_eq!(store.get_typed::<Read>(b"key").unwrap(), Some(Read(7)));
        assert_eq!(store.view::<Written, _>(b"key", |written| written.0.to_native()).unwrap(), Some(7));
        assert_eq!(store.snapshot().get_typed::<Read>(b"key").unwrap(), Some(Read(7)));
        assert_eq!(store.take_typed::<Read>(b"key").unwrap(), Some(Read(7)));
    }
}

#[test]
fn debug_shows_counts_and_no_contents() {
    for mut store in stores() {
        store.put(b"secret key", b"secret value").unwrap();
        let snapshot = store.snapshot();
        let scan = format!("{:?}", store.scan(..));
        let join = Join { right: store };
        for shown in [format!("{join:?}"), format!("{snapshot:?}"), scan] {
            assert!(!shown.contains("secret"), "{shown}");
        }
        assert!(format!("{join:?}").contains("size_bytes: 22"), "{join:?}");
        assert!(format!("{snapshot:?}").contains("len: 1"), "{snapshot:?}");
    }
    assert!(format!("{:?}", HotStore::new()).starts_with("HotStore { len: 0"));
    assert!(format!("{:?}", InMemoryStore::new()).starts_with("InMemoryStore { len: 0"));
}
