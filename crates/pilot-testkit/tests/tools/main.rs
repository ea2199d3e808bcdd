//! Tools and daemons of different releases: people may change one before the other (07 §2.4).
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // drives real programs, and listens as one

mod allowed;
mod matrix;
mod rows;
mod streams;
