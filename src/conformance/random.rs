//! [`program`]: random programs. Equal seeds give equal programs.

use std::ops::Bound;

use bytes::Bytes;

use super::check::KeyBound;
use super::literal::pattern;
use super::op::Op;
use super::walk::Walk;

/// One in this many programs uses a wide alphabet of keys. Then the store grows, and not only its values change.
const WIDE: u64 = 4;
const WIDE_KEYS: u64 = 600;

/// Number of keys in other programs. There are few, so that calls meet at the same keys.
const KEYS: u64 = 14;

/// SplitMix64, from Steele, Lea and Flood, *Fast Splittable Pseudorandom Number Generators*, OOPSLA 2014.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Returns a number below `end`. The bias of the remainder does not matter for numbers this small.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn pick<T: Clone>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize].clone()
    }
}

/// Returns keys that cause trouble: empty, the lowest and highest bytes, prefixes of others, and lengths around the
/// points where stores and `Bytes` change their layout.
fn adversarial_keys() -> Vec<Bytes> {
    let mut keys: Vec<Bytes> = [
        &b""[..],
        b"\0",
        b"\0\0",
        b"\0\xFF",
        b"\x01",
        b"\x7F",
        b"\x80",
        b"\xFE",
        b"\xFE\xFF",
        b"\xFF",
        b"\xFF\0",
        b"\xFF\xFF",
        b"\xFF\xFF\xFF\xFF",
        b"a",
        b"a\0",
        b"a\0\0",
        b"a\xFF",
        b"a\xFF\xFF",
        b"ab",
        b"abc",
        b"b",
        b"aa",
    ]
    .map(Bytes::from_static)
    .into();
    for len in [7, 8, 9, 14, 15, 16, 17, 22, 23, 24, 255, 256, 257, 300] {
        // Add keys that differ in the last byte only, and a key that is a prefix of the longer ones.
        for last in [0x00, b'k', 0xFF] {
            let mut key = vec![b'k'; len];
            key[len - 1] = last;
            keys.push(key.into());
        }
    }
    keys.extend([15, 16, 300].map(|len| Bytes::from(vec![0xFF; len])));
    keys.extend([15, 16, 300].map(|len| Bytes::from(vec![0; len])));
    keys
}

const VALUE_LENS: [usize; 14] = [0, 1, 2, 8, 8, 8, 21, 22, 23, 24, 64, 256, 1024, 5000];

struct Generator {
    random: SplitMix64,
    keys: Vec<Bytes>,
    is_wide: bool,
    snapshots: Vec<usize>,
    taken: usize,
}

impl Generator {
    fn key(&mut self) -> Bytes {
        self.random.pick(&self.keys)
    }

    fn value(&mut self) -> Bytes {
        // Values of a wide program are short. Otherwise copying them would take all of its time.
        let len = self.random.pick(&VALUE_LENS[..if self.is_wide { 10 } else { VALUE_LENS.len() }]);
        pattern(len, self.random.next() as u8)
    }

    fn bound(&mut self) -> KeyBound {
        match self.random.below(5) {
            0 => Bound::Unbounded,
            1 | 2 => Bound::Included(self.key()),
            _ => Bound::Excluded(self.key()),
        }
    }

    fn walk(&mut self) -> Walk {
        match self.random.below(4) {
            0 => Walk::Up,
            1 => Walk::Down,
            _ => Walk::Turns(self.random.next() as u8),
        }
    }

    /// Returns the number of entries after which a visit stops.
    fn stop(&mut self) -> usize {
        self.random.pick(&[1, 2, 3, usize::from(u16::MAX)])
    }

    /// Returns at least `least` and fewer than `end` entries.
    fn entries(&mut self, least: u64, end: u64) -> Vec<(Bytes, Bytes)> {
        let len = least + self.random.below(end - least);
        (0..len).map(|_| (self.key(), self.value())).collect()
    }

