//! One model of the catalog and its state, changed only along the transition table.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::error::ModelError;
use super::health::{Ailment, Health};
use super::hub::Progress;
use super::lifecycle::{Failure, FailureKind, IllegalMove, Phase};
use super::loaded::{Lease, LoadedModel};
use super::probe::PROBE_EVERY;
use super::status::ModelStatus;
use crate::domain::{ModelInfo, ModelSource};
use crate::telemetry;

/// A model that the server knows.
pub(super) struct Entry {
    pub(super) info: Arc<ModelInfo>,
    state: watch::Sender<State>,
    /// Whether requests may not load it.
    is_disabled: AtomicBool,
    /// Whether it has left the catalog: who still holds the entry must not load it.
    is_deleted: AtomicBool,
    /// Requests that wait for it.
    n_waiting: AtomicUsize,
}

enum State {
    Unloaded,
    Downloading {
        progress: Option<Progress>,
        cancel: CancellationToken,
        /// Why the load before this one failed.
        failure: Option<Failure>,
    },
    Loading {
        /// Why the load before this one failed.
        failure: Option<Failure>,
    },
    Ready(Arc<LoadedModel>),
    /// What is seen of it meanwhile is kept here: a model whose inference does not end stays for good.
    Draining(Arc<Health>),
    Failed(Failure),
}

/// What a caller who wants the model is to do next.
pub(super) enum Next {
    /// Use it.
    Use(Lease),
    /// Load it: the caller has claimed the load, and must end it with [`Entry::finish_load`] or
    /// [`Entry::give_up_load`].
    Load,
    /// Wait for its state to change.
    Wait,
    /// Give up: the last load failed not long ago, or it cannot be unloaded first.
    GiveUp(Failure),
    /// Give up: the operator has disabled it.
    Disabled,
    /// Give up: it was deleted.
    Deleted,
}

/// What a caller who wants the model gone is to do next.
pub(super) enum NextUnload {
    /// Drain it: the caller has claimed that, and must end it with [`Entry::finish_drain`].
    Drain(Arc<LoadedModel>),
    /// Wait for its state to change.
    Wait,
    /// Wait for its download to be given up: the caller has called it off.
    GiveUp,
    /// Nothing: it is not in memory.
    Done,
}

/// How eager a caller is to have the model.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Eagerness {
    /// A request: a failed load cools down first.
    Request,
    /// An operator's word: tried at once.
    ByHand,
}

impl Entry {
    pub(super) fn new(info: ModelInfo) -> Self {
        let entry = Self {
            info: Arc::new(info),
            state: watch::Sender::new(State::Unloaded),
            is_disabled: AtomicBool::new(false),
            is_deleted: AtomicBool::new(false),
            n_waiting: AtomicUsize::new(0),
        };
        entry.record(Some(&State::Unloaded));
        entry
    }

    /// Says whether requests may load it; who waits for it learns of the change.
    pub(super) fn set_disabled(&self, is_disabled: bool) {
        self.state.send_modify(|_| self.is_disabled.store(is_disabled, Ordering::SeqCst));
    }

    /// Takes it out of reach for good; who waits for it learns of that. The metrics show nothing more of it, for its name may
    /// be another model's from here on.
    pub(super) fn delete(&self) {
        self.state.send_modify(|_| {
            self.record(None);
            self.is_deleted.store(true, Ordering::SeqCst);
        });
    }

    /// Whether it has left the catalog.
    pub(super) fn is_deleted(&self) -> bool {
        self.is_deleted.load(Ordering::SeqCst)
    }

    /// Whether it was deleted and is out of memory: nobody can load it any more.
    pub(super) fn has_gone(&self) -> bool {
        self.is_deleted() && matches!(self.status().phase, Phase::Unloaded | Phase::Failed)
    }

    /// Whether it stays when others need room. One that was deleted goes all the same.
    pub(super) fn is_pinned(&self) -> bool {
        self.info.pinned && !self.is_deleted()
    }

