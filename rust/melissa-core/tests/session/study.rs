//! A session with its buffer, and samples whose every element is known beforehand.

use crate::client::{Client, Identity, KEY, PATIENCE};
use melissa_core::buffer::{Buffer, BufferConfig, Kind, Sample, SampleKey};
use melissa_core::error::BufferError;
use melissa_core::schema::Dtype;
use melissa_core::session::{Session, SessionConfig, SimulationState, Status};
use melissa_core::wire::auth::StudyKey;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub struct Study {
    pub session: Arc<Session>,
    pub buffer: Arc<Buffer>,
    /// The latest state of each simulation that has changed.
    states: Mutex<HashMap<u32, SimulationState>>,
}

pub const FIELDS: [(&str, Dtype, u64); 2] = [("temperature", Dtype::F32, 10), ("flux", Dtype::F64, 6)];

pub fn config(planned: u32) -> SessionConfig {
    let names = FIELDS.iter().map(|field| field.0.to_owned()).collect();
    SessionConfig {
        data_type: melissa_core::session::DataType::AsSent,
        ..SessionConfig::new(StudyKey::from_bytes(&KEY).unwrap(), 1, names, 2, planned)
    }
}

pub fn fifo(capacity: usize, assembly_slots: usize) -> BufferConfig {
    BufferConfig {
        kind: Kind::Fifo,
        capacity,
        watermark: 0,
        pseudo_epochs: 1,
        batch_size: 1,
        seed: 0,
        assembly_slots,
        lent_slots: Some(1),
    }
}

pub fn parameters(simulation: u32, draw: u32) -> Vec<f64> {
    vec![f64::from(simulation), f64::from(draw) + 0.5]
}

/// Element `element` of a field of a sample.
pub fn value(key: SampleKey, field: usize, element: u64) -> f64 {
    (u64::from(key.simulation) * 7919 + key.time_step * 31 + field as u64 * 13 + element) as f64
        + f64::from(key.draw) * 0.25
}

/// The bytes of elements `from..from + count` of a field of a sample.
pub fn bytes_of(key: SampleKey, field: usize, dtype: Dtype, from: u64, count: u64) -> Vec<u8> {
    (from..from + count)
        .flat_map(|element| match dtype {
            Dtype::F32 => (value(key, field, element) as f32).to_le_bytes().to_vec(),
            Dtype::F64 => value(key, field, element).to_le_bytes().to_vec(),
            other => panic!("no test has {other}"),
        })
        .collect()
}

impl Study {
    pub fn start(config: SessionConfig, buffer: BufferConfig) -> Self {
        let buffer = Arc::new(Buffer::new(buffer).unwrap());
        let session = Arc::new(Session::start(config, Arc::clone(&buffer)).unwrap());
        Self::of(session, buffer)
    }

    /// With a session that was started somewhere else.
    pub fn of(session: Arc<Session>, buffer: Arc<Buffer>) -> Self {
        Self { session, buffer, states: Mutex::default() }
    }

    pub fn register(&self, simulation: u32, attempt: u32, draw: u32) {
        self.session.register(simulation, attempt, draw, parameters(simulation, draw)).unwrap();
    }

    pub fn connect(&self, who: Identity) -> Client {
        Client::connect(self.session.address(), who).unwrap()
    }

    /// A rank of one, joined with the fields above.
    pub fn joined(&self, who: Identity) -> Client {
        let mut client = self.connect(who);
        client.join(&FIELDS).unwrap();
        client
    }

    /// Waits until a simulation's state is as wanted.
    pub fn wait_state(&self, simulation: u32, wanted: impl Fn(&SimulationState) -> bool) -> SimulationState {
        let start = Instant::now();
        loop {
            let mut states = self.states.lock().unwrap();
            for state in self.session.changes(Duration::from_millis(5)).unwrap() {
                states.insert(state.simulation_id, state);
            }
            if let Some(state) = states.get(&simulation).filter(|state| wanted(state)) {
                return state.clone();
            }
            assert!(start.elapsed() < PATIENCE, "simulation {simulation}: {:?}", states.get(&simulation));
        }
    }

    /// A simulation's state now; before anything is known of it, there is none.
    pub fn state(&self, simulation: u32) -> Option<SimulationState> {
        let mut states = self.states.lock().unwrap();
        for state in self.session.changes(Duration::ZERO).unwrap() {
            states.insert(state.simulation_id, state);
        }
        states.get(&simulation).cloned()
    }

    pub fn wait_status(&self, simulation: u32, status: Status) -> SimulationState {
        self.wait_state(simulation, |state| state.status == status)
    }

    /// The next sample; its contents are checked.
    pub fn get(&self) -> Option<SampleKey> {
        match self.buffer.get(Some(Instant::now() + PATIENCE)) {
            Ok(sample) => Some(check(&sample)),
            Err(BufferError::EndOfData) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Everything until the end of data; each sample is marked as trained.
    pub fn drain(&self) -> Vec<SampleKey> {
        let mut keys = Vec::new();
        while let Some(key) = self.get() {
            self.session.mark_trained([key]);
            keys.push(key);
        }
        keys
    }

    pub fn refusals(&self) -> Vec<String> {
        self.session.refusals().texts
    }
}

/// Compares every element and parameter with what was sent.
pub fn check(sample: &Sample) -> SampleKey {
    let key = sample.key();
    assert_eq!(sample.parameters(), parameters(key.simulation, key.draw), "{key:?}");
    for (index, field) in sample.schema().fields().iter().enumerate() {
        let expected = bytes_of(key, index, field.dtype, 0, field.size as u64);
        assert_eq!(sample.field_bytes(index), expected, "{key:?}, field {}", field.name);
    }
    key
}

/// Waits until something holds.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub fn key(simulation: u32, draw: u32, time_step: u64) -> SampleKey {
    SampleKey { simulation, draw, time_step }
}

/// Sends one whole step of the fields above.
pub fn send_step(client: &mut Client, draw: u32, time_step: u64) -> bool {
    let key = key(client.who.simulation, draw, time_step);
    FIELDS.iter().enumerate().all(|(index, &(_, dtype, size))| {
        client.send(index, time_step, &bytes_of(key, index, dtype, 0, size))
    })
}
