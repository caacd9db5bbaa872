//! The binary: parses arguments, calls `cli`, turns the result into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    mailkey::cli::main(std::env::args_os())
}
