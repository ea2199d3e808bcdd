//! The tunnel between two nodes: establishing, healing, attacks, and the recorded frames of official daemons.
#![allow(unreachable_pub, dead_code)]

mod establish;
mod net;
