//! The login dialogues of IMAP, POP3 and SMTP, without I/O.
//!
//! Each protocol has the same three files: `grammar` (nom parsers, the RFC's line above each), `front` (us
//! in the server's seat) and `back` (us in the client's seat). SMTP has a fourth, `boundary`.
//!
//! Never: performs I/O, reads a clock, logs, knows tokio.

pub mod foreign;
pub mod imap;
pub mod line;
pub mod machine;
pub mod pop3;
pub mod sasl;
pub mod smtp;
