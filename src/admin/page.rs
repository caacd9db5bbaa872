//! The status page: one HTML document without scripts, and the same as JSON.
//!
//! Everything that comes from outside the program passes through [`Escaped`]. Tables have captions and
//! scopes, and scroll on their own, so that the page reads well aloud and on a phone.

use std::fmt::{self, Write as _};

use http::StatusCode;
use jiff::Timestamp;

use super::reply::Reply;
use super::status::{AccountStatus, ListenerStatus, ReloadStatus, Status};

/// How often the page asks again, in seconds.
const REFRESH: u32 = 30;

/// The look: the system's own font and colours, in light and dark.
const STYLE: &str = "\
:root{color-scheme:light dark;--line:#ccc;--soft:#555;--bad:#a40000;--well:#2a7d4f;--card:#f6f6f4}
@media (prefers-color-scheme:dark){:root{--line:#444;--soft:#aaa;--bad:#ff8a80;--well:#6fcf97;--card:#1d1f21}}
body{font:1rem/1.5 system-ui,sans-serif;max-width:72rem;margin:0 auto;padding:1rem}
h1{font-size:1.4rem;margin:0}
p{margin:.3rem 0}
dl{display:flex;flex-wrap:wrap;gap:.5rem;margin:1rem 0}
dl div{background:var(--card);border-radius:.4rem;padding:.4rem .8rem}
dt{color:var(--soft);font-size:.85rem}
dd{margin:0;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.wide{overflow-x:auto;margin:1.5rem 0}
table{border-collapse:collapse;width:100%}
caption{font-weight:600;text-align:left;padding:.3rem 0}
th,td{border-top:1px solid var(--line);padding:.35rem .6rem .35rem 0;text-align:left;vertical-align:top}
thead th{color:var(--soft);font-weight:400;font-size:.85rem;border:0}
tbody th{font-weight:600}
.bad{color:var(--bad)}
.soft{color:var(--soft)}
.warn{border-left:.3rem solid var(--bad);padding-left:.6rem}
figure{margin:1rem 0}
svg{display:block;width:100%;height:5rem;background:var(--card);border-radius:.4rem}
.well{fill:var(--well)}
.ill{fill:var(--bad)}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:.3rem 0}
";

/// The page. `still`: it does not ask again by itself.
pub(super) fn html(status: &Status, still: bool) -> Reply {
    let mut out = String::with_capacity(8 << 10);
    // Writing to a String cannot fail.
    let _: fmt::Result = document(&mut out, status, still);
    Reply { status: StatusCode::OK, media_type: "text/html; charset=utf-8", body: out }
}

/// The same for machines.
pub(super) fn json(status: &Status) -> Reply {
    match serde_json::to_string(status) {
        Ok(body) => Reply { status: StatusCode::OK, media_type: "application/json", body },
        Err(error) => Reply::text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// The look.
pub(super) fn style() -> Reply {
    Reply { status: StatusCode::OK, media_type: "text/css; charset=utf-8", body: STYLE.to_owned() }
}

fn document(out: &mut String, status: &Status, still: bool) -> fmt::Result {
    out.push_str(concat!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n",
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n",
    ));
    if !still {
        writeln!(out, "<meta http-equiv=\"refresh\" content=\"{REFRESH}\">")?;
    }
    out.push_str(concat!(
        "<title>Mailkey status</title>\n<link rel=\"stylesheet\" href=\"/style.css\">\n</head>\n<body>\n",
        "<header>\n<h1>Mailkey</h1>\n",
    ));
    let refresh = if still {
        "<a href=\"/\">refresh by itself</a>".to_owned()
    } else {
        format!("refreshes every {REFRESH} seconds; <a href=\"/?still\">stop that</a>")
    };
    writeln!(
        out,
        "<p class=\"soft\">{} · {refresh} · <a href=\"/status.json\">JSON</a> · \
         <a href=\"/recordings\">{}</a></p>",
        When(status.now),
        counted(status.recordings as u64, "recording")
    )?;
    out.push_str("</header>\n<main>\n<dl>\n");
    fact(out, "Version", &status.version)?;
    fact(out, "Up for", &Span::between(status.started, status.now).to_string())?;
    fact(out, "Logins", &status.logins.to_string())?;
    fact(out, "Refusals", &status.refusals.to_string())?;
    fact(out, "Outbound proxy", status.outbound_proxy.as_deref().unwrap_or("none"))?;
    out.push_str("</dl>\n");
    for warning in &status.warnings {
        writeln!(out, "<p class=\"warn\"><strong class=\"bad\">Soon:</strong> {}</p>", Escaped(warning))?;
    }
    if let Some(reload) = &status.last_reload {
        last_reload(out, reload, status.now)?;
    }
    chart(out, &status.history)?;
    listeners(out, &status.listeners)?;
    accounts(out, &status.accounts, status.now)?;
    out.push_str("</main>\n</body>\n</html>\n");
    Ok(())
}

fn last_reload(out: &mut String, reload: &ReloadStatus, now: Timestamp) -> fmt::Result {
    let ago = Span::between(reload.when, now);
    if reload.is_taken {
        return writeln!(out, "<p>Configuration reloaded {ago} ago: {}</p>", Escaped(&reload.what));
    }
    writeln!(
        out,
        "<div class=\"warn\"><strong class=\"bad\">The configuration was not reloaded</strong> {ago} ago; \
         the one before is in force.<pre>{}</pre></div>",
        Lines(&reload.what)
    )
}

/// Logins above, refusals on top of them; one bar a minute.
fn chart(out: &mut String, history: &[(u32, u32)]) -> fmt::Result {
    const HEIGHT: u64 = 100;
    let most = history.iter().map(|(well, ill)| u64::from(*well) + u64::from(*ill)).max().unwrap_or(0).max(1);
    let sum = |pick: fn(&(u32, u32)) -> u32| history.iter().map(|bar| u64::from(pick(bar))).sum::<u64>();
    let (logins, refusals) = (sum(|bar| bar.0), sum(|bar| bar.1));
    let words = format!(
        "{} and {} in the last hour; at most {most} in a minute",
        counted(logins, "login"),
        counted(refusals, "refusal")
    );
    writeln!(
        out,
        "<figure>\n<svg viewBox=\"0 0 {} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{words}\">",
        history.len().max(1) * 10
    )?;
    for (minute, (well, ill)) in history.iter().enumerate() {
        let (well, ill) = (u64::from(*well) * HEIGHT / most, u64::from(*ill) * HEIGHT / most);
        let x = minute * 10 + 1;
        for (class, height, y) in [("well", well, HEIGHT - well), ("ill", ill, HEIGHT - well - ill)] {
            if height > 0 {
                writeln!(
                    out,
                    "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"8\" height=\"{height}\"/>"
                )?;
            }
        }
    }
    writeln!(out, "</svg>\n<figcaption class=\"soft\">{words}</figcaption>\n</figure>")
}

/// `1 login`, `2 logins`.
fn counted(number: u64, word: &str) -> String {
    format!("{number} {word}{}", if number == 1 { "" } else { "s" })
}

fn fact(out: &mut String, name: &str, value: &str) -> fmt::Result {
    writeln!(out, "<div><dt>{}</dt><dd>{}</dd></div>", Escaped(name), Escaped(value))
}

fn listeners(out: &mut String, listeners: &[ListenerStatus]) -> fmt::Result {
    table(out, "Listeners", &["Name", "Protocol", "Address", "Upstream", "Sessions"])?;
    for listener in listeners {
        row(out, &listener.name)?;
        cell(out, &listener.protocol)?;
        cell(out, &listener.addresses.join(", "))?;
        match &listener.note {
            Some(note) => cell(out, &format!("{} ({note})", listener.upstream))?,
            None => cell(out, &listener.upstream)?,
        }
        match &listener.trouble {
            None => cell(out, &listener.sessions.to_string())?,
            Some(trouble) => write!(
                out,
                "<td>{} <strong class=\"bad\">nobody gets in: {}</strong></td>",
                listener.sessions,
                Escaped(trouble)
            )?,
        }
        out.push_str("</tr>\n");
    }
    end(out, listeners.is_empty(), 5)
}

fn accounts(out: &mut String, accounts: &[AccountStatus], now: Timestamp) -> fmt::Result {
    table(out, "Accounts", &["User", "Application", "Grant", "Token", "Last failure"])?;
    for account in accounts {
        row(out, &account.user)?;
        cell(out, &account.application)?;
        cell(out, &account.grant)?;
        match &account.token {
            None => out.push_str("<td class=\"soft\">none</td>"),
            Some(token) if token.expires <= now => {
                let ago = Span::between(token.expires, now);
                write!(out, "<td class=\"soft\">expired {ago} ago</td>")?;
            }
            Some(token) => {
                let (age, left) = (Span::between(token.issued, now), Span::between(now, token.expires));
                write!(out, "<td>{age} old, good for {left}</td>")?;
            }
        }
        match &account.last_failure {
            None => out.push_str("<td class=\"soft\">none</td>"),
            Some(failure) => write!(
                out,
                "<td><strong class=\"bad\">{}</strong> <span class=\"soft\">{}, {} ago</span><br>{}<br>To do: {}</td>",
                Escaped(&failure.code),
                When(failure.when),
                Span::between(failure.when, now),
                Escaped(&failure.what),
                Escaped(&failure.remedy)
            )?,
        }
        out.push_str("</tr>\n");
    }
    end(out, accounts.is_empty(), 5)
}

/// Opens a table that scrolls on its own, reachable by the keyboard.
fn table(out: &mut String, caption: &str, heads: &[&str]) -> fmt::Result {
    writeln!(out, "<div class=\"wide\" role=\"region\" aria-label=\"{caption}\" tabindex=\"0\">\n<table>")?;
    write!(out, "<caption>{caption}</caption>\n<thead><tr>")?;
    for head in heads {
        write!(out, "<th scope=\"col\">{head}</th>")?;
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    Ok(())
}

fn row(out: &mut String, name: &str) -> fmt::Result {
    write!(out, "<tr><th scope=\"row\">{}</th>", Escaped(name))
}

fn cell(out: &mut String, text: &str) -> fmt::Result {
    write!(out, "<td>{}</td>", Escaped(text))
}

fn end(out: &mut String, is_empty: bool, columns: usize) -> fmt::Result {
    if is_empty {
        writeln!(out, "<tr><td colspan=\"{columns}\" class=\"soft\">none yet</td></tr>")?;
    }
    out.push_str("</tbody>\n</table>\n</div>\n");
    Ok(())
}

/// Text that can be no markup, in an element or in a quoted attribute. Control characters, and those that
/// turn the direction of writing, are shown as `�`.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                    f.write_char('\u{fffd}')?;
                }
                c if c.is_control() => f.write_char('\u{fffd}')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// The same for text of several lines.
struct Lines<'a>(&'a str);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.0.lines() {
            writeln!(f, "{}", Escaped(line))?;
        }
        Ok(())
    }
}

