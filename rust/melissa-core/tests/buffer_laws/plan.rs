//! Random schedules: which step comes next depends on the phase of the run only, so that a schedule can be shortened.

use melissa_core::buffer::{BufferConfig, Kind};
use proptest::prelude::*;
use proptest::strategy::Union;
use proptest_state_machine::ReferenceStateMachine;

/// The policies: each kind, and FIRO with several passes.
pub const POLICIES: [(&str, Kind, bool); 5] = [
    ("FIFO", Kind::Fifo, false),
    ("FIRO", Kind::Firo, false),
    ("FIRO with passes", Kind::Firo, true),
    ("Reservoir", Kind::Reservoir, false),
    ("BatchReservoir", Kind::BatchReservoir, false),
];

/// What a run mostly does for a while.
#[derive(Clone, Copy, Debug)]
pub enum Phase {
    /// Samples come faster than they are drawn.
    Fill,
    /// Both sides run.
    Steady,
    /// Samples come and nobody draws: the receiver waits for room.
    Blocked,
    /// Nothing comes, and reception may end.
    Drain,
}

#[derive(Clone, Debug)]
pub enum Step {
    /// The next sample, or the one that waits for room, tries to join the population.
    Publish,
    /// The sample that waits for room is given up.
    GiveUp,
    Draw {
        hold: bool,
    },
    DrawBatch(usize),
    LetGo(usize),
    Pause,
    Resume,
    LiftWatermark,
    Close,
    Enter(Phase),
    /// Takes a cut and holds its samples.
    Cut,
    /// Saves so many samples of the cut.
    Save(usize),
    /// Lets go of the cut.
    Forget,
    /// Restores the cut (or one taken now) and replays what was done since. The run goes on in the restored buffer, beside
    /// the others or in their place.
    Restart {
        beside: bool,
    },
    /// Everything left is drained, and a new run begins.
    Renew(u64),
}

/// The schedule's own view of a run of policy `P`.
#[derive(Clone, Debug)]
pub struct Plan<const P: usize> {
    pub config: BufferConfig,
    phase: Phase,
    pauses: usize,
    published: usize,
    closed: bool,
    /// Steps since the run came to its end.
    over: usize,
}

/// A run that has ended goes on for so many steps before it is renewed.
const STEPS_AFTER_THE_END: usize = 30;

impl<const P: usize> Plan<P> {
    fn full(&self) -> bool {
        self.published >= self.config.capacity
    }
}

impl<const P: usize> ReferenceStateMachine for Plan<P> {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        let (_, kind, passes) = POLICIES[P];
        (1..12usize, 0..12usize, 2..4u32, 1..4usize, 1..3usize, 1..4usize, any::<u64>())
            .prop_map(move |(capacity, watermark, nb_passes, batch, assembly, lent, seed)| {
                let watermark = match kind {
                    Kind::Firo => watermark % capacity,
                    _ => watermark % (capacity + 1),
                };
                let config = BufferConfig {
                    kind,
                    capacity,
                    watermark,
                    pseudo_epochs: if passes { nb_passes } else { 1 },
                    batch_size: batch.min(capacity),
                    seed,
                    assembly_slots: assembly,
                    lent_slots: Some(lent),
                };
                Self { config, phase: Phase::Fill, pauses: 0, published: 0, closed: false, over: 0 }
            })
            .boxed()
    }

    fn transitions(state: &Self) -> BoxedStrategy<Step> {
        let (publish, draw, batch, close) = match state.phase {
            _ if state.closed => (1, 8, 3, 0),
            Phase::Fill => (16, 6, 2, 0),
            Phase::Steady => (12, 16, 6, 0),
            Phase::Blocked => (6, 0, 0, 0),
            Phase::Drain => (2, 14, 5, 2),
        };
        // One sample too many for several passes ends the run: an end that is rare.
        let passes_full = state.config.pseudo_epochs > 1 && state.full();
        let publish = if passes_full { u32::from(state.over == 0) } else { publish };
        let renew = if state.over > STEPS_AFTER_THE_END { 8 } else { 0 };
        let phases = [Phase::Fill, Phase::Steady, Phase::Blocked, Phase::Drain];
        let weighted = [
            (publish, Just(Step::Publish).boxed()),
            (draw, any::<bool>().prop_map(|hold| Step::Draw { hold }).boxed()),
            (batch, (1..5usize).prop_map(Step::DrawBatch).boxed()),
            (4, (0..4usize).prop_map(Step::LetGo).boxed()),
            (1, Just(Step::GiveUp).boxed()),
            (1, Just(Step::Pause).boxed()),
            (3, Just(Step::Resume).boxed()),
            (u32::from(state.published % 8 == 7), Just(Step::LiftWatermark).boxed()),
            (close, Just(Step::Close).boxed()),
            (2, (0..4usize).prop_map(move |index| Step::Enter(phases[index])).boxed()),
            (1, Just(Step::Cut).boxed()),
            (2, (1..6usize).prop_map(Step::Save).boxed()),
            (1, any::<bool>().prop_map(|beside| Step::Restart { beside }).boxed()),
            (u32::from(state.published % 4 == 3), Just(Step::Forget).boxed()),
            (renew, any::<u64>().prop_map(Step::Renew).boxed()),
        ];
        Union::new_weighted(weighted.into_iter().filter(|(weight, _)| *weight > 0).collect()).boxed()
    }

    fn apply(mut state: Self, step: &Step) -> Self {
        state.over += usize::from(state.over > 0);
        match step {
            Step::Publish if state.pauses == 0 && !state.closed => {
                let overfull = state.config.pseudo_epochs > 1 && state.full();
                state.over += usize::from(overfull && state.over == 0);
                state.published += 1;
            }
            Step::Pause => state.pauses += 1,
            Step::Resume => state.pauses = state.pauses.saturating_sub(1),
            Step::Close => {
                state.over += usize::from(state.over == 0);
                state.closed = true;
            }
            Step::Enter(phase) => state.phase = *phase,
            Step::Renew(_) => {
                let config = state.config.clone();
                state = Self { config, phase: Phase::Fill, pauses: 0, published: 0, closed: false, over: 0 };
            }
            _ => {}
        }
        state
    }
}
