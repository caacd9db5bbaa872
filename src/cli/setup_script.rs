//! `mailkey setup-script`: the PowerShell that prepares a tenant, with the values of the configuration filled in.
//!
//! Sources: Microsoft's "Authenticate an IMAP, POP or SMTP connection using OAuth", "How to authenticate an EWS
//! application by using OAuth", "Control access to EWS in Exchange".

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;

use super::MISUSED;
use super::out::Out;
use super::run::environment;
use crate::config;
use crate::config::model::{Config, Grant, Protocol, Template};

/// Options of `mailkey setup-script`.
#[derive(Args, Debug)]
pub struct ScriptArguments {
    /// The mailbox that is to be opened; may be given several times
    #[arg(long = "user", short, value_name = "MAILBOX")]
    users: Vec<String>,
    /// Print the script for an application that signs in as itself (client-credentials), or for users'
    /// passwords; left out: as the configuration says
    #[arg(long, value_name = "GRANT")]
    grant: Option<Kind>,
}

/// Whose permissions the application has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Delegated permissions: the user signs in
    Password,
    /// Application permissions: nobody does
    ClientCredentials,
}

/// One application, and what it is to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Whose permissions.
    pub kind: Kind,
    /// Directory (tenant) ID or domain; empty: that of whoever signs in.
    pub directory: String,
    /// Application (client) ID; empty: a new one is made.
    pub client_id: String,
    /// What is to be spoken.
    pub protocols: Vec<Protocol>,
    /// Mailboxes; empty: a placeholder stands for them.
    pub mailboxes: Vec<String>,
}

/// Prints it: one script per application of the configuration. Without a configuration file, one that makes a new
/// application for all protocols.
pub fn setup_script(path: &Path, wishes: &ScriptArguments, out: &mut Out) -> ExitCode {
    let subjects = if path.exists() {
        match config::load(path, &environment) {
            Ok(loaded) => subjects(&loaded.config, wishes),
            Err(problems) => {
                out.error(problems);
                return ExitCode::from(MISUSED);
            }
        }
    } else {
        vec![Subject {
            kind: wishes.grant.unwrap_or(Kind::Password),
            directory: String::new(),
            client_id: String::new(),
            protocols: vec![Protocol::Imap, Protocol::Pop3, Protocol::Smtp, Protocol::Ews],
            mailboxes: wishes.users.clone(),
        }]
    };
    if subjects.is_empty() {
        out.error("no application of Microsoft Entra ID stands in this configuration");
        return ExitCode::from(MISUSED);
    }
    for subject in &subjects {
        out.line(script(subject));
    }
    ExitCode::SUCCESS
}

/// The applications of a configuration, each once per kind of permission.
fn subjects(config: &Config, wishes: &ScriptArguments) -> Vec<Subject> {
    let mut found: Vec<Subject> = Vec::new();
    for listener in &config.listeners {
        for account in &listener.accounts {
            let application = &account.application;
            let is_entra = application.endpoints.token.path().contains("/oauth2/");
            if !is_entra || application.client_id.is_empty() {
                continue;
            }
            let own = |grant: &Grant| matches!(grant, Grant::ClientCredentials | Grant::ManagedIdentity);
            let configured =
                if application.grants.iter().any(own) { Kind::ClientCredentials } else { Kind::Password };
            let kind = wishes.grant.unwrap_or(configured);
            let directory = application.endpoints.authority.rsplit('/').next().unwrap_or_default();
            let shared = ["organizations", "common", "consumers"].contains(&directory);
            let directory = if shared { String::new() } else { directory.to_owned() };
            let subject = Subject {
                kind,
                directory,
                client_id: application.client_id.clone(),
                protocols: Vec::new(),
                mailboxes: wishes.users.clone(),
            };
            let same = |known: &Subject| {
                known.kind == subject.kind
                    && known.directory == subject.directory
                    && known.client_id == subject.client_id
            };
            let place = found.iter().position(same).unwrap_or(found.len());
            if place == found.len() {
                found.push(subject);
            }
            let Some(at) = found.get_mut(place) else { continue };
            for used in listener.uses() {
                if !at.protocols.contains(&used) {
                    at.protocols.push(used);
                }
            }
            // a template with a capture names no one mailbox
            let mailbox = account.mailbox.as_ref().or(account.mailbox_smtp.as_ref()).map(Template::fixed);
            let named = mailbox.unwrap_or(Some(account.user.as_str())).unwrap_or_default();
            let is_one = named.contains('@') && !named.contains('*');
            if wishes.users.is_empty() && is_one && !at.mailboxes.iter().any(|known| known == named) {
                at.mailboxes.push(named.to_owned());
            }
        }
    }
    found
}

