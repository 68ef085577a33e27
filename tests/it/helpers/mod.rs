//! Starting servers, in this process or as one of their own, and asking them.

mod chance;
mod collector;
mod disk;
mod forward_proxy;
mod hub;
mod keys;
mod patience;
mod process;
mod proxy;
mod server;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

pub use chance::Chance;
pub use collector::{Mood, SeenSpan, StandInCollector};
pub use disk::SmallDisk;
pub use forward_proxy::StandInProxy;
pub use hub::{Failing, REPOSITORY, StandInHub, etag, files_of, sha256};
pub use keys::{key_entry, secret, with_keys};
pub use patience::{PATIENCE, let_pass, until, until_seen};
pub use process::Process;
pub use proxy::{Kind, Proxy};
pub use server::{Answer, Caller, TestApp, client, crowd, send};

/// The default model.
pub const MINILM: &str = "all-MiniLM-L6-v2";

/// A model of 32 dimensions and 128 tokens whose vectors mean nothing: where any model does, it loads in no time.
pub const TINY: &str = "tiny";

/// The repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where set-up puts the runtime library and models.
pub fn data_dir() -> PathBuf {
    std::env::var_os("GRANARY_MODELS__DATA_DIR").map_or_else(|| repository().join(".granary"), PathBuf::from)
}

/// A model folder with random weights.
pub fn test_model(name: &str) -> PathBuf {
    let folder = data_dir().join("test/models").join(name);
    assert!(folder.is_dir(), "{} is missing: run `make setup-test` first", folder.display());
    folder
}

/// An `[[ai.additional_models]]` entry for one of the models with random weights.
pub fn entry_of(name: &str) -> String {
    format!("[[ai.additional_models]]\nname = \"{name}\"\npath = \"{}\"\n", test_model(name).display())
}

/// A configuration in which `tiny` is the active model and these are known besides.
pub fn with_tiny(others: &[&str]) -> String {
    let entries: String = [TINY].iter().chain(others).map(|name| entry_of(name)).collect();
    format!("[ai]\nmodel_name = \"{TINY}\"\n{entries}")
}

/// A folder with a `granary.toml` for a process of its own.
pub fn folder_with(toml: &str) -> TempDir {
    let folder = TempDir::new().expect("a folder");
    fs_err::write(folder.path().join("granary.toml"), toml).expect("written");
    folder
}

/// A data directory of a server's own, with the runtime library and a `granary.toml`.
pub fn own_data_dir(toml: &str) -> TempDir {
    let folder = folder_with(toml);
    let runtime = data_dir().canonicalize().expect("set up").join("runtime");
    std::os::unix::fs::symlink(runtime, folder.path().join("runtime")).expect("linked");
    folder
}

/// Copies a folder; a link in it stays a link.
pub fn copy_folder(from: &Path, to: &Path) {
    fs_err::create_dir_all(to).expect("made");
    for entry in fs_err::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().expect("its type");
        if kind.is_symlink() {
            std::os::unix::fs::symlink(fs_err::read_link(&path).expect("a link"), target).expect("linked");
        } else if kind.is_dir() {
            copy_folder(&path, &target);
        } else {
            fs_err::copy(&path, target).expect("copied");
        }
    }
}

/// A number from the environment, for tests that may go on for longer than usual.
pub fn number_from_env(name: &str, usual: u64) -> u64 {
    let text = std::env::var(name).unwrap_or_default();
    if text.is_empty() { usual } else { text.parse().unwrap_or_else(|_| panic!("{name} is `{text}`, no number")) }
}

/// Every byte percent-encoded, letters too: `/grains/search` is another path than `/grains/%73earch`.
pub fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        write!(encoded, "%{byte:02X}").expect("a string takes everything");
        encoded
    })
}

/// The numbers of one vector.
pub fn vector_of(value: &Value) -> Vec<f32> {
    serde_json::from_value(value.clone()).unwrap_or_else(|_| panic!("not a vector: {value}"))
}

/// The vectors of an `/embed` answer.
pub fn vectors_of(value: &Value) -> Vec<Vec<f32>> {
    value.as_array().unwrap_or_else(|| panic!("not a list: {value}")).iter().map(vector_of).collect()
}

/// The cosine of the angle between two vectors, in double precision.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "vectors of two lengths");
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    product(a, b) / (product(a, a) * product(b, b)).sqrt()
}

/// The length of a vector.
pub fn norm(vector: &[f32]) -> f64 {
    vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt()
}
