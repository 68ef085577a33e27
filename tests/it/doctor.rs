//! `granary doctor`: what it finds where serving works, and where it does not.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

use rustix::process::getuid;
use serde_json::{Value, json};

use crate::helpers::{
    MINILM, Process, SmallDisk, client, copy_folder, data_dir, entry_of, folder_with, key_entry, secret, send,
    test_model, with_keys, with_tiny,
};
use crate::tls;

/// The models and the runtime library of set-up, and a database in the working directory.
fn installed() -> [(&'static str, String); 2] {
    let data_dir = data_dir().display().to_string();
    [("GRANARY_MODELS__DATA_DIR", data_dir), ("GRANARY_GRAINS__DATABASE_URL", "sqlite:granary.db".to_owned())]
}

fn doctor(folder: &Path, arguments: &[&str], variables: &[(&'static str, String)]) -> Output {
    run(Command::new(env!("CARGO_BIN_EXE_granary")), folder, arguments, variables)
}

fn run(mut command: Command, folder: &Path, arguments: &[&str], variables: &[(&'static str, String)]) -> Output {
    command.current_dir(folder).arg("doctor").args(arguments).env_clear();
    // Whatever listens on the usual port here is none of what is tried.
    command.env("GRANARY_SERVER__PORT", "0").envs(variables.iter().cloned());
    command.output().expect("it runs")
}

/// What it says to people, and its exit status.
fn said(folder: &Path, variables: &[(&'static str, String)]) -> (String, i32) {
    let output = doctor(folder, &[], variables);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    (text, output.status.code().expect("an exit status"))
}

fn report(folder: &Path, variables: &[(&'static str, String)]) -> Value {
    let output = doctor(folder, &["--json"], variables);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// The same by somebody whom permissions hold: root gives up that they do not.
fn report_of_a_user(folder: &Path, variables: &[(&'static str, String)]) -> Value {
    let granary = env!("CARGO_BIN_EXE_granary");
    let command = if getuid().is_root() {
        let mut command = Command::new("/usr/bin/setpriv");
        command.args(["--bounding-set=-dac_override,-dac_read_search", granary]);
        command
    } else {
        Command::new(granary)
    };
    let output = run(command, folder, &["--json"], variables);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn check<'a>(report: &'a Value, subject: &str) -> &'a Value {
    let checks = report["checks"].as_array().expect("checks");
    checks.iter().find(|check| check["subject"] == subject).unwrap_or_else(|| panic!("no {subject}: {report}"))
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs_err::read_dir(folder).expect("a folder");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn where_serving_works_it_says_so_and_leaves_nothing_behind() {
    let folder = folder_with("");
    let (text, status) = said(folder.path(), &installed());
    assert_eq!(status, 0, "{text}");
    for part in [
        "machine  ",
        "ok       runtime library: ONNX Runtime 1.",
        "`granary.db` will be made",
        "active model: `all-MiniLM-L6-v2`, by `ai.model_name`: its files are there",
        "ok       loading: `all-MiniLM-L6-v2` was loaded in ",
        "1. all-MiniLM-L6-v2",
        "that models may take",
        "not trained for embeddings",
        "`auto` would take `all-MiniLM-L6-v2`.",
        "Serving would work.",
    ] {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
    assert_eq!(names_in(folder.path()), ["granary.toml"]);
    let report = report(folder.path(), &installed());
    assert_eq!((&report["works"], &report["auto"]), (&json!(true), &json!(MINILM)));
    assert_eq!(report["models"].as_array().map(Vec::len), Some(3));
}

#[test]
fn an_open_port_without_a_key_is_a_problem_and_keys_are_counted() {
    let open = folder_with("[server]\nhost = '0.0.0.0'\n[auth]\nkeys_file = 'keys.toml'");
    let found = report(open.path(), &installed());
    let check_of = |report: &Value| check(report, "API keys").clone();
    assert_eq!((&found["works"], &check_of(&found)["verdict"]), (&json!(false), &json!("problem")));
    assert!(check_of(&found)["way_out"].as_str().is_some_and(|way| way.contains("`granary keys add`")), "{found}");

    fs_err::write(open.path().join("keys.toml"), "keys = []\n").expect("written");
    let found = report(open.path(), &installed());
    assert_eq!(check_of(&found)["verdict"], "problem", "a file of keys without a key: {found}");
    let key = granary::domain::KeyHash::of("a");
    let keys = format!("[[keys]]\nname = 'a'\nhash = '{key}'\nscopes = ['read']\n");
    fs_err::write(open.path().join("keys.toml"), keys).expect("written");
    let found = report(open.path(), &installed());
    assert_eq!(check_of(&found)["finding"], "needed; 1 known");
}

#[test]
fn a_key_whose_model_the_configuration_does_not_know_is_worth_a_note() {
    let keys = [MINILM, "nope"].map(|model| key_entry(model, &["embed"], &format!("model = \"{model}\"")));
    let folder = folder_with(&with_keys(&keys));
    let found = report(folder.path(), &installed());
    let check = check(&found, "models of keys");
    assert_eq!((&found["works"], &check["verdict"]), (&json!(true), &json!("note")), "{check}");
    assert_eq!(check["finding"], "models that the configuration does not know: `nope` has `nope`");
}

#[test]
fn a_certificate_and_times_that_a_start_would_refuse_are_problems() {
    let folder = folder_with(
        "[server]\ntls_certificate = 'tls.crt'\ntls_key = 'tls.key'\n[server.route_timeouts]\n'GET /no-such' = '1s'",
    );
    for (file, said) in [("", "tls.crt` cannot be read"), ("tls.crt", "tls.key` cannot be read")] {
        if !file.is_empty() {
            fs_err::write(folder.path().join(file), "no certificate").expect("written");
        }
        let found = report(folder.path(), &installed());
        assert_eq!(found["works"], false);
        for (subject, said) in [("certificate", said), ("server.route_timeouts", "found \"GET /no-such\"")] {
            let check = check(&found, subject);
            assert_eq!(check["verdict"], "problem", "{check}");
            assert!(check["finding"].as_str().expect("a finding").contains(said), "{check}");
        }
    }
}

#[test]
fn a_certificate_that_ends_is_worth_a_note() {
    let folder = folder_with("[server]\ntls_certificate = 'tls.crt'\ntls_key = 'tls.key'");
    for (days, verdict, said) in [
        (-1, "note", "the certificate in `tls.crt` has expired, on 20"),
        (13, "note", "the certificate in `tls.crt` expires soon, on 20"),
        (15, "ok", "it and its key can be used"),
    ] {
        let end = time::OffsetDateTime::now_utc() + time::Duration::days(days);
        tls::write(folder.path(), &tls::certificate_until(end));
        let found = report(folder.path(), &installed());
        let check = check(&found, "certificate");
        assert_eq!((&found["works"], &check["verdict"]), (&json!(true), &json!(verdict)), "{check}");
        assert!(check["finding"].as_str().expect("a finding").contains(said), "{check}");
    }
}

#[test]
fn a_missing_runtime_library_is_a_problem_with_a_way_out() {
    let folder = folder_with("[engine]\nruntime_library = 'no/such.so'");
    let output = doctor(folder.path(), &[], &installed());
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(
        text.contains("problem  runtime library: no ONNX Runtime library at `no/such.so`: run `make setup`"),
        "{text}"
    );
    assert!(!text.contains("Serving would work"), "{text}");
    assert_eq!(output.stderr, b"granary: serving would not work: 1 problem to solve\n");
}

#[test]
fn a_runtime_library_that_does_not_load_is_a_problem_with_its_reason() {
    let folder = folder_with("[engine]\nruntime_library = 'own.so'");
    for (content, reason) in [("\x7fELF".to_owned(), "file too short"), ("text".repeat(100), "invalid ELF header")] {
        fs_err::write(folder.path().join("own.so"), content).expect("written");
        let report = report(folder.path(), &installed());
        let check = check(&report, "runtime library");
        let finding = check["finding"].as_str().expect("a finding");
        assert_eq!(check["verdict"], "problem", "{check}");
        assert!(finding.contains("`make setup` installs one") && finding.contains(reason), "{check}");
    }
}

#[test]
fn models_without_files_and_a_foreign_database_are_problems() {
    let missing =
        "[ai]\nmodel_name = 'mine'\n[[ai.additional_models]]\nname = 'mine'\npath = 'no-such-folder'\nauto_load = true";
    let folder = folder_with(missing);
    fs_err::write(folder.path().join("granary.db"), "not a database at all").expect("written");
    let report = report(folder.path(), &installed());
    assert_eq!(report["works"], false);
    for (subject, said) in [
        ("active model", "`mine`, by `ai.model_name`: its files cannot be used: the ONNX file is missing"),
        ("auto_load", "`mine`: its files cannot be used: the ONNX file is missing"),
        ("database", "is not a Granary database"),
    ] {
        let check = check(&report, subject);
        assert_eq!(check["verdict"], "problem", "{check}");
        assert!(check["finding"].as_str().expect("a finding").contains(said), "{check}");
    }
    assert_eq!(fs_err::read(folder.path().join("granary.db")).expect("left"), b"not a database at all");
    assert_eq!(names_in(folder.path()).len(), 2, "{:?}", names_in(folder.path()));
    assert_eq!(report["auto"], MINILM, "what can be had comes first");
}

/// Only a load finds it.
#[test]
fn the_tokenizer_of_another_model_is_a_problem() {
    let folder = folder_with("");
    let foreign = folder.path().join("foreign");
    copy_folder(&test_model("tiny-cls"), &foreign);
    fs_err::copy(data_dir().join("models").join(MINILM).join("tokenizer.json"), foreign.join("tokenizer.json"))
        .expect("copied");
    let entry = "[[ai.additional_models]]\nname = 'foreign'\nauto_load = true\n";
    let entry = format!("{entry}path = '{}'\n", foreign.display());
    for (active, verdicts) in [("foreign", &["problem"][..]), (MINILM, &["ok", "problem"])] {
        let toml = format!("[ai]\nmodel_name = '{active}'\n{entry}");
        fs_err::write(folder.path().join("granary.toml"), toml).expect("written");
        let report = report(folder.path(), &installed());
        assert_eq!((&report["works"], &check(&report, "active model")["verdict"]), (&json!(false), &json!("ok")));
        let checks = report["checks"].as_array().expect("checks");
        let loads: Vec<&Value> = checks.iter().filter(|check| check["subject"] == "loading").collect();
        let found: Vec<&str> = loads.iter().map(|check| check["verdict"].as_str().expect("a verdict")).collect();
        assert_eq!(found, verdicts, "{report}");
        let said = loads[loads.len() - 1]["finding"].as_str().expect("a finding");
        assert!(said.starts_with("`foreign` cannot be loaded: ") && said.contains("does not belong"), "{said}");
    }
}

/// `ai.embedding_dim` is of `ai.model_name`, whichever model is active by now.
#[tokio::test]
async fn a_model_that_is_active_in_place_of_the_configured_one_is_loaded_as_a_start_does() {
    let folder = folder_with(&with_tiny(&["tiny-dense"]).replace("[ai]", "[ai]\nembedding_dim = 32"));
    let (mut process, url) = Process::serve(folder.path(), &[]);
    send(client().put(format!("{url}/models/active")).json(&json!({"name": "tiny-dense"}))).await.ok();
    process.signal(rustix::process::Signal::TERM);
    assert_eq!(process.wait().code(), Some(0), "{}", process.log());
    let report = report(folder.path(), &installed());
    let loading = check(&report, "loading")["finding"].as_str().expect("a finding");
    assert!(report["works"] == true && loading.starts_with("`tiny-dense` was loaded in "), "{report}");
}

#[test]
fn a_database_that_this_user_may_not_write_is_a_problem() {
    let folder = folder_with("");
    let path = |name: &str| folder.path().join(name);
    fs_err::create_dir(path("closed")).expect("made");
    fs_err::set_permissions(path("closed"), PermissionsExt::from_mode(0o555)).expect("closed");
    symlink("closed/granary.db", path("link.db")).expect("linked");
    fs_err::write(path("read-only.db"), "").expect("written");
    fs_err::set_permissions(path("read-only.db"), PermissionsExt::from_mode(0o444)).expect("closed");
    for (database, said) in [
        ("closed/deep/granary.db", "this user may not write in `closed`: "),
        ("link.db", "this user may not write in `closed`: "),
        ("read-only.db", "read-only.db`: Permission denied"),
    ] {
        let [data_dir, _] = installed();
        let variables = [data_dir, ("GRANARY_GRAINS__DATABASE_URL", format!("sqlite:{database}"))];
        let report = report_of_a_user(folder.path(), &variables);
        let check = check(&report, "database");
        assert_eq!((&report["works"], &check["verdict"]), (&json!(false), &json!("problem")), "{check}");
        assert!(check["finding"].as_str().expect("a finding").contains(said), "{check}");
        assert!(check["way_out"].as_str().expect("a way out").contains("`grains.database_url`"), "{check}");
    }
    assert!(!path("read-only.db.lock").exists(), "{:?}", names_in(folder.path()));
}

#[test]
fn a_disk_without_room_for_the_database_is_a_problem() {
    let Some(disk) = SmallDisk::mount("512k") else { return };
    fs_err::write(disk.path().join("granary.toml"), "").expect("written");
    let full = report(disk.path(), &installed());
    let found = check(&full, "database");
    assert_eq!((&full["works"], &found["verdict"]), (&json!(false), &json!("problem")), "{found}");
    let said = found["finding"].as_str().expect("a finding");
    assert!(said.contains("the disk of `granary.db` has ") && said.contains("a start takes 1.0 MiB"), "{found}");
    disk.resize("16m");
    let little = report(disk.path(), &installed());
    let found = check(&little, "database");
    assert_eq!((&little["works"], &found["verdict"]), (&json!(true), &json!("note")), "{found}");
    assert!(found["finding"].as_str().expect("a finding").contains("its disk has "), "{found}");
}

#[test]
fn a_link_that_leads_nowhere_is_not_taken_for_something_that_is_not_there() {
    let folder = folder_with("");
    for name in ["data", "keys.toml"] {
        symlink("nowhere", folder.path().join(name)).expect("linked");
    }
    let data_dir = [("GRANARY_MODELS__DATA_DIR", "data".to_owned())];
    let keys_file = [&installed()[..], &[("GRANARY_AUTH__KEYS_FILE", "keys.toml".to_owned())]].concat();
    for (variables, subject, said) in [
        (&data_dir[..], "data directory", "`data` is not a folder"),
        (&keys_file[..], "API keys", "`keys.toml` cannot be read"),
    ] {
        let report = report(folder.path(), variables);
        let check = check(&report, subject);
        assert_eq!((&report["works"], &check["verdict"]), (&json!(false), &json!("problem")), "{check}");
        assert!(check["finding"].as_str().expect("a finding").contains(said), "{check}");
    }
}

#[test]
fn an_active_model_over_the_budget_that_was_set_is_a_problem() {
    let folder = folder_with("[models]\nmemory_budget = '50MiB'");
    let report = report(folder.path(), &installed());
    let check = check(&report, "active model");
    assert_eq!((&report["works"], &check["verdict"]), (&json!(false), &json!("problem")), "{check}");
    let [finding, way_out] = ["finding", "way_out"].map(|part| check[part].as_str().expect("text"));
    assert!(finding.contains(", more than the ") && finding.contains(" that models may take"), "{check}");
    assert!(way_out.contains("raise `models.memory_budget`, which is 50.0 MiB"), "{check}");
}

#[test]
fn a_model_of_another_length_than_expected_is_a_problem() {
    let folder = folder_with("[ai]\nembedding_dim = 100");
    let report = report(folder.path(), &installed());
    let check = check(&report, "active model");
    let said =
        "its files cannot be used: its vectors have 384 numbers, and `ai.embedding_dim` or its `dimensions` is 100";
    assert_eq!(check["verdict"], "problem", "{check}");
    assert!(check["way_out"].as_str().expect("a way out").starts_with("correct or delete that setting"), "{check}");
    assert!(check["finding"].as_str().expect("a finding").contains(said), "{check}");
}

#[test]
fn a_port_that_a_stranger_has_and_a_host_that_is_not_here_are_problems() {
    let folder = folder_with("");
    let stranger = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = ("GRANARY_SERVER__PORT", stranger.local_addr().expect("its address").port().to_string());
    // An address for documentation (RFC 5737).
    let elsewhere = ("GRANARY_SERVER__HOST", "192.0.2.1".to_owned());
    for (variables, way_out) in [
        (vec![port.clone()], "set another `server.port`"),
        (vec![elsewhere, ("GRANARY_AUTH__DISABLED", "true".to_owned())], "to an address of this machine"),
    ] {
        let found = report(folder.path(), &[&installed()[..], &variables].concat());
        let check = check(&found, "port");
        assert_eq!((&found["works"], &check["verdict"]), (&json!(false), &json!("problem")), "{check}");
        assert!(check["finding"].as_str().expect("a finding").starts_with("cannot listen on "), "{check}");
        assert!(check["way_out"].as_str().expect("a way out").contains(way_out), "{check}");
    }
    // An embedder has no database that would tell that it runs.
    let embedder = [port.clone(), ("GRANARY_GRAINS__ENABLED", "false".to_owned())];
    let found = report(folder.path(), &[&installed()[..], &embedder].concat());
    assert_eq!((&found["works"], &check(&found, "port")["verdict"]), (&json!(true), &json!("note")), "{found}");
    drop(stranger);
    let found = report(folder.path(), &[&installed()[..], &[port]].concat());
    assert_eq!((&found["works"], &check(&found, "port")["verdict"]), (&json!(true), &json!("ok")), "{found}");
}

#[tokio::test]
async fn a_running_server_is_seen_and_its_database_is_left_to_it() {
    let folder = folder_with(&with_tiny(&["tiny-cls"]));
    let variables = installed();
    let (mut process, url) = Process::serve(folder.path(), &[]);
    let port = url.rsplit(':').next().expect("a port").to_owned();
    let (text, status) = said(folder.path(), &[&variables[..], &[("GRANARY_SERVER__PORT", port)]].concat());
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("note     database: `granary.db` is in use by process "), "{text}");
    send(client().put(format!("{url}/models/active")).json(&json!({"name": "tiny-cls"}))).await.ok();
    let auto = async || send(client().get(format!("{url}/hardware"))).await.ok()["auto"].clone();
    let best = auto().await;
    let unload = format!("{url}/models/{}/unload", best.as_str().expect("a model"));
    send(client().post(unload).json(&json!({"disable": true}))).await.ok();
    let second = auto().await;
    assert_ne!(second, best);
    process.signal(rustix::process::Signal::TERM);
    assert_eq!(process.wait().code(), Some(0), "{}", process.log());

    let report = report(folder.path(), &variables);
    assert!(
        check(&report, "database")["finding"].as_str().expect("a finding").contains("has schema version"),
        "{report}"
    );
    let active = &check(&report, "active model")["finding"];
    assert_eq!(active, "`tiny-cls`, which the database remembers: its files are there");
    assert_eq!(report["auto"], second, "what is disabled is not chosen");
    let models = report["models"].as_array().expect("models").iter();
    let disabled: Vec<&Value> = models.filter(|model| model["disabled"] == true).map(|model| &model["model"]).collect();
    assert_eq!(disabled, [&best]);
    let (text, _) = said(folder.path(), &variables);
    let line = format!(". {}, disabled until it is loaded by hand\n", best.as_str().expect("a model"));
    assert!(text.contains(&line) && text.matches(", disabled").count() == 1, "no `{line}` in:\n{text}");
}

#[test]
fn a_configuration_that_is_refused_is_refused_here_too() {
    let folder = folder_with("[server]\nprot = 1");
    let output = doctor(folder.path(), &[], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        output.stderr.starts_with(b"granary: the configuration is refused:\n  granary.toml: server.prot"),
        "{output:?}"
    );
    let folder = folder_with(&entry_of("tiny").replace("path = ", "#"));
    let output = doctor(folder.path(), &[], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("needs a `path`"), "{output:?}");
}

#[test]
fn a_bug_report_says_which_build_runs_where_with_which_settings() {
    let folder = folder_with("[server]\nmax_connections = 9000\n[engine]\nworkers = 1");
    let variables = [&installed()[..], &[("GRANARY_SERVER__MAX_INPUTS", "7".to_owned())]].concat();
    let found = report(folder.path(), &variables);
    assert_eq!(found["granary"]["version"], env!("CARGO_PKG_VERSION"));
    assert!(found["system"]["kernel"].as_str().is_some_and(|kernel| kernel.contains('.')), "{found}");
    assert!(found["system"]["max_open_files"].as_u64().is_some_and(|n| n > 0), "{found}");
    let settings: Vec<(&str, &str, &str)> = found["settings"]
        .as_array()
        .expect("settings")
        .iter()
        .map(|setting| ["key", "value", "origin"].map(|part| setting[part].as_str().expect("text")))
        .map(|[key, value, origin]| (key, value, origin))
        .collect();
    let data_dir = format!("\"{}\"", data_dir().display());
    assert_eq!(
        settings,
        [
            ("engine.workers", "1", "granary.toml"),
            ("grains.database_url", "\"sqlite:granary.db\"", "GRANARY_GRAINS__DATABASE_URL"),
            ("models.data_dir", &data_dir, "GRANARY_MODELS__DATA_DIR"),
            ("server.max_connections", "9000", "granary.toml"),
            ("server.max_inputs", "7", "GRANARY_SERVER__MAX_INPUTS"),
            ("server.port", "0", "GRANARY_SERVER__PORT"),
        ]
    );
    let models = found["kept"].as_array().expect("kept").iter().find(|kept| kept["what"] == "models");
    assert!(models.is_some_and(|models| models["size_bytes"].as_u64() > Some(80_000_000)), "{found}");

    let (text, _) = said(folder.path(), &variables);
    for part in [
        concat!("granary  ", env!("CARGO_PKG_VERSION"), " of "),
        "system   ",
        " of open files, ",
        "setting  server.max_connections = 9000, by granary.toml",
        "hub      https://huggingface.co",
        "kept     models: ",
    ] {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
}

#[test]
fn what_upgrades_and_restores_have_left_is_told_with_its_size() {
    let folder = folder_with("");
    let left = [
        ("granary.db.before-v10", "copy before an upgrade", 5),
        ("granary.db.replaced.1", "database before a restore", 6),
        ("granary.db.restoring.partial", "copy of a restore that was cut off or goes on", 7),
    ];
    for (name, _, size) in left {
        fs_err::write(folder.path().join(name), vec![0_u8; size]).expect("written");
    }
    let found = report(folder.path(), &installed());
    let kept = found["kept"].as_array().expect("kept");
    for (name, what, size) in left {
        let is_it = |kept: &&Value| kept["path"].as_str().is_some_and(|path| path.ends_with(name));
        let kept = kept.iter().find(is_it).unwrap_or_else(|| panic!("no {name}: {found}"));
        assert_eq!((&kept["what"], &kept["size_bytes"]), (&json!(what), &json!(size)));
    }
}

#[test]
fn a_bug_report_has_no_secret_in_it() {
    let folder = folder_with(&format!("[auth]\nkeys = [{}]", key_entry("of-the-file", &["read"], "")));
    let kept = granary::domain::KeyHash::of(&secret("kept"));
    let keys = format!("[[keys]]\nname = 'kept'\nhash = '{kept}'\nscopes = ['read']\n");
    fs_err::write(folder.path().join("keys.toml"), keys).expect("written");
    fs_err::write(folder.path().join("hf-token"), "hf_OfTheFile").expect("written");
    let own: Vec<(&'static str, String)> = [
        ("GRANARY_AUTH__KEYS_FILE", "keys.toml".to_owned()),
        ("GRANARY_AUTH__KEYS", format!("[{}]", key_entry("of-the-variable", &["admin"], ""))),
        ("HTTPS_PROXY", "http://somebody:proxy-password@127.0.0.1:9".to_owned()),
    ]
    .to_vec();
    for token in [("HF_TOKEN", "hf_OfTheVariable"), ("HF_TOKEN_PATH", "hf-token")] {
        let variables = [&installed()[..], &own, &[(token.0, token.1.to_owned())]].concat();
        let output = doctor(folder.path(), &["--json"], &variables);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let json = String::from_utf8(output.stdout).expect("UTF-8");
        let (text, _) = said(folder.path(), &variables);
        assert!(text.contains("setting  auth.keys = [\"of-the-file\", \"of-the-variable\"], by "), "{text}");
        assert!(text.contains("with a token, through a proxy for https"), "{text}");
        let hashes = ["kept", "of-the-file", "of-the-variable"].map(|name| {
            let hash = granary::domain::KeyHash::of(&secret(name)).to_string();
            hash.trim_start_matches("sha256:").to_owned()
        });
        let secrets = ["hf_Of", "proxy-password", "somebody", "grn_", "sha256:"].map(str::to_owned);
        for secret in hashes.iter().chain(&secrets) {
            for report in [&json, &text] {
                assert!(!report.contains(secret.as_str()), "`{secret}` is in:\n{report}");
            }
        }
    }
}
