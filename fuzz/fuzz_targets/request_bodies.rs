//! Bodies of requests, as every route reads them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| granary::api::fuzzing::request_body(bytes));
