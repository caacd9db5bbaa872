//! The AADSTS codes, and what is to be done about them. Data only; `entra` reads it.
//!
//! Sources: Microsoft's "Microsoft Entra authentication and authorization error codes"; for codes that are
//! missing there, the answers seen in public reports.

use std::borrow::Cow;
use std::time::Duration;

use super::entry::{Context, Verdict, admin};
use crate::explain::{CauseKind, Explanation, Fault, Passes, Refusal};

/// The row of a code.
pub(super) fn row(code: u32) -> Option<&'static Row> {
    CODES.binary_search_by_key(&code, |row| row.code).ok().and_then(|at| CODES.get(at))
}

/// `AADSTS50126`.
pub(super) fn name(code: u32) -> Cow<'static, str> {
    Cow::Owned(format!("AADSTS{code}"))
}

/// A code of the table.
pub(super) struct Row {
    pub(super) code: u32,
    verdict: &'static Verdict,
    pub(super) what: &'static str,
}

impl Row {
    pub(super) fn passes(&self) -> bool {
        matches!(self.verdict.passes, Passes::ByItself(_))
    }

    pub(super) fn name(&self) -> Cow<'static, str> {
        name(self.code)
    }

    pub(super) fn explain(&self, context: &Context<'_>) -> Explanation {
        self.verdict.explain(self.name(), self.what.to_owned(), Some(self.code), context)
    }
}

const fn aadsts(code: u32, verdict: &'static Verdict, what: &'static str) -> Row {
    Row { code, verdict, what }
}

