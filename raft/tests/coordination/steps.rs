//! Random histories over so few names that they meet.

use bytes::Bytes;
use proptest::prelude::*;
use quorate_proto::log::Tick;
use quorate_proto::log::command::Body as B;
use quorate_proto::v1::*;

use crate::support::{agent_id, session_id};

pub(crate) const NAMESPACES: [&str; 2] = ["default", "blue"];
pub(crate) const SESSIONS: u8 = 3;
pub(crate) const AGENTS: u8 = 2;
pub(crate) const SUBSCRIPTIONS: [&str; 3] = ["q0", "q1", "q2"];
pub(crate) const KEYS: [&str; 4] = ["j", "k/a", "k/b", "k/c"];
pub(crate) const REALM: &str = "repo";
/// Which of them have a path in common is looked up in the paths of [`super::locks`].
pub(crate) const GLOBS: [&str; 6] = ["src/**", "src/*.rs", "src/a.rs", "**/*.md", "docs/", "[!s]*/x.md"];

const SUBJECTS: [&str; 4] = ["a", "a.b", "a.c", "b.x"];
/// The last one hears the coordinator's own news too.
const PATTERNS: [&str; 4] = ["a.*", "a.>", "a.b", ">"];
const LOCKS: [&str; 3] = ["l0", "l1", "l2"];
const SCOPES: [&str; 4] = ["", "e0", "e1", "e2"];
const PREFIXES: [&str; 3] = ["", "k/", "k/a"];

/// One step of a history. Most are a command as it stands; the others look at the state to mean something.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Plain(Box<B>),
    /// With the epoch of now, or an older one.
    Expire {
        session: u8,
        stale: bool,
    },
    Ack(Vec<Ack>),
    /// Those that are dead, or one of them.
    Redrive {
        subscription: usize,
        one: Option<u8>,
    },
    Purge {
        subscription: usize,
        one: Option<u8>,
    },
    /// `bound`: to an attempt that runs, if one does.
    Acquire {
        request: Box<AcquireLockRequest>,
        bound: Option<u8>,
    },
    Extend {
        pick: u8,
        stale: bool,
        ttl_ms: u64,
    },
    Release {
        pick: u8,
        stale: bool,
        by_name: bool,
    },
    AcquireScope {
        request: Box<AcquireScopeRequest>,
        bound: Option<u8>,
    },
    ReleaseScope {
        pick: u8,
        stale: bool,
        force: bool,
    },
    Put(Put),
    Delete(usize, If),
    Rollback {
        key: usize,
        back: u64,
        condition: If,
    },
    Transact {
        conditions: Vec<(usize, Test)>,
        ops: Vec<Op>,
    },
    Submit {
        timeout_ms: u64,
    },
    Finish {
        pick: u8,
        kind: FinishKind,
        stale: bool,
    },
    Cancel(u8),
    /// The last command that was part of a request, once more.
    Resend,
}

/// What is said of a delivery that is under way, if one is.
#[derive(Debug, Clone)]
pub(crate) struct Ack {
    pub(crate) pick: u8,
    pub(crate) kind: AckKind,
    pub(crate) stale: bool,
    pub(crate) delay_ms: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct Put {
    pub(crate) request: Box<KvPutRequest>,
    pub(crate) condition: If,
}

/// The revision that a write depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum If {
    Any,
    Current,
    Stale,
}

/// A condition of a transaction; most hold.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Test {
    Exists(bool),
    ModRev(bool),
    Version(bool),
    Value,
}

#[derive(Debug, Clone)]
pub(crate) enum Op {
    Put(Put),
    Delete(usize, If),
    Ack(Ack),
    Publish(Box<PublishRequest>),
}

/// A step, where and when it happens, and what it is part of.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) namespace: usize,
    pub(crate) step: Step,
    /// How long after the one before.
    pub(crate) later_ms: u64,
    pub(crate) request: Option<(u8, u64, u64)>,
    /// Carries the token of something that is held, or the one before it.
    pub(crate) fence: Option<(u8, bool)>,
    /// Whether the leader's tick follows at once.
    pub(crate) ticks: bool,
}

