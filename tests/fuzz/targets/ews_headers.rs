//! See `bodies/ews_headers.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::ews_headers::run(data));
