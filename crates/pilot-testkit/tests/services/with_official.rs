//! A network of one of ours and one official daemon.

use pilot_testkit::agent::{Agent, AgentOptions, make_trust};
use pilot_testkit::isolate::Unavailable;
use pilot_testkit::official::Official;
use pilot_testkit::programs::{RendezvousProcess, ours};

use super::TRUST_LIMIT;

/// Need of a release.
pub(crate) fn need<const N: usize>(versions: [&str; N]) -> Result<(), Unavailable> {
    versions.iter().try_for_each(|version| Official::obtain(version).map(drop))
}

/// Ours and an official one that trust each other.
pub(crate) struct Pair {
    pub(crate) ours: Agent,
    pub(crate) theirs: Agent,
    _rendezvous: RendezvousProcess,
}

impl Pair {
    pub(crate) fn start(version: &str) -> Self {
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let options = |name: &str| AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), name).public();
        let mut release = Official::obtain(version).expect("release").release();
        // Releases up to 1.9.1 have nothing that dials elsewhere, and no switches against it.
        if matches!(version, "0.1.2" | "1.7.2" | "1.9.1") {
            release.quiet_flags = &[];
        }
        let theirs = Agent::start(&release, &options("theirs")).expect("official daemon");
        let ours = Agent::start(&ours(), &options("ours")).expect("our daemon");
        make_trust(&ours, &theirs, TRUST_LIMIT).expect("trust");
        Self { ours, theirs, _rendezvous: rendezvous }
    }

    /// Both directions.
    pub(crate) fn both(&self) -> [(&Agent, &Agent); 2] {
        [(&self.ours, &self.theirs), (&self.theirs, &self.ours)]
    }
}