pub(crate) fn event() -> impl Strategy<Value = Event> {
    let step = prop_oneof![
        4 => sessions(), 34 => bus(), 30 => locks(), 6 => scopes(), 18 => kv(), 10 => transact(), 11 => tasks(),
        3 => namespaces(), 2 => Just(plain(B::Tick(Tick {}))), 2 => Just(Step::Resend),
    ];
    let later_ms = prop_oneof![90 => 0_u64..100, 14 => 400_u64..3_000, 1 => Just(310_000_u64), 1 => Just(700_000_u64)];
    let request = prop::option::weighted(0.15, (0..SESSIONS, 0_u64..12, 0_u64..3));
    let fence = prop::option::weighted(0.1, (any::<u8>(), prop::bool::weighted(0.3)));
    let namespace = prop_oneof![4 => Just(0_usize), 1 => Just(1_usize)];
    (namespace, step, later_ms, request, fence, prop::bool::weighted(0.6)).prop_map(
        |(namespace, step, later_ms, request, fence, ticks)| Event { namespace, step, later_ms, request, fence, ticks },
    )
}

pub(crate) fn plain(body: B) -> Step {
    Step::Plain(Box::new(body))
}

pub(crate) fn open(session: u8) -> B {
    B::OpenSession(OpenSessionRequest { session_id: session_id(session), ttl_ms: 15_000, client: String::new() })
}

pub(crate) fn close(session: u8) -> B {
    B::CloseSession(CloseSessionRequest { session_id: session_id(session) })
}

pub(crate) fn register(agent: u8) -> B {
    B::RegisterAgent(RegisterAgentRequest {
        agent_id: agent_id(agent),
        session_id: session_id(agent),
        capabilities: vec!["any".to_owned()],
        capacity: 2,
        ..RegisterAgentRequest::default()
    })
}

pub(crate) fn claim(agent: u8) -> B {
    let (agent_id, session_id) = (agent_id(agent), session_id(agent));
    B::ClaimTasks(ClaimTasksRequest { agent_id, session_id, max_tasks: 1, ..ClaimTasksRequest::default() })
}

pub(crate) fn consume(subscription: usize, session: u8, named: bool, credit: u32) -> B {
    B::Consume(ConsumeRequest {
        subscription: SUBSCRIPTIONS[subscription].to_owned(),
        session_id: session_id(session),
        consumer_id: if named { "c".to_owned() } else { String::new() },
        credit,
    })
}

pub(crate) fn set_namespace(name: &str, quotas: Option<Quotas>) -> B {
    B::SetNamespace(SetNamespaceRequest { name: name.to_owned(), quotas, request: None })
}

/// One that nobody stored: the state cannot tell. Each has a chunk in common with another, one has a chunk twice.
pub(crate) fn blob(number: u8) -> BlobRef {
    let hash = |number: u8| Bytes::from(vec![number; 32]);
    let (size_bytes, chunks) = match number {
        0 => (1_000, vec![hash(1)]),
        1 => ((1 << 20) + 1, vec![hash(1), hash(2)]),
        _ => (2 << 20, vec![hash(2), hash(2)]),
    };
    BlobRef { hash: hash(100 + number), size_bytes, chunks }
}

fn sessions() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..SESSIONS).prop_map(|session| plain(open(session))),
        1 => (0..SESSIONS).prop_map(|session| plain(close(session))),
        1 => (0..SESSIONS, any::<bool>()).prop_map(|(session, stale)| Step::Expire { session, stale }),
    ]
}

fn bus() -> impl Strategy<Value = Step> {
    let any_of = || 0..SUBSCRIPTIONS.len();
    prop_oneof![
        4 => (spec(), prop::bool::weighted(0.7)).prop_map(|(spec, replace)| {
            plain(B::Subscribe(SubscribeRequest { spec: Some(spec), replace, request: None }))
        }),
        1 => any_of().prop_map(|subscription| {
            let name = SUBSCRIPTIONS[subscription].to_owned();
            plain(B::Unsubscribe(UnsubscribeRequest { name, request: None }))
        }),
        5 => (any_of(), 0..SESSIONS, any::<bool>(), 0_u32..4)
            .prop_map(|(subscription, session, named, credit)| plain(consume(subscription, session, named, credit))),
        2 => (any_of(), 0..SESSIONS, any::<bool>()).prop_map(|(subscription, session, named)| {
            plain(B::Leave(LeaveRequest {
                subscription: SUBSCRIPTIONS[subscription].to_owned(),
                consumer_id: if named { "c".to_owned() } else { String::new() },
                session_id: session_id(session),
                request: None,
            }))
        }),
        12 => publish().prop_map(|request| plain(B::Publish(request))),
        12 => prop::collection::vec(ack(), 1..4).prop_map(Step::Ack),
        2 => (any_of(), prop::option::of(any::<u8>()))
            .prop_map(|(subscription, one)| Step::Redrive { subscription, one }),
        1 => (any_of(), prop::option::of(any::<u8>()))
            .prop_map(|(subscription, one)| Step::Purge { subscription, one }),
    ]
}

