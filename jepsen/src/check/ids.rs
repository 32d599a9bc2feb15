//! Unique ids: no two are the same, and one that was asked for after another was known is larger.
//!
//! Judges `next` -> `{"id": N}`. Ids of one key are of one kind; those of different keys may be the same.
//!
//! Deliberately absent: that none is left out. What was handed out and not heard of is gone.

use serde_json::Value;

use super::order::{Numbered, against_time, shared};
use super::{Checker, Report};
use crate::record::{History, Operation};

const NAME: &str = "unique-ids";

/// The checker.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ids;

impl Ids {
    /// The checker.
    pub fn new() -> Self {
        Self
    }
}

impl Checker for Ids {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, history: &History) -> Report {
        let mut judged = 0;
        let mut findings = Vec::new();
        for operations in history.by_key().values() {
            let ids = match ids(operations) {
                Ok(ids) => ids,
                Err(why) => return Report::unknown(NAME, judged, why),
            };
            judged += ids.len() as u64;
            findings.extend(shared("the id", &ids));
            findings.extend(against_time("the id", &ids));
        }
        Report::of(NAME, judged, findings)
    }
}

fn ids<'h>(operations: &[&'h Operation]) -> Result<Vec<Numbered<'h>>, String> {
    let mut ids = Vec::new();
    for operation in operations.iter().copied() {
        if operation.f != "next" {
            return Err(format!("operation {} is {:?}, which is not about ids", operation.id, operation.f));
        }
        let Some(res) = operation.res() else { continue };
        match res.get("id").and_then(Value::as_u64) {
            Some(number) => ids.push(Numbered { operation, number, is_own: true }),
            None => return Err(format!("operation {} was answered {res}, which holds no id", operation.id)),
        }
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::check::Verdict;
    use crate::record::{Event, Phase};

    fn event(p: u64, ev: Phase, id: u64) -> Event {
        let res = (ev == Phase::Ok).then(|| json!({ "id": id }));
        let (f, key) = ("next".to_owned(), "revs".to_owned());
        Event { t: 0, p, ev, f, key, arg: None, res, rev: None, node: None }
    }

    fn check(events: Vec<Event>) -> Report {
        Ids::new().check(&History::of(events).unwrap())
    }

    /// One after another, each by a process of its own.
    fn in_turn(ids: &[u64]) -> Vec<Event> {
        let each = (0..).zip(ids);
        each.flat_map(|(p, id)| [event(p, Phase::Invoke, 0), event(p, Phase::Ok, *id)]).collect()
    }

    #[test]
    fn ids_that_rise_are_how_it_should_be_and_those_at_one_time_may_come_in_any_order() {
        assert!(check(in_turn(&[3, 4, 9])).holds());
        let at_once = vec![
            event(1, Phase::Invoke, 0),
            event(2, Phase::Invoke, 0),
            event(1, Phase::Ok, 8),
            event(2, Phase::Ok, 7),
        ];
        assert!(check(at_once).holds());
    }

    #[test]
    fn one_id_for_two_and_one_that_falls_are_found() {
        let same_at_once = vec![
            event(1, Phase::Invoke, 0),
            event(2, Phase::Invoke, 0),
            event(1, Phase::Ok, 7),
            event(2, Phase::Ok, 7),
        ];
        for wrong in [same_at_once, in_turn(&[3, 3]), in_turn(&[3, 9, 4]), in_turn(&[9, 3, 10])] {
            assert!(matches!(check(wrong).verdict, Verdict::Broken(_)));
        }
    }

    #[test]
    fn nothing_and_what_is_no_id_are_no_pass() {
        let unknown = |events| matches!(check(events).verdict, Verdict::Unknown(_));
        assert!(unknown(Vec::new()));
        let mut other = in_turn(&[3]);
        other[1].res = Some(json!({ "id": "three" }));
        assert!(unknown(other));
        let mut other = in_turn(&[3]);
        other.iter_mut().for_each(|event| event.f = "read".to_owned());
        assert!(unknown(other));
    }

    proptest! {
        #[test]
        fn it_says_what_comparing_every_pair_says(
            spans in prop::collection::vec((0_u64..40, 1_u64..12, 0_u64..30), 1..10),
        ) {
            let mut moments: Vec<(u64, Phase, u64, u64)> = Vec::new();
            for (p, (begin, length, id)) in (0..).zip(&spans) {
                moments.push((*begin, Phase::Invoke, p, *id));
                moments.push((begin + length, Phase::Ok, p, *id));
            }
            moments.sort_by_key(|(at, ..)| *at);
            let history = History::of(moments.into_iter().map(|(_, ev, p, id)| event(p, ev, id)).collect()).unwrap();
            let id = |operation: &Operation| operation.res().and_then(|res| res["id"].as_u64()).unwrap();
            let wrong = history.operations.iter().any(|one| history.operations.iter().any(|other| {
                one.id != other.id && (id(one) == id(other) || (one.is_before(other) && id(one) > id(other)))
            }));
            prop_assert_eq!(Ids::new().check(&history).holds(), !wrong);
        }
    }
}
