//! Models that come and go while the server runs.

use std::path::{Component, Path};
use std::sync::Arc;

use super::catalog::{add_hub_alias, new_model};
use super::entry::Entry;
use super::error::{LoadError, ModelError};
use super::files;
use super::manager::MultiModelManager;
use super::spaces::GrainsOf;
use super::status::ModelStatus;
use crate::config::AdditionalModel;
use crate::domain::{ModelName, ModelOrigin};
use crate::shutdown::blocking;
use crate::telemetry::with_causes;

/// As much of a path as an error repeats.
const MAX_SHOWN_PATH_CHARS: usize = 256;

/// What to do with grains that need a model which is to be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeededGrains {
    /// Refuse to delete it.
    Protect,
    /// Delete it: they can be found by words only, until it is registered again and loaded.
    Strand,
}

impl MultiModelManager {
    /// Adds a model to the catalog, in this run and later ones. It is loaded by the first request that names it.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] for an entry that makes no model or leads out of the models directory,
    /// [`ModelError::Conflict`] when a word of it already means a model.
    pub async fn register(&self, entry: AdditionalModel) -> Result<ModelStatus, ModelError> {
        if !self.takes_registrations {
            return Err(ModelError::Conflict(
                "`ai.multi_model_enabled` is false: this server knows its one model only".to_owned(),
            ));
        }
        let manager = self.clone();
        self.shutdown.finish("register", async move { manager.register_in_turn(entry).await }).await
    }

    async fn register_in_turn(&self, entry: AdditionalModel) -> Result<ModelStatus, ModelError> {
        let _turn = self.turn_to_change().await;
        if let Some(sentence) = entry.refusal() {
            return Err(ModelError::Invalid(sentence));
        }
        if entry.auto_load {
            let sentence =
                "`auto_load` is for the configuration, whose models may stop the start; load this one by hand";
            return Err(ModelError::Invalid(sentence.to_owned()));
        }
        for (field, path) in [("path", &entry.path), ("tokenizer", &entry.tokenizer)] {
            if let Some(path) = path {
                self.check_inside(field, path)?;
            }
        }
        let sentence = "`path` and `repository` are missing: say with one of them where the files are";
        let info = new_model(&entry, &self.models_dir, ModelOrigin::Registered);
        let mut info = info.ok_or_else(|| ModelError::Invalid(sentence.to_owned()))?;
        for word in info.words() {
            if let Ok(taken_by) = self.resolve(Some(word)) {
                return Err(ModelError::Conflict(format!("`{word}` already means the model `{taken_by}`")));
            }
        }
        add_hub_alias(&mut info, |word| self.resolve(Some(word)).is_ok());
        let (read, hub) = (info.clone(), self.loader.hub.clone());
        match blocking(move || files::read(&read, &hub)).await {
            Ok(_) | Err(LoadError::NotDownloaded(_)) => {}
            Err(error) => return Err(ModelError::Invalid(with_causes(&error))),
        }
        self.ledger.record_registration(&entry).await?;
        let entry = Arc::new(Entry::new(info));
        let name = entry.info.name.clone();
        self.entries.write().insert(name.clone(), Arc::clone(&entry));
        self.order.write().push(name.clone());
        tracing::info!(model = %name, "a model was registered");
        Ok(entry.status())
    }