fn spec() -> impl Strategy<Value = SubscriptionSpec> {
    let patterns = prop::collection::vec(prop::sample::select(PATTERNS.to_vec()), 1..3);
    let session = prop::option::weighted(0.25, 0..SESSIONS);
    let pauses = prop::sample::select(vec![vec![], vec![0_u64], vec![500], vec![300, 2_000]]);
    let wait_ms = prop_oneof![Just(0_u64), 500_u64..3_000];
    let overflow =
        prop::sample::select(vec![Overflow::Unspecified, Overflow::Reject, Overflow::DropOldest, Overflow::DropOldest]);
    let limits = (0_u32..4, 0_u64..7, overflow, prop::bool::weighted(0.2));
    (0..SUBSCRIPTIONS.len(), patterns, session, pauses, wait_ms, limits).prop_map(
        |(name, patterns, session, backoff_ms, ack_wait_ms, (max_attempts, max_messages, overflow, drop_dead))| {
            SubscriptionSpec {
                name: SUBSCRIPTIONS[name].to_owned(),
                patterns: patterns.into_iter().map(str::to_owned).collect(),
                session_id: session.map(session_id).unwrap_or_default(),
                max_attempts,
                backoff_ms,
                ack_wait_ms,
                max_messages,
                overflow: overflow as i32,
                drop_dead,
            }
        },
    )
}

fn publish() -> impl Strategy<Value = PublishRequest> {
    let ensured = prop::option::weighted(0.1, 0..SUBSCRIPTIONS.len());
    let messages = prop::collection::vec(message(), 1..4);
    (messages, prop::bool::weighted(0.15), ensured, prop::bool::weighted(0.8)).prop_map(
        |(mut messages, must_match, ensured, of_one_subject)| {
            if ensured.is_some() && of_one_subject {
                let subject = messages[0].subject.clone();
                messages.iter_mut().for_each(|message| message.subject.clone_from(&subject));
            }
            let ensure_subscription = ensured.map_or("", |name| SUBSCRIPTIONS[name]).to_owned();
            PublishRequest { messages, must_match, ensure_subscription, request: None }
        },
    )
}

fn message() -> impl Strategy<Value = BusMessage> {
    let id = prop::option::weighted(0.2, 0_u8..4);
    let turn = (prop::sample::select(vec![0_u32, 0, 5, 10]), prop::option::weighted(0.4, 0_u8..2));
    let ttl_ms = prop_oneof![3 => Just(0_u64), 1 => 1_u64..3_000];
    let delay_ms = prop_oneof![4 => Just(0_u64), 1 => 1_u64..3_000];
    let content = (0_usize..3, prop::option::weighted(0.2, 0_u8..3));
    (prop::sample::select(SUBJECTS.to_vec()), id, turn, ttl_ms, delay_ms, content).prop_map(
        |(subject, id, (priority, order_key), ttl_ms, delay_ms, (size, blobbed))| BusMessage {
            id: id.map(|id| format!("m{id}")).unwrap_or_default(),
            subject: subject.to_owned(),
            payload: if blobbed.is_some() { Bytes::new() } else { Bytes::from(vec![b'x'; size]) },
            blob: blobbed.map(blob),
            priority,
            order_key: order_key.map(|key| format!("k{key}")).unwrap_or_default(),
            ttl_ms,
            delay_ms,
            ..BusMessage::default()
        },
    )
}

fn ack() -> impl Strategy<Value = Ack> {
    use AckKind::{Extend, Nack, Reject, Release};
    let kinds = vec![AckKind::Ack, AckKind::Ack, AckKind::Ack, Nack, Nack, Nack, Reject, Release, Extend];
    let delay_ms = prop_oneof![3 => Just(0_u64), 1 => 1_u64..2_000];
    (any::<u8>(), prop::sample::select(kinds), prop::bool::weighted(0.12), delay_ms).prop_map(
        |(pick, kind, stale, delay_ms)| Ack { pick, kind, stale, delay_ms: if kind == Nack { delay_ms } else { 0 } },
    )
}

