//! How a worker reaches the documents, and what it records of each answer.
//!
//! Deliberately absent: resends of its own. The library repeats what is safe to repeat; a single node is asked once.

use std::time::Duration;

use anyhow::Result;
use quorate_client::v1::{
    KvDeleteRequest, KvEntry, KvGetRequest, KvPutRequest, KvPutResponse, RejectionCode, RequestId,
};
use quorate_client::{Client, Error, Session};
use serde_json::json;
use tonic::{Code, Status};

use super::super::Context;
use super::super::direct::{Direct, effect};
use super::super::documents::{listing, only_of, read, shown};
use crate::record::Answer;

/// What a worker saw of a key. All zero: that there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) version: u64,
    pub(super) mod_rev: u64,
}

impl Seen {
    fn of(entry: Option<&KvEntry>) -> Self {
        entry.map_or_else(Self::default, |entry| Self { version: entry.version, mod_rev: entry.mod_rev })
    }
}

/// How a write ended that brought no answer.
enum Ended {
    /// Its condition did not hold.
    Refused,
    Otherwise(Answer),
}

impl Ended {
    fn of_error(error: &Error) -> Self {
        match error {
            Error::Rejected { code: RejectionCode::FailedPrecondition, .. } => Ended::Refused,
            error => Ended::Otherwise(Answer::of_error(error)),
        }
    }

    fn of_status(status: &Status) -> Self {
        match status.code() {
            Code::FailedPrecondition => Ended::Refused,
            _ => Ended::Otherwise(effect(status)),
        }
    }

    /// What is recorded of a write without a condition.
    fn answer(self) -> Answer {
        match self {
            Ended::Refused => Answer::Fail,
            Ended::Otherwise(answer) => answer,
        }
    }
}

/// Where a worker's calls go.
pub(super) enum Way {
    /// Wherever the library goes.
    Any(Client),
    /// To one node.
    One(Direct),
}

impl Way {
    /// Every other worker asks one node; they take turns.
    pub(super) fn of(context: &Context, worker: u64, patience: Duration) -> Result<Self> {
        let mut nodes = Direct::all(context, patience)?;
        if worker.is_multiple_of(2) || nodes.is_empty() {
            return Ok(Way::Any(context.client(worker, patience)?));
        }
        let place = (worker / 2) as usize % nodes.len();
        Ok(Way::One(nodes.swap_remove(place)))
    }

    /// The node that is asked, if it is one.
    pub(super) fn node(&self) -> Option<u64> {
        match self {
            Way::Any(_) => None,
            Way::One(node) => Some(node.id()),
        }
    }

    /// Reads by a listing.
    pub(super) async fn read(&self, key: &str) -> (Answer, Seen) {
        match self.listed(key).await {
            Some((entry, rev)) => (Answer::at(rev, shown(entry.as_ref())), Seen::of(entry.as_ref())),
            None => (Answer::Fail, Seen::default()),
        }
    }

    /// Reads by a `get`. `floor`: every place at which this worker has been answered before is at most this one.
    pub(super) async fn get(&self, key: &str, floor: u64) -> (Answer, Seen) {
        let got = match self {
            Way::Any(client) => client.kv().get(key).await.ok(),
            Way::One(node) => {
                let request = KvGetRequest { key: key.to_owned(), ..KvGetRequest::default() };
                match node.call(node.kv().get(request)).await {
                    Ok(found) => {
                        let seen = Seen::of(found.entry.as_ref());
                        return (Answer::at(found.rev, shown(found.entry.as_ref())), seen);
                    }
                    Err(status) if status.code() == Code::NotFound => Some(None),
                    Err(_) => None,
                }
            }
        };
        let Some(got) = got else { return (Answer::Fail, Seen::default()) };
        let answer = match self.listed(key).await {
            Some((is, rev)) => placed(got.as_ref(), is.as_ref(), rev, floor),
            None => Answer::Fail,
        };
        (answer, Seen::of(got.as_ref()))
    }

    async fn listed(&self, key: &str) -> Option<(Option<KvEntry>, u64)> {
        match self {
            Way::Any(client) => read(client, key).await.ok(),
            Way::One(node) => {
                let page = node.call(node.kv().list(listing(key))).await.ok()?;
                Some((only_of(key, page.entries), page.rev))
            }
        }
    }

    /// Writes, whatever is there.
    pub(super) async fn put(&self, key: &str, value: &str, session: Option<&Session>) -> Answer {
        match self.write(key, value, None, session).await {
            Ok(put) => written(&put, false),
            Err(ended) => ended.answer(),
        }
    }

    /// Writes if what was seen is still there.
    pub(super) async fn exchange(&self, key: &str, seen: &Seen, value: &str, session: Option<&Session>) -> Answer {
        match self.write(key, value, Some(seen.mod_rev), session).await {
            Ok(put) => written(&put, true),
            Err(Ended::Refused) => self.refused(key, seen).await,
            Err(ended) => ended.answer(),
        }
    }

    /// A refusal does not say at which place it was made; whoever looks after it is told of one, and of what is there.
    async fn refused(&self, key: &str, seen: &Seen) -> Answer {
        match self.listed(key).await {
            Some((is, rev)) => declined(seen, Seen::of(is.as_ref()), rev),
            None => Answer::Fail,
        }
    }

