//! Exchange Online's answers after the token was presented: matched by what stands in them.

use std::borrow::Cow;
use std::time::Duration;

use super::entry::{Context, Verdict, admin};
use crate::config::model::Protocol;
use crate::explain::{CauseKind, Explanation, Fault, Passes, Refusal};

/// Explains an answer of the mail service after the token was presented.
///
/// `reply` is the last answer in one line: `535 5.7.3 Authentication unsuccessful`, `A1 NO AUTHENTICATE failed.`,
/// for EWS the HTTP status, then the body if there is one: `403`. `challenge` is what came beside it: the decoded
/// error challenge of XOAUTH2, for EWS the `x-ms-diagnostics` and `WWW-Authenticate` headers.
///
/// A waiting time that the answer names (`Suggested Backoff Time: 299910 milliseconds`) is taken over, up to
/// one hour.
pub fn exchange(
    protocol: Protocol,
    reply: &str,
    challenge: Option<&str>,
    context: &Context<'_>,
) -> Explanation {
    let answer = format!("{}\n{}", reply.trim(), challenge.unwrap_or_default()).to_lowercase();
    known(protocol, &answer).unwrap_or(last_resort(protocol, false)).explain(&answer, context)
}

/// The same for an answer that the protocol itself calls temporary (BYE, `-ERR [SYS/TEMP]`, 4xx), whatever its words:
/// where nothing fits, it passes.
pub fn not_now(protocol: Protocol, reply: &str, context: &Context<'_>) -> Explanation {
    // a dialogue gives untagged answers without the star that stands before them
    let star = if protocol == Protocol::Imap { "* " } else { "" };
    let answer = format!("{star}{}", reply.trim()).to_lowercase();
    known(protocol, &answer).unwrap_or(last_resort(protocol, true)).explain(&answer, context)
}

fn known(protocol: Protocol, answer: &str) -> Option<&'static Answer> {
    ANSWERS
        .iter()
        .find(|entry| entry.protocol == protocol && entry.needles.iter().all(|needle| holds(answer, needle)))
}

/// All answers, for the catalogue's page.
pub(super) fn entries() -> Vec<Explanation> {
    ANSWERS
        .iter()
        .chain(&LAST_RESORTS)
        .chain(&NOT_NOW)
        .map(|entry| entry.explain("", &Context::default()))
        .collect()
}

/// The entry that each line is, for each protocol; and entries that are called by their code.
pub(super) fn find(text: &str) -> Vec<Explanation> {
    let text = text.to_lowercase();
    let mut found: Vec<Explanation> = ANSWERS
        .iter()
        .chain(&LAST_RESORTS)
        .chain(&NOT_NOW)
        .filter(|entry| called(&text, entry.code))
        .map(|entry| entry.explain("", &Context::default()))
        .collect();
    for protocol in [Protocol::Imap, Protocol::Pop3, Protocol::Smtp] {
        found.extend(text.lines().filter_map(|line| find_for(protocol, line)));
    }
    // Status, headers and body of an HTTP answer stand on many lines.
    if ["ews", "exchange.asmx", "x-ms-diagnostics", "soap", "errorserverbusy"]
        .iter()
        .any(|word| text.contains(word))
    {
        found.extend(find_for(Protocol::Ews, &text));
    }
    found
}

fn find_for(protocol: Protocol, text: &str) -> Option<Explanation> {
    ANSWERS
        .iter()
        .filter(|entry| entry.protocol == protocol)
        .find(|entry| {
            entry.needles.iter().all(|needle| match needle.strip_prefix('^') {
                // Any 4xx would be found in any text.
                Some(digit) if digit.len() < 3 => false,
                Some(status) => called(text, status),
                None => text.contains(needle),
            })
        })
        .map(|entry| entry.explain(text, &Context::default()))
}

/// `^` in front of a needle: the answer starts with it.
fn holds(answer: &str, needle: &str) -> bool {
    match needle.strip_prefix('^') {
        Some(start) => answer.starts_with(start),
        None => answer.contains(needle),
    }
}

/// Whether the text has this word.
fn called(text: &str, word: &str) -> bool {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '.'))
        .any(|part| part.trim_matches('.').eq_ignore_ascii_case(word))
}

/// `Suggested Backoff Time: 299910 milliseconds`, `BackOffMilliseconds">300000<`.
fn backoff(answer: &str) -> Option<Duration> {
    let (_, behind) = answer.split_once("backoff")?;
    let digits: String = behind
        .chars()
        .take(40)
        .skip_while(|c| !c.is_ascii_digit())
        .take_while(char::is_ascii_digit)
        .collect();
    let wait = Duration::from_millis(digits.parse().ok()?).min(LONGEST_BACKOFF);
    (!wait.is_zero()).then_some(wait)
}

