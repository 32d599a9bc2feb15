//! The layout of every row's key. A tag or a layout that was once released is never changed, only added to.
//!
//! | table | tag | key after the tag | value |
//! |---|---|---|---|
//! | Head | `01` | — | `log.StateHead` |
//! | Cluster | `02` | — | `v1.ClusterInfo` |
//! | Namespace | `03` | name | `v1.Namespace` |
//! | Backups | `04` | — | `v1.BackupsRow` |
//! | Session | `10` | session id | `v1.Session` |
//! | Request | `11` | session id, sequence | `done_below` (8 bytes), then `log.Answer` |
//! | Agent | `20` | agent id | `v1.Agent` |
//! | LiveTask | `30` | task id | `v1.Task`, not finished |
//! | DoneTask | `31` | task id | `v1.Task`, finished |
//! | Attempt | `32` | task id, attempt number | `v1.Attempt` |
//! | TaskKey | `33` | idempotency key | task id (UTF-8) |
//! | DoneCount | `34` | status number | count (8 bytes, big endian) |
//! | Dependent | `35` | task id, id of a task that waits for it | empty |
//! | AgentAttempt | `36` | agent id, u64::MAX - token, task id | task id (UTF-8), NUL, attempt number (8 bytes) |
//! | TaskBody | `37` | task id | `v1.TaskBody`: payload and description |
//! | TaskResult | `38` | task id | result |
//! | Aftermath | `39` | rev, position | kind (1 byte), task id (UTF-8), NUL, the last id that has heard (UTF-8) |
//! | Child | `3a` | parent's task id, task id | empty |
//! | DeadTask | `3b` | task id | empty: FAILED or TIMED_OUT |
//! | Rollup | `3c` | project, epic, feature | `v1.StatusCounts` of ended tasks |
//! | Checkpoint | `3d` | u64::MAX - rev, project, epic, feature, milestone | `v1.Checkpoint` |
//! | Sample | `3e` | the minute's beginning (ms) | `v1.Sample` |
//! | ProgressTotals | `3f` | — | `v1.Sample`: the minute being filled, with counts of ended tasks |
//! | Lock | `40` | name | `v1.Lock` |
//! | Scope | `41` | id | `v1.ScopeLease` |
//! | Subscription | `44` | name | `v1.Subscription` |
//! | Message | `45` | seq | `v1.BusMessage` without its payload |
//! | MessagePayload | `46` | seq | payload |
//! | MessageRefs | `47` | seq | how many subscriptions keep it, waiting or dead (8 bytes); no row: one |
//! | Pending | `48` | subscription, seq | `v1.PendingDelivery` |
//! | DeadMessage | `49` | subscription, seq | `v1.DeadMessage` without its message |
//! | MessageId | `4a` | message id | seq and when it is forgotten (8 bytes each) |
//! | Consumer | `4b` | subscription, consumer id | `v1.Consumer` |
//! | BusTotals | `4c` | — | `log.BusTotals` |
//! | SubscriptionCounts | `4d` | name | `v1.SubscriptionCounts` |
//! | Limit | `50` | scope number, name | `v1.Limit` |
//! | ShareWeight | `51` | share | `v1.ShareWeight` |
//! | DispatchPolicy | `52` | — | `v1.DispatchPolicy` |
//! | Routes | `53` | — | `v1.RoutingTable` |
//! | SharePass | `54` | band, share | finish tag (16 bytes) |
//! | BandPass | `55` | band | virtual time and finish tag (16 bytes each) |
//! | Breaker | `60` | name | `v1.Breaker` |
//! | BreakerDefaults | `61` | — | `v1.BreakerSettings` |
//! | RetryProfile | `65` | name | `v1.RetryProfile` |
//! | Schedule | `70` | schedule id | `v1.Schedule` |
//! | ScheduleRun | `71` | schedule id, u64::MAX - rev | `v1.ScheduleRun` |
//! | Kv | `80` | key | `v1.KvEntry`, the current one |
//! | KvVersion | `81` | key, u64::MAX - version | `v1.KvEntry`, an earlier one or a removal |
//! | KvPolicy | `82` | prefix | `v1.KvPolicy` |
//! | KvTotals | `83` | — | `log.KvTotals` |
//! | KvLease | `84` | session id, key | what it weighs when it goes with the session (8 bytes) |
//! | KvExpiry | `85` | when (ms), key | empty: it goes then |
//! | Chunk | `88` | BLAKE3 (32 bytes) | how many times it is referred to (8 bytes) |
//!
//! These are the keys of the default namespace, and of the cluster (tags below `08`). Those of another namespace begin with
//! `08` and its number, and go on the same ([`crate::storage::space`]). The event history is a column family of its own:
//! key rev and namespace number (8 bytes each), value `log.StoredEvents`.
//!
//! Text is followed by one zero byte (ids hold none), numbers are 8 bytes big endian: byte order is key order.

