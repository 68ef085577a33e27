//! Anchors: up to [`N_ANCHORS`] sampled grains that have a vector in every live space.
//!
//! A query's scores against the anchors in two spaces are the same texts seen twice, which tells for this query what a
//! score of one space is worth in the other ([`merge`](super::merge)). The vectors are kept in memory, in step with the
//! database as the indexes are; `keeping` has them made. `translation` guesses from them what a vector of one space would
//! be in another. An anchor of an earlier sample counts until the new sample is complete, so that a store that grows never
//! loses its anchors.

mod keeping;
mod translation;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::Notify;

use self::translation::Translation;
use super::error::GrainError;
use super::index::dot;
use super::merge::MIN_ANCHORS;
use super::store::{Anchor, GrainStore, NewVector, Scored, TextFate, lot};
use super::vector::unit;
use crate::domain::SpaceId;
use crate::domain::vector::cosine;
use crate::telemetry;

/// The most anchors. With 500 the merged ranking was some two points worse.
pub(super) const N_ANCHORS: usize = 2_000;

/// The least cosine of vectors of one text that differ by rounding alone.
const SAME_COSINE: f64 = 0.999;

/// Every anchor of the process.
pub struct Anchors {
    state: RwLock<State>,
    /// Told when something happened that may change the sample, or what it lacks.
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// The vectors of each space by their grains' numbers, of length 1.
    spaces: HashMap<SpaceId, BTreeMap<i64, Vec<f32>>>,
    /// The greatest lot in the last sample: whoever draws a greater one is not in it. `None` while every grain is.
    bound: Option<i64>,
    /// Grains whose text some space's model does not take, until they get another text.
    unfit: HashSet<i64>,
    /// From the first space to the second, as far as that has been fitted.
    translations: HashMap<(SpaceId, SpaceId), Fitted>,
    /// How often an anchor's vector was replaced under its text.
    n_replaced: u64,
}

impl State {
    /// The anchors that both spaces have, in the order of their numbers, with their vectors in each.
    fn common<'a>(&'a self, here: &SpaceId, there: &SpaceId) -> Vec<(i64, &'a [f32], &'a [f32])> {
        let (Some(here), Some(there)) = (self.spaces.get(here), self.spaces.get(there)) else { return Vec::new() };
        here.iter()
            .filter_map(|(number, vector)| Some((*number, vector.as_slice(), there.get(number)?.as_slice())))
            .collect()
    }
}

/// A translation, and of which anchors it was made: those that have come or gone since make no great difference.
struct Fitted {
    mark: (usize, i64, u64),
    translation: Option<Arc<Translation>>,
}

impl Anchors {
    /// Reads the anchors of the last process.
    ///
    /// # Errors
    /// The database's.
    pub async fn open(store: &dyn GrainStore) -> Result<Self, GrainError> {
        let anchors = Self { state: RwLock::default(), changed: Notify::new() };
        anchors.put(store.anchors().await?);
        // Whatever the last process had not come to.
        anchors.changed.notify_one();
        Ok(anchors)
    }

    /// The scores of a query against the anchors in a space, in the order of their numbers. Takes a fraction of a
    /// millisecond.
    pub(super) fn scores(&self, space: &SpaceId, query: &[f32]) -> Vec<Scored> {
        let state = self.state.read();
        let Some(anchors) = state.spaces.get(space) else { return Vec::new() };
        let score = |(number, vector): (&i64, &Vec<f32>)| Scored { number: *number, score: dot(query, vector).into() };
        anchors.iter().map(score).collect()
    }

    /// Guesses what vectors of a space would score in another one, for a query there. `None` before the anchors that both
    /// have were fitted.
    pub(super) fn guess(
        &self,
        space: &SpaceId,
        vectors: &[Vec<f32>],
        there: &SpaceId,
        query: &[f32],
    ) -> Option<Vec<f64>> {
        let translation = {
            let state = self.state.read();
            state.translations.get(&(space.clone(), there.clone()))?.translation.clone()?
        };
        Some(translation.scores(query, vectors))
    }

