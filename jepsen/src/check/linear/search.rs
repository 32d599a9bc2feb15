//! The search for an order of operations in which every answer can be given: the algorithm of Wing and Gong with Lowe's
//! memory of what was tried.
//!
//! Operations with an answer span an interval of places, and must all be ordered. Operations of unknown outcome may
//! take effect anywhere after their beginning, or never. What they could do multiplies, so they are tried last, and in
//! short series first: between two answers at most none, then one, two, four, ... of them. If a search fails without
//! having been limited by that, there is no order.
//!
//! | shortening | why nothing is missed |
//! |---|---|
//! | an unknown operation that changes nothing here is passed over | it is as well left out |
//! | no unknown operation comes just before a call that [`resets`](Model::resets) | it is as well left out |
//! | a series goes on only if some next answer [can still come of it](Model::needs) | an answer must follow it |
//! | an answer that must come soon and [never fits again](Model::needs) ends an attempt | it must come |
//! | of unknown operations that [are alike](Model::is_alike), one is tried | none has to come before its time is over |
//!
//! Deliberately absent: what the places are. For one checker they are times, for another the log.

use std::collections::{BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::open::Open;
use crate::check::model::Model;

/// An operation with its answer.
#[derive(Debug)]
pub(crate) struct Known<C> {
    /// Of the operation.
    pub(crate) id: usize,
    /// What was called and answered.
    pub(crate) call: C,
    /// The place of its beginning.
    pub(crate) from: usize,
    /// The place of its end.
    pub(crate) to: usize,
    /// No more operations of unknown outcome than this may come between it and the one ordered before it.
    pub(crate) room: usize,
}

/// An operation of unknown outcome.
#[derive(Debug)]
pub(crate) struct Maybe<C> {
    /// What was called.
    pub(crate) call: C,
    /// The place of its beginning.
    pub(crate) from: usize,
}

/// What a search found.
#[derive(Debug)]
pub(crate) enum Found<S> {
    /// There is an order; of each operation with an answer, whether it changed the state.
    Order(Vec<bool>),
    /// There is none.
    Stuck(Stuck<S>),
    /// The budget was not enough to tell.
    TooMuch,
}

/// How far the best attempt came.
#[derive(Clone, Debug)]
pub(crate) struct Stuck<S> {
    /// So many operations were ordered.
    pub(crate) ordered: usize,
    /// What they left behind.
    pub(crate) state: S,
    /// The operations of which one would have had to be next, by their id.
    pub(crate) next: Vec<usize>,
}

/// Looks for an order, trying at most `budget` configurations: sets of ordered operations with the state after them.
pub(crate) fn search<M: Model>(
    model: &M,
    mut known: Vec<Known<M::Call>>,
    mut maybe: Vec<Maybe<M::Call>>,
    budget: u64,
) -> Found<M::State> {
    known.sort_by_key(|known| known.from);
    let classes = classify(model, &known, &mut maybe);
    let (mut limit, mut left) = (0, budget);
    loop {
        let mut attempt = Attempt::new(model, &known, &maybe, &classes, limit, left);
        match attempt.run() {
            Ended::Ordered => return Found::Order(attempt.changed()),
            Ended::OutOfBudget => return Found::TooMuch,
            Ended::Exhausted if !attempt.was_limited => return Found::Stuck(attempt.furthest),
            Ended::Exhausted => (limit, left) = ((limit * 2).max(1), attempt.left),
        }
    }
}

/// Puts those last, and so tries them first, that no answer shows: the others are better kept for the answer. Gives of
/// each the first that it is like.
fn classify<M: Model>(model: &M, known: &[Known<M::Call>], maybe: &mut [Maybe<M::Call>]) -> Vec<usize> {
    let is_shown = |unknown: &Maybe<M::Call>| known.iter().any(|known| model.shows(&known.call, &unknown.call));
    maybe.sort_by_cached_key(|unknown| (!is_shown(unknown), unknown.from));
    let shown = maybe.partition_point(is_shown);
    let mut classes: Vec<usize> = (0..shown).collect();
    for (index, unknown) in maybe.iter().enumerate().skip(shown) {
        let is_like = |first: &usize| classes[*first] == *first && model.is_alike(&maybe[*first].call, &unknown.call);
        let first = (shown..index).find(is_like);
        classes.push(first.unwrap_or(index));
    }
    classes
}

/// An operation, by its index.
#[derive(Clone, Copy, Debug)]
enum Step {
    Known(usize),
    Maybe(usize),
}

/// One configuration on the way, and what is left to be tried from it.
#[derive(Debug)]
struct Frame<S> {
    /// What led here; `None`: the beginning.
    by: Option<Step>,
    state: S,
    /// How many operations of unknown outcome came since the last one with an answer.
    series: usize,
    /// Tried from the back.
    options: Vec<(Step, S)>,
    /// Nothing is to be added to them.
    is_complete: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Ordered,
    Exhausted,
    OutOfBudget,
}

/// One search, with one limit to the series.
struct Attempt<'a, M: Model> {
    model: &'a M,
    known: &'a [Known<M::Call>],
    maybe: &'a [Maybe<M::Call>],
    /// Of each `maybe`, the first that it is like. Those of a class are in the order of their beginnings.
    classes: &'a [usize],
    limit: usize,
    /// Something was left out because of the limit.
    was_limited: bool,
    left: u64,
    open: Open,
    is_ordered: Vec<bool>,
    ordered: usize,
    /// The operations of unknown outcome that took effect, in the order of their index.
    used: Vec<usize>,
    seen: HashSet<u128>,
    frames: Vec<Frame<M::State>>,
    furthest: Stuck<M::State>,
}

