//! Cycles of an import graph.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::graph::{Arrow, ImportGraph};

/// Files of which each reaches every other, and one way around.
#[derive(Debug)]
pub(crate) struct Cycle<'a> {
    pub(crate) files: BTreeSet<&'a str>,
    /// A shortest cycle among them.
    pub(crate) shortest: Vec<&'a Arrow>,
}

impl ImportGraph {
    /// Returns the sets of files that reach each other, largest first.
    pub(crate) fn cycles(&self) -> Vec<Cycle<'_>> {
        let mut from: BTreeMap<&str, Vec<&Arrow>> = BTreeMap::new();
        for arrow in &self.arrows {
            from.entry(&arrow.from).or_default().push(arrow);
        }
        let ways: BTreeMap<&str, BTreeMap<&str, &Arrow>> =
            self.files.iter().map(|file| (file.as_str(), last_arrows(&from, file))).collect();

        let mut cycles = Vec::new();
        let mut left: BTreeSet<&str> = self.files.iter().map(String::as_str).collect();
        while let Some(file) = left.pop_first() {
            if !ways[file].contains_key(file) {
                continue;
            }
            let mut files = BTreeSet::from([file]);
            files
                .extend(left.iter().filter(|&&other| ways[file].contains_key(other) && ways[other].contains_key(file)));
            left.retain(|other| !files.contains(other));
            let around = files.iter().map(|file| way(&ways[file], file));
            let shortest = around.min_by_key(Vec::len).expect("the cycle has files");
            cycles.push(Cycle { files, shortest });
        }
        cycles.sort_by_key(|cycle| std::cmp::Reverse(cycle.files.len()));
        cycles
    }
}

/// Returns the last arrow of a shortest way from `start` to each file that it reaches.
fn last_arrows<'a>(from: &BTreeMap<&str, Vec<&'a Arrow>>, start: &'a str) -> BTreeMap<&'a str, &'a Arrow> {
    let mut last = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(file) = queue.pop_front() {
        for &arrow in from.get(file).into_iter().flatten() {
            last.entry(arrow.to.as_str()).or_insert_with(|| {
                queue.push_back(&arrow.to);
                arrow
            });
        }
    }
    last
}

/// Returns the way from `file` back to itself.
fn way<'a>(last: &BTreeMap<&str, &'a Arrow>, file: &str) -> Vec<&'a Arrow> {
    let mut way = vec![last[file]];
    while way[way.len() - 1].from != file {
        way.push(last[way[way.len() - 1].from.as_str()]);
    }
    way.reverse();
    way
}
