//! Request ids: who gives a write one, what it means for sending it again, and sending it until it is answered.
//!
//! Deliberately absent: what the writes say. Rooms know that.

use std::time::Duration;

use quorate_proto::v1::{RejectionCode, RequestId};
use tokio::time::sleep;

use crate::call::{Outcome, Plan};
use crate::error::Error;
use crate::sessions::{Session, UnderWay};

/// The pause before a write that nobody took is sent again, on top of the call's own retries.
const PAUSE: Duration = Duration::from_millis(200);
/// How the field of a refusal begins that is about the id, and not about the write.
const ABOUT_THE_ID: &str = "request.";

/// The field of a refusal for want of space, which no request has.
pub(crate) const ABOUT_THE_DISK: &str = "disk";
const SESSION_FIELD: &str = "request.session_id";

/// Gives a write an id, if it has none and there is a session to draw one from. Keep what comes back until the answer.
pub(crate) fn identify(request: &mut Option<RequestId>, session: Option<&Session>) -> Option<UnderWay> {
    if request.is_some() {
        return None;
    }
    let under_way = session?.begin();
    *request = Some(under_way.id());
    Some(under_way)
}

/// For a write that would happen twice, unless it has an id.
pub(crate) fn plan(request: Option<&RequestId>) -> Plan {
    if request.is_some() { Plan::SAFE } else { Plan::UNSAFE }
}

/// A refusal after an attempt of unknown outcome says nothing of that attempt, unless the cluster knows both by one id.
/// What is malformed was so the first time.
pub(crate) fn judged<T>(outcome: Outcome<T>, identified: bool) -> Result<T, Error> {
    let says_it = |field: &str| identified && !field.starts_with(ABOUT_THE_ID) && field != ABOUT_THE_DISK;
    match outcome.result {
        Err(Error::Rejected { code, field, message })
            if outcome.doubt && code != RejectionCode::InvalidArgument && !says_it(&field) =>
        {
            Err(unknown(&message))
        }
        Err(Error::Fenced { message, .. }) if outcome.doubt && !identified => Err(unknown(&message)),
        result => result,
    }
}

/// A removal that finds nothing to remove, after an attempt of unknown outcome, finds that attempt's work.
pub(crate) fn removed<T: Default>(outcome: Outcome<T>) -> Result<T, Error> {
    match outcome.result {
        Err(error) if outcome.doubt && error.is_not_found() => Ok(T::default()),
        result => result,
    }
}

fn unknown(message: &str) -> Error {
    Error::OutcomeUnknown { message: format!("{message}; an earlier attempt of this very call may have taken effect") }
}

/// Whatever the session held is not its holder's any more.
pub(crate) fn session_over(session: &Session) -> Error {
    let message = format!("session {} has ended, and what it held with it", session.id());
    Error::Fenced { field: "session_id".to_owned(), message }
}

/// The cluster does not know the session.
pub(crate) fn is_session_unknown(error: &Error) -> bool {
    let names_it = |field: &str| field == SESSION_FIELD || field == "session_id";
    matches!(error, Error::Rejected { code: RejectionCode::NotFound, field, .. } if names_it(field))
}

/// Whether the same call may yet be taken.
pub(crate) fn may_pass(error: &Error) -> bool {
    match error {
        Error::Unavailable { .. } | Error::OutcomeUnknown { .. } => true,
        // A limit on what the session has under way, or a disk that is full for now: not about this write.
        Error::Rejected { code: RejectionCode::ResourceExhausted, field, .. } => {
            field.starts_with(ABOUT_THE_ID) || field == ABOUT_THE_DISK
        }
        _ => false,
    }
}

/// Whether one that had a place in the cluster before may have one again, later: nobody could be reached, or others take
/// up the room.
pub(crate) fn may_begin_again(error: &Error) -> bool {
    match error {
        Error::Unavailable { .. } | Error::OutcomeUnknown { .. } => true,
        Error::Rejected { code, .. } => *code == RejectionCode::ResourceExhausted,
        Error::Fenced { .. } | Error::TimedOut { .. } | Error::Compacted { .. } | Error::Config { .. } => false,
    }
}

/// Sends a write, always under the same id, until there is an answer or the session is over. `Fenced`: it was over
/// before anything can have happened.
pub(crate) async fn insist<T, F>(session: &Session, mut send: impl FnMut(RequestId) -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    if !session.is_alive() {
        return Err(session_over(session));
    }
    let under_way = session.begin();
    let mut doubt = false;
    loop {
        let answer = tokio::select! {
            answer = send(under_way.id()) => answer,
            () = session.ended() => return Err(cut_short(session, true)),
        };
        match answer {
            Err(error) if may_pass(&error) => {
                doubt |= matches!(error, Error::OutcomeUnknown { .. });
                tracing::warn!(session = session.id(), %error, "a write was not taken; sending it again");
            }
            Err(error) if is_session_unknown(&error) => {
                session.lost();
                return Err(cut_short(session, doubt));
            }
            answer => return answer,
        }
        tokio::select! {
            () = sleep(PAUSE) => {}
            () = session.ended() => return Err(cut_short(session, doubt)),
        }
    }
}

