//! A namespace as its rows tell, and what all of its rooms share: blobs, fences, and that nothing reaches beyond it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;
use quorate_proto::v1::{
    BlobRef, BusMessage, Consumer, DeadMessage, Fence, FenceKind, KvEntry, Lock, PendingDelivery, Quotas, ScopeLease,
    Session, Subscription, SubscriptionCounts, Task,
};
use quorate_raft::apply::Machine;
use quorate_raft::state::namespaces::Part;
use quorate_raft::storage::keys::Table;
use quorate_raft::storage::rows::MemoryRows;
use quorate_raft::storage::space::{Space, TAG};

use crate::support::{scan, tasks};

/// One namespace. What the tests seldom ask for stays in `rows`.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    pub(crate) number: u64,
    pub(crate) quotas: Quotas,
    /// Its own, with keys as its rooms see them.
    pub(crate) rows: MemoryRows,
    pub(crate) sessions: BTreeMap<String, Session>,
    pub(crate) tasks: BTreeMap<String, Task>,
    pub(crate) subs: BTreeMap<String, Subscription>,
    /// Of those of which something was counted.
    pub(crate) counts: BTreeMap<String, SubscriptionCounts>,
    pub(crate) consumers: BTreeMap<(String, String), Consumer>,
    pub(crate) pending: BTreeMap<(String, u64), PendingDelivery>,
    pub(crate) dead: BTreeMap<(String, u64), DeadMessage>,
    /// With their payloads.
    pub(crate) messages: BTreeMap<u64, BusMessage>,
    pub(crate) locks: BTreeMap<String, Lock>,
    pub(crate) scopes: BTreeMap<String, ScopeLease>,
    pub(crate) documents: BTreeMap<String, KvEntry>,
    pub(crate) versions: BTreeMap<(String, u64), KvEntry>,
}

/// Every namespace, by name.
pub(crate) fn views(machine: &Machine) -> BTreeMap<String, View> {
    machine.namespaces.iter().map(|part| (part.name.to_string(), View::of(machine, part))).collect()
}

impl View {
    fn of(machine: &Machine, part: &Part) -> Self {
        let rows = rows_of(&machine.rows, part.row.number);
        View {
            number: part.row.number,
            quotas: part.row.quotas.unwrap_or_default(),
            sessions: by(&rows, Table::Session, |row: &Session| row.id.clone()),
            tasks: tasks(&rows),
            subs: by(&rows, Table::Subscription, |row: &Subscription| row.spec.clone().unwrap_or_default().name),
            consumers: by(&rows, Table::Consumer, |row: &Consumer| (row.subscription.clone(), row.consumer_id.clone())),
            pending: by(&rows, Table::Pending, |row: &PendingDelivery| (row.subscription.clone(), row.seq)),
            counts: counts(&rows),
            dead: by(&rows, Table::DeadMessage, |row: &DeadMessage| (row.subscription.clone(), row.seq)),
            messages: messages(&rows),
            locks: by(&rows, Table::Lock, |row: &Lock| row.name.clone()),
            scopes: by(&rows, Table::Scope, |row: &ScopeLease| row.id.clone()),
            documents: by(&rows, Table::Kv, |row: &KvEntry| row.key.clone()),
            versions: by(&rows, Table::KvVersion, |row: &KvEntry| (row.key.clone(), row.version)),
            rows,
        }
    }

    /// Whether the attempt is the task's now.
    pub(crate) fn runs(&self, task_id: &str, token: u64) -> bool {
        self.tasks.get(task_id).and_then(|task| task.claim.as_ref()).is_some_and(|claim| claim.token == token)
    }

    /// Whether the grant that a fence names is held.
    pub(crate) fn holds(&self, fence: &Fence) -> bool {
        let (name, token) = (fence.name.as_str(), fence.token);
        match fence.kind() {
            FenceKind::Lock => {
                self.locks.get(name).is_some_and(|lock| lock.holders.iter().any(|holder| holder.token == token))
            }
            FenceKind::Scope => self.scopes.get(name).is_some_and(|lease| lease.token == token),
            FenceKind::Task => self.runs(name, token),
            FenceKind::Unspecified => false,
        }
    }

