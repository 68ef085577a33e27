//! The OpenAPI document is committed, whole and true.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use granary::api::access::{Need, listed};
use granary::api::code::Family;
use granary::app::App;
use granary::config::{Config, ConfigSources};
use granary::domain::Scope;
use granary::shutdown::Shutdown;
use reqwest::header::{ALLOW, CONTENT_TYPE, HOST, ORIGIN};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::helpers::{Answer, MINILM, TINY, TestApp, repository, send, with_tiny};

/// Served beside the document's own paths: the document and the page that shows it, and a path of it with a slash more.
const BESIDES: [&str; 5] = ["/openapi.json", "/docs", "/docs/", "/docs/{*rest}", "/models/{name}/"];

/// The operations that put texts into a model's queue.
const EMBEDDING: [&str; 11] = [
    "embed",
    "embed_with_model",
    "infer",
    "infer_with_model",
    "invocations",
    "similarity",
    "similarity_with_model",
    "create_embedding",
    "create_embedding_without_version",
    "create_embedding_with_model",
    "create_embedding_without_version_with_model",
];

/// The operations with a body in which no model and no grain is named that must be there.
const WITHOUT_NAMES: [&str; 7] = [
    "register_model",
    "declare_space",
    "search_grains",
    "count_grains",
    "delete_grains",
    "export_grains",
    "import_grains",
];

/// The operations of TEI's and OpenAI's families that no model is loaded for.
const NEVER_LOADING: [&str; 7] = [
    "health",
    "health_at_root",
    "ping",
    "health_of_model",
    "list_openai_models",
    "list_openai_models_with_model",
    "get_openai_model",
];

/// What the headers of answers tell, besides the seconds to wait after errors.
const TELLING: [&str; 7] = ["etag", "location", "x-dimensions", "x-model", "x-request-id", "x-space", "x-truncated"];

/// The content types of answers that generated clients read, instead of keeping them as they are.
const READ: [&str; 3] = ["application/json", "application/problem+json", "text/plain"];

/// The operation whose body is lines of any number: what is wrong with them stands in its answer.
const OF_LINES: &str = "import_grains";

pub struct Operation {
    pub method: Method,
    pub path: String,
    id: String,
    pub has_body: bool,
    responses: BTreeMap<u16, Value>,
}

impl Operation {
    pub fn all() -> Vec<Self> {
        let document = committed();
        let paths = document["paths"].as_object().expect("paths");
        let items =
            paths.iter().flat_map(|(path, item)| item.as_object().expect("an item").iter().map(move |it| (path, it)));
        let operations: Vec<Self> = items
            .map(|(path, (method, operation))| Self {
                method: method.to_uppercase().parse().expect("a method"),
                path: path.clone(),
                id: operation["operationId"].as_str().expect("an id").to_owned(),
                has_body: operation.get("requestBody").is_some(),
                responses: serde_json::from_value(operation["responses"].clone()).expect("responses by status"),
            })
            .collect();
        assert!(operations.len() > 25, "only {} operations", operations.len());
        operations
    }

    /// The path for a model of this name.
    pub fn path_of(&self, model: &str) -> String {
        self.path.replace("{name}", model)
    }

    /// The path as the router has it.
    pub fn pattern(&self) -> String {
        if self.path.starts_with("/v1/") { self.path.replace("{name}", "{*name}") } else { self.path.clone() }
    }

    pub fn family(&self) -> Family {
        Family::of(&self.method, &self.path_of("m"))
    }

    /// A body that it takes.
    pub fn body(&self) -> Value {
        match self.id.trim_end_matches("_with_model") {
            "set_active_model" => json!({"name": TINY}),
            "begin_reembedding" | "create_comparison" => json!({"to": TINY}),
            "register_model" => json!({"name": "another", "path": MINILM}),
            "unload_model" | "accept_space" | "adopt_space" | "export_grains" | "count_grains" | "patch_grain" => {
                json!({})
            }
            "declare_space" => json!({"name": "declared", "dimensions": 3}),
            "similarity" => json!({"inputs": {"source_sentence": "a", "sentences": ["b"]}}),
            "decode" => json!({"ids": [7]}),
            "create_embedding" | "create_embedding_without_version" => json!({"input": "a"}),
            _ => json!({"inputs": "a"}),
        }
    }

