//! What the attempts of tasks say afterwards: all of them, by task, and what must hold of any task's.
//!
//! Deliberately absent: what a test expects beyond that.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use quorate_client::Client;
use quorate_client::v1::{Attempt, AttemptOutcome, ListAttemptsRequest};

/// The attempts of each task, oldest first.
pub type History = BTreeMap<String, Vec<Attempt>>;

/// Every attempt there is, by linearizable pages.
pub async fn read(client: &Client) -> Result<History> {
    let mut history = History::new();
    let mut request = ListAttemptsRequest { limit: 1_000, ..Default::default() };
    loop {
        let page = client.tasks().attempts(request.clone()).await?;
        for attempt in page.attempts {
            history.entry(attempt.task_id.clone()).or_default().push(attempt);
        }
        if page.next_page_token.is_empty() {
            return Ok(history);
        }
        request.page_token = page.next_page_token;
    }
}

/// One task's attempts. They are numbered from 1, one after another, under rising tokens, and never two at once.
pub fn of<'a>(history: &'a History, task_id: &str) -> Result<&'a [Attempt]> {
    let attempts = history.get(task_id).with_context(|| format!("{task_id} was never tried"))?;
    for (attempt, number) in attempts.iter().zip(1_u32..) {
        ensure!(attempt.number == number, "attempt {number} of {task_id} is missing: {attempts:?}");
    }
    for pair in attempts.windows(2) {
        let in_turn = pair[0].token < pair[1].token && pair[0].ended_at_ms <= pair[1].started_at_ms;
        ensure!(in_turn && pair[0].ended_at_ms > 0, "two attempts of {task_id} at once: {pair:?}");
    }
    Ok(attempts)
}

/// The first attempt at a task, and the one that completed it, which must be the last.
pub fn completed_once<'a>(history: &'a History, task_id: &str) -> Result<(&'a Attempt, &'a Attempt)> {
    let attempts = of(history, task_id)?;
    let completed = attempts.iter().filter(|attempt| attempt.outcome() == AttemptOutcome::Completed).count();
    match attempts {
        [first, ..] if completed == 1 => {
            let last = attempts.last().unwrap_or(first);
            ensure!(last.outcome() == AttemptOutcome::Completed, "{task_id} was tried after it was done: {attempts:?}");
            Ok((first, last))
        }
        _ => bail!("{task_id} was completed {completed} times: {attempts:?}"),
    }
}

/// How many attempts ended in which way.
pub fn outcomes(history: &History) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for attempt in history.values().flatten() {
        let name = attempt.outcome().as_str_name().trim_start_matches("ATTEMPT_OUTCOME_");
        *counts.entry(name).or_default() += 1;
    }
    counts
}
