//! The writes of one apply batch over the rows as they were before it.
//!
//! A room reads through a [`Txn`] what it and every earlier command of the batch wrote. The batch reaches RocksDB as one
//! write, with the head row in it: the rows and the applied index can never disagree.
//!
//! Each command works in one [`Space`], and leaves one row of the event history, which is no part of the digest: it is
//! derived from the rows.
//!
//! Invariant: rows are written in the order the commands ran, and the running digest takes in every one of them, so two
//! replicas that applied the same log have the same digest.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use prost::Message;
use xxhash_rust::xxh3::Xxh3;

use crate::error::Fatal;
use crate::storage::keys::Key;
use crate::storage::rows::{self, Rows, Visit};
use crate::storage::space::Space;

/// What a batch leaves to be written at once.
#[derive(Debug, Default)]
pub struct Writes {
    /// In key order; `None` is a removal.
    pub rows: BTreeMap<Vec<u8>, Option<Bytes>>,
    /// Ranges of keys, from and to, that go with all that is in them.
    pub ranges_gone: Vec<(Vec<u8>, Vec<u8>)>,
    /// The event history's new rows, by rev and space.
    pub events: BTreeMap<(u64, u64), Bytes>,
    /// The event history up to this rev goes.
    pub events_gone: Option<u64>,
}

/// An open batch of writes.
pub struct Txn<'a> {
    base: &'a dyn Rows,
    space: Space,
    writes: Writes,
    /// The keys that this command wrote, in order, without the space's prefix.
    written: Vec<Vec<u8>>,
    digest: u128,
    count: u64,
    bytes: usize,
}

impl<'a> Txn<'a> {
    /// Opens a batch over `base`, continuing the running digest.
    pub fn new(base: &'a dyn Rows, digest: u128) -> Self {
        Txn {
            base,
            space: Space::default(),
            writes: Writes::default(),
            written: Vec::new(),
            digest,
            count: 0,
            bytes: 0,
        }
    }

    /// Begins a command, in the space of that number.
    pub fn enter(&mut self, number: u64) {
        self.space = Space::number(number);
        self.written.clear();
    }

    /// The keys that the command wrote, in the order of its writes, some more than once.
    pub fn take_written(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.written)
    }

    /// Removes every row of the space of that number, which nobody reads or writes any more, and which is not the first.
    pub fn delete_space(&mut self, number: u64) {
        let (from, to) = Space::number(number).range();
        self.mix(&from, None);
        self.writes.ranges_gone.push((from, to));
    }

    /// How much was written so far, rows and events.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a row to the event history.
    pub fn put_events(&mut self, rev: u64, space: u64, value: Bytes) {
        self.bytes += value.len();
        self.writes.events.insert((rev, space), value);
    }

    /// Removes the event history up to `rev`.
    pub fn forget_events(&mut self, through_rev: u64) {
        self.writes.events_gone = self.writes.events_gone.max(Some(through_rev));
    }

    /// Reads and decodes one row.
    pub fn get<M: Message + Default>(&self, key: &Key) -> Result<Option<M>, Fatal> {
        rows::get(self, key)
    }

    /// Writes one row.
    pub fn put(&mut self, key: &Key, row: &impl Message) {
        self.put_bytes(key, row.encode_to_vec().into());
    }

    /// Writes one row that is not a message.
    pub fn put_bytes(&mut self, key: &Key, value: Bytes) {
        self.write(key, Some(value));
    }

    /// Removes one row.
    pub fn delete(&mut self, key: &Key) {
        self.write(key, None);
    }

    fn write(&mut self, key: &Key, value: Option<Bytes>) {
        let full = self.space.key(key.as_bytes());
        self.mix(&full, value.as_deref());
        self.bytes += full.len() + value.as_ref().map_or(0, Bytes::len);
        self.writes.rows.insert(full, value);
        self.written.push(key.as_bytes().to_vec());
    }

    /// How many writes were made so far: a rejected command must leave it as it was.
    pub fn write_count(&self) -> u64 {
        self.count
    }

    /// The running digest with every write so far.
    pub fn digest(&self) -> u128 {
        self.digest
    }

    /// What is to be written.
    pub fn into_writes(self) -> Writes {
        self.writes
    }

    fn mix(&mut self, key: &[u8], value: Option<&[u8]>) {
        let mut hash = Xxh3::new();
        hash.update(&self.digest.to_be_bytes());
        hash.update(&(key.len() as u64).to_be_bytes());
        hash.update(key);
        match value {
            Some(value) => {
                hash.update(&[1]);
                hash.update(value);
            }
            None => hash.update(&[0]),
        }
        self.digest = hash.digest128();
        self.count += 1;
    }
}

impl Rows for Txn<'_> {
    fn get_bytes(&self, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        self.space.get_bytes(&Merged(self), key)
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), Fatal> {
        self.space.scan(&Merged(self), from, to, visit)
    }
}

/// The base's rows and the batch's, of every space.
struct Merged<'m, 'a>(&'m Txn<'a>);

impl Rows for Merged<'_, '_> {
    fn get_bytes(&self, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        let Txn { writes, base, .. } = self.0;
        match writes.rows.get(key) {
            Some(value) => Ok(value.clone()),
            None => base.get_bytes(key),
        }
    }

    /// The base's rows and this batch's, in one order.
    fn scan(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), Fatal> {
        if from >= to {
            return Ok(());
        }
        let Txn { writes, base, .. } = self.0;
        let mut ours = writes.rows.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to))).peekable();
        let mut stopped = false;
        base.scan(from, to, &mut |key, value| {
            while let Some((our_key, our_value)) = ours.next_if(|(our_key, _)| our_key.as_slice() < key) {
                if let Some(our_value) = our_value
                    && !visit(our_key, our_value)?
                {
                    stopped = true;
                    return Ok(false);
                }
            }
            let go_on = match ours.next_if(|(our_key, _)| our_key.as_slice() == key) {
                Some((_, Some(our_value))) => visit(key, our_value)?,
                Some((_, None)) => true,
                None => visit(key, value)?,
            };
            stopped = !go_on;
            Ok(go_on)
        })?;
        if !stopped {
            for (our_key, our_value) in ours {
                if let Some(our_value) = our_value
                    && !visit(our_key, our_value)?
                {
                    break;
                }
            }
        }
        Ok(())
    }
}
