//! What looks at a loaded model have found.
//!
//! It is kept beside the model and not in it: a model whose inference does not end cannot be freed, and whoever waits for
//! its drain must learn of that.

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ModelError;
use super::standing::LEAST_COSINE;
use crate::domain::ModelName;
use crate::engine::{EngineError, OldestBatch};
use crate::telemetry::with_causes;

/// Looks in a row at the same batch, 30 s apart: no text takes so long. They are counted, and not the time, because a
/// process that was stopped meanwhile has looked but once.
const LOOKS_AT_ONE_BATCH: u32 = 10;

/// What is wrong with a loaded model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ailment {
    /// The end of a sentence that begins with the model.
    pub what: &'static str,
    /// How that shows, and the way out where there is one.
    pub reason: String,
    /// What follows from it.
    pub(super) kind: AilmentKind,
}

/// What follows from an ailment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AilmentKind {
    /// The runtime fails: requests do too, for what the cache does not have, and nothing else follows.
    Fails,
    /// An inference does not end: the model cannot be unloaded.
    Stuck,
    /// What it makes is not of its space any more: nothing of it may be kept.
    Moved,
}

impl Ailment {
    pub(super) fn does_not_embed(error: &EngineError) -> Self {
        let kind = match error {
            // Weights that make no number have been written over, as those have that make others.
            EngineError::NotANumber { .. } => AilmentKind::Moved,
            _ => AilmentKind::Fails,
        };
        Self { what: "does not embed any more", reason: with_causes(error), kind }
    }

    /// Whether what the model makes is not of its space.
    pub(super) fn is_move(&self) -> bool {
        self.kind == AilmentKind::Moved
    }

    /// Whether an inference does not end.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.kind == AilmentKind::Stuck
    }

    pub(super) fn stuck() -> Self {
        Self {
            what: "does not embed any more",
            reason: "the runtime has been running one batch for more than five minutes. What waits behind it is not \
                     embedded, and the model cannot be unloaded: start the server anew"
                .to_owned(),
            kind: AilmentKind::Stuck,
        }
    }

    pub(super) fn has_moved(model: &ModelName, cosine: f64) -> Self {
        Self {
            what: "makes other vectors than when it was loaded",
            reason: format!(
                "canary texts have a cosine of only {cosine:.4} to those of its load (at least {LEAST_COSINE} is needed). \
                 Somebody has written into its files, and the runtime reads large weights from there as it uses them. Put \
                 the old files back, or unload it, `POST /models/{model}/unload`: the next load sees what is there"
            ),
            kind: AilmentKind::Moved,
        }
    }
}

/// What is wrong with a loaded model, by the last look at it, and what the next look needs to know.
pub(super) struct Health {
    ailment: RwLock<Option<Ailment>>,
    looks: Mutex<Looks>,
    oldest_batch: OldestBatch,
    /// Held by the look that waits for vectors.
    turn: Arc<Semaphore>,
}

impl Health {
    pub(super) fn new(oldest_batch: OldestBatch) -> Self {
        Self { ailment: RwLock::default(), looks: Mutex::default(), oldest_batch, turn: Arc::new(Semaphore::new(1)) }
    }

    /// What is wrong.
    pub(super) fn ailment(&self) -> Option<Ailment> {
        self.ailment.read().clone()
    }

    pub(super) fn is_ailing(&self) -> bool {
        self.ailment.read().is_some()
    }

    /// Whether an inference does not end.
    pub(super) fn is_stuck(&self) -> bool {
        self.ailment.read().as_ref().is_some_and(Ailment::is_stuck)
    }

    /// Whether what the model makes is not of its space.
    pub(super) fn has_moved(&self) -> bool {
        self.ailment.read().as_ref().is_some_and(Ailment::is_move)
    }

    /// Whether it runs a batch, though its caller may have left.
    pub(super) fn is_running(&self) -> bool {
        (self.oldest_batch)().is_some()
    }

    /// Why an operator cannot unload the model, if that is so.
    ///
    /// # Errors
    /// [`ModelError::Stuck`] with the way out.
    pub(super) fn check_unload(&self, name: &ModelName) -> Result<(), ModelError> {
        if !self.is_stuck() {
            return Ok(());
        }
        Err(stuck(name, "cannot be unloaded"))
    }

