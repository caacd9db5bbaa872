//! Reads what a token endpoint answered. Pure: no I/O, no clock, and no input that makes it panic.
//!
//! Microsoft's answers come with the number 3599 or the text "3599", as JSON or as a corporate proxy's HTML
//! page, with a list of error codes or with the code in the middle of a sentence. All of that ends here in
//! one of two types: [`TokenAnswer`] or [`AnswerError`]. Nothing of a body is ever kept verbatim but the tokens
//! and one printable line of the error's description.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::explain::one_line;
use crate::secret::{AccessToken, Secret};

/// Longest body that is read, in octets. Tokens of 16 KB are seen where users are in many groups.
pub const MAX_ANSWER: usize = 128 * 1024;

/// What `expires_in` is taken for where it is missing, in seconds: RFC 6749 §5.1 only recommends to send it.
const ASSUMED_LIFETIME: u64 = 3600;

/// The longest life that is believed: with Continuous Access Evaluation it is up to 28 hours.
const LONGEST_LIFETIME: u64 = 2 * 24 * 3600;

/// Longest `Retry-After` that is obeyed to the letter.
pub const MAX_RETRY_AFTER: Duration = Duration::from_mins(5);

/// Longest description that is kept, in characters.
const MAX_DESCRIPTION: usize = 200;

/// Most error codes that are kept.
const MAX_CODES: usize = 8;

/// An HTTP answer as it came. Of what a stranger wrote nothing prints: it may repeat what we sent.
#[derive(Clone, Default)]
pub struct RawAnswer {
    /// The status code.
    pub status: u16,
    /// `Retry-After`, seconds or a date (RFC 9110 §10.2.3).
    pub retry_after: Option<String>,
    /// `Location`, of a redirection that nobody asked for.
    pub location: Option<String>,
    /// `WWW-Authenticate`: Azure Arc names the file of its challenge here.
    pub challenge: Option<String>,
    /// The body; may hold tokens.
    pub body: Body,
}

impl std::fmt::Debug for RawAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawAnswer").field("status", &self.status).finish_non_exhaustive()
    }
}

/// The body of an answer. It may hold tokens, so it does not print and is wiped.
#[derive(Clone, Default)]
pub struct Body(pub Zeroizing<Vec<u8>>);

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{} octets]", self.0.len())
    }
}

/// A token, as it was given.
#[derive(Clone, Debug)]
pub struct TokenAnswer {
    /// For upstream; not empty.
    pub access_token: AccessToken,
    /// RFC 6749 §1.5, where there is one.
    pub refresh_token: Option<Secret>,
    /// How long the access token lives, from the moment of the request. May be zero.
    pub lifetime: Duration,
}

/// Why an answer held no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerError {
    /// An OAuth error (RFC 6749 §5.2).
    Refused(Box<Refused>),
    /// 429, or 503 with `Retry-After`: asked too often.
    Throttled {
        /// The status code.
        status: u16,
        /// How long it asks for patience, at most [`MAX_RETRY_AFTER`].
        retry_after: Option<Duration>,
    },
    /// 5xx or 408 without an OAuth error.
    Failing {
        /// The status code.
        status: u16,
    },
    /// A redirection: a captive portal, or a proxy that wants a person to sign in.
    Redirected {
        /// The host that it leads to, printable.
        to: String,
    },
    /// Something that is no answer of a token endpoint.
    Malformed {
        /// The status code.
        status: u16,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// An OAuth error with Entra's additions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// The status code.
    pub status: u16,
    /// `error`, printable.
    pub error: Option<String>,
    /// `error_codes`; where it is missing, the AADSTS number of the description. The first one leads.
    pub codes: Vec<u32>,
    /// `suberror`, printable.
    pub suberror: Option<String>,
    /// Whether Conditional Access wants claims that only a person can satisfy.
    pub claims: bool,
    /// `error_description`: one printable line, without the trace identifiers.
    pub description: String,
    /// For Microsoft's support.
    pub trace_id: Option<String>,
    /// Our own `client-request-id` come back, or Entra's.
    pub correlation_id: Option<String>,
    /// How long it asks for patience, at most [`MAX_RETRY_AFTER`].
    pub retry_after: Option<Duration>,
}