impl<'a, M: Model> Attempt<'a, M> {
    fn new(
        model: &'a M,
        known: &'a [Known<M::Call>],
        maybe: &'a [Maybe<M::Call>],
        classes: &'a [usize],
        limit: usize,
        left: u64,
    ) -> Self {
        let open = Open::new(known.iter().map(|known| (known.from, known.to)));
        let furthest = Stuck { ordered: 0, state: model.initial(), next: Vec::new() };
        Self {
            model,
            known,
            maybe,
            classes,
            limit,
            was_limited: false,
            left,
            open,
            is_ordered: vec![false; known.len()],
            ordered: 0,
            used: Vec::new(),
            seen: HashSet::new(),
            frames: Vec::new(),
            furthest,
        }
    }

    fn run(&mut self) -> Ended {
        self.arrive(None, self.model.initial(), 0);
        while self.ordered < self.known.len() {
            let Some(frame) = self.frames.last_mut() else { return Ended::Exhausted };
            if let Some((step, state)) = frame.options.pop() {
                let series = if matches!(step, Step::Maybe(_)) { frame.series + 1 } else { 0 };
                self.place(step);
                if !self.is_new(&state, series) {
                    self.unplace(step);
                } else if self.left == 0 {
                    return Ended::OutOfBudget;
                } else {
                    self.left -= 1;
                    self.arrive(Some(step), state, series);
                }
            } else if !frame.is_complete {
                frame.is_complete = true;
                let options = self.unknown_options();
                if let Some(frame) = self.frames.last_mut() {
                    frame.options = options;
                }
            } else if let Some(Frame { by: Some(step), .. }) = self.frames.pop() {
                self.unplace(step);
            }
        }
        Ended::Ordered
    }

    fn arrive(&mut self, by: Option<Step>, state: M::State, series: usize) {
        let (next, _) = self.open.candidates();
        if self.ordered > self.furthest.ordered || by.is_none() {
            let next = next.iter().map(|index| self.known[*index].id).collect();
            self.furthest = Stuck { ordered: self.ordered, state: state.clone(), next };
        }
        let is_lost = next.iter().any(|index| self.is_lost(&state, *index));
        let next = if is_lost { Vec::new() } else { next };
        let mut options = Vec::new();
        // The one that began first is tried first.
        for index in next.into_iter().rev() {
            let Known { call, room, .. } = &self.known[index];
            if series == 0 || (series <= *room && !self.model.resets(call)) {
                let states = self.model.step(&state, call);
                options.extend(states.into_iter().map(|state| (Step::Known(index), state)));
            }
        }
        self.frames.push(Frame { by, state, series, options, is_complete: is_lost });
    }

