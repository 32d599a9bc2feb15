//! Who works: one life after another, each with connections, a session and an agent of its own.
//!
//! | what becomes of a task | how |
//! |---|---|
//! | finished | completed, failed on purpose or released; now and then the same is said twice, as one request |
//! | overslept | the session is not kept alive; the worker finishes after its end, under the old token |
//! | forgotten | the session is not kept alive, and nobody says anything |
//! | cut short | the life ends from outside, at any moment, and closes nothing |
//!
//! Deliberately absent: the library's worker. It hides the calls that are to be recorded.

use std::time::Duration;

use anyhow::Result;
use quorate_client::v1::{FinishKind, FinishTaskRequest, RegisterAgentRequest, RequestId};
use quorate_client::{Client, Error, Session};
use serde_json::json;

use super::{DOOMED, PATIENCE, agent_type, answer_of, capability, queue};
use crate::coordination::{Mortal, told};
use crate::record::{Answer, Process};
use crate::rng::Rng;
use crate::workload::Context;

/// How soon the cluster misses a worker that fell silent.
const TTL: Duration = Duration::from_millis(2_500);
/// How long a claim waits for a task.
const WAIT: Duration = Duration::from_millis(300);
/// More than one: a claim whose answer was lost takes up room.
const CAPACITY: u32 = 4;
/// How often the same finish is sent while nobody knows what came of it.
const TRIES: u32 = 3;

/// Works until told to stop; lives end in every way.
pub(super) async fn perform(context: Context, worker: u64) -> Result<()> {
    lives(context, worker, false).await
}

/// Works until told to stop; nobody dies or fails on purpose.
pub(super) async fn perform_calmly(context: Context, worker: u64) -> Result<()> {
    lives(context, worker, true).await
}

async fn lives(context: Context, worker: u64, is_calm: bool) -> Result<()> {
    let mut rng = context.rng(worker);
    let mut number = 0_u64;
    while context.pause(&mut rng).await {
        number += 1;
        let name = format!("{}-a{worker}.{number}", context.prefix);
        let life = Mortal::start(live(context.clone(), worker, name, rng.next_u64(), is_calm))?;
        let span = rng.millis(2_000, 15_000);
        tokio::select! {
            ended = life.end() => ended?,
            // The life is dropped where it stands.
            () = tokio::time::sleep(span), if !is_calm => {}
        }
    }
    Ok(())
}

/// One life. Whatever the cluster does not allow ends it, and another begins.
async fn live(context: Context, worker: u64, name: String, seed: u64, is_calm: bool) -> Result<()> {
    let client = context.client(worker, PATIENCE)?;
    let Ok(session) = client.sessions().open(TTL).await else { return Ok(()) };
    let agent = RegisterAgentRequest {
        agent_id: name.clone(),
        agent_type: agent_type(&context),
        capabilities: vec![capability(&context)],
        capacity: CAPACITY,
        ..Default::default()
    };
    if client.agents().register(&session, agent).await.is_err() {
        return Ok(());
    }
    let (process, queue) = (context.recorder.process(), queue(&context));
    let mut performer = Performer { context, client, name, queue, process, rng: Rng::new(seed), is_calm };
    performer.work(session).await;
    Ok(())
}

/// A task that was given to this worker.
#[derive(Debug)]
struct Held {
    id: String,
    fence: u64,
    is_doomed: bool,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Finished { kind: FinishKind, twice: bool },
    Overslept,
    Forgotten,
}

struct Performer {
    context: Context,
    client: Client,
    name: String,
    queue: String,
    process: Process,
    rng: Rng,
    is_calm: bool,
}

impl Performer {
    async fn work(&mut self, session: Session) {
        while session.is_alive() && self.context.pause(&mut self.rng).await {
            let (answer, held) = self.claim(&session).await;
            if answer == Answer::Info {
                // It may have been given something of which it does not know: that comes back when the session ends.
                return;
            }
            let Some(held) = held else { continue };
            match self.fate(&held) {
                Fate::Finished { kind, twice } => self.finish(&session, &held, kind, twice).await,
                Fate::Overslept => {
                    drop(session);
                    return self.oversleep(&held).await;
                }
                Fate::Forgotten => return,
            }
        }
        if self.rng.below(2) == 0 {
            // If it fails, the session ends by itself.
            let _ = session.close().await;
        }
    }

