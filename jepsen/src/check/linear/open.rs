//! The beginnings and ends of operations that are not ordered yet: a linked list in the order of their places, from
//! which an operation is taken, and to which it is put back, without looking at any other.
//!
//! Invariant: operations are put back in the reverse order in which they were taken.
//!
//! Deliberately absent: what the operations are.

/// The list. Entry 0 is the head, the last one the tail.
#[derive(Debug)]
pub(crate) struct Open {
    entries: Vec<Entry>,
    next: Vec<usize>,
    before: Vec<usize>,
    /// Of each operation, the entries of its beginning and its end.
    at: Vec<(usize, usize)>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    place: usize,
    index: usize,
    is_end: bool,
}

impl Open {
    /// Operations by their index, each from one place to another; no place is there twice.
    pub(crate) fn new(spans: impl Iterator<Item = (usize, usize)>) -> Self {
        let head = Entry { place: 0, index: 0, is_end: false };
        let mut entries = Vec::new();
        let mut count = 0;
        for (index, (from, to)) in spans.enumerate() {
            entries.push(Entry { place: from, index, is_end: false });
            entries.push(Entry { place: to, index, is_end: true });
            count = index + 1;
        }
        entries.sort_by_key(|entry| (entry.place, entry.is_end));
        entries.insert(0, head);
        entries.push(Entry { place: usize::MAX, index: count, is_end: true });
        let mut at = vec![(0, 0); count];
        for (entry, Entry { index, is_end, .. }) in entries.iter().enumerate().skip(1).take(2 * count) {
            if *is_end { at[*index].1 = entry } else { at[*index].0 = entry }
        }
        let next = (1..=entries.len()).collect();
        let before = (0..entries.len()).map(|entry| entry.saturating_sub(1)).collect();
        Self { entries, next, before, at }
    }

    /// The operations that may come next, by their beginning, and the place of the first end: one of them must come
    /// before anything that begins after that.
    pub(crate) fn candidates(&self) -> (Vec<usize>, usize) {
        let mut found = Vec::new();
        let mut at = self.next[0];
        while !self.entries[at].is_end {
            found.push(self.entries[at].index);
            at = self.next[at];
        }
        (found, self.entries[at].place)
    }

    /// Takes an operation out.
    pub(crate) fn take(&mut self, index: usize) {
        let (begin, end) = self.at[index];
        for entry in [end, begin] {
            let (before, next) = (self.before[entry], self.next[entry]);
            self.next[before] = next;
            self.before[next] = before;
        }
    }

    /// Puts the operation back that was taken last.
    pub(crate) fn put_back(&mut self, index: usize) {
        let (begin, end) = self.at[index];
        for entry in [begin, end] {
            let (before, next) = (self.before[entry], self.next[entry]);
            self.next[before] = entry;
            self.before[next] = entry;
        }
    }
}
