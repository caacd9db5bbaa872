//! See `bodies/outbound_proxy.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::outbound_proxy::run(data));
