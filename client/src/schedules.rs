//! Schedules: tasks that the cluster submits by the clock.

use quorate_proto::v1::schedules_client::SchedulesClient;
use quorate_proto::v1::{
    CreateScheduleRequest, CreateScheduleResponse, DeleteScheduleRequest, DeleteScheduleResponse, GetScheduleRequest,
    GetScheduleResponse, ListSchedulesRequest, ListSchedulesResponse, PauseScheduleRequest, PauseScheduleResponse,
    PreviewScheduleRequest, PreviewScheduleResponse, RejectionCode, RunScheduleNowRequest, RunScheduleNowResponse,
    ScheduleHistoryRequest, ScheduleHistoryResponse, ScheduleSpec,
};

use crate::call::{Outcome, Plan};
use crate::channels::Channel;
use crate::client::Client;
use crate::error::Error;
use crate::sessions::Session;

/// What is due.
#[derive(Debug, Clone)]
pub struct Schedules {
    pub(crate) client: Client,
}

fn stub(channel: Channel) -> SchedulesClient<Channel> {
    SchedulesClient::new(channel)
        .max_decoding_message_size(crate::MAX_MESSAGE_BYTES * 4)
        .max_encoding_message_size(crate::MAX_MESSAGE_BYTES)
}

/// A removal that finds nothing to remove, after an attempt of unknown outcome, finds that attempt's work.
fn removed(outcome: Outcome<DeleteScheduleResponse>) -> Result<DeleteScheduleResponse, Error> {
    match outcome.result {
        Err(error) if outcome.doubt && error.is_not_found() => Ok(DeleteScheduleResponse::default()),
        result => result,
    }
}

/// A schedule that exists already, after an attempt of unknown outcome, may be that attempt's work or somebody else's.
fn created(outcome: Outcome<CreateScheduleResponse>) -> Result<CreateScheduleResponse, Error> {
    match outcome.result {
        Err(Error::Rejected { code: RejectionCode::AlreadyExists, message, .. }) if outcome.doubt => {
            Err(Error::OutcomeUnknown { message: format!("{message}; it may be the work of this very call") })
        }
        result => result,
    }
}

impl Schedules {
    /// Creates a schedule. With `replace`, one that exists gets the new specification and keeps its history.
    pub async fn create(&self, spec: ScheduleSpec, replace: bool) -> Result<CreateScheduleResponse, Error> {
        let request = CreateScheduleRequest { spec: Some(spec), replace, ..CreateScheduleRequest::default() };
        let outcome = self
            .client
            .call_in_full(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).create(request).await }
            })
            .await;
        created(outcome)
    }

    /// Removes a schedule with its history; the tasks that it submitted stay.
    pub async fn delete(&self, schedule_id: &str) -> Result<DeleteScheduleResponse, Error> {
        let request = DeleteScheduleRequest { schedule_id: schedule_id.to_owned(), request: None };
        let outcome = self
            .client
            .call_in_full(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).delete(request).await }
            })
            .await;
        removed(outcome)
    }

    /// Pauses a schedule or, with `paused` false, ends its pause. Ticks that fell into it are missed ones then.
    pub async fn pause(&self, schedule_id: &str, paused: bool) -> Result<PauseScheduleResponse, Error> {
        let request = PauseScheduleRequest { schedule_id: schedule_id.to_owned(), paused, request: None };
        self.client
            .call(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).pause(request).await }
            })
            .await
    }

    /// Runs a schedule now, besides its ticks. With a session a resend brings no second run; without one, a call of
    /// unknown outcome is not repeated.
    pub async fn run_now(&self, session: Option<&Session>, schedule_id: &str) -> Result<RunScheduleNowResponse, Error> {
        let under_way = session.map(Session::begin);
        let request = RunScheduleNowRequest {
            schedule_id: schedule_id.to_owned(),
            request: under_way.as_ref().map(|under_way| under_way.id()),
            ..RunScheduleNowRequest::default()
        };
        let plan = if request.request.is_some() { Plan::SAFE } else { Plan::UNSAFE };
        self.client
            .call(plan, |channel| {
                let request = request.clone();
                async move { stub(channel).run_now(request).await }
            })
            .await
    }

    /// One schedule.
    pub async fn get(&self, schedule_id: &str) -> Result<GetScheduleResponse, Error> {
        let request = GetScheduleRequest { schedule_id: schedule_id.to_owned(), consistency: 0 };
        self.client
            .call(Plan::READ, |channel| {
                let request = request.clone();
                async move { stub(channel).get(request).await }
            })
            .await
    }

    /// Every schedule, by id. Payloads and descriptions are left out.
    pub async fn list(&self) -> Result<ListSchedulesResponse, Error> {
        let request = ListSchedulesRequest { consistency: 0 };
        self.client.call(Plan::READ, |channel| async move { stub(channel).list(request).await }).await
    }

    /// The runs of one schedule, newest first, and how their tasks stand. `limit` 0 means 100; at most 1,000.
    pub async fn history(&self, schedule_id: &str, limit: u32) -> Result<ScheduleHistoryResponse, Error> {
        let request = ScheduleHistoryRequest { schedule_id: schedule_id.to_owned(), limit, consistency: 0 };
        self.client
            .call(Plan::READ, |channel| {
                let request = request.clone();
                async move { stub(channel).history(request).await }
            })
            .await
    }

    /// The next ticks that a specification would have. Nothing is created.
    pub async fn preview(&self, request: PreviewScheduleRequest) -> Result<PreviewScheduleResponse, Error> {
        self.client
            .call(Plan::READ, |channel| {
                let request = request.clone();
                async move { stub(channel).preview(request).await }
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn refused<T>(code: RejectionCode, doubt: bool) -> Outcome<T> {
        let (field, message) = ("schedule_id".to_owned(), "no".to_owned());
        let result = Err(Error::Rejected { code, field, message });
        Outcome { result, sent: Instant::now(), doubt, node: None }
    }

    #[test]
    fn a_removal_that_may_have_happened_and_finds_nothing_has_happened() {
        assert!(removed(refused(RejectionCode::NotFound, false)).unwrap_err().is_not_found());
        assert_eq!(removed(refused(RejectionCode::NotFound, true)).unwrap(), DeleteScheduleResponse::default());
    }

    #[test]
    fn a_creation_that_may_have_happened_is_not_called_refused() {
        let sure = created(refused(RejectionCode::AlreadyExists, false));
        assert!(matches!(sure, Err(Error::Rejected { .. })), "{sure:?}");
        let doubtful = created(refused(RejectionCode::AlreadyExists, true));
        assert!(matches!(doubtful, Err(Error::OutcomeUnknown { .. })), "{doubtful:?}");
        let other = created(refused(RejectionCode::InvalidArgument, true));
        assert!(matches!(other, Err(Error::Rejected { .. })), "{other:?}");
    }
}
