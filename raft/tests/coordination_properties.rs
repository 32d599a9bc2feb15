//! What holds of the bus, locks, scope leases, documents, transactions, fences and namespaces after any history, over
//! few names so that they meet.
//!
//! After each command: what the rows alone must say (`coordination::{bus, locks, kv}`), by themselves and against the
//! state before; that the bus and the documents are what a model of them says, answers and refusals included
//! (`coordination::model`); that a refusal and a resend changed nothing; that a command changed no other namespace. At
//! the end the same log gives the same state, one by one and in batches.
//!
//! A further test counts what happened in the same kind of histories: every outcome that a check is about occurs.

// Helpers of a test are tests too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod coordination;
mod support;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use quorate_proto::log::command::Body as B;
use quorate_proto::log::{Answer, Command, Tick};
use quorate_proto::v1::{
    AckItem, AckKind, AckRequest, BusMessage, DeleteNamespaceRequest, Fence, KvDeleteRequest, KvPutRequest,
    PublishRequest, Quotas, RequestId, SubscribeRequest, SubscriptionSpec,
};
use quorate_raft::apply::Machine;
use quorate_raft::effect::Effect;
use quorate_raft::state::locks::Glob;
use quorate_raft::storage::rows::MemoryRows;

use coordination::locks::{PATHS, parsed};
use coordination::model::Model;
use coordination::steps::{
    AGENTS, Event, GLOBS, NAMESPACES, SESSIONS, SUBSCRIPTIONS, blob, close, consume, event, open, register,
    set_namespace,
};
use coordination::tally::{Deed, Tally};
use coordination::view::{View, changed, is_request, space_of, views};
use coordination::{At, Outcome, body, bus, kv, locks};
use support::session_id;

const DEFAULT: &str = NAMESPACES[0];
/// Longer than anything is kept for its age.
const AN_AGE_MS: u64 = 100 * 86_400_000;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn every_invariant_holds_after_any_history(
        events in prop::collection::vec(event(), 1..80),
        entropy in any::<u64>(),
    ) {
        let mut world = World::opened(entropy);
        world.live_through(events);
        world.grow_old();
        world.check_again();
    }
}

/// The machine, its log, and what should be.
struct World {
    machine: Machine,
    now_ms: u64,
    entropy: u64,
    log: Vec<(u64, Command)>,
    /// The namespaces as they were after the last command.
    views: BTreeMap<String, View>,
    models: BTreeMap<String, Model>,
    tally: Tally,
}

impl World {
    fn new(entropy: u64) -> Self {
        let machine = Machine::in_memory();
        let views = views(&machine);
        let models = BTreeMap::from([(DEFAULT.to_owned(), Model::default())]);
        World { machine, now_ms: 1_000, entropy, log: Vec::new(), views, models, tally: Tally::default() }
    }

    /// Somebody is there from the beginning, and hears what is said.
    fn opened(entropy: u64) -> Self {
        let mut world = World::new(entropy);
        world.run(DEFAULT, set_namespace(NAMESPACES[1], None));
        for namespace in NAMESPACES {
            for body in (0..SESSIONS).map(open).chain((0..AGENTS).map(register)) {
                world.run(namespace, body);
            }
            for (number, patterns) in [["a.*", "system.>"], ["a.>", "b.x"]].into_iter().enumerate() {
                let spec = SubscriptionSpec {
                    name: SUBSCRIPTIONS[number].to_owned(),
                    patterns: patterns.map(str::to_owned).to_vec(),
                    max_attempts: 2,
                    backoff_ms: vec![500],
                    ack_wait_ms: 2_000,
                    max_messages: 5,
                    ..SubscriptionSpec::default()
                };
                let subscribe = SubscribeRequest { spec: Some(spec), replace: false, request: None };
                world.run(namespace, B::Subscribe(subscribe));
                world.run(namespace, consume(number, 0, false, 2));
            }
        }
        world
    }

