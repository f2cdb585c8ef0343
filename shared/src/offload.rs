//! Work that keeps a thread busy: compression, parsing, planning.
//!
//! On a runtime with several threads it goes to a blocking thread. On a runtime of one thread it is done at once: there
//! is nobody else to keep waiting, and a simulation that runs there stays the same run every time. A thread that has a
//! runtime for itself, but others beside it, leans on another runtime ([`lean_on`]).

use std::cell::RefCell;
use std::future::Future;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::JoinHandle;

thread_local! {
    static HELPERS: RefCell<Option<Handle>> = const { RefCell::new(None) };
}

/// From now on this thread gives what it should not do itself to `helpers`.
pub fn lean_on(helpers: Handle) {
    HELPERS.set(Some(helpers));
}

/// The runtime that works for this thread: the one it leans on, or else the one it is in.
fn helpers() -> Handle {
    HELPERS.with_borrow(Clone::clone).unwrap_or_else(Handle::current)
}

/// Whether there are threads beside this one, so that work elsewhere and waiting for it here go together.
pub fn has_other_threads() -> bool {
    !matches!(helpers().runtime_flavor(), RuntimeFlavor::CurrentThread)
}

/// As [`tokio::task::spawn_blocking`], but on the runtime that works for this thread.
pub fn spawn_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    helpers().spawn_blocking(work)
}

/// As [`tokio::spawn`], but on the runtime that works for this thread: for what is much work in small steps, and for
/// what others wait for as well.
pub fn spawn<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    helpers().spawn(work)
}

/// Runs `work` where it holds nobody up and gives its answer. A panic there is passed on.
pub async fn offload<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    if !has_other_threads() {
        return work();
    }
    match spawn_blocking(work).await {
        Ok(answer) => answer,
        Err(join) => match join.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Blocking tasks are never aborted; only a runtime that shuts down cancels those that wait. Whoever waits
            // for this one is being dropped as well.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[tokio::test]
    async fn on_one_thread_the_work_is_done_at_once() {
        let here = thread::current().id();
        assert_eq!(offload(move || thread::current().id()).await, here);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn with_more_threads_the_work_goes_to_another_one() {
        let here = thread::current().id();
        assert_ne!(offload(move || thread::current().id()).await, here);
        let panicked = tokio::spawn(offload(|| panic!("of the work"))).await;
        assert!(panicked.expect_err("passed on").is_panic());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_thread_can_lean_on_another_runtime() {
        let helpers = Handle::current();
        let leaning = thread::spawn(move || {
            lean_on(helpers);
            let alone = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            alone.block_on(async {
                let here = thread::current().id();
                assert_ne!(offload(move || thread::current().id()).await, here);
                assert_ne!(spawn(async { thread::current().id() }).await.expect("no panic"), here);
            });
        });
        // It needs this runtime until it has ended.
        tokio::task::spawn_blocking(|| leaning.join()).await.expect("no panic").expect("no panic");
    }
}
