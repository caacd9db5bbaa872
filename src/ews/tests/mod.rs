//! The EWS listener from outside: raw bytes in front, a scripted Exchange and a scripted broker behind.

mod auth;
mod back;
mod discovery;
mod impersonation;
mod relay;
mod rig;
mod streams;
mod wire;
