//! Limits that take many commands to reach.

// Helpers of a test are tests too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use quorate_proto::log::{Answer, Command, Tick, answer, command};
use quorate_proto::v1::{
    KvMerge, KvPutRequest, OpenSessionRequest, RejectionCode, RequestId, SubmitTasksRequest, TaskSpec,
};
use quorate_raft::apply::Machine;
use quorate_raft::state::namespaces::Namespaces;
use quorate_raft::state::sessions::MAX_KEPT_ANSWERS;
use quorate_raft::state::tasks;

fn open(session_id: &str) -> Command {
    let body = OpenSessionRequest { session_id: session_id.to_owned(), ttl_ms: 15_000, client: String::new() };
    Command { body: Some(command::Body::OpenSession(body)), ..Command::default() }
}

fn tick(sequence: u64, done_below: u64) -> Command {
    let request = RequestId { session_id: "s".to_owned(), sequence, done_below };
    Command { request: Some(request), body: Some(command::Body::Tick(Tick {})), ..Command::default() }
}

fn submit(tasks: Vec<TaskSpec>) -> Command {
    Command {
        body: Some(command::Body::SubmitTasks(SubmitTasksRequest { tasks, ..SubmitTasksRequest::default() })),
        ..Command::default()
    }
}

fn refusal(answer: &Answer) -> Option<(RejectionCode, &str)> {
    match &answer.body {
        Some(answer::Body::Rejected(rejection)) => Some((rejection.code(), rejection.field.as_str())),
        _ => None,
    }
}

#[test]
fn a_session_that_acknowledges_nothing_is_stopped_until_it_does() {
    let mut machine = Machine::in_memory();
    machine.apply(1, 0, vec![open("s")]).unwrap();
    let kept = MAX_KEPT_ANSWERS as u64;
    let answers = machine.apply(1, 0, (0..kept).map(|sequence| tick(sequence, 0)).collect()).unwrap();
    assert!(answers.iter().all(|answer| refusal(answer).is_none()));
    let answers = machine.apply(1, 0, vec![tick(kept, 0), tick(7, 0), tick(kept, kept), tick(kept + 1, kept)]).unwrap();
    assert_eq!(refusal(&answers[0]), Some((RejectionCode::ResourceExhausted, "request.done_below")));
    assert_eq!(answers[1].rev, 9, "a kept answer is still given");
    assert_eq!((refusal(&answers[2]), refusal(&answers[3])), (None, None));
    assert_eq!(machine.rows.0.len(), 3, "the session and two answers");
    assert_eq!(Namespaces::rebuild(&machine.rows).unwrap(), machine.namespaces);
}

#[test]
fn requirement_sets_of_live_tasks_are_bounded() {
    let mut machine = Machine::in_memory();
    let spec = |n: usize, capability: usize| TaskSpec {
        task_id: format!("t{n}"),
        required_capabilities: vec![format!("c{capability}")],
        ..TaskSpec::default()
    };
    let specs: Vec<TaskSpec> = (0..tasks::MAX_SETS).map(|n| spec(n, n)).collect();
    for chunk in specs.chunks(tasks::MAX_SUBMIT) {
        let answers = machine.apply(1, 0, vec![submit(chunk.to_vec())]).unwrap();
        assert_eq!(refusal(&answers[0]), None);
    }
    let more = machine.apply(1, 0, vec![submit(vec![spec(5_000, 5_000)]), submit(vec![spec(5_001, 0)])]).unwrap();
    let refused = (RejectionCode::ResourceExhausted, "tasks[0]");
    assert_eq!((refusal(&more[0]), refusal(&more[1])), (Some(refused), None));
}

#[test]
fn a_claim_brings_no_more_than_an_answer_can_carry_but_always_one() {
    use quorate_proto::v1::{ClaimTasksRequest, RegisterAgentRequest};

    let mut machine = Machine::in_memory();
    let big = |n: u32| TaskSpec {
        task_id: format!("t{n}"),
        payload: vec![7; 1 << 20].into(),
        required_capabilities: vec!["any".to_owned()],
        ..TaskSpec::default()
    };
    let register = RegisterAgentRequest {
        agent_id: "a".to_owned(),
        session_id: "s".to_owned(),
        capabilities: vec!["any".to_owned()],
        capacity: 100,
        ..RegisterAgentRequest::default()
    };
    let register = Command { body: Some(command::Body::RegisterAgent(register)), ..Command::default() };
    machine.apply(1, 1, vec![open("s"), register, submit((0..10).map(big).collect())]).unwrap();
    let claim = ClaimTasksRequest {
        agent_id: "a".to_owned(),
        session_id: "s".to_owned(),
        max_tasks: 10,
        ..ClaimTasksRequest::default()
    };
    let mut granted = Vec::new();
    while granted.iter().sum::<usize>() < 10 && granted.len() < 20 {
        let claim = Command { body: Some(command::Body::ClaimTasks(claim.clone())), ..Command::default() };
        let answers = machine.apply(2, 2, vec![claim]).unwrap();
        let Some(answer::Body::ClaimTasks(response)) = &answers[0].body else { panic!("{answers:?}") };
        granted.push(response.tasks.len());
    }
    assert_eq!(
        granted,
        [3, 3, 3, 1],
        "four tasks of a mebibyte and their rows are more than {}",
        tasks::MAX_GRANTED_BYTES
    );
}

#[test]
fn time_never_goes_back() {
    let mut machine = Machine::in_memory();
    let tick = || Command { body: Some(command::Body::Tick(Tick {})), ..Command::default() };
    machine.apply(5_000, 1, vec![tick()]).unwrap();
    machine.apply(3_000, 2, vec![tick()]).unwrap();
    assert_eq!(machine.head.now_ms, 5_000, "a proposer with a slower clock does not turn time back");
    machine.apply(6_000, 3, vec![tick()]).unwrap();
    assert_eq!(machine.head.now_ms, 6_000);
}

#[test]
fn what_one_entry_writes_is_bounded_whatever_its_commands_ask_for() {
    let put = |value: Vec<u8>, merge: KvMerge| Command {
        body: Some(command::Body::KvPut(KvPutRequest {
            key: "log".to_owned(),
            value: value.into(),
            merge: merge as i32,
            ..KvPutRequest::default()
        })),
        ..Command::default()
    };
    let mut machine = Machine::in_memory();
    machine.apply(1, 1, vec![put(vec![b'x'; 1_000_000], KvMerge::Replace)]).unwrap();
    // Each writes a megabyte as the document, as its earlier version, and as the event.
    let mut commands: Vec<Command> = (0..200).map(|_| put(vec![b'y'], KvMerge::Append)).collect();
    commands.push(Command { body: Some(command::Body::Tick(Tick {})), ..Command::default() });
    let answers = machine.apply(2, 1, commands).unwrap();
    let refused: Vec<bool> = answers.iter().map(|answer| refusal(answer).is_some()).collect();
    let done = refused.iter().take_while(|refused| !**refused).count();
    assert!((10..40).contains(&done), "{done} of 200 were done");
    assert!(refused[done..200].iter().all(|refused| *refused), "what comes after is turned away");
    assert!(refusal(&answers[done]).is_some_and(|(code, _)| code == RejectionCode::Overloaded));
    assert!(!refused[200], "a leader's word is not put off");
    assert_eq!(Namespaces::rebuild(&machine.rows).unwrap(), machine.namespaces);
    // The next entry has room again.
    let answers = machine.apply(3, 1, vec![put(vec![b'y'], KvMerge::Append)]).unwrap();
    assert_eq!(refusal(&answers[0]), None);
}
