//! The identity provider's answers: the class by `error` and HTTP status, then the AADSTS code.

use std::borrow::Cow;
use std::time::Duration;

use super::entry::{Context, Verdict, admin};
use crate::explain::{CauseKind, Explanation, Fault, Passes, Refusal};

/// Explains an answer of the token endpoint.
///
/// `error` and `http_status` give the class; the first of `codes` that is known refines it. An answer that
/// is temporary by its class (429, 5xx, `temporarily_unavailable`) stays so whatever the code says: a service
/// in trouble has judged nobody. A code that is not known is shown, and explained by its class.
pub fn entra(error: Option<&str>, http_status: u16, codes: &[u32], context: &Context<'_>) -> Explanation {
    let class = class_of(error, http_status);
    let known = codes.iter().find_map(|&code| row(code));
    match known {
        Some(row) if class.passes() && !row.passes() => {
            let class = class.row();
            let what = format!("{}, and says AADSTS{}: {}", class.what, row.code, row.what);
            class.verdict(context).explain(row.name(), what, Some(row.code), context)
        }
        Some(row) => row.explain(context),
        None => {
            let class = class.row();
            match codes.first() {
                Some(&code) => class.verdict(context).explain(
                    name(code),
                    format!("{}, with the unfamiliar code `AADSTS{code}`", class.what),
                    Some(code),
                    context,
                ),
                None => class.explain(context),
            }
        }
    }
}

/// What kind of answer it is, by what Microsoft promises: `error` (RFC 6749 §5.2) and the HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// 429.
    Throttled,
    /// 5xx, 408, `temporarily_unavailable`, `server_error`.
    Temporary,
    /// The request or the registration: `invalid_client`, `unauthorized_client`, `invalid_scope`, ….
    Configuration,
    /// `invalid_grant`: the password, the refresh token, or a policy.
    Grant,
    /// A person is needed: `interaction_required`, `login_required`.
    Interaction,
    /// `consent_required`.
    Consent,
    /// A policy: `access_denied`.
    Denied,
    /// The device login is under way or over: `authorization_pending`, `expired_token`, ….
    Device,
    /// Nothing of these.
    Unknown,
}

impl Class {
    /// Whether asking later helps.
    pub fn passes(self) -> bool {
        matches!(self, Self::Throttled | Self::Temporary)
    }

    fn row(self) -> &'static ClassRow {
        // Every class stands in the table (a test looks); the last row is for the unknown.
        CLASSES.iter().find(|row| row.class == self).unwrap_or(&UNKNOWN)
    }
}

/// The class of an answer.
///
/// ```
/// use mailkey::token::catalogue::{Class, class_of};
/// assert_eq!(class_of(Some("invalid_grant"), 400), Class::Grant);
/// assert_eq!(class_of(Some("invalid_grant"), 503), Class::Temporary);
/// ```
pub fn class_of(error: Option<&str>, http_status: u16) -> Class {
    match http_status {
        429 => Class::Throttled,
        408 | 500..=599 => Class::Temporary,
        _ => error.and_then(class_named).unwrap_or(Class::Unknown),
    }
}

/// All classes, for the catalogue's page.
pub(super) fn classes() -> Vec<Explanation> {
    CLASSES.iter().map(|row| row.explain(&Context::default())).collect()
}

/// All codes, for the catalogue's page.
pub(super) fn codes() -> Vec<Explanation> {
    CODES.iter().map(|row| row.explain(&Context::default())).collect()
}

/// `AADSTSnnnnn` anywhere; a bare number where it is all there is; else `error` names and class codes.
pub(super) fn find(text: &str) -> Vec<Explanation> {
    let numbers = numbers(text);
    if !numbers.is_empty() {
        let error = words(text).find(|word| class_named(word).is_some());
        return numbers.into_iter().map(|code| entra(error, 400, &[code], &Context::default())).collect();
    }
    if let Some(row) = text.trim().parse().ok().and_then(row) {
        return vec![row.explain(&Context::default())];
    }
    CLASSES
        .iter()
        .filter(|class| {
            words(text).any(|word| class.errors.contains(&word) || word.eq_ignore_ascii_case(class.code))
        })
        .map(|class| class.explain(&Context::default()))
        .collect()
}

fn class_named(error: &str) -> Option<Class> {
    CLASSES.iter().find(|row| row.errors.contains(&error)).map(|row| row.class)
}

fn row(code: u32) -> Option<&'static Row> {
    CODES.binary_search_by_key(&code, |row| row.code).ok().and_then(|at| CODES.get(at))
}

fn name(code: u32) -> Cow<'static, str> {
    Cow::Owned(format!("AADSTS{code}"))
}

/// Every number behind `AADSTS`, each once, in order.
fn numbers(text: &str) -> Vec<u32> {
    let upper = text.to_ascii_uppercase();
    let mut found = Vec::new();
    for behind in upper.split("AADSTS").skip(1) {
        let end = behind.find(|c: char| !c.is_ascii_digit()).unwrap_or(behind.len());
        if let Some(number) = behind.get(..end).and_then(|digits| digits.parse().ok())
            && !found.contains(&number)
            && found.len() < MAX_FOUND
        {
            found.push(number);
        }
    }
    found
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-')).filter(|word| !word.is_empty())
}

/// More codes than this in one text are not explained.
const MAX_FOUND: usize = 20;

/// A class, with what is said where no known code refines it.
struct ClassRow {
    class: Class,
    code: &'static str,
    errors: &'static [&'static str],
    what: &'static str,
    verdict: &'static Verdict,
}

