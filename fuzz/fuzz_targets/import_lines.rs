//! Lines of an import, in pieces.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| granary::api::fuzzing::import_lines(bytes));
