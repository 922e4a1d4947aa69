//! The training buffer as its writer and its samplers see it: each of these is one step that nothing divides. What may
//! happen within them is another model's matter (loom); here it is who waits for whom.

use crate::config::{Config, Fault, Kind, Sampling};
use crate::state::Law;

/// Slots are told apart by numbers; those that are free have none.
pub type Slot = u8;

/// Simulation, draw of its parameters and time step, of the server rank's own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key {
    pub simulation: u8,
    pub draw: u8,
    pub local: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Entry {
    pub seen: bool,
    /// `None` once it does not matter any more: a seen sample of a reservoir.
    pub key: Option<Key>,
    pub slot: Slot,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Buffer {
    pub free: u8,
    /// In order of arrival (FIFO).
    pub population: Vec<Entry>,
    /// Slots that have left the population and are pinned.
    pub retired: Vec<Slot>,
    /// The slot that the sampler copies from.
    pub guard: Option<Slot>,
    /// Slots that are lent as views.
    pub views: Vec<Slot>,
    /// "Room wanted".
    pub wanted: bool,
    /// The session was told that a slot or room may be there, and has not looked yet.
    pub signalled: bool,
    pub closed: bool,
    pub redraws: u8,
    /// One bit per sample.
    pub published: u32,
    pub delivered: u32,
}

impl Buffer {
    pub fn new(config: &Config) -> Self {
        Self {
            free: config.slots(),
            population: Vec::new(),
            retired: Vec::new(),
            guard: None,
            views: Vec::new(),
            wanted: false,
            signalled: false,
            closed: false,
            redraws: config.redraws,
            published: 0,
            delivered: 0,
        }
    }

    pub fn pinned(&self, slot: Slot) -> bool {
        self.guard == Some(slot) || self.views.contains(&slot)
    }

    fn signal(&mut self) {
        if std::mem::take(&mut self.wanted) {
            self.signalled = true;
        }
    }

    /// A slot becomes free; its last holder tells who wants one.
    fn release(&mut self, tell: bool) {
        self.free += 1;
        if tell {
            self.signal();
        }
    }

    /// A slot leaves the population.
    fn retire(&mut self, slot: Slot, tell: bool) {
        if self.pinned(slot) {
            self.retired.push(slot);
        } else {
            self.release(tell);
        }
    }

    /// A pin on a slot has ended.
    fn unpinned(&mut self, config: &Config, slot: Slot) {
        if !self.pinned(slot)
            && let Some(place) = self.retired.iter().position(|&other| other == slot)
        {
            self.retired.remove(place);
            self.release(config.fault != Fault::UnpinTellsNobody);
        }
    }

    /// `take_slot`: true when there is one.
    pub fn take_free(&mut self, config: &Config) -> bool {
        if self.free > 0 {
            self.free -= 1;
            return true;
        }
        self.wanted |= config.fault != Fault::RefusedSlotWantsNothing;
        false
    }

    /// A `SlotWriter` is dropped.
    pub fn give_back(&mut self) {
        self.release(true);
    }

    /// A full reservoir has both pinned and other samples that it may evict: which of them goes is open.
    pub fn victims_differ(&self, config: &Config) -> bool {
        let mut seen = self.population.iter().filter(|entry| entry.seen);
        self.population.len() == usize::from(config.capacity)
            && config.kind != Kind::Fifo
            && seen.clone().any(|entry| self.pinned(entry.slot))
            && seen.any(|entry| !self.pinned(entry.slot))
    }

    fn victim(&self, config: &Config, pinned: bool) -> Option<usize> {
        let all = |entry: &Entry| entry.seen || config.fault == Fault::EvictsUnseen;
        let wanted = |entry: &Entry| all(entry) && self.pinned(entry.slot) == pinned;
        let places = &self.population;
        places.iter().position(wanted).or_else(|| places.iter().position(all))
    }

    /// True when the sample is in the population now.
    pub fn publish(
        &mut self,
        config: &Config,
        slot: Slot,
        key: Key,
        pinned_victim: bool,
        broken: &mut Option<Law>,
    ) -> bool {
        if self.closed {
            return false;
        }
        if self.population.len() >= usize::from(config.capacity) {
            let victim = match config.kind {
                Kind::Fifo => None,
                Kind::Reservoir { .. } => self.victim(config, pinned_victim),
            };
            let Some(victim) = victim else {
                self.wanted |= config.fault != Fault::RefusedPublishWantsNothing;
                return false;
            };
            let old = self.population.remove(victim);
            if !old.seen {
                broken.get_or_insert(Law::EvictedUnseen);
            }
            // The session itself looks for a slot afterwards: nobody is told.
            self.retire(old.slot, false);
        }
        self.population.push(Entry { seen: false, key: Some(key), slot });
        let bit = key.bit(config);
        if self.published & bit != 0 {
            broken.get_or_insert(Law::PublishedTwice);
        }
        self.published |= bit;
        true
    }

    /// Places of the population that may be drawn now and lead to different states.
    pub fn draws(&self, config: &Config) -> Vec<usize> {
        let population = self.population.len();
        if population == 0 || self.guard.is_some() {
            return Vec::new();
        }
        match config.kind {
            // The order of a drain is of no account.
            _ if self.closed => vec![0],
            Kind::Fifo => vec![0],
            Kind::Reservoir { watermark } if population < usize::from(watermark) => Vec::new(),
            Kind::Reservoir { .. } => {
                (0..population).filter(|&place| !self.population[place].seen || self.redraws > 0).collect()
            }
        }
    }

    /// Whether a draw of this place would be of no account but for its pin.
    pub fn is_redraw(&self, place: usize) -> bool {
        !self.closed && self.population[place].seen
    }

    pub fn draw(&mut self, config: &Config, place: usize, broken: &mut Option<Law>) {
        let stays = !self.closed && config.kind != Kind::Fifo;
        let entry = self.population[place];
        if self.is_redraw(place) {
            self.redraws -= 1;
        }
        if let Some(key) = entry.key {
            let bit = key.bit(config);
            if self.delivered & bit != 0 {
                broken.get_or_insert(Law::DeliveredTwice);
            }
            if self.published & bit == 0 {
                broken.get_or_insert(Law::DeliveredUnpublished);
            }
            self.delivered |= bit;
        }
        let unlimited = config.fault == Fault::ViewsWithoutLimit;
        match config.sampling {
            Sampling::Copies => {}
            Sampling::Gathers => self.guard = Some(entry.slot),
            Sampling::Views | Sampling::Hoards => {
                if unlimited || self.views.len() < usize::from(config.lent) {
                    self.views.push(entry.slot);
                }
            }
        }
        if stays {
            if !entry.seen {
                let place = &mut self.population[place];
                (place.seen, place.key) = (true, None);
                self.signal();
            }
        } else {
            self.population.remove(place);
            // First the removal is told, then the end of the last pin: one flag.
            self.retire(entry.slot, config.fault != Fault::UnpinTellsNobody);
            self.signal();
        }
    }

    pub fn unpin(&mut self, config: &Config) {
        if let Some(slot) = self.guard.take() {
            self.unpinned(config, slot);
        }
    }

    pub fn return_view(&mut self, config: &Config, view: usize) {
        let slot = self.views.remove(view);
        self.unpinned(config, slot);
    }
}

impl Key {
    pub const fn bit(self, config: &Config) -> u32 {
        1 << ((self.draw * config.sizes.len() as u8 + self.simulation) * config.steps + self.local)
    }
}
