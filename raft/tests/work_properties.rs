//! What holds of work after any history: graphs, spawns, limits, shares, breakers, reviews, schedules and time-outs,
//! over few ids so that they meet.
//!
//! After each command what `support::View::check` says holds; besides, against the state before it: a refusal and a
//! resend changed nothing; what ended stays as it ended; a task began only after what it depends on; no grant went over
//! a limit; nobody waits in a circle unless one was let in. At the end the same log gives the same state, one by one
//! and in batches.

// Helpers of a test are tests too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use quorate_proto::log::command::Body as B;
use quorate_proto::log::{Answer, Command, ExpireSession, FireSchedule, ForgetTasks, StandingOrder, Tick, answer};
use quorate_proto::v1::*;
use quorate_raft::apply::Machine;
use quorate_raft::effect::Effect;
use quorate_raft::storage::keys::Table;

use support::{CALLER, View, agent_id, capabilities, ended_well, is_ended, session_id, spec, task_id};

const AGENTS: u8 = 4;
const SESSIONS: u8 = 2;
/// Ids that dependencies name. More tasks than these come to be.
const NAMED: u8 = 14;
const TYPES: [&str; 2] = ["coder", "writer"];
const SHARES: [&str; 3] = ["", "blue", "red"];
const BREAKERS: [&str; 4] = ["provider:x", "provider:y", "agent:a0", "agent:a1"];
const SCHEDULES: [&str; 2] = ["c0", "c1"];
const LIMITS: [(LimitScope, &str); 5] = [
    (LimitScope::Total, ""),
    (LimitScope::AgentType, TYPES[0]),
    (LimitScope::AgentType, TYPES[1]),
    (LimitScope::Key, "k0"),
    (LimitScope::Key, "k1"),
];

/// One step of a history. Most are a command as it stands; the others look at the state to mean something.
#[derive(Debug, Clone)]
enum Step {
    Plain(Box<B>),
    /// With the epoch of now, or an older one.
    Expire {
        session: u8,
        stale: bool,
    },
    /// `sound`: after tasks that exist. `import`: as a ring, if the history admits some.
    Submit {
        specs: Vec<TaskSpec>,
        sound: bool,
        import: bool,
    },
    Spawn {
        parent: u8,
        specs: Vec<TaskSpec>,
        joins: bool,
        stale: bool,
    },
    Finish {
        task: u8,
        finish: Box<FinishTaskRequest>,
        proof: bool,
        stale: u64,
    },
    Decide {
        task: u8,
        verdict: Verdict,
        by: u8,
    },
    Cancel {
        task: u8,
        only_this: bool,
        now: bool,
    },
    Depend {
        task: u8,
        on: Vec<u8>,
    },
    Redrive(u8),
    Purge(Vec<u8>),
    /// What ended so many milliseconds ago.
    Forget {
        tasks: Vec<u8>,
        kept_ms: u64,
    },
    Resolve,
    /// With the token of the probe that is under way, or none.
    ReportBreaker {
        breaker: usize,
        success: bool,
        probes: bool,
        pause_ms: u64,
    },
    CreateSchedule {
        schedule: usize,
        overlap: Overlap,
        template: Box<TaskSpec>,
    },
    Fire {
        schedule: usize,
        stale: bool,
        missed: bool,
    },
    RunNow(usize),
}

/// A step, how long after the one before, the request it is part of, and whether the leader's tick follows at once.
type Event = (Step, u64, Option<(u8, u64, u64)>, bool);

fn plain(body: B) -> Step {
    Step::Plain(Box::new(body))
}

fn sessions() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..SESSIONS).prop_map(|session| plain(open(session))),
        1 => (0..SESSIONS).prop_map(|session| {
            plain(B::CloseSession(CloseSessionRequest { session_id: session_id(session) }))
        }),
        1 => (0..SESSIONS, any::<bool>()).prop_map(|(session, stale)| Step::Expire { session, stale }),
    ]
}

fn agents() -> impl Strategy<Value = Step> {
    use AgentStatus::{Available, Failed, Unavailable};
    let status = prop::sample::select(vec![Available, Available, Unavailable, Failed]);
    let offer = (0_u8..4, 0_usize..2, any::<bool>(), 1_u32..4);
    prop_oneof![
        6 => (0..AGENTS, 0..SESSIONS, offer).prop_map(|(agent, session, (offered, kind, zone, capacity))| {
            plain(register(agent, session, offered, TYPES[kind], zone, capacity))
        }),
        5 => (0..AGENTS, 0..SESSIONS).prop_map(|(agent, session)| plain(stand(agent, session))),
        2 => (0..AGENTS, status).prop_map(|(agent, status)| {
            let (agent_id, status) = (agent_id(agent), status as i32);
            plain(B::ReportAgent(ReportAgentRequest { agent_id, status, ..ReportAgentRequest::default() }))
        }),
        1 => (0..AGENTS).prop_map(|agent| {
            plain(B::DrainAgent(DrainAgentRequest { agent_id: agent_id(agent), request: None }))
        }),
        1 => (0..AGENTS).prop_map(|agent| {
            plain(B::DeregisterAgent(DeregisterAgentRequest { agent_id: agent_id(agent), request: None }))
        }),
    ]
}