const LONGEST_BACKOFF: Duration = Duration::from_hours(1);

/// An answer of the table: the first whose needles all stand in it, in lower case.
struct Answer {
    code: &'static str,
    protocol: Protocol,
    needles: &'static [&'static str],
    verdict: &'static Verdict,
    what: &'static str,
}

impl Answer {
    fn explain(&self, answer: &str, context: &Context<'_>) -> Explanation {
        let mut story = self.verdict.explain(Cow::Borrowed(self.code), self.what.to_owned(), None, context);
        if let (Passes::ByItself(_), Some(wait)) = (story.passes, backoff(answer)) {
            story.passes = Passes::ByItself(Some(wait));
            if matches!(story.refusal, Refusal::Unavailable { .. }) {
                story.refusal = Refusal::Unavailable { retry_after: Some(wait) };
            }
        }
        story
    }
}

const fn imap(
    code: &'static str,
    needles: &'static [&'static str],
    verdict: &'static Verdict,
    what: &'static str,
) -> Answer {
    Answer { code, protocol: Protocol::Imap, needles, verdict, what }
}

const fn pop3(
    code: &'static str,
    needles: &'static [&'static str],
    verdict: &'static Verdict,
    what: &'static str,
) -> Answer {
    Answer { code, protocol: Protocol::Pop3, needles, verdict, what }
}

const fn smtp(
    code: &'static str,
    needles: &'static [&'static str],
    verdict: &'static Verdict,
    what: &'static str,
) -> Answer {
    Answer { code, protocol: Protocol::Smtp, needles, verdict, what }
}

const fn ews(
    code: &'static str,
    needles: &'static [&'static str],
    verdict: &'static Verdict,
    what: &'static str,
) -> Answer {
    Answer { code, protocol: Protocol::Ews, needles, verdict, what }
}

