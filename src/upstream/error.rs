//! Why upstream could not be reached.

/// To be filled.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// To be filled.
    #[error("not yet")]
    NotYet,
}
