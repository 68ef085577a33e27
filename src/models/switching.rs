//! Changing the active model: loaded first, recorded, then the pointer moves.

use std::sync::Arc;
use std::time::Instant;

use futures::future::BoxFuture;

use super::callers::RecentCaller;
use super::entry::{Eagerness, Entry};
use super::error::ModelError;
use super::hardware::Selection;
use super::ledger::LedgerError;
use super::manager::MultiModelManager;
use super::starting;
use crate::domain::{Caller, ModelName, SpaceId};
use crate::shutdown::blocking;

/// What a change of the active model did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switch {
    /// The model that was active before; the same one when nothing changed.
    pub previous: ModelName,
    /// The space of the model that is active now.
    pub space: SpaceId,
    /// Who used the previous model lately: if they name no model, they get vectors of another space now.
    pub recent_callers: Vec<RecentCaller>,
}

impl MultiModelManager {
    /// Makes a model the one used by requests that name none. It is loaded first and recorded before the pointer moves.
    /// Goes on when the caller leaves, so that the record and the pointer cannot part.
    ///
    /// # Errors
    /// As [`Self::load_model`], or [`ModelError::Ledger`]; the active model stays what it was.
    pub async fn set_active(&self, name: &ModelName) -> Result<Switch, ModelError> {
        let record = self.recorded_alone(&self.entry(name)?);
        let (switch, ()) = self.set_active_with(name, record).await?;
        Ok(switch)
    }

    /// As [`Self::set_active`], if `replaced` is the active model once no change of it is under way. `None` when another is:
    /// then nothing has changed.
    ///
    /// # Errors
    /// As [`Self::set_active`].
    pub async fn set_active_if(&self, name: &ModelName, replaced: &ModelName) -> Result<Option<Switch>, ModelError> {
        let (manager, name, replaced) = (self.clone(), name.clone(), replaced.clone());
        let work = async move {
            let _turn = manager.turn_to_change().await;
            if manager.active() != replaced {
                return Ok(None);
            }
            let entry = manager.entry(&name)?;
            let (switch, ()) = manager.switch_in_turn(&entry, manager.recorded_alone(&entry)).await?;
            Ok(Some(switch))
        };
        self.shutdown.finish("switch", work).await
    }

    /// Records a change of the active model that nothing follows from.
    fn recorded_alone(
        &self,
        entry: &Arc<Entry>,
    ) -> impl FnOnce(ModelName) -> BoxFuture<'static, Result<(), ModelError>> + Send + 'static + use<> {
        let (ledger, entry) = (Arc::clone(&self.ledger), Arc::clone(entry));
        move |_: ModelName| -> BoxFuture<'static, Result<(), ModelError>> {
            Box::pin(async move { Ok(ledger.record_active_model(&entry.info.name).await?) })
        }
    }

    /// Since when the active model is that, as far as it is recorded: in seconds since 1970.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn active_since(&self) -> Result<Option<i64>, LedgerError> {
        self.ledger.active_since().await
    }

    /// As [`Self::set_active`], for a caller who records the change together with what follows from it. `record` is
    /// told which model is active so far, and may wait for no other change of models: that one waits for this.
    ///
    /// # Errors
    /// As [`Self::set_active`], and what `record` answers; the active model stays what it was.
    pub async fn set_active_with<T, E>(
        &self,
        name: &ModelName,
        record: impl FnOnce(ModelName) -> BoxFuture<'static, Result<T, E>> + Send + 'static,
    ) -> Result<(Switch, T), E>
    where
        T: Send + 'static,
        E: From<ModelError> + Send + 'static,
    {
        let entry = self.entry(name)?;
        let manager = self.clone();
        self.shutdown.finish("switch", async move { manager.switch_to(&entry, record).await }).await
    }

    /// Looks at this machine, and ranks the models by how well they suit it.
    ///
    /// # Panics
    /// Never, unless the look itself does.
    pub async fn survey(&self) -> Selection {
        let (selector, models) = (self.selector.clone(), self.list());
        let disabled = models.iter().filter(|status| status.disabled).map(|status| status.info.name.clone());
        let disabled: Vec<ModelName> = disabled.collect();
        blocking(move || selector.survey(models.iter().map(|status| status.info.as_ref()), &disabled)).await
    }

    /// The model that suits this machine best, of those that the operator has not disabled. Changes nothing.
    ///
    /// # Errors
    /// [`ModelError::Disabled`] when all are.
    pub async fn auto_select(&self) -> Result<ModelName, ModelError> {
        let selection = self.survey().await;
        // There are always models, and the active one is one of them.
        let Some(best) = selection.best() else { return Err(ModelError::Disabled { name: self.active() }) };
        starting::announce(best);
        Ok(best.model.clone())
    }

    /// The model that a change of the active one means: as [`Self::resolve`], or by [`Self::auto_select`] for `auto`.
    ///
    /// # Errors
    /// [`ModelError::NotFound`], or as [`Self::auto_select`].
    pub async fn choose(&self, word: &str) -> Result<ModelName, ModelError> {
        if word.eq_ignore_ascii_case("auto") { self.auto_select().await } else { self.resolve(Some(word)) }
    }

    async fn switch_to<T, E: From<ModelError>>(
        &self,
        entry: &Arc<Entry>,
        record: impl FnOnce(ModelName) -> BoxFuture<'static, Result<T, E>>,
    ) -> Result<(Switch, T), E> {
        let _turn = self.turn_to_change().await;
        self.switch_in_turn(entry, record).await
    }

    /// As [`Self::switch_to`], by whoever holds the turn.
    async fn switch_in_turn<T, E: From<ModelError>>(
        &self,
        entry: &Arc<Entry>,
        record: impl FnOnce(ModelName) -> BoxFuture<'static, Result<T, E>>,
    ) -> Result<(Switch, T), E> {
        self.enable(entry).await?;
        // Held until the pointer has moved: an unload in between would send the first request back to loading.
        let lease = self.lease_entry(entry, Eagerness::ByHand).await?;
        let recorded = record(self.active()).await?;
        let previous = std::mem::replace(&mut *self.active.write(), entry.info.name.clone());
        tracing::info!(%previous, active = %entry.info.name, "the active model was set");
        let switch = Switch {
            space: lease.facts().fingerprint.space(),
            recent_callers: self.callers.recent(&previous, Instant::now()),
            previous,
        };
        Ok((switch, recorded))
    }

    /// Notes that a model has answered a caller.
    pub fn note_caller(&self, model: &ModelName, caller: Caller) {
        // Who still had a deleted model is none of the next one's of its name.
        if self.entries.read().contains_key(model) {
            self.callers.note(model, caller, Instant::now());
        }
    }
}
