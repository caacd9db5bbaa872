//! What both tables are made of: verdicts, remedies with blanks to fill in, and the values for the blanks.

use std::borrow::Cow;
use std::time::Duration;

use crate::explain::{Cause, CauseKind, Explanation, Fault, Passes, Refusal};

/// The values that are filled into remedies. Any of them may be empty: a general word stands for it then.
///
/// They may come from strangers (a user name does): they are shortened, control characters are taken out,
/// and where they stand in a PowerShell line they are quoted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context<'a> {
    /// The user name, or the mailbox.
    pub user: &'a str,
    /// Application (client) ID.
    pub application: &'a str,
    /// Directory (tenant) ID, domain, or `organizations`.
    pub directory: &'a str,
    /// The grant, as in `proxy.yaml`.
    pub grant: &'a str,
}

/// What follows from a failure. Many codes share one verdict; what they say differs.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) fault: Fault,
    pub(super) passes: Passes,
    pub(super) refusal: Refusal,
    /// With the blanks `{user}`, `{application}`, `{directory}`, `{grant}` for prose and `{USER}`,
    /// `{APPLICATION}`, `{DIRECTORY}` for command lines.
    pub(super) remedy: &'static str,
}

impl Verdict {
    /// Somebody must act.
    pub(super) const fn permanent(fault: Fault, refusal: Refusal, remedy: &'static str) -> Self {
        Self { fault, passes: Passes::Never, refusal, remedy }
    }

    /// It goes away by itself, after `seconds` where that is known (0: it is not).
    pub(super) const fn passing(fault: Fault, seconds: u64, remedy: &'static str) -> Self {
        let after = if seconds == 0 { None } else { Some(Duration::from_secs(seconds)) };
        let refusal = Refusal::Unavailable { retry_after: after };
        Self { fault, passes: Passes::ByItself(after), refusal, remedy }
    }

    /// Fills it in.
    pub(super) fn explain(
        &self,
        code: Cow<'static, str>,
        what: String,
        aadsts: Option<u32>,
        context: &Context<'_>,
    ) -> Explanation {
        Explanation {
            code,
            fault: self.fault,
            what,
            remedy: fill(self.remedy, context),
            passes: self.passes,
            refusal: match self.refusal {
                Refusal::ContactAdmin(Cause { kind, .. }) => Refusal::ContactAdmin(Cause { kind, aadsts }),
                Refusal::BadCredentials
                | Refusal::PasswordExpired
                | Refusal::HeldBack { .. }
                | Refusal::Unavailable { .. }
                | Refusal::TooManySessions => self.refusal,
            },
        }
    }
}

/// A refusal for an administrator, in a constant.
pub(super) const fn admin(kind: CauseKind) -> Refusal {
    Refusal::ContactAdmin(Cause { kind, aadsts: None })
}

/// Fills the blanks of a template. A filled-in value is never searched for blanks again.
pub(super) fn fill(template: &str, context: &Context<'_>) -> String {
    let mut filled = String::with_capacity(template.len() + 64);
    let mut rest = template;
    while let Some((before, behind)) = rest.split_once('{') {
        filled.push_str(before);
        let Some((blank, after)) = behind.split_once('}') else {
            filled.push('{');
            rest = behind;
            continue;
        };
        match blank {
            "user" => prose(&mut filled, context.user, "the user"),
            "application" => prose(&mut filled, context.application, "the application"),
            "directory" => prose(&mut filled, context.directory, "the directory"),
            "grant" => prose(&mut filled, context.grant, "this grant"),
            "USER" => argument(&mut filled, context.user, "<user>"),
            "APPLICATION" => argument(&mut filled, context.application, "<application-id>"),
            "DIRECTORY" => argument(&mut filled, context.directory, "<directory-id>"),
            other => {
                filled.push('{');
                filled.push_str(other);
                filled.push('}');
            }
        }
        rest = after;
    }
    filled.push_str(rest);
    filled
}

/// A value of a sentence: in backticks.
fn prose(filled: &mut String, value: &str, without: &str) {
    if value.is_empty() {
        filled.push_str(without);
        return;
    }
    filled.push('`');
    filled.extend(printable(value).map(|c| if c == '`' { '\'' } else { c }));
    filled.push('`');
}

/// An argument of a PowerShell line: quoted unless it is plain, as an administrator pastes it into a shell.
fn argument(filled: &mut String, value: &str, without: &str) {
    if value.is_empty() {
        filled.push_str(without);
        return;
    }
    if value.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-'))
        || (value.contains('@')
            && !value.starts_with('@')
            && value.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '@' | '+')))
    {
        filled.extend(printable(value));
        return;
    }
    filled.push('\'');
    for c in printable(value) {
        filled.push(if c == '`' { '?' } else { c });
        if c == '\'' {
            filled.push('\'');
        }
    }
    filled.push('\'');
}

/// Letters and digits of every script, ASCII signs and blanks; `?` for the rest, so no line end, no escape
/// sequence and none of the quotation marks that PowerShell takes for its own.
fn printable(value: &str) -> impl Iterator<Item = char> + '_ {
    value
        .chars()
        .take(256)
        .map(|c| if c.is_alphanumeric() || c == ' ' || c.is_ascii_graphic() { c } else { '?' })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_filled_in_and_missing_ones_get_a_general_word() {
        let context = Context { user: "alice@contoso.com", ..Context::default() };
        assert_eq!(
            fill(
                "reset {user} of {directory}: `Set-CASMailbox -Identity {USER} -App {APPLICATION}`",
                &context
            ),
            "reset `alice@contoso.com` of the directory: \
             `Set-CASMailbox -Identity alice@contoso.com -App <application-id>`"
        );
    }

    #[test]
    fn a_hostile_user_name_stays_one_quoted_argument() {
        let context = Context { user: "a'; Remove-Mailbox b\r\n`x\u{2019}", ..Context::default() };
        assert_eq!(fill("{USER}", &context), "'a''; Remove-Mailbox b???x?'");
        assert_eq!(fill("{user}", &context), "`a'; Remove-Mailbox b??'x?`");
    }

    #[test]
    fn a_value_is_not_searched_for_blanks() {
        let context = Context { user: "{application}", application: "id", ..Context::default() };
        assert_eq!(fill("{user} {unknown} {", &context), "`{application}` {unknown} {");
    }
}
