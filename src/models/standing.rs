//! How a loaded model stands to what is recorded of its space, and whether it may write grains.

use crate::domain::{ModelName, SpaceId};

/// The least cosine between a canary and its record: bf16 keeps 0.9999, a wrong kernel does not.
pub const LEAST_COSINE: f64 = 0.999;

/// How a model's vectors stand to what was recorded of it. Grains are written only when nothing stands against it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// The space that the model's grains are in, when its files or settings have changed since: to be accepted.
    pub accepted: Option<SpaceId>,
    /// How far the canaries are from their record, when that is too far.
    pub drift: Option<Drift>,
    /// Why nothing is known: the ledger could not be read or written, or the vectors have moved since the load. They are
    /// compared again at each look at the model.
    pub unknown: Option<String>,
}

/// A space whose vectors have moved under an unchanged fingerprint.
#[derive(Clone, Debug, PartialEq)]
pub struct Drift {
    /// The least cosine between a canary and its record.
    pub cosine: f64,
    /// What computed the recorded ones.
    pub recorded_by: String,
    /// What computes them now.
    pub computed_by: String,
}

impl Standing {
    /// Whether its vectors are known to be those of its space.
    pub(super) fn makes_its_space(&self) -> bool {
        self.drift.is_none() && self.unknown.is_none()
    }

    /// Why grains may not be written with this model, or nothing.
    #[must_use]
    pub fn refusal(&self, model: &ModelName) -> Option<String> {
        if let Some(reason) = &self.unknown {
            return Some(format!("it is not known whether the model still makes its space: {reason}"));
        }
        if let Some(Drift { cosine, recorded_by, computed_by }) = &self.drift {
            return Some(format!(
                "its vectors have moved: computed by {computed_by}, canary texts have a cosine of only {cosine:.4} to \
                 those recorded for the same space by {recorded_by} (at least {LEAST_COSINE} is needed). Go back to \
                 that provider or runtime library, or accept the new numbers: `POST /models/{model}/accept` with \
                 `{{\"numerics\": true}}`"
            ));
        }
        self.accepted.as_ref().map(|accepted| {
            format!(
                "its files or settings have changed, and with them its space; its grains are in space {accepted}. Put \
                 the old files back, or accept the new space with `POST /models/{model}/accept`"
            )
        })
    }
}
