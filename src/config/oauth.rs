//! The `oauth` section: what each level says (top, listener, account), how the levels are laid over each
//! other, and the application that comes out.
//!
//! Sources: Microsoft's pages "National clouds", "Microsoft identity platform and OAuth 2.0 Resource Owner
//! Password Credentials", "… client credentials flow", "Authenticate an IMAP, POP or SMTP connection using
//! OAuth".

use std::path::PathBuf;

use jiff::civil::Date;
use url::Url;

use super::model::{Application, ClientAuth, Endpoints, Grant, Protocol, Sasl};
use super::raw::{Kind, Node, Place};
use super::read::{At, Reader, Section, is_placeholder};

/// What may stand in an `oauth` section, and in each account.
pub(super) const KEYS: [&str; 19] = [
    "client-id",
    "provider",
    "cloud",
    "tenant-authority",
    "directory-id",
    "scope",
    "resource",
    "grant",
    "client-secret",
    "client-secret-file",
    "client-secret-expires",
    "client-certificate-file",
    "client-key-file",
    "federated-token-file",
    "token-url",
    "authorize-url",
    "device-url",
    "sasl",
    "offline-access",
];

/// Where the client ID is read off.
const CLIENT_ID_PAGE: &str = "copy it from Microsoft Entra admin center > Identity > Applications > App \
                              registrations > your application > Overview: Application (client) ID";

/// Whose identity provider it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Provider {
    Office365,
    Google,
    Custom,
}

impl Provider {
    pub(super) const CHOICES: [(&'static str, Self); 3] =
        [("office365", Self::Office365), ("google", Self::Google), ("custom", Self::Custom)];
}

/// Which of Microsoft's clouds ("National clouds": the login hosts).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cloud {
    Global,
    UsGovGccHigh,
    UsGovDod,
    China,
}

impl Cloud {
    pub(super) const CHOICES: [(&'static str, Self); 4] = [
        ("global", Self::Global),
        ("us-gov-gcc-high", Self::UsGovGccHigh),
        ("us-gov-dod", Self::UsGovDod),
        ("china", Self::China),
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Global => "global",
            Self::UsGovGccHigh => "us-gov-gcc-high",
            Self::UsGovDod => "us-gov-dod",
            Self::China => "china",
        }
    }

    fn login_host(self) -> &'static str {
        match self {
            Self::Global => "login.microsoftonline.com",
            Self::UsGovGccHigh | Self::UsGovDod => "login.microsoftonline.us",
            Self::China => "login.partner.microsoftonline.cn",
        }
    }

    fn resource(self) -> &'static str {
        match self {
            Self::Global => "https://outlook.office.com",
            Self::UsGovGccHigh | Self::UsGovDod => "https://outlook.office365.us",
            Self::China => "https://partner.outlook.cn",
        }
    }

    /// Entra locks out after 3 wrong passwords there, not 10 (smart lock-out).
    pub(super) fn locks_out_early(self) -> bool {
        matches!(self, Self::UsGovGccHigh | Self::UsGovDod)
    }
}

/// What one level says; laid over each other, what they say together.
#[derive(Clone, Debug, Default)]
pub(super) struct OAuth {
    provider: Option<At<Provider>>,
    cloud: Option<At<Cloud>>,
    tenant_authority: Option<At<Url>>,
    directory_id: Option<At<String>>,
    client_id: Option<At<String>>,
    client_auth: Option<At<ClientAuth>>,
    secret_expires: Option<At<Date>>,
    audience: Option<At<Audience>>,
    grants: Option<At<Vec<Grant>>>,
    token_url: Option<At<Url>>,
    authorize_url: Option<At<Url>>,
    device_url: Option<At<Url>>,
    sasl: Option<Sasl>,
    offline_access: Option<bool>,
    /// A value of this level could not be read: what follows from its absence is not said.
    broken: Vec<&'static str>,
}

/// What the token is for. The two exclude each other.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Audience {
    /// A v2.0 endpoint's `scope`.
    Scope(String),
    /// A v1 endpoint's `resource`.
    Resource(String),
}

