//! Breakers: ask before a call, report after it, or let [`Breakers::call`] do both.

use std::fmt;
use std::time::Duration;

use quorate_proto::v1::breakers_client::BreakersClient;
use quorate_proto::v1::{
    AcquireBreakerRequest, AcquireBreakerResponse, BreakerForce, BreakerSettings, BreakerState,
    ConfigureBreakerRequest, ConfigureBreakerResponse, ForceBreakerRequest, ForceBreakerResponse, GetBreakerRequest,
    GetBreakerResponse, ListBreakersRequest, ListBreakersResponse, ReportBreakerRequest, ReportBreakerResponse,
};

use crate::call::Plan;
use crate::channels::Channel;
use crate::client::Client;
use crate::error::{Error, FENCE_FIELD};
use crate::sessions::{Session, UnderWay};

/// The longest wait that the cluster takes: 30 days.
const LONGEST_WAIT_MS: u64 = 30 * 86_400_000;

/// What is broken.
#[derive(Debug, Clone)]
pub struct Breakers {
    pub(crate) client: Client,
}

/// What the error of a guarded call tells its breaker.
pub trait Blame: fmt::Display {
    /// What kind of failure it is, such as `timeout`, `connection` or `rate_limited`; empty: none in particular.
    /// Classes that the breaker excludes do not count.
    fn class(&self) -> &str {
        ""
    }

    /// What a provider asked for: nothing passes for so long, and no failure is counted.
    fn retry_after(&self) -> Option<Duration> {
        None
    }
}

impl Blame for String {}
impl Blame for &str {}
impl Blame for std::io::Error {
    fn class(&self) -> &str {
        match self.kind() {
            std::io::ErrorKind::TimedOut => "timeout",
            _ => "connection",
        }
    }
}

/// The breaker let no call through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Which breaker.
    pub name: String,
    /// OPEN, or HALF_OPEN while another call probes.
    pub state: BreakerState,
    /// When it is worth asking again; `None`: when somebody has closed it.
    pub retry_after: Option<Duration>,
    /// Of an agent's breaker: another agent that offers the same and has room.
    pub fallback_agent_id: Option<String>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "breaker {} is {}", self.name, self.state.as_str_name().trim_start_matches("BREAKER_STATE_"))?;
        match self.retry_after {
            Some(wait) => write!(f, "; ask again in {wait:?}"),
            None => write!(f, " until somebody closes it"),
        }
    }
}

/// Why a guarded call brought no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError<E> {
    /// It was not made: the breaker is open.
    #[error("{0}")]
    Refused(Refused),
    /// It was made, and failed.
    #[error("{0}")]
    Failed(E),
    /// It was not made: the cluster could not be asked.
    #[error(transparent)]
    Cluster(Error),
}

fn stub(channel: Channel) -> BreakersClient<Channel> {
    BreakersClient::new(channel)
        .max_decoding_message_size(crate::MAX_MESSAGE_BYTES * 4)
        .max_encoding_message_size(crate::MAX_MESSAGE_BYTES)
}

impl Breakers {
    /// Asks whether a call may be made; if `probe_token` is not 0, it is the probe and must be reported under that. With
    /// a session, a resend gets the same answer. Without, a probe whose answer was lost is held by nobody and counts as
    /// failed when its time is up.
    pub async fn acquire(
        &self,
        session: Option<&Session>,
        name: &str,
        holder: &str,
    ) -> Result<AcquireBreakerResponse, Error> {
        let under_way = session.map(Session::begin);
        let request = AcquireBreakerRequest {
            name: name.to_owned(),
            holder: holder.to_owned(),
            request: under_way.as_ref().map(UnderWay::id),
        };
        self.client
            .call(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).acquire(request).await }
            })
            .await
    }

    /// Says what came of a call. [`Error::Fenced`]: the probe was superseded. With a session, a resend counts once.
    pub async fn report(
        &self,
        session: Option<&Session>,
        mut request: ReportBreakerRequest,
    ) -> Result<ReportBreakerResponse, Error> {
        let under_way = session.filter(|_| request.request.is_none()).map(Session::begin);
        if let Some(under_way) = &under_way {
            request.request = Some(under_way.id());
        }
        let reported = self
            .client
            .call_in_full(plan(&request), |channel| {
                let request = request.clone();
                async move { stub(channel).report(request).await }
            })
            .await;
        match reported.result {
            // The probe's word was taken, by an earlier delivery of this very call or not at all: the breaker shows it.
            Err(Error::Fenced { field, .. }) if reported.doubt && field != FENCE_FIELD => {
                match self.get(&request.name).await {
                    Ok(found) => Ok(ReportBreakerResponse { breaker: found.breaker, rev: found.rev }),
                    Err(_) => Err(Error::OutcomeUnknown {
                        message: format!("the probe of breaker {} has ended, perhaps by this very call", request.name),
                    }),
                }
            }
            result => result,
        }
    }

    /// Changes the settings of one breaker; with an empty name, of all that have none of their own.
    pub async fn configure(&self, name: &str, settings: BreakerSettings) -> Result<ConfigureBreakerResponse, Error> {
        let request = ConfigureBreakerRequest { name: name.to_owned(), settings: Some(settings), request: None };
        self.client
            .call(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).configure(request).await }
            })
            .await
    }

    /// Opens it until it is closed by hand, closes it, or forgets everything said of it.
    pub async fn force(&self, name: &str, force: BreakerForce, reason: &str) -> Result<ForceBreakerResponse, Error> {
        let request = ForceBreakerRequest {
            name: name.to_owned(),
            force: force as i32,
            reason: reason.to_owned(),
            request: None,
        };
        self.client
            .call(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).force(request).await }
            })
            .await
    }

    /// One breaker with the settings that hold for it. Not found: nothing was ever said of it, and it admits all.
    pub async fn get(&self, name: &str) -> Result<GetBreakerResponse, Error> {
        let request = GetBreakerRequest { name: name.to_owned(), consistency: 0 };
        self.client
            .call(Plan::READ, |channel| {
                let request = request.clone();
                async move { stub(channel).get(request).await }
            })
            .await
    }

    /// Every breaker of which something was said, by name; of one state only, if there is one given.
    pub async fn list(&self, state: Option<BreakerState>) -> Result<ListBreakersResponse, Error> {
        let request = ListBreakersRequest { state: state.map_or(0, |state| state as i32), consistency: 0 };
        self.client.call(Plan::READ, |channel| async move { stub(channel).list(request).await }).await
    }

    /// Makes a call under a breaker: asks first, runs it if it may, and reports what came of it. What the call brought
    /// is returned even if it cannot be reported. A call that is dropped half-way reports nothing; if it was the probe,
    /// it counts as failed when its time is up.
    pub async fn call<T, E: Blame>(
        &self,
        name: &str,
        holder: &str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, CallError<E>> {
        let answer = self.acquire(None, name, holder).await.map_err(CallError::Cluster)?;
        if !answer.allowed {
            return Err(CallError::Refused(refused(name, answer)));
        }
        let result = work.await;
        let report = word(name, answer.probe_token, result.as_ref().err());
        if let Err(error) = self.report(None, report).await {
            tracing::warn!(breaker = name, %error, "what came of a call could not be reported");
        }
        result.map_err(CallError::Failed)
    }
}

