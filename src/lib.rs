//! Mailkey: the local authenticating mail proxy. This file is the map and defines nothing.

pub mod cli;
pub mod clock;
pub mod config;
pub mod explain;
pub mod protocol;
pub mod secret;
pub mod simulator;
pub mod stream;
pub mod telemetry;
pub mod token;
pub mod upstream;
