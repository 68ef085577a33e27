//! How much memory models take, and which of them must go when another needs it.
//!
//! Memory is counted as the process's resident set over its value with no model loaded, because that is what kills a
//! container, less what others of this process say they take: the indexes and anchors of grains, the embedding cache,
//! and, unless the budget is for the whole process, the bodies of requests and answers. What a model takes is measured
//! when it is loaded: its weights, and the activations of the canary texts; those of larger batches only show later. The
//! embedding table is added where it stays in a file until texts look rows of it up. What is unloaded meanwhile hides a
//! part of what was measured, but for the weights, whose size is known.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use metrics::gauge;
use parking_lot::{Mutex, RwLock};

use super::hardware::bytes_of;
use crate::domain::ModelName;
use crate::engine::run_memory;
use crate::{allocator, telemetry};

/// How long a model that took more than the budget again is not measured anew; each time that it does, twice as long. Each
/// measurement takes as much.
const MEASURED_AGAIN_AFTER: Duration = Duration::from_mins(1);

/// Whom the memory budget is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BudgetOf {
    /// The models: somebody has said what they may take.
    Models,
    /// Models, indexes and caches: it is a share of the machine, and what the others take is not there for models.
    Process,
}

/// Says what another part of this process takes of memory now, in bytes.
type Other = Box<dyn Fn() -> u64 + Send + Sync>;

/// What models may take of memory, and what each took when it was last loaded.
pub(super) struct Memory {
    budget_bytes: Option<u64>,
    budget_of: BudgetOf,
    /// The resident set of the process before the first load.
    empty_bytes: u64,
    /// Asked at each look: an import may add hundreds of MiB within seconds, which would count as the models'.
    others: RwLock<Vec<Other>>,
    /// The same of what is there for a moment only.
    passing: RwLock<Vec<Other>>,
    /// The least that was in use with the runtime library and without a model, and what libraries took that came since; the
    /// largest number until that is known.
    residue_bytes: AtomicU64,
    measured: Mutex<HashMap<ModelName, Measured>>,
}

/// What a model took when it was last loaded.
#[derive(Clone, Copy, Debug)]
struct Measured {
    bytes: u64,
    /// The size of its weights then: of other files it says nothing.
    weights_bytes: u64,
    /// How often in a row that was more than the budget.
    n_over: u32,
    at: Instant,
}

impl Measured {
    /// Whether it was more than the budget for the first time in a row. It may be too much: what a loaded model takes for its
    /// first large batches counts as that of the one that is loaded meanwhile.
    fn is_doubtful(&self) -> bool {
        self.n_over == 1
    }

    /// Whether a model may be loaded to see whether it takes less now.
    fn may_be_made_anew(&self) -> bool {
        // Up to about an hour.
        let n_pauses = (1_u32 << self.n_over.min(8)) / 4;
        self.at.elapsed() >= MEASURED_AGAIN_AFTER * n_pauses
    }
}

/// What the process held at one moment, to tell later by how much it has grown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    resident_bytes: u64,
    /// What others than models held of that, and what long texts took or had kept for the next ones.
    others_bytes: u64,
}

/// What is known of a model's memory by its files.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Expected {
    /// The size of its weights.
    pub(super) weights_bytes: u64,
    /// What it takes by estimate.
    pub(super) bytes: u64,
    /// What the process grew by when libraries of its provider came into memory for that.
    pub(super) libraries_bytes: u64,
}

/// The models in memory, beside one that is to be loaded.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Others {
    /// How many there are.
    pub(super) n_models: usize,
    /// What the process grew by when they were loaded.
    pub(super) grown_bytes: u64,
    /// What they take.
    pub(super) bytes: u64,
    /// How many of them do not go to make room: they are pinned, or stuck.
    pub(super) n_staying: usize,
    /// What these take.
    pub(super) staying_bytes: u64,
}

/// Why a model does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "it takes {}{}, and of the {} that `models.memory_budget` allows, {} are in use or kept for loaded models and cannot \
     be freed. {}",
    size(*.needed_bytes), if *.is_estimate { " by estimate" } else { "" }, size(*.budget_bytes), size(*.used_bytes),
    if .needed_bytes > .budget_bytes || !*.others_stay {
        "Raise the budget, set a smaller `max_tokens` or fewer `workers` for it, `engine.query_lane = \"off\"` or \
         `engine.provider = \"cpu\"`, or choose a smaller model"
    } else {
        "Unload or unpin another model, or raise the budget"
    }
)]
pub struct DoesNotFit {
    /// What the model takes.
    pub needed_bytes: u64,
    /// Whether that is a guess from the size of its files.
    pub is_estimate: bool,
    /// What is in use after every model that could go has gone, or would be as far as that is known.
    pub used_bytes: u64,
    /// What models may take together.
    pub budget_bytes: u64,
    /// Whether other models are in memory that do not go to make room.
    pub others_stay: bool,
    /// Whether what it takes was too much for the first time, and is measured once more.
    pub is_doubtful: bool,
}

impl DoesNotFit {
    /// Whether it would not fit into an empty process either.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        self.needed_bytes > self.budget_bytes && !self.is_doubtful
    }
}

fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

impl Memory {
    /// Measures the empty process.
    pub(super) fn new(budget_bytes: Option<u64>, budget_of: BudgetOf) -> Self {
        give_back();
        let memory = Self {
            budget_bytes,
            budget_of,
            empty_bytes: resident_bytes(),
            others: RwLock::default(),
            passing: RwLock::default(),
            residue_bytes: AtomicU64::new(u64::MAX),
            measured: Mutex::default(),
        };
        memory.show();
        memory
    }

    /// Asks this from now on, which says at once what another part of the process takes, in bytes.
    pub(super) fn ask(&self, other: impl Fn() -> u64 + Send + Sync + 'static) {
        self.others.write().push(Box::new(other));
    }

    /// The same of what is there for a moment only, as requests are. It lowers no budget: a model that does not fit beside
    /// it may fit a moment later.
    pub(super) fn ask_of_passing(&self, other: impl Fn() -> u64 + Send + Sync + 'static) {
        self.passing.write().push(Box::new(other));
    }

    /// Shows in the metrics what models may take, and take now.
    pub(super) fn show(&self) {
        if let Some(bytes) = self.budget_bytes() {
            gauge!(telemetry::MEMORY_BUDGET).set(bytes as f64);
        }
        self.used_bytes();
    }

    /// What others of this process take, but for what is there for a moment.
    fn others_bytes(&self) -> u64 {
        sum_of(&self.others)
    }

    /// What is in use for a moment, and counts: where the budget is for the process, which must not outgrow the machine.
    fn momentary_bytes(&self) -> u64 {
        match self.budget_of {
            BudgetOf::Models => 0,
            BudgetOf::Process => sum_of(&self.passing),
        }
    }

    /// What models take now, and what counts as theirs.
    pub(super) fn used_bytes(&self) -> u64 {
        let mut used = resident_bytes().saturating_sub(self.empty_bytes).saturating_sub(self.others_bytes());
        if self.budget_of == BudgetOf::Models {
            used = used.saturating_sub(sum_of(&self.passing));
        }
        gauge!(telemetry::MEMORY_USED).set(used as f64);
        used
    }

    /// What the process holds now, after what is kept of requests and models that have ended was given back.
    pub(super) fn held(&self) -> Held {
        give_back();
        let others_bytes = [self.others_bytes(), sum_of(&self.passing), run_memory::kept_bytes()];
        let others_bytes = others_bytes.into_iter().fold(0, u64::saturating_add);
        Held { resident_bytes: resident_bytes(), others_bytes }
    }

    /// What models have grown by since then, without what a load needs and the model does not (its file's pages and the
    /// graph before it was optimised): what indexes and caches took meanwhile is none of theirs. Not the difference of
    /// [`Self::used_bytes`], which is 0 for all that is below the empty process.
    pub(super) fn grown_bytes(&self, since: Held) -> u64 {
        let now = self.held();
        let grown_bytes = now.resident_bytes.saturating_add(since.others_bytes);
        grown_bytes.saturating_sub(since.resident_bytes.saturating_add(now.others_bytes))
    }

    /// Notes what is in use while the runtime library is loaded and no model is.
    pub(super) fn note_residue(&self) {
        // What the allocator keeps of requests that have ended is no residue.
        give_back();
        let lasting_bytes = self.used_bytes().saturating_sub(self.momentary_bytes());
        self.residue_bytes.fetch_min(lasting_bytes, Ordering::Relaxed);
    }

    /// Notes that libraries have come, which stay without a model too.
    pub(super) fn add_residue(&self, bytes: u64) {
        let residue = self.residue_bytes.load(Ordering::Relaxed);
        self.residue_bytes.store(residue.saturating_add(bytes), Ordering::Relaxed);
    }

    /// What is in use beside these for longer than a moment: the less of what it was without models, and of what is in use
    /// beside what they took when they were loaded. Both may be too much. Requests that ran at the first load count as
    /// residue, and a model takes more than was measured once it has had large batches.
    fn beside_bytes(&self, others: Others) -> u64 {
        let beside_models = self.used_bytes().saturating_sub(others.grown_bytes).saturating_sub(self.momentary_bytes());
        self.residue_bytes.load(Ordering::Relaxed).min(beside_models)
    }

    /// What is left in use when all of these have gone that may go.
    pub(super) fn left_bytes(&self, others: Others) -> u64 {
        self.beside_bytes(others).saturating_add(self.momentary_bytes()).saturating_add(others.staying_bytes)
    }

    /// What models may take together; `None` without a limit.
    pub(super) fn budget_bytes(&self) -> Option<u64> {
        match self.budget_of {
            BudgetOf::Models => self.budget_bytes,
            BudgetOf::Process => self.budget_bytes.map(|bytes| bytes.saturating_sub(self.others_bytes())),
        }
    }

