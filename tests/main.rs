//! All integration tests, in one binary: test names are sentences.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::missing_docs_in_private_items,
    clippy::disallowed_methods,
    reason = "a test that cannot go on ends, and the clock is its own"
)]

mod browser;
mod clients;
mod command_line;
mod config;
mod deploy;
mod distance;
mod doctor;
mod ews_clients;
mod faults;
mod fuzzing;
mod grants;
mod hostile;
mod house;
mod legacy;
mod operating;
mod passwords;
mod peers;
mod ports;
mod proxies;
mod readme;
mod recipes;
mod replicas;
mod safety;
mod setup;
mod simulator;
mod slicing;
mod stage;
mod store;
mod traces;
mod transcripts;
mod traps;
mod trust;
mod warm;
