//! A write to one key, put together step by step.
//!
//! A write that would happen twice is not repeated after an unknown outcome: between the two, somebody else may have
//! written. With a session it has a request id, and with a revision to meet it happens once by itself.

use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use quorate_proto::v1::{KeyValue, KvDeleteRequest, KvDeleteResponse, KvMerge, KvPutRequest, KvPutResponse};

use super::stub;
use crate::call::Plan;
use crate::client::{Client, millis};
use crate::error::Error;
use crate::requests::{identify, judged};
use crate::sessions::Session;

/// The largest value that the log itself takes.
const INLINE_BYTES: usize = 1 << 20;

/// A put, not sent yet.
#[derive(Debug, Clone)]
#[must_use = "nothing is written before send()"]
pub struct KvPut {
    client: Client,
    request: KvPutRequest,
    session: Option<Session>,
}

impl KvPut {
    pub(super) fn new(client: Client, key: String, value: Bytes) -> Self {
        KvPut { client, request: KvPutRequest { key, value, ..KvPutRequest::default() }, session: None }
    }

    /// Only if this is the key's `mod_rev`; with 0, only if there is no such key.
    pub fn if_rev(mut self, mod_rev: u64) -> Self {
        self.request.if_mod_rev = mod_rev;
        self.request.if_absent = mod_rev == 0;
        self
    }

    /// Only if there is no such key.
    pub fn if_absent(self) -> Self {
        self.if_rev(0)
    }

    /// How the new value meets the old one; it takes its place unless said otherwise.
    pub fn merge(mut self, merge: KvMerge) -> Self {
        self.request.merge = merge as i32;
        self
    }

    /// It goes with this session, and is sent under a request id of it.
    pub fn session(mut self, session: &Session) -> Self {
        self.request.session_id = session.id().to_owned();
        self.request(session)
    }

    /// It goes after so long without another put: at most 365 days.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.request.ttl_ms = millis(ttl);
        self
    }

    /// What the value is, as HTTP says it; as it was unless said otherwise.
    pub fn content_type(mut self, content_type: impl Into<String>) -> Self {
        self.request.content_type = content_type.into();
        self
    }

    /// The project that it belongs to; as it was unless said otherwise.
    pub fn project(mut self, project_id: impl Into<String>) -> Self {
        self.request.project_id = project_id.into();
        self
    }

    /// One more label, at most 32; those that it had stay unless there is at least one.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.request.labels.push(KeyValue { key: key.into(), value: value.into() });
        self
    }

    /// For whoever reads its history.
    pub fn updated_by(mut self, who: impl Into<String>) -> Self {
        self.request.updated_by = who.into();
        self
    }

    /// Under a request id of this session, so that a resend has no second effect.
    pub fn request(mut self, session: &Session) -> Self {
        self.session = Some(session.clone());
        self
    }

    /// Writes it. `Rejected` with `FAILED_PRECONDITION`: another revision is there (the message says which). Without a
    /// session and without a revision to meet, a call of unknown outcome is not repeated.
    pub async fn send(self) -> Result<KvPutResponse, Error> {
        let KvPut { client, mut request, session } = self;
        offload(&client, &mut request).await?;
        let _under_way = identify(&mut request.request, session.as_ref());
        let identified = request.request.is_some();
        let outcome = client
            .call_in_full(plan(identified, request.if_mod_rev), |channel| {
                let request = request.clone();
                async move { stub(channel).put(request).await }
            })
            .await;
        judged(outcome, identified)
    }
}

impl From<KvPut> for KvPutRequest {
    /// The request alone, as a transaction takes it.
    fn from(put: KvPut) -> Self {
        put.request
    }
}

impl IntoFuture for KvPut {
    type Output = Result<KvPutResponse, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

/// A removal, not sent yet.
#[derive(Debug, Clone)]
#[must_use = "nothing is removed before send()"]
pub struct KvDelete {
    client: Client,
    request: KvDeleteRequest,
    session: Option<Session>,
}

impl KvDelete {
    pub(super) fn new(client: Client, key: String) -> Self {
        KvDelete { client, request: KvDeleteRequest { key, ..KvDeleteRequest::default() }, session: None }
    }

