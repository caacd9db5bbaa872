//! The listening sockets: which a configuration wants, which of them are open already, which must go.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::error::StartError;
use crate::config::model::Config;
use crate::serve::listener::{Room, Trouble, bind};

/// The name under which the status page's sockets go.
pub(super) const ADMIN: &str = "admin";

/// Sockets that somebody else has opened for us (systemd), by listener name.
#[derive(Debug, Default)]
pub struct Inherited(pub Vec<(String, std::net::TcpListener)>);

/// What makes a socket the same one after a reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// The address as it is written.
    Address(SocketAddr),
    /// A port that the system chooses: the listener's name and a number.
    AnyPort(String, usize),
    /// The listener's name and a number.
    Inherited(String, usize),
}

/// An open one.
pub(super) struct Open {
    pub(super) key: Key,
    pub(super) bound: SocketAddr,
    /// `None`: the status page.
    pub(super) room: Option<Arc<ArcSwap<Room>>>,
    pub(super) closing: CancellationToken,
    pub(super) trouble: Arc<ArcSwapOption<Trouble>>,
}

/// A socket that is to be opened or kept.
pub(super) struct Wanted {
    pub(super) key: Key,
    /// The listener, or `admin`.
    pub(super) name: String,
    /// Which of the configuration's listeners; `None`: the status page.
    pub(super) listener: Option<usize>,
    address: SocketAddr,
}

/// Everything that a configuration listens on; sockets that were `inherited` come before addresses.
pub(super) fn wanted(config: &Config, inherited: &[(String, usize)]) -> Vec<Wanted> {
    let mut all = Vec::new();
    let mut add = |name: &str, listener: Option<usize>, addresses: &[SocketAddr]| {
        let count = inherited.iter().find(|(known, _)| known == name).map_or(0, |(_, count)| *count);
        let unspecified = SocketAddr::from(([0, 0, 0, 0], 0));
        for number in 0..count {
            let key = Key::Inherited(name.to_owned(), number);
            all.push(Wanted { key, name: name.to_owned(), listener, address: unspecified });
        }
        for (number, &address) in addresses.iter().enumerate().filter(|_| count == 0) {
            let key = match address.port() {
                0 => Key::AnyPort(name.to_owned(), number),
                _ => Key::Address(address),
            };
            all.push(Wanted { key, name: name.to_owned(), listener, address });
        }
    };
    for (number, listener) in config.listeners.iter().enumerate() {
        add(&listener.name, Some(number), &listener.listen);
    }
    if let Some(admin) = &config.admin {
        add(ADMIN, None, &admin.listen);
    }
    all
}

impl Wanted {
    /// Opens it.
    pub(super) fn open(&self, inherited: &mut Inherited) -> Result<TcpListener, StartError> {
        let opened =
            if let Key::Inherited(name, _) = &self.key { take(inherited, name) } else { bind(self.address) };
        opened.map_err(|source| StartError::Bind {
            listener: self.name.clone(),
            address: self.address,
            source,
        })
    }
}

/// How many sockets there are for each name.
pub(super) fn counted(inherited: &Inherited) -> Vec<(String, usize)> {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for (name, _) in &inherited.0 {
        match counts.iter_mut().find(|(known, _)| known == name) {
            Some((_, count)) => *count += 1,
            None => counts.push((name.clone(), 1)),
        }
    }
    counts
}

fn take(inherited: &mut Inherited, name: &str) -> io::Result<TcpListener> {
    let gone = || io::Error::other("the socket that was passed in is gone");
    let place = inherited.0.iter().position(|(known, _)| known == name).ok_or_else(gone)?;
    let (_, socket) = inherited.0.remove(place);
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}
