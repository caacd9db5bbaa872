//! The soak: idle and active sessions for a while, and whether memory and descriptors stay as they were.

use std::fmt::Write as _;
use std::path::Path;
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::load::{Job, Outcome, Protocol};
use crate::thing::{Ground, Load, Programs, Running, Thing};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(10);

/// Memory may take so long to find its level: the active sessions have not all carried a message before.
const UNSETTLED: f64 = 0.2;

/// By how much memory may grow over the time after that, in parts of what it is.
const GROWTH: f64 = 0.03;

/// What may stand open besides: connections kept warm for the next login, one answer of the status page.
const SPARE_DESCRIPTORS: usize = 16;

/// Among how many users the sessions are.
const USERS: u64 = 100;

/// One look.
struct Look {
    seconds: f64,
    pss_mib: f64,
    descriptors: usize,
    cpu_s: f64,
}

/// Ends with an error where memory grows, a descriptor leaks, or anything failed.
pub fn run(programs: Programs, idle: u64, active: u64, time: Duration, results: &Path) -> Result<()> {
    let ground = Ground::lay(programs)?;
    let subject = ground.start(Thing::Mailkey)?;
    let first = Job::Logins { workers: 8, count: USERS, users: USERS, pause: None };
    subject.bear_well(Protocol::Imap, first)?;
    sleep(Duration::from_secs(3));
    let before = look(&subject, Instant::now())?;
    eprintln!("before: {:.1} MiB, {} descriptors", before.pss_mib, before.descriptors);

    let job = Job::Soak { idle, active, users: USERS, time };
    let mut load = Load::ready(subject.target(Protocol::Imap), job)
        .with_context(|| format!("{} sessions\n{}", idle + active, subject.log()))?;
    let start = Instant::now();
    let (outcome, looks) = scope(|scope| -> Result<(Outcome, Vec<Look>)> {
        let working = scope.spawn(|| load.go());
        let mut looks = vec![look(&subject, start)?];
        while !working.is_finished() {
            sleep(EVERY.min(time / 20));
            // the last sessions leave after the time is over
            if start.elapsed() < time {
                let seen = look(&subject, start)?;
                eprintln!(
                    "{:4.0} s: {:.1} MiB, {} descriptors",
                    seen.seconds, seen.pss_mib, seen.descriptors
                );
                looks.push(seen);
            }
        }
        let outcome = working.join().map_err(|_| anyhow::anyhow!("the load generator broke"))??;
        Ok((outcome, looks))
    })?;
    let last_cpu = subject.cpu()?;
    drop(load);
    sleep(EVERY);
    let after = look(&subject, start)?;

    let settled: Vec<&Look> =
        looks.iter().filter(|look| look.seconds >= time.as_secs_f64() * UNSETTLED).collect();
    let level = settled.iter().map(|look| look.pss_mib).sum::<f64>() / settled.len() as f64;
    let slope = slope(settled.iter().map(|look| (look.seconds, look.pss_mib)));
    let grown = slope * time.as_secs_f64() * (1.0 - UNSETTLED) / level;
    let most = looks.iter().map(|look| look.descriptors).max().unwrap_or_default();

    let mut told = String::new();
    writeln!(told, "{idle} idle and {active} active IMAP sessions for {} s", time.as_secs())?;
    writeln!(
        told,
        "operations: {}, errors: {}, {} MB of messages",
        outcome.done,
        outcome.errors,
        outcome.octets / 1_000_000
    )?;
    writeln!(
        told,
        "memory: {level:.1} MiB, {:+.3} MiB a minute ({:+.2} % over the time)",
        slope * 60.0,
        grown * 100.0
    )?;
    writeln!(told, "memory: {:.1} MiB before, {:.1} MiB after", before.pss_mib, after.pss_mib)?;
    writeln!(
        told,
        "descriptors: {} before, {most} at most, {} after",
        before.descriptors, after.descriptors
    )?;
    writeln!(told, "processor: {:.2} s", last_cpu - looks.first().map_or(0.0, |look| look.cpu_s))?;
    println!("{told}");
    std::fs::create_dir_all(results)?;
    std::fs::write(results.join("soak.txt"), &told)?;

    ensure!(
        outcome.errors == 0,
        "the first error: {}\n{}",
        outcome.first_error.unwrap_or_default(),
        subject.log()
    );
    ensure!(outcome.done > active, "next to nothing was done");
    ensure!(grown <= GROWTH, "memory grows");
    ensure!(after.descriptors <= before.descriptors + SPARE_DESCRIPTORS, "descriptors leak");
    let log = subject.whole_log();
    // whoever measures as root is told so at the start; that says nothing about the hours after it
    let bad = log.lines().find(|line| {
        [" ERROR ", " WARN "].iter().any(|level| line.contains(level)) && !line.contains("this runs as root")
    });
    ensure!(bad.is_none(), "in the log: {}", bad.unwrap_or_default());
    println!("memory flat, no descriptor leaked, no error");
    Ok(())
}

fn look(subject: &Running, start: Instant) -> Result<Look> {
    Ok(Look {
        seconds: start.elapsed().as_secs_f64(),
        pss_mib: subject.pss() / 1024.0,
        descriptors: subject.descriptors(),
        cpu_s: subject.cpu()?,
    })
}

/// Of the line through the points with the least squares.
fn slope(points: impl Iterator<Item = (f64, f64)>) -> f64 {
    let points: Vec<(f64, f64)> = points.collect();
    let count = points.len() as f64;
    let (mean_x, mean_y) =
        points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0 / count, y + point.1 / count));
    let (above, below) = points.iter().fold((0.0, 0.0), |(above, below), (x, y)| {
        (above + (x - mean_x) * (y - mean_y), below + (x - mean_x) * (x - mean_x))
    });
    if below == 0.0 { 0.0 } else { above / below }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_slope() {
        let rising = (0..10).map(|x| (f64::from(x), 3.0 + 2.0 * f64::from(x)));
        assert!((slope(rising) - 2.0).abs() < 1e-9);
        assert!(slope([(1.0, 5.0)].into_iter()).abs() < 1e-9);
    }
}
