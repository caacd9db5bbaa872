//! POP3 before the login (RFC 1939, 2449, 2595, 3206, 5034): grammar, front and back.

pub mod back;
pub mod front;
pub mod grammar;

pub use back::Pop3Back;
pub use front::Pop3Front;
