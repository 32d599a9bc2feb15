//! Turns: who is next among shares, and among priorities where they share too. Start-time fair queueing (Goyal, Vin,
//! Cheng 1996), in integers.
//!
//! Each share has a finish tag in each band. The one whose next start, `max(band's virtual time, own finish tag)`, is
//! smallest goes first; a grant of some cost moves its tag by cost / weight and the band's time to its start. A share
//! that comes back after a rest starts at the band's time: it neither lost its turn nor saved any up. While two shares
//! have work, what they got, divided by their weights, differs by no more than one task's cost of each.
//!
//! Owns the SharePass and BandPass rows. With one share alone nothing is kept or written: there is nobody to be fair to.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes, BytesMut};

use super::queue::MAX_PRIORITY;
use crate::error::Fatal;
use crate::state::Out;
use crate::storage::keys::{Key, Table};
use crate::storage::rows::Rows;

/// What one unit of cost moves a tag of weight 1.
const SCALE: u128 = 1_000_000_000;
/// Parts of the weighted order by priority, 0 to 10. 10, 7, 5 and 3 are P0 to P3.
const BAND_WEIGHTS: [u128; 11] = [2, 3, 6, 10, 17, 25, 37, 50, 66, 83, 100];
/// The BandPass row of the time that all bands share.
const CLOCK: u64 = 255;
/// Tags that mean nothing any more, removed with one grant.
const SWEEP: usize = 4;

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Band {
    /// The start of the latest grant in it.
    time: u128,
    /// Its own tag, where bands share.
    finish: u128,
}

/// The tags.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Turns {
    bands: BTreeMap<u8, Band>,
    finish: BTreeMap<(u8, String), u128>,
    by_finish: BTreeSet<(u8, u128, String)>,
    clock: u128,
}

/// What a grant takes from whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct Charge<'a> {
    pub(super) band: u8,
    pub(super) share: &'a str,
    pub(super) cost: u64,
    pub(super) weight: u32,
}

impl Turns {
    /// Reads the tags.
    pub(super) fn rebuild(rows: &dyn Rows) -> Result<Self, Fatal> {
        let mut turns = Turns::default();
        let bands = Key::table(Table::BandPass);
        rows.scan(bands.as_bytes(), &bands.prefix_end(), &mut |key, value| {
            let (band, time, finish) = split_band(key, value)?;
            if band == CLOCK {
                turns.clock = time;
            } else {
                turns.bands.insert(u8::try_from(band).unwrap_or(u8::MAX), Band { time, finish });
            }
            Ok(true)
        })?;
        let shares = Key::table(Table::SharePass);
        rows.scan(shares.as_bytes(), &shares.prefix_end(), &mut |key, value| {
            let (band, share, finish) = split_share(key, value)?;
            turns.by_finish.insert((band, finish, share.clone()));
            turns.finish.insert((band, share), finish);
            Ok(true)
        })?;
        Ok(turns)
    }

    /// Where the share's next grant in the band would start.
    pub(super) fn share_start(&self, band: u8, share: &str) -> u128 {
        let time = self.bands.get(&band).map_or(0, |band| band.time);
        self.finish.get(&(band, share.to_owned())).map_or(time, |finish| time.max(*finish))
    }

    /// Where the band's next grant would start.
    pub(super) fn band_start(&self, band: u8) -> u128 {
        self.bands.get(&band).map_or(self.clock, |band| self.clock.max(band.finish))
    }

    /// A grant, where several shares have work.
    pub(super) fn charge_share(&mut self, out: &mut Out<'_, '_>, charge: Charge<'_>) {
        let Charge { band, share, cost, weight } = charge;
        let start = self.share_start(band, share);
        let finish = start.saturating_add(u128::from(cost) * SCALE / u128::from(weight.max(1)));
        if let Some(before) = self.finish.insert((band, share.to_owned()), finish) {
            self.by_finish.remove(&(band, before, share.to_owned()));
        }
        self.by_finish.insert((band, finish, share.to_owned()));
        out.txn.put_bytes(&share_key(band, share), Bytes::copy_from_slice(&finish.to_be_bytes()));
        self.bands.entry(band).or_default().time = start;
        self.put_band(out, band);
        self.sweep(out, band, start);
    }

    /// A grant, where priorities share by weight.
    pub(super) fn charge_band(&mut self, out: &mut Out<'_, '_>, band: u8, cost: u64) {
        let start = self.band_start(band);
        let weight = BAND_WEIGHTS[usize::from(band).min(MAX_PRIORITY as usize)];
        self.bands.entry(band).or_default().finish = start.saturating_add(u128::from(cost) * SCALE / weight);
        self.put_band(out, band);
        if self.clock != start {
            self.clock = start;
            out.txn.put_bytes(&Key::table(Table::BandPass).number(CLOCK), tags(start, 0));
        }
    }

    fn put_band(&self, out: &mut Out<'_, '_>, band: u8) {
        let Band { time, finish } = self.bands.get(&band).copied().unwrap_or_default();
        out.txn.put_bytes(&Key::table(Table::BandPass).number(u64::from(band)), tags(time, finish));
    }

    /// A tag that the band's time has passed says what no tag says.
    fn sweep(&mut self, out: &mut Out<'_, '_>, band: u8, time: u128) {
        for _ in 0..SWEEP {
            let first = self.by_finish.range((band, 0, String::new())..).next().cloned();
            let Some((of, finish, share)) = first.filter(|(of, finish, _)| *of == band && *finish <= time) else {
                return;
            };
            out.txn.delete(&share_key(of, &share));
            self.finish.remove(&(of, share.clone()));
            self.by_finish.remove(&(of, finish, share));
        }
    }
}

fn share_key(band: u8, share: &str) -> Key {
    Key::table(Table::SharePass).number(u64::from(band)).text(share)
}

fn tags(time: u128, finish: u128) -> Bytes {
    let mut bytes = BytesMut::with_capacity(32);
    bytes.put_u128(time);
    bytes.put_u128(finish);
    bytes.freeze()
}

fn split_band(key: &[u8], value: &[u8]) -> Result<(u64, u128, u128), Fatal> {
    let corrupt = || Fatal::Corrupt(format!("not a band's tags: {key:?} = {value:?}"));
    let (_, band) = key.split_last_chunk::<8>().ok_or_else(corrupt)?;
    let (time, finish) = value.split_first_chunk::<16>().ok_or_else(corrupt)?;
    let finish = <[u8; 16]>::try_from(finish).map_err(|_| corrupt())?;
    Ok((u64::from_be_bytes(*band), u128::from_be_bytes(*time), u128::from_be_bytes(finish)))
}

fn split_share(key: &[u8], value: &[u8]) -> Result<(u8, String, u128), Fatal> {
    let corrupt = || Fatal::Corrupt(format!("not a share's tag: {key:?} = {value:?}"));
    let (band, share) = key.get(1..).and_then(|rest| rest.split_first_chunk::<8>()).ok_or_else(corrupt)?;
    let band = u8::try_from(u64::from_be_bytes(*band)).map_err(|_| corrupt())?;
    let share = share.strip_suffix(&[0_u8]).and_then(|share| std::str::from_utf8(share).ok()).ok_or_else(corrupt)?;
    let finish = <[u8; 16]>::try_from(value).map_err(|_| corrupt())?;
    Ok((band, share.to_owned(), u128::from_be_bytes(finish)))
}
