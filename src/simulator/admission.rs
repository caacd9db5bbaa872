//! Who may open which mailbox with which token: what Exchange Online decides when it is shown one.

use std::sync::Arc;

use base64::{Engine as _, prelude::BASE64_STANDARD};

use super::{
    journal::{Event, Service, SignIn},
    mischief::MailFault,
    office::Office,
    tenant::Condition,
    tokens::Bearer,
};

/// Audiences that Exchange takes.
const AUDIENCES: [&str; 6] = [
    "https://outlook.office.com",
    "https://outlook.office365.com",
    "https://ps.outlook.com",
    "https://outlook.office365.us",
    "https://partner.outlook.cn",
    "00000002-0000-0ff1-ce00-000000000000",
];

/// A XOAUTH2 response: `user=` and the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Xoauth2 {
    pub(super) user: String,
    pub(super) token: String,
}

impl Xoauth2 {
    /// base64("user=" user ^A "auth=Bearer " token ^A ^A), with padding and nothing else.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let octets = BASE64_STANDARD.decode(line).ok()?;
        let text = std::str::from_utf8(&octets).ok()?;
        let (user, rest) = text.strip_prefix("user=")?.split_once('\u{1}')?;
        let token = rest.strip_prefix("auth=Bearer ")?.strip_suffix("\u{1}\u{1}")?;
        (!user.is_empty() && !token.is_empty() && !token.contains('\u{1}'))
            .then(|| Self { user: user.to_owned(), token: token.to_owned() })
    }
}

/// Who is in.
#[derive(Clone, Debug)]
pub(super) struct Admitted {
    /// The mailbox that is open.
    pub(super) mailbox: String,
    pub(super) bearer: Arc<Bearer>,
    /// SMTP, app-only: the login works although the mailbox may not be opened.
    pub(super) logon_fails: bool,
}

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// The response is not in the form of XOAUTH2.
    BadResponse,
    /// The token is none of ours, or it has expired.
    BadToken,
    /// It is for something else than Exchange.
    WrongAudience,
    /// The token is good, the mailbox is not to be had.
    NotConnected(&'static str),
    /// App-only, and the service principal has no right to the mailbox.
    NoAppPermission,
    /// SMTP: `user=` is not the token's user.
    NotTheTokensUser,
    /// `SmtpClientAuthenticationDisabled` for the mailbox.
    SmtpDisabledForMailbox,
    /// `SmtpClientAuthenticationDisabled` for the tenant.
    SmtpDisabledForTenant,
}

impl Denied {
    /// For the journal.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::BadResponse => "not a XOAUTH2 response",
            Self::BadToken => "unknown or expired token",
            Self::WrongAudience => "token for another audience",
            Self::NotConnected(why) => why,
            Self::NoAppPermission => "application without permission to the mailbox",
            Self::NotTheTokensUser => "user= is not the token's user",
            Self::SmtpDisabledForMailbox => "SMTP AUTH disabled for the mailbox",
            Self::SmtpDisabledForTenant => "SMTP AUTH disabled for the tenant",
        }
    }
}

/// One attempt to sign in to a mail protocol with XOAUTH2.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt<'a> {
    pub(super) service: Service,
    /// The base64 of the response.
    pub(super) response: &'a [u8],
    pub(super) initial_response: bool,
    /// Octets of the line that held it.
    pub(super) line_length: usize,
    pub(super) tls: bool,
}

/// Decides an attempt and writes it down.
pub(super) fn sign_in(office: &Office, attempt: Attempt<'_>) -> Result<Admitted, Denied> {
    let Attempt { service, response, initial_response, line_length, tls } = attempt;
    let parsed = Xoauth2::parse(response);
    let verdict = if office.mischief.mail_is(service, &MailFault::RefuseToken) {
        Err(Denied::BadToken)
    } else if office.mischief.mail_is(service, &MailFault::AuthenticatedButNotConnected) {
        Err(Denied::NotConnected("mischief"))
    } else {
        parsed
            .as_ref()
            .map_or(Err(Denied::BadResponse), |read| admit(office, service, &read.user, &read.token))
    };
    let bearer = parsed.as_ref().and_then(|read| office.tokens.bearer(&read.token));
    office.journal.write(Event::SignIn(SignIn {
        service,
        mechanism: "XOAUTH2".to_owned(),
        user: parsed.map(|read| read.user).unwrap_or_default(),
        token_user: bearer.as_ref().and_then(|bearer| bearer.user.clone()),
        client_id: bearer.map(|bearer| bearer.client_id.clone()),
        initial_response,
        line_length,
        tls,
        accepted: verdict.is_ok(),
        reason: verdict.as_ref().err().map_or("", |denied| denied.reason()),
    }));
    verdict
}

/// Writes down that somebody sent a password: Exchange Online takes none.
pub(super) fn refuse_basic(office: &Office, service: Service, mechanism: &str, user: &str, tls: bool) {
    office.journal.write(Event::SignIn(SignIn {
        service,
        mechanism: mechanism.to_owned(),
        user: user.to_owned(),
        token_user: None,
        client_id: None,
        initial_response: false,
        line_length: 0,
        tls,
        accepted: false,
        reason: "basic authentication is gone",
    }));
}

