//! Every change, from every place where it can have been cut off.

use quorate_proto::v1::ReplaceMember;

use super::*;

fn set<const N: usize>(ids: [u64; N]) -> BTreeSet<u64> {
    BTreeSet::from(ids)
}

fn at(node_id: u64) -> String {
    format!("h{node_id}:7401")
}

/// Node 1 leads; `learners` are members too.
fn roster<const V: usize, const L: usize, const R: usize>(
    voters: [u64; V],
    learners: [u64; L],
    retired: [u64; R],
) -> Roster {
    let nodes = voters.iter().chain(&learners).map(|id| (*id, at(*id))).collect();
    Roster { leader: 1, voters: set(voters), nodes, retired: set(retired), level: 2 }
}

fn add(node_id: u64) -> Change {
    Change::Add { node_id, address: at(node_id) }
}

fn remove(node_id: u64) -> Change {
    Change::Remove { node_id }
}

fn replace(old: u64, node_id: u64) -> Change {
    Change::Replace { old, node_id, address: at(node_id) }
}

fn learn(node_id: u64) -> Step {
    Step::Learn { node_id, address: at(node_id) }
}

fn voters<const N: usize>(node_id: u64, ids: [u64; N]) -> Step {
    Step::Voters { node_id, voters: set(ids) }
}

#[track_caller]
fn planned(roster: &Roster, change: &Change) -> Vec<Step> {
    plan(roster, change).unwrap()
}

#[track_caller]
fn refused<T: fmt::Debug>(outcome: Result<T, Error>) -> String {
    match outcome {
        Err(Error::Rejected(rejection)) => rejection.message,
        other => panic!("not refused: {other:?}"),
    }
}

/// What a roster is after a step, as consensus and the state make it.
fn after(mut roster: Roster, step: &Step) -> Roster {
    match step {
        Step::Learn { node_id, address } => {
            roster.nodes.insert(*node_id, address.clone());
        }
        Step::CatchUp { .. } => {}
        Step::HandOver => {
            let others = roster.voters.iter().copied().filter(|id| *id != roster.leader);
            roster.leader = others.max().unwrap();
        }
        Step::Retire { node_id } => {
            roster.retired.insert(*node_id);
        }
        Step::Voters { voters, .. } => {
            let gone: Vec<u64> = roster.voters.difference(voters).copied().collect();
            roster.nodes.retain(|id, _| !gone.contains(id));
            roster.voters = voters.clone();
        }
        Step::Forget { node_id } => {
            roster.nodes.remove(node_id);
        }
    }
    roster
}

#[test]
fn a_node_learns_before_it_votes() {
    let three = roster([1, 2, 3], [], []);
    let steps = planned(&three, &add(4));
    assert_eq!(steps, [learn(4), Step::CatchUp { node_id: 4 }, voters(4, [1, 2, 3, 4])]);
    let learning = roster([1, 2, 3], [4], []);
    assert_eq!(planned(&learning, &add(4)), [Step::CatchUp { node_id: 4 }, voters(4, [1, 2, 3, 4])]);
    assert!(planned(&roster([1, 2, 3, 4], [], []), &add(4)).is_empty());
}

#[test]
fn a_number_is_retired_before_its_node_loses_its_vote() {
    let steps = planned(&roster([1, 2, 3], [], []), &remove(3));
    assert_eq!(steps, [Step::Retire { node_id: 3 }, voters(3, [1, 2]), Step::Forget { node_id: 3 }]);
    let steps = planned(&roster([1, 2, 3], [], [3]), &remove(3));
    assert_eq!(steps, [voters(3, [1, 2]), Step::Forget { node_id: 3 }]);
    let learner = planned(&roster([1, 2], [3], [3]), &remove(3));
    assert_eq!(learner, [Step::Forget { node_id: 3 }]);
    assert!(planned(&roster([1, 2], [], [3]), &remove(3)).is_empty());
}

#[test]
fn a_leader_that_leaves_hands_over_first() {
    assert_eq!(planned(&roster([1, 2, 3], [], []), &remove(1)), [Step::HandOver]);
    assert_eq!(planned(&roster([1, 2, 3], [], []), &replace(1, 4)), [Step::HandOver]);
}

#[test]
fn the_only_voter_is_replaced_once_another_can_lead() {
    let steps = planned(&roster([1], [], []), &replace(1, 2));
    assert_eq!(steps, [learn(2), Step::CatchUp { node_id: 2 }, voters(2, [1, 2]), Step::HandOver]);
    assert_eq!(planned(&roster([1, 2], [], []), &replace(1, 2)), [Step::HandOver]);
}

#[test]
fn a_replacement_votes_for_the_old_one_in_one_change() {
    let steps = planned(&roster([1, 2, 3], [], []), &replace(3, 4));
    let wanted = [
        learn(4),
        Step::CatchUp { node_id: 4 },
        Step::Retire { node_id: 3 },
        voters(4, [1, 2, 4]),
        Step::Forget { node_id: 3 },
    ];
    assert_eq!(steps, wanted);
}

