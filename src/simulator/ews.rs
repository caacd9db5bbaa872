//! placeholder
use super::office::Office;
use std::{io, sync::Arc};
use tokio::io::{AsyncRead, AsyncWrite};
pub(super) async fn serve(
    _office: Arc<Office>,
    _stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> io::Result<()> {
    Ok(())
}
