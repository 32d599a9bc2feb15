//! The one place where an outcome becomes a [`tonic::Status`].
//!
//! | status | means | metadata |
//! |---|---|---|
//! | `INVALID_ARGUMENT`, `NOT_FOUND`, `ALREADY_EXISTS`, `FAILED_PRECONDITION` | refused, nothing changed | `quorate-field` |
//! | `ABORTED` | the token or epoch was superseded | `quorate-field` |
//! | `RESOURCE_EXHAUSTED` | a limit; with `quorate-overload`, come again later | `quorate-rejected`, if a room said so |
//! | `OUT_OF_RANGE` | a place in the history that is gone or to come | `quorate-field`, `quorate-oldest-rev` |
//! | `UNAVAILABLE` + `quorate-no-effect` | certainly without effect: try again, perhaps elsewhere | `quorate-leader` |
//! | `UNKNOWN` | may have taken effect, may still, or may never | `quorate-leader` |
//! | `INTERNAL` | this node met a fault and is stopping | |

use quorate_proto::v1::{Rejection, RejectionCode};
use quorate_raft::error::Fatal;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use crate::propose::ProposeError;

/// The request field at fault.
pub(crate) const FIELD_KEY: &str = "quorate-field";
/// The gRPC address of the leader, if it is another node.
pub(crate) const LEADER_KEY: &str = "quorate-leader";
/// The call certainly had no effect.
pub(crate) const NO_EFFECT_KEY: &str = "quorate-no-effect";
/// A room refused the command: HTTP/2 knows RESOURCE_EXHAUSTED too, and means something else by it.
pub(crate) const REJECTED_KEY: &str = "quorate-rejected";
/// The limit is one of the moment.
pub(crate) const OVERLOAD_KEY: &str = "quorate-overload";

/// The oldest rev of the history that is kept.
pub(crate) const OLDEST_REV_KEY: &str = "quorate-oldest-rev";

const MAX_TEXT_BYTES: usize = 2_048;

/// A refusal by a room.
pub(crate) fn rejected(rejection: &Rejection) -> Status {
    let code = match rejection.code() {
        RejectionCode::InvalidArgument => Code::InvalidArgument,
        RejectionCode::NotFound => Code::NotFound,
        RejectionCode::AlreadyExists => Code::AlreadyExists,
        RejectionCode::FailedPrecondition => Code::FailedPrecondition,
        RejectionCode::Aborted => Code::Aborted,
        RejectionCode::ResourceExhausted | RejectionCode::Overloaded => Code::ResourceExhausted,
        RejectionCode::Unspecified => Code::Internal,
    };
    let mut status = Status::new(code, clipped(&rejection.message));
    insert(status.metadata_mut(), FIELD_KEY, clipped(&rejection.field));
    if rejection.code() == RejectionCode::Overloaded {
        insert(status.metadata_mut(), OVERLOAD_KEY, "1");
        insert(status.metadata_mut(), NO_EFFECT_KEY, "1");
    } else {
        insert(status.metadata_mut(), REJECTED_KEY, "1");
    }
    status
}

/// A refusal at the door: the request's shape is wrong.
pub(crate) fn invalid(field: &str, message: impl Into<String>) -> Status {
    let mut status = Status::invalid_argument(clipped(&message.into()));
    insert(status.metadata_mut(), FIELD_KEY, clipped(field));
    status
}

/// Something that was named is not there.
pub(crate) fn missing(field: &str, message: impl Into<String>) -> Status {
    let mut status = Status::not_found(clipped(&message.into()));
    insert(status.metadata_mut(), FIELD_KEY, clipped(field));
    status
}

/// A place in the history that is not there: not yet, or, with the oldest one that is, not any more.
pub(crate) fn out_of_range(message: impl Into<String>, oldest_rev: u64) -> Status {
    let mut status = Status::out_of_range(clipped(&message.into()));
    insert(status.metadata_mut(), FIELD_KEY, "from_rev");
    if oldest_rev > 0 {
        insert(status.metadata_mut(), OLDEST_REV_KEY, &oldest_rev.to_string());
    }
    status
}

