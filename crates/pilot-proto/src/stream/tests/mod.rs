//! Tests of streams: two ends on a virtual wire, or one end against a script.

mod basics;
mod harness;
mod noise;
mod official;
mod regressions;
mod repair;
mod vectors;
