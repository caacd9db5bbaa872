//! The token broker: credentials in, access token out.
//!
//! ```text
//! credentials ──► guard ──► cache ──► flight ──► grant ──► endpoint ──► Entra ID
//!                   │ held     │ hit     │ shared                │
//!                   ▼          ▼         ▼                       ▼
//!                refusal     token     token                 store (if any)
//! ```

pub mod assertion;
pub mod catalogue;
pub mod digest;
pub mod password;
pub mod request;
pub mod store;
