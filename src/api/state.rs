//! What every handler can reach.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::access::Access;
use super::answer_memory::AnswerMemory;
use super::body_memory::BodyMemory;
use super::error::{ApiError, Code};
use super::forwarded::Proxies;
use super::guard::HostGuard;
use super::timeouts::Timeouts;
use crate::change::Reembeddings;
use crate::change::compare::Comparisons;
use crate::grains::Grains;
use crate::models::{Ledger, MultiModelManager};

/// Shared by all handlers. Cheap to clone, which every layer does several times for each request.
#[derive(Clone)]
pub struct AppState(Arc<Shared>);

impl From<Shared> for AppState {
    fn from(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }
}

impl Deref for AppState {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// What [`AppState`] shares.
pub struct Shared {
    /// The models.
    pub models: MultiModelManager,
    /// The grains, and the jobs on them; `None` on a server that keeps none.
    pub keeping: Option<Keeping>,
    /// Comparisons of models on them, since the server started.
    pub comparisons: Comparisons,
    /// Whether the database answers, for readiness.
    pub ledger: Arc<dyn Ledger>,
    /// What a request may cost.
    pub limits: Limits,
    /// How long a request may take.
    pub timeouts: Timeouts,
    /// Places for requests that are answered at the same time.
    pub places: Arc<Semaphore>,
    /// Memory for their bodies.
    pub body_memory: Arc<BodyMemory>,
    /// Memory for answers that are made and not yet sent.
    pub answer_memory: Arc<AnswerMemory>,
    /// What `/info` says of the engine.
    pub engine: EngineFacts,
    /// Who may do what.
    pub access: Access,
    /// Which hosts and pages may be served without keys.
    pub guard: HostGuard,
    /// Which proxies are believed.
    pub proxies: Proxies,
    /// Cancelled when the server is about to stop, and others should be asked.
    pub leaving: CancellationToken,
    /// Cancelled when the server gives up what runs, requests included.
    pub given_up: CancellationToken,
    /// The metrics of the process.
    pub metrics: PrometheusHandle,
    /// When the process started, in Unix seconds.
    pub started_at: u64,
}

/// What a server has that keeps grains.
pub struct Keeping {
    /// The grains.
    pub grains: Grains,
    /// The jobs that give them vectors in another space.
    pub reembeddings: Reembeddings,
}

impl Shared {
    /// The grains, and the jobs on them.
    ///
    /// # Errors
    /// On a server that keeps none.
    pub fn keeping(&self) -> Result<&Keeping, ApiError> {
        let sentence = "this server keeps no grains: `grains.enabled` is false in its configuration";
        self.keeping.as_ref().ok_or_else(|| ApiError::new(Code::StoreUnavailable, sentence).never_retry())
    }
}

/// What a request may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a body.
    pub max_body: ByteSize,
    /// Inputs of a request.
    pub max_inputs: usize,
    /// Bytes of one of them.
    pub max_text: ByteSize,
    /// Requests at once.
    pub max_concurrent_requests: usize,
    /// Time that each piece of its body may take.
    pub body_timeout: Duration,
    /// Whether over-long texts are cut when a request does not say.
    pub auto_truncate: bool,
}

impl Limits {
    /// Refuses a text that is too large to be looked at. `place` says where it stands in the request.
    ///
    /// # Errors
    /// With the code of texts that are too long.
    pub fn check_text(&self, text: &str, place: impl FnOnce() -> String) -> Result<(), ApiError> {
        if text.len() as u64 <= self.max_text.as_u64() {
            return Ok(());
        }
        let place = place();
        let message = format!(
            "`{place}` has {} bytes; a text takes {}. Send it in parts, or raise `server.max_text`",
            text.len(),
            self.max_text.as_u64()
        );
        Err(ApiError::new(Code::InputTooLong, message).with_param(place))
    }
}

/// Settings of the engine that TEI's clients ask for.
#[derive(Clone, Copy, Debug)]
pub struct EngineFacts {
    /// Padded tokens in a batch.
    pub max_batch_tokens: usize,
    /// Texts in a batch.
    pub max_batch_texts: usize,
    /// Tokens of a request.
    pub max_request_tokens: usize,
    /// Cores this process may use.
    pub cores: usize,
}
