//! The corpus of the fuzzers: seeds, and what once failed. `make fuzz` goes on from there.

use std::path::PathBuf;

use granary::api::fuzzing::{Filters, import_lines, model_folder, request_body};
use tempfile::TempDir;

use crate::helpers::repository;

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = repository().join("fuzz/corpus").join(target);
    let paths = fs_err::read_dir(folder).expect("a corpus").map(|entry| entry.expect("an entry").path());
    let inputs: Vec<_> = paths.map(|path| (path.clone(), fs_err::read(path).expect("an input"))).collect();
    assert!(!inputs.is_empty(), "{target} has no input");
    inputs
}

/// Runs every input; the name of the one that fails is the last one printed.
fn replay(target: &str, run: impl Fn(&[u8])) {
    for (path, bytes) in corpus(target) {
        println!("{}", path.display());
        run(&bytes);
    }
}

#[test]
fn bodies_of_requests() {
    replay("request_bodies", request_body);
}

#[test]
fn lines_of_imports() {
    replay("import_lines", import_lines);
}

#[test]
fn filters() {
    let folder = TempDir::new().expect("a folder");
    let filters = Filters::open(folder.path());
    replay("filters", |bytes| filters.apply(bytes));
}

#[test]
fn folders_of_models() {
    let folder = TempDir::new().expect("a folder");
    replay("model_folders", |bytes| model_folder(folder.path(), bytes));
}
