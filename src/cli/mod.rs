//! The command line: one command, one file.

pub mod check;
pub mod out;