    /// Whether the answer of an operation that may come next does not fit, and never will.
    fn is_lost(&self, state: &M::State, index: usize) -> bool {
        let Known { call, to, .. } = &self.known[index];
        if self.model.needs(state, call).is_some() {
            return false;
        }
        // Before the first that is open everything is ordered.
        let first = self.open.candidates().0.first().copied().unwrap_or(index);
        let mut known = (first..self.known.len()).take_while(|other| self.known[*other].from < *to);
        let mut maybe = (0..self.maybe.len()).filter(|other| self.maybe[*other].from < *to);
        let by_known = known.any(|other| !self.is_ordered[other] && self.model.resets(&self.known[other].call));
        let is_used = |other: &usize| self.used.binary_search(other).is_ok();
        !by_known && !maybe.any(|other| !is_used(&other) && self.model.resets(&self.maybe[other].call))
    }

    /// The operations of unknown outcome that may take effect now and be of use.
    fn unknown_options(&mut self) -> Vec<(Step, M::State)> {
        let Some(frame) = self.frames.last() else { return Vec::new() };
        let (goals, first_end) = self.open.candidates();
        let series = frame.series + 1;
        let (mut options, mut was_limited) = (Vec::new(), false);
        let mut tried = BTreeSet::new();
        for (index, Maybe { call, from }) in self.maybe.iter().enumerate() {
            let is_open = *from < first_end && self.used.binary_search(&index).is_err();
            if !is_open || (series > 1 && self.model.resets(call)) || !tried.insert(self.classes[index]) {
                continue;
            }
            let states = self.model.step(&frame.state, call);
            for state in states.into_iter().filter(|state| *state != frame.state) {
                match self.least_series(&state, &goals, series) {
                    Some(least) if least <= self.limit => options.push((Step::Maybe(index), state)),
                    Some(_) => was_limited = true,
                    None => {}
                }
            }
        }
        self.was_limited |= was_limited;
        options
    }

    /// How long a series must become at least, of which so many have led to this state, until one of the goals can come
    /// next; `None`: it is of no use.
    fn least_series(&self, state: &M::State, goals: &[usize], series: usize) -> Option<usize> {
        let of_goal = |index: &usize| {
            let Known { call, room, .. } = &self.known[*index];
            let least = self.model.needs(state, call)?.saturating_add(series);
            let is_possible = least <= *room && least <= self.maybe.len() && !self.model.resets(call);
            is_possible.then_some(least)
        };
        goals.iter().filter_map(of_goal).min()
    }

    fn place(&mut self, step: Step) {
        match step {
            Step::Known(index) => {
                self.open.take(index);
                self.is_ordered[index] = true;
                self.ordered += 1;
            }
            Step::Maybe(index) => {
                if let Err(at) = self.used.binary_search(&index) {
                    self.used.insert(at, index);
                }
            }
        }
    }

    fn unplace(&mut self, step: Step) {
        match step {
            Step::Known(index) => {
                self.open.put_back(index);
                self.is_ordered[index] = false;
                self.ordered -= 1;
            }
            Step::Maybe(index) => {
                if let Ok(at) = self.used.binary_search(&index) {
                    self.used.remove(at);
                }
            }
        }
    }

    /// Whether this configuration was not met before. Of each, 128 bits of hash are kept and not the thing itself: that
    /// two of some millions agree in them does not happen.
    fn is_new(&mut self, state: &M::State, series: usize) -> bool {
        let (next, first_end) = self.open.candidates();
        let first = next.first().copied().unwrap_or(self.known.len());
        // Before the first open one all are ordered; of those after it, only some that began before the first end.
        let after = (first..self.known.len()).take_while(|index| self.known[*index].from < first_end);
        let ahead: Vec<usize> = after.filter(|index| self.is_ordered[*index]).collect();
        let half = |salt: u8| {
            let mut hasher = DefaultHasher::new();
            (salt, state, series, first, &ahead, &self.used).hash(&mut hasher);
            u128::from(hasher.finish())
        };
        let whole = (half(0) << 64) | half(1);
        self.seen.insert(whole)
    }

    fn changed(&self) -> Vec<bool> {
        let mut changed = vec![false; self.known.len()];
        for pair in self.frames.windows(2) {
            if let [before, Frame { by: Some(Step::Known(index)), state, .. }] = pair {
                changed[*index] = before.state != *state;
            }
        }
        changed
    }
}
