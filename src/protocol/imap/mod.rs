//! IMAP: grammar, front and back.

pub mod back;
pub mod front;
pub mod grammar;

pub use back::ImapBack;
pub use front::ImapFront;
