//! What is no configuration is refused in sentences that say what is wrong, where, and what would do.

use super::*;

#[test]
fn refusals_of_limits_and_paths_say_what_is_taken() {
    let cases: [(&str, &[&str]); 7] = [
        ("[server]\nbase_path = 'granary'", &["granary.toml: server.base_path:", "\"granary\"", "\"/granary\""]),
        (
            "[server]\ncors_origins = ['*']",
            &["granary.toml: server.cors_origins[0]:", "\"*\"", "\"https://app.example\""],
        ),
        ("[server]\nmax_connections = 0", &["server.max_connections:", "found 0", "1 to 1000000"]),
        ("[server]\nmax_concurrent_requests = 0", &["server.max_concurrent_requests:", "found 0", "1 to 1000000"]),
        (
            "[server]\ntrusted_proxies = ['10.0.0.0/8', 'proxy']",
            &["granary.toml: server.trusted_proxies[1]:", "\"proxy\"", "\"172.16.0.0/12\""],
        ),
        ("[server]\ndrain_delay = '2h'", &["server.drain_delay:", "\"2h\"", "\"0s\" to \"1h\""]),
        ("[server]\nheader_timeout = '0s'", &["server.header_timeout:", "\"0s\"", "\"100ms\" to \"1day\""]),
    ];
    for (file, parts) in cases {
        refused(&Given::file(file), parts);
    }
}

#[test]
fn keys_that_are_none_are_refused() {
    let limited = |limit: &str| {
        let hash = crate::domain::KeyHash::of("a");
        format!("[[auth.keys]]\nname = 'a'\nhash = '{hash}'\nscopes = ['read']\n{limit}")
    };
    let (no_request, fewer_than_none) = (limited("rate = 0"), limited("tokens = -1"));
    let cases: &[(&str, &[&str])] = &[
        ("[auth]\nkeys_file = ''", &["granary.toml: auth.keys_file:", "empty"]),
        ("[[auth.keys]]\nname = 'a'", &["granary.toml: auth.keys[0].hash:", "found nothing"]),
        ("[[auth.keys]]\nname = 'a'\nhash = 77", &["auth.keys[0].hash: found something else,"]),
        ("[auth]\ndisabled = 'true'", &["granary.toml: auth.disabled:", "\"true\"", "true or false"]),
        (&no_request, &["auth.keys[0].rate: found the number 0, expected a whole number of at least 1"]),
        (&fewer_than_none, &["auth.keys[0].tokens: found the number -1, expected a whole number"]),
    ];
    for (file, parts) in cases {
        refused(&Given::file(file), parts);
    }
}

#[test]
fn a_certificate_and_its_key_come_together() {
    let parts = ["granary.toml: server.tls_key:", "none in `server.tls_certificate`", "both for TLS"];
    refused(&Given::file("[server]\ntls_key = 'k.pem'"), &parts);
}