fn work() -> impl Strategy<Value = Step> {
    let specs = || prop::collection::vec(task_spec(), 1..5);
    prop_oneof![
        8 => (specs(), prop::bool::weighted(0.85), prop::bool::weighted(0.2))
            .prop_map(|(specs, sound, import)| Step::Submit { specs, sound, import }),
        3 => (any::<u8>(), specs(), any::<bool>(), prop::bool::weighted(0.1))
            .prop_map(|(parent, specs, joins, stale)| Step::Spawn { parent, specs, joins, stale }),
        5 => (0..AGENTS, 0..SESSIONS, 0_u32..4).prop_map(|(agent, session, max)| plain(claim(agent, session, max))),
        12 => finish(),
        3 => (any::<u8>(), prop::sample::select(vec![Verdict::Accept, Verdict::Accept, Verdict::Rework]), 0_u8..3)
            .prop_map(|(task, verdict, by)| Step::Decide { task, verdict, by }),
        2 => (any::<u8>(), any::<bool>(), prop::bool::weighted(0.3))
            .prop_map(|(task, only_this, now)| Step::Cancel { task, only_this, now }),
        2 => (any::<u8>(), prop::collection::vec(any::<u8>(), 1..3)).prop_map(|(task, on)| Step::Depend { task, on }),
        3 => any::<u8>().prop_map(Step::Redrive),
        1 => prop::collection::vec(any::<u8>(), 1..3).prop_map(Step::Purge),
        2 => (prop::collection::vec(any::<u8>(), 1..6), 0_u64..2_000)
            .prop_map(|(tasks, kept_ms)| Step::Forget { tasks, kept_ms }),
        1 => Just(Step::Resolve),
        2 => Just(plain(B::Tick(Tick {}))),
    ]
}

fn finish() -> impl Strategy<Value = Step> {
    use FinishKind::{Cancelled, Completed, Failed, FailedPermanently, Released};
    let kinds = vec![Completed, Completed, Completed, Failed, Failed, FailedPermanently, Released, Cancelled];
    let classes = vec!["", "timeout", "busy", "budget", "validation", "rate_limited", "rate_limited"];
    let verdicts = vec![Verdict::Accept, Verdict::Accept, Verdict::Rework, Verdict::Unspecified];
    let said = (prop::sample::select(kinds), prop::sample::select(classes), prop::sample::select(verdicts));
    let pause_ms = prop_oneof![Just(0_u64), 1_u64..4_000];
    let stale = prop_oneof![8 => Just(0_u64), 1 => 1_u64..8];
    (any::<u8>(), said, pause_ms, prop::bool::weighted(0.85), stale, 0_u32..3).prop_map(
        |(task, (kind, class, verdict), retry_after_ms, proof, stale, claim_next)| {
            let finish = FinishTaskRequest {
                kind: kind as i32,
                error_class: class.to_owned(),
                verdict: verdict as i32,
                retry_after_ms,
                claim_next,
                ..FinishTaskRequest::default()
            };
            Step::Finish { task, finish: Box::new(finish), proof, stale }
        },
    )
}

fn dispatch() -> impl Strategy<Value = Step> {
    let ageing_ms = prop_oneof![Just(0_u64), 1_000_u64..3_000];
    prop_oneof![
        5 => (0..LIMITS.len(), 1_u32..4).prop_map(|(limit, max)| plain(set_limit(limit, max))),
        2 => (0..LIMITS.len()).prop_map(|limit| {
            let (scope, name) = LIMITS[limit];
            plain(B::DeleteLimit(DeleteLimitRequest { scope: scope as i32, name: name.to_owned(), request: None }))
        }),
        1 => (1..SHARES.len(), 1_u32..5).prop_map(|(share, weight)| {
            plain(B::SetShare(SetShareRequest { name: SHARES[share].to_owned(), weight, request: None }))
        }),
        1 => (any::<bool>(), ageing_ms).prop_map(|(weighted, ageing_ms)| {
            let order = if weighted { BandOrder::Weighted } else { BandOrder::Strict } as i32;
            let policy = Some(DispatchPolicy { order, ageing_ms });
            plain(B::SetDispatchPolicy(SetDispatchPolicyRequest { policy, request: None }))
        }),
        1 => (0_usize..2).prop_map(|kind| {
            let fallback_agent_type = TYPES[kind].to_owned();
            let table = Some(RoutingTable { fallback_agent_type, ..RoutingTable::default() });
            plain(B::SetRoutes(SetRoutesRequest { table, if_version: None, request: None }))
        }),
        1 => prop::option::of(0_u32..3).prop_map(|retries| {
            let name = "quick".to_owned();
            plain(match retries {
                Some(retries) => {
                    B::SetRetryProfile(SetRetryProfileRequest { name, policy: Some(policy(retries)), request: None })
                }
                None => B::DeleteRetryProfile(DeleteRetryProfileRequest { name, request: None }),
            })
        }),
    ]
}

