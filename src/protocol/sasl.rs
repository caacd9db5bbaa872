//! The SASL messages that all three dialogues share (RFC 4422): PLAIN and LOGIN from the mail client,
//! XOAUTH2 and OAUTHBEARER towards upstream.

use std::cell::OnceCell;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use zeroize::Zeroizing;

use super::machine::{BackError, Errand, SaslMechanism, SignIn, Welcome};
use crate::explain::one_line;
use crate::secret::{AccessToken, Credentials, Encrypted, Passing, REDACTED};

/// Standard base64. Missing padding is let through (some clients leave it out); everything else is strict:
/// no foreign characters, no junk behind the end, no stray bits.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The two questions of AUTH LOGIN, as every client knows them: `Username:` and `Password:` in base64.
pub const LOGIN_PROMPTS: [&str; 2] = ["VXNlcm5hbWU6", "UGFzc3dvcmQ6"];

/// Decodes one base64 response; `None` where it is broken.
pub fn decode(response: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    BASE64.decode(response).ok().map(Zeroizing::new)
}

/// Encodes one message.
pub fn encode(message: &[u8]) -> String {
    BASE64.encode(message)
}

/// Decodes `message = [authzid] NUL authcid NUL passwd` (RFC 4616 §2), still in base64.
///
/// The authorization identity must be empty or the same as the authentication identity: we act for nobody
/// else. `None` where anything of that does not hold.
pub fn plain(response: &[u8]) -> Option<Credentials> {
    let message = decode(response)?;
    let mut parts = message.split(|&b| b == 0);
    let (acting_as, user, password) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || !(acting_as.is_empty() || acting_as == user) {
        return None;
    }
    Credentials::decode(user, password).ok()
}

/// A sign-in by PLAIN or LOGIN that waits for the mail client's next response.
pub enum Exchange {
    /// PLAIN was asked for without an initial response.
    Plain,
    /// LOGIN: the first question stands.
    User,
    /// LOGIN: the second question stands.
    Password {
        /// The answer to the first.
        user: Zeroizing<Vec<u8>>,
    },
}

/// What one response of the mail client leads to.
pub enum Turn {
    /// Send this challenge (base64, or empty), then feed the response to the exchange.
    Challenge(&'static str, Exchange),
    /// The exchange is through; `None`: what came can be no user name and password.
    Through(Option<Credentials>, &'static str),
    /// The client sent `*`.
    Cancelled,
    /// The response is no base64.
    Broken,
    /// Neither PLAIN nor LOGIN.
    Unknown,
}

/// Begins an exchange by the mechanism's name. An initial response of `=` has no octets (RFC 4422 §4, RFC 4954 §4,
/// RFC 5034 §4); LOGIN with an empty one is asked as if there were none.
pub fn begin(mechanism: &[u8], initial: Option<&[u8]>) -> Turn {
    let initial = initial.map(|initial| if initial == b"=" { b"" } else { initial });
    if mechanism.eq_ignore_ascii_case(b"PLAIN") {
        match initial {
            None => Turn::Challenge("", Exchange::Plain),
            Some(initial) => Exchange::Plain.answer(initial),
        }
    } else if mechanism.eq_ignore_ascii_case(b"LOGIN") {
        match initial {
            None | Some(b"") => Turn::Challenge(LOGIN_PROMPTS[0], Exchange::User),
            Some(initial) => Exchange::User.answer(initial),
        }
    } else {
        Turn::Unknown
    }
}

impl Exchange {
    /// The mail client's response, still in base64.
    pub fn answer(self, response: &[u8]) -> Turn {
        if response == b"*" {
            return Turn::Cancelled;
        }
        let Some(decoded) = decode(response) else { return Turn::Broken };
        match self {
            Self::Plain => Turn::Through(plain(response), "PLAIN"),
            Self::User => Turn::Challenge(LOGIN_PROMPTS[1], Self::Password { user: decoded }),
            Self::Password { user } => Turn::Through(Credentials::decode(&user, &decoded).ok(), "LOGIN"),
        }
    }
}

/// A message that holds a token, in base64. Boxed, so that it is wiped in one go.
pub type Message = Zeroizing<Box<str>>;

/// The client's first message of XOAUTH2 or OAUTHBEARER (RFC 7628 §3.1), in base64, never folded.
///
/// The proof shows that the socket it goes to is encrypted.
pub fn bearer(sign_in: &SignIn, proof: &Encrypted) -> Message {
    let token = sign_in.token.for_wire(proof);
    let mailbox = &sign_in.mailbox;
    let message = match sign_in.mechanism {
        SaslMechanism::Xoauth2 => ["user=", mailbox, "\u{1}auth=Bearer ", token, "\u{1}\u{1}"].concat(),
        SaslMechanism::OauthBearer => {
            let (host, port) = (&sign_in.host, sign_in.port);
            let user = mailbox.replace('=', "=3D").replace(',', "=2C");
            format!("n,a={user},\u{1}host={host}\u{1}port={port}\u{1}auth=Bearer {token}\u{1}\u{1}")
        }
    };
    Zeroizing::new(encode(&Passing(message.into_bytes())).into_boxed_str())
}

/// What ends an error challenge: nothing for XOAUTH2, a single `^A` for OAUTHBEARER (RFC 7628 §3.2.3).
pub fn answer_to_challenge(mechanism: SaslMechanism) -> &'static str {
    match mechanism {
        SaslMechanism::Xoauth2 => "",
        SaslMechanism::OauthBearer => "AQ==",
    }
}

/// The mechanism's registered name.
pub fn name(mechanism: SaslMechanism) -> &'static str {
    match mechanism {
        SaslMechanism::Xoauth2 => "XOAUTH2",
        SaslMechanism::OauthBearer => "OAUTHBEARER",
    }
}

