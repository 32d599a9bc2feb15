//! What holds after any sequence of commands, tried with random ones over few ids so that they meet.
//!
//! After each command: the indexes equal those rebuilt from the rows; each live task is in exactly one place; an agent's
//! load counts the attempts it holds; no task has two attempts running; tokens rise; a refusal changed nothing. At the
//! end: the same log gives the same digest and the same rows, whether its commands come one by one or in batches.

// Helpers of a test are tests too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use prost::Message;
use quorate_proto::log::{Answer, Command, ExpireSession, Tick, answer, command};
use quorate_proto::v1::{
    AgentStatus, Attempt, AttemptOutcome, CancelTaskRequest, ClaimTasksRequest, CloseSessionRequest,
    DeregisterAgentRequest, DrainAgentRequest, FinishKind, FinishTaskRequest, OpenSessionRequest, RegisterAgentRequest,
    ReportAgentRequest, RequestId, RetryPolicy, SubmitTasksRequest, Task, TaskSpec, TaskStatus, Unroutable,
};
use quorate_raft::apply::Machine;
use quorate_raft::state::Rooms;
use quorate_raft::storage::keys::{Key, Table};
use quorate_raft::storage::rows::{self, MemoryRows};

/// One step of a history, with small numbers for ids.
#[derive(Debug, Clone)]
enum Step {
    Open(u8),
    Close(u8),
    /// With the epoch of now, or an older one.
    Expire(u8, bool),
    Register {
        agent: u8,
        session: u8,
        capabilities: u8,
        capacity: u32,
    },
    Report(u8, AgentStatus),
    Drain(u8),
    Deregister(u8),
    Submit(Vec<Spec>),
    Claim {
        agent: u8,
        session: u8,
        max: u32,
    },
    Finish {
        task: u8,
        kind: FinishKind,
        stale: u64,
        next: u32,
    },
    Cancel(u8),
    Tick,
}

#[derive(Debug, Clone)]
struct Spec {
    id: u8,
    capabilities: u8,
    pin: Option<u8>,
    priority: u32,
    dependencies: Vec<u8>,
    retries: u32,
    timeout_ms: u64,
    delay_ms: u64,
    key: Option<u8>,
    fail_if_unroutable: bool,
}

/// A step, when it happens, and the request it is part of, if any.
type Event = (Step, u64, Option<(u8, u64, u64)>);

