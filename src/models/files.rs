//! A model's files, wherever they come from.

use super::error::LoadError;
use super::folder::{self, ModelFiles};
use super::hub::Hub;
use crate::domain::{ModelInfo, ModelSource};

/// Finds a model's files and reads what they say. Blocks, and uses no network.
///
/// # Errors
/// [`LoadError::NotDownloaded`] for a model of a hub that is not here yet, else what is wrong with the files.
pub fn read(info: &ModelInfo, hub: &Hub) -> Result<ModelFiles, LoadError> {
    let pooling = info.configured.pooling;
    match &info.source {
        ModelSource::Folder(folder) => Ok(folder::read_folder(folder, None, pooling)?),
        ModelSource::File { onnx, tokenizer } => Ok(folder::read_bare_file(onnx, tokenizer.as_deref())?),
        ModelSource::Hub(source) => {
            let model = hub.local(source)?.ok_or_else(|| LoadError::NotDownloaded(source.clone()))?;
            let files = folder::read_folder(&model.folder, Some(&model.onnx), pooling)?;
            Ok(ModelFiles { hub: Some(model), ..files })
        }
    }
}
