//! Texts that people see and that have no better place.

/// A request that could not be handed to the registry connection, or that it did not answer.
pub(crate) const REGISTRY_BUSY: &str = "no answer from the registry connection";