impl ClassRow {
    /// `invalid_grant` says one thing of a password and another of a refresh token.
    fn verdict(&self, context: &Context<'_>) -> &'static Verdict {
        match (self.class, context.grant) {
            (Class::Grant, "password") => &REFUSED_PASSWORD,
            (Class::Grant, "device-code" | "authorization-code" | "refresh-token") => &SIGN_IN_AGAIN,
            _ => self.verdict,
        }
    }

    fn explain(&self, context: &Context<'_>) -> Explanation {
        self.verdict(context).explain(Cow::Borrowed(self.code), self.what.to_owned(), None, context)
    }
}

/// A code of the table.
struct Row {
    code: u32,
    verdict: &'static Verdict,
    what: &'static str,
}

impl Row {
    fn passes(&self) -> bool {
        matches!(self.verdict.passes, Passes::ByItself(_))
    }

    fn name(&self) -> Cow<'static, str> {
        name(self.code)
    }

    fn explain(&self, context: &Context<'_>) -> Explanation {
        self.verdict.explain(self.name(), self.what.to_owned(), Some(self.code), context)
    }
}

const fn aadsts(code: u32, verdict: &'static Verdict, what: &'static str) -> Row {
    Row { code, verdict, what }
}

const UNKNOWN: ClassRow = ClassRow {
    class: Class::Unknown,
    code: "ENTRA-UNKNOWN",
    errors: &[],
    what: "the identity provider refused without an `error` that is known here",
    verdict: &UNFAMILIAR,
};

static CLASSES: [ClassRow; 9] = [
    ClassRow {
        class: Class::Throttled,
        code: "ENTRA-THROTTLED",
        errors: &["too_many_requests"],
        what: "the identity provider limits the rate of our requests",
        verdict: &THROTTLED,
    },
    ClassRow {
        class: Class::Temporary,
        code: "ENTRA-UNAVAILABLE",
        errors: &["temporarily_unavailable", "server_error"],
        what: "the identity provider is in trouble and judged nothing",
        verdict: &SERVICE,
    },
    ClassRow {
        class: Class::Configuration,
        code: "ENTRA-CONFIGURATION",
        errors: &[
            "invalid_client",
            "unauthorized_client",
            "invalid_scope",
            "invalid_resource",
            "invalid_request",
            "unsupported_grant_type",
            "unsupported_response_type",
        ],
        what: "the identity provider does not accept the application or the request",
        verdict: &SETTINGS,
    },
    ClassRow {
        class: Class::Grant,
        code: "ENTRA-INVALID-GRANT",
        errors: &["invalid_grant"],
        what: "the identity provider refused the sign-in",
        verdict: &UNFAMILIAR_GRANT,
    },
    ClassRow {
        class: Class::Interaction,
        code: "ENTRA-INTERACTION",
        errors: &["interaction_required", "login_required", "account_selection_required"],
        what: "the identity provider wants a person at a browser for this sign-in",
        verdict: &MFA,
    },
    ClassRow {
        class: Class::Consent,
        code: "ENTRA-CONSENT",
        errors: &["consent_required"],
        what: "nobody has consented to the application's permissions",
        verdict: &CONSENT,
    },
    ClassRow {
        class: Class::Denied,
        code: "ENTRA-DENIED",
        errors: &["access_denied"],
        what: "the identity provider denies the access",
        verdict: &CONDITIONAL_ACCESS,
    },
    ClassRow {
        class: Class::Device,
        code: "ENTRA-DEVICE-LOGIN",
        errors: &[
            "authorization_pending",
            "authorization_declined",
            "slow_down",
            "expired_token",
            "code_expired",
            "bad_verification_code",
        ],
        what: "the device login is not finished, was declined, or took too long",
        verdict: &DEVICE_LOGIN,
    },
    UNKNOWN,
];

// What is to be done. Portal pages as they are named in the Entra admin center (entra.microsoft.com).

static WRONG_PASSWORD: Verdict = Verdict::permanent(
    Fault::MailClient,
    Refusal::BadCredentials,
    "type user name and password anew in the mail client and try them once at https://outlook.office.com; if they are \
     right there, {user} is likely a federated user: turn on password hash synchronization and a home realm \
     discovery policy with `AllowCloudPasswordValidation`, or use another grant",
);
static NO_SUCH_USER: Verdict = Verdict::permanent(
    Fault::MailClient,
    Refusal::BadCredentials,
    "compare {user} with the user principal name under Entra admin center > Users > All users, and `directory-id` \
     (now {directory}) with the tenant that holds it; the mail address may differ from the user principal name",
);
static NO_PASSWORD: Verdict = Verdict::permanent(
    Fault::Account,
    Refusal::BadCredentials,
    "set a password for {user} under Entra admin center > Users > Reset password, or turn on password hash \
     synchronization in Microsoft Entra Connect",
);
static PASSWORD_TOO_LONG: Verdict = Verdict::permanent(
    Fault::MailClient,
    Refusal::BadCredentials,
    "set a password of at most 256 characters for {user}, then save it in the mail client",
);
static EXPIRED_PASSWORD: Verdict = Verdict::permanent(
    Fault::Account,
    Refusal::PasswordExpired,
    "sign in as {user} at https://portal.office.com, set a new password, then save it in the mail client; for a service mailbox \
     stop the expiry: `Update-MgUser -UserId {USER} -PasswordPolicies DisablePasswordExpiration`",
);
static EXPIRED_PASSWORD_AD: Verdict = Verdict::permanent(
    Fault::Account,
    Refusal::PasswordExpired,
    "set a new password for {user} in the on-premises Active Directory, wait for its synchronization, then save it in \
     the mail client",
);
static PASSWORD_RESET: Verdict = Verdict::permanent(
    Fault::Account,
    Refusal::PasswordExpired,
    "sign in as {user} at https://portal.office.com and set the new password that it asks for, then save it in the mail \
     client",
);
static LOCKED: Verdict = Verdict {
    fault: Fault::Account,
    passes: Passes::ByItself(Some(LOCKED_FOR)),
    refusal: Refusal::HeldBack { retry_after: LOCKED_FOR },
    remedy: "stop whatever keeps sending a wrong password for {user} (an old device, a second application), then wait; look \
             under Entra admin center > Users > Sign-in logs at `Failure reason` to see whether the account or our IP \
             address is held, and set a new password there to unlock at once",
};
/// The first lock lasts 60 seconds and grows; every attempt inside prolongs it, so we wait longer.
const LOCKED_FOR: Duration = Duration::from_secs(300);