    /// Counts the caller among those who wait for the model, until the guard is dropped.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.n_waiting.fetch_add(1, Ordering::SeqCst);
        Waiting(&self.n_waiting)
    }

    /// Whether requests wait for it.
    pub(super) fn is_waited_for(&self) -> bool {
        self.n_waiting.load(Ordering::SeqCst) > 0
    }

    /// The loaded model, for whoever is no request and does not count as use.
    pub(super) fn loaded(&self) -> Option<Arc<LoadedModel>> {
        match &*self.state.borrow() {
            State::Ready(model) => Some(Arc::clone(model)),
            _ => None,
        }
    }

    /// What looks at it have found, as long as it is in memory.
    pub(super) fn health(&self) -> Option<Arc<Health>> {
        self.state.borrow().health().cloned()
    }

    /// Whether it is in memory for good: an inference does not end.
    pub(super) fn is_stuck(&self) -> bool {
        self.state.borrow().health().is_some_and(|health| health.is_stuck())
    }

    /// Waits until a look finds that an inference does not end, and so a drain neither.
    pub(super) async fn found_stuck(&self) {
        loop {
            let mut changes = self.watch();
            if self.is_stuck() {
                return;
            }
            changes.next().await;
        }
    }

    /// Refuses what would unload it while that is impossible.
    ///
    /// # Errors
    /// [`ModelError::Stuck`] with the way out.
    pub(super) fn check_unload(&self) -> Result<(), ModelError> {
        self.health().map_or(Ok(()), |health| health.check_unload(&self.info.name))
    }

    pub(super) fn status(&self) -> ModelStatus {
        let state = self.state.borrow();
        let model = if let State::Ready(model) = &*state { Some(model) } else { None };
        let download = if let State::Downloading { progress, .. } = &*state { progress.clone() } else { None };
        ModelStatus {
            info: Arc::clone(&self.info),
            phase: state.phase(),
            download,
            failure: state.failure().cloned(),
            loaded: model.map(|model| Arc::clone(&model.facts)),
            ailment: state.health().and_then(|health| health.ailment()),
            standing: model.map(|model| model.standing.read().clone()),
            disabled: self.is_disabled.load(Ordering::SeqCst),
        }
    }

    /// Notes the state as seen: the next change wakes the receiver.
    pub(super) fn watch(&self) -> Changes {
        Changes(self.state.subscribe())
    }

    /// Leases the model, or says what must come first. A claimed load is the caller's alone. `since` is when the caller
    /// began to wait.
    pub(super) fn lease_or_claim_load(&self, eagerness: Eagerness, since: Instant, now: Instant) -> Next {
        // Under the lock that all share: most find the model ready, and only a claim changes the state.
        let mut next = self.next(&self.state.borrow(), eagerness, since, now);
        if !matches!(next, Next::Load) {
            return next;
        }
        self.state.send_if_modified(|state| {
            next = self.next(state, eagerness, since, now);
            let claimed = matches!(next, Next::Load);
            if claimed {
                let failure = state.failure().cloned();
                let claim = match &self.info.source {
                    ModelSource::Hub(_) => {
                        State::Downloading { progress: None, cancel: CancellationToken::new(), failure }
                    }
                    ModelSource::Folder(_) | ModelSource::File { .. } => State::Loading { failure },
                };
                self.enter(state, claim);
            }
            claimed
        });
        next
    }

    /// What a caller is to do in this state. Under the state's lock: a lease is taken before a drain is claimed, or not.
    fn next(&self, state: &State, eagerness: Eagerness, since: Instant, now: Instant) -> Next {
        let is_request = eagerness == Eagerness::Request;
        match state {
            _ if self.is_deleted() => Next::Deleted,
            _ if is_request && self.is_disabled.load(Ordering::SeqCst) => Next::Disabled,
            State::Ready(model) => Next::Use(Lease::of(model)),
            State::Draining(health) if health.is_stuck() => Next::GiveUp(endless_drain(health, now)),
            State::Downloading { .. } | State::Loading { .. } | State::Draining(_) => Next::Wait,
            State::Failed(failure) if is_request && (failure.retry_at > now || failure.failed_at >= since) => {
                Next::GiveUp(failure.clone())
            }
            State::Unloaded | State::Failed(_) => Next::Load,
        }
    }

    /// Ends the pause after a failed load.
    pub(super) fn end_pause(&self, now: Instant) {
        self.state.send_if_modified(|state| {
            let State::Failed(failure) = state else { return false };
            failure.retry_at = failure.retry_at.min(now);
            true
        });
    }

    /// What calls a claimed download off; `None` when none is under way.
    pub(super) fn download_cancel(&self) -> Option<CancellationToken> {
        match &*self.state.borrow() {
            State::Downloading { cancel, .. } => Some(cancel.clone()),
            _ => None,
        }
    }

    /// Tells who follows the model how far a claimed download is.
    pub(super) fn show_download(&self, shown: Progress) {
        self.state.send_if_modified(|state| match state {
            State::Downloading { progress, .. } => {
                *progress = Some(shown);
                true
            }
            _ => false,
        });
    }

    /// Ends a claimed download whose files are there: the claim goes on as a load, unless the download was called off before
    /// it ended. Says whether it goes on.
    ///
    /// # Errors
    /// When none was under way.
    pub(super) fn finish_download(&self) -> Result<bool, IllegalMove> {
        let mut goes_on = Ok(false);
        // Under the state's lock: who calls it off a moment later finds a load, and waits for that.
        self.state.send_if_modified(|state| {
            let is_called_off = matches!(state, State::Downloading { cancel, .. } if cancel.is_cancelled());
            let to = if is_called_off { State::Unloaded } else { State::Loading { failure: state.failure().cloned() } };
            goes_on = state.phase().check_move(to.phase()).map(|()| !is_called_off);
            if goes_on.is_ok() {
                self.enter(state, to);
            }
            goes_on.is_ok()
        });
        goes_on
    }

    /// Ends a claimed load of a model that nobody is to have: its download was called off, or it was deleted.
    ///
    /// # Errors
    /// When it is ready.
    pub(super) fn give_up_load(&self) -> Result<(), IllegalMove> {
        self.move_to(State::Unloaded)
    }

    /// Ends a claimed load.
    ///
    /// # Errors
    /// When no load was under way.
    pub(super) fn finish_load(&self, result: Result<LoadedModel, Failure>) -> Result<(), IllegalMove> {
        self.move_to(match result {
            Ok(model) => {
                model.mark_used();
                State::Ready(Arc::new(model))
            }
            Err(failure) => State::Failed(failure),
        })
    }

    /// Keeps what is wrong with the model, if anything is, and shows it in the metrics. Returns what was known before.
    pub(super) fn note_ailment(&self, health: &Arc<Health>, seen: Option<&Ailment>) -> Option<Ailment> {
        let mut before = None;
        // Under the state's lock: what is seen of a model that is going must not be shown once it has gone.
        self.state.send_if_modified(|state| {
            before = health.note(seen.cloned());
            let is_here = state.health().is_some_and(|current| Arc::ptr_eq(current, health));
            if is_here {
                self.record_ailing(Some(&*state));
            }
            // Who waits for a batch must learn that it does not end, and nobody that it has still not ended.
            is_here && before.as_ref() != seen
        });
        before
    }

    /// Takes the model out of use, or says what must come first.
    pub(super) fn claim_drain(&self) -> NextUnload {
        self.claim_drain_unless(|_| false)
    }

    /// The same, but of no model that a request has leased since it was looked at.
    pub(super) fn claim_drain_of_idle(&self) -> NextUnload {
        self.claim_drain_unless(|model| !model.leases.is_empty())
    }

    fn claim_drain_unless(&self, stays: impl Fn(&LoadedModel) -> bool) -> NextUnload {
        let mut next = NextUnload::Wait;
        self.state.send_if_modified(|state| {
            next = match state {
                State::Ready(model) if stays(model) => NextUnload::Wait,
                State::Ready(model) => NextUnload::Drain(Arc::clone(model)),
                State::Downloading { cancel, .. } => {
                    cancel.cancel();
                    NextUnload::GiveUp
                }
                State::Loading { .. } | State::Draining(_) => NextUnload::Wait,
                State::Unloaded | State::Failed(_) => NextUnload::Done,
            };
            match (&next, &state) {
                (NextUnload::Drain(model), _) => self.enter(state, State::Draining(Arc::clone(&model.health))),
                (_, State::Failed(_)) => self.enter(state, State::Unloaded),
                _ => return false,
            }
            true
        });
        next
    }

    /// Ends a claimed drain.
    ///
    /// # Errors
    /// When none was under way.
    pub(super) fn finish_drain(&self) -> Result<(), IllegalMove> {
        self.move_to(State::Unloaded)
    }

    /// Changes the state and shows it in the metrics, both under the state's lock: nobody who waits for the change is
    /// ahead of the metrics, and two changes are shown in their order.
    fn enter(&self, state: &mut State, to: State) {
        *state = to;
        self.record(Some(&*state));
    }

    /// Shows the state in the metrics, or that there is none any more. What is deleted shows nothing.
    fn record(&self, state: Option<&State>) {
        if self.is_deleted() {
            return;
        }
        self.record_ailing(state);
        let current = state.map(State::phase);
        for phase in Phase::ALL {
            let label = self.info.name.to_string();
            let is_current = f64::from(u8::from(current == Some(phase)));
            metrics::gauge!(telemetry::MODEL_STATE, "model" => label, "state" => phase.as_str()).set(is_current);
        }
    }

    fn record_ailing(&self, state: Option<&State>) {
        if self.is_deleted() {
            return;
        }
        let is_ailing = state.and_then(State::health).is_some_and(|health| health.is_ailing());
        let shown = f64::from(u8::from(is_ailing));
        metrics::gauge!(telemetry::MODEL_AILING, "model" => self.info.name.to_string()).set(shown);
    }

    fn move_to(&self, to: State) -> Result<(), IllegalMove> {
        let mut moved = Ok(());
        self.state.send_if_modified(|state| {
            moved = state.phase().check_move(to.phase());
            if moved.is_ok() {
                self.enter(state, to);
            }
            moved.is_ok()
        });
        moved
    }
}

