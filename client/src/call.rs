//! The one retry loop.
//!
//! An attempt that certainly had no effect is tried again until the call's time is up. One whose outcome is unknown is
//! tried again only if the call is safe to repeat; otherwise the caller is told that it is unknown. Every status teaches
//! the client who leads.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::channels::Channels;
use crate::config::Config;
use crate::error::{Error, Failure, classify, leader_hint};

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Whether a second delivery of the same request does harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// A read, or a write that the cluster recognizes when it comes again.
    Safe,
    /// A write that would happen twice.
    Unsafe,
}

/// How one call is made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) repeat: Repeat,
    /// Time that the cluster itself may hold the call (a long poll), on top of the usual.
    pub(crate) hold: Duration,
}

impl Plan {
    pub(crate) const SAFE: Plan = Plan { repeat: Repeat::Safe, hold: Duration::ZERO };
    pub(crate) const UNSAFE: Plan = Plan { repeat: Repeat::Unsafe, hold: Duration::ZERO };
}

/// Calls until there is an answer, a refusal, or no time left.
pub(crate) async fn call<T, F>(
    channels: &Channels,
    config: &Config,
    plan: Plan,
    mut attempt: impl FnMut(Channel) -> F,
) -> Result<T, Error>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let deadline = Instant::now() + config.call_timeout + plan.hold;
    let mut pause = FIRST_PAUSE;
    // Once an attempt's outcome is unknown, a later one that certainly had no effect does not make the call harmless.
    let mut doubt: Option<String> = None;
    loop {
        let connection = channels.pick()?;
        let budget = (config.attempt_timeout + plan.hold).min(deadline.saturating_duration_since(Instant::now()));
        let failure = match timeout(budget, attempt(connection.channel)).await {
            Ok(Ok(response)) => {
                if let Some(leader) = leader_hint(response.metadata()) {
                    channels.leads(leader);
                }
                return Ok(response.into_inner());
            }
            Ok(Err(status)) => {
                let failure = classify(&status);
                if matches!(failure, Failure::Final(_)) {
                    learn(channels, &status);
                } else {
                    channels.failed(&connection.endpoint);
                    learn(channels, &status);
                }
                failure
            }
            Err(_) => {
                channels.failed(&connection.endpoint);
                Failure::Unknown(format!("{} did not answer within {budget:?}", connection.endpoint))
            }
        };
        let last = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Unknown(message) if plan.repeat == Repeat::Unsafe => {
                return Err(Error::OutcomeUnknown { message });
            }
            Failure::Unknown(message) => {
                doubt = Some(message.clone());
                message
            }
            Failure::NoEffect(message) => message,
        };
        let wait = jittered(pause);
        if Instant::now() + wait >= deadline {
            return Err(match doubt {
                Some(message) => Error::OutcomeUnknown { message },
                None => Error::Unavailable {
                    message: format!("no node could take the call within {:?}", config.call_timeout + plan.hold),
                    last,
                },
            });
        }
        tracing::debug!(%last, ?wait, "trying again");
        sleep(wait).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn learn(channels: &Channels, status: &Status) {
    if let Some(leader) = leader_hint(status.metadata()) {
        channels.leads(leader);
    }
}

/// Half to one and a half times the pause, so that clients that failed together do not come back together.
fn jittered(pause: Duration) -> Duration {
    let share = uuid::Uuid::new_v4().as_bytes()[0];
    pause / 2 + pause.mul_f64(f64::from(share) / 255.0)
}
