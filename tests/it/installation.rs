//! `models.system_dir`: what an installation brings along is used, and left as it is. And set-up in unusual folders.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::json;

use crate::helpers::{MINILM, Process, client, data_dir, folder_with, repository, send};

/// Everything below a folder, with when it was last changed.
fn contents(folder: &Path) -> BTreeSet<(PathBuf, std::time::SystemTime)> {
    let entries = fs_err::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let below = |path: PathBuf| {
        let facts = fs_err::symlink_metadata(&path).expect("there");
        let inside = if facts.is_dir() { contents(&path) } else { BTreeSet::new() };
        std::iter::once((path, facts.modified().expect("a time"))).chain(inside)
    };
    entries.flat_map(below).collect()
}

#[tokio::test]
async fn a_new_data_directory_is_served_from_what_is_installed() {
    // The folder of set-up, without what else is in it: links, as a package manager may make them.
    let installation = folder_with("");
    for part in ["models", "runtime"] {
        fs_err::create_dir(installation.path().join(part)).expect("made");
    }
    for part in ["models/all-MiniLM-L6-v2", "runtime/libonnxruntime.so"] {
        let target = fs_err::canonicalize(data_dir().join(part)).expect("set up");
        symlink(target, installation.path().join(part)).expect("linked");
    }
    let before = contents(installation.path());

    let folder = folder_with("");
    let system_dir = installation.path().display().to_string();
    let variables = [("GRANARY_MODELS__SYSTEM_DIR", system_dir.as_str())];
    let (mut process, url) = Process::serve_with(folder.path(), &["--data-dir", "data"], &variables);
    let answer = send(client().post(format!("{url}/embed")).json(&json!({"inputs": "hello world"}))).await;
    answer.ok();
    assert_eq!(answer.header("x-model"), MINILM);
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(0), "{}", process.log());

    assert_eq!(contents(installation.path()), before);
    let made = contents(&folder.path().join("data"));
    assert!(made.iter().any(|(path, _)| path.ends_with("granary.db")), "{made:?}");
    assert!(!made.iter().any(|(path, _)| path.starts_with(folder.path().join("data/runtime"))), "{made:?}");
}

/// What `scripts/setup` does once it has made a model.
const PUBLISH: &str = "
import sys
sys.dont_write_bytecode = True
sys.path.insert(0, 'scripts')
from provision import DataFolder, Failure
data = DataFolder()
with data.lock(), data.staging() as staged:
    (staged / 'made').mkdir()
    try:
        data.publish(staged / 'made', 'models/made')
    except Failure as failure:
        print(failure)
";

#[test]
fn set_up_says_that_models_are_on_another_file_system() {
    let (folder, elsewhere) = (folder_with(""), tempfile::tempdir_in("/dev/shm").expect("a file system in memory"));
    let device = |path: &Path| fs_err::metadata(path).expect("there").dev();
    if device(folder.path()) == device(elsewhere.path()) {
        println!("not tried: temporary folders are in /dev/shm here");
        return;
    }
    let models = folder.path().join("models");
    symlink(elsewhere.path(), &models).expect("linked");
    let mut command = Command::new("python3");
    command.args(["-c", PUBLISH]).current_dir(repository()).env("GRANARY_MODELS__DATA_DIR", folder.path());
    let output = command.output().expect("it runs");
    let said = String::from_utf8(output.stdout.clone()).expect("UTF-8");
    let expected = format!("{} is on another file system than {}/", models.display(), folder.path().display());
    assert!(said.starts_with(&expected) && said.contains("put both on one"), "{said}{output:?}");
}

#[test]
fn set_up_writes_through_no_link() {
    let folder = folder_with("");
    let path = |name: &str| folder.path().join(name);
    let set_up = || {
        let mut command = Command::new("python3");
        command.args(["-c", PUBLISH]).current_dir(repository()).env("GRANARY_MODELS__DATA_DIR", folder.path());
        command.output().expect("it runs")
    };
    fs_err::write(path("other"), "of the system").expect("written");
    symlink("other", path(".lock")).expect("linked");
    let refused = set_up();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("cannot be written"), "{said}");
    assert_eq!(fs_err::read_to_string(path("other")).expect("it is there"), "of the system");

    fs_err::remove_file(path(".lock")).expect("removed");
    symlink("nowhere", path(".gitignore")).expect("linked");
    let done = set_up();
    assert!(done.status.success() && path("models/made").is_dir() && !path("nowhere").exists(), "{done:?}");
}

