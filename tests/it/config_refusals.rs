//! What the process makes of its configuration: what it refuses and how it says so, and what it takes.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::helpers::{
    MINILM, Process, TestApp, client, data_dir, entry_of, folder_with, send, test_model, vectors_of, with_tiny,
};

/// What `granary serve` says when it does not start. It must not have made anything.
fn refusal(toml: &str, flags: &[&str], variables: &[(&str, &str)]) -> String {
    let folder = folder_with(toml);
    let mut process = Process::start(folder.path(), &[&["serve"], flags].concat(), variables);
    assert_eq!(process.wait().code(), Some(1), "{}", process.log());
    let made = fs_err::read_dir(folder.path()).expect("a folder").count();
    assert_eq!(made, 1, "a refused start leaves the folder as it was");
    process.log()
}

#[test]
fn a_refused_start_says_where_which_key_and_what_was_expected() {
    let model = "[[ai.additional_models]]\nname = 'mine'\n";
    for (toml, said) in [
        (
            "[server]\nprot = 1",
            "granary.toml: server.prot: found an unknown key; did you mean `port`? expected in server: host, port",
        ),
        (
            "[sever]\nport = 1",
            "granary.toml: sever: found an unknown key; did you mean `server`? expected in the file: server, ai",
        ),
        (
            "[server]\nport = 'http'",
            "granary.toml: server.port: found \"http\", expected a whole number from 0 to 65535",
        ),
        ("[engine]\nworkers = 1000", "granary.toml: engine.workers: found 1000, expected 0 to 256"),
        (
            "[server]\nhost = '0.0.0.0'",
            "granary.toml: server.host: found \"0.0.0.0\", which other machines can reach, and there is no key",
        ),
        (model, "granary.toml: ai.additional_models: `mine` is no built-in model, so its entry needs a `path`"),
        (
            "[ai.aliases]\nada = 'mine'",
            "granary.toml: ai.aliases.\"ada\": no model is called `mine`; there are `all-MiniLM-L6-v2`",
        ),
        (
            "[ai.aliases]\n'google-bert/bert-base-uncased' = 'all-MiniLM-L6-v2'",
            "granary.toml: ai.aliases: `google-bert/bert-base-uncased` is an alias of `all-MiniLM-L6-v2`, but it already means",
        ),
    ] {
        let log = refusal(toml, &[], &[]);
        assert!(log.contains(&format!("granary: the configuration is refused:\n  {said}")), "{log}");
    }
    for ((name, value), said) in [
        (("GRANARY_SERVER__PORT", "http"), "server.port: found \"http\", expected a whole number from 0 to 65535"),
        (("GRANARY_SERVER__PROT", "1"), "server.prot: found an unknown key; did you mean `port`?"),
        (("GRANARY_AI__MODEL_NAME", "mine"), "ai.model_name: no model is called `mine`; there are `all-MiniLM-L6-v2`"),
        (("GRANARY_AI__ADDITIONAL_MODELS", "[{name = \"mine\"}]"), "ai.additional_models: `mine` is no built-in model"),
    ] {
        let log = refusal("", &[], &[(name, value)]);
        assert!(log.contains(&format!("granary: the configuration is refused:\n  {name}: {said}")), "{log}");
    }
    for (flag, value, said) in [
        ("--port", "http", "server.port: found \"http\", expected a whole number from 0 to 65535"),
        ("--port", "65536", "server.port: found the number 65536, expected a whole number from 0 to 65535"),
        ("--port", "-1", "server.port: found the number -1, expected a whole number from 0 to 65535"),
        ("--host", "::", "server.host: found \"::\", which other machines can reach, and there is no key; make one"),
        ("--model", "mine", "ai.model_name: no model is called `mine`; there are `all-MiniLM-L6-v2`"),
        ("--log-format", "xml", "telemetry.log_format: found \"xml\", expected \"text\" or \"json\""),
    ] {
        let log = refusal("", &[flag, value], &[]);
        assert!(log.contains(&format!("granary: the configuration is refused:\n  {flag}: {said}")), "{log}");
    }
}

#[test]
fn files_and_flags_that_cannot_be_read_are_named() {
    let log = refusal("[server\nport = 1", &[], &[]);
    assert!(
        log.starts_with("granary: the configuration file granary.toml is not TOML: ") && log.contains("line 1"),
        "{log}"
    );
    let log = refusal("", &["--config", "other.toml"], &[]);
    assert!(log.starts_with("granary: the configuration file other.toml cannot be read: "), "{log}");

    let folder = folder_with("");
    let mut process = Process::start(folder.path(), &["serve", "--prot", "1"], &[]);
    assert_eq!(process.wait().code(), Some(2));
    let log = process.log();
    assert!(
        log.contains("unexpected argument '--prot'") && log.contains("a similar argument exists: '--port'"),
        "{log}"
    );
}

