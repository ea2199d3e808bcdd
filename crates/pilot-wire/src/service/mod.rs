//! Frames and files of the application protocols.
//!
//! | Module | Service | Specification |
//! |---|---|---|
//! | [`dataexchange`] | messages and files, port 1001 | 05 §5, 07 §11.2, docs/spec/messages.md |
//! | [`event_log`] | the broker's files | docs/spec/events.md |
//! | [`events`] | event stream, port 1002 | 05 §6, docs/spec/events.md |
//! | [`nameserver`] | names, port 53 | 04 §22 |
//! | [`secure`] | secure channel, port 443 | 05 §8, 07 §11.4 |
//! | [`tasks`] | tasks, port 1003 | 05 §7, docs/spec/tasks.md |

pub mod dataexchange;
pub mod event_log;
pub mod events;
pub mod nameserver;
pub mod secure;
pub mod tasks;
