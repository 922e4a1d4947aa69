//! The account as plain data: what a checkpoint keeps of it, and an account that goes on from there.

use super::{Draw, Ledger, Reason, StepSet, Sums};
use crate::buffer::SampleKey;
use crate::wire::distribution::ServerRank;
use std::collections::HashMap;
use thiserror::Error;

/// An account at a cut, without its sums, which follow from it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct LedgerState {
    /// By simulation and draw, ascending.
    pub draws: Vec<DrawSteps>,
    pub duplicates_refused: u64,
}

/// The steps of one draw in a [`LedgerState`]: each set one bit for each step that goes to the server rank, the lowest step in
/// the lowest bit of the first word. The three are of one length.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DrawSteps {
    pub simulation: u32,
    pub draw: u32,
    pub declared: Vec<u64>,
    pub complete: Vec<u64>,
    pub trained: Vec<u64>,
    pub given_up: Option<Reason>,
}

/// Why a state is of no account.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum LedgerStateError {
    #[error(
        "it is of server {saved}, and this server is {now}: its time steps are not those of this rank; restart with as \
         many ranks and the dl_config.distribution that it was written with"
    )]
    OtherRank { saved: String, now: String },
    #[error("the ledger has draw {draw} of simulation {simulation} twice")]
    Twice { simulation: u32, draw: u32 },
    #[error(
        "the ledger has time steps of simulation {simulation} (draw {draw}) that are {what} and not {condition}"
    )]
    Contradiction { simulation: u32, draw: u32, what: &'static str, condition: &'static str },
    #[error(
        "the ledger has time step {last} of simulation {simulation}, and study_options.nb_time_steps is {nb_time_steps}"
    )]
    BeyondEnd { simulation: u32, last: u64, nb_time_steps: u64 },
}

impl StepSet {
    fn from_words(words: &[u64]) -> Self {
        let len = words.iter().map(|word| u64::from(word.count_ones())).sum();
        Self { words: words.to_vec(), len }
    }

    fn padded(&self, words: usize) -> Vec<u64> {
        let mut padded = self.words.clone();
        padded.resize(words, 0);
        padded
    }
}

fn within(inner: &[u64], outer: &[u64]) -> bool {
    (0..inner.len()).all(|word| inner[word] & !outer.get(word).copied().unwrap_or(0) == 0)
}

impl Ledger {
    /// The account now, in which the steps of `unpublished` are not complete: what is in no training buffer has to
    /// come again after a restart.
    pub fn state(&self, unpublished: &[SampleKey]) -> LedgerState {
        let mut draws: Vec<DrawSteps> = self
            .draws
            .iter()
            .map(|(&(simulation, draw), steps)| {
                let words = steps.declared.words.len();
                DrawSteps {
                    simulation,
                    draw,
                    declared: steps.declared.padded(words),
                    complete: steps.complete.padded(words),
                    trained: steps.trained.padded(words),
                    given_up: steps.given_up,
                }
            })
            .collect();
        draws.sort_unstable_by_key(|steps| (steps.simulation, steps.draw));
        for key in unpublished {
            let place = draws
                .binary_search_by_key(&(key.simulation, key.draw), |steps| (steps.simulation, steps.draw));
            let number = self.steps_of(key.simulation).index(key.time_step);
            if let (Ok(place), Some((word, bit))) = (place, number.map(StepSet::place))
                && let Some(bits) = draws[place].complete.get_mut(word)
            {
                *bits &= !bit;
            }
        }
        LedgerState { draws, duplicates_refused: self.sums.duplicates_refused }
    }

    /// An account that goes on from a state of the same server rank.
    ///
    /// # Errors
    /// When the state contradicts itself or the number of time steps.
    pub fn restored(
        nb_time_steps: Option<u64>,
        rank: ServerRank,
        state: &LedgerState,
    ) -> Result<Self, LedgerStateError> {
        let mut draws = HashMap::with_capacity(state.draws.len());
        let mut sums = Sums { duplicates_refused: state.duplicates_refused, ..Sums::default() };
        for steps in &state.draws {
            let (simulation, draw) = (steps.simulation, steps.draw);
            let contradiction =
                |what, condition| LedgerStateError::Contradiction { simulation, draw, what, condition };
            if !within(&steps.complete, &steps.declared) {
                return Err(contradiction("complete", "declared"));
            }
            if !within(&steps.trained, &steps.complete) {
                return Err(contradiction("trained", "complete"));
            }
            let declared = StepSet::from_words(&steps.declared);
            let highest = declared.last();
            if let (Some(last), Some(nb_time_steps)) =
                (highest.map(|number| rank.steps_of(simulation).at(number)), nb_time_steps)
                && last >= nb_time_steps
            {
                return Err(LedgerStateError::BeyondEnd { simulation, last, nb_time_steps });
            }
            let entry = Draw {
                end: highest.map_or(0, |number| number + 1),
                complete: StepSet::from_words(&steps.complete),
                trained: StepSet::from_words(&steps.trained),
                given_up: steps.given_up,
                declared,
            };
            sums.declared += entry.declared.len;
            sums.complete += entry.complete.len;
            sums.trained += entry.trained.len;
            if let Some(reason) = entry.given_up {
                *sums.dropped_mut(reason) += entry.declared.len - entry.complete.len;
            }
            if draws.insert((simulation, draw), entry).is_some() {
                return Err(LedgerStateError::Twice { simulation, draw });
            }
        }
        Ok(Self { draws, rank, nb_time_steps, sums, closed: false })
    }
}

