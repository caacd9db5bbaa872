//! What the answers of Entra ID and Exchange Online mean: two tables, and the rules that read them.
//!
//! ```text
//! token endpoint ── error, HTTP status ──► class ── AADSTS code ──► entry      entra.rs, codes.rs
//! IMAP, POP3, SMTP, EWS after the token ──────────── first match ──► entry     exchange.rs
//! ```
//!
//! Microsoft promises nothing about the numbers and texts ("react on `error`"), so the class comes first and
//! what is unknown falls back to it. `docs/errors.md` is made of these tables.
//!
//! Sources: Microsoft's "Entra authentication and authorization error codes", "Authenticate an IMAP, POP or
//! SMTP connection using OAuth", RFC 6749 §5.2, RFC 8628 §3.5.

mod codes;
mod entra;
mod entry;
mod exchange;

pub use entra::{Class, class_of, entra};
pub use entry::Context;
pub use exchange::{exchange, not_now};

use crate::explain::Explanation;

/// One chapter of the catalogue, for `docs/errors.md`.
#[derive(Clone, Debug)]
pub struct Chapter {
    /// Its heading.
    pub title: &'static str,
    /// Its entries, in the table's order.
    pub entries: Vec<Explanation>,
}

/// The whole catalogue, with general words in place of values.
pub fn all() -> Vec<Chapter> {
    vec![
        Chapter { title: "The identity provider, by class", entries: entra::classes() },
        Chapter { title: "The identity provider, by AADSTS code", entries: entra::codes() },
        Chapter { title: "The mail service, after the token was presented", entries: exchange::entries() },
    ]
}

/// Everything that this text speaks of: AADSTS numbers, `error` names, answers of IMAP, POP3, SMTP and EWS,
/// and codes of this catalogue. Each once; empty where nothing is recognised.
///
/// ```
/// let found = mailkey::token::catalogue::find("AADSTS50126: Error validating credentials due to invalid …");
/// assert_eq!(found[0].code, "AADSTS50126");
/// ```
pub fn find(text: &str) -> Vec<Explanation> {
    let text: String = text.chars().take(MAX_TEXT).collect();
    let mut found = entra::find(&text);
    found.extend(exchange::find(&text));
    let mut seen = std::collections::HashSet::new();
    found.retain(|explanation| seen.insert(explanation.code.clone()));
    found
}

/// The longest text that is searched, in characters.
const MAX_TEXT: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::{Passes, Refusal};

    fn everything() -> Vec<Explanation> {
        all().into_iter().flat_map(|chapter| chapter.entries).collect()
    }

    #[test]
    fn every_entry_is_worded_as_the_house_wants_it() {
        for entry in everything() {
            for text in [&entry.what, &entry.remedy] {
                assert!(!text.trim().is_empty(), "{}", entry.code);
                assert!(!text.ends_with(['.', ' ', '!']), "{}: {text}", entry.code);
                assert!(!text.contains(['{', '}', '\n']), "{}: a blank is left in {text}", entry.code);
                let first = text.split([' ', ':', ',']).next().unwrap();
                let name = first.starts_with('`')
                    || first.chars().skip(1).any(char::is_uppercase)
                    || ["Entra", "Exchange", "Microsoft", "Conditional", "High"].contains(&first);
                assert!(name || first.starts_with(char::is_lowercase), "{}: {text}", entry.code);
            }
            assert_eq!(entry.what.matches('`').count() % 2, 0, "{}", entry.code);
            assert_eq!(entry.remedy.matches('`').count() % 2, 0, "{}", entry.code);
        }
    }

    #[test]
    fn codes_are_unique_over_the_whole_catalogue() {
        let mut seen = std::collections::HashSet::new();
        for entry in everything() {
            assert!(seen.insert(entry.code.clone()), "{} stands twice", entry.code);
        }
        assert!(seen.len() > 230, "{} entries", seen.len());
    }

    #[test]
    fn what_passes_by_itself_is_never_told_as_a_wrong_password() {
        for entry in everything() {
            let passes = matches!(entry.passes, Passes::ByItself(_));
            match entry.refusal {
                Refusal::BadCredentials | Refusal::PasswordExpired => assert!(!passes, "{}", entry.code),
                Refusal::Unavailable { .. } | Refusal::HeldBack { .. } | Refusal::TooManySessions => {
                    assert!(passes, "{}", entry.code);
                }
                Refusal::ContactAdmin(_) => {}
            }
        }
    }

    #[test]
    fn every_code_finds_its_own_entry() {
        for entry in everything() {
            let found = find(&entry.code);
            assert!(found.contains(&entry), "{} finds {found:?}", entry.code);
        }
    }

    #[test]
    fn nothing_is_found_where_nothing_is_meant() {
        for text in ["", "hello world", "it took 401 seconds", "AADSTS", "AADSTSx", "port 50126 is in use"] {
            assert_eq!(find(text), [], "{text}");
        }
    }
}
