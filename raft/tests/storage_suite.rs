//! openraft's own storage conformance suite, on our log and our state machine.

// Clippy exempts test functions from this lint, not their helpers.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use quorate_raft::consensus::log_storage::LogStorage;
use quorate_raft::consensus::state_machine::StateMachine;
use quorate_raft::consensus::types::TypeConfig;
use quorate_raft::replica::Replica;
use tempfile::TempDir;

struct Builder;

impl StoreBuilder<TypeConfig, LogStorage, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStorage, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let log = LogStorage::open(&dir.path().join("log"), 64 << 20).unwrap();
        let (effects, _) = tokio::sync::mpsc::unbounded_channel();
        let replica = Replica::open(dir.path(), 64 << 20, effects).unwrap();
        Ok((dir, log, StateMachine::new(Arc::new(replica))))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn passes_the_conformance_suite() {
    Suite::test_all(Builder).await.unwrap();
}
