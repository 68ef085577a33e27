//! What the words of a query find, and what of that says something.

use std::collections::HashSet;

use super::error::GrainError;
use super::merge::{WordHits, best_first, n_telling};
use super::nearest::Passing;
use super::search::FUSION_DEPTH;
use super::service::Grains;
use super::store::{Scored, StoreError};
use crate::domain::Filter;

/// What words found.
pub(super) struct Words {
    /// Best first, of those that have words that say something, and of the others behind them.
    hits: Vec<Scored>,
    /// So many of them, the first, have words that say something.
    n_telling: usize,
    /// So many are fused at the first depth at least.
    n_first: usize,
}

impl Words {
    pub(super) fn to_depth(&self, depth: usize) -> WordHits<'_> {
        let n = depth.max(self.n_first);
        WordHits { hits: &self.hits[..self.hits.len().min(n)], n_telling: self.n_telling.min(n) }
    }

    /// Takes in, behind the first, those of what vectors found that words find as good as the last of these: of many such,
    /// nothing but when they were written says which are among the first. `of_vectors` has that last one, too: its score may
    /// be another by now.
    fn with_equals(mut self, of_vectors: &[Scored]) -> Self {
        let Scored { number: last, score } = self.hits[FUSION_DEPTH - 1];
        let now = of_vectors.iter().find(|hit| hit.number == last).map(|hit| hit.score);
        let others = self.hits.split_off(FUSION_DEPTH);
        let first: HashSet<i64> = self.hits.iter().map(|hit| hit.number).collect();
        let equals = of_vectors.iter().filter(|hit| Some(hit.score) == now && !first.contains(&hit.number));
        self.hits.extend(equals.map(|hit| Scored { score, ..*hit }));
        self.n_first = self.hits.len();
        let taken: HashSet<i64> = self.hits.iter().map(|hit| hit.number).collect();
        self.hits.extend(others.into_iter().filter(|hit| !taken.contains(&hit.number)));
        self.n_telling = n_telling(&self.hits);
        self
    }
}

impl Grains {
    /// What words find, so many at most, to be fused with the first that vectors found, if they found any.
    pub(super) async fn find_words(
        &self,
        text: &str,
        filter: &Filter,
        at_most: usize,
        nearest: Option<Vec<i64>>,
        passing: Option<&Passing>,
    ) -> Result<Words, GrainError> {
        // One more says whether the last has equals that are left out.
        let n_asked = at_most + usize::from(nearest.is_some());
        let hits = if let Some(Passing::Few(few)) = passing {
            // Else all that has the words, a large part of the store maybe, would be checked by the filter.
            let mut hits = self.store.words_of(text.to_owned(), few.clone()).await?;
            hits.sort_unstable_by(best_first);
            hits.truncate(n_asked);
            hits
        } else {
            let n_asked = u32::try_from(n_asked).unwrap_or(u32::MAX);
            self.store.with_words(text.to_owned(), filter.clone(), n_asked).await?
        };
        let Some(mut numbers) = nearest else {
            let n = hits.len();
            return Ok(Words { hits, n_telling: n, n_first: 0 });
        };
        let (hits, n_telling) = self.telling_first(hits, text, filter, passing).await?;
        let words = Words { hits, n_telling, n_first: 0 };
        if n_telling <= FUSION_DEPTH || words.hits[FUSION_DEPTH - 1].score > words.hits[FUSION_DEPTH].score {
            return Ok(words);
        }
        numbers.push(words.hits[FUSION_DEPTH - 1].number);
        match self.store.words_of(text.to_owned(), numbers).await {
            Ok(scored) => Ok(words.with_equals(&scored)),
            // All is found by now, if of equals only some.
            Err(StoreError::TooSlow { .. }) => Ok(words),
            Err(error) => Err(error.into()),
        }
    }

    /// What words found, what has some that say something first, and how many do: words that at most half of the grains
    /// have that may be found, whatever share of the whole store has them, which is what FTS5 goes by. Where there are no
    /// such words, or it is not known which they are, it stays at what FTS5 says.
    async fn telling_first(
        &self,
        hits: Vec<Scored>,
        text: &str,
        filter: &Filter,
        passing: Option<&Passing>,
    ) -> Result<(Vec<Scored>, usize), GrainError> {
        let n = n_telling(&hits);
        // So many may be cut off, and nobody knows how many there are; and they must count on every page, or on none.
        if n == hits.len() || hits.len() >= FUSION_DEPTH {
            return Ok((hits, n));
        }
        let telling = match self.telling(&hits, text, filter, passing).await {
            Ok(telling) if !telling.is_empty() => telling,
            // All is found by now, if in a worse order.
            Ok(_) | Err(StoreError::TooSlow { .. }) => return Ok((hits, n)),
            Err(error) => return Err(error.into()),
        };
        let (mut first, others): (Vec<Scored>, Vec<Scored>) =
            hits.into_iter().partition(|hit| telling.contains(&hit.number));
        let n = first.len();
        first.extend(others);
        Ok((first, n))
    }

    /// Which of what words found have some that at most half of the grains have that may be found. Unless that is known, it
    /// is counted how many these are, as far as it matters.
    async fn telling(
        &self,
        hits: &[Scored],
        text: &str,
        filter: &Filter,
        passing: Option<&Passing>,
    ) -> Result<HashSet<i64>, StoreError> {
        let numbers = hits.iter().map(|hit| hit.number).collect();
        let having = self.store.with_each_word(text.to_owned(), numbers).await?;
        let at_most = u32::try_from(2 * hits.len()).unwrap_or(u32::MAX);
        let n_passing = match passing {
            Some(passing) => passing.n(),
            None => self.store.numbers(filter.clone(), at_most).await?.len(),
        };
        Ok(having.into_iter().filter(|having| 2 * having.len() <= n_passing).flatten().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_of_the_last_word_hit_that_vectors_found_are_among_the_first() {
        let scored = |number: i64, score: f64| Scored { number, score };
        let hits = |n: i64| (0..n).map(|number| scored(number, if number < 150 { 2.0 } else { 1.0 })).collect();
        let words = || Words { hits: hits(201), n_telling: 201, n_first: 0 };
        // A grain that was written since has changed what words score.
        let of_vectors = [(3, 1.9), (200, 0.9), (5_000, 0.9), (6_000, 0.5), (7_000, 1.0), (199, 0.9)];
        let found = words().with_equals(&of_vectors.map(|(number, score)| scored(number, score)));
        let first = found.to_depth(FUSION_DEPTH);
        assert_eq!((first.hits.len(), first.n_telling), (202, 202));
        assert_eq!(first.hits[199..], [scored(199, 1.0), scored(200, 1.0), scored(5_000, 1.0)]);
        assert_eq!(found.to_depth(1_000).hits.len(), 202, "none is there twice");
        assert_eq!(
            words().with_equals(&[scored(5_000, 1.0)]).to_depth(FUSION_DEPTH).hits.len(),
            200,
            "it is not known"
        );
        let words = Words { n_telling: 3, ..words() };
        for depth in [0, 1, 3, 9, 200] {
            let cut = words.to_depth(depth);
            assert_eq!((cut.hits.len(), cut.n_telling), (depth, depth.min(3)));
        }
    }
}
