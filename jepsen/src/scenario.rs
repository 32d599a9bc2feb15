//! Scenarios: what is known by name, so that a run can be asked for in one word.
//!
//! Every nemesis is a scenario of its own, with every workload at work under it. Beside these there are a few that mix
//! them, and those of which each must catch a bug that is planted ([`crate::planted`]).
//!
//! Deliberately absent: numbers. How long, how many clients and which seed is said by who runs them.

use crate::nemesis;

/// What is done to the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// What it is called.
    pub name: String,
    /// One sentence.
    pub about: String,
    /// Its nemeses: none, one, or one of several at each strike.
    pub nemeses: Vec<String>,
}

/// Those that mix: the name, what it is about, and the nemeses.
const MIXED: [(&str, &str, &[&str]); 5] = [
    ("calm", "no fault at all", &[]),
    (
        "soak",
        "kills, pauses, restarts, cuts and delays of 100 ms to 1 s, at random",
        &[
            "kill-one",
            "kill-leader",
            "pause-leader",
            "rolling-restart",
            "isolate-leader",
            "one-way",
            "pair",
            "delay",
            "loss",
        ],
    ),
    (
        "processes",
        "kills, pauses, restarts and hand-overs",
        &["kill-one", "kill-leader", "kill-all", "pause-one", "pause-leader", "rolling-restart", "hand-over"],
    ),
    (
        "networks",
        "every way in which a network is bad",
        &[
            "isolate-leader",
            "isolate-from-all",
            "one-way",
            "pair",
            "ring",
            "no-majority",
            "loss",
            "heavy-loss",
            "delay",
            "reorder",
            "slow-line",
            "flap",
        ],
    ),
    (
        "disks",
        "power cuts, full and slow disks",
        &["power-one", "power-all", "power-torn", "disk-full", "slow-disk", "wipe-one"],
    ),
];

/// Those that a commit must pass: one of each kind, in about four minutes.
pub const CHAOS: [&str; 5] = ["kill-leader", "pause-leader", "isolate-leader", "power-all", "clock-jump-failover"];

/// All of them.
pub fn all() -> Vec<Scenario> {
    let single = nemesis::all();
    let single = single.iter().map(|one| Scenario {
        name: one.name().to_owned(),
        about: one.about().to_owned(),
        nemeses: vec![one.name().to_owned()],
    });
    let mixed = MIXED.into_iter().map(|(name, about, nemeses)| Scenario {
        name: name.to_owned(),
        about: about.to_owned(),
        nemeses: nemeses.iter().map(|name| (*name).to_owned()).collect(),
    });
    mixed.chain(single).collect()
}

/// One of that name.
pub fn named(name: &str) -> Option<Scenario> {
    all().into_iter().find(|scenario| scenario.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_has_a_name_of_its_own_and_nemeses_that_exist() {
        let all = all();
        for scenario in &all {
            assert_eq!(all.iter().filter(|other| other.name == scenario.name).count(), 1, "{}", scenario.name);
            assert!(scenario.nemeses.iter().all(|name| nemesis::named(name).is_some()), "{scenario:?}");
        }
        assert!(CHAOS.iter().all(|name| named(name).is_some()));
    }
}
