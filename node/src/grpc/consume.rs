//! Consume: the stream of a consumer. The state delivers; here the deliveries are sent.
//!
//! Only a leader that a majority has heard lately serves one, as with [`super::work`]. What a consumer holds is sent
//! anew whenever its stream begins, so nothing that was delivered is ever missed. The same in the middle of a stream that
//! did not keep up, between two marks: what the consumer believed to hold and is not told between them is gone. A
//! consumer has one stream; the newest counts.
//!
//! Deliberately absent: the end of the consumer when its stream breaks. It stays one until its session ends or it
//! leaves, and what it holds waits for its next stream.

use futures::Stream;
use quorate_proto::log::command;
use quorate_proto::v1::{Consistency, ConsumeEvent, ConsumeRequest, Consumer, DeliveryGone, consume_event};
use quorate_raft::error::{Error, Fatal, precondition};
use quorate_raft::replica::View;
use tokio::time::MissedTickBehavior;
use tonic::Status;

use super::work::{LOOK_ROUND, leads};
use super::{Door, expect_arm, status};
use crate::hub::{DeliveryNews, Told};

/// What the consumer holds when its stream begins: sequence numbers and tokens.
struct Held {
    deliveries: Vec<(u64, u64)>,
    rev: u64,
}

/// Makes the session a consumer, then streams what is delivered to it. The request names the consumer.
pub(super) async fn join(
    door: Door,
    request: ConsumeRequest,
) -> Result<impl Stream<Item = Result<ConsumeEvent, Status>> + Send + 'static, Status> {
    if !leads(&door.core) {
        return Err(status::not_readable("messages are delivered by the leader only", door.core.leader_hint()));
    }
    if door.core.stop.is_thrown() {
        return Err(status::unavailable("this node is stopping; nothing is delivered any more"));
    }
    // Somebody else's call must not end the stream of the session that consumes.
    let not_theirs = |view: View<'_>| match view.rooms.bus.consumer(&request.subscription, &request.consumer_id) {
        Some(consumer) if consumer.session_id != request.session_id => Err(of_another(consumer)),
        _ => Ok(()),
    };
    door.read(Consistency::Linearizable, not_theirs).await?;
    // Listening before proposing: what is delivered in between is not missed.
    let told = door.hub().await?.consume(&request.subscription, &request.consumer_id);
    let body = door.propose(None, command::Body::Consume(request.clone())).await?;
    expect_arm!(Consume, body)?;
    Ok(events(door, request, told))
}

fn events(
    door: Door,
    request: ConsumeRequest,
    mut told: Told,
) -> impl Stream<Item = Result<ConsumeEvent, Status>> + Send + 'static {
    async_stream::stream! {
        let mut round = tokio::time::interval(LOOK_ROUND);
        round.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = true;
        let mut standing = false;
        let mut looked_at = 0;
        loop {
            if look {
                look = false;
                let Some(held) = held(&door, &request) else { break yield Err(gone(&door, &request)) };
                looked_at = held.rev;
                if standing {
                    // What went away unheard of is known by its absence from the list that begins here.
                    yield Ok(event(consume_event::Event::Standing(false), held.rev));
                }
                // One at a time: all that a consumer holds, payloads and all, may be a lot.
                for (seq, token) in held.deliveries {
                    match delivery(&door, &request, seq, token) {
                        Ok(Some(event)) => yield Ok(event),
                        // Over already.
                        Ok(None) => {}
                        Err(fatal) => {
                            yield Err(door.fault(&fatal));
                            return;
                        }
                    }
                }
                standing = true;
                yield Ok(event(consume_event::Event::Standing(true), held.rev));
            }
            let next = tokio::select! {
                next = told.next() => next,
                _now = round.tick() => {
                    if leads(&door.core) {
                        continue;
                    }
                    break yield Err(not_leading(&door));
                }
                // Leadership has been handed over by then; a stream that stays on would hold up the stop.
                _reason = door.core.closing.wait() => {
                    break yield Err(status::not_readable("this node is stopping", door.core.leader_hint()));
                }
            };
            match next {
                // The look has shown it.
                Some(DeliveryNews::Delivered { token, .. }) if token <= looked_at => {}
                Some(DeliveryNews::Delivered { seq, token }) => match delivery(&door, &request, seq, token) {
                    Ok(Some(event)) => yield Ok(event),
                    Ok(None) => {}
                    Err(fatal) => break yield Err(door.fault(&fatal)),
                },
                // An earlier stream may have sent what went away since.
                Some(DeliveryNews::Gone { seq, token }) => {
                    let rev = door.look(|view| view.head.rev);
                    yield Ok(event(consume_event::Event::Gone(DeliveryGone { seq, token }), rev));
                }
                Some(DeliveryNews::ConsumerGone) if held(&door, &request).is_none() => {
                    break yield Err(gone(&door, &request));
                }
                // An earlier consumer of that name, of a session that has ended.
                Some(DeliveryNews::ConsumerGone) => {}
                // What was sent before and is still held is sent again: its tokens tell.
                Some(DeliveryNews::LookAgain) => look = true,
                None => break yield Err(Status::aborted("a newer stream of this consumer took over")),
            }
        }
    }
}

fn event(event: consume_event::Event, rev: u64) -> ConsumeEvent {
    ConsumeEvent { event: Some(event), rev }
}

/// Everything the consumer holds, in the order it was delivered; `None`: it is not this session's consumer any more.
fn held(door: &Door, request: &ConsumeRequest) -> Option<Held> {
    door.look(|view| {
        let bus = &view.rooms.bus;
        let consumer = bus.consumer(&request.subscription, &request.consumer_id)?;
        if consumer.session_id != request.session_id {
            return None;
        }
        let deliveries = bus.held(&request.subscription, &request.consumer_id);
        Some(Held { deliveries, rev: view.head.rev })
    })
}

/// A delivery with its message; `None`: it is over.
fn delivery(door: &Door, request: &ConsumeRequest, seq: u64, token: u64) -> Result<Option<ConsumeEvent>, Fatal> {
    door.look(|view| {
        let delivery = view.rooms.bus.delivery(view.rows, &request.subscription, seq, token)?;
        Ok(delivery.map(|delivery| event(consume_event::Event::Delivery(delivery), view.head.rev)))
    })
}

fn not_leading(door: &Door) -> Status {
    status::not_readable("this node does not lead any more", door.core.leader_hint())
}

/// Why there is no such consumer of this session.
fn gone(door: &Door, request: &ConsumeRequest) -> Status {
    // Answered by another leader, and not applied here yet: not for this node to say.
    if !leads(&door.core) {
        return not_leading(door);
    }
    let ConsumeRequest { subscription, session_id, consumer_id, .. } = request;
    let (has_session, has_subscription) = door.look(|view| {
        let rooms = view.rooms;
        let subscription = rooms.bus.subscription(subscription);
        (rooms.sessions.get(session_id).is_some(), subscription.is_some_and(|found| !found.removing))
    });
    if !has_session {
        return status::missing("session_id", format!("session {session_id} has ended; open a new one"));
    }
    if !has_subscription {
        return status::missing("subscription", format!("no subscription {subscription}"));
    }
    let message = format!("{consumer_id} is not a consumer of subscription {subscription} in session {session_id}");
    status::missing("consumer_id", message)
}

fn of_another(known: &Consumer) -> Error {
    let message = format!(
        "consumer {:?} of {:?} belongs to session {:?}, which has not ended; take another id, or close that session",
        known.consumer_id, known.subscription, known.session_id
    );
    precondition("consumer_id", message)
}
