//! The one binary: parses the command line, runs a command, maps the outcome to an exit code.
//!
//! Owns: which backends, transports and roles are put together (the composition root). Absent: logic of its own.
//! Exit codes: 0 done, 1 failed, 2 usage, 3 unhealthy.
#![forbid(unsafe_code)]

mod admin_http;
mod args;
mod command;
mod connect;
mod data_dir;
mod node;
mod output;
mod up;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = args::Args::parse();
    output::start_log(args.log.as_deref());
    match command::run(args) {
        Ok(code) => code,
        Err(error) => {
            output::print_error(&error);
            ExitCode::from(if error.is::<output::UsageError>() {
                2
            } else {
                1
            })
        }
    }
}
