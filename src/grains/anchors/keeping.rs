//! Who keeps the anchors: a task that draws the sample anew when the store has changed, and has what it lacks embedded.
//!
//! Nobody waits for it. It works in the background line of each model, in chunks that bring all spaces forward together,
//! and only while two spaces serve grains: one space needs no other's scale.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;

use super::super::error::GrainError;
use super::super::merge::MIN_ANCHORS;
use super::super::service::Grains;
use super::super::store::{Anchor, NewAnchor, NewVector, Numbered};
use super::N_ANCHORS;
use crate::domain::{Filter, ModelName, SpaceId};
use crate::engine::EngineError;
use crate::models::{Lease, ModelError};
use crate::shutdown::blocking;
use crate::telemetry::with_causes;

/// Grains that get their vectors in all spaces before the next ones do.
const AT_ONCE: usize = 64;

/// How often it is looked whether something has changed that nobody told of: a model that is there again, say.
const LOOK: Duration = Duration::from_secs(30);

/// Writes come in bursts: so long it is waited for more of them.
const SETTLE: Duration = Duration::from_millis(100);

/// The least time between two samples.
const BETWEEN: Duration = Duration::from_secs(1);

/// The longest time between two tries when a model is not to be had.
const LONGEST_PAUSE: Duration = Duration::from_mins(10);

/// A model that is not loaded is loaded when one in so many of the sample lacks its vector, not for less: it may have been
/// unloaded to save memory, and comes back with the next search.
const WORTH_A_LOAD: usize = 10;

/// Texts of a chunk that may be at fault. When there are more, it is the model.
const MOST_UNFIT: usize = AT_ONCE / 8;

/// A live space and the model that makes it.
struct Maker {
    space: SpaceId,
    name: ModelName,
}

/// How far a renewal came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Renewal {
    /// Every grain of the sample has what it needs.
    Whole,
    /// A model that is not loaded has too little to do to be loaded for it.
    Waiting,
    /// A model was not to be had.
    Partial,
}

impl Grains {
    /// Keeps the anchors until the server stops.
    pub(in super::super) fn keep_anchors(&self) {
        let (grains, soft) = (self.clone(), self.shutdown.soft().clone());
        self.shutdown.spawn("anchors", async move {
            tokio::select! {
                () = soft.cancelled() => {}
                () = grains.renew_anchors_for_ever() => {}
            }
        });
    }

    async fn renew_anchors_for_ever(&self) {
        let mut pause = BETWEEN;
        loop {
            self.anchors.wait_for_change(LOOK).await;
            tokio::time::sleep(SETTLE).await;
            pause = pause_after(self.renew_anchors(), pause).await;
            tokio::time::sleep(pause).await;
        }
    }

    async fn renew_anchors(&self) -> Result<Renewal, GrainError> {
        let holding = self.indexes.holding();
        if holding.len() < 2 {
            self.retire_anchors(&[], &[]).await?;
            return Ok(Renewal::Whole);
        }
        if self.indexes.serving().len() < 2 {
            return Ok(Renewal::Whole);
        }
        let mut makers = Vec::new();
        for space in holding.clone() {
            // A declared space has none, and what nobody can embed into has no anchors.
            if let Some(name) = self.models.maker_of(&space).await? {
                makers.push(Maker { space, name });
            }
        }
        let spaces: Vec<SpaceId> = makers.iter().map(|maker| maker.space.clone()).collect();
        let at_most = u32::try_from(N_ANCHORS + self.anchors.n_unfit()).unwrap_or(u32::MAX);
        let sample = self.anchors.take_sample(self.store.sample(at_most).await?);
        self.anchors.measure(sample.len(), &spaces);
        // Fewer would not be used.
        if sample.len() < MIN_ANCHORS {
            return Ok(Renewal::Whole);
        }
        let n_makers = makers.len();
        let mut is_waiting = false;
        for numbers in self.anchors.incomplete(&sample, &spaces).chunks(AT_ONCE) {
            self.copy_anchors(numbers, &spaces).await?;
            let ready: Vec<&Maker> = makers.iter().filter(|maker| self.is_worth_a_load(maker, &sample)).collect();
            is_waiting |= ready.len() < makers.len();
            // Vectors in one space alone would compare with nothing.
            if ready.len() < 2 {
                break;
            }
            let lost = self.embed_anchors(numbers, &ready).await?;
            // The other spaces go on without it, until the next renewal.
            makers.retain(|maker| !lost.contains(&maker.space));
            self.anchors.measure(sample.len(), &spaces);
        }
        let renewal = if makers.len() < n_makers {
            Renewal::Partial
        } else if is_waiting {
            Renewal::Waiting
        } else {
            Renewal::Whole
        };
        if renewal == Renewal::Whole {
            // A space whose model is gone keeps what it has: the model may come back.
            self.retire_anchors(&sample, &holding).await?;
        }
        self.anchors.measure(sample.len(), &spaces);
        let anchors = Arc::clone(&self.anchors);
        blocking(move || anchors.fit()).await;
        Ok(renewal)
    }