/// A session and a name within it. Two sessions do most of it.
fn owner() -> impl Strategy<Value = (String, String)> {
    (prop::sample::select(vec![0_u8, 0, 0, 1, 1, 1, 2]), any::<bool>())
        .prop_map(|(session, named)| (session_id(session), if named { "o".to_owned() } else { String::new() }))
}

fn mode() -> impl Strategy<Value = i32> {
    use LockMode::{Exclusive, Shared, Unspecified};
    prop::sample::select(vec![Exclusive, Unspecified, Shared, Shared]).prop_map(|mode| mode as i32)
}

fn locks() -> impl Strategy<Value = Step> {
    let times = (
        prop::sample::select(vec![0_u64, 2_000, 30_000, 600_000, 600_000]),
        prop::sample::select(vec![0_u64, 0, 0, 0, 8_000]),
        prop::sample::select(vec![0_u64, 0, 0, 0, 20_000]),
    );
    let acquire = (prop::sample::select(LOCKS.to_vec()), owner(), mode(), times).prop_map(
        |(name, (session_id, owner), mode, (wait_ms, ttl_ms, max_hold_ms))| AcquireLockRequest {
            name: name.to_owned(),
            session_id,
            owner,
            mode,
            wait_ms,
            ttl_ms,
            max_hold_ms,
            ..AcquireLockRequest::default()
        },
    );
    let stale = || prop::bool::weighted(0.1);
    prop_oneof![
        14 => (acquire, prop::option::weighted(0.2, any::<u8>()))
            .prop_map(|(request, bound)| Step::Acquire { request: Box::new(request), bound }),
        3 => (any::<u8>(), stale(), prop::sample::select(vec![0_u64, 200, 5_000]))
            .prop_map(|(pick, stale, ttl_ms)| Step::Extend { pick, stale, ttl_ms }),
        5 => (any::<u8>(), stale(), prop::bool::weighted(0.4))
            .prop_map(|(pick, stale, by_name)| Step::Release { pick, stale, by_name }),
        1 => prop::sample::select(LOCKS.to_vec()).prop_map(|name| {
            let name = name.to_owned();
            plain(B::ForceReleaseLock(ForceReleaseLockRequest { name, ..ForceReleaseLockRequest::default() }))
        }),
    ]
}

fn scopes() -> impl Strategy<Value = Step> {
    let globs = prop::collection::vec(prop::sample::select(GLOBS.to_vec()), 1..3);
    let acquire = (prop::sample::select(SCOPES.to_vec()), globs, owner(), mode()).prop_map(
        |(id, globs, (session_id, owner), mode)| AcquireScopeRequest {
            id: id.to_owned(),
            realm: REALM.to_owned(),
            globs: globs.into_iter().map(str::to_owned).collect(),
            mode,
            session_id,
            owner,
            ..AcquireScopeRequest::default()
        },
    );
    prop_oneof![
        3 => (acquire, prop::option::weighted(0.2, any::<u8>()))
            .prop_map(|(request, bound)| Step::AcquireScope { request: Box::new(request), bound }),
        1 => (any::<u8>(), prop::bool::weighted(0.15), prop::bool::weighted(0.2))
            .prop_map(|(pick, stale, force)| Step::ReleaseScope { pick, stale, force }),
    ]
}

fn condition() -> impl Strategy<Value = If> {
    prop_oneof![8 => Just(If::Any), 2 => Just(If::Current), 1 => Just(If::Stale)]
}

fn kv() -> impl Strategy<Value = Step> {
    let any_of = || 0..KEYS.len();
    let policy =
        (prop::sample::select(PREFIXES.to_vec()), 0_u32..4, prop::sample::select(vec![0_u64, 1_000, 5_000, 90_000]));
    prop_oneof![
        12 => put().prop_map(Step::Put),
        3 => (any_of(), condition()).prop_map(|(key, condition)| Step::Delete(key, condition)),
        3 => (any_of(), 0_u64..4, condition())
            .prop_map(|(key, back, condition)| Step::Rollback { key, back, condition }),
        2 => policy.prop_map(|(prefix, versions, max_age_ms)| {
            let policy = Some(KvPolicy { prefix: prefix.to_owned(), versions, max_age_ms });
            plain(B::SetKvPolicy(SetKvPolicyRequest { policy, request: None }))
        }),
        1 => prop::sample::select(PREFIXES.to_vec()).prop_map(|prefix| {
            plain(B::DeleteKvPolicy(DeleteKvPolicyRequest { prefix: prefix.to_owned(), request: None }))
        }),
    ]
}