    /// Fits the translations from each space to each other one, where their anchors have changed. Takes seconds for long
    /// vectors.
    fn fit(&self) {
        let spaces: Vec<SpaceId> = self.state.read().spaces.keys().cloned().collect();
        for (here, there) in spaces.iter().flat_map(|here| spaces.iter().map(move |there| (here, there))) {
            let pair = (here.clone(), there.clone());
            let (mark, vectors) = {
                let state = self.state.read();
                let common = state.common(here, there);
                // The same for the same anchors, and in all likelihood for no others.
                let sum = common.iter().fold(0, |sum: i64, (number, ..)| sum.wrapping_add(lot(*number)));
                let mark = (common.len(), sum, state.n_replaced);
                let is_fitted = state.translations.get(&pair).is_some_and(|fitted| fitted.mark == mark);
                if here == there || common.len() < MIN_ANCHORS || is_fitted {
                    continue;
                }
                let owned = |(_, here, there): (i64, &[f32], &[f32])| (here.to_vec(), there.to_vec());
                (mark, common.into_iter().map(owned).collect::<Vec<_>>())
            };
            let vectors: Vec<(&[f32], &[f32])> =
                vectors.iter().map(|(here, there)| (here.as_slice(), there.as_slice())).collect();
            let translation = Translation::between(&vectors).map(Arc::new);
            self.state.write().translations.insert(pair, Fitted { mark, translation });
        }
    }

    /// Notes what was committed of a grain: what became of its text, and the vectors it got. The caller holds the gate.
    pub(super) fn apply(&self, number: i64, text: TextFate, vectors: &[NewVector]) {
        match text {
            TextFate::New => {}
            TextFate::Kept => self.forget_replaced(number, vectors),
            TextFate::Replaced => self.forget(&[number]),
        }
        let state = self.state.read();
        let is_drawn = text != TextFate::Kept && state.bound.is_none_or(|bound| lot(number) <= bound);
        let is_new_space = vectors.iter().any(|new| !state.spaces.contains_key(&new.provenance.space));
        if is_drawn || is_new_space {
            self.changed.notify_one();
        }
    }

    /// Notes that other spaces serve grains than before, which may lack anchors.
    pub(super) fn look_again(&self) {
        self.changed.notify_one();
    }

    /// Forgets grains that were deleted, or have another text. The caller holds the gate.
    pub(super) fn forget(&self, numbers: &[i64]) {
        let mut state = self.state.write();
        let mut was_anchor = false;
        for number in numbers {
            was_anchor |= state.unfit.remove(number);
            for anchors in state.spaces.values_mut() {
                was_anchor |= anchors.remove(number).is_some();
            }
        }
        if was_anchor {
            self.changed.notify_one();
        }
    }

    /// Forgets the anchors of a grain in the spaces where it got other vectors of the same text, and what was fitted to
    /// them: one alone makes no great difference, but an import may bring others for all of them. One that is the same but
    /// for rounding, as an adoption has it, stays.
    fn forget_replaced(&self, number: i64, vectors: &[NewVector]) {
        for NewVector { provenance, vector } in vectors {
            let (mut state, space) = (self.state.write(), &provenance.space);
            let Some(anchors) = state.spaces.get_mut(space) else { continue };
            let is_another = |anchor: &Vec<f32>| cosine(anchor, vector) < SAME_COSINE;
            if anchors.get(&number).is_some_and(is_another) {
                anchors.remove(&number);
                // What is being fitted now has the mark of before, and is fitted again.
                state.n_replaced += 1;
                state.translations.retain(|(here, there), _| here != space && there != space);
                self.changed.notify_one();
            }
        }
    }

    /// Adds what was written to the database. The caller holds the gate, or nobody else knows the anchors yet.
    fn put(&self, anchors: Vec<Anchor>) {
        let mut state = self.state.write();
        for Anchor { number, space, vector } in anchors {
            state.spaces.entry(space).or_default().insert(number, unit(&vector));
        }
    }

    /// Drops all but the anchors of these grains in these spaces. The caller holds the gate.
    fn keep(&self, numbers: &[i64], spaces: &[SpaceId]) {
        let numbers: HashSet<i64> = numbers.iter().copied().collect();
        let mut state = self.state.write();
        state.spaces.retain(|space, _| spaces.contains(space));
        state.translations.retain(|(here, there), _| spaces.contains(here) && spaces.contains(there));
        for anchors in state.spaces.values_mut() {
            anchors.retain(|number, _| numbers.contains(number));
        }
    }

    /// Whether something would change if only the anchors of these grains in these spaces were kept.
    fn has_others(&self, numbers: &[i64], spaces: &[SpaceId]) -> bool {
        let numbers: HashSet<i64> = numbers.iter().copied().collect();
        let state = self.state.read();
        let is_other = |(space, anchors): (&SpaceId, &BTreeMap<i64, Vec<f32>>)| {
            !spaces.contains(space) || anchors.keys().any(|number| !numbers.contains(number))
        };
        state.spaces.iter().any(is_other)
    }

