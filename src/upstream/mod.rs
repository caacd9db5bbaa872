//! The way to Office 365: name, outbound proxy, socket, TLS.
//!
//! ```text
//! Connector::open ──► ground: dial (happy eyeballs) ────────────────────────────┐
//!    ▲   └─────────► ground: dial the proxy ──► proxy: sign-in ──► tunnel ──► ground: tls ──► Encrypted
//! gateway: the same way, for the HTTP client that asks for tokens
//! ```
//!
//! Knows no mail protocol. Every step has a time limit and says in its error whose fault it is.

pub mod connector;
pub mod dial;
pub mod error;
pub mod gateway;
pub mod ground;
pub mod https;
#[cfg(feature = "negotiate")]
pub mod negotiate;
pub mod ntlm;
pub mod proxy;
pub mod record;
pub mod tickets;
pub mod tls;
pub mod tunnel;
pub mod witness;
