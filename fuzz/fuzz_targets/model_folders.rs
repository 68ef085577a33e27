//! Model folders, as far as they are read before the runtime library has its turn.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

static FOLDER: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("granary-fuzz-{}", std::process::id())));

libfuzzer_sys::fuzz_target!(
    // The library of tokenizers panics on some files. The server catches that; libFuzzer's hook would end the process
    // before. What nobody catches still ends it, and `make test` says the words of it once the input is in the corpus.
    init: std::panic::set_hook(Box::new(|_| {})),
    |bytes: &[u8]| granary::api::fuzzing::model_folder(&FOLDER, bytes)
);
