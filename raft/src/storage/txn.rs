//! The writes of one apply batch over the rows as they were before it.
//!
//! A room reads through a [`Txn`] what it and every earlier command of the batch wrote. The batch reaches RocksDB as one
//! write, with the head row in it: the rows and the applied index can never disagree.
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

/// An open batch of writes.
pub struct Txn<'a> {
    base: &'a dyn Rows,
    writes: BTreeMap<Vec<u8>, Option<Bytes>>,
    digest: u128,
    count: u64,
}

impl<'a> Txn<'a> {
    /// Opens a batch over `base`, continuing the running digest.
    pub fn new(base: &'a dyn Rows, digest: u128) -> Self {
        Txn { base, writes: BTreeMap::new(), digest, count: 0 }
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
        self.mix(key.as_bytes(), Some(&value));
        self.writes.insert(key.as_bytes().to_vec(), Some(value));
    }

    /// Removes one row.
    pub fn delete(&mut self, key: &Key) {
        self.mix(key.as_bytes(), None);
        self.writes.insert(key.as_bytes().to_vec(), None);
    }

    /// How many writes were made so far: a rejected command must leave it as it was.
    pub fn write_count(&self) -> u64 {
        self.count
    }

    /// The running digest with every write so far.
    pub fn digest(&self) -> u128 {
        self.digest
    }

    /// The writes, in key order; `None` is a removal.
    pub fn into_writes(self) -> BTreeMap<Vec<u8>, Option<Bytes>> {
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
        match self.writes.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.base.get_bytes(key),
        }
    }

    /// The base's rows and this batch's, merged. The batch's part is small, so it is collected first.
    fn scan(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), Fatal> {
        if from >= to {
            return Ok(());
        }
        let mut ours = self.writes.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to))).peekable();
        let mut stopped = false;
        self.base.scan(from, to, &mut |key, value| {
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