/// What a file says, and what the refusal of it does.
const IN_A_FILE: &[(&str, &[&str])] = &[
    ("[server]\nport = 'abc'", &["granary.toml: server.port:", "\"abc\"", "a whole number from 0 to 65535"]),
    ("[server]\nport = 70000", &["server.port:", "70000", "0 to 65535"]),
    ("[server]\nport = 80.0", &["server.port:", "80.0", "a whole number"]),
    ("[server]\nport = -1", &["server.port:", "-1", "0 to 65535"]),
    ("[server]\nprot = 1", &["granary.toml: server.prot:", "did you mean `port`?", "expected in server: host, port,"]),
    ("[sever]\nport = 1", &["granary.toml: sever:", "did you mean `server`?", "telemetry"]),
    ("port = 1", &["granary.toml: port:", "unknown key", "server, ai"]),
    ("server = 5", &["granary.toml: server:", "found 5", "[server]"]),
    ("[server]\nhost = 'a:80'", &["server.host:", "\"a:80\"", "without a port"]),
    ("[server]\nallowed_hosts = ['http://a']", &["granary.toml: server.allowed_hosts[0]:", "http://a", "host name"]),
    ("[server]\nallowed_hosts = 'a'", &["server.allowed_hosts:", "a list such as"]),
    ("[server]\nmax_body = '64 monkeys'", &["server.max_body:", "64 monkeys", "\"64MiB\""]),
    ("[server]\nmax_body = 0", &["server.max_body:", "\"0B\"", "\"1KiB\" to \"2GiB\""]),
    ("[server]\nmax_body = -5", &["server.max_body:", "-5", "\"64MiB\""]),
    ("[server]\nmax_inputs = 0", &["granary.toml: server.max_inputs:", "found 0", "1 to 1000000"]),
    ("[server]\nrequest_timeout = 30", &["granary.toml: server.request_timeout:", "30", "\"30s\""]),
    ("[server]\nrequest_timeout = '30'", &["server.request_timeout:", "\"30\"", "\"30s\""]),
    ("[server]\nrequest_timeout = '0s'", &["server.request_timeout:", "\"0s\"", "\"100ms\" to \"1day\""]),
    ("[ai]\nmodel_name = 'active'", &["granary.toml: ai.model_name:", "active", "reserved"]),
    ("[ai]\nmodel_name = 'a/b'", &["granary.toml: ai.model_name:", "a/b", "1 to 64"]),
    ("[ai]\nembedding_dim = 0", &["ai.embedding_dim:", "0", "at least 1"]),
    ("[ai]\nembedding_dim = 99999999", &["granary.toml: ai.embedding_dim:", "99999999", "1 to 65536"]),
    (
        "[ai]\nmodel_name = 'x'\nembedding_dim = 31\n[[ai.additional_models]]\nname = 'X'\ndimensions = 32",
        &["granary.toml: ai.embedding_dim:", "found 31, expected 32", "`X`"],
    ),
    ("[ai]\nmulti_model_enabled = 'yes'", &["ai.multi_model_enabled:", "\"yes\"", "true or false"]),
    ("[[ai.additional_models]]\npath = 'x'", &["granary.toml: ai.additional_models[0].name:", "nothing"]),
    ("[[ai.additional_models]]\nname = 'x'\nsize = 1", &["ai.additional_models[0].size:", "number 1", "string"]),
    ("[[ai.additional_models]]\nname = 'x'\nsize = 'big'", &["\"big\"", "\"small\" or \"medium\" or \"large\""]),
    ("[[ai.additional_models]]\nname = 'x'\npooling = 'avg'", &["[0].pooling:", "\"avg\"", "\"last_token\""]),
    (
        "[[ai.additional_models]]\nname = 'x'\npth = 'a'",
        &["[0].pth:", "did you mean `path`?", "in ai.additional_models[0]: name"],
    ),
    ("[[ai.additional_models]]\nname = 'x'\nprompts = { qery = '' }", &["prompts.qery", "`query`"]),
    ("[[ai.additional_models]]\nname = 'x'\nmax_tokens = 0", &["[0].max_tokens:", "at least 1"]),
    ("[[ai.additional_models]]\nname = 'x'\nworkers = 0", &["[0].workers: found the number 0,", "at least 1"]),
    ("[[ai.additional_models]]\nname = 'x'\nmax_tokens = 9999999", &["ai.additional_models.x.max_tokens:", "1048576"]),
    (
        "[[ai.additional_models]]\nname = 'x'\ndimensions = 64\nmatryoshka_dims = [128]",
        &["granary.toml: ai.additional_models.x.matryoshka_dims:", "128", "1 to 64"],
    ),
    ("[[ai.additional_models]]\nname = 'x'\npath = 'dir'\ntokenizer = 't'", &["x.tokenizer:", "`.onnx`"]),
    ("[[ai.additional_models]]\nname = 'x'\npath = ''", &["ai.additional_models.x.path:", "empty"]),
    ("[[ai.additional_models]]\nname = 'x'\n[[ai.additional_models]]\nname = 'X'", &["ai.additional_models:", "\"X\""]),
    ("[[ai.additional_models]]\nname = 'x'\naliases = ['A', 'a']", &["ai.additional_models:", "\"a\" twice"]),
    ("[ai.aliases]\nauto = 'x'", &["granary.toml: ai.aliases.\"auto\":", "reserved"]),
    ("[ai.aliases]\n'a b' = 'x'", &["ai.aliases.\"a b\":", "without spaces"]),
    ("[ai.aliases]\na = 'x/y'", &["granary.toml: ai.aliases.a:", "`x/y`", "1 to 64"]),
    ("[models]\ndata_dir = ''", &["granary.toml: models.data_dir:", "empty"]),
    ("[models]\nload_timeout = '0s'", &["models.load_timeout:", "\"0s\"", "\"1ms\" to \"1h\""]),
    ("[models]\nmemory_budget = 'much'", &["models.memory_budget: found \"much\",", "\"auto\"", "\"2GiB\""]),
    ("[models]\nmemory_budget = -1", &["models.memory_budget: found the number -1,", "\"2GiB\""]),
    ("[models]\nmemory_budget = true", &["models.memory_budget: found `true`,", "\"2GiB\""]),
    ("[models]\nidle_unload = '366days'", &["found \"366days\", expected \"0s\" to \"365days\""]),
    ("[grains]\nrollback_window = '9000h 1s'", &["found \"375days 1s\", expected \"0s\" to \"365days\""]),
    ("[models]\nidle_unload = 5", &["models.idle_unload:", "\"30s\""]),
    ("[engine]\nprovider = 'tensorrt'", &["granary.toml: engine.provider:", "\"tensorrt\"", "\"cuda\""]),
    (
        "[[ai.additional_models]]\nname = 'a'\nprovider = 'gpu'",
        &["ai.additional_models[0].provider:", "\"gpu\"", "\"cuda\""],
    ),
    ("[engine]\nprovider = 1", &["engine.provider:", "the number 1"]),
    ("[engine]\ncores = 1025", &["engine.cores:", "1025", "0 to 1024"]),
    ("[engine]\nworkers = 1000", &["engine.workers:", "1000", "0 to 256"]),
    ("[engine]\nmax_batch_texts = 0", &["engine.max_batch_texts:", "found 0", "1 to 4096"]),
    ("[engine]\nmax_queue_tokens = 5", &["engine.max_queue_tokens:", "found 5", "512 (`engine.max_batch_tokens`)"]),
    ("[engine]\nauto_truncate = 1", &["engine.auto_truncate:", "true or false"]),
    ("[grains]\ndatabase_url = 'postgres://u:secret@h/d'", &["grains.database_url:", "not support", "sqlite:///"]),
    (
        "[grains]\ndatabase_url = 'g.db'",
        &["granary.toml: grains.database_url: found no `sqlite:`", "sqlite:///absolute/path.db"],
    ),
    ("[grains]\ndatabase_url = 'sqlite:data/'", &["grains.database_url: found no file behind `sqlite:`"]),
    ("[auth]\nopen = ['health', 'docs', 'all']", &["auth.open[2]:", "\"all\"", "\"health\", \"metrics\" or \"docs\""]),
    ("[telemetry]\nlog_format = 'xml'", &["telemetry.log_format:", "\"xml\"", "\"text\" or \"json\""]),
    ("[telemetry]\nlog_filter = 'verbose'", &["telemetry.log_filter:", "\"verbose\"", "`info`"]),
    ("[telemetry]\notlp_endpoint = 'otel:4317'", &["granary.toml: telemetry.otlp_endpoint:", "http://localhost:4318"]),
    ("[telemetry]\ntrace_share = 1.5", &["granary.toml: telemetry.trace_share:", "found 1.5, expected 0 to 1"]),
    ("[telemetry]\ntrace_share = nan", &["telemetry.trace_share:", "0 to 1"]),
    ("[telemetry]\ntrace_share = 'all'", &["telemetry.trace_share:", "\"all\"", "a number"]),
    ("[telemetry]\nservice_name = ' '", &["telemetry.service_name:", "empty"]),
    ("[server\nport = 1", &["granary.toml is not TOML", "line 1"]),
    ("[server]\nport = 1\nport = 2", &["granary.toml is not TOML", "line 3, column 1: ", "duplicate key"]),
];

