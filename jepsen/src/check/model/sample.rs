//! Histories for tests: written by hand, or made by a small register of which the truth is known.
//!
//! Deliberately absent: the models. The register here is another one, so that they can be held against it.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::check::{Report, Verdict};
use crate::record::{Event, History, Operation, Phase};

use super::Model;

/// A history in the making. Time is the number of the event.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script {
    events: Vec<Event>,
    open: BTreeMap<u64, (String, String)>,
}

impl Script {
    fn event(&mut self, p: u64, ev: Phase, (f, key): (String, String)) -> &mut Event {
        let t = self.events.len() as u64;
        self.events.push(Event { t, p, ev, f, key, arg: None, res: None, rev: None, node: None });
        self.events.last_mut().unwrap()
    }

    /// A process begins something on the key `x`.
    pub(crate) fn begin(&mut self, p: u64, f: &str, arg: Value) -> &mut Self {
        self.begin_on(p, f, "x", arg)
    }

    /// A process begins something.
    pub(crate) fn begin_on(&mut self, p: u64, f: &str, key: &str, arg: Value) -> &mut Self {
        let what = (f.to_owned(), key.to_owned());
        self.open.insert(p, what.clone());
        self.event(p, Phase::Invoke, what).arg = Some(arg);
        self
    }

    /// It is answered, without a rev.
    pub(crate) fn ok(&mut self, p: u64, res: Value) -> &mut Self {
        let what = self.open.remove(&p).unwrap();
        self.event(p, Phase::Ok, what).res = Some(res);
        self
    }

    /// It is answered.
    pub(crate) fn ok_at(&mut self, p: u64, rev: u64, res: Value) -> &mut Self {
        self.ok(p, res);
        self.events.last_mut().unwrap().rev = Some(rev);
        self
    }

    /// It had no effect.
    pub(crate) fn fail(&mut self, p: u64) -> &mut Self {
        let what = self.open.remove(&p).unwrap();
        self.event(p, Phase::Fail, what);
        self
    }

    /// Nobody knows.
    pub(crate) fn info(&mut self, p: u64) -> &mut Self {
        let what = self.open.remove(&p).unwrap();
        self.event(p, Phase::Info, what);
        self
    }

    /// Something begins and ends at once.
    pub(crate) fn did(&mut self, p: u64, f: &str, arg: Value, res: Value) -> &mut Self {
        self.begin(p, f, arg).ok(p, res)
    }

    /// Something begins and ends at once.
    pub(crate) fn did_at(&mut self, rev: u64, p: u64, f: &str, arg: Value, res: Value) -> &mut Self {
        self.begin(p, f, arg).ok_at(p, rev, res)
    }

    /// What was written.
    pub(crate) fn history(&self) -> History {
        History::of(self.events.clone()).unwrap()
    }

    /// The answers that can be altered.
    pub(crate) fn answers(&mut self) -> Vec<&mut Event> {
        self.events.iter_mut().filter(|event| event.ev == Phase::Ok).collect()
    }
}

/// Fails unless the report says broken, in a text with all of these words.
#[track_caller]
pub(crate) fn assert_broken(report: &Report, words: &[&str]) {
    let Verdict::Broken(findings) = &report.verdict else { panic!("{report}") };
    let has = |text: &str| words.iter().all(|word| text.contains(word));
    assert!(findings.iter().any(|finding| has(&finding.text)), "{words:?} not in {findings:#?}");
    assert!(findings.iter().all(|finding| !finding.operations.is_empty()), "{findings:#?}");
}

/// Fails unless the report says unknown, with this in it.
#[track_caller]
pub(crate) fn assert_unknown(report: &Report, word: &str) {
    let Verdict::Unknown(why) = &report.verdict else { panic!("{report}") };
    assert!(why.contains(word), "{why}");
}

/// Whether any order explains the operations of one key: every one is tried.
pub(crate) fn has_order<M: Model>(model: &M, operations: &[Operation]) -> bool {
    fn go<M: Model>(model: &M, left: &[&Operation], state: &M::State) -> bool {
        if left.iter().all(|operation| operation.res().is_none()) {
            return true;
        }
        left.iter().enumerate().any(|(at, operation)| {
            if left.iter().any(|other| other.is_before(operation)) {
                return false;
            }
            let mut rest = left.to_vec();
            rest.remove(at);
            let call = model.call(operation).unwrap();
            model.step(state, &call).iter().any(|state| go(model, &rest, state))
        })
    }
    let left = operations.iter().filter(|operation| operation.outcome != crate::record::Outcome::Fail);
    go(model, &left.collect::<Vec<_>>(), &model.initial())
}