impl Refused {
    /// Whether this AADSTS code is among those given.
    pub fn has(&self, code: u32) -> bool {
        self.codes.contains(&code)
    }
}

/// Reads the answer to a token request. `now` is the wall clock: for dates and for `expires_on`.
///
/// # Errors
/// Everything that is no token; see [`AnswerError`].
pub fn token(answer: &RawAnswer, now: Timestamp) -> Result<TokenAnswer, AnswerError> {
    let mut fields = object(answer, now)?;
    let Some(Value::String(access_token)) = fields.remove("access_token") else {
        return Err(malformed(answer, "`access_token` is missing or no text"));
    };
    if access_token.is_empty() {
        return Err(malformed(answer, "`access_token` is empty"));
    }
    // It goes into an HTTP header and a SASL line: RFC 6750 §2.1 says b64token, which is visible ASCII.
    if !access_token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(malformed(answer, "`access_token` holds characters that no token has"));
    }
    let lifetime = lifetime(&fields, now).ok_or_else(|| malformed(answer, "`expires_in` is no number"))?;
    let refresh_token = match fields.remove("refresh_token") {
        Some(Value::String(text)) if !text.is_empty() => Some(Secret::new(text)),
        _ => None,
    };
    Ok(TokenAnswer { access_token: AccessToken::new(access_token), refresh_token, lifetime })
}

/// Reads an answer that must be a JSON object without `error`: its fields.
///
/// # Errors
/// As for [`token`].
pub fn object(answer: &RawAnswer, now: Timestamp) -> Result<Map<String, Value>, AnswerError> {
    let status = answer.status;
    let retry_after = answer.retry_after.as_deref().and_then(|value| retry_after(value, now));
    if (300..400).contains(&status) {
        return Err(AnswerError::Redirected { to: location_host(answer.location.as_deref()) });
    }
    let fields = match serde_json::from_slice(&answer.body.0) {
        Ok(Value::Object(fields)) => Some(fields),
        Ok(_) | Err(_) => None,
    };
    let names_error = fields.as_ref().is_some_and(|f| f.contains_key("error"));
    if status == 429 || (status == 503 && retry_after.is_some() && !names_error) {
        return Err(AnswerError::Throttled { status, retry_after });
    }
    match fields {
        // Microsoft's device endpoint has been seen to send errors with status 200.
        Some(fields) if names_error => {
            Err(AnswerError::Refused(Box::new(refused(status, retry_after, &fields))))
        }
        Some(fields) if (200..300).contains(&status) => Ok(fields),
        _ if status >= 500 || status == 408 => Err(AnswerError::Failing { status }),
        Some(_) => Err(malformed(answer, "the status is an error, the body names none")),
        None if answer.body.0.is_empty() => Err(malformed(answer, "the body is empty")),
        None if looks_like_html(&answer.body.0) => {
            Err(malformed(answer, "the body is an HTML page, as captive portals and filters send"))
        }
        None => Err(malformed(answer, "the body is no JSON object")),
    }
}

/// The error of a redirect (RFC 6749 §4.1.2.1), from the fields of its query.
pub fn refused_in_redirect(fields: &Map<String, Value>) -> Refused {
    refused(400, None, fields)
}

/// `Retry-After`: seconds or an HTTP date, never more than [`MAX_RETRY_AFTER`]; a date in the past is zero.
pub fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new().relaxed_weekday(true).parse_timestamp(value).ok()?;
    let seconds = date.as_second().saturating_sub(now.as_second());
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).min(MAX_RETRY_AFTER))
}

/// A field that is a text, as text.
pub fn text<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    fields.get(name).and_then(Value::as_str)
}

