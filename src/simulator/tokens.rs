//! Every token, code and refresh token that the identity provider gave out.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{random, time};

/// How many access tokens are remembered before old ones are swept.
const REMEMBERED: usize = 50_000;

/// What stands behind an access token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bearer {
    /// The user; `None` for an app-only token.
    pub(super) user: Option<String>,
    pub(super) oid: String,
    pub(super) client_id: String,
    pub(super) directory: String,
    pub(super) audience: String,
    /// Delegated scopes, or application roles.
    pub(super) permissions: Vec<String>,
    pub(super) expires: Instant,
}

/// What stands behind a refresh token.
#[derive(Clone, Debug)]
pub(super) struct Refresh {
    pub(super) user: String,
    pub(super) epoch: u32,
    pub(super) client_id: String,
    pub(super) scope: String,
}

/// What stands behind an authorization code.
#[derive(Clone, Debug)]
pub(super) struct Code {
    pub(super) user: String,
    pub(super) client_id: String,
    pub(super) redirect_uri: String,
    pub(super) challenge: Option<String>,
    pub(super) expires: Instant,
    pub(super) redeemed: bool,
}

/// A device code and how far it got.
#[derive(Clone, Debug)]
pub(super) struct Device {
    pub(super) user_code: String,
    pub(super) client_id: String,
    pub(super) scope: String,
    pub(super) expires: Instant,
    pub(super) answer: DeviceAnswer,
}

/// What the human did at the other device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DeviceAnswer {
    Pending,
    Approved(String),
    Declined,
    Redeemed,
}

#[derive(Debug, Default)]
pub(super) struct Tokens {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    access: HashMap<String, Arc<Bearer>>,
    refresh: HashMap<String, Refresh>,
    codes: HashMap<String, Code>,
    devices: HashMap<String, Device>,
}

impl Tokens {
    /// Makes an access token of at least `size` octets and remembers it.
    pub(super) fn issue(&self, bearer: Bearer, lifetime: Duration, size: Option<usize>) -> String {
        let token = jwt(&bearer, lifetime, size);
        let mut inner = self.lock();
        if inner.access.len() >= REMEMBERED {
            let now = time::now();
            inner.access.retain(|_, bearer| bearer.expires > now);
            if inner.access.len() >= REMEMBERED {
                inner.access.clear();
            }
        }
        inner.access.insert(token.clone(), Arc::new(bearer));
        token
    }

    /// Every access token that is remembered.
    pub(super) fn issued(&self) -> Vec<String> {
        self.lock().access.keys().cloned().collect()
    }

    /// The bearer of a token that is still good.
    pub(super) fn bearer(&self, token: &str) -> Option<Arc<Bearer>> {
        let bearer = self.lock().access.get(token).map(Arc::clone)?;
        (bearer.expires > time::now()).then_some(bearer)
    }

    /// Ends every access token.
    pub(super) fn expire_all(&self) {
        self.lock().access.clear();
    }

    pub(super) fn issue_refresh(&self, refresh: Refresh) -> String {
        let token = format!("1.{}", random::text(600));
        let mut inner = self.lock();
        if inner.refresh.len() >= REMEMBERED {
            inner.refresh.clear();
        }
        inner.refresh.insert(token.clone(), refresh);
        token
    }

    pub(super) fn refresh(&self, token: &str) -> Option<Refresh> {
        self.lock().refresh.get(token).cloned()
    }

    pub(super) fn issue_code(&self, code: Code) -> String {
        let text = format!("0.{}", random::text(300));
        let mut inner = self.lock();
        let now = time::now();
        inner.codes.retain(|_, code| code.expires > now);
        inner.codes.insert(text.clone(), code);
        text
    }

    /// The code, and whether this is its first use: from now on it is used.
    pub(super) fn redeem_code(&self, text: &str) -> Option<Code> {
        let mut inner = self.lock();
        let code = inner.codes.get_mut(text)?;
        let before = code.clone();
        code.redeemed = true;
        Some(before)
    }

    pub(super) fn issue_device(&self, device: Device) -> String {
        let text = random::text(120);
        let mut inner = self.lock();
        if inner.devices.len() >= 1000 {
            let now = time::now();
            inner.devices.retain(|_, device| device.expires > now);
        }
        inner.devices.insert(text.clone(), device);
        text
    }

