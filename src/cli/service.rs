//! The service manager: readiness, watchdog and sockets by systemd. Without one, all of it does nothing.

use std::net::TcpListener;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::sleep;

/// Sockets that systemd opened for us, by the names that `FileDescriptorName=` gives them: those of listeners,
/// or `admin`.
pub(super) fn sockets() -> Vec<(String, TcpListener)> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut passed = listenfd::ListenFd::from_env();
    let mut sockets = Vec::new();
    for number in 0..passed.len() {
        let name = names.split(':').nth(number).unwrap_or_default();
        match passed.take_tcp_listener(number) {
            Ok(Some(socket)) => sockets.push((name.to_owned(), socket)),
            Ok(None) => {}
            Err(error) => tracing::warn!(name, %error, "the socket that was passed in is of no use"),
        }
    }
    sockets
}

/// The listeners are bound.
pub(super) fn ready() {
    tell(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// The configuration is read anew; `ready` ends it.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "there is no monotonic clock"),
    }
}

/// Sessions come to their end.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("sessions come to their end")]);
}

/// Says that the runtime still turns, twice in each interval that `WatchdogSec=` gives.
pub(super) async fn watchdog() {
    let Some(interval) = sd_notify::watchdog_enabled() else { return };
    let pause = (interval / 2).max(Duration::from_millis(100));
    loop {
        tell(&[NotifyState::Watchdog]);
        sleep(pause).await;
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}