    fn must_document(&self) -> Vec<u16> {
        let success = match self.id.as_str() {
            "register_model" | "declare_space" | "create_grains" | "create_snapshot" => 201,
            "begin_reembedding" | "create_comparison" => 202,
            "delete_model" | "delete_grain" | "delete_snapshot" | "delete_comparison" => 204,
            _ => 200,
        };
        let mut statuses = vec![success, 401, 403, 405, 421, 429, 500, 503];
        if self.has_body {
            statuses.push(415);
            statuses.extend([400, 408, 413].into_iter().filter(|_| self.id != OF_LINES));
            statuses.extend((self.family() != Family::OpenAi).then_some(422));
            statuses.extend([424, 504].into_iter().filter(|_| self.family() == Family::Tei));
        }
        let names_something = self.path.contains('{') || (self.has_body && !WITHOUT_NAMES.contains(&self.id.as_str()));
        if names_something {
            statuses.push(404);
        }
        if EMBEDDING.contains(&self.id.as_str()) {
            statuses.push(412);
        }
        statuses
    }
}

/// The document in the repository.
fn committed() -> Value {
    serde_json::from_str(&committed_text()).expect("JSON")
}

fn committed_text() -> String {
    fs_err::read_to_string(repository().join("openapi/openapi.json")).expect("the committed document")
}

#[test]
fn the_committed_document_is_what_the_code_makes() {
    let printed = Command::new(env!("CARGO_BIN_EXE_granary")).arg("openapi").env_clear().output().expect("it runs");
    assert!(printed.status.success());
    let is_same = committed_text() == String::from_utf8(printed.stdout).expect("UTF-8");
    assert!(is_same, "openapi/openapi.json is out of date: run `make openapi` and look at what changed");
}

#[test]
fn who_reads_only_the_beginning_of_the_document_is_no_failure() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_granary"));
    let output = command.arg("openapi").env_clear().stdout(writer).output().expect("it runs");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn every_reference_has_its_schema() {
    let (text, document) = (committed_text(), committed());
    let names = text.split("\"#/components/schemas/").skip(1).filter_map(|rest| rest.split_once('"'));
    for (name, _) in names {
        assert!(document["components"]["schemas"][name].is_object(), "there is no schema `{name}`");
    }
}

#[test]
fn bodies_of_granarys_own_routes_have_no_other_fields() {
    let document = committed();
    let is_own = |operation: &Operation| operation.has_body && operation.family() == Family::Native;
    for operation in Operation::all().into_iter().filter(|operation| is_own(operation) && operation.id != OF_LINES) {
        let path = &document["paths"][&operation.path][operation.method.as_str().to_lowercase()];
        let mut schemas = vec![path["requestBody"]["content"]["application/json"]["schema"].clone()];
        while let Some(schema) = schemas.pop() {
            if schema["properties"].is_object() {
                assert_eq!(schema["additionalProperties"], false, "{}: {schema}", operation.id);
                continue;
            }
            let text = schema.to_string();
            let references = text.split("\"#/components/schemas/").skip(1).filter_map(|rest| rest.split_once('"'));
            schemas.extend(references.map(|(name, _)| document["components"]["schemas"][name].clone()));
        }
    }
}

