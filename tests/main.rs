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
mod distance;
mod grants;
mod hostile;
mod house;
mod operating;
mod passwords;
mod proxies;
mod readme;
mod simulator;
mod slicing;
mod stage;
mod store;
mod transcripts;
mod warm;
