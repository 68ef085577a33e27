//! `models.lock`: which commit each revision was, and what every file held, when it was first downloaded.
//!
//! An entry pins its model: the revision may move on the hub, this server stays. Removing the entry lets it move.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::cache::{lock_folder, write_atomically};
use super::error::HubError;
use crate::domain::hub::is_inside;
use crate::domain::{HubRevision, HubSource};
use crate::files::{folder_of, if_there};

const HEAD: &str =
    "# Written by Granary: the commit and the SHA-256 of every file of the models that were downloaded. A model stays
# at its commit until its entry is removed here.
";

/// One model's entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LockedModel {
    #[serde(flatten)]
    pub source: HubSource,
    pub commit: String,
    /// Path in the repository, and SHA-256.
    pub files: BTreeMap<String, String>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    #[serde(default, rename = "model")]
    models: Vec<LockedModel>,
}

/// The file.
#[derive(Clone, Debug)]
pub(super) struct LockFile {
    path: PathBuf,
}

impl LockFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The entry of a model as it was asked for.
    pub(super) fn find(&self, source: &HubSource) -> Result<Option<LockedModel>, HubError> {
        Ok(self.read()?.models.into_iter().find(|model| model.source == *source))
    }

    /// Adds an entry, unless another process has done so by now: whose entry stands is returned.
    pub(super) fn record(&self, model: LockedModel) -> Result<LockedModel, HubError> {
        let _guard = lock_folder(folder_of(&self.path))?;
        let mut content = self.read()?;
        if let Some(known) = content.models.iter().find(|known| known.source == model.source) {
            return Ok(known.clone());
        }
        content.models.push(model.clone());
        content.models.sort_by(|left, right| left.source.cmp(&right.source));
        let text = toml::to_string(&content).map_err(std::io::Error::other)?;
        write_atomically(&self.path, format!("{HEAD}\n{text}").as_bytes())?;
        Ok(model)
    }

    fn read(&self) -> Result<Content, HubError> {
        let broken = |source| HubError::LockFile { path: self.path.clone(), source: Box::new(source) };
        let Some(text) = if_there(fs_err::read_to_string(&self.path))? else { return Ok(Content::default()) };
        let content: Content = toml::from_str(&text).map_err(broken)?;
        for model in &content.models {
            // What is written here becomes paths.
            if !HubRevision::parse(&model.commit).is_ok_and(|commit| commit.is_commit()) {
                let problem = format!("`{}` is not a commit of 40 hexadecimal digits", model.commit);
                return Err(broken(serde::de::Error::custom(problem)));
            }
            if let Some(path) = model.files.keys().find(|path| !is_inside(path)) {
                return Err(broken(serde::de::Error::custom(format!("`{path}` leads out of its repository"))));
            }
        }
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(file: &str) -> LockedModel {
        let source = HubSource {
            repository: "granary/tiny".parse().expect("a repository"),
            revision: HubRevision::default(),
            file: file.parse().expect("a file"),
        };
        LockedModel {
            source,
            commit: "a".repeat(40),
            files: BTreeMap::from([("1_Pooling/config.json".into(), "ab".into())]),
        }
    }

    #[test]
    fn hub_lock_entries_are_written_once() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let lock = LockFile::new(folder.path().join("new/models.lock"));
        let (first, second) = (model("b.onnx"), model("a.onnx"));
        assert_eq!(lock.find(&first.source).expect("no file yet"), None);
        lock.record(first.clone()).expect("written");
        lock.record(second.clone()).expect("written");
        let other = LockedModel { commit: "b".repeat(40), ..first.clone() };
        assert_eq!(lock.record(other).expect("read"), first, "the first to write has decided");
        assert_eq!(lock.find(&second.source).expect("read"), Some(second));
        let names: Vec<_> = fs_err::read_dir(folder.path().join("new")).expect("a folder").collect();
        assert_eq!(names.len(), 1, "{names:?}");
    }

    #[test]
    fn hub_lock_files_that_make_no_sense_are_left_alone() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let path = folder.path().join("models.lock");
        let entry = |commit: &str, file: &str| {
            format!("[[model]]\nrepository = 'a/b'\ncommit = '{commit}'\n[model.files]\n'{file}' = 'ab'\n")
        };
        let whole = "a".repeat(40);
        for text in ["[[model", "x = 1", &entry("../../etc", "m.onnx"), &entry(&whole, "../m.onnx")] {
            fs_err::write(&path, text).expect("written");
            let lock = LockFile::new(path.clone());
            let error = lock.record(model("a.onnx")).expect_err(text);
            assert!(error.to_string().contains("models.lock") && error.is_permanent(), "{error}");
            assert_eq!(fs_err::read_to_string(&path).expect("still there"), text);
        }
    }
}
