//! For tests: a small state with something in two namespaces, one of which refers to a chunk.

use std::path::Path;

use bytes::Bytes;
use prost::Message;
use quorate_proto::log::{Batch, Command, answer, command};
use quorate_proto::v1::{BlobRef, KvPutRequest, SetNamespaceRequest};
use quorate_raft::replica::{Applicable, Content, Replica};
use quorate_raft::storage::snapshot::SnapshotDir;
use quorate_raft::storage::state_db::SMALL_BUFFER_BYTES;
use tokio::sync::mpsc::unbounded_channel;

use super::Target;

pub(super) fn target(dir: &Path) -> Target {
    Target::open(&format!("file://{}", dir.display())).unwrap()
}

pub(super) struct State {
    replica: Replica,
    _dir: tempfile::TempDir,
}

impl State {
    /// The only chunk.
    pub(super) const CHUNK: &'static [u8] = b"the content of a chunk";

    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (sender, _) = unbounded_channel();
        let state = State { replica: Replica::open(dir.path(), SMALL_BUFFER_BYTES, sender).unwrap(), _dir: dir };
        let request = SetNamespaceRequest { name: "other".to_owned(), ..SetNamespaceRequest::default() };
        state.apply("", command::Body::SetNamespace(request));
        state.put("a");
        let hash = Bytes::copy_from_slice(blake3::hash(Self::CHUNK).as_bytes());
        let blob = BlobRef { hash: hash.clone(), size_bytes: Self::CHUNK.len() as u64, chunks: vec![hash] };
        let request = KvPutRequest { key: "large".to_owned(), blob: Some(blob), ..KvPutRequest::default() };
        state.apply("other", command::Body::KvPut(request));
        state
    }

    /// Writes a document.
    pub(super) fn put(&self, key: &str) {
        let value = Bytes::from_static(b"{}");
        let request = KvPutRequest { key: key.to_owned(), value, ..KvPutRequest::default() };
        self.apply("", command::Body::KvPut(request));
    }

    pub(super) fn checkpoint(&self) -> SnapshotDir {
        self.replica.take_snapshot().unwrap().0
    }

    fn apply(&self, namespace: &str, body: command::Body) {
        let index = self.replica.head().applied.map_or(1, |(_, index)| index + 1);
        let command = Command { namespace: namespace.to_owned(), body: Some(body), ..Command::default() };
        let batch = Batch { now_ms: 1, entropy: 0, commands: vec![command.encode_to_vec().into()] };
        let entry = Applicable { log_id: (1, index), content: Content::Batch(batch.encode_to_vec().into()) };
        let answers = self.replica.apply(vec![entry]).unwrap();
        assert!(!matches!(answers[0][0].body, Some(answer::Body::Rejected(_))), "{answers:?}");
    }
}
