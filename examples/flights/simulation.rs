//! The job on a disk that fails at any call, and on one that loses power at any.
//!
//! What a process sees of the disk and what is on it are two things. Written bytes and changed names are *pending* until
//! they are synced. When the power goes, any of them may have reached the disk, in any order, and of a write any part;
//! synced ones all have. A sync that fails loses some of what it was to sync for good, although the process goes on seeing
//! it, as on Linux. When only the process is killed, nothing is lost.
//!
//! Whatever happens: once a checkpoint was acknowledged, it or a later one is what the job goes on from; no file is met
//! that cannot be read; and the job ends with the state of one that nothing happened to.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Error, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use opstate::HotStore;
use rkyv::util::AlignedVec;

use crate::calendar::Minute;
use crate::chain::{ChainWriter, load_newest};
use crate::checkpoint::{Checkpoint, Job};
use crate::directory::Directory;
use crate::disk::{Disk, DiskFile};
use crate::events::{Departure, Source};
use crate::operators::{Operators, Slice};
use crate::progress::Progress;
use crate::shards::KEY_GROUPS;
use crate::{INPUT, Result};

/// What becomes of one call.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// It fails, and the disk works on.
    Error,
    /// The process is killed in it.
    Kill,
    /// The power goes.
    PowerLoss,
}

/// Numbers that look random, the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        // Knuth's constants for 64 bits, of which the upper ones are good.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % end as u64) as usize
    }

    fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}

/// A change of a file's bytes.
enum Change {
    Empty,
    Write { at: usize, bytes: Vec<u8> },
}

impl Change {
    fn apply(&self, file: &mut Vec<u8>) {
        match self {
            Self::Empty => file.clear(),
            Self::Write { at, bytes } => {
                file.resize(file.len().max(at + bytes.len()), 0);
                file[*at..at + bytes.len()].copy_from_slice(bytes);
            }
        }
    }

    /// What of it reaches the disk by chance.
    fn torn(self, random: &mut Random) -> Option<Self> {
        match (self, random.below(3)) {
            (_, 0) => None,
            (Self::Write { at, mut bytes }, 1) => {
                bytes.truncate(random.below(bytes.len() + 1));
                Some(Self::Write { at, bytes })
            }
            (whole, _) => Some(whole),
        }
    }
}

/// The bytes of a file: as the process sees them, as they are on disk, and what leads from these to those.
#[derive(Default)]
struct File {
    seen: Vec<u8>,
    on_disk: Vec<u8>,
    pending: Vec<Change>,
}

impl File {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.seen);
        self.pending.push(change);
    }

    /// Some of what is pending reaches the disk, and the rest never will.
    fn lose(&mut self, random: &mut Random) {
        for change in std::mem::take(&mut self.pending) {
            if let Some(change) = change.torn(random) {
                change.apply(&mut self.on_disk);
            }
        }
    }
}

type Names = BTreeMap<PathBuf, usize>;

/// A change of names.
enum Naming {
    Given(PathBuf, usize),
    Taken(PathBuf),
    Changed { from: PathBuf, to: PathBuf, file: usize },
}

impl Naming {
    fn apply(&self, names: &mut Names) {
        match self {
            Self::Given(name, file) => drop(names.insert(name.clone(), *file)),
            Self::Taken(name) => drop(names.remove(name)),
            Self::Changed { from, to, file } => {
                names.insert(to.clone(), *file);
                names.remove(from);
            }
        }
    }

    /// What of it reaches the disk by chance. A file under way to another name may have both, and has one of them.
    fn torn(self, random: &mut Random) -> Option<Self> {
        match (self, random.below(3)) {
            (_, 0) => None,
            (Self::Changed { to, file, .. }, 1) => Some(Self::Given(to, file)),
            (whole, _) => Some(whole),
        }
    }
}

struct Platter {
    random: Random,
    /// Faults to come: which, and how many calls after the one before.
    faults: VecDeque<(usize, Fault)>,
    calls: usize,
    is_dead: bool,
    files: Vec<File>,
    seen: Names,
    on_disk: Names,
    pending: Vec<Naming>,
}

