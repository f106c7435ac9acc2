//! The directory of checkpoints: files that are whole or absent.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use rkyv::util::AlignedVec;

use crate::Result;

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
}

impl Directory {
    pub(crate) fn open(path: PathBuf) -> Result<Self> {
        let directory = Self { path };
        create_durably(&directory.path).map_err(|error| directory.unusable("create", &error))?;
        Ok(directory)
    }

    /// The text of an error that another directory would not have.
    fn unusable(&self, cannot: &str, error: &io::Error) -> String {
        let path = self.path.display();
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
        self.remove_unfinished()
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
        let cannot_list = |error| self.unusable("list", &error);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(cannot_list)? {
            let entry = entry.map_err(cannot_list)?;
            let is_dir = entry.file_type().map_err(cannot_list)?.is_dir();
            names.extend(entry.file_name().to_str().and_then(&parse).filter(|_| !is_dir));
        }
        names.sort_unstable();
        Ok(names)
    }

    pub(crate) fn read(&self, name: Name) -> Result<AlignedVec> {
        let path = self.path_of(name);
        // An rkyv archive has to lie at an aligned address, which `fs::read` does not promise.
        let mut bytes = AlignedVec::new();
        File::open(&path)
            .and_then(|mut file| bytes.extend_from_reader(&mut file))
            .map_err(|error| format!("cannot read the checkpoint {}: {error}; see who may read it", path.display()))?;
        Ok(bytes)
    }

    /// Makes a file that survives a crash of the process or the machine. Says at which step it is.
    ///
    /// Under its name a file is complete from the first moment on: it gets the name when its bytes are on disk.
    pub(crate) fn write(&self, name: Name, bytes: &[u8], at: &dyn Fn(Step) -> io::Result<()>) -> Result<()> {
        let (unfinished, path) = (self.unfinished_path_of(name), self.path_of(name));
        let write = || {
            let mut file = File::create(&unfinished)?;
            let (first, second) = bytes.split_at(bytes.len() / 2);
            file.write_all(first)?;
            at(Step::HalfWritten)?;
            file.write_all(second)?;
            file.sync_all()?;
            at(Step::Written)?;
            fs::rename(&unfinished, &path)?;
            at(Step::Renamed)?;
            sync_names(&self.path)?;
            at(Step::Durable)
        };
        Ok(write().map_err(|error| self.unusable("write to", &error))?)
    }

    pub(crate) fn remove(&self, name: Name) -> Result<()> {
        self.remove_path(&self.path_of(name))
    }

    fn remove_path(&self, path: &Path) -> Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(self.unusable("remove old files from", &error).into())
            }
            _ => Ok(()),
        }
    }
}

/// Creates a directory that survives a crash of the machine, and those above it that are missing.
fn create_durably(path: &Path) -> io::Result<()> {
    let here = Path::new(".");
    let missing: Vec<&Path> = path.ancestors().take_while(|path| *path != Path::new("") && !path.exists()).collect();
    fs::create_dir_all(path)?;
    let above = |path: &Path| path.parent().filter(|above| *above != Path::new("")).unwrap_or(here).to_owned();
    missing.into_iter().try_for_each(|path| sync_names(&above(path)))
}

/// Waits for the names in a directory to be on disk. Windows has no such call and needs none.
fn sync_names(directory: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(directory)?.sync_all() } else { Ok(()) }
}
