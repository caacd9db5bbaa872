//! Memory: at rest, and of sessions that wait.

use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::Run;
use crate::load::{Job, Protocol};
use crate::thing::{Load, Thing};

/// How long memory may take to settle: buffers go back, an allocator trims.
const SETTLE: Duration = Duration::from_secs(3);

/// Growth of the PSS by session in IMAP IDLE; a fresh process each round.
pub(super) fn idle(run: &mut Run<'_>) -> Result<()> {
    levels(run, &[1000, 5000, 9900], "idle")
}

/// The same at a hundredth, a tenth and all of it.
pub(super) fn growth(run: &mut Run<'_>) -> Result<()> {
    levels(run, &[99, 990, 9900], "sessions")
}

fn levels(run: &mut Run<'_>, levels: &[u64], name: &str) -> Result<()> {
    for round in 0..run.rounds().min(2) {
        run.round = round;
        for thing in run.things() {
            // one thread for each session, and a key derivation for each login: more than that is a matter of minutes
            let levels: Vec<u64> = match thing {
                Thing::Emailproxy => vec![run.amount(100)],
                _ => levels.iter().map(|level| run.amount(*level)).collect(),
            };
            if let Err(error) = rise(run, thing, &levels, name) {
                run.forgive(thing, &format!("{}: {error:#}", thing.name()))?;
            }
        }
    }
    Ok(())
}

fn rise(run: &mut Run<'_>, thing: Thing, levels: &[u64], name: &str) -> Result<()> {
    let settle = if run.settings.smoke { SETTLE / 20 } else { SETTLE };
    let subject = run.ground.start(thing)?;
    run.warm_up(&subject, Protocol::Imap)?;
    sleep(settle);
    let base = subject.pss();
    run.note(thing, &format!("{name}_0.mib"), base / 1024.0);
    let job = Job::Idle { levels: levels.to_vec(), users: 50 };
    let mut load = Load::ready(subject.target(Protocol::Imap), job)?;
    for (number, level) in levels.iter().enumerate() {
        if number > 0 {
            load.until_ready()?;
        }
        let before = subject.cpu()?;
        let outcome = load.go()?;
        ensure!(outcome.errors == 0, "{level} sessions: {}", outcome.first_error.unwrap_or_default());
        let established = subject.cpu()? - before;
        sleep(settle);
        let grown = subject.pss() - base;
        run.note(thing, &format!("{name}_{level}.kib"), grown / *level as f64);
        run.note(thing, &format!("{name}_{level}.mib"), (grown + base) / 1024.0);
        if number + 1 == levels.len() {
            let idle = subject.cpu()?;
            sleep(settle);
            run.note(
                thing,
                &format!("{name}_{level}.idle_cpu_ms_per_s"),
                (subject.cpu()? - idle) * 1e3 / settle.as_secs_f64(),
            );
            run.note(thing, &format!("{name}_{level}.establish_cpu_ms"), established * 1e3);
        }
    }
    load.go()?;
    sleep(settle * 2);
    run.note(thing, &format!("{name}_after.kept_mib"), (subject.pss() - base) / 1024.0);
    Ok(())
}

/// From the start of the process until all its ports take connections, and what it holds a moment later.
pub(super) fn start(run: &mut Run<'_>) -> Result<()> {
    for round in 0..run.rounds() {
        run.round = round;
        for thing in run.things() {
            if thing == Thing::Emailproxy && round >= 3 {
                continue;
            }
            let subject = run.ground.start(thing)?;
            run.note(thing, "start.ms", subject.listening.as_secs_f64() * 1e3);
            if round < 3 {
                sleep(Duration::from_secs(1));
                run.note(thing, "rest.mib", subject.pss() / 1024.0);
            }
        }
    }
    run.round = 0;
    if run.things().contains(&Thing::Mailkey) {
        let stripped = run.ground.folder.path().join("stripped");
        let status = Command::new("strip")
            .arg("-o")
            .arg(&stripped)
            .arg(&run.settings.programs.mailkey)
            .status()
            .context("`strip`, of the package binutils")?;
        ensure!(status.success(), "`strip` ended with {status}");
        let size = std::fs::metadata(&stripped)?.len() as f64;
        run.note(Thing::Mailkey, "binary.mb", size / 1e6);
    }
    Ok(())
}
