//! The local socket as every daemon serves it: the protocol of February 2026 and what official releases added to it.

pub(crate) mod link;
pub(crate) mod listener;
pub(crate) mod outbox;
pub(crate) mod stream;
