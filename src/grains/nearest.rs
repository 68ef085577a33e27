//! The nearest grains in each of several spaces, seen at one moment.
//!
//! The query is made in every space first, which may take a model's load; then all spaces are looked at together. When a
//! space has begun to serve meanwhile, or grains have moved, the look is taken again: else a grain that moved would be
//! missed, or found twice. Under a filter it is decided here how deep each index looks.

use std::time::Instant;

use super::embedding::TextKind;
use super::error::GrainError;
use super::indexes::Moment;
use super::merge::N_BEST;
use super::search::{Query, SearchRequest, Spent};
use super::service::Grains;
use super::store::Scored;
use super::vector::{checked, unit};
use crate::domain::{Filter, ModelName, SpaceCondition, SpaceId};
use crate::engine::EngineError;
use crate::models::ModelError;
use crate::telemetry::traces::part;

/// The most grains that a filter may leave for each of them to be compared.
const EXACT_UNDER_FILTER: u32 = 2_000;

/// Candidates that are checked against a broader filter: so many that one which keeps a tenth leaves enough of them.
const FIRST_LOOK: usize = 1_250;

/// The most candidates that are checked: when more would be needed, few grains meet the filter, and these are compared.
pub(super) const WIDEST_LOOK: usize = 8_000;

/// Candidates that are checked first for each hit that is wanted: so many that a filter which keeps a quarter leaves enough.
pub(super) const LOOK_PER_HIT: usize = 4;

/// Candidates that must remain under a filter: codes only estimate, and the nearest are among so many.
const MIN_SURVIVORS: usize = 100;

/// How often the look is taken again when grains move.
const LOOKS: usize = 5;

/// A space that was to be searched, and what came of it.
#[derive(Clone, Debug)]
pub(super) struct SpaceSearch {
    pub(super) space: SpaceId,
    /// The model that made its query.
    pub(super) model: Option<ModelName>,
    /// The query in this space, of length 1; or why there is none.
    pub(super) query: Result<Vec<f32>, String>,
    /// The nearest grains to each depth, to none where the filter leaves the space out; or why they are not known.
    pub(super) nearest: Result<Vec<Nearest>, String>,
}

/// The nearest grains of a space to one depth.
#[derive(Clone, Debug)]
pub(super) struct Nearest {
    /// Best first.
    pub(super) hits: Vec<Scored>,
    /// The vectors of the first [`N_BEST`] of them, where several spaces were searched.
    pub(super) best: Vec<Vec<f32>>,
}

/// The error of an embedding whose only text is the query.
fn of_query(error: GrainError, model: &ModelName) -> GrainError {
    match error {
        GrainError::Model(ModelError::Engine(EngineError::InputTooLong { n_tokens, max_tokens, .. })) => {
            GrainError::TooLong { field: "query", model: model.clone(), n_tokens, max_tokens }
        }
        GrainError::Model(ModelError::Engine(EngineError::Tokenize { source, .. })) => {
            GrainError::invalid("query", format!("`query` cannot be split into tokens by `{model}`: {source}"))
        }
        error => error,
    }
}

/// What a look at all spaces saw.
struct Look {
    /// Whether it saw every space that serves, and no grain moved since it began.
    is_settled: bool,
    /// Which grains meet the filter, where that was looked up.
    passing: Option<Passing>,
}

/// Which grains meet a filter.
#[derive(Clone, Debug)]
pub(super) enum Passing {
    /// These, so few that all of them are compared.
    Few(Vec<i64>),
    /// More than that.
    Many,
}

impl Passing {
    /// How many these are, at least.
    pub(super) fn n(&self) -> usize {
        match self {
            Self::Few(numbers) => numbers.len(),
            Self::Many => EXACT_UNDER_FILTER as usize + 1,
        }
    }
}

/// Which grains are compared.
enum Among {
    Everything,
    /// These, ascending.
    These(Vec<i64>),
}

