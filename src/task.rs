//! What is spawned, boxed: tokio's half of a task is in the program once, not once for each kind of work.

use std::pin::Pin;

use tokio::task::JoinHandle;

/// Work whose outcome, if any, is told by other means.
pub type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Boxes work that is to be spawned. Of each kind of future that it is given, tokio keeps 4 KB of code (all of a
/// task's life, for each of its two schedulers).
pub fn boxed(work: impl Future<Output = ()> + Send + 'static) -> Work {
    Box::pin(work)
}

/// Starts work of its own. It goes on when the handle is dropped.
pub fn start(work: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(boxed(work))
}
