//! The chunks on this node's disk: one file each, `blobs/<2 hex>/<64 hex>`, named by the BLAKE3 of its content.
//!
//! Owns that folder. A file is written aside, synced, renamed into its place, and its directory is synced: it is there
//! whole or not at all. After that it never changes, except for the time it was last put or asked for, which is the
//! file's own; one that is damaged gives way to a good one.
//!
//! Invariants:
//! - What [`Store::write`] and [`Store::touch`] report as held is durable.
//! - Content is only given out if it has the hash that it is named by.
//! - Nothing is removed for its age that [`Store::touch`] has reported as held since.
//! - The log and the state, which share the disk, keep a part of it to themselves ([`Reserve`]).
//!
//! Deliberately absent: who refers to a chunk, and who else has it. Every function here blocks.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_raft::error::Fatal;
use quorate_raft::faults::crash_point;
use quorate_raft::storage::dir::sync_dir;
use rustix::fs::statvfs;
use rustix::io::retry_on_intr;

use super::{CHUNK, ChunkHash};

/// The first byte of a file says how the rest is to be read. A number that was once released is never changed.
const PLAIN: u8 = 0;
const ZSTD: u8 = 1;

/// zstd's own default: beyond it time rises faster than sizes fall.
const LEVEL: i32 = 3;

/// Why the files could not be worked on.
#[derive(Debug, thiserror::Error)]
pub(super) enum DiskError {
    /// Nothing was kept.
    #[error("the disk has no room for chunks")]
    Full,
    /// What is on the disk is not known any more.
    #[error(transparent)]
    Fault(#[from] Fatal),
}

impl From<io::Error> for DiskError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => DiskError::Full,
            _ => DiskError::Fault(error.into()),
        }
    }
}

/// The part of the disk that chunks do not take: a node without room for its log stops, one without room for a chunk
/// refuses it.
#[derive(Debug, Clone, Copy)]
struct Reserve {
    least_bytes: u64,
    percent: u64,
}

const RESERVE: Reserve = Reserve { least_bytes: 256 << 20, percent: 5 };

impl Reserve {
    /// Whether so much more may be written. Others may be about to write as well; they are not so many that they could
    /// use it up.
    fn leaves_room_for(self, bytes: u64, free: u64, total: u64) -> bool {
        // Not every file system knows its size. Then the one limit is that it is full.
        total == 0 || free.saturating_sub(bytes) >= self.least_bytes.max(total / 100 * self.percent)
    }
}

/// The chunks on this node's disk.
#[derive(Debug)]
pub(super) struct Store {
    root: PathBuf,
    reserve: Reserve,
    parts: AtomicU64,
    presence: Mutex<Presence>,
}

/// Which of the files that can be seen would also survive a crash. Whoever finds a file and renews its time, or removes
/// it for its age, does both under this lock.
#[derive(Debug, Default)]
struct Presence {
    /// Renamed into place, and the directory not yet synced.
    settling: BTreeSet<ChunkHash>,
    /// Directories that were synced since the start: an earlier process may have ended between the two steps.
    synced: BTreeSet<u8>,
}

impl Presence {
    fn is_durable(&self, chunk: &ChunkHash) -> bool {
        self.synced.contains(&shard_of(chunk)) && !self.settling.contains(chunk)
    }
}

/// The directory that a chunk lies in is named by its first byte.
fn shard_of(chunk: &ChunkHash) -> u8 {
    chunk[0]
}

impl Store {
    /// Opens `blobs` in the data directory: creates what is missing, and clears what a crash left half-done.
    pub(super) fn open(data_dir: &Path) -> Result<Self, Fatal> {
        Store::open_with(data_dir, RESERVE)
    }

    /// Opens it to take over what must all fit, or not at all.
    pub(super) fn open_for_import(data_dir: &Path) -> Result<Self, Fatal> {
        Store::open_with(data_dir, Reserve { least_bytes: 0, percent: 0 })
    }

    fn open_with(data_dir: &Path, reserve: Reserve) -> Result<Self, Fatal> {
        let root = data_dir.join("blobs");
        let store = Store { root, reserve, parts: AtomicU64::new(0), presence: Mutex::default() };
        if store.incoming().exists() {
            fs::remove_dir_all(store.incoming())?;
        }
        fs::create_dir_all(store.incoming())?;
        for shard in 0..=u8::MAX {
            fs::create_dir_all(store.dir(shard))?;
        }
        sync_dir(&store.root)?;
        sync_dir(data_dir)?;
        Ok(store)
    }

    fn incoming(&self) -> PathBuf {
        self.root.join("incoming")
    }

    fn dir(&self, shard: u8) -> PathBuf {
        self.root.join(format!("{shard:02x}"))
    }

