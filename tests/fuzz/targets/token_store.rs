//! See `bodies/token_store.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::token_store::run(data));