    /// A chunk is counted as often as rows refer to it.
    pub(crate) fn check_blobs(&self) {
        let entries = self.documents.values().chain(self.versions.values());
        let blobs = self.messages.values().filter_map(|message| message.blob.as_ref());
        let blobs: Vec<&BlobRef> = blobs.chain(entries.filter_map(|entry| entry.blob.as_ref())).collect();
        let mut wanted: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        for chunk in blobs.into_iter().flat_map(|blob| &blob.chunks) {
            *wanted.entry(chunk.to_vec()).or_default() += 1;
        }
        let counted: BTreeMap<Vec<u8>, u64> =
            raw(&self.rows, Table::Chunk).map(|(hash, count)| (hash.to_vec(), number(count))).collect();
        assert_eq!(counted, wanted, "references to chunks");
    }
}

/// The rows of one space, without its prefix and without those of the cluster.
fn rows_of(rows: &MemoryRows, number: u64) -> MemoryRows {
    if number == 0 {
        let own = rows.0.iter().filter(|(key, _)| space_of(key) == Some(0));
        return MemoryRows(own.map(|(key, value)| (key.clone(), value.clone())).collect());
    }
    let prefix = Space::number(number).key(&[]);
    let own = rows.0.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
    MemoryRows(own.map(|(key, value)| (key[prefix.len()..].to_vec(), value.clone())).collect())
}

/// Every row of a table by what it says it is; no two are one object.
fn by<K: Ord, M: Message + Default>(rows: &MemoryRows, table: Table, key: impl Fn(&M) -> K) -> BTreeMap<K, M> {
    let all = scan::<M>(rows, table);
    let count = all.len();
    let all: BTreeMap<K, M> = all.into_iter().map(|row| (key(&row), row)).collect();
    assert_eq!(all.len(), count, "two rows of one object in {table:?}");
    all
}

fn counts(rows: &MemoryRows) -> BTreeMap<String, SubscriptionCounts> {
    let counts = raw(rows, Table::SubscriptionCounts);
    counts.map(|(name, counts)| (text(name), SubscriptionCounts::decode(counts).expect("counters"))).collect()
}

fn messages(rows: &MemoryRows) -> BTreeMap<u64, BusMessage> {
    let mut messages = by(rows, Table::Message, |row: &BusMessage| row.seq);
    for (seq, payload) in raw(rows, Table::MessagePayload) {
        let message = messages.get_mut(&number(seq)).expect("the message of a payload");
        assert!(message.payload.is_empty() && !payload.is_empty(), "one payload, and in one place: {message:?}");
        message.payload = Bytes::copy_from_slice(payload);
    }
    let sound = |message: &BusMessage| message.payload.len() == message.payload_bytes as usize;
    assert!(messages.values().all(sound), "payloads are not as long as they say: {messages:?}");
    messages
}

/// Every row of a table that holds no messages: key without its tag, and value.
pub(crate) fn raw(rows: &MemoryRows, table: Table) -> impl Iterator<Item = (&[u8], &[u8])> {
    let tag = table as u8;
    rows.0.iter().filter(move |(key, _)| key.first() == Some(&tag)).map(|(key, value)| (&key[1..], value.as_ref()))
}

/// A text that a zero ends.
pub(crate) fn text(bytes: &[u8]) -> String {
    let text = bytes.strip_suffix(&[0]).and_then(|text| std::str::from_utf8(text).ok());
    text.unwrap_or_else(|| panic!("no text: {bytes:?}")).to_owned()
}

/// A number of 8 bytes.
pub(crate) fn number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("8 bytes"))
}

/// The number of the space that a row is in; `None`: it is the cluster's.
pub(crate) fn space_of(key: &[u8]) -> Option<u64> {
    match key[0] {
        TAG => Some(number(&key[1..9])),
        tag if tag < TAG => None,
        _ => Some(0),
    }
}

/// The keys of the rows that differ.
pub(crate) fn changed<'r>(before: &'r MemoryRows, after: &'r MemoryRows) -> BTreeSet<&'r [u8]> {
    let differs = |(key, value): &(&Vec<u8>, &Bytes), other: &MemoryRows| other.0.get(*key) != Some(*value);
    let gone = before.0.iter().filter(|row| differs(row, after));
    let new = after.0.iter().filter(|row| differs(row, before));
    gone.chain(new).map(|(key, _)| key.as_slice()).collect()
}

/// Whether the row keeps the answer of a request, in whatever space.
pub(crate) fn is_request(key: &[u8]) -> bool {
    let own = if key[0] == TAG { &key[9..] } else { key };
    own.first() == Some(&(Table::Request as u8))
}
