//! What a client waits for: an answer on an open session, a login at a distance, its turn in a storm.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::Run;
use crate::load::{Job, Protocol};
use crate::thing::{Load, Running, Thing};

/// NOOP on 1 session and on 200, all things signed in before the first round.
pub(super) fn latency(run: &mut Run<'_>) -> Result<()> {
    let subjects = run.start_all()?;
    for (name, sessions, per_second) in [("one", 1, 500), ("many", 200, 1000)] {
        let time = if run.settings.smoke { Duration::from_millis(50) } else { Duration::from_millis(1500) };
        let mut loads = Vec::new();
        for subject in &subjects {
            // each login takes it 0.2 s of processor time, and its limit of sessions is near
            let sessions =
                if subject.thing == Thing::Emailproxy { run.amount(sessions.min(50)) } else { sessions };
            let job = Job::RoundTrips { sessions, per_second, time };
            match Load::ready(subject.target(Protocol::Imap), job) {
                Ok(load) => loads.push((subject, load)),
                Err(error) => {
                    let thing = subject.thing;
                    run.forgive(thing, &format!("{}: {sessions} sessions: {error:#}", thing.name()))?;
                }
            }
        }
        for round in 0..run.rounds() {
            run.round = round;
            loads.rotate_left(1);
            for (subject, load) in &mut loads {
                let before = subject.cpu()?;
                let outcome = load.go()?;
                let cpu = subject.cpu()? - before;
                ensure!(outcome.errors == 0, "{}: {:?}", subject.thing.name(), outcome.first_error);
                load.until_ready()?;
                run.note(subject.thing, &format!("{name}.p50_us"), outcome.p50);
                run.note(subject.thing, &format!("{name}.p99_us"), outcome.p99);
                run.note(subject.thing, &format!("{name}.cpu_us"), cpu * 1e6 / outcome.done as f64);
            }
        }
        added(run, name);
    }
    Ok(())
}

/// What each adds to the time without anything between, by round.
fn added(run: &mut Run<'_>, name: &str) {
    for part in ["p50", "p99"] {
        let metric = format!("{name}.{part}_us");
        let of = |thing: &str, round| {
            let mut samples = run.samples.iter();
            samples.find(|s| s.metric == metric && s.thing == thing && s.round == round).map(|s| s.value)
        };
        let mut found = Vec::new();
        for thing in run.things().into_iter().filter(|thing| *thing != Thing::Direct) {
            for round in 0..run.rounds() {
                if let (Some(with), Some(without)) = (of(thing.name(), round), of("direct", round)) {
                    found.push((thing, round, with - without));
                }
            }
        }
        for (thing, round, value) in found {
            run.round = round;
            run.note(thing, &format!("{name}.added_{part}_us"), value);
        }
    }
}

/// From connecting to the answer to the login, where upstream is 40 ms away and back.
pub(super) fn distance(run: &mut Run<'_>) -> Result<()> {
    let (_far, ports) = run.ground.far(Duration::from_millis(20))?;
    // what the relay really makes of it: a NOOP on an open session, and nothing between
    let direct = run.ground.start_before(Thing::Direct, ports)?;
    let time = if run.settings.smoke { Duration::from_millis(200) } else { Duration::from_secs(3) };
    let noops = Job::RoundTrips { sessions: 1, per_second: 10, time };
    let round_trip = Load::ready(direct.target(Protocol::Imap), noops)?.go()?.p50 / 1e3;
    run.note(Thing::Direct, "noop.ms", round_trip);
    let things = run.things();
    let mut subjects: Vec<Running> =
        things.iter().map(|thing| run.ground.start_before(*thing, ports)).collect::<Result<_>>()?;
    for name in ["imap", "pop3", "smtp"] {
        let protocol = |thing: Thing| match name {
            "imap" => Protocol::Imap,
            "pop3" => Protocol::Pop3,
            // as Office 365 has it
            _ if thing.speaks(Protocol::Submission) => Protocol::Submission,
            _ => Protocol::Smtp,
        };
        let one = Job::Logins { workers: 1, count: 1, users: 1, pause: None };
        for _ in 0..3 {
            for subject in &subjects {
                // the token, and a rate of logins that connections are kept warm for
                subject.bear_well(protocol(subject.thing), one.clone())?;
            }
            sleep(Duration::from_millis(400));
        }
        run.interleave(&mut subjects, |run, subject| {
            // what it does after one login must not weigh on the next
            sleep(Duration::from_millis(50));
            let (_, outcome) = subject.bear_well(protocol(subject.thing), one.clone())?;
            run.note(subject.thing, &format!("{name}.ms"), outcome.p50 / 1e3);
            run.note(subject.thing, &format!("{name}.over_ms"), outcome.p50 / 1e3 - round_trip);
            Ok(())
        })?;
    }
    Ok(())
}

/// 2,000 clients of 50 accounts at once, at a process that has just started and holds no token.
pub(super) fn storm(run: &mut Run<'_>) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(60);
    for round in 0..run.rounds() {
        run.round = round;
        for thing in run.things() {
            if thing == Thing::Emailproxy && round > 0 {
                continue;
            }
            let before = run.ground.counts()?;
            let subject = run.ground.start(thing)?;
            let job = Job::Storm { clients: run.amount(2000), users: 50, limit: LIMIT };
            let (cpu, outcome) = subject.bear(Protocol::Imap, job).context("the storm")?;
            let tokens = run.ground.counts()?.tokens - before.tokens;
            run.note(thing, "storm.served", outcome.done as f64);
            run.note(thing, "storm.errors", outcome.errors as f64);
            run.note(thing, "storm.s", if outcome.errors == 0 { outcome.max / 1e6 } else { outcome.seconds });
            run.note(thing, "storm.cpu_s", cpu);
            if thing.swaps() && thing != Thing::Dovecot {
                run.note(thing, "storm.tokens", tokens as f64);
            }
            if let Some(error) = outcome.first_error {
                run.remark(format!("{}, in the storm: {error}", thing.name()));
                ensure!(!thing.is_mailkey() || !run.settings.smoke, "{error}");
            }
        }
    }
    Ok(())
}
