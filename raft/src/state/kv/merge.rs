//! Merges: how a new value meets the old one. Total and deterministic: the same two values give the same bytes or the
//! same refusal on every replica.
//!
//! What comes out becomes a row, so it is part of what replicas must agree on. Three rules follow:
//! - JSON is taken apart no further than the merge needs, and what is not taken apart keeps its text: no number passes
//!   through a float, and a number of any length stays as it was written;
//! - members of an object that is taken apart are written in the order of their names, each once (the last counts);
//! - a refusal never repeats what the JSON library says: its wording may change with its version.
//!
//! What text the library accepts, and how it writes a string, counts just as much. A new version of it is a change to
//! this file: the tables below must pass, and a difference waits for a new merge.
//!
//! Work is bounded: values are at most 1 MiB, and a patch is taken apart at most [`MAX_DEPTH`] objects deep. An object
//! that it reaches into is read once more for every object around it, so what is read in all has a bound of its own,
//! [`MAX_TAKEN_APART`]. What lies deeper in an array is copied by a parser that does not recurse.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes, BytesMut};
use quorate_proto::v1::KvMerge;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

/// How many objects deep a merge patch may go.
pub const MAX_DEPTH: usize = 64;
/// How many bytes of objects, old ones and the patch's, one merge takes apart, each as often as it does.
pub(super) const MAX_TAKEN_APART: u64 = 8 << 20;

const JSON: &str = "JSON";
const INTEGER: &str = "a signed decimal integer of 64 bits";
const STRINGS: &str = "a JSON array of strings";
const ARRAY: &str = "a JSON array";