#[test]
fn refusals_of_the_file_name_file_key_and_expectation() {
    for (file, parts) in IN_A_FILE {
        refused(&Given::file(file), parts);
    }
}

#[test]
fn what_stands_where_a_file_is_no_toml_is_not_repeated() {
    for text in [
        "[[auth.keys]]\nhash = grn_secret",
        "[auth]\nkeys = [{ name = 'a', hash = grn_secret }]",
        "[[auth.keys]]\nhash = 'grn_secret",
        "[[auth.keys]]\nhash 'grn_secret'",
        "[auth]\ngrn_secret",
        "[auth]\nkeys = 0grn_secret",
    ] {
        let given = Given::file(text);
        refused(&given, &["granary.toml is not TOML: line 2, column "]);
        let error = given.load().expect_err("a refusal");
        assert!(!format!("{} {error:?}", given.refusal()).contains("secret"), "{error:?}");
    }
    for number in ["99999999999999999999999", "-99999999999999999999999", "0xffffffffffffffffffff"] {
        let given = Given::file(&format!("[[auth.keys]]\nhash = {number}"));
        refused(&given, &["granary.toml is not TOML: line 2, column 8: ", "no setting takes such a value"]);
        let said = format!("{} {:?}", given.refusal(), given.load().expect_err("a refusal"));
        assert!(!said.contains("99999") && !said.contains("ffff") && !said.contains("12089258"), "{said}");
    }
}