impl OAuth {
    /// Reads the keys of one level.
    pub(super) fn read(reader: &Reader<'_>, section: &Section<'_>) -> Self {
        let mut oauth = Self::default();
        let mut broken = Vec::new();
        let mut note = |key: &'static str, there: bool| {
            if !there && section.get(key).is_some() {
                broken.push(key);
            }
        };
        let text = |key: &str, expected: &str| {
            let text = reader.text(section.get(key)?, expected)?;
            Some(At { value: text.value.as_str().to_owned(), at: text.at })
        };
        oauth.provider = section.get("provider").and_then(|node| reader.one_of(node, &Provider::CHOICES));
        oauth.cloud = section.get("cloud").and_then(|node| reader.one_of(node, &Cloud::CHOICES));
        oauth.tenant_authority = section.get("tenant-authority").and_then(|node| reader.identity_url(node));
        oauth.directory_id = section.get("directory-id").and_then(|node| directory(reader, node));
        note("directory-id", oauth.directory_id.is_some());
        oauth.client_id = text("client-id", "the application (client) ID");
        note("client-id", oauth.client_id.is_some());
        oauth.grants = section.get("grant").and_then(|node| grants(reader, node));
        note("grant", oauth.grants.is_some());
        oauth.token_url = section.get("token-url").and_then(|node| reader.identity_url(node));
        oauth.authorize_url = section.get("authorize-url").and_then(|node| reader.identity_url(node));
        oauth.device_url = section.get("device-url").and_then(|node| reader.identity_url(node));
        note("token-url", oauth.token_url.is_some());
        note("authorize-url", oauth.authorize_url.is_some());
        note("device-url", oauth.device_url.is_some());
        oauth.sasl = section
            .get("sasl")
            .and_then(|node| {
                let known =
                    [("xoauth2", Sasl::Xoauth2), ("oauthbearer", Sasl::OauthBearer), ("auto", Sasl::Auto)];
                reader.one_of(node, &known)
            })
            .map(|sasl| sasl.value);
        oauth.offline_access = section.get("offline-access").and_then(|node| reader.flag(node));
        let scope = text("scope", "scopes, separated by blanks").map(|scope| At {
            value: Audience::Scope(scope.value.split_whitespace().collect::<Vec<_>>().join(" ")),
            at: scope.at,
        });
        let resource = text("resource", "the URL of a resource, for a v1 endpoint")
            .map(|resource| At { value: Audience::Resource(resource.value), at: resource.at });
        if let (Some(_), Some(resource)) = (&scope, &resource) {
            reader.both(resource.at, "scope", "resource");
        }
        oauth.audience = resource.or(scope);
        oauth.client_auth = client_auth(reader, section);
        let proofs =
            ["client-secret", "client-secret-file", "client-certificate-file", "client-key-file", FEDERATED];
        for key in proofs {
            note(key, oauth.client_auth.is_some());
        }
        oauth.secret_expires = section.get("client-secret-expires").and_then(|node| {
            reader
                .parse(node, "a day", |text| text.parse().map_err(|_| "write it as `2027-05-31`".to_owned()))
        });
        oauth.broken = broken;
        oauth
    }

    /// This level laid over a farther one. A level that names another provider or cloud takes none of the
    /// farther one's URLs and scopes, which belong to the cloud that they were written for.
    pub(super) fn over(&self, far: &Self) -> Self {
        let near = self.clone();
        let moved = near.provider.is_some() && self.provider() != far.provider()
            || near.cloud.is_some() && self.cloud() != far.cloud();
        let inherited = if moved {
            Self {
                tenant_authority: None,
                audience: None,
                token_url: None,
                authorize_url: None,
                device_url: None,
                ..far.clone()
            }
        } else {
            far.clone()
        };
        Self {
            // the day belongs to the secret beside it
            secret_expires: match near.client_auth {
                Some(_) => near.secret_expires,
                None => near.secret_expires.or(inherited.secret_expires),
            },
            provider: near.provider.or(inherited.provider),
            cloud: near.cloud.or(inherited.cloud),
            tenant_authority: near.tenant_authority.or(inherited.tenant_authority),
            directory_id: near.directory_id.or(inherited.directory_id),
            client_id: near.client_id.or(inherited.client_id),
            client_auth: near.client_auth.or(inherited.client_auth),
            audience: near.audience.or(inherited.audience),
            grants: near.grants.or(inherited.grants),
            token_url: near.token_url.or(inherited.token_url),
            authorize_url: near.authorize_url.or(inherited.authorize_url),
            device_url: near.device_url.or(inherited.device_url),
            sasl: near.sasl.or(inherited.sasl),
            offline_access: near.offline_access.or(inherited.offline_access),
            broken: near.broken.into_iter().chain(inherited.broken).collect(),
        }
    }

    pub(super) fn provider(&self) -> Provider {
        self.provider.as_ref().map_or(Provider::Office365, |provider| provider.value)
    }

    pub(super) fn cloud(&self) -> Cloud {
        self.cloud.as_ref().map_or(Cloud::Global, |cloud| cloud.value)
    }

    /// Where the grants were written, if they were.
    pub(super) fn grants_at(&self) -> Option<Place> {
        self.grants.as_ref().map(|grants| grants.at)
    }

    /// The application that these settings describe. `section` is where missing keys belong.
    pub(super) fn application(&self, reader: &Reader<'_>, section: Place) -> Option<Application> {
        let mut this = self.clone();
        this.take_workload_identity(reader, section);
        let grants = this.grants();
        this.check_grants(reader, section, &grants);
        let endpoints = match this.provider() {
            Provider::Office365 => this.microsoft(reader, section, &grants),
            Provider::Google => google(),
            Provider::Custom => this.custom(reader, section, &grants),
        };
        if let Some(day) = &this.secret_expires
            && !matches!(&this.client_auth, Some(At { value: ClientAuth::Secret(_), .. }))
            && !this.is_broken(&["client-secret", "client-secret-file"])
        {
            let what = "`client-secret-expires` is about a secret that is not there";
            reader.problem(day.at, what, "add `client-secret-file`, or remove this line");
        }
        let scope = this.scope(reader, section, &grants);
        let client_id = this.client_id(reader, section, &grants)?;
        let sasl = this.sasl.unwrap_or(match this.provider() {
            Provider::Custom => Sasl::Auto,
            Provider::Office365 | Provider::Google => Sasl::Xoauth2,
        });
        Some(Application {
            endpoints: endpoints?,
            client_id,
            client_auth: this.client_auth.map_or(ClientAuth::Public, |auth| auth.value),
            secret_expires: this.secret_expires.map(|day| day.value),
            scope,
            resource: this.cloud.map_or(Cloud::Global, |cloud| cloud.value).resource().to_owned(),
            grants,
            offline_access: this.offline_access.unwrap_or(true),
            sasl,
        })
    }

    fn grants(&self) -> Vec<Grant> {
        match (&self.grants, self.provider()) {
            (Some(grants), _) => grants.value.clone(),
            (None, Provider::Google) => vec![Grant::AuthorizationCode],
            (None, Provider::Office365 | Provider::Custom) => vec![Grant::Password],
        }
    }

    /// The variables that Azure's workload identity webhook sets count where nothing else proves who the
    /// application is.
    fn take_workload_identity(&mut self, reader: &Reader<'_>, section: Place) {
        let federated = match &self.client_auth {
            Some(At { value: ClientAuth::FederatedTokenFile(_), .. }) => true,
            Some(_) => false,
            None => {
                let wanted =
                    self.grants().contains(&Grant::ClientCredentials) && !self.is_broken(&[FEDERATED]);
                let file = wanted.then(|| (reader.env)("AZURE_FEDERATED_TOKEN_FILE")).flatten();
                if let Some(file) = file.as_ref().filter(|file| !file.is_empty()) {
                    let at = self.grants_at().unwrap_or(section);
                    reader.remark(
                        at,
                        "the application proves itself by the token in AZURE_FEDERATED_TOKEN_FILE",
                        "write `federated-token-file: azure` to say so in the file",
                    );
                    let value = ClientAuth::FederatedTokenFile(PathBuf::from(file));
                    self.client_auth = Some(At { value, at });
                }
                self.client_auth.is_some()
            }
        };
        if !federated || self.provider() != Provider::Office365 {
            return;
        }
        let variable = |name: &str| {
            let value = (reader.env)(name).filter(|value| !value.is_empty())?;
            Some(At { value, at: section })
        };
        self.directory_id = self.directory_id.take().or_else(|| variable("AZURE_TENANT_ID"));
        self.client_id = self.client_id.take().or_else(|| variable("AZURE_CLIENT_ID"));
        if self.tenant_authority.is_none() && self.cloud.is_none() {
            self.tenant_authority = variable("AZURE_AUTHORITY_HOST")
                .and_then(|host| Some(At { value: Url::parse(&host.value).ok()?, at: host.at }))
                .filter(|url| url.value.scheme() == "https");
        }
    }

    fn is_broken(&self, keys: &[&str]) -> bool {
        self.broken.iter().any(|key| keys.contains(key))
    }

    fn client_id(&self, reader: &Reader<'_>, section: Place, grants: &[Grant]) -> Option<String> {
        let page = match self.provider() {
            Provider::Office365 => CLIENT_ID_PAGE,
            Provider::Google => "copy it from Google Cloud console > APIs & Services > Credentials",
            Provider::Custom => "ask whoever runs the identity provider",
        };
        let Some(At { value: id, at }) = &self.client_id else {
            if grants.iter().all(|grant| *grant == Grant::ManagedIdentity) {
                return Some(String::new());
            }
            if !self.is_broken(&["client-id"]) {
                reader.problem(section, "`oauth.client-id` is missing", page);
            }
            return None;
        };
        if is_placeholder(id) {
            reader.problem(*at, "`client-id` is not set yet", page);
            return None;
        }
        if self.provider() == Provider::Office365 && self.is_microsofts_own() && !is_guid(id) {
            let what =
                "`client-id` is no application ID, which looks like 11111111-2222-3333-4444-555555555555";
            reader.problem(*at, what, page);
            return None;
        }
        Some(id.clone())
    }

    /// Whether the authority is one of Microsoft's, and not a stand-in.
    fn is_microsofts_own(&self) -> bool {
        self.tenant_authority.as_ref().is_none_or(|url| cloud_of_login(&url.value).is_some())
    }

    fn microsoft(&self, reader: &Reader<'_>, section: Place, grants: &[Grant]) -> Option<Endpoints> {
        for (key, url) in [
            ("token-url", &self.token_url),
            ("authorize-url", &self.authorize_url),
            ("device-url", &self.device_url),
        ] {
            if let Some(url) = url {
                let what = format!("`{key}` belongs to `provider: custom`");
                reader.problem(url.at, what, "remove it: `tenant-authority` and `directory-id` say it all");
            }
        }
        self.check_authority(reader);
        let directory = self.checked_directory(reader, section, grants)?;
        let host = match &self.tenant_authority {
            Some(url) => url.value.as_str().trim_end_matches('/').to_owned(),
            None => format!("https://{}", self.cloud().login_host()),
        };
        let authority = format!("{host}/{directory}");
        let resource = match &self.audience {
            Some(At { value: Audience::Resource(resource), .. }) => Some(resource.clone()),
            Some(At { value: Audience::Scope(_), .. }) | None => None,
        };
        let path = if resource.is_some() { "oauth2" } else { "oauth2/v2.0" };
        let endpoint = |name: &str| Url::parse(&format!("{authority}/{path}/{name}")).ok();
        Some(Endpoints {
            token: endpoint("token")?,
            authorize: endpoint("authorize"),
            device: endpoint("devicecode"),
            authority,
            v1_resource: resource,
        })
    }

    fn check_authority(&self, reader: &Reader<'_>) {
        let Some(At { value: url, at }) = &self.tenant_authority else { return };
        if url.query().is_some() || url.fragment().is_some() {
            reader.problem(*at, "`tenant-authority` ends at the host", "remove everything behind the host");
            return;
        }
        let Some(clouds) = cloud_of_login(url) else { return };
        if url.path() != "/" {
            let directory = url.path().trim_matches('/').split('/').next().unwrap_or_default();
            reader.problem(
                *at,
                "`tenant-authority` ends at the host; the directory has a key of its own",
                format!("write `directory-id: {}`, and cut the path off here", short(directory)),
            );
        }
        if self.provider() == Provider::Office365 && !clouds.contains(&self.cloud()) && self.cloud.is_some() {
            let what = format!("this login host does not belong to `cloud: {}`", self.cloud().as_str());
            reader.problem(*at, what, "remove `tenant-authority`: `cloud` fills it in");
        }
    }

    fn checked_directory(&self, reader: &Reader<'_>, section: Place, grants: &[Grant]) -> Option<String> {
        if self.directory_id.is_none() && self.is_broken(&["directory-id"]) {
            return None;
        }
        let directory = self.directory_id.as_ref().map_or("organizations", |id| id.value.as_str());
        let at = self.grants_at().or(self.directory_id.as_ref().map(|id| id.at)).unwrap_or(section);
        let shared = ["organizations", "common", "consumers"].contains(&directory);
        if self.is_microsofts_own() && !shared && !is_guid(directory) && !directory.contains('.') {
            let near = super::problem::nearest(directory, ["organizations", "common", "consumers"]);
            reader.problem(
                at,
                format!("`directory-id: {}` is no directory", short(directory)),
                near.map_or_else(
                    || "write the Directory (tenant) ID, a verified domain, or `organizations`".to_owned(),
                    |near| format!("did you mean `{near}`?"),
                ),
            );
            return None;
        }
        for grant in grants {
            match grant {
                Grant::Password if directory == "common" || directory == "consumers" => reader.problem(
                    at,
                    format!(
                        "`grant: password` does not work with `directory-id: {directory}` (AADSTS9001023)"
                    ),
                    "write `organizations`, or the Directory (tenant) ID",
                ),
                Grant::ClientCredentials | Grant::ManagedIdentity if shared => reader.problem(
                    at,
                    format!("`grant: {}` does not work with `directory-id: {directory}`", grant.as_str()),
                    "write the Directory (tenant) ID, or a verified domain, as `directory-id`",
                ),
                Grant::Password
                | Grant::ClientCredentials
                | Grant::DeviceCode
                | Grant::AuthorizationCode
                | Grant::ManagedIdentity => {}
            }
        }
        Some(directory.to_owned())
    }

    fn custom(&self, reader: &Reader<'_>, section: Place, grants: &[Grant]) -> Option<Endpoints> {
        let mut needed = vec![("token-url", self.token_url.is_some(), "every grant")];
        if grants.contains(&Grant::AuthorizationCode) {
            needed.push(("authorize-url", self.authorize_url.is_some(), "`grant: authorization-code`"));
        }
        if grants.contains(&Grant::DeviceCode) {
            needed.push(("device-url", self.device_url.is_some(), "`grant: device-code`"));
        }
        for (key, there, why) in needed {
            if !there && !self.is_broken(&[key]) {
                let what = format!("`oauth.{key}` is missing: {why} needs it with `provider: custom`");
                reader.problem(self.provider_at(section), what, "ask whoever runs the identity provider");
            }
        }
        if self.audience.is_none() {
            let what = "`oauth.scope` is missing: `provider: custom` has no default";
            reader.problem(self.provider_at(section), what, "ask whoever runs the identity provider");
        }
        let token = self.token_url.as_ref()?.value.clone();
        Some(Endpoints {
            authority: token.origin().ascii_serialization(),
            token,
            authorize: self.authorize_url.as_ref().map(|url| url.value.clone()),
            device: self.device_url.as_ref().map(|url| url.value.clone()),
            v1_resource: match &self.audience {
                Some(At { value: Audience::Resource(resource), .. }) => Some(resource.clone()),
                Some(At { value: Audience::Scope(_), .. }) | None => None,
            },
        })
    }

    fn provider_at(&self, section: Place) -> Place {
        self.provider.as_ref().map_or(section, |provider| provider.at)
    }

    fn check_grants(&self, reader: &Reader<'_>, section: Place, grants: &[Grant]) {
        let at = self.grants_at().unwrap_or(section);
        for grant in grants {
            let served = match self.provider() {
                Provider::Office365 => true,
                Provider::Google => matches!(grant, Grant::AuthorizationCode | Grant::DeviceCode),
                Provider::Custom => *grant != Grant::ManagedIdentity,
            };
            if !served {
                let what = format!("this provider has no `grant: {}`", grant.as_str());
                reader.problem(at, what, "write `authorization-code` or `device-code`");
            }
        }
        let proofs =
            ["client-secret", "client-secret-file", "client-certificate-file", "client-key-file", FEDERATED];
        if grants.contains(&Grant::ClientCredentials)
            && self.client_auth.is_none()
            && !self.is_broken(&proofs)
        {
            reader.problem(
                at,
                "`grant: client-credentials` needs a proof that we are the application",
                "add `client-secret-file`, or `client-certificate-file` with `client-key-file`, or \
                 `federated-token-file`",
            );
        }
    }

    fn scope(&self, reader: &Reader<'_>, section: Place, grants: &[Grant]) -> Option<String> {
        let scope = match &self.audience {
            Some(At { value: Audience::Scope(scope), .. }) => scope.clone(),
            Some(At { value: Audience::Resource(_), .. }) | None => {
                return (self.provider() == Provider::Google).then(|| "https://mail.google.com/".to_owned());
            }
        };
        let at = self.audience.as_ref().map_or(section, |audience| audience.at);
        if self.provider() == Provider::Office365 {
            self.check_scope(reader, at, &scope, grants);
        }
        Some(scope)
    }

    fn check_scope(&self, reader: &Reader<'_>, at: Place, scope: &str, grants: &[Grant]) {
        let resource = self.cloud().resource();
        let mut resources: Vec<&str> = Vec::new();
        let mut names: Vec<&str> = Vec::new();
        for word in scope.split(' ').filter(|word| !IDENTITY_SCOPES.contains(word)) {
            let Some((host, name)) = word.rsplit_once('/').filter(|(host, _)| host.contains("://")) else {
                reader.problem(
                    at,
                    format!(
                        "scope `{}` without a resource means Microsoft Graph, which no mailbox accepts",
                        short(word)
                    ),
                    format!("write `{resource}/{}`", short(permission(word))),
                );
                continue;
            };
            let host = host.trim_end_matches('/');
            if !resources.iter().any(|known| same_resource(known, host)) {
                resources.push(host);
            }
            if permission(name) != name {
                let right = permission(name);
                reader.problem(
                    at,
                    format!("there is no permission `{name}`"),
                    format!("write `{host}/{right}`"),
                );
            }
            names.push(name);
        }
        if let [one, other, ..] = resources.as_slice() {
            let what = format!(
                "scopes of several resources, `{}` and `{}`, do not go into one token (AADSTS28000)",
                short(one),
                short(other)
            );
            reader.problem(at, what, format!("keep those of `{resource}`"));
        } else if names.contains(&".default") && names.len() > 1 {
            let what = "`.default` does not go together with other scopes of its resource";
            reader.problem(at, what, "keep `.default`, or remove it and name the permissions");
        } else if let Some(graph) = resources.iter().find(|host| host.contains("graph.microsoft.")) {
            let what = format!("a token for `{}` is refused by every mailbox", short(graph));
            reader.problem(at, what, format!("write `{resource}/.default`, or remove `scope`"));
        } else if let Some(other) = resources.first().and_then(|host| cloud_of_resource(host))
            && !other.contains(&self.cloud())
        {
            let what = format!("this scope does not belong to `cloud: {}`", self.cloud().as_str());
            reader.problem(at, what, format!("write `{resource}/.default`, or remove `scope`"));
        }
        let app_only = grants.iter().find(|g| matches!(g, Grant::ClientCredentials | Grant::ManagedIdentity));
        if let Some(grant) = app_only
            && !names.is_empty()
            && !names.contains(&".default")
        {
            let what = format!("`grant: {}` takes no scope but `.default`", grant.as_str());
            reader.problem(at, what, format!("write `{resource}/.default`, or remove `scope`"));
        }
    }

    /// Whether the delegated permissions that are asked for leave this protocol out.
    pub(super) fn leaves_out(&self, protocol: Protocol) -> Option<(Place, &'static str)> {
        let Some(At { value: Audience::Scope(scope), at }) = &self.audience else { return None };
        let named: Vec<&str> = scope
            .split(' ')
            .filter_map(|word| word.rsplit_once('/'))
            .map(|(_, name)| name)
            .filter(|name| PERMISSIONS.iter().any(|(_, known)| known == name))
            .collect();
        let (_, needed) = PERMISSIONS.iter().find(|(of, _)| *of == protocol)?;
        (!named.is_empty() && !named.contains(needed)).then_some((*at, *needed))
    }
}

