//! See `bodies/grammars.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::grammars::run(data));