/// Only a plain failure without an id would count twice: a success changes nothing the second time, a probe is ended
/// once, and a wait only ever gets longer.
fn plan(request: &ReportBreakerRequest) -> Plan {
    let counts = !request.success && request.probe_token == 0 && request.retry_after_ms == 0;
    if counts && request.request.is_none() { Plan::UNSAFE } else { Plan::SAFE }
}

fn refused(name: &str, answer: AcquireBreakerResponse) -> Refused {
    Refused {
        name: name.to_owned(),
        state: answer.state(),
        retry_after: Some(answer.retry_after_ms).filter(|ms| *ms > 0).map(Duration::from_millis),
        fallback_agent_id: Some(answer.fallback_agent_id).filter(|id| !id.is_empty()),
    }
}

fn word(name: &str, probe_token: u64, error: Option<&impl Blame>) -> ReportBreakerRequest {
    let mut request =
        ReportBreakerRequest { name: name.to_owned(), success: true, probe_token, ..ReportBreakerRequest::default() };
    if let Some(error) = error {
        let wait = error.retry_after().unwrap_or_default();
        request.success = false;
        request.error = error.to_string();
        request.error_class = error.class().to_owned();
        request.retry_after_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).min(LONGEST_WAIT_MS);
    }
    request
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::RequestId;

    use super::*;
    use crate::call::Repeat;

    struct Limited;

    impl fmt::Display for Limited {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "too many requests")
        }
    }

    impl Blame for Limited {
        fn class(&self) -> &str {
            "rate_limited"
        }

        fn retry_after(&self) -> Option<Duration> {
            Some(Duration::MAX)
        }
    }

    #[test]
    fn an_error_says_its_class_and_how_long_to_wait() {
        let limited = word("p", 7, Some(&Limited));
        assert_eq!((limited.success, limited.probe_token, limited.retry_after_ms), (false, 7, LONGEST_WAIT_MS));
        assert_eq!((limited.error.as_str(), limited.error_class.as_str()), ("too many requests", "rate_limited"));
        let slow = std::io::Error::from(std::io::ErrorKind::TimedOut);
        assert_eq!(word("p", 0, Some(&slow)).error_class, "timeout");
        assert!(word("p", 0, None::<&String>).success);
    }

    #[test]
    fn only_a_plain_failure_without_an_id_is_not_sent_twice() {
        let failure = word("p", 0, Some(&"down"));
        assert_eq!(plan(&failure).repeat, Repeat::Unsafe);
        assert_eq!(plan(&word("p", 7, Some(&"down"))).repeat, Repeat::Safe);
        assert_eq!(plan(&word("p", 0, Some(&Limited))).repeat, Repeat::Safe);
        assert_eq!(plan(&word("p", 0, None::<&String>)).repeat, Repeat::Safe);
        let named = ReportBreakerRequest { request: Some(RequestId::default()), ..failure };
        assert_eq!(plan(&named).repeat, Repeat::Safe);
    }

    #[test]
    fn a_refusal_says_when_to_ask_again() {
        let open = AcquireBreakerResponse { retry_after_ms: 1_500, ..state(BreakerState::Open) };
        assert_eq!(refused("p", open).to_string(), "breaker p is OPEN; ask again in 1.5s");
        let by_hand = refused("agent:a", state(BreakerState::Open));
        assert_eq!(by_hand.to_string(), "breaker agent:a is OPEN until somebody closes it");
        assert_eq!(by_hand.fallback_agent_id, None);
    }

    fn state(state: BreakerState) -> AcquireBreakerResponse {
        AcquireBreakerResponse { state: state as i32, ..AcquireBreakerResponse::default() }
    }
}
