//! See `bodies/impersonation.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::impersonation::run(data));