impl StepSet {
    /// The highest number in the set.
    fn last(&self) -> Option<u64> {
        let word = self.words.iter().rposition(|&bits| bits != 0)?;
        Some(word as u64 * 64 + 63 - u64::from(self.words[word].leading_zeros()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wire::distribution::Distribution;

    const ALONE: ServerRank = ServerRank::ALONE;

    fn key(simulation: u32, draw: u32, time_step: u64) -> SampleKey {
        SampleKey { simulation, draw, time_step }
    }

    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(None);
        for step in 0..130 {
            ledger.declare(key(3, 1, step)).unwrap();
            assert!(step == 129 || ledger.complete(key(3, 1, step)));
        }
        ledger.mark_trained([key(3, 1, 7), key(3, 1, 128)]);
        ledger.declare(key(0, 0, 0)).unwrap();
        ledger.drop_incomplete(0, 0, Reason::ClientFailed);
        ledger.refuse_duplicate();
        ledger
    }

    #[test]
    fn an_account_goes_on_from_its_state() {
        let ledger = ledger();
        let mut restored = Ledger::restored(Some(130), ALONE, &ledger.state(&[])).unwrap();
        assert_eq!(restored.sums(), ledger.sums());
        assert_eq!(restored.state(&[]), ledger.state(&[]));
        assert_eq!(restored.next_incomplete(3, 1, 0), 129);
        assert_eq!(restored.declared_end(3, 1), 130);
        assert!(restored.complete(key(3, 1, 129)));
        assert_eq!(restored.close(Reason::Untrained).open(), 0);
    }

    #[test]
    fn what_is_in_no_buffer_has_to_come_again() {
        let ledger = ledger();
        let mut restored =
            Ledger::restored(None, ALONE, &ledger.state(&[key(3, 1, 64), key(9, 0, 0)])).unwrap();
        assert_eq!(restored.next_incomplete(3, 1, 0), 64);
        assert_eq!(restored.sums().complete, ledger.sums().complete - 1);
        assert_eq!(restored.sums().declared, ledger.sums().declared);
        assert!(restored.complete(key(3, 1, 64)));
    }

    #[test]
    fn the_account_of_one_server_rank_of_several_goes_on_with_its_own_steps() {
        let rank = ServerRank { rank: 1, nb_ranks: 3, distribution: Distribution::RoundRobin };
        let mut ledger = Ledger::of_rank(Some(200), rank);
        for step in (1..200).step_by(3) {
            ledger.declare(key(3, 0, step)).unwrap();
            assert!(ledger.complete(key(3, 0, step)));
        }
        let state = ledger.state(&[key(3, 0, 100)]);
        let mut restored = Ledger::restored(Some(200), rank, &state).unwrap();
        assert_eq!(restored.complete_ranges(3, 0), [(1, 97), (103, 199)]);
        assert_eq!(restored.next_incomplete(3, 0, 0), 100);
        assert!(restored.complete(key(3, 0, 100)) && !restored.complete(key(3, 0, 101)));
        let error = Ledger::restored(Some(199), rank, &state).unwrap_err().to_string();
        assert!(error.contains("time step 199 of simulation 3") && error.contains("is 199"), "{error}");
    }

    #[test]
    fn a_state_that_contradicts_itself_is_refused() {
        let good = ledger().state(&[]);
        let mut state = good.clone();
        state.draws[1].declared[0] &= !1;
        let error = Ledger::restored(None, ALONE, &state).unwrap_err().to_string();
        assert!(error.contains("simulation 3 (draw 1) that are complete and not declared"), "{error}");
        let mut state = good.clone();
        state.draws[1].complete[0] &= !(1 << 7);
        assert!(
            Ledger::restored(None, ALONE, &state)
                .unwrap_err()
                .to_string()
                .contains("trained and not complete")
        );
        let mut state = good.clone();
        state.draws.push(state.draws[0].clone());
        let twice = LedgerStateError::Twice { simulation: 0, draw: 0 };
        assert_eq!(Ledger::restored(None, ALONE, &state).unwrap_err(), twice);
        let error = Ledger::restored(Some(129), ALONE, &good).unwrap_err().to_string();
        assert!(error.contains("time step 129 of simulation 3") && error.contains("is 129"), "{error}");
    }
}