impl Grains {
    /// The nearest grains in each space that is to be searched, to each of these depths; and which meet the filter, where
    /// that was looked up.
    pub(super) async fn search_spaces(
        &self,
        request: &SearchRequest,
        depths: &[usize],
        spent: &mut Spent,
    ) -> Result<(Vec<SpaceSearch>, Option<Passing>), GrainError> {
        let mut passing = None;
        let mut searches: Vec<SpaceSearch> = Vec::new();
        for look in 1.. {
            let began = Instant::now();
            for space in self.targets(request) {
                if !searches.iter().any(|search| search.space == space) {
                    searches.push(self.ask(&request.query, space).await?);
                }
            }
            spent.embedding += began.elapsed();
            let began = Instant::now();
            let seen = part("nearest").around(self.find_nearest(&mut searches, request, depths)).await?;
            passing = seen.passing;
            spent.vectors += began.elapsed();
            if seen.is_settled || look == LOOKS {
                break;
            }
        }
        Ok((searches, passing))
    }

    /// The spaces that are to be searched.
    fn targets(&self, request: &SearchRequest) -> Vec<SpaceId> {
        match (&request.query, &request.filter.space) {
            (Query::Vector { space, .. }, _) | (Query::Text(_), Some(SpaceCondition::Is(space))) => vec![space.clone()],
            (Query::Text(_), Some(SpaceCondition::Unknown)) => Vec::new(),
            (Query::Text(_), None) => self.indexes.serving(),
        }
    }

    /// The query in a space. What the caller got wrong is an error, and so is a full queue, which has room again soon; a
    /// model that is not to be had is none.
    async fn ask(&self, query: &Query, space: SpaceId) -> Result<SpaceSearch, GrainError> {
        let (model, query) = match self.query_vector(query, &space).await {
            Ok((model, vector)) => (model, Ok(vector)),
            Err(
                error @ (GrainError::Invalid { .. }
                | GrainError::UnknownSpace(_)
                | GrainError::TooLong { .. }
                | GrainError::Model(ModelError::Engine(EngineError::Overloaded { .. }))),
            ) => return Err(error),
            // There is nothing else to search with.
            Err(error) if matches!(query, Query::Vector { .. }) => return Err(error),
            Err(error) => (None, Err(error.refusal().message)),
        };
        Ok(SpaceSearch { space, model, query, nearest: Ok(Vec::new()) })
    }

    /// The query in a space, and the model that made it.
    async fn query_vector(&self, query: &Query, space: &SpaceId) -> Result<(Option<ModelName>, Vec<f32>), GrainError> {
        let text = match query {
            Query::Text(text) => text.clone(),
            Query::Vector { vector, .. } => {
                let record = self.known_space(space).await?;
                return Ok((None, checked(vector, record.dimensions)?));
            }
        };
        let name = self.models.maker_of(space).await?.ok_or_else(|| GrainError::NoMaker(space.clone()))?;
        let lease = self.models.lease(&name).await?;
        if lease.facts().fingerprint.space() != *space {
            return Err(GrainError::NoMaker(space.clone()));
        }
        let made = self.embed_texts(&lease, vec![text], TextKind::QUERY).await;
        let made = made.map_err(|error| of_query(error, &name))?;
        Ok((Some(name), made.first().map(|made| unit(&made.vector)).unwrap_or_default()))
    }

