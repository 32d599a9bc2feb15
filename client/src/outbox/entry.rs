//! An entry of the outbox as bytes, and the name of its file.
//!
//! | bytes | what |
//! |---|---|
//! | 4 | `QOBX` |
//! | 8 | XXH3 of all that follows, big endian |
//! | 1 | the version of what follows |
//! | the rest | the entry, protobuf |
//!
//! The checksum covers the version: a version that is not known is a newer writer's, and never a damaged byte.

use prost::Message;
use quorate_proto::v1::FinishTaskRequest;
use xxhash_rust::xxh3::xxh3_64;

/// How the name of an entry's file ends.
pub(super) const SUFFIX: &str = ".finish";

const MAGIC: [u8; 4] = *b"QOBX";
const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 8;
/// With the rest of the name, and what is put behind it, well below the 255 bytes that a file system takes.
const MAX_TASK_BYTES: usize = 160;

/// A result that may not have reached the cluster.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Entry {
    /// What is to be delivered, under the request id of its first delivery.
    #[prost(message, required, tag = "1")]
    pub(crate) finish: FinishTaskRequest,
    /// Who did the work.
    #[prost(string, tag = "2")]
    pub(crate) agent_id: String,
    /// Where the task is; empty: in `default`.
    #[prost(string, tag = "3")]
    pub(crate) namespace: String,
}

/// Why a file says nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unread {
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    #[error("it has version {0}, and this program reads up to {max}", max = VERSION)]
    Newer(u8),
}

impl Entry {
    /// The session that the attempt hung on.
    pub(crate) fn session_id(&self) -> &str {
        self.finish.request.as_ref().map_or("", |id| id.session_id.as_str())
    }

    pub(super) fn file_name(&self) -> String {
        let mut name = escaped(&self.finish.task_id);
        if name.len() > MAX_TASK_BYTES {
            name.truncate(MAX_TASK_BYTES);
            // No escaped id has a tilde.
            name.push_str(&format!("~{:016x}", xxh3_64(self.finish.task_id.as_bytes())));
        }
        format!("{name}-{}{SUFFIX}", self.finish.token)
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut covered = vec![VERSION];
        covered.extend(self.encode_to_vec());
        let checksum = xxh3_64(&covered).to_be_bytes();
        [MAGIC.as_slice(), checksum.as_slice(), covered.as_slice()].concat()
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, Unread> {
        let rest = bytes.strip_prefix(&MAGIC).ok_or(Unread::Damaged("it does not begin as an entry does"))?;
        let (checksum, covered) =
            rest.split_first_chunk::<CHECKSUM_BYTES>().ok_or(Unread::Damaged("it ends within its header"))?;
        if xxh3_64(covered) != u64::from_be_bytes(*checksum) {
            return Err(Unread::Damaged("its checksum is wrong"));
        }
        let (version, body) = covered.split_first().ok_or(Unread::Damaged("it has no version"))?;
        if *version != VERSION {
            return Err(Unread::Newer(*version));
        }
        let entry = Entry::decode(body).map_err(|_| Unread::Damaged("it is whole, but no entry"))?;
        if entry.session_id().is_empty() {
            return Err(Unread::Damaged("it names no session"));
        }
        Ok(entry)
    }
}

/// Capitals too: some file systems take `A` and `a` for the same.
fn escaped(id: &str) -> String {
    id.bytes().fold(String::with_capacity(id.len()), |mut name, byte| {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' => name.push(char::from(byte)),
            _ => name.push_str(&format!("%{byte:02x}")),
        }
        name
    })
}

#[cfg(test)]
pub(in crate::outbox) mod tests {
    use quorate_proto::v1::{CheckResult, FinishKind, RequestId};

    use super::*;

    pub(in crate::outbox) fn entry(task_id: &str, token: u64) -> Entry {
        let finish = FinishTaskRequest {
            task_id: task_id.to_owned(),
            token,
            kind: FinishKind::Completed as i32,
            result: vec![0, 7, 255].into(),
            exit_code: Some(0),
            checks: vec![CheckResult { name: "lint".to_owned(), exit_code: 1 }],
            request: Some(RequestId { session_id: "s-1".to_owned(), sequence: 9, done_below: 4 }),
            ..FinishTaskRequest::default()
        };
        Entry { finish, agent_id: "builder".to_owned(), namespace: "tests".to_owned() }
    }

    fn with_version(version: u8) -> Vec<u8> {
        let mut covered = vec![version];
        covered.extend(entry("t", 1).encode_to_vec());
        [MAGIC.as_slice(), xxh3_64(&covered).to_be_bytes().as_slice(), covered.as_slice()].concat()
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let written = entry("t", 1);
        assert_eq!(Entry::from_bytes(&written.to_bytes()), Ok(written));
    }

    #[test]
    fn a_torn_file_is_damaged_at_every_length_and_so_is_a_longer_one() {
        let whole = entry("t", 1).to_bytes();
        for length in 0..whole.len() {
            let read = Entry::from_bytes(&whole[..length]);
            assert!(matches!(read, Err(Unread::Damaged(_))), "{length} of {}: {read:?}", whole.len());
        }
        let mut longer = whole;
        longer.push(0);
        assert!(matches!(Entry::from_bytes(&longer), Err(Unread::Damaged(_))));
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let whole = entry("t", 1).to_bytes();
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let read = Entry::from_bytes(&damaged);
            assert!(matches!(read, Err(Unread::Damaged(_))), "bit {bit}: {read:?}");
        }
    }

    #[test]
    fn a_newer_version_is_not_damage() {
        assert_eq!(with_version(VERSION), entry("t", 1).to_bytes());
        assert_eq!(Entry::from_bytes(&with_version(VERSION + 1)), Err(Unread::Newer(VERSION + 1)));
    }

    #[test]
    fn an_entry_without_a_session_is_none() {
        let mut nobodys = entry("t", 1);
        nobodys.finish.request = None;
        assert!(matches!(Entry::from_bytes(&nobodys.to_bytes()), Err(Unread::Damaged(_))));
    }

    #[test]
    fn any_task_id_makes_a_file_name_of_its_own() {
        assert_eq!(entry("build-1", 7).file_name(), "build-1-7.finish");
        assert_eq!(entry("../A b", 7).file_name(), "%2e%2e%2f%41%20b-7.finish");
        let (long, longer) = ("/".repeat(128), "/".repeat(129));
        let name = entry(&long, u64::MAX).file_name();
        assert!(name.len() < 230 && name.ends_with(".finish"), "{name}");
        let others = [entry(&longer, u64::MAX), entry(&long, 1), entry("%2f", 7), entry("/", 7), entry("a", 7)];
        let mut names: Vec<String> = others.iter().map(Entry::file_name).chain([name]).collect();
        names.push(entry("A", 7).file_name());
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 7, "{names:?}");
    }
}
