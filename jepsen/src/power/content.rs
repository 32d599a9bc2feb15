//! What a file holds: the bytes that a reader sees, the bytes that outlive a cut, and the changes between the two.
//!
//! Owns the rule of durability for one file. A sync makes all changes since the last one durable. A sync that failed
//! makes none of them durable, ever: they stay readable, as pages do that the kernel has marked clean, and a later sync
//! that succeeds says nothing about them.
//!
//! Synced pages are held once, changes in addition to what they made of the file: one that is never synced is held
//! twice.
//!
//! Deliberately absent: names, and when a sync fails.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::rng::Rng;

/// Small, because the first write to a page after a sync copies it.
const PAGE_BYTES: usize = 16 << 10;
/// What a device writes whole or not at all.
const SECTOR_BYTES: u64 = 512;

/// Bytes in pages. A page that is not there is all zero; so is everything in a page behind the end.
#[derive(Clone, Debug, Default)]
struct Content {
    len: u64,
    pages: BTreeMap<u64, Arc<[u8; PAGE_BYTES]>>,
}

/// The page of a place, and where in it that is.
fn place(at: u64) -> (u64, usize) {
    (at / PAGE_BYTES as u64, (at % PAGE_BYTES as u64) as usize)
}

impl Content {
    fn read(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let end = self.len.min(offset.saturating_add(bytes as u64));
        let mut read = Vec::with_capacity(end.saturating_sub(offset) as usize);
        let mut at = offset;
        while at < end {
            let (page, from) = place(at);
            let count = (PAGE_BYTES - from).min((end - at) as usize);
            match self.pages.get(&page) {
                Some(page) => read.extend_from_slice(&page[from..from + count]),
                None => read.resize(read.len() + count, 0),
            }
            at += count as u64;
        }
        read
    }

    fn page_mut(&mut self, page: u64) -> &mut [u8; PAGE_BYTES] {
        Arc::make_mut(self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE_BYTES])))
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (mut at, mut rest) = (offset, data);
        while !rest.is_empty() {
            let (page, from) = place(at);
            let (now, later) = rest.split_at(rest.len().min(PAGE_BYTES - from));
            self.page_mut(page)[from..from + now.len()].copy_from_slice(now);
            (at, rest) = (at + now.len() as u64, later);
        }
        self.len = self.len.max(at);
    }

    fn set_len(&mut self, len: u64) {
        if len < self.len {
            let _behind = self.pages.split_off(&len.div_ceil(PAGE_BYTES as u64));
            let (page, from) = place(len);
            if let Some(page) = self.pages.get_mut(&page) {
                Arc::make_mut(page)[from..].fill(0);
            }
        }
        self.len = len;
    }

    /// Takes over the pages of a range, without copying them.
    fn share(&mut self, from: &Self, offset: u64, bytes: u64) {
        let (first, last) = (place(offset).0, place(offset + bytes.saturating_sub(1)).0);
        for at in first..=last {
            match from.pages.get(&at) {
                Some(page) => self.pages.insert(at, Arc::clone(page)),
                None => self.pages.remove(&at),
            };
        }
    }

    fn flip(&mut self, offset: u64, bit: u8) {
        if offset < self.len {
            let (page, at) = place(offset);
            self.page_mut(page)[at] ^= 1 << (bit % 8);
        }
    }
}

/// One change of a file.
#[derive(Clone, Debug)]
enum Change {
    Write { offset: u64, data: Box<[u8]> },
    SetLen(u64),
}

impl Change {
    fn bytes(&self) -> u64 {
        match self {
            Change::Write { data, .. } => data.len() as u64,
            Change::SetLen(_) => 0,
        }
    }

    fn apply(&self, to: &mut Content) {
        match self {
            Change::Write { offset, data } => to.write(*offset, data),
            Change::SetLen(len) => to.set_len(*len),
        }
    }

