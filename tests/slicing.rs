//! Properties of the login dialogues that hold for whatever comes over the wire: slicing changes nothing,
//! nothing panics, no token is written in clear.

use std::sync::Arc;

use mailkey::explain::Refusal;
use mailkey::protocol::machine::{
    Back, BackError, Errand, Front, FrontSettings, Login, Offer, SaslMechanism, SignIn, Step, Welcome,
};
use mailkey::protocol::pop3::{Pop3Back, Pop3Front};
use mailkey::protocol::sasl;
use mailkey::protocol::smtp::{SmtpBack, SmtpFront};
use mailkey::secret::{AccessToken, Credentials, Encrypted};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::fuzzing::bodies::script::cut as pieces;

const TOKEN: &str = "eyJ0.very-secret";

fn fronts(settings: &FrontSettings) -> [Box<dyn Front>; 2] {
    [Box::new(Pop3Front::new(settings.clone())), Box::new(SmtpFront::new(settings.clone()))]
}

fn backs(errand: &Errand, starttls: bool) -> [Box<dyn Back>; 2] {
    if starttls {
        [Box::new(Pop3Back::with_starttls(errand.clone())), Box::new(SmtpBack::with_starttls(errand.clone()))]
    } else {
        [Box::new(Pop3Back::new(errand.clone())), Box::new(SmtpBack::new(errand.clone()))]
    }
}

/// What mail clients say, whole and in pieces.
fn from_mail_client() -> impl Strategy<Value = Vec<u8>> {
    let line = select(vec![
        &b"USER alice\r\n"[..],
        b"PASS secret\r\n",
        b"PASS  \r\n",
        b"CAPA\r\n",
        b"AUTH\r\n",
        b"AUTH PLAIN\r\n",
        b"AUTH PLAIN =\r\n",
        b"AUTH PLAIN AGEAYg==\r\n",
        b"AUTH LOGIN\r\n",
        b"AUTH LOGIN YQ==\r\n",
        b"AGEAYg==\r\n",
        b"YQ==\n",
        b"*\r\n",
        b"EHLO a.example\r\n",
        b"HELO b\r\n",
        b"MAIL FROM:<a>\r\n",
        b"BDAT 12\r\n",
        b"NOOP\r\n",
        b"RSET\r\n",
        b"STLS\r\n",
        b"STARTTLS\r\n",
        b"QUIT\r\n",
        b"GET / HTTP/1.1\r\n",
        b"\x16",
        b" ",
        b"\r",
        b"\n",
        b"\r\n",
    ])
    .prop_map(<[u8]>::to_vec);
    vec(prop_oneof![8 => line, 1 => vec(any::<u8>(), 0..6)], 0..24).prop_map(|lines| lines.concat())
}

/// What upstream says, whole and in pieces.
fn from_upstream() -> impl Strategy<Value = Vec<u8>> {
    let line = select(vec![
        &b"+OK ready\r\n"[..],
        b"+\r\n",
        b"+ eyJ9\r\n",
        b"-ERR no\r\n",
        b"-ERR [SYS/TEMP] no\r\n",
        b"220 ready\r\n",
        b"220-very\r\n",
        b"250-smtp.example\r\n",
        b"250-STARTTLS\r\n",
        b"250-AUTH XOAUTH2\r\n",
        b"250 AUTH=XOAUTH2\r\n",
        b"250 SIZE\r\n",
        b"334\r\n",
        b"334 eyJ9\r\n",
        b"235 in\r\n",
        b"535-no\r\n",
        b"535 no\r\n",
        b"421 later\r\n",
        b"TOP\r\n",
        b".\r\n",
        b"\r",
        b"\n",
        b" ",
    ])
    .prop_map(<[u8]>::to_vec);
    vec(prop_oneof![8 => line, 1 => vec(any::<u8>(), 0..6)], 0..24).prop_map(|lines| lines.concat())
}

