//! The explicit-state model of the assembly (`tests/assembly_model`). It is a crate of its own so that the builds of the core's
//! tests and models do without the libraries that only this needs.