    /// Those of the grains that have no vector in one of the spaces, though they could have.
    fn incomplete(&self, numbers: &[i64], spaces: &[SpaceId]) -> Vec<i64> {
        let lacking: Vec<Vec<i64>> = spaces.iter().map(|space| self.lacking(numbers, space)).collect();
        let lacking: HashSet<i64> = lacking.into_iter().flatten().collect();
        numbers.iter().copied().filter(|number| lacking.contains(number)).collect()
    }

    /// Those of the grains that have no vector in the space.
    fn lacking(&self, numbers: &[i64], space: &SpaceId) -> Vec<i64> {
        let state = self.state.read();
        let anchors = state.spaces.get(space);
        let is_lacking = |number: &i64| anchors.is_none_or(|anchors| !anchors.contains_key(number));
        numbers.iter().copied().filter(is_lacking).collect()
    }

    /// How many anchors have a vector in every one of the spaces.
    fn n_complete(&self, spaces: &[SpaceId]) -> usize {
        let state = self.state.read();
        let Some((first, others)) = spaces.split_first() else { return 0 };
        let has = |space, number| state.spaces.get(space).is_some_and(|anchors| anchors.contains_key(number));
        let Some(anchors) = state.spaces.get(first) else { return 0 };
        anchors.keys().filter(|number| others.iter().all(|space| has(space, number))).count()
    }

    /// The sample without the grains that cannot be anchors; remembers which grains a later one could hold.
    fn take_sample(&self, mut drawn: Vec<i64>) -> Vec<i64> {
        let mut state = self.state.write();
        drawn.retain(|number| !state.unfit.contains(number));
        state.bound = if drawn.len() < N_ANCHORS { None } else { drawn.get(N_ANCHORS - 1).copied().map(lot) };
        drawn.truncate(N_ANCHORS);
        drawn
    }

    fn n_unfit(&self) -> usize {
        self.state.read().unfit.len()
    }

    fn note_unfit(&self, numbers: &[i64]) {
        self.state.write().unfit.extend(numbers);
        // Others are sampled in their place.
        if !numbers.is_empty() {
            self.changed.notify_one();
        }
    }

    /// Waits until something happened that may change the sample, but not longer than that.
    async fn wait_for_change(&self, at_most: Duration) {
        let _ = tokio::time::timeout(at_most, self.changed.notified()).await;
    }

    /// What the vectors take of memory, in bytes.
    pub(super) fn memory_bytes(&self) -> u64 {
        let state = self.state.read();
        let vectors = state.spaces.values().flat_map(BTreeMap::values);
        vectors.map(|vector| size_of_val(vector.as_slice()) as u64).sum()
    }

