//! What must survive a restart, as the models see it. The database implements it; tests and a server without a
//! database use [`VolatileLedger`].

use std::collections::{HashMap, HashSet};

use futures::future::BoxFuture;
use parking_lot::Mutex;

use crate::config::AdditionalModel;
use crate::domain::{DeclaredSpace, Fingerprint, ModelName, ReembeddingId, SpaceId};

/// The record of decisions that outlive the process. What is recorded is durable when the future resolves.
pub trait Ledger: Send + Sync {
    /// The model that was active when the last process stopped; `None` on a first start.
    fn active_model(&self) -> Recall<'_, Option<ModelName>>;

    /// Since when it was that, in seconds since 1970; `None` where nobody knows.
    fn active_since(&self) -> Recall<'_, Option<i64>>;

    /// Makes `name` the model the next start begins with. Where that begins a re-embedding, it is recorded with the job
    /// instead.
    fn record_active_model<'a>(&'a self, name: &'a ModelName) -> Recall<'a, ()>;

    /// The models registered while the server ran, oldest first.
    fn registered_models(&self) -> Recall<'_, Vec<AdditionalModel>>;

    /// Adds a model that later starts know too and that is not disabled, in place of one of its name that a start left
    /// out. It keeps that one's space: grains may be in it.
    fn record_registration<'a>(&'a self, entry: &'a AdditionalModel) -> Recall<'a, ()>;

    /// Forgets a registered model, and that it was disabled and which space it had.
    fn forget_registration<'a>(&'a self, name: &'a ModelName) -> Recall<'a, ()>;

    /// The models that no request may load.
    fn disabled_models(&self) -> Recall<'_, Vec<ModelName>>;

    /// Keeps requests from loading a model.
    fn record_disabled<'a>(&'a self, name: &'a ModelName) -> Recall<'a, ()>;

    /// Lets requests load a model again.
    fn forget_disabled<'a>(&'a self, name: &'a ModelName) -> Recall<'a, ()>;

    /// Every recorded space, oldest first.
    fn spaces(&self) -> Recall<'_, Vec<SpaceRecord>>;

    /// One recorded space.
    fn space<'a>(&'a self, id: &'a SpaceId) -> Recall<'a, Option<SpaceRecord>>;

    /// Records a space, in place of an older record of it.
    fn record_space<'a>(&'a self, record: &'a SpaceRecord) -> Recall<'a, ()>;

    /// Records a space that no model makes, if its name is free.
    fn declare_space<'a>(&'a self, space: &'a DeclaredSpace) -> Recall<'a, Declared>;

    /// The space that grains of this model are written to; `None` before its first load.
    fn accepted_space<'a>(&'a self, model: &'a ModelName) -> Recall<'a, Option<SpaceId>>;

    /// Makes a recorded space the one that grains of this model are written to.
    fn accept_space<'a>(&'a self, model: &'a ModelName, space: &'a SpaceId) -> Recall<'a, ()>;

    /// The spaces that grains have vectors in. Cheap, however many grains there are.
    fn spaces_of_grains(&self) -> Recall<'_, HashSet<SpaceId>>;

    /// How many grains have a vector of each maker in each space. Reads every vector's row.
    fn grains_by_maker(&self) -> Recall<'_, Vec<MadeGrains>>;

    /// How many grains are served by a vector of each maker in each space. Looks each grain up.
    fn served_by_maker(&self) -> Recall<'_, Vec<MadeGrains>>;

    /// A re-embedding that is open and moves grains to this model, or waits to, if there is one.
    fn open_job_of<'a>(&'a self, model: &'a ModelName) -> Recall<'a, Option<ReembeddingId>>;

    /// Answers when the ledger can be read, for readiness.
    fn check(&self) -> Recall<'_, ()>;
}

/// What the ledger answers, when it has.
pub type Recall<'a, T> = BoxFuture<'a, Result<T, LedgerError>>;

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

impl VolatileLedger {
    fn now<T: Send + 'static>(&self, work: impl FnOnce(&mut Remembered) -> T) -> Recall<'static, T> {
        let done = work(&mut self.0.lock());
        Box::pin(async move { Ok(done) })
    }
}

