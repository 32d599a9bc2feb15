//! A toy of a subscription that does everything right, driven at random, and changes that make its record wrong.

use proptest::sample::Index;
use serde_json::{Value, json};

use super::{Script, before_the_end, left, letter};
use crate::record::Phase;

const MAX_ATTEMPTS: u32 = 3;
const KEYS: [&str; 3] = ["", "k", "l"];
const CONSUMERS: usize = 3;
/// No token of an execution is so high.
const LATER: u64 = 1_000_000;

struct Message {
    seq: u64,
    value: String,
    key: &'static str,
    is_poison: bool,
    attempts: u32,
    /// By whom, under which token, and whether that is in the record.
    held: Option<(usize, u64, bool)>,
    is_over: bool,
    is_dead: bool,
}

#[derive(Default)]
struct Toy {
    script: Script,
    messages: Vec<Message>,
    stale: Vec<(u64, u64)>,
    rev: u64,
    values: u64,
    in_doubt: u64,
    lives: [u64; CONSUMERS],
    acked: u64,
    redelivered: u64,
}

impl Toy {
    fn publish(&mut self, how: u8, is_poison: bool) {
        let (value, key) = (format!("v{}", self.values), KEYS[usize::from(how) % KEYS.len()]);
        (self.values, self.rev) = (self.values + 1, self.rev + 1);
        let is_answered = how % 8 != 7;
        let is_kept = is_answered || how < 128;
        let seq = self.messages.len() as u64 + 1;
        if is_kept {
            let value = value.clone();
            self.messages.push(Message {
                seq,
                value,
                key,
                is_poison,
                attempts: 0,
                held: None,
                is_over: false,
                is_dead: false,
            });
        }
        if !is_answered {
            self.in_doubt += 1;
            return self.script.try_to(100 + self.in_doubt, "publish", letter(&value, key));
        }
        self.script.publish(&value, key, seq, self.rev);
        if how % 8 == 6 {
            self.rev += 1;
            self.script.call("publish", letter(&value, key), json!({"seq": seq, "duplicate": true}));
        }
    }

    /// The oldest that may go.
    fn next(&self) -> Option<usize> {
        (0..self.messages.len()).find(|place| {
            let one = &self.messages[*place];
            let blocks = |before: &Message| !one.key.is_empty() && before.key == one.key && !before.is_over;
            !one.is_over && one.held.is_none() && !self.messages[..*place].iter().any(blocks)
        })
    }

    fn consumer(&self, consumer: usize) -> String {
        format!("c{consumer}.{}", self.lives[consumer])
    }

    fn receive(&mut self, consumer: usize, is_seen: bool) -> bool {
        let Some(place) = self.next() else { return false };
        self.rev += 1;
        let name = self.consumer(consumer);
        let one = &mut self.messages[place];
        one.held = Some((consumer, self.rev, is_seen));
        self.redelivered += u64::from(one.attempts > 0);
        if is_seen {
            self.script.receive(&name, one.seq, &one.value, one.key, self.rev, one.attempts + 1);
        }
        true
    }

    fn held_by(&self, consumer: usize) -> Option<usize> {
        self.messages.iter().position(|one| one.held.is_some_and(|(by, _, is_seen)| by == consumer && is_seen))
    }

    fn answer(&mut self, consumer: usize, how: u8) {
        let Some(place) = self.held_by(consumer) else { return };
        let one = &mut self.messages[place];
        let Some((_, token, _)) = one.held else { return };
        let seq = one.seq;
        self.rev += 1;
        if one.is_poison || how % 4 == 3 {
            self.script.say("nack", seq, token, true);
            return self.fail(place);
        }
        let is_answered = how % 8 != 2;
        if is_answered || how < 128 {
            (one.held, one.is_over) = (None, true);
            self.acked += 1;
        }
        if is_answered {
            return self.script.say("ack", seq, token, true);
        }
        self.in_doubt += 1;
        self.script.try_to(100 + self.in_doubt, "ack", json!({"seq": seq, "token": token}));
    }

    fn fail(&mut self, place: usize) {
        let one = &mut self.messages[place];
        (one.held, one.attempts) = (None, one.attempts + 1);
        one.is_dead = one.attempts >= MAX_ATTEMPTS;
        one.is_over = one.is_dead;
    }

    /// The time of some delivery is up.
    fn time_out(&mut self, how: u8) -> bool {
        let held: Vec<usize> = (0..self.messages.len()).filter(|place| self.messages[*place].held.is_some()).collect();
        let Some(place) = held.get(usize::from(how) % held.len().max(1)) else { return false };
        let one = &self.messages[*place];
        if let Some((_, token, true)) = one.held {
            self.stale.push((one.seq, token));
        }
        self.rev += 1;
        self.fail(*place);
        true
    }

    fn leave(&mut self, consumer: usize) {
        let name = self.consumer(consumer);
        self.script.call("leave", json!({"consumer": name}), json!({}));
        (self.lives[consumer], self.rev) = (self.lives[consumer] + 1, self.rev + 1);
        for one in &mut self.messages {
            one.held = one.held.filter(|(by, ..)| *by != consumer);
        }
    }

