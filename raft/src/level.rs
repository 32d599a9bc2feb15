//! Feature levels: which commands a cluster of mixed binaries lets in.
//!
//! Every arm of a command has a level. The cluster runs at one, kept in its row; a command above it is refused. Once
//! every node understands a higher level an operator raises it, and from then on an older binary stops as soon as it
//! sees that.
//!
//! The refusal is not enough while older nodes are there: a command that one of them cannot decode stops it, refused or
//! not. So whoever proposes asks [`admit`] first, and nothing newer reaches the log.
//!
//! Owns the levels of the arms, and what this binary understands. Deliberately absent: the level in use
//! ([`crate::state::cluster`]), and what the other nodes understand, which the state cannot see.

use std::sync::OnceLock;

use quorate_proto::log::command::Body;

use crate::error::{Fatal, Outcome, precondition};

/// The newest level of this program.
pub const FEATURE_LEVEL: u32 = 2;

static PRETENDED: OnceLock<u32> = OnceLock::new();

/// The highest level of commands that this binary understands.
pub fn understood() -> u32 {
    PRETENDED.get().copied().unwrap_or(FEATURE_LEVEL)
}

/// Lets this process behave as an earlier version: only for tests of upgrades, and only before anything is opened. The
/// first call counts.
pub fn pretend(level: u32) {
    if PRETENDED.set(level.clamp(1, FEATURE_LEVEL)).is_err() {
        tracing::warn!(level, "this process pretends another feature level already");
    }
}

/// The level from which on a command may be used.
pub fn level_of(body: &Body) -> u32 {
    match body {
        Body::RetireNode(_)
        | Body::RaiseFeatureLevel(_)
        | Body::SetBackupPolicy(_)
        | Body::RecordBackup(_)
        | Body::ForgetTasks(_) => 2,
        _ => 1,
    }
}

/// Refuses a command that the level in use does not let in. `None`: the cluster has no name yet, and is founded by
/// nodes of one version. What raises the level is let in by every level.
pub fn admit(in_use: Option<u32>, body: &Body) -> Outcome<()> {
    let needed = level_of(body);
    match in_use {
        Some(level) if level < needed && !matches!(body, Body::RaiseFeatureLevel(_)) => {
            let message = format!(
                "needs feature level {needed}, the cluster runs at {level}: once every node is upgraded, run `quorate \
                 cluster raise-level`"
            );
            Err(precondition("", message))
        }
        _ => Ok(()),
    }
}

/// Stops a binary that is too old for its cluster.
pub(crate) fn check(in_use: u32) -> Result<(), Fatal> {
    let understood = understood();
    if in_use <= understood { Ok(()) } else { Err(Fatal::TooOld { level: in_use, understood }) }
}

#[cfg(test)]
mod tests {
    use quorate_proto::log::{RaiseFeatureLevel, RetireNode, Tick};

    use super::*;

    /// The numbers of the arms of each level, from and to, the first level at index 0.
    const ARMS: [&[(u32, u32)]; FEATURE_LEVEL as usize] = [
        &[
            (10, 12),
            (20, 23),
            (30, 39),
            (40, 46),
            (50, 54),
            (60, 63),
            (65, 66),
            (70, 74),
            (90, 94),
            (100, 107),
            (110, 114),
            (120, 120),
        ],
        &[(95, 99)],
    ];

    #[test]
    fn every_arm_was_given_a_level() {
        let proto = include_str!("../../proto/quorate/log/command.proto");
        let (_, body) = proto.split_once("message Command {").unwrap();
        let (_, body) = body.split_once("oneof body {").unwrap();
        let (body, _) = body.split_once('}').unwrap();
        let arms = body.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//"));
        let arms: Vec<u32> =
            arms.map(|arm| arm.rsplit_once("= ").unwrap().1.trim_end_matches(';').parse().unwrap()).collect();
        assert!(arms.len() > 60, "only {} arms found", arms.len());
        for arm in arms {
            let levels = ARMS.iter().filter(|arms| arms.iter().any(|(from, to)| (*from..=*to).contains(&arm))).count();
            assert_eq!(levels, 1, "arm {arm}: give it a level in level_of, and name it here");
        }
    }

    #[test]
    fn a_level_lets_in_its_own_commands_and_what_raises_it() {
        let retire = Body::RetireNode(RetireNode { node_id: 3 });
        let raise = Body::RaiseFeatureLevel(RaiseFeatureLevel { level: 2 });
        let tick = Body::Tick(Tick {});
        let admitted = |in_use| [&tick, &raise, &retire].map(|body| admit(in_use, body).is_ok());
        assert_eq!(admitted(Some(1)), [true, true, false]);
        assert_eq!(admitted(Some(2)), [true, true, true]);
        assert_eq!(admitted(None), [true, true, true]);
    }

    #[test]
    fn a_cluster_above_this_binary_stops_it() {
        assert!(check(FEATURE_LEVEL).is_ok());
        let fatal = check(FEATURE_LEVEL + 1).unwrap_err().to_string();
        assert!(fatal.contains("use the newer binary"), "{fatal}");
    }
}
