//! Standing orders: the agents that work is pushed to, and which of them has room.
//!
//! An agent with free capacity stands under each capability that it offers, under its type, and under nothing in
//! particular: the least loaded first, then the healthiest, then by id. So the best agent for a task is found without a
//! look at most of those that cannot do it.

use std::collections::{BTreeMap, BTreeSet};

use quorate_proto::v1::Agent;

use super::is_available;
use crate::state::remove_from;

const FULL: u64 = 1_000;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Any,
    Type(String),
    Offers(String),
}

/// Load and ill health in permille, and the id: smaller is better.
type Rank = (u32, u32, String);

/// Agents with a standing order and room, by what they offer.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Standing {
    free: BTreeMap<Place, BTreeSet<Rank>>,
}

impl Standing {
    pub(super) fn put(&mut self, agent: &Agent) {
        if stands(agent) {
            for place in places(agent) {
                self.free.entry(place).or_default().insert(rank(agent));
            }
        }
    }

    pub(super) fn take_out(&mut self, agent: &Agent) {
        if stands(agent) {
            let rank = rank(agent);
            for place in places(agent) {
                remove_from(&mut self.free, &place, &rank);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.is_empty()
    }

    /// Ids of agents that have the rarest of these, the best first; an empty type is any.
    pub(super) fn offering<'a>(&'a self, capabilities: &[String], agent_type: &str) -> impl Iterator<Item = &'a str> {
        let of_type = (!agent_type.is_empty()).then(|| Place::Type(agent_type.to_owned()));
        let offers = capabilities.iter().map(|capability| Place::Offers(capability.clone()));
        let asked = offers.chain(of_type).chain([Place::Any]);
        let rarest = asked.map(|place| self.free.get(&place)).min_by_key(|ranks| ranks.map_or(0, BTreeSet::len));
        rarest.flatten().into_iter().flatten().map(|(_, _, id)| id.as_str())
    }
}

fn stands(agent: &Agent) -> bool {
    agent.standing && is_available(agent)
}

fn places(agent: &Agent) -> impl Iterator<Item = Place> {
    let offers = agent.capabilities.iter().map(|capability| Place::Offers(capability.clone()));
    offers.chain([Place::Type(agent.agent_type.clone()), Place::Any])
}

fn rank(agent: &Agent) -> Rank {
    let load = u64::from(agent.load) * FULL / u64::from(agent.capacity.max(1));
    let ill = FULL.saturating_sub(u64::from(agent.health_permille));
    (u32::try_from(load).unwrap_or(u32::MAX), u32::try_from(ill).unwrap_or(u32::MAX), agent.id.clone())
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::AgentStatus;

    use super::*;

    fn agent(id: &str, load: u32, health_permille: u32, capabilities: &[&str]) -> Agent {
        Agent {
            id: id.to_owned(),
            standing: true,
            status: AgentStatus::Available as i32,
            load,
            capacity: 4,
            health_permille,
            capabilities: capabilities.iter().map(|name| (*name).to_owned()).collect(),
            ..Agent::default()
        }
    }

    fn offering(standing: &Standing, capabilities: &[&str]) -> Vec<String> {
        let asked: Vec<String> = capabilities.iter().map(|name| (*name).to_owned()).collect();
        standing.offering(&asked, "").map(str::to_owned).collect()
    }

    #[test]
    fn the_least_loaded_stands_first_then_the_healthiest_then_by_id() {
        let mut standing = Standing::default();
        for agent in [agent("c", 1, 1_000, &["go"]), agent("b", 0, 500, &["go"]), agent("a", 0, 900, &["go", "rust"])] {
            standing.put(&agent);
        }
        assert_eq!(offering(&standing, &[]), ["a", "b", "c"]);
        assert_eq!(offering(&standing, &["go", "rust"]), ["a"]);
        assert!(offering(&standing, &["go", "perl"]).is_empty());
        assert_eq!(standing.offering(&[], "").count(), 3);
        assert_eq!(standing.offering(&[], "writer").count(), 0);
    }

    #[test]
    fn who_has_no_room_or_no_order_does_not_stand() {
        let mut standing = Standing::default();
        standing.put(&agent("full", 4, 1_000, &["go"]));
        standing.put(&Agent { standing: false, ..agent("pull", 0, 1_000, &["go"]) });
        assert!(standing.is_empty());
        let free = agent("free", 0, 1_000, &["go"]);
        standing.put(&free);
        standing.take_out(&free);
        assert_eq!(standing, Standing::default());
    }
}
