//! An embedded database on copy-on-write B-trees, kept in memory by its own backend.
//!
//! One write transaction stays open from snapshot to snapshot, for to commit after each write would cost many times as
//! much, and reads go through it, too. A table belongs to its transaction, so it is opened for each call: to keep both
//! would take a struct that refers to itself. A view of one instant is what the database makes for it: a commit, without
//! durability, and a read transaction.

use bytes::Bytes;
use opstate::KeyBounds;
use redb::backends::InMemoryBackend;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction};
use std::cell::RefCell;

use super::{Frozen, Visitor, snapshot_of};

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("state");

pub(super) struct Map {
    /// Always there, but for the moment of a commit. Before the database, so that it ends first.
    writing: RefCell<Option<WriteTransaction>>,
    database: Database,
}

impl Default for Map {
    fn default() -> Self {
        let database = Database::builder()
            .set_cache_size(4 << 30)
            .create_with_backend(InMemoryBackend::new())
            .expect("memory does not fail");
        Self { writing: RefCell::new(Some(begin(&database))), database }
    }
}

fn begin(database: &Database) -> WriteTransaction {
    let mut writing = database.begin_write().expect("there is no other writer");
    writing.set_durability(Durability::None).expect("nothing was written yet");
    writing
}

impl Map {
    fn with_table<R>(&self, f: impl FnOnce(&mut Table<'_, &'static [u8], &'static [u8]>) -> R) -> R {
        let writing = self.writing.borrow();
        let mut table = writing.as_ref().expect("a transaction").open_table(TABLE).expect("memory does not fail");
        f(&mut table)
    }
}

impl super::Map for Map {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.with_table(|table| {
            let value = table.get(key).expect("memory does not fail")?;
            Some(Bytes::copy_from_slice(value.value()))
        })
    }

    fn insert(&mut self, key: &[u8], value: &[u8]) {
        self.with_table(|table| drop(table.insert(key, value).expect("memory does not fail")));
    }

    fn remove(&mut self, key: &[u8]) {
        self.with_table(|table| drop(table.remove(key).expect("memory does not fail")));
    }

    fn visit(&self, range: KeyBounds<'_>, f: Visitor<'_>) {
        self.with_table(|table| {
            for entry in table.range::<&[u8]>(range).expect("memory does not fail") {
                let (key, value) = entry.expect("memory does not fail");
                if f(key.value(), value.value()).is_break() {
                    return;
                }
            }
        });
    }

    fn freeze(&self) -> Option<Frozen> {
        let mut writing = self.writing.borrow_mut();
        writing.take().expect("a transaction").commit().expect("memory does not fail");
        let reading = self.database.begin_read().expect("memory does not fail");
        *writing = Some(begin(&self.database));
        Some(Box::new(move || {
            let table = reading.open_table(TABLE).expect("a table that was written to");
            snapshot_of(table.iter().expect("memory does not fail").map(|entry| {
                let (key, value) = entry.expect("memory does not fail");
                (Bytes::copy_from_slice(key.value()), Bytes::copy_from_slice(value.value()))
            }))
        }))
    }
}
