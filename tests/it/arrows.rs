//! The tree is the architecture: which module of `src/` may use which, and who alone may name which crate.

use std::path::{Path, PathBuf};

use crate::helpers::repository;

/// Each may use everything to its right, and the leaves.
const ARROWS: [&str; 6] = ["api", "change", "grains", "models", "engine", "domain"];

/// Used by all but `domain`, which knows nobody; they use nothing, but that `config` and `auth` speak the words of `domain`,
/// `auth` uses `files` and `ownership`, `ownership` uses `files`, and `telemetry` uses `tls`.
const LEAVES: [&str; 10] =
    ["config", "telemetry", "shutdown", "clock", "auth", "allocator", "json", "files", "ownership", "tls"];

/// Crates and functions, and the only files or folders that may name them.
const OWNED: [(&[&str], &[&str]); 4] = [
    (&["ort"], &["engine/session.rs", "engine/session/"]),
    (&["sqlx"], &["grains/store/"]),
    (&["axum", "http", "tower_http", "utoipa", "utoipa_axum", "utoipa_swagger_ui"], &["api/", "app.rs"]),
    (&["env::var", "env::vars", "env::var_os", "env::vars_os", "env::*"], &ENVIRONMENT_READERS),
];

const ENVIRONMENT_READERS: [&str; 5] =
    ["config/mod.rs", "app.rs", "telemetry/mod.rs", "allocator.rs", "grains/store/sqlite/tests/"];

/// Crates that `domain` may not name, besides those that others own.
const NOT_IN_DOMAIN: [&str; 2] = ["tokio", "tokio_util"];

/// Ways to reach another module, or another crate, without a path that says so.
const DETOURS: [&[&str]; 3] = [&["extern", "crate"], &["include", "!"], &["[", "path", "="]];