#[test]
fn what_only_shows_later_than_the_configuration_stops_the_start_too() {
    let start = |toml: &str, flags: &[&str]| {
        let folder = folder_with(toml);
        let mut process = Process::start(folder.path(), &[&["serve"], flags].concat(), &[]);
        assert_eq!(process.wait().code(), Some(1), "{}", process.log());
        process.log().lines().last().expect("a reason").to_owned()
    };
    let missing = "[[ai.additional_models]]\nname = 'mine'\npath = 'no-such-folder'\nauto_load = true";
    let said = start(missing, &["--port", "0"]);
    assert!(
        said.starts_with("granary: a model with `auto_load = true` does not load: `mine` cannot be loaded: "),
        "{said}"
    );
    assert!(
        said.contains("the ONNX file is missing: looked for `.granary/models/no-such-folder/onnx/model.onnx`"),
        "{said}"
    );

    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let said = start("", &["--port", &port]);
    let expected = format!("granary: cannot listen on 127.0.0.1:{port}, which `server.host` and `server.port` say: ");
    assert!(said.starts_with(&expected), "{said}");

    // A log of JSON says it too.
    let folder = folder_with("[telemetry]\nlog_format = 'json'");
    let mut process = Process::start(folder.path(), &["serve", "--port", &port], &[]);
    assert_eq!(process.wait().code(), Some(1), "{}", process.log());
    let log = process.log();
    let mut events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let event = events.find(|event| event["level"] == "ERROR").expect("an error");
    let message = event["message"].as_str().expect("a message");
    assert!(message.starts_with(&expected.replacen("granary", "the server ends", 1)), "{message}");
}