/// Which table a row belongs to: the first byte of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Table {
    Head = 0x01,
    Cluster = 0x02,
    Namespace = 0x03,
    Backups = 0x04,
    Session = 0x10,
    Request = 0x11,
    Agent = 0x20,
    LiveTask = 0x30,
    DoneTask = 0x31,
    Attempt = 0x32,
    TaskKey = 0x33,
    DoneCount = 0x34,
    Dependent = 0x35,
    AgentAttempt = 0x36,
    TaskBody = 0x37,
    TaskResult = 0x38,
    Aftermath = 0x39,
    Child = 0x3a,
    DeadTask = 0x3b,
    Rollup = 0x3c,
    Checkpoint = 0x3d,
    Sample = 0x3e,
    ProgressTotals = 0x3f,
    Lock = 0x40,
    Scope = 0x41,
    Subscription = 0x44,
    Message = 0x45,
    MessagePayload = 0x46,
    MessageRefs = 0x47,
    Pending = 0x48,
    DeadMessage = 0x49,
    MessageId = 0x4a,
    Consumer = 0x4b,
    BusTotals = 0x4c,
    SubscriptionCounts = 0x4d,
    Limit = 0x50,
    ShareWeight = 0x51,
    DispatchPolicy = 0x52,
    Routes = 0x53,
    SharePass = 0x54,
    BandPass = 0x55,
    Breaker = 0x60,
    BreakerDefaults = 0x61,
    RetryProfile = 0x65,
    Schedule = 0x70,
    ScheduleRun = 0x71,
    Kv = 0x80,
    KvVersion = 0x81,
    KvPolicy = 0x82,
    KvTotals = 0x83,
    KvLease = 0x84,
    KvExpiry = 0x85,
    Chunk = 0x88,
}

/// An encoded key, or the prefix of some.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(Vec<u8>);

impl Key {
    /// The prefix of a whole table.
    pub fn table(table: Table) -> Self {
        Key(vec![table as u8])
    }

    /// A key as it was read.
    pub fn raw(bytes: &[u8]) -> Self {
        Key(bytes.to_vec())
    }

    /// Adds a text part.
    #[must_use]
    pub fn text(mut self, part: &str) -> Self {
        self.0.extend_from_slice(part.as_bytes());
        self.0.push(0);
        self
    }

    /// Adds a number part.
    #[must_use]
    pub fn number(mut self, part: u64) -> Self {
        self.0.extend_from_slice(&part.to_be_bytes());
        self
    }

    /// Adds bytes of a fixed length, such as a hash.
    #[must_use]
    pub fn bytes(mut self, part: &[u8]) -> Self {
        self.0.extend_from_slice(part);
        self
    }

    /// The encoded form.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The smallest key after every key that starts with this one.
    pub fn prefix_end(&self) -> Vec<u8> {
        let mut end = self.0.clone();
        while let Some(last) = end.last_mut() {
            if *last < u8::MAX {
                *last += 1;
                return end;
            }
            end.pop();
        }
        end
    }
}
