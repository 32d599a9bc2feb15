//! Callers at every node ask three breakers whether a call may be made, and say what came of it. What they call works
//! for a while and then fails for a while; some callers are never heard of again.
//!
//! Each call is made once, at one node: a second delivery of a question could take a probe that nobody knows of.
//!
//! Deliberately absent: tasks. They feed breakers too, and `limits` and `tasks` have enough to do.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future::BoxFuture;
use quorate_client::v1::breakers_client::BreakersClient;
use quorate_client::v1::{
    AcquireBreakerRequest, AcquireBreakerResponse, BreakerSettings, BreakerState, ReportBreakerRequest,
    ReportBreakerResponse,
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::direct::effect;
use super::{Context, Workload};
use crate::check::Checker;
use crate::check::breakers::Breakers as BreakersHold;
use crate::check::breakers::told::{Asked, Reported, Settings, State, Word};
use crate::coordination::only;
use crate::record::{Answer, Process};

const PATIENCE: Duration = Duration::from_secs(2);
/// Before the first fault, when nothing is broken.
const FIRST_PATIENCE: Duration = Duration::from_secs(30);
/// How long after the end a breaker may not answer.
const LAST: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);
const BREAKERS: u64 = 3;
const SETTINGS: Settings = Settings { threshold: 3, open_ms: 1_000, probe_timeout_ms: 1_500 };
/// So long it works, and so long it does not.
const WEATHER: Duration = Duration::from_secs(3);
/// In a hundred calls.
const FAILURES_IN_GOOD_WEATHER: u64 = 10;
const FAILURES_IN_BAD_WEATHER: u64 = 80;
const SHORTEST_CALL_MS: u64 = 5;
const LONGEST_CALL_MS: u64 = 80;
/// One caller in so many says nothing.
const SILENCE: u64 = 15;

/// The workload.
#[derive(Clone, Copy, Debug, Default)]
pub struct Breakers;

impl Breakers {
    /// The workload.
    pub fn new() -> Self {
        Self
    }
}

impl Workload for Breakers {
    fn name(&self) -> &'static str {
        "breakers"
    }

    fn about(&self) -> &'static str {
        "callers at all nodes under circuit breakers: while open nobody is admitted, half-open one at a time"
    }

    fn prepare(&self, context: Context) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let client = context.client(0, FIRST_PATIENCE)?;
            let mut process = context.recorder.process();
            for number in 0..BREAKERS {
                let name = breaker_name(&context, number);
                let configuring = async {
                    match client.breakers().configure(&name, settings()).await {
                        Ok(configured) => Answer::at(configured.rev, json!({})),
                        Err(error) => Answer::of_error(&error),
                    }
                };
                let answer = process.run("configure", &name, told(&SETTINGS), None, configuring).await;
                ensure!(matches!(answer, Answer::Ok { .. }), "breaker {name} could not be configured: {answer:?}");
            }
            Ok(())
        })
    }

    fn work(&self, context: Context, worker: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let mut caller = Caller::new(&context, worker)?;
            let (mut rng, began) = (context.rng(worker), Instant::now());
            while context.pause(&mut rng).await {
                let name = breaker_name(&context, rng.below(BREAKERS));
                let Some(asked) = caller.ask(&name).await.filter(|asked| asked.allowed) else { continue };
                // What they call takes a while: others ask meanwhile.
                sleep(rng.millis(SHORTEST_CALL_MS, LONGEST_CALL_MS)).await;
                if rng.below(SILENCE) == 0 {
                    continue;
                }
                let ok = rng.below(100) >= failures_in_a_hundred(began.elapsed());
                caller.report(&name, Word { ok, probe_token: asked.probe_token }).await;
            }
            Ok(())
        })
    }

    fn finish(&self, context: Context) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            for number in 0..BREAKERS {
                closes(&context, &breaker_name(&context, number)).await?;
            }
            Ok(())
        })
    }

    fn checkers(&self) -> Vec<Box<dyn Checker>> {
        vec![Box::new(BreakersHold::new())]
    }
}