    fn path(&self, chunk: &ChunkHash) -> PathBuf {
        self.dir(shard_of(chunk)).join(blake3::Hash::from(*chunk).to_hex().as_str())
    }

    /// Keeps a chunk, unless its content is not what it is named by. It is durable here on `true`.
    pub(super) fn admit(&self, chunk: &ChunkHash, content: &[u8]) -> Result<bool, DiskError> {
        if blake3::hash(content) != *chunk {
            return Ok(false);
        }
        self.write(chunk, content)?;
        Ok(true)
    }

    /// Keeps a chunk whose hash was computed from this content. It is durable here afterwards.
    pub(super) fn write(&self, chunk: &ChunkHash, content: &[u8]) -> Result<(), DiskError> {
        // To be there is not enough: a damaged file would stay, and count as a copy.
        if self.touch(chunk)? && matches!(self.look(chunk)?, Found::Content(_)) {
            return Ok(());
        }
        self.check_room(content.len() as u64)?;
        let part = self.incoming().join(self.parts.fetch_add(1, Ordering::Relaxed).to_string());
        let placed =
            write_synced(&part, &encode(content)?).map_err(DiskError::from).and_then(|()| self.place(chunk, &part));
        if placed.is_err()
            && let Err(error) = fs::remove_file(&part)
        {
            tracing::debug!(%error, "the part of a chunk could not be removed; the next start does it");
        }
        placed
    }

    fn check_room(&self, bytes: u64) -> Result<(), DiskError> {
        let disk = retry_on_intr(|| statvfs(&self.root)).map_err(io::Error::from)?;
        let in_bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        if self.reserve.leaves_room_for(bytes, in_bytes(disk.f_bavail), in_bytes(disk.f_blocks)) {
            return Ok(());
        }
        Err(DiskError::Full)
    }

    fn place(&self, chunk: &ChunkHash, part: &Path) -> Result<(), DiskError> {
        {
            let mut presence = self.presence.lock();
            crash_point("blob.before-rename");
            fs::rename(part, self.path(chunk))?;
            crash_point("blob.after-rename");
            presence.settling.insert(*chunk);
        }
        self.settle(chunk)
    }

    /// Makes the chunk's name durable.
    fn settle(&self, chunk: &ChunkHash) -> Result<(), DiskError> {
        sync_dir(&self.dir(shard_of(chunk)))?;
        let mut presence = self.presence.lock();
        presence.settling.remove(chunk);
        presence.synced.insert(shard_of(chunk));
        Ok(())
    }

    /// Whether a chunk is held. If so it is durable, and its grace begins anew.
    pub(super) fn touch(&self, chunk: &ChunkHash) -> Result<bool, DiskError> {
        let durable = {
            let presence = self.presence.lock();
            let file = match File::open(self.path(chunk)) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            file.set_modified(SystemTime::now())?;
            presence.is_durable(chunk)
        };
        if !durable {
            self.settle(chunk)?;
        }
        Ok(true)
    }

    /// Those of the chunks that are not held. Nobody's grace is renewed by this.
    pub(super) fn absent(&self, chunks: Vec<ChunkHash>) -> Result<Vec<ChunkHash>, DiskError> {
        let mut absent = Vec::new();
        for chunk in chunks {
            if !self.path(&chunk).try_exists()? {
                absent.push(chunk);
            }
        }
        Ok(absent)
    }

    /// A chunk's content; `None` if it is not here, or no longer what it was. What is damaged is removed: another
    /// node's copy takes its place.
    pub(super) fn read(&self, chunk: &ChunkHash) -> Result<Option<Bytes>, DiskError> {
        match self.look(chunk)? {
            Found::Content(content) => Ok(Some(content)),
            Found::Nothing => Ok(None),
            Found::Damage => {
                self.discard(chunk)?;
                Ok(None)
            }
        }
    }

    fn look(&self, chunk: &ChunkHash) -> Result<Found, DiskError> {
        let stored = match fs::read(self.path(chunk)) {
            Ok(stored) => Bytes::from(stored),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(error.into()),
        };
        Ok(match decode(&stored).filter(|content| blake3::hash(content) == *chunk) {
            Some(content) => Found::Content(content),
            None => Found::Damage,
        })
    }

    /// Removes a damaged file, unless a good one has replaced it since.
    fn discard(&self, chunk: &ChunkHash) -> Result<(), DiskError> {
        let _presence = self.presence.lock();
        if let Found::Damage = self.look(chunk)? {
            let path = self.path(chunk);
            tracing::error!(file = %path.display(), "a stored chunk is damaged and is removed");
            fs::remove_file(path)?;
        }
        Ok(())
    }