const FEDERATED: &str = "federated-token-file";

/// OpenID Connect's own; they belong to no resource.
const IDENTITY_SCOPES: [&str; 4] = ["offline_access", "openid", "profile", "email"];

/// The delegated permission of each protocol.
const PERMISSIONS: [(Protocol, &str); 5] = [
    (Protocol::Imap, "IMAP.AccessAsUser.All"),
    (Protocol::Pop3, "POP.AccessAsUser.All"),
    (Protocol::Smtp, "SMTP.Send"),
    (Protocol::Ews, "EWS.AccessAsUser.All"),
    (Protocol::ActiveSync, "EAS.AccessAsUser.All"),
];

/// The name that is meant: guides call POP's permission by a name that it does not have.
fn permission(name: &str) -> &str {
    if name.eq_ignore_ascii_case("POP3.AccessAsUser.All") { "POP.AccessAsUser.All" } else { name }
}

/// Exchange Online answers to both names, and they are one resource.
fn same_resource(one: &str, other: &str) -> bool {
    let canonical =
        |host: &str| host.to_ascii_lowercase().replace("outlook.office365.com", "outlook.office.com");
    canonical(one) == canonical(other)
}

fn cloud_of_login(url: &Url) -> Option<&'static [Cloud]> {
    match url.host_str()? {
        "login.microsoftonline.com" | "login.windows.net" | "login.microsoft.com" | "sts.windows.net" => {
            Some(&[Cloud::Global])
        }
        "login.microsoftonline.us" => Some(&[Cloud::UsGovGccHigh, Cloud::UsGovDod]),
        "login.partner.microsoftonline.cn" | "login.chinacloudapi.cn" => Some(&[Cloud::China]),
        _ => None,
    }
}

