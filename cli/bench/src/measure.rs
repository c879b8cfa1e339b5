//! How a cell is measured: rounds, slices, medians.
//!
//! A cell has our side and one or more floors. Each of [`ROUNDS`] rounds measures every floor and then our side for one
//! slice; a side's figure is the median of its slices. Setting up and clearing away happen outside the clock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use janusfs_env::clock;

use crate::{
    child::Up,
    report::{Row, Sample, Spec, Unit},
};

/// Slices of each side; odd, so that the median is one of them.
const ROUNDS: u32 = 3;

/// Set when the user wants to stop; every load looks at it between operations.
#[derive(Clone, Default, Debug)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Fails when it is set.
    pub(crate) fn check(&self) -> Result<()> {
        if self.is_set() {
            bail!("interrupted");
        }
        Ok(())
    }
}

/// One measurement of one side.
#[derive(Clone, Debug)]
pub(crate) struct Slice {
    /// How long to measure.
    pub(crate) duration: Duration,
    stop: Stop,
}

/// What a load did in a slice.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Done {
    pub(crate) ops: u64,
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
}

impl Done {
    /// Returns the figure in `unit`.
    #[expect(clippy::cast_precision_loss, reason = "counts of a benchmark")]
    pub(crate) fn in_unit(self, unit: Unit) -> f64 {
        match unit {
            Unit::OpsPerSecond => self.ops as f64 / self.seconds,
            Unit::MibPerSecond => self.bytes as f64 / f64::from(1 << 20) / self.seconds,
            Unit::Milliseconds => self.seconds * 1000.0 / self.ops as f64,
        }
    }
}

/// The clock of a running load.
pub(crate) struct Running {
    start: Instant,
    duration: Duration,
    stop: Stop,
}

impl Running {
    /// Tells whether another operation shall begin.
    pub(crate) fn goes_on(&self) -> bool {
        !self.stop.is_set() && clock::now().duration_since(self.start) < self.duration
    }

    /// Ends the clock.
    pub(crate) fn done(&self, ops: u64, bytes: u64) -> Result<Done> {
        let seconds = clock::now().duration_since(self.start).as_secs_f64();
        self.stop.check()?;
        if ops == 0 {
            bail!("no operation came to its end");
        }
        Ok(Done {
            ops,
            bytes,
            seconds: seconds.max(1e-9),
        })
    }
}

impl Slice {
    /// A slice for work outside any clock.
    pub(crate) fn untimed(stop: &Stop) -> Self {
        Self {
            duration: Duration::MAX,
            stop: stop.clone(),
        }
    }

    /// Starts the clock.
    pub(crate) fn start(&self) -> Running {
        Running {
            start: clock::now(),
            duration: self.duration,
            stop: self.stop.clone(),
        }
    }

    /// Runs `op(sequence)` on this thread until time is up or it says `None` (nothing left to do). It returns the bytes
    /// it moved. At least one operation runs.
    pub(crate) fn repeat(&self, mut op: impl FnMut(u64) -> Result<Option<u64>>) -> Result<Done> {
        let running = self.start();
        let (mut ops, mut bytes) = (0, 0);
        while ops == 0 || running.goes_on() {
            let Some(moved) = op(ops)? else { break };
            ops += 1;
            bytes += moved;
        }
        running.done(ops, bytes)
    }

    /// As [`Self::repeat`] on `threads` threads: `make(thread)` gives each its operation, outside the clock.
    pub(crate) fn repeat_on<F>(
        &self,
        threads: usize,
        make: impl Fn(usize) -> Result<F>,
    ) -> Result<Done>
    where
        F: FnMut(u64) -> Result<Option<u64>> + Send,
    {
        let ops = (0..threads).map(make).collect::<Result<Vec<F>>>()?;
        let (total_ops, total_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        let running = self.start();
        std::thread::scope(|scope| {
            let run = |mut op: F| {
                let (mut ops, mut bytes) = (0, 0);
                while ops == 0 || running.goes_on() {
                    let Some(moved) = op(ops)? else { break };
                    ops += 1;
                    bytes += moved;
                }
                total_ops.fetch_add(ops, Ordering::Relaxed);
                total_bytes.fetch_add(bytes, Ordering::Relaxed);
                anyhow::Ok(())
            };
            let handles: Vec<_> = ops
                .into_iter()
                .map(|op| scope.spawn(move || run(op)))
                .collect();
            handles
                .into_iter()
                .try_for_each(|handle| handle.join().expect("a load does not panic"))
        })?;
        running.done(total_ops.into_inner(), total_bytes.into_inner())
    }

    /// Returns how many things to prepare for a load that uses each once, at most `per_second` of them a second.
    pub(crate) fn supply(&self, per_second: f64, most: u64) -> u64 {
        let wanted = (self.duration.as_secs_f64() * per_second).min(1e9);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and 1e9"
        )]
        let wanted = wanted as u64;
        wanted.clamp(50.min(most), most)
    }
}

/// Measures one slice.
type Load<'a> = Box<dyn FnMut(&Slice) -> Result<Done> + 'a>;

/// One side of a cell.
pub(crate) struct Side<'a> {
    name: &'static str,
    run: Load<'a>,
}

/// Names a side's load.
pub(crate) fn side<'a>(
    name: &'static str,
    run: impl FnMut(&Slice) -> Result<Done> + 'a,
) -> Side<'a> {
    Side {
        name,
        run: Box::new(run),
    }
}

