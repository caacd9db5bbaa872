//! See `bodies/boundary.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::boundary::run(data));
