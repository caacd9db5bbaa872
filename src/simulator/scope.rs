//! Which resource a scope asks for, and what it gets.

use super::{aadsts::Failure, tenant::App};

/// Microsoft Graph's application id: the audience of every scope without a resource.
const GRAPH: &str = "00000003-0000-0000-c000-000000000000";
const RESOURCES: [&str; 8] = [
    "https://outlook.office.com",
    "https://outlook.office365.com",
    "https://ps.outlook.com",
    "https://outlook.office365.us",
    "https://partner.outlook.cn",
    "https://graph.microsoft.com",
    "00000002-0000-0ff1-ce00-000000000000",
    GRAPH,
];
/// Scopes of OpenID Connect: they belong to no resource.
const OPENID: [&str; 4] = ["offline_access", "openid", "profile", "email"];
/// Permissions that Graph has, under the same name as Exchange or of its own.
const GRAPH_HAS: [&str; 7] = [
    "IMAP.AccessAsUser.All",
    "POP.AccessAsUser.All",
    "SMTP.Send",
    "User.Read",
    "Mail.Read",
    "Mail.ReadWrite",
    "Mail.Send",
];

/// What a scope comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decided {
    pub(super) audience: String,
    pub(super) permissions: Vec<String>,
    pub(super) offline: bool,
    pub(super) openid: bool,
}

impl Decided {
    /// `scope` of the answer.
    pub(super) fn granted(&self) -> String {
        let prefix = if self.audience == GRAPH { String::new() } else { format!("{}/", self.audience) };
        let mut names: Vec<String> = self.permissions.iter().map(|name| format!("{prefix}{name}")).collect();
        if self.openid {
            names.extend(["openid".to_owned(), "profile".to_owned()]);
        }
        names.join(" ")
    }
}

/// Decides a delegated scope: the first resource wins, two resources are an error.
pub(super) fn delegated(scope: &str, app: &App) -> Result<Decided, Failure> {
    let (mut audience, mut explicit, mut names) = (None::<String>, None::<String>, Vec::new());
    let (mut offline, mut openid) = (false, false);
    for word in scope.split_ascii_whitespace() {
        if OPENID.contains(&word) {
            offline |= word == "offline_access";
            openid |= word == "openid";
            continue;
        }
        let (resource, name) = split(word);
        if let Some(resource) = resource {
            if !RESOURCES.contains(&resource) {
                return Err(Failure::about(500_011, resource));
            }
            if explicit.as_deref().is_some_and(|before| before != resource) {
                return Err(Failure::about(28000, scope));
            }
            explicit = Some(resource.to_owned());
        }
        let resource = match resource {
            None | Some("https://graph.microsoft.com") => GRAPH,
            Some(resource) => resource,
        };
        audience.get_or_insert_with(|| resource.to_owned());
        names.push(name.to_owned());
    }
    let Some(audience) = audience else {
        if !openid && !offline {
            return Err(Failure::about(70011, scope));
        }
        return Ok(Decided {
            audience: GRAPH.to_owned(),
            permissions: vec!["User.Read".to_owned()],
            offline,
            openid,
        });
    };
    if !app.consented {
        return Err(Failure::about(65001, &app.client_id));
    }
    let permissions = if names.iter().any(|name| name == ".default") {
        if names.len() > 1 {
            return Err(Failure::about(70011, scope));
        }
        if app.delegated.is_empty() {
            return Err(Failure::about(65001, &app.client_id));
        }
        app.delegated.clone()
    } else {
        consented(&names, &audience, app, scope)?
    };
    Ok(Decided { audience, permissions, offline, openid })
}