/// An upstream that mostly does what a login needs, so that the far states are reached too.
fn nearly_a_login() -> impl Strategy<Value = Vec<u8>> {
    let pop3 = &b"+OK ready\r\n+\r\n+ eyJ9\r\n-ERR no\r\nrest"[..];
    let smtp = &b"220 ready\r\n250-a\r\n250 AUTH XOAUTH2\r\n235 in\r\nrest"[..];
    let challenged = &b"220 ready\r\n250-a\r\n250 AUTH XOAUTH2\r\n334 eyJ9\r\n535 no\r\n"[..];
    let starttls = &b"220 ready\r\n250-a\r\n250 STARTTLS\r\n220 go\r\n"[..];
    (select(vec![pop3, smtp, challenged, starttls]), any::<prop::sample::Index>(), from_upstream()).prop_map(
        |(talk, at, noise)| {
            let (before, after) = talk.split_at(at.index(talk.len() + 1));
            [before, &noise, after].concat()
        },
    )
}

/// All steps of a front. Its first login is refused, the second taken; a handshake ends it.
fn front_steps(mut front: Box<dyn Front>, slices: &[&[u8]]) -> (Vec<Step<Login>>, Option<Vec<u8>>) {
    let (mut steps, mut logins, mut ended) = (Vec::new(), 0, false);
    for slice in [&[][..]].iter().chain(slices) {
        front.feed(slice);
        while !ended {
            let step = front.step();
            match &step {
                Step::Read => break,
                Step::Write(_) | Step::Close(_) => {}
                Step::StartTls => ended = true,
                Step::Done(_) => {
                    logins += 1;
                    if logins == 1 {
                        front.refuse(&Refusal::BadCredentials);
                    } else {
                        front.grant(None);
                    }
                }
            }
            steps.push(step);
        }
    }
    (steps, (logins > 1).then(|| front.into_rest()))
}

type BackStep = Step<Result<Welcome, BackError>>;

/// All steps of a back; a handshake ends it, for better or worse: what stands behind it in the same slice
/// is an injection, and what comes later is not for us to see.
fn back_steps(
    mut back: Box<dyn Back>,
    encrypted: bool,
    slices: &[&[u8]],
) -> (Vec<BackStep>, Option<Vec<u8>>) {
    let (mut steps, mut ended, mut let_in) = (Vec::new(), false, false);
    if encrypted {
        back.secured(Encrypted::pretend());
    }
    for slice in [&[][..]].iter().chain(slices) {
        back.feed(slice);
        while !ended {
            match back.step() {
                Step::Read => break,
                Step::StartTls | Step::Done(Err(BackError::Injected)) => ended = true,
                step @ (Step::Write(_) | Step::Done(_) | Step::Close(_)) => {
                    let_in |= matches!(step, Step::Done(Ok(_)));
                    steps.push(step);
                }
            }
        }
    }
    (steps, let_in.then(|| back.into_rest()))
}

fn sign_in(mechanism: SaslMechanism) -> SignIn {
    SignIn {
        mailbox: "alice@example.com".to_owned(),
        token: AccessToken::new(TOKEN),
        mechanism,
        client_name: "client.example".to_owned(),
        host: "outlook.office365.com".to_owned(),
        port: 993,
    }
}

