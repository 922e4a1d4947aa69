//! Which server rank a time step goes to: what client and server have to agree on, one step at a time.

/// The rule by which time steps are dealt out to the server ranks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Distribution {
    /// Step t of simulation s goes to rank (t + s) mod P: every rank sees something of every simulation.
    RoundRobin,
    /// All steps of simulation s go to rank s mod P.
    Simulation,
    /// All steps go to rank 0, and the client connects to no other: simulations for validation.
    First,
}

impl Distribution {
    pub const ALL: [Self; 3] = [Self::RoundRobin, Self::Simulation, Self::First];

    /// The name in `Welcome` and in configurations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::Simulation => "simulation",
            Self::First => "first",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|distribution| distribution.name() == name)
    }

    /// The rank of `nb_ranks` that gets a time step.
    pub const fn rank_of(self, simulation: u32, time_step: u64, nb_ranks: u32) -> u32 {
        let nb_ranks = nb_ranks as u64;
        let rank = match self {
            // Of each the remainder first: a sum of what came off the wire could wrap around.
            Self::RoundRobin => (time_step % nb_ranks + simulation as u64 % nb_ranks) % nb_ranks,
            Self::Simulation => simulation as u64 % nb_ranks,
            Self::First => 0,
        };
        rank as u32
    }

    /// The time steps of a simulation that go to a rank.
    pub const fn steps_of(self, simulation: u32, rank: u32, nb_ranks: u32) -> Steps {
        match self {
            Self::RoundRobin => {
                let first = (nb_ranks - simulation % nb_ranks + rank) % nb_ranks;
                Steps { first: first as u64, stride: nb_ranks as u64 }
            }
            Self::Simulation if simulation % nb_ranks == rank => Steps::ALL,
            Self::First if rank == 0 => Steps::ALL,
            Self::Simulation | Self::First => Steps::NONE,
        }
    }
}

impl std::fmt::Display for Distribution {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A server rank among others, and how time steps are dealt out to them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServerRank {
    pub rank: u32,
    pub nb_ranks: u32,
    pub distribution: Distribution,
}

impl ServerRank {
    /// The one rank of a server that has no others: every time step is its own.
    pub const ALONE: Self = Self { rank: 0, nb_ranks: 1, distribution: Distribution::RoundRobin };

    /// The time steps of a simulation that are this rank's.
    pub const fn steps_of(&self, simulation: u32) -> Steps {
        self.distribution.steps_of(simulation, self.rank, self.nb_ranks)
    }
}

/// The time steps of one simulation that one server rank gets: `first`, `first + stride`, and so on without end, or none.
///
/// They are numbered from 0 on: `index` is the number of a step, `at` the step of a number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Steps {
    first: u64,
    /// 0 when there are none.
    stride: u64,
}

impl Steps {
    pub const ALL: Self = Self { first: 0, stride: 1 };
    pub const NONE: Self = Self { first: u64::MAX, stride: 0 };

    pub const fn contains(self, step: u64) -> bool {
        self.stride != 0 && step >= self.first && (step - self.first).is_multiple_of(self.stride)
    }

    /// The number of a step among these; `None` when it is none of them.
    pub const fn index(self, step: u64) -> Option<u64> {
        if self.contains(step) { Some((step - self.first) / self.stride) } else { None }
    }

    /// The step of that number; the greatest number that there is when there is no such step.
    pub const fn at(self, index: u64) -> u64 {
        if self.stride == 0 { u64::MAX } else { index.saturating_mul(self.stride).saturating_add(self.first) }
    }

    /// How many of them lie below `end`.
    pub const fn below(self, end: u64) -> u64 {
        if self.stride == 0 { 0 } else { end.saturating_sub(self.first).div_ceil(self.stride) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_server_rank_gets_every_step_whatever_the_rule() {
        for distribution in Distribution::ALL {
            assert_eq!(distribution.steps_of(5, 0, 1), Steps::ALL);
            assert_eq!(distribution.rank_of(5, u64::MAX, 1), 0);
        }
    }

    #[test]
    fn a_simulation_whose_steps_go_elsewhere_has_none_here() {
        let steps = Distribution::Simulation.steps_of(3, 0, 2);
        assert_eq!((steps, steps.at(0), steps.below(u64::MAX)), (Steps::NONE, u64::MAX, 0));
        assert!(!steps.contains(u64::MAX) && steps.index(0).is_none());
        assert_eq!(Distribution::First.steps_of(3, 1, 2), Steps::NONE);
    }

    #[test]
    fn names_come_back() {
        for distribution in Distribution::ALL {
            assert_eq!(Distribution::from_name(distribution.name()), Some(distribution));
        }
        assert_eq!(Distribution::from_name("random"), None);
    }

    proptest! {
        #[test]
        fn every_step_goes_to_one_rank_and_has_one_number_there(
            simulation: u32, step: u64, nb_ranks in 1u32..9, kind in 0usize..3
        ) {
            let distribution = Distribution::ALL[kind];
            let rank = distribution.rank_of(simulation, step, nb_ranks);
            for other in 0..nb_ranks {
                let steps = distribution.steps_of(simulation, other, nb_ranks);
                prop_assert_eq!(steps.contains(step), other == rank);
                prop_assert_eq!(steps.index(step).map(|index| steps.at(index)), (other == rank).then_some(step));
            }
        }

        #[test]
        fn the_ranks_shares_of_a_simulation_add_up(simulation: u32, end in 0u64..1000, nb_ranks in 1u32..9) {
            for distribution in Distribution::ALL {
                let shares = (0..nb_ranks).map(|rank| distribution.steps_of(simulation, rank, nb_ranks));
                let counted: Vec<u64> = shares.clone().map(|steps| (0..end).filter(|&step| steps.contains(step)).count() as u64).collect();
                prop_assert_eq!(shares.map(|steps| steps.below(end)).collect::<Vec<_>>(), counted.clone());
                prop_assert_eq!(counted.iter().sum::<u64>(), end);
            }
        }
    }
}