/// Why two values cannot be merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// The old value is not what this merge needs, which is named.
    Old(&'static str),
    /// The new one is not.
    New(&'static str),
    /// The patch has more than [`MAX_DEPTH`] objects in one another.
    TooDeep,
    /// More than [`MAX_TAKEN_APART`] bytes would be taken apart.
    TooMuch,
    /// The sum does not fit.
    Overflow,
}

/// The value that is stored. `old` is `None` if there is no document. `taken_apart` counts what a patch takes apart.
pub(super) fn merged(how: KvMerge, old: Option<&[u8]>, new: &Bytes, taken_apart: &mut u64) -> Result<Bytes, Refused> {
    match how {
        KvMerge::Unspecified | KvMerge::Replace => Ok(new.clone()),
        KvMerge::JsonPatch => patch(old.unwrap_or(b"{}"), new, taken_apart),
        KvMerge::Add => add(old.unwrap_or(b"0"), new),
        KvMerge::SetAdd => {
            let (mut members, mut named) = sets(old.unwrap_or(b"[]"), new)?;
            members.append(&mut named);
            written(&members, Refused::New(STRINGS))
        }
        KvMerge::SetRemove => {
            let (mut members, named) = sets(old.unwrap_or(b"[]"), new)?;
            members.retain(|member| !named.contains(member));
            written(&members, Refused::New(STRINGS))
        }
        KvMerge::JsonAppend => {
            let mut elements = array(old.unwrap_or(b"[]")).ok_or(Refused::Old(ARRAY))?;
            elements.extend(array(new).ok_or(Refused::New(ARRAY))?);
            written(&elements, Refused::New(ARRAY))
        }
        KvMerge::Append => {
            let old = old.unwrap_or_default();
            let mut both = BytesMut::with_capacity(old.len() + new.len());
            both.put_slice(old);
            both.put_slice(new);
            Ok(both.freeze())
        }
    }
}

/// RFC 7396.
fn patch(old: &[u8], new: &[u8], taken_apart: &mut u64) -> Result<Bytes, Refused> {
    let target: &RawValue = parsed(old).ok_or(Refused::Old(JSON))?;
    let patch: &RawValue = parsed(new).ok_or(Refused::New(JSON))?;
    let patched = patched(Some(target), patch, 0, taken_apart)?;
    Ok(Bytes::copy_from_slice(patched.get().as_bytes()))
}

/// Below `depth` objects.
fn patched(
    target: Option<&RawValue>,
    patch: &RawValue,
    depth: usize,
    taken_apart: &mut u64,
) -> Result<Box<RawValue>, Refused> {
    if !is_object(patch) {
        return Ok(patch.to_owned());
    }
    if depth == MAX_DEPTH {
        return Err(Refused::TooDeep);
    }
    let target = target.filter(|target| is_object(target));
    *taken_apart += (patch.get().len() + target.map_or(0, |target| target.get().len())) as u64;
    if *taken_apart > MAX_TAKEN_APART {
        return Err(Refused::TooMuch);
    }
    let changes = members(patch).ok_or(Refused::New(JSON))?;
    let mut kept = match target {
        Some(target) => members(target).ok_or(Refused::Old(JSON))?,
        None => BTreeMap::new(),
    };
    for (name, change) in changes {
        if change.get() == "null" {
            kept.remove(&name);
            continue;
        }
        let member = patched(kept.get(&name).map(|member| &**member), &change, depth + 1, taken_apart)?;
        kept.insert(name, member);
    }
    to_raw_value(&kept).map_err(|_| Refused::New(JSON))
}

fn is_object(value: &RawValue) -> bool {
    value.get().starts_with('{')
}

fn members(object: &RawValue) -> Option<BTreeMap<String, Box<RawValue>>> {
    serde_json::from_str(object.get()).ok()
}

fn add(old: &[u8], new: &[u8]) -> Result<Bytes, Refused> {
    let sum = integer(old).ok_or(Refused::Old(INTEGER))?.checked_add(integer(new).ok_or(Refused::New(INTEGER))?);
    Ok(Bytes::from(sum.ok_or(Refused::Overflow)?.to_string()))
}

fn integer(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn sets(old: &[u8], new: &[u8]) -> Result<(BTreeSet<String>, BTreeSet<String>), Refused> {
    Ok((parsed(old).ok_or(Refused::Old(STRINGS))?, parsed(new).ok_or(Refused::New(STRINGS))?))
}

fn array(text: &[u8]) -> Option<Vec<&RawValue>> {
    parsed(text)
}

fn parsed<'t, T: serde::Deserialize<'t>>(text: &'t [u8]) -> Option<T> {
    serde_json::from_str(std::str::from_utf8(text).ok()?).ok()
}

/// What was parsed can be written; that it cannot is a refusal all the same.
fn written(value: &impl Serialize, otherwise: Refused) -> Result<Bytes, Refused> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|_| otherwise)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(how: KvMerge, old: Option<&str>, new: &str) -> Result<String, Refused> {
        let new = Bytes::copy_from_slice(new.as_bytes());
        let merged = merged(how, old.map(str::as_bytes), &new, &mut 0)?;
        Ok(String::from_utf8(merged.to_vec()).unwrap())
    }

    #[test]
    fn the_examples_of_rfc_7396() {
        // Appendix A: the original, the patch, the result.
        let table = [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, r#"{}"#),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"["a","b"]"#, r#"["c","d"]"#, r#"["c","d"]"#),
            (r#"{"a":"b"}"#, r#"["c"]"#, r#"["c"]"#),
            (r#"{"a":"foo"}"#, "null", "null"),
            (r#"{"a":"foo"}"#, r#""bar""#, r#""bar""#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"a":1,"e":null}"#),
            (r#"[1,2]"#, r#"{"a":"b","c":null}"#, r#"{"a":"b"}"#),
            ("{}", r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
        ];
        for (old, new, expected) in table {
            assert_eq!(run(KvMerge::JsonPatch, Some(old), new).as_deref(), Ok(expected), "{old} + {new}");
        }
    }

    #[test]
    fn what_is_not_taken_apart_keeps_its_text() {
        let old = r#"{"big":123456789012345678901234567890.10,"list":[1.0,  2e400],"text":"\u00e9"}"#;
        let new = r#"{"small":1e-400}"#;
        let expected =
            r#"{"big":123456789012345678901234567890.10,"list":[1.0,  2e400],"small":1e-400,"text":"\u00e9"}"#;
        assert_eq!(run(KvMerge::JsonPatch, Some(old), new).as_deref(), Ok(expected));
        assert_eq!(run(KvMerge::JsonAppend, Some("[1.10, 2]"), "[ 3.0 ]").as_deref(), Ok("[1.10,2,3.0]"));
    }

    #[test]
    fn the_last_of_equal_names_counts() {
        let expected = r#"{"a":3}"#;
        assert_eq!(run(KvMerge::JsonPatch, Some(r#"{"a":1,"a":2}"#), r#"{"a":4,"\u0061":3}"#).as_deref(), Ok(expected));
    }

    #[test]
    fn a_patch_goes_so_deep_and_no_deeper() {
        let nested = |levels: usize| format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels));
        assert_eq!(run(KvMerge::JsonPatch, None, &nested(MAX_DEPTH)), Ok(nested(MAX_DEPTH)));
        assert_eq!(run(KvMerge::JsonPatch, None, &nested(MAX_DEPTH + 1)), Err(Refused::TooDeep));
        // Arrays are not taken apart, however deep.
        let arrays = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(run(KvMerge::JsonPatch, Some("{}"), &arrays), Ok(arrays.clone()));
        assert_eq!(run(KvMerge::JsonPatch, Some(&arrays), r#"{"a":1}"#).as_deref(), Ok(r#"{"a":1}"#));
    }

    #[test]
    fn a_patch_takes_apart_so_much_and_no_more() {
        let nested = |leaf: &str| format!("{}{leaf}{}", r#"{"a":"#.repeat(MAX_DEPTH), "}".repeat(MAX_DEPTH));
        let text = |bytes: usize| format!("\"{}\"", "x".repeat(bytes));
        let apart = |old: &str| {
            let (new, mut taken_apart) = (Bytes::from(nested("1")), 0);
            let outcome = merged(KvMerge::JsonPatch, Some(old.as_bytes()), &new, &mut taken_apart);
            assert!(outcome.as_ref().is_ok_and(|patched| *patched == new) || outcome == Err(Refused::TooMuch));
            (outcome.is_ok(), taken_apart)
        };
        // Every object around it reads the text once more.
        let (ok, taken_apart) = apart(&nested(&text(100_000)));
        assert!(ok && (6_400_000..6_500_000).contains(&taken_apart), "{taken_apart}");
        let (ok, taken_apart) = apart(&nested(&text(200_000)));
        assert!(!ok && (MAX_TAKEN_APART..MAX_TAKEN_APART + 210_000).contains(&taken_apart), "{taken_apart}");
        // Beside the way, it is read once.
        let (beside, mut taken_apart) = (format!(r#"{{"b":{}}}"#, text(1_000_000)), 0);
        let new = Bytes::from(nested("1"));
        assert!(merged(KvMerge::JsonPatch, Some(beside.as_bytes()), &new, &mut taken_apart).is_ok());
        assert!((1_000_000..1_100_000).contains(&taken_apart), "{taken_apart}");
    }

    #[test]
    fn each_merge() {
        let table = [
            (KvMerge::Replace, Some("old"), "new", Ok("new")),
            (KvMerge::JsonPatch, None, r#"{"a":null,"b":1}"#, Ok(r#"{"b":1}"#)),
            (KvMerge::JsonPatch, Some("text"), "{}", Err(Refused::Old(JSON))),
            (KvMerge::JsonPatch, Some(""), "{}", Err(Refused::Old(JSON))),
            (KvMerge::JsonPatch, Some("{}"), r#"{"a":1} x"#, Err(Refused::New(JSON))),
            (KvMerge::JsonPatch, Some("{}"), r#"{"\ud800":1}"#, Err(Refused::New(JSON))),
            (KvMerge::JsonPatch, Some(r#"{"\ud800":1}"#), "{}", Err(Refused::Old(JSON))),
            (KvMerge::Add, None, "5", Ok("5")),
            (KvMerge::Add, Some("-7"), "5", Ok("-2")),
            (KvMerge::Add, Some("9223372036854775807"), "1", Err(Refused::Overflow)),
            (KvMerge::Add, Some("-9223372036854775808"), "-1", Err(Refused::Overflow)),
            (KvMerge::Add, Some("1"), "9223372036854775808", Err(Refused::New(INTEGER))),
            (KvMerge::Add, Some("1.0"), "1", Err(Refused::Old(INTEGER))),
            (KvMerge::Add, Some("1"), " 1", Err(Refused::New(INTEGER))),
            (KvMerge::SetAdd, None, r#"["b","a","b"]"#, Ok(r#"["a","b"]"#)),
            (KvMerge::SetAdd, Some(r#"["c","a"]"#), r#"["b"]"#, Ok(r#"["a","b","c"]"#)),
            (KvMerge::SetAdd, Some("[1]"), "[]", Err(Refused::Old(STRINGS))),
            (KvMerge::SetAdd, Some("[]"), r#"{"a":1}"#, Err(Refused::New(STRINGS))),
            (KvMerge::SetRemove, Some(r#"["a","b"]"#), r#"["b","x"]"#, Ok(r#"["a"]"#)),
            (KvMerge::SetRemove, None, r#"["b"]"#, Ok("[]")),
            (KvMerge::JsonAppend, None, r#"[{"a":1}]"#, Ok(r#"[{"a":1}]"#)),
            (KvMerge::JsonAppend, Some("[1]"), "[2,3]", Ok("[1,2,3]")),
            (KvMerge::JsonAppend, Some("{}"), "[1]", Err(Refused::Old(ARRAY))),
            (KvMerge::JsonAppend, Some("[]"), "1", Err(Refused::New(ARRAY))),
            (KvMerge::Append, None, "b", Ok("b")),
            (KvMerge::Append, Some("a"), "b", Ok("ab")),
        ];
        for (how, old, new, expected) in table {
            assert_eq!(run(how, old, new).as_deref(), expected.as_ref().copied(), "{how:?} {old:?} + {new:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_no_json() {
        let new = Bytes::from_static(b"[\"\xff\"]");
        let empty = Bytes::from_static(b"[]");
        assert_eq!(merged(KvMerge::SetAdd, None, &new, &mut 0), Err(Refused::New(STRINGS)));
        assert_eq!(merged(KvMerge::JsonAppend, Some(&new), &empty, &mut 0), Err(Refused::Old(ARRAY)));
    }
}