#[test]
fn a_change_that_is_cut_off_anywhere_goes_on_to_the_same_end() {
    let cases = [
        (roster([1, 2, 3], [], []), add(4), roster([1, 2, 3, 4], [], [])),
        (roster([1, 2, 3], [], []), remove(2), roster([1, 3], [], [2])),
        (roster([1, 2, 3], [], []), remove(1), roster([2, 3], [], [1])),
        (roster([1, 2, 3], [], []), replace(3, 4), roster([1, 2, 4], [], [3])),
        (roster([1, 2, 3], [], []), replace(1, 4), roster([2, 3, 4], [], [1])),
        (roster([1], [], []), replace(1, 2), roster([2], [], [1])),
        (roster([1, 2], [3], []), remove(3), roster([1, 2], [], [3])),
        (roster([1, 2, 3, 4, 5, 6, 7], [], []), replace(7, 8), roster([1, 2, 3, 4, 5, 6, 8], [], [7])),
    ];
    for (mut now, change, end) in cases {
        // Asked for anew after every single step.
        for _ in 0..16 {
            let steps = planned(&now, &change);
            let Some(first) = steps.iter().find(|step| !matches!(step, Step::CatchUp { .. })) else { break };
            now = after(now, first);
        }
        assert!(planned(&now, &change).is_empty(), "{change} has no end");
        assert_eq!((now.voters, now.nodes, now.retired), (end.voters, end.nodes, end.retired), "{change}");
    }
}

#[test]
fn what_cannot_be_is_refused_and_says_why() {
    let three = roster([1, 2, 3], [], [9]);
    let elsewhere = |node_id, address: &str| Change::Add { node_id, address: address.to_owned() };
    let cases = [
        (add(9), "never used again"),
        (replace(3, 9), "never used again"),
        (elsewhere(3, "h9:1"), "node 3 is a member already, at h3:7401"),
        (elsewhere(4, "h3:7401"), "h3:7401 is node 3's"),
        (remove(4), "node 4 is not a member of this cluster; members are 1, 2 and 3"),
        (replace(5, 4), "node 5 is not a member"),
    ];
    for (change, wanted) in cases {
        let message = refused(plan(&three, &change));
        assert!(message.contains(wanted), "{change}: {message}");
    }
    let alone = refused(plan(&roster([1], [], []), &remove(1)));
    assert!(alone.contains("only voter"), "{alone}");
    let eighth = refused(plan(&roster([1, 2, 3, 4, 5, 6, 7], [], []), &add(8)));
    assert!(eighth.contains("at most 7 voters"), "{eighth}");
}

#[test]
fn requests_that_say_nothing_are_refused() {
    let member = |node_id, address: &str| MemberAddress { node_id, address: address.to_owned(), voter: false };
    let asked = |change| change_of(ChangeMembersRequest { change });
    assert!(refused(asked(None)).contains("change must be one of"));
    assert!(refused(asked(Some(Asked::RemoveNodeId(0)))).contains("1 or more"));
    assert!(refused(asked(Some(Asked::Add(member(4, "nowhere"))))).contains("HOST:PORT"));
    let itself = ReplaceMember { old_node_id: 3, new_member: Some(member(3, "h3:7401")) };
    assert!(refused(asked(Some(Asked::Replace(itself)))).contains("another number"));
    assert_eq!(asked(Some(Asked::Add(member(4, "h4:7401")))).unwrap(), add(4));
}

#[test]
fn a_majority_is_more_than_half_of_those_that_vote() {
    assert_eq!(silent_majority(&set([1, 2, 3]), &set([1, 2])), None);
    assert_eq!(silent_majority(&set([1, 2]), &set([1])), Some(set([2])));
    assert_eq!(silent_majority(&set([1, 2, 3, 4]), &set([1, 2, 7])), Some(set([3, 4])));
    assert_eq!(do_not(&set([2])), "node 2 does");
    assert_eq!(do_not(&set([2, 3, 4])), "nodes 2, 3 and 4 do");
}

#[test]
fn a_node_has_caught_up_when_it_is_near_or_has_all_there_was_and_goes_on() {
    let began = Instant::now();
    let second = |n| began + Duration::from_secs(n);
    let behind = |entries, still_for| Progress::Behind { entries, still_for: Duration::from_secs(still_for) };
    let mut catching = Catching::begin(5_000, began);
    assert_eq!(catching.look(5_000, None, second(1)), behind(5_000, 1), "it has acknowledged nothing");
    assert_eq!(catching.look(6_000, Some(3_000), second(2)), behind(3_000, 0));
    assert_eq!(catching.look(9_000, Some(3_000), second(5)), behind(6_000, 3));
    assert_eq!(catching.look(20_000, Some(5_000), second(6)), Progress::CaughtUp, "the log grows as it reads");
    let mut catching = Catching::begin(5_000, began);
    assert_eq!(catching.look(5_000, Some(4_000), second(1)), Progress::CaughtUp, "nearly");
    let mut short = Catching::begin(3, began);
    assert_eq!(short.look(3, None, second(1)), behind(3, 1), "a short log is no proof that it is there");
}
