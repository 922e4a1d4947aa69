//! The client of Melissa.
