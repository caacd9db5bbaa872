//! The bodies of the fuzz targets: plain functions that take octets and panic where something does not hold.
//!
//! The fuzzer runs them on what it makes up; `tests/fuzzing.rs` runs the very same functions on the kept corpus
//! with every `cargo test`. They are at home here and not in the program, which they reach by its public items.
//!
//! Never: compare a run with itself alone. Each body has an oracle that shares no code with what it judges.

pub mod autodiscover;
pub mod backs;
pub mod boundary;
pub mod configuration;
pub mod ews_headers;
pub mod fronts;
pub mod grammars;
pub mod identity;
pub mod impersonation;
pub mod outbound_proxy;
pub mod recorder;
pub mod script;
pub mod smtp_reference;
pub mod token_store;

/// A target: its name, and its body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target, the most valuable first.
pub const TARGETS: &[Target] = &[
    ("fronts", fronts::run),
    ("backs", backs::run),
    ("boundary", boundary::run),
    ("impersonation", impersonation::run),
    ("recorder", recorder::run),
    ("grammars", grammars::run),
    ("ews_headers", ews_headers::run),
    ("autodiscover", autodiscover::run),
    ("outbound_proxy", outbound_proxy::run),
    ("identity", identity::run),
    ("configuration", configuration::run),
    ("token_store", token_store::run),
];
