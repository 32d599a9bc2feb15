//! What the commands should have done, told by a model that shares nothing with the state machine.
//!
//! The first time that any node applies an entry, its commands and answers come here in the order of the log, which is
//! the order of their revs. The model says what each answer had to be. Clients tell it when they begin a call and what
//! they were answered: the answer must be the log's own, and its rev must be above that of every call answered before
//! this one began. Both together are strict serializability.
//!
//! - documents: versions without a gap, conditions held, reads see the newest write at their rev;
//! - requests: each has one effect, and a resend gets its answer;
//! - locks: tokens rise; a fenced write that was let in carries the newest token;
//! - tasks: tokens rise; a finish that counts comes under the newest, once a task.
//!
//! Deliberately absent: leases and deadlines (`load` looks at sessions), and rooms that the load does not use.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;
use quorate_proto::log::{Answer, Batch, Command, answer, command};
use quorate_proto::v1::{Fence, FinishKind, KvEntry, KvPutRequest, Rejection, RejectionCode, RequestId};

use crate::invariants::hash_of;

/// One version of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    /// The rev that wrote it.
    pub(crate) rev: u64,
    number: u64,
    value: Bytes,
}

/// The model, and what it was told.
#[derive(Debug, Default)]
pub(crate) struct Model {
    /// The hash of the answer at each rev.
    answers: BTreeMap<u64, u64>,
    requests: BTreeMap<(String, u64), u64>,
    documents: BTreeMap<String, Vec<Version>>,
    /// The newest token of each lock, and whose it is.
    grants: BTreeMap<String, (u64, String)>,
    claims: BTreeMap<String, u64>,
    finished: BTreeSet<String>,
    acknowledged: u64,
}

/// The beginning of a call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Begun {
    after: u64,
}

/// Whether the request record turned it away before it could run.
fn is_refused(answer: &Answer) -> bool {
    matches!(&answer.body, Some(answer::Body::Rejected(rejection)) if rejection.field.starts_with("request."))
}

/// A claim that brought nothing is not recorded: the same request may be run again.
fn is_empty_claim(answer: &Answer) -> bool {
    matches!(&answer.body, Some(answer::Body::ClaimTasks(claim)) if claim.tasks.is_empty())
}

fn rejection(answer: &Answer) -> Option<&Rejection> {
    match &answer.body {
        Some(answer::Body::Rejected(rejection)) => Some(rejection),
        _ => None,
    }
}

impl Model {
    /// An entry was applied for the first time; `last_rev` is that of its last command.
    pub(crate) fn applied(&mut self, last_rev: u64, payload: Bytes, answers: &[Answer]) -> Result<(), String> {
        let batch = Batch::decode(payload).map_err(|e| format!("an entry does not decode: {e}"))?;
        let count = batch.commands.len() as u64;
        if count != answers.len() as u64 || last_rev < count {
            return Err(format!("{count} commands up to rev {last_rev} have {} answers", answers.len()));
        }
        for (rev, (bytes, answer)) in (last_rev - count + 1..).zip(batch.commands.into_iter().zip(answers)) {
            let command =
                Command::decode(bytes).map_err(|e| format!("the command at rev {rev} does not decode: {e}"))?;
            self.command(rev, &command, answer).map_err(|what| format!("rev {rev}: {what}"))?;
        }
        Ok(())
    }

    fn command(&mut self, rev: u64, command: &Command, answer: &Answer) -> Result<(), String> {
        let hash = hash_of(&answer.encode_to_vec());
        if answer.rev != rev {
            return self.resent(command.request.as_ref(), hash);
        }
        self.answers.insert(rev, hash);
        if is_refused(answer) {
            return Ok(());
        }
        if let Some(RequestId { session_id, sequence, .. }) = &command.request
            && !is_empty_claim(answer)
            && self.requests.insert((session_id.clone(), *sequence), hash).is_some()
        {
            return Err(format!("request {sequence} of session {session_id} has run twice"));
        }
        self.effect(rev, command, answer)
    }