/// What a status says travels as headers, and a peer that gets too many of those hangs up instead of reading them.
fn clipped(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT_BYTES)]
}

/// No answer from the log.
pub(crate) fn not_proposed(error: &ProposeError, leader: Option<String>) -> Status {
    let mut status = match error {
        ProposeError::NotNow(message) => unavailable(message),
        ProposeError::Overloaded => {
            let mut status = Status::resource_exhausted(error.to_string());
            insert(status.metadata_mut(), OVERLOAD_KEY, "1");
            insert(status.metadata_mut(), NO_EFFECT_KEY, "1");
            status
        }
        ProposeError::DiskLow(message) => rejected(&Rejection {
            code: RejectionCode::ResourceExhausted as i32,
            field: crate::disk::FIELD.to_owned(),
            message: message.clone(),
        }),
        ProposeError::TooNew(message) => rejected(&Rejection {
            code: RejectionCode::FailedPrecondition as i32,
            field: String::new(),
            message: message.clone(),
        }),
        ProposeError::TooLarge(_) => Status::invalid_argument(error.to_string()),
        ProposeError::Unknown(_) => Status::unknown(error.to_string()),
    };
    hint(status.metadata_mut(), leader);
    status
}

/// Nothing was done, and somebody else or a later moment may do better.
pub(crate) fn unavailable(message: &str) -> Status {
    let mut status = Status::unavailable(message);
    insert(status.metadata_mut(), NO_EFFECT_KEY, "1");
    status
}

/// A fresh enough read is not to be had here now.
pub(crate) fn not_readable(message: &str, leader: Option<String>) -> Status {
    let mut status = unavailable(&format!("a linearizable read is not possible now: {message}"));
    hint(status.metadata_mut(), leader);
    status
}

/// A fault of this node.
pub(crate) fn fault(fatal: &Fatal) -> Status {
    Status::internal(fatal.to_string())
}

/// Tells the caller who leads.
pub(crate) fn hint(metadata: &mut MetadataMap, leader: Option<String>) {
    if let Some(leader) = leader {
        insert(metadata, LEADER_KEY, &leader);
    }
}

fn insert(metadata: &mut MetadataMap, key: &'static str, value: &str) {
    // A value that is not ASCII is left out: metadata is a hint.
    if !value.is_empty()
        && let Ok(value) = value.parse()
    {
        metadata.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rejection_has_its_code_and_names_its_field() {
        let table = [
            (RejectionCode::InvalidArgument, Code::InvalidArgument),
            (RejectionCode::NotFound, Code::NotFound),
            (RejectionCode::AlreadyExists, Code::AlreadyExists),
            (RejectionCode::FailedPrecondition, Code::FailedPrecondition),
            (RejectionCode::Aborted, Code::Aborted),
            (RejectionCode::ResourceExhausted, Code::ResourceExhausted),
        ];
        for (code, wanted) in table {
            let rejection = Rejection { code: code as i32, message: "no".to_owned(), field: "tasks[0].id".to_owned() };
            let status = rejected(&rejection);
            assert_eq!(status.code(), wanted);
            assert_eq!(status.metadata().get(FIELD_KEY).unwrap(), "tasks[0].id");
        }
    }

    #[test]
    fn an_unknown_outcome_is_never_called_a_failure_without_effect() {
        let status = not_proposed(&ProposeError::Unknown("leader lost".to_owned()), Some("h:1".to_owned()));
        assert_eq!(status.code(), Code::Unknown);
        assert!(status.metadata().get(NO_EFFECT_KEY).is_none());
        assert_eq!(status.metadata().get(LEADER_KEY).unwrap(), "h:1");
    }
}