fn spec() -> impl Strategy<Value = Spec> {
    let shape = (0_u8..12, 0_u8..4, prop::option::weighted(0.2, 0_u8..4), 0_u32..=10, 0_u32..3);
    let links = prop::collection::vec(0_u8..12, 0..3);
    let times = (prop_oneof![Just(0_u64), 1_000_u64..6_000], prop_oneof![3 => Just(0_u64), 1 => 1_u64..5_000]);
    let rest = (prop::option::weighted(0.2, 0_u8..4), prop::bool::weighted(0.2));
    (shape, links, times, rest).prop_map(
        |(
            (id, capabilities, pin, priority, retries),
            dependencies,
            (timeout_ms, delay_ms),
            (key, fail_if_unroutable),
        )| {
            Spec {
                id,
                capabilities,
                pin,
                priority,
                dependencies,
                retries,
                timeout_ms,
                delay_ms,
                key,
                fail_if_unroutable,
            }
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let status = prop::sample::select(vec![AgentStatus::Available, AgentStatus::Unavailable, AgentStatus::Failed]);
    let kind = prop::sample::select(vec![
        FinishKind::Completed,
        FinishKind::Failed,
        FinishKind::FailedPermanently,
        FinishKind::Released,
    ]);
    prop_oneof![
        3 => (0_u8..3).prop_map(Step::Open),
        1 => (0_u8..3).prop_map(Step::Close),
        1 => (0_u8..3, any::<bool>()).prop_map(|(session, stale)| Step::Expire(session, stale)),
        4 => (0_u8..4, 0_u8..3, 0_u8..4, 0_u32..4).prop_map(|(agent, session, capabilities, capacity)| {
            Step::Register { agent, session, capabilities, capacity }
        }),
        1 => (0_u8..4, status).prop_map(|(agent, status)| Step::Report(agent, status)),
        1 => (0_u8..4).prop_map(Step::Drain),
        1 => (0_u8..4).prop_map(Step::Deregister),
        6 => prop::collection::vec(spec(), 1..4).prop_map(Step::Submit),
        6 => (0_u8..4, 0_u8..3, 0_u32..4).prop_map(|(agent, session, max)| Step::Claim { agent, session, max }),
        6 => (0_u8..12, kind, prop_oneof![4 => Just(0_u64), 1 => 1_u64..8], 0_u32..3).prop_map(
            |(task, kind, stale, next)| Step::Finish { task, kind, stale, next }
        ),
        1 => (0_u8..12).prop_map(Step::Cancel),
        2 => Just(Step::Tick),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let later_ms = prop_oneof![4 => 0_u64..500, 1 => 500_u64..10_000, 1 => Just(300_000_u64)];
    let request = prop::option::weighted(0.3, (0_u8..3, 0_u64..12, 0_u64..4));
    (step(), later_ms, request)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_invariant_holds_after_any_history(events in prop::collection::vec(event(), 1..80), entropy in any::<u64>()) {
        let mut machine = Machine::in_memory();
        let mut log = Vec::new();
        let mut now_ms = 1_000;
        for (step, later_ms, request) in events {
            now_ms += later_ms;
            let command = command(&machine, now_ms, step, request);
            let before = without_requests(&machine.rows);
            let answers = machine.apply(now_ms, entropy, vec![command.clone()]).expect("no fatal error");
            check_refusal(&answers, &before, &machine.rows);
            check_state(&machine);
            log.push((now_ms, command));
        }
        check_replay(&machine, &log, entropy);
        check_batched(&log, entropy);
    }
}

fn command(machine: &Machine, now_ms: u64, step: Step, request: Option<(u8, u64, u64)>) -> Command {
    let request = request.map(|(session, sequence, done_below)| RequestId {
        session_id: session_id(session),
        sequence,
        done_below,
    });
    Command { request, body: Some(body(machine, now_ms, step)), ..Command::default() }
}

fn body(machine: &Machine, now_ms: u64, step: Step) -> command::Body {
    use command::Body as B;
    match step {
        Step::Open(session) => B::OpenSession(OpenSessionRequest {
            session_id: session_id(session),
            ttl_ms: 15_000,
            client: String::new(),
        }),
        Step::Close(session) => B::CloseSession(CloseSessionRequest { session_id: session_id(session) }),
        Step::Expire(session, stale) => {
            let session_id = session_id(session);
            let epoch = machine.rooms().sessions.get(&session_id).map_or(0, |session| session.epoch);
            B::ExpireSession(ExpireSession { session_id, epoch: epoch.saturating_sub(u64::from(stale)) })
        }
        Step::Register { agent, session, capabilities: offered, capacity } => B::RegisterAgent(RegisterAgentRequest {
            agent_id: agent_id(agent),
            session_id: session_id(session),
            capabilities: [vec!["any".to_owned()], capabilities(offered)].concat(),
            capacity,
            ..RegisterAgentRequest::default()
        }),
        Step::Report(agent, status) => B::ReportAgent(ReportAgentRequest {
            agent_id: agent_id(agent),
            status: status as i32,
            ..ReportAgentRequest::default()
        }),
        Step::Drain(agent) => B::DrainAgent(DrainAgentRequest { agent_id: agent_id(agent), request: None }),
        Step::Deregister(agent) => {
            B::DeregisterAgent(DeregisterAgentRequest { agent_id: agent_id(agent), request: None })
        }
        Step::Submit(specs) => B::SubmitTasks(SubmitTasksRequest {
            tasks: specs.into_iter().map(|spec| task_spec(spec, now_ms)).collect(),
            ..SubmitTasksRequest::default()
        }),
        Step::Claim { agent, session, max } => B::ClaimTasks(ClaimTasksRequest {
            agent_id: agent_id(agent),
            session_id: session_id(session),
            max_tasks: max,
            ..ClaimTasksRequest::default()
        }),
        Step::Finish { task, kind, stale, next } => {
            let task_id = task_id(task);
            let newest = attempts(&machine.rows).get(&task_id).and_then(|all| all.last()).map_or(0, |last| last.token);
            B::FinishTask(FinishTaskRequest {
                task_id,
                token: newest.saturating_sub(stale),
                kind: kind as i32,
                claim_next: next,
                ..FinishTaskRequest::default()
            })
        }
        Step::Cancel(task) => {
            B::CancelTask(CancelTaskRequest { task_id: task_id(task), ..CancelTaskRequest::default() })
        }
        Step::Tick => B::Tick(Tick {}),
    }
}

fn task_spec(spec: Spec, now_ms: u64) -> TaskSpec {
    TaskSpec {
        task_id: task_id(spec.id),
        required_capabilities: capabilities(spec.capabilities),
        agent_id: spec.pin.map(agent_id).unwrap_or_default(),
        priority: Some(spec.priority),
        dependencies: spec.dependencies.into_iter().map(task_id).collect(),
        retry: Some(RetryPolicy {
            max_retries: spec.retries,
            base_ms: 500,
            cap_ms: 2_000,
            jitter_permille: 200,
            ..RetryPolicy::default()
        }),
        attempt_timeout_ms: spec.timeout_ms,
        not_before_ms: if spec.delay_ms == 0 { 0 } else { now_ms + spec.delay_ms },
        unroutable: if spec.fail_if_unroutable { Unroutable::Fail } else { Unroutable::Wait } as i32,
        idempotency_key: spec.key.map(|key| format!("key{key}")).unwrap_or_default(),
        ..TaskSpec::default()
    }
}

fn session_id(n: u8) -> String {
    format!("s{n}")
}

fn agent_id(n: u8) -> String {
    format!("a{n}")
}

fn task_id(n: u8) -> String {
    format!("t{n:02}")
}

/// Each bit a capability.
fn capabilities(bits: u8) -> Vec<String> {
    ["rust", "review"].iter().enumerate().filter(|(i, _)| (bits >> i) & 1 == 1).map(|(_, c)| (*c).to_owned()).collect()
}

fn live_tasks(rows: &MemoryRows) -> Vec<Task> {
    let mut tasks = Vec::new();
    rows::scan_prefix::<Task>(rows, &Key::table(Table::LiveTask), |_, task| {
        tasks.push(task);
        Ok(true)
    })
    .expect("tasks that can be read");
    tasks
}

/// Every attempt by task, oldest first.
fn attempts(rows: &MemoryRows) -> BTreeMap<String, Vec<Attempt>> {
    let mut attempts: BTreeMap<String, Vec<Attempt>> = BTreeMap::new();
    rows::scan_prefix::<Attempt>(rows, &Key::table(Table::Attempt), |_, attempt| {
        attempts.entry(attempt.task_id.clone()).or_default().push(attempt);
        Ok(true)
    })
    .expect("attempts that can be read");
    attempts
}

/// Everything but the record of answered requests.
fn without_requests(rows: &MemoryRows) -> MemoryRows {
    let requests = Key::table(Table::Request);
    let rest = rows.0.iter().filter(|(key, _)| !key.starts_with(requests.as_bytes()));
    MemoryRows(rest.map(|(key, value)| (key.clone(), value.clone())).collect())
}

fn check_refusal(answers: &[Answer], before: &MemoryRows, after: &MemoryRows) {
    let refused = answers.iter().all(|answer| matches!(answer.body, Some(answer::Body::Rejected(_))));
    if refused {
        assert_eq!(&without_requests(after), before, "a refused command changed rows: {answers:?}");
    }
}

fn check_state(machine: &Machine) {
    let (rooms, rows) = (machine.rooms(), &machine.rows);
    assert_eq!(&Rooms::rebuild(rows).expect("rows that can be read"), rooms, "indexes differ from the rows");
    let live = live_tasks(rows);
    assert_eq!(rooms.tasks.live(), live.len());
    let attempts = attempts(rows);
    let mut held: BTreeMap<String, usize> = BTreeMap::new();
    for task in &live {
        assert_eq!(rooms.tasks.places(task), [task.status()], "{task:?}");
        if let Some(claim) = &task.claim {
            *held.entry(claim.agent_id.clone()).or_default() += 1;
        }
        let running = running(attempts.get(&task.id));
        assert_eq!(running, usize::from(task.status() == TaskStatus::InProgress), "{task:?}");
        assert_eq!(task.claim.is_some(), task.status() == TaskStatus::InProgress, "{task:?}");
        assert_eq!(rooms.tasks.open_dependencies(task).is_empty(), task.status() != TaskStatus::Blocked, "{task:?}");
    }
    for agent in rooms.agents.iter() {
        let held = held.remove(&agent.id).unwrap_or_default();
        assert_eq!((agent.load as usize, rooms.tasks.held_by(&agent.id)), (held, held), "{agent:?}");
    }
    assert!(held.is_empty(), "attempts of agents that have no record: {held:?}");
    for (task_id, attempts) in &attempts {
        assert!(running(Some(attempts)) <= 1, "{task_id} runs twice");
        assert!(attempts.is_sorted_by(|a, b| a.token < b.token), "tokens of {task_id} do not rise: {attempts:?}");
    }
}

fn running(attempts: Option<&Vec<Attempt>>) -> usize {
    attempts.into_iter().flatten().filter(|attempt| attempt.outcome() == AttemptOutcome::Running).count()
}

/// The same log again gives the same rows, digest and indexes.
fn check_replay(machine: &Machine, log: &[(u64, Command)], entropy: u64) {
    let mut again = Machine::in_memory();
    for (now_ms, command) in log {
        again.apply(*now_ms, entropy, vec![command.clone()]).expect("no fatal error");
    }
    assert_eq!(again.digest(), machine.digest());
    assert_eq!(again.rows, machine.rows);
    assert_eq!(again.namespaces, machine.namespaces);
}

/// Several commands in one entry see each other's writes, and twice the same entries give the same digest.
fn check_batched(log: &[(u64, Command)], entropy: u64) {
    let mut machines = [Machine::in_memory(), Machine::in_memory()];
    for machine in &mut machines {
        for chunk in log.chunks(5) {
            let now_ms = chunk.iter().map(|(now_ms, _)| *now_ms).max().unwrap_or_default();
            let commands: Vec<Command> = chunk.iter().map(|(_, command)| command.clone()).collect();
            let answers = machine.apply(now_ms, entropy, commands).expect("no fatal error");
            assert!(answers.iter().all(|answer| answer.encoded_len() > 0));
            check_state(machine);
        }
    }
    let [one, other] = machines;
    assert_eq!(one.digest(), other.digest());
    assert_eq!(one.rows, other.rows);
}
