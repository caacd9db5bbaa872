//! The goals, and whether the figures meet them. A ratio is taken within each round; its median decides.

use std::fmt::Write as _;

use super::{grouped, median};
use crate::store::Results;

/// What Mailkey's figure is held against.
enum Bound {
    /// The figure itself.
    AtMost(f64),
    /// So many times the best of these, at most.
    Times(f64, &'static [&'static str]),
    /// The best of these has to have so many times ours, at least.
    Fewer(f64, &'static [&'static str]),
    /// At least so many times the best of these, where more is better.
    More(f64, &'static [&'static str]),
}

use Bound::{AtMost, Fewer, More, Times};

struct Goal {
    said: &'static str,
    metric: &'static str,
    bound: Bound,
}

const PIPES: &[&str] = &["nginx", "haproxy", "stunnel"];

fn goals(measure: &str) -> Vec<Goal> {
    let goal = |said, metric, bound| Goal { said, metric, bound };
    match measure {
        "logins" => [("imap.cpu_us", "IMAP"), ("pop3.cpu_us", "POP3"), ("smtp.cpu_us", "SMTP")]
            .into_iter()
            .flat_map(|(metric, said)| {
                [
                    goal(said, metric, Fewer(500.0, &["emailproxy"])),
                    goal(said, metric, Fewer(4.0, &["dovecot"])),
                    goal(said, metric, Fewer(1.7, &["nginx"])),
                    goal(said, metric, Times(1.3, &["pipe"])),
                ]
            })
            .chain([goal("SMTP by STARTTLS", "submission.cpu_us", Fewer(500.0, &["emailproxy"]))])
            .collect(),
        "bulk" => vec![
            goal("IMAP down, CPU", "down_imap.cpu_s_per_gb", Times(0.85, PIPES)),
            goal("POP3 down, CPU", "down_pop3.cpu_s_per_gb", Times(0.85, PIPES)),
            goal("IMAP up, CPU", "up_imap.cpu_s_per_gb", Times(0.85, PIPES)),
            goal("SMTP up, CPU", "up_smtp.cpu_s_per_gb", Times(0.85, PIPES)),
        ],
        "idle" => vec![
            // 10 KB are 9.77 KiB
            goal("KiB each, 1,000 sessions", "idle_1000.kib", AtMost(9.77)),
            goal("KiB each, 5,000 sessions", "idle_5000.kib", AtMost(9.77)),
            goal("KiB each, 9,900 sessions", "idle_9900.kib", AtMost(9.77)),
            goal("9,900 sessions", "idle_9900.kib", Fewer(8.0, &["dovecot"])),
            goal("9,900 sessions", "idle_9900.kib", Fewer(2.0, &["haproxy"])),
        ],
        "latency" => vec![
            goal("added, 1 session, p50", "one.added_p50_us", Times(1.1, PIPES)),
            goal("added, 1 session, p99", "one.added_p99_us", Times(1.1, PIPES)),
            goal("added, 200 sessions, p50", "many.added_p50_us", Times(1.1, PIPES)),
            goal("added, 200 sessions, p99", "many.added_p99_us", Times(1.1, PIPES)),
        ],
        "distance" => vec![goal("IMAP, ms beyond one round trip", "imap.over_ms", AtMost(5.0))],
        "storm" => vec![
            goal("token requests", "storm.tokens", AtMost(50.0)),
            goal("errors", "storm.errors", AtMost(0.0)),
            goal("until the last is served", "storm.s", Fewer(20.0, &["emailproxy"])),
        ],
        "start" => vec![
            goal("start to listening, ms", "start.ms", AtMost(50.0)),
            // 10 MB are 9.54 MiB
            goal("memory at rest, MiB", "rest.mib", AtMost(9.54)),
            goal("program, stripped, MB", "binary.mb", AtMost(10.0)),
        ],
        "ews" => vec![
            goal("requests per CPU second, kept", "keep.per_cpu_s", More(1.0, &["nginx"])),
            goal("requests per CPU second, new", "new.per_cpu_s", More(1.0, &["nginx"])),
            goal("MB/s streamed", "stream.mb_per_s", More(1.0, &["nginx"])),
        ],
        _ => Vec::new(),
    }
}

fn name(thing: &str) -> &str {
    match thing {
        "emailproxy" => "email-oauth2-proxy",
        "dovecot" => "Dovecot",
        "haproxy" => "HAProxy",
        "pipe" => "the bare pipe",
        other => other,
    }
}

