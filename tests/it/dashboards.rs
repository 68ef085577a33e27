//! The dashboard and the alert rules in `docker/` name nothing that a running server does not show.
//!
//! Names and labels are read out of the expressions, so that a panel that is added is checked too.

use std::collections::{BTreeMap, BTreeSet};

use granary::telemetry::TLS_CERTIFICATE_EXPIRES;
use serde_json::{Value, json};

use crate::helpers::{
    Answer, Caller, Process, TINY, entry_of, folder_with, key_entry, repository, secret, until_seen, with_keys,
    with_tiny,
};

/// Prometheus adds these to every series of a target.
const LABELS_OF_TARGETS: [&str; 2] = ["instance", "job"];

/// What an expression names besides metrics and labels; functions are told by their parenthesis.
const OPERATORS: [&str; 6] = ["and", "or", "unless", "bool", "offset", "atan2"];

/// What is followed by labels in parentheses.
const GROUPINGS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// A name and what it is compared with: `status` with `="503"`, say.
#[derive(Debug, PartialEq, Eq)]
struct Matcher {
    label: String,
    operator: String,
    value: String,
}

/// What an expression names.
#[derive(Debug, Default)]
struct Named {
    /// Each metric with what stands in its braces.
    metrics: Vec<(String, Vec<Matcher>)>,
    /// The labels that results keep, or that are dropped or joined on.
    groupings: BTreeSet<String>,
}