    fn resent(&self, request: Option<&RequestId>, hash: u64) -> Result<(), String> {
        let Some(RequestId { session_id, sequence, .. }) = request else {
            return Err("a command without a request id got the answer of another".to_owned());
        };
        if self.requests.get(&(session_id.clone(), *sequence)) != Some(&hash) {
            return Err(format!("the resent request {sequence} of session {session_id} got another answer"));
        }
        Ok(())
    }

    fn effect(&mut self, rev: u64, command: &Command, answer: &Answer) -> Result<(), String> {
        use answer::Body as A;
        use command::Body as C;
        match (&command.body, &answer.body) {
            (Some(C::KvPut(put)), Some(body)) => {
                let entry = match body {
                    A::KvPut(response) => response.entry.as_ref(),
                    _ => None,
                };
                self.put(rev, put, &command.fences, entry, rejection(answer))
            }
            (Some(C::AcquireLock(acquire)), Some(A::AcquireLock(granted))) => match &granted.holder {
                Some(holder) => self.granted(&acquire.name, holder.token, &holder.session_id),
                None => Err(format!("lock {} was neither granted nor refused, without a wait", acquire.name)),
            },
            (Some(C::ClaimTasks(_)), Some(A::ClaimTasks(claimed))) => claimed.tasks.iter().try_for_each(|task| {
                let token = task.claim.as_ref().map_or(0, |claim| claim.token);
                match self.claims.insert(task.id.clone(), token) {
                    _ if self.finished.contains(&task.id) => {
                        Err(format!("task {} is claimed and was finished", task.id))
                    }
                    Some(before) if before >= token => {
                        Err(format!("task {}: token {token} after token {before}", task.id))
                    }
                    _ => Ok(()),
                }
            }),
            (Some(C::FinishTask(finish)), Some(A::FinishTask(finished))) if !finished.fenced => {
                let newest = self.claims.get(&finish.task_id).copied();
                if newest != Some(finish.token) {
                    let (id, token) = (&finish.task_id, finish.token);
                    return Err(format!("task {id} is finished under token {token}; its newest is {newest:?}"));
                }
                if finish.kind == FinishKind::Completed as i32 && !self.finished.insert(finish.task_id.clone()) {
                    return Err(format!("task {} is completed twice", finish.task_id));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A put of a whole value, with or without a condition and fences.
    fn put(
        &mut self,
        rev: u64,
        put: &KvPutRequest,
        fences: &[Fence],
        entry: Option<&KvEntry>,
        rejected: Option<&Rejection>,
    ) -> Result<(), String> {
        let key = &put.key;
        let newest = self.documents.get(key).and_then(|versions| versions.last());
        let (at_rev, number) = newest.map_or((0, 0), |version| (version.rev, version.number));
        let holds = put.if_mod_rev == 0 || put.if_mod_rev == at_rev;
        let Some(entry) = entry else {
            let code = rejected.map(Rejection::code);
            let may = (!holds && code == Some(RejectionCode::FailedPrecondition))
                || (!fences.is_empty() && code == Some(RejectionCode::Aborted))
                || code == Some(RejectionCode::Overloaded);
            return may.then_some(()).ok_or_else(|| format!("the put of {key} at {at_rev} was refused: {rejected:?}"));
        };
        if !holds {
            return Err(format!("{key} is at rev {at_rev}, and a put for rev {} was let in", put.if_mod_rev));
        }
        for fence in fences {
            let granted = self.grants.get(&fence.name).map(|(token, _)| *token);
            if granted != Some(fence.token) {
                let Fence { name, token, .. } = fence;
                return Err(format!("a put under token {token} of {name} was let in; the newest is {granted:?}"));
            }
        }
        if (entry.version, entry.mod_rev) != (number + 1, rev) {
            return Err(format!("{key}: version {} at rev {} after version {number}", entry.version, entry.mod_rev));
        }
        let version = Version { rev, number: number + 1, value: put.value.clone() };
        self.documents.entry(key.clone()).or_default().push(version);
        Ok(())
    }

    /// Who asks again has what it has; anybody else gets a higher token.
    fn granted(&mut self, name: &str, token: u64, session_id: &str) -> Result<(), String> {
        if let Some((newest, holder)) = self.grants.get(name)
            && (token < *newest || (token == *newest && holder != session_id))
        {
            return Err(format!("lock {name}: token {token} for {session_id} after {newest} for {holder}"));
        }
        self.grants.insert(name.to_owned(), (token, session_id.to_owned()));
        Ok(())
    }

    /// A client begins a call.
    pub(crate) fn begin(&self) -> Begun {
        Begun { after: self.acknowledged }
    }

    /// A client was answered.
    pub(crate) fn answered(&mut self, begun: Begun, answer: &Answer) -> Result<(), String> {
        let rev = answer.rev;
        if rev <= begun.after {
            return Err(format!("real time: the answer is of rev {rev}, and rev {} was answered before", begun.after));
        }
        if self.answers.get(&rev) != Some(&hash_of(&answer.encode_to_vec())) {
            return Err(format!("the answer at rev {rev} is not the log's: {answer:?}"));
        }
        self.acknowledged = self.acknowledged.max(rev);
        Ok(())
    }

    /// A client has read a document of a state that stood at `rev`.
    pub(crate) fn read(&mut self, begun: Begun, rev: u64, key: &str, found: Option<&KvEntry>) -> Result<(), String> {
        if rev < begun.after {
            return Err(format!("real time: a read of rev {rev} began after rev {} was answered", begun.after));
        }
        let versions = self.documents.get(key).map_or(&[][..], Vec::as_slice);
        let expected = versions.iter().rev().find(|version| version.rev <= rev);
        let version = |entry: &KvEntry| {
            let KvEntry { mod_rev, version, value, .. } = entry;
            Version { rev: *mod_rev, number: *version, value: value.clone() }
        };
        let found = found.map(version);
        if found.as_ref() != expected {
            return Err(format!("a read of {key} at rev {rev} found {found:?}, not {expected:?}"));
        }
        self.acknowledged = self.acknowledged.max(rev);
        Ok(())
    }

    /// The highest rev that anybody was answered.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::{AcquireLockRequest, AcquireLockResponse, FenceKind, KvPutResponse, LockHolder};

    use super::*;

    fn put(sequence: u64, key: &str, if_mod_rev: u64) -> Command {
        let request = Some(RequestId { session_id: "s".to_owned(), sequence, done_below: sequence });
        let body = KvPutRequest { key: key.to_owned(), if_mod_rev, ..KvPutRequest::default() };
        Command { request, body: Some(command::Body::KvPut(body)), ..Command::default() }
    }

    fn stored(rev: u64, version: u64) -> Answer {
        let entry = KvEntry { version, mod_rev: rev, ..KvEntry::default() };
        Answer { rev, body: Some(answer::Body::KvPut(KvPutResponse { entry: Some(entry), rev })) }
    }

    fn apply(model: &mut Model, rev: u64, command: &Command, answer: &Answer) -> Result<(), String> {
        let batch = Batch { commands: vec![command.encode_to_vec().into()], ..Batch::default() };
        model.applied(rev, batch.encode_to_vec().into(), std::slice::from_ref(answer))
    }

    #[test]
    fn a_resend_has_no_second_effect_and_the_same_answer() {
        let mut model = Model::default();
        apply(&mut model, 1, &put(1, "k", 0), &stored(1, 1)).unwrap();
        apply(&mut model, 2, &put(1, "k", 0), &stored(1, 1)).unwrap();
        assert!(apply(&mut model, 3, &put(1, "k", 0), &stored(1, 2)).is_err(), "another answer");
        assert!(apply(&mut model, 3, &put(1, "k", 0), &stored(3, 2)).is_err(), "run twice");
    }

    #[test]
    fn conditions_and_versions_are_held() {
        let mut model = Model::default();
        apply(&mut model, 1, &put(1, "k", 0), &stored(1, 1)).unwrap();
        assert!(apply(&mut model, 2, &put(2, "k", 9), &stored(2, 2)).is_err(), "the condition does not hold");
        assert!(apply(&mut model, 2, &put(3, "k", 1), &stored(2, 3)).is_err(), "a version is left out");
        apply(&mut model, 2, &put(4, "k", 1), &stored(2, 2)).unwrap();
        let refused = Rejection { code: RejectionCode::FailedPrecondition as i32, ..Rejection::default() };
        let refused = Answer { rev: 3, body: Some(answer::Body::Rejected(refused)) };
        apply(&mut model, 3, &put(5, "k", 1), &refused).unwrap();
        assert!(apply(&mut model, 3, &put(6, "k", 2), &refused).is_err(), "it would have held");
    }

    #[test]
    fn answers_come_from_the_log_and_in_real_time() {
        let mut model = Model::default();
        let early = model.begin();
        apply(&mut model, 1, &put(1, "k", 0), &stored(1, 1)).unwrap();
        apply(&mut model, 2, &put(2, "k", 0), &stored(2, 2)).unwrap();
        model.answered(early, &stored(2, 2)).unwrap();
        model.answered(early, &stored(1, 1)).unwrap();
        assert!(model.answered(early, &stored(1, 2)).is_err(), "not what the log says");
        let late = model.begin();
        assert!(model.answered(late, &stored(1, 1)).is_err(), "rev 2 was answered before");
    }

    #[test]
    fn reads_see_the_newest_write_at_their_rev() {
        let mut model = Model::default();
        let begun = model.begin();
        apply(&mut model, 1, &put(1, "k", 0), &stored(1, 1)).unwrap();
        apply(&mut model, 4, &put(2, "k", 0), &stored(4, 2)).unwrap();
        let first = KvEntry { version: 1, mod_rev: 1, ..KvEntry::default() };
        model.read(begun, 3, "k", Some(&first)).unwrap();
        assert!(model.read(begun, 4, "k", Some(&first)).is_err(), "stale");
        assert!(model.read(begun, 4, "k", None).is_err(), "lost");
        model.read(begun, 0, "k", None).unwrap();
        let late = model.begin();
        assert!(model.read(late, 2, "k", Some(&first)).is_err(), "rev 3 was read before");
    }

    #[test]
    fn tokens_rise_and_fences_hold() {
        let mut model = Model::default();
        let acquire = |model: &mut Model, rev, token, session: &str| {
            let body = AcquireLockRequest { name: "l".to_owned(), ..AcquireLockRequest::default() };
            let command = Command { body: Some(command::Body::AcquireLock(body)), ..Command::default() };
            let holder = LockHolder { token, session_id: session.to_owned(), ..LockHolder::default() };
            let granted = AcquireLockResponse { holder: Some(holder), ..AcquireLockResponse::default() };
            apply(model, rev, &command, &Answer { rev, body: Some(answer::Body::AcquireLock(granted)) })
        };
        acquire(&mut model, 5, 5, "a").unwrap();
        acquire(&mut model, 6, 5, "a").unwrap();
        assert!(acquire(&mut model, 7, 5, "b").is_err(), "the same token for another");
        acquire(&mut model, 8, 8, "b").unwrap();
        assert!(acquire(&mut model, 9, 7, "a").is_err(), "an earlier token");
        let fence = |token| Fence { kind: FenceKind::Lock as i32, name: "l".to_owned(), token };
        let fenced = |sequence, token| Command { fences: vec![fence(token)], ..put(sequence, "f", 0) };
        assert!(apply(&mut model, 10, &fenced(1, 5), &stored(10, 1)).is_err(), "a stale holder writes");
        apply(&mut model, 11, &fenced(2, 8), &stored(11, 1)).unwrap();
    }
}