proptest! {
    #[test]
    fn a_front_takes_the_same_steps_in_every_slicing(
        bytes in from_mail_client(),
        lengths in vec(1_usize..20, 1..8),
        starttls: bool,
        require_tls: bool,
        max_refusals in 0_u8..3,
        without_login: bool,
    ) {
        let settings = FrontSettings {
            starttls,
            require_tls,
            offer: Arc::new(Offer(vec!["SIZE 1".to_owned()])),
            host_name: "mailkey.example".to_owned(),
            max_refusals,
            without_login: without_login.then(|| Credentials::decode(b"scanner", b"secret").unwrap()),
        };
        for (whole, cut) in fronts(&settings).into_iter().zip(fronts(&settings)) {
            let whole = front_steps(whole, &[&bytes]);
            prop_assert_eq!(whole, front_steps(cut, &pieces(&bytes, &lengths)));
        }
    }

    #[test]
    fn a_back_takes_the_same_steps_in_every_slicing(
        bytes in prop_oneof![from_upstream(), nearly_a_login()],
        lengths in vec(1_usize..20, 1..8),
        starttls: bool,
        which in 0_u8..3,
    ) {
        let client_name = "client.example".to_owned();
        let errand = match which {
            0 => Errand::Learn { client_name },
            1 => Errand::Wait { client_name },
            _ => Errand::SignIn(sign_in(SaslMechanism::Xoauth2)),
        };
        for (whole, cut) in backs(&errand, starttls).into_iter().zip(backs(&errand, starttls)) {
            let whole = back_steps(whole, !starttls, &[&bytes]);
            prop_assert_eq!(whole, back_steps(cut, !starttls, &pieces(&bytes, &lengths)));
        }
    }

    #[test]
    fn no_token_is_written_before_the_connection_is_encrypted(
        bytes in prop_oneof![from_upstream(), nearly_a_login()],
        lengths in vec(1_usize..20, 1..8),
        starttls: bool,
        oauthbearer: bool,
    ) {
        let mechanism = if oauthbearer { SaslMechanism::OauthBearer } else { SaslMechanism::Xoauth2 };
        let sign_in = sign_in(mechanism);
        let message = sasl::bearer(&sign_in, &Encrypted::pretend());
        for back in backs(&Errand::SignIn(sign_in), starttls) {
            let (steps, _) = back_steps(back, false, &pieces(&bytes, &lengths));
            for step in steps {
                if let Step::Write(written) = step {
                    let written = String::from_utf8_lossy(&written).into_owned();
                    prop_assert!(!written.contains(&**message) && !written.contains(TOKEN), "{written}");
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn no_token_is_written_to_a_waiting_connection_that_is_not_encrypted(
        before in prop_oneof![from_upstream(), nearly_a_login()],
        after in from_upstream(),
        starttls: bool,
    ) {
        let wait = Errand::Wait { client_name: "client.example".to_owned() };
        for mut back in backs(&wait, starttls) {
            back.feed(&before);
            // the steps before a login cannot hold what the dialogue has not been given
            while !matches!(back.step(), Step::Read) {}
            back.sign_in(sign_in(SaslMechanism::Xoauth2));
            let (steps, _) = back_steps(back, false, &[&after]);
            for step in steps {
                if let Step::Write(written) = step {
                    let written = String::from_utf8_lossy(&written).into_owned();
                    prop_assert!(!written.contains(TOKEN) && !written.contains("dXNlcj"), "{written}");
                }
            }
        }
    }
}

/// The property above would hold for a back that never writes a token at all.
#[test]
fn the_token_is_written_once_the_connection_is_encrypted() {
    let sign_in = sign_in(SaslMechanism::Xoauth2);
    let message = sasl::bearer(&sign_in, &Encrypted::pretend());
    let talks = [&b"+OK\r\n+\r\n"[..], b"220 a\r\n250-a\r\n250 AUTH XOAUTH2\r\n"];
    for (back, talk) in backs(&Errand::SignIn(sign_in.clone()), false).into_iter().zip(talks) {
        let (steps, _) = back_steps(back, true, &[talk]);
        let written = |step: &BackStep| matches!(step, Step::Write(bytes) if String::from_utf8_lossy(bytes).contains(&**message));
        assert!(steps.iter().any(written), "{steps:?}");
    }
    let wait = Errand::Wait { client_name: sign_in.client_name.clone() };
    let greetings = [&b"+OK\r\n"[..], b"220 a\r\n250-a\r\n250 AUTH XOAUTH2\r\n"];
    for (mut back, greeting) in backs(&wait, false).into_iter().zip(greetings) {
        back.secured(Encrypted::pretend());
        back.feed(greeting);
        while !matches!(back.step(), Step::Read) {}
        assert!(back.waits());
        back.sign_in(sign_in.clone());
        let (steps, _) = back_steps(back, false, &[b"+\r\n"]);
        let written = |step: &BackStep| matches!(step, Step::Write(bytes) if String::from_utf8_lossy(bytes).contains(&**message));
        assert!(steps.iter().any(written), "{steps:?}");
    }
}
