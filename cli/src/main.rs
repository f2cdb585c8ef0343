//! The `des` command.

fn main() -> std::process::ExitCode {
    des_cli::run(std::env::args_os().collect())
}