    /// Chunks that nobody has put or asked for within `grace`, and where to go on: directories are looked through from
    /// `shard` on, until `limit` files were seen or all have been.
    pub(super) fn aged(&self, shard: u8, limit: usize, grace: Duration) -> Result<(Vec<ChunkHash>, u8), DiskError> {
        let (mut aged, mut seen, mut at) = (Vec::new(), 0, shard);
        loop {
            for entry in fs::read_dir(self.dir(at))? {
                let entry = entry?;
                seen += 1;
                // A file that is no chunk is not ours to judge.
                let Some(chunk) = named(&entry.file_name()) else { continue };
                if is_aged(entry.metadata(), grace)? {
                    aged.push(chunk);
                }
            }
            at = at.wrapping_add(1);
            if seen >= limit || at == shard {
                return Ok((aged, at));
            }
        }
    }

    /// Removes those of the chunks that nobody has put or asked for within `grace`; says how many. A crash may bring
    /// some back, to be found again.
    pub(super) fn remove_aged(&self, chunks: &[ChunkHash], grace: Duration) -> Result<usize, DiskError> {
        let mut removed = 0;
        for chunk in chunks {
            let _presence = self.presence.lock();
            let path = self.path(chunk);
            if is_aged(fs::metadata(&path), grace)? {
                fs::remove_file(&path)?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// What is in a chunk's place.
enum Found {
    Content(Bytes),
    Damage,
    Nothing,
}

fn write_synced(path: &Path, stored: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(stored)?;
    file.sync_all()
}

/// The shorter of the content as it is and the content compressed.
fn encode(content: &[u8]) -> Result<Vec<u8>, DiskError> {
    let packed = zstd::bulk::compress(content, LEVEL)?;
    let (kind, body) = if packed.len() < content.len() { (ZSTD, packed.as_slice()) } else { (PLAIN, content) };
    let mut stored = Vec::with_capacity(1 + body.len());
    stored.push(kind);
    stored.extend_from_slice(body);
    Ok(stored)
}

fn decode(stored: &Bytes) -> Option<Bytes> {
    let (kind, body) = stored.split_first()?;
    match *kind {
        PLAIN => Some(stored.slice(1..)),
        ZSTD => zstd::bulk::decompress(body, CHUNK).ok().map(Bytes::from),
        _ => None,
    }
}

fn named(file_name: &OsStr) -> Option<ChunkHash> {
    blake3::Hash::from_hex(file_name.to_str()?).ok().map(ChunkHash::from)
}

/// A file that is gone meanwhile is not old; neither is one from the future, of before the machine's clock was set
/// back.
fn is_aged(metadata: io::Result<Metadata>, grace: Duration) -> Result<bool, DiskError> {
    match metadata {
        Ok(metadata) => Ok(SystemTime::now().duration_since(metadata.modified()?).is_ok_and(|age| age >= grace)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn hash(content: &[u8]) -> ChunkHash {
        blake3::hash(content).into()
    }

    /// Bytes that do not compress.
    fn noise(length: usize) -> Vec<u8> {
        let mut noise = vec![0; length];
        blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut noise);
        noise
    }

    fn keep(store: &Store, content: &[u8]) -> ChunkHash {
        let chunk = hash(content);
        store.write(&chunk, content).unwrap();
        chunk
    }

    fn size_on_disk(store: &Store, chunk: &ChunkHash) -> u64 {
        fs::metadata(store.path(chunk)).unwrap().len()
    }

    fn make_older(store: &Store, chunk: &ChunkHash, by: Duration) {
        File::open(store.path(chunk)).unwrap().set_modified(SystemTime::now() - by).unwrap();
    }

    #[test]
    fn what_was_kept_is_read_compressed_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (zeros, noise) = (vec![0; CHUNK], noise(CHUNK));
        for content in [b"x".as_slice(), &zeros[..], &noise[..]] {
            let chunk = keep(&store, content);
            assert_eq!(store.read(&chunk).unwrap().unwrap(), content);
        }
        assert!(size_on_disk(&store, &hash(&zeros)) < 1_000);
        assert_eq!(size_on_disk(&store, &hash(&noise)), CHUNK as u64 + 1, "it would grow, so it is kept as it is");
        assert_eq!(store.read(&hash(b"another")).unwrap(), None);
        assert_eq!(store.absent(vec![hash(b"x"), hash(b"another")]).unwrap(), [hash(b"another")]);
    }

    #[test]
    fn it_is_all_there_at_the_next_start_and_what_was_half_done_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let chunk = keep(&Store::open(dir.path()).unwrap(), b"kept");
        let part = dir.path().join("blobs/incoming/0");
        fs::write(&part, b"half").unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert!(!part.exists());
        assert!(store.touch(&chunk).unwrap());
        assert_eq!(store.read(&chunk).unwrap().unwrap(), b"kept".as_slice());
    }

    #[test]
    fn a_chunk_under_the_wrong_name_is_not_admitted() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert!(!store.admit(&hash(b"one"), b"other").unwrap());
        assert!(!store.touch(&hash(b"one")).unwrap());
        assert!(store.admit(&hash(b"one"), b"one").unwrap());
        assert!(store.touch(&hash(b"one")).unwrap());
    }

    #[test]
    fn damage_is_noticed_removed_and_can_be_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (zeros, noise) = (vec![0; 5_000], noise(5_000));
        for content in [&zeros, &noise] {
            let chunk = keep(&store, content);
            let good = fs::read(store.path(&chunk)).unwrap();
            let mut flipped = good.clone();
            let last = flipped.len() - 1;
            flipped[last] ^= 1;
            for bad in [&flipped[..], &good[..last], &[9], &[]] {
                fs::write(store.path(&chunk), bad).unwrap();
                assert_eq!(store.read(&chunk).unwrap(), None);
                assert!(!store.path(&chunk).exists(), "the damaged file is still there");
                keep(&store, content);
                assert_eq!(store.read(&chunk).unwrap().unwrap(), content);
            }
        }
    }

    #[test]
    fn damage_that_nobody_has_read_is_mended_by_the_next_put() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let chunk = keep(&store, b"content");
        let good = fs::read(store.path(&chunk)).unwrap();
        fs::write(store.path(&chunk), b"damage").unwrap();
        assert!(store.touch(&chunk).unwrap(), "nobody has looked into it");
        keep(&store, b"content");
        assert_eq!(fs::read(store.path(&chunk)).unwrap(), good);
    }