    /// Removes, whatever is there.
    pub(super) async fn delete(&self, key: &str, session: Option<&Session>) -> Answer {
        let removed = match self {
            Way::Any(client) => {
                let delete = client.kv().delete(key);
                let delete = if let Some(session) = session { delete.request(session) } else { delete };
                delete.send().await.map_err(|error| Ended::of_error(&error))
            }
            Way::One(node) => {
                let request = session.map(Session::next_request);
                let delete =
                    KvDeleteRequest { key: key.to_owned(), request: request.clone(), ..KvDeleteRequest::default() };
                let removed = node.call(node.kv().delete(delete)).await;
                answered(session, request);
                removed.map_err(|status| Ended::of_status(&status))
            }
        };
        match removed {
            Ok(removed) => Answer::at(removed.rev, json!({ "version": 0 })),
            Err(ended) => ended.answer(),
        }
    }

    /// `mod_rev`: what must be there, 0 for nothing; `None`: whatever is there.
    async fn write(
        &self,
        key: &str,
        value: &str,
        mod_rev: Option<u64>,
        session: Option<&Session>,
    ) -> Result<KvPutResponse, Ended> {
        match self {
            Way::Any(client) => {
                let put = client.kv().put(key, value.to_owned());
                let put = if let Some(mod_rev) = mod_rev { put.if_rev(mod_rev) } else { put };
                let put = if let Some(session) = session { put.request(session) } else { put };
                put.send().await.map_err(|error| Ended::of_error(&error))
            }
            Way::One(node) => {
                let request = session.map(Session::next_request);
                let put = KvPutRequest {
                    key: key.to_owned(),
                    value: value.to_owned().into(),
                    if_mod_rev: mod_rev.unwrap_or_default(),
                    if_absent: mod_rev == Some(0),
                    request: request.clone(),
                    ..KvPutRequest::default()
                };
                let put = node.call(node.kv().put(put)).await;
                answered(session, request);
                put.map_err(|status| Ended::of_status(&status))
            }
        }
    }
}

/// The id is not used again.
fn answered(session: Option<&Session>, request: Option<RequestId>) {
    if let (Some(session), Some(request)) = (session, request) {
        session.done(request.sequence);
    }
}

/// The answer of a `put` or a `cas`, as histories have it.
fn written(put: &KvPutResponse, is_exchange: bool) -> Answer {
    let version = put.entry.as_ref().map_or(0, |entry| entry.version);
    let res = if is_exchange { json!({ "ok": true, "version": version }) } else { json!({ "version": version }) };
    Answer::at(put.rev, res)
}

/// What a `get` said without a place, where a listing after it shows `is` at `rev`.
fn placed(got: Option<&KvEntry>, is: Option<&KvEntry>, rev: u64, floor: u64) -> Answer {
    let is_same = Seen::of(got) == Seen::of(is);
    // What the listing shows was there before anybody asked, so that no place has what the get said: to be judged.
    let is_wrong = is.is_some_and(|is| if got.is_some() { is.mod_rev <= floor } else { is.create_rev <= floor });
    if is_same || is_wrong { Answer::at(rev, shown(got)) } else { Answer::Fail }
}

/// A refused exchange of `seen`, where a listing after it shows `is` at `rev`.
fn declined(seen: &Seen, is: Seen, rev: u64) -> Answer {
    // Somebody may have removed it after the refusal. No other version comes back.
    if seen.version == 0 && is.version == 0 {
        return Answer::Fail;
    }
    Answer::at(rev, json!({ "ok": false, "version": is.version }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(version: u64, create_rev: u64, mod_rev: u64) -> KvEntry {
        KvEntry { key: "k".to_owned(), value: "v".into(), version, create_rev, mod_rev, ..KvEntry::default() }
    }

    #[test]
    fn a_get_is_placed_where_the_listing_says_the_same() {
        let there = entry(2, 5, 7);
        assert_eq!(placed(Some(&there), Some(&there), 9, 0), Answer::at(9, shown(Some(&there))));
        assert_eq!(placed(None, None, 9, 0), Answer::at(9, shown(None)));
        let later = entry(3, 5, 8);
        assert_eq!(placed(Some(&there), Some(&later), 9, 7), Answer::Fail, "written in between");
        assert_eq!(placed(None, Some(&entry(1, 8, 8)), 9, 7), Answer::Fail, "written in between");
        assert_eq!(placed(Some(&there), None, 9, 8), Answer::Fail, "removed in between");
    }

    #[test]
    fn a_get_that_cannot_be_true_is_kept_to_be_judged() {
        let (old, new) = (entry(2, 5, 7), entry(3, 5, 8));
        assert_eq!(placed(Some(&old), Some(&new), 9, 8), Answer::at(9, shown(Some(&old))));
        assert_eq!(placed(None, Some(&new), 9, 5), Answer::at(9, shown(None)));
    }

    #[test]
    fn a_refusal_is_recorded_with_what_is_there_unless_that_may_have_come_back() {
        let seen = Seen { version: 2, mod_rev: 7 };
        let there = Seen { version: 3, mod_rev: 8 };
        assert_eq!(declined(&seen, there, 9), Answer::at(9, json!({ "ok": false, "version": 3 })));
        assert_eq!(declined(&seen, Seen::default(), 9), Answer::at(9, json!({ "ok": false, "version": 0 })));
        assert_eq!(declined(&seen, seen, 9), Answer::at(9, json!({ "ok": false, "version": 2 })), "to be judged");
        assert_eq!(declined(&Seen::default(), Seen::default(), 9), Answer::Fail);
    }

    #[test]
    fn only_a_condition_is_a_refusal() {
        assert!(matches!(Ended::of_status(&Status::failed_precondition("no")), Ended::Refused));
        assert!(matches!(Ended::of_status(&Status::unknown("no")), Ended::Otherwise(Answer::Info)));
        let lost = Error::OutcomeUnknown { message: "lost".to_owned() };
        assert!(matches!(Ended::of_error(&lost), Ended::Otherwise(Answer::Info)));
    }
}