/// The script for one application.
pub fn script(subject: &Subject) -> String {
    let mut text = String::from(HEAD);
    let permissions: Vec<String> =
        subject.protocols.iter().filter_map(|&p| permission(subject.kind, p)).map(quoted).collect();
    let mailboxes: Vec<String> = if subject.mailboxes.is_empty() {
        vec![quoted("mailbox@contoso.com")]
    } else {
        subject.mailboxes.iter().map(|mailbox| quoted(mailbox)).collect()
    };
    if subject.mailboxes.is_empty() {
        text.push_str("# To be filled in: the mailboxes that are to be opened.\n");
    }
    for (name, value) in [
        ("Mailboxes", format!("@({})", mailboxes.join(", "))),
        ("TenantId", quoted(&subject.directory)),
        ("ClientId", quoted(&subject.client_id)),
        ("Permissions", format!("@({})", permissions.join(", "))),
    ] {
        put(&mut text, &format!("${name} = {value}"));
    }
    text.push_str(match subject.kind {
        Kind::Password => DELEGATED,
        Kind::ClientCredentials => APPLICATION,
    });
    text.push_str(EXCHANGE);
    if subject.kind == Kind::ClientCredentials {
        text.push_str(SERVICE_PRINCIPAL);
    }
    text.push_str("\nforeach ($mailbox in $Mailboxes) {\n");
    put(
        &mut text,
        &format!("    Set-CASMailbox -Identity $mailbox {}", switches(&subject.protocols).join(" ")),
    );
    if subject.kind == Kind::ClientCredentials {
        text.push_str(MAILBOX_RIGHTS);
        if subject.protocols.contains(&Protocol::Smtp) {
            text.push_str(SEND_AS);
        }
    }
    text.push_str("}\n");
    if subject.protocols.contains(&Protocol::Ews) {
        text.push_str(EWS);
    }
    text.push_str("\n\"Done. The application's ID for `client-id` in proxy.yaml: $ClientId\"\n");
    text.push_str("\"Rights take up to an hour to work. Then: mailkey doctor --user $($Mailboxes[0])\"\n");
    text
}

/// The permission's name; ActiveSync knows none for applications.
fn permission(kind: Kind, protocol: Protocol) -> Option<&'static str> {
    Some(match (kind, protocol) {
        (Kind::Password, Protocol::Imap) => "IMAP.AccessAsUser.All",
        (Kind::Password, Protocol::Pop3) => "POP.AccessAsUser.All",
        (Kind::Password, Protocol::Smtp) => "SMTP.Send",
        (Kind::Password, Protocol::Ews) => "EWS.AccessAsUser.All",
        (Kind::Password, Protocol::ActiveSync) => "EAS.AccessAsUser.All",
        (Kind::ClientCredentials, Protocol::Imap) => "IMAP.AccessAsApp",
        (Kind::ClientCredentials, Protocol::Pop3) => "POP.AccessAsApp",
        (Kind::ClientCredentials, Protocol::Smtp) => "SMTP.SendAsApp",
        (Kind::ClientCredentials, Protocol::Ews) => "full_access_as_app",
        (Kind::ClientCredentials, Protocol::ActiveSync) => return None,
    })
}

