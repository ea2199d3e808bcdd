//! Frames and files of the application protocols.
//!
//! | Module | Service | Specification |
//! |---|---|---|
//! | [`dataexchange`] | messages and files, port 1001 | 05 §5, 07 §11.2, docs/spec/messages.md |

pub mod dataexchange;
