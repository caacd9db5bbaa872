//! What ends by the calendar: certificates and client secrets that the configuration names, stored sign-ins, and EWS
//! itself.

use std::path::Path;

use jiff::Timestamp;

use crate::config::model::{ClientAuth, Config, Upstream};
use crate::upstream::tls::certificates;

/// A certificate is spoken of this many days ahead of its end.
const AHEAD: i64 = 30;

/// A stored sign-in is spoken of this many days ahead: a login renews it, and most have one sooner.
const AHEAD_OF_SIGN_IN: i64 = 14;

/// Exchange Online ends EWS on 1 April 2027, in seconds since 1970 ("Deprecation of Exchange Web Services in
/// Exchange Online").
const EWS_END: i64 = 1_806_537_600;

/// Seconds in a day.
const DAY: i64 = 86_400;

/// Something that ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// What, and what to do about it.
    pub what: String,
    /// When.
    pub ends: Timestamp,
    /// Spoken of this many days ahead.
    pub ahead: i64,
}

/// Everything with an end that a configuration leads to. Files that cannot be read are not complained about
/// here: the start or reload did.
pub fn of(config: &Config) -> Vec<Expiry> {
    let mut all = Vec::new();
    let mut certificate = |path: &Path, whose: &str| {
        let leaf = certificates(path).ok().and_then(|chain| chain.into_iter().next());
        if let Some(ends) = leaf.and_then(|leaf| not_after(&leaf)) {
            let what = format!("the certificate `{}` ({whose})", path.display());
            let known = all.iter().any(|known: &Expiry| known.what == what);
            if !known {
                all.push(Expiry { what, ends, ahead: AHEAD });
            }
        }
    };
    if let Some(path) = &config.tls.certificate_file {
        certificate(path, "shown to mail clients");
    }
    let accounts = config.listeners.iter().flat_map(|listener| &listener.accounts);
    for account in accounts {
        if let ClientAuth::Certificate { certificate_file, .. } = &account.application.client_auth {
            certificate(certificate_file, &format!("application {}", account.application.client_id));
        }
    }
    let accounts = config.listeners.iter().flat_map(|listener| &listener.accounts);
    for application in accounts.map(|account| &account.application) {
        if let Some(ends) = application.secret_expires.and_then(end_of) {
            let what = format!("the client secret of application {}", application.client_id);
            let expiry = Expiry { what, ends, ahead: AHEAD };
            if !all.contains(&expiry) {
                all.push(expiry);
            }
        }
    }
    let online = |listener: &&std::sync::Arc<crate::config::model::Listener>| match &listener.upstream {
        Upstream::Mail(_) => false,
        Upstream::Http(url) => url.host_str().is_some_and(|host| {
            [".office365.com", ".office.com", ".office365.us", ".outlook.cn"]
                .iter()
                .any(|end| host.ends_with(end))
        }),
    };
    if let Some(listener) = config.listeners.iter().find(online)
        && let Ok(ends) = Timestamp::from_second(EWS_END)
    {
        let what = format!(
            "EWS in Exchange Online (listener `{}`), for which Microsoft Graph is the successor,",
            listener.name
        );
        all.push(Expiry { what, ends, ahead: i64::MAX / DAY });
    }
    all
}

/// The end of a sign-in that is stored.
pub fn sign_in((user, ends): (String, Timestamp)) -> Expiry {
    let what =
        format!("the sign-in of `{user}` (a login with it renews it, `mailkey login` makes a new one)");
    Expiry { what, ends, ahead: AHEAD_OF_SIGN_IN }
}