    /// Whether a space can be given what it lacks of the sample now, or lacks nothing.
    fn is_worth_a_load(&self, maker: &Maker, sample: &[i64]) -> bool {
        let n_lacking = self.anchors.lacking(sample, &maker.space).len();
        n_lacking == 0
            || n_lacking * WORTH_A_LOAD >= sample.len()
            || self.models.status(&maker.name).is_ok_and(|status| status.is_ready())
    }

    /// Takes over the vectors that grains have already.
    async fn copy_anchors(&self, numbers: &[i64], spaces: &[SpaceId]) -> Result<(), GrainError> {
        for space in spaces {
            let lacking = self.anchors.lacking(numbers, space);
            if lacking.is_empty() {
                continue;
            }
            let (grains, space) = (self.clone(), space.clone());
            let work = async move {
                grains.anchors.put(grains.store.copy_to_anchors(&space, lacking).await?);
                Ok(())
            };
            self.behind_gate("copy anchors", work).await?;
        }
        Ok(())
    }

    /// Embeds what grains lack in these spaces. Answers the spaces whose model was not to be had.
    async fn embed_anchors(&self, numbers: &[i64], makers: &[&Maker]) -> Result<Vec<SpaceId>, GrainError> {
        let spaces: Vec<SpaceId> = makers.iter().map(|maker| maker.space.clone()).collect();
        let lacking = self.anchors.incomplete(numbers, &spaces);
        let grains = self.store.grains(lacking, Filter::default()).await?;
        let grains: HashMap<i64, Numbered> = grains.into_iter().map(|grain| (grain.number, grain)).collect();
        let (mut made, mut lost) = (Vec::new(), Vec::new());
        for maker in makers {
            let lacking = self.anchors.lacking(numbers, &maker.space);
            let lacking: Vec<&Numbered> = lacking.iter().filter_map(|number| grains.get(number)).collect();
            if lacking.is_empty() {
                continue;
            }
            match self.embed_anchors_with(maker, lacking).await {
                Ok(anchors) => made.extend(anchors),
                Err(error) => {
                    let reason = with_causes(&error);
                    tracing::warn!(space = %maker.space, model = %maker.name, reason, "a space gets no anchors for now");
                    lost.push(maker.space.clone());
                }
            }
        }
        if made.is_empty() {
            return Ok(lost);
        }
        let grains = self.clone();
        let work = async move {
            grains.anchors.put(grains.store.add_anchors(made).await?);
            Ok(())
        };
        self.behind_gate("write anchors", work).await?;
        Ok(lost)
    }