static DISABLED_ACCOUNT: Verdict = Verdict::permanent(
    Fault::Account,
    admin(CauseKind::Account),
    "turn on `Account enabled` for {user} under Entra admin center > Users > Properties, or run \
     `Update-MgUser -UserId {USER} -AccountEnabled:$true`; a shared mailbox is disabled on purpose: sign in as a \
     delegate and set `mailbox`, or use `grant: client-credentials`",
);
static FOREIGN_ACCOUNT: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Account),
    "set `directory-id` (now {directory}) to the home tenant of {user}; guests and personal accounts cannot sign in \
     with a password grant: give them an account of the tenant's own, or use `grant: device-code`",
);
static FEDERATION: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Account),
    "mend the federation of the domain of {user}: `Get-MgDomainFederationConfiguration -DomainId <domain>`, or turn the \
     domain into a managed one",
);
static MFA: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::MultiFactor),
    "exclude {user} from multi-factor authentication for this application: Entra admin center > Protection > Conditional \
     Access > Policies > Users > Exclude, and per-user MFA off; or use `grant: client-credentials`, which needs none, \
     or `grant: device-code` and `mailkey login`",
);
static CONDITIONAL_ACCESS: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Policy),
    "find the policy under Entra admin center > Users > Sign-in logs > Conditional Access for {user} and {application}, then \
     exclude the user, or this server's address as a named location; or use `grant: client-credentials`",
);
static SECURITY_DEFAULTS: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Policy),
    "turn off security defaults (Entra admin center > Identity > Overview > Properties > Manage security defaults) and put \
     Conditional Access policies in their place, or use `grant: client-credentials`",
);
static RISK: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Policy),
    "look at {user} under Entra admin center > Protection > Identity Protection > Risky users and dismiss the risk, or \
     set a new password",
);
static DEVICE_POLICY: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Policy),
    "exclude {user} or {application} from the Conditional Access policy that asks for a managed device (Entra admin \
     center > Protection > Conditional Access > Policies): a proxy is none; or use `grant: client-credentials`",
);
static TENANT_RESTRICTION: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Policy),
    "allow {directory} and {application} under Entra admin center > External Identities > Cross-tenant access settings, \
     and in the header `Restrict-Access-To-Tenants` that the corporate proxy adds",
);
static ASSIGNMENT: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Policy),
    "assign {user} to {application} under Entra admin center > Enterprise applications > Users and groups, or set \
     `Assignment required` to `No` under Properties",
);
static LOGON_HOURS: Verdict = Verdict {
    fault: Fault::Account,
    passes: Passes::ByItself(None),
    refusal: admin(CauseKind::Policy),
    remedy: "widen the logon hours of {user} in the on-premises Active Directory, or wait for them",
};
static CONSENT: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Consent),
    "grant admin consent: Entra admin center > Enterprise applications > {application} > Permissions > Grant admin consent, or \
     open `https://login.microsoftonline.com/{DIRECTORY}/adminconsent?client_id={APPLICATION}` as an administrator",
);
static PERMISSION: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "add the permission of `Office 365 Exchange Online` that `scope` asks for (IMAP.AccessAsUser.All, POP.AccessAsUser.All, \
     SMTP.Send, EWS.AccessAsUser.All) to {application} under Entra admin center > App registrations > API \
     permissions, then grant admin consent",
);
static SIGN_IN_AGAIN: Verdict =
    Verdict::permanent(Fault::Account, admin(CauseKind::SignIn), "run `mailkey login` for {user}");
