//! cli.

pub mod explain;
pub mod hash_password;