/// An upstream's error challenge, made fit for a log: `{"status":"400",…}`.
pub fn challenge(encoded: &[u8]) -> String {
    let decoded = decode(encoded).unwrap_or_default();
    one_line(&String::from_utf8_lossy(&decoded), 500)
}

/// What a back brings home, fit for a log: some servers repeat what they did not like, and that was the token.
pub fn without_token(outcome: Result<Welcome, BackError>, errand: &Errand) -> Result<Welcome, BackError> {
    let Errand::SignIn(SignIn { token, .. }) = errand else { return outcome };
    let telltales = Telltales::of(token);
    let fit = |text: String| if telltales.are_in(&text) { REDACTED.to_owned() } else { text };
    match outcome {
        Ok(Welcome { offer, reply }) => {
            let offer = offer.map(|mut offer| {
                offer.0.retain(|entry| !telltales.are_in(entry));
                offer
            });
            Ok(Welcome { offer, reply: fit(reply) })
        }
        Err(BackError::Refused { reply, challenge }) => {
            Err(BackError::Refused { reply: fit(reply), challenge: challenge.map(fit) })
        }
        Err(BackError::TryLater { reply }) => Err(BackError::TryLater { reply: fit(reply) }),
        Err(BackError::NoMechanism { offered }) => Err(BackError::NoMechanism { offered: fit(offered) }),
        Err(BackError::Unexpected { expected, got }) => {
            Err(BackError::Unexpected { expected, got: fit(got) })
        }
        Err(error @ (BackError::NoStartTls | BackError::Injected | BackError::TooLong)) => Err(error),
    }
}

/// By what a token is known in a text that may be cut off behind it: its beginning.
struct Telltales<'a> {
    plain: &'a [u8],
    /// In base64, as which it reads in three ways by where it begins: made for the first text that is long enough.
    encoded: OnceCell<[Zeroizing<Vec<u8>>; 3]>,
}

impl<'a> Telltales<'a> {
    fn of(token: &'a AccessToken) -> Self {
        Self { plain: token.telltale().as_bytes(), encoded: OnceCell::new() }
    }

    fn are_in(&self, text: &str) -> bool {
        let text = text.as_bytes();
        // most of what upstream says is shorter
        if self.plain.is_empty() || text.len() < self.plain.len() {
            return false;
        }
        let finds = |wanted: &[u8]| !wanted.is_empty() && memchr::memmem::find(text, wanted).is_some();
        finds(self.plain)
            || self.encoded.get_or_init(|| self.in_base64()).iter().any(|encoded| finds(encoded))
    }

