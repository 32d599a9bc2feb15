//! Blobs: how often each chunk beside the log is referred to.
//!
//! Owns the Chunk rows: one for each chunk that a row of this namespace refers to, with the number of references.
//! Whoever keeps a [`BlobRef`] in a row holds it, and releases it when the row lets go of it; a chunk that occurs twice
//! in one blob counts twice. A node keeps the file of a chunk as long as there is such a row in any namespace.
//!
//! Invariant: a row's count is 1 or more; the last release removes it. No index: nothing here is looked for but by
//! hash.
//!
//! Deliberately absent: the content, and whether it is stored anywhere. A node makes sure of that before it proposes a
//! reference, because the state can see no files.

use std::num::NonZeroU64;

use bytes::Bytes;
use quorate_proto::v1::BlobRef;

use crate::error::{Fatal, Outcome, invalid};
use crate::state::Out;
use crate::storage::keys::{Key, Table};
use crate::storage::rows::Rows;

/// The length of a BLAKE3 hash.
pub const HASH_BYTES: usize = 32;
/// How much of a blob is in each chunk but the last.
pub const CHUNK_BYTES: u64 = 1 << 20;
/// The largest blob.
pub const MAX_BLOB_BYTES: u64 = 256 << 20;

/// Checks the shape of a reference.
pub fn check_ref(field: &str, blob: &BlobRef) -> Outcome<()> {
    if blob.hash.len() != HASH_BYTES {
        return Err(invalid(field, format!("{field}.hash must be {HASH_BYTES} bytes; got {}", blob.hash.len())));
    }
    if !(1..=MAX_BLOB_BYTES).contains(&blob.size_bytes) {
        let message = format!("{field}.size_bytes must be 1 to {MAX_BLOB_BYTES}; got {}", blob.size_bytes);
        return Err(invalid(field, message));
    }
    let wanted = blob.size_bytes.div_ceil(CHUNK_BYTES);
    if blob.chunks.len() as u64 != wanted {
        let (size, given) = (blob.size_bytes, blob.chunks.len());
        return Err(invalid(field, format!("{field}.chunks must be {wanted} hashes for {size} bytes; got {given}")));
    }
    match blob.chunks.iter().find(|chunk| chunk.len() != HASH_BYTES) {
        Some(chunk) => {
            Err(invalid(field, format!("{field}.chunks must be hashes of {HASH_BYTES} bytes; got {}", chunk.len())))
        }
        None => Ok(()),
    }
}

/// A row refers to the blob from now on.
pub fn hold(out: &mut Out<'_, '_>, blob: &BlobRef) -> Result<(), Fatal> {
    for chunk in &blob.chunks {
        let held = count(&*out.txn, chunk)?.map_or(0, NonZeroU64::get);
        set(out, chunk, held + 1);
    }
    Ok(())
}

/// A row that referred to the blob does so no longer.
pub fn release(out: &mut Out<'_, '_>, blob: &BlobRef) -> Result<(), Fatal> {
    for chunk in &blob.chunks {
        match count(&*out.txn, chunk)?.map(NonZeroU64::get) {
            Some(1) => out.txn.delete(&key(chunk)),
            Some(held) => set(out, chunk, held - 1),
            None => return Err(Fatal::Corrupt(format!("a chunk is released that nobody holds: {chunk:?}"))),
        }
    }
    Ok(())
}

/// Whether a row of this namespace refers to the chunk.
pub fn is_referenced(rows: &dyn Rows, chunk: &[u8]) -> Result<bool, Fatal> {
    Ok(count(rows, chunk)?.is_some())
}

/// The chunks that rows of this namespace refer to, by hash: at most `limit`, those after `after`.
pub fn chunks(rows: &dyn Rows, after: Option<[u8; HASH_BYTES]>, limit: usize) -> Result<Vec<[u8; HASH_BYTES]>, Fatal> {
    let table = Key::table(Table::Chunk);
    // The smallest key beyond another is that key and a zero.
    let from = after.map_or_else(|| table.clone(), |after| key(&after).bytes(&[0]));
    let mut found = Vec::new();
    if limit == 0 {
        return Ok(found);
    }
    rows.scan(from.as_bytes(), &table.prefix_end(), &mut |key, _| {
        let chunk = key.get(1..).and_then(|chunk| <[u8; HASH_BYTES]>::try_from(chunk).ok());
        found.push(chunk.ok_or_else(|| Fatal::Corrupt(format!("a chunk's key is not a hash: {key:?}")))?);
        Ok(found.len() < limit)
    })?;
    Ok(found)
}

fn key(chunk: &[u8]) -> Key {
    Key::table(Table::Chunk).bytes(chunk)
}

fn set(out: &mut Out<'_, '_>, chunk: &[u8], held: u64) {
    out.txn.put_bytes(&key(chunk), Bytes::copy_from_slice(&held.to_be_bytes()));
}

