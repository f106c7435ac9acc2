//! The directory of checkpoints: files that are whole or absent.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use rkyv::util::AlignedVec;

use crate::Result;
use crate::disk::Disk;

const PREFIX: &str = "flights-";
const UNFINISHED: &str = ".tmp";

/// What a file holds: a checkpoint that stands alone, or what has changed since the one before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Full,
    Delta,
}

/// A file by its name, which tells what it builds on: a full image on nothing, a delta on the number before its own.
///
/// So no list of files has to be kept, which could be older or newer than the files.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    pub(crate) number: u64,
    pub(crate) kind: Kind,
}

impl Name {
    fn parse(name: &str) -> Option<Self> {
        let (number, suffix) = name.strip_prefix(PREFIX)?.split_once('.')?;
        let kind = if suffix == "checkpoint" { Kind::Full } else { Kind::Delta };
        let parsed = Self { number: number.parse().ok()?, kind };
        // Parsing is more lenient than naming: a name counts only if it is the one that its number would get.
        (parsed.to_string() == name).then_some(parsed)
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let suffix = if self.kind == Kind::Full { "checkpoint" } else { "delta" };
        write!(f, "{PREFIX}{:08}.{suffix}", self.number)
    }
}

/// Where the writing of a checkpoint has come to; for faults that are asked for.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Step {
    /// Half of its bytes are in a file with the name of an unfinished one.
    HalfWritten,
    /// All are, and on disk.
    Written,
    /// The file has its name, which may not be on disk.
    Renamed,
    /// The checkpoint is on disk, and old ones have not been removed.
    Durable,
    /// The first of the old files is removed.
    Removing,
}

/// A directory of checkpoint files. Other files in it are left alone.
pub(crate) struct Directory {
    path: PathBuf,
    disk: Box<dyn Disk>,
}

impl Directory {
    pub(crate) fn open(path: PathBuf, disk: Box<dyn Disk>) -> Result<Self> {
        disk.create_directory(&path).map_err(|error| Self::unusable(&path, "create", &error))?;
        Ok(Self { path, disk })
    }

    /// The text of an error that another directory would not have.
    fn unusable(path: &Path, cannot: &str, error: &io::Error) -> String {
        let path = path.display();
        format!("cannot {cannot} the checkpoint directory {path}: {error}; choose another with --checkpoint-dir")
    }

    pub(crate) fn path_of(&self, name: Name) -> PathBuf {
        self.path.join(name.to_string())
    }

    fn unfinished_path_of(&self, name: Name) -> PathBuf {
        self.path.join(format!("{name}{UNFINISHED}"))
    }

    /// Removes the checkpoints of earlier runs.
    pub(crate) fn clear(&self) -> Result<()> {
        // From the newest on: after a crash, what is left is no delta without its base.
        self.files()?.into_iter().rev().try_for_each(|name| self.remove(name))?;
        self.remove_unfinished()?;
        // Before there are new files: after a crash of the machine these could stand among old ones.
        Ok(self.disk.sync_names(&self.path).map_err(|error| Self::unusable(&self.path, "write to", &error))?)
    }

    /// Removes what a crash left of a checkpoint that it was in the middle of.
    pub(crate) fn remove_unfinished(&self) -> Result<()> {
        let unfinished = self.names(|name| Name::parse(name.strip_suffix(UNFINISHED)?))?;
        unfinished.into_iter().try_for_each(|name| self.remove_path(&self.unfinished_path_of(name)))
    }

    /// All checkpoints, by ascending number.
    pub(crate) fn files(&self) -> Result<Vec<Name>> {
        self.names(Name::parse)
    }

    fn names(&self, parse: impl Fn(&str) -> Option<Name>) -> Result<Vec<Name>> {
        let names = self.disk.names(&self.path).map_err(|error| Self::unusable(&self.path, "list", &error))?;
        let mut names: Vec<Name> = names.iter().filter_map(|name| parse(name)).collect();
        names.sort_unstable();
        Ok(names)
    }

    pub(crate) fn read(&self, name: Name) -> Result<AlignedVec> {
        let path = self.path_of(name);
        let bytes = self.disk.read(&path);
        Ok(bytes
            .map_err(|error| format!("cannot read the checkpoint {}: {error}; see who may read it", path.display()))?)
    }

    /// Makes a file that survives a crash of the process or the machine. Says at which step it is.
    ///
    /// Under its name a file is complete from the first moment on: it gets the name when its bytes are on disk.
    pub(crate) fn write(&self, name: Name, bytes: &[u8], at: &dyn Fn(Step) -> io::Result<()>) -> Result<()> {
        let (unfinished, path) = (self.unfinished_path_of(name), self.path_of(name));
        let write = || {
            let mut file = self.disk.create(&unfinished)?;
            let (first, second) = bytes.split_at(bytes.len() / 2);
            file.write_all(first)?;
            at(Step::HalfWritten)?;
            file.write_all(second)?;
            file.sync()?;
            at(Step::Written)?;
            self.disk.rename(&unfinished, &path)?;
            at(Step::Renamed)?;
            self.disk.sync_names(&self.path)?;
            at(Step::Durable)
        };
        write().map_err(|error| {
            // Of no use, and it takes space, of which there may be too little. If it stays, the next attempt replaces it.
            let _ = self.disk.remove(&unfinished);
            Self::unusable(&self.path, "write to", &error).into()
        })
    }

    pub(crate) fn remove(&self, name: Name) -> Result<()> {
        self.remove_path(&self.path_of(name))
    }

    fn remove_path(&self, path: &Path) -> Result<()> {
        match self.disk.remove(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Self::unusable(&self.path, "remove old files from", &error).into())
            }
            _ => Ok(()),
        }
    }
}