#[test]
fn refusals_of_the_environment_name_the_variable() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("GRANARY_SERVER__PORT", "abc", &["GRANARY_SERVER__PORT: server.port:", "\"abc\"", "0 to 65535"]),
        ("GRANARY_SERVER__PROT", "1", &["GRANARY_SERVER__PROT: server.prot:", "`port`"]),
        ("GRANARY_SERVER__", "1", &["GRANARY_SERVER__: server.:", "unknown key"]),
        ("GRANARY_SERVER__HOST", "", &["GRANARY_SERVER__HOST: server.host:", "empty", "unset"]),
        ("GRANARY_SERVER__ALLOWED_HOSTS", "a,b", &["GRANARY_SERVER__ALLOWED_HOSTS: server.allowed_hosts:", "list"]),
        ("GRANARY_SERVER__ALLOWED_HOSTS", "[a", &["GRANARY_SERVER__ALLOWED_HOSTS:", "\"[a\"", "TOML"]),
        ("GRANARY_SERVER__MAX_INPUTS", "0", &["GRANARY_SERVER__MAX_INPUTS: server.max_inputs:", "1 to 1000000"]),
        ("GRANARY_AI__ALIASES__X", "y", &["GRANARY_AI__ALIASES__X:", "GRANARY_AI__ALIASES='"]),
        ("GRANARY_AI__ALIASES", "{ a = 1 }", &["GRANARY_AI__ALIASES: ai.aliases.a:", "number 1"]),
        (
            "GRANARY_AI__ADDITIONAL_MODELS",
            "x",
            &["GRANARY_AI__ADDITIONAL_MODELS: ai.additional_models:", "list of tables"],
        ),
        (
            "GRANARY_AI__ADDITIONAL_MODELS",
            "[{ name = 'x', pooling = 'avg' }]",
            &["GRANARY_AI__ADDITIONAL_MODELS: ai.additional_models[0].pooling:", "\"avg\"", "\"mean\""],
        ),
        (
            "GRANARY_AI__ADDITIONAL_MODELS",
            "[{ name = 'x' }, { name = 'x' }]",
            &["GRANARY_AI__ADDITIONAL_MODELS: ai.additional_models:", "two entries"],
        ),
    ];
    for (name, value, parts) in cases {
        refused(&env(name, value), parts);
    }
}

