//! The JSON files that describe a model, as far as they are read: who writes them spells the same in several ways.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::tokenizer_files::{TokenizerFile, token_limit, truncation_side};
use crate::domain::{Prompts, TruncationSide};
use crate::engine::Positions;

/// Architectures whose position table starts behind the padding index, so that two of its rows are never used.
const OFFSET_POSITIONS: [&str; 14] = [
    "camembert",
    "data2vec-text",
    "ibert",
    "layoutlmv3",
    "lilt",
    "longformer",
    "luke",
    "markuplm",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
];

/// Architectures that count tokens in yet another way.
const OTHER_POSITIONS: [&str; 4] = ["esm", "mra", "nystromformer", "yoso"];

/// `config.json`. Each spelling is a field of its own: some files have two of the same size.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Architecture {
    pub(super) model_type: Option<String>,
    pub(super) tokenizer_class: Option<Value>,
    #[serde(deserialize_with = "size")]
    hidden_size: Option<u32>,
    #[serde(deserialize_with = "size")]
    n_embd: Option<u32>,
    #[serde(deserialize_with = "size")]
    d_model: Option<u32>,
    #[serde(deserialize_with = "size")]
    dim: Option<u32>,
    /// Rows of the embedding table.
    #[serde(deserialize_with = "size")]
    pub(super) vocab_size: Option<u32>,
    #[serde(deserialize_with = "size")]
    max_position_embeddings: Option<u32>,
    #[serde(deserialize_with = "size")]
    n_positions: Option<u32>,
}

impl Architecture {
    /// The length of token vectors.
    pub(super) fn token_size(&self) -> Option<u32> {
        self.hidden_size.or(self.n_embd).or(self.d_model).or(self.dim)
    }

    /// From which number it counts tokens; `None` when that is not known.
    pub(super) fn positions(&self) -> Option<Positions> {
        let kind = self.model_type.as_ref().filter(|kind| !OTHER_POSITIONS.contains(&kind.as_str()))?;
        let is_offset = OFFSET_POSITIONS.contains(&kind.as_str());
        Some(if is_offset { Positions::BehindPadding(kind.clone()) } else { Positions::FromZero })
    }

    /// How long a text can be. Where both spellings are there, the smaller one is what a model with computed positions was
    /// trained on, and the larger one how far they reach.
    pub(super) fn max_positions(&self) -> Option<u32> {
        let unused = if matches!(self.positions(), Some(Positions::BehindPadding(_))) { 2 } else { 0 };
        self.max_position_embeddings.max(self.n_positions).map(|rows| rows.saturating_sub(unused))
    }
}

/// A whole number, which some write as a float. Numbers that are no size (-1, 0) are for "none", as null is.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is whole and within the bounds")]
fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let number = Option::<f64>::deserialize(deserializer)?;
    let is_size = |number: &f64| number.fract() == 0.0 && (1.0..=f64::from(u32::MAX)).contains(number);
    Ok(number.filter(is_size).map(|number| number as u32))
}

/// Where sentence-transformers looks for a [`SentenceConfig`], in this order: older releases named it by the architecture.
pub(super) const SENTENCE_CONFIGS: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];

/// One of [`SENTENCE_CONFIGS`].
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct SentenceConfig {
    /// The most tokens that a text keeps, where neither of those below says so.
    #[serde(deserialize_with = "size")]
    max_seq_length: Option<u32>,
    /// Whether texts lose their capitals before they are tokenized.
    pub(super) do_lower_case: Option<bool>,
    /// What the tokenizer is called with, for each kind of input.
    processing_kwargs: Option<BTreeMap<String, Value>>,
    /// What the tokenizer is loaded with.
    processor_kwargs: Option<BTreeMap<String, Value>>,
    /// The same as older releases wrote it. It counts where both are there.
    tokenizer_args: Option<BTreeMap<String, Value>>,
    /// The most tokens of a query, and of a document, where they are others than of any text.
    query_length: Option<Value>,
    document_length: Option<Value>,
}

impl SentenceConfig {
    /// The most tokens that a text keeps.
    pub(super) fn max_tokens(&self) -> Option<u32> {
        let called = self.processing_kwargs.as_ref().and_then(|kinds| kinds.get("text")?.get("max_length"));
        let loaded = self.loaded_with().1.and_then(|settings| settings.get("model_max_length"));
        called.and_then(token_limit).or_else(|| loaded.and_then(token_limit)).or(self.max_seq_length)
    }

    /// The end that is cut off a longer text, where it is named.
    pub(super) fn truncation_side(&self) -> Option<TruncationSide> {
        self.loaded_with().1.and_then(|settings| settings.get("truncation_side")).and_then(truncation_side)
    }