impl Ledger for VolatileLedger {
    fn active_model(&self) -> Recall<'_, Option<ModelName>> {
        self.now(|all| all.active_model.clone())
    }

    fn active_since(&self) -> Recall<'_, Option<i64>> {
        self.now(|_| None)
    }

    fn record_active_model<'a>(&'a self, name: &'a ModelName) -> Recall<'a, ()> {
        self.now(|all| all.active_model = Some(name.clone()))
    }

    fn registered_models(&self) -> Recall<'_, Vec<AdditionalModel>> {
        self.now(|all| all.registered.clone())
    }

    fn record_registration<'a>(&'a self, entry: &'a AdditionalModel) -> Recall<'a, ()> {
        self.now(|all| {
            all.registered.retain(|known| known.name != entry.name);
            all.registered.push(entry.clone());
            all.disabled.remove(&entry.name);
        })
    }

    fn forget_registration<'a>(&'a self, name: &'a ModelName) -> Recall<'a, ()> {
        self.now(|all| {
            all.registered.retain(|entry| entry.name != *name);
            all.disabled.remove(name);
            all.accepted.remove(name);
        })
    }

    fn disabled_models(&self) -> Recall<'_, Vec<ModelName>> {
        self.now(|all| all.disabled.iter().cloned().collect())
    }

    fn record_disabled<'a>(&'a self, name: &'a ModelName) -> Recall<'a, ()> {
        self.now(|all| {
            all.disabled.insert(name.clone());
        })
    }

    fn forget_disabled<'a>(&'a self, name: &'a ModelName) -> Recall<'a, ()> {
        self.now(|all| {
            all.disabled.remove(name);
        })
    }

    fn spaces(&self) -> Recall<'_, Vec<SpaceRecord>> {
        self.now(|all| all.spaces.clone())
    }

    fn space<'a>(&'a self, id: &'a SpaceId) -> Recall<'a, Option<SpaceRecord>> {
        self.now(|all| all.spaces.iter().find(|record| record.fingerprint.space() == *id).cloned())
    }

    fn record_space<'a>(&'a self, record: &'a SpaceRecord) -> Recall<'a, ()> {
        self.now(|all| match all.spaces.iter_mut().find(|known| known.fingerprint == record.fingerprint) {
            Some(known) => *known = record.clone(),
            None => all.spaces.push(record.clone()),
        })
    }

    fn declare_space<'a>(&'a self, space: &'a DeclaredSpace) -> Recall<'a, Declared> {
        let is_of_name = |record: &&SpaceRecord| record.declared_name.as_deref() == Some(space.name());
        self.now(|all| match all.spaces.iter().find(is_of_name) {
            Some(known) if known.dimensions == space.dimensions() => Declared::Known,
            Some(known) => Declared::Otherwise(known.dimensions),
            None => {
                all.spaces.push(SpaceRecord::of_declared(space));
                Declared::Created
            }
        })
    }

    fn accepted_space<'a>(&'a self, model: &'a ModelName) -> Recall<'a, Option<SpaceId>> {
        self.now(|all| all.accepted.get(model).cloned())
    }

    fn accept_space<'a>(&'a self, model: &'a ModelName, space: &'a SpaceId) -> Recall<'a, ()> {
        self.now(|all| {
            all.accepted.insert(model.clone(), space.clone());
        })
    }

    fn spaces_of_grains(&self) -> Recall<'_, HashSet<SpaceId>> {
        self.now(|_| HashSet::new())
    }

    fn grains_by_maker(&self) -> Recall<'_, Vec<MadeGrains>> {
        self.now(|_| Vec::new())
    }

    fn served_by_maker(&self) -> Recall<'_, Vec<MadeGrains>> {
        self.now(|_| Vec::new())
    }

    fn open_job_of<'a>(&'a self, _model: &'a ModelName) -> Recall<'a, Option<ReembeddingId>> {
        self.now(|_| None)
    }

    fn check(&self) -> Recall<'_, ()> {
        self.now(|_| ())
    }
}
