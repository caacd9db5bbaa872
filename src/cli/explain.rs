//! `mailkey explain`: what a code or a pasted error text means, and the page that holds them all.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use crate::explain::{Explanation, Passes, Refusal};
use crate::token::catalogue;

/// Explains everything that the text speaks of. Exit code 1 where nothing in it is known.
///
/// ```
/// let mut out = Vec::new();
/// mailkey::cli::explain::run("AADSTS50126", &mut out).unwrap();
/// assert!(String::from_utf8(out).unwrap().starts_with("AADSTS50126\n"));
/// ```
///
/// # Errors
/// Output that cannot be written.
pub fn run(text: &str, out: &mut dyn Write) -> io::Result<ExitCode> {
    let found = catalogue::find(text);
    if found.is_empty() {
        writeln!(out, "nothing in this text is known here")?;
        writeln!(out)?;
        lines(out, "try", "a code such as `AADSTS50126`, or the whole line of the log, in quotes")?;
        lines(
            out,
            "look up",
            "https://login.microsoftonline.com/error?code=<number> knows every AADSTS code",
        )?;
        return Ok(ExitCode::FAILURE);
    }
    for (at, explanation) in found.iter().enumerate() {
        if at > 0 {
            writeln!(out)?;
        }
        one(explanation, out)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The whole catalogue in Markdown: `docs/errors.md`.
///
/// # Errors
/// Output that cannot be written.
pub fn page(out: &mut dyn Write) -> io::Result<()> {
    out.write_all(INTRODUCTION.as_bytes())?;
    for chapter in catalogue::all() {
        writeln!(out, "\n## {}", chapter.title)?;
        for explanation in &chapter.entries {
            let Explanation { code, fault, what, remedy, passes, refusal } = explanation;
            writeln!(out, "\n### {code}\n")?;
            writeln!(out, "{what}\n")?;
            writeln!(out, "- whose: {}", fault.as_str())?;
            writeln!(out, "- to do: {remedy}")?;
            writeln!(out, "- passes: {}", passing(*passes))?;
            writeln!(out, "- the mail client is told ({}): {}", refusal.as_str(), refusal.sentence())?;
        }
    }
    Ok(())
}

/// The protocols' own words for a refusal, then its sentence.
const INTRODUCTION: &str = "\
# Errors

What the identity provider and the mail service answer, whose it is, what to do about it, and what the mail client is
told. `mailkey explain <code or text>` says the same on the command line; the log says it with your own values.

This page is made from the program's tables (`mailkey explain --all`); a test keeps both equal.

| refusal | IMAP | POP3 | SMTP | EWS |
|---|---|---|---|---|
| bad-credentials | `NO [AUTHENTICATIONFAILED]` | `-ERR [AUTH]` | `535 5.7.8` | `401` |
| password-expired | `NO [EXPIRED]` | `-ERR [AUTH]` | `535 5.7.8` | `401` |
| held-back | `NO [UNAVAILABLE]` | `-ERR [SYS/TEMP]` | `454 4.7.0` | `503` |
| contact-admin | `NO [CONTACTADMIN]` | `-ERR [SYS/PERM]` | `535 5.7.8` | `403` |
| unavailable | `NO [UNAVAILABLE]` | `-ERR [SYS/TEMP]` | `454 4.7.0` | `503` |
| too-many-sessions | `NO [LIMIT]` | `-ERR [IN-USE]` | `421 4.7.0` | `503` |
";

fn one(explanation: &Explanation, out: &mut dyn Write) -> io::Result<()> {
    let Explanation { code, fault, what, remedy, passes, refusal } = explanation;
    writeln!(out, "{code}")?;
    lines(out, "what happened", what)?;
    lines(out, "whose", fault.as_str())?;
    lines(out, "what to do", remedy)?;
    lines(out, "passes", &passing(*passes))?;
    lines(out, "mail client", &refusal.sentence())?;
    let [imap, pop3, smtp, ews] = heads(refusal);
    lines(out, "", &format!("(IMAP `{imap}`, POP3 `{pop3}`, SMTP `{smtp}`, EWS `{ews}`)"))
}

fn heads(refusal: &Refusal) -> [&'static str; 4] {
    match refusal {
        Refusal::BadCredentials => ["NO [AUTHENTICATIONFAILED]", "-ERR [AUTH]", "535 5.7.8", "401"],
        Refusal::PasswordExpired => ["NO [EXPIRED]", "-ERR [AUTH]", "535 5.7.8", "401"],
        Refusal::HeldBack { .. } | Refusal::Unavailable { .. } => {
            ["NO [UNAVAILABLE]", "-ERR [SYS/TEMP]", "454 4.7.0", "503"]
        }
        Refusal::ContactAdmin(_) => ["NO [CONTACTADMIN]", "-ERR [SYS/PERM]", "535 5.7.8", "403"],
        Refusal::TooManySessions => ["NO [LIMIT]", "-ERR [IN-USE]", "421 4.7.0", "503"],
    }
}

fn passing(passes: Passes) -> String {
    match passes {
        Passes::Never => "no, somebody must act".to_owned(),
        Passes::ByItself(None) => "yes, by itself".to_owned(),
        Passes::ByItself(Some(after)) => format!("yes, by itself, after about {}", about(after)),
    }
}

fn about(duration: Duration) -> String {
    match duration.as_secs() {
        0..120 => format!("{} seconds", duration.as_secs()),
        seconds @ 120..7200 => format!("{} minutes", seconds.div_ceil(60)),
        seconds => format!("{} hours", seconds.div_ceil(3600)),
    }
}

/// A label, and a text broken between words at [`WIDTH`] columns; never in backticks, so that a command can be
/// copied as it stands.
fn lines(out: &mut dyn Write, label: &str, text: &str) -> io::Result<()> {
    let mut line = String::new();
    let mut label = label;
    let mut quoted = false;
    for word in text.split(' ') {
        let fits = line.chars().count() + 1 + word.chars().count() <= WIDTH;
        if !line.is_empty() && !fits && !quoted {
            writeln!(out, "  {label:<14}{line}")?;
            label = "";
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        quoted ^= word.matches('`').count() % 2 == 1;
    }
    writeln!(out, "  {label:<14}{line}")
}

const WIDTH: usize = 84;

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(text: &str) -> (String, ExitCode) {
        let mut out = Vec::new();
        let code = run(text, &mut out).unwrap();
        (String::from_utf8(out).unwrap(), code)
    }

    #[test]
    fn a_code_is_explained_to_the_end() {
        let (text, code) = explained("AADSTS50053");
        assert_eq!(code, ExitCode::SUCCESS);
        let expected = "AADSTS50053\n  what happened the account is locked after too many wrong passwords";
        assert!(text.starts_with(expected), "{text}");
        for part in [
            "\n  whose         account\n",
            "\n  what to do    stop whatever",
            "\n  passes        yes, by itself, after about 5 minutes\n",
            "\n  mail client   held back after failed sign-ins; try again in 5 minutes\n",
            "\n                (IMAP `NO [UNAVAILABLE]`, POP3 `-ERR [SYS/TEMP]`, SMTP `454 4.7.0`, EWS `503`)\n",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    }

    #[test]
    fn a_command_is_never_broken() {
        let (text, _) = explained("535 5.7.139 SmtpClientAuthentication is disabled for the Mailbox");
        let command = "`Set-CASMailbox -Identity <user> -SmtpClientAuthenticationDisabled $false`";
        assert!(text.contains(command), "{text}");
    }

    #[test]
    fn a_pasted_line_gives_all_that_stands_in_it() {
        let (text, code) = explained("AADSTS50076: … then 535 5.7.3 Authentication unsuccessful [AM0PR]");
        assert_eq!(code, ExitCode::SUCCESS);
        assert!(text.contains("AADSTS50076\n") && text.contains("\n\nSMTP-535-5.7.3\n"), "{text}");
        assert!(text.contains("see AADSTS50076 in the proxy's log"), "{text}");
    }

    #[test]
    fn what_is_not_known_is_said_and_fails() {
        let (text, code) = explained("it does not work\u{1b}[31m");
        assert_eq!(code, ExitCode::FAILURE);
        assert!(text.starts_with("nothing in this text is known"), "{text}");
        assert!(!text.contains('\u{1b}'), "the text is not repeated to the terminal");
    }

    #[test]
    fn the_page_in_docs_is_what_the_program_says() {
        let mut page = Vec::new();
        super::page(&mut page).unwrap();
        let page = String::from_utf8(page).unwrap();
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/errors.md");
        if std::env::var_os("MAILKEY_WRITE_DOCS").is_some() {
            std::fs::write(&path, &page).unwrap();
        }
        let stands = std::fs::read_to_string(&path).unwrap_or_default();
        let differs = page.lines().zip(stands.lines()).find(|(made, stands)| made != stands);
        assert!(
            page == stands,
            "docs/errors.md is not up to date: {differs:?}; run MAILKEY_WRITE_DOCS=1 cargo test the_page_in_docs"
        );
    }

    #[test]
    fn the_table_of_the_page_says_what_the_command_says() {
        let minute = Duration::from_mins(1);
        for refusal in [
            Refusal::BadCredentials,
            Refusal::PasswordExpired,
            Refusal::HeldBack { retry_after: minute },
            Refusal::contact_admin(crate::explain::CauseKind::Consent),
            Refusal::Unavailable { retry_after: None },
            Refusal::TooManySessions,
        ] {
            let row = format!("| {} | `{}` |\n", refusal.as_str(), heads(&refusal).join("` | `"));
            assert!(INTRODUCTION.contains(&row), "{row}");
        }
    }
}