#[test]
fn no_module_runs_against_the_arrows() {
    let source = repository().join("src");
    let files = source_files(&source);
    assert!(files.len() > 50, "only {} files", files.len());
    let violations: Vec<String> = files
        .iter()
        .flat_map(|file| {
            let name = file.strip_prefix(&source).expect("below src").to_str().expect("UTF-8");
            violations(name, &fs_err::read_to_string(file).expect("a source file"))
        })
        .collect();
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn planted_violations_are_found() {
    for (file, text, found) in [
        ("engine/batcher.rs", "use crate::models::Catalog;", "engine/batcher.rs: `crate::models::Catalog`"),
        ("engine/mod.rs", "\n\nfn f() { crate::api::routes() }", "engine/mod.rs: `crate::api::routes`"),
        ("engine/mod.rs", "use crate::{\n    domain::Pooling, // fine\n    api::{self as http}};", "`crate::api`"),
        ("engine/mod.rs", "use crate::{domain::{self}, grains::{store::{sqlite::{MIGRATOR}}}};", "MIGRATOR`"),
        ("engine/mod.rs", "use { crate::api::x, std::fmt };", "`crate::api::x`"),
        ("models/entry.rs", "use super::super::grains;", "`crate::grains`"),
        ("models/entry.rs", "use self::super::super::api;", "`crate::api`"),
        ("models/entry.rs", "mod tests { use super::super::super::{api::x}; }", "`crate::api::x`"),
        ("models/entry.rs", "mod tests { mod more {} } use super::super::api;", "`crate::api`"),
        ("models/mod.rs", "pub use super::app;", "`crate::app`"),
        ("models/mod.rs", "use crate as root;", "the whole crate"),
        ("models/mod.rs", "use super::*;", "the whole crate"),
        ("models/mod.rs", "use crate::{self as root};", "the whole crate"),
        ("models/mod.rs", "macro_rules! m { () => { $crate::api::x() } }", "`crate::api::x`"),
        ("models/mod.rs", "#[serde(with = \"crate::api::vectors\")] struct S;", "`crate::api::vectors`"),
        ("models/mod.rs", "let c = '\"'; let b = b'\\''; crate::api::x(); // '", "`crate::api::x`"),
        ("models/mod.rs", "let s = r#\"\"\"#; let t = \"\\\"\"; crate::api::x()", "`crate::api::x`"),
        ("models/mod.rs", "fn f<'a>(x: &'a str) { crate::api::x::<'a>() }", "`crate::api::x`"),
        ("models/mod.rs", "use granary::api::x;", "`crate::api::x`"),
        ("models/mod.rs", "extern crate sqlx as s;", "`extern crate`"),
        ("models/mod.rs", "include!(\"../api/mod.rs\");", "`include !`"),
        ("models/mod.rs", "#[path = \"../api/error.rs\"] mod error;", "`[ path =`"),
        ("domain/model.rs", "use crate::telemetry;", "`crate::telemetry`"),
        ("domain/model.rs", "async fn f() { tokio::time::sleep(d).await }", "`tokio::time::sleep`"),
        ("domain/model.rs", "#[derive(utoipa::ToSchema)] struct S;", "`utoipa::ToSchema`"),
        ("telemetry.rs", "use crate::config::Config;", "`crate::config::Config`"),
        ("config/ai.rs", "use crate::models::Catalog;", "`crate::models::Catalog`"),
        ("auth/mod.rs", "use crate::config::Config;", "`crate::config::Config`"),
        ("ownership.rs", "use crate::auth::KeyFile;", "`crate::auth::KeyFile`"),
        ("tls.rs", "use crate::telemetry;", "`crate::telemetry`"),
        ("api/mod.rs", "use crate::app::App;", "`crate::app::App`"),
        ("app.rs", "use crate::cli::Cli;", "`crate::cli::Cli`"),
        ("engine/encoder.rs", "use ort::session::Session;", "`ort::session::Session`"),
        ("engine/encoder.rs", "use ::{ort, std::fmt};", "`ort`"),
        ("engine/session.rs", "use axum::http::StatusCode;", "`axum::http::StatusCode`"),
        ("models/ledger.rs", "fn f() -> Result<(), sqlx::Error> {}", "`sqlx::Error`"),
        ("api/mod.rs", "use sqlx as sql;", "`sqlx`"),
        ("main.rs", "use axum::Router;", "`axum::Router`"),
        ("api/mod.rs", "use std::{env::{self, var_os}};", "`std::env::var_os`"),
        ("api/mod.rs", "fn f() { env::var(\"HOME\"); }", "`env::var`"),
        ("jobs/mod.rs", "", "stands nowhere in the arrows"),
        ("api/mod.rs", "use crate::jobs::Job;", "`crate::jobs::Job`"),
    ] {
        let violations = violations(file, text);
        assert!(violations.len() == 1 && violations[0].contains(found), "{text}: {violations:?}, expected {found}");
    }
}

#[test]
fn what_follows_the_arrows_passes() {
    for (file, text) in [
        ("api/error.rs", "use crate::{change, grains::store, models::{self, *}, engine, domain, auth, config};"),
        ("api/inputs.rs", "mod tests { use super::super::extract::parse; use super::*; }"),
        ("grains/store/sqlite/tests/mod.rs", "use super::super::super::super::models; use sqlx::Row;"),
        ("models/mod.rs", "pub(crate) use entry::Entry; pub(in crate::models) struct S; pub(super) struct T;"),
        (
            "models/mod.rs",
            "// crate::api::x\n/* /* crate::api */ crate::api::x */ const S: &str = \"use crate::api;\";",
        ),
        ("models/mod.rs", "//! [`crate::api::x`]\nconst S: &str = r##\"\"# crate::api::x\"##;"),
        ("models/mod.rs", "fn f(ort: u8, env: u8) -> impl Sized + use<> { http(ort, env, self::axum) }"),
        ("engine/session.rs", "use ort::session::Session; use tokio::sync::oneshot; use crate::telemetry;"),
        ("config/mod.rs", "use crate::domain::Pooling; use super::config; fn f() { std::env::vars_os() }"),
        ("auth/file.rs", "use crate::domain::ApiKey; use crate::{files, ownership::hand_over};"),
        ("ownership.rs", "use crate::files::folder_of;"),
        ("telemetry/collector.rs", "use crate::tls::tls;"),
        ("domain/space.rs", "use super::model::ModelName; use crate::domain::model;"),
        ("app.rs", "use crate::{api, grains, config}; use axum::Router; use super::telemetry;"),
        ("cli/mod.rs", "use crate::{config, app::App};"),
        ("main.rs", "use granary::{app::{self, App}, cli, telemetry};"),
        ("lib.rs", "pub mod api; pub use crate::app::App;"),
    ] {
        assert_eq!(violations(file, text), [""; 0], "{text}");
    }
}

fn source_files(folder: &Path) -> Vec<PathBuf> {
    let paths = fs_err::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let is_source = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    let (folders, files): (Vec<_>, Vec<_>) = paths.partition(|path| path.is_dir());
    files.into_iter().filter(is_source).chain(folders.iter().flat_map(|folder| source_files(folder))).collect()
}

/// What a file of `src/` names and may not.
fn violations(file: &str, text: &str) -> Vec<String> {
    let tokens = tokens(text);
    let module = module_of(file);
    let home = module.first().copied();
    let detours = DETOURS.iter().filter(|detour| tokens.windows(detour.len()).any(|window| window == **detour));
    let detours = detours.map(|detour| format!("{file}: `{}`", detour.join(" ")));
    let lost =
        home.filter(|home| !is_placed(home)).map(|home| format!("{file}: `{home}` stands nowhere in the arrows"));
    let wrong = paths(&tokens, module).into_iter().filter_map(|path| match (home, path.as_slice()) {
        (None, ["crate", ..]) => None,
        (Some(_), ["crate"] | ["crate", "*", ..]) => Some(format!("{file}: the whole crate")),
        (Some(home), ["crate", target, ..]) => (!may_use(home, target)).then(|| refused(file, &path)),
        _ => (!may_name(file, &path)).then(|| refused(file, &path)),
    });
    detours.chain(lost).chain(wrong).collect()
}

fn refused(file: &str, path: &[&str]) -> String {
    format!("{file}: `{}`", path.join("::"))
}

fn is_placed(module: &str) -> bool {
    ARROWS.contains(&module) || LEAVES.contains(&module) || ["app", "cli"].contains(&module)
}

fn may_use(home: &str, target: &str) -> bool {
    let place = |module: &str| ARROWS.iter().position(|layer| *layer == module);
    match home {
        _ if home == target => true,
        "cli" => is_placed(target),
        "app" => is_placed(target) && target != "cli",
        "auth" => ["domain", "files", "ownership"].contains(&target),
        "config" => target == "domain",
        "ownership" => target == "files",
        "telemetry" => target == "tls",
        "domain" => false,
        _ => {
            place(home).is_some_and(|home| LEAVES.contains(&target) || place(target).is_some_and(|place| place > home))
        }
    }
}

fn may_name(file: &str, path: &[&str]) -> bool {
    let names = |what: &&str| {
        let what: Vec<&str> = what.split("::").collect();
        // A crate begins the path; a function ends it, however much of its path a `use` has taken off.
        path.starts_with(&what) || (what.len() > 1 && path.ends_with(&what))
    };
    let foreign = |owners: &[&str]| !owners.iter().any(|owner| file.starts_with(owner));
    let is_owned = OWNED.iter().any(|(what, owners)| what.iter().any(names) && foreign(owners));
    !(is_owned || file.starts_with("domain/") && NOT_IN_DOMAIN.iter().any(names))
}

/// The module that a file of `src/` is, from the root; empty for the root itself.
fn module_of(file: &str) -> Vec<&str> {
    let mut module: Vec<&str> = file.trim_end_matches(".rs").split('/').collect();
    if matches!(module.as_slice(), [.., "mod"] | ["lib" | "main"]) {
        module.pop();
    }
    module
}

/// Every path of two or more names, and every name that a `use` takes, groups taken apart: from `crate` on when it stays
/// in the crate, as it is written otherwise.
fn paths<'a>(tokens: &[&'a str], mut module: Vec<&'a str>) -> Vec<Vec<&'a str>> {
    let mut found = Vec::new();
    let mut braces = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let mut read = Vec::new();
        let used = tokens[at] == "use";
        match tokens[at] {
            "{" => {
                let opens_module = at >= 2 && tokens[at - 2] == "mod";
                module.extend(opens_module.then(|| tokens[at - 1]));
                braces.push(opens_module);
                at += 1;
            }
            "}" => {
                if braces.pop() == Some(true) {
                    module.pop();
                }
                at += 1;
            }
            token if used || is_name(token) => {
                at = read_tree(tokens, at + usize::from(used), &[], &mut read).max(at + 1);
            }
            _ => at += 1,
        }
        found.extend(read.iter().filter(|path| used || path.len() > 1).map(|path| absolute(path, &module)));
    }
    found
}

