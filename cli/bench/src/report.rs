//! What a run found: rows with both sides, the ratio, the aim and whether it was met.

use serde::{Serialize, Serializer};

/// Resident memory that the server must stay under in every cell, in bytes.
const MEMORY_AIM_BYTES: u64 = 512 << 20;

/// What a figure counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum Unit {
    /// Operations a second; more is better.
    #[serde(rename = "ops/s")]
    OpsPerSecond,
    /// MiB a second; more is better.
    #[serde(rename = "MiB/s")]
    MibPerSecond,
    /// Milliseconds an operation; less is better.
    #[serde(rename = "ms")]
    Milliseconds,
}

impl Unit {
    /// Returns its short name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::OpsPerSecond => "ops/s",
            Self::MibPerSecond => "MiB/s",
            Self::Milliseconds => "ms",
        }
    }
}

/// What a cell shall reach.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Aim {
    /// At least this part of the floor.
    Ratio(f64),
    /// At least this figure.
    AtLeast(f64),
    /// At most this figure.
    AtMost(f64),
}

impl std::fmt::Display for Aim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ratio(ratio) => write!(f, ">= {ratio} of it"),
            Self::AtLeast(figure) => write!(f, ">= {figure}"),
            Self::AtMost(figure) => write!(f, "<= {figure}"),
        }
    }
}

impl Serialize for Aim {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A cell as the tables of the loads name it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) unit: Unit,
    pub(crate) aim: Option<Aim>,
    /// Room on the disk that it may need, at one second a slice.
    pub(crate) space_bytes: u64,
}

/// One side's figures.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Sample {
    /// Whose.
    pub name: String,
    /// The median of `slices`.
    pub median: f64,
    /// One figure for each round.
    pub slices: Vec<f64>,
}

/// A measured cell.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub cell: &'static str,
    /// What the figures count.
    pub unit: Unit,
    /// JanusFS.
    pub ours: Sample,
    /// The lowest of `floors`; none where a cell has an absolute aim or only informs.
    pub floor: Option<Sample>,
    /// Every floor that was measured.
    pub floors: Vec<Sample>,
    /// How much of the floor we reach; more is better in every unit.
    pub ratio: Option<f64>,
    /// What it shall be.
    pub aim: Option<Aim>,
    /// Whether it is; `None` without an aim.
    pub met: Option<bool>,
    /// Peak of the server's resident memory during the cell; `None` where no server is measured.
    pub peak_rss_bytes: Option<u64>,
}

impl Row {
    /// `samples` are the floors and, last, ours.
    pub(crate) fn new(spec: &Spec, mut samples: Vec<Sample>, peak_rss_bytes: Option<u64>) -> Self {
        let ours = samples.pop().expect("a cell has our side");
        let floors = samples;
        let less_is_better = spec.unit == Unit::Milliseconds;
        let slower = |a: &&Sample, b: &&Sample| {
            let order = a.median.total_cmp(&b.median);
            if less_is_better {
                order.reverse()
            } else {
                order
            }
        };
        let floor = floors.iter().min_by(slower).cloned();
        let ratio = floor.as_ref().map(|floor| {
            if less_is_better {
                floor.median / ours.median
            } else {
                ours.median / floor.median
            }
        });
        let met = spec.aim.map(|aim| match aim {
            Aim::Ratio(least) => ratio.is_some_and(|ratio| ratio >= least),
            Aim::AtLeast(least) => ours.median >= least,
            Aim::AtMost(most) => ours.median <= most,
        });
        Self {
            cell: spec.name,
            unit: spec.unit,
            ours,
            floor,
            floors,
            ratio,
            aim: spec.aim,
            met,
            peak_rss_bytes,
        }
    }
}

/// A whole run.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    /// Processors of the machine.
    pub cores: usize,
    /// How long each side of a cell was measured, in seconds.
    pub seconds: f64,
    /// The cells in the order measured.
    pub rows: Vec<Row>,
}

impl Report {
    /// Heads of the columns of [`Self::table`].
    pub const HEADER: [&str; 9] = [
        "cell", "unit", "JanusFS", "floor", "which", "ratio", "aim", "verdict", "peak RSS",
    ];

    /// Returns the rows as text.
    #[must_use]
    pub fn table(&self) -> Vec<Vec<String>> {
        self.rows.iter().map(Row::texts).collect()
    }

