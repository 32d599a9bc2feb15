//! The one retry loop.
//!
//! An attempt that certainly had no effect is tried again until the call's time is up. One whose outcome is unknown is
//! tried again only if the call is safe to repeat; otherwise the caller is told that it is unknown. Every status teaches
//! the client who leads.
//!
//! Deliberately absent: what a refusal means after an attempt of unknown outcome. The loop says that there was one, and
//! the callers of writes that the cluster does not recognize when they come again judge it.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tonic::{Response, Status};

use crate::channels::{Channel, Channels};
use crate::config::Config;
use crate::error::{Error, Failure, classify, leader_hint};

const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// A failover takes about a second: longer pauses would add to the gap more than they spare the cluster.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Whether a second delivery of the same request does harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// A read: it has no effect, however it ends.
    Read,
    /// A write that the cluster recognizes, or that changes nothing, when it comes again.
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
    /// The most that one attempt may take, if that is less than the usual.
    pub(crate) attempt_limit: Option<Duration>,
    /// When the call ends, instead of after the usual time.
    pub(crate) until: Option<Instant>,
}

impl Plan {
    pub(crate) const READ: Plan = Plan::of(Repeat::Read);
    pub(crate) const SAFE: Plan = Plan::of(Repeat::Safe);
    pub(crate) const UNSAFE: Plan = Plan::of(Repeat::Unsafe);

    const fn of(repeat: Repeat) -> Plan {
        Plan { repeat, hold: Duration::ZERO, attempt_limit: None, until: None }
    }

    /// What one attempt may take at most.
    fn attempt_limit(&self, config: &Config) -> Duration {
        let usual = config.attempt_timeout + self.hold;
        self.attempt_limit.map_or(usual, |limit| limit.min(usual))
    }
}

/// How a call ended.
#[derive(Debug)]
pub(crate) struct Outcome<T> {
    pub(crate) result: Result<T, Error>,
    /// When the last attempt was sent: the one that brought the answer, if there is one.
    pub(crate) sent: Instant,
    /// An earlier attempt may have taken effect, so that a refusal may be its doing.
    pub(crate) doubt: bool,
    /// The endpoint of the node that gave the answer, if there is one.
    pub(crate) node: Option<String>,
}

impl<T> Outcome<T> {
    fn refused(error: Error, sent: Instant, doubt: bool) -> Self {
        Outcome { result: Err(error), sent, doubt, node: None }
    }
}

