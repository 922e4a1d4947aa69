//! The table of connections: places that are used again, with generations that tell their tenants apart.

use super::connection::{Connection, ConnectionId};

#[derive(Debug, Default)]
struct Entry {
    generation: u32,
    connection: Option<Box<Connection>>,
}

#[derive(Debug, Default)]
pub(super) struct Connections {
    entries: Vec<Entry>,
    free: Vec<u32>,
}

impl Connections {
    pub(super) fn insert(&mut self, connection: Connection) -> ConnectionId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry::default());
            self.entries.len() as u32 - 1
        });
        let entry = &mut self.entries[index as usize];
        entry.connection = Some(Box::new(connection));
        ConnectionId { index, generation: entry.generation }
    }

    pub(super) fn remove(&mut self, id: ConnectionId) -> Option<Connection> {
        let entry =
            self.entries.get_mut(id.index as usize).filter(|entry| entry.generation == id.generation)?;
        let connection = entry.connection.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(id.index);
        Some(*connection)
    }

    pub(super) fn get(&self, id: ConnectionId) -> Option<&Connection> {
        let entry = self.entries.get(id.index as usize).filter(|entry| entry.generation == id.generation)?;
        entry.connection.as_deref()
    }

    pub(super) fn get_mut(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        let entry =
            self.entries.get_mut(id.index as usize).filter(|entry| entry.generation == id.generation)?;
        entry.connection.as_deref_mut()
    }

    /// Places, with and without a tenant.
    pub(super) const fn places(&self) -> usize {
        self.entries.len()
    }

    /// The tenant of a place now.
    pub(super) fn at(&self, index: usize) -> Option<ConnectionId> {
        let entry = self.entries.get(index)?;
        entry.connection.as_ref().map(|_| ConnectionId { index: index as u32, generation: entry.generation })
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = ConnectionId> + '_ {
        (0..self.entries.len()).filter_map(|index| self.at(index))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Connection> {
        self.entries.iter().filter_map(|entry| entry.connection.as_deref())
    }
}
