//! What must survive a restart, as the models see it. The database implements it; tests and a server without a
//! database use [`VolatileLedger`].

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::config::AdditionalModel;
use crate::domain::{DeclaredSpace, Fingerprint, ModelName, ReembeddingId, SpaceId};

/// The record of decisions that outlive the process. What is recorded is durable when the future resolves.
#[async_trait]
pub trait Ledger: Send + Sync {
    /// The model that was active when the last process stopped; `None` on a first start.
    async fn active_model(&self) -> Result<Option<ModelName>, LedgerError>;

    /// Since when it was that, in seconds since 1970; `None` where nobody knows.
    async fn active_since(&self) -> Result<Option<i64>, LedgerError>;

    /// Makes `name` the model the next start begins with. Where that begins a re-embedding, it is recorded with the job
    /// instead.
    async fn record_active_model(&self, name: &ModelName) -> Result<(), LedgerError>;

    /// The models registered while the server ran, oldest first.
    async fn registered_models(&self) -> Result<Vec<AdditionalModel>, LedgerError>;

    /// Adds a model that later starts know too and that is not disabled, in place of one of its name that a start left
    /// out. It keeps that one's space: grains may be in it.
    async fn record_registration(&self, entry: &AdditionalModel) -> Result<(), LedgerError>;

    /// Forgets a registered model, and that it was disabled and which space it had.
    async fn forget_registration(&self, name: &ModelName) -> Result<(), LedgerError>;

    /// The models that no request may load.
    async fn disabled_models(&self) -> Result<Vec<ModelName>, LedgerError>;

    /// Keeps requests from loading a model.
    async fn record_disabled(&self, name: &ModelName) -> Result<(), LedgerError>;

    /// Lets requests load a model again.
    async fn forget_disabled(&self, name: &ModelName) -> Result<(), LedgerError>;

    /// Every recorded space, oldest first.
    async fn spaces(&self) -> Result<Vec<SpaceRecord>, LedgerError>;

    /// One recorded space.
    async fn space(&self, id: &SpaceId) -> Result<Option<SpaceRecord>, LedgerError>;

    /// Records a space, in place of an older record of it.
    async fn record_space(&self, record: &SpaceRecord) -> Result<(), LedgerError>;

    /// Records a space that no model makes, if its name is free.
    async fn declare_space(&self, space: &DeclaredSpace) -> Result<Declared, LedgerError>;

    /// The space that grains of this model are written to; `None` before its first load.
    async fn accepted_space(&self, model: &ModelName) -> Result<Option<SpaceId>, LedgerError>;

    /// Makes a recorded space the one that grains of this model are written to.
    async fn accept_space(&self, model: &ModelName, space: &SpaceId) -> Result<(), LedgerError>;

    /// The spaces that grains have vectors in. Cheap, however many grains there are.
    async fn spaces_of_grains(&self) -> Result<HashSet<SpaceId>, LedgerError>;

    /// How many grains have a vector of each maker in each space. Reads every vector's row.
    async fn grains_by_maker(&self) -> Result<Vec<MadeGrains>, LedgerError>;

    /// How many grains are served by a vector of each maker in each space. Looks each grain up.
    async fn served_by_maker(&self) -> Result<Vec<MadeGrains>, LedgerError>;

    /// A re-embedding that is open and moves grains to this model, or waits to, if there is one.
    async fn open_job_of(&self, model: &ModelName) -> Result<Option<ReembeddingId>, LedgerError>;

    /// Answers when the ledger can be read, for readiness.
    async fn check(&self) -> Result<(), LedgerError>;
}

/// A space, and the vectors by which a later load shows that it still makes it.
#[derive(Clone, Debug, PartialEq)]
pub struct SpaceRecord {
    /// The space's full name.
    pub fingerprint: Fingerprint,
    /// The manifest as canonical JSON.
    pub manifest: String,
    /// The length of its vectors.
    pub dimensions: u32,
    /// The name it was declared under; `None` for a model's space.
    pub declared_name: Option<String>,
    /// What computed the canaries: provider, precision and runtime, which the fingerprint leaves out.
    pub numeric_class: String,
    /// `[n_texts][dimensions]`: vectors of the canary texts.
    pub canaries: Vec<f32>,
}

impl SpaceRecord {
    /// What is recorded of a space that no model makes.
    #[must_use]
    pub fn of_declared(space: &DeclaredSpace) -> Self {
        Self {
            fingerprint: space.fingerprint(),
            manifest: space.canonical(),
            dimensions: space.dimensions(),
            declared_name: Some(space.name().to_owned()),
            numeric_class: String::new(),
            canaries: Vec::new(),
        }
    }
}

/// Grains that have vectors of one maker in one space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeGrains {
    /// The model's name, where the vectors say it: those that callers supplied do not, and an export has its server's.
    pub model: Option<String>,
    /// The space.
    pub space: SpaceId,
    /// How many.
    pub n_grains: u64,
}

