//! The study as stateright sees it: what may happen next, and what must hold always.
//!
//! Nothing that happens can be undone, so that the states form no circle (a test walks them all). Where something that
//! has to happen is possible in every state but the last, every run therefore comes to its end, whatever the order.

use crate::buffer::Key;
use crate::config::{Config, Fault, Kind, Rule, Sampling};
use crate::server::Turn;
use crate::state::{Control, Input, Run, Server, Simulation, State, Status, Wait};
use stateright::{Model, Property};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// All ranks of a simulation have joined at a server rank.
    Join {
        simulation: u8,
        server: u8,
    },
    /// A server rank reads on from a rank.
    Read {
        simulation: u8,
        rank: u8,
        server: u8,
        pinned_victim: bool,
    },
    /// A server rank finds the end of a rank's connection.
    End {
        simulation: u8,
        server: u8,
    },
    /// A server rank looks after those that wait for room, as it was told to.
    ServeRoom {
        server: u8,
        pinned_victim: bool,
    },
    Draw {
        server: u8,
        place: u8,
    },
    /// All server ranks draw, in step.
    DrawTogether,
    Unpin {
        server: u8,
    },
    ReturnView {
        server: u8,
        view: u8,
    },
    /// The control plane replaces an attempt, which may be dead or not, or gives its simulation up.
    Replace {
        simulation: u8,
        control: Control,
    },
    /// A server rank hears of it.
    Register {
        simulation: u8,
        server: u8,
    },
    Finish {
        simulation: u8,
        server: u8,
    },
    /// A server rank hears that a simulation is finished on all of them.
    Confirm {
        simulation: u8,
        server: u8,
    },
    /// The study is to be stopped, and a server rank hears of it.
    Stop,
    StopAt {
        server: u8,
    },
}

#[derive(Clone, Debug)]
pub struct Study(pub Config);

impl Study {
    fn turn<'a>(&'a self, state: &'a mut State, server: u8, pinned_victim: bool) -> Turn<'a> {
        Turn {
            config: &self.0,
            rank: server,
            server: &mut state.servers[usize::from(server)],
            pinned_victim,
            broken: &mut state.broken,
        }
    }

