//! `Authorization: Basic` from the mail client (RFC 7617), and nothing of it goes any further.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use zeroize::Zeroizing;

use crate::secret::Credentials;

/// What a request says about who sends it.
#[derive(Debug, PartialEq, Eq)]
pub enum Presented {
    /// Nothing: it wants to be asked.
    Nothing,
    /// NTLM, Negotiate, Bearer, …: it is asked for Basic.
    OtherScheme,
    /// Basic, but no user name and password can be read out of it.
    Unusable(String),
    /// More than one `Authorization`: nobody can say which one counts.
    Ambiguous,
    /// A user name and a password.
    Basic(Credentials),
}

/// Reads `credentials = "Basic" 1*SP token68`; `token68` decodes to `user-id ":" password`.
///
/// The scheme's case does not matter; base64 is strict; the FIRST colon splits, for a password may hold more.
pub fn presented(headers: &HeaderMap) -> Presented {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Presented::Nothing };
    if values.next().is_some() {
        return Presented::Ambiguous;
    }
    let value = value.as_bytes().trim_ascii();
    let (scheme, token68) = match value.iter().position(|&b| b == b' ') {
        Some(blank) => value.split_at(blank),
        None => (value, &b""[..]),
    };
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return Presented::OtherScheme;
    }
    let Ok(pair) = STANDARD.decode(token68.trim_ascii()).map(Zeroizing::new) else {
        return Presented::Unusable("the base64 of `Authorization: Basic` is broken".to_owned());
    };
    let Some(colon) = pair.iter().position(|&b| b == b':') else {
        return Presented::Unusable("no colon stands between user name and password".to_owned());
    };
    let (user, password) = pair.split_at(colon);
    match Credentials::decode(user, password.get(1..).unwrap_or_default()) {
        Ok(credentials) => Presented::Basic(credentials),
        Err(error) => Presented::Unusable(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn of(value: &[u8]) -> Presented {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
        presented(&headers)
    }

    fn pair(raw: &[u8]) -> Option<(String, String)> {
        match of(format!("Basic {}", STANDARD.encode(raw)).as_bytes()) {
            Presented::Basic(found) => Some((found.user, found.password.expose().to_owned())),
            Presented::Nothing | Presented::OtherScheme | Presented::Unusable(_) | Presented::Ambiguous => {
                None
            }
        }
    }

    /// RFC 7617 §2: `Aladdin`, `open sesame`.
    #[test]
    fn the_scheme_is_read_in_any_case() {
        for scheme in ["Basic", "basic", "BASIC", "bAsIc  "] {
            let value = format!("{scheme} QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
            let Presented::Basic(found) = of(value.as_bytes()) else { panic!("{scheme} was not read") };
            assert_eq!((found.user.as_str(), found.password.expose()), ("Aladdin", "open sesame"));
        }
    }

    #[test]
    fn the_first_colon_splits_and_the_password_keeps_the_rest() {
        assert_eq!(pair(b"u@x:pa:ss: "), Some(("u@x".to_owned(), "pa:ss: ".to_owned())));
        assert_eq!(pair(br"CONTOSO\u:p"), Some((r"CONTOSO\u".to_owned(), "p".to_owned())));
    }

    #[test]
    fn passwords_come_in_utf8_and_in_latin1() {
        assert_eq!(pair("u:wörd".as_bytes()).unwrap().1, "wörd");
        assert_eq!(pair(b"u:w\xf6rd").unwrap().1, "wörd");
    }

    #[test]
    fn what_cannot_be_read_is_refused_and_not_repeated() {
        for value in
            ["Basic", "Basic ", "Basic !!!!", "Basic dTpw=", "Basic dTpw junk", "Basic dTpwcA", "Basic dQ=="]
        {
            let Presented::Unusable(why) = of(value.as_bytes()) else { panic!("{value} was taken") };
            assert!(!why.contains("dT"), "{why}");
        }
        for raw in [&b"u\0:p"[..], b"u:p\0", b"u\x01auth:p", b"u\r\n:p", b":p", b"u:"] {
            assert_eq!(pair(raw), None, "{raw:?}");
        }
    }

    #[test]
    fn other_schemes_and_doubles_are_told_apart() {
        for value in ["NTLM TlRMTVNTUAAB", "Negotiate YII=", "Bearer eyJ0", "Basically dTpw"] {
            assert_eq!(of(value.as_bytes()), Presented::OtherScheme);
        }
        assert_eq!(presented(&HeaderMap::new()), Presented::Nothing);
        let mut twice = HeaderMap::new();
        twice.append(AUTHORIZATION, HeaderValue::from_static("Basic dTpw"));
        twice.append(AUTHORIZATION, HeaderValue::from_static("Basic dTpw"));
        assert_eq!(presented(&twice), Presented::Ambiguous);
    }
}
