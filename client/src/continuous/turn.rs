//! One event: from the state that it finds to the transaction that ends it.

use std::panic::AssertUnwindSafe;

use bytes::Bytes;
use futures::FutureExt;
use quorate_proto::v1::{
    AckKind, BusMessage, KvPutRequest, PublishRequest, RejectionCode, TransactOp, TransactRequest, TransactResponse,
    transact_op, transact_result,
};
use tokio::time::sleep;

use super::memory::{Memory, State};
use super::{ContinuousAgent, FIRST_PAUSE, Step};
use crate::bus::Delivery;
use crate::error::Error;
use crate::requests::{insist, may_pass, session_over};
use crate::sessions::Session;

/// How often an event is begun anew because somebody else wrote the state meanwhile, before it goes back.
const MOST_RELOADS: usize = 3;

/// How an event ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turned {
    Handled,
    Failed,
    Superseded,
}

/// What became of the transaction.
#[derive(Debug, PartialEq, Eq)]
enum Committed {
    /// The state's `mod_rev`.
    Done(u64),
    /// The state is another one by now.
    Stale,
    /// The event is somebody else's, or nobody knows.
    Superseded,
    /// It cannot be taken as it is.
    Refused(String),
}

/// One event of an agent.
pub(super) struct Turn<'a> {
    pub(super) agent: &'a ContinuousAgent,
    pub(super) session: &'a Session,
    pub(super) delivery: Delivery,
}

impl Turn<'_> {
    pub(super) async fn take<H, F>(self, handler: &H, memory: &mut Memory) -> Turned
    where
        H: Fn(Bytes, BusMessage) -> F,
        F: Future<Output = Result<Step, String>>,
    {
        for _ in 0..MOST_RELOADS {
            let state = match self.state(memory).await {
                Ok(state) => state,
                Err(Error::Fenced { .. }) => return Turned::Superseded,
                Err(error) => return self.give_back(&format!("the state could not be read: {error}")).await,
            };
            let step = tokio::select! {
                step = handle(handler, state.bytes, self.delivery.message().clone()) => step,
                () = self.session.ended() => return Turned::Superseded,
            };
            let step = match step {
                Ok(step) => step,
                Err(reason) => return self.give_back(&reason).await,
            };
            let bytes = step.state.clone();
            match self.commit(step, state.mod_rev).await {
                Committed::Done(mod_rev) => {
                    self.delivery.ending().tell();
                    memory.keep(State { bytes, mod_rev });
                    return Turned::Handled;
                }
                Committed::Stale => memory.clear(),
                Committed::Superseded => {
                    memory.clear();
                    return Turned::Superseded;
                }
                Committed::Refused(reason) => return self.give_back(&reason).await,
            }
        }
        self.give_back("others wrote the state each time").await
    }

    /// The state from memory, or else from the cluster: for as long as the session lives.
    async fn state(&self, memory: &mut Memory) -> Result<State, Error> {
        if let Some(state) = memory.state() {
            return Ok(state.clone());
        }
        loop {
            match self.load().await {
                Ok(state) => {
                    memory.keep(state.clone());
                    return Ok(state);
                }
                Err(error) if may_pass(&error) => tracing::warn!(%error, "a state could not be read; trying on"),
                Err(error) => return Err(error),
            }
            tokio::select! {
                () = sleep(FIRST_PAUSE) => {}
                () = self.session.ended() => return Err(session_over(self.session)),
            }
        }
    }

    async fn load(&self) -> Result<State, Error> {
        let kv = self.agent.client.kv();
        match kv.get(&self.agent.state_key()).await? {
            Some(entry) => Ok(State { bytes: kv.value(&entry).await?, mod_rev: entry.mod_rev }),
            None => Ok(State::default()),
        }
    }

    async fn commit(&self, step: Step, mod_rev: u64) -> Committed {
        let request = self.transaction(step, mod_rev);
        let answer = insist(self.session, |id| {
            let client = self.agent.client.clone();
            let request = TransactRequest { request: Some(id), ..request.clone() };
            async move { client.transact(None, request).await }
        });
        judge(answer.await)
    }

    fn transaction(&self, step: Step, mod_rev: u64) -> TransactRequest {
        let event = self.delivery.message();
        let put = KvPutRequest {
            key: self.agent.state_key(),
            value: step.state,
            if_mod_rev: mod_rev,
            if_absent: mod_rev == 0,
            updated_by: self.agent.agent_id.clone(),
            ..KvPutRequest::default()
        };
        let mut ops = vec![transact_op::Op::Put(put), transact_op::Op::Ack(self.delivery.item(AckKind::Ack))];
        if !step.outputs.is_empty() {
            let messages = step.outputs.into_iter().map(|output| addressed(self.agent, event, output)).collect();
            ops.push(transact_op::Op::Publish(PublishRequest { messages, ..PublishRequest::default() }));
        }
        let ops = ops.into_iter().map(|op| TransactOp { op: Some(op) }).collect();
        TransactRequest { ops, ..TransactRequest::default() }
    }

    /// It failed: it comes again after a pause, until its attempts are used up.
    async fn give_back(&self, reason: &str) -> Turned {
        tracing::warn!(agent = self.agent.agent_id, seq = self.delivery.message().seq, reason, "an event failed");
        match self.delivery.nack(reason).await {
            Ok(()) => Turned::Failed,
            Err(error) => {
                tracing::warn!(%error, "an event was superseded");
                Turned::Superseded
            }
        }
    }
}