/// A field that is a number or a text of digits: Entra's v1 endpoint, IMDS and others quote it.
pub fn number(fields: &Map<String, Value>, name: &str) -> Option<i64> {
    fields.get(name).and_then(whole)
}

fn whole(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64().or_else(|| {
            let float = number.as_f64()?;
            // Saturates; what is out of range is cut by the caller's bound anyway.
            #[expect(clippy::cast_possible_truncation, reason = "a cast of floats saturates")]
            Some(float as i64)
        }),
        Value::String(text) => {
            let text = text.trim();
            text.parse().ok().or_else(|| text.split('.').next()?.parse().ok())
        }
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// `None`: the field is there and makes no sense.
fn lifetime(fields: &Map<String, Value>, now: Timestamp) -> Option<Duration> {
    let seconds = match fields.get("expires_in") {
        Some(Value::Null) | None => match number(fields, "expires_on") {
            Some(at) => at.saturating_sub(now.as_second()),
            None => return Some(Duration::from_secs(ASSUMED_LIFETIME)),
        },
        Some(value) => whole(value)?,
    };
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0).min(LONGEST_LIFETIME)))
}

fn refused(status: u16, retry_after: Option<Duration>, fields: &Map<String, Value>) -> Refused {
    let whole_description = text(fields, "error_description").unwrap_or_default();
    let mut codes: Vec<u32> = match fields.get("error_codes") {
        Some(Value::Array(list)) => {
            list.iter().filter_map(whole).filter_map(|n| u32::try_from(n).ok()).take(MAX_CODES).collect()
        }
        _ => Vec::new(),
    };
    // IMDS and old endpoints give the code in the sentence only.
    if let Some(code) = aadsts(whole_description)
        && !codes.contains(&code)
    {
        codes.insert(0, code);
    }
    let (sentence, ids) = split_description(whole_description);
    Refused {
        status,
        // Google's and the managed identity's gateways have `error` as an object.
        error: text(fields, "error").map(|error| one_line(error, 64)),
        codes,
        suberror: text(fields, "suberror").filter(|s| !s.is_empty()).map(|s| one_line(s, 64)),
        claims: text(fields, "claims").is_some_and(|claims| !claims.is_empty()),
        description: sentence,
        trace_id: identifier(text(fields, "trace_id").or_else(|| after(ids, "Trace ID:"))),
        correlation_id: identifier(text(fields, "correlation_id").or_else(|| after(ids, "Correlation ID:"))),
        retry_after,
    }
}

/// The first AADSTS number of a sentence.
fn aadsts(description: &str) -> Option<u32> {
    let (_, behind) = description.split_once("AADSTS")?;
    let digits: String = behind.chars().take_while(char::is_ascii_digit).take(9).collect();
    digits.parse().ok()
}

/// Entra puts `Trace ID: … Correlation ID: … Timestamp: …` behind its sentence, after CR LF or a blank.
fn split_description(description: &str) -> (String, &str) {
    let cut = description.find("Trace ID:").unwrap_or(description.len());
    let (sentence, ids) = description.split_at_checked(cut).unwrap_or((description, ""));
    let words: Vec<&str> =
        sentence.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    (one_line(&words.join(" "), MAX_DESCRIPTION), ids)
}

fn after<'a>(text: &'a str, label: &str) -> Option<&'a str> {
    text.split_once(label)?.1.split_whitespace().next()
}

/// Identifiers are UUIDs; what is none is not repeated.
fn identifier(text: Option<&str>) -> Option<String> {
    text.filter(|id| {
        !id.is_empty() && id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    })
    .map(str::to_owned)
}

fn location_host(location: Option<&str>) -> String {
    location
        .and_then(|location| url::Url::parse(location).ok())
        .and_then(|url| url.host_str().map(|host| one_line(host, 100)))
        .unwrap_or_else(|| "an unnamed place".to_owned())
}

fn looks_like_html(body: &[u8]) -> bool {
    body.iter().find(|b| !b.is_ascii_whitespace() && !b"\xef\xbb\xbf".contains(b)) == Some(&b'<')
}

