//! The indexes themselves, in memory: which of them serves a grain, what a change does to each, and what is found at one
//! moment.

use std::sync::Arc;

use super::super::error::GrainError;
use super::super::index::{self, IndexError, IndexOptions, Serving, SpaceIndex};
use super::super::store::{NewVector, Scored, TextFate};
use super::super::vector::unit;
use super::GrainChange;
use super::taken::Taken;
use crate::domain::SpaceId;
use crate::telemetry::with_causes;

/// Every index, and how often grains have moved between them.
#[derive(Default)]
pub(super) struct All {
    pub(super) in_order: Vec<OneIndex>,
    /// The order of spaces as the database has it, those included that hold no vectors.
    pub(super) order: Vec<SpaceId>,
    pub(super) n_moves: u64,
    pub(super) taken: Arc<Taken>,
}

/// The index of one space.
pub(super) struct OneIndex {
    pub(super) space: SpaceId,
    pub(super) state: State,
}

pub(super) enum State {
    Whole(Box<SpaceIndex>),
    /// Why it is not in step with the database, as callers are told, and the dimensions to make it with.
    Broken(String, usize),
}

/// All indexes at one moment.
pub(in super::super) struct Moment<'a>(pub(super) &'a All);

impl Moment<'_> {
    /// The spaces that serve grains, in their order.
    pub(in super::super) fn serving(&self) -> Vec<SpaceId> {
        self.0.in_order.iter().filter(|index| index.n_served() > 0).map(|index| index.space.clone()).collect()
    }

    /// How often grains have moved from one space to another.
    pub(in super::super) fn n_moves(&self) -> u64 {
        self.0.n_moves
    }

    /// The nearest grains that the space serves, best first.
    pub(in super::super) fn nearest(
        &self,
        space: &SpaceId,
        query: &[f32],
        n: usize,
    ) -> Result<Vec<Scored>, GrainError> {
        self.of(space, |index| index.nearest(query, n))
    }

    /// The nearest of these grains, best first. Ascending numbers are looked up fastest.
    pub(in super::super) fn nearest_among(
        &self,
        space: &SpaceId,
        query: &[f32],
        numbers: &[i64],
        n: usize,
    ) -> Result<Vec<Scored>, GrainError> {
        self.of(space, |index| index.nearest_among(query, numbers, n))
    }

    /// Grains that may be the nearest, best first by an estimate.
    pub(in super::super) fn candidates(
        &self,
        space: &SpaceId,
        query: &[f32],
        n: usize,
    ) -> Result<Vec<i64>, GrainError> {
        let found = self.of(space, |index| index.candidates(query, n))?;
        Ok(found.into_iter().map(|hit| hit.number).collect())
    }

    /// The vectors of these grains, in their order, up to one that cannot be read.
    pub(in super::super) fn vectors(&self, space: &SpaceId, grains: &[Scored]) -> Vec<Vec<f32>> {
        let Some(index) = self.0.find(space).and_then(OneIndex::whole) else { return Vec::new() };
        grains.iter().map_while(|grain| index.vector(grain.number).ok().flatten()).collect()
    }

    /// What a look into the index of a space finds; a space that holds no vectors has nothing to look into.
    fn of(
        &self,
        space: &SpaceId,
        look: impl FnOnce(&SpaceIndex) -> Result<Vec<index::Scored>, IndexError>,
    ) -> Result<Vec<Scored>, GrainError> {
        match self.0.find(space).map(|index| &index.state) {
            None => Ok(Vec::new()),
            Some(State::Whole(index)) => Ok(look(index)?.into_iter().map(scored).collect()),
            Some(State::Broken(reason, _)) => {
                Err(GrainError::BrokenIndex { space: space.clone(), reason: reason.clone() })
            }
        }
    }
}

impl All {
    pub(super) fn find(&self, space: &SpaceId) -> Option<&OneIndex> {
        self.in_order.iter().find(|index| index.space == *space)
    }

    pub(super) fn find_mut(&mut self, space: &SpaceId) -> Option<&mut OneIndex> {
        self.in_order.iter_mut().find(|index| index.space == *space)
    }

    /// The place of the index that serves a grain.
    fn serving_of(&self, number: i64) -> Option<usize> {
        let serves =
            |index: &OneIndex| index.whole().is_some_and(|whole| whole.serving(number) == Some(Serving::Served));
        self.in_order.iter().position(serves)
    }

