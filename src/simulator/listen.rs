//! Accepts connections for one service, and stops doing so while mischief says that it is down.

use std::{
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::task::TaskTracker;

use super::{
    authority, ews, imap,
    journal::{Event, Service},
    office::Office,
    pop3, smtp,
    wire::Peer,
};

/// What the simulator spawns: of one type, as each would have tokio's code for a task once more.
pub(super) type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One service at one port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Door {
    pub(super) service: Service,
    pub(super) port: u16,
    /// TLS from the first octet.
    pub(super) implicit: bool,
}

/// Opens the door; gives its address at once.
pub(super) async fn open(
    office: &Arc<Office>,
    tasks: &TaskTracker,
    places: &Arc<Semaphore>,
    door: Door,
) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((office.settings.address, door.port)).await?;
    let address = listener.local_addr()?;
    let (office, places, sessions) = (Arc::clone(office), Arc::clone(places), tasks.clone());
    let job: Job = Box::pin(async move {
        let end = office.end.clone();
        tokio::select! {
            () = end.cancelled() => {}
            () = attend(office, listener, address, places, sessions, door) => {}
        }
    });
    tasks.spawn(job);
    Ok(address)
}

/// Connections that may wait for [`attend`].
const BACKLOG: u32 = 1024;

/// Keeps the port from others while nobody listens at it: whoever connects is refused.
fn hold(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Opens and closes the listener as mischief will have it.
async fn attend(
    office: Arc<Office>,
    listener: TcpListener,
    address: SocketAddr,
    places: Arc<Semaphore>,
    sessions: TaskTracker,
    door: Door,
) {
    let mut switches = office.mischief.watch();
    let mut listener = Some(listener);
    let mut held = None;
    loop {
        if office.mischief.refuses(door.service) {
            if listener.take().is_some() {
                held = hold(address).ok();
            }
            if switches.changed().await.is_err() {
                return;
            }
            continue;
        }
        let Some(open) = &listener else {
            listener = match held.take() {
                Some(held) => held.listen(BACKLOG).ok(),
                None => TcpListener::bind(address).await.ok(),
            };
            if listener.is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            continue;
        };
        tokio::select! {
            changed = switches.changed() => if changed.is_err() { return },
            accepted = open.accept() => match accepted {
                Ok((stream, _)) => welcome(&office, stream, &places, &sessions, door),
                // Out of file descriptors, most likely: let some sessions end.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

fn welcome(
    office: &Arc<Office>,
    stream: TcpStream,
    places: &Arc<Semaphore>,
    sessions: &TaskTracker,
    door: Door,
) {
    let Ok(place) = Arc::clone(places).try_acquire_owned() else {
        return;
    };
    if office.mischief.refuses(door.service) {
        stream.set_zero_linger().ok();
        return;
    }
    if office.mischief.resets(door.service) {
        stream.set_zero_linger().ok();
    }
    stream.set_nodelay(true).ok();
    office.journal.write(Event::Connected(door.service));
    let office = Arc::clone(office);
    let job: Job = Box::pin(async move {
        let end = office.end.clone();
        let session = pin!(serve(office, stream, door));
        tokio::select! {
            () = end.cancelled() => {}
            // How a session failed is for the other end to notice.
            _ = session => {}
        }
        drop(place);
    });
    sessions.spawn(job);
}

async fn serve(office: Arc<Office>, stream: TcpStream, door: Door) -> io::Result<()> {
    let peer = if door.implicit {
        let acceptor = office.certificates.acceptor(office.mischief.bad_certificate(door.service));
        let tls = timeout(Duration::from_mins(1), acceptor.accept(stream))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        match door.service {
            Service::Authority => return authority::serve(office, tls).await,
            Service::Ews => return ews::serve(office, tls).await,
            Service::Imap | Service::Pop3 | Service::Smtp => Peer::new(tls, true, office.settings.idle),
        }
    } else {
        Peer::new(stream, false, office.settings.idle)
    };
    match door.service {
        Service::Imap => imap::serve(office, peer).await,
        Service::Pop3 => pop3::serve(office, peer).await,
        Service::Smtp => smtp::serve(office, peer).await,
        Service::Authority | Service::Ews => Ok(()),
    }
}
