//! What Python learns of a simulation.

/// How a simulation stands, seen from the receiving side.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Status {
    /// Registered or not yet: nothing of its current attempt has connected.
    Planned,
    /// A rank has proved the study key.
    Connected,
    /// All ranks have joined; time steps may come.
    Running,
    /// The attempt has ended before its finalize; the error says how.
    Disconnected,
    /// Connected, and nothing came for the time given although the session was willing to read.
    Silent,
    /// All ranks have finalized. With several server ranks it is final once it was confirmed; a new attempt opens it again.
    Finished,
    /// Given up for good.
    Dropped,
}

impl Status {
    pub const ALL: [Self; 7] = [
        Self::Planned,
        Self::Connected,
        Self::Running,
        Self::Disconnected,
        Self::Silent,
        Self::Finished,
        Self::Dropped,
    ];

    /// The name in Python.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Connected => "connected",
            Self::Running => "running",
            Self::Disconnected => "disconnected",
            Self::Silent => "silent",
            Self::Finished => "finished",
            Self::Dropped => "dropped",
        }
    }

    /// Nothing more can come of the simulation's attempt.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Finished | Self::Dropped)
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// One simulation at the moment of asking.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SimulationState {
    pub simulation_id: u32,
    /// The registered attempt; 0 before the first.
    pub attempt: u32,
    pub draw: u32,
    pub status: Status,
    /// Complete time steps of this draw, in all attempts together.
    pub steps_complete: u64,
    /// Where the client's rank 0 runs, as it says itself; empty before it has connected.
    pub host: String,
    /// What went wrong last; empty when nothing did.
    pub error: String,
}
