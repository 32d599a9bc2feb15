//! The routing table that ships: what a fleet of software agents is usually asked to do.
//!
//! A word is anchored at its beginning and stands for whatever begins with it: `deploy` is found in "deployment", but
//! `ui` must not be found in "build", nor `api` in "rapid". Where other words begin the same way ("test", "testament"),
//! its end is anchored too.
//!
//! Deliberately absent: anything that a fleet should decide for itself. This is the table until somebody sets one.

use quorate_proto::v1::{EpicRoute, RouteRule, RoutingTable};

/// Name, pattern, agent type; the first that is found wins.
const RULES: [(&str, &str, &str); 14] = [
    ("devops", r"\b(?:infrastructure|deploy|docker|kubernetes|gke\b|argocd)", "devops-engineer"),
    ("database", r"\b(?:database|schema|migrat|fdb\b|postgres|redis\b)", "database-architect"),
    (
        "security",
        r"\b(?:security|identit(?:y|ies)\b|authenticat|oauth|jwts?\b|secrets?\b|complian|audit)",
        "security-specialist",
    ),
    ("penetration", r"\b(?:penetration|vulnerab|sast\b|dast\b)", "security-specialist"),
    ("backend", r"\b(?:apis?\b|endpoint|backend|handlers?\b|middleware)", "backend-development"),
    ("frontend", r"\b(?:ui\b|frontend|components?\b|react\b|typescript|toon\b)", "frontend-development-agent"),
    ("testing", r"\b(?:test(?:s|ed|er|ers|ing)?\b|validat|coverage|pytest)", "testing-specialist"),
    ("performance", r"\b(?:performance|optimi[sz]|latenc|throughput)", "application-performance"),
    ("refactoring", r"\b(?:refactor|clean|tech(?:nical)? debt)", "codebase-refactoring-specialist"),
    ("documentation", r"\b(?:documentation|guides?\b|readme|tutorial)", "codi-documentation-writer"),
    ("onboarding", r"\b(?:onboard|training\b|education)", "coditect-onboarding"),
    ("workflow", r"\b(?:workflow|automat(?:e|es|ed|ing|ion)\b|bpmn|state machine)", "workflow-automation-specialist"),
    ("observability", r"\b(?:monitor|metrics?\b|prometheus|grafana|observab)", "observability-platform"),
    ("licensing", r"\b(?:licen[sc]|subscri|billing|stripe\b)", "license-management-specialist"),
];

/// Epic, agent type.
const EPICS: [(&str, &str); 2] = [("E001", "backend-development"), ("E008", "security-specialist")];

const FALLBACK: &str = "general-purpose";

/// The table, version 0.
pub(super) fn table() -> RoutingTable {
    let rules = RULES.iter().map(|(name, pattern, agent_type)| RouteRule {
        name: (*name).to_owned(),
        pattern: (*pattern).to_owned(),
        agent_type: (*agent_type).to_owned(),
    });
    let epics = EPICS
        .iter()
        .map(|(epic, agent_type)| EpicRoute { epic: (*epic).to_owned(), agent_type: (*agent_type).to_owned() });
    RoutingTable {
        rules: rules.collect(),
        epics: epics.collect(),
        fallback_agent_type: FALLBACK.to_owned(),
        version: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::routes::Routes;
    use super::*;

    fn by(title: &str, epic: &str) -> String {
        Routes::default().route(title, "", epic).by
    }

    #[test]
    fn the_table_is_one_that_could_be_set() {
        let routes = Routes::new(table()).unwrap();
        assert_eq!(routes.table().rules.len(), RULES.len());
        assert_eq!(routes, Routes::default());
    }

    #[test]
    fn every_rule_has_an_example() {
        let examples = [
            ("devops", "Upgrade the Kubernetes cluster"),
            ("database", "Write the schema for invoices"),
            ("security", "Rotate the OAuth secrets"),
            ("penetration", "Run DAST against staging"),
            ("backend", "Add an endpoint for orders"),
            ("frontend", "Rework the UI of the cart"),
            ("testing", "Raise the coverage of the parser"),
            ("performance", "Halve the latency of the search"),
            ("refactoring", "Refactor the billing module"),
            ("documentation", "Update the README"),
            ("onboarding", "Prepare the training for new hires"),
            ("workflow", "Draw the state machine of an order"),
            ("observability", "Add a Grafana board"),
            ("licensing", "Send subscription reminders"),
        ];
        assert_eq!(examples.map(|(rule, _)| rule), RULES.map(|(name, _, _)| name));
        for (rule, title) in examples {
            assert_eq!(by(title, ""), format!("rule:{rule}"), "{title}");
        }
    }

    #[test]
    fn every_keyword_reaches_its_agent() {
        let keywords = [
            ("devops-engineer", "infrastructure|deployment|deploy|docker|kubernetes|gke|argocd"),
            ("database-architect", "database|schema|migration|fdb|postgresql|redis"),
            ("security-specialist", "security|authentication|oauth|jwt|secret|compliance|audit|identity"),
            ("security-specialist", "penetration|vulnerability|sast|dast"),
            ("backend-development", "api|endpoint|backend|handler|middleware"),
            ("frontend-development-agent", "ui|frontend|component|react|typescript|toon"),
            ("testing-specialist", "test|validation|coverage|pytest"),
            ("application-performance", "performance|optimization|latency|throughput"),
            ("codebase-refactoring-specialist", "refactor|clean|tech debt"),
            ("codi-documentation-writer", "documentation|guide|readme|tutorial"),
            ("coditect-onboarding", "onboarding|training|education"),
            ("workflow-automation-specialist", "workflow|automation|bpmn|state machine"),
            ("observability-platform", "monitoring|metrics|prometheus|grafana|observability"),
            ("license-management-specialist", "license|subscription|billing|stripe"),
        ];
        for (agent_type, words) in keywords {
            for word in words.split('|') {
                assert_eq!(Routes::default().route("", word, "").agent_type, agent_type, "{word}");
            }
        }
    }

    #[test]
    fn ten_everyday_tasks_go_where_one_would_send_them() {
        let tasks = [
            ("Deploy RabbitMQ message bus", "", "devops-engineer"),
            ("Setup GCP Identity Platform", "", "security-specialist"),
            ("Miscellaneous task", "", "general-purpose"),
            ("Write user guide", "", "codi-documentation-writer"),
            ("Build rapid prototypes", "", "general-purpose"),
            ("Miscellaneous task", "E001", "backend-development"),
            ("Miscellaneous task", "E008", "security-specialist"),
            ("Deploy the login page", "E008", "devops-engineer"),
            ("Migrate the orders to PostgreSQL", "", "database-architect"),
            ("Fix the APIs for mobile", "", "backend-development"),
        ];
        for (title, epic, agent_type) in tasks {
            assert_eq!(Routes::default().route(title, "", epic).agent_type, agent_type, "{title}");
        }
    }

    #[test]
    fn a_keyword_inside_another_word_is_not_found() {
        for title in ["build it", "rapid start", "a guild", "latest news", "contest", "redistribute", "secretary"] {
            assert_eq!(by(title, ""), "fallback", "{title}");
        }
    }
}