#[test]
fn set_up_as_root_runs_nothing_of_another_user() {
    let folder = folder_with("");
    if chown(folder.path(), Some(7), None).is_err() {
        println!("skipped: only root can give folders to other users");
        return;
    }
    let set_up = || {
        let mut command = Command::new("python3");
        command.args(["-c", PUBLISH]).current_dir(repository()).env("GRANARY_MODELS__DATA_DIR", folder.path());
        command.output().expect("it runs")
    };
    let refused = set_up();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("belongs to the user 7"), "{said}");
    assert!(contents(folder.path()).iter().all(|(path, _)| path.ends_with("granary.toml")), "nothing is made");
    chown(folder.path(), Some(0), None).expect("given back");
    let done = set_up();
    assert!(done.status.success(), "{done:?}");
}

/// What `scripts/setup` says of what pip has said.
const EXPLAIN: &str = "
import sys
sys.dont_write_bytecode = True
sys.path.insert(0, 'scripts')
from provision import explain
print(explain(sys.argv[1]))
";

#[test]
fn set_up_says_what_kept_pip_from_a_package() {
    let none = "ERROR: Could not find a version that satisfies the requirement wheat==1.2 (from versions: none)\n\
                ERROR: No matching distribution found for wheat==1.2\n";
    let retrying = |cause: &str| {
        let before = "Retrying (Retry(total=0, connect=None)) after connection broken by";
        format!("WARNING: {before} '{cause}': /simple/wheat/\n{none}")
    };
    let untrusted = retrying("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] failed'))");
    let full = "ERROR: Exception:\nTraceback (most recent call last):\n  File \"pip\", line 1, in run\n\
                OSError: [Errno 28] No space left on device\n";
    let other = "ERROR: Could not find a version that satisfies the requirement wheat==1.2 (from versions: 1.0)\n\
                 ERROR: No matching distribution found for wheat==1.2\n";
    for (stderr, expected) in [
        (full, "pip failed: OSError: [Errno 28] No space left on device"),
        (untrusted.as_str(), "PIP_CERT names"),
        (none, "lists no wheel of wheat==1.2 for this machine, or answers with an error: `python3 -m pip download"),
        (retrying("ProtocolError('cut')").as_str(), "answers with an error: Retrying (Retry(total=0, connect=None))"),
        (retrying("NewConnectionError('refused')").as_str(), "no Python package index could be reached"),
        (other, "pip failed: No matching distribution found for wheat==1.2"),
        ("ERROR: wheat is sold out\n", "pip failed: wheat is sold out"),
        ("", "pip failed: no message"),
    ] {
        let mut command = Command::new("python3");
        let output = command.args(["-c", EXPLAIN, stderr]).current_dir(repository()).output().expect("it runs");
        let said = String::from_utf8(output.stdout.clone()).expect("UTF-8");
        assert!(said.contains(expected), "{stderr}: {said}{output:?}");
    }
}

#[test]
fn make_takes_folders_with_spaces_in_their_names() {
    let mut command = Command::new("make");
    command.args(["--dry-run", "serve", "test", "lint", "test-schema"]).current_dir(repository());
    command.env_remove("MAKEFLAGS").env("GRANARY_MODELS__DATA_DIR", "my data").env("CARGO_TARGET_DIR", "my target");
    let output = command.output().expect("it runs");
    let said = String::from_utf8(output.stdout.clone()).expect("UTF-8");
    for line in [
        "exec \"my target\"/release/granary serve",
        "\"my data\"/tools/cargo-nextest nextest run --locked",
        "\"my data\"/tools/cargo-deny --locked check bans licenses sources",
        "scripts/check-clients \"my target\"/debug/granary",
        "scripts/check-schema \"my target\"/release/granary --requests 10000",
    ] {
        assert!(said.lines().any(|found| found == line), "no `{line}` in:\n{said}{output:?}");
    }
}
