//! What a study of the model consists of, and the defects that can be put into it.

/// Which sample the training buffer hands out, and when it has room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The oldest; it leaves the population.
    Fifo,
    /// Any, at this population and above; it stays until it is evicted, which it cannot be unseen.
    Reservoir { watermark: u8 },
}

/// What the one sampler of a server rank does with a sample that it has drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sampling {
    /// Copies it before anything else happens.
    Copies,
    /// Keeps it pinned for a while.
    Gathers,
    /// Is lent a view, which it returns some time, or a copy once all that may be lent is out.
    Views,
    /// The same, and never returns one.
    Hoards,
}

/// When a client of several ranks asks which server rank for an assembly slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// All of them, in any order; each promises on its own.
    Unordered,
    /// All of them, in any order; each serves those that wait in the order of their simulation ids.
    UnorderedById,
    /// Server rank k + 1 when server rank k has promised.
    ByServerRank,
}

/// Something that a server rank does wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    None,
    /// Simulations of one rank take slots without regard to promises.
    SinglesIgnorePromises,
    /// The end of an attempt does not give its promise back.
    PromiseKeptAtEnd,
    /// A promise that is free again is not given to those that wait for one.
    FreedPromiseGoesToNobody,
    /// The end of an attempt does not give its assembly slot back.
    SlotLostAtEnd,
    /// The next attempt goes on with what the one before has put together.
    AssemblyKeptAtEnd,
    /// A complete step does not resume the ranks that ran ahead of it.
    AheadNotResumed,
    /// A slot that is given does not resume the ranks that waited for it.
    SlotResumesNobody,
    /// A simulation whose published sample had waited is not put in the row for its next slot.
    NoRequestAfterRoom,
    /// Complete samples that wait for room are served the last first.
    WaitingOutOfOrder,
    /// A simulation takes a further slot while its complete sample waits for room.
    SecondSlotBesideWaiting,
    /// A refused publication does not raise "room wanted".
    RefusedPublishWantsNothing,
    /// A request that finds no slot does not raise "room wanted".
    RefusedSlotWantsNothing,
    /// The last pin's end does not tell who wants a slot.
    UnpinTellsNobody,
    /// A full reservoir evicts samples that nobody has seen.
    EvictsUnseen,
    /// Any number of views is lent.
    ViewsWithoutLimit,
    /// Finalize is acknowledged at once.
    AcknowledgedAtOnce,
    /// Every simulation of several ranks is promised a slot.
    PromisesWithoutLimit,
    /// The end of a simulation throws its sample away that waits for room.
    FinishedSamplesDropped,
    /// A simulation that is finished on one server rank is final there, whatever the others say.
    FinalUnconfirmed,
    /// Reception ends when every simulation is finished on this server rank, confirmed or not.
    OverUnconfirmed,
    /// A finished simulation that is opened again for new parameters keeps the old ones.
    RedrawForgotten,
}

impl Fault {
    pub const ALL: [Self; 21] = [
        Self::SinglesIgnorePromises,
        Self::PromiseKeptAtEnd,
        Self::FreedPromiseGoesToNobody,
        Self::SlotLostAtEnd,
        Self::AssemblyKeptAtEnd,
        Self::AheadNotResumed,
        Self::SlotResumesNobody,
        Self::NoRequestAfterRoom,
        Self::WaitingOutOfOrder,
        Self::SecondSlotBesideWaiting,
        Self::RefusedPublishWantsNothing,
        Self::RefusedSlotWantsNothing,
        Self::UnpinTellsNobody,
        Self::EvictsUnseen,
        Self::ViewsWithoutLimit,
        Self::AcknowledgedAtOnce,
        Self::PromisesWithoutLimit,
        Self::FinishedSamplesDropped,
        Self::FinalUnconfirmed,
        Self::OverUnconfirmed,
        Self::RedrawForgotten,
    ];
}

#[derive(Clone, Debug)]
pub struct Config {
    pub servers: u8,
    /// All time steps of a simulation go to one server rank.
    pub by_simulation: bool,
    /// The server ranks know how many time steps there are, and promise nothing where none goes to them.
    pub knows_steps: bool,
    /// Ranks of each simulation.
    pub sizes: &'static [u8],
    /// Time steps of each simulation.
    pub steps: u8,
    /// Reads that a body takes.
    pub parts: u8,
    /// Parts that one connection holds between a client and a server that does not read.
    pub window: u8,
    pub kind: Kind,
    pub capacity: u8,
    pub assembly: u8,
    pub lent: u8,
    pub sampling: Sampling,
    /// The samplers of all server ranks draw together, as data-parallel training does (FIFO only), and stop when one of
    /// them is at the end of its data.
    pub in_step: bool,
    /// Draws of samples that were seen before, per server rank: they change nothing but what is pinned.
    pub redraws: u8,
    /// Attempts that are replaced, or simulations that are given up, in all.
    pub replacements: u8,
    /// Instead of being replaced, an attempt may be the last of its simulation.
    pub gives_up: bool,
    /// The attempt that takes its place may have new parameters.
    pub redrawn: bool,
    /// The study may be stopped early.
    pub stops: bool,
    pub rule: Rule,
    pub fault: Fault,
}

impl Config {
    /// One server rank with a FIFO of one place, one assembly slot and one slot to lend; two simulations.
    pub const fn new(sizes: &'static [u8], steps: u8) -> Self {
        Self {
            servers: 1,
            by_simulation: false,
            knows_steps: true,
            sizes,
            steps,
            parts: 2,
            window: 1,
            kind: Kind::Fifo,
            capacity: 1,
            assembly: 1,
            lent: 1,
            sampling: Sampling::Copies,
            in_step: false,
            redraws: 0,
            replacements: 0,
            gives_up: false,
            redrawn: false,
            stops: false,
            rule: Rule::ByServerRank,
            fault: Fault::None,
        }
    }

    pub const fn slots(&self) -> u8 {
        self.capacity + self.assembly + self.lent
    }

    /// Time step `local` of those of a simulation that belong to a server rank: `(t + s) mod P` is its number, or `s mod P`;
    /// the greatest number when none belongs to it.
    pub const fn time_step(&self, simulation: u8, server: u8, local: u8) -> u8 {
        if self.by_simulation {
            return if simulation % self.servers == server { local } else { u8::MAX };
        }
        let first = (server + self.servers - simulation % self.servers) % self.servers;
        first + local * self.servers
    }

    /// How many of the first `steps` time steps of a simulation belong to a server rank.
    pub const fn local_steps(&self, simulation: u8, server: u8, steps: u8) -> u8 {
        let mut local = 0;
        while self.time_step(simulation, server, local) < steps {
            local += 1;
        }
        local
    }

    /// Whether a server rank gets a time step of a simulation at all, as far as it knows.
    pub const fn gets_steps_of(&self, simulation: u8, server: u8) -> bool {
        if self.knows_steps {
            self.steps_at(simulation, server) > 0
        } else {
            self.time_step(simulation, server, 0) < u8::MAX
        }
    }

    pub const fn steps_at(&self, simulation: u8, server: u8) -> u8 {
        self.local_steps(simulation, server, self.steps)
    }
}