fn switches(protocols: &[Protocol]) -> Vec<&'static str> {
    let switch = |protocol: &Protocol| match protocol {
        Protocol::Imap => "-ImapEnabled $true",
        Protocol::Pop3 => "-PopEnabled $true",
        Protocol::Smtp => "-SmtpClientAuthenticationDisabled $false",
        Protocol::Ews => "-EwsEnabled $true",
        Protocol::ActiveSync => "-ActiveSyncEnabled $true",
    };
    protocols.iter().map(switch).collect()
}

/// A literal string of PowerShell: nothing in it is expanded. The typographic quotes end one just as `'` does.
fn quoted(text: &str) -> String {
    let mut literal = String::from("'");
    for c in text.chars().filter(|c| !c.is_control()) {
        if matches!(c, '\'' | '\u{2018}' | '\u{2019}' | '\u{201a}' | '\u{201b}') {
            literal.push(c);
        }
        literal.push(c);
    }
    literal.push('\'');
    literal
}

fn put(text: &mut String, line: &str) {
    // Writing to a string cannot fail.
    let _written = writeln!(text, "{line}");
}

const HEAD: &str = r"# Prepares a Microsoft 365 tenant for Mailkey. Read it, then run it in PowerShell 7 as an administrator
# (Application Administrator, Privileged Role Administrator for the consent, and Exchange Administrator).
# It may be run again: what is there already stays as it is.
#
# Needs: Install-Module Microsoft.Graph.Applications, Microsoft.Graph.Identity.SignIns, ExchangeOnlineManagement
$ErrorActionPreference = 'Stop'

";

const DELEGATED: &str = r"
# --- the application: public, with delegated permissions of Exchange Online ------------------------------
$connect = @{ Scopes = @('Application.ReadWrite.All', 'DelegatedPermissionGrant.ReadWrite.All') }
if ($TenantId) { $connect.TenantId = $TenantId }
Connect-MgGraph @connect -NoWelcome
$exchange = Get-MgServicePrincipal -Filter 'appId eq ''00000002-0000-0ff1-ce00-000000000000'''
$app = $null
if ($ClientId) { $app = Get-MgApplication -Filter ('appId eq ''{0}''' -f $ClientId) }
if (-not $app) {
    if ($ClientId) { throw ('There is no application ' + $ClientId + ' in this tenant: see client-id and directory-id') }
    $app = New-MgApplication -DisplayName 'Mailkey' -SignInAudience 'AzureADMyOrg'
    $ClientId = $app.AppId
}
# Not listed for everybody, so by their IDs where those are documented.
$known = @{ 'EWS.AccessAsUser.All' = '3b5f3d61-589b-4a3c-a359-5dd4b5ee5bd5' }
$wanted = foreach ($name in $Permissions) {
    $id = $known[$name]
    if (-not $id) { $id = ($exchange.Oauth2PermissionScopes | Where-Object Value -eq $name).Id }
    if (-not $id) { throw ('Exchange Online offers no delegated permission ' + $name) }
    @{ Id = $id; Type = 'Scope' }
}
# What other services it may use stays.
$access = @($app.RequiredResourceAccess | Where-Object ResourceAppId -ne $exchange.AppId)
$before = @($app.RequiredResourceAccess | Where-Object ResourceAppId -eq $exchange.AppId).ResourceAccess
$kept = @($before | Where-Object { $_ -and $_.Id -notin $wanted.Id } | ForEach-Object { @{ Id = $_.Id; Type = $_.Type } })
$access += @{ ResourceAppId = $exchange.AppId; ResourceAccess = @($kept) + @($wanted) }
Update-MgApplication -ApplicationId $app.Id -RequiredResourceAccess $access -IsFallbackPublicClient:$true

# --- consent, for everybody in the tenant ------------------------------------------------------------------
$principal = Get-MgServicePrincipal -Filter ('appId eq ''{0}''' -f $ClientId)
if (-not $principal) { $principal = New-MgServicePrincipal -AppId $ClientId }
$filter = 'clientId eq ''{0}'' and resourceId eq ''{1}'' and consentType eq ''AllPrincipals''' -f $principal.Id, $exchange.Id
$grant = Get-MgOauth2PermissionGrant -Filter $filter
$scopes = @($grant.Scope -split ' ' | Where-Object { $_ }) + $Permissions | Sort-Object -Unique
if ($grant) {
    Update-MgOauth2PermissionGrant -OAuth2PermissionGrantId $grant.Id -Scope ($scopes -join ' ')
} else {
    New-MgOauth2PermissionGrant -ClientId $principal.Id -ResourceId $exchange.Id -ConsentType 'AllPrincipals' -Scope ($scopes -join ' ') | Out-Null
}
";

