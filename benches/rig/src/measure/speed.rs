//! Processor time: of logins, of octets, of EWS requests.

use anyhow::{Result, ensure};

use super::Run;
use crate::load::{Direction, Job, Protocol};
use crate::thing::{Running, Thing};

const MAIL: [(Protocol, &str); 3] =
    [(Protocol::Imap, "imap"), (Protocol::Pop3, "pop3"), (Protocol::Smtp, "smtp")];

/// Connect, sign in, sign out, the token in hand; 8 at a time.
pub(super) fn logins(run: &mut Run<'_>) -> Result<()> {
    let mut subjects = run.start_all()?;
    for (protocol, name) in MAIL.into_iter().chain([(Protocol::Submission, "submission")]) {
        for subject in subjects.iter().filter(|subject| subject.thing.speaks(protocol)) {
            run.warm_up(subject, protocol)?;
        }
        run.interleave(&mut subjects, |run, subject| {
            if !subject.thing.speaks(protocol) {
                return Ok(());
            }
            // so that each has about a second of processor time
            let count = match subject.thing {
                Thing::Emailproxy => 8,
                Thing::Dovecot => 700,
                _ => 1500,
            };
            let job = Job::Logins { workers: 8, count: run.amount(count), users: 1, pause: None };
            let (cpu, outcome) = subject.bear_well(protocol, job)?;
            run.note(subject.thing, &format!("{name}.cpu_us"), cpu * 1e6 / outcome.done as f64);
            run.note(subject.thing, &format!("{name}.p50_ms"), outcome.p50 / 1e3);
            run.note(subject.thing, &format!("{name}.per_s"), outcome.done as f64 / outcome.seconds);
            Ok(())
        })?;
    }
    Ok(())
}

/// Messages of 8 MiB on 4 connections.
pub(super) fn bulk(run: &mut Run<'_>) -> Result<()> {
    let mut subjects = run.start_all()?;
    for subject in &subjects {
        for (protocol, _) in MAIL {
            run.warm_up(subject, protocol)?;
        }
    }
    for (name, protocol, direction) in [
        ("down_imap", Protocol::Imap, Direction::Down),
        ("down_pop3", Protocol::Pop3, Direction::Down),
        ("up_imap", Protocol::Imap, Direction::Up),
        ("up_smtp", Protocol::Smtp, Direction::Up),
    ] {
        run.interleave(&mut subjects, |run, subject| {
            let repeat = match subject.thing {
                Thing::Emailproxy | Thing::Dovecot => 3,
                _ => 16,
            };
            let (mebibytes, repeat) = if run.settings.smoke { (1, 1) } else { (8, repeat) };
            let job = Job::Bulk { direction, connections: 4, mebibytes, repeat };
            let (cpu, outcome) = subject.bear_well(protocol, job)?;
            note_bulk(run, subject, name, cpu, outcome.octets, outcome.seconds);
            Ok(())
        })?;
    }
    Ok(())
}

fn note_bulk(run: &mut Run<'_>, subject: &Running, name: &str, cpu: f64, octets: u64, seconds: f64) {
    let gigabytes = octets as f64 / 1e9;
    run.note(subject.thing, &format!("{name}.cpu_s_per_gb"), cpu / gigabytes);
    run.note(subject.thing, &format!("{name}.mb_per_s"), gigabytes * 1e3 / seconds);
}

/// GetItem with an answer of 2 KiB, on kept and on new connections; answers of 64 MiB.
pub(super) fn ews(run: &mut Run<'_>) -> Result<()> {
    let mut subjects = run.start_all()?;
    for subject in &subjects {
        subject.bear_well(
            Protocol::Ews,
            Job::Requests { workers: 8, count: run.amount(200), keep_alive: true },
        )?;
    }
    for (name, count, keep_alive) in [("keep", 5000, true), ("new", 2500, false)] {
        run.interleave(&mut subjects, |run, subject| {
            let job = Job::Requests { workers: 8, count: run.amount(count), keep_alive };
            let (cpu, outcome) = subject.bear_well(Protocol::Ews, job)?;
            run.note(subject.thing, &format!("{name}.cpu_us"), cpu * 1e6 / outcome.done as f64);
            run.note(subject.thing, &format!("{name}.per_cpu_s"), outcome.done as f64 / cpu);
            run.note(subject.thing, &format!("{name}.p50_ms"), outcome.p50 / 1e3);
            Ok(())
        })?;
    }
    // the bare gateway takes an answer whole before it passes it on
    subjects.retain(|subject| subject.thing != Thing::Gateway);
    run.interleave(&mut subjects, |run, subject| {
        let (mebibytes, repeat) = if run.settings.smoke { (1, 1) } else { (64, 3) };
        let (cpu, outcome) =
            subject.bear_well(Protocol::Ews, Job::Stream { connections: 2, mebibytes, repeat })?;
        ensure!(outcome.octets > 0, "nothing came");
        note_bulk(run, subject, "stream", cpu, outcome.octets, outcome.seconds);
        Ok(())
    })
}

/// Logins by how many at a time, and by how many accounts, each with its own entry and token.
pub(super) fn growth(run: &mut Run<'_>) -> Result<()> {
    let mut subjects = run.start_all()?;
    for subject in &subjects {
        run.warm_up(subject, Protocol::Imap)?;
    }
    for workers in [1, 10, 100] {
        run.interleave(&mut subjects, |run, subject| {
            let count = if subject.thing == Thing::Dovecot { 600 } else { 1200 };
            let job = Job::Logins { workers, count: run.amount(count), users: 1, pause: None };
            let (cpu, outcome) = subject.bear_well(Protocol::Imap, job)?;
            run.note(subject.thing, &format!("in_flight_{workers}.cpu_us"), cpu * 1e6 / outcome.done as f64);
            Ok(())
        })?;
    }
    drop(subjects);
    for accounts in [10, 100, 1000] {
        let things = run.things().into_iter().filter(|thing| thing.swaps());
        let mut subjects = things
            .map(|thing| run.ground.start_with_accounts(thing, accounts))
            .collect::<Result<Vec<_>>>()?;
        for subject in &subjects {
            let before = run.ground.counts()?.tokens;
            let job = Job::Logins { workers: 8, count: accounts, users: accounts, pause: None };
            subject.bear_well(Protocol::Imap, job)?;
            run.round = 0;
            if subject.thing.is_mailkey() {
                let tokens = run.ground.counts()?.tokens - before;
                run.note(subject.thing, &format!("accounts_{accounts}.tokens"), tokens as f64);
            }
        }
        run.interleave(&mut subjects, |run, subject| {
            let job = Job::Logins { workers: 8, count: run.amount(1000), users: accounts, pause: None };
            let (cpu, outcome) = subject.bear_well(Protocol::Imap, job)?;
            run.note(subject.thing, &format!("accounts_{accounts}.cpu_us"), cpu * 1e6 / outcome.done as f64);
            Ok(())
        })?;
    }
    Ok(())
}
