//! See `bodies/backs.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::backs::run(data));