    /// Returns the last line of the table: aims met, and the most memory the server took.
    #[must_use]
    pub fn summary(&self) -> String {
        let aims = self.rows.iter().filter(|row| row.met.is_some()).count();
        let met = self.rows.iter().filter(|row| row.met == Some(true)).count();
        let mut text = format!("{met} of {aims} aims met");
        if let Some(peak) = self.rows.iter().filter_map(|row| row.peak_rss_bytes).max() {
            let verdict = if peak < MEMORY_AIM_BYTES {
                "met"
            } else {
                "below"
            };
            text.push_str(&format!(
                "; peak RSS {} MiB, aim < {} MiB: {verdict}",
                peak >> 20,
                MEMORY_AIM_BYTES >> 20
            ));
        }
        text
    }
}

impl Row {
    fn texts(&self) -> Vec<String> {
        let none = || "–".to_owned();
        let floor = self.floor.as_ref();
        vec![
            self.cell.to_owned(),
            self.unit.name().to_owned(),
            figure(self.ours.median),
            floor.map_or_else(none, |floor| figure(floor.median)),
            floor.map_or_else(none, |floor| floor.name.clone()),
            self.ratio.map_or_else(none, |ratio| format!("{ratio:.2}")),
            self.aim.map_or_else(none, |aim| aim.to_string()),
            match self.met {
                None => none(),
                Some(true) => "met".into(),
                Some(false) => "below".into(),
            },
            self.peak_rss_bytes
                .map_or_else(none, |bytes| format!("{} MiB", bytes >> 20)),
        ]
    }
}

/// Three digits are meant; large numbers are grouped by thousands.
fn figure(value: f64) -> String {
    if value < 100.0 {
        return if value < 10.0 {
            format!("{value:.2}")
        } else {
            format!("{value:.1}")
        };
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(name: &str, median: f64) -> Sample {
        Sample {
            name: name.into(),
            median,
            slices: vec![median],
        }
    }

    fn row(unit: Unit, aim: Option<Aim>, floors: &[f64], ours: f64) -> Row {
        let spec = Spec {
            name: "x",
            unit,
            aim,
            space_bytes: 0,
        };
        let mut samples: Vec<_> = floors.iter().map(|floor| sample("floor", *floor)).collect();
        samples.push(sample("ours", ours));
        Row::new(&spec, samples, Some(100 << 20))
    }

    #[test]
    fn ratios_and_verdicts() {
        let rate = row(
            Unit::MibPerSecond,
            Some(Aim::Ratio(0.6)),
            &[200.0, 100.0],
            50.0,
        );
        assert_eq!((rate.ratio, rate.met), (Some(0.5), Some(false)));
        let time = row(Unit::Milliseconds, Some(Aim::AtMost(50.0)), &[10.0], 40.0);
        assert_eq!((time.ratio, time.met), (Some(0.25), Some(true)));
        let alone = row(Unit::OpsPerSecond, Some(Aim::AtLeast(4000.0)), &[], 3999.0);
        assert_eq!((alone.ratio, alone.met), (None, Some(false)));
        assert_eq!(
            row(Unit::OpsPerSecond, None, &[1.0], 1.0).met,
            None,
            "no aim, no verdict"
        );
    }

    #[test]
    fn the_table_has_every_column_and_the_summary_counts() {
        let rows = vec![
            row(Unit::OpsPerSecond, Some(Aim::Ratio(0.5)), &[2.0], 1.0),
            row(Unit::OpsPerSecond, Some(Aim::Ratio(0.6)), &[2.0], 1.0),
            row(Unit::OpsPerSecond, None, &[], 1.0),
        ];
        let report = Report {
            cores: 2,
            seconds: 3.0,
            rows,
        };
        assert!(
            report
                .table()
                .iter()
                .all(|row| row.len() == Report::HEADER.len())
        );
        assert_eq!(
            report.summary(),
            "1 of 2 aims met; peak RSS 100 MiB, aim < 512 MiB: met"
        );
    }

    #[test]
    fn figures_are_short() {
        let cases = [
            (1.234, "1.23"),
            (56.78, "56.8"),
            (123.4, "123"),
            (1_234_567.0, "1,234,567"),
        ];
        for (value, text) in cases {
            assert_eq!(figure(value), text);
        }
    }
}
