use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::check::Verdict;
use crate::record::{Event, Phase};
use crate::rng::Rng;

/// A record that is put together by hand; each operation is of a process of its own.
#[derive(Default)]
struct Book {
    events: Vec<Event>,
    next: u64,
}

impl Book {
    fn event(&mut self, p: u64, ev: Phase, f: &str, arg: Option<Value>, res: Option<Value>, rev: Option<u64>) {
        let (f, key) = (f.to_owned(), "bank".to_owned());
        self.events.push(Event { t: 0, p, ev, f, key, arg, res, rev, node: None });
    }

    fn begin(&mut self, f: &str, arg: Value) -> u64 {
        self.next += 1;
        self.event(self.next, Phase::Invoke, f, Some(arg), None, None);
        self.next
    }

    fn read(&mut self, rev: u64, accounts: &[(i64, u64)]) -> &mut Self {
        let p = self.begin("read", json!({}));
        let names = (0_u64..).map(|name| name.to_string());
        let shown = names.zip(accounts).map(|(name, (balance, rev))| (name, json!([balance, rev])));
        let res = json!({ "accounts": shown.collect::<serde_json::Map<String, Value>>() });
        self.event(p, Phase::Ok, "read", None, Some(res), Some(rev));
        self
    }

    /// Asks for a transfer; both accounts with the rev at which they were seen.
    fn ask(&mut self, from: (u64, u64), to: (u64, u64), amount: i64) -> u64 {
        let (from, from_rev, to, to_rev) = (from.0.to_string(), from.1, to.0.to_string(), to.1);
        let arg = json!({ "from": from, "to": to, "amount": amount, "from_rev": from_rev, "to_rev": to_rev });
        self.begin("transfer", arg)
    }

    fn made(&mut self, p: u64, rev: u64, from: i64, to: i64) -> &mut Self {
        self.event(p, Phase::Ok, "transfer", None, Some(json!({ "from": from, "to": to })), Some(rev));
        self
    }

    fn ended(&mut self, p: u64, ev: Phase) -> &mut Self {
        self.event(p, ev, "transfer", None, None, None);
        self
    }

    fn check(&self) -> Report {
        Bank::new(3, 10).check(&History::of(self.events.clone()).unwrap())
    }
}

fn opened() -> Book {
    let mut book = Book::default();
    book.read(5, &[(10, 5), (10, 5), (10, 5)]);
    book
}

fn is_broken(book: &Book, says: &str) {
    let report = book.check();
    let Verdict::Broken(findings) = &report.verdict else { panic!("{says}: {report}") };
    assert!(findings.iter().any(|finding| finding.text.contains(says)), "{says}: {findings:?}");
}

#[test]
fn transfers_and_what_is_read_of_them_is_how_it_should_be() {
    let mut book = opened();
    let p = book.ask((0, 5), (1, 5), 4);
    book.made(p, 6, 6, 14).read(6, &[(6, 6), (14, 6), (10, 5)]);
    let p = book.ask((1, 6), (2, 5), 14);
    book.made(p, 9, 0, 24).read(9, &[(6, 6), (0, 9), (24, 9)]);
    let report = book.check();
    assert!(report.holds() && report.judged == 5, "{report}");
}

#[test]
fn a_transfer_of_unknown_outcome_may_be_done_at_any_time_or_never() {
    let mut book = opened();
    let p = book.ask((0, 5), (1, 5), 4);
    book.ended(p, Phase::Info).read(6, &[(10, 5), (10, 5), (10, 5)]).read(8, &[(6, 7), (14, 7), (10, 5)]);
    assert!(book.check().holds());
    let mut never = opened();
    let p = never.ask((0, 5), (1, 5), 4);
    never.ended(p, Phase::Info).read(6, &[(10, 5), (10, 5), (10, 5)]);
    assert!(never.check().holds());
}

#[test]
fn money_that_comes_or_goes_is_found() {
    let mut book = opened();
    book.read(6, &[(10, 5), (11, 6), (10, 5)]);
    is_broken(&book, "31 in all");
    let mut book = opened();
    book.read(6, &[(-1, 6), (21, 6), (10, 5)]);
    is_broken(&book, "none is below 0");
    let mut book = opened();
    book.read(6, &[(15, 5), (15, 5)]);
    is_broken(&book, "where 3 accounts");
}

#[test]
fn half_a_transfer_is_found_even_if_nobody_knows_of_its_end() {
    let mut book = opened();
    let p = book.ask((0, 5), (1, 5), 4);
    book.ended(p, Phase::Info).read(8, &[(6, 7), (10, 5), (10, 5)]);
    is_broken(&book, "26 in all");
}

