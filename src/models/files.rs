//! A model's files, wherever they come from.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::LoadError;
use super::folder::{self, FolderError, ModelFiles};
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

/// The weights and the tokenizer of a model as they were at one moment. A load reads them more than once, by their paths:
/// each session does, and the hashes do.
pub(super) struct Stamps(Vec<Stamp>);

/// Tells a file from another one that takes its name, and from what it becomes when somebody writes to it.
#[derive(PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    device: u64,
    inode: u64,
    size_bytes: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

impl Stamps {
    /// Looks at the files. Blocks.
    ///
    /// # Errors
    /// When one of them is not there any more.
    pub(super) fn of(files: &ModelFiles) -> Result<Self, FolderError> {
        files.weights().chain([files.tokenizer.as_path()]).map(Stamp::of).collect::<Result<_, _>>().map(Self)
    }

    /// Looks at the files again. Blocks.
    ///
    /// # Errors
    /// [`LoadError::Changed`] when one of them is not what it was.
    pub(super) fn check(&self, files: &ModelFiles) -> Result<(), LoadError> {
        match Self::of(files)?.0.into_iter().find(|stamp| !self.0.contains(stamp)) {
            Some(Stamp { path, .. }) => Err(LoadError::Changed(path)),
            None => Ok(()),
        }
    }
}

impl Stamp {
    fn of(path: &Path) -> Result<Self, FolderError> {
        let metadata = fs_err::metadata(path).map_err(FolderError::Read)?;
        Ok(Self {
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::domain::{Activation, DenseShape};
    use crate::models::modules::ModuleFile;

    #[test]
    fn a_file_that_is_replaced_or_written_to_is_named_whichever_it_is() {
        let folder = TempDir::new().expect("a folder");
        let write = |name: &str, content: &[u8]| {
            let path = folder.path().join(name);
            fs_err::write(&path, content).expect("written");
            path
        };
        // An ONNX file with an empty graph.
        let onnx = write("model.onnx", &[0x08, 10, 0x3a, 0]);
        let tokenizer = write("tokenizer.json", b"{}");
        let mut files = folder::read_folder(folder.path(), None, None).expect("well formed");
        let data = write("model.onnx_data", b"weights");
        files.external_data.push(("model.onnx_data".to_owned(), data.clone()));
        let dense = write("model.safetensors", b"weights");
        let shape = DenseShape { in_features: 1, out_features: 1, bias: false, activation: Activation::Tanh };
        files.modules.push(ModuleFile::Dense { weights: dense.clone(), shape });

        for path in [onnx, tokenizer, data, dense] {
            let stamps = Stamps::of(&files).expect("they are there");
            stamps.check(&files).expect("nothing has changed");
            // The same bytes: what was loaded of the old one cannot be told from here.
            let other = write("other", &fs_err::read(&path).expect("read"));
            fs_err::rename(other, &path).expect("in its place");
            let replaced = stamps.check(&files).expect_err("another file has its name");
            assert!(!replaced.is_permanent(), "{replaced}");
            assert!(replaced.to_string().contains(&path.display().to_string()), "{replaced}");

            let stamps = Stamps::of(&files).expect("they are there");
            fs_err::write(&path, b"of another length").expect("written");
            assert!(matches!(stamps.check(&files), Err(LoadError::Changed(changed)) if changed == path));

            let stamps = Stamps::of(&files).expect("they are there");
            let aside = folder.path().join("aside");
            fs_err::rename(&path, &aside).expect("moved");
            let gone = stamps.check(&files).expect_err("it is gone");
            assert!(!gone.is_permanent(), "{gone}");
            fs_err::rename(aside, &path).expect("moved back");
        }
    }

    #[test]
    fn a_file_that_was_none_of_the_models_is_named() {
        let folder = TempDir::new().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        fs_err::write(path("model.onnx"), [0x08, 10, 0x3a, 0]).expect("written");
        fs_err::write(path("tokenizer.json"), "{}").expect("written");
        let read = || folder::read_bare_file(&path("model.onnx"), None).expect("well formed");
        let stamps = Stamps::of(&read()).expect("they are there");
        fs_err::write(path("model.tokenizer.json"), "{}").expect("written");
        let another = stamps.check(&read()).expect_err("it has another tokenizer").to_string();
        assert!(another.contains("model.tokenizer.json"), "{another}");
    }
}