    /// The run of a simulation's present attempt at a server rank.
    fn run<'a>(&self, state: &'a State, simulation: u8, server: u8) -> Option<&'a Run> {
        let attempt = state.clients[usize::from(simulation)].attempt;
        let entry = &state.servers[usize::from(server)].simulations[usize::from(simulation)];
        entry.run.as_ref().filter(|_| entry.attempt == attempt)
    }

    /// Nothing of the attempt can be waited for at this server rank: it is final there, or its run is over.
    fn is_past(&self, state: &State, simulation: u8, server: u8) -> bool {
        let client = &state.clients[usize::from(simulation)];
        let entry = &state.servers[usize::from(server)].simulations[usize::from(simulation)];
        entry.status != Status::Open
            || entry.attempt != client.attempt
            || (client.joined & 1 << server != 0 && entry.run.is_none())
    }

    fn is_welcome(&self, state: &State, simulation: u8, server: u8) -> bool {
        self.is_past(state, simulation, server)
            || self.run(state, simulation, server).is_some_and(|run| run.assembly.is_some())
    }

    fn may_join(&self, state: &State, simulation: u8, server: u8) -> bool {
        let client = &state.clients[usize::from(simulation)];
        client.joined & 1 << server == 0
            && !self.is_past(state, simulation, server)
            && match self.0.rule {
                Rule::Unordered | Rule::UnorderedById => true,
                Rule::ByServerRank => (0..server).all(|lower| self.is_welcome(state, simulation, lower)),
            }
    }

    /// Whether a rank can have written its next frame to a server rank: it starts when all have welcomed it, writes
    /// frame by frame in the order of the time steps, and stops while a connection is full that it writes to. What it
    /// has written itself is no part of the state: it may have written whatever it can.
    fn may_be_there(&self, state: &State, simulation: u8, rank: u8, server: u8) -> bool {
        let config = &self.0;
        let Some(reading) = self.run(state, simulation, server).map(|run| &run.ranks[usize::from(rank)])
        else {
            return false;
        };
        if reading.input != Input::Header {
            return true;
        }
        let next = config.time_step(simulation, server, reading.local).min(config.steps);
        (0..config.servers).filter(|&other| other != server).all(|other| {
            if !self.is_welcome(state, simulation, other) {
                return false;
            }
            if self.is_past(state, simulation, other) {
                return true;
            }
            let Some(run) = self.run(state, simulation, other) else { return true };
            let there = &run.ranks[usize::from(rank)];
            let before = config.local_steps(simulation, other, next) * config.parts;
            let read = there.local * config.parts
                + match there.input {
                    Input::Body(have) | Input::Discard(have) => have,
                    Input::Header | Input::Placing => 0,
                };
            before.saturating_sub(read) <= config.window
        })
    }

    fn may_read(&self, state: &State, simulation: u8, rank: u8, server: u8) -> bool {
        self.run(state, simulation, server).is_some_and(|run| {
            let reading = &run.ranks[usize::from(rank)];
            run.assembly.is_some() && reading.wait.is_none() && !reading.finalized
        }) && self.may_be_there(state, simulation, rank, server)
    }

    /// A rank that has not finalized and whose connection is read from may be found dead.
    fn may_end(&self, state: &State, simulation: u8, server: u8) -> bool {
        let leaves = state.clients[usize::from(simulation)].control != Control::Runs
            || (state.stopping && state.servers.iter().any(|server| server.stopped));
        leaves
            && self
                .run(state, simulation, server)
                .is_some_and(|run| run.ranks.iter().any(|rank| rank.wait.is_none() && !rank.finalized))
    }

    /// What may happen, but does not have to: nothing may depend on it.
    fn is_optional(&self, state: &State, action: Action) -> bool {
        match action {
            Action::Replace { .. } | Action::Stop | Action::End { .. } => true,
            Action::Draw { server, place } => {
                state.servers[usize::from(server)].buffer.is_redraw(usize::from(place))
            }
            // An attempt that is given up may be dead.
            Action::Read { simulation, .. } | Action::Join { simulation, .. } => {
                state.clients[usize::from(simulation)].control != Control::Runs
            }
            _ => false,
        }
    }

    /// Once every server rank has heard of the next attempt, it starts.
    fn start_next(&self, state: &mut State, simulation: u8) {
        let client = &state.clients[usize::from(simulation)];
        let heard = state.servers.iter().all(|server| {
            let entry = &server.simulations[usize::from(simulation)];
            entry.settled || entry.attempt > client.attempt
        });
        if matches!(client.control, Control::Replaces | Control::Redraws) && heard {
            let client = &mut state.clients[usize::from(simulation)];
            client.attempt += 1;
            client.draw += u8::from(client.control == Control::Redraws);
            client.control = Control::Runs;
            client.joined = 0;
        }
    }

    fn add_control(&self, state: &State, simulation: u8, actions: &mut Vec<Action>) {
        let client = &state.clients[usize::from(simulation)];
        let entry = |server: &Server| {
            let entry = &server.simulations[usize::from(simulation)];
            (entry.status, entry.settled, entry.attempt)
        };
        let open = |server: &Server| entry(server).0 == Status::Open;
        let unsettled = |server: &Server| !entry(server).1;
        // Of this attempt: what is finished was not opened again for the next.
        let finished = state.servers.iter().all(|server| {
            let (status, _, attempt) = entry(server);
            status == Status::Finished && attempt == client.attempt
        });
        if finished && client.control != Control::GivesUp {
            // One server rank after the other is told: the order matters to none of them.
            if let Some(server) = state.servers.iter().position(unsettled) {
                actions.push(Action::Confirm { simulation, server: server as u8 });
            }
            return;
        }
        if client.control == Control::Runs
            && state.replacements > 0
            && !state.stopping
            && state.servers.iter().any(open)
        {
            actions.push(Action::Replace { simulation, control: Control::Replaces });
            if self.0.gives_up {
                actions.push(Action::Replace { simulation, control: Control::GivesUp });
            }
            // Two sets of parameters are enough: nobody looks back further.
            if self.0.redrawn && client.draw == 0 {
                actions.push(Action::Replace { simulation, control: Control::Redraws });
            }
        }
        for (server, entry) in (0..).zip(&state.servers) {
            let registered = entry.simulations[usize::from(simulation)].attempt;
            match client.control {
                Control::Replaces | Control::Redraws if unsettled(entry) && registered == client.attempt => {
                    actions.push(Action::Register { simulation, server });
                }
                Control::GivesUp if unsettled(entry) => actions.push(Action::Finish { simulation, server }),
                _ => {}
            }
        }
    }

    fn add_session(&self, state: &State, server: u8, actions: &mut Vec<Action>) {
        let config = &self.0;
        let entry = &state.servers[usize::from(server)];
        let victims: &[bool] = if entry.buffer.victims_differ(config) { &[false, true] } else { &[false] };
        for (simulation, &size) in (0..).zip(config.sizes) {
            if self.may_join(state, simulation, server) {
                actions.push(Action::Join { simulation, server });
            }
            if self.may_end(state, simulation, server) {
                actions.push(Action::End { simulation, server });
            }
            for rank in (0..size).filter(|&rank| self.may_read(state, simulation, rank, server)) {
                actions.extend(victims.iter().map(|&pinned_victim| Action::Read {
                    simulation,
                    rank,
                    server,
                    pinned_victim,
                }));
            }
        }
        if entry.buffer.signalled {
            actions.extend(victims.iter().map(|&pinned_victim| Action::ServeRoom { server, pinned_victim }));
        }
        if state.stopping && !entry.stopped && !entry.over {
            actions.push(Action::StopAt { server });
        }
    }

    fn add_sampler(&self, state: &State, server: u8, actions: &mut Vec<Action>) {
        let buffer = &state.servers[usize::from(server)].buffer;
        for place in buffer.draws(&self.0).into_iter().filter(|_| !self.0.in_step) {
            actions.push(Action::Draw { server, place: place as u8 });
        }
        if buffer.guard.is_some() {
            actions.push(Action::Unpin { server });
        }
        if self.0.sampling != Sampling::Hoards {
            let views = 0..buffer.views.len() as u8;
            actions.extend(views.map(|view| Action::ReturnView { server, view }));
        }
    }

    /// Nobody holds a slot twice, and none is lost.
    fn keeps_slots(&self, state: &State) -> bool {
        state.servers.iter().all(|server| {
            let mut owned = server.owned();
            let all = owned.len() + usize::from(server.buffer.free);
            owned.sort_unstable();
            owned.dedup();
            let once = owned.len() + usize::from(server.buffer.free);
            (all, once) == (usize::from(self.0.slots()), usize::from(self.0.slots()))
        })
    }

    fn keeps_promises(&self, state: &State) -> bool {
        state.servers.iter().all(|server| {
            let runs = server.simulations.iter().filter_map(|entry| entry.run.as_ref());
            let promised = runs.filter(|run| run.promised).count();
            promised == usize::from(server.room.promises) && server.room.promises <= self.0.assembly
        })
    }

    /// One slot at most for each simulation, under assembly or waiting for room, and right counts of them.
    fn holds_one_slot_each(&self, state: &State) -> bool {
        state.servers.iter().all(|server| {
            let waiting = |simulation: u8| {
                server.room.complete.iter().filter(|waiting| waiting.key.simulation == simulation).count()
            };
            let entries = || (0..).zip(&server.simulations);
            let of_singles = entries().filter(|(_, entry)| entry.holds_slot_of_singles).count();
            let right = entries().all(|(simulation, entry)| {
                let assembled = entry
                    .run
                    .as_ref()
                    .and_then(|run| run.assembly.as_ref())
                    .is_some_and(|assembly| assembly.slot.is_some());
                let held = waiting(simulation) + usize::from(assembled);
                let single = self.0.sizes[usize::from(simulation)] == 1;
                held <= 1
                    && entry.sample_waits == (waiting(simulation) == 1)
                    && entry.holds_slot_of_singles == (single && held == 1)
            });
            right && of_singles == usize::from(server.room.held_by_singles)
        })
    }

    /// A simulation that was promised a slot lacks one only while the buffer is full (what is being copied out of it
    /// counted in), or because slots were taken before the promise was made: never because of what another simulation
    /// does, or fails to do.
    fn promised_waits_for_training_only(&self, state: &State) -> bool {
        state.servers.iter().all(|server| {
            let buffer = &server.buffer;
            let lacks = server.simulations.iter().filter_map(|entry| entry.run.as_ref());
            let lacks = lacks.filter(|run| run.promised && run.wants_slot).count() > 0;
            let copied = buffer.guard.is_some_and(|slot| buffer.retired.contains(&slot));
            let full = buffer.population.len() + usize::from(copied) >= usize::from(self.0.capacity);
            !lacks || buffer.signalled || full || server.room.taken_before > 0
        })
    }

    /// Complete samples wait only while there is no room, simulations only while there is no slot for them: else the
    /// session is about to look after them.
    fn serves_whom_it_can(&self, state: &State) -> bool {
        state.servers.iter().all(|server| {
            let (room, buffer) = (&server.room, &server.buffer);
            let has_room = match self.0.kind {
                Kind::Fifo => buffer.population.len() < usize::from(self.0.capacity),
                Kind::Reservoir { .. } => {
                    buffer.population.len() < usize::from(self.0.capacity)
                        || buffer.population.iter().any(|entry| entry.seen)
                }
            };
            let left = Turn::left_for_singles(&self.0, room.promises);
            let singles_may = left.is_none_or(|left| room.held_by_singles < left);
            let lacks_slot = server
                .simulations
                .iter()
                .filter_map(|entry| entry.run.as_ref())
                .any(|run| run.wants_slot && (run.promised || singles_may) && buffer.free > 0);
            let lacks_room = !room.complete.is_empty() && has_room && !buffer.closed;
            let lacks_promise = !room.promise_row.is_empty() && room.promises < self.0.assembly;
            buffer.signalled || !(lacks_slot || lacks_room || lacks_promise)
        })
    }

    /// Whoever is not read from waits for something that somebody is to bring.
    fn waits_for_something(&self, state: &State) -> bool {
        state.servers.iter().all(|server| {
            server.simulations.iter().all(|entry| {
                let Some(run) = &entry.run else { return true };
                run.ranks.iter().all(|rank| match rank.wait {
                    None => true,
                    Some(Wait::Slot) => run.wants_slot || entry.sample_waits,
                    Some(Wait::Step) => rank.local == entry.complete + 1,
                })
            })
        })
    }

    /// Every sample that was complete was delivered, unless the study was stopped; a finished simulation is whole.
    fn lost_nothing(&self, state: &State) -> bool {
        if !state.is_final(&self.0) {
            return true;
        }
        (0..).zip(&state.servers).all(|(rank, server)| {
            (0..).zip(&server.simulations).all(|(simulation, entry)| {
                let delivered = (0..entry.complete).all(|local| {
                    let key = Key { simulation, draw: entry.draw, local };
                    server.buffer.delivered & key.bit(&self.0) != 0
                });
                let client = &state.clients[usize::from(simulation)];
                // A rank that was stopped hears of no new parameters.
                let whole = entry.complete == self.0.steps_at(simulation, rank)
                    && (entry.draw == client.draw || server.stopped);
                (delivered || server.stopped || self.0.in_step) && (whole || entry.status == Status::Dropped)
            })
        }) && (self.0.in_step || self.keeps_final_counts(state))
    }

    fn keeps_final_counts(&self, state: &State) -> bool {
        state.servers.iter().all(|server| {
            let buffer = &server.buffer;
            let pinned = buffer.retired.len();
            buffer.delivered == buffer.published
                && server.nb_settled == server.nb_complete
                && usize::from(buffer.free) + pinned == usize::from(self.0.slots())
        })
    }

    /// A simulation is final as finished where every server rank has finished it, or where the study stops.
    fn is_final_on_all_or_none(&self, state: &State) -> bool {
        (0..self.0.sizes.len()).all(|simulation| {
            let entries =
                || state.servers.iter().map(move |server| (server, &server.simulations[simulation]));
            let settled = entries()
                .any(|(server, entry)| entry.settled && entry.status == Status::Finished && !server.stopped);
            !settled || entries().all(|(server, entry)| entry.status == Status::Finished || server.stopped)
        })
    }

    fn goes_on(&self, state: &State) -> bool {
        if state.is_final(&self.0) {
            return true;
        }
        let mut actions = Vec::new();
        self.actions(state, &mut actions);
        actions.iter().any(|&action| !self.is_optional(state, action))
    }
}

