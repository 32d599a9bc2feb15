//! The routing table: ordered patterns, then the epic, then a fallback, and the first that fits names the agent type.
//!
//! Every replica routes for itself while it applies, so a match must not depend on anything but the table and the text.
//! Patterns are therefore read without Unicode tables, which change from one version to the next: `\w`, `\b`, `\d`,
//! `\s` and the ignoring of case know ASCII only; other letters stand for themselves. What compiles, and to what size,
//! is the regex library's word, so its version is pinned exactly.
//!
//! Invariant: `patterns` has one compiled pattern a rule, in the order of the rules; it follows from the table, so two
//! of these are equal if their tables are.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use quorate_proto::v1::{RoutingTable, SetRoutesRequest, SetRoutesResponse};
use regex::bytes::{Regex, RegexBuilder};

use super::default_routes;
use crate::error::{Error, Fatal, Outcome, invalid, precondition};
use crate::state::{Ctx, MAX_ID_BYTES, Out, Rooms, check_id};
use crate::storage::keys::{Key, Table};

/// The most rules of a table.
pub const MAX_RULES: usize = 256;
/// The most epics of a table.
pub const MAX_EPICS: usize = 256;
/// The longest pattern.
pub const MAX_PATTERN_BYTES: usize = 1_024;

/// What a pattern may compile to. This is where `(a{1000}){1000}` ends.
const MAX_COMPILED_BYTES: usize = 1 << 20;
/// How much of a task's text the patterns see: a submission of a thousand tasks is routed on every replica.
const MAX_TEXT_BYTES: usize = 4_096;
/// What a stored pattern may compile to: more, so that a later library that needs more for the same pattern still opens
/// the state.
const MAX_STORED_BYTES: usize = 16 << 20;
/// How much of what a pattern found is shown.
const MAX_SHOWN_CHARS: usize = 200;

/// The table in force, ready to be asked.
#[derive(Debug, Clone)]
pub struct Routes {
    table: RoutingTable,
    patterns: Arc<[Regex]>,
}

/// Where a text goes, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routed {
    /// Empty: nothing fits, and the table has no fallback.
    pub agent_type: String,
    /// `rule:<name>`, `epic:<epic>`, `fallback` or `none`.
    pub by: String,
    /// What the rule's pattern found in the lower-cased text; its beginning, if it is long.
    pub matched: String,
    /// Names of the rules that came before and did not match.
    pub tried: Vec<String>,
}

/// Compiled once a process. The fallback is never seen: a test holds the table to what [`Routes::new`] accepts.
static SHIPPED: LazyLock<Routes> = LazyLock::new(|| {
    let empty = |_| Routes { table: RoutingTable::default(), patterns: Arc::from(Vec::new()) };
    Routes::new(default_routes::table()).unwrap_or_else(empty)
});

impl Default for Routes {
    /// The table that ships.
    fn default() -> Self {
        SHIPPED.clone()
    }
}

impl PartialEq for Routes {
    fn eq(&self, other: &Self) -> bool {
        self.table == other.table
    }
}

impl Eq for Routes {}

impl Routes {
    /// Checks a table and compiles its patterns.
    pub fn new(table: RoutingTable) -> Outcome<Self> {
        check(&table)?;
        let patterns = compile(&table, MAX_COMPILED_BYTES)?;
        Ok(Routes { table, patterns })
    }

    /// A table from its row.
    pub(super) fn stored(table: RoutingTable) -> Result<Self, Fatal> {
        match compile(&table, MAX_STORED_BYTES) {
            Ok(patterns) => Ok(Routes { table, patterns }),
            Err(Error::Rejected(why)) => Err(Fatal::Corrupt(format!("the stored routing table: {}", why.message))),
            Err(Error::Fatal(fatal)) => Err(fatal),
        }
    }

    /// The table itself.
    pub fn table(&self) -> &RoutingTable {
        &self.table
    }

    /// The agent type for a task. The pattern sees the title, a line break, and the description, 4,096 bytes in all.
    pub fn route(&self, title: &str, description: &str, epic: &str) -> Routed {
        let mut text = format!("{title}\n{description}");
        text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
        text.make_ascii_lowercase();
        let mut tried = Vec::new();
        for (rule, pattern) in self.table.rules.iter().zip(self.patterns.iter()) {
            if let Some(found) = pattern.find(text.as_bytes()) {
                let matched = String::from_utf8_lossy(found.as_bytes()).chars().take(MAX_SHOWN_CHARS).collect();
                let by = format!("rule:{}", rule.name);
                return Routed { agent_type: rule.agent_type.clone(), by, matched, tried };
            }
            tried.push(rule.name.clone());
        }
        let of_epic = self.table.epics.iter().find(|route| route.epic == epic);
        let (agent_type, by) = match of_epic {
            Some(route) => (route.agent_type.clone(), format!("epic:{epic}")),
            None if self.table.fallback_agent_type.is_empty() => (String::new(), "none".to_owned()),
            None => (self.table.fallback_agent_type.clone(), "fallback".to_owned()),
        };
        Routed { agent_type, by, matched: String::new(), tried }
    }
}

