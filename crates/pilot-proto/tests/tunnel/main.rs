//! The tunnel between two nodes: establishing, healing, attacks, and the recorded frames of official daemons.
#![allow(unreachable_pub, dead_code)]

mod attacks;
mod establish;
mod greeting;
mod healing;
mod net;
mod official;
mod properties;
mod rekey;
mod vectors;
