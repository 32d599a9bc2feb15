//! Policies: how many earlier versions are kept of the keys under a prefix, and how long. The longest prefix counts.
//!
//! A policy that changes is applied by the sweep, which is due at once then; a write only takes care of its own key.

use std::collections::BTreeMap;
use std::ops::Bound;

use quorate_proto::v1::{
    DeleteKvPolicyRequest, DeleteKvPolicyResponse, KvPolicy, SetKvPolicyRequest, SetKvPolicyResponse,
};

use super::{Kv, checked, due, policy_key};
use crate::error::{Outcome, exhausted, invalid, not_found};
use crate::state::{Ctx, Out, Rooms};

/// The most policies.
pub const MAX_POLICIES: usize = 1_000;
/// How many earlier versions are kept where no policy says otherwise.
pub const DEFAULT_VERSIONS: u32 = 10;
/// For how long: 90 days.
pub const DEFAULT_MAX_AGE_MS: u64 = 7_776_000_000;

const MAX_VERSIONS: u32 = 1_000;
const MIN_AGE_MS: u64 = 1_000;

/// What is kept of a key, besides its document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) versions: u32,
    /// `None`: however old.
    pub(super) max_age_ms: Option<u64>,
}

impl Kept {
    /// When a version that was written then is too old; `None`: never.
    pub(super) fn until_ms(&self, written_ms: u64) -> Option<u64> {
        self.max_age_ms.map(|age_ms| written_ms.saturating_add(age_ms))
    }
}

impl Kv {
    /// Every policy, by prefix.
    pub fn policies(&self) -> impl Iterator<Item = &KvPolicy> {
        self.policies.values()
    }

    /// What is kept of this key.
    pub(super) fn kept(&self, key: &str) -> Kept {
        match longest(&self.policies, key) {
            Some(policy) => {
                Kept { versions: policy.versions, max_age_ms: Some(policy.max_age_ms).filter(|age_ms| *age_ms > 0) }
            }
            None => Kept { versions: DEFAULT_VERSIONS, max_age_ms: Some(DEFAULT_MAX_AGE_MS) },
        }
    }
}

/// Says what is kept of the keys under a prefix.
pub fn set_policy(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: SetKvPolicyRequest,
) -> Outcome<SetKvPolicyResponse> {
    let Some(policy) = req.policy else {
        return Err(invalid("policy", "policy must be given"));
    };
    checked::prefix("policy.prefix", &policy.prefix)?;
    if policy.versions > MAX_VERSIONS {
        let message = format!("policy.versions must be at most {MAX_VERSIONS}; got {}", policy.versions);
        return Err(invalid("policy.versions", message));
    }
    if policy.max_age_ms > 0 && policy.max_age_ms < MIN_AGE_MS {
        let message =
            format!("policy.max_age_ms must be {MIN_AGE_MS} or more, or 0 for any age; got {}", policy.max_age_ms);
        return Err(invalid("policy.max_age_ms", message));
    }
    let kv = &mut rooms.kv;
    if kv.policies.len() >= MAX_POLICIES && !kv.policies.contains_key(&policy.prefix) {
        return Err(exhausted("policy.prefix", format!("{MAX_POLICIES} policies are set already; delete one first")));
    }
    if kv.policies.get(&policy.prefix) != Some(&policy) {
        out.txn.put(&policy_key(&policy.prefix), &policy);
        due::sweep_soon(kv, out, ctx, &policy.prefix)?;
        kv.policies.insert(policy.prefix.clone(), policy);
    }
    Ok(SetKvPolicyResponse { rev: ctx.rev })
}

/// Removes a policy: the next shorter prefix counts again.
pub fn delete_policy(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: DeleteKvPolicyRequest,
) -> Outcome<DeleteKvPolicyResponse> {
    let kv = &mut rooms.kv;
    if !kv.policies.contains_key(&req.prefix) {
        return Err(not_found("prefix", format!("no policy for the prefix {:?} is set", req.prefix)));
    }
    out.txn.delete(&policy_key(&req.prefix));
    due::sweep_soon(kv, out, ctx, &req.prefix)?;
    kv.policies.remove(&req.prefix);
    Ok(DeleteKvPolicyResponse { rev: ctx.rev })
}

/// The policy with the longest prefix that the key begins with.
///
/// Of the prefixes up to a bound the last one is looked at. If the key does not begin with it, then neither does it
/// begin with anything between what the two have in common and the bound, so that is the next bound.
fn longest<'p>(policies: &'p BTreeMap<String, KvPolicy>, key: &str) -> Option<&'p KvPolicy> {
    let mut bound = key;
    loop {
        let upto: (Bound<&str>, Bound<&str>) = (Bound::Unbounded, Bound::Included(bound));
        let (prefix, policy) = policies.range::<str, _>(upto).next_back()?;
        if key.starts_with(prefix.as_str()) {
            return Some(policy);
        }
        let same = key.bytes().zip(prefix.bytes()).take_while(|(a, b)| a == b).count();
        let whole = (0..=same).rev().find(|length| key.is_char_boundary(*length)).unwrap_or_default();
        bound = &key[..whole];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_counts() {
        let prefixes = ["a/", "a/b", "a/b/c/d", "a/é", "results/"];
        let policies: BTreeMap<String, KvPolicy> = prefixes
            .map(|prefix| (prefix.to_owned(), KvPolicy { prefix: prefix.to_owned(), ..KvPolicy::default() }))
            .into();
        let found = |policies: &BTreeMap<String, KvPolicy>, key: &str| {
            longest(policies, key).map(|policy| policy.prefix.clone())
        };
        let table = [
            ("a/b/c/d", Some("a/b/c/d")),
            ("a/b/c/e", Some("a/b")),
            ("a/b", Some("a/b")),
            ("a/a", Some("a/")),
            ("a/é/x", Some("a/é")),
            // Shares the first byte of a letter with a longer prefix.
            ("a/ê", Some("a/")),
            ("a", None),
            ("b", None),
            ("zz", None),
            ("results/a1/7", Some("results/")),
        ];
        for (key, expected) in table {
            assert_eq!(found(&policies, key).as_deref(), expected, "{key}");
        }
        let mut with_all = policies;
        with_all.insert(String::new(), KvPolicy::default());
        assert_eq!(found(&with_all, "zz").as_deref(), Some(""));
        assert_eq!(found(&with_all, "a/b/c").as_deref(), Some("a/b"));
    }
}
