//! The pooling module's `config.json`: one word in newer releases of sentence-transformers, a flag each in older ones.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::folder::{FolderError, read_json};
use crate::domain::Pooling;

#[derive(Deserialize, Default)]
#[serde(default)]
struct PoolingConfig {
    /// What newer releases write.
    pooling_mode: Option<Mode>,
    /// Whether the tokens of a prompt are pooled like those behind it; by default they are.
    include_prompt: Option<bool>,
    /// What older ones write: one flag for each pooling.
    #[serde(flatten)]
    flags: BTreeMap<String, serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected the name of a pooling, or a list of them")]
enum Mode {
    One(String),
    /// Their vectors are joined end to end.
    Several(Vec<String>),
}

/// The flags of poolings, and the word each stands for.
const POOLING_FLAGS: [(&str, &str); 6] = [
    ("pooling_mode_mean_tokens", "mean"),
    ("pooling_mode_cls_token", "cls"),
    ("pooling_mode_max_tokens", "max"),
    ("pooling_mode_lasttoken", "lasttoken"),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
    ("pooling_mode_weightedmean_tokens", "weightedmean"),
];

/// The pooling that the file names, or the mean where it names none, as in sentence-transformers; `None` when there is no such
/// file. What the operator has set stands for one that Granary does not have.
pub(super) fn read_pooling(path: &Path, configured: Option<Pooling>) -> Result<Option<Pooling>, FolderError> {
    let Some(config) = read_json::<PoolingConfig>(path)? else { return Ok(None) };
    let is_set = |flag: &str| config.flags.get(flag).is_some_and(is_true_in_python);
    let flagged: Vec<&str> = POOLING_FLAGS.iter().filter(|(flag, _)| is_set(flag)).map(|(_, word)| *word).collect();
    let mode = match config.pooling_mode {
        Some(Mode::One(word)) => word,
        Some(Mode::Several(words)) => words.join(" + "),
        None if flagged.is_empty() => "mean".to_owned(),
        None => flagged.join(" + "),
    };
    let unless_set = |refusal| configured.map(Some).ok_or(refusal);
    let pooling = match mode.as_str() {
        "mean" => Pooling::Mean,
        "mean_sqrt_len_tokens" => Pooling::MeanSqrtLen,
        "cls" => Pooling::Cls,
        "max" => Pooling::Max,
        "lasttoken" => Pooling::LastToken,
        _ => return unless_set(FolderError::UnsupportedPooling { path: path.to_owned(), pooling: mode }),
    };
    // The last token is never the prompt's. The first one is: sentence-transformers 6 takes the first behind it.
    if config.include_prompt == Some(false) && pooling != Pooling::LastToken {
        let what = "a pooling that leaves the tokens of a prompt out (`include_prompt`)".to_owned();
        return unless_set(FolderError::Unsupported { path: path.to_owned(), what });
    }
    Ok(Some(pooling))
}

/// What sentence-transformers takes for true: a flag may be a number.
fn is_true_in_python(flag: &serde_json::Value) -> bool {
    use serde_json::Value;

    match flag {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}