static TOKEN_REFUSED: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Mailbox),
    "check three things: the token's permission (`scope` must be of Exchange Online and consented), the mailbox (`Get-CASMailbox \
     -Identity {USER}`: ImapEnabled and PopEnabled must be True), and the right to it: a delegate needs \
     `Add-MailboxPermission -Identity {USER} -User <delegate> -AccessRights FullAccess`, an application also \
     `New-ServicePrincipal -AppId {APPLICATION} -ObjectId <object ID of the enterprise application>`; it may take an hour",
);
static SERVICE_PRINCIPAL: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Mailbox),
    "make the application known to Exchange and give it the mailbox: `New-ServicePrincipal -AppId {APPLICATION} -ObjectId <object \
     ID of the enterprise application, not of the registration>`, then `Add-MailboxPermission -Identity {USER} -User \
     <that object ID> -AccessRights FullAccess`; it may take an hour",
);
static MAILBOX_CLOSED: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Mailbox),
    "check that {user} has a mailbox and a licence, that `Get-CASMailbox -Identity {USER}` shows ImapEnabled True, and that \
     the one who signs in has the right to it: `Add-MailboxPermission -Identity {USER} -User <delegate> -AccessRights FullAccess`",
);
static LONG_TOKEN: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Mailbox),
    "make the token smaller: remove the key `scope`, so that POP.AccessAsUser.All alone is asked for, and take group claims out under \
     Entra admin center > App registrations > {application} > Token configuration; or use IMAP",
);
static POP_REFUSED: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Mailbox),
    "check that `Get-CASMailbox -Identity {USER}` shows PopEnabled True, that POP.AccessAsUser.All (or POP.AccessAsApp) is consented, \
     and that not too many sessions are open: Exchange says the same when it limits the rate",
);
static SMTP_TENANT: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Mailbox),
    "turn on SMTP AUTH for this mailbox, which overrides the tenant: `Set-CASMailbox -Identity {USER} \
     -SmtpClientAuthenticationDisabled $false`; or for all: `Set-TransportConfig -SmtpClientAuthenticationDisabled $false`",
);
static SMTP_MAILBOX: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Mailbox),
    "turn on SMTP AUTH for the mailbox: `Set-CASMailbox -Identity {USER} -SmtpClientAuthenticationDisabled $false`",
);
static SMTP_REFUSED: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Mailbox),
    "check that SMTP AUTH is on (`Set-CASMailbox -Identity {USER} -SmtpClientAuthenticationDisabled $false`) and SMTP.Send \
     consented; a shared mailbox is not signed in to by SMTP: set `mailbox` for SMTP to the delegate and give it `Send As`; an application \
     needs `New-ServicePrincipal -AppId {APPLICATION} -ObjectId <object ID of the enterprise application>`",
);
static SMTP_POLICY: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Policy),
    "look at the sign-in of {user} under Entra admin center > Users > Sign-in logs > Conditional Access, and exclude the user \
     from the policy that blocks it",
);
static SMTP_SECURITY_DEFAULTS: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Policy),
    "turn off security defaults (Entra admin center > Identity > Overview > Properties > Manage security defaults) and put \
     Conditional Access policies in their place",
);
static BASIC: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "point the application at the proxy's own port: this answer comes to a plain password, which the proxy never sends upstream",
);
static SEND_AS: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Mailbox),
    "make the sender address that of {user}, or give the right to the other one: `Add-RecipientPermission -Identity <sender> \
     -Trustee {USER} -AccessRights SendAs`",
);
static NOT_SIGNED_IN: Verdict = Verdict::permanent(
    Fault::MailClient,
    admin(CauseKind::Account),
    "turn on authentication for outgoing mail in the application: it sent a message without signing in",
);
static HVE_DATA: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "check that `mailbox` is the address of the High Volume Email account and `scope` is `https://outlook.office.com/.default` or absent",
);
static HVE_EXPIRING: Verdict = Verdict::passing(
    Fault::Provider,
    0,
    "set `refresh-margin` under `tokens` to at least 10m: High Volume Email refuses a token with less life than that",
);
static SMTP_CONCURRENT: Verdict = Verdict {
    fault: Fault::MailClient,
    passes: Passes::ByItself(None),
    refusal: Refusal::TooManySessions,
    remedy: "let the application send {user}'s mail over fewer connections: Exchange Online takes three at once for one mailbox, and 30 \
             messages a minute",
};
static SMTP_RATE: Verdict = Verdict::passing(
    Fault::MailClient,
    60,
    "let the application send more slowly: Exchange Online takes 30 messages a minute from one mailbox",
);
static QUOTA: Verdict = Verdict::passing(
    Fault::MailClient,
    86_400,
    "wait until a day has passed since the first of them, or spread the messages over several mailboxes: one may send to 10,000 \
     recipients a day",
);
static LOGON_FAILED: Verdict = Verdict::passing(
    Fault::Tenant,
    3600,
    "wait an hour if the permission was given just now; else give it: `Add-MailboxPermission -Identity {USER} -User <object ID of \
     the enterprise application> -AccessRights FullAccess`",
);
static THROTTLED: Verdict = Verdict::passing(
    Fault::MailClient,
    0,
    "let fewer sessions be open for {user} at once, and let the application ask less often",
);
static SERVICE: Verdict =
    Verdict::passing(Fault::Provider, 0, "wait, and look at https://status.cloud.microsoft if it lasts");
static EXPIRED_TOKEN: Verdict = Verdict::passing(
    Fault::Provider,
    0,
    "let the application connect again: it gets a fresh token; if it comes back, set this machine's clock",
);
static UNFAMILIAR: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Mailbox),
    "run `mailkey doctor` for {user}, and look at the answer in the proxy's log",
);
static EWS_BLOCKED: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Mailbox),
    "let the application in: read the list with `(Get-OrganizationConfig -RetrieveEwsOperationAccessPolicy).EwsAllowedAppIDs`, add \
     {application} to it and write the whole list back with `Set-OrganizationConfig -EwsEnabled $true -EwsAllowedAppIDs \
     <list>` (24 hours until it holds), then `Set-CASMailbox -Identity {USER} -EwsEnabled $true`, and check the \
     licence (F1, F3 and Kiosk have no EWS); move to IMAP, SMTP or Graph before 1 April 2027, when EWS ends in Exchange Online",
);
static EWS_AUDIENCE: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "set `scope` to `https://outlook.office365.com/EWS.AccessAsUser.All` (with client credentials \
     `https://outlook.office365.com/.default`), or remove the key",
);
static EWS_PERMISSION: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Consent),
    "add EWS.AccessAsUser.All (with client credentials full_access_as_app) of `Office 365 Exchange Online` to {application} under \
     Entra admin center > App registrations > API permissions, then grant admin consent",
);
static EWS_TENANT: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "compare `directory-id` (now {directory}) with the tenant that the Exchange server belongs to",
);
static EWS_CLAIMS: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Policy),
    "look at the sign-in of {user} under Entra admin center > Users > Sign-in logs: a policy was changed or the session revoked; \
     exclude the user from it, or use `grant: client-credentials`",
);
static EWS_TOKEN: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Mailbox),
    "read `x-ms-diagnostics` in the proxy's log, and check `scope` and the consent to EWS.AccessAsUser.All for {application}",
);
static EWS_LOCKED: Verdict = Verdict::permanent(
    Fault::Account,
    admin(CauseKind::Account),
    "sign in as {user} at https://outlook.office.com and follow what it asks for to unlock the account",
);
static EWS_IMPERSONATION: Verdict = Verdict::permanent(
    Fault::MailClient,
    admin(CauseKind::Application),
    "with `grant: client-credentials` every request must carry the header `ExchangeImpersonation`; with any other grant none may: \
     choose the grant by what the application does",
);
static EWS_IMPERSONATE: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Mailbox),
    "give the application the right: consent to full_access_as_app, or assign the role `Application EWS.AccessAsApp` with \
     `New-ManagementRoleAssignment -App {APPLICATION} -Role 'Application EWS.AccessAsApp'`",
);

