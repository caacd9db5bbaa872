//! SMTP before the login (RFC 5321, 3207, 4954): grammar, front and back; and the boundaries between
//! messages after it.

pub mod back;
pub mod boundary;
pub mod front;
pub mod grammar;

pub use back::SmtpBack;
pub use boundary::Boundary;
pub use front::SmtpFront;