pub const GOES_ON: &str = "there is always a next step until all is delivered";
pub const OWNED: &str = "every slot has one owner, and none is lost";
pub const PROMISES: &str = "promises are counted, and no more than there are assembly slots";
pub const ONE_SLOT: &str = "a simulation holds one slot at most, and is counted with it";
pub const UNTIED: &str = "a promised simulation waits for training only, never for another simulation";
pub const SERVES: &str = "who can be served is served";
pub const WAITS: &str = "who is not read from waits for what will come";
pub const LAWS: &str = "no step breaks a law";
pub const COMPLETES: &str = "nothing complete is lost";
pub const CONFIRMED: &str = "a simulation is final when every server rank has finished it";
/// What has to hold in every state.
pub const RIGHT: [&str; 10] =
    [GOES_ON, OWNED, PROMISES, ONE_SLOT, UNTIED, SERVES, WAITS, LAWS, COMPLETES, CONFIRMED];
/// What has to occur in some configuration, or the model shows nothing.
pub const OCCURS: [&str; 10] = [
    "a complete sample waits for room",
    "a simulation with a promise waits for a slot",
    "a simulation of one rank waits although a slot is free",
    "a simulation waits for a promise",
    "a rank has run ahead of its simulation",
    "an attempt is over in the middle of a body",
    "a slot is kept by a pin after its sample has left",
    "a sample waits whose simulation is final or has a further attempt",
    "a simulation is finished on one server rank and has a further attempt on another",
    "a simulation is finished on one server rank and has new parameters on another",
];

