//! Watching a model's way to a state that lasts.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::entry::{Changes, Entry};
use super::error::ModelError;
use super::manager::MultiModelManager;
use super::status::ModelStatus;
use crate::domain::ModelName;

/// A model's states: the one it is in, then each that follows, to one that lasts. States that pass quickly may be left
/// out.
pub struct Following {
    entry: Arc<Entry>,
    changes: Changes,
    before: Option<ModelStatus>,
    soft: CancellationToken,
}

impl Following {
    /// The next state; `None` when the last one lasts, the model was deleted, or the server stops.
    pub async fn next(&mut self) -> Option<ModelStatus> {
        if let Some(before) = &self.before {
            if before.phase.lasts() {
                return None;
            }
            self.soft.run_until_cancelled(self.changes.next()).await?;
        }
        let status = (!self.entry.is_deleted()).then(|| self.entry.status());
        self.before.clone_from(&status);
        status
    }
}

impl MultiModelManager {
    /// Follows a model.
    ///
    /// # Errors
    /// [`ModelError::NotFound`].
    pub fn follow(&self, name: &ModelName) -> Result<Following, ModelError> {
        let entry = self.entry(name)?;
        let changes = entry.watch();
        Ok(Following { entry, changes, before: None, soft: self.shutdown.soft().clone() })
    }
}
