//! Built-in services between nodes: ours among themselves, and with official daemons of every generation.
#![allow(clippy::disallowed_methods)] // the tests prepare and look at files of the daemons' homes

mod events;
mod tasks;
mod with_official;