fn breakers() -> impl Strategy<Value = Step> {
    use BreakerForce::{Close, Open, Reset};
    let any_of = || 0..BREAKERS.len();
    let pause_ms = prop_oneof![3 => Just(0_u64), 1 => 1_u64..3_000];
    prop_oneof![
        2 => (any_of(), prop::sample::select(vec![Open, Close, Close, Reset])).prop_map(|(breaker, force)| {
            let (name, force) = (BREAKERS[breaker].to_owned(), force as i32);
            plain(B::ForceBreaker(ForceBreakerRequest { name, force, ..ForceBreakerRequest::default() }))
        }),
        2 => (prop::option::of(any_of()), 1_u32..3, 500_u64..5_000, any::<bool>()).prop_map(
            |(breaker, failure_threshold, open_ms, exclude_nothing)| {
                let name = breaker.map_or("", |breaker| BREAKERS[breaker]).to_owned();
                let settings = BreakerSettings {
                    failure_threshold,
                    open_ms,
                    probe_timeout_ms: 2_000,
                    exclude_nothing,
                    ..BreakerSettings::default()
                };
                plain(B::ConfigureBreaker(ConfigureBreakerRequest { name, settings: Some(settings), request: None }))
            }
        ),
        1 => any_of().prop_map(|breaker| {
            let (name, holder) = (BREAKERS[breaker].to_owned(), CALLER.to_owned());
            plain(B::AcquireBreaker(AcquireBreakerRequest { name, holder, request: None }))
        }),
        4 => (any_of(), any::<bool>(), any::<bool>(), pause_ms).prop_map(|(breaker, success, probes, pause_ms)| {
            Step::ReportBreaker { breaker, success, probes, pause_ms }
        }),
    ]
}

fn schedules() -> impl Strategy<Value = Step> {
    use Overlap::{Allow, CancelPrevious, Queue, Skip};
    let any_of = || 0..SCHEDULES.len();
    let overlap = prop::sample::select(vec![Skip, Queue, CancelPrevious, Allow]);
    prop_oneof![
        2 => (any_of(), overlap, task_spec()).prop_map(|(schedule, overlap, template)| {
            Step::CreateSchedule { schedule, overlap, template: Box::new(template) }
        }),
        5 => (any_of(), prop::bool::weighted(0.1), prop::bool::weighted(0.1))
            .prop_map(|(schedule, stale, missed)| Step::Fire { schedule, stale, missed }),
        1 => any_of().prop_map(Step::RunNow),
        1 => (any_of(), prop::bool::weighted(0.3)).prop_map(|(schedule, paused)| {
            let schedule_id = SCHEDULES[schedule].to_owned();
            plain(B::PauseSchedule(PauseScheduleRequest { schedule_id, paused, request: None }))
        }),
        1 => any_of().prop_map(|schedule| {
            let schedule_id = SCHEDULES[schedule].to_owned();
            plain(B::DeleteSchedule(DeleteScheduleRequest { schedule_id, request: None }))
        }),
    ]
}

fn task_spec() -> impl Strategy<Value = TaskSpec> {
    use OnDependencyFailure::{Block, Cascade, Skip, Unspecified};
    let one_in = |n: u8, most: u64| prop_oneof![u32::from(n) => Just(0_u64), 1 => 1..=most];
    let few = |n: usize| prop::collection::vec(0..NAMED, 0..n);
    let seldom = || prop_oneof![3 => Just(Vec::<u8>::new()), 1 => prop::collection::vec(0..NAMED, 1..3)];
    let maybe = |n: u8| prop::option::weighted(0.2, 0..n);
    let who = (0_u8..4, maybe(2), maybe(AGENTS), maybe(AGENTS), prop::bool::weighted(0.1), prop::bool::weighted(0.1));
    let turn = (0_u32..=10, 0_u64..4, 0..SHARES.len(), few(2), maybe(2), 0_u8..3);
    let failure = prop::sample::select(vec![Unspecified, Block, Skip, Cascade]);
    let waits = (few(3), seldom(), seldom(), failure);
    let attempt_ms = prop_oneof![Just(0_u64), 1_000_u64..6_000];
    let grace_ms = prop::option::of(one_in(1, 3_000));
    let times = (attempt_ms, one_in(4, 5_000), one_in(5, 5_000), one_in(4, 10_000), grace_ms);
    let rest = (retry(), prop::option::weighted(0.3, evidence()), maybe(4), prop::bool::weighted(0.15));
    (who, turn, waits, times, rest).prop_map(|(who, turn, waits, times, rest)| {
        let (offered, kind, pin, not, zone, route) = who;
        let (priority, cost, share, keys, uses, project) = turn;
        let (hard, soft, pending, on_dependency_failure) = waits;
        let (attempt_timeout_ms, not_before_ms, queue_timeout_ms, total_timeout_ms, cancel_grace_ms) = times;
        let ((retry, retry_profile), evidence, key, fail_if_unroutable) = rest;
        let ids = |ids: Vec<u8>| -> Vec<String> { ids.into_iter().map(task_id).collect() };
        TaskSpec {
            required_capabilities: capabilities(offered),
            agent_type: kind.map_or("", |kind| TYPES[usize::from(kind)]).to_owned(),
            agent_id: pin.map(agent_id).unwrap_or_default(),
            excluded_agents: not.filter(|not| pin != Some(*not)).map(agent_id).into_iter().collect(),
            required_labels: zone.then(label).into_iter().collect(),
            route: route && kind.is_none() && pin.is_none(),
            priority: Some(priority),
            cost,
            share: SHARES[share].to_owned(),
            concurrency_keys: keys.into_iter().map(|key| format!("k{}", key % 2)).collect(),
            uses: uses.map(|name| BREAKERS[usize::from(name)].to_owned()).into_iter().collect(),
            project: ["", "p", "q"][usize::from(project)].to_owned(),
            epic: if project == 1 { "e".to_owned() } else { String::new() },
            dependencies: ids(hard),
            soft_dependencies: ids(soft),
            pending_dependencies: ids(pending),
            on_dependency_failure: on_dependency_failure as i32,
            attempt_timeout_ms,
            // Here counted from its submission.
            not_before_ms,
            queue_timeout_ms,
            total_timeout_ms,
            cancel_grace_ms,
            retry,
            retry_profile,
            evidence,
            idempotency_key: key.map(|key| format!("key{key}")).unwrap_or_default(),
            unroutable: if fail_if_unroutable { Unroutable::Fail } else { Unroutable::Wait } as i32,
            ..TaskSpec::default()
        }
    })
}

