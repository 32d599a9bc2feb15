use serde_json::{Value, json};

use super::*;
use crate::record::Outcome;

fn operation(f: &str, arg: Value, res: Option<Value>) -> Operation {
    let outcome = res.map_or(Outcome::Info, |res| Outcome::Ok { res, rev: None });
    let (f, key) = (f.to_owned(), "x".to_owned());
    let (began_at, ended_at) = (0, usize::MAX);
    Operation { id: 0, process: 0, f, key, arg, outcome, began: 0, ended: None, began_at, ended_at, node: None }
}

/// How many states there may be after these.
fn states<M: Model>(model: &M, calls: &[(&str, Value, Option<Value>)]) -> usize {
    let mut states = vec![model.initial()];
    for (f, arg, res) in calls {
        let call = model.call(&operation(f, arg.clone(), res.clone())).unwrap();
        states = states.iter().flat_map(|state| model.step(state, &call)).collect();
    }
    states.len()
}

fn can<M: Model>(model: &M, calls: &[(&str, Value, Value)]) -> bool {
    let calls: Vec<_> = calls.iter().map(|(f, arg, res)| (*f, arg.clone(), Some(res.clone()))).collect();
    states(model, &calls) > 0
}

fn put(value: u64, version: u64) -> (&'static str, Value, Value) {
    ("put", json!({"value": value}), json!({"version": version}))
}

fn read(value: Value, version: u64) -> (&'static str, Value, Value) {
    ("read", json!({}), json!({"value": value, "version": version}))
}

fn cas(expected: u64, value: u64, ok: bool, version: u64) -> (&'static str, Value, Value) {
    ("cas", json!({"version": expected, "value": value}), json!({"ok": ok, "version": version}))
}

fn del() -> (&'static str, Value, Value) {
    ("del", json!({}), json!({"version": 0}))
}

#[test]
fn a_register_counts_versions_from_its_creation() {
    let register = Register::new();
    assert!(can(&register, &[read(Value::Null, 0), del(), put(1, 1), put(2, 2), read(json!(2), 2)]));
    assert!(can(&register, &[put(1, 1), put(2, 2), del(), read(Value::Null, 0), put(3, 1)]));
    assert!(can(&register, &[cas(0, 1, true, 1), cas(0, 2, false, 1), cas(1, 3, true, 2), read(json!(3), 2)]));
    assert!(!can(&register, &[put(1, 2)]));
    assert!(!can(&register, &[put(1, 1), read(json!(2), 1)]));
    assert!(!can(&register, &[put(1, 1), cas(1, 2, false, 1)]), "it fits");
    assert!(!can(&register, &[put(1, 1), cas(0, 2, true, 2)]), "it is there");
    assert!(!can(&register, &[cas(1, 2, true, 1)]), "it is not");
    assert!(!can(&register, &[put(1, 1), del(), put(2, 3)]));
}

#[test]
fn a_register_that_counts_removals_goes_on_after_them() {
    let register = Register::counting_removals();
    assert!(can(&register, &[del(), put(1, 1), del(), read(Value::Null, 0), cas(0, 2, true, 3), read(json!(2), 3)]));
    assert!(!can(&register, &[put(1, 1), del(), put(2, 1)]));
}

fn acquire(owner: &str, token: Option<u64>) -> (&'static str, Value, Value) {
    ("acquire", json!({"owner": owner}), json!({"got": token.is_some(), "token": token.unwrap_or(0)}))
}

fn release(token: u64, ok: bool) -> (&'static str, Value, Value) {
    ("release", json!({"owner": "a", "token": token}), json!({"ok": ok}))
}

fn write(token: u64, value: u64, accepted: bool) -> (&'static str, Value, Value) {
    ("fenced_write", json!({"token": token, "value": value}), json!({"accepted": accepted}))
}

#[test]
fn a_lock_has_one_holder_and_rising_tokens() {
    let lock = Lock::new();
    let fine = [acquire("a", Some(5)), acquire("b", None), release(4, false), release(5, true), acquire("b", Some(7))];
    assert!(can(&lock, &fine));
    assert!(can(&lock, &[acquire("a", Some(5)), acquire("a", Some(5))]), "the same grant again");
    assert!(!can(&lock, &[acquire("a", Some(5)), acquire("b", Some(6))]), "two holders");
    assert!(!can(&lock, &[acquire("a", Some(5)), acquire("a", Some(6))]), "two grants");
    assert!(!can(&lock, &[acquire("a", Some(5)), release(5, true), acquire("b", Some(5))]), "a token again");
    assert!(!can(&lock, &[acquire("a", Some(5)), release(5, true), release(5, true)]));
    assert!(!can(&lock, &[acquire("a", Some(5)), release(5, false)]));
    assert!(!can(&lock, &[acquire("a", None)]), "nobody holds it");
}

