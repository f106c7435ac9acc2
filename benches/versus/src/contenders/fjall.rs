//! An embedded log-structured store, in a temporary directory, written through to the operating system but not to the disk,
//! as it does by default. Its cache holds everything.

use bytes::Bytes;
use fjall::{Database, Iter, Keyspace, KeyspaceCreateOptions, Readable};
use opstate::{Entries, KeyBounds};
use tempfile::TempDir;

use super::{Frozen, Visitor, snapshot_of};

pub(super) struct Map {
    keyspace: Keyspace,
    database: Database,
    /// Last, so that it goes when the files in it are closed.
    _directory: TempDir,
}

impl Default for Map {
    fn default() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let database = Database::builder(directory.path()).cache_size(4 << 30).open().expect("an empty directory");
        let keyspace = database.keyspace("state", KeyspaceCreateOptions::default).expect("a new keyspace");
        Self { keyspace, database, _directory: directory }
    }
}

fn entries(entries: Iter) -> impl Iterator<Item = (fjall::Slice, fjall::Slice)> {
    entries.map(|entry| entry.into_inner().expect("files that nobody else writes to"))
}

fn handles(found: Iter) -> impl Iterator<Item = (Bytes, Bytes)> {
    entries(found).map(|(key, value)| (Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)))
}

impl super::Map for Map {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        let value = self.keyspace.get(key).expect("files that nobody else writes to")?;
        Some(Bytes::copy_from_slice(&value))
    }

    fn insert(&mut self, key: &[u8], value: &[u8]) {
        self.keyspace.insert(key, value).expect("room on the disk");
    }

    fn remove(&mut self, key: &[u8]) {
        self.keyspace.remove(key).expect("room on the disk");
    }

    fn visit(&self, range: KeyBounds<'_>, f: Visitor<'_>) {
        let _ = entries(self.keyspace.range::<&[u8], _>(range)).try_for_each(|(key, value)| f(&key, &value));
    }

    fn scan<'a>(&'a self, range: KeyBounds<'_>) -> Entries<'a> {
        Box::new(handles(self.keyspace.range::<&[u8], _>(range)))
    }

    fn freeze(&self) -> Option<Frozen> {
        let (snapshot, keyspace) = (self.database.snapshot(), self.keyspace.clone());
        Some(Box::new(move || snapshot_of(handles(snapshot.iter(&keyspace)))))
    }
}
