//! What a checkpoint file says beside payloads: numbers by the sample and by the time step as arrays of integers, the
//! rest as JSON in the file's metadata.

use super::Cut;
use super::layout::{Layout, Planned};
use super::pending::PendingState;
use crate::ledger::{DrawSteps, LedgerState, Reason};
use crate::sample::SampleKey;
use crate::schema::{Dtype, Schema};
use crate::session::SessionState;
use crate::snapshot::{SampleState, SnapshotState};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

const FORMAT: &str = "melissa checkpoint";
const VERSION: &str = "1";

pub(super) const PARAMETERS: &str = "parameters";
pub(super) const PENDING_PARAMETERS: &str = "pending.parameters";

pub(super) fn field_array(name: &str) -> String {
    format!("field.{name}")
}

pub(super) fn pending_field_array(name: &str) -> String {
    format!("pending.field.{name}")
}

/// The JSON of a file's metadata.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileState {
    /// Without its samples and its index of evictable ones, which are arrays.
    pub(super) buffer: SnapshotState,
    pub(super) pending: PendingState,
    pub(super) session: SessionState,
    pub(super) duplicates_refused: u64,
}

/// The integers of a file: name, columns, and the rows one behind another.
pub(super) struct Integers(pub(super) &'static str, pub(super) u64, pub(super) Vec<i64>);

const SAMPLES: (&str, u64) = ("samples", 4);
const EVICTABLE: (&str, u64) = ("evictable", 1);
const PENDING: (&str, u64) = ("pending.samples", 3);
const DRAWS: (&str, u64) = ("ledger.draws", 4);
const STEPS: (&str, u64) = ("ledger.steps", 3);

/// The arrays of integers; what the file's state is left with is the rest.
pub(super) fn integers(cut: &mut Cut) -> [Integers; 5] {
    let state = &mut cut.buffer.state;
    let samples = std::mem::take(&mut state.samples);
    let samples = samples.iter().flat_map(|sample| {
        [
            sample.simulation.into(),
            sample.draw.into(),
            sample.time_step.cast_signed(),
            sample.deliveries.into(),
        ]
    });
    let evictable = std::mem::take(&mut state.evictable);
    let pending = cut.pending.keys.iter();
    let pending =
        pending.flat_map(|key| [key.simulation.into(), key.draw.into(), key.time_step.cast_signed()]);
    let draws = cut.ledger.draws.iter().flat_map(|steps| {
        let given_up = steps.given_up.map_or(0, |reason| {
            Reason::ALL.iter().position(|&other| other == reason).map_or(0, |place| place as i64 + 1)
        });
        [steps.simulation.into(), steps.draw.into(), given_up, steps.declared.len() as i64]
    });
    let steps = cut.ledger.draws.iter().flat_map(|steps| {
        (0..steps.declared.len()).flat_map(move |word| {
            [steps.declared[word], steps.complete[word], steps.trained[word]].map(u64::cast_signed)
        })
    });
    let array = |(name, columns): (&'static str, u64), rows: Vec<i64>| Integers(name, columns, rows);
    [
        array(SAMPLES, samples.collect()),
        array(EVICTABLE, evictable.into_iter().map(i64::from).collect()),
        array(PENDING, pending.collect()),
        array(DRAWS, draws.collect()),
        array(STEPS, steps.collect()),
    ]
}

/// The arrays of payloads of so many samples.
pub(super) fn payload_arrays(schema: &Schema, nb_samples: u64, nb_pending: u64) -> Vec<Planned> {
    let mut arrays = Vec::new();
    for field in schema.fields() {
        let (dtype, size) = (field.dtype, field.size as u64);
        arrays.push(Planned(field_array(&field.name), dtype, nb_samples, size));
        arrays.push(Planned(pending_field_array(&field.name), dtype, nb_pending, size));
    }
    let parameters = schema.nb_parameters() as u64;
    arrays.push(Planned(PARAMETERS.into(), Dtype::F64, nb_samples, parameters));
    arrays.push(Planned(PENDING_PARAMETERS.into(), Dtype::F64, nb_pending, parameters));
    arrays
}

/// The metadata of a file.
///
/// # Errors
/// Of JSON; none is known that a state can bring about.
pub(super) fn metadata(cut: &Cut) -> Result<Map<String, Value>, serde_json::Error> {
    let state = FileState {
        buffer: cut.buffer.state.clone(),
        pending: cut.pending.state.clone(),
        session: cut.session.clone(),
        duplicates_refused: cut.ledger.duplicates_refused,
    };
    let state = serde_json::to_string(&state)?;
    let entries = [("format", FORMAT.to_owned()), ("version", VERSION.to_owned()), ("state", state)];
    Ok(entries.into_iter().map(|(name, text)| (name.to_owned(), Value::String(text))).collect())
}

impl FileState {
    /// # Errors
    /// In words, when the file is no checkpoint, or one of another version.
    pub(super) fn read(metadata: &Map<String, Value>) -> Result<Self, String> {
        let text = |name: &str| metadata.get(name).and_then(Value::as_str).unwrap_or_default();
        if text("format") != FORMAT {
            return Err("its metadata do not say that it is a checkpoint of Melissa".into());
        }
        if text("version") != VERSION {
            return Err(format!(
                "it has version \"{}\" of the format, and this Melissa reads version {VERSION}",
                text("version")
            ));
        }
        serde_json::from_str(text("state")).map_err(|error| format!("its state cannot be read: {error}"))
    }

    /// Puts the samples' numbers back in their places.
    ///
    /// # Errors
    /// In words, which number cannot be.
    pub(super) fn put_back(
        &mut self,
        layout: &Layout,
        mut read: impl FnMut(&super::layout::Tensor) -> Result<Vec<i64>, String>,
    ) -> Result<(Vec<SampleKey>, LedgerState), String> {
        let mut rows = |(name, columns): (&'static str, u64)| {
            let tensor = layout.find(name, Dtype::I64, columns)?;
            Ok::<_, String>((name, read(tensor)?))
        };
        let (_, samples) = rows(SAMPLES)?;
        self.buffer.samples = samples
            .chunks_exact(4)
            .map(|row| {
                Ok(SampleState {
                    simulation: small(SAMPLES.0, row[0])?,
                    draw: small(SAMPLES.0, row[1])?,
                    time_step: row[2].cast_unsigned(),
                    deliveries: small(SAMPLES.0, row[3])?,
                })
            })
            .collect::<Result<_, String>>()?;
        let (name, evictable) = rows(EVICTABLE)?;
        self.buffer.evictable =
            evictable.into_iter().map(|position| small(name, position)).collect::<Result<_, _>>()?;
        let (name, pending) = rows(PENDING)?;
        let pending = pending
            .chunks_exact(3)
            .map(|row| {
                let (simulation, draw) = (small(name, row[0])?, small(name, row[1])?);
                Ok(SampleKey { simulation, draw, time_step: row[2].cast_unsigned() })
            })
            .collect::<Result<Vec<_>, String>>()?;
        let batches = self.pending.batches.iter().try_fold(0u64, |sum, &batch| sum.checked_add(batch));
        if batches != Some(pending.len() as u64) || (self.pending.is_begun && self.pending.batches.is_empty())
        {
            return Err(format!(
                "its batches that wait to be trained do not add up to the {} samples of array \"{name}\"",
                pending.len()
            ));
        }
        let (name, draws) = rows(DRAWS)?;
        let (_, steps) = rows(STEPS)?;
        let mut left = steps.as_slice();
        let mut ledger = LedgerState { draws: Vec::new(), duplicates_refused: self.duplicates_refused };
        for row in draws.chunks_exact(4) {
            let words: usize = small::<u32>(name, row[3])? as usize;
            let given_up = match row[2] {
                0 => None,
                code => {
                    let reason = usize::try_from(code - 1).ok().and_then(|place| Reason::ALL.get(place));
                    Some(*reason.ok_or_else(|| format!("array \"{name}\" has {code} for a reason"))?)
                }
            };
            let Some((mine, others)) = left.split_at_checked(words * 3) else {
                return Err(format!("array \"{}\" is too short for array \"{name}\"", STEPS.0));
            };
            left = others;
            let column = |column: usize| -> Vec<u64> {
                mine.chunks_exact(3).map(|row| row[column].cast_unsigned()).collect()
            };
            ledger.draws.push(DrawSteps {
                simulation: small(name, row[0])?,
                draw: small(name, row[1])?,
                declared: column(0),
                complete: column(1),
                trained: column(2),
                given_up,
            });
        }
        if left.is_empty() {
            Ok((pending, ledger))
        } else {
            Err(format!("array \"{}\" is too long", STEPS.0))
        }
    }
}

fn small<T: TryFrom<i64>>(array: &str, number: i64) -> Result<T, String> {
    T::try_from(number).map_err(|_| format!("array \"{array}\" has {number}, which cannot be"))
}
