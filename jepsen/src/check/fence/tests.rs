use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::check::Verdict;
use crate::record::{Event, Phase};
use crate::rng::Rng;

/// A process, what it does, and the grant it has.
type Open<'a> = (u64, &'a str, Option<(u64, Value)>);

/// A record of one lock that is put together by hand; each operation is of a process of its own.
#[derive(Default)]
struct Book {
    events: Vec<Event>,
    next: u64,
}

impl Book {
    fn event(&mut self, p: u64, ev: Phase, f: &str, arg: Option<Value>, res: Option<Value>, rev: Option<u64>) {
        let (f, key) = (f.to_owned(), "l".to_owned());
        self.events.push(Event { t: 0, p, ev, f, key, arg, res, rev, node: None });
    }

    fn begin(&mut self, f: &str, arg: Value) -> u64 {
        self.next += 1;
        self.event(self.next, Phase::Invoke, f, Some(arg), None, None);
        self.next
    }

    fn end(&mut self, p: u64, f: &str, rev: u64, res: Value) -> &mut Self {
        self.event(p, Phase::Ok, f, None, Some(res), Some(rev));
        self
    }

    fn granted(&mut self, token: u64) -> &mut Self {
        let p = self.begin("acquire", json!({ "owner": "o" }));
        self.end(p, "acquire", token, json!({ "got": true, "token": token }))
    }

    fn written(&mut self, token: u64, value: &str, is_accepted: bool, rev: u64) -> &mut Self {
        let p = self.begin("fenced_write", json!({ "token": token, "value": value }));
        self.end(p, "fenced_write", rev, json!({ "accepted": is_accepted }))
    }

    fn open_ended(&mut self, token: u64, value: &str, ev: Phase) -> &mut Self {
        let p = self.begin("fenced_write", json!({ "token": token, "value": value }));
        self.event(p, ev, "fenced_write", None, None, None);
        self
    }

    fn done(&mut self, f: &str, token: u64, is_ok: bool, rev: u64) -> &mut Self {
        let p = self.begin(f, json!({ "owner": "o", "token": token }));
        self.end(p, f, rev, json!({ "ok": is_ok }))
    }

    fn read(&mut self, value: Value, rev: u64) -> &mut Self {
        let p = self.begin("read", json!({}));
        self.end(p, "read", rev, json!({ "value": value, "version": 1 }))
    }

    fn check(&self) -> Report {
        Fence::new().check(&History::of(self.events.clone()).unwrap())
    }
}

fn is_broken(book: &Book, says: &str) {
    let report = book.check();
    let Verdict::Broken(findings) = &report.verdict else { panic!("{says}: {report}") };
    assert!(findings.iter().any(|finding| finding.text.contains(says)), "{says}: {findings:?}");
}

/// A grant, under which something was written.
fn begun() -> Book {
    let mut book = Book::default();
    book.granted(5).written(5, "a", true, 6);
    book
}

#[test]
fn grants_that_follow_each_other_are_how_it_should_be() {
    let mut book = begun();
    book.done("extend", 5, true, 7).read(json!("a"), 8).done("release", 5, true, 9).written(5, "b", false, 9);
    book.granted(12).written(12, "c", true, 13).written(5, "d", false, 14).done("release", 5, false, 14);
    let report = book.read(json!("c"), 15).check();
    assert!(report.holds() && report.judged == 11, "{report}");
}

#[test]
fn what_nobody_heard_of_is_held_against_nobody() {
    let mut book = begun();
    let p = book.begin("acquire", json!({ "owner": "o" }));
    book.event(p, Phase::Info, "acquire", None, None, None);
    book.open_ended(5, "b", Phase::Info).read(json!("b"), 9).written(5, "c", true, 10).read(json!("c"), 11);
    assert!(book.check().holds());
}

#[test]
fn tokens_that_fall_or_are_given_twice_are_found() {
    let mut falls = begun();
    let p = falls.begin("acquire", json!({ "owner": "o" }));
    falls.end(p, "acquire", 9, json!({ "got": true, "token": 4 }));
    is_broken(&falls, "under token 5 at rev 5, and under token 4 at rev 9");
    is_broken(&falls, "the token of acquire");
    let mut twice = begun();
    let p = twice.begin("acquire", json!({ "owner": "other" }));
    twice.end(p, "acquire", 9, json!({ "got": true, "token": 5 }));
    is_broken(&twice, "under token 5 at rev 5, and under token 5 at rev 9");
}

#[test]
fn what_is_accepted_after_a_later_grant_is_found() {
    let mut late = begun();
    late.granted(8).written(5, "b", true, 9);
    is_broken(&late, "after a grant under token 8 at 8");
    // By its places it was in time; but it began when the later grant was known.
    let mut known = begun();
    known.granted(9).written(5, "b", true, 7);
    is_broken(&known, "begun after a grant under token 9 was known");
    let mut extended = begun();
    extended.granted(8).done("extend", 5, true, 9);
    is_broken(&extended, "extend");
}

#[test]
fn what_is_accepted_after_its_own_release_or_a_refusal_is_found() {
    let mut released = begun();
    released.done("release", 5, true, 7).written(5, "b", true, 8);
    is_broken(&released, "after the release at 7");
    is_broken(released.done("release", 5, true, 9), "release");
    let mut refused = begun();
    refused.written(5, "b", false, 7).written(5, "c", true, 8);
    is_broken(&refused, "had shown that the grant is over");
}