/// A run over some cells.
pub(crate) struct Bench {
    seconds: f64,
    wanted: Vec<String>,
    pub(crate) stop: Stop,
    bar: ProgressBar,
    pub(crate) rows: Vec<Row>,
}

impl Bench {
    /// `seconds` is how long each side of a cell is measured, over all rounds; `wanted` names the cells, empty: all.
    pub(crate) fn new(seconds: f64, wanted: Vec<String>, cells: usize, stop: Stop) -> Self {
        let bar = ProgressBar::new(u64::try_from(cells).unwrap_or(u64::MAX));
        bar.set_style(
            ProgressStyle::with_template("{bar:30} {pos}/{len} cells  {elapsed}  {msg}")
                .expect("the template is right"),
        );
        bar.enable_steady_tick(Duration::from_millis(200));
        Self {
            seconds,
            wanted,
            stop,
            bar,
            rows: Vec::new(),
        }
    }

    /// Tells whether a cell was asked for.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.wanted.is_empty() || self.wanted.iter().any(|wanted| wanted == name)
    }

    /// Tells whether any cell of these was asked for.
    pub(crate) fn wants_any(&self, specs: &[Spec]) -> bool {
        specs.iter().any(|spec| self.wants(spec.name))
    }

    /// Says on the terminal what goes on between cells.
    pub(crate) fn say(&self, text: impl Into<std::borrow::Cow<'static, str>>) {
        self.bar.set_message(text);
    }

    /// Measures one cell, if it was asked for; `server` is whose memory counts, where a server of ours is measured.
    pub(crate) fn cell(
        &mut self,
        spec: &Spec,
        server: Option<&Up>,
        floors: Vec<Side<'_>>,
        ours: Side<'_>,
    ) -> Result<()> {
        if !self.wants(spec.name) {
            return Ok(());
        }
        let slice = Slice {
            duration: Duration::from_secs_f64(self.seconds / f64::from(ROUNDS)),
            stop: self.stop.clone(),
        };
        let mut sides = floors;
        sides.push(ours);
        let mut figures: Vec<Vec<f64>> = sides.iter().map(|_| Vec::new()).collect();
        if let Some(server) = server {
            server.reset_peak();
        }
        for _ in 0..ROUNDS {
            for (side, figures) in sides.iter_mut().zip(&mut figures) {
                self.stop.check()?;
                self.say(format!("{}: {}", spec.name, side.name));
                let done = (side.run)(&slice)
                    .with_context(|| format!("cell {}, {}", spec.name, side.name))?;
                figures.push(done.in_unit(spec.unit));
            }
        }
        let samples = sides.iter().zip(figures).map(|(side, figures)| Sample {
            name: side.name.to_owned(),
            median: median(&figures),
            slices: figures,
        });
        let row = Row::new(spec, samples.collect(), server.and_then(Up::peak_bytes));
        self.rows.push(row);
        self.bar.inc(1);
        Ok(())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Aim, Unit};

    const SPEC: Spec = Spec {
        name: "a",
        unit: Unit::OpsPerSecond,
        aim: Some(Aim::Ratio(0.5)),
        space_bytes: 0,
    };

    fn fixed(ops: u64) -> impl FnMut(&Slice) -> Result<Done> {
        move |_| {
            Ok(Done {
                ops,
                bytes: 0,
                seconds: 1.0,
            })
        }
    }

    #[test]
    fn a_cell_takes_turns_and_its_floor_is_the_lowest_of_them() {
        let mut bench = Bench::new(0.0, Vec::new(), 1, Stop::default());
        let turns = std::cell::RefCell::new(Vec::new());
        let floors = vec![
            side("fast", |slice: &Slice| {
                turns.borrow_mut().push("fast");
                fixed(90)(slice)
            }),
            side("slow", |slice: &Slice| {
                turns.borrow_mut().push("slow");
                fixed(40)(slice)
            }),
        ];
        let ours = side("ours", |slice: &Slice| {
            turns.borrow_mut().push("ours");
            fixed(30)(slice)
        });
        bench.cell(&SPEC, None, floors, ours).unwrap();
        assert_eq!(turns.borrow()[..4], ["fast", "slow", "ours", "fast"]);
        assert_eq!(turns.borrow().len(), 9);
        let row = &bench.rows[0];
        assert_eq!((row.ratio, row.met), (Some(0.75), Some(true)));
        assert_eq!(row.floor.as_ref().unwrap().name, "slow");
    }

    #[test]
    fn a_load_runs_once_even_without_time_and_ends_when_nothing_is_left() {
        let slice = Slice {
            duration: Duration::ZERO,
            stop: Stop::default(),
        };
        assert_eq!(slice.repeat(|_| Ok(Some(7))).unwrap().bytes, 7);
        let slice = Slice {
            duration: Duration::from_secs(600),
            ..slice
        };
        let done = slice
            .repeat_on(3, |_| Ok(|at: u64| Ok((at < 5).then_some(2))))
            .unwrap();
        assert_eq!((done.ops, done.bytes), (15, 30));
        slice.stop.set();
        assert!(slice.repeat(|_| Ok(Some(0))).is_err(), "interrupted");
    }

    #[test]
    fn cells_that_nobody_asked_for_are_skipped() {
        let mut bench = Bench::new(0.0, vec!["b".into()], 1, Stop::default());
        bench
            .cell(&SPEC, None, Vec::new(), side("ours", fixed(1)))
            .unwrap();
        assert!(bench.rows.is_empty());
    }
}