fn cloud_of_resource(resource: &str) -> Option<&'static [Cloud]> {
    match resource.to_ascii_lowercase().as_str() {
        "https://outlook.office.com" | "https://outlook.office365.com" | "https://ps.outlook.com" => {
            Some(&[Cloud::Global])
        }
        "https://outlook.office365.us" | "https://outlook-dod.office365.us" => {
            Some(&[Cloud::UsGovGccHigh, Cloud::UsGovDod])
        }
        "https://partner.outlook.cn" => Some(&[Cloud::China]),
        _ => None,
    }
}

fn google() -> Option<Endpoints> {
    Some(Endpoints {
        token: Url::parse("https://oauth2.googleapis.com/token").ok()?,
        authorize: Url::parse("https://accounts.google.com/o/oauth2/v2/auth").ok(),
        device: Url::parse("https://oauth2.googleapis.com/device/code").ok(),
        authority: "https://accounts.google.com".to_owned(),
        v1_resource: None,
    })
}

fn directory(reader: &Reader<'_>, node: &Node) -> Option<At<String>> {
    let expected = "the Directory (tenant) ID, a verified domain, or `organizations`";
    reader.parse(node, expected, |text| {
        if is_placeholder(text) {
            return Err("copy it from the same page as the client ID: Directory (tenant) ID".to_owned());
        }
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.' || b == b'_');
        // It becomes part of a path: `..` would climb.
        if plain && !text.starts_with('.') { Ok(text.to_owned()) } else { Err(String::new()) }
    })
}