    pub(super) fn apply(&mut self, change: &GrainChange, options: impl Fn(&NewVector) -> IndexOptions) {
        for new in &change.vectors {
            if self.find(&new.provenance.space).is_none() {
                self.begin(options(new));
            }
        }
        let before = self.serving_of(change.number);
        for index in &mut self.in_order {
            let new = change.vectors.iter().find(|new| new.provenance.space == index.space);
            index.change(|whole| match new {
                // Whether it serves is settled when all indexes have their vectors.
                Some(new) => whole.put(change.number, &unit(&new.vector), Serving::Withheld),
                None if change.text == TextFate::Replaced => whole.remove(change.number),
                None => Ok(()),
            });
        }
        self.settle(change.number);
        self.n_moves += u64::from(before.is_some() && before != self.serving_of(change.number));
    }

    /// Begins the index of a space that holds its first vector now.
    fn begin(&mut self, options: IndexOptions) {
        let (space, dimensions) = (options.identity.space.clone(), options.dimensions);
        let state = match SpaceIndex::create(options) {
            Ok(index) => State::Whole(Box::new(index)),
            Err(error) => {
                tracing::error!(%space, "the index of a new space is not there yet: {}", with_causes(&error));
                State::Broken(error.for_callers(), dimensions)
            }
        };
        let at = self.in_order.partition_point(|index| place(&self.order, &index.space) <= place(&self.order, &space));
        self.in_order.insert(at, OneIndex { space, state });
    }

    pub(super) fn reorder(&mut self, order: Vec<SpaceId>) {
        self.order = order;
        // It may be that no index stands elsewhere now.
        if !self.in_order.is_sorted_by_key(|index| place(&self.order, &index.space)) {
            self.in_order.sort_by_key(|index| place(&self.order, &index.space));
            self.settle_all();
            self.n_moves += 1;
        }
    }

    /// The first index that holds a grain serves it.
    pub(super) fn settle(&mut self, number: i64) {
        let mut serving = Serving::Served;
        for index in &mut self.in_order {
            if index.whole().is_some_and(|whole| whole.serving(number).is_some()) {
                index.change(|whole| whole.set_serving(number, serving));
                serving = Serving::Withheld;
            }
        }
    }

    /// The first index that holds a grain serves it, of every grain.
    pub(super) fn settle_all(&mut self) {
        for at in 0..self.in_order.len() {
            let (before, rest) = self.in_order.split_at_mut(at);
            let before: Vec<&SpaceIndex> = before.iter().filter_map(OneIndex::whole).collect();
            if let Some(index) = rest.first_mut() {
                index.change(|whole| whole.serve_unless_in(&before));
            }
        }
    }
}

impl OneIndex {
    pub(super) fn whole(&self) -> Option<&SpaceIndex> {
        match &self.state {
            State::Whole(whole) => Some(whole),
            State::Broken(..) => None,
        }
    }

    pub(super) fn broken(&self) -> Option<(SpaceId, usize)> {
        match self.state {
            State::Whole(_) => None,
            State::Broken(_, dimensions) => Some((self.space.clone(), dimensions)),
        }
    }

    pub(super) fn n_served(&self) -> usize {
        // Of a broken one as far as anybody knows; the search says why it finds nothing.
        self.whole().map_or(1, SpaceIndex::n_served)
    }

    pub(super) fn change(&mut self, change: impl FnOnce(&mut SpaceIndex) -> Result<(), IndexError>) {
        let State::Whole(index) = &mut self.state else { return };
        if let Err(error) = change(index) {
            self.break_for(&error);
        }
    }

    fn break_for(&mut self, error: &IndexError) {
        self.break_as(error.for_callers(), &with_causes(error));
    }

    /// Breaks it for a reason, of which the log is told more than callers are.
    pub(super) fn break_as(&mut self, reason: String, for_log: &str) {
        let State::Whole(index) = &self.state else { return };
        let dimensions = index.dimensions();
        tracing::error!(space = %self.space, "the index is out of step, and is made again: {for_log}");
        self.state = State::Broken(reason, dimensions);
    }
}

/// Where a space stands; one that nobody knows comes last.
fn place(order: &[SpaceId], space: &SpaceId) -> usize {
    order.iter().position(|known| known == space).unwrap_or(usize::MAX)
}

fn scored(hit: index::Scored) -> Scored {
    // Of vectors of length 1 the product may be a little more.
    Scored { number: hit.number, score: f64::from(hit.score.clamp(-1.0, 1.0)) }
}
