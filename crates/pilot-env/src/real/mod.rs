//! The real machine.

pub(crate) mod fs;
pub(crate) mod net;
pub(crate) mod process;
pub(crate) mod udp;
pub(crate) mod unix;