impl Platter {
    /// Counts a call. Fails if it is the one that is to fail, or if there is no process left that could make it.
    fn call(&mut self) -> Option<Fault> {
        if self.is_dead {
            return Some(Fault::Kill);
        }
        self.calls += 1;
        let (left, fault) = self.faults.front_mut()?;
        if *left > 0 {
            *left -= 1;
            return None;
        }
        let fault = *fault;
        self.faults.pop_front();
        self.is_dead = fault != Fault::Error;
        if fault == Fault::PowerLoss {
            self.lose_power();
        }
        Some(fault)
    }

    fn rename(&mut self, naming: Naming) {
        naming.apply(&mut self.seen);
        self.pending.push(naming);
    }

    fn lose_names(&mut self) {
        for naming in std::mem::take(&mut self.pending) {
            if let Some(naming) = naming.torn(&mut self.random) {
                naming.apply(&mut self.on_disk);
            }
        }
    }

    fn lose_power(&mut self) {
        self.lose_names();
        self.seen = self.on_disk.clone();
        for file in &mut self.files {
            file.lose(&mut self.random);
            file.seen = file.on_disk.clone();
        }
    }
}

/// A disk in memory. Clones are the same disk.
#[derive(Clone)]
struct SimulatedDisk(Arc<Mutex<Platter>>);

impl SimulatedDisk {
    fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Platter {
            random: Random(seed),
            faults: VecDeque::new(),
            calls: 0,
            is_dead: false,
            files: Vec::new(),
            seen: Names::new(),
            on_disk: Names::new(),
            pending: Vec::new(),
        })))
    }

    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap()
    }

    /// So many calls after the fault before, one has this fault.
    fn add_fault(&self, after: usize, fault: Fault) {
        self.platter().faults.push_back((after, fault));
    }

    /// The next process is started, on a machine that has power.
    fn revive(&self) {
        self.platter().is_dead = false;
    }

    /// Makes a change of names, unless the call fails; then it may have been made all the same.
    fn change_names(&self, naming: impl FnOnce(&Platter) -> io::Result<Naming>) -> io::Result<()> {
        let mut platter = self.platter();
        let fault = platter.call();
        let is_made = match fault {
            None => true,
            // What the dead do has no effect, and what was lost with the power is lost.
            Some(Fault::Error) => platter.random.coin(),
            Some(_) => false,
        };
        if is_made {
            let naming = naming(&platter)?;
            platter.rename(naming);
        }
        fault.map_or(Ok(()), |fault| Err(failure(fault)))
    }
}

fn failure(fault: Fault) -> Error {
    Error::other(format!("{fault:?}, as asked"))
}

fn missing() -> Error {
    ErrorKind::NotFound.into()
}

impl Disk for SimulatedDisk {
    fn create_directory(&self, _: &Path) -> io::Result<()> {
        // There is but one.
        self.platter().call().map_or(Ok(()), |fault| Err(failure(fault)))
    }

    fn names(&self, _: &Path) -> io::Result<Vec<String>> {
        let mut platter = self.platter();
        if let Some(fault) = platter.call() {
            return Err(failure(fault));
        }
        Ok(platter.seen.keys().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect())
    }

