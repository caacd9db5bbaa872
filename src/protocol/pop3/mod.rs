//! POP3: grammar, front and back.