static SIGN_IN_FREQUENCY: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::SignIn),
    "run `mailkey login` for {user}; to keep it from coming back exclude the user from the policy that sets `Sign-in \
     frequency` (Entra admin center > Protection > Conditional Access), or use `grant: client-credentials`",
);
static DEVICE_LOGIN: Verdict = Verdict::permanent(
    Fault::Account,
    admin(CauseKind::SignIn),
    "run `mailkey login` for {user} again and enter the code that it shows within 15 minutes",
);
static APPLICATION_MISSING: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "compare `client-id` ({application}) with Application (client) ID under Entra admin center > App registrations, and \
     `directory-id` ({directory}) with the tenant in which it is registered or has consent",
);
static APPLICATION_DISABLED: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Application),
    "set `Enabled for users to sign-in` to `Yes` for {application} under Entra admin center > Enterprise applications > \
     Properties",
);
static WRONG_SECRET: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "put the Value of a client secret, not its Secret ID, into `client-secret-file`; make a new one under Entra admin \
     center > App registrations > {application} > Certificates & secrets",
);
static EXPIRED_SECRET: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "make a new client secret under Entra admin center > App registrations > {application} > Certificates & secrets \
     and put its Value into `client-secret-file`",
);
static MISSING_SECRET: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "set `Allow public client flows` to `Yes` for {application} under Entra admin center > App registrations > \
     Authentication, or give the proxy a `client-secret-file` or `client-certificate-file`",
);
static NEEDLESS_SECRET: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "remove `client-secret-file`, `client-certificate-file` and `federated-token-file` from the `oauth` section: \
     {application} is a public client",
);
static ASSERTION: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "upload the certificate of `client-certificate-file` under Entra admin center > App registrations > {application} > \
     Certificates & secrets, check that `client-key-file` is its key and that it has not expired, and set this machine's clock",
);
static FEDERATED_CREDENTIAL: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "make issuer, subject and audience of the federated credential (Entra admin center > App registrations > \
     {application} > Certificates & secrets > Federated credentials) equal to those of the token in `federated-token-file`",
);
static SCOPE: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "set `scope` to permissions of one resource, `https://outlook.office.com/.default`, or remove the key: the proxy \
     then asks for what each protocol needs",
);
static APP_SCOPE: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "set `scope` to `https://outlook.office365.com/.default`, not percent-encoded, or remove the key",
);
static RESOURCE: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "compare the host name in `scope` with the `cloud` of the tenant (`https://outlook.office.com` in the global one), and \
     check that {directory} has Exchange Online licences",
);
static GRANT: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "choose another `grant` than {grant} for this account; `password`, `client-credentials`, `device-code` and \
     `authorization-code` are there",
);
static TENANT: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "set `directory-id` (now {directory}) to Directory (tenant) ID from Entra admin center > Identity > Overview, and \
     `cloud` to the one in which the tenant lives",
);
static CLOUD: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "set `cloud` to the national cloud in which the tenant {directory} lives (us-gov-gcc-high, us-gov-dod or china), or back to \
     `global`, and remove a `tenant-authority` that says otherwise",
);
static REDIRECT: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "add `http://localhost` as a redirect URI of the platform `Mobile and desktop applications` to {application} under Entra \
     admin center > App registrations > Authentication",
);
static MALFORMED: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "compare `tenant-authority`, `directory-id`, `client-id` and `scope` with the application's registration, character by \
     character; if they are right, report the line of the log",
);
static SETTINGS: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "compare `client-id`, `directory-id`, `scope` and the client secret or certificate with the registration of \
     {application} under Entra admin center > App registrations",
);
static UNFAMILIAR_GRANT: Verdict = Verdict::permanent(
    Fault::Account,
    admin(CauseKind::Account),
    "look at the sign-in of {user} under Entra admin center > Users > Sign-in logs",
);
static REFUSED_PASSWORD: Verdict = Verdict::permanent(
    Fault::Account,
    Refusal::BadCredentials,
    "try user name and password once in a browser, then look at the sign-in of {user} under Entra admin center > Users > \
     Sign-in logs",
);
static UNFAMILIAR: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "look at the sign-in of {user} under Entra admin center > Users > Sign-in logs, and check that `tenant-authority` leads \
     to an identity provider and not to another web server",
);
static LOOP: Verdict = Verdict::passing(
    Fault::Mailkey,
    300,
    "wait five minutes; if it comes back, look for a second program that asks with the same application, and report the \
     lines of the log",
);
static THROTTLED: Verdict = Verdict::passing(
    Fault::Provider,
    60,
    "wait; if it comes back, look for another program that asks for tokens with the same application",
);
static SERVICE: Verdict =
    Verdict::passing(Fault::Provider, 0, "wait, and look at https://status.cloud.microsoft if it lasts");
static UNRETRYABLE: Verdict = Verdict::passing(
    Fault::Provider,
    0,
    "wait, look at https://status.cloud.microsoft, and open a support case at Microsoft with the correlation ID of the \
     log line if it lasts for hours",
);
static PASS_THROUGH: Verdict = Verdict::passing(
    Fault::Tenant,
    0,
    "check the pass-through authentication agents (Entra admin center > Identity > Hybrid management > Microsoft Entra Connect) and \
     that they reach a domain controller",
);
static CLOCK_SKEW: Verdict = Verdict {
    fault: Fault::Tenant,
    passes: Passes::Never,
    refusal: admin(CauseKind::Account),
    remedy: "set the clocks of the pass-through authentication agents and the domain controllers by one time server",
};

