//! What the directory of checkpoints asks of a file system, and the one there is.
//!
//! It is a trait so that a test can put a disk in its place that fails at a chosen call or loses what was not synced; see
//! `simulation.rs`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use rkyv::util::AlignedVec;

/// A file system, as far as it is needed to keep files that are whole or absent.
pub(crate) trait Disk: Send {
    /// Creates a directory that survives a crash of the machine, and those above it that are missing.
    fn create_directory(&self, path: &Path) -> io::Result<()>;

    /// The names of the files in a directory, in any order. Names that are no text are left out.
    fn names(&self, directory: &Path) -> io::Result<Vec<String>>;

    fn read(&self, path: &Path) -> io::Result<AlignedVec>;

    /// Creates a file, or empties the one that is there.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Gives a file another name in its directory, in place of the file that may have it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Waits for the names in a directory to be on disk, and for those that are gone to be gone.
    fn sync_names(&self, directory: &Path) -> io::Result<()>;
}

/// A file that is being written.
pub(crate) trait DiskFile: Write {
    /// Waits for all that was written to be on disk.
    fn sync(&mut self) -> io::Result<()>;
}

/// The file system of the machine.
pub(crate) struct RealDisk;

impl Disk for RealDisk {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        let is_missing = |path: &&Path| *path != Path::new("") && !path.exists();
        let missing: Vec<&Path> = path.ancestors().take_while(is_missing).collect();
        fs::create_dir_all(path)?;
        let above = |path: &'_ Path| path.parent().filter(|above| *above != Path::new("")).map(Path::to_owned);
        missing.into_iter().try_for_each(|path| self.sync_names(&above(path).unwrap_or_else(|| ".".into())))
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                names.extend(entry.file_name().into_string());
            }
        }
        Ok(names)
    }

    fn read(&self, path: &Path) -> io::Result<AlignedVec> {
        // An rkyv archive has to lie at an aligned address, which `fs::read` does not promise.
        let mut bytes = AlignedVec::new();
        bytes.extend_from_reader(&mut File::open(path)?)?;
        Ok(bytes)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(File::create(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_names(&self, directory: &Path) -> io::Result<()> {
        // Windows has no such call and needs none.
        if cfg!(unix) { File::open(directory)?.sync_all() } else { Ok(()) }
    }
}

impl DiskFile for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}
