//! Nothing leaks around the proxy.