    /// Only if this is the key's `mod_rev`.
    pub fn if_rev(mut self, mod_rev: u64) -> Self {
        self.request.if_mod_rev = mod_rev;
        self
    }

    /// For whoever reads its history.
    pub fn updated_by(mut self, who: impl Into<String>) -> Self {
        self.request.updated_by = who.into();
        self
    }

    /// Under a request id of this session, so that a resend has no second effect.
    pub fn request(mut self, session: &Session) -> Self {
        self.session = Some(session.clone());
        self
    }

    /// Removes it. That there is none is not an error (`deleted` says which). `Rejected` with `FAILED_PRECONDITION`:
    /// another revision is there. Without a session and without a revision to meet, a call of unknown outcome is not
    /// repeated.
    pub async fn send(self) -> Result<KvDeleteResponse, Error> {
        let KvDelete { client, mut request, session } = self;
        let _under_way = identify(&mut request.request, session.as_ref());
        let identified = request.request.is_some();
        let outcome = client
            .call_in_full(plan(identified, request.if_mod_rev), |channel| {
                let request = request.clone();
                async move { stub(channel).delete(request).await }
            })
            .await;
        judged(outcome, identified)
    }
}

impl From<KvDelete> for KvDeleteRequest {
    /// The request alone, as a transaction takes it.
    fn from(delete: KvDelete) -> Self {
        delete.request
    }
}

impl IntoFuture for KvDelete {
    type Output = Result<KvDeleteResponse, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

/// A revision is met once: revs are never used again.
pub(super) fn plan(identified: bool, if_mod_rev: u64) -> Plan {
    if identified || if_mod_rev > 0 { Plan::SAFE } else { Plan::UNSAFE }
}

/// Puts what is too large for the log beside it.
pub(crate) async fn offload(client: &Client, put: &mut KvPutRequest) -> Result<(), Error> {
    if put.value.len() <= INLINE_BYTES {
        return Ok(());
    }
    if !matches!(put.merge(), KvMerge::Unspecified | KvMerge::Replace) {
        let message = format!("a value that is merged must be at most {INLINE_BYTES} bytes; got {}", put.value.len());
        return Err(Error::Config { message });
    }
    put.blob = Some(client.blobs().put(std::mem::take(&mut put.value)).await?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::call::Repeat;

    fn kv() -> (Session, super::super::Kv) {
        let session = Session::alone(Duration::from_secs(60), Instant::now());
        let client = session.client().clone();
        (session, super::super::Kv { client })
    }

    #[test]
    fn only_what_happens_once_is_sent_again() {
        assert_eq!(plan(false, 0).repeat, Repeat::Unsafe);
        assert_eq!(plan(true, 0).repeat, Repeat::Safe);
        assert_eq!(plan(false, 7).repeat, Repeat::Safe);
    }

    #[tokio::test]
    async fn a_revision_of_0_means_that_there_is_none() {
        let (_session, kv) = kv();
        let put: KvPutRequest = kv.put("k", "v").if_rev(7).into();
        assert_eq!((put.if_mod_rev, put.if_absent), (7, false));
        let put: KvPutRequest = kv.put("k", "v").if_rev(0).into();
        assert_eq!((put.if_mod_rev, put.if_absent), (0, true));
    }

    #[tokio::test]
    async fn what_goes_with_a_session_is_sent_under_its_id() {
        let (session, kv) = kv();
        let put = kv.put("k", "v").session(&session);
        assert!(put.session.is_some());
        assert_eq!(KvPutRequest::from(put).session_id, session.id());
    }

    #[tokio::test]
    async fn what_is_merged_stays_in_the_log_and_what_fits_is_left_as_it_is() {
        let (_session, kv) = kv();
        let large = || Bytes::from(vec![0_u8; INLINE_BYTES + 1]);
        let refused = kv.put("k", large()).merge(KvMerge::Append).send().await;
        assert!(matches!(refused, Err(Error::Config { .. })), "{refused:?}");
        let mut fits: KvPutRequest = kv.put("k", large().slice(1..)).into();
        offload(&kv.client, &mut fits).await.unwrap();
        assert!(fits.blob.is_none() && fits.value.len() == INLINE_BYTES);
    }
}
