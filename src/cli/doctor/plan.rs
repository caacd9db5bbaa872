//! Which ways are to be walked: every identity provider once, every upstream once per way of signing in.

use std::sync::Arc;

use crate::config::model::{Account, Config, Listener, Protocol, Upstream};
use crate::secret::Credentials;

/// An identity provider, and the tokens that are wanted of it.
#[derive(Debug)]
pub struct Identity {
    /// The settings of one of its applications: where it is.
    pub account: Arc<Account>,
    /// Which listeners ask it.
    pub listeners: Vec<String>,
    /// One request each; empty where no user is tried.
    pub asks: Vec<Ask>,
}

/// One token request: an application and a scope.
#[derive(Debug)]
pub struct Ask {
    /// The settings that the user name leads to.
    pub account: Arc<Account>,
    /// What it is wanted for; the first decides the scope where none is configured.
    pub protocols: Vec<Protocol>,
    scope: String,
}

/// The way to one upstream.
#[derive(Debug)]
pub struct Way {
    /// What is spoken there.
    pub protocol: Protocol,
    /// Where it is.
    pub upstream: Upstream,
    /// Which listeners lead there.
    pub listeners: Vec<String>,
    /// Who signs in, where a user is tried.
    pub sign_in: Option<SignIn>,
}

/// A sign-in that is to be tried.
#[derive(Clone, Debug)]
pub struct SignIn {
    /// The settings that the user name leads to; `None`: this listener does not serve the user.
    pub account: Option<Arc<Account>>,
    /// Who it is upstream.
    pub mailbox: String,
    /// Which provider and which of its asks; meaningless without an account.
    pub token: (usize, usize),
}

/// Everything that is to be walked.
#[derive(Debug, Default)]
pub struct Plan {
    /// Each once.
    pub identities: Vec<Identity>,
    /// Each once.
    pub ways: Vec<Way>,
}

impl Plan {
    /// Of this configuration; of one listener, where its name is given.
    pub fn new(config: &Config, only: Option<&str>, user: Option<&str>) -> Self {
        let mut plan = Self::default();
        for listener in config.listeners.iter().filter(|one| only.is_none_or(|name| one.name == name)) {
            match user {
                None => plan.without_user(listener),
                Some(user) => plan.with_user(listener, user),
            }
        }
        plan
    }

    /// Whether somebody has to give the user's password.
    pub fn wants_password(&self) -> bool {
        self.identities.iter().flat_map(|identity| &identity.asks).any(|ask| {
            !ask.account.password_hashes.is_empty()
                || ask.account.application.grants.iter().any(|grant| grant.checks_password())
        })
    }

    fn without_user(&mut self, listener: &Listener) {
        for account in &listener.accounts {
            self.identity(account, &listener.name);
        }
        self.way(listener, None);
    }

    fn with_user(&mut self, listener: &Listener, user: &str) {
        let protocol = listener.protocol;
        let Some(account) = listener.account(user) else {
            let sign_in = SignIn { account: None, mailbox: user.to_owned(), token: (0, 0) };
            return self.way(listener, Some(sign_in));
        };
        let at = self.identity(account, &listener.name);
        let asks: Vec<usize> = listener.uses().filter_map(|used| self.ask(at, account, used)).collect();
        // what else a listener uses (ActiveSync) is asked for; the way itself is gone once
        let Some(&ask) = asks.first() else { return };
        let mailbox = account.mailbox_for(user, protocol);
        self.way(listener, Some(SignIn { account: Some(Arc::clone(account)), mailbox, token: (at, ask) }));
    }

    /// Which request of this provider gives the token for a protocol; a new one where none does.
    fn ask(&mut self, identity: usize, account: &Arc<Account>, protocol: Protocol) -> Option<usize> {
        let application = &account.application;
        let scope = application.grants.first().map(|grant| application.scope_for(protocol, *grant));
        let scope = scope.unwrap_or_default();
        let asks = &mut self.identities.get_mut(identity)?.asks;
        let known = asks.iter().position(|ask| {
            Arc::ptr_eq(&ask.account.application, application)
                && ask.account.password_hashes == account.password_hashes
                && ask.scope == scope
        });
        let at = known.unwrap_or_else(|| {
            asks.push(Ask { account: Arc::clone(account), protocols: Vec::new(), scope });
            asks.len() - 1
        });
        let protocols = &mut asks.get_mut(at)?.protocols;
        if !protocols.contains(&protocol) {
            protocols.push(protocol);
        }
        Some(at)
    }

    fn identity(&mut self, account: &Arc<Account>, listener: &str) -> usize {
        let endpoints = &account.application.endpoints;
        let known =
            self.identities.iter().position(|known| known.account.application.endpoints == *endpoints);
        let at = known.unwrap_or_else(|| {
            let new = Identity { account: Arc::clone(account), listeners: Vec::new(), asks: Vec::new() };
            self.identities.push(new);
            self.identities.len() - 1
        });
        if let Some(identity) = self.identities.get_mut(at)
            && !identity.listeners.iter().any(|known| known == listener)
        {
            identity.listeners.push(listener.to_owned());
        }
        at
    }

    fn way(&mut self, listener: &Listener, sign_in: Option<SignIn>) {
        let same_sign_in = |other: &Option<SignIn>| match (other, &sign_in) {
            (None, None) => true,
            (Some(a), Some(b)) => {
                a.token == b.token && a.mailbox == b.mailbox && a.account.is_some() == b.account.is_some()
            }
            (None, Some(_)) | (Some(_), None) => false,
        };
        let known = self.ways.iter_mut().find(|way| {
            way.protocol == listener.protocol
                && way.upstream == listener.upstream
                && same_sign_in(&way.sign_in)
        });
        if let Some(way) = known {
            way.listeners.push(listener.name.clone());
            return;
        }
        self.ways.push(Way {
            protocol: listener.protocol,
            upstream: listener.upstream.clone(),
            listeners: vec![listener.name.clone()],
            sign_in,
        });
    }
}

impl Ask {
    /// How its step is called.
    pub fn step(&self, alone: bool) -> String {
        if alone {
            return "token".to_owned();
        }
        let protocols: Vec<&str> = self.protocols.iter().map(|protocol| protocol.as_str()).collect();
        format!("token {}", protocols.join("+"))
    }

    /// What it asks for.
    pub fn scope(&self) -> &str {
        &self.scope
    }
}

/// Who is tried.
#[derive(Clone, Debug)]
pub struct Patient {
    /// As the mail client would sign in.
    pub user: String,
    /// Where a password is needed.
    pub credentials: Option<Credentials>,
}
