//! Needs: what a task asks of whoever takes it, and what it counts against. Tasks with equal needs stand in one line.

use quorate_proto::v1::{Agent, TaskSpec};

use crate::state::agents;

/// Everything but the pin that decides whether an agent may take a task now.
#[derive(Debug, Default, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Needs {
    pub(super) capabilities: Vec<String>,
    pub(super) agent_type: String,
    pub(super) labels: Vec<(String, String)>,
    pub(super) excluded: Vec<String>,
    pub(super) keys: Vec<String>,
    pub(super) uses: Vec<String>,
    pub(super) share: String,
}

impl Needs {
    /// The needs of a stored specification: its lists are sorted.
    pub(super) fn of(spec: &TaskSpec) -> Self {
        Needs {
            capabilities: spec.required_capabilities.clone(),
            agent_type: spec.agent_type.clone(),
            labels: spec.required_labels.iter().map(|label| (label.key.clone(), label.value.clone())).collect(),
            excluded: spec.excluded_agents.clone(),
            keys: spec.concurrency_keys.clone(),
            uses: spec.uses.clone(),
            share: spec.share.clone(),
        }
    }

    /// Whether the agent is one that may take such a task, whatever it is doing.
    pub(super) fn fit(&self, agent: &Agent) -> bool {
        agents::offers(agent, &self.capabilities)
            && (self.agent_type.is_empty() || self.agent_type == agent.agent_type)
            && self.excluded.binary_search(&agent.id).is_err()
            && self
                .labels
                .iter()
                .all(|(key, value)| agent.metadata.iter().any(|known| known.key == *key && known.value == *value))
    }

    /// In words, for people.
    pub(super) fn describe(&self) -> String {
        let mut parts = Vec::new();
        if !self.agent_type.is_empty() {
            parts.push(format!("type {}", self.agent_type));
        }
        if !self.capabilities.is_empty() {
            parts.push(format!("capabilities {}", self.capabilities.join(" + ")));
        }
        parts.extend(self.labels.iter().map(|(key, value)| format!("label {key}={value}")));
        if !self.excluded.is_empty() {
            parts.push(format!("not {}", self.excluded.join(", ")));
        }
        if parts.is_empty() { "any agent".to_owned() } else { format!("an agent with {}", parts.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::KeyValue;

    use super::*;

    #[test]
    fn each_need_admits_and_excludes() {
        let agent = Agent {
            id: "a".to_owned(),
            agent_type: "coder".to_owned(),
            capabilities: vec!["rust".to_owned()],
            metadata: vec![KeyValue { key: "zone".to_owned(), value: "eu".to_owned() }],
            ..Agent::default()
        };
        let label = |value: &str| vec![("zone".to_owned(), value.to_owned())];
        let cases = [
            (Needs::default(), true),
            (Needs { agent_type: "coder".to_owned(), ..Needs::default() }, true),
            (Needs { agent_type: "writer".to_owned(), ..Needs::default() }, false),
            (Needs { capabilities: vec!["go".to_owned()], ..Needs::default() }, false),
            (Needs { labels: label("eu"), ..Needs::default() }, true),
            (Needs { labels: label("us"), ..Needs::default() }, false),
            (Needs { excluded: vec!["a".to_owned()], ..Needs::default() }, false),
            (Needs { excluded: vec!["b".to_owned()], ..Needs::default() }, true),
        ];
        for (needs, fits) in cases {
            assert_eq!(needs.fit(&agent), fits, "{needs:?}");
        }
    }
}