    async fn embed_anchors_with(
        &self,
        maker: &Maker,
        mut grains: Vec<&Numbered>,
    ) -> Result<Vec<NewAnchor>, GrainError> {
        // For a chunk only, so that the model can be unloaded between two.
        let lease = self.models.lease(&maker.name).await?;
        lease.check_grain_writes()?;
        if lease.facts().fingerprint.space() != maker.space {
            return Err(GrainError::NoMaker(maker.space.clone()));
        }
        let mut unfit = Vec::new();
        while !grains.is_empty() {
            match self.embed_all(&lease, &grains).await {
                Ok(anchors) => {
                    self.anchors.note_unfit(&unfit);
                    return Ok(anchors);
                }
                Err(error) => {
                    let may_go_on = is_of_tokens(&error) || unfit.len() < MOST_UNFIT;
                    let Some(at) = at_fault(&error).filter(|at| *at < grains.len() && may_go_on) else {
                        self.anchors.note_unfit(&unfit);
                        return Err(error);
                    };
                    unfit.push(grains.remove(at).number);
                }
            }
        }
        self.anchors.note_unfit(&unfit);
        Ok(Vec::new())
    }

    async fn embed_all(&self, lease: &Lease, grains: &[&Numbered]) -> Result<Vec<NewAnchor>, GrainError> {
        let texts = grains.iter().map(|grain| grain.grain.content.text.clone()).collect();
        let made = self.embed_in_background(lease, texts).await?;
        let anchor = |(grain, made): (&&Numbered, NewVector)| NewAnchor {
            anchor: Anchor { number: grain.number, space: made.provenance.space, vector: made.vector },
            version: grain.grain.version,
        };
        Ok(grains.iter().zip(made).map(anchor).collect())
    }

    /// Drops the anchors of earlier samples, and of spaces that are no longer live.
    async fn retire_anchors(&self, sample: &[i64], spaces: &[SpaceId]) -> Result<(), GrainError> {
        if !self.anchors.has_others(sample, spaces) {
            return Ok(());
        }
        let (grains, sample, spaces) = (self.clone(), sample.to_vec(), spaces.to_vec());
        let work = async move {
            grains.store.keep_anchors(sample.clone(), spaces.clone()).await?;
            grains.anchors.keep(&sample, &spaces);
            Ok(())
        };
        self.behind_gate("retire anchors", work).await
    }
}

/// Awaits a renewal, and says how long the next one waits. A panic ends it for this time alone, as an error does.
async fn pause_after(renewal: impl Future<Output = Result<Renewal, GrainError>>, pause: Duration) -> Duration {
    match AssertUnwindSafe(renewal).catch_unwind().await {
        Ok(Ok(Renewal::Whole | Renewal::Waiting)) => return BETWEEN,
        Ok(Ok(Renewal::Partial)) => {}
        Ok(Err(error)) => tracing::warn!("anchors are not renewed, and tried again later: {}", with_causes(&error)),
        Err(_) => tracing::error!("the renewal of anchors was cut off by a panic, and is tried again later"),
    }
    (pause * 2).min(LONGEST_PAUSE)
}

/// Whether the model was not even run, and is not to blame however many texts there are.
fn is_of_tokens(error: &GrainError) -> bool {
    let GrainError::Model(ModelError::Engine(error)) = error else { return false };
    matches!(error, EngineError::InputTooLong { .. } | EngineError::Tokenize { .. })
}

/// The text that cannot be embedded, when it is one that is at fault.
fn at_fault(error: &GrainError) -> Option<usize> {
    match error {
        GrainError::Model(ModelError::Engine(error)) => error.index(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_renewal_that_panics_is_tried_again_later() {
        let with_a_bug = || async { panic!("on purpose") };
        assert_eq!(pause_after(with_a_bug(), BETWEEN).await, BETWEEN * 2);
        assert_eq!(pause_after(with_a_bug(), LONGEST_PAUSE).await, LONGEST_PAUSE);
        assert_eq!(pause_after(async { Ok(Renewal::Whole) }, LONGEST_PAUSE).await, BETWEEN);
    }
}
