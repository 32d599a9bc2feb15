//! The overlap of globs against brute force: every path up to a length, asked of a matcher that was written apart.
//!
//! Why no witness is missed. Globs here name no characters but `a` and `b`; all others are alike to them, and `c`
//! stands for those. Take a shortest path that two globs have in common. Each of its segments is read by an item other
//! than `**` in at least one of them, or it could be left out (if it is the only one, `a` will do). So it has no more
//! segments than the one glob has, if that has no `**`; and if both have, no more than both have other items: of 3
//! items each, at most 2 are others. That makes 4. The same goes for the characters of a segment and `*`: of 2 items
//! each, at most 2 characters; of 4 items each, at most 6.

// Helpers of a test are tests too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use quorate_raft::state::locks::{Glob, begin_apart};

/// SplitMix64: the same globs in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    fn segment(&mut self, most_items: usize) -> String {
        const ITEMS: [&str; 11] = ["a", "b", "\\a", "?", "[ab]", "[!a]", "[!ab]", "[a-b]", "[!a-b]", "*", "*"];
        loop {
            let items = 1 + self.below(most_items);
            let text: String = (0..items).map(|_| ITEMS[self.below(ITEMS.len())]).collect();
            // It stands alone, and is not for a segment to hold.
            if !text.contains("**") {
                return text;
            }
        }
    }

    fn glob(&mut self) -> String {
        let segments = 1 + self.below(3);
        let segments: Vec<String> =
            (0..segments).map(|_| if self.below(3) == 0 { "**".to_owned() } else { self.segment(2) }).collect();
        segments.join("/")
    }
}

/// Every text of `a`, `b` and `c` with 1 to `most` characters.
fn texts(most: usize) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut last = vec![String::new()];
    for _ in 0..most {
        last = last.iter().flat_map(|text| ["a", "b", "c"].map(|c| format!("{text}{c}"))).collect();
        all.extend(last.iter().cloned());
    }
    all
}

/// Whether the text is in the segment: by trying everything, and reading the glob as it goes.
fn fits(glob: &[char], text: &[char]) -> bool {
    let Some((first, rest)) = glob.split_first() else { return text.is_empty() };
    if *first == '*' {
        return (0..=text.len()).any(|taken| fits(rest, &text[taken..]));
    }
    let Some((c, text)) = text.split_first() else { return false };
    match first {
        '?' => fits(rest, text),
        '\\' => rest[0] == *c && fits(&rest[1..], text),
        '[' => {
            let end = rest.iter().position(|c| *c == ']').unwrap();
            let negated = rest[0] == '!';
            let members = &rest[usize::from(negated)..end];
            let inside = match members {
                [low, '-', high] => (low..=high).contains(&c),
                _ => members.contains(c),
            };
            inside != negated && fits(&rest[end + 1..], text)
        }
        _ => first == c && fits(rest, text),
    }
}

fn fits_text(glob: &str, text: &str) -> bool {
    fits(&glob.chars().collect::<Vec<_>>(), &text.chars().collect::<Vec<_>>())
}

/// Whether the path is in the glob. A path is the numbers of its segments, an item which of them it takes; `None` is
/// `**`.
fn leads(items: &[Option<Vec<bool>>], path: &[usize]) -> bool {
    match (items.split_first(), path.split_first()) {
        (None, None) => true,
        (Some((None, rest)), None) => leads(rest, path),
        (Some((None, rest)), Some((_, further))) => leads(rest, path) || leads(items, further),
        (Some((Some(takes), rest)), Some((first, further))) => takes[*first] && leads(rest, further),
        (Some((Some(_), _)), None) | (None, Some(_)) => false,
    }
}

/// For each path, whether it is in the glob, as bits.
fn bits(in_it: impl Iterator<Item = bool>) -> Vec<u64> {
    let all: Vec<bool> = in_it.collect();
    all.chunks(64).map(|chunk| chunk.iter().rev().fold(0, |bits, bit| (bits << 1) | u64::from(*bit))).collect()
}

fn have_one_in_common(a: &[u64], b: &[u64]) -> bool {
    a.iter().zip(b).any(|(x, y)| x & y != 0)
}