impl Model for Study {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(&self.0)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.broken.is_some() {
            return;
        }
        for simulation in 0..self.0.sizes.len() as u8 {
            self.add_control(state, simulation, actions);
        }
        for server in 0..self.0.servers {
            self.add_session(state, server, actions);
            self.add_sampler(state, server, actions);
        }
        if self.0.in_step && state.servers.iter().all(|server| !server.buffer.draws(&self.0).is_empty()) {
            actions.push(Action::DrawTogether);
        }
        if self.0.stops && !state.stopping && state.servers.iter().any(|server| !server.over) {
            actions.push(Action::Stop);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Join { simulation, server } => {
                state.clients[usize::from(simulation)].joined |= 1 << server;
                self.turn(&mut state, server, false).join(simulation);
            }
            Action::Read { simulation, rank, server, pinned_victim } => {
                self.turn(&mut state, server, pinned_victim).read(simulation, usize::from(rank));
            }
            Action::End { simulation, server } => self.turn(&mut state, server, false).end_run(simulation),
            Action::ServeRoom { server, pinned_victim } => {
                state.servers[usize::from(server)].buffer.signalled = false;
                self.turn(&mut state, server, pinned_victim).serve_room();
            }
            Action::Draw { server, place } => {
                let buffer = &mut state.servers[usize::from(server)].buffer;
                buffer.draw(&self.0, usize::from(place), &mut state.broken);
            }
            Action::DrawTogether => {
                for server in &mut state.servers {
                    server.buffer.draw(&self.0, 0, &mut state.broken);
                }
            }
            Action::Unpin { server } => state.servers[usize::from(server)].buffer.unpin(&self.0),
            Action::ReturnView { server, view } => {
                state.servers[usize::from(server)].buffer.return_view(&self.0, usize::from(view));
            }
            Action::Replace { simulation, control } => {
                state.replacements -= 1;
                state.clients[usize::from(simulation)].control = control;
            }
            Action::Register { simulation, server } => {
                let redrawn = state.clients[usize::from(simulation)].control == Control::Redraws;
                self.turn(&mut state, server, false).register(simulation, redrawn);
                self.start_next(&mut state, simulation);
            }
            Action::Finish { simulation, server } => {
                self.turn(&mut state, server, false).settle(simulation, Status::Dropped);
            }
            Action::Confirm { simulation, server } => {
                state.clients[usize::from(simulation)].control = Control::Confirms;
                self.turn(&mut state, server, false).settle(simulation, Status::Finished);
            }
            Action::Stop => state.stopping = true,
            Action::StopAt { server } => self.turn(&mut state, server, false).stop(),
        }
        // What became final by what was read needs no registration any more.
        for simulation in 0..self.0.sizes.len() as u8 {
            self.start_next(&mut state, simulation);
        }
        for server in &mut state.servers {
            server.renumber_slots(self.0.kind == Kind::Fifo);
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(GOES_ON, |study: &Self, state: &State| {
                study.goes_on(state) || state.broken.is_some()
            }),
            Property::always(OWNED, |study: &Self, state: &State| study.keeps_slots(state)),
            Property::always(PROMISES, |study: &Self, state: &State| study.keeps_promises(state)),
            Property::always(ONE_SLOT, |study: &Self, state: &State| study.holds_one_slot_each(state)),
            Property::always(UNTIED, |study: &Self, state: &State| {
                study.promised_waits_for_training_only(state)
            }),
            Property::always(SERVES, |study: &Self, state: &State| study.serves_whom_it_can(state)),
            Property::always(WAITS, |study: &Self, state: &State| study.waits_for_something(state)),
            Property::always(LAWS, |_: &Self, state: &State| state.broken.is_none()),
            Property::always(COMPLETES, |study: &Self, state: &State| study.lost_nothing(state)),
            Property::always(CONFIRMED, |study: &Self, state: &State| study.is_final_on_all_or_none(state)),
        ];
        if self.0.fault == Fault::None {
            properties.extend(occurrences());
        }
        properties
    }
}

