//! The token broker: credentials in, access token out.
//!
//! ```text
//! credentials ──► guard ──► cache ──► flight ──► grant ──► endpoint ──► Entra ID
//!                   │ held     │ hit     │ shared                │
//!                   ▼          ▼         ▼                       ▼
//!                refusal     token     token                 store (if any)
//! ```
//!
//! Never: stores a password, gives a cached token to a wrong one, or asks twice at once for the same thing.

pub mod answer;
pub mod assertion;
pub mod breaker;
pub mod broker;
pub mod cache;
pub mod callback;
pub mod catalogue;
pub mod digest;
pub mod endpoint;
pub mod entropy;
pub mod error;
pub mod flight;
pub mod grant;
pub mod guard;
pub mod managed;
pub mod password;
pub mod request;
pub mod sign_in;
pub mod store;
#[cfg(test)]
mod testing;