#[test]
fn bytes_that_are_no_text_are_refused_only_where_they_are_ours() {
    use std::os::unix::ffi::OsStringExt;
    let bytes = || OsString::from_vec(vec![0xff]);
    let mut given = Given::file("");
    given.sources.env = vec![("OTHER".into(), bytes()), (bytes(), "x".into()), ("GRANARY_PORT".into(), bytes())];
    assert!(given.load().is_ok());
    given.sources.env.push(("GRANARY_SERVER__HOST".into(), bytes()));
    refused(&given, &["GRANARY_SERVER__HOST: server.host:", "not UTF-8"]);
}

#[test]
fn refusals_of_flags_name_the_flag_and_nothing_leaks() {
    let mut given = Given::file("");
    given.sources.overrides = Overrides { model: Some("active".into()), ..Overrides::default() };
    refused(&given, &["--model: ai.model_name:", "active"]);
    given.sources.overrides = Overrides { host: Some("a b".into()), ..Overrides::default() };
    refused(&given, &["--host: server.host:", "\"a b\"", "host name"]);
    given.sources.overrides = Overrides { port: Some("http".into()), ..Overrides::default() };
    refused(&given, &["--port: server.port:", "\"http\"", "a whole number from 0 to 65535"]);
    given.sources.overrides = Overrides { port: Some("-1".into()), ..Overrides::default() };
    refused(&given, &["--port: server.port:", "the number -1", "a whole number from 0 to 65535"]);
    let secret = env("GRANARY_GRAINS__DATABASE_URL", "postgres://u:secret@h/d").refusal();
    assert!(!secret.contains("secret"), "{secret}");
}

#[test]
fn one_start_names_every_bad_section() {
    let text = Given::file("[server]\nport = 'x'\n[engine]\nworkers = 'x'\n[bogus]").refusal();
    for key in ["server.port", "engine.workers", "bogus"] {
        assert!(text.contains(key), "{text}");
    }
}

#[test]
fn one_start_names_every_bad_setting() {
    let text = Given::file("[server]\nport = 1\nmax_text = 'x'\n[telemetry]\ntrace_share = 2")
        .env("GRANARY_SERVER__MAX_BODY", "x")
        .env("GRANARY_SERVER__MAX_INPUTS", "y")
        .env("GRANARY_SERVER__MAX_CONNECTIONS", "0")
        .env("GRANARY_SERVER__FOO", "1")
        .env("GRANARY_SERVER__BAR", "2")
        .env("GRANARY_AI__ADDITIONAL_MODELS", "[{ name = 'x', size = 'big' }]")
        .env("GRANARY_AI__EMBEDDING_DIM", "99999999")
        .refusal();
    for origin_and_key in [
        "granary.toml: server.max_text:",
        "GRANARY_SERVER__MAX_BODY: server.max_body:",
        "GRANARY_SERVER__MAX_INPUTS: server.max_inputs:",
        "GRANARY_SERVER__MAX_CONNECTIONS: server.max_connections:",
        "GRANARY_SERVER__FOO: server.foo:",
        "GRANARY_SERVER__BAR: server.bar:",
        "GRANARY_AI__ADDITIONAL_MODELS: ai.additional_models[0].size:",
        "GRANARY_AI__EMBEDDING_DIM: ai.embedding_dim:",
        "granary.toml: telemetry.trace_share:",
    ] {
        assert_eq!(text.matches(origin_and_key).count(), 1, "{origin_and_key} in: {text}");
    }
    assert_eq!(text.lines().count(), 1 + 9, "{text}");
}

#[test]
fn a_setting_is_not_refused_for_another_that_is() {
    for (file, refused) in [
        ("[server]\ntls_certificate = 5\ntls_key = 'k.pem'", "server.tls_certificate:"),
        ("[engine]\nmax_batch_tokens = 'few'\nmax_queue_tokens = 100", "engine.max_batch_tokens:"),
        ("[engine]\nmax_batch_tokens = 1048577", "engine.max_batch_tokens: found 1048577, expected 16 to 1048576"),
    ] {
        let text = Given::file(file).refusal();
        assert!(text.contains(refused) && text.lines().count() == 2, "{text}");
    }
}