fn grants(reader: &Reader<'_>, node: &Node) -> Option<At<Vec<Grant>>> {
    const CHOICES: [(&str, Grant); 5] = [
        ("password", Grant::Password),
        ("client-credentials", Grant::ClientCredentials),
        ("device-code", Grant::DeviceCode),
        ("authorization-code", Grant::AuthorizationCode),
        ("managed-identity", Grant::ManagedIdentity),
    ];
    let items = reader.list(node, "a grant, or a list of them");
    if items.is_empty() {
        if !matches!(node.kind, Kind::Map(_)) {
            reader.problem(node.at, "expected a grant, or a list of them, found nothing", "write `password`");
        }
        return None;
    }
    let mut value: Vec<Grant> = Vec::new();
    let expected = items.len();
    for item in items {
        let Some(grant) = reader.one_of(item, &CHOICES) else { continue };
        if value.contains(&grant.value) {
            reader.problem(item.at, "this grant stands twice in the list", "remove one of the two");
        }
        value.push(grant.value);
    }
    (value.len() == expected).then_some(At { value, at: node.at })
}

fn client_auth(reader: &Reader<'_>, section: &Section<'_>) -> Option<At<ClientAuth>> {
    let secret = reader
        .secret(section, "client-secret")
        .map(|secret| At { value: ClientAuth::Secret(secret.value), at: secret.at });
    let certificate = certificate(reader, section);
    let federated = section.get(FEDERATED).and_then(|node| federated(reader, node));
    let first = |keys: &[&str]| keys.iter().find_map(|key| Some((section.key_at(key)?, (*key).to_owned())));
    let there: Vec<(Place, String)> = [
        first(&["client-secret", "client-secret-file"]),
        first(&["client-certificate-file", "client-key-file"]),
        first(&[FEDERATED]),
    ]
    .into_iter()
    .flatten()
    .collect();
    if let [(_, one), (at, other), ..] = there.as_slice() {
        reader.both(*at, one, other);
    }
    secret.or(certificate).or(federated)
}