    /// Whether something in it is for the tokenizer to do.
    pub(super) fn sets_the_tokenizer(&self) -> bool {
        self.do_lower_case == Some(true) || self.processing_kwargs.is_some() || self.loaded_with().1.is_some()
    }

    /// A length that texts of one kind alone are cut to, which is not followed.
    pub(super) fn own_length(&self) -> Option<&'static str> {
        let lengths = [("query_length", &self.query_length), ("document_length", &self.document_length)];
        lengths.into_iter().find(|(_, length)| length.is_some()).map(|(key, _)| key)
    }

    /// A setting of the tokenizer that makes other tokens of a text and is not followed, and the key that it is below.
    pub(super) fn strange_setting(&self, tokenizer: &TokenizerFile) -> Option<(String, String)> {
        let written = |key: &str, value: &Value| format!("{key}: {value}");
        for (kind, settings) in self.processing_kwargs.iter().flatten() {
            let Some(settings) = settings.as_object() else { continue };
            let mut each = settings.iter();
            if let Some((key, value)) = each.find(|(key, value)| !is_followed_in_calls(kind, key, value)) {
                return Some((format!("processing_kwargs.{kind}"), written(key, value)));
            }
        }
        let (name, settings) = self.loaded_with();
        let mut each = settings.into_iter().flatten();
        let (key, value) = each.find(|(key, value)| !is_followed_in_loads(key, value, tokenizer))?;
        Some((name.to_owned(), written(key, value)))
    }

    fn loaded_with(&self) -> (&'static str, Option<&BTreeMap<String, Value>>) {
        match &self.tokenizer_args {
            Some(settings) => ("tokenizer_args", Some(settings)),
            None => ("processor_kwargs", self.processor_kwargs.as_ref()),
        }
    }
}

/// Whether texts of this kind have the tokens that a setting of the call asks for, or are none.
fn is_followed_in_calls(kind: &str, key: &str, value: &Value) -> bool {
    if !["text", "common", "chat_template"].contains(&kind) {
        return true;
    }
    match key {
        "padding" | "padding_side" | "pad_to_multiple_of" | "return_tensors" => true,
        "add_special_tokens" => value.as_bool() == Some(true),
        "truncation" => is_usual_truncation(value),
        "max_length" => value.is_null() || (kind == "text" && token_limit(value).is_some()),
        _ => false,
    }
}

/// Whether a tokenizer that is loaded with the setting makes the tokens that Granary's does.
fn is_followed_in_loads(key: &str, value: &Value, tokenizer: &TokenizerFile) -> bool {
    match key {
        "model_max_length" => value.is_null() || token_limit(value).is_some(),
        "do_lower_case" => value.as_bool() == Some(tokenizer.lowers_case()),
        "truncation" => is_usual_truncation(value),
        "truncation_side" => truncation_side(value).is_some(),
        "padding"
        | "padding_side"
        | "use_fast"
        | "clean_up_tokenization_spaces"
        | "trust_remote_code"
        | "revision"
        | "token"
        | "cache_dir"
        | "local_files_only" => true,
        _ => value.is_null(),
    }
}

fn is_usual_truncation(value: &Value) -> bool {
    value.as_bool() == Some(true) || matches!(value.as_str(), Some("longest_first" | "only_first"))
}

/// `config_sentence_transformers.json`.
#[derive(Deserialize, Default)]
pub(super) struct PromptConfig {
    /// The prompts, by name.
    pub(super) prompts: Option<PromptTexts>,
    /// How many numbers sentence-transformers leaves of a vector.
    #[serde(default, deserialize_with = "size")]
    pub(super) truncate_dim: Option<u32>,
}

/// The prompts of a model.
#[derive(Deserialize, Default)]
pub(super) struct PromptTexts {
    query: Option<String>,
    document: Option<String>,
    passage: Option<String>,
    corpus: Option<String>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

impl PromptTexts {
    /// The prompts that are part of the model's space. Empty ones are written by default and mean none there. Of those for
    /// documents the first one counts that is there, as in sentence-transformers.
    pub(super) fn known(&self) -> Prompts {
        let present = |text: Option<&String>| text.filter(|text| !text.is_empty()).cloned();
        Prompts {
            query: present(self.query.as_ref()),
            document: present(self.document.as_ref().or(self.passage.as_ref()).or(self.corpus.as_ref())),
        }
    }

    /// Every prompt, by its name.
    pub(super) fn named(self) -> BTreeMap<String, String> {
        let Self { query, document, passage, corpus, others } = self;
        let known = [("query", query), ("document", document), ("passage", passage), ("corpus", corpus)];
        let known = known.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?)));
        let others = others.into_iter().filter_map(|(name, text)| match text {
            Value::String(text) => Some((name, text)),
            _ => None,
        });
        known.chain(others).collect()
    }
}
