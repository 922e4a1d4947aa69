//! Ours beside its bound, both in the same run and in turn; the ratio of each pair counts.
//!
//! Criterion drives the pairs and reports our side's time. What the table of docs/performance.md wants is written beside
//! it: a line on the terminal and a line of JSON in the file that `MELISSA_BENCH_ROWS` names (an absolute path; else
//! `bench-rows.jsonl` in cargo's target folder), with the columns of `Row` in benches/conftest.py. Lines are
//! appended: of two with the same `what` the later one counts.
#![allow(dead_code, reason = "each bench uses a part of this")]
#![allow(clippy::print_stdout, reason = "the rows are what a bench is run for")]
#![allow(clippy::expect_used, clippy::panic, reason = "a bench that cannot go on has nothing to tidy up")]

pub mod buffers;

use criterion::{Criterion, SamplingMode};
use serde::Serialize;
use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What the ratio of our figure to the bound's is held to.
#[derive(Clone, Copy, Debug)]
pub enum Bar {
    /// Larger figures are better.
    AtLeast(f64),
    /// Smaller figures are better.
    AtMost(f64),
    /// The figure is stated; nothing is asked of it.
    None,
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(ratio) => write!(f, ">= {ratio:.2}"),
            Self::AtMost(ratio) => write!(f, "<= {ratio:.2}"),
            Self::None => Ok(()),
        }
    }
}

/// A comparison of two sides, each of which gives `N` figures a run; each figure becomes a row.
pub struct Comparison<'a, const N: usize> {
    /// What is compared; the row's name.
    pub what: &'a str,
    /// Unit of the figures.
    pub unit: &'a str,
    pub bar: Bar,
    /// What tells the `N` figures apart, put behind `what`; `[""]` for one.
    pub figures: [&'a str; N],
    /// Seconds for our side's runs after a warm-up; the bound's come on top. No fewer than ten pairs are run.
    pub seconds: f64,
}

impl<const N: usize> Comparison<'_, N> {
    /// Runs the pairs, the two sides taking turns in going first; the first pair is the warm-up and does not count.
    ///
    /// A run of a side should take 20 ms or more, so that the clock and a thread's start do not matter, and hold no
    /// set-up: `set_up` is called once, and only when the command line's filter lets the comparison pass.
    pub fn run<S>(
        &self,
        criterion: &mut Criterion,
        set_up: impl FnOnce() -> S,
        mut bound: impl FnMut(&mut S) -> [f64; N],
        mut ours: impl FnMut(&mut S) -> [f64; N],
    ) {
        let mut set_up = Some(set_up);
        let mut state = None;
        let mut pairs = Vec::new();
        let mut runs = 0usize;
        let mut group = criterion.benchmark_group("ratios");
        group
            .sampling_mode(SamplingMode::Flat)
            .sample_size(10)
            .warm_up_time(Duration::from_nanos(1))
            .measurement_time(Duration::from_secs_f64(self.seconds));
        group.bench_function(self.what, |bencher| {
            bencher.iter_custom(|iterations| {
                let state = state.get_or_insert_with(|| set_up.take().expect("it is called once")());
                let mut time = Duration::ZERO;
                for _ in 0..iterations {
                    let bound_first = runs.is_multiple_of(2).then(|| bound(state));
                    let begin = Instant::now();
                    let mine = ours(state);
                    time += begin.elapsed();
                    let bounds = bound_first.unwrap_or_else(|| bound(state));
                    if runs > 0 {
                        pairs.push((mine, bounds));
                    }
                    runs += 1;
                }
                time
            });
        });
        group.finish();
        self.write(&pairs);
    }

    fn write(&self, pairs: &[([f64; N], [f64; N])]) {
        // None when the filter kept the comparison out, or the bench is only tried (`cargo test --benches`).
        if pairs.is_empty() {
            return;
        }
        for (index, name) in self.figures.iter().enumerate() {
            let mut ratios: Vec<f64> = pairs.iter().map(|(a, b)| a[index] / b[index]).collect();
            let ratio = median(&mut ratios);
            let comma = if name.is_empty() { "" } else { ", " };
            let (lowest, highest) = (ratios[0], ratios[ratios.len() - 1]);
            Row {
                what: format!("{}{comma}{name}", self.what),
                ours: median(&mut pairs.iter().map(|(a, _)| a[index]).collect::<Vec<_>>()),
                bound: median(&mut pairs.iter().map(|(_, b)| b[index]).collect::<Vec<_>>()),
                unit: self.unit.into(),
                ratio,
                spread: format!("{lowest:.2}..{highest:.2}"),
                bar: self.bar.to_string(),
            }
            .write();
        }
    }
}

/// A line of the table that was measured otherwise.
pub fn report(what: &str, ours: f64, bound: f64, unit: &str, bar: Bar) {
    let (what, unit, bar) = (what.into(), unit.into(), bar.to_string());
    Row { what, ours, bound, unit, ratio: ours / bound, spread: String::new(), bar }.write();
}

/// Sorts the figures, too.
pub fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    if figures.len() % 2 == 1 { figures[middle] } else { (figures[middle - 1] + figures[middle]) / 2.0 }
}

/// One line of the table: a figure of ours beside its bound. `spread` is the lowest and the highest ratio of a pair.
#[derive(Serialize)]
struct Row {
    what: String,
    ours: f64,
    bound: f64,
    unit: String,
    ratio: f64,
    spread: String,
    bar: String,
}

impl Row {
    fn write(&self) {
        let Self { what, ours, bound, unit, ratio, spread, bar } = self;
        println!("ratio {ratio:.3} ({spread}), bar {bar}: {what}: {ours:.4e} to {bound:.4e} {unit}");
        let path = std::env::var_os("MELISSA_BENCH_ROWS").map_or_else(
            || Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench-rows.jsonl"),
            PathBuf::from,
        );
        let line = serde_json::to_string(self).expect("a row is plain data");
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .unwrap_or_else(|error| panic!("cannot append the row to {}: {error}", path.display()));
        writeln!(file, "{line}").expect("the row was written");
    }
}

/// Criterion as every bench wants it: `cargo bench -- FILTER` picks comparisons by their names.
pub fn criterion() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args()
}
