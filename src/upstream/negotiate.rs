//! Negotiate (RFC 4559): Kerberos at the corporate proxy, by the system's GSSAPI. Optional: feature `negotiate`.
//!
//! With a user name and password a ticket is got for them, and kept as long as it lives; without, the ticket
//! cache or the keytab of the account that the program runs as is used (KRB5CCNAME, KRB5_CLIENT_KTNAME).
//! The library blocks while it asks the key distribution centre, and therefore has threads of its own.

use std::sync::{Mutex, PoisonError};

use libgssapi::context::{ClientCtx, CtxFlags};
use libgssapi::credential::{Cred, CredUsage};
use libgssapi::error::Error;
use libgssapi::name::Name;
use libgssapi::oid::{GSS_MECH_KRB5, GSS_MECH_SPNEGO, GSS_NT_HOSTBASED_SERVICE, GSS_NT_USER_NAME, OidSet};
use std::sync::Arc;
use std::time::Duration;

use crate::explain::one_line;
use crate::secret::Secret;

/// A ticket with less life than this is got anew.
const LIFE_LEFT: Duration = Duration::from_mins(1);

/// The account that signs in, and its ticket.
#[derive(Clone, Debug, Default)]
pub struct Kerberos {
    login: Option<(String, Secret)>,
    ticket: Arc<Mutex<Option<Cred>>>,
}

/// One sign-in, in as many steps as it takes.
pub struct SignIn {
    context: ClientCtx,
}

impl Kerberos {
    /// With this user name and password, or as whoever the program runs as.
    pub fn new(login: Option<(String, Secret)>) -> Self {
        Self { login, ticket: Arc::default() }
    }

    /// Begins a sign-in at the proxy of this name; the first token.
    ///
    /// # Errors
    /// No ticket is to be had; the text is the library's.
    pub async fn begin(&self, proxy: &str) -> Result<(SignIn, Vec<u8>), String> {
        let (account, service) = (self.clone(), format!("HTTP@{proxy}"));
        blocking(move || {
            let target = Name::new(service.as_bytes(), Some(GSS_NT_HOSTBASED_SERVICE))?;
            let context =
                ClientCtx::new(account.ticket()?, target, CtxFlags::GSS_C_MUTUAL_FLAG, Some(GSS_MECH_SPNEGO));
            advance(context, None)
        })
        .await
        .map(|(sign_in, token)| (sign_in, token.unwrap_or_default()))
    }

    fn ticket(&self) -> Result<Option<Cred>, Error> {
        let Some((user, password)) = &self.login else { return Ok(None) };
        let mut kept = self.ticket.lock().unwrap_or_else(PoisonError::into_inner);
        let alive = |cred: &Cred| cred.lifetime().is_ok_and(|left| left > LIFE_LEFT);
        if !kept.as_ref().is_some_and(alive) {
            let mut kerberos = OidSet::new();
            kerberos.add(GSS_MECH_KRB5)?;
            kerberos.add(GSS_MECH_SPNEGO)?;
            let name = Name::new(user.as_bytes(), Some(GSS_NT_USER_NAME))?;
            let cred = Cred::acquire_with_password(
                Some(&name),
                password.expose(),
                None,
                CredUsage::Initiate,
                Some(&kerberos),
            )?;
            *kept = Some(cred);
        }
        Ok(kept.clone())
    }
}

impl SignIn {
    /// The next token, after one of the proxy's; `None`: nothing more is to be said.
    ///
    /// # Errors
    /// The proxy's token is none, or it is not the proxy that it says.
    pub async fn go_on(self, token: Vec<u8>) -> Result<(Self, Option<Vec<u8>>), String> {
        blocking(move || advance(self.context, Some(&token))).await
    }
}

fn advance(mut context: ClientCtx, token: Option<&[u8]>) -> Result<(SignIn, Option<Vec<u8>>), Error> {
    let next = context.step(token, None)?.map(|token| token.to_vec());
    Ok((SignIn { context }, next))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(one_line(&error.to_string(), 200)),
        Err(error) => Err(error.to_string()),
    }
}
