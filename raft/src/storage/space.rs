//! Spaces: rows divided by a prefix of their keys, so that whoever works in one space cannot see or touch another.
//!
//! Space 0 has no prefix. Every other begins with [`TAG`], which is no table's, and its number. Keys are given and seen
//! without the prefix.

use bytes::Bytes;

use crate::error::Fatal;
use crate::storage::keys::Key;
use crate::storage::rows::{Rows, Visit};

/// What the keys of every space but the first begin with.
pub const TAG: u8 = 0x08;

/// The prefix of one space's keys.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Space(Vec<u8>);

impl Space {
    /// The space of that number.
    pub fn number(number: u64) -> Self {
        if number == 0 {
            return Space::default();
        }
        let mut prefix = vec![TAG];
        prefix.extend_from_slice(&number.to_be_bytes());
        Space(prefix)
    }

    /// The first key of the space, and the first key after it. Not for the space without a prefix.
    pub fn range(&self) -> (Vec<u8>, Vec<u8>) {
        (self.0.clone(), Key::raw(&self.0).prefix_end())
    }

    /// The key as it is stored.
    pub fn key(&self, key: &[u8]) -> Vec<u8> {
        let mut full = Vec::with_capacity(self.0.len() + key.len());
        full.extend_from_slice(&self.0);
        full.extend_from_slice(key);
        full
    }

    /// The key as it is seen.
    pub fn strip<'k>(&self, key: &'k [u8]) -> Result<&'k [u8], Fatal> {
        key.strip_prefix(self.0.as_slice())
            .ok_or_else(|| Fatal::Corrupt(format!("a key of another space than {:?}: {key:?}", self.0)))
    }

    /// One row.
    pub fn get_bytes(&self, rows: &dyn Rows, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        if self.0.is_empty() { rows.get_bytes(key) } else { rows.get_bytes(&self.key(key)) }
    }

    /// Rows in key order.
    pub fn scan(&self, rows: &dyn Rows, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), Fatal> {
        if self.0.is_empty() {
            return rows.scan(from, to, visit);
        }
        rows.scan(&self.key(from), &self.key(to), &mut |key, value| visit(self.strip(key)?, value))
    }
}

/// The rows of one space.
pub struct SpaceRows<'r> {
    space: Space,
    rows: &'r dyn Rows,
}

impl<'r> SpaceRows<'r> {
    /// Looks at the space of that number.
    pub fn new(rows: &'r dyn Rows, number: u64) -> Self {
        SpaceRows { space: Space::number(number), rows }
    }
}

impl Rows for SpaceRows<'_> {
    fn get_bytes(&self, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        self.space.get_bytes(self.rows, key)
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), Fatal> {
        self.space.scan(self.rows, from, to, visit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::rows::MemoryRows;

    #[test]
    fn a_space_sees_its_own_rows_only() {
        let keys: [&[u8]; 3] = [b"\x30a", b"\x30b", b"\x31"];
        let mut rows = MemoryRows::default();
        for number in [0, 7, 8] {
            for key in keys {
                rows.0.insert(Space::number(number).key(key), Bytes::from(number.to_string()));
            }
        }
        for number in [0_u64, 7, 8] {
            let space = SpaceRows::new(&rows, number);
            let mut seen = Vec::new();
            space
                .scan(b"\x30", b"\xff", &mut |key, value| {
                    assert_eq!(value, number.to_string().as_bytes());
                    seen.push(key.to_vec());
                    Ok(true)
                })
                .unwrap();
            assert_eq!(seen, keys.map(<[u8]>::to_vec));
            assert_eq!(space.get_bytes(b"\x31").unwrap().unwrap(), number.to_string());
            assert!(space.get_bytes(b"\x32").unwrap().is_none());
        }
    }
}