    /// A caller over HTTP may name files of the models directory, and no others.
    fn check_inside(&self, field: &str, path: &Path) -> Result<(), ModelError> {
        let escapes = || {
            ModelError::Invalid(format!(
                "`{field}` must stay inside the models directory: give a path relative to it, without `..` and without \
                 links that lead out"
            ))
        };
        if !path.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(escapes());
        }
        let missing = |_| {
            // A caller's megabyte must not come back in the error and the log.
            let shown: String = path.to_string_lossy().chars().take(MAX_SHOWN_PATH_CHARS).collect();
            ModelError::Invalid(format!("`{field}`: there is no `{shown}` in the models directory"))
        };
        let real = fs_err::canonicalize(self.models_dir.join(path)).map_err(missing)?;
        let inside = fs_err::canonicalize(&self.models_dir).is_ok_and(|models_dir| real.starts_with(models_dir));
        if inside { Ok(()) } else { Err(escapes()) }
    }

    /// Takes a registered model out of the catalog and of memory. Its files stay.
    ///
    /// # Errors
    /// [`ModelError::NotFound`], [`ModelError::Conflict`] when it was not registered over HTTP, is active, or grains need
    /// it or are to be moved to it; [`ModelError::Stuck`].
    pub async fn delete(&self, name: &ModelName, grains: NeededGrains) -> Result<(), ModelError> {
        let entry = self.entry(name)?;
        let manager = self.clone();
        self.shutdown.finish("delete", async move { manager.delete_in_turn(&entry, grains).await }).await
    }

    async fn delete_in_turn(&self, entry: &Arc<Entry>, grains: NeededGrains) -> Result<(), ModelError> {
        let _turn = self.turn_to_change().await;
        let name = &entry.info.name;
        if entry.info.origin != ModelOrigin::Registered {
            return Err(ModelError::Conflict(format!(
                "`{name}` is built in or in the configuration; only models registered with `POST /models` can be deleted"
            )));
        }
        if self.active() == *name {
            return Err(ModelError::Conflict(format!(
                "`{name}` is the active model: make another one active first, with `PUT /models/active`"
            )));
        }
        entry.check_unload()?;
        if grains == NeededGrains::Protect {
            self.check_unneeded(&entry.status()).await?;
        }
        let _record_turn = self.turn_to_record(entry).await?;
        self.ledger.forget_registration(name).await?;
        self.take_out(entry);
        self.memory.forget(name);
        self.callers.forget(name);
        self.order.write().retain(|known| known != name);
        entry.delete();
        tracing::info!(model = %name, "a registered model was deleted");
        // Nobody finds it any more: what is left of it ends with its last request.
        let manager = self.clone();
        let entry = Arc::clone(entry);
        self.shutdown.spawn("unload", async move { manager.unload_entry(&entry).await });
        Ok(())
    }

    /// Refuses a model that grains have vectors of, or are to have.
    async fn check_unneeded(&self, model: &ModelStatus) -> Result<(), ModelError> {
        let name = &model.info.name;
        let by_force = "or delete it all the same, with `?force=true`, which is `--force` on the command line";
        let sentence = match self.grains_of(model).await? {
            GrainsOf { n_grains: 0, .. } => match self.ledger.open_job_of(name).await? {
                None => return Ok(()),
                Some(id) => format!(
                    "the re-embedding {id} is to move grains to `{name}`: cancel it first (`POST \
                     /reembeddings/{id}/cancel`, `granary reembed cancel`), {by_force}"
                ),
            },
            GrainsOf { n_grains, n_served: 0 } => format!(
                "{n_grains} grains have vectors of `{name}`, as a re-embedding makes them and leaves them for the way \
                 back, though all are served by others: cancel that job if it goes on (`POST \
                 /reembeddings/{{id}}/cancel`), then purge it (`POST /reembeddings/{{id}}/purge`, `granary reembed \
                 purge`), {by_force}"
            ),
            GrainsOf { n_served, .. } => format!(
                "{n_served} grains have vectors of `{name}` and could be found by words only: re-embed them first, \
                 {by_force}"
            ),
        };
        Err(ModelError::Conflict(sentence))
    }

    /// Takes a model out of the catalog. Whoever needs its memory still finds it, until it is seen to be unloaded.
    fn take_out(&self, entry: &Arc<Entry>) {
        // Under both locks: it is always in one of them, and never in both.
        let mut entries = self.entries.write();
        self.leaving.write().push(Arc::clone(entry));
        entries.remove(&entry.info.name);
    }
}
