//! The proxy's sign-in against a scripted one.