/// In the order in which they are tried: special before general.
static ANSWERS: &[Answer] = &[
    imap(
        "IMAP-THROTTLED",
        &["throttled"],
        &THROTTLED,
        "Exchange Online limits the rate of this mailbox's requests",
    ),
    imap(
        "IMAP-NOT-CONNECTED",
        &["authenticated but not connected"],
        &MAILBOX_CLOSED,
        "Exchange Online took the token and cannot open the mailbox",
    ),
    imap(
        "IMAP-TOKEN-EXPIRED",
        &["accesstokenexpired"],
        &EXPIRED_TOKEN,
        "Exchange Online ended the session as its token ran out",
    ),
    imap(
        "IMAP-LOGON-DENIED",
        &["authfailed:logondenied"],
        &SERVICE_PRINCIPAL,
        "Exchange Online took the token but denies the logon to this mailbox",
    ),
    imap(
        "IMAP-AUTHFAILED",
        &["authfailed:"],
        &TOKEN_REFUSED,
        "Exchange Online refused the token and names a reason in its answer",
    ),
    imap(
        "IMAP-AUTHENTICATE-FAILED",
        &["authenticate failed"],
        &TOKEN_REFUSED,
        "Exchange Online refused the token for this mailbox without a reason",
    ),
    imap("IMAP-LOGIN-FAILED", &["no login failed"], &BASIC, "Exchange Online refused a plain password"),
    imap(
        "IMAP-SESSION-CLOSED",
        &["connection closed. 14"],
        &MAILBOX_CLOSED,
        "Exchange Online closed the session as it could not open the mailbox",
    ),
    imap(
        "IMAP-TIMED-OUT",
        &["connection is closed. 13"],
        &SERVICE,
        "Exchange Online closed the session after a time without commands",
    ),
    imap("IMAP-BYE", &["* bye"], &SERVICE, "Exchange Online ended the session"),
    pop3(
        "POP3-THROTTLED",
        &["throttled"],
        &THROTTLED,
        "Exchange Online limits the rate of this mailbox's requests",
    ),
    pop3(
        "POP3-PROTOCOL-ERROR",
        &["-err", "protocol error"],
        &LONG_TOKEN,
        "Exchange Online's POP3 does not take the token's line, as happens with tokens over 4,096 characters",
    ),
    pop3(
        "POP3-AUTHENTICATION-FAILURE",
        &["authentication failure"],
        &POP_REFUSED,
        "Exchange Online refused the token for this mailbox",
    ),
    pop3(
        "POP3-LOGON-FAILURE",
        &["logon failure"],
        &POP_REFUSED,
        "Exchange Online refused the logon to this mailbox",
    ),
    pop3("POP3-IN-USE", &["[in-use]"], &THROTTLED, "another session holds the mailbox"),
    pop3("POP3-SYS-TEMP", &["[sys/temp]"], &SERVICE, "the mail service has a passing trouble"),
    pop3("POP3-LOGIN-DELAY", &["[login-delay]"], &THROTTLED, "the mailbox was opened too short a time ago"),
    smtp(
        "SMTP-535-5.7.139-TENANT",
        &["5.7.139", "disabled for the tenant"],
        &SMTP_TENANT,
        "SMTP AUTH is off for the whole tenant",
    ),
    smtp(
        "SMTP-535-5.7.139-MAILBOX",
        &["5.7.139", "disabled for the mailbox"],
        &SMTP_MAILBOX,
        "SMTP AUTH is off for this mailbox",
    ),
    smtp(
        "SMTP-535-5.7.139-SECURITY-DEFAULTS",
        &["5.7.139", "security defaults"],
        &SMTP_SECURITY_DEFAULTS,
        "security defaults of the tenant block the login",
    ),
    smtp(
        "SMTP-535-5.7.139-BASIC",
        &["5.7.139", "basic authentication is disabled"],
        &BASIC,
        "Exchange Online refused a plain password",
    ),
    smtp(
        "SMTP-535-5.7.139-CRITERIA",
        &["5.7.139", "did not meet the criteria"],
        &SMTP_POLICY,
        "a policy of the tenant forbids the login",
    ),
    smtp("SMTP-535-5.7.139", &["5.7.139"], &SMTP_TENANT, "SMTP AUTH is off or forbidden for this login"),
    smtp(
        "SMTP-550-5.7.30",
        &["5.7.30 "],
        &BASIC,
        "Exchange Online takes no plain password for client submission any more",
    ),
    smtp(
        "SMTP-535-5.7.3",
        &["535", "5.7.3"],
        &SMTP_REFUSED,
        "Exchange Online refused the token for this mailbox",
    ),
    smtp(
        "SMTP-501-5.5.127",
        &["5.5.127"],
        &HVE_EXPIRING,
        "High Volume Email refused the token as it soon runs out",
    ),
    smtp("SMTP-501-5.5.124", &["5.5.124"], &HVE_DATA, "High Volume Email could not read the login"),
    smtp("SMTP-530-5.7.57", &["5.7.57"], &NOT_SIGNED_IN, "the application sent mail without signing in"),
    smtp("SMTP-550-5.7.60", &["5.7.60"], &SEND_AS, "the mailbox may not send as this sender"),
    smtp(
        "SMTP-554-5.2.252",
        &["5.2.252"],
        &SEND_AS,
        "the mailbox may not send as this sender, as the message's From shows",
    ),
    smtp(
        "SMTP-554-SEND-AS-DENIED",
        &["sendasdenied"],
        &SEND_AS,
        "the message was refused as its sender is another mailbox",
    ),
    smtp(
        "SMTP-554-QUOTA",
        &["submissionquotaexceeded"],
        &QUOTA,
        "the mailbox has sent to as many recipients as a day allows",
    ),
    smtp(
        "SMTP-430-4.2.0",
        &["430", "4.2.0"],
        &LOGON_FAILED,
        "the application may sign in but not open this mailbox, or not yet",
    ),
    smtp(
        "SMTP-430-LOGON-FAILED",
        &["mapiexceptionlogonfailed"],
        &LOGON_FAILED,
        "the application may not open this mailbox, or not yet",
    ),
    smtp(
        "SMTP-432-4.3.2",
        &["432", "4.3.2"],
        &SMTP_CONCURRENT,
        "the mailbox has too many SMTP connections at once",
    ),
    smtp(
        "SMTP-421-4.4.2-RATE",
        &["4.4.2", "submission rate"],
        &SMTP_RATE,
        "the application submits messages too fast",
    ),
    smtp("SMTP-421-4.4.2", &["421", "4.4.2"], &SERVICE, "the mail service dropped the connection"),
    smtp("SMTP-421-4.3.2", &["421", "4.3.2"], &SERVICE, "the mail service is not active now"),
    smtp("SMTP-451-4.7.0", &["451", "4.7.0"], &SERVICE, "the mail service has a passing error"),
    smtp("SMTP-454-4.7.0", &["454", "4.7.0"], &SERVICE, "the mail service cannot check logins now"),
    smtp("SMTP-4XX", &["^4"], &SERVICE, "the mail service asks for patience"),
    ews(
        "EWS-IMPERSONATION",
        &["errorinvalidexchangeimpersonationheaderdata"],
        &EWS_IMPERSONATION,
        "the header `ExchangeImpersonation` and the kind of token do not fit",
    ),
    ews(
        "EWS-IMPERSONATE-DENIED",
        &["errorimpersonateuserdenied"],
        &EWS_IMPERSONATE,
        "the application may not act for this mailbox",
    ),
    ews(
        "EWS-SERVER-BUSY",
        &["errorserverbusy"],
        &THROTTLED,
        "Exchange Online limits the rate of this mailbox's requests",
    ),
    ews(
        "EWS-TOO-MANY-CONNECTIONS",
        &["errorexceededconnectioncount"],
        &THROTTLED,
        "the mailbox has too many EWS requests at once: 27 are let in",
    ),
    ews("EWS-401-2000003", &["2000003"], &EWS_AUDIENCE, "the token is for another resource than Exchange"),
    ews("EWS-401-2000004", &["2000004"], &EWS_TENANT, "Exchange does not know the token's tenant"),
    ews("EWS-401-2000008", &["2000008"], &EWS_PERMISSION, "the token carries no permission for EWS"),
    ews(
        "EWS-401-CLAIMS",
        &["insufficient_claims"],
        &EWS_CLAIMS,
        "Exchange Online wants a fresh sign-in with more proof",
    ),
    ews("EWS-401", &["^401"], &EWS_TOKEN, "Exchange refused the token"),
    ews(
        "EWS-403",
        &["^403"],
        &EWS_BLOCKED,
        "EWS is blocked for this application, tenant or mailbox; the token itself is good",
    ),
    ews("EWS-429", &["^429"], &THROTTLED, "Exchange Online limits the rate of requests"),
    ews("EWS-456", &["^456"], &EWS_LOCKED, "the account is locked and its owner must unlock it"),
    ews("EWS-503", &["^503"], &SERVICE, "Exchange Online cannot serve EWS now"),
    ews(
        "EWS-ERROR-PAGE",
        &["genericerrorpage"],
        &SERVICE,
        "Exchange Online sent its error page, which passes",
    ),
    ews("EWS-5XX", &["^5"], &SERVICE, "Exchange had an internal error"),
];

