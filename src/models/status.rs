//! What is seen of a model at one moment.

use std::sync::Arc;

use super::health::Ailment;
use super::hub::Progress;
use super::lifecycle::{Failure, Phase};
use super::loaded::LoadedFacts;
use super::standing::Standing;
use crate::domain::{ModelInfo, ModelSource};

/// A model's state at one moment.
#[derive(Clone, Debug)]
pub struct ModelStatus {
    /// What the catalog says.
    pub info: Arc<ModelInfo>,
    /// Where it is in its life.
    pub phase: Phase,
    /// How far its files are here, while they are being fetched.
    pub download: Option<Progress>,
    /// Why its last load failed, while it is tried again too: until a load succeeds, or the model is unloaded.
    pub failure: Option<Failure>,
    /// What is known since it was loaded.
    pub loaded: Option<Arc<LoadedFacts>>,
    /// How its vectors stand to what is recorded of its space; `None` until it is loaded.
    pub standing: Option<Standing>,
    /// What is wrong with it although it is in memory, by the last look at it; while it is being unloaded too.
    pub ailment: Option<Ailment>,
    /// Whether only an operator can load it.
    pub disabled: bool,
}

impl ModelStatus {
    /// Whether it can be loaded without a download.
    #[must_use]
    pub fn is_here(&self) -> bool {
        self.loaded.is_some() || !matches!(self.info.source, ModelSource::Hub(_))
    }

    /// Whether it is in memory and answers.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }
}