fn cut_short(session: &Session, doubt: bool) -> Error {
    if !doubt {
        return session_over(session);
    }
    Error::OutcomeUnknown { message: format!("session {} ended before the answer came", session.id()) }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::call::Repeat;

    const TTL: Duration = Duration::from_secs(60);

    fn rejected(code: RejectionCode, field: &str) -> Error {
        Error::Rejected { code, field: field.to_owned(), message: "no".to_owned() }
    }

    fn refused(error: Error, doubt: bool) -> Outcome<()> {
        Outcome { result: Err(error), sent: Instant::now(), doubt, node: None }
    }

    #[test]
    fn a_refusal_in_doubt_is_unknown_unless_an_id_ties_it_to_the_first_attempt() {
        use RejectionCode::{FailedPrecondition, InvalidArgument, NotFound};
        let is_unknown = |error: &Error, doubt, identified| {
            matches!(judged(refused(error.clone(), doubt), identified), Err(Error::OutcomeUnknown { .. }))
        };
        let stale = rejected(FailedPrecondition, "if_mod_rev");
        assert!(is_unknown(&stale, true, false));
        assert!(!is_unknown(&stale, true, true), "the answer of the first attempt");
        assert!(!is_unknown(&stale, false, false), "there was no attempt before");
        assert!(!is_unknown(&rejected(InvalidArgument, "key"), true, false), "malformed the first time too");
        assert!(is_unknown(&rejected(NotFound, SESSION_FIELD), true, true), "the session ended in between");
        let fenced = Error::Fenced { field: "token".to_owned(), message: "old".to_owned() };
        assert!(is_unknown(&fenced, true, false) && !is_unknown(&fenced, true, true));
    }

    #[test]
    fn a_full_cluster_may_have_room_later_and_what_is_wrong_stays_wrong() {
        assert!(may_begin_again(&rejected(RejectionCode::ResourceExhausted, "session_id")));
        assert!(!may_begin_again(&rejected(RejectionCode::InvalidArgument, "agent_id")));
    }

    #[test]
    fn a_removal_that_may_have_happened_and_finds_nothing_has_happened() {
        let gone = rejected(RejectionCode::NotFound, "name");
        assert!(removed(refused(gone.clone(), false)).unwrap_err().is_not_found());
        assert!(removed(refused(gone, true)).is_ok());
    }

    #[tokio::test]
    async fn an_id_of_the_callers_own_is_kept_and_without_a_session_there_is_none() {
        let session = Session::alone(TTL, Instant::now());
        let own = RequestId { session_id: "s-other".to_owned(), sequence: 7, done_below: 3 };
        let mut request = Some(own.clone());
        assert!(identify(&mut request, Some(&session)).is_none());
        assert_eq!(request, Some(own));
        let mut request = None;
        assert!(identify(&mut request, None).is_none() && plan(request.as_ref()).repeat == Repeat::Unsafe);
        let under_way = identify(&mut request, Some(&session));
        assert!(under_way.is_some() && plan(request.as_ref()).repeat == Repeat::Safe);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_is_sent_again_under_its_id_until_it_is_answered() {
        let session = Session::alone(TTL, Instant::now());
        let mut sent = Vec::new();
        let answer = insist(&session, |id| {
            sent.push(id.sequence);
            let lost = Error::OutcomeUnknown { message: "lost".to_owned() };
            std::future::ready(if sent.len() < 3 { Err(lost) } else { Ok(7) })
        });
        assert_eq!(answer.await.ok(), Some(7));
        assert_eq!(sent, [1, 1, 1]);
        assert_eq!(session.next_request().done_below, 2, "it is answered");
    }

    #[tokio::test]
    async fn a_write_is_given_up_with_the_session_and_what_that_means_is_said() {
        let session = Session::alone(TTL, Instant::now());
        let never_answered = insist(&session, |_| std::future::pending::<Result<(), Error>>());
        let (given_up, ()) = tokio::join!(timeout(TTL, never_answered), async { session.lost() });
        assert!(matches!(given_up, Ok(Err(Error::OutcomeUnknown { .. }))), "{given_up:?}");
        let too_late = insist(&session, |_| std::future::ready(Ok::<(), Error>(()))).await;
        assert!(matches!(too_late, Err(Error::Fenced { .. })), "{too_late:?}");
        let session = Session::alone(TTL, Instant::now());
        let unknown = rejected(RejectionCode::NotFound, SESSION_FIELD);
        let refused = insist(&session, |_| std::future::ready(Err::<(), Error>(unknown.clone()))).await;
        assert!(matches!(refused, Err(Error::Fenced { .. })) && !session.is_alive(), "{refused:?}");
    }
}
