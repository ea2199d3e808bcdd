//! Whole endpoints joined in memory, on virtual time.

mod attacks;
mod basics;
mod harness;
mod many;
mod old;
mod paths;
mod peers_of_old;
mod reach;
mod weather;
