//! `mailkey schema`: the JSON schema of `proxy.yaml`, for editors.

use std::process::ExitCode;

use super::out::Out;
use crate::config;

/// Prints it.
pub fn schema(out: &mut Out) -> ExitCode {
    out.line(format_args!("{:#}", config::schema()));
    ExitCode::SUCCESS
}