/// Calls until there is an answer, a refusal, or no time left.
pub(crate) async fn call<T, F>(
    channels: &Channels,
    config: &Config,
    plan: Plan,
    mut attempt: impl FnMut(Channel) -> F,
) -> Outcome<T>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let began = Instant::now();
    let deadline = plan.until.unwrap_or_else(|| began + config.call_timeout + plan.hold);
    let mut pause = FIRST_PAUSE;
    // Once an attempt's outcome is unknown, a later one that certainly had no effect does not make the call harmless.
    let mut doubt: Option<String> = None;
    loop {
        let sent = Instant::now();
        let budget = plan.attempt_limit(config).min(deadline.saturating_duration_since(sent));
        let failure = match one_attempt(channels, budget, &mut attempt).await {
            Ok((answer, node)) => {
                return Outcome { result: Ok(answer), sent, doubt: doubt.is_some(), node: Some(node) };
            }
            Err(failure) => failure,
        };
        let last = match failure {
            Failure::Final(error) => return Outcome::refused(error, sent, doubt.is_some()),
            Failure::Unknown(message) if plan.repeat == Repeat::Unsafe => {
                return Outcome::refused(Error::OutcomeUnknown { message }, sent, true);
            }
            Failure::Unknown(message) => {
                if plan.repeat == Repeat::Safe {
                    doubt = Some(message.clone());
                }
                message
            }
            Failure::NoEffect(message) => message,
        };
        let wait = jittered(pause);
        if Instant::now() + wait >= deadline {
            let in_doubt = doubt.is_some();
            let error = match doubt {
                Some(message) => Error::OutcomeUnknown { message },
                None => Error::Unavailable {
                    message: format!("no node could take the call within {:?}", deadline.duration_since(began)),
                    last,
                },
            };
            return Outcome::refused(error, sent, in_doubt);
        }
        tracing::debug!(%last, ?wait, "trying again");
        sleep(wait).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// One attempt at the node that looks best, and what it teaches about the nodes. An answer comes with that node.
async fn one_attempt<T, F>(
    channels: &Channels,
    budget: Duration,
    attempt: &mut impl FnMut(Channel) -> F,
) -> Result<(T, String), Failure>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let connection = channels.pick().map_err(Failure::Final)?;
    match timeout(budget, attempt(connection.channel)).await {
        Ok(Ok(response)) => {
            if let Some(leader) = leader_hint(response.metadata()) {
                channels.leads(leader);
            }
            Ok((response.into_inner(), connection.endpoint))
        }
        Ok(Err(status)) => {
            let failure = classify(&status);
            if !matches!(failure, Failure::Final(_)) {
                channels.failed(&connection.endpoint);
            }
            learn(channels, &status);
            Err(failure)
        }
        Err(_) => {
            channels.failed(&connection.endpoint);
            Err(Failure::Unknown(format!("{} did not answer within {budget:?}", connection.endpoint)))
        }
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    fn broken() -> Status {
        Status::unknown("the connection broke")
    }

    /// Makes a call whose attempts end as scripted; when the script is over, as the last one did.
    async fn scripted(plan: Plan, script: Vec<Result<u32, Status>>) -> (Outcome<u32>, usize) {
        let mut config = Config::new(["a:1", "b:1"]);
        config.call_timeout = Duration::from_millis(600);
        let channels = Channels::new(config.endpoints.clone());
        let mut script = VecDeque::from(script);
        let mut attempts = 0;
        let outcome = call(&channels, &config, plan, |_| {
            attempts += 1;
            let next = match script.len() {
                1 => script[0].clone(),
                _ => script.pop_front().unwrap(),
            };
            std::future::ready(next.map(Response::new))
        })
        .await;
        (outcome, attempts)
    }

    #[tokio::test]
    async fn an_unknown_outcome_is_reported_by_what_may_have_happened() {
        let (read, attempts) = scripted(Plan::READ, vec![Err(broken())]).await;
        assert!(matches!(read.result, Err(Error::Unavailable { .. })) && attempts > 1, "{read:?}");
        let (write, attempts) = scripted(Plan::SAFE, vec![Err(broken())]).await;
        assert!(matches!(write.result, Err(Error::OutcomeUnknown { .. })) && attempts > 1, "{write:?}");
        let (once, attempts) = scripted(Plan::UNSAFE, vec![Err(broken())]).await;
        assert!(matches!(once.result, Err(Error::OutcomeUnknown { .. })) && attempts == 1, "{once:?}");
    }

    #[tokio::test]
    async fn a_refusal_after_an_unknown_outcome_is_marked() {
        let (plain, _) = scripted(Plan::SAFE, vec![Err(Status::not_found("gone"))]).await;
        assert!(plain.result.unwrap_err().is_not_found() && !plain.doubt);
        let (doubtful, _) = scripted(Plan::SAFE, vec![Err(broken()), Err(Status::not_found("gone"))]).await;
        assert!(doubtful.result.unwrap_err().is_not_found() && doubtful.doubt);
    }

    #[tokio::test]
    async fn the_answer_comes_with_the_time_of_its_own_attempt() {
        let began = Instant::now();
        let (answered, attempts) = scripted(Plan::SAFE, vec![Err(broken()), Ok(7)]).await;
        assert!(answered.node.is_some_and(|node| ["a:1", "b:1"].contains(&node.as_str())));
        assert_eq!((answered.result.unwrap(), attempts), (7, 2));
        assert!(answered.sent - began >= FIRST_PAUSE / 2, "counted from the first attempt");
    }

    #[tokio::test]
    async fn a_given_end_replaces_the_usual_one() {
        let (began, length) = (Instant::now(), Duration::from_secs(1));
        let plan = Plan { until: Some(began + length), ..Plan::SAFE };
        let (ended, _) = scripted(plan, vec![Err(broken())]).await;
        assert!(ended.result.is_err());
        // The last pause, at most 300 ms, is not begun if it would not end in time.
        assert!((length / 5..length * 2).contains(&began.elapsed()), "ended after {:?}", began.elapsed());
    }

    #[test]
    fn an_attempt_takes_at_most_its_own_limit() {
        let config = Config::new(["a:1"]);
        assert_eq!(Plan::SAFE.attempt_limit(&config), config.attempt_timeout);
        let short = Plan { attempt_limit: Some(LONGEST_PAUSE), ..Plan::SAFE };
        assert_eq!(short.attempt_limit(&config), LONGEST_PAUSE);
    }

    #[tokio::test]
    async fn a_refused_connection_had_no_effect() {
        let mut config = Config::new(["127.0.0.1:1"]);
        config.call_timeout = Duration::from_millis(60);
        let client = crate::Client::connect(config).unwrap();
        let refused = client.tasks().cancel("t", "").await;
        assert!(matches!(refused, Err(Error::Unavailable { .. })), "{refused:?}");
    }
}