/// A point in time, for people and machines.
struct When(Timestamp);

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = Timestamp::from_second(self.0.as_second()).unwrap_or(self.0);
        write!(f, "<time datetime=\"{seconds}\">{seconds}</time>")
    }
}

/// A length of time in its two largest units.
struct Span(u64);

impl Span {
    fn between(from: Timestamp, to: Timestamp) -> Self {
        Self(u64::try_from(to.as_second().saturating_sub(from.as_second())).unwrap_or(0))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (minutes, hours, days) = (self.0 / 60, self.0 / 3600, self.0 / 86_400);
        match (days, hours, minutes) {
            (0, 0, 0) => write!(f, "{} s", self.0),
            (0, 0, minutes) => write!(f, "{minutes} min"),
            (0, hours, minutes) => write!(f, "{hours} h {} min", minutes % 60),
            (days, hours, _) => write!(f, "{days} d {} h", hours % 24),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::tests::status;

    #[test]
    fn nothing_that_comes_from_outside_can_be_markup() {
        let evil = "<script>alert('x')</script>\"&\u{202e}\u{1b}";
        let mut status = status();
        status.outbound_proxy = Some(evil.to_owned());
        status.version = evil.to_owned();
        status.warnings = vec![evil.to_owned()];
        status.last_reload.as_mut().unwrap().what = evil.to_owned();
        for listener in &mut status.listeners {
            listener.note = Some("<b>".to_owned());
            for field in [&mut listener.name, &mut listener.protocol, &mut listener.upstream] {
                evil.clone_into(field);
            }
            listener.addresses = vec![evil.to_owned()];
            listener.trouble = Some(evil.to_owned());
        }
        for account in &mut status.accounts {
            for field in [&mut account.user, &mut account.application, &mut account.grant] {
                evil.clone_into(field);
            }
            let failure = account.last_failure.as_mut().unwrap();
            for field in [&mut failure.code, &mut failure.what, &mut failure.remedy] {
                evil.clone_into(field);
            }
        }
        let page = html(&status, false).body;
        assert!(page.contains(" (&lt;b&gt;)") && !page.contains("<b>"));
        assert!(!page.contains("<script") && !page.contains('\u{202e}') && !page.contains('\u{1b}'));
        let escaped = "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot;&amp;\u{fffd}\u{fffd}";
        // 2 facts, a warning, a reload, 5 cells of a listener, 3 cells and 3 parts of the failure of an account
        assert_eq!(page.matches(escaped).count(), 2 + 1 + 1 + 5 + 6);
    }

    #[test]
    fn every_table_has_a_caption_and_every_head_a_scope() {
        let page = html(&status(), false).body;
        assert_eq!(page.matches("<table>").count(), 2);
        assert_eq!(page.matches("<caption>").count(), 2);
        assert_eq!(page.matches("<th ").count(), page.matches("<th scope=\"").count());
        assert_eq!(page.matches("<th").count() - page.matches("<thead").count(), 5 + 5 + 1 + 1);
        assert!(page.contains("<html lang=\"en\">") && page.contains("width=device-width"));
    }

    #[test]
    fn the_page_says_all_there_is_to_know() {
        let page = html(&status(), false).body;
        for part in [
            "0.1.0",
            "2 d 3 h",
            "<dt>Logins</dt><dd>41</dd>",
            "<dt>Refusals</dt><dd>7</dd>",
            "http://proxy.contoso.com:3128",
            "<th scope=\"row\">imap</th><td>imap</td><td>127.0.0.1:1143</td><td>outlook.office365.com:993</td><td>3 <strong",
            "nobody gets in: Too many open files",
            "the certificate `server.pem` ends in 9 days",
            "unknown key `lisen`",
            "120 logins and 1 refusal in the last hour; at most 4 in a minute",
            "2 recordings",
            "alice@contoso.com",
            "10 min old, good for 50 min",
            "AADSTS50076",
            "To do: exempt the account",
        ] {
            assert!(page.contains(part), "{part} is not in {page}");
        }
    }

    #[test]
    fn it_works_without_scripts_and_stands_still_when_told_to() {
        let page = html(&status(), false).body;
        assert!(page.contains("http-equiv=\"refresh\""));
        assert!(!html(&status(), true).body.contains("http-equiv"));
        for outside in ["<script", "style=\"", "src=", "http://www", "https://", "@import", "url("] {
            assert!(!page.contains(outside) && !STYLE.contains(outside), "{outside}");
        }
        assert!(STYLE.contains("prefers-color-scheme:dark"));
    }

    #[test]
    fn an_empty_proxy_has_a_page_too() {
        let mut status = status();
        status.listeners.clear();
        status.accounts.clear();
        status.outbound_proxy = None;
        assert_eq!(html(&status, false).body.matches("none yet").count(), 2);
    }

    #[test]
    fn spans_show_their_two_largest_units() {
        for (seconds, shown) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (3599, "59 min"),
            (3600, "1 h 0 min"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(Span(seconds).to_string(), shown);
        }
    }

    #[test]
    fn the_json_has_the_same_facts() {
        let value: serde_json::Value = serde_json::from_str(&json(&status()).body).unwrap();
        assert_eq!(value["listeners"][0]["sessions"], 3);
        assert_eq!(value["accounts"][0]["last-failure"]["code"], "AADSTS50076");
        assert_eq!(value["accounts"][0]["token"]["expires"], "2026-11-24T12:50:00Z");
        assert_eq!(value["outbound-proxy"], "http://proxy.contoso.com:3128");
    }
}
