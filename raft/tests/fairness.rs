//! Who is served when more wants to run than can, as bounds that hold at every single grant.
//!
//! Start-time fair queueing promises: while two flows both have work, what they got, each divided by its weight, drifts
//! apart by no more than one task of each, over any stretch of time. Flows are the shares of a band and, where bands
//! share by weight, the bands. Everything is compared by cross-multiplication: no fractions, no tolerance.
//!
//! Besides: a newcomer is served at once; a share is served in the order of submission; a strict lower band waits for
//! every higher one that can be served; ageing brings every task to the front.

// Helpers of a test are tests too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;
use quorate_proto::log::command::Body as B;
use quorate_proto::log::{Command, StandingOrder, answer};
use quorate_proto::v1::{
    BandOrder, ClaimTasksRequest, DispatchPolicy, FinishKind, FinishTaskRequest, OpenSessionRequest,
    RegisterAgentRequest, SetDispatchPolicyRequest, SetShareRequest, SubmitTasksRequest, Task, TaskSpec,
};
use quorate_raft::apply::Machine;
use quorate_raft::effect::Effect;

use support::{agent_id, capabilities, session_id};

/// The priorities whose parts are documented, and their parts.
const BANDS: [(u32, i64); 4] = [(10, 100), (7, 50), (5, 25), (3, 10)];
const MAX_SHARES: usize = 4;
const MOST_COST: u64 = 20;

/// A task to be submitted.
#[derive(Debug, Clone)]
struct Wanted {
    band: usize,
    share: usize,
    cost: u64,
    capabilities: u8,
}

#[derive(Debug, Clone)]
enum Op {
    Submit(Vec<Wanted>),
    /// Claims so many; where work is pushed, finishes so many, and each makes room for another.
    Serve(u32),
    /// Finishes the oldest attempt, and claims so many in the same step.
    Swap(u32),
}

fn wanted() -> impl Strategy<Value = Wanted> {
    (0..BANDS.len(), 0..MAX_SHARES, 1..=MOST_COST, 0_u8..4).prop_map(|(band, share, cost, capabilities)| Wanted {
        band,
        share,
        cost,
        capabilities,
    })
}

/// A backlog, then more of it while it is served.
fn ops() -> impl Strategy<Value = Vec<Op>> {
    let backlog = prop::collection::vec(wanted(), 20..80).prop_map(Op::Submit);
    let op = prop_oneof![
        2 => prop::collection::vec(wanted(), 1..15).prop_map(Op::Submit),
        5 => (1_u32..8).prop_map(Op::Serve),
        2 => (1_u32..4).prop_map(Op::Swap),
    ];
    (backlog, prop::collection::vec(op, 1..40)).prop_map(|(backlog, ops)| [vec![backlog], ops].concat())
}

fn weights() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(1_u32..=10, MAX_SHARES)
}