/// Sorted by code; one row a code.
#[rustfmt::skip] // one code a line, to be read as a table
#[expect(clippy::unreadable_literal, reason = "they are names, and are searched for as they stand")]
pub(super) static CODES: &[Row] = &[
    aadsts(16000, &FOREIGN_ACCOUNT, "the account does not exist in this tenant, or several accounts are signed in"),
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
    aadsts(50020, &FOREIGN_ACCOUNT, "the user belongs to another identity provider and is no guest of this tenant"),
    aadsts(50027, &ASSERTION, "the client assertion is no well-formed token"),
    aadsts(50033, &SERVICE, "the identity provider had a transient error"),
    aadsts(50034, &NO_SUCH_USER, "the user does not exist in this tenant"),
    aadsts(50048, &ASSERTION, "the subject of the client assertion is not its issuer"),
    aadsts(50052, &PASSWORD_TOO_LONG, "the password is longer than 256 characters"),
    aadsts(50053, &LOCKED, "the account is locked after too many wrong passwords, or the sign-in came from an address with a bad name"),
    aadsts(50055, &EXPIRED_PASSWORD, "the password has expired"),
    aadsts(50056, &NO_PASSWORD, "the directory holds no password for the user"),
    aadsts(50057, &DISABLED_ACCOUNT, "the account is disabled"),
    aadsts(50058, &SIGN_IN_AGAIN, "nobody is signed in, and the request allowed no dialogue"),
    aadsts(50059, &TENANT, "neither the request nor the user name says which tenant is meant"),
    aadsts(50064, &WRONG_PASSWORD, "the user name or password could not be validated"),
    aadsts(50072, &MFA, "the user must enrol for multi-factor authentication first"),
    aadsts(50074, &MFA, "strong authentication is needed and was not given"),
    aadsts(50076, &MFA, "multi-factor authentication is needed, by a change of policy or because of the place"),
    aadsts(50078, &MFA, "the multi-factor authentication given earlier has run out"),
    aadsts(50079, &MFA, "the user must enrol for multi-factor authentication first, by a change of policy or because of the place"),
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
    aadsts(50131, &CONDITIONAL_ACCESS, "a Conditional Access policy failed: state of the device, suspicious activity or place"),
    aadsts(50132, &SIGN_IN_AGAIN, "the session ended as the password has expired or was changed"),
    aadsts(50133, &SIGN_IN_AGAIN, "the session ended as the password has expired or was changed lately"),
    aadsts(50135, &PASSWORD_RESET, "a password change is needed because of a risk to the account"),
    aadsts(50142, &PASSWORD_RESET, "a password change is needed by a Conditional Access policy"),
    aadsts(50144, &EXPIRED_PASSWORD_AD, "the password has expired in the on-premises Active Directory"),
    aadsts(50155, &DEVICE_POLICY, "the device could not authenticate itself"),
    aadsts(50158, &MFA, "a challenge of another provider (a third-party second factor, terms of use) was not met"),
    aadsts(50166, &SERVICE, "the external claims provider failed or limits the rate"),
    aadsts(50173, &SIGN_IN_AGAIN, "the sign-in was revoked, as by a password change, and a new one is needed"),
    aadsts(50187, &DEVICE_POLICY, "the device could not authenticate itself by its certificate"),
    aadsts(50194, &TENANT, "the application is for one tenant, and was asked for without naming it"),
    aadsts(50196, &LOOP, "the identity provider saw the same request too often and calls it a loop"),
    aadsts(50197, &FOREIGN_ACCOUNT, "the user is not found, as two identities are in conflict"),
    aadsts(51004, &FOREIGN_ACCOUNT, "the user account does not exist in this tenant"),
    aadsts(53000, &DEVICE_POLICY, "a Conditional Access policy wants a compliant device"),
    aadsts(53001, &DEVICE_POLICY, "a Conditional Access policy wants a domain-joined device"),
    aadsts(53002, &DEVICE_POLICY, "a Conditional Access policy wants an approved client application"),
    aadsts(53003, &CONDITIONAL_ACCESS, "a Conditional Access policy blocks the sign-in"),
    aadsts(53004, &CONDITIONAL_ACCESS, "suspicious activity blocks the user's enrolment for multi-factor authentication"),
    aadsts(53010, &CONDITIONAL_ACCESS, "multi-factor methods may only be set up from trusted places or devices"),
    aadsts(53011, &RISK, "the user is blocked because of a risk in the home tenant"),
    aadsts(54005, &SIGN_IN_AGAIN, "the authorization code was already redeemed"),
    aadsts(65001, &CONSENT, "nobody has consented to the application in this tenant"),
    aadsts(65004, &CONSENT, "the user declined to consent to the application"),
    aadsts(65005, &PERMISSION, "the application's registration lacks the resource that `scope` asks for"),
    aadsts(70000, &SIGN_IN_AGAIN, "the grant is not valid: the refresh token is broken, revoked, or for another scope"),
    aadsts(70001, &APPLICATION_DISABLED, "the application is disabled or not installed in this tenant"),
    aadsts(70002, &WRONG_SECRET, "the client secret could not be validated"),
    aadsts(70003, &GRANT, "the grant is not supported"),
    aadsts(70008, &SIGN_IN_AGAIN, "the refresh token or authorization code has run out, or was not used for too long"),
    aadsts(70011, &SCOPE, "`scope` is not valid"),
    aadsts(70012, &SERVICE, "the sign-in service for personal accounts had an error"),
    aadsts(70016, &DEVICE_LOGIN, "the device login waits for the user to enter the code"),
    aadsts(70018, &DEVICE_LOGIN, "the device code is not known"),
    aadsts(70019, &DEVICE_LOGIN, "the device code has expired"),
    aadsts(70020, &DEVICE_LOGIN, "the device code has expired before the user entered it"),
    aadsts(70021, &FEDERATED_CREDENTIAL, "no federated credential of the application matches the token presented"),
    aadsts(70043, &SIGN_IN_FREQUENCY, "the refresh token ran out by the policy's sign-in frequency"),
    aadsts(80001, &PASS_THROUGH, "the pass-through authentication agent cannot reach Active Directory"),
    aadsts(80002, &PASS_THROUGH, "the pass-through authentication agent got no answer in time"),
    aadsts(80005, &PASS_THROUGH, "the pass-through authentication agent's answer could not be read"),
    aadsts(80007, &PASS_THROUGH, "the pass-through authentication agent cannot check the password"),
    aadsts(80010, &PASS_THROUGH, "the pass-through authentication agent cannot decrypt the password"),
    aadsts(80012, &LOGON_HOURS, "the user signed in outside the logon hours that Active Directory allows"),
    aadsts(80013, &CLOCK_SKEW, "the clocks of the pass-through authentication agent and Active Directory are too far apart"),
    aadsts(80014, &PASS_THROUGH, "the pass-through authentication agent took too long"),
    aadsts(90002, &TENANT, "the tenant does not exist, or lives in another cloud"),
    aadsts(90004, &MALFORMED, "the request is not well formed"),
    aadsts(90006, &SERVICE, "the identity provider has a service error that passes"),
    aadsts(90008, &CONSENT, "the user or an administrator has not consented to the application's use of Exchange Online"),
    aadsts(90012, &SERVICE, "the request timed out at the identity provider"),
    aadsts(90013, &MALFORMED, "a value of the request is not valid"),
    aadsts(90014, &MALFORMED, "a field of the request is missing"),
    aadsts(90019, &TENANT, "the request does not say which tenant is meant"),
    aadsts(90023, &MALFORMED, "the request is not one that the identity provider serves"),
    aadsts(90024, &SERVICE, "the identity provider is over its budget of requests for now"),
    aadsts(90033, &SERVICE, "a service behind the identity provider is unavailable for now"),
    aadsts(90036, &UNRETRYABLE, "the identity provider had an unexpected error that trying again does not mend"),
    aadsts(90038, &CLOUD, "the tenant lives in a national cloud"),
    aadsts(90043, &CLOUD, "the national cloud's authority is not configured"),
    aadsts(90051, &CLOUD, "the national cloud's identifier in the request is not valid"),
    aadsts(90055, &THROTTLED, "the tenant has too many requests under way"),
    aadsts(90072, &FOREIGN_ACCOUNT, "the user of another identity provider must first be added to the tenant as a guest"),
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
    aadsts(500133, &ASSERTION, "the client assertion is outside its time range: this machine's clock may be wrong"),
    aadsts(500208, &FOREIGN_ACCOUNT, "the domain is no login domain for this kind of account"),
    aadsts(500212, &TENANT_RESTRICTION, "the home tenant's policy forbids access to this tenant"),
    aadsts(500213, &TENANT_RESTRICTION, "this tenant's policy forbids access to the user's home tenant"),
    aadsts(501481, &SIGN_IN_AGAIN, "the code verifier does not fit the code challenge of the login"),
    aadsts(530032, &CONDITIONAL_ACCESS, "a security policy of the tenant blocks the sign-in"),
    aadsts(530034, &CONDITIONAL_ACCESS, "a delegated administrator is blocked from the tenant, as its account is at risk"),
    aadsts(530035, &SECURITY_DEFAULTS, "security defaults of the tenant block the sign-in"),
    aadsts(650052, &PERMISSION, "the tenant has no subscription to, or has not enabled, the service that the application needs"),
    aadsts(650054, &PERMISSION, "the application asks for permissions of a resource that was removed or is not available"),
    aadsts(650056, &PERMISSION, "the application's registration lacks permissions, or nobody consented to them"),
    aadsts(650057, &PERMISSION, "the resource in `scope` is not listed in the application's registration"),
    aadsts(700005, &TENANT, "the authorization code was issued for another tenant"),
    aadsts(700011, &APPLICATION_MISSING, "the application is not found in this tenant"),
    aadsts(700016, &APPLICATION_MISSING, "the application is not found in this tenant"),
    aadsts(700020, &MFA, "this grant needs a person at a browser"),
    aadsts(700022, &SCOPE, "`scope` names more than one resource"),
    aadsts(700023, &SCOPE, "`scope` names no resource"),
    aadsts(700024, &ASSERTION, "the client assertion is outside its time range: this machine's clock may be wrong"),
    aadsts(700025, &NEEDLESS_SECRET, "the application is a public client, and a secret or assertion was sent"),
    aadsts(700027, &ASSERTION, "the signature of the client assertion is wrong, or its certificate is not registered"),
    aadsts(700030, &ASSERTION, "the certificate of the client assertion is not valid for the application"),
    aadsts(700082, &SIGN_IN_AGAIN, "the refresh token was not used for too long"),
    aadsts(700084, &SIGN_IN_AGAIN, "the refresh token of a single-page application has run out"),
    aadsts(700213, &FEDERATED_CREDENTIAL, "no federated credential has the subject of the token presented"),
    aadsts(700229, &FEDERATED_CREDENTIAL, "the token presented as a federated credential is no app-only token"),
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
    aadsts(7000218, &MISSING_SECRET, "the application is no public client, and neither a secret nor an assertion was sent"),
    aadsts(7000222, &EXPIRED_SECRET, "the client secret has expired"),
    aadsts(9001023, &TENANT, "the grant is not served over `/common` or `/consumers`"),
    aadsts(9002313, &MALFORMED, "the request is not well formed"),
    aadsts(9002332, &TENANT, "the application is for work and school accounts and not served over `/consumers`"),
];

