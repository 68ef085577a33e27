//! Reading grains out, page by page.

use std::collections::{HashMap, HashSet, VecDeque};

use futures::Stream;

use super::super::error::GrainError;
use super::super::service::Grains;
use super::super::store::{Facet, Numbered, Page, PageRequest, Position, Sort, SortKey, StoredVector};
use crate::domain::{Filter, Grain, SpaceId};
use crate::models::ledger::SpaceRecord;

/// Grains of a page. A text may be long, so there are not too many.
const PAGE: u32 = 200;

/// Whether vectors are read out too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExportedVectors {
    /// Texts and what is known of them.
    #[default]
    Omitted,
    /// The vector that each grain is served by.
    Included,
}

/// What is read out.
#[derive(Clone, Debug, Default)]
pub struct ExportRequest {
    /// Which grains.
    pub filter: Filter,
    /// Whether with vectors.
    pub vectors: ExportedVectors,
}

/// A part of an export.
#[derive(Clone, Debug)]
pub enum ExportItem {
    /// A space that grains after it are served from.
    Space(Box<SpaceRecord>),
    /// A grain, and its vector if that is asked for.
    Grain(Box<Grain>, Option<Vec<f32>>),
    /// That was all: so many grains.
    End(u64),
}

/// An export on its way.
struct Export {
    grains: Grains,
    request: ExportRequest,
    ready: VecDeque<ExportItem>,
    known: HashSet<SpaceId>,
    next: Next,
    n_grains: u64,
}

enum Next {
    /// Spaces come first.
    Spaces(Page),
    Page(Position),
    End,
    Nothing,
}

impl Grains {
    /// Reads out the grains that meet a filter, oldest first: the spaces they are served from, the grains, the end. A
    /// grain that is written meanwhile may come too, or not. The stream ends without its last item after an error, and
    /// when the server stops.
    ///
    /// # Errors
    /// When not even the first page can be read.
    pub async fn export(
        &self,
        request: ExportRequest,
    ) -> Result<impl Stream<Item = Result<ExportItem, GrainError>> + Send + use<>, GrainError> {
        let first = self.page(page_request(&request.filter, None)).await?;
        let export = Export {
            grains: self.clone(),
            request,
            ready: VecDeque::new(),
            known: HashSet::new(),
            next: Next::Spaces(first),
            n_grains: 0,
        };
        let items = futures::stream::unfold(export, async |mut export| {
            while export.ready.is_empty() {
                if let Err(error) = export.read_on().await? {
                    export.next = Next::Nothing;
                    return Some((Err(error), export));
                }
            }
            let item = export.ready.pop_front()?;
            Some((Ok(item), export))
        });
        Ok(futures::StreamExt::take_until(items, self.shutdown.soft().clone().cancelled_owned()))
    }
}

impl Export {
    /// Makes the next items ready; `None` after the last.
    async fn read_on(&mut self) -> Option<Result<(), GrainError>> {
        match std::mem::replace(&mut self.next, Next::Nothing) {
            Next::Nothing => None,
            Next::End => {
                self.ready.push_back(ExportItem::End(self.n_grains));
                Some(Ok(()))
            }
            Next::Spaces(first) => Some(self.begin(first).await),
            Next::Page(after) => Some(match self.grains.page(page_request(&self.request.filter, Some(after))).await {
                Ok(page) => self.add(page).await,
                Err(error) => Err(error),
            }),
        }
    }

    async fn begin(&mut self, first: Page) -> Result<(), GrainError> {
        let counted = self.grains.count(self.request.filter.clone(), vec![Facet::Space]).await?;
        let values = counted.facets.into_iter().flat_map(|(_, values)| values).filter_map(|value| value.value);
        for space in values.filter_map(|id| SpaceId::parse(&id).ok()) {
            self.introduce(&space).await?;
        }
        self.add(first).await
    }

    async fn add(&mut self, page: Page) -> Result<(), GrainError> {
        let mut vectors = match self.request.vectors {
            ExportedVectors::Included => self.vectors_of(&page).await?,
            ExportedVectors::Omitted => HashMap::new(),
        };
        self.next = page.next.map_or(Next::End, Next::Page);
        for Numbered { number, grain } in page.grains {
            let space = grain.provenance.as_ref().map(|provenance| provenance.space.clone());
            // One that serves its first grain since the export began.
            if let Some(space) = &space {
                self.introduce(space).await?;
            }
            let vector = vectors.remove(&number).filter(|stored| Some(&stored.space) == space.as_ref());
            self.ready.push_back(ExportItem::Grain(Box::new(grain), vector.map(|stored| stored.vector)));
            self.n_grains += 1;
        }
        Ok(())
    }

    /// The vectors of a page, but for grains that were changed since it was read: theirs are of another text, perhaps.
    async fn vectors_of(&self, page: &Page) -> Result<HashMap<i64, StoredVector>, GrainError> {
        let mut vectors: HashMap<i64, StoredVector> = self.grains.vectors_of(page).await?.into_iter().collect();
        let now = self.grains.store.grains(page.grains.iter().map(|found| found.number).collect()).await?;
        let versions: HashMap<i64, u64> = now.into_iter().map(|found| (found.number, found.grain.version)).collect();
        for Numbered { number, grain } in &page.grains {
            if versions.get(number) != Some(&grain.version) {
                vectors.remove(number);
            }
        }
        Ok(vectors)
    }

    /// Writes a space's manifest before the first grain of it.
    async fn introduce(&mut self, space: &SpaceId) -> Result<(), GrainError> {
        if self.known.insert(space.clone())
            && let Some(record) = self.grains.ledger.space(space).await?
        {
            self.ready.push_back(ExportItem::Space(Box::new(record)));
        }
        Ok(())
    }
}

fn page_request(filter: &Filter, after: Option<Position>) -> PageRequest {
    let sort = Sort { key: SortKey::Created, descending: false };
    PageRequest { filter: filter.clone(), sort, after, limit: PAGE }
}