/// What a process is in the middle of.
#[derive(Clone, Debug)]
enum Slot {
    Idle,
    Asked(&'static str, Value),
    Served(u64, Value),
}

/// A register that does as it should, and the history of those who use it.
#[derive(Debug, Default)]
struct Simulation {
    script: Script,
    value: Value,
    version: u64,
    rev: u64,
    /// Was given up by its client, and takes effect later.
    late: Vec<(&'static str, Value)>,
    values: u64,
    slots: BTreeMap<u64, (u64, Slot)>,
    processes: u64,
}

impl Simulation {
    /// Does one call, and gives its rev and its answer.
    fn serve(&mut self, f: &str, arg: &Value) -> (u64, Value) {
        let write = |this: &mut Self| {
            (this.value, this.version, this.rev) = (arg["value"].clone(), this.version + 1, this.rev + 1);
        };
        let res = match f {
            "put" => {
                write(self);
                json!({"version": self.version})
            }
            "cas" => {
                let fits = arg["version"] == json!(self.version);
                if fits {
                    write(self);
                }
                json!({"ok": fits, "version": self.version})
            }
            "del" => {
                (self.value, self.version, self.rev) = (Value::Null, 0, self.rev + 1);
                json!({"version": 0})
            }
            _ => json!({"value": self.value, "version": self.version}),
        };
        (self.rev, res)
    }

    fn ask(&mut self, p: u64, choice: u8) -> Slot {
        self.values += 1;
        let (f, arg) = match choice % 8 {
            0..3 => ("read", json!({})),
            3..5 => ("put", json!({"value": self.values})),
            5..7 => ("cas", json!({"version": self.version, "value": self.values})),
            _ => ("del", json!({})),
        };
        self.script.begin(p, f, arg.clone());
        Slot::Asked(f, arg)
    }

    /// A client takes a step.
    fn step(&mut self, client: u64, choice: u8) {
        if choice >= 200
            && let Some((f, arg)) = self.late.pop()
        {
            self.serve(f, &arg);
        }
        let (p, slot) = self.slots.remove(&client).unwrap_or_else(|| {
            self.processes += 1;
            (self.processes, Slot::Idle)
        });
        let slot = match slot {
            Slot::Idle => self.ask(p, choice),
            Slot::Asked(f, arg) if choice.is_multiple_of(4) => {
                self.give_up(p, f, arg, choice);
                return;
            }
            Slot::Asked(f, arg) => {
                let (rev, res) = self.serve(f, &arg);
                Slot::Served(rev, res)
            }
            Slot::Served(rev, res) => {
                self.script.ok_at(p, rev, res);
                Slot::Idle
            }
        };
        self.slots.insert(client, (p, slot));
    }

    /// It took effect, will, or never does.
    fn give_up(&mut self, p: u64, f: &'static str, arg: Value, choice: u8) {
        self.script.info(p);
        match choice / 4 % 3 {
            0 => self.late.push((f, arg)),
            1 => {
                self.serve(f, &arg);
            }
            _ => {}
        }
    }
}

/// The history of a register that did as it should, with up to so many steps of up to four clients.
pub(crate) fn of_register(steps: usize) -> impl Strategy<Value = Script> {
    proptest::collection::vec((0_u64..4, any::<u8>()), 1..steps).prop_map(|steps| {
        let mut simulation = Simulation::default();
        for (client, choice) in steps {
            simulation.step(client, choice);
        }
        simulation.script
    })
}

/// Up to six operations of three clients on a register, answered as it comes.
pub(crate) fn at_random() -> impl Strategy<Value = Script> {
    let step = (0_u64..3, 0_u8..8, 0_u64..3, 0_u64..3);
    proptest::collection::vec(step, 1..14).prop_map(|steps| {
        let mut script = Script::default();
        let (mut processes, mut begun) = ([0_u64, 1, 2], 0);
        for (client, choice, value, version) in steps {
            let process = &mut processes[client as usize];
            let Some((f, _)) = script.open.get(&*process).cloned() else {
                let (f, arg) = match choice {
                    0..3 => ("read", json!({})),
                    3..5 => ("put", json!({"value": value})),
                    5..7 => ("cas", json!({"version": version, "value": value})),
                    _ => ("del", json!({})),
                };
                begun += 1;
                if begun <= 6 {
                    script.begin(*process, f, arg);
                }
                continue;
            };
            let value = if version == 0 { Value::Null } else { json!(value) };
            match (choice, f.as_str()) {
                (0, _) => {
                    script.info(*process);
                    *process += 3;
                }
                (1, _) => {
                    script.fail(*process);
                }
                (_, "read") => {
                    script.ok(*process, json!({"value": value, "version": version}));
                }
                (_, "put") => {
                    script.ok(*process, json!({"version": version.max(1)}));
                }
                (_, "cas") => {
                    script.ok(*process, json!({"ok": choice % 2 == 0, "version": version}));
                }
                _ => {
                    script.ok(*process, json!({"version": 0}));
                }
            }
        }
        script
    })
}

/// Alters one answer, if there is one.
pub(crate) fn with_a_lie(mut script: Script, which: prop::sample::Index, how: u8) -> Script {
    let count = script.answers().len();
    if count > 0
        && let Some(res) = script.answers().remove(which.index(count)).res.as_mut()
    {
        alter(res, how);
    }
    script
}

fn alter(res: &mut Value, how: u8) {
    let version = res["version"].as_u64().unwrap_or(0);
    match how % 3 {
        0 => res["version"] = json!(version + 1),
        1 if res.get("value").is_some() => res["value"] = json!(1),
        1 if res.get("ok").is_some() => res["ok"] = json!(!res["ok"].as_bool().unwrap_or(false)),
        _ => res["version"] = json!(version.saturating_sub(1)),
    }
}
