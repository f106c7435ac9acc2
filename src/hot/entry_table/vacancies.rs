//! [`Vacancies`]: which slots of the table's pages are vacant, for the writer alone.
//!
//! # Design
//!
//! The vacant slots of a page form a list through the slots themselves. This has the first slot of each list, and a
//! list of the pages that have any. The page that got a vacant slot last comes first: it is the likeliest to be in the
//! cache and to be the writer's own already.
//!
//! # Invariants
//!
//! 1. Every page with a vacant slot is linked once, but for the last page while it is being emptied.
//! 2. `used` counts a page's slots that are not vacant.

use std::mem;

use crate::hot::reserve::{give_back, reserve_one};

/// No page's number: the end of the list.
const END: u32 = u32::MAX;

/// The vacant slots of a table with pages of up to 128 slots.
pub(super) struct Vacancies {
    pages: Vec<PageState>,
    first: u32,
    /// `true` while the last page is being emptied, and gets no entries.
    empties_last: bool,
}

#[derive(Clone, Copy)]
struct PageState {
    before: u32,
    next: u32,
    used: u8,
    /// The first vacant slot, or the number of slots.
    vacant: u8,
}

impl Vacancies {
    /// Makes a list of no pages. Allocates nothing.
    pub(super) fn new() -> Self {
        Self { pages: Vec::new(), first: END, empties_last: false }
    }

    /// Returns the number of pages.
    pub(super) fn pages(&self) -> usize {
        self.pages.len()
    }

    pub(super) fn allocated_bytes(&self) -> usize {
        self.pages.capacity() * size_of::<PageState>()
    }

    /// Reserves room for one more page.
    pub(super) fn reserve_page(&mut self) {
        reserve_one(&mut self.pages);
    }

    /// Adds a page whose slots are all vacant, the first one first.
    pub(super) fn push_page(&mut self) {
        self.pages.push(PageState { before: END, next: END, used: 0, vacant: 0 });
        self.link(self.pages.len() - 1);
    }

    /// Removes the last page, which is empty.
    pub(super) fn pop_page(&mut self) {
        if !self.empties_last {
            self.unlink(self.pages.len() - 1);
        }
        self.empties_last = false;
        self.pages.pop();
    }

    /// Returns the page and the vacant slot to be used next.
    #[inline]
    pub(super) fn first(&self) -> Option<(usize, usize)> {
        let page = self.pages.get(self.first as usize)?;
        Some((self.first as usize, page.vacant.into()))
    }

    /// Says that the vacant slot to be used next is used, which led to the slot `next` of its page.
    #[inline]
    pub(super) fn use_first(&mut self, next: usize, slots: usize) {
        let at = self.first as usize;
        let page = &mut self.pages[at];
        page.used += 1;
        page.vacant = next as u8;
        if next == slots {
            self.unlink(at);
        }
    }

    /// Says that a slot is vacant from now on. Returns the vacant slot of its page that it is to lead to.
    #[inline]
    pub(super) fn vacate(&mut self, page: usize, slot: usize, slots: usize) -> usize {
        let state = &mut self.pages[page];
        let next = usize::from(mem::replace(&mut state.vacant, slot as u8));
        state.used -= 1;
        if next == slots && !(self.empties_last && page == self.pages.len() - 1) {
            self.link(page);
        }
        next
    }

    /// Returns the number of used slots of the last page.
    pub(super) fn used_in_last(&self) -> usize {
        self.pages.last().map_or(0, |page| page.used.into())
    }

    /// Begins to empty the last page. Goes on if that has begun.
    pub(super) fn empty_last(&mut self, slots: usize) {
        let Some(last) = self.pages.last() else { return };
        if !self.empties_last && usize::from(last.vacant) < slots {
            self.unlink(self.pages.len() - 1);
        }
        self.empties_last = true;
    }

    /// Stops to empty the last page, because the others are full.
    pub(super) fn keep_last(&mut self, slots: usize) {
        if mem::take(&mut self.empties_last) && self.pages.last().is_some_and(|page| usize::from(page.vacant) < slots) {
            self.link(self.pages.len() - 1);
        }
    }

    /// Gives memory back if there were far more pages.
    pub(super) fn shrink(&mut self) {
        if self.pages.capacity() > 64 {
            give_back(&mut self.pages);
        }
    }

    /// Links a page in front of the others.
    fn link(&mut self, page: usize) {
        (self.pages[page].before, self.pages[page].next) = (END, self.first);
        if let Some(next) = self.pages.get_mut(self.first as usize) {
            next.before = page as u32;
        }
        self.first = page as u32;
    }

    fn unlink(&mut self, page: usize) {
        let PageState { before, next, .. } = self.pages[page];
        match self.pages.get_mut(before as usize) {
            Some(before) => before.next = next,
            None => self.first = next,
        }
        if let Some(next) = self.pages.get_mut(next as usize) {
            next.before = before;
        }
    }

    /// Checks the invariants. `vacant_in` returns the vacant slots of a page, in the order of its list.
    #[cfg(test)]
    pub(super) fn validate(&self, slots: usize, vacant_in: impl Fn(usize, usize) -> Vec<usize>) {
        let mut linked = vec![false; self.pages.len()];
        let (mut before, mut at) = (END, self.first);
        while at != END {
            assert_eq!(self.pages[at as usize].before, before, "invariant 1 of vacancies");
            assert!(!mem::replace(&mut linked[at as usize], true), "invariant 1 of vacancies");
            (before, at) = (at, self.pages[at as usize].next);
        }
        for (number, page) in self.pages.iter().enumerate() {
            let vacant = vacant_in(number, page.vacant.into());
            assert_eq!(vacant.len() + usize::from(page.used), slots, "invariant 2 of vacancies");
            let is_emptied = self.empties_last && number + 1 == self.pages.len();
            assert_eq!(linked[number], !vacant.is_empty() && !is_emptied, "invariant 1 of vacancies");
        }
    }
}