/// What has to be seen somewhere.
fn occurrences() -> Vec<Property<Study>> {
    let [waits, lacks, single, promise, ahead, torn, pinned, left, half, redrawn] = OCCURS;
    vec![
        Property::sometimes(waits, |_, state: &State| any(state, |server| !server.room.complete.is_empty())),
        Property::sometimes(lacks, |_, state: &State| {
            any(state, |server| runs(server).any(|run| run.promised && run.wants_slot))
        }),
        Property::sometimes(single, |_, state: &State| {
            any(state, |server| {
                server.buffer.free > 0 && runs(server).any(|run| run.wants_slot && !run.promised)
            })
        }),
        Property::sometimes(promise, |_, state: &State| {
            any(state, |server| !server.room.promise_row.is_empty())
        }),
        Property::sometimes(ahead, |_, state: &State| {
            any(state, |server| {
                runs(server).flat_map(|run| &run.ranks).any(|rank| rank.wait == Some(Wait::Step))
            })
        }),
        Property::sometimes(torn, |_, state: &State| {
            state.clients.iter().enumerate().any(|(simulation, client)| {
                client.control == Control::Replaces
                    && state.servers.iter().any(|server| {
                        runs_of(server, simulation)
                            .any(|run| run.ranks.iter().any(|rank| matches!(rank.input, Input::Body(_))))
                    })
            })
        }),
        Property::sometimes(pinned, |_, state: &State| {
            any(state, |server| !server.buffer.retired.is_empty())
        }),
        Property::sometimes(left, |_, state: &State| {
            any(state, |server| {
                server.room.complete.iter().any(|waiting| {
                    let entry = &server.simulations[usize::from(waiting.key.simulation)];
                    entry.status != Status::Open || entry.attempt > 1
                })
            })
        }),
        Property::sometimes(half, |_, state: &State| any_half(state, |entry| entry.attempt > 1)),
        Property::sometimes(redrawn, |_, state: &State| any_half(state, |entry| entry.draw > 0)),
    ]
}

fn any(state: &State, holds: fn(&Server) -> bool) -> bool {
    state.servers.iter().any(holds)
}

/// A simulation is finished on one server rank, and open and so on another.
fn any_half(state: &State, holds: fn(&Simulation) -> bool) -> bool {
    (0..state.clients.len()).any(|simulation| {
        let entries = || state.servers.iter().map(|server| &server.simulations[simulation]);
        entries().any(|entry| entry.status == Status::Finished)
            && entries().any(|entry| entry.status == Status::Open && holds(entry))
    })
}

fn runs(server: &Server) -> impl Iterator<Item = &Run> {
    server.simulations.iter().filter_map(|entry| entry.run.as_ref())
}

fn runs_of(server: &Server, simulation: usize) -> impl Iterator<Item = &Run> {
    server.simulations[simulation].run.iter()
}
