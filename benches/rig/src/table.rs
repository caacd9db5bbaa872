//! Tables of what was measured: median and range over the rounds, ratios within a round, goals met or not.

mod goal;

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::measure::Measure;
use crate::store::Results;

/// A column: metric, title, decimals.
type Column = (&'static str, &'static str, usize);

fn columns(measure: &str) -> Vec<Column> {
    match measure {
        "logins" => vec![
            ("imap.cpu_us", "IMAP, CPU µs", 0),
            ("pop3.cpu_us", "POP3, CPU µs", 0),
            ("smtp.cpu_us", "SMTP, CPU µs", 0),
            ("submission.cpu_us", "SMTP by STARTTLS, CPU µs", 0),
            ("imap.p50_ms", "IMAP, p50 ms", 1),
        ],
        "bulk" => vec![
            ("down_imap.cpu_s_per_gb", "IMAP down, CPU s/GB", 2),
            ("down_pop3.cpu_s_per_gb", "POP3 down", 2),
            ("up_imap.cpu_s_per_gb", "IMAP up", 2),
            ("up_smtp.cpu_s_per_gb", "SMTP up", 2),
            ("down_imap.mb_per_s", "IMAP down, MB/s", 0),
        ],
        "idle" => vec![
            ("idle_0.mib", "none, MiB", 1),
            ("idle_100.kib", "100, KiB each", 1),
            ("idle_1000.kib", "1,000, KiB each", 1),
            ("idle_5000.kib", "5,000", 1),
            ("idle_9900.kib", "9,900", 1),
            ("idle_after.kept_mib", "kept after all have gone, MiB", 1),
        ],
        "latency" => vec![
            ("one.p50_us", "1 session, p50 µs", 0),
            ("one.p99_us", "p99", 0),
            ("one.cpu_us", "CPU µs", 0),
            ("many.p50_us", "200 sessions, p50 µs", 0),
            ("many.p99_us", "p99", 0),
            ("many.cpu_us", "CPU µs", 0),
        ],
        "distance" => {
            vec![
                ("imap.ms", "IMAP, ms", 1),
                ("pop3.ms", "POP3, ms", 1),
                ("smtp.ms", "SMTP, ms", 1),
                ("noop.ms", "one round trip, ms", 1),
            ]
        }
        "storm" => vec![
            ("storm.served", "served", 0),
            ("storm.errors", "errors", 0),
            ("storm.s", "until the last, s", 2),
            ("storm.cpu_s", "CPU s", 2),
            ("storm.tokens", "token requests", 0),
        ],
        "start" => vec![
            ("start.ms", "start to listening, ms", 1),
            ("rest.mib", "memory at rest, MiB", 1),
            ("binary.mb", "program, stripped, MB", 2),
        ],
        "ews" => vec![
            ("keep.per_cpu_s", "kept connection, requests/CPU s", 0),
            ("new.per_cpu_s", "new connection each", 0),
            ("stream.cpu_s_per_gb", "streamed, CPU s/GB", 2),
            ("stream.mb_per_s", "MB/s", 0),
        ],
        "growth" => vec![
            ("in_flight_1.cpu_us", "1 login at a time, CPU µs", 0),
            ("in_flight_10.cpu_us", "10", 0),
            ("in_flight_100.cpu_us", "100", 0),
            ("accounts_10.cpu_us", "10 accounts, CPU µs", 0),
            ("accounts_100.cpu_us", "100", 0),
            ("accounts_1000.cpu_us", "1,000", 0),
            ("sessions_99.kib", "99 idle sessions, KiB each", 1),
            ("sessions_990.kib", "990", 1),
            ("sessions_9900.kib", "9,900", 1),
        ],
        _ => Vec::new(),
    }
}

/// The middle one, or the mean of the two in the middle.
pub(crate) fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    Some(if values.len() % 2 == 1 {
        *values.get(half)?
    } else {
        f64::midpoint(*values.get(half.checked_sub(1)?)?, *values.get(half)?)
    })
}

/// `12.3 (11.9–13.0)`; the range where there is more than one.
fn spread(values: Vec<f64>, decimals: usize) -> Option<String> {
    let mut values = values;
    let middle = median(&mut values)?;
    let (low, high) = (values.first()?, values.last()?);
    let short = |value: f64| grouped(value, decimals);
    let (middle, low, high) = (short(middle), short(*low), short(*high));
    Some(if low == high { middle } else { format!("{middle} ({low}–{high})") })
}