/// The goals of a measure that the figures say something about; empty where there are none.
pub(super) fn table(results: &Results) -> String {
    let mut text = String::new();
    for goal in goals(&results.measure) {
        let Some((wanted, measured, met)) = judge(results, &goal) else { continue };
        let _ = writeln!(
            text,
            "| {} | {wanted} | {measured} | {} |",
            goal.said,
            if met { "met" } else { "**not met**" }
        );
    }
    if text.is_empty() { text } else { format!("\n| | goal | measured | |\n|---|---|---|---|\n{text}") }
}

fn judge(results: &Results, goal: &Goal) -> Option<(String, String, bool)> {
    let ours = results.values("mailkey", goal.metric);
    let mut plain: Vec<f64> = ours.iter().map(|(_, value)| *value).collect();
    let figure = median(&mut plain)?;
    let (factor, peers, sign) = match goal.bound {
        AtMost(bound) => {
            let decimals = if bound.fract() == 0.0 { 0 } else { 2 };
            // one that is close to its bound is not rounded up to it
            let is_close = (figure - bound).abs() < bound / 100.0;
            let shown = if figure.fract() == 0.0 { 0 } else { 1 + usize::from(is_close) };
            let wanted = format!("≤ {}", grouped(bound, decimals));
            return Some((wanted, grouped(figure, shown), figure <= bound));
        }
        Times(factor, peers) => (factor, peers, "≤"),
        Fewer(factor, peers) | More(factor, peers) => (factor, peers, "≥"),
    };
    let more_is_better = matches!(goal.bound, More(..));
    let peer = peers
        .iter()
        .filter_map(|peer| {
            let mut values: Vec<f64> =
                results.values(peer, goal.metric).into_iter().map(|(_, v)| v).collect();
            Some((*peer, median(&mut values)?))
        })
        .min_by(
            |(_, one), (_, other)| if more_is_better { other.total_cmp(one) } else { one.total_cmp(other) },
        )?
        .0;
    let theirs = results.values(peer, goal.metric);
    let mut ratios: Vec<f64> = ours
        .iter()
        .filter_map(|(round, value)| {
            // a peer that is measured once is held against every round
            let other = theirs.iter().find(|(theirs, _)| theirs == round).or_else(|| theirs.first())?.1;
            Some(if matches!(goal.bound, Fewer(..)) { other / value } else { value / other })
        })
        .filter(|ratio| ratio.is_finite())
        .collect();
    let ratio = median(&mut ratios)?;
    let decimals = if ratio >= 20.0 { 0 } else { 2 };
    let met = if sign == "≤" { ratio <= factor } else { ratio >= factor };
    let measured = format!(
        "{} × ({}–{})",
        grouped(ratio, decimals),
        grouped(*ratios.first()?, decimals),
        grouped(*ratios.last()?, decimals)
    );
    let wanted = match goal.bound {
        Fewer(..) => format!("{} has ≥ {factor} × ours", name(peer)),
        _ => format!("{sign} {factor} × {}", name(peer)),
    };
    Some((wanted, measured, met))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Machine, Sample};

    fn results(samples: &[(&str, u32, f64)]) -> Results {
        Results {
            measure: "logins".to_owned(),
            date: String::new(),
            machine: Machine {
                kernel: String::new(),
                processor: String::new(),
                cores: 2,
                versions: Vec::new(),
            },
            samples: samples
                .iter()
                .map(|(thing, round, value)| Sample {
                    thing: (*thing).to_owned(),
                    metric: "imap.cpu_us".to_owned(),
                    round: *round,
                    value: *value,
                })
                .collect(),
            remarks: Vec::new(),
        }
    }

    #[test]
    fn ratios_are_taken_within_a_round_and_their_median_decides() {
        let slow_round = results(&[
            ("mailkey", 0, 100.0),
            ("dovecot", 0, 500.0),
            ("mailkey", 1, 1000.0),
            ("dovecot", 1, 4100.0),
            ("mailkey", 2, 100.0),
            ("dovecot", 2, 390.0),
        ]);
        let text = table(&slow_round);
        assert!(text.contains("Dovecot has ≥ 4 × ours | 4.10 × (3.90–5.00) | met"), "{text}");
        let missed = results(&[("mailkey", 0, 131.0), ("pipe", 0, 100.0)]);
        assert!(table(&missed).contains("≤ 1.3 × the bare pipe | 1.31 × (1.31–1.31) | **not met**"));
    }

    #[test]
    fn without_a_peer_nothing_is_said() {
        assert_eq!(table(&results(&[("mailkey", 0, 1.0)])), "");
    }
}