/// Whoever is right goes on asking, until the breaker lets everything through.
async fn closes(context: &Context, name: &str) -> Result<()> {
    let deadline = Instant::now() + LAST;
    let mut node = 0;
    loop {
        let mut caller = Caller::new(context, node)?;
        node += 1;
        if let Some(asked) = caller.ask(name).await {
            if asked.state == State::Closed {
                return Ok(());
            }
            if asked.allowed {
                caller.report(name, Word { ok: true, probe_token: asked.probe_token }).await;
            }
        }
        ensure!(Instant::now() < deadline, "breaker {name} did not close for {} s after the end", LAST.as_secs());
        sleep(PAUSE).await;
    }
}

fn breaker_name(context: &Context, number: u64) -> String {
    format!("{}-breaker-{number}", context.prefix)
}

fn settings() -> BreakerSettings {
    BreakerSettings {
        failure_threshold: SETTINGS.threshold as u32,
        open_ms: SETTINGS.open_ms,
        probe_timeout_ms: SETTINGS.probe_timeout_ms,
        exclude_nothing: true,
        ..BreakerSettings::default()
    }
}

fn failures_in_a_hundred(elapsed: Duration) -> u64 {
    let is_bad = elapsed.as_millis() / WEATHER.as_millis() % 2 == 1;
    if is_bad { FAILURES_IN_BAD_WEATHER } else { FAILURES_IN_GOOD_WEATHER }
}

/// An answer that can be written down; a value always can.
fn told(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// Somebody at one node.
struct Caller {
    holder: String,
    node: u64,
    stub: BreakersClient<Channel>,
    process: Process,
}

impl Caller {
    fn new(context: &Context, number: u64) -> Result<Self> {
        let place = number % (context.endpoints.len() as u64).max(1);
        let endpoint = context.endpoints.get(place as usize).context("there are no nodes")?;
        let stub = BreakersClient::new(only(endpoint)?);
        let holder = format!("{}-caller-{number}", context.prefix);
        Ok(Self { holder, node: place + 1, stub, process: context.recorder.process() })
    }

    /// Whether a call may be made. `None`: nobody said.
    async fn ask(&mut self, name: &str) -> Option<Asked> {
        let request = AcquireBreakerRequest { name: name.to_owned(), holder: self.holder.clone(), request: None };
        let mut stub = self.stub.clone();
        let mut answered = None;
        let asking = async {
            match once(stub.acquire(request)).await {
                Ok(answer) => {
                    let asked = asked(&answer);
                    answered = Some(asked);
                    Answer::at(answer.rev, told(&asked))
                }
                Err(status) => effect(&status),
            }
        };
        self.process.run("ask", name, json!({ "holder": self.holder }), Some(self.node), asking).await;
        answered
    }

    async fn report(&mut self, name: &str, word: Word) {
        let request = ReportBreakerRequest {
            name: name.to_owned(),
            success: word.ok,
            error: if word.ok { String::new() } else { "broken".to_owned() },
            probe_token: word.probe_token,
            ..ReportBreakerRequest::default()
        };
        let mut stub = self.stub.clone();
        let reporting = async {
            match once(stub.report(request)).await {
                Ok(answer) => Answer::at(answer.rev, told(&reported(&answer))),
                Err(status) => effect(&status),
            }
        };
        self.process.run("report", name, told(&word), Some(self.node), reporting).await;
    }
}

/// Makes a call that is not repeated, and waits for it as long as the patience lasts.
pub(super) async fn once<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    match timeout(PATIENCE, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("no answer in time")),
    }
}

fn state(state: BreakerState) -> State {
    match state {
        BreakerState::Open => State::Open,
        BreakerState::HalfOpen => State::HalfOpen,
        BreakerState::Closed | BreakerState::Unspecified => State::Closed,
    }
}

fn asked(answer: &AcquireBreakerResponse) -> Asked {
    Asked {
        allowed: answer.allowed,
        state: state(answer.state()),
        probe_token: answer.probe_token,
        retry_after_ms: answer.retry_after_ms,
    }
}

fn reported(answer: &ReportBreakerResponse) -> Reported {
    let breaker = answer.breaker.clone().unwrap_or_default();
    Reported { state: state(breaker.state()), failures: u64::from(breaker.failures) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weather_changes() {
        let at = |seconds| failures_in_a_hundred(Duration::from_secs(seconds));
        assert_eq!([at(0), at(4)], [FAILURES_IN_GOOD_WEATHER, FAILURES_IN_BAD_WEATHER]);
        assert_eq!(at(6), at(0));
    }
}
