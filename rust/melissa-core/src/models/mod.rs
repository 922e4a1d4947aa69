//! The concurrent parts of this crate under model checkers; what is proved, and what is not, is in docs/verification.md.
//!
//! `pieces` and `buffers` run under loom, which explores every interleaving up to a number of preemptions, and every value that
//! a weakly ordered load may give. `schedules` runs larger buffers under shuttle, which picks schedules at random.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[cfg(loom)]
mod buffers;
mod parts;
#[cfg(loom)]
mod pieces;
#[cfg(shuttle)]
mod schedules;

use std::str::FromStr;

/// A number from the environment: the long forms go further than the short ones.
fn setting<T: FromStr>(name: &str, default: T) -> T {
    std::env::var(name).map_or(default, |text| text.parse().ok().expect(name))
}

/// No bound on the number of preemptions: every interleaving.
#[cfg(loom)]
const EVERY: usize = usize::MAX / 2;

/// Explores `model` and says how far it went.
#[cfg(loom)]
fn explore(name: &str, preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    // Not of the model: it counts executions.
    let executions = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&executions);
    let mut builder = loom::model::Builder::new();
    let preemptions = preemptions + setting("MELISSA_MORE_PREEMPTIONS", 0);
    let bounded = preemptions < EVERY;
    builder.preemption_bound = bounded.then_some(preemptions);
    builder.max_branches = 20_000;
    let begin = Instant::now();
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model();
    });
    let executions = executions.load(Ordering::Relaxed);
    let bound = if bounded { format!("up to {preemptions} preemptions") } else { "all there are".into() };
    println!("{name}: {executions} executions, {bound}, {:.1} s", begin.elapsed().as_secs_f64());
}