/// Reads one path, or the tree of paths that a group makes of it, and returns where it ends.
fn read_tree<'a>(tokens: &[&'a str], mut at: usize, start: &[&'a str], found: &mut Vec<Vec<&'a str>>) -> usize {
    let mut path = start.to_vec();
    loop {
        match tokens.get(at) {
            Some(&"::") => at += 1,
            Some(&"{") => {
                at += 1;
                while tokens.get(at).is_some_and(|token| *token != "}") {
                    at = read_tree(tokens, at, &path, found).max(at + 1);
                    at += usize::from(tokens.get(at) == Some(&","));
                }
                return at + 1;
            }
            Some(name) if is_name(name) || *name == "*" => {
                path.push(name);
                at += 1;
                if tokens.get(at) != Some(&"::") {
                    found.push(path);
                    return if tokens.get(at) == Some(&"as") { at + 2 } else { at };
                }
            }
            _ => {
                found.push(path);
                return at;
            }
        }
    }
}

fn absolute<'a>(path: &[&'a str], module: &[&'a str]) -> Vec<&'a str> {
    let n_supers =
        path.iter().take_while(|name| ["self", "super"].contains(name)).filter(|name| **name == "super").count();
    let base = match path.first() {
        Some(&("crate" | "granary")) => Vec::new(),
        Some(&("self" | "super")) => module[..module.len().saturating_sub(n_supers)].to_vec(),
        _ => return path.to_vec(),
    };
    let rest = path.iter().filter(|name| !["crate", "granary", "self", "super"].contains(name)).copied();
    std::iter::once("crate").chain(base).chain(rest).collect()
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// The names and marks of a source text, without comments and literals. A literal that is a path into the crate, as in
/// an attribute of serde, counts as code.
fn tokens(text: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (length, is_token) = if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), false)
        } else if rest.starts_with("/*") {
            (comment_length(rest), false)
        } else if let Some(length) = literal_length(rest) {
            let inside = rest[..length].trim_matches('"');
            if inside.starts_with("crate::") || inside.starts_with("super::") {
                tokens.extend(self::tokens(inside));
            }
            (length, false)
        } else if is_name(rest) {
            (rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len()), true)
        } else if rest.starts_with("::") {
            (2, true)
        } else {
            (first.len_utf8(), !first.is_whitespace())
        };
        tokens.extend(is_token.then(|| &rest[..length]));
        rest = &rest[length..];
    }
    tokens
}

