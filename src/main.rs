//! The binary: parses arguments, calls `cli`, turns the result into an exit code.

use std::alloc::System;
use std::process::ExitCode;

use zeroizing_alloc::ZeroAlloc;

/// Memory is wiped as it is given back: what other libraries held of a password or a token goes with it.
#[global_allocator]
static MEMORY: ZeroAlloc<System> = ZeroAlloc(System);

fn main() -> ExitCode {
    mailkey::cli::main(std::env::args_os())
}