/// A stream that may be read as one of several shapes is one that generated clients do not compile with, or read wrong.
#[test]
fn answers_that_generated_clients_keep_as_they_are_are_bytes() {
    let schemas = &committed()["components"]["schemas"];
    let mut seen = BTreeSet::new();
    for operation in Operation::all() {
        let contents = operation.responses.values().filter_map(|response| response["content"].as_object());
        let is_kept = |content_type: &str| !READ.contains(&content_type);
        for (content_type, content) in contents.flatten().filter(|(content_type, _)| is_kept(content_type)) {
            let name = content["schema"]["$ref"].as_str().and_then(|reference| reference.rsplit('/').next());
            let schema = &schemas[name.unwrap_or_default()];
            assert_eq!((&schema["type"], &schema["format"]), (&json!("string"), &json!("binary")), "{}", operation.id);
            seen.insert(content_type.clone());
        }
    }
    let kept = ["application/vnd.sqlite3", "application/x-ndjson", "text/event-stream", "text/html"];
    assert_eq!(seen, BTreeSet::from(kept.map(str::to_owned)));
}

/// Generated clients read a number that does not say it with few digits, and send another one than they were given.
#[test]
fn every_number_says_how_exact_it_is() {
    let mut values = vec![committed()];
    while let Some(value) = values.pop() {
        let kind = &value["type"];
        let is_number = kind == "number" || kind.as_array().is_some_and(|kinds| kinds.contains(&json!("number")));
        assert!(!is_number || value["format"].is_string(), "{value}");
        match value {
            Value::Array(list) => values.extend(list),
            Value::Object(fields) => values.extend(fields.into_iter().map(|(_, value)| value)),
            _ => {}
        }
    }
}

/// Generated clients have no type for a choice within a choice, or for an object without a name.
#[test]
fn choices_are_flat_and_their_objects_have_names() {
    let document = committed();
    let schemas = document["components"]["schemas"].as_object().expect("schemas");
    for (name, schema) in schemas {
        for part in schema["oneOf"].as_array().into_iter().flatten() {
            assert!(part["oneOf"].is_null() && part["properties"].is_null(), "{name}: {part}");
        }
    }
}

#[test]
fn the_words_for_a_conflict_of_an_import_are_listed() {
    let document = committed();
    let parameters = document["paths"]["/grains/import"]["post"]["parameters"].as_array().expect("parameters");
    let on_conflict = parameters.iter().find(|parameter| parameter["name"] == "on_conflict").expect("the parameter");
    assert_eq!(on_conflict["schema"]["enum"], json!(["error", "skip", "replace"]));
}

#[test]
fn openais_clients_are_offered_texts_alone() {
    let schemas = &committed()["components"]["schemas"];
    assert_eq!(schemas["EmbeddingsBody"]["properties"]["input"]["$ref"], "#/components/schemas/Texts");
    assert!(!schemas["Texts"].to_string().contains("integer"), "{}", schemas["Texts"]);
}

#[test]
fn every_operation_says_which_scope_it_needs() {
    let document = committed();
    let schemes = &document["components"]["securitySchemes"];
    for operation in Operation::all() {
        let security = &document["paths"][&operation.path][operation.method.as_str().to_lowercase()]["security"];
        let mut security = security.as_array().unwrap_or_else(|| panic!("{}: no security", operation.path)).clone();
        if listed(&operation.method, &operation.pattern()).is_some_and(|need| matches!(need, Need::Unless(_))) {
            assert_eq!(security.remove(0), json!({}), "{}: it may be open", operation.path);
        }
        assert_eq!(security.len(), 2, "{}", operation.path);
        for requirement in security {
            let (scheme, scopes) = requirement.as_object().and_then(|one| one.iter().next()).expect("a requirement");
            assert!(schemes[scheme].is_object(), "{scheme}");
            let word = scopes[0].as_str().expect("a scope");
            assert!(word.parse::<Scope>().is_ok(), "{word}");
        }
    }
}

