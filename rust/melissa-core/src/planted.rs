//! Defects that can be planted, each at the place where it would be made, to see whether a check finds it.
//!
//! Without the cargo feature `planted`, which no release is built with, there are none and no code for them. With it, the
//! environment variable `MELISSA_PLANTED` names the one that the process has. `ci/verify/planted.sh` runs the checks with each.

macro_rules! bugs {
    ($($(#[$doc:meta])* $bug:ident = $name:literal,)*) => {
        /// One defect.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Bug { $($(#[$doc])* $bug,)* }

        impl Bug {
            #[cfg(feature = "planted")]
            pub const ALL: &[Self] = &[$(Self::$bug,)*];

            /// The name in the environment.
            #[cfg(feature = "planted")]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$bug => $name,)* }
            }
        }
    };
}

bugs! {
    /// The last reader lets go of its pin without ordering its reads before the next writer's writes.
    WeakUnpin = "weak-unpin",
    /// A sample is published without ordering its bytes before its position.
    WeakPublish = "weak-publish",
    /// The waker does not order its change before its look for waiters.
    WeakNotify = "weak-notify",
    /// "Room wanted" is raised without a fence before the second look.
    WeakWant = "weak-want",
    /// A sampler gives its pin back before it copies.
    PinDroppedEarly = "pin-dropped-early",
    /// A pin is taken without a look at what it pinned.
    PinUnchecked = "pin-unchecked",
    /// Room is signalled while the pin is still held.
    SignalUnderPin = "signal-under-pin",
    /// The first sight of a sample is not told to the writer.
    SeenLost = "seen-lost",
    /// A first sight wakes nobody.
    SeenWakesNobody = "seen-wakes-nobody",
    /// A publication wakes nobody.
    PublishWakesNobody = "publish-wakes-nobody",
    /// A waiter does not look again after it has announced itself.
    NoSecondLook = "no-second-look",
    /// A waiter checks its condition under the lock of its waiters.
    CheckUnderLock = "check-under-lock",
    /// The victim is chosen among all samples, seen or not.
    VictimUnseen = "victim-unseen",
    /// One ticket of a drain is handed out twice.
    TicketTwice = "ticket-twice",
    /// A slot takes its place in the population before its sample is written.
    PublishedUnwritten = "published-unwritten",
    /// The end of reception does not wait for a publication that is under way.
    CloseBesidePublish = "close-beside-publish",
    /// A retired slot becomes free although it is pinned.
    FreedUnderPin = "freed-under-pin",
    /// A simulation that is finished on one of several server ranks is final there, before it is confirmed.
    FinalUnconfirmed = "final-unconfirmed",
    /// Reception is over once every simulation is finished on this server rank, confirmed or not.
    OverUnconfirmed = "over-unconfirmed",
    /// A finished simulation that is opened again for other parameters keeps the old ones, of which all steps are complete.
    ReopenedComplete = "reopened-complete",
}

/// Whether this process has the defect.
#[cfg(not(feature = "planted"))]
pub(crate) const fn planted(_: Bug) -> bool {
    false
}

/// Whether this process has the defect.
#[cfg(feature = "planted")]
#[allow(clippy::panic)]
pub(crate) fn planted(bug: Bug) -> bool {
    static PLANTED: std::sync::OnceLock<Option<Bug>> = std::sync::OnceLock::new();
    *PLANTED.get_or_init(|| {
        let name = std::env::var("MELISSA_PLANTED").ok()?;
        let bug = Bug::ALL.iter().copied().find(|bug| bug.name() == name);
        Some(bug.unwrap_or_else(|| panic!("MELISSA_PLANTED names no defect: {name}")))
    }) == Some(bug)
}

#[cfg(all(feature = "planted", not(debug_assertions)))]
compile_error!("the feature `planted` is for checks of the checks: it has no place in a release");