    fn step(&mut self, what: u8, how: u8) {
        let consumer = usize::from(how) % CONSUMERS;
        match what % 12 {
            0..3 => self.publish(how, how.is_multiple_of(5)),
            3..6 => {
                self.receive(consumer, !how.is_multiple_of(7));
            }
            6..9 => self.answer(consumer, how),
            9 => {
                self.time_out(how);
            }
            10 => self.leave(consumer),
            _ => {
                if let Some((seq, token)) = self.stale.pop() {
                    self.script.say("ack", seq, token, false);
                }
            }
        }
    }

    fn end(&mut self) {
        while self.time_out(0) {}
        while self.receive(0, true) {
            self.answer(0, 0);
        }
        let dead: Vec<&Message> = self.messages.iter().filter(|one| one.is_dead).collect();
        let counts = [self.messages.len() as u64, self.acked, self.redelivered, dead.len() as u64];
        let dead = dead.iter().map(|one| json!({"seq": one.seq, "value": one.value, "attempts": one.attempts}));
        let left = left(dead.collect(), counts);
        self.script.call("final", json!({"max_attempts": MAX_ATTEMPTS}), left);
    }
}

/// What the toy did. At least one message dies and one is acknowledged for certain.
pub(super) fn execution(steps: &[(u8, u8)]) -> Script {
    let mut toy = Toy::default();
    toy.publish(0, true);
    for (what, how) in steps {
        toy.step(*what, *how);
    }
    toy.publish(0, false);
    toy.end();
    toy.script
}

/// Makes a record wrong, in one of the places where it can.
type Change = fn(&mut Script, Index);

pub(super) const CHANGES: [(&str, Change); 9] = [
    ("an acknowledgement was not accepted", refuse_ack),
    ("delivered after its acknowledgement", deliver_again),
    ("acknowledged twice", ack_again),
    ("another value", change_value),
    ("given out twice under a token", repeat_delivery),
    ("dead too early", die_early),
    ("a dead message forgotten", forget_dead),
    ("numbered otherwise", renumber),
    ("counted otherwise", count_otherwise),
];

/// The ends of operations of this name that took effect.
fn ends(script: &Script, f: &str) -> Vec<usize> {
    let all = script.events.iter().enumerate();
    all.filter(|(_, event)| event.f == f && event.ev == Phase::Ok).map(|(place, _)| place).collect()
}

fn res(script: &mut Script, place: usize) -> &mut Value {
    script.events[place].res.as_mut().unwrap()
}

/// Number and token of an accepted acknowledgement.
fn an_ack(script: &Script, place: Index) -> (usize, u64, u64) {
    let mut acks = ends(script, "ack");
    acks.retain(|end| script.events[*end].res == Some(json!({"accepted": true})));
    let end = acks[place.index(acks.len())];
    let asked = script.events[end - 1].arg.as_ref().unwrap();
    (end, asked["seq"].as_u64().unwrap(), asked["token"].as_u64().unwrap())
}

/// The last one: nobody is in doubt about that message.
fn refuse_ack(script: &mut Script, _: Index) {
    let mut acks = ends(script, "ack");
    acks.retain(|end| script.events[*end].res == Some(json!({"accepted": true})));
    let last = *acks.last().unwrap();
    res(script, last)["accepted"] = json!(false);
}

fn deliver_again(script: &mut Script, place: Index) {
    let (_, seq, token) = an_ack(script, place);
    let given = ends(script, "receive").into_iter().map(|end| res(script, end).clone());
    let mut given = given.filter(|res| res["seq"] == json!(seq) && res["token"] == json!(token));
    let mut again = given.next().unwrap();
    drop(given);
    again["token"] = json!(LATER);
    before_the_end(script, |script| script.call("receive", json!({"consumer": "x"}), again));
}

fn ack_again(script: &mut Script, place: Index) {
    let (_, seq, token) = an_ack(script, place);
    before_the_end(script, |script| script.say("ack", seq, token, true));
}

fn a_delivery(script: &Script, place: Index) -> usize {
    let all = ends(script, "receive");
    all[place.index(all.len())]
}

fn change_value(script: &mut Script, place: Index) {
    let end = a_delivery(script, place);
    res(script, end)["value"] = json!("made up");
}

fn repeat_delivery(script: &mut Script, place: Index) {
    let end = a_delivery(script, place);
    let again = res(script, end).clone();
    before_the_end(script, |script| script.call("receive", json!({"consumer": "x"}), again));
}

fn dead(script: &mut Script) -> &mut Vec<Value> {
    let end = *ends(script, "final").last().unwrap();
    res(script, end)["dead"].as_array_mut().unwrap()
}

fn die_early(script: &mut Script, place: Index) {
    let dead = dead(script);
    let one = place.index(dead.len());
    dead[one]["attempts"] = json!(MAX_ATTEMPTS - 1);
}

fn forget_dead(script: &mut Script, place: Index) {
    let dead = dead(script);
    dead.remove(place.index(dead.len()));
}

fn renumber(script: &mut Script, place: Index) {
    let all = ends(script, "publish");
    let end = all[place.index(all.len())];
    res(script, end)["seq"] = json!(LATER);
}

fn count_otherwise(script: &mut Script, _: Index) {
    let end = *ends(script, "final").last().unwrap();
    let count = &mut res(script, end)["counts"]["published"];
    *count = json!(count.as_u64().unwrap() + 1);
}
