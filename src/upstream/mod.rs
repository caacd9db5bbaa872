//! The way to Office 365: name, outbound proxy, socket, TLS.
//!
//! ```text
//! Connector::open ──► dial (happy eyeballs) ─────────────────┐
//!        └─────────► dial the proxy ──► tunnel (CONNECT, SOCKS) ──► tls ──► Encrypted
//! ```
//!
//! Knows no mail protocol. Every step has a time limit and says in its error whose fault it is.

pub mod connector;
pub mod dial;
pub mod error;
pub mod https;
pub mod tls;
pub mod tunnel;
pub mod witness;
