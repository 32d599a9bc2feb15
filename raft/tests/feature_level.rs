//! What a binary of an earlier version does in a cluster that is newer. A process of its own, for it pretends to be one.

// Helpers of a test are tests too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use quorate_proto::log::command::Body;
use quorate_proto::log::{Command, RaiseFeatureLevel, RetireNode};
use quorate_proto::v1::ClusterInfo;
use quorate_raft::apply::Machine;
use quorate_raft::error::Fatal;
use quorate_raft::level;
use quorate_raft::state::namespaces::Namespaces;

/// A cluster that was named at this level.
fn named(feature_level: u32) -> Machine {
    let mut machine = Machine::in_memory();
    let info = ClusterInfo { cluster_id: "demo".to_owned(), feature_level, ..ClusterInfo::default() };
    apply(&mut machine, Body::DescribeCluster(info)).expect("no fatal error");
    machine
}

fn apply(machine: &mut Machine, body: Body) -> Result<(), Fatal> {
    machine.apply(1_000, 7, vec![Command { body: Some(body), ..Command::default() }]).map(drop)
}

#[test]
fn a_binary_that_is_too_old_stops_rather_than_differ() {
    let raise = Body::RaiseFeatureLevel(RaiseFeatureLevel { level: level::FEATURE_LEVEL + 1 });
    let too_high = apply(&mut named(level::FEATURE_LEVEL), raise).expect_err("nobody understands that");
    assert!(matches!(too_high, Fatal::TooOld { .. }), "{too_high}");

    let newer = named(2);
    assert!(Namespaces::rebuild(&newer.rows).is_ok());
    level::pretend(1);
    assert_eq!(level::understood(), 1);
    let opened = Namespaces::rebuild(&newer.rows).expect_err("the state is of a newer cluster");
    assert!(matches!(opened, Fatal::TooOld { level: 2, understood: 1 }), "{opened}");

    let retire = Body::RetireNode(RetireNode { node_id: 3 });
    let raise = Body::RaiseFeatureLevel(RaiseFeatureLevel { level: 2 });
    for body in [retire, raise] {
        let unknown = apply(&mut named(1), body).expect_err("an arm of level 2");
        assert!(matches!(unknown, Fatal::UnknownCommand(_)), "{unknown}");
    }
}