const APPLICATION: &str = r"
# --- the application: confidential, with application permissions of Exchange Online ------------------------
$connect = @{ Scopes = @('Application.ReadWrite.All', 'AppRoleAssignment.ReadWrite.All') }
if ($TenantId) { $connect.TenantId = $TenantId }
Connect-MgGraph @connect -NoWelcome
$exchange = Get-MgServicePrincipal -Filter 'appId eq ''00000002-0000-0ff1-ce00-000000000000'''
$app = $null
if ($ClientId) { $app = Get-MgApplication -Filter ('appId eq ''{0}''' -f $ClientId) }
if (-not $app) {
    if ($ClientId) { throw ('There is no application ' + $ClientId + ' in this tenant: see client-id and directory-id') }
    $app = New-MgApplication -DisplayName 'Mailkey' -SignInAudience 'AzureADMyOrg'
    $ClientId = $app.AppId
}
# A secret or a certificate is added by hand (Certificates & secrets), so that no secret stands in a transcript.

# --- permissions, with the administrator's consent in them -------------------------------------------------
$principal = Get-MgServicePrincipal -Filter ('appId eq ''{0}''' -f $ClientId)
if (-not $principal) { $principal = New-MgServicePrincipal -AppId $ClientId }
$known = @{ 'full_access_as_app' = 'dc890d15-9560-4a4c-9b7f-a736ec74ec40' }
$assigned = @(Get-MgServicePrincipalAppRoleAssignment -ServicePrincipalId $principal.Id -All)
foreach ($name in $Permissions) {
    $id = $known[$name]
    if (-not $id) { $id = ($exchange.AppRoles | Where-Object Value -eq $name).Id }
    if (-not $id) { throw ('Exchange Online offers no application permission ' + $name) }
    if (-not ($assigned | Where-Object { $_.AppRoleId -eq $id -and $_.ResourceId -eq $exchange.Id })) {
        New-MgServicePrincipalAppRoleAssignment -ServicePrincipalId $principal.Id -PrincipalId $principal.Id -ResourceId $exchange.Id -AppRoleId $id | Out-Null
    }
}
";

const EXCHANGE: &str = r"
# --- Exchange Online -----------------------------------------------------------------------------------------
Connect-ExchangeOnline -ShowBanner:$false
";

const SERVICE_PRINCIPAL: &str = r"# The object ID is that of the enterprise application ($principal), not that of the app registration ($app): the
# wrong one is taken without a word, and then no mailbox opens.
if (-not (Get-ServicePrincipal | Where-Object AppId -eq $ClientId)) {
    New-ServicePrincipal -AppId $ClientId -ObjectId $principal.Id -DisplayName 'Mailkey' | Out-Null
}
";

const MAILBOX_RIGHTS: &str = r"    Add-MailboxPermission -Identity $mailbox -User $principal.Id -AccessRights FullAccess -AutoMapping $false | Out-Null
";

const SEND_AS: &str = r"    Add-RecipientPermission -Identity $mailbox -Trustee $principal.Id -AccessRights SendAs -Confirm:$false | Out-Null
";