#[test]
fn every_operation_documents_every_status_in_its_familys_words() {
    for operation in Operation::all() {
        let name = format!("{} {}", operation.method, operation.path);
        let (content_type, schema) = match operation.family() {
            Family::Native => ("application/problem+json", "Problem"),
            Family::Tei => ("application/json", "TeiError"),
            Family::OpenAi => ("application/json", "OpenAiError"),
        };
        for status in operation.must_document() {
            assert!(operation.responses.contains_key(&status), "{name} does not document {status}");
        }
        if NEVER_LOADING.contains(&operation.id.as_str()) {
            assert!(!operation.responses.contains_key(&507), "{name} needs no room");
        }
        // A space that is declared has no path.
        if let Some(created) = operation.responses.get(&201).filter(|_| operation.id != "declare_space") {
            assert!(created["headers"]["location"].is_object(), "{name}: 201 says no `location`");
        }
        for (status, response) in operation.responses.range(400..) {
            let body = json!({content_type: {"schema": {"$ref": format!("#/components/schemas/{schema}")}}});
            assert_eq!(response["content"], body, "{name}: {status}");
            // A disk is full until somebody makes room on it.
            let is_of_models = operation.id != "create_snapshot";
            if [424, 429, 503, 504].contains(status) || (*status == 507 && is_of_models) {
                assert!(response["headers"]["retry-after"].is_object(), "{name}: {status} says no `retry-after`");
            }
            if *status == 507 && is_of_models {
                assert!(response["headers"]["x-should-retry"].is_object(), "{name}: {status} says no `x-should-retry`");
            }
        }
    }
}

#[tokio::test]
async fn a_server_answers_what_the_document_says() {
    let app = TestApp::start_with(&format!("[server]\nmax_body = \"1KiB\"\n{}", with_tiny(&[]))).await;
    let mut seen = BTreeSet::new();
    for operation in Operation::all() {
        for (what, request) in requests(&app, &operation) {
            let answer = send(request).await;
            let status = answer.status.as_u16();
            let name = format!("{} {} with {what}: {status} {}", operation.method, operation.path, answer.text);
            let documented = operation.responses.get(&status).unwrap_or_else(|| panic!("{name} is not documented"));
            match documented["content"].as_object() {
                Some(content) => assert!(content.contains_key(essence(&answer)), "{name}: {}", answer.content_type()),
                None => assert_eq!(answer.text, "", "{name}"),
            }
            for header in TELLING {
                let is_documented = documented["headers"][header].is_object();
                assert_eq!(answer.headers.contains_key(header), is_documented, "{name}: `{header}`");
            }
            if status >= 400 {
                assert_error(&answer, operation.family());
            }
            seen.insert(status);
        }
    }
    assert_eq!(seen, BTreeSet::from([200, 201, 202, 400, 403, 404, 405, 409, 412, 413, 415, 421, 422]));
    app.stop().await;
}

/// An operation's requests: one that succeeds, and one for each fault it can have.
fn requests(app: &TestApp, operation: &Operation) -> Vec<(&'static str, RequestBuilder)> {
    let bare = |model| app.request(operation.method.clone(), &operation.path_of(model));
    let with = |model, body: Value| match operation.id.as_str() {
        OF_LINES => bare(model).header(CONTENT_TYPE, "application/x-ndjson").body(body.to_string()),
        _ if operation.has_body => bare(model).json(&body),
        _ => bare(model),
    };
    let good = |model| with(model, operation.body());
    let raw = |body: String| bare(TINY).header(CONTENT_TYPE, "application/json").body(body);
    let mut requests = vec![
        ("no fault", good(TINY)),
        ("a foreign host", good(TINY).header(HOST, "evil.example")),
        ("a foreign origin", good(TINY).header(ORIGIN, "http://evil.example")),
    ];
    if Family::of(&Method::TRACE, &operation.path_of(TINY)) == operation.family() {
        requests.push(("another method", app.request(Method::TRACE, &operation.path_of(TINY))));
    }
    if operation.path.contains("{name}") {
        requests.push(("an unknown model", good("nope")));
    }
    if operation.has_body {
        let mut body = operation.body();
        body["model"] = json!("nope");
        body["parameters"] = json!({"model": "nope"});
        requests.extend([
            ("an unknown model in the body", with(TINY, body)),
            ("what is no JSON", raw("{".to_owned())),
            ("what is no object", raw("7".to_owned())),
            ("no content type", bare(TINY).body(operation.body().to_string())),
            ("too large a body", raw(format!("\"{}\"", "x".repeat(2000)))),
        ]);
    }
    if EMBEDDING.contains(&operation.id.as_str()) {
        let mut body = operation.body();
        body["expect_space"] = json!("0123456789abcdef");
        body["parameters"] = json!({"expect_space": "0123456789abcdef"});
        requests.push(("another space", with(TINY, body)));
    }
    requests
}

