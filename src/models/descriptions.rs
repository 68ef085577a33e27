//! The JSON files that describe a model, as far as they are read: who writes them spells the same in several ways.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::domain::Prompts;
use crate::engine::Positions;

/// Greater values of `model_max_length` mean "no limit" in tokenizer configurations.
const UNLIMITED_TOKENS: u32 = 1_000_000;

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

/// `config.json`. Each spelling is a field of its own: some files have two of the same size.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Architecture {
    model_type: Option<String>,
    tokenizer_class: Option<Value>,
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

    /// From which number it counts tokens; `None` when nobody says what it is.
    pub(super) fn positions(&self) -> Option<Positions> {
        let kind = self.model_type.as_ref()?;
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

/// Tokenizers of transformers that have the `add_bos_token` and `add_eos_token` of `tokenizer_config.json` overrule
/// `tokenizer.json`.
const ADDING_CLASSES: [&str; 4] = ["CodeLlamaTokenizer", "CohereTokenizer", "GemmaTokenizer", "LlamaTokenizer"];

/// Tokenizers of transformers that set up BERT's rules for texts by `tokenizer_config.json`, whatever `tokenizer.json` says,
/// and the architectures whose tokenizer they are where no class is named:
/// <https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/bert/tokenization_bert_fast.py>.
const BERT_CLASSES: [(&str, &str); 7] = [
    ("bert", "BertTokenizer"),
    ("convbert", "ConvBertTokenizer"),
    ("distilbert", "DistilBertTokenizer"),
    ("electra", "ElectraTokenizer"),
    ("mobilebert", "MobileBertTokenizer"),
    ("mpnet", "MPNetTokenizer"),
    ("squeezebert", "SqueezeBertTokenizer"),
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
}

impl SentenceConfig {
    /// The most tokens that a text keeps.
    pub(super) fn max_tokens(&self) -> Option<u32> {
        let called = self.processing_kwargs.as_ref().and_then(|kinds| kinds.get("text")?.get("max_length"));
        let loaded = self.loaded_with().1.and_then(|settings| settings.get("model_max_length"));
        called.and_then(token_limit).or_else(|| loaded.and_then(token_limit)).or(self.max_seq_length)
    }

    /// Whether something in it is for the tokenizer to do.
    pub(super) fn sets_the_tokenizer(&self) -> bool {
        self.do_lower_case == Some(true) || self.processing_kwargs.is_some() || self.loaded_with().1.is_some()
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
        "truncation_side" => value.as_str() == Some("right"),
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

/// `tokenizer.json`, but for what only the tokenizer itself reads.
#[derive(Deserialize, Default)]
pub(super) struct TokenizerFile {
    normalizer: Option<Normalizer>,
    pre_tokenizer: Option<PreTokenizer>,
}

/// One of the normalizers that `tokenizer.json` can name.
#[derive(Deserialize)]
struct Normalizer {
    /// Left out in files of old.
    #[serde(rename = "type", default)]
    kind: String,
    /// Of a `BertNormalizer`.
    #[serde(default)]
    lowercase: bool,
    /// Of a `BertNormalizer`, which goes by `lowercase` without.
    #[serde(default)]
    strip_accents: Option<bool>,
    /// Of a `BertNormalizer`.
    #[serde(default = "yes")]
    handle_chinese_chars: bool,
    /// Of a `Sequence`.
    #[serde(default)]
    normalizers: Vec<Normalizer>,
}

/// One of the pre-tokenizers that `tokenizer.json` can name.
#[derive(Deserialize)]
struct PreTokenizer {
    #[serde(rename = "type", default)]
    kind: String,
    /// Of a `ByteLevel`.
    add_prefix_space: Option<bool>,
}

fn yes() -> bool {
    true
}

impl TokenizerFile {
    /// Whether texts lose their capitals.
    pub(super) fn lowers_case(&self) -> bool {
        self.normalizer.as_ref().is_some_and(Normalizer::lowers_case)
    }

    /// BERT's rules for texts, if they are all that it does to them before they are split.
    fn bert_rules(&self) -> Option<&Normalizer> {
        self.normalizer.as_ref().filter(|normalizer| normalizer.kind == "BertNormalizer")
    }

    /// Whether a space is put before each text; `None` unless the one pre-tokenizer is one that can.
    fn adds_prefix_space(&self) -> Option<bool> {
        self.pre_tokenizer.as_ref().filter(|one| one.kind == "ByteLevel")?.add_prefix_space
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
    strip_accents: Option<Value>,
    tokenize_chinese_chars: Option<Value>,
    /// `null`, which changes nothing, is not the same as nothing, which stands for false.
    #[serde(default, deserialize_with = "said")]
    add_prefix_space: Option<Value>,
    split_special_tokens: Option<Value>,
    tokenizer_class: Option<Value>,
    auto_map: Option<Value>,
}

/// A limit of tokens. Written as a float of 1e30 where there is none, which reads as no integer.
fn token_limit(value: &Value) -> Option<u32> {
    let limit = value.as_u64().and_then(|limit| u32::try_from(limit).ok());
    limit.filter(|limit| (1..UNLIMITED_TOKENS).contains(limit))
}

/// What a file says, `null` too.
fn said<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// What a file says, and what transformers takes where it says nothing.
fn flag(said: Option<&Value>, default: bool) -> bool {
    said.and_then(Value::as_bool).unwrap_or(default)
}

/// A setting of `tokenizer_config.json` that transformers goes by and `tokenizer.json` does not.
struct Override {
    key: &'static str,
    /// Whether the key is there.
    is_set: bool,
    /// What it says, or stands for where it is not there.
    wanted: bool,
    /// What `tokenizer.json` does.
    found: bool,
}

impl Override {
    fn sentence(&self) -> String {
        let Self { key, wanted, found, .. } = self;
        let said = if self.is_set {
            format!("its `{key}` is {wanted}")
        } else {
            format!("it has no `{key}`, which stands for {wanted}")
        };
        format!(
            "{said}, and tokenizer.json does what {found} stands for. transformers goes by the former: save the tokenizer \
             anew with its `save_pretrained`, or set `{key}` to {found} if the model was trained so, in a folder of your own \
             where it is a hub's"
        )
    }
}

impl TokenizerConfig {
    /// The most tokens that a text keeps; `None` without a limit.
    pub(super) fn limit(&self) -> Option<u32> {
        self.model_max_length.as_ref().and_then(token_limit)
    }

    /// What transformers does to texts by this file, and the tokenizer does not by its own: the first such thing, in a
    /// sentence with the way out.
    pub(super) fn contradiction(&self, architecture: &Architecture, file: &TokenizerFile) -> Option<String> {
        if flag(self.split_special_tokens.as_ref(), false) {
            return Some(
                "its `split_special_tokens` has special tokens in a text read as words, and Granary reads each as what it \
                 stands for: set it to false if no text has any, in a folder of your own where it is a hub's"
                    .to_owned(),
            );
        }
        if self.has_own_class() {
            return None;
        }
        let mut overrides = self.bert_overrides(architecture, file).into_iter().chain(self.prefix_override(file));
        overrides.find(|one| one.wanted != one.found).map(|one| one.sentence())
    }

    /// The settings that a class of BERT's kind sets its rules by.
    fn bert_overrides(&self, architecture: &Architecture, file: &TokenizerFile) -> Vec<Override> {
        let class = self.class_of(architecture);
        let Some(rules) = file.bert_rules() else { return Vec::new() };
        if !BERT_CLASSES.iter().any(|(_, of_bert)| *of_bert == class) {
            return Vec::new();
        }
        let compared = |key, said: Option<&Value>, default, found| Override {
            key,
            is_set: said.is_some(),
            wanted: flag(said, default),
            found,
        };
        let lowers = compared("do_lower_case", self.do_lower_case.as_ref(), true, rules.lowercase);
        let accents = rules.strip_accents.unwrap_or(rules.lowercase);
        let strips = compared("strip_accents", self.strip_accents.as_ref(), lowers.wanted, accents);
        let mut overrides = vec![lowers, strips];
        // This one leaves them as they are.
        if class != "MPNetTokenizer" {
            let (said, found) = (self.tokenize_chinese_chars.as_ref(), rules.handle_chinese_chars);
            overrides.push(compared("tokenize_chinese_chars", said, true, found));
        }
        overrides
    }

    /// The space before each text, which every class sets.
    fn prefix_override(&self, file: &TokenizerFile) -> Option<Override> {
        let found = file.adds_prefix_space()?;
        let wanted = self.add_prefix_space.as_ref().map_or(Some(false), Value::as_bool)?;
        Some(Override { key: "add_prefix_space", is_set: self.add_prefix_space.is_some(), wanted, found })
    }

    /// Whether the tokenizer's class comes with the model.
    fn has_own_class(&self) -> bool {
        self.auto_map.as_ref().is_some_and(|map| map.is_array() || map.get("AutoTokenizer").is_some())
    }

    fn class(&self) -> &str {
        self.tokenizer_class.as_ref().map(class_name).unwrap_or_default()
    }

    /// The class that transformers takes: one that is named, else the architecture's. Empty if it is none of BERT's kind.
    fn class_of<'a>(&'a self, architecture: &'a Architecture) -> &'a str {
        let named = self.tokenizer_class.as_ref().or(architecture.tokenizer_class.as_ref()).map(class_name);
        named.unwrap_or_else(|| {
            let kind = architecture.model_type.as_deref();
            BERT_CLASSES.iter().find(|(of, _)| Some(*of) == kind).map(|(_, class)| *class).unwrap_or_default()
        })
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

/// The name of a class, which its fast form shares.
fn class_name(class: &Value) -> &str {
    let class = class.as_str().unwrap_or_default();
    class.strip_suffix("Fast").unwrap_or(class)
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
