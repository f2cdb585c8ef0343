//! Work that keeps a thread busy: compression, parsing, planning.
//!
//! On a runtime with several threads it goes to a blocking thread. On a runtime of one thread it is done at once: there
//! is nobody else to keep waiting, and a simulation that runs there stays the same run every time.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Whether the runtime has threads beside this one, so that work elsewhere and waiting for it here go together.
pub fn has_other_threads() -> bool {
    !matches!(Handle::current().runtime_flavor(), RuntimeFlavor::CurrentThread)
}

/// Runs `work` where it holds nobody up and gives its answer. A panic there is passed on.
pub async fn offload<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    if !has_other_threads() {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
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
}