fn comment_length(rest: &str) -> usize {
    let mut depth = 0;
    for (at, _) in rest.char_indices() {
        if rest[at..].starts_with("/*") {
            depth += 1;
        } else if rest[..at].ends_with("*/") {
            depth -= 1;
            if depth == 0 {
                return at;
            }
        }
    }
    rest.len()
}

/// The length of a string or character at the start of a text; `None` when there is none. A lifetime is none.
fn literal_length(rest: &str) -> Option<usize> {
    let body = rest.trim_start_matches(['b', 'c', 'r']);
    let prefix = rest.len() - body.len();
    let is_raw = rest[..prefix].ends_with('r');
    let n_hashes = body.len() - body.trim_start_matches('#').len();
    let mut chars = body.chars();
    match chars.next()? {
        '"' | '#' if is_raw && body[n_hashes..].starts_with('"') => {
            let close = format!("\"{}", "#".repeat(n_hashes));
            let open = n_hashes + 1;
            Some(prefix + open + body[open..].find(&close)? + close.len())
        }
        '"' if prefix <= 1 => quoted_length(body, '"').map(|length| prefix + length),
        '\'' if prefix <= 1 && (chars.next()? == '\\' || chars.next()? == '\'') => {
            quoted_length(body, '\'').map(|length| prefix + length)
        }
        _ => None,
    }
}

fn quoted_length(body: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    body.char_indices().skip(1).find_map(|(at, c)| {
        let closes = c == quote && !escaped;
        escaped = c == '\\' && !escaped;
        closes.then_some(at + 1)
    })
}