    fn live_through(&mut self, events: Vec<Event>) {
        for Event { namespace, step, later_ms, request, fence, ticks } in events {
            self.now_ms += later_ms;
            let namespace = NAMESPACES[namespace];
            let none = View::default();
            let view = self.views.get(namespace).unwrap_or(&none);
            let fences: Vec<Fence> =
                fence.and_then(|(pick, stale)| body::fence(view, pick, stale)).into_iter().collect();
            let command = match body::body(view, step) {
                // By the leader, which is part of nothing.
                Some(body @ B::Tick(_)) => Command { body: Some(body), ..Command::default() },
                Some(body) => Command {
                    request: request.map(|(session, sequence, done_below)| RequestId {
                        session_id: session_id(session),
                        sequence,
                        done_below,
                    }),
                    namespace: namespace.to_owned(),
                    fences,
                    body: Some(body),
                },
                None => match self.log.iter().rev().find(|(_, command)| command.request.is_some()) {
                    Some((_, command)) => command.clone(),
                    None => continue,
                },
            };
            self.apply(command);
            if ticks {
                self.catch_up();
            }
        }
        self.catch_up();
    }

    /// Whatever has an end comes to it. What goes only now leaves versions that are old already: they go the next time.
    fn grow_old(&mut self) {
        for _ in 0..2 {
            self.now_ms += AN_AGE_MS;
            self.catch_up();
        }
        for (name, view) in &self.views {
            kv::check_kept(view, &self.models[name].kv, self.now_ms, true);
        }
    }

    fn run(&mut self, namespace: &str, body: B) -> Answer {
        self.apply(Command { namespace: namespace.to_owned(), body: Some(body), ..Command::default() })
    }

    /// Applies one command and checks everything.
    fn apply(&mut self, command: Command) -> Answer {
        self.log.push((self.now_ms, command.clone()));
        let before = self.machine.rows.clone();
        let may_change = self.may_change(&command);
        let answers = self.machine.apply(self.now_ms, self.entropy, vec![command.clone()]).expect("no fatal error");
        let answer = answers.into_iter().next().expect("an answer");
        let at = At { now_ms: self.machine.head.now_ms, rev: self.machine.head.rev };
        let outcome = Outcome::of(&answer, at);
        check_changes(&before, &self.machine.rows, &may_change, &outcome, &answer);
        self.check_fences(&command, &outcome);
        let views = views(&self.machine);
        self.follow(&command, &answer, &outcome, at, &views);
        check_state(&self.machine, &views);
        for (name, view) in &views {
            self.models[name].check(view);
            kv::check_kept(view, &self.models[name].kv, at.now_ms, false);
        }
        self.views = views;
        answer
    }

    /// What the leader does when something is due: it ticks. What a tick brings about may be due at once, but not for
    /// ever.
    fn catch_up(&mut self) {
        for _ in 0..3 {
            if self.is_due() {
                self.run(DEFAULT, B::Tick(Tick {}));
            }
        }
        assert!(!self.is_due(), "still due after three ticks: {:?}", self.machine.namespaces.next_due_ms());
    }

    /// By the time of now, which the machine may not have heard of.
    fn is_due(&self) -> bool {
        self.machine.namespaces.next_due_ms().is_some_and(|at_ms| at_ms <= self.now_ms)
    }

    /// The spaces whose rows a command may change; `None`: the cluster's.
    fn may_change(&self, command: &Command) -> BTreeSet<Option<u64>> {
        let now_ms = self.now_ms.max(self.machine.head.now_ms);
        let name = if command.namespace.is_empty() { DEFAULT } else { command.namespace.as_str() };
        let own = self.views.get(name).map(|view| Some(view.number));
        match &command.body {
            Some(B::Tick(_)) => {
                let due = self.machine.namespaces.iter().filter(|part| {
                    part.rooms.next_due_ms().is_some_and(|at_ms| at_ms <= now_ms) || part.rooms.has_work_left()
                });
                due.map(|part| Some(part.row.number)).collect()
            }
            Some(B::SetNamespace(_)) => own.into_iter().chain([None]).collect(),
            Some(B::DeleteNamespace(req)) => {
                let going = self.views.get(&req.name).map(|view| Some(view.number));
                own.into_iter().chain(going).chain([None]).collect()
            }
            _ => own.into_iter().collect(),
        }
    }