fn certificate(reader: &Reader<'_>, section: &Section<'_>) -> Option<At<ClientAuth>> {
    let certificate = section.get("client-certificate-file");
    let key = section.get("client-key-file");
    match (certificate, key) {
        (Some(node), None) => {
            reader.problem(node.at, "`client-certificate-file` needs its key", "add `client-key-file`");
            None
        }
        (None, Some(node)) => {
            let what = "`client-key-file` needs its certificate";
            reader.problem(node.at, what, "add `client-certificate-file`");
            None
        }
        (Some(certificate), Some(key)) => {
            // Both are looked at, so that both are complained about.
            let (certificate, key) = (reader.file(certificate), reader.private_file(key));
            let certificate = certificate?;
            let value = ClientAuth::Certificate { certificate_file: certificate.value, key_file: key?.value };
            Some(At { value, at: certificate.at })
        }
        (None, None) => None,
    }
}

fn federated(reader: &Reader<'_>, node: &Node) -> Option<At<ClientAuth>> {
    if node.scalar() != Some("azure") {
        let file = reader.private_file(node)?;
        return Some(At { value: ClientAuth::FederatedTokenFile(file.value), at: file.at });
    }
    let Some(file) = (reader.env)("AZURE_FEDERATED_TOKEN_FILE").filter(|file| !file.is_empty()) else {
        reader.problem(
            node.at,
            "the environment variable `AZURE_FEDERATED_TOKEN_FILE` is not set",
            "label the pod `azure.workload.identity/use: \"true\"`, or write the path of the file",
        );
        return None;
    };
    Some(At { value: ClientAuth::FederatedTokenFile(PathBuf::from(file)), at: node.at })
}

fn is_guid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
        && groups.iter().all(|group| group.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(60).collect()
}