/// What is said where nothing fits.
static LAST_RESORTS: [Answer; 4] = [
    imap("IMAP-REFUSED", &[], &UNFAMILIAR, "the mail service refused the login with an unfamiliar answer"),
    pop3("POP3-REFUSED", &[], &UNFAMILIAR, "the mail service refused the login with an unfamiliar answer"),
    smtp("SMTP-REFUSED", &[], &UNFAMILIAR, "the mail service refused the login with an unfamiliar answer"),
    ews("EWS-REFUSED", &[], &UNFAMILIAR, "the mail service refused the request with an unfamiliar answer"),
];

/// What is said where nothing fits, and the mail service says that it passes.
static NOT_NOW: [Answer; 3] = [
    imap("IMAP-NOT-NOW", &[], &SERVICE, "the mail service takes no login now, for an unfamiliar reason"),
    pop3("POP3-NOT-NOW", &[], &SERVICE, "the mail service takes no login now, for an unfamiliar reason"),
    smtp("SMTP-NOT-NOW", &[], &SERVICE, "the mail service takes no login now, for an unfamiliar reason"),
];

fn last_resort(protocol: Protocol, is_temporary: bool) -> &'static Answer {
    let [imap, pop3, smtp, ews] = &LAST_RESORTS;
    let [imap_not_now, pop3_not_now, smtp_not_now] = &NOT_NOW;
    match (protocol, is_temporary) {
        (Protocol::Imap, false) => imap,
        (Protocol::Imap, true) => imap_not_now,
        (Protocol::Pop3, false) => pop3,
        (Protocol::Pop3, true) => pop3_not_now,
        (Protocol::Smtp, false) => smtp,
        (Protocol::Smtp, true) => smtp_not_now,
        (Protocol::Ews | Protocol::ActiveSync, _) => ews,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(protocol: Protocol, reply: &str) -> Cow<'static, str> {
        exchange(protocol, reply, None, &Context::default()).code
    }

    /// As they were seen on the wire; sources in the catalogue's head.
    const SEEN: [(Protocol, &str, &str); 40] = {
        use Protocol::{Ews, Imap, Pop3, Smtp};
        [
            (
                Smtp,
                "535 5.7.3 Authentication unsuccessful [AM0PR.eurprd.prod.outlook.com 2026 id]",
                "SMTP-535-5.7.3",
            ),
            (
                Smtp,
                "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant. Visit …",
                "SMTP-535-5.7.139-TENANT",
            ),
            (
                Smtp,
                "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox. Visit …",
                "SMTP-535-5.7.139-MAILBOX",
            ),
            (
                Smtp,
                "535 5.7.139 Authentication unsuccessful, the request did not meet the criteria to be authenticated",
                "SMTP-535-5.7.139-CRITERIA",
            ),
            (
                Smtp,
                "535 5.7.139 Authentication unsuccessful, user is locked by your organization's security defaults policy.",
                "SMTP-535-5.7.139-SECURITY-DEFAULTS",
            ),
            (
                Smtp,
                "535 5.7.139 Authentication unsuccessful, basic authentication is disabled.",
                "SMTP-535-5.7.139-BASIC",
            ),
            (Smtp, "535 5.7.139 something new", "SMTP-535-5.7.139"),
            (Smtp, "501 5.5.124 Invalid XOAUTH2 auth data", "SMTP-501-5.5.124"),
            (
                Smtp,
                "501 5.5.127 Invalid XOAUTH2 auth data - Token will expire soon error",
                "SMTP-501-5.5.127",
            ),
            (
                Smtp,
                "550 5.7.30 Basic authentication is not supported for Client Submission.",
                "SMTP-550-5.7.30",
            ),
            (Smtp, "530 5.7.57 Client not authenticated to send mail", "SMTP-530-5.7.57"),
            (Smtp, "421 4.3.2 Service not active", "SMTP-421-4.3.2"),
            (Smtp, "451 4.7.0 Temporary server error. Please try again later. PRX4", "SMTP-451-4.7.0"),
            (Smtp, "432 4.3.2 Concurrent connections limit exceeded.", "SMTP-432-4.3.2"),
            (Smtp, "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded", "SMTP-432-4.3.2"),
            (
                Smtp,
                "421 4.4.2 Message submission rate for this client has exceeded the configured limit",
                "SMTP-421-4.4.2-RATE",
            ),
            (Smtp, "421 4.4.2 Connection dropped", "SMTP-421-4.4.2"),
            (Smtp, "430 4.2.0 STOREDRV; mailbox logon failure; MapiExceptionLogonFailed", "SMTP-430-4.2.0"),
            (
                Smtp,
                "554 5.2.0 STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; Failed",
                "SMTP-554-SEND-AS-DENIED",
            ),
            (
                Smtp,
                "554 5.2.252 SendAsDenied; a@contoso.com not allowed to send as b@contoso.com; STOREDRV",
                "SMTP-554-5.2.252",
            ),
            (
                Smtp,
                "550 5.7.60 SMTP; Client does not have permissions to send as this sender",
                "SMTP-550-5.7.60",
            ),
            (Smtp, "554 5.2.0 STOREDRV; SubmissionQuotaExceededException", "SMTP-554-QUOTA"),
            (Smtp, "454 4.7.0 Temporary authentication failure", "SMTP-454-4.7.0"),
            (Smtp, "450 try again", "SMTP-4XX"),
            (Smtp, "599 what", "SMTP-REFUSED"),
            (Imap, "A1 NO AUTHENTICATE failed.", "IMAP-AUTHENTICATE-FAILED"),
            (
                Imap,
                "NO AUTHENTICATE failed. Error=\"AuthFailed:LogonDenied-None-OAuthLog:AuthExc_Auth Failed.\"",
                "IMAP-LOGON-DENIED",
            ),
            (Imap, "BAD User is authenticated but not connected.", "IMAP-NOT-CONNECTED"),
            (
                Imap,
                "A1 BAD Request is throttled. Suggested Backoff Time: 299910 milliseconds",
                "IMAP-THROTTLED",
            ),
            (Imap, "* BYE Session invalidated - AccessTokenExpired", "IMAP-TOKEN-EXPIRED"),
            (Imap, "* BYE Connection closed. 14", "IMAP-SESSION-CLOSED"),
            (Imap, "* BYE Connection is closed. 13", "IMAP-TIMED-OUT"),
            (Pop3, "-ERR Protocol error. Connection is closed. 10", "POP3-PROTOCOL-ERROR"),
            (
                Pop3,
                "-ERR Authentication failure: unknown user name or bad password.",
                "POP3-AUTHENTICATION-FAILURE",
            ),
            (Pop3, "-ERR Logon failure: unknown user name or bad password.", "POP3-LOGON-FAILURE"),
            (Ews, "403", "EWS-403"),
            (Ews, "429 Too Many Requests", "EWS-429"),
            (Ews, "503", "EWS-503"),
            (Ews, "456 Account locked", "EWS-456"),
            (Ews, "401", "EWS-401"),
        ]
    };

    #[test]
    fn answers_seen_on_the_wire_find_their_entry() {
        for (protocol, reply, expected) in SEEN {
            assert_eq!(code(protocol, reply), expected, "{reply}");
        }
    }

    #[test]
    fn an_answer_pasted_into_a_longer_text_is_found_too() {
        for (protocol, reply, expected) in SEEN {
            if protocol == Protocol::Ews || ["SMTP-4XX", "SMTP-REFUSED"].contains(&expected) {
                continue;
            }
            let found = find(&format!(
                "2026-11-24 10:00 error\n  javax.mail.AuthenticationFailedException: {reply}\n"
            ));
            assert!(found.iter().any(|entry| entry.code == expected), "{reply}: {found:?}");
        }
        assert_eq!(find("EWS request failed: HTTP 403, empty body")[0].code, "EWS-403");
        assert_eq!(find("HTTP/1.1 401\nx-ms-diagnostics: 2000003;reason=\"x\"")[0].code, "EWS-401-2000003");
        assert_eq!(find("smtp-535-5.7.3")[0].code, "SMTP-535-5.7.3");
    }

    #[test]
    fn a_diagnostics_header_tells_more_than_the_status() {
        let header = r#"2000003;reason="The audience claim value is invalid 'aud'.";error_category="invalid_resource""#;
        assert_eq!(exchange(Protocol::Ews, "401", Some(header), &Context::default()).code, "EWS-401-2000003");
        assert_eq!(
            exchange(Protocol::Ews, "401", Some("2000008;reason=\"…\""), &Context::default()).code,
            "EWS-401-2000008"
        );
    }

    #[test]
    fn a_waiting_time_in_the_answer_is_taken_over() {
        let story = exchange(
            Protocol::Imap,
            "NO Request is throttled. Suggested Backoff Time: 299910 milliseconds",
            None,
            &Context::default(),
        );
        let wait = Duration::from_millis(299_910);
        assert_eq!(story.passes, Passes::ByItself(Some(wait)));
        assert_eq!(story.refusal, Refusal::Unavailable { retry_after: Some(wait) });
        assert_eq!(backoff("suggested backoff time: 99999999999999 ms"), Some(LONGEST_BACKOFF));
        assert_eq!(backoff("suggested backoff time 0 ms"), None);
        assert_eq!(
            backoff(r#"<t:value name="backoffmilliseconds">300000</t:value>"#),
            Some(Duration::from_mins(5))
        );
    }

    #[test]
    fn no_entry_hides_behind_one_before_it() {
        for (at, entry) in ANSWERS.iter().enumerate() {
            let text = entry
                .needles
                .iter()
                .map(|needle| needle.trim_start_matches('^'))
                .collect::<Vec<_>>()
                .join(" ");
            let first = ANSWERS.iter().position(|other| {
                other.protocol == entry.protocol && other.needles.iter().all(|needle| holds(&text, needle))
            });
            // Needles that are a status only stand for any answer with it.
            assert_eq!(first, Some(at), "{} is hidden by {:?}", entry.code, first.map(|at| ANSWERS[at].code));
        }
    }

    #[test]
    fn the_ews_entry_names_the_switches_and_the_end() {
        let context = Context { user: "a@contoso.com", application: "app-1", ..Context::default() };
        let remedy = exchange(Protocol::Ews, "403", None, &context).remedy;
        for part in ["-EwsEnabled $true", "EwsAllowedAppIDs", "`app-1`", "a@contoso.com", "1 April 2027"] {
            assert!(remedy.contains(part), "{part} is not in {remedy}");
        }
    }

    #[test]
    fn what_upstream_calls_temporary_is_never_told_as_permanent() {
        for (protocol, reply, code) in [
            (Protocol::Imap, "BYE Connection is closed. 14", "IMAP-BYE"),
            (Protocol::Imap, "NO [UNAVAILABLE] of no kind that anybody knows", "IMAP-NOT-NOW"),
            (Protocol::Pop3, "-ERR of no kind that anybody knows", "POP3-NOT-NOW"),
            (Protocol::Smtp, "of no kind that anybody knows", "SMTP-NOT-NOW"),
        ] {
            let story = not_now(protocol, reply, &Context::default());
            assert_eq!(story.code, code, "{reply}");
            assert!(matches!(story.refusal, Refusal::Unavailable { .. }), "{reply}: {story:?}");
            assert!(matches!(story.passes, Passes::ByItself(_)), "{reply}: {story:?}");
        }
        // what is known to need somebody is told so, however it was said
        let story = not_now(Protocol::Imap, "BYE Connection closed. 14", &Context::default());
        assert_eq!((story.code.as_ref(), story.passes), ("IMAP-SESSION-CLOSED", Passes::Never));
    }
}
