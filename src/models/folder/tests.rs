//! What the files of a model say of it, and which are refused.

use tempfile::TempDir;

use super::*;

/// An ONNX file with an empty graph is enough for the walk.
const EMPTY_GRAPH: [u8; 4] = [0x08, 10, 0x3a, 0];

fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = TempDir::new().expect("a folder");
    let write = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        fs_err::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs_err::write(path, content).expect("written");
    };
    write("onnx/model.onnx", &EMPTY_GRAPH);
    write("tokenizer.json", b"{}");
    for (name, content) in files {
        write(name, content.as_bytes());
    }
    folder
}

fn read_from(files: &[(&str, &str)]) -> Result<ModelFiles, FolderError> {
    read_folder(folder(files).path(), None, None)
}

const MODULES: &str = r#"[
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]"#;

#[test]
fn the_files_decide() {
    let found = read_from(&[
        ("modules.json", MODULES),
        ("1_Pooling/config.json", r#"{"word_embedding_dimension": 384, "pooling_mode_cls_token": true}"#),
        ("sentence_bert_config.json", r#"{"max_seq_length": 256, "do_lower_case": false}"#),
        (
            "config.json",
            r#"{"model_type": "bert", "hidden_size": 384, "vocab_size": 30522, "max_position_embeddings": 512}"#,
        ),
        ("config_sentence_transformers.json", r#"{"prompts": {"query": "query: ", "document": ""}}"#),
    ])
    .expect("well formed");
    assert_eq!(found.settings.pooling, Some(Pooling::Cls));
    assert_eq!(found.settings.normalize, Some(true));
    assert_eq!(found.settings.max_tokens, NonZeroU32::new(256));
    assert_eq!(found.settings.prompts, Some(Prompts { query: Some("query: ".into()), document: None }));
    assert_eq!((found.hidden_size, found.vocabulary_size, found.max_positions), (Some(384), Some(30522), Some(512)));
}

#[test]
fn every_prompt_has_its_name_and_only_those_of_a_search_are_settings() {
    let prompts = |prompts: &str| {
        let content = format!(r#"{{"prompts": {prompts}}}"#);
        let found = read_from(&[("config_sentence_transformers.json", content.as_str())]).expect("well formed");
        let named: Vec<_> = found.named_prompts.into_iter().collect();
        (found.settings.prompts.unwrap_or_default(), named)
    };
    let named = |pairs: &[(&str, &str)]| -> Vec<_> {
        pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    };
    assert_eq!(
        prompts(r#"{"query": "", "document": ""}"#),
        (Prompts::default(), named(&[("document", ""), ("query", "")]))
    );
    let passages = Prompts { query: Some("q: ".to_owned()), document: Some("p: ".to_owned()) };
    assert_eq!(
        prompts(r#"{"query": "q: ", "passage": "p: ", "clustering": "c: ", "of no use": 7}"#),
        (passages, named(&[("clustering", "c: "), ("passage", "p: "), ("query", "q: ")]))
    );
    let corpus = Prompts { query: None, document: Some("c: ".to_owned()) };
    assert_eq!(prompts(r#"{"corpus": "c: "}"#), (corpus, named(&[("corpus", "c: ")])));
    assert_eq!(
        prompts(r#"{"passage": "", "corpus": "c: "}"#),
        (Prompts::default(), named(&[("corpus", "c: "), ("passage", "")]))
    );
    let both = Prompts { query: None, document: Some("d: ".to_owned()) };
    assert_eq!(
        prompts(r#"{"document": "d: ", "passage": "p: ", "query": null}"#),
        (both, named(&[("document", "d: "), ("passage", "p: ")]))
    );
    assert!(read_from(&[("config_sentence_transformers.json", r#"{"prompts": {"query": 7}}"#)]).is_err());
}

#[test]
fn a_list_without_prompts_leaves_a_built_in_model_its_own() {
    let own = Prompts { query: Some("search_query: ".to_owned()), document: Some("search_document: ".to_owned()) };
    let built_in = EncoderSettings { prompts: Some(own.clone()), ..EncoderSettings::default() };
    let prompts = |prompts: &str| {
        let content = format!(r#"{{"prompts": {prompts}}}"#);
        let found = read_from(&[("config_sentence_transformers.json", content.as_str())]).expect("well formed");
        found.settings.or(&built_in).prompts
    };
    for empty in ["{}", "null", r#"{"query": "", "document": ""}"#, r#"{"clustering": "c: "}"#] {
        assert_eq!(prompts(empty), Some(own.clone()), "{empty}");
    }
    let of_the_files = Prompts { query: Some("q: ".to_owned()), document: None };
    assert_eq!(prompts(r#"{"query": "q: ", "document": ""}"#), Some(of_the_files));
}

#[test]
fn silence_stays_silence() {
    let found = read_from(&[]).expect("well formed");
    assert_eq!(found.settings, EncoderSettings::default());
    let modules_only = read_from(&[("modules.json", "[]")]).expect("well formed");
    assert_eq!(modules_only.settings.normalize, Some(false));
}

#[test]
fn position_tables_with_an_offset_are_shortened_and_huge_limits_ignored() {
    let found = read_from(&[
        ("config.json", r#"{"model_type": "xlm-roberta", "max_position_embeddings": 514}"#),
        ("tokenizer_config.json", r#"{"model_max_length": 1000000000000000019884624838656}"#),
    ])
    .expect("well formed");
    assert_eq!(found.settings.max_tokens, NonZeroU32::new(512));
    assert_eq!(found.positions, Some(Positions::BehindPadding("xlm-roberta".to_owned())));
    for (model_type, positions) in [("longformer", 4096), ("modernbert", 4098)] {
        let config = format!(r#"{{"model_type": "{model_type}", "max_position_embeddings": 4098}}"#);
        let found = read_from(&[("config.json", config.as_str())]).expect("well formed");
        assert_eq!(found.max_positions, Some(positions), "{model_type}");
        assert_eq!(found.positions == Some(Positions::FromZero), positions == 4098, "{model_type}");
    }
}

#[test]
fn a_size_may_be_spelt_in_several_ways_at_once() {
    let sizes = |config: &str| {
        let found = read_from(&[("config.json", config)]).unwrap_or_else(|error| panic!("{config}: {error:?}"));
        (found.hidden_size, found.max_positions)
    };
    for (config, expected) in [
        // What nomic-embed-text-v1.5 has, and had before.
        (
            r#"{"hidden_size": 768, "n_embd": 768, "max_position_embeddings": 2048, "n_positions": 8192}"#,
            (Some(768), Some(8192)),
        ),
        (r#"{"n_embd": 768, "n_positions": 8192}"#, (Some(768), Some(8192))),
        (r#"{"dim": 1, "d_model": 2, "n_embd": 3, "hidden_size": 4}"#, (Some(4), None)),
        (r#"{"dim": 1, "d_model": 2, "n_embd": 3, "hidden_size": null}"#, (Some(3), None)),
        (r#"{"dim": 1, "d_model": 2}"#, (Some(2), None)),
        (r#"{"dim": 1}"#, (Some(1), None)),
        (r#"{"max_position_embeddings": 512.0, "n_positions": null}"#, (None, Some(512))),
        (r#"{"max_position_embeddings": -1, "hidden_size": 0.5}"#, (None, None)),
        (r#"{"max_position_embeddings": 1e10, "n_positions": 0}"#, (None, None)),
    ] {
        assert_eq!(sizes(config), expected, "{config}");
    }
    assert!(read_from(&[("config.json", r#"{"hidden_size": "large"}"#)]).is_err());
}

#[test]
fn a_limit_that_is_only_inferred_is_the_smaller_one_and_one_that_is_said_stays() {
    let max_tokens = |files: &[(&str, &str)]| {
        let positions = [("config.json", r#"{"max_position_embeddings": 512}"#)];
        let found = read_from(&[&positions[..], files].concat()).expect("well formed");
        found.settings.max_tokens.map(NonZeroU32::get)
    };
    assert_eq!(max_tokens(&[("tokenizer_config.json", r#"{"model_max_length": 8192}"#)]), Some(512));
    assert_eq!(max_tokens(&[("tokenizer_config.json", r#"{"model_max_length": 128}"#)]), Some(128));
    assert_eq!(max_tokens(&[]), Some(512));
    assert_eq!(max_tokens(&[("sentence_bert_config.json", r#"{"max_seq_length": 8192}"#)]), Some(8192));
}

#[test]
fn a_maximum_length_is_found_under_each_name_and_in_the_transformers_own_folder() {
    let limit = |files: &[(&str, &str)]| {
        let others = [("config.json", r#"{"max_position_embeddings": 512}"#), ("modules.json", MODULES)];
        let found = read_from(&[&others[..], files].concat()).expect("well formed");
        found.settings.max_tokens.map(NonZeroU32::get)
    };
    for name in SENTENCE_CONFIGS {
        assert_eq!(limit(&[(name, r#"{"max_seq_length": 8}"#)]), Some(8), "{name}");
    }
    let in_its_folder = MODULES.replace(r#""path": """#, r#""path": "0_Transformer""#);
    let modules = ("modules.json", in_its_folder.as_str());
    let in_the_models = ("sentence_bert_config.json", r#"{"max_seq_length": 9}"#);
    let own = ("0_Transformer/sentence_bert_config.json", r#"{"max_seq_length": 8}"#);
    assert_eq!(limit(&[modules, in_the_models]), Some(9));
    assert_eq!(limit(&[modules, in_the_models, own]), Some(8));
    let lowers = ("0_Transformer/sentence_roberta_config.json", r#"{"do_lower_case": true}"#);
    let refusal = read_from(&[modules, lowers]).expect_err("the tokenizer keeps capitals").to_string();
    assert!(refusal.contains("0_Transformer/sentence_roberta_config.json"), "{refusal}");
}

#[test]
fn capitals_that_the_tokenizer_keeps_and_the_model_does_not_are_refused() {
    let read = |lowers: &str, normalizer: &str| {
        let sentence = format!(r#"{{"do_lower_case": {lowers}}}"#);
        let tokenizer = format!(r#"{{"normalizer": {normalizer}, "model": {{"vocab": {{"a": 0}}}}}}"#);
        read_from(&[("sentence_bert_config.json", sentence.as_str()), ("tokenizer.json", tokenizer.as_str())])
    };
    let sequence = r#"{"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}"#;
    for normalizer in [
        r#"{"type": "Lowercase"}"#,
        r#"{"type": "BertNormalizer", "lowercase": true, "strip_accents": null}"#,
        sequence,
        &format!(r#"{{"type": "Sequence", "normalizers": [{sequence}]}}"#),
    ] {
        assert!(read("true", normalizer).is_ok(), "{normalizer}");
    }
    for normalizer in [
        "null",
        r#"{"type": "NFC"}"#,
        r#"{"type": "BertNormalizer", "lowercase": false}"#,
        r#"{"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "b"}]}"#,
    ] {
        let refusal = read("true", normalizer).expect_err(normalizer).to_string();
        assert!(refusal.contains("sentence_bert_config.json") && refusal.contains("`do_lower_case`"), "{refusal}");
        assert!(read("false", normalizer).is_ok() && read("null", normalizer).is_ok(), "{normalizer}");
    }
}

/// What is said of a `tokenizer_config.json` beside a `tokenizer.json` and a `config.json`; empty where it is read.
fn refusal_of_tokenizer(config: &str, tokenizer: &str, architecture: &str) -> String {
    let read =
        read_from(&[("tokenizer_config.json", config), ("tokenizer.json", tokenizer), ("config.json", architecture)]);
    read.map_or_else(|error| error.to_string(), |_| String::new())
}

#[test]
fn rules_for_texts_that_the_tokenizers_own_class_sets_otherwise_are_refused() {
    let read = |config: &str, rules: &str| {
        let tokenizer = format!(r#"{{"normalizer": {{"type": "BertNormalizer", {rules}}}}}"#);
        refusal_of_tokenizer(config, &tokenizer, r#"{"model_type": "bert"}"#)
    };
    let (cased, uncased) = (r#""lowercase": false"#, r#""lowercase": true, "strip_accents": null"#);
    for (config, rules, key) in [
        (r#"{"tokenizer_class": "BertTokenizer", "do_lower_case": true}"#, cased, "`do_lower_case` is true"),
        (r#"{"tokenizer_class": "BertTokenizerFast", "do_lower_case": true}"#, cased, "`do_lower_case` is true"),
        (r#"{"tokenizer_class": "MPNetTokenizer", "do_lower_case": true}"#, cased, "`do_lower_case` is true"),
        (r#"{"tokenizer_class": "DistilBertTokenizer", "do_lower_case": false}"#, uncased, "`do_lower_case` is false"),
        (r#"{"do_lower_case": false}"#, uncased, "`do_lower_case` is false"),
        (r#"{"tokenizer_class": "BertTokenizer"}"#, cased, "no `do_lower_case`, which stands for true"),
        (r#"{"auto_map": {"AutoModel": "a.B"}, "do_lower_case": null}"#, cased, "no `do_lower_case`"),
        (r#"{"strip_accents": false}"#, uncased, "`strip_accents` is false"),
        (r#"{"do_lower_case": false, "strip_accents": true}"#, cased, "`strip_accents` is true"),
        (r#"{"model_max_length": 512}"#, r#""lowercase": true, "strip_accents": false"#, "no `strip_accents`"),
        (r#"{"tokenize_chinese_chars": false}"#, uncased, "`tokenize_chinese_chars` is false"),
        (r#"{"strip_accents": null}"#, r#""lowercase": true, "handle_chinese_chars": false"#, "no `tokenize_chinese"),
    ] {
        let refusal = read(config, rules);
        assert!(refusal.contains("tokenizer_config.json") && refusal.contains(key), "{config}, {rules}: {refusal}");
        assert!(refusal.contains("save_pretrained"), "{refusal}");
    }
    for (config, rules) in [
        (r#"{"tokenizer_class": "BertTokenizer", "do_lower_case": true}"#, uncased),
        (r#"{"tokenizer_class": "BertTokenizer", "do_lower_case": false}"#, cased),
        ("{}", uncased),
        (r#"{"strip_accents": true}"#, r#""lowercase": true, "strip_accents": true"#),
        (r#"{"strip_accents": true}"#, uncased),
        (r#"{"tokenize_chinese_chars": false}"#, r#""lowercase": true, "handle_chinese_chars": false"#),
        (r#"{"tokenizer_class": "MPNetTokenizer", "tokenize_chinese_chars": false}"#, uncased),
        (r#"{"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": true}"#, cased),
        (r#"{"tokenizer_class": "XLMRobertaTokenizer", "do_lower_case": true}"#, cased),
        (r#"{"auto_map": {"AutoTokenizer": ["a.B", null]}, "do_lower_case": true}"#, cased),
    ] {
        assert_eq!(read(config, rules), "", "{config}, {rules}");
    }
}

#[test]
fn rules_that_no_class_sets_and_folders_that_say_nothing_are_read() {
    let cased = r#"{"normalizer": {"type": "BertNormalizer", "lowercase": false}}"#;
    assert!(read_from(&[("tokenizer.json", cased), ("config.json", r#"{"model_type": "bert"}"#)]).is_ok());
    assert_eq!(refusal_of_tokenizer("{}", cased, r#"{"model_type": "modernbert"}"#), "");
    assert_eq!(refusal_of_tokenizer("{}", cased, r#"{"model_type": "bert", "tokenizer_class": "OwnTokenizer"}"#), "");
    let nested = r#"{"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}}"#;
    assert_eq!(refusal_of_tokenizer(r#"{"do_lower_case": false}"#, nested, r#"{"model_type": "bert"}"#), "");
}

#[test]
fn a_space_before_texts_that_is_set_otherwise_is_refused() {
    let read = |config: &str, splitter: &str| {
        refusal_of_tokenizer(config, &format!(r#"{{"pre_tokenizer": {splitter}}}"#), "{}")
    };
    let (adds, adds_none) =
        (r#"{"type": "ByteLevel", "add_prefix_space": true}"#, r#"{"type": "ByteLevel", "add_prefix_space": false}"#);
    for class in ["RobertaTokenizer", "PreTrainedTokenizerFast"] {
        for (said, splitter, is_read) in [
            (r#", "add_prefix_space": true"#, adds, true),
            (r#", "add_prefix_space": false"#, adds_none, true),
            (r#", "add_prefix_space": null"#, adds, true),
            ("", adds_none, true),
            (r#", "add_prefix_space": true"#, r#"{"type": "Metaspace", "add_prefix_space": false}"#, true),
            (r#", "add_prefix_space": true"#, r#"{"type": "Sequence", "pretokenizers": []}"#, true),
            (r#", "add_prefix_space": true"#, "null", true),
            (r#", "add_prefix_space": true"#, adds_none, false),
            (r#", "add_prefix_space": false"#, adds, false),
            ("", adds, false),
        ] {
            let refusal = read(&format!(r#"{{"tokenizer_class": "{class}"{said}}}"#), splitter);
            assert_eq!(refusal.is_empty(), is_read, "{class}{said}, {splitter}: {refusal}");
            assert!(is_read || refusal.contains("`add_prefix_space`"), "{refusal}");
        }
    }
}

#[test]
fn special_tokens_that_are_read_as_words_are_refused() {
    let split = refusal_of_tokenizer(r#"{"split_special_tokens": true}"#, "{}", "{}");
    assert!(split.contains("tokenizer_config.json") && split.contains("`split_special_tokens`"), "{split}");
    assert_eq!(refusal_of_tokenizer(r#"{"split_special_tokens": false}"#, "{}", "{}"), "");
}

#[test]
fn a_token_that_texts_are_said_to_get_has_two_spellings() {
    let added_by = |class: &str, config: &str| {
        let config = format!("{{{class}, {config}}}");
        let found = read_from(&[("tokenizer_config.json", config.as_str())]);
        found.unwrap_or_else(|error| panic!("{config}: {error:?}")).added_tokens
    };
    let added = |config: &str| added_by(r#""tokenizer_class": "LlamaTokenizerFast""#, config);
    let eos = vec![("add_eos_token", "</s>".to_owned())];
    assert_eq!(added(r#""add_eos_token": true, "eos_token": "</s>""#), eos);
    assert_eq!(added(r#""add_eos_token": true, "eos_token": {"content": "</s>", "lstrip": false}"#), eos);
    let both = r#""add_bos_token": true, "bos_token": "<s>", "add_eos_token": true, "eos_token": "</s>""#;
    assert_eq!(added(both), [("add_bos_token", "<s>".to_owned()), ("add_eos_token", "</s>".to_owned())]);
    for none in [
        r#""add_eos_token": false, "eos_token": "</s>""#,
        r#""add_eos_token": null, "eos_token": "</s>""#,
        r#""add_eos_token": true, "eos_token": null"#,
        r#""add_eos_token": true"#,
        r#""eos_token": "</s>""#,
    ] {
        assert!(added(none).is_empty(), "{none}");
    }
    let flag = r#""add_eos_token": true, "eos_token": "</s>""#;
    assert_eq!(added_by(r#""tokenizer_class": "OwnTokenizer", "auto_map": {}"#, flag), eos);
    assert!(added_by(r#""tokenizer_class": "PreTrainedTokenizerFast""#, flag).is_empty());
}

#[test]
fn a_maximum_length_may_be_a_float_or_none() {
    for (length, expected) in [("256", 256), ("256.0", 256), ("-1", 512), ("0", 512), ("null", 512)] {
        let sentence = format!(r#"{{"max_seq_length": {length}, "do_lower_case": false}}"#);
        let config = ("config.json", r#"{"max_position_embeddings": 512}"#);
        let found = read_from(&[("sentence_bert_config.json", sentence.as_str()), config]).expect(length);
        assert_eq!(found.settings.max_tokens, NonZeroU32::new(expected), "{length}");
    }
    assert!(read_from(&[("sentence_bert_config.json", r#"{"max_seq_length": "long"}"#)]).is_err());
}

#[test]
fn what_the_tokenizer_is_handed_is_followed_or_refused() {
    let read = |settings: &str| {
        let sentence = format!(r#"{{"max_seq_length": 128, {settings}}}"#);
        read_from(&[("sentence_bert_config.json", sentence.as_str()), ("config.json", r#"{"n_positions": 512}"#)])
    };
    for (settings, limit) in [
        (r#""processing_kwargs": {}, "processor_kwargs": null, "tokenizer_args": {}"#, 128),
        (r#""processing_kwargs": {"text": {"max_length": 24, "truncation": true, "padding": "longest"}}"#, 24),
        (r#""processing_kwargs": {"text": {}, "image": {"size": 7}, "audio": null}"#, 128),
        (r#""processing_kwargs": {"common": {"return_tensors": "pt"}, "text": {"add_special_tokens": true}}"#, 128),
        (r#""tokenizer_args": {"model_max_length": 64, "padding_side": "left"}"#, 64),
        (r#""processor_kwargs": {"model_max_length": 32, "do_lower_case": false}"#, 32),
        (r#""processor_kwargs": {"model_max_length": 32}, "tokenizer_args": {"use_fast": true}"#, 128),
        (r#""tokenizer_args": {"truncation_side": "left"}"#, 128),
    ] {
        let found = read(settings).unwrap_or_else(|error| panic!("{settings}: {error}"));
        assert_eq!(found.settings.max_tokens, NonZeroU32::new(limit), "{settings}");
    }
    for (settings, said) in [
        (
            r#""processing_kwargs": {"text": {"add_special_tokens": false}}"#,
            "`processing_kwargs.text` hands the tokenizer `add_special_tokens: false`",
        ),
        (r#""processing_kwargs": {"common": {"max_length": 24}}"#, "`processing_kwargs.common`"),
        (r#""processing_kwargs": {"text": {"truncation": false}}"#, "`truncation: false`"),
        (r#""processing_kwargs": {"chat_template": {"add_generation_prompt": true}}"#, "`add_generation_prompt: true`"),
        (
            r#""processor_kwargs": {"do_lower_case": true}"#,
            "`processor_kwargs` hands the tokenizer `do_lower_case: true`",
        ),
        (r#""tokenizer_args": {"truncation_side": "middle"}"#, "`tokenizer_args` hands"),
        (r#""tokenizer_args": {"model_max_length": "long"}"#, "`model_max_length: \"long\"`"),
        (r#""tokenizer_args": {"strip_accents": false}"#, "`strip_accents: false`"),
        (r#""query_length": 8"#, "`query_length`"),
        (r#""query_length": null, "document_length": 64"#, "`document_length`"),
    ] {
        let refusal = read(settings).expect_err(settings).to_string();
        assert!(refusal.contains("sentence_bert_config.json") && refusal.contains(said), "{refusal}");
    }
}

#[test]
fn tokens_that_only_the_configuration_lists_are_added_in_the_order_of_their_ids() {
    let tokenizer = r#"{"added_tokens": [{"id": 0, "content": "[CLS]", "special": true, "normalized": false}], "model": {"vocab": {"word": 1}}}"#;
    let extra = |listed: &str| {
        let config = format!(r#"{{"added_tokens_decoder": {listed}}}"#);
        read_from(&[("tokenizer_config.json", config.as_str()), ("tokenizer.json", tokenizer)])
    };
    for none in ["null", "{}", r#"{"0": {"content": "[CLS]", "normalized": false}}"#, r#"{"5": {"content": ""}}"#] {
        assert_eq!(extra(none).expect("well formed").extra_tokens, [], "{none}");
    }
    let listed = r#"{
        "10": {"content": "<b>", "special": true, "lstrip": true, "normalized": true},
        "9": {"content": "<a>", "special": true, "__type": "AddedToken"},
        "1": {"content": "word", "rstrip": true, "single_word": true}}"#;
    let token = |content: &str| ExtraToken {
        content: content.to_owned(),
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: true,
        special: true,
    };
    let other = extra(r#"{"0": {"content": "[CLS]", "special": true, "lstrip": true}}"#).expect("well formed");
    assert_eq!(other.extra_tokens, [ExtraToken { lstrip: true, normalized: false, ..token("[CLS]") }]);
    let expected = [
        ExtraToken { rstrip: true, single_word: true, special: false, ..token("word") },
        ExtraToken { normalized: false, ..token("<a>") },
        ExtraToken { lstrip: true, ..token("<b>") },
    ];
    assert_eq!(extra(listed).expect("well formed").extra_tokens, expected);
    for malformed in [r#"{"one": {"content": "<a>"}}"#, r#"{"1": "<a>"}"#] {
        let refusal = extra(malformed).expect_err("transformers fails on it").to_string();
        assert!(refusal.contains("tokenizer_config.json"), "{refusal}");
    }
}

#[test]
fn special_tokens_that_the_configuration_names_alone_are_added_behind_those_that_it_lists() {
    let tokenizer = r#"{"added_tokens": [{"id": 0, "content": "[CLS]", "special": true, "normalized": false}], "model": {"vocab": {"[MASK]": 1}}}"#;
    let config = r#"{
        "added_tokens_decoder": {"9": {"content": "<a>", "special": true}},
        "cls_token": "[CLS]", "mask_token": "[MASK]", "pad_token": null, "bos_token": "",
        "sep_token": {"content": "[SEP]", "lstrip": true, "normalized": true},
        "additional_special_tokens": ["<a>", "<b>"],
        "extra_special_tokens": {"image_token": "<image>", "again": "[MASK]"}}"#;
    let read = read_from(&[("tokenizer_config.json", config), ("tokenizer.json", tokenizer)]).expect("well formed");
    let token = |content: &str| ExtraToken {
        content: content.to_owned(),
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
        special: true,
    };
    let sep = ExtraToken { lstrip: true, normalized: true, ..token("[SEP]") };
    assert_eq!(read.extra_tokens, [token("<a>"), sep, token("[MASK]"), token("<b>"), token("<image>")]);
}

#[test]
fn the_end_that_is_cut_off_is_that_of_the_setting_nearest_to_the_tokenizers_call() {
    let side = |config: &str, sentence: &str| {
        let files = [("tokenizer_config.json", config), ("sentence_bert_config.json", sentence)];
        read_from(&files).expect("well formed").truncation_side
    };
    let (left, right) = (r#"{"truncation_side": "left"}"#, r#"{"truncation_side": "right"}"#);
    for (config, sentence, expected) in [
        ("{}", "{}", None),
        (left, "{}", Some(TruncationSide::Left)),
        (right, "{}", Some(TruncationSide::Right)),
        (r#"{"truncation_side": null, "padding_side": "left"}"#, "{}", None),
        (left, r#"{"processor_kwargs": {"truncation_side": "right"}}"#, Some(TruncationSide::Right)),
        (right, r#"{"tokenizer_args": {"truncation_side": "left"}}"#, Some(TruncationSide::Left)),
    ] {
        assert_eq!(side(config, sentence), expected, "{config}, {sentence}");
    }
}

#[test]
fn a_malformed_file_is_named() {
    let refusal = read_from(&[("config.json", "{")]).expect_err("refused").to_string();
    assert!(refusal.contains("config.json"), "{refusal}");
}

#[test]
fn a_model_whose_modules_have_no_graph_is_refused_by_their_name() {
    let folder = TempDir::new().expect("a folder");
    let modules = r#"[{"path": "", "type": "sentence_transformers.models.StaticEmbedding"}]"#;
    fs_err::write(folder.path().join("modules.json"), modules).expect("written");
    let refusal = read_folder(folder.path(), None, None).expect_err("no graph").to_string();
    assert!(refusal.contains("modules.json") && refusal.contains("the module `StaticEmbedding`"), "{refusal}");
}

#[test]
fn a_bare_file_finds_its_tokenizer_beside_it() {
    let folder = TempDir::new().expect("a folder");
    let onnx = folder.path().join("bert.onnx");
    fs_err::write(&onnx, EMPTY_GRAPH).expect("written");
    let missing = read_bare_file(&onnx, None).expect_err("no tokenizer").to_string();
    assert!(missing.contains("bert.tokenizer.json") && missing.contains("/tokenizer.json"), "{missing}");
    for name in ["tokenizer.json", "bert.tokenizer.json"] {
        fs_err::write(folder.path().join(name), "{}").expect("written");
        assert_eq!(read_bare_file(&onnx, None).expect("found").tokenizer, folder.path().join(name));
    }
    let gone = folder.path().join("no.onnx");
    assert!(read_bare_file(&gone, None).expect_err("no file").to_string().contains("no.onnx"));
}
