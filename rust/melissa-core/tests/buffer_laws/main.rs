//! The laws of the training buffers (docs/architecture.md) as a state machine: random schedules of publishes, draws,
//! held views, pauses, snapshots, restarts and the end of reception, against a plain model of what the population
//! must be. `MELISSA_LONG=1` runs more than a million steps.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod model;
mod plan;
mod samples;
mod subject;
mod tally;

use model::Model;
use plan::{POLICIES, Plan, Step};
use proptest::test_runner::{Config, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};
use tally::{count, counts};

struct Laws<const P: usize>;

impl<const P: usize> StateMachineTest for Laws<P> {
    type SystemUnderTest = Model;
    type Reference = Plan<P>;

    fn init_test(plan: &Plan<P>) -> Model {
        Model::new(plan.config.clone())
    }

    fn apply(mut model: Model, _: &Plan<P>, step: Step) -> Model {
        count("steps");
        match step {
            Step::Publish => model.publish(),
            Step::GiveUp => model.give_up(),
            Step::Draw { hold } => model.draw(1, hold),
            Step::DrawBatch(size) => model.draw(size, false),
            Step::LetGo(index) => model.let_go(index),
            Step::Pause => model.pause(),
            Step::Resume => model.resume(),
            Step::LiftWatermark => model.lift_watermark(),
            Step::Close => model.close(),
            Step::Enter(_) => {}
            Step::Cut => model.cut(),
            Step::Save(count) => model.save(count),
            Step::Forget => model.forget(),
            Step::Restart { beside } => model.restart(beside),
            Step::Renew(seed) => model = model.renew(seed),
        }
        model
    }

    fn check_invariants(model: &Model, _: &Plan<P>) {
        model.check_invariants();
    }

    fn teardown(model: Model, _: Plan<P>) {
        model.finish();
    }
}

fn keeps_the_laws<const P: usize>() {
    let long = std::env::var_os("MELISSA_LONG").is_some_and(|value| value == "1");
    let (cases, longest) = if long { (1_200, 500) } else { (60, 250) };
    let config = Config {
        cases,
        max_shrink_iters: 20_000,
        failure_persistence: None,
        ..Config::with_source_file(file!())
    };
    let schedules = Plan::<P>::sequential_strategy(1..longest);
    let run = TestRunner::new(config.clone()).run(&schedules, |(plan, steps, seen)| {
        Laws::<P>::test_sequential(config.clone(), plan, steps, seen);
        Ok(())
    });
    if let Err(error) = run {
        panic!("{error}");
    }
    let counts = counts();
    println!("laws of {}: {} steps, {counts:?}", POLICIES[P].0, counts["steps"]);
    let mut met = vec!["publishes", "publishes refused", "draws", "ends", "kills", "restarts at once"];
    met.push("restarts with a replay");
    match POLICIES[P].0 {
        "Reservoir" | "BatchReservoir" => met.extend(["evictions", "publishes without a slot"]),
        "FIRO with passes" => met.push("failures"),
        _ => {}
    }
    for what in met {
        assert!(counts.contains_key(what), "the schedules met no {what}: {counts:?}");
    }
}

#[test]
fn fifo_keeps_the_laws_over_random_schedules() {
    keeps_the_laws::<0>();
}

#[test]
fn firo_keeps_the_laws_over_random_schedules() {
    keeps_the_laws::<1>();
}

#[test]
fn firo_with_passes_keeps_the_laws_over_random_schedules() {
    keeps_the_laws::<2>();
}

#[test]
fn the_reservoir_keeps_the_laws_over_random_schedules() {
    keeps_the_laws::<3>();
}

#[test]
fn the_batch_reservoir_keeps_the_laws_over_random_schedules() {
    keeps_the_laws::<4>();
}