const EWS: &str = r"
# --- EWS: off by default since October 2026, gone on 1 April 2027 --------------------------------------------
# The list is one text, and setting it replaces all of it: what stands in it already is kept.
$policy = Get-OrganizationConfig -RetrieveEwsOperationAccessPolicy
$allowed = @(([string]$policy.EwsAllowedAppIDs) -split ',' | ForEach-Object { $_.Trim() } | Where-Object { $_ })
if ($allowed -notcontains $ClientId) { $allowed += $ClientId }
Set-OrganizationConfig -EwsEnabled $true -EwsAllowedAppIDs ($allowed -join ',')
";

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(kind: Kind) -> Subject {
        Subject {
            kind,
            directory: "contoso.com".to_owned(),
            client_id: "11111111-2222-3333-4444-555555555555".to_owned(),
            protocols: vec![Protocol::Imap, Protocol::Pop3, Protocol::Smtp, Protocol::Ews],
            mailboxes: vec!["o'brien@contoso.com".to_owned()],
        }
    }

    /// What PowerShell sees as code, without literals and comments; fails where a literal or a bracket stays open.
    fn code(script: &str) -> String {
        let mut code = String::new();
        let mut open = Vec::new();
        let mut chars = script.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '\'' => {
                    while let Some(c) = chars.next() {
                        assert_ne!(c, '\n', "a literal stays open in\n{script}");
                        if c == '\'' && chars.next_if_eq(&'\'').is_none() {
                            break;
                        }
                    }
                    code.push_str("''");
                }
                '"' => while chars.next().is_some_and(|c| c != '"') {},
                '#' => while chars.next_if(|c| *c != '\n').is_some() {},
                '(' | '{' | '[' => {
                    open.push(c);
                    code.push(c);
                }
                ')' | '}' | ']' => {
                    let expected = match open.pop() {
                        Some('(') => ')',
                        Some('{') => '}',
                        _ => ']',
                    };
                    assert_eq!(c, expected, "in\n{script}");
                    code.push(c);
                }
                c => code.push(c),
            }
        }
        assert!(open.is_empty(), "in\n{script}");
        code
    }

    #[test]
    fn both_scripts_are_whole_and_hold_the_values() {
        let delegated = script(&subject(Kind::Password));
        code(&delegated);
        for part in [
            "$Mailboxes = @('o''brien@contoso.com')",
            "$TenantId = 'contoso.com'",
            "'IMAP.AccessAsUser.All', 'POP.AccessAsUser.All', 'SMTP.Send', 'EWS.AccessAsUser.All'",
            "-SmtpClientAuthenticationDisabled $false",
            "-IsFallbackPublicClient:$true",
        ] {
            assert!(delegated.contains(part), "{part} is missing in\n{delegated}");
        }
        assert!(!delegated.contains("New-ServicePrincipal"));
        let own = script(&subject(Kind::ClientCredentials));
        let seen = code(&own);
        for part in [
            "New-ServicePrincipal -AppId $ClientId -ObjectId $principal.Id",
            "Add-MailboxPermission -Identity $mailbox -User $principal.Id",
            "Add-RecipientPermission -Identity $mailbox -Trustee $principal.Id -AccessRights SendAs",
            "Get-OrganizationConfig -RetrieveEwsOperationAccessPolicy",
            "Set-OrganizationConfig -EwsEnabled $true -EwsAllowedAppIDs ($allowed -join '')",
        ] {
            assert!(seen.contains(part), "{part} is missing in\n{seen}");
        }
        assert!(own.contains("'full_access_as_app'"));
    }

    #[test]
    fn only_what_is_spoken_is_asked_for() {
        let one = Subject { protocols: vec![Protocol::Imap], ..subject(Kind::ClientCredentials) };
        let text = script(&one);
        for absent in ["SMTP", "EwsAllowedAppIDs", "SendAs", "-PopEnabled"] {
            assert!(!text.contains(absent), "{absent} stands in\n{text}");
        }
    }

    #[test]
    fn no_value_becomes_code() {
        for hostile in [
            "a'; Remove-Mailbox b; '",
            "a\u{2019}; Remove-Mailbox b; \u{2018}",
            "a\nRemove-Mailbox b",
            "$(Remove-Mailbox b)",
            "`\"'",
        ] {
            let given = Subject {
                directory: hostile.to_owned(),
                mailboxes: vec![hostile.to_owned()],
                ..subject(Kind::Password)
            };
            // PowerShell takes typographic quotes for plain ones
            let text = script(&given).replace(['\u{2018}', '\u{2019}'], "'");
            assert!(!code(&text).contains("Remove-Mailbox"), "{text}");
        }
    }
}
