//! The Lua scripts, put together: the time, the prelude, the body. Each is one atomic step of the queue.

use redis::Script;

/// Where the scripts read the time.
#[derive(Clone, Copy, Debug)]
pub(super) enum TimeSource {
    /// The server's clock.
    Server,
    /// Milliseconds in the key `{ns}:clock`: the tests' clock.
    Key,
}

macro_rules! scripts {
    ($($name:ident),+ $(,)?) => {
        /// Every script by its name; the text of `scripts/NAME.lua` says what it takes and answers.
        #[derive(Debug)]
        pub(super) struct Scripts {
            $(pub(super) $name: Script,)+
        }

        impl Scripts {
            /// Puts the scripts together.
            pub(super) fn new(time: TimeSource) -> Self {
                let now = match time {
                    TimeSource::Server => include_str!("scripts/now_server.lua"),
                    TimeSource::Key => include_str!("scripts/now_manual.lua"),
                };
                let prelude = include_str!("scripts/prelude.lua");
                Self {
                    $($name: Script::new(
                        &[now, prelude, include_str!(concat!("scripts/", stringify!($name), ".lua"))].concat(),
                    ),)+
                }
            }
        }
    };
}

scripts!(
    add_job, add_tasks, audit, checkpoint, claim, commit, due, fail, forget_job, heartbeat, job, jobs, lock, release,
    settle, stats, tasks, tick, unlock, workers,
);
