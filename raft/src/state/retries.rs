//! Retries: retry policies with a name.
//!
//! Owns the RetryProfile rows. Four profiles are built in; a row of the same name replaces one, and taking that row away
//! brings the built-in one back. At most [`MAX_PROFILES`] rows exist, so all of them are in memory.
//!
//! Deliberately absent: who uses a profile, and the timers of what waits for its retry. Those are the tasks' affair.

pub mod policy;

use std::collections::BTreeMap;

use quorate_proto::v1::{
    DeleteRetryProfileRequest, DeleteRetryProfileResponse, RetryPolicy, RetryProfile, SetRetryProfileRequest,
    SetRetryProfileResponse,
};

use crate::error::{Fatal, Outcome, exhausted, invalid, not_found};
use crate::state::{Ctx, Out, Rooms, check_id};
use crate::storage::keys::{Key, Table};
use crate::storage::rows::{self, Rows};

/// The most profiles that may be defined besides the built-in ones, or in place of them.
pub const MAX_PROFILES: usize = 1_000;

/// The names of the built-in profiles.
pub const BUILT_IN: [&str; 4] = ["autonomous", "default", "fast", "restart"];

/// The profiles that have a row.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Retries {
    own: BTreeMap<String, RetryPolicy>,
}

impl Retries {
    /// Builds the index from the rows.
    pub fn rebuild(rows: &dyn Rows) -> Result<Self, Fatal> {
        let mut own = BTreeMap::new();
        rows::scan_prefix::<RetryProfile>(rows, &Key::table(Table::RetryProfile), |_, profile| {
            own.insert(profile.name, profile.policy.unwrap_or_default());
            Ok(true)
        })?;
        Ok(Retries { own })
    }

    /// The policy of this name.
    pub fn get(&self, name: &str) -> Option<RetryPolicy> {
        self.own.get(name).cloned().or_else(|| built_in(name))
    }

    /// Every profile, by name.
    pub fn list(&self) -> Vec<RetryProfile> {
        let mut all: BTreeMap<String, RetryProfile> = BTreeMap::new();
        for name in BUILT_IN {
            all.insert(name.to_owned(), profile(name, built_in(name), true));
        }
        for (name, policy) in &self.own {
            all.insert(name.clone(), profile(name, Some(policy.clone()), false));
        }
        all.into_values().collect()
    }
}

/// Defines a profile, or replaces one.
pub fn set_profile(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: SetRetryProfileRequest,
) -> Outcome<SetRetryProfileResponse> {
    check_id("name", &req.name)?;
    let Some(policy) = req.policy else {
        return Err(invalid("policy", "policy must be given"));
    };
    let policy = policy::check("policy", policy)?;
    let own = &mut rooms.retries.own;
    if own.len() >= MAX_PROFILES && !own.contains_key(&req.name) {
        return Err(exhausted("name", format!("{MAX_PROFILES} profiles are defined already; delete one first")));
    }
    let stored = profile(&req.name, Some(policy.clone()), false);
    out.txn.put(&profile_key(&req.name), &stored);
    own.insert(req.name, policy);
    Ok(SetRetryProfileResponse { profile: Some(stored), rev: ctx.rev })
}

/// Removes a profile; a built-in one is again what it was, also if nobody had replaced it.
pub fn delete_profile(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: DeleteRetryProfileRequest,
) -> Outcome<DeleteRetryProfileResponse> {
    if rooms.retries.own.remove(&req.name).is_some() {
        out.txn.delete(&profile_key(&req.name));
    } else if !BUILT_IN.contains(&req.name.as_str()) {
        return Err(not_found("name", format!("no retry profile {:?} exists", req.name)));
    }
    Ok(DeleteRetryProfileResponse { rev: ctx.rev })
}

/// What a built-in profile is before anybody replaces it.
fn built_in(name: &str) -> Option<RetryPolicy> {
    match name {
        "default" => Some(policy::DEFAULT_POLICY),
        "fast" => Some(policy::of(5, 1_000, 16_000, 0)),
        "autonomous" => Some(policy::of(2, 2_000, 60_000, 200)),
        "restart" => Some(policy::of(3, 1_000, 30_000, 200)),
        _ => None,
    }
}

fn profile(name: &str, policy: Option<RetryPolicy>, built_in: bool) -> RetryProfile {
    RetryProfile { name: name.to_owned(), policy, built_in }
}

fn profile_key(name: &str) -> Key {
    Key::table(Table::RetryProfile).text(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_profile_is_as_documented() {
        // Name, retries, and the delays without jitter.
        let table: [(&str, u32, &[u64]); 4] = [
            ("autonomous", 200, &[2_000, 4_000]),
            ("default", 200, &[2_000, 4_000, 8_000]),
            ("fast", 0, &[1_000, 2_000, 4_000, 8_000, 16_000]),
            ("restart", 200, &[1_000, 2_000, 4_000]),
        ];
        let retries = Retries::default();
        for (name, jitter_permille, delays) in table {
            let policy = retries.get(name).expect("a built-in profile");
            assert_eq!(policy.jitter_permille, jitter_permille, "{name}");
            let plain = RetryPolicy { jitter_permille: 0, ..policy.clone() };
            let actual: Vec<u64> = (0..policy.max_retries).map(|n| policy::delay_ms(&plain, n, 7)).collect();
            assert_eq!(actual, delays, "{name}");
        }
        let names: Vec<String> = retries.list().into_iter().map(|profile| profile.name).collect();
        assert_eq!(names, BUILT_IN);
        assert_eq!(retries.get("other"), None);
    }

    #[test]
    fn a_built_in_profile_passes_the_check_it_is_not_put_through() {
        for name in BUILT_IN {
            let policy = built_in(name).expect("a built-in profile");
            assert_eq!(policy::check("policy", policy.clone()).expect("a good policy"), policy, "{name}");
        }
    }

    #[test]
    fn own_profiles_come_first() {
        let own = policy::of(9, 1, 2, 3);
        let retries = Retries { own: BTreeMap::from([("fast".to_owned(), own.clone()), ("mine".to_owned(), own)]) };
        assert_eq!(retries.get("fast").map(|policy| policy.max_retries), Some(9));
        let listed: Vec<(String, bool)> = retries.list().into_iter().map(|p| (p.name, p.built_in)).collect();
        let expected = [("autonomous", true), ("default", true), ("fast", false), ("mine", false), ("restart", true)];
        assert_eq!(listed, expected.map(|(name, built_in)| (name.to_owned(), built_in)));
    }
}
