//! What a person or a program reads: logs and errors on standard error, answers on standard output.

use std::{
    fmt::Write as _,
    io::{IsTerminal as _, Write},
};

use tracing_subscriber::EnvFilter;

/// The command line asks for what makes no sense; the text says what would. Exit code 2.
#[derive(thiserror::Error, Debug)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

/// Warnings and worse. `s3s` calls each request that it refuses an error; what is wrong with the store is logged by the gateway.
const DEFAULT_LOG: &str = "warn,s3s=off";

/// Starts logging to standard error.
pub(crate) fn start_log(filter: Option<&str>) {
    let filter = filter.unwrap_or(DEFAULT_LOG);
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|error| {
        eprintln!("warning: log filter not understood, using `{DEFAULT_LOG}`: {error}");
        EnvFilter::new(DEFAULT_LOG)
    });
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(|| Unfailing(std::io::stderr()))
        .init();
}

/// Standard error, with failures swallowed: a log on a full disk must not end the process that it is about.
struct Unfailing(std::io::Stderr);

impl Write for Unfailing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // What cannot be logged cannot be complained about either.
        let _ = self.0.write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let _ = self.0.flush();
        Ok(())
    }
}

/// Prints a line for the person who started the process; never fails, as the log.
pub(crate) fn note(text: &str) {
    // As above: nobody could be told.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Prints an error with its causes, each once.
pub(crate) fn print_error(error: &anyhow::Error) {
    let mut text = String::new();
    for (index, cause) in error.chain().enumerate() {
        // Writing to a String does not fail.
        let _ = write!(text, "{}{cause}", if index == 0 { "error: " } else { ": " });
    }
    note(&text);
}

/// Prints rows under a header, columns aligned.
pub(crate) fn print_table(header: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        cells
            .chain(header.get(column).map(|cell| cell.len()))
            .max()
            .unwrap_or(0)
    };
    let line = |cells: Vec<&str>| {
        let mut text = String::new();
        for (column, cell) in cells.iter().enumerate() {
            let pad = width(column);
            // Writing to a String does not fail.
            let _ = write!(text, "{cell:<pad$}  ");
        }
        println!("{}", text.trim_end());
    };
    line(header.to_vec());
    for row in rows {
        line(row.iter().map(String::as_str).collect());
    }
}

/// Prints a value as JSON.
pub(crate) fn print_json(value: &serde_json::Value) {
    println!("{value:#}");
}

/// Returns bytes as a person reads them.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(crate) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::human_bytes;

    #[test]
    fn bytes_are_shown_in_the_unit_that_fits() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (5 << 30, "5.0 GiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(human_bytes(bytes), text);
        }
    }
}
