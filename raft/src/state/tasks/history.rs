//! Lists of tasks and of attempts, page by page.
//!
//! A page ends when it is full, heavy enough, or has looked at enough rows: no list holds a node up, however much
//! there is. A page may therefore be short, even empty, and still name a next one.

use std::collections::BTreeMap;

use prost::Message;
use quorate_proto::v1::{Attempt, ListAttemptsRequest, ListTasksRequest, Task, TaskStatus};

use super::{Tasks, attempts, is_dead, is_ended, load};
use crate::error::{Fatal, Outcome, invalid};
use crate::storage::keys::{Key, Table};
use crate::storage::rows::Rows;

/// The page size if the request names none.
pub const DEFAULT_PAGE: u32 = 100;
/// The largest page.
pub const MAX_PAGE: u32 = 1_000;
/// How many rows a page looks at.
pub const MAX_EXAMINED: usize = 20_000;

/// How heavy a page may get before it ends: it must fit a gRPC message.
const MAX_PAGE_BYTES: usize = 1_048_576;

/// How much a page has and has looked at.
struct Budget {
    left: usize,
    rows: usize,
    bytes: usize,
}

impl Budget {
    fn new(limit: u32, rows: usize) -> Self {
        let left = match limit {
            0 => DEFAULT_PAGE,
            limit => limit.min(MAX_PAGE),
        };
        Budget { left: left as usize, rows, bytes: MAX_PAGE_BYTES }
    }

    fn is_spent(&self) -> bool {
        self.left == 0 || self.rows == 0 || self.bytes == 0
    }

    fn take(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// What one table gives to a page of tasks.
#[derive(Default)]
struct Part {
    found: BTreeMap<String, Task>,
    /// The last id looked at, if there may be more behind it.
    cut: Option<String>,
}

impl Tasks {
    /// Tasks by id, and the next page's token. Payloads, descriptions and results are left out.
    pub fn list(&self, rows: &dyn Rows, req: &ListTasksRequest) -> Outcome<(Vec<Task>, String)> {
        let parts = sources(req).into_iter().map(|source| part(rows, source, req)).collect::<Result<Vec<_>, _>>()?;
        // Beyond the earlier cut, one of the tables was not looked at.
        let horizon = parts.iter().filter_map(|part| part.cut.clone()).min();
        let found: BTreeMap<String, Task> = parts.into_iter().flat_map(|part| part.found).collect();
        let mut tasks: Vec<Task> = (found.into_iter())
            .take_while(|(id, _)| horizon.as_ref().is_none_or(|horizon| id <= horizon))
            .map(|(_, task)| task)
            .collect();
        let limit = Budget::new(req.limit, 0).left;
        if tasks.len() > limit {
            tasks.truncate(limit);
            let next = tasks.last().map(|task| task.id.clone()).unwrap_or_default();
            return Ok((tasks, next));
        }
        Ok((tasks, horizon.unwrap_or_default()))
    }

    /// Attempts of one task, oldest first; or of one agent, newest first; or of all tasks, by task. And the next page's
    /// token.
    pub fn attempts(&self, rows: &dyn Rows, req: &ListAttemptsRequest) -> Outcome<(Vec<Attempt>, String)> {
        let by_agent = req.task_id.is_empty() && !req.agent_id.is_empty();
        let prefix = match (req.task_id.as_str(), req.agent_id.as_str()) {
            ("", "") => Key::table(Table::Attempt),
            ("", agent_id) => attempts::agent_key(agent_id),
            (task_id, _) => Key::table(Table::Attempt).text(task_id),
        };
        let from = resume(&prefix, &req.page_token)?;
        let mut budget = Budget::new(req.limit, MAX_EXAMINED);
        let mut found = Vec::new();
        let (mut last, mut next) = (Vec::new(), String::new());
        rows.scan(&from, &prefix.prefix_end(), &mut |key, value| {
            if budget.is_spent() {
                next = to_hex(&last);
                return Ok(false);
            }
            budget.rows -= 1;
            last = key.to_vec();
            let attempt = if by_agent {
                let (task_id, number) = attempts::split_agent_value(value)?;
                attempts::get(rows, task_id, number)?
            } else {
                Attempt::decode(value)?
            };
            if attempt_matches(req, &attempt) {
                budget.take(attempt.encoded_len());
                found.push(attempt);
            }
            Ok(true)
        })?;
        Ok((found, next))
    }
}

/// Where tasks are looked for: in rows of tasks, or under an index of their ids.
enum Source {
    Rows(Key),
    Ids(Key),
}

/// The smallest tables that hold everything that may match.
fn sources(req: &ListTasksRequest) -> Vec<Source> {
    if !req.parent_id.is_empty() {
        return vec![Source::Ids(Key::table(Table::Child).text(&req.parent_id))];
    }
    let asked = || req.statuses.iter().map(|status| TaskStatus::try_from(*status).unwrap_or_default());
    if !req.statuses.is_empty() && asked().all(is_dead) {
        return vec![Source::Ids(Key::table(Table::DeadTask))];
    }
    let wants = |ended: bool| req.statuses.is_empty() || asked().any(|status| is_ended(status) == ended);
    let live = wants(false).then(|| Source::Rows(Key::table(Table::LiveTask)));
    let done = wants(true).then(|| Source::Rows(Key::table(Table::DoneTask)));
    live.into_iter().chain(done).collect()
}

fn part(rows: &dyn Rows, source: Source, req: &ListTasksRequest) -> Result<Part, Fatal> {
    let (Source::Rows(prefix) | Source::Ids(prefix)) = &source;
    let mut from = prefix.as_bytes().to_vec();
    if !req.page_token.is_empty() {
        from = after(prefix.clone().text(&req.page_token).as_bytes());
    }
    let mut budget = Budget::new(req.limit, MAX_EXAMINED / 2);
    let mut part = Part::default();
    let mut last = String::new();
    rows.scan(&from, &prefix.prefix_end(), &mut |key, value| {
        if budget.is_spent() {
            part.cut = Some(std::mem::take(&mut last));
            return Ok(false);
        }
        budget.rows -= 1;
        let task = match &source {
            Source::Rows(_) => Task::decode(value)?,
            Source::Ids(prefix) => match load(rows, last_text(prefix, key)?)? {
                Some(task) => task,
                // Purged, while its parent stays.
                None => return Ok(true),
            },
        };
        last.clone_from(&task.id);
        if task_matches(req, &task) {
            budget.take(task.encoded_len());
            part.found.insert(task.id.clone(), task);
        }
        Ok(true)
    })?;
    Ok(part)
}

fn task_matches(req: &ListTasksRequest, task: &Task) -> bool {
    let holder = task.claim.as_ref().map_or("", |claim| claim.agent_id.as_str());
    let Some(spec) = &task.spec else { return false };
    let pin = spec.agent_id.as_str();
    let named = |wanted: &str, is: &str| wanted.is_empty() || wanted == is;
    (req.statuses.is_empty() || req.statuses.contains(&task.status))
        && (req.agent_id.is_empty() || req.agent_id == holder || req.agent_id == pin)
        && named(&req.project, &spec.project)
        && named(&req.epic, &spec.epic)
        && named(&req.feature, &spec.feature)
        && named(&req.parent_id, &task.parent_id)
}

fn attempt_matches(req: &ListAttemptsRequest, attempt: &Attempt) -> bool {
    (req.agent_id.is_empty() || req.agent_id == attempt.agent_id)
        && (req.agent_type.is_empty() || req.agent_type == attempt.agent_type)
        && (req.outcome == 0 || req.outcome == attempt.outcome)
        && attempt.started_at_ms >= req.started_from_ms
        && (req.started_before_ms == 0 || attempt.started_at_ms < req.started_before_ms)
}

/// The id that ends a key.
fn last_text<'k>(prefix: &Key, key: &'k [u8]) -> Result<&'k str, Fatal> {
    let text = key.strip_prefix(prefix.as_bytes()).and_then(|rest| rest.strip_suffix(&[0_u8]));
    text.and_then(|text| std::str::from_utf8(text).ok())
        .ok_or_else(|| Fatal::Corrupt(format!("not a key that ends with an id: {key:?}")))
}