/// With a comma between thousands.
fn grouped(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    let (whole, rest) =
        text.split_once('.').map_or((text.as_str(), None), |(whole, rest)| (whole, Some(rest)));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    let mut out = sign.to_owned();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    rest.map_or(out.clone(), |rest| format!("{out}.{rest}"))
}

fn title(thing: &str) -> &str {
    match thing {
        "mailkey" => "**Mailkey**",
        "mailkey-cold" => "Mailkey, `warm-connections: 0`",
        "mailkey-classic" => "Mailkey, `post-quantum: false`",
        "emailproxy" => "email-oauth2-proxy",
        "dovecot" => "Dovecot, login proxy",
        "nginx" => "nginx",
        "haproxy" => "HAProxy",
        "stunnel" => "stunnel",
        "pipe" => "bare tokio + rustls pipe",
        "gateway" => "bare hyper gateway, no password, no log",
        "direct" => "nothing between",
        other => other,
    }
}

/// All of one measure: its table, its goals, its remarks.
pub fn of(results: &Results) -> String {
    let columns: Vec<Column> = columns(&results.measure)
        .into_iter()
        .filter(|(metric, ..)| results.samples.iter().any(|sample| sample.metric == *metric))
        .collect();
    let mut text = String::from("| |");
    for (_, title, _) in &columns {
        let _ = write!(text, " {title} |");
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(columns.len()));
    text.push('\n');
    // rounds change the order
    let mut things = results.things();
    let order = |thing: &str| crate::thing::Thing::ALL.iter().position(|known| known.name() == thing);
    things.sort_by_key(|thing| order(thing).unwrap_or(0));
    for thing in things {
        let _ = write!(text, "| {} |", title(thing));
        for (metric, _, decimals) in &columns {
            let values = results.values(thing, metric).into_iter().map(|(_, value)| value).collect();
            let _ = write!(text, " {} |", spread(values, *decimals).unwrap_or_default());
        }
        text.push('\n');
    }
    text.push_str(&goal::table(results));
    for remark in &results.remarks {
        let _ = write!(text, "\n- {remark}");
    }
    text
}

/// Writes every measure there is between its markers, `<!-- begin: logins -->` and `<!-- end: logins -->`.
pub fn report(folder: &Path, document: Option<&Path>) -> Result<()> {
    let mut whole = match document {
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?,
        None => String::new(),
    };
    for measure in Measure::ALL {
        let name = measure.name();
        let Some(results) = Results::load(folder, name)? else { continue };
        let machine = &results.machine;
        let mut text = format!(
            "{}\n\nMedian and range. {}; Linux {}, {}, {} cores; {}.\n",
            of(&results).trim_end(),
            results.date,
            machine.kernel,
            machine.processor,
            machine.cores,
            machine.versions.join(", ")
        );
        if let Some(path) = document {
            for (file, title, svg) in crate::plot::of(&results) {
                std::fs::write(path.with_file_name(file), svg)?;
                let _ = write!(text, "\n![{title}]({file})\n");
            }
            whole = between(&whole, name, &text)?;
        } else {
            let _ = writeln!(whole, "## {name}\n\n{text}");
        }
    }
    match document {
        Some(path) => Ok(std::fs::write(path, whole)?),
        None => {
            println!("{whole}");
            Ok(())
        }
    }
}

/// What stands between the markers of that name, replaced.
fn between(whole: &str, name: &str, text: &str) -> Result<String> {
    let (begin, end) = (format!("<!-- begin: {name} -->"), format!("<!-- end: {name} -->"));
    let (before, rest) = whole.split_once(&begin).with_context(|| format!("no `{begin}`"))?;
    let (_, after) = rest.split_once(&end).with_context(|| format!("no `{end}`"))?;
    Ok(format!("{before}{begin}\n{}\n{end}{after}", text.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_between_the_markers_is_replaced_and_nothing_else() {
        let whole = "a\n<!-- begin: x -->\nold\n<!-- end: x -->\nb\n";
        let now = between(whole, "x", "new\n").unwrap();
        assert_eq!(now, "a\n<!-- begin: x -->\nnew\n<!-- end: x -->\nb\n");
        assert_eq!(between(&now, "x", "new").unwrap(), now);
        assert!(between(whole, "y", "new").is_err());
    }

    #[test]
    fn a_cell_has_the_median_and_the_range() {
        assert_eq!(spread(vec![3.0, 1.0, 2.0], 1).unwrap(), "2.0 (1.0–3.0)");
        assert_eq!(spread(vec![1234.0, 1235.0], 0).unwrap(), "1,234 (1,234–1,235)");
        assert_eq!(spread(vec![7.0], 0).unwrap(), "7");
        assert_eq!(spread(Vec::new(), 0), None);
    }
}
