//! Official daemons and ours in one network, through our rendezvous.
//!
//! [`matrix`] is every official release that is tested, and the scripted peer of February, in every set-up and with every
//! operation. `PILOT_FULL_MATRIX=1` runs the full product instead of what fits into an ordinary run;
//! `PILOT_MATRIX_ONLY=1.7.2/relayed` runs the cells whose name contains that.
#![allow(clippy::disallowed_methods)] // real processes and real time

mod allowed;
mod basics;
mod cell;
mod matrix;
mod party;

use pilot_testkit::isolate::{can_isolate, isolated};
use pilot_testkit::lab;
use pilot_testkit::official::need_all;
use pilot_testkit::programs::need_programs;

#[test]
fn our_daemon_works_with_every_release_in_every_set_up() {
    const NAME: &str = "our_daemon_works_with_every_release_in_every_set_up";
    if let Ok(name) = std::env::var(matrix::CELL) {
        let cell = cell::Cell::parse(&name).expect("a cell of the matrix");
        return isolated(NAME, &[], || cell::run(&cell));
    }
    let allowed = allowed::Allowed::read();
    if !can_isolate(NAME, &[need_programs, need_all, lab::needed]) {
        return;
    }
    let full = std::env::var(matrix::FULL).is_ok_and(|v| v == "1");
    matrix::run(NAME, if full { cell::all() } else { cell::usual() }, &allowed);
}