/// Why a model cannot be had whose drain does not end.
fn endless_drain(health: &Health, now: Instant) -> Failure {
    Failure {
        reason: health.ailment().map(|ailment| ailment.reason).unwrap_or_default(),
        kind: FailureKind::Model,
        failed_at: now,
        retry_at: now + PROBE_EVERY,
        permanent: false,
    }
}

/// A caller who waits for a model.
pub(super) struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Wakes when a model's state changes.
pub(super) struct Changes(watch::Receiver<State>);

impl Changes {
    /// Waits for the next change.
    pub(super) async fn next(&mut self) {
        // The sender lives in the entry that the waiter holds.
        let _ = self.0.changed().await;
    }
}

impl State {
    fn phase(&self) -> Phase {
        match self {
            Self::Unloaded => Phase::Unloaded,
            Self::Downloading { .. } => Phase::Downloading,
            Self::Loading { .. } => Phase::Loading,
            Self::Ready(_) => Phase::Ready,
            Self::Draining(_) => Phase::Draining,
            Self::Failed(_) => Phase::Failed,
        }
    }

    /// Why the last load that has ended failed, if it did.
    fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failed(failure) => Some(failure),
            Self::Downloading { failure, .. } | Self::Loading { failure } => failure.as_ref(),
            Self::Unloaded | Self::Ready(_) | Self::Draining(_) => None,
        }
    }

    /// What looks at the model have found, as long as it is in memory.
    fn health(&self) -> Option<&Arc<Health>> {
        match self {
            Self::Ready(model) => Some(&model.health),
            Self::Draining(health) => Some(health),
            Self::Unloaded | Self::Downloading { .. } | Self::Loading { .. } | Self::Failed(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
