//! Reading grains out, page by page.
//!
//! Nothing goes on with an answer while its caller takes nothing of it. So what is read from the database is read in a task:
//! else a few callers who wait would keep all its connections.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use futures::Stream;

use super::super::error::GrainError;
use super::super::service::Grains;
use super::super::store::{Numbered, Page, PageRequest, Position, Sort, SortKey, Vectors};
use crate::domain::{Filter, Grain, SpaceId};
use crate::models::ledger::SpaceRecord;

/// Grains of a page. A text may be long, so there are not too many.
const PAGE: u32 = 200;

/// What reads for an export.
const TASK: &str = "export";

/// What is read out.
#[derive(Clone, Debug, Default)]
pub struct ExportRequest {
    /// Which grains.
    pub filter: Filter,
    /// Whether with vectors.
    pub vectors: Vectors,
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
    /// Spaces come first, of an export of all grains.
    Spaces(Page),
    Page(Position),
    End,
    Nothing,
}

impl Grains {
    /// Reads out the grains that meet a filter, oldest first: the spaces they are served from, before these, the grains,
    /// the end. A grain that is written meanwhile may come too, or not. The stream ends without its last item after an
    /// error, such as that the server stops.
    ///
    /// # Errors
    /// When not even the first page can be read.
    pub async fn export(
        &self,
        request: ExportRequest,
    ) -> Result<impl Stream<Item = Result<ExportItem, GrainError>> + Send + use<>, GrainError> {
        let first = self.page(page_request(&request, None)).await?;
        let export = Export {
            grains: self.clone(),
            request,
            ready: VecDeque::new(),
            known: HashSet::new(),
            next: Next::Spaces(first),
            n_grains: 0,
        };
        Ok(futures::stream::unfold(export, async |mut export| {
            if export.is_cut_by_a_stop() {
                (export.next, export.ready) = (Next::Nothing, VecDeque::new());
                return Some((Err(GrainError::Stopping), export));
            }
            while export.ready.is_empty() {
                if let Err(error) = export.read_on().await? {
                    export.next = Next::Nothing;
                    return Some((Err(error), export));
                }
            }
            let item = export.ready.pop_front()?;
            Some((Ok(item), export))
        }))
    }
}

impl Export {
    fn is_cut_by_a_stop(&self) -> bool {
        let is_over = matches!(self.next, Next::End | Next::Nothing) && self.ready.is_empty();
        !is_over && self.grains.shutdown.soft().is_cancelled()
    }

    /// Makes the next items ready; `None` after the last.
    async fn read_on(&mut self) -> Option<Result<(), GrainError>> {
        match std::mem::replace(&mut self.next, Next::Nothing) {
            Next::Nothing => None,
            Next::End => {
                self.ready.push_back(ExportItem::End(self.n_grains));
                Some(Ok(()))
            }
            Next::Spaces(first) => Some(self.begin(first).await),
            Next::Page(after) => {
                let (grains, request) = (self.grains.clone(), page_request(&self.request, Some(after)));
                let page = self.grains.shutdown.carry_on(TASK, async move { grains.page(request).await }).await;
                Some(match page {
                    Ok(page) => self.add(page).await,
                    Err(error) => Err(error),
                })
            }
        }
    }

    async fn begin(&mut self, first: Page) -> Result<(), GrainError> {
        // Which spaces serve some of the grains would take as long to find as these: they come before their first one.
        if self.request.filter.is_empty() {
            let grains = self.grains.clone();
            let served = self.grains.shutdown.carry_on(TASK, async move { grains.served_by_space().await }).await?;
            for (space, _) in served.into_iter().filter(|(_, n_grains)| *n_grains > 0) {
                self.introduce(&space).await?;
            }
        }
        self.add(first).await
    }

    async fn add(&mut self, page: Page) -> Result<(), GrainError> {
        let Page { grains, mut vectors, next } = page;
        self.next = next.map_or(Next::End, Next::Page);
        for Numbered { number, grain } in grains {
            if let Some(provenance) = &grain.provenance {
                self.introduce(&provenance.space).await?;
            }
            self.ready.push_back(ExportItem::Grain(Box::new(grain), vectors.remove(&number)));
            self.n_grains += 1;
        }
        Ok(())
    }

    /// Writes a space's manifest before the first grain of it.
    async fn introduce(&mut self, space: &SpaceId) -> Result<(), GrainError> {
        if !self.known.insert(space.clone()) {
            return Ok(());
        }
        let (ledger, space) = (Arc::clone(&self.grains.ledger), space.clone());
        let record = self.grains.shutdown.carry_on(TASK, async move { ledger.space(&space).await }).await?;
        self.ready.extend(record.map(|record| ExportItem::Space(Box::new(record))));
        Ok(())
    }
}

fn page_request(request: &ExportRequest, after: Option<Position>) -> PageRequest {
    let sort = Sort { key: SortKey::Created, descending: false };
    PageRequest { filter: request.filter.clone(), sort, after, limit: PAGE, vectors: request.vectors }
}
