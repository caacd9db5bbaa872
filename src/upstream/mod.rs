//! The way to Office 365: dialling, the outbound proxy, TLS.

pub mod error;
pub mod https;