fn count(rows: &dyn Rows, chunk: &[u8]) -> Result<Option<NonZeroU64>, Fatal> {
    let Some(value) = rows.get_bytes(key(chunk).as_bytes())? else { return Ok(None) };
    let held = <[u8; 8]>::try_from(&value[..]).ok().map(u64::from_be_bytes).and_then(NonZeroU64::new);
    held.map(Some).ok_or_else(|| Fatal::Corrupt(format!("a chunk's count is not a count: {value:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::storage::rows::MemoryRows;
    use crate::storage::txn::Txn;

    fn hash(number: u8) -> Bytes {
        Bytes::from(vec![number; HASH_BYTES])
    }

    /// A blob of whole chunks, each named by one number.
    fn blob(chunks: &[u8]) -> BlobRef {
        let size_bytes = chunks.len() as u64 * CHUNK_BYTES;
        BlobRef { hash: hash(255), size_bytes, chunks: chunks.iter().map(|number| hash(*number)).collect() }
    }

    fn refusal(blob: &BlobRef) -> String {
        match check_ref("blob", blob) {
            Err(Error::Rejected(rejection)) => {
                assert_eq!(rejection.field, "blob");
                rejection.message
            }
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn a_reference_has_as_many_chunks_as_its_size_needs() {
        for (size_bytes, chunks) in [(1, 1), (CHUNK_BYTES, 1), (CHUNK_BYTES + 1, 2), (MAX_BLOB_BYTES, 256)] {
            let fitting = BlobRef { size_bytes, ..blob(&vec![7; chunks]) };
            assert!(check_ref("blob", &fitting).is_ok(), "{size_bytes} bytes in {chunks} chunks");
            let short = BlobRef { size_bytes, ..blob(&vec![7; chunks - 1]) };
            assert!(refusal(&short).contains("blob.chunks"), "{}", refusal(&short));
            let long = BlobRef { size_bytes, ..blob(&vec![7; chunks + 1]) };
            assert!(refusal(&long).contains("blob.chunks"), "{}", refusal(&long));
        }
    }

    #[test]
    fn a_reference_names_the_part_that_is_wrong() {
        let good = blob(&[1, 2]);
        assert!(refusal(&BlobRef { size_bytes: 0, ..good.clone() }).contains("blob.size_bytes"));
        assert!(refusal(&BlobRef { size_bytes: MAX_BLOB_BYTES + 1, ..good.clone() }).contains("blob.size_bytes"));
        assert!(refusal(&BlobRef { hash: Bytes::from_static(b"short"), ..good.clone() }).contains("blob.hash"));
        let chunks = vec![hash(1), Bytes::from_static(b"short")];
        assert!(refusal(&BlobRef { chunks, ..good }).contains("blob.chunks"));
    }

    #[test]
    fn a_chunk_is_referred_to_until_the_last_release() {
        let base = MemoryRows::default();
        let (mut txn, mut effects) = (Txn::new(&base, 0), Vec::new());
        let mut out = Out { txn: &mut txn, effects: &mut effects };
        // The second has a chunk twice, and one in common with the first.
        let (first, second) = (blob(&[1, 2]), blob(&[2, 3, 3]));
        hold(&mut out, &first).unwrap();
        hold(&mut out, &second).unwrap();
        hold(&mut out, &second).unwrap();
        release(&mut out, &second).unwrap();
        release(&mut out, &first).unwrap();
        let referenced = |out: &Out<'_, '_>, number| is_referenced(&*out.txn, &hash(number)).unwrap();
        assert_eq!([1, 2, 3].map(|number| referenced(&out, number)), [false, true, true]);
        release(&mut out, &second).unwrap();
        assert_eq!(chunks(&*out.txn, None, 10).unwrap(), Vec::<[u8; HASH_BYTES]>::new());
        assert!(matches!(release(&mut out, &second), Err(Fatal::Corrupt(_))));
    }

    #[test]
    fn chunks_come_in_pages() {
        let base = MemoryRows::default();
        let (mut txn, mut effects) = (Txn::new(&base, 0), Vec::new());
        let mut out = Out { txn: &mut txn, effects: &mut effects };
        hold(&mut out, &blob(&[5, 0, 255, 9])).unwrap();
        let page = |after: Option<u8>, limit| {
            let found = chunks(&*out.txn, after.map(|number| [number; HASH_BYTES]), limit).unwrap();
            found.into_iter().map(|chunk| chunk[0]).collect::<Vec<_>>()
        };
        assert_eq!(page(None, 2), [0, 5]);
        assert_eq!(page(Some(5), 2), [9, 255]);
        assert_eq!(page(Some(255), 2), Vec::<u8>::new());
        assert_eq!(page(None, 0), Vec::<u8>::new());
    }
}