    fn in_base64(&self) -> [Zeroizing<Vec<u8>>; 3] {
        [&b""[..], b"1", b"12"].map(|before| {
            let encoded = Zeroizing::new(encode(&[before, self.plain].concat()));
            // the characters at both ends hang on what stands beside the token, too
            let (from, to) = ((before.len() * 4).div_ceil(3), (before.len() + self.plain.len()) * 4 / 3);
            Zeroizing::new(encoded.as_bytes().get(from..to).unwrap_or_default().to_vec())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::AccessToken;

    fn sign_in(mechanism: SaslMechanism) -> SignIn {
        SignIn {
            mailbox: "test@contoso.onmicrosoft.com".to_owned(),
            token: AccessToken::new("EwBAAl3BAAUFFpUAo7J3Ve0bjLBWZWCclRC3EoAA"),
            mechanism,
            client_name: "client.example".to_owned(),
            host: "outlook.office365.com".to_owned(),
            port: 993,
        }
    }

    /// Microsoft's own example, "Authenticate an IMAP, POP or SMTP connection using OAuth".
    #[test]
    fn xoauth2_is_what_microsofts_page_shows() {
        assert_eq!(
            &**bearer(&sign_in(SaslMechanism::Xoauth2), &Encrypted::pretend()),
            "dXNlcj10ZXN0QGNvbnRvc28ub25taWNyb3NvZnQuY29tAWF1dGg9QmVhcmVyIEV3QkFBbDNCQUFVRkZwVUFvN0oz\
             VmUwYmpMQldaV0NjbFJDM0VvQUEBAQ=="
        );
    }

    #[test]
    fn oauthbearer_escapes_the_authorization_identity() {
        let odd = SignIn { mailbox: "a=b,c".to_owned(), ..sign_in(SaslMechanism::OauthBearer) };
        let message = decode(bearer(&odd, &Encrypted::pretend()).as_bytes()).unwrap();
        assert!(
            message.starts_with(b"n,a=a=3Db=2Cc,\x01host=outlook.office365.com\x01port=993\x01auth=Bearer ")
        );
    }

    /// RFC 4616 §4 (the second example has a foreign authorization identity).
    #[test]
    fn plain_takes_its_own_identity_only() {
        let one = plain(encode(b"\0tim\0tanstaaftanstaaf").as_bytes()).unwrap();
        assert_eq!((one.user.as_str(), one.password.expose()), ("tim", "tanstaaftanstaaf"));
        assert!(plain(encode(b"Ursel\0Kurt\0xipj3plmq").as_bytes()).is_none());
        assert!(plain(encode(b"Kurt\0Kurt\0xipj3plmq").as_bytes()).is_some());
        assert!(plain(encode(b"Kurt\0xipj3plmq").as_bytes()).is_none());
        assert!(plain(encode(b"\0Kurt\0xipj\0junk").as_bytes()).is_none());
    }

    #[test]
    fn a_token_that_upstream_repeats_is_found_wherever_its_base64_begins() {
        let sign_in = sign_in(SaslMechanism::Xoauth2);
        let sent = bearer(&sign_in, &Encrypted::pretend());
        for before in ["", "-ERR mailbox is l", "lo", "loc", "lock"] {
            let told = Err(BackError::TryLater { reply: format!("{before}{}ked", *sent) });
            let told = without_token(told, &Errand::SignIn(sign_in.clone()));
            assert_eq!(told, Err(BackError::TryLater { reply: REDACTED.to_owned() }), "{before}");
        }
        let harmless =
            Ok(Welcome { offer: None, reply: "OK dXNlcj10ZXN0QGNvbnRvc28ub25taWNyb3NvZnQ".to_owned() });
        assert_eq!(without_token(harmless.clone(), &Errand::SignIn(sign_in)), harmless);
    }

    #[test]
    fn base64_is_strict_but_for_its_padding() {
        assert!(decode(b"AGEAYg").is_some());
        assert!(decode(b"AGEAYg==").is_some());
        for broken in [&b"AGEAYg==junk"[..], b"AGE AYg==", b"AGEAYh", b"*", b"AGEAYg=\0"] {
            assert!(decode(broken).is_none(), "{broken:?}");
        }
    }
}
