//! The Lua scripts, put together: the flags, the time, the prelude, the parts a script shares with others, the body. Each
//! is one atomic step of the queue. A call of a script makes every function of its text anew, so the two scripts that a
//! busy queue calls most have their usual case in front of the prelude.
//!
//! Flags need Redis 7 or later. `allow-oom`: runs although the server is at its `maxmemory`, so that workers can finish
//! what they began and operators can make room. `no-writes`: only reads. Without either a server that has no memory left
//! refuses.

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
    ($($flags:literal: { $($name:ident $(after $usual:ident)? $(with $part:ident)?),+ $(,)? })+) => {
        /// Every script by its name; the text of `scripts/NAME.lua` says what it takes and answers.
        #[derive(Debug)]
        pub(super) struct Scripts {
            $($(pub(super) $name: Script,)+)+
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
                    $($($name: Script::new(
                        &[
                            concat!("#!lua", $flags, "\n"),
                            now,
                            $(include_str!(concat!("scripts/", stringify!($usual), ".lua")),)?
                            prelude,
                            $(include_str!(concat!("scripts/", stringify!($part), ".lua")),)?
                            include_str!(concat!("scripts/", stringify!($name), ".lua")),
                        ]
                        .concat(),
                    ),)+)+
                }
            }
        }
    };
}

scripts!(
    "": { add_job, add_tasks }
    " flags=allow-oom": {
        cancel_job, checkpoint, commit after commit_usual with committing, exchange after exchange_usual with committing,
        fail, forget_job with forgetting, heartbeat, index, lock, mend, release, set_paused, set_share, settle, sums, tick with forgetting, unlock, walk with numbers,
    }
    " flags=no-writes": { due, job, jobs, stats, tasks with numbers, workers }
);