/// A day, as the time at which it begins.
fn end_of(day: jiff::civil::Date) -> Option<Timestamp> {
    Some(day.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
}

/// What is near its end, or past it.
pub fn warnings(expiries: &[Expiry], now: Timestamp) -> Vec<String> {
    let near = |expiry: &&Expiry| (expiry.ends.as_second() - now.as_second()) / DAY < expiry.ahead;
    let say = |expiry: &Expiry| {
        let left = expiry.ends.as_second() - now.as_second();
        let date = expiry.ends.strftime("%Y-%m-%d");
        if left < 0 {
            format!("{} ended on {date}", expiry.what)
        } else {
            format!("{} ends on {date}, in {} days", expiry.what, left / DAY)
        }
    };
    expiries.iter().filter(near).map(say).collect()
}

/// The `notAfter` of a certificate (RFC 5280 §4.1.2.5): the second time in the first SEQUENCE of two times.
fn not_after(der: &[u8]) -> Option<Timestamp> {
    let (_, certificate) = element(der)?.1;
    let (_, tbs) = element(certificate)?.1;
    let mut rest = tbs;
    loop {
        let (tag, inside);
        (rest, (tag, inside)) = element(rest)?;
        if tag == 0x30
            && let Some((behind, (0x17 | 0x18, _))) = element(inside)
        {
            let (_, (tag, time)) = element(behind)?;
            return time_of(tag, std::str::from_utf8(time).ok()?);
        }
    }
}

/// What stands behind an element, its tag, its content.
type Element<'a> = (&'a [u8], (u8, &'a [u8]));

/// One DER element: what stands behind it, its tag, its content.
fn element(der: &[u8]) -> Option<Element<'_>> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (size, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (octets, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        let size = octets
            .iter()
            .try_fold(0_usize, |sum, octet| sum.checked_mul(256)?.checked_add(usize::from(*octet)))?;
        (size, rest)
    };
    let (inside, behind) = rest.split_at_checked(size)?;
    Some((behind, (tag, inside)))
}

/// UTCTime has two digits for the year, of 1950 to 2049; GeneralizedTime four.
fn time_of(tag: u8, text: &str) -> Option<Timestamp> {
    let digits = text.strip_suffix('Z')?;
    let full = match (tag, digits.get(..2)?.parse::<u8>().ok()?) {
        (0x17, 0..50) => format!("20{digits}"),
        (0x17, _) => format!("19{digits}"),
        _ => digits.to_owned(),
    };
    let part = |from: usize, to: usize| full.get(from..to);
    let text = format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0, 4)?,
        part(4, 6)?,
        part(6, 8)?,
        part(8, 10)?,
        part(10, 12)?,
        part(12, 14)?
    );
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_certificate_is_read_in_both_notations() {
        for (year, shown) in [(2031, "2031-05-06T00:00:00Z"), (2051, "2051-05-06T00:00:00Z")] {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut wishes = rcgen::CertificateParams::new(vec!["x.example".to_owned()]).unwrap();
            wishes.not_after = rcgen::date_time_ymd(year, 5, 6);
            let made = wishes.self_signed(&key).unwrap();
            assert_eq!(not_after(made.der()).unwrap().to_string(), shown);
        }
        assert_eq!(not_after(b"\x30\x03\x30\x01\x02"), None);
        assert_eq!(not_after(b""), None);
    }

    #[test]
    fn client_secrets_and_sign_ins_end_too() {
        let now: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
        let text = "oauth: {client-id: 11111111-2222-3333-4444-555555555555, client-secret: x, \
                    client-secret-expires: 2026-12-20}\n\
                    listeners:\n  - {name: imap, protocol: imap, listen: '127.0.0.1:1143'}\n  \
                    - {name: pop3, protocol: pop3, listen: '127.0.0.1:1110'}\n";
        let loaded = crate::config::parse(text, "proxy.yaml", Path::new("/"), &|_| None);
        let config = loaded.unwrap_or_else(|problems| panic!("{problems}")).config;
        assert_eq!(
            warnings(&of(&config), now),
            [
                "the client secret of application 11111111-2222-3333-4444-555555555555 ends on 2026-12-20, in 25 days"
            ]
        );
        let ends = |text: &str| sign_in(("alice@contoso.com".to_owned(), text.parse().unwrap()));
        assert!(warnings(&[ends("2026-12-20T00:00:00Z")], now).is_empty());
        let said = warnings(&[ends("2026-12-01T00:00:00Z")], now);
        assert!(said[0].starts_with("the sign-in of `alice@contoso.com`"), "{said:?}");
    }

    #[test]
    fn the_end_is_announced_a_month_ahead() {
        let now: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
        let at = |text: &str| Expiry { what: "x".to_owned(), ends: text.parse().unwrap(), ahead: AHEAD };
        let all = [at("2026-12-20T12:00:00Z"), at("2027-12-20T12:00:00Z"), at("2026-11-20T12:00:00Z")];
        assert_eq!(warnings(&all, now), ["x ends on 2026-12-20, in 26 days", "x ended on 2026-11-20"]);
        assert_eq!(Timestamp::from_second(EWS_END).unwrap().to_string(), "2027-04-01T00:00:00Z");
    }
}
