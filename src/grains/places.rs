//! Where a space stands in the order of spaces: behind the one that is joined to it, or where it serves nothing yet.

use super::error::GrainError;
use super::service::Grains;
use crate::domain::{Filter, Reembedding, SpaceCondition, SpaceId};

impl Grains {
    /// The order of spaces in which what one gives away to another is served from there: the other goes directly behind
    /// it where it has no place yet, or where a space between has vectors of the same grains. `None` when the order may
    /// stay.
    ///
    /// # Errors
    /// [`GrainError::Between`] or [`GrainError::BeingMade`] when the other would serve what it is not to serve then, or the
    /// database's.
    pub async fn order_for_join(&self, from: &SpaceId, to: &SpaceId) -> Result<Option<Vec<SpaceId>>, GrainError> {
        let mut order = self.store.space_order().await?;
        // What has no place has nothing to give away.
        let Some(at) = order.iter().position(|known| known == from) else { return Ok(None) };
        let jobs = self.store.reembeddings().await?;
        // What an open job makes serves nothing before its time.
        let maker = jobs.iter().find(|job| job.state.is_open() && job.space == *to);
        let being_made = |job: &Reembedding| GrainError::BeingMade { space: to.clone(), job: job.id.clone() };
        let Some(place) = order.iter().position(|known| known == to) else {
            if let Some(job) = maker.filter(|_| order[at + 1..].iter().any(|space| self.indexes.n_served(space) > 0)) {
                return Err(being_made(job));
            }
            order.insert(at + 1, to.clone());
            return Ok(Some(order));
        };
        let spaces_between = order.get(at + 1..place).unwrap_or_default();
        let serves_instead = |space: &&SpaceId| self.indexes.share_one(from, space, &[]);
        let Some(between) = spaces_between.iter().find(serves_instead) else { return Ok(None) };
        if let Some(job) = maker {
            return Err(being_made(job));
        }
        let hiding = hiding_for_good(&order[..=at], &jobs, to);
        if spaces_between.iter().any(|space| self.indexes.share_one(to, space, &hiding)) {
            return Err(GrainError::Between { from: from.clone(), to: to.clone(), between: between.clone() });
        }
        order[at + 1..=place].rotate_right(1);
        Ok(Some(order))
    }

    /// Moves a space behind the others, so that what comes into it serves nothing, unless it is the first one and
    /// serves grains, or the way back of an earlier job begins or ends there. It passes none that has vectors of grains
    /// it serves, or is to serve again after a roll-back: nothing is served otherwise than before, neither now nor
    /// then. The caller holds the gate.
    pub(super) async fn stand_last(&self, space: &SpaceId) -> Result<(), GrainError> {
        let mut order = self.store.space_order().await?;
        let jobs = self.store.reembeddings().await?;
        let Some((at, n_passed)) = self.way_behind(&order, space, &jobs) else { return Ok(()) };
        if let Some(before) = order[at + n_passed + 1..].iter().find(|other| self.indexes.n_served(other) > 0) {
            tracing::warn!(%space, %before, "a re-embedding may serve grains before its cut-over: its space stays before one \
                that serves some, since a space between them has vectors of grains that it serves itself");
        }
        if n_passed > 0 {
            order[at..=at + n_passed].rotate_left(1);
            self.store.write_space_order(order.clone()).await?;
            self.indexes.reorder(&order).await;
            self.anchors.look_again();
        }
        Ok(())
    }

    /// How many selected grains a space would serve as soon as it has vectors of them, and not from its cut-over on:
    /// those that spaces serve behind which it cannot go (`stand_last`). A roll-back would leave them there.
    /// Names the first of these spaces, which has the vectors that stand in the way. `None` where there are no such
    /// grains, and of a space that is to stay the first one, of which that is known.
    ///
    /// Without a selection the indexes know it. With one, the grains it selects are counted by their served spaces, and
    /// that only where such a space serves any.
    ///
    /// # Errors
    /// [`GrainError::BrokenIndex`] while it cannot be told, or the database's.
    pub async fn count_served_early(
        &self,
        space: &SpaceId,
        selection: &Filter,
    ) -> Result<Option<(SpaceId, u64)>, GrainError> {
        let order = self.store.space_order().await?;
        let jobs = self.store.reembeddings().await?;
        let Some((at, n_passed)) = self.way_behind(&order, space, &jobs) else { return Ok(None) };
        let behind = &order[at + n_passed + 1..];
        if behind.iter().all(|other| self.indexes.n_served(other) == 0) {
            return Ok(None);
        }
        // A broken one counts as if it stood in the way.
        order.iter().try_for_each(|space| self.indexes.check_whole(space))?;
        let mut n_grains = 0;
        for other in behind {
            let n_served = self.indexes.n_served(other) as u64;
            let only = Some(SpaceCondition::Is(other.clone()));
            if n_served == 0 || (selection.space.is_some() && selection.space != only) {
                continue;
            }
            n_grains += if *selection == Filter::default() {
                n_served
            } else {
                let filter = Filter { space: only, ..selection.clone() };
                self.store.count(filter, Vec::new()).await?.total
            };
        }
        Ok(behind.first().filter(|_| n_grains > 0).map(|first| (first.clone(), n_grains)))
    }

    /// Where a space stands, and how many of those directly behind it a re-embedding puts it behind; `None` where it has
    /// no place or stays the first one.
    fn way_behind(&self, order: &[SpaceId], space: &SpaceId, jobs: &[Reembedding]) -> Option<(usize, usize)> {
        let at = order.iter().position(|known| known == space)?;
        let is_on_way_back = || jobs.iter().any(|job| job.needs_for_its_way_back(space));
        if at == 0 && (self.indexes.n_served(space) > 0 || is_on_way_back()) {
            return None;
        }
        let before = hiding_for_good(&order[..at], jobs, space);
        let may_pass = |other: &&SpaceId| !self.indexes.share_one(space, other, &before);
        Some((at, order[at + 1..].iter().take_while(may_pass).count()))
    }
}

/// Those of the spaces before another that serve what both hold, whatever is rolled back.
fn hiding_for_good(before: &[SpaceId], jobs: &[Reembedding], space: &SpaceId) -> Vec<SpaceId> {
    let may_go_behind =
        |other: &SpaceId| jobs.iter().any(|job| job.space == *other && job.needs_for_its_way_back(space));
    before.iter().filter(|other| !may_go_behind(other)).cloned().collect()
}
