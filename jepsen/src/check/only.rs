//! A checker for some of the keys: of the others it sees nothing.
//!
//! Deliberately absent: any promise of its own.

use super::{Checker, Finding, Report, Verdict};
use crate::record::{History, Operation};

/// A checker, and the keys that it is for.
pub struct Only {
    checker: Box<dyn Checker>,
    keys: fn(&str) -> bool,
}

impl Only {
    /// Holds only the operations on those keys against the promise.
    pub fn new(checker: impl Checker + 'static, keys: fn(&str) -> bool) -> Self {
        Self { checker: Box::new(checker), keys }
    }
}

impl Checker for Only {
    fn name(&self) -> &'static str {
        self.checker.name()
    }

    fn check(&self, history: &History) -> Report {
        let picked: Vec<&Operation> = history.operations.iter().filter(|one| (self.keys)(&one.key)).collect();
        // An operation's id is its place in its history.
        let operations = picked.iter().enumerate().map(|(id, one)| Operation { id, ..(*one).clone() }).collect();
        let mut report = self.checker.check(&History { operations });
        if let Verdict::Broken(findings) = &mut report.verdict {
            for Finding { operations, .. } in findings {
                *operations = operations.iter().filter_map(|id| picked.get(*id)).map(|one| one.id).collect();
            }
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::ids::Ids;
    use crate::record::{Event, Phase};

    #[test]
    fn what_is_found_is_named_as_in_the_whole_history() {
        let mut events = Vec::new();
        for (p, (key, id)) in (0..).zip([("a", 9), ("b", 3), ("a", 1), ("b", 2)]) {
            let event = |ev, res| Event {
                t: 0,
                p,
                ev,
                f: "next".to_owned(),
                key: key.to_owned(),
                arg: None,
                res,
                rev: None,
                node: None,
            };
            events.push(event(Phase::Invoke, None));
            events.push(event(Phase::Ok, Some(serde_json::json!({ "id": id }))));
        }
        let history = History::of(events).unwrap();
        let report = Only::new(Ids::new(), |key| key == "b").check(&history);
        assert_eq!(report.judged, 2);
        let Verdict::Broken(findings) = report.verdict else { panic!("it fell: {:?}", report.verdict) };
        assert_eq!(findings.iter().map(|one| one.operations.clone()).collect::<Vec<_>>(), [vec![1, 3]]);
        assert!(!Only::new(Ids::new(), |_| false).check(&history).holds(), "nothing to judge");
    }
}