    /// Keeps what is wrong, if anything is. Returns what was known before.
    pub(super) fn note(&self, seen: Option<Ailment>) -> Option<Ailment> {
        std::mem::replace(&mut *self.ailment.write(), seen)
    }

    /// Takes note of the batch that runs now. Says whether it does not end.
    pub(super) fn look_at_batch(&self) -> bool {
        self.looks.lock().note((self.oldest_batch)())
    }

    /// Whether the batch that was seen last does not end.
    pub(super) fn has_endless_batch(&self) -> bool {
        self.looks.lock().see_no_end()
    }

    /// Begins to wait for vectors, unless another look does.
    pub(super) fn begin_look(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.turn).try_acquire_owned().ok()
    }
}

/// Refuses what a model cannot do, since an inference does not end.
pub(super) fn stuck(name: &ModelName, what: &'static str) -> ModelError {
    ModelError::Stuck { name: name.clone(), what }
}

/// How often in a row a model was found running the same batch.
#[derive(Debug, Default)]
struct Looks {
    batch: Option<u64>,
    n_looks: u32,
}

impl Looks {
    /// Takes note of the batch that has been running for longest. Says whether it does not end.
    fn note(&mut self, batch: Option<u64>) -> bool {
        if batch.is_none() || self.batch != batch {
            *self = Self { batch, n_looks: 0 };
        }
        self.n_looks += 1;
        self.see_no_end()
    }

    fn see_no_end(&self) -> bool {
        self.batch.is_some() && self.n_looks > LOOKS_AT_ONE_BATCH
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn a_batch_that_does_not_end_is_told_from_many_that_do() {
        let mut looks = Looks::default();
        for serial in 1..100 {
            assert!(!looks.note(Some(serial)), "each is another one");
        }
        for _ in 0..100 {
            assert!(!looks.note(None), "nothing runs");
        }
        let n_patient = (0..100).take_while(|_| !looks.note(Some(100))).count();
        assert_eq!(n_patient, LOOKS_AT_ONE_BATCH as usize);
        assert!(looks.note(Some(100)), "it still runs");
        assert!(!looks.note(Some(101)), "it has ended");
    }

    #[test]
    fn only_who_is_stuck_cannot_be_unloaded() {
        let batch = Arc::new(AtomicU64::new(7));
        let health = Health::new(Box::new({
            let batch = Arc::clone(&batch);
            move || Some(batch.load(Ordering::SeqCst))
        }));
        assert!(health.is_running());
        let n_patient = (0..100).take_while(|_| !health.look_at_batch()).count();
        assert_eq!(n_patient, LOOKS_AT_ONE_BATCH as usize);
        assert!(health.has_endless_batch());
        let name = ModelName::parse("m").expect("a name");
        for (ailment, is_refused) in
            [(Ailment::stuck(), true), (Ailment::has_moved(&name, 0.5), false), (Ailment::stuck(), true)]
        {
            health.note(Some(ailment));
            assert_eq!(health.check_unload(&name).is_err(), is_refused);
        }
        let refusal = health.check_unload(&name).expect_err("it is stuck").to_string();
        assert!(refusal.contains("`m` cannot be unloaded") && refusal.contains("Start the server anew"), "{refusal}");
        batch.store(8, Ordering::SeqCst);
        assert!(!health.look_at_batch());
        health.note(None);
        assert!(health.check_unload(&name).is_ok());
    }

    #[test]
    fn one_look_waits_for_vectors_at_a_time() {
        let health = Health::new(Box::new(|| None));
        let first = health.begin_look().expect("nobody looks");
        assert!(health.begin_look().is_none());
        drop(first);
        assert!(health.begin_look().is_some());
    }

    #[test]
    fn what_is_no_number_is_not_of_the_space_either() {
        let spoiled = Ailment::does_not_embed(&EngineError::NotANumber { index: 0, found: f32::NAN });
        assert_eq!(spoiled.kind, AilmentKind::Moved);
        let failed = Ailment::does_not_embed(&EngineError::Inference { index: 0, source: "no memory".into() });
        assert_eq!(failed.kind, AilmentKind::Fails);
    }
}
