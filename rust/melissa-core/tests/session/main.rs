//! The receiving session over real sockets: each test is a small study on the loopback interface.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod attacks;
mod attempts;
mod client;
mod endings;
mod hostile;
mod mutations;
mod one_field;
mod reception;
mod refusals;
mod replacement;
mod restarts;
mod room;
mod schedules;
mod server;
mod several_ranks;
mod strangers;
mod study;