    /// Maybe only the sectors before a place within. Gives how many bytes were applied.
    fn apply_torn(&self, to: &mut Content, rng: &mut Rng) -> u64 {
        if let Change::Write { offset, data } = self {
            let first = (offset / SECTOR_BYTES + 1) * SECTOR_BYTES;
            let within = (offset + data.len() as u64).saturating_sub(first).div_ceil(SECTOR_BYTES);
            let chosen = rng.below(within + 1);
            if chosen < within {
                let kept = (first + chosen * SECTOR_BYTES - offset) as usize;
                to.write(*offset, &data[..kept.min(data.len())]);
                return kept as u64;
            }
        }
        self.apply(to);
        self.bytes()
    }
}

/// A file's content.
#[derive(Debug, Default)]
pub(super) struct FileData {
    live: Content,
    durable: Content,
    /// Since the last sync, oldest first.
    changes: Vec<Change>,
    /// Bytes of changes that a failed sync gave up.
    doomed_bytes: u64,
    /// A sync has failed: `live` holds what `durable` and `changes` do not.
    is_doomed: bool,
    /// Space that was set aside, from the beginning of the file.
    reserved: u64,
}

impl FileData {
    /// How long it is.
    pub(super) fn len(&self) -> u64 {
        self.live.len
    }

    /// How long it is after a cut that loses everything.
    pub(super) fn durable_len(&self) -> u64 {
        self.durable.len
    }

    /// The space that it takes.
    pub(super) fn extent(&self) -> u64 {
        self.live.len.max(self.reserved)
    }

    /// At most so many bytes from there: fewer at the end.
    pub(super) fn read(&self, offset: u64, bytes: usize) -> Vec<u8> {
        self.live.read(offset, bytes)
    }

    /// Overwrites, and extends where necessary. Writing nothing changes nothing.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        if !data.is_empty() {
            self.live.write(offset, data);
            self.changes.push(Change::Write { offset, data: data.into() });
        }
    }

    /// Cuts off, or extends with zeros. Space set aside behind the end is given back.
    pub(super) fn set_len(&mut self, len: u64) {
        self.reserved = 0;
        if len != self.live.len {
            self.live.set_len(len);
            self.changes.push(Change::SetLen(len));
        }
    }

    /// Sets space aside up to there.
    pub(super) fn reserve(&mut self, end: u64) {
        self.reserved = self.reserved.max(end);
    }

    /// Everything since the last sync outlives a cut.
    pub(super) fn sync(&mut self) {
        let changes = std::mem::take(&mut self.changes);
        if self.is_doomed {
            changes.iter().for_each(|change| change.apply(&mut self.durable));
            return;
        }
        for change in &changes {
            match change {
                Change::Write { offset, data } => self.durable.share(&self.live, *offset, data.len() as u64),
                Change::SetLen(len) => self.durable.set_len(*len),
            }
        }
        self.durable.len = self.live.len;
    }

    /// A sync failed: what was to be made durable never will be, and stays readable.
    pub(super) fn doom(&mut self) {
        self.is_doomed |= !self.changes.is_empty();
        self.doomed_bytes += self.changes.drain(..).map(|change| change.bytes()).sum::<u64>();
    }

    /// The power is gone. With `tail`, some first changes survive, the last of them maybe in part. Gives the bytes
    /// lost.
    pub(super) fn cut(&mut self, tail: Option<&mut Rng>) -> u64 {
        let changes = std::mem::take(&mut self.changes);
        let written: u64 = self.doomed_bytes + changes.iter().map(Change::bytes).sum::<u64>();
        let kept = tail.map_or(0, |rng| self.keep_first(&changes, rng));
        self.live = self.durable.clone();
        (self.doomed_bytes, self.is_doomed, self.reserved) = (0, false, 0);
        written - kept
    }

    fn keep_first(&mut self, changes: &[Change], rng: &mut Rng) -> u64 {
        let survivors = rng.below(changes.len() as u64 + 1) as usize;
        let Some((last, whole)) = changes.get(..survivors).and_then(<[Change]>::split_last) else { return 0 };
        whole.iter().for_each(|change| change.apply(&mut self.durable));
        whole.iter().map(Change::bytes).sum::<u64>() + last.apply_torn(&mut self.durable, rng)
    }

    /// Flips a bit for readers, and for whoever reads after a cut.
    pub(super) fn flip(&mut self, offset: u64, bit: u8) {
        self.live.flip(offset, bit);
        self.durable.flip(offset, bit);
    }
}
