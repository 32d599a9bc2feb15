//! Samples: how the work stood at the end of each minute in which something changed.
//!
//! The minute being filled is a row, and memory holds just what that row says: its counts are those of ended tasks. What
//! lives is counted beside it, from the tasks' own rows at open. The first change of a later minute turns the two into the
//! sample of the minute that is over, before it changes anything: its counts are exact. The number of agents is the one at
//! the minute's last end of a task or attempt, or at its first change if none ended: agents that come and go write nothing.

use std::collections::BTreeSet;

use prost::Message;
use quorate_proto::v1::{Sample, StatusCounts, TaskStatus};

use super::{Step, counts};
use crate::error::Fatal;
use crate::state::{Ctx, Out};
use crate::storage::keys::{Key, Table};
use crate::storage::rows::{self, Rows};

/// How many samples are kept at most: one a minute for seven days.
pub const KEPT_SAMPLES: u64 = 10_080;

const MINUTE_MS: u64 = 60_000;
/// How many old samples one command may remove. More of them come due only after a pause, and the next ones take them.
const FORGOTTEN_AT_ONCE: usize = 100;

/// The minute being filled, and which samples are kept.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Samples {
    /// As its row has it; `None` before the first task.
    filling: Option<Sample>,
    /// Tasks that have not ended.
    live: StatusCounts,
    /// The minutes that have a row.
    kept: BTreeSet<u64>,
}

impl Samples {
    /// All but the live tasks, which [`Samples::count_live`] takes one by one.
    pub(super) fn rebuild(rows: &dyn Rows) -> Result<Self, Fatal> {
        let mut kept = BTreeSet::new();
        rows::scan_prefix::<Sample>(rows, &Key::table(Table::Sample), |_, sample| {
            kept.insert(sample.at_ms);
            Ok(true)
        })?;
        Ok(Samples { filling: rows::get(rows, &filling_key())?, live: StatusCounts::default(), kept })
    }

    pub(super) fn count_live(&mut self, status: TaskStatus) {
        counts::add(&mut self.live, status);
    }

    pub(super) fn totals(&self) -> StatusCounts {
        let mut totals = self.live;
        if let Some(ended) = self.filling.and_then(|filling| filling.counts) {
            counts::add_all(&mut totals, &ended);
        }
        totals
    }

    pub(super) fn completed_unaided(&self) -> u64 {
        self.filling.map_or(0, |filling| filling.completed_unaided)
    }

    /// A task's status changed.
    pub(super) fn moved(&mut self, out: &mut Out<'_, '_>, ctx: &Ctx, agents: u32, step: Step) {
        let turned = self.turn(out, ctx, agents);
        if !counts::is_ended(step.from) {
            counts::take(&mut self.live, step.from);
        }
        if !counts::is_ended(step.to) {
            counts::add(&mut self.live, step.to);
        }
        if counts::is_ended(step.from) || counts::is_ended(step.to) {
            self.fill(out, agents, |filling| count_ended(filling, step));
        } else if turned {
            self.fill(out, agents, |_| ());
        }
    }

    /// An attempt ended.
    pub(super) fn attempt_ended(&mut self, out: &mut Out<'_, '_>, ctx: &Ctx, agents: u32) {
        self.turn(out, ctx, agents);
        self.fill(out, agents, |filling| filling.attempts_ended = filling.attempts_ended.saturating_add(1));
    }

    /// The samples in `[from_ms, before_ms)`, oldest first, and the minute being filled as it stands.
    pub(super) fn history(
        &self,
        rows: &dyn Rows,
        from_ms: u64,
        before_ms: u64,
        limit: usize,
    ) -> Result<Vec<Sample>, Fatal> {
        let mut found = Vec::new();
        rows.scan(sample_key(from_ms).as_bytes(), sample_key(before_ms).as_bytes(), &mut |_, value| {
            if found.len() >= limit {
                return Ok(false);
            }
            found.push(Sample::decode(value)?);
            Ok(true)
        })?;
        if let Some(filling) = self.filling
            && (from_ms..before_ms).contains(&filling.at_ms)
            && found.len() < limit
        {
            found.push(Sample { counts: Some(self.totals()), ..filling });
        }
        Ok(found)
    }

    /// Begins the minute of this command, if it is another than the one being filled. The caller writes it.
    fn turn(&mut self, out: &mut Out<'_, '_>, ctx: &Ctx, agents: u32) -> bool {
        let at_ms = ctx.now_ms - ctx.now_ms % MINUTE_MS;
        let next = match self.filling {
            Some(filling) if filling.at_ms == at_ms => return false,
            Some(over) => {
                self.keep(out, &Sample { counts: Some(self.totals()), ..over });
                Sample { at_ms, agents, attempts_ended: 0, ..over }
            }
            None => Sample { at_ms, agents, counts: Some(StatusCounts::default()), ..Sample::default() },
        };
        self.filling = Some(next);
        true
    }

    /// Changes the minute being filled and writes it.
    fn fill(&mut self, out: &mut Out<'_, '_>, agents: u32, change: impl FnOnce(&mut Sample)) {
        if let Some(filling) = &mut self.filling {
            filling.agents = agents;
            change(filling);
            out.txn.put(&filling_key(), filling);
        }
    }

    fn keep(&mut self, out: &mut Out<'_, '_>, sample: &Sample) {
        out.txn.put(&sample_key(sample.at_ms), sample);
        self.kept.insert(sample.at_ms);
        let oldest_kept_ms = sample.at_ms.saturating_sub((KEPT_SAMPLES - 1) * MINUTE_MS);
        for _ in 0..FORGOTTEN_AT_ONCE {
            match self.kept.first().copied() {
                Some(oldest) if oldest < oldest_kept_ms => {
                    self.kept.remove(&oldest);
                    out.txn.delete(&sample_key(oldest));
                }
                _ => break,
            }
        }
    }
}

/// A task became an ended one, or was one and is no more.
fn count_ended(filling: &mut Sample, step: Step) {
    let ended = filling.counts.get_or_insert_default();
    if counts::is_ended(step.from) {
        counts::take(ended, step.from);
    }
    if counts::is_ended(step.to) {
        counts::add(ended, step.to);
    }
    if step.touched {
        return;
    }
    let unaided = &mut filling.completed_unaided;
    if step.from == TaskStatus::Completed {
        *unaided = unaided.saturating_sub(1);
    }
    if step.to == TaskStatus::Completed {
        *unaided = unaided.saturating_add(1);
    }
}

fn sample_key(at_ms: u64) -> Key {
    Key::table(Table::Sample).number(at_ms)
}

fn filling_key() -> Key {
    Key::table(Table::ProgressTotals)
}
