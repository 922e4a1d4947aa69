//! What time alone makes happen: handshakes and farewells that take too long, and silence.

use super::connection::{Connection, ConnectionId, Phase, Stage};
use super::reception::Reception;
use super::state::Status;
use std::time::{Duration, Instant};

impl Reception {
    /// Looks at all connections, and settles when to look again.
    pub(super) fn look_at_clocks(&mut self) {
        self.clear_look();
        let ids: Vec<ConnectionId> = self.connections.ids().collect();
        for id in ids {
            let Some(connection) = self.connections.get(id) else { continue };
            match connection.deadline {
                Some(deadline) if deadline <= self.now => self.too_late(id),
                Some(deadline) => self.look_by(deadline),
                None => self.listen_to(id),
            }
        }
        if let Some(time) = self.accept_after {
            self.look_by(time);
        }
    }

    /// A handshake or a farewell has taken too long.
    fn too_late(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(id) else { return };
        if matches!(connection.stage, Stage::Lingering) {
            return self.remove(id);
        }
        let text = format!(
            "it has not proved the study key within {} ({} bytes came)",
            seconds(self.config.handshake_timeout),
            connection.bytes_received
        );
        self.hang_up(id, &text);
    }

    /// Reports a simulation of which a rank was silent for too long, although the session would have read.
    fn listen_to(&mut self, id: ConnectionId) {
        let Some(timeout) = self.config.simulation_timeout else { return };
        let Some(connection) = self.connections.get(id) else { return };
        let Some(member) = connection.member() else { return };
        if matches!(member.phase, Phase::Finalized | Phase::Stopped) {
            return;
        }
        let heard = self.expects_bytes_since(connection);
        let silent = heard.is_some_and(|heard| self.now.saturating_duration_since(heard) >= timeout);
        // Whatever is found now: a silence may begin at any time, and again after each one that was reported.
        self.look_by(heard.filter(|_| !silent).unwrap_or(self.now) + timeout);
        if !silent {
            return;
        }
        let Some(connection) = self.connections.get(id) else { return };
        let Some(member) = connection.member() else { return };
        let simulation = member.simulation;
        let entry = &self.simulations[simulation as usize];
        if entry.status == Status::Silent || entry.run.is_none() {
            return;
        }
        let text = if matches!(member.phase, Phase::Joining) {
            let absent = entry.run.as_ref().map_or_else(String::new, |run| run.absent());
            format!(
                "simulation {simulation} waits for ranks that have not joined for {}: {absent}",
                seconds(timeout)
            )
        } else {
            format!(
                "{} has sent nothing for {}, after {} complete time steps",
                connection.describe(),
                seconds(timeout),
                entry.steps
            )
        };
        log::warn!("{text}");
        self.simulations[simulation as usize].error = text;
        self.set_status(simulation, Status::Silent);
    }

    /// Since when the session waits for bytes of this connection; `None` while it would not read them, while there
    /// are some, and when none are due.
    fn expects_bytes_since(&self, connection: &Connection) -> Option<Instant> {
        let member = connection.member()?;
        let due = match member.phase {
            Phase::Accepted | Phase::Streaming(_) => member.wait.is_none() && !connection.has_work(),
            Phase::Joining => !self.waits_for_promise(member.simulation),
            Phase::Finalized | Phase::Stopped => false,
        };
        due.then_some(connection.heard)
    }
}

fn seconds(time: Duration) -> String {
    format!("{} s", time.as_secs_f64())
}