#[test]
fn what_nobody_did_is_found() {
    let mut nobody = opened();
    nobody.read(8, &[(6, 7), (14, 7), (10, 5)]);
    is_broken(&nobody, "where the transfers up to it make");
    let mut without_effect = opened();
    let p = without_effect.ask((0, 5), (1, 5), 4);
    without_effect.ended(p, Phase::Fail).read(8, &[(6, 7), (14, 7), (10, 5)]);
    is_broken(&without_effect, "where the transfers up to it make");
    let mut too_early = opened();
    too_early.read(8, &[(6, 7), (14, 7), (10, 5)]);
    let p = too_early.ask((0, 5), (1, 5), 4);
    too_early.ended(p, Phase::Info);
    is_broken(&too_early, "where the transfers up to it make");
    let mut twice = opened();
    let p = twice.ask((0, 5), (1, 5), 4);
    twice.ended(p, Phase::Info).read(8, &[(6, 7), (14, 7), (10, 5)]).read(10, &[(2, 9), (18, 9), (10, 5)]);
    is_broken(&twice, "where the transfers up to it make");
}

#[test]
fn a_lost_transfer_and_a_stale_read_are_found() {
    let mut lost = opened();
    let p = lost.ask((0, 5), (1, 5), 4);
    lost.made(p, 6, 6, 14).read(7, &[(10, 5), (10, 5), (10, 5)]);
    is_broken(&lost, "where the transfers up to it make");
    let mut stale = opened();
    let p = stale.ask((0, 5), (1, 5), 4);
    stale.made(p, 6, 6, 14).read(5, &[(10, 5), (10, 5), (10, 5)]);
    is_broken(&stale, "ended before it began");
}

#[test]
fn a_condition_that_was_ignored_and_a_balance_that_is_not_so_are_found() {
    let mut ignored = opened();
    let one = ignored.ask((0, 5), (1, 5), 4);
    let other = ignored.ask((0, 5), (2, 5), 4);
    ignored.made(one, 6, 6, 14).made(other, 7, 6, 14);
    is_broken(&ignored, "was made with account \"0\" at 5");
    let mut wrong = opened();
    let p = wrong.ask((0, 5), (1, 5), 4);
    wrong.made(p, 6, 7, 14);
    is_broken(&wrong, "holds 7; it holds 6");
    let mut shared = opened();
    let one = shared.ask((0, 5), (1, 5), 4);
    let other = shared.ask((2, 5), (1, 5), 4);
    shared.made(one, 6, 6, 14).made(other, 6, 6, 14);
    is_broken(&shared, "the rev 6 is that of");
}

#[test]
fn what_does_not_begin_with_the_opening_is_found_and_an_empty_record_is_no_pass() {
    let mut other = Book::default();
    other.read(5, &[(9, 5), (11, 5), (10, 5)]);
    is_broken(&other, "all begin with 10");
    let mut before = Book::default();
    let p = before.ask((0, 3), (1, 3), 4);
    before.made(p, 4, 6, 14).read(5, &[(6, 4), (14, 4), (10, 3)]);
    is_broken(&before, "before anybody can have read");
    assert!(matches!(Book::default().check().verdict, Verdict::Unknown(_)));
    let mut strange = opened();
    strange.begin("withdraw", json!({}));
    assert!(matches!(strange.check().verdict, Verdict::Unknown(_)));
}

/// A service that makes every transfer at one place, answers some of them, and is read now and then.
fn simulated(seed: u64, steps: u64) -> Book {
    let mut rng = Rng::new(seed);
    let (mut book, mut rev) = (opened(), 5);
    let mut accounts = [(10_i64, 5_u64); 3];
    for _ in 0..steps {
        let (from, to) = (rng.below(3) as usize, rng.below(3) as usize);
        // Whoever asks for a transfer has read what it depends on.
        book.read(rev, &accounts);
        let amount = 1 + rng.below(5) as i64;
        if from == to || accounts[from].0 < amount {
            continue;
        }
        let p = book.ask((from as u64, accounts[from].1), (to as u64, accounts[to].1), amount);
        let fate = rng.below(4);
        if fate == 0 {
            book.ended(p, if rng.below(2) == 0 { Phase::Fail } else { Phase::Info });
            continue;
        }
        rev += 1 + rng.below(3);
        accounts[from] = (accounts[from].0 - amount, rev);
        accounts[to] = (accounts[to].0 + amount, rev);
        match fate {
            1 => book.ended(p, Phase::Info),
            _ => book.made(p, rev, accounts[from].0, accounts[to].0),
        };
    }
    book.read(rev, &accounts);
    book
}

proptest! {
    #[test]
    fn what_a_right_service_says_holds(seed in any::<u64>()) {
        let report = simulated(seed, 40).check();
        prop_assert!(report.holds(), "{}", report);
    }

    #[test]
    fn one_balance_that_is_read_wrong_is_found(seed in any::<u64>(), at in any::<prop::sample::Index>()) {
        let mut book = simulated(seed, 20);
        let reads: Vec<usize> = (0..book.events.len()).filter(|place| {
            let event = &book.events[*place];
            event.ev == Phase::Ok && event.f == "read"
        }).collect();
        // Not the last one: a look after it must tell.
        let accounts = &mut book.events[reads[at.index(reads.len() - 1)]].res.as_mut().unwrap()["accounts"];
        let (one, other) = (accounts["0"][0].as_i64().unwrap(), accounts["1"][0].as_i64().unwrap());
        // All the money is there, in the wrong place.
        accounts["0"][0] = json!(one + 1);
        accounts["1"][0] = json!(other - 1);
        prop_assert!(matches!(book.check().verdict, Verdict::Broken(_)));
    }
}
