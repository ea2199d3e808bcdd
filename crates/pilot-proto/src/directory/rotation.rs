//! A new identity key: signed in by the old one, never half done (04 §9.1 `rotate_key`).
//!
//! Between the request and its answer nobody but the registry knows which key is ours. If the answer is lost, with the
//! connection or with the whole process, the registry is asked before anything else is said: whoever registers with a key
//! that has been replaced would get another address.

use std::sync::Arc;
use std::time::Instant;

use pilot_wire::registry::{ErrorAnswer, Fields, LookupOk, Request};
use pilot_wire::{base64, signed};

use super::DirectoryEvent;
use super::calls::Asker;
use super::session::Directory;
use crate::identity::Identity;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// To be sent when nothing else is under way.
    Wanted,
    /// Sent, and not answered.
    Sent,
    /// The answer is lost: the registry has to say which key it holds.
    Unknown,
    /// It has been asked.
    Asked,
}

/// A rotation under way.
#[derive(Debug)]
pub(super) struct Rotation {
    next: Arc<Identity>,
    stage: Stage,
    /// Signed with February's text, which does not name the new key: the registry did not take the other one.
    plain: bool,
}

impl Rotation {
    /// One that was begun in an earlier life of the process.
    pub(super) fn interrupted(next: Arc<Identity>) -> Self {
        Self { next, stage: Stage::Unknown, plain: false }
    }
}

impl Directory {
    /// Replaces our key. [`DirectoryEvent::Rotated`] follows when it is decided; while the registry is away that can take
    /// long, and survives a restart of the process if the driver gives `next` again in
    /// [`DirectoryConfig::next_identity`](super::DirectoryConfig::next_identity). Keep it on disk before this is called.
    ///
    /// Answers false, without an event, when we are not registered or another rotation is under way.
    pub fn rotate_key(&mut self, now: Instant, next: Arc<Identity>) -> bool {
        if self.rotation.is_some() || !self.sync.registered {
            return false;
        }
        self.rotation = Some(Rotation { next, stage: Stage::Wanted, plain: false });
        self.run(now);
        true
    }

    /// Whether anything but the rotation has to wait.
    pub(super) fn rotation_holds(&self) -> bool {
        let ready = self.sync.greeted && self.sync.registered;
        self.rotation.as_ref().is_some_and(|rotation| ready || rotation.stage != Stage::Wanted)
    }

    /// Does the next step of a rotation on an open connection. Says whether everything else has to wait for it.
    pub(super) fn run_rotation(&mut self, now: Instant) -> bool {
        let ready = self.sync.greeted && self.sync.registered;
        let idle = self.is_idle();
        let Some(rotation) = &mut self.rotation else { return false };
        match rotation.stage {
            Stage::Unknown if self.node == 0 => {
                // Nobody can say what became of it. The old key is the one that is known to have had an address.
                self.end_rotation(false, "our own node id is not known any more");
                false
            }
            Stage::Unknown => {
                rotation.stage = Stage::Asked;
                let node = self.node;
                self.send(now, Asker::Rotation, Request::Lookup { node });
                true
            }
            Stage::Wanted if ready && idle => {
                rotation.stage = Stage::Sent;
                let new_public_key = rotation.next.public_key_base64();
                let (node, plain) = (self.node, rotation.plain);
                let text = if plain { signed::rotate(node) } else { signed::rotate_to(node, &new_public_key) };
                let signature = base64::encode(&self.config.identity.sign(text.as_bytes()));
                self.send(now, Asker::Rotation, Request::RotateKey { node, new_public_key, signature });
                true
            }
            // What is under way was signed with the old key and goes first; nothing is added to it.
            Stage::Wanted => ready,
            Stage::Sent | Stage::Asked => true,
        }
    }

    /// The connection was lost with the rotation's request on it.
    pub(super) fn rotation_lost(&mut self) {
        if let Some(rotation) = &mut self.rotation
            && rotation.stage != Stage::Wanted
        {
            rotation.stage = Stage::Unknown;
        }
    }

    pub(super) fn rotation_answered(&mut self, result: Result<Fields, ErrorAnswer>) {
        let Some(rotation) = &mut self.rotation else { return };
        match (rotation.stage, result) {
            (Stage::Sent, Ok(_)) => self.end_rotation(true, ""),
            // Registries of ours say their reasons in codes; one that does not may know only February's text.
            (Stage::Sent, Err(error)) if error.code.is_none() && !rotation.plain => {
                rotation.plain = true;
                rotation.stage = Stage::Wanted;
            }
            (Stage::Sent, Err(error)) => self.end_rotation(false, &error.text),
            (Stage::Asked, Ok(fields)) => {
                let held = LookupOk::from_fields(&fields).and_then(|ok| base64::decode_array::<32>(&ok.public_key));
                if held == Some(rotation.next.public_key()) {
                    self.end_rotation(true, "");
                } else if held == Some(self.config.identity.public_key()) {
                    self.end_rotation(false, "the request did not reach the registry");
                } else {
                    // Neither key: the registry is not the one we knew, or has forgotten. Registering decides.
                    self.end_rotation(false, "the registry holds another key for this node");
                }
            }
            (Stage::Asked, Err(error)) => self.end_rotation(false, &error.text),
            (Stage::Wanted | Stage::Unknown, _) => {}
        }
    }

    fn end_rotation(&mut self, rotated: bool, why: &str) {
        let Some(rotation) = self.rotation.take() else { return };
        if rotated {
            self.config.identity = Arc::clone(&rotation.next);
        }
        let result = if rotated { Ok(()) } else { Err(why.to_owned()) };
        self.emit(DirectoryEvent::Rotated { public_key: rotation.next.public_key(), result });
    }
}
