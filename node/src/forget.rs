//! Keeps the history of tasks bounded: what ended long enough ago is forgotten.
//!
//! The leader goes through the ended tasks of every namespace now and then, and proposes to forget those that are old,
//! by name. Looking costs the log nothing, so an idle cluster writes only when something has become old. A pass takes
//! its time: looking and forgetting have a tenth of it, and a long history takes nothing away from the work.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_proto::log::{ForgetTasks, command};
use quorate_raft::error::Fatal;
use quorate_raft::level;
use quorate_raft::state::tasks::{self, Cutoffs};

use crate::core::Core;
use crate::stop::Reason;

const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// How many passes fit into the time that a task is kept.
const PART: u32 = 8;
/// How many ended tasks one look goes through.
const LOOKED_AT: usize = 2_000;
/// How many times as long as a look took, the next one waits.
const REST: u32 = 9;

/// Starts the loop.
pub(crate) fn start(core: &Arc<Core>) {
    tokio::spawn(run(core.clone()));
}

async fn run(core: Arc<Core>) {
    let kept_ms = core.settings.config.tasks_keep_ms.min(core.settings.config.dead_keep_ms);
    let longest = (Duration::from_millis(kept_ms) / PART).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
    let mut pause = longest;
    loop {
        tokio::time::sleep(pause).await;
        pause = match pass(&core).await {
            Ok(true) => SHORTEST_PAUSE,
            Ok(false) => longest,
            Err(fatal) => return core.stop.now(Reason::Fault(fatal.to_string())),
        };
    }
}

/// Goes through the ended tasks of every namespace once. Whether some were old.
async fn pass(core: &Arc<Core>) -> Result<bool, Fatal> {
    let Some(term) = core.office() else { return Ok(false) };
    let (in_use, names) = core.replica.read(|whole| {
        let names: Vec<Arc<str>> = whole.namespaces.iter().map(|part| part.name.clone()).collect();
        (whole.namespaces.cluster.feature_level(), names)
    });
    // An older node would stop at this command.
    if level::admit(in_use, &command::Body::ForgetTasks(ForgetTasks::default())).is_err() {
        return Ok(false);
    }
    let mut found = false;
    for name in names {
        let mut after = None;
        while core.office() == Some(term) {
            let began = Instant::now();
            let (forget, next) = look(core, name.clone(), after).await?;
            if !forget.task_ids.is_empty() {
                found = true;
                let forget = command::Body::ForgetTasks(forget);
                if let Err(error) = core.proposer.propose_as_leader(&name, forget, term).await {
                    tracing::debug!(%error, "old tasks were not forgotten");
                    return Ok(found);
                }
            }
            tokio::time::sleep(began.elapsed() * REST).await;
            after = next;
            if after.is_none() {
                break;
            }
        }
    }
    Ok(found)
}

/// What is old among the next ended tasks of a namespace, and after which task to go on.
async fn look(
    core: &Arc<Core>,
    namespace: Arc<str>,
    after: Option<String>,
) -> Result<(ForgetTasks, Option<String>), Fatal> {
    let core = core.clone();
    let looking = tokio::task::spawn_blocking(move || {
        let config = &core.settings.config;
        let now_ms = core.clock.now_ms().max(core.replica.head().now_ms);
        let cutoffs = Cutoffs {
            ended_before_ms: now_ms.saturating_sub(config.tasks_keep_ms),
            dead_before_ms: now_ms.saturating_sub(config.dead_keep_ms),
        };
        // A namespace that is gone has no tasks.
        let looked =
            core.replica.look_in(&namespace, |rows| tasks::ended_before(rows, after.as_deref(), LOOKED_AT, cutoffs));
        let (task_ids, next) = looked.transpose()?.unwrap_or_default();
        let Cutoffs { ended_before_ms, dead_before_ms } = cutoffs;
        Ok::<_, Fatal>((ForgetTasks { ended_before_ms, dead_before_ms, task_ids }, next))
    });
    looking.await.map_err(|error| Fatal::Storage(format!("a look at ended tasks broke off: {error}")))?
}