/// What became of a declaration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Declared {
    /// The space is new.
    Created,
    /// It was declared before.
    Known,
    /// The name is that of a space of so many dimensions.
    Otherwise(u32),
}

/// The ledger could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("the ledger of models cannot be {action}")]
pub struct LedgerError {
    /// What was tried: `read` or `written`.
    pub action: &'static str,
    /// The database's own error.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Remembers until the process ends: for a server that keeps no database (`grains.enabled = false`).
#[derive(Debug, Default)]
pub struct VolatileLedger(Mutex<Remembered>);

#[derive(Debug, Default)]
struct Remembered {
    active_model: Option<ModelName>,
    registered: Vec<AdditionalModel>,
    disabled: HashSet<ModelName>,
    spaces: Vec<SpaceRecord>,
    accepted: HashMap<ModelName, SpaceId>,
}

#[async_trait]
impl Ledger for VolatileLedger {
    async fn active_model(&self) -> Result<Option<ModelName>, LedgerError> {
        Ok(self.0.lock().active_model.clone())
    }

    async fn active_since(&self) -> Result<Option<i64>, LedgerError> {
        Ok(None)
    }

    async fn record_active_model(&self, name: &ModelName) -> Result<(), LedgerError> {
        self.0.lock().active_model = Some(name.clone());
        Ok(())
    }

    async fn registered_models(&self) -> Result<Vec<AdditionalModel>, LedgerError> {
        Ok(self.0.lock().registered.clone())
    }

    async fn record_registration(&self, entry: &AdditionalModel) -> Result<(), LedgerError> {
        let mut all = self.0.lock();
        all.registered.retain(|known| known.name != entry.name);
        all.registered.push(entry.clone());
        all.disabled.remove(&entry.name);
        Ok(())
    }

    async fn forget_registration(&self, name: &ModelName) -> Result<(), LedgerError> {
        let mut all = self.0.lock();
        all.registered.retain(|entry| entry.name != *name);
        all.disabled.remove(name);
        all.accepted.remove(name);
        Ok(())
    }

    async fn disabled_models(&self) -> Result<Vec<ModelName>, LedgerError> {
        Ok(self.0.lock().disabled.iter().cloned().collect())
    }

    async fn record_disabled(&self, name: &ModelName) -> Result<(), LedgerError> {
        self.0.lock().disabled.insert(name.clone());
        Ok(())
    }

    async fn forget_disabled(&self, name: &ModelName) -> Result<(), LedgerError> {
        self.0.lock().disabled.remove(name);
        Ok(())
    }

    async fn spaces(&self) -> Result<Vec<SpaceRecord>, LedgerError> {
        Ok(self.0.lock().spaces.clone())
    }

    async fn space(&self, id: &SpaceId) -> Result<Option<SpaceRecord>, LedgerError> {
        Ok(self.0.lock().spaces.iter().find(|record| record.fingerprint.space() == *id).cloned())
    }

    async fn record_space(&self, record: &SpaceRecord) -> Result<(), LedgerError> {
        let mut all = self.0.lock();
        match all.spaces.iter_mut().find(|known| known.fingerprint == record.fingerprint) {
            Some(known) => *known = record.clone(),
            None => all.spaces.push(record.clone()),
        }
        Ok(())
    }

    async fn declare_space(&self, space: &DeclaredSpace) -> Result<Declared, LedgerError> {
        let mut all = self.0.lock();
        let known = all.spaces.iter().find(|record| record.declared_name.as_deref() == Some(space.name()));
        let known = known.map(|known| known.dimensions);
        Ok(match known {
            Some(dimensions) if dimensions == space.dimensions() => Declared::Known,
            Some(dimensions) => Declared::Otherwise(dimensions),
            None => {
                all.spaces.push(SpaceRecord::of_declared(space));
                Declared::Created
            }
        })
    }

    async fn accepted_space(&self, model: &ModelName) -> Result<Option<SpaceId>, LedgerError> {
        Ok(self.0.lock().accepted.get(model).cloned())
    }

    async fn accept_space(&self, model: &ModelName, space: &SpaceId) -> Result<(), LedgerError> {
        self.0.lock().accepted.insert(model.clone(), space.clone());
        Ok(())
    }

    async fn spaces_of_grains(&self) -> Result<HashSet<SpaceId>, LedgerError> {
        Ok(HashSet::new())
    }

    async fn grains_by_maker(&self) -> Result<Vec<MadeGrains>, LedgerError> {
        Ok(Vec::new())
    }

    async fn served_by_maker(&self) -> Result<Vec<MadeGrains>, LedgerError> {
        Ok(Vec::new())
    }

    async fn open_job_of(&self, _model: &ModelName) -> Result<Option<ReembeddingId>, LedgerError> {
        Ok(None)
    }

    async fn check(&self) -> Result<(), LedgerError> {
        Ok(())
    }
}