    /// A command happens only while what its fences name is held.
    fn check_fences(&self, command: &Command, outcome: &Outcome) {
        let name = if command.namespace.is_empty() { DEFAULT } else { command.namespace.as_str() };
        let Some(view) = self.views.get(name) else { return };
        let held = command.fences.iter().all(|fence| view.holds(fence));
        match outcome {
            Outcome::Done | Outcome::Refused(_) => assert!(held, "passed {:?}", command.fences),
            Outcome::Stopped(why) if why.field == "fence" => {
                use quorate_proto::v1::RejectionCode::Aborted;
                assert!(!held && why.code() == Aborted, "refused, and {:?} is held: {why:?}", command.fences);
            }
            // The request record comes first.
            Outcome::Stopped(_) | Outcome::Resent => {}
        }
    }

    /// Lets the models do what the command did, and holds what is against what was.
    fn follow(
        &mut self,
        command: &Command,
        answer: &Answer,
        outcome: &Outcome,
        at: At,
        views: &BTreeMap<String, View>,
    ) {
        let (Some(body), Some(said)) = (&command.body, &answer.body) else { panic!("half a command: {command:?}") };
        let own = if command.namespace.is_empty() { DEFAULT } else { command.namespace.as_str() };
        self.models.retain(|name, model| views.get(name).is_some_and(|view| view.number == model.number));
        let ran = matches!(outcome, Outcome::Done | Outcome::Refused(_));
        for (name, after) in views {
            let model = self.models.entry(name.clone()).or_insert_with(|| Model::new(after.number));
            let Some(before) = self.views.get(name).filter(|before| before.number == after.number) else { continue };
            let everywhere = matches!(body, B::Tick(_));
            if !everywhere && name != own {
                continue;
            }
            if ran && everywhere {
                model.tick(at, kv::sweeps(before, at.now_ms));
            } else if ran {
                model.run(before, at, body, said);
                locks::check_answer(before, after, body, said);
            }
            if *outcome == Outcome::Done {
                let happened = self.machine.happened.iter().filter(|happened| *happened.namespace == **name);
                model.settle(at, happened.map(|happened| &happened.effect));
                bus::check_since(before, after, at, body);
                locks::check_since(before, after, at, body);
            }
            let is_fenced = !command.fences.is_empty();
            self.tally.count(&Deed { before, after, at, body, answer: said, outcome, is_fenced });
        }
    }

    /// The same log again, and the same log in batches.
    fn check_again(&self) {
        support::check_replay(&self.machine, &self.log, self.entropy);
        support::check_batched(&self.log, self.entropy, |machine| check_state(machine, &views(machine)));
    }
}

/// What must hold of every namespace, however it came to be.
fn check_state(machine: &Machine, views: &BTreeMap<String, View>) {
    support::check_indexes(machine);
    for (name, view) in views {
        let left = |effect: &Effect| *effect == Effect::BusLeft;
        let of_it = machine.happened.iter().filter(|happened| *happened.namespace == **name);
        bus::check(view, of_it.map(|happened| &happened.effect).any(left));
        locks::check(view);
        kv::check(view);
        view.check_blobs();
    }
}

/// A refusal and a resend change nothing, and nothing changes another namespace.
fn check_changes(
    before: &MemoryRows,
    after: &MemoryRows,
    may_change: &BTreeSet<Option<u64>>,
    outcome: &Outcome,
    answer: &Answer,
) {
    let changed = changed(before, after);
    match outcome {
        Outcome::Done => {}
        Outcome::Resent => assert!(changed.is_empty(), "a resend changed rows: {answer:?}, {changed:?}"),
        Outcome::Refused(_) | Outcome::Stopped(_) => {
            let recorded = changed.iter().all(|key| is_request(key));
            assert!(recorded, "a refused command changed rows: {answer:?}, {changed:?}");
        }
    }
    for key in changed {
        assert!(may_change.contains(&space_of(key)), "it is not there that this changes: {key:?}, {may_change:?}");
    }
}

