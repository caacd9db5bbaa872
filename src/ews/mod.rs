//! ews.