    fn read(&self, path: &Path) -> io::Result<AlignedVec> {
        let mut platter = self.platter();
        if let Some(fault) = platter.call() {
            return Err(failure(fault));
        }
        let mut bytes = AlignedVec::new();
        bytes.extend_from_slice(&platter.files[*platter.seen.get(path).ok_or_else(missing)?].seen);
        Ok(bytes)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut platter = self.platter();
        if let Some(fault) = platter.call() {
            return Err(failure(fault));
        }
        let file = match platter.seen.get(path) {
            Some(&file) => file,
            None => {
                platter.files.push(File::default());
                let file = platter.files.len() - 1;
                platter.rename(Naming::Given(path.to_owned(), file));
                file
            }
        };
        platter.files[file].change(Change::Empty);
        Ok(Box::new(OpenFile { disk: self.clone(), file, len: 0 }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change_names(|platter| {
            let file = *platter.seen.get(from).ok_or_else(missing)?;
            Ok(Naming::Changed { from: from.to_owned(), to: to.to_owned(), file })
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change_names(|platter| {
            let is_there = platter.seen.contains_key(path);
            is_there.then(|| Naming::Taken(path.to_owned())).ok_or_else(missing)
        })
    }

    fn sync_names(&self, _: &Path) -> io::Result<()> {
        let mut platter = self.platter();
        if let Some(fault) = platter.call() {
            if fault == Fault::Error {
                platter.lose_names();
            }
            return Err(failure(fault));
        }
        let Platter { pending, on_disk, .. } = &mut *platter;
        pending.drain(..).for_each(|naming| naming.apply(on_disk));
        Ok(())
    }
}

struct OpenFile {
    disk: SimulatedDisk,
    file: usize,
    len: usize,
}

impl Write for OpenFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut platter = self.disk.platter();
        let fault = platter.call();
        let written = match fault {
            None => bytes.len(),
            Some(Fault::Error) => platter.random.below(bytes.len() + 1),
            Some(_) => 0,
        };
        platter.files[self.file].change(Change::Write { at: self.len, bytes: bytes[..written].to_vec() });
        self.len += written;
        fault.map_or(Ok(written), |fault| Err(failure(fault)))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for OpenFile {
    fn sync(&mut self) -> io::Result<()> {
        let mut platter = self.disk.platter();
        let fault = platter.call();
        let Platter { random, files, .. } = &mut *platter;
        let File { on_disk, pending, .. } = &mut files[self.file];
        match fault {
            None => pending.drain(..).for_each(|change| change.apply(on_disk)),
            Some(Fault::Error) => files[self.file].lose(random),
            Some(_) => {}
        }
        fault.map_or(Ok(()), |fault| Err(failure(fault)))
    }
}

const EVENTS: usize = 1100;
const CHECKPOINT_EVERY: usize = 100;
const CHECKPOINTS: usize = EVENTS / CHECKPOINT_EVERY;
const COMPACT_EVERY: u64 = 3;
const LATENESS_MIN: Minute = 60;

/// The job, without its threads.
struct State {
    progress: Progress,
    operators: Operators,
}

impl State {
    fn start() -> Self {
        Self { progress: Progress::start(), operators: Operators::new(|| Box::new(HotStore::new())) }
    }

    fn on_departure(&mut self, departure: &Departure) {
        let is_late = self.progress.on_departure(departure);
        self.operators.on_departure(departure, is_late).unwrap();
        if let Some(end) = self.progress.advance_watermark(departure.scheduled - LATENESS_MIN) {
            self.operators.close_windows(end).unwrap();
        }
    }
}

/// A job, and what its state has to be after every so many events.
struct Simulation {
    source: Source,
    expected: Vec<Slice>,
}

impl Simulation {
    fn new() -> Self {
        let mut source = Source::read(INPUT.as_ref()).unwrap();
        source.departures.truncate(EVENTS);
        let mut state = State::start();
        let mut expected = vec![state.operators.snapshot()];
        for departures in source.departures.chunks(CHECKPOINT_EVERY) {
            departures.iter().for_each(|departure| state.on_departure(departure));
            expected.push(state.operators.snapshot());
        }
        Self { source, expected }
    }

    fn job(&self) -> Job {
        Job { input_hash: self.source.hash, allowed_lateness_min: LATENESS_MIN as u32 }
    }

    fn expected_at(&self, position: u64) -> &Slice {
        assert_eq!(position as usize % CHECKPOINT_EVERY, 0);
        &self.expected[position as usize / CHECKPOINT_EVERY]
    }

    /// The newest checkpoint, which has to be as new as the last one acknowledged. None may be damaged, if not `damaged`.
    fn newest(&self, directory: &Directory, acknowledged: u64, damaged: bool) -> Result<Option<Checkpoint>> {
        let mut told = Vec::new();
        let newest = load_newest(directory, self.job(), &mut |problem| told.push(problem))?;
        assert!(told.is_empty() || damaged, "{told:?}");
        let position = newest.as_ref().map_or(0, |(_, checkpoint)| checkpoint.progress.position);
        assert!(position >= acknowledged, "{acknowledged} events are acknowledged, and {position} are there");
        Ok(newest.map(|(_, checkpoint)| {
            assert_eq!(checkpoint.slices, [self.expected_at(position).clone()]);
            checkpoint
        }))
    }

    /// One process of the job: until its end, or an error that ends it.
    fn process(&self, disk: &SimulatedDisk, run: &mut Run) -> Result<()> {
        let directory = Directory::open("checkpoints".into(), Box::new(disk.clone()))?;
        let mut state = State::start();
        if run.is_fresh {
            // Until all are gone, any of the checkpoints that nobody wants may be.
            run.is_clearing = true;
            run.acknowledged = 0;
            directory.clear()?;
            (run.is_fresh, run.is_clearing) = (false, false);
        } else if let Some(checkpoint) = self.newest(&directory, run.acknowledged, run.is_clearing)? {
            state.progress = checkpoint.progress;
            let [slice] = checkpoint.slices.try_into().map_err(|_| "there is one worker")?;
            state.operators.restore(slice);
        }
        let mut chain = ChainWriter::new(directory, COMPACT_EVERY)?;
        for departure in &self.source.departures[state.progress.position as usize..] {
            state.on_departure(departure);
            if state.progress.position as usize % CHECKPOINT_EVERY == 0 {
                let slices = vec![state.operators.snapshot()];
                let (progress, key_groups) = (state.progress.clone(), KEY_GROUPS);
                match chain.write(Checkpoint { job: self.job(), progress, key_groups, slices }, &|_| Ok(())) {
                    Ok(_) => run.acknowledged = state.progress.position,
                    Err(error) if disk.platter().is_dead => return Err(error),
                    Err(_) => run.failed += 1,
                }
                // The dead do not go on to the next event.
                if disk.platter().is_dead {
                    return Err("killed".into());
                }
            }
        }
        assert_eq!(state.operators.snapshot(), self.expected[CHECKPOINTS]);
        Ok(())
    }

    /// Runs process after process, until one comes to the end of the job. At last the power goes.
    fn run(&self, disk: &SimulatedDisk, run: &mut Run) {
        let mut processes = 0;
        while let Err(error) = self.process(disk, run) {
            disk.revive();
            processes += 1;
            assert!(processes < 5, "{error}");
            run.is_fresh = false;
        }
        let mut platter = disk.platter();
        run.unfinished = platter.seen.keys().filter(|name| name.extension().unwrap() == "tmp").count();
        run.calls = platter.calls;
        platter.faults.clear();
        platter.lose_power();
        drop(platter);
        let directory = Directory::open("checkpoints".into(), Box::new(disk.clone())).unwrap();
        self.newest(&directory, run.acknowledged, false).unwrap();
    }
}

/// What is known of a job that may take several processes.
#[derive(Default)]
struct Run {
    /// Whether the next process starts over.
    is_fresh: bool,
    /// Whether one died while it did.
    is_clearing: bool,
    /// The events before the last checkpoint that was acknowledged.
    acknowledged: u64,
    /// The checkpoints that failed.
    failed: usize,
    /// The calls of the disk.
    calls: usize,
    /// The files without a name that were there in the end.
    unfinished: usize,
}

#[test]
fn a_job_on_a_disk_without_faults_ends_well() {
    let (simulation, disk, mut run) = (Simulation::new(), SimulatedDisk::new(1), Run::default());
    simulation.run(&disk, &mut run);
    assert_eq!((run.acknowledged, run.failed), (EVENTS as u64, 0));
    // Three chains are kept, the last of two.
    assert_eq!(disk.platter().seen.len(), 8);
}

#[test]
fn whichever_call_fails_or_is_the_last_one_nothing_acknowledged_is_lost() {
    let simulation = Simulation::new();
    for is_fresh in [false, true] {
        let prepared = |seed| {
            let disk = SimulatedDisk::new(seed);
            if is_fresh {
                simulation.run(&disk, &mut Run::default());
            }
            disk.platter().calls = 0;
            disk
        };
        let disk = prepared(0);
        let mut run = Run { is_fresh, ..Run::default() };
        simulation.run(&disk, &mut run);
        assert!(run.calls > 70);
        for call in 0..run.calls {
            for (fault, seeds) in [(Fault::Kill, 1), (Fault::Error, 4), (Fault::PowerLoss, 8)] {
                for seed in 0..seeds {
                    let disk = prepared(seed);
                    disk.add_fault(call, fault);
                    let mut run = Run { is_fresh, ..Run::default() };
                    simulation.run(&disk, &mut run);
                    assert_eq!(run.unfinished, 0, "{fault:?} in call {call}");
                }
            }
        }
    }
}

#[test]
fn faults_upon_faults_lose_nothing_acknowledged() {
    let simulation = Simulation::new();
    let mut random = Random(7);
    for seed in 0..2000 {
        let disk = SimulatedDisk::new(seed);
        for _ in 0..4 {
            let fault = [Fault::Error, Fault::Error, Fault::Kill, Fault::PowerLoss][random.below(4)];
            disk.add_fault(random.below(40), fault);
        }
        simulation.run(&disk, &mut Run::default());
    }
}
