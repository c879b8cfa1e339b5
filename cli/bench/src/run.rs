//! A whole run: checks the request, measures, and cleans up whatever happens.
//!
//! The work is on a thread that may block. A signal sets the stop flag, the load under way ends, and the guards of the
//! children and of the scratch directory do the rest on the way out.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use janusfs_env::tasks;
use tokio::{
    runtime::Handle,
    signal::unix::{SignalKind, signal},
};

use crate::{
    chunk, fs,
    measure::{Bench, Stop},
    meta,
    report::{Report, Spec},
    s3,
    scratch::Scratch,
};

/// What to measure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Noun {
    /// The S3 door.
    S3,
    /// The mount.
    Fs,
    /// The chunk path below the doors.
    Chunk,
    /// The metadata service below the doors.
    Meta,
    /// Everything.
    All,
}

impl Noun {
    fn includes(self, part: Self) -> bool {
        self == Self::All || self == part
    }
}

/// A request.
#[derive(Clone, Debug)]
pub struct Options {
    /// What to measure.
    pub noun: Noun,
    /// A directory on the disk to measure; a scratch directory is made in it. Absent: the current directory.
    pub dir: Option<PathBuf>,
    /// How long each side of a cell is measured, in seconds, over all rounds.
    pub seconds: f64,
    /// Which cells; empty: all.
    pub cells: Vec<String>,
}

/// Largest accepted [`Options::seconds`]: an hour.
const SECONDS_MAX: f64 = 3600.0;

type Measure = fn(&mut Bench, &Scratch, &Handle) -> Result<()>;

/// The nouns with their cells, in the order they are measured.
const PARTS: &[(Noun, &[Spec], Measure)] = &[
    (Noun::S3, s3::CELLS, s3::measure),
    (Noun::Fs, fs::CELLS, fs::measure),
    (Noun::Chunk, chunk::CELLS, chunk::measure),
    (Noun::Meta, meta::CELLS, meta::measure),
];

/// Every cell of a noun.
fn specs(noun: Noun) -> Vec<Spec> {
    PARTS
        .iter()
        .filter(|(part, ..)| noun.includes(*part))
        .flat_map(|(_, specs, _)| specs.iter().copied())
        .collect()
}

/// Runs and returns what was measured. Processes, mounts and files of the run are gone when it returns.
///
/// # Errors
/// For a request that makes no sense, a machine that lacks something (named in the text), a load that failed, and
/// "interrupted" after SIGINT or SIGTERM.
pub async fn run(options: Options) -> Result<Report> {
    let specs = specs(options.noun);
    let chosen = choose(&specs, &options.cells)?;
    if !(options.seconds > 0.0 && options.seconds <= SECONDS_MAX) {
        bail!("--seconds: give more than 0 and at most {SECONDS_MAX}");
    }
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
    let stop = Stop::default();
    let watched = stop.clone();
    let watcher = tasks::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        watched.set();
    });
    let handle = Handle::current();
    let report = tasks::blocking(move || measure(&options, &chosen, stop, &handle)).await;
    watcher.abort();
    report
}

fn choose(specs: &[Spec], wanted: &[String]) -> Result<Vec<Spec>> {
    if let Some(unknown) = wanted
        .iter()
        .find(|name| specs.iter().all(|spec| spec.name != **name))
    {
        let names: Vec<_> = specs.iter().map(|spec| spec.name).collect();
        bail!("no cell `{unknown}`; there are: {}", names.join(", "));
    }
    let chosen = specs
        .iter()
        .filter(|spec| wanted.is_empty() || wanted.iter().any(|name| name == spec.name));
    Ok(chosen.copied().collect())
}

fn measure(options: &Options, chosen: &[Spec], stop: Stop, handle: &Handle) -> Result<Report> {
    let scratch = Scratch::make(options.dir.as_deref())?;
    scratch.require(chosen, options.seconds)?;
    let mut bench = Bench::new(options.seconds, options.cells.clone(), chosen.len(), stop);
    for (part, specs, measure) in PARTS {
        if options.noun.includes(*part) && bench.wants_any(specs) {
            measure(&mut bench, &scratch, handle)?;
        }
    }
    Ok(Report {
        cores: cores(),
        seconds: options.seconds,
        rows: std::mem::take(&mut bench.rows),
    })
}

/// Returns the number of processors this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_cells_are_unique_and_unknown_ones_are_refused() {
        let specs = specs(Noun::All);
        let names: std::collections::BTreeSet<_> = specs.iter().map(|spec| spec.name).collect();
        assert_eq!(names.len(), specs.len());
        let error = choose(&specs, &["nothing".into()]).unwrap_err().to_string();
        assert!(
            error.contains("nothing") && error.contains("get-64m-x8"),
            "{error}"
        );
        let one = choose(&specs, &["head-x1".into()]).unwrap();
        assert_eq!(one.len(), 1);
    }
}