// What is to be done. Portal pages as they are named in the Entra admin center (entra.microsoft.com).

pub(super) static WRONG_PASSWORD: Verdict = Verdict::permanent(
    Fault::MailClient,
    Refusal::BadCredentials,
    "type user name and password anew in the mail client and try them once at https://outlook.office.com; if they are \
     right there, {user} is likely a federated user: turn on password hash synchronization and a home realm \
     discovery policy with `AllowCloudPasswordValidation`, or use another grant",
);
pub(super) static NO_SUCH_USER: Verdict = Verdict::permanent(
    Fault::MailClient,
    Refusal::BadCredentials,
    "compare {user} with the user principal name under Entra admin center > Users > All users, and `directory-id` \
     (now {directory}) with the tenant that holds it; the mail address may differ from the user principal name",
);
pub(super) static NO_PASSWORD: Verdict = Verdict::permanent(
    Fault::Account,
    Refusal::BadCredentials,
    "set a password for {user} under Entra admin center > Users > Reset password, or turn on password hash \
     synchronization in Microsoft Entra Connect",
);
pub(super) static PASSWORD_TOO_LONG: Verdict = Verdict::permanent(
    Fault::MailClient,
    Refusal::BadCredentials,
    "set a password of at most 256 characters for {user}, then save it in the mail client",
);
pub(super) static EXPIRED_PASSWORD: Verdict = Verdict::permanent(
    Fault::Account,
    Refusal::PasswordExpired,
    "sign in as {user} at https://portal.office.com, set a new password, then save it in the mail client; for a service mailbox \
     stop the expiry: `Update-MgUser -UserId {USER} -PasswordPolicies DisablePasswordExpiration`",
);
pub(super) static EXPIRED_PASSWORD_AD: Verdict = Verdict::permanent(
    Fault::Account,
    Refusal::PasswordExpired,
    "set a new password for {user} in the on-premises Active Directory, wait for its synchronization, then save it in \
     the mail client",
);
pub(super) static PASSWORD_RESET: Verdict = Verdict::permanent(
    Fault::Account,
    Refusal::PasswordExpired,
    "sign in as {user} at https://portal.office.com and set the new password that it asks for, then save it in the mail \
     client",
);
pub(super) static LOCKED: Verdict = Verdict {
    fault: Fault::Account,
    passes: Passes::ByItself(Some(LOCKED_FOR)),
    refusal: Refusal::HeldBack { retry_after: LOCKED_FOR },
    remedy: "stop whatever keeps sending a wrong password for {user} (an old device, a second application), then wait; look \
             under Entra admin center > Users > Sign-in logs at `Failure reason` to see whether the account or our IP \
             address is held, and set a new password there to unlock at once",
};
/// The first lock lasts 60 seconds and grows; every attempt inside prolongs it, so we wait longer.
pub(super) const LOCKED_FOR: Duration = Duration::from_mins(5);

