//! Spaces as grains need them: declared ones, which may be joined to another, and how many grains each serves.

use super::error::GrainError;
use super::service::Grains;
use crate::domain::{DeclaredSpace, Filter, SpaceId};
use crate::models::Declared;
use crate::models::ledger::SpaceRecord;

impl Grains {
    /// Makes a space known that no model makes: vectors of it are brought along, and it is searched by vector. Says
    /// whether it is new.
    ///
    /// # Errors
    /// [`GrainError::DeclaredOtherwise`], or the database's.
    pub async fn declare_space(&self, space: &DeclaredSpace) -> Result<(bool, SpaceRecord), GrainError> {
        match self.ledger.declare_space(space).await? {
            Declared::Otherwise(found) => Err(GrainError::DeclaredOtherwise { name: space.name().to_owned(), found }),
            declared => Ok((declared == Declared::Created, SpaceRecord::of_declared(space))),
        }
    }

    /// Whether a space is recorded.
    ///
    /// # Errors
    /// [`GrainError::UnknownSpace`], or the database's.
    pub async fn check_known(&self, space: &SpaceId) -> Result<(), GrainError> {
        match self.ledger.space(space).await? {
            Some(_) => Ok(()),
            None => Err(GrainError::UnknownSpace(space.clone())),
        }
    }

    /// Whether the vectors of a space may be given to another one: not while a re-embedding can be rolled back, and
    /// needs them for that.
    ///
    /// # Errors
    /// [`GrainError::OnWayBack`], which names the job to look at first, or the database's.
    pub async fn check_joinable(&self, space: &SpaceId) -> Result<(), GrainError> {
        let jobs = self.store.reembeddings().await?.into_iter();
        // Of several, the one that took over last is rolled back or purged first.
        match jobs.filter(|job| job.needs_for_its_way_back(space)).max_by_key(|job| job.cut_over_us) {
            Some(job) => Err(GrainError::OnWayBack { space: space.clone(), job: job.id }),
            None => Ok(()),
        }
    }

    /// How many grains besides the selected ones a space would serve if it came first: it has vectors of them, and
    /// another space serves them.
    ///
    /// # Errors
    /// The database's.
    pub async fn count_withheld_beyond(&self, space: &SpaceId, selection: &Filter) -> Result<u64, GrainError> {
        // Mostly there are none, which takes no look at every grain.
        if !self.indexes.withholds(space) {
            return Ok(0);
        }
        Ok(self.store.count_withheld_beyond(space.clone(), selection.clone()).await?)
    }

    /// The spaces that hold vectors of grains, and how many grains each serves.
    ///
    /// # Errors
    /// The database's.
    pub async fn served_by_space(&self) -> Result<Vec<(SpaceId, u64)>, GrainError> {
        // The indexes know without counting, as long as they are in step.
        match self.indexes.served() {
            Some(served) => Ok(served),
            None => Ok(self.store.served_by_space().await?),
        }
    }
}