    /// Looks for the nearest grains in all spaces at one moment.
    async fn find_nearest(
        &self,
        searches: &mut [SpaceSearch],
        request: &SearchRequest,
        depths: &[usize],
    ) -> Result<Look, GrainError> {
        let n_moves = self.indexes.n_moves();
        let queries: Vec<(SpaceId, Vec<f32>)> = searches
            .iter()
            // Under the wrong condition on its space no grain can be found.
            .filter(|search| request.filter.space.as_ref().is_none_or(|wanted| wanted.is(&search.space)))
            .filter_map(|search| Some((search.space.clone(), search.query.clone().ok()?)))
            .collect();
        // The index has nothing but what the space serves.
        let filter = Filter { space: None, ..request.filter.clone() };
        let few = self.few(&filter).await?;
        let is_looked_up = !filter.is_empty() && request.filter.space.is_none();
        let passing = is_looked_up.then(|| few.clone().map_or(Passing::Many, Passing::Few));
        let mut plans = Vec::with_capacity(depths.len());
        for depth in depths {
            let among = match &few {
                _ if filter.is_empty() => Among::Everything,
                Some(few) => Among::These(few.clone()),
                None => Among::These(self.among(&queries, &filter, *depth).await?),
            };
            plans.push((*depth, among));
        }
        let checks_moves = plans.iter().any(|(_, among)| matches!(among, Among::These(_)));
        let (found, serving, n_moves_now) = self
            .indexes
            .look(move |moment| {
                let is_alone = queries.len() < 2;
                let nearest = |(space, query): (SpaceId, Vec<f32>)| {
                    let to_depth = |(depth, among): &(usize, Among)| -> Result<Nearest, GrainError> {
                        let hits = match among {
                            Among::Everything => moment.nearest(&space, &query, *depth)?,
                            Among::These(numbers) => moment.nearest_among(&space, &query, numbers, *depth)?,
                        };
                        let n_best = if is_alone { 0 } else { hits.len().min(N_BEST) };
                        let best = moment.vectors(&space, &hits[..n_best]);
                        Ok(Nearest { hits, best })
                    };
                    let nearest: Result<Vec<Nearest>, GrainError> = plans.iter().map(to_depth).collect();
                    (space, nearest)
                };
                let found: Vec<_> = queries.into_iter().map(nearest).collect();
                Ok((found, moment.serving(), moment.n_moves()))
            })
            .await?;
        for (space, nearest) in found {
            let nearest = match nearest {
                Ok(nearest) => Ok(nearest),
                Err(error @ GrainError::BrokenIndex { .. }) => Err(error.to_string()),
                Err(GrainError::Index(error)) if error.is_of_files() => {
                    self.indexes.note_unreadable(&space, &error).await;
                    Err(GrainError::BrokenIndex { space: space.clone(), reason: error.for_callers() }.to_string())
                }
                Err(error) => return Err(error),
            };
            if let Some(search) = searches.iter_mut().find(|search| search.space == space) {
                search.nearest = nearest;
            }
        }
        let is_for_all = matches!(request.query, Query::Text(_)) && request.filter.space.is_none();
        let knows = |space: &SpaceId| searches.iter().any(|search| search.space == *space);
        let is_settled = (!is_for_all || serving.iter().all(knows)) && (!checks_moves || n_moves == n_moves_now);
        Ok(Look { is_settled, passing })
    }

    /// The grains under a filter that leaves so few that all of them are compared, in order.
    async fn few(&self, filter: &Filter) -> Result<Option<Vec<i64>>, GrainError> {
        if filter.is_empty() {
            return Ok(None);
        }
        let mut few = self.store.numbers(filter.clone(), EXACT_UNDER_FILTER + 1).await?;
        few.sort_unstable();
        Ok(Some(few).filter(|few| few.len() <= EXACT_UNDER_FILTER as usize))
    }

    /// Which grains are to be compared under a broad filter so that the `n` nearest are among them, in order.
    async fn among(&self, queries: &[(SpaceId, Vec<f32>)], filter: &Filter, n: usize) -> Result<Vec<i64>, GrainError> {
        let mut all = Vec::new();
        for (space, query) in queries {
            let Some(passing) = self.passing(space, query, filter, n).await? else {
                all = self.store.numbers(filter.clone(), u32::MAX).await?;
                break;
            };
            all.extend(passing);
        }
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// Candidates of a space that meet a broad filter, enough of them; `None` when it is not so broad after all.
    async fn passing(
        &self,
        space: &SpaceId,
        query: &[f32],
        filter: &Filter,
        n: usize,
    ) -> Result<Option<Vec<i64>>, GrainError> {
        let enough = n.max(MIN_SURVIVORS);
        let mut look = FIRST_LOOK.max(LOOK_PER_HIT * n);
        while look <= WIDEST_LOOK {
            let (of, query) = (space.clone(), query.to_vec());
            let candidates = self.indexes.look(move |moment: &Moment<'_>| moment.candidates(&of, &query, look)).await;
            let candidates = match candidates {
                Ok(candidates) => candidates,
                // The look at all spaces says so.
                Err(GrainError::BrokenIndex { .. }) => return Ok(Some(Vec::new())),
                Err(error) => return Err(error),
            };
            let is_everything = candidates.len() < look;
            let passing = self.store.passing(filter.clone(), candidates).await?;
            if is_everything || passing.len() >= enough {
                return Ok(Some(passing));
            }
            // As many as the share that has passed lets expect, and half as many again.
            look = (look * enough * 3).checked_div(passing.len() * 2).unwrap_or(usize::MAX);
        }
        Ok(None)
    }
}