    /// Returns the number of a snapshot, usually a held one. A call with any other number does nothing.
    fn snapshot(&mut self) -> usize {
        if self.snapshots.is_empty() { 0 } else { self.random.pick(&self.snapshots) }
    }

    fn prefix(&mut self) -> Bytes {
        let key = self.key();
        let len = self.random.below(key.len() as u64 + 1) as usize;
        key.slice(..len)
    }

    fn op(&mut self) -> Op {
        match self.random.below(100) {
            0..=4 => Op::Get(self.key()),
            5 => Op::TryGet(self.key()),
            6 => Op::Contains(self.key()),
            7..=8 => Op::Read(self.key()),
            9..=11 => {
                let len = self.random.below(20);
                Op::GetMany((0..len).map(|_| self.key()).collect())
            }
            12..=13 => Op::PrefixScan(self.prefix()),
            14 => Op::RangeScan(self.key(), self.key()),
            15..=18 => Op::Entries(self.bound(), self.bound(), self.walk()),
            19..=20 => Op::VisitRange(self.bound(), self.bound(), self.stop()),
            21 => Op::TryVisitRange(self.bound(), self.bound(), self.stop()),
            22..=44 => Op::Put(self.key(), self.value()),
            45..=47 => Op::PutMany(self.entries(0, 20)),
            48..=51 => Op::PutBytes(self.key(), self.value()),
            52..=54 => Op::GetOrInsert(self.key(), self.value()),
            55..=63 => Op::Modify(self.key(), self.random.next() as u8),
            64..=69 => Op::Delete(self.key()),
            70..=72 => Op::Take(self.key()),
            73..=74 => {
                let limit = self.random.pick(&[0, 1, 2, 3, 8, usize::MAX]);
                Op::DeleteWithin(self.bound(), self.bound(), limit)
            }
            75 if !self.is_wide => Op::Clear,
            76 => Op::Flush,
            77..=81 if self.snapshots.len() < 4 => {
                self.taken += 1;
                self.snapshots.push(self.taken);
                Op::Snapshot(self.taken)
            }
            82 => Op::Restore(self.snapshot()),
            83 => Op::TryRestore(self.snapshot()),
            84 => self.without(Op::RestoreLast),
            85 => Op::RestoreImage(self.snapshot()),
            86 => Op::RestoreUnverified(self.snapshot()),
            87 => Op::Recover(self.snapshot()),
            88 if !self.is_wide => Op::RestoreEntries(self.entries(0, 10)),
            89 => Op::RestoreDamaged(self.entries(1, 10)),
            90..=92 => self.without(Op::DropSnapshot),
            93 => Op::ReadOnThread(self.snapshot()),
            94..=96 => Op::DropHandles,
            97..=98 => Op::Verify,
            _ => Op::Put(self.key(), self.value()),
        }
    }

    /// Returns a call that consumes the snapshot.
    fn without(&mut self, op: impl Fn(usize) -> Op) -> Op {
        let id = self.snapshot();
        self.snapshots.retain(|&other| other != id);
        op(id)
    }
}

/// Returns a program of `calls` calls. If the alphabet is wide, puts precede them.
pub(super) fn program(seed: u64, calls: usize) -> Vec<Op> {
    let mut random = SplitMix64(seed);
    let is_wide = random.below(WIDE) == 0;
    let keys = if is_wide {
        (0..WIDE_KEYS).map(|i| Bytes::from(format!("{:03}/key", i * 7 % 1000))).collect()
    } else {
        let all = adversarial_keys();
        (0..KEYS).map(|_| random.pick(&all)).collect()
    };
    let mut generator = Generator { random, keys, is_wide, snapshots: Vec::new(), taken: 0 };
    let filling = if is_wide { WIDE_KEYS } else { 0 };
    let mut program: Vec<Op> = (0..filling).map(|_| Op::Put(generator.key(), generator.value())).collect();
    program.extend((0..calls).map(|_| generator.op()));
    program
}