#[test]
fn a_token_that_was_made_up_or_used_before_its_grant_is_found() {
    let mut made_up = begun();
    is_broken(made_up.written(4, "b", true, 7), "nobody was granted that token");
    let mut early = Book::default();
    is_broken(early.granted(5).written(5, "a", true, 4), "the grant is of rev 5");
}

#[test]
fn places_that_are_shared_or_fall_are_found() {
    let mut shared = begun();
    is_broken(shared.written(5, "b", true, 6), "the rev 6 is that of");
    let mut falls = begun();
    is_broken(falls.read(json!("a"), 5), "ended before it began");
}

#[test]
fn what_cannot_be_read_is_found() {
    let reads: [(Value, u64, &str); 3] = [
        (json!("x"), 7, "which nobody wrote"),
        (json!("refused"), 20, "which was refused"),
        (json!(null), 20, "where something was written at 13"),
    ];
    for (value, rev, says) in reads {
        let mut book = begun();
        book.written(5, "refused", false, 7).granted(12).written(12, "b", true, 13);
        is_broken(book.read(value, rev), says);
    }
    let mut stale = begun();
    is_broken(stale.written(5, "b", true, 7).read(json!("a"), 8), "was written later, at 7");
    let mut future = begun();
    let p = future.begin("read", json!({}));
    future.written(5, "b", true, 9).end(p, "read", 7, json!({ "value": "b" }));
    is_broken(&future, "which was written later, at 9");
    let mut not_asked_for = begun();
    is_broken(not_asked_for.read(json!("b"), 7).open_ended(5, "b", Phase::Info), "nobody had asked for yet");
    let mut without_effect = begun();
    is_broken(without_effect.open_ended(5, "b", Phase::Fail).read(json!("b"), 9), "only without effect");
    let mut superseded = begun();
    superseded.open_ended(5, "late", Phase::Info).granted(8).written(8, "b", true, 9);
    is_broken(superseded.read(json!("late"), 10), "written under token 5, after a write under 8");
}

#[test]
fn nothing_granted_nothing_written_and_what_is_no_lock_are_no_pass() {
    let unknown = |book: &Book| matches!(book.check().verdict, Verdict::Unknown(_));
    assert!(unknown(&Book::default()));
    assert!(unknown(Book::default().granted(5)));
    let mut strange = begun();
    strange.begin("steal", json!({}));
    assert!(unknown(&strange));
    let mut placeless = begun();
    let p = placeless.begin("read", json!({}));
    placeless.event(p, Phase::Ok, "read", None, Some(json!({ "value": "a" })), None);
    assert!(unknown(&placeless));
}

/// A service that is asked by many at once: every operation takes effect when it begins, and some are answered late.
fn simulated(seed: u64) -> Book {
    let mut rng = Rng::new(seed);
    let (mut book, mut rev) = (begun(), 6);
    let (mut holder, mut value, mut tokens) = (Some(5), "a".to_owned(), vec![5_u64]);
    // What has taken effect and was not answered yet.
    let mut open: Vec<Open<'_>> = Vec::new();
    for n in 0..60_u64 {
        rev += 1;
        let token = tokens[rng.below(tokens.len() as u64) as usize];
        let is_held = holder == Some(token);
        match rng.below(6) {
            0 => {
                let p = book.begin("acquire", json!({ "owner": n }));
                let got = holder.is_none() || rng.below(2) == 0;
                let answer = (rev, json!({ "got": got, "token": if got { rev } else { 0 } }));
                // A grant that nobody was told of is not used by anybody.
                if got {
                    holder = Some(rev);
                    tokens.push(rev);
                }
                book.end(p, "acquire", answer.0, answer.1);
            }
            1 => {
                let p = book.begin("release", json!({ "token": token }));
                holder = holder.filter(|_| !is_held);
                open.push((p, "release", Some((rev, json!({ "ok": is_held })))));
            }
            2 => {
                let p = book.begin("read", json!({}));
                open.push((p, "read", Some((rev, json!({ "value": value })))));
            }
            _ => {
                let written = format!("v{n}");
                let p = book.begin("fenced_write", json!({ "token": token, "value": written }));
                let is_known = rng.below(4) > 0;
                open.push((p, "fenced_write", is_known.then(|| (rev, json!({ "accepted": is_held })))));
                if is_held {
                    value = written;
                }
            }
        }
        // All of them at the end.
        while open.len() > if n == 59 { 0 } else { 3 } {
            let (p, f, answer) = open.remove(rng.below(open.len() as u64) as usize);
            match answer {
                Some((rev, res)) => book.end(p, f, rev, res),
                None => {
                    book.event(p, Phase::Info, f, None, None, None);
                    &mut book
                }
            };
        }
    }
    book
}

proptest! {
    #[test]
    fn what_a_right_service_says_holds(seed in any::<u64>()) {
        let report = simulated(seed).check();
        prop_assert!(report.holds(), "{}", report);
    }

    #[test]
    fn a_write_that_is_said_to_be_accepted_and_was_refused_is_found(seed in any::<u64>()) {
        let mut book = simulated(seed);
        let refused = book.events.iter_mut().filter_map(|event| event.res.as_mut());
        let mut refused = refused.filter(|res| res.get("accepted") == Some(&json!(false)));
        let Some(first) = refused.next() else { return Ok(()) };
        *first = json!({ "accepted": true });
        prop_assert!(matches!(book.check().verdict, Verdict::Broken(_)));
    }
}