pub(super) static DISABLED_ACCOUNT: Verdict = Verdict::permanent(
    Fault::Account,
    admin(CauseKind::Account),
    "turn on `Account enabled` for {user} under Entra admin center > Users > Properties, or run \
     `Update-MgUser -UserId {USER} -AccountEnabled:$true`; a shared mailbox is disabled on purpose: sign in as a \
     delegate and set `mailbox`, or use `grant: client-credentials`",
);
pub(super) static FOREIGN_ACCOUNT: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Account),
    "set `directory-id` (now {directory}) to the home tenant of {user}; guests and personal accounts cannot sign in \
     with a password grant: give them an account of the tenant's own, or use `grant: device-code`",
);
pub(super) static FEDERATION: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Account),
    "mend the federation of the domain of {user}: `Get-MgDomainFederationConfiguration -DomainId <domain>`, or turn the \
     domain into a managed one",
);
pub(super) static MFA: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::MultiFactor),
    "exclude {user} from multi-factor authentication for this application: Entra admin center > Protection > Conditional \
     Access > Policies > Users > Exclude, and per-user MFA off; or use `grant: client-credentials`, which needs none, \
     or `grant: device-code` and `mailkey login`",
);
pub(super) static CONDITIONAL_ACCESS: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Policy),
    "find the policy under Entra admin center > Users > Sign-in logs > Conditional Access for {user} and {application}, then \
     exclude the user, or this server's address as a named location; or use `grant: client-credentials`",
);
pub(super) static SECURITY_DEFAULTS: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Policy),
    "turn off security defaults (Entra admin center > Identity > Overview > Properties > Manage security defaults) and put \
     Conditional Access policies in their place, or use `grant: client-credentials`",
);
pub(super) static RISK: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Policy),
    "look at {user} under Entra admin center > Protection > Identity Protection > Risky users and dismiss the risk, or \
     set a new password",
);
pub(super) static DEVICE_POLICY: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Policy),
    "exclude {user} or {application} from the Conditional Access policy that asks for a managed device (Entra admin \
     center > Protection > Conditional Access > Policies): a proxy is none; or use `grant: client-credentials`",
);
pub(super) static TENANT_RESTRICTION: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Policy),
    "allow {directory} and {application} under Entra admin center > External Identities > Cross-tenant access settings, \
     and in the header `Restrict-Access-To-Tenants` that the corporate proxy adds",
);
pub(super) static ASSIGNMENT: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Policy),
    "assign {user} to {application} under Entra admin center > Enterprise applications > Users and groups, or set \
     `Assignment required` to `No` under Properties",
);
pub(super) static LOGON_HOURS: Verdict = Verdict {
    fault: Fault::Account,
    passes: Passes::ByItself(None),
    refusal: admin(CauseKind::Policy),
    remedy: "widen the logon hours of {user} in the on-premises Active Directory, or wait for them",
};
pub(super) static CONSENT: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Consent),
    "grant admin consent: Entra admin center > Enterprise applications > {application} > Permissions > Grant admin consent, or \
     open `https://login.microsoftonline.com/{DIRECTORY}/adminconsent?client_id={APPLICATION}` as an administrator",
);
pub(super) static PERMISSION: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "add the permission of `Office 365 Exchange Online` that `scope` asks for (IMAP.AccessAsUser.All, POP.AccessAsUser.All, \
     SMTP.Send, EWS.AccessAsUser.All) to {application} under Entra admin center > App registrations > API \
     permissions, then grant admin consent",
);
pub(super) static SIGN_IN_AGAIN: Verdict =
    Verdict::permanent(Fault::Account, admin(CauseKind::SignIn), "run `mailkey login` for {user}");
