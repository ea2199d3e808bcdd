//! The broker's files: `events/<n>.log` in the directory of the node, the latest of them being appended to.
//!
//! A file begins with a header and with copies of the retained values. When it has grown to [`FILE_BYTES`] the next one
//! is begun and the oldest beyond [`FILES`] is removed. Opening puts what is kept into one new file and then removes the
//! others, so that a file that is needed is never rewritten, and many restarts do not use many files.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pilot_env::{Env, RawFile};
use pilot_wire::service::event_log::{self, HEADER_LEN, Header};
use pilot_wire::service::events::{Event, MAX_MESSAGE};

use super::ring::{Entry, Ring};

/// Size at which the next file is begun.
const FILE_BYTES: u64 = 4 << 20;
/// Files kept.
const FILES: usize = 3;
/// Largest file that is read: what was appended in one go may overshoot.
const MOST: u64 = 2 * (FILE_BYTES + super::ring::RETAINED_BYTES as u64 + MAX_MESSAGE as u64);
/// Numbers set aside for one file. Far more than fit into it, so that a number is never given out twice, also when a
/// power cut takes the records that had it.
const RESERVED: u64 = 1 << 24;

/// The files.
pub(super) struct Log {
    env: Env,
    dir: PathBuf,
    store: u64,
    /// Each with the lowest number of its events.
    files: BTreeMap<u64, (PathBuf, u64)>,
    current: Option<(Box<dyn RawFile>, u64)>,
}

/// What a log held when it was opened.
pub(super) struct Opened {
    pub(super) log: Log,
    pub(super) ring: Ring,
    /// First number to give out.
    pub(super) next: u64,
}

fn number_of(name: &str) -> Option<u64> {
    name.strip_suffix(".log")?.parse().ok()
}

impl Log {
    /// Reads what is kept and puts it into one new file. Records behind a torn one are left out.
    pub(super) fn open(env: &Env, dir: &Path) -> io::Result<Opened> {
        let fs = env.fs();
        fs.create_dir_all(dir, 0o700)?;
        let mut files = BTreeMap::new();
        for entry in fs.list(dir)? {
            let name = entry.name.to_string_lossy();
            if let Some(number) = number_of(&name).filter(|_| entry.metadata.is_file) {
                files.insert(number, (dir.join(&*name), 0));
            }
        }
        let mut ring = Ring::default();
        let (mut store, mut next) = (0, 1);
        for (path, _) in files.values() {
            let bytes = fs.read_limited(path, MOST)?;
            let Some(header) = Header::parse(&bytes) else {
                tracing::warn!(file = %path.display(), "an event file has no intact header; its events are left out");
                continue;
            };
            store = header.store;
            next = next.max(header.reserved.saturating_add(1));
            ring.lost_through = ring.lost_through.max(header.lost);
            let mut rest = bytes.get(HEADER_LEN..).unwrap_or_default();
            while let Some((event, used)) = event_log::parse_record(rest) {
                rest = rest.get(used..).unwrap_or_default();
                if event.number == 0 || event.number >= next {
                    break;
                }
                take(&mut ring, &event);
            }
        }
        if store == 0 {
            store = env.random_u64() | 1;
        }
        let mut log = Self { env: env.clone(), dir: dir.to_owned(), store, files, current: None };
        let first = if ring.oldest() == 0 { next } else { ring.oldest() };
        let mut events = Vec::new();
        ring.after(0).for_each(|entry| event_log::emit_record(&entry.event(false), &mut events));
        let lost = ring.lost_through;
        log.begin_file(&ring, first, next, lost, &events)?;
        log.remove_all_but(1);
        Ok(Opened { log, ring, next })
    }

    /// Identifies the numbers given out.
    pub(super) fn store(&self) -> u64 {
        self.store
    }

    /// Appends records and syncs. When this returns they are on disk; after an error the next call begins a new file.
    pub(super) fn append(&mut self, records: &[u8], ring: impl FnOnce() -> (Ring, u64)) -> io::Result<()> {
        if self.current.as_ref().is_none_or(|(_, len)| *len >= FILE_BYTES) {
            let (ring, next) = ring();
            let first = event_log::parse_record(records).map_or(next, |(event, _)| event.number);
            // What the file that goes had; those that stay begin with the next number.
            let going = (self.files.len() + 1).saturating_sub(FILES);
            let oldest = self.files.values().nth(going).map_or(first, |(_, first)| *first);
            let lost = if going > 0 { oldest.saturating_sub(1) } else { 0 };
            self.begin_file(&ring, first, next, lost, &[])?;
            self.remove_all_but(FILES);
        }
        let Some((file, len)) = self.current.as_mut() else { return Err(io::ErrorKind::NotFound.into()) };
        let written = file.write_at(*len, records).and_then(|()| file.sync());
        match written {
            Ok(()) => *len += records.len() as u64,
            Err(_) => self.current = None,
        }
        written
    }

    fn begin_file(&mut self, retained: &Ring, first: u64, next: u64, lost: u64, events: &[u8]) -> io::Result<()> {
        let fs = self.env.fs();
        let number = self.files.keys().next_back().map_or(1, |last| last + 1);
        let path = self.dir.join(format!("{number}.log"));
        let header = Header { store: self.store, reserved: next.saturating_add(RESERVED), lost };
        let mut bytes = header.emit().to_vec();
        for entry in retained.retained_after(None) {
            event_log::emit_record(&entry.event(true), &mut bytes);
        }
        bytes.extend_from_slice(events);
        fs.write_atomic(&path, &bytes, 0o600)?;
        self.current = Some((fs.open(&path)?, bytes.len() as u64));
        self.files.insert(number, (path, first));
        Ok(())
    }

    fn remove_all_but(&mut self, count: usize) {
        while self.files.len() > count {
            let Some((_, (oldest, _))) = self.files.pop_first() else { break };
            if let Err(error) = self.env.fs().remove_file(&oldest) {
                tracing::warn!(file = %oldest.display(), %error, "an old event file cannot be removed");
            }
        }
    }
}

/// Takes a record up. Copies of retained values stand at the head of each file; the events themselves may be gone.
fn take(ring: &mut Ring, event: &Event<'_>) {
    let entry = Arc::new(Entry::from_event(event));
    if entry.retained {
        ring.retain(&entry);
    }
    if !event.replayed && event.number > ring.newest {
        ring.push(entry);
    }
}