#[tokio::test]
async fn an_open_port_and_the_variables_of_a_kubernetes_service_are_taken() {
    let folder = folder_with("");
    let (_process, url) = Process::serve_with(
        folder.path(),
        &["--host", "0.0.0.0"],
        &[
            ("GRANARY_PORT", "tcp://10.0.0.1:8080"),
            ("GRANARY_SERVICE_HOST", "10.0.0.1"),
            ("GRANARY_SERVICE_PORT", "8080"),
            ("GRANARY_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
            ("GRANARY_AUTH__DISABLED", "true"),
            ("GRANARY_GRAINS__ENABLED", "false"),
        ],
    );
    let port = url.strip_prefix("http://0.0.0.0:").unwrap_or_else(|| panic!("it listens at {url}"));
    send(client().get(format!("http://127.0.0.1:{port}/health/live"))).await.ok();
}

/// The file of the design's section on configuration, word for word.
const DESIGN: &str = r#"
[ai]
model_name = "all-MiniLM-L6-v2"
embedding_dim = 384
multi_model_enabled = true

[[ai.additional_models]]
name = "bert-base-uncased"
path = "bert-base-uncased.onnx"
size = "medium"
auto_load = false
"#;

#[tokio::test]
async fn the_designs_file_serves_and_a_missing_second_model_fails_where_it_is_used() {
    let folder = folder_with(DESIGN);
    let models = folder.path().join(".granary/models");
    fs_err::create_dir_all(&models).expect("made");
    let installed = data_dir().canonicalize().expect("set up");
    symlink(installed.join("models").join(MINILM), models.join(MINILM)).expect("linked");
    symlink(installed.join("runtime"), folder.path().join(".granary/runtime")).expect("linked");
    let (_process, url) = Process::serve_with(folder.path(), &[], &[]);
    let embed = async |model: Option<&str>| {
        send(client().post(format!("{url}/embed")).json(&json!({"inputs": "hello", "model": model}))).await
    };
    let load = async || send(client().post(format!("{url}/models/bert-base-uncased/load"))).await.problem();
    assert_eq!(vectors_of(&embed(None).await.ok())[0].len(), 384);
    let listed = send(client().get(format!("{url}/models/bert-base-uncased"))).await.ok();
    assert_eq!((&listed["state"], &listed["size"]), (&json!("unloaded"), &json!("medium")));

    let refused = embed(Some("bert-base-uncased")).await;
    let (status, kind, message) = refused.tei_error();
    assert_eq!((status, kind.as_str(), refused.header("x-should-retry")), (424, "Backend", "false"));
    let missing = "the ONNX file is missing: looked for `.granary/models/bert-base-uncased.onnx`";
    assert!(message.contains("`bert-base-uncased` cannot be loaded") && message.contains(missing), "{message}");

    fs_err::copy(test_model("tiny").join("onnx/model.onnx"), models.join("bert-base-uncased.onnx")).expect("copied");
    let (status, code, message) = load().await;
    assert_eq!((status, code.as_str()), (503, "model_failed"));
    let missing = "the tokenizer is missing: looked for `.granary/models/bert-base-uncased.tokenizer.json` and \
                   `.granary/models/tokenizer.json`";
    assert!(message.contains(missing), "{message}");

    // Another model under the name of a built-in one, whose dimensions it inherits.
    fs_err::copy(test_model("tiny").join("tokenizer.json"), models.join("tokenizer.json")).expect("copied");
    let (_, _, message) = load().await;
    assert!(message.contains("expects vectors of 768 numbers") && message.contains("the model makes 32"), "{message}");
    embed(None).await.ok();
}

#[tokio::test]
async fn a_model_of_other_dimensions_than_expected_is_refused() {
    let expecting = |n: u32| with_tiny(&["tiny-cls"]).replacen("[ai]\n", &format!("[ai]\nembedding_dim = {n}\n"), 1);
    let app = TestApp::start_with(&expecting(31)).await;
    for path in ["/embed", "/models/tiny/embed"] {
        let (status, kind, message) = app.post(path, json!({"inputs": "hello"})).await.tei_error();
        assert_eq!((status, kind.as_str()), (424, "Backend"));
        let said =
            "expects vectors of 31 numbers (`ai.embedding_dim` or the model's `dimensions`), but the model makes 32";
        assert!(message.contains(said), "{message}");
    }
    assert_eq!(app.get("/health/ready").await.problem().1, "model_failed");
    app.post("/models/tiny-cls/embed", json!({"inputs": "hello"})).await.ok();
    let app = app.restart_with(&expecting(32)).await;
    app.post("/embed", json!({"inputs": "hello"})).await.ok();
    app.stop().await;
}

#[tokio::test]
async fn a_single_model_may_be_all_there_is() {
    let toml = with_tiny(&["tiny-cls"]).replacen("[ai]\n", "[ai]\nmulti_model_enabled = false\n", 1);
    let app = TestApp::start_with(&toml).await;
    app.post("/embed", json!({"inputs": "hello"})).await.ok();
    let (status, _, message) = app.post("/models/tiny-cls/embed", json!({"inputs": "hello"})).await.tei_error();
    assert!(status == 404 && message.contains("this server knows `tiny`"), "{message}");
    assert_eq!(app.get("/models").await.ok()["models"].as_array().map(Vec::len), Some(1));
    app.stop().await;
}

fn granary(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_granary"));
    command.current_dir(folder).args(arguments).env_clear().envs(variables.iter().copied());
    command.output().expect("it runs")
}

#[test]
fn the_effective_configuration_is_printed_and_means_the_same_again() {
    let folder = folder_with(&format!("[server]\nport = 1\nmax_inputs = 7\n{}", entry_of("tiny")));
    let variables =
        [("GRANARY_SERVER__PORT", "9000"), ("GRANARY_AI__MODEL_NAME", "tiny"), ("GRANARY_PORT", "tcp://a:1")];
    let printed = granary(folder.path(), &["config"], &variables);
    assert!(printed.status.success() && printed.stderr.is_empty(), "{printed:?}");
    let text = String::from_utf8(printed.stdout).expect("UTF-8");
    for line in
        ["port = 9000", "max_inputs = 7", "model_name = \"tiny\"", "name = \"tiny\"", "request_timeout = \"2m\""]
    {
        assert!(text.lines().any(|found| found == line), "no `{line}` in:\n{text}");
    }
    fs_err::write(folder.path().join("printed.toml"), &text).expect("written");
    let again = granary(folder.path(), &["config", "--config", "printed.toml"], &[]);
    assert_eq!(String::from_utf8(again.stdout).expect("UTF-8"), text);

    let refused = granary(folder.path(), &["config"], &[("GRANARY_SERVER__PORT", "http")]);
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(1), 0));
    let said = "granary: the configuration is refused:\n  GRANARY_SERVER__PORT: server.port: found \"http\"";
    assert!(refused.stderr.starts_with(said.as_bytes()), "{refused:?}");
}

#[test]
fn what_a_start_refuses_of_models_and_routes_is_not_printed_either() {
    let folder = folder_with(&entry_of("tiny"));
    for (variable, value, said) in [
        ("GRANARY_AI__MODEL_NAME", "no-such", "ai.model_name"),
        ("GRANARY_AI__ALIASES", "{ \"x\" = \"no-such\" }", "ai.aliases"),
        ("GRANARY_SERVER__ROUTE_TIMEOUTS", "{ \"GET /no-such\" = \"1s\" }", "server.route_timeouts"),
    ] {
        let refused = granary(folder.path(), &["config"], &[(variable, value)]);
        let error = String::from_utf8_lossy(&refused.stderr);
        assert_eq!((refused.status.code(), refused.stdout.len()), (Some(1), 0), "{error}");
        assert!(error.contains("the configuration is refused") && error.contains(said), "{error}");
    }
}