/// Replaces the table as a whole.
pub fn set_routes(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: SetRoutesRequest,
) -> Outcome<SetRoutesResponse> {
    let Some(mut table) = req.table else {
        return Err(invalid("table", "table must be given"));
    };
    let version = rooms.dispatch.routes.table.version;
    if let Some(expected) = req.if_version
        && expected != version
    {
        let message = format!("if_version is {expected}, but the table has version {version}; look at it again");
        return Err(precondition("if_version", message));
    }
    table.version = version.saturating_add(1);
    let routes = Routes::new(table)?;
    out.txn.put(&Key::table(Table::Routes), routes.table());
    let table = routes.table().clone();
    rooms.dispatch.routes = routes;
    Ok(SetRoutesResponse { table: Some(table), rev: ctx.rev })
}

fn check(table: &RoutingTable) -> Outcome<()> {
    for (name, count, most) in [("rules", table.rules.len(), MAX_RULES), ("epics", table.epics.len(), MAX_EPICS)] {
        if count > most {
            return Err(invalid(name, format!("{name} must be at most {most}; got {count}")));
        }
    }
    let mut names = BTreeSet::new();
    for (i, rule) in table.rules.iter().enumerate() {
        let field = format!("rules[{i}].name");
        check_id(&field, &rule.name)?;
        if !names.insert(&rule.name) {
            return Err(invalid(&field, format!("{field} must differ from the others; {:?} is taken", rule.name)));
        }
        let field = format!("rules[{i}].pattern");
        // An empty pattern is found in every text.
        if !(1..=MAX_PATTERN_BYTES).contains(&rule.pattern.len()) {
            let message = format!("{field} must be 1 to {MAX_PATTERN_BYTES} bytes; got {}", rule.pattern.len());
            return Err(invalid(&field, message));
        }
        check_id(&format!("rules[{i}].agent_type"), &rule.agent_type)?;
    }
    let mut epics = BTreeSet::new();
    for (i, route) in table.epics.iter().enumerate() {
        let field = format!("epics[{i}].epic");
        if !(1..=MAX_ID_BYTES).contains(&route.epic.len()) {
            let message = format!("{field} must be 1 to {MAX_ID_BYTES} bytes; got {}", route.epic.len());
            return Err(invalid(&field, message));
        }
        if !epics.insert(&route.epic) {
            return Err(invalid(&field, format!("{field} must differ from the others; {:?} is taken", route.epic)));
        }
        check_id(&format!("epics[{i}].agent_type"), &route.agent_type)?;
    }
    if table.fallback_agent_type.is_empty() {
        return Ok(());
    }
    check_id("fallback_agent_type", &table.fallback_agent_type)
}

fn compile(table: &RoutingTable, size_limit: usize) -> Outcome<Arc<[Regex]>> {
    let patterns = table.rules.iter().enumerate().map(|(i, rule)| {
        let mut builder = RegexBuilder::new(&rule.pattern);
        builder.unicode(false).case_insensitive(true).size_limit(size_limit).build().map_err(|error| {
            let field = format!("rules[{i}].pattern");
            let message = format!("{field} must be a regular expression of modest size: {}", why(&error));
            invalid(&field, message)
        })
    });
    patterns.collect()
}

