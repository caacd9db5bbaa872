//! SMTP: grammar, front and back.