    pub(super) fn device(&self, text: &str) -> Option<Device> {
        self.lock().devices.get(text).cloned()
    }

    pub(super) fn redeem_device(&self, text: &str) {
        if let Some(device) = self.lock().devices.get_mut(text) {
            device.answer = DeviceAnswer::Redeemed;
        }
    }

    /// Answers for the human: by user code. `false` if there is no such code.
    pub(super) fn answer_device(&self, user_code: &str, answer: &DeviceAnswer) -> bool {
        let mut inner = self.lock();
        let device =
            inner.devices.values_mut().find(|device| device.user_code.eq_ignore_ascii_case(user_code));
        device.is_some_and(|device| {
            device.answer = answer.clone();
            true
        })
    }

    /// User codes that wait for their human.
    pub(super) fn pending_devices(&self) -> Vec<String> {
        let inner = self.lock();
        let pending = inner.devices.values().filter(|device| device.answer == DeviceAnswer::Pending);
        pending.map(|device| device.user_code.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A JWT as Entra's look: claims that can be read, and a signature that nobody checks.
fn jwt(bearer: &Bearer, lifetime: Duration, size: Option<usize>) -> String {
    let now = time::wall().as_second();
    let lifetime = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX / 2);
    let header = json!({"typ": "JWT", "nonce": random::text(32), "alg": "RS256", "x5t": random::text(20), "kid": random::text(20)});
    let mut claims = json!({
        "aud": bearer.audience,
        "iss": format!("https://sts.windows.net/{}/", bearer.directory),
        "iat": now, "nbf": now, "exp": now + lifetime,
        "aio": random::text(60), "appid": bearer.client_id, "app_displayname": "Mail gateway",
        "idp": format!("https://sts.windows.net/{}/", bearer.directory),
        "oid": bearer.oid, "sub": random::text(32), "tid": bearer.directory, "rh": format!("1.{}", random::text(40)),
        "uti": random::text(16), "ver": "1.0", "xms_tdbr": "EU", "xms_ftd": random::text(40),
    });
    if let Some(claims) = claims.as_object_mut() {
        let mut put = |name: &str, value: Value| drop(claims.insert(name.to_owned(), value));
        if let Some(user) = &bearer.user {
            put("scp", bearer.permissions.join(" ").into());
            put("upn", user.as_str().into());
            put("unique_name", user.as_str().into());
            put("acct", 0.into());
            put("acr", "1".into());
            put("amr", json!(["pwd"]));
            put("appidacr", "0".into());
            put("ipaddr", "203.0.113.7".into());
            put("puid", "1003200012345678".into());
            put("sid", random::guid().into());
        } else {
            put("roles", json!(bearer.permissions));
            put("appidacr", "1".into());
            put("idtyp", "app".into());
        }
        let wanted =
            size.unwrap_or_else(|| 1500 + usize::try_from(random::number() % 900).unwrap_or_default());
        let header_and_signature = 600;
        let padding = (wanted.saturating_sub(header_and_signature) * 3 / 4).saturating_sub(900);
        put("xms_idrel", random::text(padding * 3 / 4 + 6).into());
        if size.is_some() {
            // Claims vary in length: make sure of the least size.
            put("xms_st", json!({"sub": random::text(200)}));
        }
    }
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{}", part(&header), part(&claims), random::text(256))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(lifetime: Duration) -> Bearer {
        Bearer {
            user: Some("alice@contoso.com".to_owned()),
            oid: random::guid(),
            client_id: random::guid(),
            directory: random::guid(),
            audience: "https://outlook.office.com".to_owned(),
            permissions: vec!["IMAP.AccessAsUser.All".to_owned()],
            expires: time::now() + lifetime,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_has_the_size_of_real_ones_and_ends() {
        let tokens = Tokens::default();
        let hour = Duration::from_hours(1);
        for _ in 0..20 {
            let token = tokens.issue(bearer(hour), hour, None);
            assert!((1500..2600).contains(&token.len()), "{}", token.len());
            assert!(tokens.bearer(&token).is_some());
        }
        for size in [3000, 4097, 9000, 30_000] {
            let token = tokens.issue(bearer(hour), hour, Some(size));
            assert!((size..size + 900).contains(&token.len()), "{size}: {}", token.len());
        }
        let token = tokens.issue(bearer(hour), hour, None);
        tokio::time::advance(hour).await;
        assert_eq!(tokens.bearer(&token), None);
    }
}