fn malformed(answer: &RawAnswer, why: &'static str) -> AnswerError {
    AnswerError::Malformed { status: answer.status, why }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1_445_412_480).unwrap()
    }

    fn answer(status: u16, body: &str) -> RawAnswer {
        RawAnswer { status, body: Body(Zeroizing::new(body.as_bytes().to_vec())), ..RawAnswer::default() }
    }

    fn life(body: &str) -> Option<u64> {
        token(&answer(200, body), now()).ok().map(|t| t.lifetime.as_secs())
    }

    #[test]
    fn the_lifetime_may_be_a_number_a_text_or_missing() {
        for (field, seconds) in [
            (r#","expires_in":3599"#, Some(3599)),
            (r#","expires_in":"3599""#, Some(3599)),
            (r#","expires_in":3599.7"#, Some(3599)),
            (r#","expires_in":" 60 ""#, Some(60)),
            ("", Some(3600)),
            (r#","expires_in":null"#, Some(3600)),
            (r#","expires_in":0"#, Some(0)),
            (r#","expires_in":-5"#, Some(0)),
            (r#","expires_in":"-5""#, Some(0)),
            (r#","expires_in":1e300"#, Some(LONGEST_LIFETIME)),
            (r#","expires_on":"1445412500""#, Some(20)),
            (r#","expires_in":"soon""#, None),
            (r#","expires_in":[1]"#, None),
            (r#","expires_in":true"#, None),
        ] {
            assert_eq!(life(&format!(r#"{{"access_token":"t"{field}}}"#)), seconds, "{field}");
        }
    }

    #[test]
    fn what_is_no_answer_of_a_token_endpoint_is_told_apart() {
        let malformed = |status, why| Err(AnswerError::Malformed { status, why });
        for (status, body, expected) in [
            (200, "", malformed(200, "the body is empty")),
            (
                200,
                "\u{feff}\r\n<!DOCTYPE html><p>hello",
                malformed(200, "the body is an HTML page, as captive portals and filters send"),
            ),
            (200, "[]", malformed(200, "the body is no JSON object")),
            (200, "{\"access_token\":", malformed(200, "the body is no JSON object")),
            (200, "{}", malformed(200, "`access_token` is missing or no text")),
            (200, r#"{"access_token":7}"#, malformed(200, "`access_token` is missing or no text")),
            (200, r#"{"access_token":""}"#, malformed(200, "`access_token` is empty")),
            (
                200,
                r#"{"access_token":"a\r\nb"}"#,
                malformed(200, "`access_token` holds characters that no token has"),
            ),
            (
                200,
                r#"{"access_token":"a\u0001b"}"#,
                malformed(200, "`access_token` holds characters that no token has"),
            ),
            (400, r#"{"why":"no"}"#, malformed(400, "the status is an error, the body names none")),
            (502, "<html>bad gateway", Err(AnswerError::Failing { status: 502 })),
            (408, "", Err(AnswerError::Failing { status: 408 })),
            (429, "slow down", Err(AnswerError::Throttled { status: 429, retry_after: None })),
            (302, "", Err(AnswerError::Redirected { to: "an unnamed place".to_owned() })),
        ] {
            assert_eq!(token(&answer(status, body), now()).map(|_| ()), expected, "{status} {body}");
        }
    }

    #[test]
    fn a_token_of_16_kilobytes_passes() {
        let long = "x".repeat(16 * 1024);
        let read = token(&answer(200, &format!(r#"{{"access_token":"{long}","refresh_token":"r"}}"#)), now())
            .unwrap();
        assert_eq!(read.access_token.len(), 16 * 1024);
        assert_eq!(read.refresh_token.unwrap().expose(), "r");
    }

    #[test]
    fn an_error_of_entra_is_taken_apart() {
        for separator in ["\r\n", " "] {
            let body = serde_json::json!({
                "error": "invalid_grant",
                "error_description": format!("AADSTS50126: Error validating credentials.{separator}Trace ID: t-1{separator}Correlation ID: c-2{separator}Timestamp: 2020-12-22 17:30:44Z"),
                "error_codes": [50126],
                "suberror": "bad_token",
                "claims": "{\"access_token\":{}}",
            });
            let Err(AnswerError::Refused(refused)) = token(&answer(400, &body.to_string()), now()) else {
                panic!("no refusal")
            };
            assert_eq!(refused.error.as_deref(), Some("invalid_grant"));
            assert_eq!(refused.codes, [50126]);
            assert_eq!(refused.suberror.as_deref(), Some("bad_token"));
            assert!(refused.claims);
            assert_eq!(refused.description, "AADSTS50126: Error validating credentials.");
            assert_eq!(refused.trace_id.as_deref(), Some("t-1"));
            assert_eq!(refused.correlation_id.as_deref(), Some("c-2"));
        }
    }

    #[test]
    fn the_code_of_the_sentence_counts_where_no_list_is_given() {
        let body = r#"{"error":"invalid_request","error_description":"AADSTS70021: No matching\u001b[31m record\nTrace ID: x y"}"#;
        let Err(AnswerError::Refused(refused)) = token(&answer(401, body), now()) else {
            panic!("no refusal")
        };
        assert_eq!((refused.status, refused.codes.as_slice()), (401, &[70021][..]));
        assert_eq!(refused.description, "AADSTS70021: No matching [31m record");
    }

    #[test]
    fn an_error_with_status_200_is_an_error() {
        let read = token(&answer(200, r#"{"error":"invalid_client","access_token":"t"}"#), now());
        assert!(matches!(read, Err(AnswerError::Refused(_))));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_bounded() {
        for (value, seconds) in [
            ("7", Some(7)),
            (" 7 ", Some(7)),
            ("99999", Some(300)),
            ("Wed, 21 Oct 2015 07:28:42 GMT", Some(42)),
            ("Wed, 21 Oct 2015 07:00:00 GMT", Some(0)),
            ("Wed, 21 Oct 2016 07:28:00 GMT", Some(300)),
            ("-1", None),
            ("later", None),
            ("", None),
        ] {
            assert_eq!(retry_after(value, now()).map(|d| d.as_secs()), seconds, "{value}");
        }
    }

    #[test]
    fn a_busy_service_that_says_how_long_is_a_throttle() {
        let mut busy = answer(503, "later");
        busy.retry_after = Some("9".to_owned());
        let expected = AnswerError::Throttled { status: 503, retry_after: Some(Duration::from_secs(9)) };
        assert_eq!(token(&busy, now()).unwrap_err(), expected);
    }

    #[test]
    fn a_redirection_names_its_host_only() {
        let mut portal = answer(302, "");
        portal.location = Some("http://portal.example/login?back=secret".to_owned());
        assert_eq!(
            token(&portal, now()).unwrap_err(),
            AnswerError::Redirected { to: "portal.example".to_owned() }
        );
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic_or_print_control_characters(
            status in 100_u16..600,
            body in proptest::collection::vec(any::<u8>(), 0..200),
            after in ".{0,40}",
        ) {
            let raw = RawAnswer {
                status, retry_after: Some(after), body: Body(Zeroizing::new(body)), ..RawAnswer::default()
            };
            drop(token(&raw, now()));
        }

        #[test]
        fn no_description_leaves_more_than_one_printable_line(description in ".{0,600}", error in ".{0,100}") {
            let body = serde_json::json!({"error": error, "error_description": description});
            let Err(AnswerError::Refused(refused)) = token(&answer(400, &body.to_string()), now()) else {
                panic!("no refusal")
            };
            prop_assert!(refused.description.len() <= MAX_DESCRIPTION);
            prop_assert!(refused.description.chars().all(|c| c == ' ' || c.is_ascii_graphic()));
            prop_assert!(refused.error.unwrap().chars().all(|c| c == ' ' || c.is_ascii_graphic()));
        }
    }
}