/// Capacity of an agent that work is pushed to; `None`: the agent claims, and has room for all.
fn pushed() -> impl Strategy<Value = Option<u32>> {
    prop::option::of(1_u32..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn shares_of_one_band_get_turns_by_weight(ops in ops(), weights in weights(), push in pushed()) {
        let one_band = |wanted: Wanted| Wanted { band: 2, ..wanted };
        let ops = ops.into_iter().map(|op| match op {
            Op::Submit(all) => Op::Submit(all.into_iter().map(one_band).collect()),
            op => op,
        });
        play(ops.collect(), &weights, BandOrder::Strict, push);
    }

    #[test]
    fn strict_bands_go_one_after_the_other_and_are_fair_inside(ops in ops(), weights in weights(), push in pushed()) {
        play(ops, &weights, BandOrder::Strict, push);
    }

    #[test]
    fn weighted_bands_get_their_parts_and_are_fair_inside(ops in ops(), weights in weights(), push in pushed()) {
        play(ops, &weights, BandOrder::Weighted, push);
    }

    #[test]
    fn a_lower_band_goes_only_where_no_higher_one_can(
        tasks in prop::collection::vec((0_u32..=10, 0_u8..4), 1..60),
        claims in prop::collection::vec((0_u8..3, 1_u32..5), 1..40),
    ) {
        let mut bench = Bench::new(&[], BandOrder::Strict, 0);
        // Nothing, one of two, or both.
        let offers = [0_u8, 1, 3];
        for (agent, offered) in (0_u8..).zip(offers) {
            bench.register(agent, offered, 1_000);
        }
        let specs = tasks.iter().enumerate().map(|(n, (priority, needed))| TaskSpec {
            task_id: format!("j{n:03}"),
            priority: Some(*priority),
            required_capabilities: capabilities(*needed),
            ..TaskSpec::default()
        });
        bench.submit(specs.collect());
        // What is left: submission, priority, needs.
        let mut left: Vec<(String, u32, u8)> =
            tasks.iter().enumerate().map(|(n, (priority, needed))| (format!("j{n:03}"), *priority, *needed)).collect();
        for (agent, most) in claims {
            let offered = offers[usize::from(agent)];
            let can = |needed: u8| needed & !offered == 0;
            let granted = bench.claim(agent, most);
            for (id, _) in &granted {
                let open = left.iter().filter(|(_, _, needed)| can(*needed));
                // The first of the highest.
                let best = open.rev().max_by_key(|(_, priority, _)| *priority).map(|(id, _, _)| id.clone());
                prop_assert_eq!(Some(id), best.as_ref());
                left.retain(|(other, _, _)| other != id);
            }
            let more = left.iter().any(|(_, _, needed)| can(*needed));
            prop_assert!(granted.len() == most as usize || !more, "{} of {}, and more could go", granted.len(), most);
        }
    }

    #[test]
    fn ageing_brings_every_task_to_the_front(
        low in prop::collection::vec(0_u32..10, 1..6),
        step_ms in 200_u64..1_000,
        ageing_ms in 1_000_u64..2_000,
        two_shares in any::<bool>(),
    ) {
        // Until all have reached the top; then each waits for those before it, and for the turns of the other share.
        let bound = usize::try_from((10 * ageing_ms).div_ceil(step_ms)).expect("a small number") + 2 * low.len() + 3;
        let served = steps_until_served(&low, step_ms, ageing_ms, two_shares, bound);
        prop_assert!(served.is_some(), "not all were served within {} grants", bound);
        // Without it they starve: what comes later is always higher.
        prop_assert_eq!(steps_until_served(&low, step_ms, 0, two_shares, bound), None);
    }
}

/// Serves one task a step while one of the highest priority arrives in each: how many steps until the low ones had
/// their turn.
fn steps_until_served(low: &[u32], step_ms: u64, ageing_ms: u64, two_shares: bool, most: usize) -> Option<usize> {
    let mut bench = Bench::new(&[], BandOrder::Strict, ageing_ms);
    bench.register(0, 3, 10);
    let spec = |id: String, priority: u32, share: &str| TaskSpec {
        task_id: id,
        priority: Some(priority),
        share: share.to_owned(),
        ..TaskSpec::default()
    };
    let specs = low.iter().enumerate().map(|(n, priority)| spec(format!("low{n}"), *priority, "low"));
    bench.submit(specs.collect());
    let mut left = low.len();
    for step in 1..=most {
        bench.now_ms += step_ms;
        let share = if two_shares { "high" } else { "low" };
        bench.submit(vec![spec(format!("high{step}"), 10, share)]);
        let granted = bench.claim(0, 1);
        assert_eq!(granted.len(), 1, "there is always work");
        for (id, token) in granted {
            left -= usize::from(id.starts_with("low"));
            bench.finish(&id, token, 0);
        }
        if left == 0 {
            return Some(step);
        }
    }
    None
}

/// Runs the ops and holds every grant, in the order of the grants, against the model.
fn play(ops: Vec<Op>, weights: &[u32], order: BandOrder, push: Option<u32>) {
    let mut bench = Bench::new(weights, order, 0);
    bench.register(0, 3, push.unwrap_or(10_000));
    if push.is_some() {
        bench.stand(0);
    }
    let mut model = Model::new(weights, order);
    let mut held: VecDeque<(String, u64)> = VecDeque::new();
    for op in ops {
        bench.now_ms += 10;
        let granted = match op {
            Op::Submit(all) => {
                let specs = all.into_iter().map(|wanted| model.submit(wanted)).collect();
                bench.submit(specs)
            }
            Op::Serve(most) if push.is_none() => bench.claim(0, most),
            Op::Serve(most) => {
                let ended: Vec<(String, u64)> = held.drain(..held.len().min(most as usize)).collect();
                ended.into_iter().flat_map(|(id, token)| bench.finish(&id, token, 0)).collect()
            }
            Op::Swap(most) => match held.pop_front() {
                Some((id, token)) => bench.finish(&id, token, most),
                None => bench.claim(0, most),
            },
        };
        for (id, token) in granted {
            model.granted(&id);
            held.push_back((id, token));
        }
    }
    support::check_indexes(&bench.machine);
}

/// Flows that are served by weight, and what each got.
struct Flows {
    weights: Vec<i64>,
    /// The largest cost of each so far.
    most: Vec<i64>,
    got: Vec<i64>,
    /// Tasks that wait.
    left: Vec<u32>,
    served: BTreeSet<usize>,
    /// Who has work and was never served; with those that were served since.
    newcomers: BTreeMap<usize, BTreeSet<usize>>,
    /// For each two that have work: the least and the most by which the first was ahead, since both have.
    ahead: BTreeMap<(usize, usize), (i64, i64)>,
}

impl Flows {
    fn new(weights: Vec<i64>) -> Self {
        let zero = vec![0; weights.len()];
        Flows {
            most: zero.clone(),
            got: zero,
            left: vec![0; weights.len()],
            weights,
            served: BTreeSet::new(),
            newcomers: BTreeMap::new(),
            ahead: BTreeMap::new(),
        }
    }

    fn add(&mut self, flow: usize, cost: i64) {
        self.left[flow] += 1;
        self.most[flow] = self.most[flow].max(cost);
        if !self.served.contains(&flow) {
            self.newcomers.entry(flow).or_default();
        }
    }

    /// By how much the first is ahead of the second, times both weights.
    fn lead(&self, (a, b): (usize, usize)) -> i64 {
        self.got[a] * self.weights[b] - self.got[b] * self.weights[a]
    }

    fn granted(&mut self, flow: usize, cost: i64) {
        self.served.insert(flow);
        self.newcomers.remove(&flow);
        for (newcomer, others) in &mut self.newcomers {
            assert!(others.insert(flow), "flow {flow} was served twice before the newcomer {newcomer}");
        }
        let others: Vec<usize> = (0..self.left.len()).filter(|other| *other != flow && self.left[*other] > 0).collect();
        let pairs: Vec<(usize, usize)> = others.into_iter().map(|b| (flow.min(b), flow.max(b))).collect();
        for pair in &pairs {
            let lead = self.lead(*pair);
            self.ahead.entry(*pair).or_insert((lead, lead));
        }
        self.got[flow] += cost;
        for (a, b) in pairs {
            let lead = self.lead((a, b));
            let (least, most) = self.ahead[&(a, b)];
            let (least, most) = (least.min(lead), most.max(lead));
            let bound = self.most[a] * self.weights[b] + self.most[b] * self.weights[a];
            assert!(most - least <= bound, "flows {a} and {b} drifted apart by {}; bound {bound}", most - least);
            self.ahead.insert((a, b), (least, most));
        }
        self.left[flow] -= 1;
        if self.left[flow] == 0 {
            self.ahead.retain(|(a, b), _| *a != flow && *b != flow);
        }
    }
}

/// What waits, and who got how much.
struct Model {
    order: BandOrder,
    tasks: BTreeMap<String, Wanted>,
    /// By band and share, in the order of submission.
    lines: BTreeMap<(usize, usize), VecDeque<String>>,
    bands: Flows,
    /// Of each band.
    shares: Vec<Flows>,
}

impl Model {
    fn new(weights: &[u32], order: BandOrder) -> Self {
        let weights: Vec<i64> = weights.iter().map(|weight| i64::from(*weight)).collect();
        Model {
            order,
            tasks: BTreeMap::new(),
            lines: BTreeMap::new(),
            bands: Flows::new(BANDS.iter().map(|(_, part)| *part).collect()),
            shares: BANDS.iter().map(|_| Flows::new(weights.clone())).collect(),
        }
    }

    fn submit(&mut self, wanted: Wanted) -> TaskSpec {
        let id = format!("j{:05}", self.tasks.len());
        let cost = i64::try_from(wanted.cost).expect("a small cost");
        self.bands.add(wanted.band, cost);
        self.shares[wanted.band].add(wanted.share, cost);
        self.lines.entry((wanted.band, wanted.share)).or_default().push_back(id.clone());
        let (priority, _) = BANDS[wanted.band];
        let spec = TaskSpec {
            task_id: id.clone(),
            priority: Some(priority),
            share: share_name(wanted.share),
            cost: wanted.cost,
            required_capabilities: capabilities(wanted.capabilities),
            ..TaskSpec::default()
        };
        self.tasks.insert(id, wanted);
        spec
    }

    fn granted(&mut self, id: &str) {
        let Wanted { band, share, cost, .. } = self.tasks[id].clone();
        let cost = i64::try_from(cost).expect("a small cost");
        if self.order == BandOrder::Weighted {
            self.bands.granted(band, cost);
        } else {
            let higher = self.lines.iter().find(|((other, _), line)| *other < band && !line.is_empty());
            assert!(higher.is_none(), "{id} of band {band} went before {higher:?}");
        }
        let first = self.lines.get_mut(&(band, share)).and_then(VecDeque::pop_front);
        assert_eq!(first.as_deref(), Some(id), "a share is served in the order of submission");
        self.shares[band].granted(share, cost);
    }
}

fn share_name(share: usize) -> String {
    format!("share{share}")
}

/// A machine with one session, and its grants in their order: task and token.
struct Bench {
    machine: Machine,
    now_ms: u64,
}

impl Bench {
    fn new(weights: &[u32], order: BandOrder, ageing_ms: u64) -> Self {
        let mut bench = Bench { machine: Machine::in_memory(), now_ms: 1_000 };
        let session_id = session_id(0);
        bench.run(B::OpenSession(OpenSessionRequest { session_id, ttl_ms: 15_000, client: String::new() }));
        let policy = Some(DispatchPolicy { order: order as i32, ageing_ms });
        bench.run(B::SetDispatchPolicy(SetDispatchPolicyRequest { policy, request: None }));
        for (share, weight) in weights.iter().enumerate() {
            let (name, weight) = (share_name(share), *weight);
            bench.run(B::SetShare(SetShareRequest { name, weight, request: None }));
        }
        bench
    }

    fn register(&mut self, agent: u8, offered: u8, capacity: u32) {
        self.run(B::RegisterAgent(RegisterAgentRequest {
            agent_id: agent_id(agent),
            session_id: session_id(0),
            capabilities: [vec!["any".to_owned()], capabilities(offered)].concat(),
            capacity,
            ..RegisterAgentRequest::default()
        }));
    }

    fn stand(&mut self, agent: u8) {
        self.run(B::StandingOrder(StandingOrder { agent_id: agent_id(agent), session_id: session_id(0) }));
    }

    fn submit(&mut self, tasks: Vec<TaskSpec>) -> Vec<(String, u64)> {
        self.run(B::SubmitTasks(SubmitTasksRequest { tasks, ..SubmitTasksRequest::default() }))
    }

    fn claim(&mut self, agent: u8, max_tasks: u32) -> Vec<(String, u64)> {
        let (agent_id, session_id) = (agent_id(agent), session_id(0));
        self.run(B::ClaimTasks(ClaimTasksRequest { agent_id, session_id, max_tasks, ..ClaimTasksRequest::default() }))
    }

    fn finish(&mut self, task_id: &str, token: u64, claim_next: u32) -> Vec<(String, u64)> {
        self.run(B::FinishTask(FinishTaskRequest {
            task_id: task_id.to_owned(),
            token,
            kind: FinishKind::Completed as i32,
            claim_next,
            ..FinishTaskRequest::default()
        }))
    }

    /// Claimed ones come first: what is pushed, is pushed at the end of a command.
    fn run(&mut self, body: B) -> Vec<(String, u64)> {
        let command = Command { body: Some(body), ..Command::default() };
        let answers = self.machine.apply(self.now_ms, 0, vec![command]).expect("no fatal error");
        let claimed: Vec<Task> = match answers.into_iter().next().and_then(|answer| answer.body) {
            Some(answer::Body::ClaimTasks(answer)) => answer.tasks,
            Some(answer::Body::FinishTask(answer)) => answer.next,
            Some(answer::Body::Rejected(rejection)) => panic!("refused: {rejection:?}"),
            _ => Vec::new(),
        };
        let token = |task: &Task| task.claim.as_ref().map_or(0, |claim| claim.token);
        let claimed = claimed.into_iter().map(|task| (task.id.clone(), token(&task)));
        let pushed = self.machine.effects().filter_map(|effect| match effect {
            Effect::Assigned { task_id, token, .. } => Some((task_id.clone(), *token)),
            _ => None,
        });
        claimed.chain(pushed).collect()
    }
}
