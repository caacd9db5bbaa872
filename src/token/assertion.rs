//! PLACEHOLDER for `private_key_jwt`. Replace the whole file.

use std::path::Path;

use jiff::Timestamp;

use crate::secret::Secret;

/// Why no assertion could be made.
#[derive(Debug, thiserror::Error)]
pub enum AssertionError {
    /// Not merged yet.
    #[error("client assertions are not merged yet")]
    NotMerged,
}

/// A signed assertion.
///
/// # Errors
/// Always.
pub fn client_assertion(
    _certificate_file: &Path,
    _key_file: &Path,
    _client_id: &str,
    _audience: &str,
    _now: Timestamp,
) -> Result<Secret, AssertionError> {
    Err(AssertionError::NotMerged)
}