/// Looks at a token and at the mailbox that it is to open.
pub(super) fn admit(office: &Office, service: Service, user: &str, token: &str) -> Result<Admitted, Denied> {
    let bearer = bearer(office, token)?;
    let mailbox = user.to_lowercase();
    let app_only = bearer.user.is_none();
    if !bearer.permissions.iter().any(|permission| permission == needed(service, app_only)) {
        return Err(match service {
            Service::Smtp => Denied::WrongAudience,
            Service::Authority | Service::Imap | Service::Pop3 | Service::Ews => {
                Denied::NotConnected("token without the protocol's permission")
            }
        });
    }
    let has_mailbox = office.tenant.has_mailbox(&mailbox);
    if service == Service::Smtp {
        return admit_smtp(office, bearer, mailbox, has_mailbox);
    }
    if let Some(delegate) = &bearer.user {
        if !office.tenant.may_open(delegate, &mailbox) {
            return Err(Denied::NotConnected("no Full Access to the mailbox"));
        }
    } else if !office.tenant.may_open(&bearer.client_id, &mailbox) && service != Service::Ews {
        return Err(Denied::NoAppPermission);
    }
    let off = match service {
        Service::Imap => office.tenant.has(&mailbox, Condition::ImapDisabled),
        Service::Pop3 => office.tenant.has(&mailbox, Condition::PopDisabled),
        Service::Authority | Service::Smtp | Service::Ews => false,
    };
    if off {
        return Err(Denied::NotConnected("protocol disabled for the mailbox"));
    }
    if !has_mailbox {
        return Err(Denied::NotConnected("no such mailbox"));
    }
    Ok(Admitted { mailbox, bearer, logon_fails: false })
}

/// A token that is good for Exchange.
pub(super) fn bearer(office: &Office, token: &str) -> Result<Arc<Bearer>, Denied> {
    let bearer = office.tokens.bearer(token).ok_or(Denied::BadToken)?;
    if !AUDIENCES.contains(&bearer.audience.trim_end_matches('/')) {
        return Err(Denied::WrongAudience);
    }
    Ok(bearer)
}

/// SMTP: a delegated token opens its own user's mailbox only, Full Access or not.
fn admit_smtp(
    office: &Office,
    bearer: Arc<Bearer>,
    mailbox: String,
    has_mailbox: bool,
) -> Result<Admitted, Denied> {
    if !has_mailbox {
        return Err(Denied::NotConnected("no such mailbox"));
    }
    if bearer.user.as_ref().is_some_and(|user| !user.eq_ignore_ascii_case(&mailbox)) {
        return Err(Denied::NotTheTokensUser);
    }
    if office.tenant.has(&mailbox, Condition::SmtpAuthDisabled) {
        return Err(Denied::SmtpDisabledForMailbox);
    }
    if office.tenant.smtp_disabled() {
        return Err(Denied::SmtpDisabledForTenant);
    }
    let logon_fails = bearer.user.is_none() && !office.tenant.may_open(&bearer.client_id, &mailbox);
    Ok(Admitted { mailbox, bearer, logon_fails })
}

/// The permission that a protocol asks of a token.
pub(super) fn needed(service: Service, app_only: bool) -> &'static str {
    match (service, app_only) {
        (Service::Imap, false) => "IMAP.AccessAsUser.All",
        (Service::Imap, true) => "IMAP.AccessAsApp",
        (Service::Pop3, false) => "POP.AccessAsUser.All",
        (Service::Pop3, true) => "POP.AccessAsApp",
        (Service::Smtp, false) => "SMTP.Send",
        (Service::Smtp, true) => "SMTP.SendAsApp",
        (Service::Ews | Service::Authority, false) => "EWS.AccessAsUser.All",
        (Service::Ews | Service::Authority, true) => "full_access_as_app",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn microsofts_own_test_vector_is_read() {
        let line = b"dXNlcj10ZXN0QGNvbnRvc28ub25taWNyb3NvZnQuY29tAWF1dGg9QmVhcmVyIEV3QkFBbDNCQUFVRkZwVUFvN0ozVmUwYmpMQldaV0NjbFJDM0VvQUEBAQ==";
        let read = Xoauth2::parse(line).unwrap();
        assert_eq!(read.user, "test@contoso.onmicrosoft.com");
        assert_eq!(read.token, "EwBAAl3BAAUFFpUAo7J3Ve0bjLBWZWCclRC3EoAA");
    }

    #[test]
    fn a_response_with_a_part_missing_is_refused() {
        for text in
            ["", "user=a\u{1}\u{1}", "user=a\u{1}auth=Bearer t\u{1}", "user=\u{1}auth=Bearer t\u{1}\u{1}"]
        {
            assert_eq!(Xoauth2::parse(BASE64_STANDARD.encode(text).as_bytes()), None, "{text:?}");
        }
        assert_eq!(Xoauth2::parse(b"not base64!"), None);
    }
}
