//! [`EvacuationQueue`]: closed chunks, those with the most dead records first.
//!
//! # Design
//!
//! Chunks are queued by the *class* of their dead part: how many 16ths of its filled part are dead. Each class is a list,
//! linked through an array beside the chunks. Taking a chunk from the front of the highest class takes O(1) time and is
//! at most a 16th away from the best choice. A search among all chunks would make emptying a store of many chunks
//! quadratic.
//!
//! # Invariants
//!
//! 1. A queued chunk is in the list of its class, once. `first` and the links lead both ways.
//! 2. A chunk in which less than a 16th is dead is not queued.

use super::reserve::{give_back, reserve_one};

/// The number of classes. Chunks of class 0 are not queued.
const CLASSES: usize = 17;

/// No chunk's index: the end of a list.
const END: u32 = u32::MAX;

/// Lists of chunks by class.
pub(super) struct EvacuationQueue {
    first: [u32; CLASSES],
    links: Vec<Link>,
}

#[derive(Clone, Copy)]
struct Link {
    before: u32,
    next: u32,
    /// 0 if the chunk is not queued.
    class: u8,
}

impl Link {
    const UNQUEUED: Self = Self { before: END, next: END, class: 0 };
}

impl EvacuationQueue {
    /// Makes an empty queue. Allocates nothing.
    pub(super) fn new() -> Self {
        Self { first: [END; CLASSES], links: Vec::new() }
    }

    pub(super) fn allocated_bytes(&self) -> usize {
        self.links.capacity() * size_of::<Link>()
    }

    /// Reserves room for one more chunk.
    pub(super) fn reserve(&mut self) {
        reserve_one(&mut self.links);
    }

    /// Sets the number of chunks. The new ones are not queued, and those that are gone were not.
    pub(super) fn resize(&mut self, chunks: usize) {
        self.links.resize(chunks, Link::UNQUEUED);
    }

    /// Gives memory back that is not used.
    pub(super) fn shrink(&mut self) {
        give_back(&mut self.links);
    }

    /// Puts a chunk where it belongs, with so many of its filled units dead. Returns the number of dead units at which to do
    /// this again.
    pub(super) fn update(&mut self, chunk: usize, dead: usize, units: usize) -> usize {
        let class = dead * (CLASSES - 1) / units;
        if class != usize::from(self.links[chunk].class) {
            self.remove(chunk);
            self.insert(chunk, class);
        }
        ((class + 1) * units).div_ceil(CLASSES - 1)
    }

    fn insert(&mut self, chunk: usize, class: usize) {
        if class == 0 {
            return;
        }
        let next = self.first[class];
        self.links[chunk] = Link { before: END, next, class: class as u8 };
        self.first[class] = chunk as u32;
        if let Some(next) = self.links.get_mut(next as usize) {
            next.before = chunk as u32;
        }
    }

    /// Removes a chunk if it is queued.
    pub(super) fn remove(&mut self, chunk: usize) {
        let Link { before, next, class } = std::mem::replace(&mut self.links[chunk], Link::UNQUEUED);
        if class == 0 {
            return;
        }
        match self.links.get_mut(before as usize) {
            Some(before) => before.next = next,
            None => self.first[usize::from(class)] = next,
        }
        if let Some(next) = self.links.get_mut(next as usize) {
            next.before = before;
        }
    }

    /// Removes and returns a chunk of the highest class.
    pub(super) fn pop(&mut self) -> Option<usize> {
        let chunk = self.first.iter().rev().find(|&&first| first != END).map(|&first| first as usize)?;
        self.remove(chunk);
        Some(chunk)
    }

    /// Checks the invariants. `dead` returns the dead units and all units of a chunk that should be queued.
    #[cfg(test)]
    pub(super) fn validate(&self, dead: impl Fn(usize) -> Option<(usize, usize)>) {
        for (chunk, link) in self.links.iter().enumerate() {
            let class = dead(chunk).map_or(0, |(dead, units)| dead * (CLASSES - 1) / units);
            assert_eq!(usize::from(link.class), class, "invariant 1 or 2 of the queue, chunk {chunk}");
        }
        let mut queued = 0;
        for class in 0..CLASSES {
            let (mut before, mut at) = (END, self.first[class]);
            while let Some(link) = self.links.get(at as usize) {
                assert_eq!((link.before, usize::from(link.class)), (before, class), "invariant 1 of the queue");
                (before, at) = (at, link.next);
                queued += 1;
            }
        }
        assert_eq!(queued, self.links.iter().filter(|link| link.class > 0).count(), "invariant 1 of the queue");
    }
}
