//! What is spawned, boxed: tokio's half of a task is in the program once, not once for each kind of work.

use std::pin::Pin;

use tokio::task::JoinHandle;

/// Work that is to be spawned.
pub type Work<T = ()> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Boxes work. Of each kind of future that it is given, tokio keeps 4 KB of code (all of a
/// task's life, for each of its two schedulers).
pub fn boxed<T>(work: impl Future<Output = T> + Send + 'static) -> Work<T> {
    Box::pin(work)
}

/// Starts work of its own. It goes on when the handle is dropped.
pub fn start<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(boxed(work))
}