fn essence(answer: &Answer) -> &str {
    answer.content_type().split(';').next().unwrap_or_default()
}

pub fn assert_error(answer: &Answer, family: Family) {
    match family {
        Family::Native => drop(answer.problem()),
        Family::Tei => drop(answer.tei_error()),
        Family::OpenAi => drop(answer.openai_error()),
    }
}

#[tokio::test]
async fn nothing_is_served_that_is_not_documented() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let mut documented: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for operation in Operation::all() {
        let methods = documented.entry(operation.path).or_default();
        methods.extend((operation.method == Method::GET).then(|| "HEAD".to_owned()));
        methods.insert(operation.method.to_string());
    }
    for (path, methods) in &documented {
        let refused = send(app.request(Method::TRACE, &path.replace("{name}", TINY))).await;
        let allowed = refused.header(ALLOW.as_str()).split(',').map(|method| method.trim().to_owned()).collect();
        assert_eq!(*methods, allowed, "{path}");
    }
    app.stop().await;

    let documented: BTreeSet<String> = documented.into_keys().chain(BESIDES.map(str::to_owned)).collect();
    assert_eq!(served_paths().await, documented);
}

/// The paths of the router. Axum shows them nowhere but in its debug output.
async fn served_paths() -> BTreeSet<String> {
    let nowhere = tempfile::tempdir().expect("a folder");
    let settings =
        [("GRANARY_MODELS__DATA_DIR", nowhere.path().as_os_str()), ("GRANARY_GRAINS__ENABLED", "false".as_ref())];
    let env = settings.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
    let config = Config::load(&ConfigSources { env, ..ConfigSources::default() }).expect("a configuration");
    let shutdown = Shutdown::new();
    let app = App::build(config, shutdown.clone()).await.expect("an app");
    shutdown.begin();
    let router = format!("{:?}", app.router());
    let quoted = router.split('"').skip(1).step_by(2).filter(|text| text.starts_with('/'));
    quoted.filter(|path| !path.contains("private__axum")).map(|path| path.replace("{*name", "{name")).collect()
}

#[tokio::test]
async fn the_document_and_its_page_come_from_the_server_alone() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    assert!(app.get("/openapi.json").await.ok() == committed(), "another document than the committed one");
    let page = app.get("/docs").await;
    assert_eq!((page.status.as_u16(), essence(&page)), (200, "text/html"));
    assert_eq!(page.header("content-security-policy"), "frame-ancestors 'none'");
    let after = |attribute| page.text.split(attribute).skip(1).filter_map(|rest| rest.split_once('"'));
    let links: Vec<&str> = ["src=\"", "href=\""].into_iter().flat_map(after).map(|(link, _)| link).collect();
    assert!(links.len() > 5, "{links:?}");
    for link in links {
        assert!(!link.contains("//"), "{link}");
        let file = app.get(&format!("/docs/{link}")).await;
        assert!(file.status.is_success() && !file.text.is_empty(), "{link}: {}", file.status);
    }
    let start = app.get("/docs/swagger-initializer.js").await.text;
    assert!(!page.text.contains("http") && !start.contains("http"), "{start}");
    assert!(start.contains("\"url\": \"../openapi.json\"") && start.contains("\"validatorUrl\": \"none\""), "{start}");
    assert_eq!(app.get("/docs/no-such-file.js").await.problem().1, "not_found");
    app.stop().await;
}