/// Sorted by code; one row a code.
#[expect(clippy::unreadable_literal, reason = "they are names, and are searched for as they stand")]
static CODES: &[Row] = &[
    aadsts(
        16000,
        &FOREIGN_ACCOUNT,
        "the account does not exist in this tenant, or several accounts are signed in",
    ),
    aadsts(28000, &SCOPE, "`scope` names more than one resource"),
    aadsts(28002, &SCOPE, "`scope` is not one that this resource has"),
    aadsts(28003, &SCOPE, "`scope` is empty"),
    aadsts(50000, &UNRETRYABLE, "the identity provider could not issue a token"),
    aadsts(50001, &RESOURCE, "the resource in `scope` does not exist in this tenant or is disabled"),
    aadsts(50002, &TENANT_RESTRICTION, "tenant restrictions of the network forbid this tenant"),
    aadsts(50011, &REDIRECT, "the redirect URI of the login is not registered for the application"),
    aadsts(50012, &ASSERTION, "the client assertion was refused"),
    aadsts(50013, &ASSERTION, "the client assertion does not fit: its signature, issuer or audience"),
    aadsts(50014, &FOREIGN_ACCOUNT, "the guest has not accepted the invitation to this tenant"),
    aadsts(
        50020,
        &FOREIGN_ACCOUNT,
        "the user belongs to another identity provider and is no guest of this tenant",
    ),
    aadsts(50027, &ASSERTION, "the client assertion is no well-formed token"),
    aadsts(50033, &SERVICE, "the identity provider had a transient error"),
    aadsts(50034, &NO_SUCH_USER, "the user does not exist in this tenant"),
    aadsts(50048, &ASSERTION, "the subject of the client assertion is not its issuer"),
    aadsts(50052, &PASSWORD_TOO_LONG, "the password is longer than 256 characters"),
    aadsts(
        50053,
        &LOCKED,
        "the account is locked after too many wrong passwords, or the sign-in came from an address with a bad name",
    ),
    aadsts(50055, &EXPIRED_PASSWORD, "the password has expired"),
    aadsts(50056, &NO_PASSWORD, "the directory holds no password for the user"),
    aadsts(50057, &DISABLED_ACCOUNT, "the account is disabled"),
    aadsts(50058, &SIGN_IN_AGAIN, "nobody is signed in, and the request allowed no dialogue"),
    aadsts(50059, &TENANT, "neither the request nor the user name says which tenant is meant"),
    aadsts(50064, &WRONG_PASSWORD, "the user name or password could not be validated"),
    aadsts(50072, &MFA, "the user must enrol for multi-factor authentication first"),
    aadsts(50074, &MFA, "strong authentication is needed and was not given"),
    aadsts(
        50076,
        &MFA,
        "multi-factor authentication is needed, by a change of policy or because of the place",
    ),
    aadsts(50078, &MFA, "the multi-factor authentication given earlier has run out"),
    aadsts(
        50079,
        &MFA,
        "the user must enrol for multi-factor authentication first, by a change of policy or because of the place",
    ),
    aadsts(50085, &SIGN_IN_AGAIN, "the refresh token needs a new login of the user"),
    aadsts(50087, &SERVICE, "the strong authentication had a transient error"),
    aadsts(50088, &SERVICE, "the limit on telephone calls for multi-factor authentication is reached"),
    aadsts(50089, &SIGN_IN_AGAIN, "the login took too long and its token ran out"),
    aadsts(50097, &DEVICE_POLICY, "a policy wants the device to authenticate itself"),
    aadsts(50105, &ASSIGNMENT, "the application wants assigned users, and this user is not assigned"),
    aadsts(50107, &FEDERATION, "the federation that the user's domain points to does not exist"),
    aadsts(50125, &PASSWORD_RESET, "the sign-in stopped for a password reset or registration"),
    aadsts(50126, &WRONG_PASSWORD, "the user name or password is wrong"),
    aadsts(50128, &TENANT, "the domain of the user name belongs to no tenant"),
    aadsts(
        50131,
        &CONDITIONAL_ACCESS,
        "a Conditional Access policy failed: state of the device, suspicious activity or place",
    ),
    aadsts(50132, &SIGN_IN_AGAIN, "the session ended as the password has expired or was changed"),
    aadsts(50133, &SIGN_IN_AGAIN, "the session ended as the password has expired or was changed lately"),
    aadsts(50135, &PASSWORD_RESET, "a password change is needed because of a risk to the account"),
    aadsts(50142, &PASSWORD_RESET, "a password change is needed by a Conditional Access policy"),
    aadsts(50144, &EXPIRED_PASSWORD_AD, "the password has expired in the on-premises Active Directory"),
    aadsts(50155, &DEVICE_POLICY, "the device could not authenticate itself"),
    aadsts(
        50158,
        &MFA,
        "a challenge of another provider (a third-party second factor, terms of use) was not met",
    ),
    aadsts(50166, &SERVICE, "the external claims provider failed or limits the rate"),
    aadsts(
        50173,
        &SIGN_IN_AGAIN,
        "the sign-in was revoked, as by a password change, and a new one is needed",
    ),
    aadsts(50187, &DEVICE_POLICY, "the device could not authenticate itself by its certificate"),
    aadsts(50194, &TENANT, "the application is for one tenant, and was asked for without naming it"),
    aadsts(50196, &LOOP, "the identity provider saw the same request too often and calls it a loop"),
    aadsts(50197, &FOREIGN_ACCOUNT, "the user is not found, as two identities are in conflict"),
    aadsts(51004, &FOREIGN_ACCOUNT, "the user account does not exist in this tenant"),
    aadsts(53000, &DEVICE_POLICY, "a Conditional Access policy wants a compliant device"),
    aadsts(53001, &DEVICE_POLICY, "a Conditional Access policy wants a domain-joined device"),
    aadsts(53002, &DEVICE_POLICY, "a Conditional Access policy wants an approved client application"),
    aadsts(53003, &CONDITIONAL_ACCESS, "a Conditional Access policy blocks the sign-in"),
    aadsts(
        53004,
        &CONDITIONAL_ACCESS,
        "suspicious activity blocks the user's enrolment for multi-factor authentication",
    ),
    aadsts(
        53010,
        &CONDITIONAL_ACCESS,
        "multi-factor methods may only be set up from trusted places or devices",
    ),
    aadsts(53011, &RISK, "the user is blocked because of a risk in the home tenant"),
    aadsts(54005, &SIGN_IN_AGAIN, "the authorization code was already redeemed"),
    aadsts(65001, &CONSENT, "nobody has consented to the application in this tenant"),
    aadsts(65004, &CONSENT, "the user declined to consent to the application"),
    aadsts(65005, &PERMISSION, "the application's registration lacks the resource that `scope` asks for"),
    aadsts(
        70000,
        &SIGN_IN_AGAIN,
        "the grant is not valid: the refresh token is broken, revoked, or for another scope",
    ),
    aadsts(70001, &APPLICATION_DISABLED, "the application is disabled or not installed in this tenant"),
    aadsts(70002, &WRONG_SECRET, "the client secret could not be validated"),
    aadsts(70003, &GRANT, "the grant is not supported"),
    aadsts(
        70008,
        &SIGN_IN_AGAIN,
        "the refresh token or authorization code has run out, or was not used for too long",
    ),
    aadsts(70011, &SCOPE, "`scope` is not valid"),
    aadsts(70012, &SERVICE, "the sign-in service for personal accounts had an error"),
    aadsts(70016, &DEVICE_LOGIN, "the device login waits for the user to enter the code"),
    aadsts(70018, &DEVICE_LOGIN, "the device code is not known"),
    aadsts(70019, &DEVICE_LOGIN, "the device code has expired"),
    aadsts(70020, &DEVICE_LOGIN, "the device code has expired before the user entered it"),
    aadsts(
        70021,
        &FEDERATED_CREDENTIAL,
        "no federated credential of the application matches the token presented",
    ),
    aadsts(70043, &SIGN_IN_FREQUENCY, "the refresh token ran out by the policy's sign-in frequency"),
    aadsts(80001, &PASS_THROUGH, "the pass-through authentication agent cannot reach Active Directory"),
    aadsts(80002, &PASS_THROUGH, "the pass-through authentication agent got no answer in time"),
    aadsts(80005, &PASS_THROUGH, "the pass-through authentication agent's answer could not be read"),
    aadsts(80007, &PASS_THROUGH, "the pass-through authentication agent cannot check the password"),
    aadsts(80010, &PASS_THROUGH, "the pass-through authentication agent cannot decrypt the password"),
    aadsts(80012, &LOGON_HOURS, "the user signed in outside the logon hours that Active Directory allows"),
    aadsts(
        80013,
        &CLOCK_SKEW,
        "the clocks of the pass-through authentication agent and Active Directory are too far apart",
    ),
    aadsts(80014, &PASS_THROUGH, "the pass-through authentication agent took too long"),
    aadsts(90002, &TENANT, "the tenant does not exist, or lives in another cloud"),
    aadsts(90004, &MALFORMED, "the request is not well formed"),
    aadsts(90006, &SERVICE, "the identity provider has a service error that passes"),
    aadsts(
        90008,
        &CONSENT,
        "the user or an administrator has not consented to the application's use of Exchange Online",
    ),
    aadsts(90012, &SERVICE, "the request timed out at the identity provider"),
    aadsts(90013, &MALFORMED, "a value of the request is not valid"),
    aadsts(90014, &MALFORMED, "a field of the request is missing"),
    aadsts(90019, &TENANT, "the request does not say which tenant is meant"),
    aadsts(90023, &MALFORMED, "the request is not one that the identity provider serves"),
    aadsts(90024, &SERVICE, "the identity provider is over its budget of requests for now"),
    aadsts(90033, &SERVICE, "a service behind the identity provider is unavailable for now"),
    aadsts(
        90036,
        &UNRETRYABLE,
        "the identity provider had an unexpected error that trying again does not mend",
    ),
    aadsts(90038, &CLOUD, "the tenant lives in a national cloud"),
    aadsts(90043, &CLOUD, "the national cloud's authority is not configured"),
    aadsts(90051, &CLOUD, "the national cloud's identifier in the request is not valid"),
    aadsts(90055, &THROTTLED, "the tenant has too many requests under way"),
    aadsts(
        90072,
        &FOREIGN_ACCOUNT,
        "the user of another identity provider must first be added to the tenant as a guest",
    ),
    aadsts(90090, &SERVICE, "the directory had a transient error"),
    aadsts(90091, &SERVICE, "the directory gave an answer that could not be used"),
    aadsts(90092, &UNRETRYABLE, "the directory had an error that trying again does not mend"),
    aadsts(90093, &CONSENT, "the directory denies the application the access for want of consent"),
    aadsts(90094, &CONSENT, "an administrator must consent to the application"),
    aadsts(90095, &CONSENT, "an administrator must consent to the application: a request for it can be sent"),
    aadsts(90099, &CONSENT, "the application is not authorized in the tenant"),
    aadsts(90100, &MALFORMED, "a parameter of the request is empty or not valid"),
    aadsts(90119, &DEVICE_LOGIN, "the user code is missing or wrong"),
    aadsts(90120, &DEVICE_LOGIN, "the device login was authorized or declined already"),
    aadsts(90124, &TENANT, "the resource is not served over `/common` or `/consumers`"),
    aadsts(90130, &TENANT, "the application is not served over `/common` or `/consumers`"),
    aadsts(500011, &RESOURCE, "the resource in `scope` is not found in this tenant"),
    aadsts(500021, &TENANT_RESTRICTION, "tenant restrictions deny the access to this tenant"),
    aadsts(500022, &TENANT_RESTRICTION, "the tenant restriction header has a value that is not valid"),
    aadsts(500112, &REDIRECT, "the redirect URI differs from the one with which the code was asked for"),
    aadsts(
        500133,
        &ASSERTION,
        "the client assertion is outside its time range: this machine's clock may be wrong",
    ),
    aadsts(500208, &FOREIGN_ACCOUNT, "the domain is no login domain for this kind of account"),
    aadsts(500212, &TENANT_RESTRICTION, "the home tenant's policy forbids access to this tenant"),
    aadsts(500213, &TENANT_RESTRICTION, "this tenant's policy forbids access to the user's home tenant"),
    aadsts(501481, &SIGN_IN_AGAIN, "the code verifier does not fit the code challenge of the login"),
    aadsts(530032, &CONDITIONAL_ACCESS, "a security policy of the tenant blocks the sign-in"),
    aadsts(
        530034,
        &CONDITIONAL_ACCESS,
        "a delegated administrator is blocked from the tenant, as its account is at risk",
    ),
    aadsts(530035, &SECURITY_DEFAULTS, "security defaults of the tenant block the sign-in"),
    aadsts(
        650052,
        &PERMISSION,
        "the tenant has no subscription to, or has not enabled, the service that the application needs",
    ),
    aadsts(
        650054,
        &PERMISSION,
        "the application asks for permissions of a resource that was removed or is not available",
    ),
    aadsts(
        650056,
        &PERMISSION,
        "the application's registration lacks permissions, or nobody consented to them",
    ),
    aadsts(650057, &PERMISSION, "the resource in `scope` is not listed in the application's registration"),
    aadsts(700005, &TENANT, "the authorization code was issued for another tenant"),
    aadsts(700011, &APPLICATION_MISSING, "the application is not found in this tenant"),
    aadsts(700016, &APPLICATION_MISSING, "the application is not found in this tenant"),
    aadsts(700020, &MFA, "this grant needs a person at a browser"),
    aadsts(700022, &SCOPE, "`scope` names more than one resource"),
    aadsts(700023, &SCOPE, "`scope` names no resource"),
    aadsts(
        700024,
        &ASSERTION,
        "the client assertion is outside its time range: this machine's clock may be wrong",
    ),
    aadsts(
        700025,
        &NEEDLESS_SECRET,
        "the application is a public client, and a secret or assertion was sent",
    ),
    aadsts(
        700027,
        &ASSERTION,
        "the signature of the client assertion is wrong, or its certificate is not registered",
    ),
    aadsts(700030, &ASSERTION, "the certificate of the client assertion is not valid for the application"),
    aadsts(700082, &SIGN_IN_AGAIN, "the refresh token was not used for too long"),
    aadsts(700084, &SIGN_IN_AGAIN, "the refresh token of a single-page application has run out"),
    aadsts(700213, &FEDERATED_CREDENTIAL, "no federated credential has the subject of the token presented"),
    aadsts(
        700229,
        &FEDERATED_CREDENTIAL,
        "the token presented as a federated credential is no app-only token",
    ),
    aadsts(900144, &MALFORMED, "a parameter that the request must have is missing"),
    aadsts(900382, &CLOUD, "confidential clients are not supported across clouds"),
    aadsts(900384, &ASSERTION, "the signature of the token presented could not be validated"),
    aadsts(900432, &CLOUD, "confidential clients are not supported in requests across clouds"),
    aadsts(900439, &CLOUD, "the application lives in US Government and was asked for in the public cloud"),
    aadsts(900971, &REDIRECT, "the request names no redirect URI"),
    aadsts(901002, &SCOPE, "the v2.0 endpoint takes no `resource`: the request must say `scope`"),
    aadsts(1000031, &APPLICATION_DISABLED, "the application cannot be used at this time"),
    aadsts(1000104, &CLOUD, "the application is not available in this cloud"),
    aadsts(1002012, &APP_SCOPE, "`scope` of a client credentials request does not end in `/.default`"),
    aadsts(7000112, &APPLICATION_DISABLED, "the application is disabled"),
    aadsts(7000215, &WRONG_SECRET, "the client secret is wrong"),
    aadsts(
        7000218,
        &MISSING_SECRET,
        "the application is no public client, and neither a secret nor an assertion was sent",
    ),
    aadsts(7000222, &EXPIRED_SECRET, "the client secret has expired"),
    aadsts(9001023, &TENANT, "the grant is not served over `/common` or `/consumers`"),
    aadsts(9002313, &MALFORMED, "the request is not well formed"),
    aadsts(
        9002332,
        &TENANT,
        "the application is for work and school accounts and not served over `/consumers`",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::Cause;

    fn told(code: u32) -> Refusal {
        entra(Some("invalid_grant"), 400, &[code], &Context::default()).refusal
    }

    fn kind(code: u32) -> CauseKind {
        match told(code) {
            Refusal::ContactAdmin(Cause { kind, aadsts }) => {
                assert_eq!(aadsts, Some(code));
                kind
            }
            other => panic!("AADSTS{code} is told as {other:?}"),
        }
    }

    #[test]
    fn the_table_is_sorted_and_no_code_stands_twice() {
        assert!(CODES.windows(2).all(|pair| pair[0].code < pair[1].code));
        assert!(CODES.len() >= 160);
    }

    #[test]
    fn refusals_are_those_of_the_design() {
        for code in [50126, 50034, 50064, 50056, 50052] {
            assert_eq!(told(code), Refusal::BadCredentials, "{code}");
        }
        for code in [50055, 50144, 50125, 50135, 50142] {
            assert_eq!(told(code), Refusal::PasswordExpired, "{code}");
        }
        assert_eq!(told(50053), Refusal::HeldBack { retry_after: LOCKED_FOR });
        for code in [50072, 50074, 50076, 50078, 50079, 50158, 700_020] {
            assert_eq!(kind(code), CauseKind::MultiFactor, "{code}");
        }
        for code in [53000, 53001, 53002, 53003, 530_032, 530_034, 530_035, 50131, 50105, 80012, 500_213] {
            assert_eq!(kind(code), CauseKind::Policy, "{code}");
        }
        for code in [65001, 65004, 90008, 90093, 90094, 90095, 90099] {
            assert_eq!(kind(code), CauseKind::Consent, "{code}");
        }
        for code in [700_016, 7_000_218, 7_000_215, 7_000_222, 700_025, 90002, 9_001_023, 1_002_012, 70011] {
            assert_eq!(kind(code), CauseKind::Application, "{code}");
        }
        for code in [50057, 50020, 51004, 90072] {
            assert_eq!(kind(code), CauseKind::Account, "{code}");
        }
        for code in [70000, 70008, 700_082, 70043, 50173, 54005] {
            assert_eq!(kind(code), CauseKind::SignIn, "{code}");
        }
        for code in [90033, 90024, 90006, 50033, 90012, 90055, 80002, 50196] {
            assert!(matches!(told(code), Refusal::Unavailable { .. }), "{code}");
        }
    }

    #[test]
    fn a_service_in_trouble_has_judged_nobody() {
        for (error, status) in [
            (Some("invalid_grant"), 503),
            (Some("invalid_grant"), 429),
            (Some("server_error"), 400),
            (Some("temporarily_unavailable"), 400),
            (None, 500),
            (None, 408),
        ] {
            let story = entra(error, status, &[50126], &Context::default());
            assert_eq!(story.code, "AADSTS50126");
            assert!(matches!(story.refusal, Refusal::Unavailable { .. }), "{error:?} {status}: {story:?}");
            assert!(matches!(story.passes, Passes::ByItself(_)));
        }
    }

    #[test]
    fn what_is_not_known_falls_back_to_its_class() {
        let none = Context::default();
        let password = Context { grant: "password", ..none };
        let stored = Context { grant: "device-code", ..none };
        let ask = |error, status, context| entra(error, status, &[1_001_010], context).refusal;
        let admin = |kind| Refusal::ContactAdmin(Cause { kind, aadsts: Some(1_001_010) });
        assert_eq!(ask(Some("invalid_client"), 401, &none), admin(CauseKind::Application));
        assert_eq!(ask(Some("invalid_scope"), 400, &none), admin(CauseKind::Application));
        assert_eq!(ask(Some("interaction_required"), 400, &none), admin(CauseKind::MultiFactor));
        assert_eq!(ask(Some("consent_required"), 400, &none), admin(CauseKind::Consent));
        assert_eq!(ask(Some("invalid_grant"), 400, &password), Refusal::BadCredentials);
        assert_eq!(ask(Some("invalid_grant"), 400, &stored), admin(CauseKind::SignIn));
        assert_eq!(ask(None, 400, &none), admin(CauseKind::Application));
        assert!(matches!(ask(Some("server_error"), 400, &none), Refusal::Unavailable { .. }));
        let story = entra(Some("invalid_client"), 401, &[1_001_010], &none);
        assert_eq!(story.code, "AADSTS1001010");
        assert!(story.what.contains("`AADSTS1001010`"), "{}", story.what);
        assert_eq!(entra(Some("invalid_client"), 401, &[], &none).code, "ENTRA-CONFIGURATION");
        assert_eq!(entra(Some("invalid_grant"), 400, &[1_001_010, 50126], &none).code, "AADSTS50126");
    }

    #[test]
    fn every_class_has_its_row_and_no_error_name_stands_twice() {
        use Class::{
            Configuration, Consent, Denied, Device, Grant, Interaction, Temporary, Throttled, Unknown,
        };
        for class in
            [Throttled, Temporary, Configuration, Grant, Interaction, Consent, Denied, Device, Unknown]
        {
            assert_eq!(class.row().class, class);
            assert_eq!(class.passes(), matches!(class.row().verdict.passes, Passes::ByItself(_)));
        }
        let mut errors: Vec<_> = CLASSES.iter().flat_map(|row| row.errors).collect();
        let all = errors.len();
        errors.sort_unstable();
        errors.dedup();
        assert_eq!(errors.len(), all);
    }

    #[test]
    fn codes_are_found_in_a_pasted_reply() {
        let reply = r#"{"error":"invalid_grant","error_description":"AADSTS50076: Due to a configuration change …\r\n
            Trace ID: 1","error_codes":[50076],"error_uri":"https://login.microsoftonline.com/error?code=50076"}"#;
        let found = find(reply);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].code, "AADSTS50076");
        assert_eq!(find("aadsts7000215, then AADSTS50126 and AADSTS50126").len(), 2);
        assert_eq!(find(" 50126 ")[0].code, "AADSTS50126");
        assert_eq!(find("AADSTS99999999999999999999"), []);
        assert_eq!(find("error=invalid_grant")[0].code, "ENTRA-INVALID-GRANT");
        assert_eq!(find("AADSTS1001010 invalid_client")[0].refusal.as_str(), "contact-admin");
    }

    #[test]
    fn remedies_carry_the_values() {
        let context = Context {
            user: "alice@contoso.com",
            application: "11111111-2222-3333-4444-555555555555",
            directory: "contoso.com",
            grant: "password",
        };
        assert!(entra(None, 400, &[50034], &context).remedy.contains("`alice@contoso.com`"));
        assert!(
            entra(None, 400, &[700_016], &context).remedy.contains("11111111-2222-3333-4444-555555555555")
        );
        assert!(
            entra(None, 400, &[65001], &context)
                .remedy
                .contains("/contoso.com/adminconsent?client_id=11111111")
        );
    }
}
