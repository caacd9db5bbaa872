//! IMAP: grammar, front and back.

pub mod grammar;

