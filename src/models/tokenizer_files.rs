//! `tokenizer.json` and `tokenizer_config.json`, as far as a load goes by them: transformers has the one override the other,
//! and what Granary does not follow of that is refused.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::descriptions::Architecture;
use crate::domain::{ExtraToken, TruncationSide};

/// Greater values of `model_max_length` mean "no limit" in tokenizer configurations.
const UNLIMITED_TOKENS: u32 = 1_000_000;

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

/// `tokenizer.json`, but for what only the tokenizer itself reads.
#[derive(Deserialize, Default)]
pub(super) struct TokenizerFile {
    normalizer: Option<Normalizer>,
    pre_tokenizer: Option<PreTokenizer>,
    #[serde(default)]
    added_tokens: Vec<Value>,
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
    truncation_side: Option<Value>,
    add_bos_token: Option<Value>,
    add_eos_token: Option<Value>,
    bos_token: Option<Value>,
    eos_token: Option<Value>,
    unk_token: Option<Value>,
    sep_token: Option<Value>,
    pad_token: Option<Value>,
    cls_token: Option<Value>,
    mask_token: Option<Value>,
    /// A list.
    additional_special_tokens: Option<Value>,
    /// A list, or an object of names.
    extra_special_tokens: Option<Value>,
    do_lower_case: Option<Value>,
    strip_accents: Option<Value>,
    tokenize_chinese_chars: Option<Value>,
    /// `null`, which changes nothing, is not the same as nothing, which stands for false.
    #[serde(default, deserialize_with = "said")]
    add_prefix_space: Option<Value>,
    split_special_tokens: Option<Value>,
    /// By their ids.
    added_tokens_decoder: Option<BTreeMap<u32, ListedToken>>,
    tokenizer_class: Option<Value>,
    auto_map: Option<Value>,
}

/// A limit of tokens. Written as a float of 1e30 where there is none, which reads as no integer.
pub(super) fn token_limit(value: &Value) -> Option<u32> {
    let limit = value.as_u64().and_then(|limit| u32::try_from(limit).ok());
    limit.filter(|limit| (1..UNLIMITED_TOKENS).contains(limit))
}

/// A token that one of the files lists. What it does not say is what transformers takes.
#[derive(Clone, Deserialize)]
#[allow(clippy::struct_excessive_bools, reason = "it is so in the file")]
struct ListedToken {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    /// Special ones are not, unless it is said.
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

impl ListedToken {
    fn into_extra(self) -> ExtraToken {
        let Self { content, single_word, lstrip, rstrip, normalized, special } = self;
        ExtraToken { content, single_word, lstrip, rstrip, normalized: normalized.unwrap_or(!special), special }
    }
}

/// The end that is cut off a longer text.
pub(super) fn truncation_side(value: &Value) -> Option<TruncationSide> {
    match value.as_str() {
        Some("left") => Some(TruncationSide::Left),
        Some("right") => Some(TruncationSide::Right),
        _ => None,
    }
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

    /// The end that is cut off a longer text, where it is named.
    pub(super) fn truncation_side(&self) -> Option<TruncationSide> {
        self.truncation_side.as_ref().and_then(truncation_side)
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

    /// The tokens that transformers adds to those that `tokenizer.json` lists as added, or puts in their place if it says
    /// otherwise how they are told from the text around them, in the order of their ids. The library of tokenizers gives each an id
    /// anew: that which its vocabulary has for it, else the next free one.
    pub(super) fn extra_tokens(&self, file: &TokenizerFile) -> Vec<ExtraToken> {
        // What is left out where tokens become text again moves no vector.
        let alike = |token: &ExtraToken| ExtraToken { special: false, ..token.clone() };
        let known = file.added_tokens.iter().filter_map(|token| ListedToken::deserialize(token).ok());
        let known: Vec<ExtraToken> = known.map(|token| alike(&token.into_extra())).collect();
        let listed = self.added_tokens_decoder.iter().flat_map(BTreeMap::values);
        let listed: Vec<ExtraToken> =
            listed.filter(|token| !token.content.is_empty()).map(|token| token.clone().into_extra()).collect();
        // Of those that are only named, it adds what neither file lists.
        let mut named: Vec<ExtraToken> = Vec::new();
        for token in self.special_tokens() {
            if !known.iter().chain(&listed).chain(&named).any(|other| other.content == token.content) {
                named.push(token);
            }
        }
        let extra = listed.into_iter().filter(|token| !known.contains(&alike(token)));
        extra.chain(named).collect()
    }

    /// The special tokens that it names.
    fn special_tokens(&self) -> Vec<ExtraToken> {
        let single = [
            &self.bos_token,
            &self.eos_token,
            &self.unk_token,
            &self.sep_token,
            &self.pad_token,
            &self.cls_token,
            &self.mask_token,
        ];
        let several = [&self.additional_special_tokens, &self.extra_special_tokens].into_iter().flatten();
        let several = several.flat_map(|tokens| match tokens {
            Value::Array(tokens) => tokens.iter().collect(),
            Value::Object(tokens) => tokens.values().collect(),
            _ => Vec::new(),
        });
        let tokens = single.into_iter().flatten().chain(several).filter_map(|token| match token {
            Value::String(content) => ListedToken::deserialize(json!({"content": content})).ok(),
            token => ListedToken::deserialize(token).ok(),
        });
        let special = |token: ListedToken| ListedToken { special: true, ..token }.into_extra();
        tokens.filter(|token| !token.content.is_empty()).map(special).collect()
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