fn consented(names: &[String], audience: &str, app: &App, scope: &str) -> Result<Vec<String>, Failure> {
    let known = |name: &String| {
        GRAPH_HAS.contains(&name.as_str())
            || audience != GRAPH && matches!(name.as_str(), "EWS.AccessAsUser.All" | "EAS.AccessAsUser.All")
    };
    if !names.iter().all(known) {
        return Err(Failure::about(70011, scope));
    }
    let all_consented = names.iter().all(|name| app.delegated.contains(name));
    if all_consented { Ok(names.to_vec()) } else { Err(Failure::about(65001, &app.client_id)) }
}

/// Decides an app-only scope: one resource with `/.default`, nothing else.
pub(super) fn application(scope: &str, app: &App) -> Result<Decided, Failure> {
    let words: Vec<&str> = scope.split_ascii_whitespace().collect();
    let resource = match words.as_slice() {
        [word] => word.strip_suffix("/.default").map(|resource| resource.trim_end_matches('/')),
        [] => return Err(Failure::about(900_144, "scope")),
        _ => None,
    };
    let Some(resource) = resource else {
        return Err(Failure::about(1_002_012, scope));
    };
    if !RESOURCES.contains(&resource) {
        return Err(Failure::about(500_011, resource));
    }
    let audience = if resource == "https://graph.microsoft.com" { GRAPH } else { resource };
    let permissions = if app.consented { app.application.clone() } else { Vec::new() };
    Ok(Decided { audience: audience.to_owned(), permissions, offline: false, openid: false })
}

/// `https://host/Name` is a resource and a name; `https://host//.default` too.
fn split(word: &str) -> (Option<&str>, &str) {
    match word.rsplit_once('/') {
        Some((resource, name)) => (Some(resource.trim_end_matches('/')), name),
        None => (None, word),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tenant::Grantable, *};

    fn app() -> App {
        App::public("app").delegated(Grantable::ALL_DELEGATED).application(Grantable::ALL_APPLICATION)
    }

    fn code(result: Result<Decided, Failure>) -> u32 {
        result.unwrap_err().code
    }

    #[test]
    fn the_first_resource_decides_the_audience() {
        let outlook = "https://outlook.office.com/SMTP.Send";
        let first = delegated(&format!("offline_access {outlook} Mail.Read"), &app()).unwrap();
        assert_eq!((first.audience.as_str(), first.offline), ("https://outlook.office.com", true));
        assert_eq!(delegated(&format!("Mail.Read {outlook}"), &app()).unwrap().audience, GRAPH);
        assert_eq!(delegated("IMAP.AccessAsUser.All", &app()).unwrap().audience, GRAPH);
    }

    #[test]
    fn two_resources_are_refused() {
        let scope = "https://outlook.office.com/SMTP.Send https://graph.microsoft.com/Mail.Read";
        assert_eq!(code(delegated(scope, &app())), 28000);
    }

    #[test]
    fn the_guides_default_scope_gives_all_permissions() {
        let decided = delegated("https://outlook.office.com/.default offline_access", &app()).unwrap();
        assert_eq!(decided.permissions, app().delegated);
        assert!(decided.granted().starts_with("https://outlook.office.com/IMAP.AccessAsUser.All "));
    }

    #[test]
    fn a_misnamed_permission_is_refused() {
        assert_eq!(code(delegated("https://outlook.office.com/POP3.AccessAsUser.All", &app())), 70011);
    }

    #[test]
    fn app_only_scopes_end_in_default() {
        assert_eq!(code(application("https://outlook.office365.com/IMAP.AccessAsApp", &app())), 1_002_012);
        assert_eq!(code(application("https%3A%2F%2Foutlook.office365.com%2F.default", &app())), 1_002_012);
        assert_eq!(code(application("https://example.com/.default", &app())), 500_011);
        let decided = application("https://outlook.office365.com/.default", &app()).unwrap();
        assert_eq!(decided.permissions, app().application);
    }

    #[test]
    fn without_consent_there_is_no_delegated_token() {
        let app = App { consented: false, ..app() };
        assert_eq!(code(delegated("https://outlook.office.com/.default", &app)), 65001);
    }
}
