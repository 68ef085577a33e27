//! Filters, from their JSON to what the database finds.
#![no_main]

use std::sync::LazyLock;

use granary::api::fuzzing::Filters;

static FILTERS: LazyLock<Filters> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("granary-fuzz-{}", std::process::id()));
    Filters::open(&folder)
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| FILTERS.apply(bytes));
