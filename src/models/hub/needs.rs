//! Which files of a repository a model needs: not the other formats and precisions that stand beside it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::error::HubError;
use crate::domain::HubSource;
use crate::domain::hub::is_inside;
use crate::models::descriptions::SENTENCE_CONFIGS;
use crate::models::onnx_file;

/// Without it no text can be read.
pub(super) const TOKENIZER: &str = "tokenizer.json";

const MODULES: &str = "modules.json";

/// The file of a module's weights, in the module's folder.
const MODULE_WEIGHTS: &str = "model.safetensors";

/// What decides how a model is used, where the repository has it.
pub(super) fn descriptions<'a>() -> impl Iterator<Item = &'a str> {
    ["config.json", "tokenizer_config.json", "config_sentence_transformers.json", MODULES]
        .into_iter()
        .chain(SENTENCE_CONFIGS)
}

/// Where the pooling is described when no `modules.json` says so.
const USUAL_POOLING: &str = "1_Pooling/config.json";

/// A file that the model's modules keep.
#[derive(Debug, PartialEq, Eq)]
struct ModuleFile {
    path: String,
    /// Whether the module does nothing, or another thing, without it.
    required: bool,
}

/// The files of weights that an `.onnx` file on disk names, as the repository names them.
pub(super) fn external_data(onnx: &Path, source: &HubSource) -> Result<Vec<String>, HubError> {
    let malformed = |problem: String| HubError::Malformed {
        repository: source.repository.clone(),
        file: source.file.to_string(),
        problem,
    };
    let facts = onnx_file::scan(onnx).map_err(|error| malformed(format!("it is not a whole ONNX file ({error})")))?;
    let folder = source.file.as_str().rsplit_once('/').map(|(folder, _)| folder);
    let in_repository = |location: String| {
        if !is_inside(&location) {
            return Err(malformed(format!("it keeps weights in `{location}`, which is outside its folder")));
        }
        Ok(folder.map_or_else(|| location.clone(), |folder| format!("{folder}/{location}")))
    };
    facts.external_data.into_iter().map(in_repository).collect()
}

/// The files of a model's modules: those that its `modules.json`, which is on disk, needs, or finds there; else where
/// pooling usually is. Blocks.
pub(super) fn files_of_modules(
    snapshot: &Path,
    source: &HubSource,
    is_there: impl Fn(&str) -> bool,
) -> Result<Vec<String>, HubError> {
    if !is_there(MODULES) {
        return Ok(is_there(USUAL_POOLING).then(|| USUAL_POOLING.to_owned()).into_iter().collect());
    }
    let files = module_files(&fs_err::read(snapshot.join(MODULES))?, source)?;
    Ok(files.into_iter().filter(|file| file.required || is_there(&file.path)).map(|file| file.path).collect())
}

/// Whether a file of these is the weights of a module: they stand beside its `config.json`, and are no part of the graph.
pub(super) fn is_of_module(path: &str, files: &BTreeMap<String, String>) -> bool {
    let folder = path.strip_suffix(MODULE_WEIGHTS).and_then(|folder| folder.strip_suffix('/'));
    folder.is_some_and(|folder| files.contains_key(&format!("{folder}/config.json")))
}

/// The files that the modules listed in `modules.json` keep in folders of their own.
fn module_files(modules: &[u8], source: &HubSource) -> Result<Vec<ModuleFile>, HubError> {
    #[derive(Deserialize)]
    struct Module {
        path: String,
        #[serde(rename = "type")]
        kind: String,
    }
    let malformed = |problem: String| HubError::Malformed {
        repository: source.repository.clone(),
        file: MODULES.to_owned(),
        problem,
    };
    let modules: Vec<Module> =
        serde_json::from_slice(modules).map_err(|error| malformed(format!("it cannot be understood ({error})")))?;
    let mut files = Vec::new();
    for Module { path, kind } in modules.into_iter().filter(|module| !module.path.is_empty()) {
        if !is_inside(&path) {
            return Err(malformed(format!("it keeps a module in `{path}`, which is outside the repository")));
        }
        if kind.ends_with("Transformer") {
            let optional = |name: &str| ModuleFile { path: format!("{path}/{name}"), required: false };
            files.extend(SENTENCE_CONFIGS.map(optional));
        }
        let is_dense = kind.ends_with("Dense");
        let required = is_dense || kind.ends_with("Pooling");
        files.push(ModuleFile { path: format!("{path}/config.json"), required });
        files.extend(is_dense.then(|| ModuleFile { path: format!("{path}/{MODULE_WEIGHTS}"), required }));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_modules_say_which_files_they_keep() {
        let source: HubSource = serde_json::from_str(r#"{"repository": "a/b"}"#).expect("a source");
        let modules = r#"[{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"},
            {"path": "2_Dense", "type": "x.Dense"}, {"path": "3_Normalize", "type": "x.Normalize"}]"#;
        let files = module_files(modules.as_bytes(), &source).expect("well formed");
        let found: Vec<_> = files.iter().map(|file| (file.path.as_str(), file.required)).collect();
        let expected = [
            ("1_Pooling/config.json", true),
            ("2_Dense/config.json", true),
            ("2_Dense/model.safetensors", true),
            ("3_Normalize/config.json", false),
        ];
        assert_eq!(found, expected);
        let modules = br#"[{"path": "0_Transformer", "type": "x.Transformer"}]"#;
        let files = module_files(modules, &source).expect("well formed");
        let found: Vec<_> = files.iter().map(|file| (file.path.as_str(), file.required)).collect();
        assert_eq!(found[0], ("0_Transformer/sentence_bert_config.json", false));
        assert!(found.contains(&("0_Transformer/sentence_xlnet_config.json", false)), "{found:?}");
        for text in [r#"[{"path": "../x", "type": "x.Pooling"}]"#, r#"[{"path": "/x", "type": "x"}]"#, "{"] {
            assert!(module_files(text.as_bytes(), &source).expect_err(text).to_string().contains(MODULES));
        }
    }
}
