//! The soak: idle and active sessions for a while, and whether memory and descriptors stay as they were.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::thing::Programs;

pub fn run(_: Programs, _: u64, _: u64, _: Duration, _: &Path) -> Result<()> {
    bail!("not yet")
}