    async fn claim(&mut self, session: &Session) -> (Answer, Option<Held>) {
        let mut held = None;
        let (client, name) = (&self.client, &self.name);
        let call = async {
            let claimed = match client.tasks().claim(session, name, 1, WAIT).await {
                Ok(claimed) => claimed,
                Err(error) => return answer_of(&error),
            };
            let Some(task) = claimed.tasks.into_iter().next() else {
                return Answer::ok(json!({ "id": null, "fence": 0 }));
            };
            let fence = task.claim.as_ref().map_or(0, |claim| claim.token);
            let is_doomed = task.spec.as_ref().is_some_and(|spec| spec.title == DOOMED);
            let answer = Answer::at(claimed.rev, json!({ "id": task.id, "fence": fence }));
            held = Some(Held { id: task.id, fence, is_doomed });
            answer
        };
        let answer = self.process.run("claim", &self.queue, json!({ "worker": name }), None, call).await;
        (answer, held)
    }

    fn fate(&mut self, held: &Held) -> Fate {
        let twice = self.rng.below(8) == 0;
        if held.is_doomed {
            return Fate::Finished { kind: FinishKind::Failed, twice };
        }
        if self.is_calm {
            return Fate::Finished { kind: FinishKind::Completed, twice };
        }
        match self.rng.below(100) {
            0..4 => Fate::Overslept,
            4..6 => Fate::Forgotten,
            6..14 => Fate::Finished { kind: FinishKind::Failed, twice },
            14..17 => Fate::Finished { kind: FinishKind::Released, twice },
            _ => Fate::Finished { kind: FinishKind::Completed, twice },
        }
    }

    /// Says it until it is heard, and once more if it is to be said twice. With a request id the cluster recognizes the
    /// request, without one the token.
    async fn finish(&mut self, session: &Session, held: &Held, kind: FinishKind, twice: bool) {
        self.context.pause(&mut self.rng).await;
        let request = (self.rng.below(2) == 0).then(|| session.next_request());
        let mut again = twice;
        for _ in 0..TRIES {
            let answer = self.complete(held, kind, request.clone()).await;
            if answer != Answer::Info && !std::mem::take(&mut again) {
                break;
            }
        }
        if let Some(request) = request {
            session.done(request.sequence);
        }
    }

    /// Sleeps until the session must have ended, and says that it is done.
    async fn oversleep(&mut self, held: &Held) {
        let mut stop = self.context.stop.clone();
        tokio::select! {
            () = told(&mut stop) => {}
            () = tokio::time::sleep(TTL + self.rng.millis(0, 3_000)) => {}
        }
        self.complete(held, FinishKind::Completed, None).await;
    }

    async fn complete(&mut self, held: &Held, kind: FinishKind, request: Option<RequestId>) -> Answer {
        let arg = json!({ "id": held.id, "fence": held.fence, "outcome": outcome(kind) });
        // Without an id the answer may be of the second delivery, and its rev not that of the effect.
        let is_identified = request.is_some();
        let (task_id, token) = (held.id.clone(), held.fence);
        let finish = FinishTaskRequest { task_id, token, kind: kind as i32, request, ..Default::default() };
        let client = &self.client;
        let call = async move {
            match client.tasks().finish(None, finish).await {
                Ok(answer) if is_identified => Answer::at(answer.rev, json!({ "accepted": true })),
                Ok(_) => Answer::ok(json!({ "accepted": true })),
                Err(Error::Fenced { .. }) => Answer::ok(json!({ "accepted": false })),
                Err(error) => answer_of(&error),
            }
        };
        self.process.run("complete", &self.queue, arg, None, call).await
    }
}

fn outcome(kind: FinishKind) -> &'static str {
    match kind {
        FinishKind::Failed | FinishKind::FailedPermanently => "failed",
        FinishKind::Released => "released",
        FinishKind::Cancelled => "cancelled",
        FinishKind::Completed | FinishKind::Unspecified => "completed",
    }
}
