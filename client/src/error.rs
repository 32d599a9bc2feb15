//! How a call can end other than well, and what a status from the wire says about its effect.

use std::error::Error as _;

use quorate_proto::v1::RejectionCode;
use tonic::{Code, Status};

/// What the field is called of a refusal that is about the call's own fence.
pub(crate) const FENCE_FIELD: &str = "fence";

/// Why a call brought no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The cluster refused; nothing changed.
    #[error("{message}")]
    Rejected {
        /// The kind of refusal.
        code: RejectionCode,
        /// The request field at fault, empty if none in particular.
        field: String,
        /// One sentence for a person.
        message: String,
    },
    /// A token was superseded: the call's own, so that somebody else has by now what it is about, or that of a grant
    /// that the call was made under ([`Error::fence_is_over`]). Nothing changed; but a task's result that came with the
    /// task's old token is kept as an orphan.
    #[error("{message}")]
    Fenced {
        /// The request field that carried the token, empty if none in particular.
        field: String,
        /// One sentence for a person.
        message: String,
    },
    /// No node could take the call in time. It certainly had no effect.
    #[error("{message} (last: {last})")]
    Unavailable {
        /// One sentence for a person.
        message: String,
        /// What the last node said.
        last: String,
    },
    /// The call may have taken effect, may still, or may never.
    #[error("outcome unknown: {message}")]
    OutcomeUnknown {
        /// One sentence for a person.
        message: String,
    },
    /// Nothing came in time. What was asked for may still happen.
    #[error("{message}")]
    TimedOut {
        /// One sentence for a person.
        message: String,
    },
    /// Some of what was asked for is not kept any more.
    #[error("{message}")]
    Compacted {
        /// One sentence for a person.
        message: String,
        /// What is kept begins with this rev.
        oldest_rev: u64,
    },
    /// The client was told something that cannot be.
    #[error("{message}")]
    Config {
        /// Names the setting and what would be accepted.
        message: String,
    },
}

impl Error {
    /// What was named does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::Rejected { code: RejectionCode::NotFound, .. })
    }

    /// The call was made under a grant ([`Client::fenced`](crate::Client::fenced)) that is over: nobody looked at what it
    /// asked for.
    pub fn fence_is_over(&self) -> bool {
        matches!(self, Error::Fenced { field, .. } if field == FENCE_FIELD)
    }

    /// The call certainly had no effect and may do better later.
    pub fn retry_is_safe(&self) -> bool {
        matches!(self, Error::Unavailable { .. })
    }
}

/// What a failed attempt says.
#[derive(Debug, Clone)]
pub(crate) enum Failure {
    /// Another attempt cannot change it.
    Final(Error),
    /// Certainly without effect: try again, here or elsewhere.
    NoEffect(String),
    /// It may have taken effect: only what is safe to repeat may be tried again.
    Unknown(String),
}

/// Where the leader is, according to the node that answered.
pub(crate) fn leader_hint(metadata: &tonic::metadata::MetadataMap) -> Option<String> {
    metadata.get("quorate-leader").and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// The request field at fault, according to the node that answered.
pub(crate) fn field_of(status: &Status) -> Option<&str> {
    status.metadata().get("quorate-field").and_then(|value| value.to_str().ok())
}

/// Reads a status. Only a node's own word, or a connection that was never made, proves that nothing happened.
pub(crate) fn classify(status: &Status) -> Failure {
    let message = status.message().to_owned();
    let marked = |key: &str| status.metadata().contains_key(key);
    let field = || field_of(status).unwrap_or_default().to_owned();
    let rejected = |code| Failure::Final(Error::Rejected { code, field: field(), message: message.clone() });
    match status.code() {
        Code::InvalidArgument => rejected(RejectionCode::InvalidArgument),
        Code::NotFound => rejected(RejectionCode::NotFound),
        Code::AlreadyExists => rejected(RejectionCode::AlreadyExists),
        Code::FailedPrecondition => rejected(RejectionCode::FailedPrecondition),
        Code::ResourceExhausted if marked("quorate-overload") => Failure::NoEffect(message),
        // Without the mark it is HTTP/2's word, which cuts off calls under way.
        Code::ResourceExhausted if marked("quorate-rejected") => rejected(RejectionCode::ResourceExhausted),
        Code::Aborted => Failure::Final(Error::Fenced { field: field(), message }),
        _ if marked("quorate-no-effect") || never_connected(status) => Failure::NoEffect(message),
        _ => Failure::Unknown(format!("{}: {message}", status.code())),
    }
}

/// The connection could not be made, for want of an address or of anyone there: nothing was sent.
fn never_connected(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(code: Code, key: &'static str) -> Status {
        let mut status = Status::new(code, "no");
        status.metadata_mut().insert(key, "1".parse().unwrap());
        status
    }

    #[test]
    fn only_a_marked_status_proves_that_nothing_happened() {
        assert!(matches!(classify(&marked(Code::Unavailable, "quorate-no-effect")), Failure::NoEffect(_)));
        assert!(matches!(classify(&marked(Code::ResourceExhausted, "quorate-overload")), Failure::NoEffect(_)));
        for code in [
            Code::Unavailable,
            Code::ResourceExhausted,
            Code::Unknown,
            Code::Cancelled,
            Code::Internal,
            Code::DeadlineExceeded,
        ] {
            assert!(matches!(classify(&Status::new(code, "broken")), Failure::Unknown(_)), "{code:?}");
        }
    }

    #[test]
    fn a_connection_never_made_proves_it_too() {
        let error = tonic::ConnectError(Box::new(std::io::Error::other("dns error")));
        assert!(matches!(classify(&Status::from_error(Box::new(error))), Failure::NoEffect(_)));
        let error = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert!(matches!(classify(&Status::from_error(Box::new(error))), Failure::Unknown(_)));
    }

    #[test]
    fn refusals_keep_their_kind_and_field() {
        let mut status = Status::invalid_argument("priority must be 0 to 10");
        status.metadata_mut().insert("quorate-field", "tasks[0].priority".parse().unwrap());
        let Failure::Final(Error::Rejected { code, field, .. }) = classify(&status) else { panic!("not final") };
        assert_eq!((code, field.as_str()), (RejectionCode::InvalidArgument, "tasks[0].priority"));
        assert!(matches!(classify(&Status::aborted("old token")), Failure::Final(Error::Fenced { .. })));
        assert!(matches!(
            classify(&marked(Code::ResourceExhausted, "quorate-rejected")),
            Failure::Final(Error::Rejected { .. })
        ));
    }

    #[test]
    fn a_fence_that_is_over_is_told_from_a_token_that_is() {
        let fenced = |field: &'static str| {
            let mut status = Status::aborted("not held any more");
            status.metadata_mut().insert("quorate-field", field.parse().unwrap());
            let Failure::Final(error) = classify(&status) else { panic!("not final") };
            error
        };
        assert!(fenced("fence").fence_is_over());
        assert!(!fenced("token").fence_is_over());
        let Failure::Final(bare) = classify(&Status::aborted("old token")) else { panic!("not final") };
        assert!(matches!(&bare, Error::Fenced { field, .. } if field.is_empty()) && !bare.fence_is_over());
    }
}