/// Compares the answers for every pair, and says how many overlap and how many do not.
fn compare(globs: &[(String, Vec<u64>)]) -> (usize, usize) {
    let parsed: Vec<Glob> = globs.iter().map(|(text, _)| Glob::parse(text).unwrap()).collect();
    let (mut overlapping, mut apart) = (0, 0);
    for (i, (a, in_a)) in globs.iter().enumerate() {
        for (j, (b, in_b)) in globs.iter().enumerate().skip(i) {
            let expected = have_one_in_common(in_a, in_b);
            assert_eq!(parsed[i].overlaps(&parsed[j]), expected, "{a:?} and {b:?}");
            assert_eq!(parsed[j].overlaps(&parsed[i]), expected, "{b:?} and {a:?}");
            assert!(!(expected && begin_apart(a, b)), "{a:?} and {b:?} do not begin apart");
            if expected { overlapping += 1 } else { apart += 1 }
        }
    }
    (overlapping, apart)
}

#[test]
fn overlap_agrees_with_brute_force() {
    let segments = texts(2);
    let mut paths: Vec<Vec<usize>> = Vec::new();
    let mut last: Vec<Vec<usize>> = vec![Vec::new()];
    for _ in 0..4 {
        last =
            last.iter().flat_map(|path| (0..segments.len()).map(move |next| [&path[..], &[next]].concat())).collect();
        paths.extend(last.iter().cloned());
    }
    let mut random = Random(1);
    let globs: Vec<(String, Vec<u64>)> = (0..200)
        .map(|_| {
            let text = random.glob();
            let items: Vec<Option<Vec<bool>>> = text
                .split('/')
                .map(|item| (item != "**").then(|| segments.iter().map(|text| fits_text(item, text)).collect()))
                .collect();
            let in_it = bits(paths.iter().map(|path| leads(&items, path)));
            // The parsed glob says the same of a part of the paths.
            let parsed = Glob::parse(&text).unwrap();
            for (i, path) in paths.iter().enumerate().step_by(997) {
                let path: Vec<&str> = path.iter().map(|segment| segments[*segment].as_str()).collect();
                let (path, expected) = (path.join("/"), (in_it[i / 64] >> (i % 64)) & 1 == 1);
                assert_eq!(parsed.matches(&path), expected, "{text:?} and {path:?}");
            }
            (text, in_it)
        })
        .collect();
    let (overlapping, apart) = compare(&globs);
    assert!(overlapping > 2_000 && apart > 2_000 && overlapping + apart > 20_000, "{overlapping} and {apart}");
}

#[test]
fn overlap_within_a_segment_agrees_with_brute_force() {
    let texts = texts(6);
    let mut random = Random(2);
    let globs: Vec<(String, Vec<u64>)> = (0..200)
        .map(|_| {
            let text = random.segment(4);
            let in_it = bits(texts.iter().map(|path| fits_text(&text, path)));
            (text, in_it)
        })
        .collect();
    let (overlapping, apart) = compare(&globs);
    assert!(overlapping > 2_000 && apart > 2_000 && overlapping + apart > 20_000, "{overlapping} and {apart}");
}

#[test]
fn what_people_write() {
    for (a, b, expected) in [
        ("src/**", "src/main.rs", true),
        ("src/**", "src", true),
        ("src/", "src/a/b/c.rs", true),
        ("src/", "src", true),
        ("src", "src/main.rs", false),
        ("/src/*", "src/x", true),
        ("src/*", "src/x/y", false),
        ("src/**", "srcs/x", false),
        ("**/*.rs", "src/**", true),
        ("**/*.rs", "**/*.md", false),
        ("**/*.rs", "docs/*.md", false),
        ("**", "any/thing", true),
        ("a/**/z", "a/z", true),
        ("a/**/z", "a/b/c/y", false),
        ("src/*_test.rs", "src/lock_*.rs", true),
        ("src/[a-m]*", "src/[n-z]*", false),
        ("src/[!a-m]*", "src/[a-m]*", false),
        ("src/[!a]?", "src/é?", true),
        ("\\*", "a", false),
        ("\\*", "[*]", true),
        ("Src/x", "src/x", false),
        ("[+-9]", "[.-0]", true),
    ] {
        let (one, other) = (Glob::parse(a).unwrap(), Glob::parse(b).unwrap());
        assert_eq!(one.overlaps(&other), expected, "{a:?} and {b:?}");
        assert_eq!(other.overlaps(&one), expected, "{b:?} and {a:?}");
        assert!(!(expected && begin_apart(a, b)), "{a:?} and {b:?}");
    }
}

#[test]
fn a_path_has_no_empty_segment() {
    let all = Glob::parse("**").unwrap();
    for (path, expected) in [("a", true), ("/a/b", true), ("", false), ("a/", false), ("a//b", false), ("//a", false)] {
        assert_eq!(all.matches(path), expected, "{path:?}");
    }
}
