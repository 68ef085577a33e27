//! The corpus of the fuzzers: seeds, what once failed, and some changes of each by chance. `make fuzz` goes on from there.

use std::path::PathBuf;

use granary::api::fuzzing::{Filters, import_lines, model_folder, request_body};
use tempfile::TempDir;

use crate::helpers::{Chance, number_from_env, repository};

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = repository().join("fuzz/corpus").join(target);
    let paths = fs_err::read_dir(folder).expect("a corpus").map(|entry| entry.expect("an entry").path());
    let inputs: Vec<_> = paths.map(|path| (path.clone(), fs_err::read(path).expect("an input"))).collect();
    assert!(!inputs.is_empty(), "{target} has no input");
    inputs
}

/// Runs every input, and each in `FUZZ_CHANGES` forms that are a little wrong. The input that fails is the last one that
/// is printed.
fn replay(target: &str, run: impl Fn(&[u8])) {
    let inputs = corpus(target);
    let mut chance = Chance::seeded(number_from_env("FUZZ_SEED", 1));
    for (path, bytes) in &inputs {
        println!("{}", path.display());
        run(bytes);
        for _ in 0..number_from_env("FUZZ_CHANGES", 20) {
            let changed = changed(bytes, &inputs, &mut chance);
            println!("{}", changed.escape_ascii());
            run(&changed);
        }
    }
}

/// Bytes with some of them replaced, taken out, doubled, or followed by a part of another input.
fn changed(bytes: &[u8], inputs: &[(PathBuf, Vec<u8>)], chance: &mut Chance) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    for _ in 0..=chance.below(4) {
        let start = chance.index(changed.len() + 1);
        let end = (start + chance.index(16)).min(changed.len());
        match chance.below(5) {
            0 => changed[start..end].fill_with(|| u8::try_from(chance.below(256)).expect("below 256")),
            1 => drop(changed.drain(start..end)),
            2 => changed.extend_from_within(start..end),
            3 => drop(changed.splice(start..end, chance.pick(&WORDS).bytes())),
            _ => {
                let (_, other) = chance.pick(inputs);
                let from = chance.index(other.len() + 1);
                changed.truncate(start);
                changed.extend_from_slice(&other[from..]);
            }
        }
    }
    changed
}

/// What means something to a reader.
const WORDS: [&str; 16] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "null",
    "true",
    "-1",
    "1e999",
    "18446744073709551616",
    "\\ud800",
    "\n",
    "\0",
];

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