pub(super) static SIGN_IN_FREQUENCY: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::SignIn),
    "run `mailkey login` for {user}; to keep it from coming back exclude the user from the policy that sets `Sign-in \
     frequency` (Entra admin center > Protection > Conditional Access), or use `grant: client-credentials`",
);
pub(super) static DEVICE_LOGIN: Verdict = Verdict::permanent(
    Fault::Account,
    admin(CauseKind::SignIn),
    "run `mailkey login` for {user} again and enter the code that it shows within 15 minutes",
);
pub(super) static APPLICATION_MISSING: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "compare `client-id` ({application}) with Application (client) ID under Entra admin center > App registrations, and \
     `directory-id` ({directory}) with the tenant in which it is registered or has consent",
);
pub(super) static APPLICATION_DISABLED: Verdict = Verdict::permanent(
    Fault::Tenant,
    admin(CauseKind::Application),
    "set `Enabled for users to sign-in` to `Yes` for {application} under Entra admin center > Enterprise applications > \
     Properties",
);
pub(super) static WRONG_SECRET: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "put the Value of a client secret, not its Secret ID, into `client-secret-file`; make a new one under Entra admin \
     center > App registrations > {application} > Certificates & secrets",
);
pub(super) static EXPIRED_SECRET: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "make a new client secret under Entra admin center > App registrations > {application} > Certificates & secrets \
     and put its Value into `client-secret-file`",
);
pub(super) static MISSING_SECRET: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "set `Allow public client flows` to `Yes` for {application} under Entra admin center > App registrations > \
     Authentication, or give the proxy a `client-secret-file` or `client-certificate-file`",
);
pub(super) static NEEDLESS_SECRET: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "remove `client-secret-file`, `client-certificate-file` and `federated-token-file` from the `oauth` section: \
     {application} is a public client",
);
pub(super) static ASSERTION: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "upload the certificate of `client-certificate-file` under Entra admin center > App registrations > {application} > \
     Certificates & secrets, check that `client-key-file` is its key and that it has not expired, and set this machine's clock",
);
pub(super) static FEDERATED_CREDENTIAL: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "make issuer, subject and audience of the federated credential (Entra admin center > App registrations > \
     {application} > Certificates & secrets > Federated credentials) equal to those of the token in `federated-token-file`",
);
pub(super) static SCOPE: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "set `scope` to permissions of one resource, `https://outlook.office.com/.default`, or remove the key: the proxy \
     then asks for what each protocol needs",
);
pub(super) static APP_SCOPE: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "set `scope` to `https://outlook.office365.com/.default`, not percent-encoded, or remove the key",
);
pub(super) static RESOURCE: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "compare the host name in `scope` with the `cloud` of the tenant (`https://outlook.office.com` in the global one), and \
     check that {directory} has Exchange Online licences",
);
pub(super) static GRANT: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "choose another `grant` than {grant} for this account; `password`, `client-credentials`, `device-code` and \
     `authorization-code` are there",
);
pub(super) static TENANT: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "set `directory-id` (now {directory}) to Directory (tenant) ID from Entra admin center > Identity > Overview, and \
     `cloud` to the one in which the tenant lives",
);
pub(super) static CLOUD: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "set `cloud` to the national cloud in which the tenant {directory} lives (us-gov-gcc-high, us-gov-dod or china), or back to \
     `global`, and remove a `tenant-authority` that says otherwise",
);
pub(super) static REDIRECT: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "add `http://localhost` as a redirect URI of the platform `Mobile and desktop applications` to {application} under Entra \
     admin center > App registrations > Authentication",
);
pub(super) static MALFORMED: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "compare `tenant-authority`, `directory-id`, `client-id` and `scope` with the application's registration, character by \
     character; if they are right, report the line of the log",
);
pub(super) static SETTINGS: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "compare `client-id`, `directory-id`, `scope` and the client secret or certificate with the registration of \
     {application} under Entra admin center > App registrations",
);
pub(super) static UNFAMILIAR_GRANT: Verdict = Verdict::permanent(
    Fault::Account,
    admin(CauseKind::Account),
    "look at the sign-in of {user} under Entra admin center > Users > Sign-in logs",
);
pub(super) static REFUSED_PASSWORD: Verdict = Verdict::permanent(
    Fault::Account,
    Refusal::BadCredentials,
    "try user name and password once in a browser, then look at the sign-in of {user} under Entra admin center > Users > \
     Sign-in logs",
);
pub(super) static UNFAMILIAR: Verdict = Verdict::permanent(
    Fault::Configuration,
    admin(CauseKind::Application),
    "look at the sign-in of {user} under Entra admin center > Users > Sign-in logs, and check that `tenant-authority` leads \
     to an identity provider and not to another web server",
);
pub(super) static LOOP: Verdict = Verdict::passing(
    Fault::Mailkey,
    300,
    "wait five minutes; if it comes back, look for a second program that asks with the same application, and report the \
     lines of the log",
);
pub(super) static THROTTLED: Verdict = Verdict::passing(
    Fault::Provider,
    60,
    "wait; if it comes back, look for another program that asks for tokens with the same application",
);
pub(super) static SERVICE: Verdict =
    Verdict::passing(Fault::Provider, 0, "wait, and look at https://status.cloud.microsoft if it lasts");
pub(super) static UNRETRYABLE: Verdict = Verdict::passing(
    Fault::Provider,
    0,
    "wait, look at https://status.cloud.microsoft, and open a support case at Microsoft with the correlation ID of the \
     log line if it lasts for hours",
);
pub(super) static PASS_THROUGH: Verdict = Verdict::passing(
    Fault::Tenant,
    0,
    "check the pass-through authentication agents (Entra admin center > Identity > Hybrid management > Microsoft Entra Connect) and \
     that they reach a domain controller",
);
pub(super) static CLOCK_SKEW: Verdict = Verdict {
    fault: Fault::Tenant,
    passes: Passes::Never,
    refusal: admin(CauseKind::Account),
    remedy: "set the clocks of the pass-through authentication agents and the domain controllers by one time server",
};