#[test]
fn every_outcome_occurs() {
    let mut runner = TestRunner::deterministic();
    let mut tally = Tally::default();
    // The same histories at each run; some outcomes are rare, and most runs need about ten of these.
    for entropy in 0..24 {
        if entropy > 0 && tally.missing().is_empty() {
            break;
        }
        let events = prop::collection::vec(event(), 300).new_tree(&mut runner).expect("a history").current();
        let mut world = World::opened(entropy);
        world.tally = tally;
        world.live_through(events);
        tally = world.tally;
    }
    assert_eq!(tally.missing(), Vec::<&str>::new(), "never happened; {tally:?}");
}

#[test]
fn globs_that_overlap_have_one_of_the_paths_in_common() {
    let pairs = GLOBS.iter().flat_map(|one| GLOBS.iter().map(move |other| (one, other)));
    for (one, other) in pairs {
        let (a, b): (Glob, Glob) = (parsed(one), parsed(other));
        let common = PATHS.iter().any(|path| a.matches(path) && b.matches(path));
        assert_eq!(a.overlaps(&b), common, "{one} and {other}");
    }
}

// Histories that chance seldom brings about.

#[test]
fn a_removed_namespace_leaves_nothing_and_gives_nothing_to_a_later_one_of_its_name() {
    const NAME: &str = "green";
    let mut world = World::new(0);
    let quotas = Quotas { max_messages: 5, ..Quotas::default() };
    world.run(DEFAULT, set_namespace(NAME, Some(quotas)));
    let number = world.views[NAME].number;
    let key = "k/a".to_owned();
    let put = KvPutRequest { key: key.clone(), blob: Some(blob(2)), ..KvPutRequest::default() };
    world.run(NAME, open(0));
    world.run(NAME, B::KvPut(put));
    world.run(NAME, B::KvDelete(KvDeleteRequest { key, ..KvDeleteRequest::default() }));
    world.run(NAME, close(0));
    let remove = DeleteNamespaceRequest { name: NAME.to_owned(), request: None };
    let left = |world: &World| world.machine.rows.0.keys().filter(|key| space_of(key) == Some(number)).count();
    assert!(left(&world) > 0, "nothing is left to remove");
    let answer = world.run(DEFAULT, B::DeleteNamespace(remove));
    assert_eq!(Outcome::of(&answer, At { now_ms: 0, rev: answer.rev }), Outcome::Done);
    assert_eq!((left(&world), world.views.contains_key(NAME)), (0, false));
    world.run(DEFAULT, set_namespace(NAME, None));
    assert!(world.views[NAME].number > number && world.views[NAME].rows.0.is_empty());
    support::check_replay(&world.machine, &world.log, world.entropy);
}

#[test]
fn what_was_superseded_acknowledges_nothing() {
    let mut world = World::opened(0);
    let message = BusMessage { subject: "a.c".to_owned(), ..BusMessage::default() };
    world.run(DEFAULT, B::Publish(PublishRequest { messages: vec![message], ..PublishRequest::default() }));
    let delivery = |world: &World| world.views[DEFAULT].pending[&(SUBSCRIPTIONS[0].to_owned(), 1)].clone();
    let first = delivery(&world);
    // No ack in time; then its pause.
    for later_ms in [2_000, 500] {
        world.now_ms += later_ms;
        world.catch_up();
    }
    let second = delivery(&world);
    assert!(second.token > first.token && second.consumer_id == first.consumer_id, "{first:?}, {second:?}");
    let ack = |token: u64| {
        let (subscription, kind) = (SUBSCRIPTIONS[0].to_owned(), AckKind::Ack as i32);
        let items = vec![AckItem { subscription, seq: 1, token, kind, ..AckItem::default() }];
        B::Ack(AckRequest { items, request: None })
    };
    world.run(DEFAULT, ack(first.token));
    assert_eq!(delivery(&world), second);
    world.run(DEFAULT, ack(second.token));
    assert!(!world.views[DEFAULT].pending.contains_key(&(SUBSCRIPTIONS[0].to_owned(), 1)));
    assert_eq!(world.views[DEFAULT].counts[SUBSCRIPTIONS[0]].acked, 1);
}