/// A part of an expression.
#[derive(Debug, PartialEq)]
enum Token<'e> {
    Word(&'e str),
    Text(&'e str),
    Sign(char),
}

/// Words, quoted texts and single signs. Numbers and durations are no words; ranges in `[…]` are left out.
fn tokens(expression: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        let length_while = |wanted: fn(char) -> bool| rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        let is_of_word = |c: char| c.is_ascii_alphanumeric() || "_:".contains(c);
        let length = match first {
            '"' => {
                let inner = rest[1..].find('"').expect("a closing quote");
                tokens.push(Token::Text(&rest[1..=inner]));
                inner + 2
            }
            '[' => rest.find(']').expect("a closing bracket") + 1,
            _ if first.is_ascii_digit() => length_while(|c| c.is_ascii_alphanumeric() || c == '.'),
            _ if is_of_word(first) => {
                let length = length_while(is_of_word);
                tokens.push(Token::Word(&rest[..length]));
                length
            }
            _ => {
                if !first.is_whitespace() {
                    tokens.push(Token::Sign(first));
                }
                first.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    tokens
}

fn named(expression: &str) -> Named {
    let tokens = tokens(expression);
    let mut named = Named::default();
    let mut at = 0;
    while at < tokens.len() {
        let Token::Word(word) = tokens[at] else {
            at += 1;
            continue;
        };
        let next = tokens.get(at + 1);
        let until = |sign: char| {
            tokens[at..].iter().position(|token| *token == Token::Sign(sign)).expect("a closing sign") + at
        };
        if GROUPINGS.contains(&word) && next == Some(&Token::Sign('(')) {
            let end = until(')');
            named.groupings.extend(tokens[at + 2..end].iter().filter_map(|token| match token {
                Token::Word(label) => Some((*label).to_owned()),
                _ => None,
            }));
            at = end + 1;
        } else if OPERATORS.contains(&word) || GROUPINGS.contains(&word) || next == Some(&Token::Sign('(')) {
            at += 1;
        } else if next == Some(&Token::Sign('{')) {
            let end = until('}');
            let of_metric = tokens[at + 2..end].split(|token| *token == Token::Sign(',')).filter(|it| !it.is_empty());
            named.metrics.push((word.to_owned(), of_metric.map(matcher).collect()));
            at = end + 1;
        } else if matches!(next, Some(Token::Word(grouping)) if GROUPINGS.contains(grouping)) {
            // `sum by (…)`: the function before its grouping.
            at += 1;
        } else {
            named.metrics.push((word.to_owned(), Vec::new()));
            at += 1;
        }
    }
    named
}

fn matcher(tokens: &[Token<'_>]) -> Matcher {
    let [Token::Word(label), operator @ .., Token::Text(value)] = tokens else { panic!("no matcher: {tokens:?}") };
    let operator = operator.iter().map(|token| match token {
        Token::Sign(sign) => *sign,
        other => panic!("{other:?} is no part of an operator"),
    });
    Matcher { label: (*label).to_owned(), operator: operator.collect(), value: (*value).to_owned() }
}

/// The samples of a scrape: each name with its labels and the values they have.
struct Scrape(BTreeMap<String, BTreeMap<String, BTreeSet<String>>>);

impl Scrape {
    fn of(text: &str) -> Self {
        let mut samples: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let series = line.rsplit_once(' ').expect("a sample").0;
            for (name, matchers) in named(series).metrics {
                let labels = samples.entry(name).or_default();
                for Matcher { label, value, .. } in matchers {
                    labels.entry(label).or_default().insert(value);
                }
            }
        }
        // What Prometheus itself says of each target, and what a server with TLS shows, as `tls.rs` holds.
        for name in ["up", TLS_CERTIFICATE_EXPIRES] {
            samples.insert(name.to_owned(), BTreeMap::new());
        }
        Self(samples)
    }

    /// What an expression names and the scrape does not show.
    fn missing(&self, expression: &str) -> Vec<String> {
        let named = named(expression);
        let mut missing = Vec::new();
        let mut of_metrics: BTreeSet<&str> = LABELS_OF_TARGETS.into();
        for (metric, matchers) in &named.metrics {
            let Some(labels) = self.0.get(metric) else {
                missing.push(format!("no metric `{metric}`"));
                continue;
            };
            of_metrics.extend(labels.keys().map(String::as_str));
            for Matcher { label, operator, value } in matchers {
                if LABELS_OF_TARGETS.contains(&label.as_str()) {
                    continue;
                }
                match labels.get(label) {
                    None => missing.push(format!("`{metric}` has no label `{label}`")),
                    Some(values) if operator == "=" && !values.contains(value) => {
                        missing.push(format!("no `{metric}` has {label}=\"{value}\", only {values:?}"));
                    }
                    Some(_) => {}
                }
            }
        }
        let unknown = named.groupings.iter().filter(|label| !of_metrics.contains(label.as_str()));
        missing.extend(unknown.map(|label| format!("no metric of it has the label `{label}`")));
        if named.metrics.is_empty() {
            missing.push("no metric at all".to_owned());
        }
        missing
    }
}

/// Whether an expression that leaves out probes by their route leaves `GET /` in, whose route embeds as `POST /`.
fn counts_a_probe(expression: &str) -> bool {
    let is = |label: &str, operator: &str, value: &str| Matcher {
        label: label.to_owned(),
        operator: operator.to_owned(),
        value: value.to_owned(),
    };
    let at_root = [is("route", "=", "/"), is("method", "!=", "POST")];
    let metrics = named(expression).metrics;
    let is_of_probes = |it: &Matcher| it.operator == "!~" && it.value.contains("/ping");
    let n_without_probes = metrics.iter().filter(|(_, matchers)| matchers.iter().any(is_of_probes)).count();
    n_without_probes > metrics.iter().filter(|(_, matchers)| *matchers == at_root).count()
}

/// A query with the labels that a legend or a sentence takes from its results.
struct Query {
    expression: String,
    shown: Vec<String>,
}

/// The words after `start` in a text: `route` for `{{route}}`.
fn words_after(text: &str, start: &str) -> Vec<String> {
    let word = |rest: &str| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    text.split(start).skip(1).map(word).collect()
}

fn queries_of_dashboard() -> Vec<Query> {
    let text = fs_err::read_to_string(repository().join("docker/grafana/granary.json")).expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let panels = list(&dashboard["panels"]);
    let mut queries: Vec<Query> = panels
        .iter()
        .flat_map(|panel| list(&panel["targets"]))
        .map(|target| Query {
            expression: target["expr"].as_str().expect("an expression").to_owned(),
            shown: words_after(target["legendFormat"].as_str().expect("a legend"), "{{"),
        })
        .collect();
    assert!(panels.len() > 15 && queries.len() >= panels.iter().filter(|panel| panel["type"] != "row").count());
    for variable in list(&dashboard["templating"]["list"]).iter().filter(|variable| variable["type"] == "query") {
        let query = variable["query"].as_str().expect("a query");
        let (metric, label) = query
            .strip_prefix("label_values(")
            .and_then(|rest| rest.strip_suffix(')')?.split_once(", "))
            .unwrap_or_else(|| panic!("`{query}` is not read by this test"));
        queries.push(Query { expression: format!("sum by ({label}) ({metric})"), shown: vec![label.to_owned()] });
    }
    queries
}

/// The alerts of the rules, which are written in a plain subset of YAML: `expr:` and its value on the line, or on
/// deeper lines below `>-`.
fn queries_of_rules() -> Vec<Query> {
    let text = fs_err::read_to_string(repository().join("docker/prometheus/granary.rules.yml")).expect("the rules");
    let alerts: Vec<&str> = text.split("- alert: ").skip(1).collect();
    assert!(alerts.len() >= 9, "{} alerts", alerts.len());
    let query = |alert: &&str| {
        let depth = |line: &str| line.len() - line.trim_start().len();
        let mut lines = alert.lines().skip_while(|line| !line.trim_start().starts_with("expr:"));
        let first = lines.next().unwrap_or_else(|| panic!("no expression: {alert}"));
        let value = first.trim_start().trim_start_matches("expr:").trim();
        let expression = if value == ">-" {
            lines.take_while(|line| depth(line) > depth(first)).map(str::trim).collect::<Vec<_>>().join(" ")
        } else {
            value.to_owned()
        };
        Query { expression, shown: words_after(alert, "$labels.") }
    };
    alerts.iter().map(query).collect()
}

/// Has everything happen that a panel or an alert is about, and returns what a scraper with a key then gets.
async fn after_traffic(url: &str) -> String {
    let app = Caller::of(url.to_owned()).with_key(&secret("admin"));
    app.post("/embed", json!({"inputs": ["a", "long ".repeat(500)]})).await.ok();
    app.post("/", json!({"inputs": "a"})).await.ok();
    assert_eq!(app.get("/").await.status, 200);
    app.post("/models/tiny-cls/embed", json!({"inputs": "a"})).await.ok();
    app.post("/grains", json!({"id": "kept", "text": "kept"})).await.ok();
    app.post("/grains", json!({"id": "gone", "text": "gone"})).await.ok();
    assert!(app.delete("/grains/gone").await.status.is_success());
    for mode in ["dense", "lexical", "hybrid"] {
        app.post("/grains/search", json!({"query": "kept", "mode": mode})).await.ok();
    }
    app.put("/models/active", json!({"name": "tiny-cls"})).await.ok();
    // Anchors are kept where two spaces have grains.
    app.post("/grains", json!({"id": "other", "text": "in another space"})).await.ok();
    app.put("/models/active", json!({"name": TINY})).await.ok();

    assert_eq!(app.post("/embed", json!({"inputs": []})).await.status, 400);
    assert_eq!(Caller::of(url.to_owned()).post("/embed", json!({"inputs": "a"})).await.status, 401);
    let hasty = app.with_key(&secret("hasty"));
    while hasty.post("/embed", json!({"inputs": "a"})).await.status != 429 {}
    assert_eq!(app.post("/models/bert-base-uncased/load", json!(null)).await.status, 507);
    assert!(app.post("/models/broken/load", json!(null)).await.status.is_server_error());
    app.post(&format!("/models/{TINY}/unload"), json!({"disable": true})).await.ok();
    assert_eq!(app.get("/health/ready").await.status, 503);
    let scraper = app.with_key(&secret("prometheus"));
    let is_whole = |answer: &Answer| {
        assert_eq!(answer.status, 200, "{}", answer.text);
        // What the server measures by itself, every second or so.
        ["granary_grains{", "granary_index_bytes{", "granary_anchors{"].iter().all(|name| answer.text.contains(name))
    };
    until_seen("all of it is shown", async || scraper.get("/metrics").await, is_whole).await.text
}

#[test]
fn the_alert_for_slow_answers_knows_a_models_own_address_with_its_slash_too() {
    let metrics: Vec<_> = queries_of_rules().iter().flat_map(|query| named(&query.expression).metrics).collect();
    let slow = metrics.iter().find(|(metric, _)| metric == "granary_http_request_duration_seconds_bucket");
    let (_, matchers) = slow.expect("the alert");
    let routes = matchers.iter().find(|matcher| matcher.label == "route").expect("its routes");
    assert!(routes.value.split('|').any(|route| route == "/models/{name}/?"), "{}", routes.value);
}

#[test]
fn the_share_of_server_errors_leaves_probes_out_on_the_dashboard_as_in_the_alert() {
    let is_share_of_errors = |query: &Query| {
        query.expression.contains("/ sum") && query.expression.contains("granary_http_requests_total{status=~\"5..\"")
    };
    for (place, queries) in [("the dashboard", queries_of_dashboard()), ("the rules", queries_of_rules())] {
        let share = queries.iter().find(|query| is_share_of_errors(query)).expect("the share of errors");
        let metrics = named(&share.expression).metrics;
        let n_without_probes = metrics.iter().filter(|(_, matchers)| {
            matchers.iter().any(|it| it.label == "route" && it.operator == "!~" && it.value.contains("/health.*"))
        });
        assert_eq!(n_without_probes.count(), 2, "{place}: `{}`", share.expression);
    }
}

#[test]
fn the_alert_for_readiness_hears_every_answer_that_is_not_ready() {
    let metrics: Vec<_> = queries_of_rules().iter().flat_map(|query| named(&query.expression).metrics).collect();
    let is_of_probe = |it: &Matcher| it.label == "route" && it.operator == "=" && it.value == "/health/ready";
    let of_probe = metrics.iter().find(|(_, matchers)| matchers.iter().any(is_of_probe)).expect("the alert");
    // A bug is answered 500.
    let status = of_probe.1.iter().find(|matcher| matcher.label == "status").expect("its statuses");
    assert_eq!((status.operator.as_str(), status.value.as_str()), ("=~", "5.."));
}

#[test]
fn the_alert_for_failed_models_does_not_begin_anew_with_each_try() {
    let has_state = |metrics: &[(String, Vec<Matcher>)], state: &str| {
        let is_of_state = |it: &Matcher| it.label == "state" && it.operator == "=" && it.value == state;
        metrics.iter().any(|(_, matchers)| matchers.iter().any(is_of_state))
    };
    let expressions: Vec<String> = queries_of_rules().into_iter().map(|query| query.expression).collect();
    let failed = expressions.iter().find(|expression| has_state(&named(expression).metrics, "failed"));
    let failed = failed.expect("the alert");
    // At some scrapes a model that is tried again is `loading`, and one that was loaded since is well.
    assert!(failed.contains("max_over_time(granary_model_state{state=\"failed\"}["), "{failed}");
    assert!(has_state(&named(failed).metrics, "ready"), "{failed}");
}

/// A counter of answers is not there before the first of its kind, and `increase` is 0 of what it appears with. Alerts
/// that wait have more to go by.
#[test]
fn an_alert_that_does_not_wait_hears_the_first_answers_of_a_kind() {
    let text = fs_err::read_to_string(repository().join("docker/prometheus/granary.rules.yml")).expect("the rules");
    let hasty = text.split("- alert: ").skip(1).filter(|alert| !alert.contains("\n        for: "));
    let of_answers: Vec<&str> = hasty.filter(|alert| alert.contains("increase(granary_http_requests_total")).collect();
    assert!(!of_answers.is_empty());
    for alert in of_answers {
        assert!(
            alert.contains("unless max_over_time(granary_http_requests_total{status=\"507\"}[10m] offset 5m)"),
            "{alert}"
        );
    }
}

#[tokio::test]
async fn every_panel_and_every_alert_finds_its_metrics_and_labels() {
    let keys = with_keys(&[
        key_entry("admin", &["admin"], ""),
        key_entry("prometheus", &["read"], ""),
        key_entry("hasty", &["embed"], "rate = 1"),
    ]);
    let broken = "[[ai.additional_models]]\nname = \"broken\"\npath = \"no-such-folder\"\n";
    let folder = folder_with(&format!(
        "{keys}[models]\nmemory_budget = \"300MiB\"\n{}{broken}",
        with_tiny(&["tiny-cls"]) + &entry_of("bert-base-uncased"),
    ));
    let (process, url) = Process::serve(folder.path(), &[]);
    let text = after_traffic(&url).await;
    let scrape = Scrape::of(&text);
    for (place, queries) in [("the dashboard", queries_of_dashboard()), ("the rules", queries_of_rules())] {
        for Query { expression, shown } in queries {
            let missing = scrape.missing(&expression);
            assert!(missing.is_empty(), "{place}: `{expression}`: {missing:?}\n{text}");
            assert!(!counts_a_probe(&expression), "{place}: `{expression}`");
            let groupings = named(&expression).groupings;
            for label in shown {
                let is_there = groupings.contains(&label) || LABELS_OF_TARGETS.contains(&label.as_str());
                assert!(is_there, "{place}: the results of `{expression}` have no label `{label}`");
            }
        }
    }
    assert!(counts_a_probe("sum(rate(granary_http_requests_total{route!~\"/health.*|/ping\"}[5m]))"));
    // A scrape of the same server convicts each of these.
    for (misspelt, word) in [
        ("sum(rate(granary_text_total[5m]))", "`granary_text_total`"),
        ("granary_queue_tokens{modell=\"tiny\"}", "`modell`"),
        ("granary_model_state{state=\"fialed\"}", "fialed"),
        ("sum by (routes) (rate(granary_http_requests_total{status=~\"5..\"}[5m])) > 0.1", "`routes`"),
        ("granary_models_memory_used_bytes / granary_models_memory_budget", "`granary_models_memory_budget`"),
        ("histogram_quantile(0.9, sum by (le) (rate(granary_search_duration_bucket[5m])))", "search_duration_bucket"),
    ] {
        let missing = scrape.missing(misspelt);
        assert!(missing.iter().any(|it| it.contains(word)), "`{misspelt}`: {missing:?}");
    }
    process.stop();
}