fn retry() -> impl Strategy<Value = (Option<RetryPolicy>, String)> {
    prop_oneof![
        3 => (0_u32..3).prop_map(|retries| (Some(policy(retries)), String::new())),
        1 => prop::sample::select(vec!["", "fast", "quick"]).prop_map(|name| (None::<RetryPolicy>, name.to_owned())),
    ]
}

fn policy(max_retries: u32) -> RetryPolicy {
    let never_retry = vec!["budget".to_owned()];
    RetryPolicy {
        max_retries,
        base_ms: 500,
        cap_ms: 2_000,
        jitter_permille: 200,
        never_retry,
        ..RetryPolicy::default()
    }
}

fn evidence() -> impl Strategy<Value = EvidencePolicy> {
    (any::<bool>(), any::<bool>(), 0_u32..3, any::<bool>(), 0_u32..2, 0_u32..3).prop_map(
        |(diff, tests, agent_reviews, skilled, person_reviews, reworks)| EvidencePolicy {
            artifacts: diff.then(|| "diff".to_owned()).into_iter().collect(),
            checks: tests.then(|| "tests".to_owned()).into_iter().collect(),
            agent_reviews,
            review_capabilities: if skilled && agent_reviews > 0 { capabilities(2) } else { Vec::new() },
            person_reviews,
            max_reworks: Some(reworks),
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    let step = prop_oneof![
        3 => sessions(), 10 => agents(), 40 => work(), 8 => dispatch(), 9 => breakers(), 5 => schedules(),
    ];
    let later_ms = prop_oneof![12 => 0_u64..500, 4 => 500_u64..10_000, 1 => Just(300_000_u64)];
    let request = prop::option::weighted(0.15, (0..SESSIONS, 0_u64..40, 0_u64..6));
    (step, later_ms, request, prop::bool::weighted(0.7))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_invariant_holds_after_any_history(
        events in prop::collection::vec(event(), 1..80),
        imports in any::<bool>(),
        entropy in any::<u64>(),
    ) {
        let mut world = World::new(entropy);
        for body in opening() {
            world.run(None, body);
        }
        for (step, later_ms, request, ticks) in events {
            world.now_ms += later_ms;
            let body = body(&world, step, imports);
            let request = request.map(|(session, sequence, done_below)| RequestId {
                session_id: session_id(session),
                sequence,
                done_below,
            });
            world.run(request, body);
            if ticks {
                world.catch_up();
            }
        }
        world.catch_up();
        world.check_again();
    }
}

/// Somebody is there from the beginning, with and without a standing order.
fn opening() -> Vec<B> {
    let agents = [(0, 0, 3, TYPES[0], 2), (1, 1, 2, TYPES[1], 1), (2, 0, 3, TYPES[0], 3)];
    let agents =
        agents.map(|(agent, session, offered, kind, most)| register(agent, session, offered, kind, true, most));
    [open(0), open(1)].into_iter().chain(agents).chain([stand(0, 0), stand(1, 1)]).collect()
}

/// The machine, its log, and what its rows no longer tell.
struct World {
    machine: Machine,
    now_ms: u64,
    entropy: u64,
    log: Vec<(u64, Command)>,
    /// As they were after the last command.
    tasks: BTreeMap<String, Task>,
    /// Ids of tasks that were purged: another one may have the id by now.
    purged: BTreeSet<String>,
    /// Ids of tasks that ended: some have been redriven since.
    ended: BTreeSet<String>,
    /// An import, or a redrive, may have closed a circle.
    circles: bool,
}

impl World {
    fn new(entropy: u64) -> Self {
        World {
            machine: Machine::in_memory(),
            now_ms: 1_000,
            entropy,
            log: Vec::new(),
            tasks: BTreeMap::new(),
            purged: BTreeSet::new(),
            ended: BTreeSet::new(),
            circles: false,
        }
    }

    /// Applies one command and checks everything.
    fn run(&mut self, request: Option<RequestId>, body: B) -> Answer {
        let admits_circles = match &body {
            B::SubmitTasks(req) => req.admit_cycles,
            B::RedriveTasks(_) => true,
            _ => false,
        };
        let command = Command { request, body: Some(body), ..Command::default() };
        self.log.push((self.now_ms, command.clone()));
        let before = self.machine.rows.clone();
        let answers = self.machine.apply(self.now_ms, self.entropy, vec![command]).expect("no fatal error");
        let answer = answers.into_iter().next().expect("an answer");
        let resent = answer.rev != self.machine.head.rev;
        let refused = is_refused(&answer);
        if resent {
            assert_eq!(self.machine.rows, before, "a resend changed rows: {answer:?}");
        } else if refused {
            let after = support::without_requests(&self.machine.rows);
            assert_eq!(after, support::without_requests(&before), "a refused command changed rows: {answer:?}");
        }
        self.circles |= admits_circles && !refused;
        self.check();
        answer
    }

    /// What the leader does when something is due: it ticks. What a tick brings about may be due at once, but not for
    /// ever.
    fn catch_up(&mut self) {
        for _ in 0..3 {
            if self.is_due() {
                self.run(None, B::Tick(Tick {}));
            }
        }
        assert!(!self.is_due(), "still due after three ticks: {:?}", self.machine.rooms().next_due_ms());
    }

    /// By the time of now, which the machine may not have heard of.
    fn is_due(&self) -> bool {
        self.machine.rooms().next_due_ms().is_some_and(|at_ms| at_ms <= self.now_ms)
    }

    fn check(&mut self) {
        support::check_indexes(&self.machine);
        let view = View::of(&self.machine);
        view.check();
        self.purged.extend(self.tasks.keys().filter(|id| !view.tasks.contains_key(*id)).cloned());
        let ended = view.tasks.values().filter(|task| is_ended(task.status()));
        self.ended.extend(ended.map(|task| task.id.clone()));
        check_ends(&self.tasks, &view);
        check_limits(&self.tasks, &view);
        self.check_begun(&view);
        self.check_blocked(&view);
        if !self.circles {
            let found = self.machine.rooms().tasks.deadlocks(&self.machine.rows).expect("rows that can be read");
            assert!(found.is_empty(), "a circle that nobody let in: {found:?}");
        }
        self.tasks = view.tasks;
    }

    /// What was granted by this command had nothing left to wait for. What was purged is left out: nobody waited for it
    /// then, and its id may by now be another task's.
    fn check_begun(&self, view: &View<'_>) {
        for task in view.tasks.values().filter(|task| is_granted(task, view)) {
            for id in support::hard(task).filter(|id| !self.purged.contains(*id)) {
                assert!(view.status(id).is_some_and(ended_well), "began before {id} was done: {task:?}");
            }
            for id in spec(task).soft_dependencies.iter().filter(|id| !self.purged.contains(*id)) {
                let over = view.status(id).is_some_and(is_ended) || self.ended.contains(id);
                assert!(over, "began before {id} had ended: {task:?}");
            }
        }
    }

    /// A blocked task waits for everything that it names and that is not over. Whatever was purged may have had its
    /// end, and a soft dependency that ended once is over, whatever becomes of it.
    fn check_blocked(&self, view: &View<'_>) {
        if !view.is_told() {
            return;
        }
        let waits = |id: &String, task: &Task| view.edges.contains(&(id.clone(), task.id.clone()));
        for task in view.tasks.values().filter(|task| task.status() == TaskStatus::Blocked) {
            for id in support::hard(task).filter(|id| !self.purged.contains(*id)) {
                let done = view.status(id).is_some_and(ended_well);
                assert!(done || waits(id, task), "does not wait for {id}: {task:?}");
            }
            for id in spec(task).soft_dependencies.iter().filter(|id| !self.purged.contains(*id)) {
                assert!(self.ended.contains(id) || waits(id, task), "does not wait for {id}: {task:?}");
            }
        }
    }

    /// The same log again, and the same log in batches.
    fn check_again(&self) {
        support::check_replay(&self.machine, &self.log, self.entropy);
        support::check_batched(&self.log, self.entropy, |machine| {
            support::check_indexes(machine);
            View::of(machine).check();
        });
    }
}

fn is_refused(answer: &Answer) -> bool {
    matches!(answer.body, Some(answer::Body::Rejected(_)))
}

/// Whether the command just applied gave the task to somebody.
fn is_granted(task: &Task, view: &View<'_>) -> bool {
    task.claim.as_ref().is_some_and(|claim| claim.token == view.machine.head.rev)
}

/// An ended task stays as it ended, or is purged, or, if it is a dead letter, is redriven.
fn check_ends(before: &BTreeMap<String, Task>, view: &View<'_>) {
    for was in before.values().filter(|task| is_ended(task.status())) {
        let Some(is) = view.tasks.get(&was.id) else { continue };
        let is_dead = matches!(was.status(), TaskStatus::Failed | TaskStatus::TimedOut);
        if is_ended(is.status()) || !is_dead {
            assert_eq!(is, was, "an ended task changed");
        }
    }
}

/// A grant never goes over a limit. More than the limit runs only where it was lowered, and then it does not grow.
fn check_limits(before: &BTreeMap<String, Task>, view: &View<'_>) {
    for limit in &view.limits {
        let (scope, name, most) = (limit.scope(), limit.name.as_str(), limit.max as usize);
        let running = view.running_under(scope, name);
        assert_eq!(view.machine.rooms().tasks.running_under(scope, name) as usize, running, "{limit:?}");
        if running > most {
            let counts = |task: &&Task| support::counts_under(task, scope, name);
            assert!(running <= before.values().filter(counts).count(), "{running} run under {limit:?}");
            let granted: Vec<&Task> =
                view.tasks.values().filter(counts).filter(|task| is_granted(task, view)).collect();
            assert!(granted.is_empty(), "{running} run under {limit:?}, and was granted: {granted:?}");
        }
    }
}

/// The command that a step stands for now.
fn body(world: &World, step: Step, imports: bool) -> B {
    let machine = &world.machine;
    match step {
        Step::Plain(body) => *body,
        Step::Expire { session, stale } => {
            let session_id = session_id(session);
            let epoch = machine.rooms().sessions.get(&session_id).map_or(0, |session| session.epoch);
            B::ExpireSession(ExpireSession { session_id, epoch: epoch.saturating_sub(u64::from(stale)) })
        }
        Step::Submit { specs, sound, import } => {
            let mut tasks = named(world, specs, sound);
            let admit_cycles = import && imports;
            if admit_cycles && tasks.len() > 1 {
                close_ring(&mut tasks);
            }
            B::SubmitTasks(SubmitTasksRequest { tasks, admit_cycles, ..SubmitTasksRequest::default() })
        }
        Step::Spawn { parent, specs, joins, stale } => {
            let parent_id = choose(world, parent, |task| task.claim.is_some());
            let token = newest_token(world, &parent_id).saturating_sub(u64::from(stale));
            let mut tasks = named(world, specs, true);
            for spec in tasks.iter_mut().filter(|spec| spec.idempotency_key.is_empty()) {
                spec.idempotency_key = format!("for-{}", spec.task_id);
            }
            let spawn = Some(Spawn { parent_id, token, dependents_wait: joins });
            B::SubmitTasks(SubmitTasksRequest { tasks, spawn, ..SubmitTasksRequest::default() })
        }
        Step::Finish { task, finish, proof, stale } => {
            let task_id = choose(world, task, |task| task.claim.is_some());
            let token = newest_token(world, &task_id).saturating_sub(stale);
            B::FinishTask(FinishTaskRequest { task_id, token, ..with_proof(*finish, proof) })
        }
        Step::Decide { task, verdict, by } => B::DecideTask(DecideTaskRequest {
            task_id: choose(world, task, |task| task.status() == TaskStatus::Reported),
            verdict: verdict as i32,
            reviewer: ["ann", "bob", "a0"][usize::from(by)].to_owned(),
            ..DecideTaskRequest::default()
        }),
        Step::Cancel { task, only_this, now } => B::CancelTask(CancelTaskRequest {
            task_id: choose(world, task, |task| !is_ended(task.status())),
            only_this,
            now,
            ..CancelTaskRequest::default()
        }),
        Step::Depend { task, on } => {
            use TaskStatus::{Blocked, Pending, Ready};
            B::AddDependencies(AddDependenciesRequest {
                task_id: choose(world, task, |task| matches!(task.status(), Pending | Ready | Blocked)),
                dependencies: on.into_iter().map(|on| choose(world, on, |_| true)).collect(),
                request: None,
            })
        }
        Step::Redrive(task) => {
            let is_dead = |task: &Task| matches!(task.status(), TaskStatus::Failed | TaskStatus::TimedOut);
            B::RedriveTasks(RedriveTasksRequest { task_ids: vec![choose(world, task, is_dead)], request: None })
        }
        Step::Purge(tasks) => {
            let ids = tasks.into_iter().map(|task| choose(world, task, |task| is_ended(task.status())));
            let ids: BTreeSet<String> = ids.collect();
            B::PurgeTasks(PurgeTasksRequest { task_ids: ids.into_iter().collect(), request: None })
        }
        Step::Forget { tasks, kept_ms } => {
            let before_ms = world.now_ms.saturating_sub(kept_ms);
            B::ForgetTasks(ForgetTasks {
                ended_before_ms: before_ms,
                dead_before_ms: before_ms.saturating_sub(kept_ms),
                task_ids: tasks.into_iter().map(|task| choose(world, task, |_| true)).collect(),
            })
        }
        Step::Resolve => {
            let deadlocks = machine.rooms().tasks.deadlocks(&machine.rows).expect("rows that can be read");
            B::ResolveDeadlocks(ResolveDeadlocksRequest { deadlocks, request: None })
        }
        Step::ReportBreaker { breaker, success, probes, pause_ms } => {
            let name = BREAKERS[breaker].to_owned();
            let probe = machine.rooms().breakers.get(&name).and_then(|breaker| breaker.probe.as_ref());
            let probe_token = probe.filter(|_| probes).map_or(0, |probe| probe.token);
            B::ReportBreaker(ReportBreakerRequest {
                name,
                success,
                probe_token,
                retry_after_ms: pause_ms,
                ..ReportBreakerRequest::default()
            })
        }
        Step::CreateSchedule { schedule, overlap, template } => create_schedule(world, schedule, overlap, *template),
        Step::Fire { schedule, stale, missed } => {
            let schedule_id = SCHEDULES[schedule].to_owned();
            let known = machine.rooms().schedules.get(&schedule_id);
            let (epoch, tick_ms) = known.map_or((0, 0), |known| (known.epoch, known.next_tick_ms));
            B::FireSchedule(FireSchedule {
                schedule_id,
                epoch: epoch.saturating_sub(u64::from(stale)),
                tick_ms,
                next_tick_ms: tick_ms + 1_000,
                ticks: 1,
                missed,
                task_id: free_ids(world).next().expect("a free id"),
            })
        }
        Step::RunNow(schedule) => B::RunScheduleNow(RunScheduleNowRequest {
            schedule_id: SCHEDULES[schedule].to_owned(),
            request: None,
            task_id: free_ids(world).next().expect("a free id"),
        }),
    }
}

fn create_schedule(world: &World, schedule: usize, overlap: Overlap, template: TaskSpec) -> B {
    // Each run is a task of its own, and comes before or after no named one.
    let template = TaskSpec {
        idempotency_key: String::new(),
        not_before_ms: 0,
        dependencies: Vec::new(),
        soft_dependencies: Vec::new(),
        ..template
    };
    let spec = ScheduleSpec {
        schedule_id: SCHEDULES[schedule].to_owned(),
        every_ms: 1_000,
        task: Some(template),
        overlap: overlap as i32,
        ..ScheduleSpec::default()
    };
    let first_tick_ms = world.now_ms + 1_000;
    B::CreateSchedule(CreateScheduleRequest { spec: Some(spec), replace: true, request: None, first_tick_ms })
}

/// One of the tasks that are so, or an id that may stand for none.
fn choose(world: &World, pick: u8, wanted: impl Fn(&Task) -> bool) -> String {
    let found: Vec<&Task> = world.tasks.values().filter(|task| wanted(task)).collect();
    match found.len() {
        0 => task_id(pick),
        n => found[usize::from(pick) % n].id.clone(),
    }
}

fn newest_token(world: &World, task_id: &str) -> u64 {
    support::attempts(&world.machine.rows).get(task_id).and_then(|all| all.last()).map_or(0, |last| last.token)
}

fn free_ids(world: &World) -> impl Iterator<Item = String> {
    (0..=u8::MAX).map(task_id).filter(move |id| !world.tasks.contains_key(id))
}

/// Gives the specifications ids that no task has. `sound`: leaves out dependencies that would refuse the request.
fn named(world: &World, mut specs: Vec<TaskSpec>, sound: bool) -> Vec<TaskSpec> {
    let ids: Vec<String> = free_ids(world).take(specs.len()).collect();
    for (spec, id) in specs.iter_mut().zip(&ids) {
        spec.task_id.clone_from(id);
        if spec.not_before_ms > 0 {
            spec.not_before_ms += world.now_ms;
        }
        if sound {
            for list in [&mut spec.dependencies, &mut spec.soft_dependencies] {
                list.retain(|other| other != id && (world.tasks.contains_key(other) || ids.contains(other)));
            }
            spec.pending_dependencies.retain(|other| other != id);
        }
    }
    specs
}

/// Each waits for the next, the last for the first.
fn close_ring(specs: &mut [TaskSpec]) {
    let next: Vec<String> = specs.iter().cycle().skip(1).take(specs.len()).map(|spec| spec.task_id.clone()).collect();
    for (spec, next) in specs.iter_mut().zip(next) {
        spec.dependencies.push(next);
    }
}

fn with_proof(finish: FinishTaskRequest, proof: bool) -> FinishTaskRequest {
    let diff = Artifact { kind: "diff".to_owned(), uri: "file:diff".to_owned(), ..Artifact::default() };
    let tests = CheckResult { name: "tests".to_owned(), exit_code: i32::from(!proof) };
    FinishTaskRequest { artifacts: proof.then_some(diff).into_iter().collect(), checks: vec![tests], ..finish }
}

fn label() -> KeyValue {
    KeyValue { key: "zone".to_owned(), value: "eu".to_owned() }
}

fn open(session: u8) -> B {
    B::OpenSession(OpenSessionRequest { session_id: session_id(session), ttl_ms: 15_000, client: String::new() })
}

fn register(agent: u8, session: u8, offered: u8, kind: &str, zone: bool, capacity: u32) -> B {
    B::RegisterAgent(RegisterAgentRequest {
        agent_id: agent_id(agent),
        session_id: session_id(session),
        agent_type: kind.to_owned(),
        capabilities: [vec!["any".to_owned()], capabilities(offered)].concat(),
        capacity,
        metadata: zone.then(label).into_iter().collect(),
        ..RegisterAgentRequest::default()
    })
}

fn stand(agent: u8, session: u8) -> B {
    B::StandingOrder(StandingOrder { agent_id: agent_id(agent), session_id: session_id(session) })
}

fn claim(agent: u8, session: u8, max_tasks: u32) -> B {
    let (agent_id, session_id) = (agent_id(agent), session_id(session));
    B::ClaimTasks(ClaimTasksRequest { agent_id, session_id, max_tasks, ..ClaimTasksRequest::default() })
}

fn set_limit(limit: usize, max: u32) -> B {
    let (scope, name) = LIMITS[limit];
    B::SetLimit(SetLimitRequest { scope: scope as i32, name: name.to_owned(), max, request: None })
}

fn submit(tasks: Vec<TaskSpec>) -> B {
    B::SubmitTasks(SubmitTasksRequest { tasks, ..SubmitTasksRequest::default() })
}

fn completed(world: &World, task_id: &str) -> B {
    let finish = FinishTaskRequest {
        task_id: task_id.to_owned(),
        token: newest_token(world, task_id),
        kind: FinishKind::Completed as i32,
        verdict: Verdict::Accept as i32,
        ..FinishTaskRequest::default()
    };
    B::FinishTask(with_proof(finish, true))
}

// Histories that chance seldom brings about.

#[test]
fn an_agent_that_registers_anew_as_another_type_gets_what_waited_for_that_type() {
    let mut world = World::new(0);
    let wanted = TaskSpec { task_id: task_id(0), agent_type: TYPES[0].to_owned(), ..TaskSpec::default() };
    for body in [open(0), register(0, 0, 0, TYPES[1], false, 1), stand(0, 0), submit(vec![wanted])] {
        world.run(None, body);
    }
    world.run(None, register(0, 0, 0, TYPES[0], false, 1));
    assert_eq!(world.tasks[&task_id(0)].status(), TaskStatus::InProgress);
}

#[test]
fn an_agent_that_registers_anew_with_another_label_gets_what_waited_for_that_label() {
    let mut world = World::new(0);
    let wanted = TaskSpec { task_id: task_id(0), required_labels: vec![label()], ..TaskSpec::default() };
    for body in [open(0), register(0, 0, 0, TYPES[0], false, 1), stand(0, 0), submit(vec![wanted])] {
        world.run(None, body);
    }
    world.run(None, register(0, 0, 0, TYPES[0], true, 1));
    assert_eq!(world.tasks[&task_id(0)].status(), TaskStatus::InProgress);
}

#[test]
fn a_review_of_an_earlier_try_accepts_no_later_one() {
    let mut world = World::new(0);
    let evidence = Some(EvidencePolicy { agent_reviews: 1, ..EvidencePolicy::default() });
    let task = TaskSpec { task_id: task_id(0), evidence, total_timeout_ms: 1_000, ..TaskSpec::default() };
    for body in [open(0), register(0, 0, 0, TYPES[0], false, 1), register(1, 0, 0, TYPES[0], false, 1)] {
        world.run(None, body);
    }
    for body in [submit(vec![task]), claim(0, 0, 1)] {
        world.run(None, body);
    }
    world.run(None, completed(&world, &task_id(0)));
    world.run(None, claim(1, 0, 1));
    let of_first = world.tasks.values().find(|task| !task.review_of.is_empty()).expect("a review").id.clone();
    assert_eq!(world.tasks[&of_first].status(), TaskStatus::InProgress);
    world.now_ms += 1_000;
    world.catch_up();
    assert_eq!(world.tasks[&task_id(0)].status(), TaskStatus::TimedOut);
    world.run(None, B::RedriveTasks(RedriveTasksRequest { task_ids: vec![task_id(0)], request: None }));
    world.run(None, claim(0, 0, 1));
    world.run(None, completed(&world, &task_id(0)));
    assert_eq!(world.tasks[&task_id(0)].status(), TaskStatus::Reported);
    // Whether it was stopped with the task, or goes on for nothing: it says nothing of the second try.
    world.run(None, completed(&world, &of_first));
    assert_eq!(world.tasks[&task_id(0)].status(), TaskStatus::Reported);
}

#[test]
fn a_circle_that_was_imported_hides_no_other() {
    let mut world = World::new(0);
    let waits = |n: u8, on: &[u8]| TaskSpec {
        task_id: task_id(n),
        dependencies: on.iter().copied().map(task_id).collect(),
        ..TaskSpec::default()
    };
    let tasks = vec![waits(0, &[1]), waits(1, &[0])];
    let import = SubmitTasksRequest { tasks, admit_cycles: true, ..SubmitTasksRequest::default() };
    world.run(None, B::SubmitTasks(import));
    world.run(None, submit(vec![waits(2, &[]), waits(3, &[2])]));
    let answer = world.run(
        None,
        B::AddDependencies(AddDependenciesRequest {
            task_id: task_id(2),
            dependencies: vec![task_id(0), task_id(3)],
            request: None,
        }),
    );
    assert!(is_refused(&answer), "{answer:?}");
}

#[test]
fn what_one_command_leaves_of_a_large_graph_is_told_by_ticks() {
    use OnDependencyFailure::{Block, Cascade, Skip};
    const EACH: usize = 990;
    let mut world = World::new(0);
    world.run(None, submit(vec![TaskSpec { task_id: task_id(0), ..TaskSpec::default() }]));
    for (name, failure) in [("block", Block), ("cascade", Cascade), ("skip", Skip)] {
        let waits = |n: usize| TaskSpec {
            task_id: format!("{name}{n}"),
            dependencies: vec![task_id(0)],
            on_dependency_failure: failure as i32,
            ..TaskSpec::default()
        };
        world.run(None, submit((0..EACH).map(waits).collect()));
    }
    let cancel = CancelTaskRequest { task_id: task_id(0), ..CancelTaskRequest::default() };
    world.run(None, B::CancelTask(cancel));
    assert!(!support::keys(&world.machine.rows, Table::Aftermath).is_empty(), "one command did all of it");
    world.catch_up();
    let of = |status: TaskStatus| world.tasks.values().filter(|task| task.status() == status).count();
    assert_eq!((of(TaskStatus::Blocked), of(TaskStatus::Failed), of(TaskStatus::Skipped)), (EACH, EACH, EACH));
}

#[test]
fn what_one_command_leaves_unassigned_the_next_tick_assigns() {
    let mut world = World::new(0);
    let many = |from: usize| -> Vec<TaskSpec> {
        (from..from + 1_000).map(|n| TaskSpec { task_id: format!("w{n}"), ..TaskSpec::default() }).collect()
    };
    for body in [open(0), register(0, 0, 0, TYPES[0], false, 3_000), submit(many(0)), submit(many(1_000))] {
        world.run(None, body);
    }
    let running = |world: &World| world.tasks.values().filter(|task| task.claim.is_some()).count();
    world.run(None, stand(0, 0));
    let first = running(&world);
    assert!((1..2_000).contains(&first), "one command assigned {first}");
    assert!(world.machine.effects().any(|effect| *effect == Effect::WorkLeft));
    world.run(None, B::Tick(Tick {}));
    assert_eq!(running(&world), 2_000);
}