    #[test]
    fn a_part_of_the_disk_is_left_to_the_log() {
        const MIB: u64 = 1 << 20;
        const GIB: u64 = 1 << 30;
        // How much is free, of how much, and whether one more MiB is taken.
        let table = [
            (257 * MIB, GIB, true),
            (257 * MIB - 1, GIB, false),
            (0, GIB, false),
            (6 * GIB, 100 * GIB, true),
            (5 * GIB, 100 * GIB, false),
            (0, 0, true),
        ];
        for (free, total, admitted) in table {
            assert_eq!(RESERVE.leaves_room_for(MIB, free, total), admitted, "{free} free of {total}");
        }
        assert!(!RESERVE.leaves_room_for(u64::MAX, u64::MAX, u64::MAX));
    }

    #[test]
    fn without_room_nothing_is_written_and_what_is_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        keep(&store, b"kept");
        store.reserve.least_bytes = u64::MAX;
        assert!(matches!(store.write(&hash(b"new"), b"new"), Err(DiskError::Full)));
        assert!(!store.touch(&hash(b"new")).unwrap());
        assert_eq!(fs::read_dir(store.incoming()).unwrap().count(), 0);
        // It needs no room that it does not have already.
        assert_eq!(store.read(&keep(&store, b"kept")).unwrap().unwrap(), b"kept".as_slice());
    }

    #[test]
    fn only_what_nobody_asked_for_within_the_grace_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let chunks = [b"old", b"put", b"ask", b"new"].map(|content| keep(&store, content));
        for chunk in &chunks[..3] {
            make_older(&store, chunk, HOUR * 2);
        }
        let (aged, _) = store.aged(0, usize::MAX, HOUR).unwrap();
        assert_eq!(BTreeSet::from_iter(aged), BTreeSet::from_iter(chunks[..3].iter().copied()));
        // Between the look and the removal, two of them come into use.
        keep(&store, b"put");
        assert!(store.touch(&chunks[2]).unwrap());
        assert_eq!(store.remove_aged(&chunks, HOUR).unwrap(), 1);
        assert_eq!(chunks.map(|chunk| store.touch(&chunk).unwrap()), [false, true, true, true]);
    }

    #[test]
    fn a_look_for_the_aged_is_bounded_and_goes_on_where_it_ended() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut kept = BTreeSet::new();
        for number in 0..40_u32 {
            kept.insert(keep(&store, &number.to_be_bytes()));
        }
        fs::write(store.dir(7).join("not-a-chunk"), b"").unwrap();
        let (mut found, mut shard, mut looks) = (BTreeSet::new(), 0, 0);
        loop {
            let (aged, next) = store.aged(shard, 10, Duration::ZERO).unwrap();
            assert!(aged.len() < 20, "{} at once", aged.len());
            found.extend(aged);
            looks += 1;
            if next <= shard {
                break;
            }
            shard = next;
        }
        assert_eq!(found, kept);
        assert!(looks > 1, "one look saw everything");
    }
}
