//! What a tree of processes has used: processor time, memory, descriptors. Read from /proc.

use std::collections::HashMap;
use std::fs;

use anyhow::{Context as _, Result};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// One process as /proc/PID/stat has it.
struct Stat {
    parent: i32,
    /// User and system time of children that have ended, in ticks.
    reaped: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // the name, in brackets, may hold anything
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |place: usize| fields.get(place)?.parse::<u64>().ok();
    Some(Stat { parent: fields.get(1)?.parse().ok()?, reaped: number(13)? + number(14)? })
}

/// The process and everything below it.
pub fn tree(root: u32) -> Vec<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(stat) = stat(pid) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    let mut found = vec![i32::try_from(root).unwrap_or_default()];
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        found.extend(children.remove(&pid).unwrap_or_default());
        next += 1;
    }
    found
}

/// User and system time so far, in seconds: of all that live to the nanosecond, of those that ended to the tick (10 ms).
pub fn cpu(root: u32) -> Result<f64> {
    let mut seconds = 0.0;
    let pids = tree(root);
    for &pid in &pids {
        let Some(stat) = stat(pid) else { continue };
        seconds += stat.reaped as f64 / 100.0;
        if let Ok(clock) = clock_getcpuclockid(Pid::from_raw(pid)) {
            let time = clock_gettime(clock).with_context(|| format!("the clock of process {pid}"))?;
            seconds += time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9;
        }
    }
    Ok(seconds)
}

/// Proportional set size in KiB.
pub fn pss(root: u32) -> u64 {
    let of = |pid: i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = text.lines().find(|line| line.starts_with("Pss:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    tree(root).into_iter().filter_map(of).sum()
}

/// Open descriptors.
pub fn descriptors(root: u32) -> usize {
    tree(root)
        .into_iter()
        .filter_map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).ok())
        .map(Iterator::count)
        .sum()
}