#[test]
fn a_token_that_nobody_was_told_is_found_out_by_its_use() {
    let lock = Lock::new();
    let asked = ("acquire", json!({"owner": "a"}), None);
    let known = |(f, arg, res): (&'static str, Value, Value)| (f, arg, Some(res));
    assert_eq!(states(&lock, &[asked.clone(), known(acquire("a", Some(3)))]), 1);
    assert_eq!(states(&lock, &[asked.clone(), known(release(3, true)), known(acquire("b", Some(4)))]), 1);
    assert_eq!(states(&lock, &[asked.clone(), known(release(3, true)), known(acquire("b", Some(3)))]), 0);
    assert_eq!(states(&lock, &[asked, ("release", json!({"token": 3}), None)]), 2);
}

#[test]
fn a_fenced_write_needs_the_token_of_the_holder() {
    let fenced = Fenced::new();
    let held = [acquire("a", Some(5)), write(5, 1, true), read(json!(1), 1)];
    assert!(can(&fenced, &held));
    let with = |more: &[(&'static str, Value, Value)]| can(&fenced, &[held.as_slice(), more].concat());
    assert!(with(&[write(4, 2, false), release(5, true), write(5, 2, false), read(json!(1), 1)]));
    assert!(!with(&[write(4, 2, true)]));
    assert!(!with(&[write(5, 2, false)]));
    assert!(!with(&[release(5, true), write(5, 2, true)]), "it was given back");
    assert!(!with(&[release(5, true), acquire("b", Some(6)), write(5, 2, true)]), "somebody else has it");
    assert!(!with(&[write(5, 2, true), read(json!(1), 2)]));
}

fn claim(id: Value, fence: u64) -> (&'static str, Value, Value) {
    ("claim", json!({"worker": "w"}), json!({"id": id, "fence": fence}))
}

fn complete(id: &str, fence: u64, accepted: bool) -> (&'static str, Value, Value) {
    ("complete", json!({"id": id, "fence": fence}), json!({"accepted": accepted}))
}

fn enqueue(id: &str) -> (&'static str, Value, Value) {
    ("enqueue", json!({"id": id}), json!({}))
}

#[test]
fn a_queue_gives_each_entry_to_one() {
    let queue = Queue::new();
    let both = [enqueue("a"), enqueue("b"), claim(json!("b"), 3), claim(json!("a"), 4), claim(Value::Null, 0)];
    assert!(can(&queue, &both));
    let with = |more: &[(&'static str, Value, Value)]| can(&queue, &[both.as_slice(), more].concat());
    let finals = |a: &str| ("final", json!({}), json!({"states": {"a": a, "b": "claimed"}}));
    assert!(with(&[complete("a", 4, true), complete("a", 4, false), enqueue("a"), finals("done")]));
    assert!(!with(&[complete("a", 3, true)]), "another fence");
    assert!(!with(&[complete("a", 4, false)]));
    assert!(!with(&[complete("a", 4, true), complete("a", 4, true)]), "twice");
    assert!(!with(&[claim(json!("a"), 5)]), "it is claimed");
    assert!(!with(&[enqueue("c"), claim(json!("c"), 4)]), "a fence again");
    assert!(!with(&[enqueue("c"), claim(Value::Null, 0)]), "one waits");
    assert!(!with(&[finals("done")]));
    let unheard = ("claim", json!({"worker": "w"}), None);
    let two = [("enqueue", json!({"id": "a"}), None), ("enqueue", json!({"id": "b"}), None), unheard];
    assert_eq!(states(&queue, &two), 2, "either of them");
}

#[test]
fn what_a_model_does_not_know_is_an_error() {
    assert!(Register::new().call(&operation("acquire", json!({"owner": "a"}), None)).is_err());
    assert!(Register::new().call(&operation("put", json!({}), None)).is_err());
    assert!(Register::new().call(&operation("read", json!({}), Some(json!({"value": 1})))).is_err());
    assert!(Lock::new().call(&operation("read", json!({}), None)).is_err());
    assert!(Queue::new().call(&operation("claim", json!({}), Some(json!({})))).is_err());
}

#[test]
fn a_register_never_says_that_more_writes_are_needed_than_are() {
    let register = Register::new();
    let state = |version: u64| {
        let write = register.call(&operation("put", json!({"value": version}), None)).unwrap();
        (0..version).fold(register.initial(), |state, _| register.step(&state, &write).remove(0))
    };
    let call = |(f, arg, res): (&str, Value, Value)| register.call(&operation(f, arg, Some(res))).unwrap();
    assert_eq!(register.needs(&state(2), &call(put(9, 3))), Some(0));
    assert_eq!(register.needs(&state(2), &call(put(9, 5))), Some(2));
    assert_eq!(register.needs(&state(2), &call(read(json!(9), 3))), Some(1));
    assert_eq!(register.needs(&state(2), &call(read(json!(9), 2))), None, "another value of that version");
    assert_eq!(register.needs(&state(2), &call(put(9, 2))), None, "only a removal leads back");
    assert_eq!(register.needs(&state(2), &call(cas(4, 9, true, 5))), Some(2));
    assert_eq!(register.needs(&state(2), &call(del())), Some(0));
}
