//! The JSON files that describe a model, as far as they are read: who writes them spells the same in several ways.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::domain::Prompts;

/// Greater values of `model_max_length` mean "no limit" in tokenizer configurations.
const UNLIMITED_TOKENS: u32 = 1_000_000;

/// Architectures whose position table starts behind the padding index, so that two of its rows are never used.
const OFFSET_POSITIONS: [&str; 4] = ["roberta", "xlm-roberta", "camembert", "mpnet"];

/// `config.json`. Each spelling is a field of its own: some files have two of the same size.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Architecture {
    model_type: Option<String>,
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

    /// How long a text can be. Where both spellings are there, the smaller one is what a model with computed positions was
    /// trained on, and the larger one how far they reach.
    pub(super) fn max_positions(&self) -> Option<u32> {
        let unused = match &self.model_type {
            Some(kind) if OFFSET_POSITIONS.contains(&kind.as_str()) => 2,
            _ => 0,
        };
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

/// Tokenizers of transformers that have the `add_bos_token` and `add_eos_token` of `tokenizer_config.json` overrule
/// `tokenizer.json`.
const ADDING_CLASSES: [&str; 4] = ["CodeLlamaTokenizer", "CohereTokenizer", "GemmaTokenizer", "LlamaTokenizer"];

/// Tokenizers of transformers that have the `do_lower_case` of `tokenizer_config.json` overrule `tokenizer.json`.
const LOWERING_CLASSES: [&str; 7] = [
    "BertTokenizer",
    "ConvBertTokenizer",
    "DistilBertTokenizer",
    "ElectraTokenizer",
    "MobileBertTokenizer",
    "MPNetTokenizer",
    "SqueezeBertTokenizer",
];

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
    /// The most tokens that a text keeps.
    #[serde(deserialize_with = "size")]
    pub(super) max_seq_length: Option<u32>,
    /// Whether texts lose their capitals before they are tokenized.
    pub(super) do_lower_case: Option<bool>,
}

/// `tokenizer.json`, but for what only the tokenizer itself reads.
#[derive(Deserialize, Default)]
pub(super) struct TokenizerFile {
    normalizer: Option<Normalizer>,
}

/// One of the normalizers that `tokenizer.json` can name.
#[derive(Deserialize)]
struct Normalizer {
    #[serde(rename = "type")]
    kind: String,
    /// Of a `BertNormalizer`.
    #[serde(default)]
    lowercase: bool,
    /// Of a `Sequence`.
    #[serde(default)]
    normalizers: Vec<Normalizer>,
}

impl TokenizerFile {
    /// Whether texts lose their capitals.
    pub(super) fn lowers_case(&self) -> bool {
        self.normalizer.as_ref().is_some_and(Normalizer::lowers_case)
    }

    /// Whether it has BERT's rules for texts, but for the capitals, which it keeps.
    pub(super) fn is_cased_bert(&self) -> bool {
        self.normalizer.as_ref().is_some_and(|normalizer| normalizer.kind == "BertNormalizer" && !normalizer.lowercase)
    }
}

impl Normalizer {
    fn lowers_case(&self) -> bool {
        match self.kind.as_str() {
            "Lowercase" => true,
            "BertNormalizer" => self.lowercase,
            "Sequence" => self.normalizers.iter().any(Self::lowers_case),
            _ => false,
        }
    }
}

/// `tokenizer_config.json`.
#[derive(Deserialize, Default)]
pub(super) struct TokenizerConfig {
    model_max_length: Option<Value>,
    add_bos_token: Option<Value>,
    add_eos_token: Option<Value>,
    bos_token: Option<Value>,
    eos_token: Option<Value>,
    do_lower_case: Option<Value>,
    tokenizer_class: Option<Value>,
    auto_map: Option<Value>,
}

impl TokenizerConfig {
    /// The most tokens that a text keeps; `None` without a limit.
    pub(super) fn limit(&self) -> Option<u32> {
        // Written as a float of 1e30 where there is no limit, which reads as no integer.
        self.model_max_length
            .as_ref()
            .and_then(Value::as_u64)
            .and_then(|limit| u32::try_from(limit).ok().filter(|limit| (1..UNLIMITED_TOKENS).contains(limit)))
    }

    /// Whether texts lose their capitals whatever `tokenizer.json` says, as with the classes that set its rule by their own.
    pub(super) fn lowers_case(&self) -> bool {
        LOWERING_CLASSES.contains(&self.class()) && self.do_lower_case == Some(Value::Bool(true))
    }

    fn class(&self) -> &str {
        let class = self.tokenizer_class.as_ref().and_then(Value::as_str).unwrap_or_default();
        class.strip_suffix("Fast").unwrap_or(class)
    }

    /// The tokens that each text gets besides its own whatever `tokenizer.json` says, each behind the name of the flag that
    /// says so. Classes of the model's own are taken to go by it.
    pub(super) fn added_tokens(&self) -> Vec<(&'static str, String)> {
        if !ADDING_CLASSES.contains(&self.class()) && self.auto_map.is_none() {
            return Vec::new();
        }
        let said = [
            ("add_bos_token", &self.add_bos_token, &self.bos_token),
            ("add_eos_token", &self.add_eos_token, &self.eos_token),
        ];
        let set = said.into_iter().filter(|(_, flag, _)| **flag == Some(Value::Bool(true)));
        set.filter_map(|(name, _, token)| Some((name, text_of(token.as_ref()?)?.to_owned()))).collect()
    }
}

/// A token's text: some write it alone, and some with how it is told from the text around it.
fn text_of(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str()).filter(|text| !text.is_empty())
}

/// `config_sentence_transformers.json`.
#[derive(Deserialize, Default)]
pub(super) struct PromptConfig {
    /// The prompts, by name.
    pub(super) prompts: Option<PromptTexts>,
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
