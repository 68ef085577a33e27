//! Watching a model's life from outside.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::entry::{Changes, Entry, ModelStatus};
use super::error::ModelError;
use super::manager::MultiModelManager;
use crate::domain::ModelName;

/// A model's states: the one it is in, then each that follows. States that pass quickly may be left out.
pub struct Following {
    entry: Arc<Entry>,
    changes: Changes,
    is_first: bool,
    soft: CancellationToken,
}

impl Following {
    /// The next state; `None` when the model was deleted or the server stops.
    pub async fn next(&mut self) -> Option<ModelStatus> {
        if !std::mem::take(&mut self.is_first) {
            tokio::select! {
                () = self.soft.cancelled() => return None,
                () = self.changes.next() => {}
            }
        }
        (!self.entry.is_deleted()).then(|| self.entry.status())
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
        Ok(Following { entry, changes, is_first: true, soft: self.shutdown.soft().clone() })
    }
}
