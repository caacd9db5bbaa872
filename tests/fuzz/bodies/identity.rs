//! What an identity provider answers, and what is made of it (`src/token/answer.rs`, `error.rs`, `catalogue/`).
//!
//! - Any status, header and body is a token or a typed error; a token is visible ASCII and lives a bounded time.
//! - What the administrator reads has no control character and a bound; what the mail client hears is one ASCII line.
//! - Tokens that stand where tokens stand are in nothing that prints.
//!
//! Orders: `P` a token, to be put into the body.

use mailkey::explain::{Explain, Explanation, Refusal};
use mailkey::token::answer::{self, AnswerError, Body, RawAnswer};
use mailkey::token::catalogue;
use mailkey::token::error::{TokenError, Who};

use super::script::{PASSWORD as TOKEN, Script, is_one_line};

/// The statuses that mean something.
const STATUSES: [u16; 16] = [200, 200, 200, 400, 400, 401, 403, 302, 307, 404, 408, 429, 500, 502, 503, 204];

/// The body: status, how many octets are `Retry-After` and `Location`, those, and the answer's body.
pub fn run(data: &[u8]) {
    let script: Script<3> = Script::read(data);
    let [status, retry_after, location] = script.settings;
    let octets = script.octets();
    let (retry_after, rest) = octets.split_at(usize::from(retry_after % 64).min(octets.len()));
    let (location, body) = rest.split_at(usize::from(location % 64).min(rest.len()));
    let header = |octets: &[u8]| (!octets.is_empty()).then(|| String::from_utf8_lossy(octets).into_owned());
    let answer = RawAnswer {
        status: STATUSES[usize::from(status % 16)],
        retry_after: header(retry_after),
        location: header(location),
        challenge: None,
        body: Body(body.to_vec().into()),
    };
    let text = String::from_utf8_lossy(body);
    let is_kept = text.match_indices(TOKEN).all(|(at, _)| {
        ["\"access_token\":\"", "\"refresh_token\":\"", "\"id_token\":\""]
            .iter()
            .any(|before| text[..at].ends_with(before))
    });
    let now = jiff::Timestamp::from_second(1_790_000_000).unwrap();
    let error = match answer::token(&answer, now) {
        Ok(found) => {
            assert!((200..300).contains(&answer.status), "a token with an error's status");
            let token = found.access_token.for_safekeeping();
            assert!(!token.is_empty() && token.bytes().all(|octet| octet.is_ascii_graphic()), "{token:?}");
            assert!(found.lifetime.as_secs() <= 2 * 24 * 3600);
            assert!(token.len() < 12 || !format!("{found:?}").contains(token), "a token prints");
            return;
        }
        Err(error) => error,
    };
    let debug = format!("{error:?} {answer:?}");
    assert!(!is_kept || !debug.contains(TOKEN) || header(location).is_some(), "a token prints: {debug}");
    let authority = "https://login.microsoftonline.com/contoso.com".to_owned();
    let who = Box::new(Who {
        user: "alice@contoso.com".to_owned(),
        application: "app".to_owned(),
        directory: "contoso.com".to_owned(),
        grant: "password",
    });
    let error = match error {
        AnswerError::Refused(refused) => {
            assert!(is_one_line(&refused.description, 200), "{:?}", refused.description);
            for name in refused.error.iter().chain(&refused.suberror) {
                assert!(is_one_line(name, 64), "{name:?}");
            }
            for id in refused.trace_id.iter().chain(&refused.correlation_id) {
                assert!(id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
            }
            assert!(refused.codes.len() <= 9 && refused.retry_after.is_none_or(|wait| wait.as_secs() <= 300));
            TokenError::Refused { refused, who }
        }
        AnswerError::Throttled { retry_after, .. } => {
            assert!(retry_after.is_none_or(|wait| wait.as_secs() <= 300));
            TokenError::Throttled { authority, retry_after: retry_after.unwrap_or_default() }
        }
        AnswerError::Redirected { ref to } => {
            assert!(is_one_line(to, 255), "{to:?}");
            TokenError::Unusable { authority, error }
        }
        error @ (AnswerError::Failing { .. } | AnswerError::Malformed { .. }) => {
            TokenError::Unusable { authority, error }
        }
    };
    let _: (_, bool) = (error.verdict(), error.worth_a_retry());
    check(&error.explain(), is_kept && header(location).is_none());
    // the texts of errors are also what `mailkey explain` and the sign-in upstream look through
    for found in catalogue::find(&text) {
        check(&found, false);
    }
}

fn check(story: &Explanation, is_kept: bool) {
    for words in [&story.what, &story.remedy, &story.code.to_string()] {
        assert!(!words.chars().any(char::is_control), "{words:?}");
        assert!(!words.is_empty() && words.len() <= 1_500, "{} octets", words.len());
        assert!(!is_kept || !words.contains(TOKEN), "a token is told: {words}");
    }
    let heard: Refusal = story.refusal;
    assert!(is_one_line(&heard.sentence(), 200), "{:?}", heard.sentence());
}
