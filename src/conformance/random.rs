//! [`program`]: random programs, the same for the same seed.

use std::ops::Bound;

use bytes::Bytes;

use super::literal::pattern;
use super::op::{KeyBound, Op};

/// One in so many programs uses keys from a wide alphabet, so that the store grows and not only its entries change.
const WIDE: u64 = 4;
const WIDE_KEYS: u64 = 600;

/// The keys of other programs, so few that calls meet.
const KEYS: u64 = 14;

/// SplitMix64: Steele, Lea and Flood, *Fast Splittable Pseudorandom Number Generators*, OOPSLA 2014.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end`. The bias of the remainder does not matter for numbers this small.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn pick<T: Clone>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize].clone()
    }
}

/// Keys that cause trouble: empty, the lowest and highest bytes, beginnings of one another, lengths around those where
/// stores and `Bytes` change their layout.
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
        // Equal but for the last byte, and one that is the beginning of the longer ones.
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
        // Values of a wide program are short, or copying them is all that its time goes to.
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

    /// A snapshot that is held, mostly: the number of one that is not makes a call that does nothing.
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
            0..=5 => Op::Get(self.key()),
            6..=7 => Op::Contains(self.key()),
            8..=10 => Op::Read(self.key()),
            11..=13 => {
                let len = self.random.below(20);
                Op::GetMany((0..len).map(|_| self.key()).collect())
            }
            14..=16 => Op::PrefixScan(self.prefix()),
            17..=18 => Op::RangeScan(self.key(), self.key()),
            19..=20 => Op::Scan(self.bound(), self.bound()),
            21..=23 => {
                let stop = self.random.pick(&[1, 2, 3, usize::from(u16::MAX)]);
                Op::VisitRange(self.bound(), self.bound(), stop)
            }
            24..=46 => Op::Put(self.key(), self.value()),
            47..=49 => {
                let len = self.random.below(20);
                Op::PutMany((0..len).map(|_| (self.key(), self.value())).collect())
            }
            50..=53 => Op::PutBytes(self.key(), self.value()),
            54..=57 => Op::GetOrInsert(self.key(), self.value()),
            58..=67 => Op::Modify(self.key(), self.random.next() as u8),
            68..=75 => Op::Delete(self.key()),
            76 => Op::DeleteRange(self.key(), self.key()),
            77 if !self.is_wide => Op::Clear,
            78 => Op::Flush,
            79..=83 if self.snapshots.len() < 4 => {
                self.taken += 1;
                self.snapshots.push(self.taken);
                Op::Snapshot(self.taken)
            }
            84..=85 => Op::Restore(self.snapshot()),
            86 => self.without(Op::RestoreLast),
            87 => Op::RestoreImage(self.snapshot()),
            88 => Op::Recover(self.snapshot()),
            89 if !self.is_wide => {
                let len = self.random.below(10);
                Op::RestoreEntries((0..len).map(|_| (self.key(), self.value())).collect())
            }
            90..=92 => self.without(Op::DropSnapshot),
            93 => Op::ReadOnThread(self.snapshot()),
            94..=96 => Op::DropHandles,
            97..=98 => Op::Verify,
            _ => Op::Put(self.key(), self.value()),
        }
    }

    /// A call after which the snapshot is no longer held.
    fn without(&mut self, op: impl Fn(usize) -> Op) -> Op {
        let id = self.snapshot();
        self.snapshots.retain(|&other| other != id);
        op(id)
    }
}

/// A program of `calls` calls, preceded by puts where the alphabet is wide.
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
