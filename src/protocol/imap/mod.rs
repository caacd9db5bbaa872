//! IMAP: grammar, front and back.