/// Where a page of attempts starts: its token is the last key the page before looked at.
fn resume(prefix: &Key, page_token: &str) -> Outcome<Vec<u8>> {
    if page_token.is_empty() {
        return Ok(prefix.as_bytes().to_vec());
    }
    match from_hex(page_token) {
        Some(key) if key.starts_with(prefix.as_bytes()) => Ok(after(&key)),
        _ => Err(invalid("page_token", "page_token must be the one that the page before named, for the same filter")),
    }
}

/// The smallest key after this one.
fn after(key: &[u8]) -> Vec<u8> {
    let mut after = key.to_vec();
    after.push(0);
    after
}

fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|half| char::from(DIGITS[usize::from(half)])).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let halves: Vec<u8> =
        text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect::<Option<_>>()?;
    let pairs = halves.chunks_exact(2);
    pairs.remainder().is_empty().then(|| pairs.map(|pair| (pair[0] << 4) | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_tokens_come_back_as_they_went() {
        let key = [0x32, b'a', 0, 255, 16];
        assert_eq!(to_hex(&key), "326100ff10");
        assert_eq!(from_hex("326100ff10"), Some(key.to_vec()));
        assert_eq!(from_hex("326"), None);
        assert_eq!(from_hex("zz"), None);
    }

    #[test]
    fn a_token_of_another_list_is_refused() {
        let prefix = Key::table(Table::Attempt).text("a");
        assert!(resume(&prefix, "").is_ok());
        assert!(resume(&prefix, &to_hex(prefix.as_bytes())).is_ok());
        assert!(resume(&prefix, &to_hex(b"other")).is_err());
    }
}