/// Runs the handler. A panic in it is a failed attempt and not a dead agent.
async fn handle<H, F>(handler: &H, state: Bytes, event: BusMessage) -> Result<Step, String>
where
    H: Fn(Bytes, BusMessage) -> F,
    F: Future<Output = Result<Step, String>>,
{
    let handled = AssertUnwindSafe(async { handler(state, event).await }).catch_unwind().await;
    handled.unwrap_or_else(|_| Err("handler panicked".to_owned()))
}

fn judge(answer: Result<TransactResponse, Error>) -> Committed {
    match answer {
        Ok(response) => Committed::Done(written(&response)),
        Err(Error::Rejected { code: RejectionCode::FailedPrecondition, .. }) => Committed::Stale,
        Err(Error::Fenced { .. } | Error::OutcomeUnknown { .. }) => Committed::Superseded,
        Err(error) => Committed::Refused(format!("the step was refused: {error}")),
    }
}

fn written(response: &TransactResponse) -> u64 {
    let put = response.results.iter().find_map(|result| match &result.result {
        Some(transact_result::Result::Put(entry)) => Some(entry.mod_rev),
        _ => None,
    });
    // All of a transaction happens at one rev.
    put.unwrap_or(response.rev)
}

/// What an output does not say is its event's.
fn addressed(agent: &ContinuousAgent, event: &BusMessage, mut output: BusMessage) -> BusMessage {
    let inherit = |own: &mut String, other: &str| {
        if own.is_empty() {
            other.clone_into(own);
        }
    };
    inherit(&mut output.subject, &agent.output());
    inherit(&mut output.from, &agent.agent_id);
    inherit(&mut output.task_id, &event.task_id);
    inherit(&mut output.correlation_id, &event.correlation_id);
    inherit(&mut output.traceparent, &event.traceparent);
    output
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::{KvEntry, TransactResult};

    use super::*;
    use crate::client::Client;

    fn rejected(code: RejectionCode) -> Error {
        Error::Rejected { code, field: "ops[0].put.if_mod_rev".to_owned(), message: "no".to_owned() }
    }

    #[test]
    fn an_answer_says_whether_the_state_or_the_event_is_anothers() {
        let put = KvEntry { mod_rev: 7, ..KvEntry::default() };
        let results = vec![TransactResult { result: Some(transact_result::Result::Put(put)) }];
        assert_eq!(judge(Ok(TransactResponse { results, rev: 7 })), Committed::Done(7));
        assert_eq!(judge(Err(rejected(RejectionCode::FailedPrecondition))), Committed::Stale);
        assert_eq!(judge(Err(Error::Fenced { field: String::new(), message: String::new() })), Committed::Superseded);
        assert_eq!(judge(Err(Error::OutcomeUnknown { message: String::new() })), Committed::Superseded);
        assert!(matches!(judge(Err(rejected(RejectionCode::InvalidArgument))), Committed::Refused(_)));
    }

    #[tokio::test]
    async fn an_output_says_what_it_answers_unless_it_says_otherwise() {
        let client = Client::connect(crate::Config::new(["127.0.0.1:1"])).unwrap();
        let agent = ContinuousAgent::new(client, "a-1");
        let event = BusMessage { correlation_id: "c-1".to_owned(), task_id: "t".to_owned(), ..BusMessage::default() };
        let plain = addressed(&agent, &event, BusMessage::default());
        assert_eq!((plain.subject.as_str(), plain.from.as_str()), ("agent.output.a-1", "a-1"));
        assert_eq!((plain.correlation_id.as_str(), plain.task_id.as_str()), ("c-1", "t"));
        let own = BusMessage { subject: "elsewhere".to_owned(), ..BusMessage::default() };
        assert_eq!(addressed(&agent, &event, own).subject, "elsewhere");
    }

    #[tokio::test]
    async fn a_panic_is_a_failure() {
        async fn panics(_: Bytes, _: BusMessage) -> Result<Step, String> {
            panic!("on purpose")
        }
        let handled = handle(&panics, Bytes::new(), BusMessage::default()).await;
        assert_eq!(handled, Err("handler panicked".to_owned()));
    }
}