fn put() -> impl Strategy<Value = Put> {
    use KvMerge::{Add, Append, JsonAppend, JsonPatch, Replace, SetAdd, SetRemove, Unspecified};
    let writes = vec![
        (Replace, r#"{"a":1}"#),
        (Replace, r#"["b"]"#),
        (Replace, "5"),
        (Unspecified, ""),
        (Add, "5"),
        (Add, "-7"),
        (Add, "9223372036854775807"),
        (Add, "many"),
        (SetAdd, r#"["b","a","b"]"#),
        (SetRemove, r#"["b"]"#),
        (JsonAppend, r#"[1,{"x":2}]"#),
        (JsonPatch, r#"{"a":null,"b":{"c":2}}"#),
        (JsonPatch, r#"{"b":{"c":null,"d":[1]}}"#),
        (JsonPatch, r#"{"b":"#),
        (Append, "yz"),
    ];
    let write = (0..KEYS.len(), prop::sample::select(writes), prop::option::weighted(0.12, 0_u8..3));
    let ends = (prop::option::weighted(0.4, 0..SESSIONS), prop_oneof![5 => Just(0_u64), 1 => 1_u64..3_000]);
    let rest = (prop::bool::weighted(0.1), prop::bool::weighted(0.2), condition());
    (write, ends, rest).prop_map(
        |((key, (merge, value), blobbed), (session, ttl_ms), (if_absent, typed, condition))| {
            let (merge, value) = if blobbed.is_some() { (Replace, "") } else { (merge, value) };
            let request = KvPutRequest {
                key: KEYS[key].to_owned(),
                value: Bytes::from(value),
                blob: blobbed.map(blob),
                merge: merge as i32,
                if_absent,
                session_id: session.map(session_id).unwrap_or_default(),
                ttl_ms,
                content_type: if typed { "text/plain".to_owned() } else { String::new() },
                ..KvPutRequest::default()
            };
            Put { request: Box::new(request), condition }
        },
    )
}

fn transact() -> impl Strategy<Value = Step> {
    let wrong = || prop::bool::weighted(0.1);
    let test = prop_oneof![
        wrong().prop_map(Test::Exists),
        wrong().prop_map(Test::ModRev),
        wrong().prop_map(Test::Version),
        Just(Test::Value),
    ];
    let op = prop_oneof![
        4 => put().prop_map(Op::Put),
        1 => (0..KEYS.len(), condition()).prop_map(|(key, condition)| Op::Delete(key, condition)),
        3 => ack().prop_map(Op::Ack),
        2 => publish().prop_map(|request| Op::Publish(Box::new(request))),
    ];
    (prop::collection::vec((0..KEYS.len(), test), 0..3), prop::collection::vec(op, 1..4))
        .prop_map(|(conditions, ops)| Step::Transact { conditions, ops })
}

fn tasks() -> impl Strategy<Value = Step> {
    use FinishKind::{Completed, Failed, Released};
    prop_oneof![
        2 => (0..AGENTS).prop_map(|agent| plain(register(agent))),
        4 => prop::sample::select(vec![0_u64, 0, 2_000]).prop_map(|timeout_ms| Step::Submit { timeout_ms }),
        5 => (0..AGENTS).prop_map(|agent| plain(claim(agent))),
        3 => (any::<u8>(), prop::sample::select(vec![Completed, Failed, Released]), prop::bool::weighted(0.1))
            .prop_map(|(pick, kind, stale)| Step::Finish { pick, kind, stale }),
        1 => any::<u8>().prop_map(Step::Cancel),
    ]
}

fn namespaces() -> impl Strategy<Value = Step> {
    let most = |most: u64| prop_oneof![Just(0_u64), Just(most)];
    prop_oneof![
        4 => (most(4), most(2), most(1_000_000)).prop_map(|(max_messages, max_kv_keys, max_kv_bytes)| {
            let quotas = Quotas { max_messages, max_kv_keys, max_kv_bytes, ..Quotas::default() };
            plain(set_namespace(NAMESPACES[1], Some(quotas)))
        }),
        1 => Just(plain(B::DeleteNamespace(DeleteNamespaceRequest {
            name: NAMESPACES[1].to_owned(),
            request: None,
        }))),
    ]
}
