mod refusals;

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::domain::{ModelSize, ModelSource};

/// A configuration from one file's text, environment variables and flags, without touching the process.
struct Given {
    directory: tempfile::TempDir,
    sources: ConfigSources,
}

impl Given {
    fn file(text: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs_err::write(directory.path().join("granary.toml"), text).expect("a writable directory");
        let sources = ConfigSources { directory: Some(directory.path().to_owned()), ..ConfigSources::default() };
        Self { directory, sources }
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.sources.env.push((name.into(), value.into()));
        self
    }

    fn load(&self) -> Result<Config, ConfigError> {
        Config::load(&self.sources)
    }

    /// The refusal's text, with the temporary directory taken out.
    fn refusal(&self) -> String {
        let error = self.load().expect_err("a refusal");
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        text.replace(&format!("{}/", self.directory.path().display()), "")
    }
}

fn env(name: &str, value: &str) -> Given {
    Given::file("").env(name, value)
}

/// Refused with a message that holds every one of `parts`.
fn refused(given: &Given, parts: &[&str]) {
    let text = given.refusal();
    assert!(!text.contains("invalid type"), "serde's words are not an operator's: {text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[test]
fn the_default_is_the_embedded_file() {
    insta::assert_snapshot!(Config::default().effective_toml());
}

#[test]
fn the_settings_commented_out_in_the_default_are_valid() {
    let setting = |line: &'static str| line.strip_prefix('#').filter(|rest| !rest.is_empty() && !rest.starts_with(' '));
    let uncommented: Vec<&str> = Config::default_toml().lines().map(|line| setting(line).unwrap_or(line)).collect();
    let config = Given::file(&uncommented.join("\n")).load().expect("every example is valid");
    assert_eq!(config.ai.additional_models.len(), 2);
    assert_eq!(config.ai.aliases.len(), 1);
    assert!(config.engine.runtime_library.is_some() && config.grains.database_url.is_some());
    insta::assert_snapshot!(config.effective_toml());
}

#[test]
fn the_configuration_of_the_design_loads_word_for_word() {
    let config = Given::file(
        r#"
[ai]
model_name = "all-MiniLM-L6-v2"
embedding_dim = 384
multi_model_enabled = true

[[ai.additional_models]]
name = "bert-base-uncased"
path = "bert-base-uncased.onnx"
size = "medium"
auto_load = false
"#,
    )
    .load()
    .expect("the design's example");
    let model = &config.ai.additional_models[0];
    assert_eq!(
        (model.name.as_str(), model.size, model.auto_load),
        ("bert-base-uncased", Some(ModelSize::Medium), false)
    );
    let onnx = Path::new(".granary/models/bert-base-uncased.onnx").to_owned();
    assert_eq!(model.source(&config.models.models_dir()), Some(ModelSource::File { onnx, tokenizer: None }));
    assert_eq!(config.ai.embedding_dim.map(std::num::NonZeroU32::get), Some(384));
}

#[test]
fn each_layer_wins_over_the_one_before() {
    let file = "[server]\nport = 1\nhost = 'localhost'\nmax_inputs = 5\n[telemetry]\nlog_format = 'json'";
    let mut given = Given::file(file).env("GRANARY_SERVER__PORT", "2").env("GRANARY_SERVER__MAX_BODY", "1048576");
    given.sources.overrides = Overrides { port: Some("3".into()), model: Some("m".into()), ..Overrides::default() };
    let config = given.load().expect("a configuration");
    assert_eq!(config.server.port, 3);
    assert_eq!(config.server.host.as_str(), "localhost");
    assert_eq!(config.server.max_body, bytesize::ByteSize::mib(1));
    assert_eq!(config.telemetry.log_format, LogFormat::Json);
    assert_eq!(config.ai.model_name.as_str(), "m");

    let origin = |key| config.origin(key).replace(&format!("{}/", given.directory.path().display()), "");
    assert_eq!(origin("server.port"), "--port");
    assert_eq!(origin("server.max_body"), "GRANARY_SERVER__MAX_BODY");
    assert_eq!(origin("server.max_inputs"), "granary.toml");
    assert_eq!(origin("server.request_timeout"), "the built-in default");
    assert_eq!(origin("ai.embedding_dim"), "the built-in default");
}

#[test]
fn the_model_may_be_left_to_the_machine() {
    for word in ["auto", "AUTO"] {
        let config = env("GRANARY_AI__MODEL_NAME", word).load().expect("a configuration");
        assert_eq!(config.ai.model_name, ModelChoice::Auto);
        assert!(config.effective_toml().contains("model_name = \"auto\""));
    }
}

#[test]
fn a_named_file_must_exist_and_the_implicit_one_need_not() {
    let empty = tempfile::tempdir().expect("a temporary directory");
    let implicit = ConfigSources { directory: Some(empty.path().to_owned()), ..ConfigSources::default() };
    let config = Config::load(&implicit).expect("defaults");
    assert_eq!(config.effective_toml(), Config::default().effective_toml());

    let named = ConfigSources { file: Some(empty.path().join("other.toml")), ..ConfigSources::default() };
    let error = Config::load(&named).expect_err("a missing file");
    assert!(matches!(&error, ConfigError::Unreadable { path, .. } if path.ends_with("other.toml")), "{error}");

    std::os::unix::fs::symlink("nowhere.toml", empty.path().join("granary.toml")).expect("linked");
    let error = Config::load(&implicit).expect_err("a link that leads nowhere");
    assert!(matches!(&error, ConfigError::Unreadable { path, .. } if path.ends_with("granary.toml")), "{error}");
}

#[test]
fn a_named_file_is_read_instead_of_the_implicit_one() {
    let mut given = Given::file("[server]\nport = 'never read'");
    let other = given.directory.path().join("other.toml");
    fs_err::write(&other, "[server]\nport = 9").expect("a writable directory");
    given.sources.file = Some(other);
    assert_eq!(given.load().expect("a configuration").server.port, 9);
}

#[test]
fn variables_of_others_are_ignored() {
    let config = env("GRANARY_PORT", "tcp://10.0.0.1:80")
        .env("GRANARY_PORT_8080_TCP_ADDR", "10.0.0.1")
        .env("GRANARY_SERVICE_HOST", "10.0.0.1")
        .env("GRANARY_SERVER_PORT", "tcp://10.0.0.1:80")
        .env("GRANARY_BLUE__PORT", "1")
        .env("GRANARYX_SERVER__PORT", "1")
        .load()
        .expect("nothing of ours");
    assert_eq!(config.effective_toml(), Config::default().effective_toml());
}

#[test]
fn variables_are_toml_where_plain_strings_need_no_quotes() {
    let config = env("GRANARY_AI__MODEL_NAME", "2024")
        .env("GRANARY_TELEMETRY__LOG_FILTER", "[request]=debug")
        .env("GRANARY_SERVER__ALLOWED_HOSTS", r#"["a.example", 'B.example']"#)
        .env("GRANARY_SERVER__SHUTDOWN_TIMEOUT", "\"5s\"")
        .env("GRANARY_GRAINS__ENABLED", "false")
        .env("GRANARY_GRAINS__DATABASE_URL", "sqlite:///var/g.db")
        .env("GRANARY_AI__ALIASES", r#"{ "text-embedding-3-small" = "x" }"#)
        .load()
        .expect("values");
    assert_eq!(config.ai.model_name.as_str(), "2024");
    assert_eq!(config.telemetry.log_filter, "[request]=debug".parse::<LogFilter>().expect("a filter"));
    assert!(config.server.allowed_hosts[1].matches("b.example"));
    assert_eq!(config.server.shutdown_timeout.as_secs(), 5);
    assert!(!config.grains.enabled);
    assert_eq!(config.database_path(), Path::new("/var/g.db"));
    assert_eq!(config.ai.aliases["text-embedding-3-small"].as_str(), "x");
}

#[test]
fn standard_variables_of_traces_are_weaker_than_file_and_our_own() {
    let given = |file: &str| {
        Given::file(file)
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://standard:4318")
            .env("OTEL_SERVICE_NAME", "of the standard")
    };
    let telemetry = |given: Given| given.load().expect("a configuration").telemetry;
    let found = telemetry(given(""));
    let address = |found: &TelemetryConfig| found.otlp_endpoint.as_ref().expect("an address").for_traces().to_string();
    assert_eq!((address(&found).as_str(), &*found.service_name), ("http://standard:4318/v1/traces", "of the standard"));
    let file = "[telemetry]\notlp_endpoint = 'http://file:4318'\nservice_name = 'of the file'\ntrace_share = 1";
    let found = telemetry(given(file).env("GRANARY_TELEMETRY__SERVICE_NAME", "ours"));
    assert_eq!((address(&found).as_str(), &*found.service_name), ("http://file:4318/v1/traces", "ours"));
    assert!(telemetry(Given::file("").env("OTEL_EXPORTER_OTLP_ENDPOINT", " ")).otlp_endpoint.is_none());
    refused(
        &env("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4317"),
        &["OTEL_EXPORTER_OTLP_ENDPOINT: telemetry.otlp_endpoint:", "http://localhost:4318"],
    );
}

#[test]
fn models_of_the_environment_are_added_by_name() {
    let file = "[[ai.additional_models]]\nname = 'One'\npath = 'file'\nsize = 'small'\n\
                [[ai.additional_models]]\nname = 'two'\npath = 'file'";
    let added = r#"[{ name = "three", path = "/env" }, { name = "one", path = "env.ONNX", tokenizer = "t.json" }]"#;
    let config = Given::file(file).env("GRANARY_AI__ADDITIONAL_MODELS", added).load().expect("three models");
    let models: Vec<_> =
        config.ai.additional_models.iter().map(|m| (m.name.as_str(), m.source(Path::new("/models")))).collect();
    let file = |path: &str| ModelSource::Folder(path.into());
    let onnx = ModelSource::File { onnx: "/models/env.ONNX".into(), tokenizer: Some("/models/t.json".into()) };
    assert_eq!(
        models,
        [("one", Some(onnx)), ("two", Some(file("/models/file"))), ("three", Some(file("/env")))],
        "an entry of the same name replaces the file's whole"
    );
    assert_eq!(config.ai.additional_models[0].size, None);
}

/// A key's line of the configuration.
fn key(name: &str, scopes: &str) -> String {
    let hash = crate::domain::KeyHash::of(name);
    format!("{{ name = \"{name}\", hash = \"{hash}\", scopes = [{scopes}] }}")
}

#[test]
fn keys_of_the_environment_are_added_by_name() {
    let file = format!("[auth]\nkeys = [{}, {}]", key("one", "'read'"), key("two", "'read'"));
    let added = format!("[{}, {}]", key("two", "'embed', 'write'"), key("three", "'admin'"));
    let config = Given::file(&file).env("GRANARY_AUTH__KEYS", &added).load().expect("three keys");
    let keys: Vec<_> = config.auth.keys.iter().map(|key| format!("{}:{}", key.name, key.scopes)).collect();
    assert_eq!(keys, ["one:read", "two:embed,write", "three:admin"], "a key of the same name replaces the file's");
    let again = Given::file(&config.effective_toml()).load().expect("what was printed");
    assert_eq!(again.auth, config.auth);

    let twice = format!("[{}, {}]", key("one", "'read'"), key("one", "'read'"));
    refused(&env("GRANARY_AUTH__KEYS", &twice), &["GRANARY_AUTH__KEYS: auth.keys:", "two keys named \"one\""]);
    refused(&Given::file(&format!("[auth]\nkeys = {twice}")), &["granary.toml: auth.keys:", "two keys named \"one\""]);
}

#[test]
fn a_key_that_stands_where_its_hash_belongs_is_not_repeated() {
    let secret = "grn_secret-of-somebody";
    for value in [
        secret,
        &format!("['{secret}']"),
        &format!("[{secret}"),
        &format!("[{{ name = 'a', hash = '{secret}', scopes = ['read'] }}]"),
        &format!("[{{ name = 'a', hash = 'sha256:{secret}', scopes = ['read'] }}]"),
        &format!("[{{ name = 'a', scopes = '{secret}' }}]"),
        &format!("[{{ name = ' {secret}' }}]"),
        &format!("[{{ name = 'a', scopes = ['{secret}'] }}]"),
        &format!("[{{ name = 'a', rate = '{secret}' }}]"),
    ] {
        let given = env("GRANARY_AUTH__KEYS", value);
        refused(&given, &["GRANARY_AUTH__KEYS: auth.keys"]);
        assert!(!given.refusal().contains("secret"), "{}", given.refusal());
        if value.starts_with('[') && value.ends_with(']') {
            let given = Given::file(&format!("[auth]\nkeys = {value}"));
            refused(&given, &["granary.toml: auth.keys"]);
            assert!(!given.refusal().contains("secret"), "{}", given.refusal());
        }
    }
}

proptest! {
    #[test]
    fn the_effective_configuration_loads_as_itself(
        port in any::<u16>(),
        max_body in 1024u64..=2 << 30,
        timeout_ms in 100u64..=3_600_000,
        name in "[A-Za-z0-9][A-Za-z0-9._-]{0,10}x",
        prompt in ".{0,20}",
        auto_load in any::<bool>(),
    ) {
        let mut config = Config::default();
        config.server.port = port;
        config.server.max_body = bytesize::ByteSize::b(max_body);
        config.server.shutdown_timeout = std::time::Duration::from_millis(timeout_ms);
        let entry = format!("name = {name:?}\nauto_load = {auto_load}");
        let mut model: AdditionalModel = toml::from_str(&entry).expect("an entry");
        model.prompts = Some(crate::domain::Prompts { query: Some(prompt), document: None });
        config.ai.additional_models.push(model);

        let text = config.effective_toml();
        let again = Given::file(&text).load().expect("what was printed");
        prop_assert_eq!(again.effective_toml(), text);
        prop_assert_eq!(again.server, config.server);
        prop_assert_eq!(again.ai, config.ai);
    }
}
