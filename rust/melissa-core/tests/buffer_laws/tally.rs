//! How often what happened: a run that never met a full buffer has shown nothing about one.

use std::cell::RefCell;
use std::collections::BTreeMap;

thread_local! {
    static TALLY: RefCell<BTreeMap<&'static str, u64>> = const { RefCell::new(BTreeMap::new()) };
}

pub fn count(what: &'static str) {
    TALLY.with_borrow_mut(|tally| *tally.entry(what).or_default() += 1);
}

/// The counts of this thread so far.
pub fn counts() -> BTreeMap<&'static str, u64> {
    TALLY.with_borrow(BTreeMap::clone)
}
