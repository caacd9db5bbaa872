//! Any byte stream, and errors that say which side broke.

use std::{fmt, io};

use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes both ways: a TCP socket, a TLS session over one, a pipe in a test.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A stream whose kind no longer matters.
pub type BoxIo = Box<dyn Io>;

/// Which end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The mail client.
    Front,
    /// Office 365, or whoever stands in for it.
    Back,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Front => "the mail client",
            Self::Back => "the upstream server",
        })
    }
}

/// An I/O error and the side that it happened on.
#[derive(Debug, thiserror::Error)]
#[error("{side}: {source}")]
pub struct SideError {
    /// Who broke.
    pub side: Side,
    /// How.
    pub source: io::Error,
}

/// Tags the errors of one side.
pub trait OnSide<T> {
    /// Says whose stream this was.
    fn on(self, side: Side) -> Result<T, SideError>;
}

impl<T> OnSide<T> for io::Result<T> {
    fn on(self, side: Side) -> Result<T, SideError> {
        self.map_err(|source| SideError { side, source })
    }
}