/// The library draws a picture of several lines; its last one says what is wrong.
fn why(error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(limit) => format!("compiled, it would need more than {limit} bytes"),
        other => {
            let text = other.to_string();
            let last = text.lines().last().unwrap_or_default();
            last.strip_prefix("error: ").unwrap_or(last).to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::{EpicRoute, RouteRule};

    use super::*;

    fn rule(name: &str, pattern: &str) -> RouteRule {
        RouteRule { name: name.to_owned(), pattern: pattern.to_owned(), agent_type: "one".to_owned() }
    }

    fn table(rules: &[RouteRule]) -> RoutingTable {
        RoutingTable { rules: rules.to_vec(), ..RoutingTable::default() }
    }

    fn refusal(table: RoutingTable) -> (String, String) {
        match Routes::new(table) {
            Err(Error::Rejected(rejection)) => (rejection.field, rejection.message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_rule_that_is_found_wins_and_the_ones_before_are_named() {
        let routes = Routes::new(table(&[rule("a", "alpha"), rule("b", "beta|gamma"), rule("c", "beta")])).unwrap();
        let routed = routes.route("A title", "with BETA in its description", "");
        assert_eq!((routed.by.as_str(), routed.matched.as_str()), ("rule:b", "beta"));
        assert_eq!(routed.tried, ["a"]);
        assert_eq!(routes.route("nothing", "", "").tried, ["a", "b", "c"]);
    }

    #[test]
    fn epics_come_after_rules_and_the_fallback_after_epics() {
        let mut table = table(&[rule("a", "alpha")]);
        table.epics = vec![EpicRoute { epic: "E001".to_owned(), agent_type: "two".to_owned() }];
        let routes = Routes::new(table.clone()).unwrap();
        assert_eq!(routes.route("alpha", "", "E001").by, "rule:a");
        assert_eq!(routes.route("other", "", "E001").by, "epic:E001");
        assert_eq!(routes.route("other", "", "E002").by, "none");
        assert_eq!(routes.route("other", "", "").agent_type, "");
        table.fallback_agent_type = "three".to_owned();
        let routed = Routes::new(table).unwrap().route("other", "", "E002");
        assert_eq!((routed.by.as_str(), routed.agent_type.as_str()), ("fallback", "three"));
    }

    #[test]
    fn case_is_ignored_in_ascii_and_other_letters_stand_for_themselves() {
        let routes = Routes::new(table(&[rule("a", r"\bDeploy\w+"), rule("b", "größe")])).unwrap();
        assert_eq!(routes.route("DEPLOYMENT of it", "", "").matched, "deployment");
        assert_eq!(routes.route("Die größe", "", "").by, "rule:b");
        assert_eq!(routes.route("Die GRÖßE", "", "").by, "none");
    }

    #[test]
    fn what_is_shown_of_a_long_find_is_its_beginning() {
        let routes = Routes::new(table(&[rule("all", "(?s).*")])).unwrap();
        assert_eq!(routes.route(&"ä".repeat(5_000), "", "").matched.chars().count(), MAX_SHOWN_CHARS);
    }

    #[test]
    fn a_bad_pattern_is_named_and_explained() {
        let (field, message) = refusal(table(&[rule("a", "fine"), rule("b", "(unclosed")]));
        assert_eq!(field, "rules[1].pattern");
        assert!(message.contains("unclosed group"), "{message}");
        let (field, message) = refusal(table(&[rule("a", "(?:a{1000}){1000}")]));
        assert_eq!(field, "rules[0].pattern");
        assert!(message.contains("1048576 bytes"), "{message}");
        assert_eq!(refusal(table(&[rule("a", "")])).0, "rules[0].pattern");
        assert_eq!(refusal(table(&[rule("a", &"a".repeat(MAX_PATTERN_BYTES + 1))])).0, "rules[0].pattern");
        assert_eq!(refusal(table(&[rule("a", r"\p{Greek}")])).0, "rules[0].pattern");
    }

    #[test]
    fn names_are_unique_and_numbers_bounded() {
        assert_eq!(refusal(table(&[rule("a", "x"), rule("a", "y")])).0, "rules[1].name");
        assert_eq!(refusal(table(&vec![rule("a", "x"); MAX_RULES + 1])).0, "rules");
        let nobody = RouteRule { agent_type: "two words".to_owned(), ..rule("a", "x") };
        assert_eq!(refusal(table(&[nobody])).0, "rules[0].agent_type");
        let epic = EpicRoute { epic: "E001".to_owned(), agent_type: "one".to_owned() };
        let epics = vec![epic.clone(), epic];
        assert_eq!(refusal(RoutingTable { epics, ..RoutingTable::default() }).0, "epics[1].epic");
        let fallback_agent_type = "two words".to_owned();
        assert_eq!(refusal(RoutingTable { fallback_agent_type, ..RoutingTable::default() }).0, "fallback_agent_type");
    }

    #[test]
    fn a_stored_table_that_does_not_compile_is_a_fault() {
        assert!(matches!(Routes::stored(table(&[rule("a", "(")])), Err(Fatal::Corrupt(_))));
        assert_eq!(Routes::stored(default_routes::table()).unwrap(), Routes::default());
    }
}