    /// Remembers what a model with weights of that size takes.
    pub(super) fn record(&self, name: &ModelName, weights_bytes: u64, bytes: u64) {
        gauge!(telemetry::MODEL_MEMORY, "model" => name.to_string()).set(bytes as f64);
        let is_over = self.budget_bytes().is_some_and(|budget_bytes| bytes > budget_bytes);
        let mut measured = self.measured.lock();
        let before = measured.get(name).filter(|before| before.weights_bytes == weights_bytes);
        let n_over = if is_over { before.map_or(0, |before| before.n_over) + 1 } else { 0 };
        measured.insert(name.clone(), Measured { bytes, weights_bytes, n_over, at: Instant::now() });
    }

    /// Forgets a model: another one may get its name.
    pub(super) fn forget(&self, name: &ModelName) {
        if self.measured.lock().remove(name).is_some() {
            gauge!(telemetry::MODEL_MEMORY, "model" => name.to_string()).set(0.0);
        }
    }

    /// Whether a model fits beside what is in use: by what was measured of weights of that size, or else by what is
    /// expected. A measurement by which it would never fit again, beside what is in use without any model, is made anew
    /// where the expectation fits: the process may have grown by something else meanwhile. It drives nobody out for that, or
    /// it would each time that somebody asks, and is not loaded for that at each retry. A doubtful measurement counts as none,
    /// so that others may go once for the next one.
    pub(super) fn check(&self, name: &ModelName, expected: Expected, others: Others) -> Result<(), DoesNotFit> {
        let Some(budget_bytes) = self.budget_bytes() else { return Ok(()) };
        let measured = self.measured.lock().get(name).copied();
        let counts = |measured: &Measured| measured.weights_bytes == expected.weights_bytes && !measured.is_doubtful();
        let measured = measured.filter(counts);
        let needed_bytes = measured.map_or(expected.bytes, |measured| measured.bytes);
        let may_be_made_anew = measured.is_some_and(|measured| measured.may_be_made_anew());
        let look = || {
            let beside_bytes = self.beside_bytes(others);
            // Those that are loaded may not have all in memory yet that they will take.
            let kept_bytes = beside_bytes.saturating_add(self.momentary_bytes()).saturating_add(others.bytes);
            let used_bytes = self.used_bytes().max(kept_bytes);
            let never_fits = needed_bytes.saturating_add(beside_bytes) > budget_bytes;
            let tried_bytes = if never_fits && may_be_made_anew { expected.bytes } else { needed_bytes };
            (used_bytes.saturating_add(tried_bytes) <= budget_bytes, used_bytes)
        };
        if look().0 {
            return Ok(());
        }
        // What the allocator keeps of requests that have ended is no model's.
        give_back();
        let (fits, used_bytes) = look();
        if fits {
            return Ok(());
        }
        let (is_estimate, others_stay) = (measured.is_none(), others.n_staying > 0);
        Err(DoesNotFit { needed_bytes, is_estimate, used_bytes, budget_bytes, others_stay, is_doubtful: false })
    }

    /// Whether what a model took when it was last loaded is to be measured once more before it counts.
    pub(super) fn is_doubtful(&self, name: &ModelName) -> bool {
        self.measured.lock().get(name).is_some_and(Measured::is_doubtful)
    }

    /// Whether models take more than they may at first sight: the allocator may keep some of it of requests.
    pub(super) fn seems_exceeded(&self) -> bool {
        self.budget_bytes().is_some_and(|budget_bytes| self.used_bytes() > budget_bytes)
    }

    /// Whether models take more than they may, after what the allocator keeps of requests was given back.
    pub(super) fn is_exceeded(&self) -> bool {
        if !self.seems_exceeded() {
            return false;
        }
        give_back();
        self.seems_exceeded()
    }
}

/// What these say together that they take.
fn sum_of(others: &RwLock<Vec<Other>>) -> u64 {
    others.read().iter().fold(0_u64, |sum, other| sum.saturating_add(other()))
}

/// Gives back what is kept of requests and models that have ended. Takes its time.
pub(super) fn give_back() {
    run_memory::give_back();
    allocator::give_back();
}

/// A loaded model that could be unloaded to make room.
#[derive(Clone, Debug)]
pub(super) struct Candidate<T> {
    pub(super) model: T,
    /// Whether requests hold it or wait for it: it goes when they have ended.
    pub(super) is_busy: bool,
    /// Whether requests that name no model use it.
    pub(super) is_active: bool,
    /// Whether grains have vectors of it.
    pub(super) holds_grains: bool,
    /// When a request last had it.
    pub(super) last_used: Instant,
}

/// Which model goes first: an idle one before a busy one, then one that no grain and no unnamed request needs, then the
/// one that was not used for longest.
pub(super) fn first_to_go<T>(candidates: Vec<Candidate<T>>) -> Option<T> {
    let order = |c: &Candidate<T>| (c.is_busy, c.holds_grains, c.is_active, c.last_used);
    candidates.into_iter().min_by_key(order).map(|candidate| candidate.model)
}

/// The resident set of this process; 0 where the system does not say.
pub(super) fn resident_bytes() -> u64 {
    let status = fs_err::read_to_string("/proc/self/status").unwrap_or_default();
    bytes_of(&status, "VmRSS").unwrap_or_default()
}

#[cfg(test)]
mod tests;