    /// Sets the gauges.
    fn measure(&self, n_sampled: usize, spaces: &[SpaceId]) {
        metrics::gauge!(telemetry::ANCHORS, "state" => "sampled").set(n_sampled as f64);
        metrics::gauge!(telemetry::ANCHORS, "state" => "complete").set(self.n_complete(spaces) as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Origin, Provenance};

    fn space(n: u64) -> SpaceId {
        SpaceId::parse(&format!("{n:016x}")).expect("an id")
    }

    fn anchors(of: &[(i64, u64)]) -> Anchors {
        let anchors = Anchors { state: RwLock::default(), changed: Notify::new() };
        let anchor = |(number, n): &(i64, u64)| Anchor { number: *number, space: space(*n), vector: vec![3.0, 4.0] };
        anchors.put(of.iter().map(anchor).collect());
        anchors
    }

    #[test]
    fn an_anchor_is_complete_when_every_space_has_it() {
        let all = anchors(&[(1, 1), (1, 2), (2, 1), (3, 2), (4, 1), (4, 2)]);
        let spaces = [space(1), space(2)];
        assert_eq!(all.n_complete(&spaces), 2);
        assert_eq!(all.incomplete(&[1, 2, 3, 5], &spaces), [2, 3, 5]);
        assert_eq!(all.lacking(&[1, 2, 3], &space(1)), [3]);
        assert_eq!(all.n_complete(&[space(1), space(2), space(3)]), 0);
        all.forget(&[1]);
        assert_eq!(all.n_complete(&spaces), 1);
        assert!(all.has_others(&[4], &spaces) && !all.has_others(&[2, 3, 4], &spaces));
        all.keep(&[4], &spaces);
        assert!(!all.has_others(&[4], &spaces) && all.has_others(&[4], &spaces[..1]));
    }

    #[test]
    fn scores_are_cosines_in_the_order_of_numbers() {
        let scores = anchors(&[(9, 1), (2, 1), (5, 2)]).scores(&space(1), &[0.6, 0.8]);
        assert_eq!(scores.iter().map(|hit| hit.number).collect::<Vec<_>>(), [2, 9]);
        assert!(scores.iter().all(|hit| (hit.score - 1.0).abs() < 1e-6), "{scores:?}");
    }

    #[test]
    fn what_a_vector_would_score_elsewhere_is_guessed_once_the_anchors_are_fitted() {
        let all = anchors(&[]);
        let vector = |n: i64| unit(&[1.0, n as f32 / 100.0, (n % 7) as f32]);
        // Turned by a right angle.
        let there = |vector: &[f32]| vec![vector[1], -vector[0], vector[2]];
        let count = i64::try_from(MIN_ANCHORS).expect("a small number");
        let anchor = |n: i64, of: u64, vector: Vec<f32>| Anchor { number: n, space: space(of), vector };
        all.put((0..count).flat_map(|n| [anchor(n, 1, vector(n)), anchor(n, 2, there(&vector(n)))]).collect());
        let (unseen, query) = (vec![unit(&[1.0, 0.555, 3.0])], unit(&[0.3, 0.5, 0.4]));
        let guess = || all.guess(&space(1), &unseen, &space(2), &query);
        assert_eq!(guess(), None, "they are not fitted yet");
        all.fit();
        let guessed = guess().expect("fitted")[0];
        assert!((guessed - f64::from(dot(&query, &there(&unseen[0])))).abs() < 0.05, "{guessed}");
        assert_eq!(all.guess(&space(1), &unseen, &space(3), &query), None);
        let mark = || all.state.read().translations[&(space(1), space(2))].mark;
        let fitted = mark();
        all.forget(&[0]);
        all.fit();
        assert_eq!(mark(), fitted, "too few in common");
        all.put(vec![anchor(5_000, 1, vector(5)), anchor(5_000, 2, there(&vector(5)))]);
        all.fit();
        assert_ne!(mark(), fitted);
        all.keep(&[1], &[space(2)]);
        assert!(all.state.read().translations.is_empty());
    }

    #[test]
    fn a_vector_that_replaces_another_of_the_same_text_takes_the_anchor_and_what_was_fitted_to_it_away() {
        let all = anchors(&[(1, 1), (1, 2), (2, 1), (2, 2)]);
        for (here, there) in [(1, 2), (2, 1), (2, 3)] {
            let fitted = Fitted { mark: (0, 0, 0), translation: None };
            all.state.write().translations.insert((space(here), space(there)), fitted);
        }
        let new = |n: u64| NewVector {
            provenance: Provenance {
                space: space(n),
                model: None,
                dimensions: 2,
                origin: Origin::Supplied,
                n_tokens: None,
                truncated: None,
            },
            vector: vec![4.0, 3.0],
        };
        all.apply(3, TextFate::Kept, &[new(1)]);
        assert_eq!((all.state.read().n_replaced, all.state.read().translations.len()), (0, 3), "it is no anchor");
        all.apply(1, TextFate::Kept, &[new(1)]);
        assert_eq!((all.lacking(&[1, 2], &space(1)), all.lacking(&[1, 2], &space(2))), (vec![1], Vec::new()));
        let state = all.state.read();
        assert_eq!(state.translations.keys().collect::<Vec<_>>(), [&(space(2), space(3))]);
        assert_eq!(state.n_replaced, 1, "what was fitted meanwhile has another mark");
    }

    #[test]
    fn a_sample_leaves_out_the_unfit() {
        let all = anchors(&[]);
        all.note_unfit(&[3]);
        assert_eq!(all.take_sample(vec![1, 3, 2]), [1, 2]);
        assert_eq!(all.state.read().bound, None, "every grain is in the sample");
        let many: Vec<i64> = (10..).take(N_ANCHORS + 1).collect();
        assert_eq!(all.take_sample(many.clone()).len(), N_ANCHORS);
        assert_eq!(all.state.read().bound, Some(lot(many[N_ANCHORS - 1])));
    }
}
