//! The `des-pack` command: the existing tool's name, flags and output lines.

fn main() -> std::process::ExitCode {
    des_cli::run_des_pack(std::env::args_os().collect())
}
