//! Streams, listeners and datagrams (06 §16, §17).

use std::ffi::{c_char, c_int, c_void};
use std::future::Future;
use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pilot_sdk::{Error, StreamError};
use pilot_wire::base64;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::address;
use crate::answer::{error, labelled, pair, run, value, void};
use crate::handles::{self, Object};
use crate::memory::{bytes, give_bytes, text};

/// Longest read at once, bytes.
const MAX_READ: usize = 16 << 20;
/// How long a dial and a bind wait for the daemon.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// A deadline further away than this is as good as this: no clock overflows.
const FAR: Duration = Duration::from_secs(100 * 365 * 86_400);
/// Text at the end of a stream, which SDKs compare (06 §19.7).
const EOF: &str = "EOF";
/// Text of a write that was under way when its stream was closed on this side.
const CLOSED: &str = "connection closed";

/// The outcome of `PilotDial`.
#[repr(C)]
pub struct PilotDial_return {
    /// The handle of the stream; 0 on failure.
    pub r0: u64,
    /// The error as JSON, to be released with `FreeString`, or NULL.
    pub r1: *mut c_char,
}

/// The outcome of `PilotDialTimeout`.
#[repr(C)]
pub struct PilotDialTimeout_return {
    /// The handle of the stream; 0 on failure.
    pub r0: u64,
    /// The error as JSON, to be released with `FreeString`, or NULL.
    pub r1: *mut c_char,
}

/// The outcome of `PilotListen`.
#[repr(C)]
pub struct PilotListen_return {
    /// The handle of the listener; 0 on failure.
    pub r0: u64,
    /// The error as JSON, to be released with `FreeString`, or NULL.
    pub r1: *mut c_char,
}

/// The outcome of `PilotListenerAccept`.
#[repr(C)]
pub struct PilotListenerAccept_return {
    /// The handle of the stream; 0 on failure.
    pub r0: u64,
    /// The error as JSON, to be released with `FreeString`, or NULL.
    pub r1: *mut c_char,
}

/// The outcome of `PilotConnRead`.
#[repr(C)]
pub struct PilotConnRead_return {
    /// Bytes read.
    pub r0: c_int,
    /// The bytes, to be released with `FreeString`; NULL on failure.
    pub r1: *mut c_char,
    /// The error as JSON, to be released with `FreeString`, or NULL.
    pub r2: *mut c_char,
}

/// The outcome of `PilotConnWrite`.
#[repr(C)]
pub struct PilotConnWrite_return {
    /// Bytes written.
    pub r0: c_int,
    /// The error as JSON, to be released with `FreeString`, or NULL.
    pub r1: *mut c_char,
}

/// Waits at most as long as given, if that is given.
async fn within<T>(limit: Option<Duration>, work: impl Future<Output = T>) -> Option<T> {
    match limit {
        Some(limit) => tokio::time::timeout(limit, work).await.ok(),
        None => Some(work.await),
    }
}

/// A failed dial, beginning with the words of official daemons, which programs compare; ours knows more, which follows.
fn dial_text(node: u32, error: &Error) -> String {
    use pilot_wire::ipc::text;
    let Error::Refused { code, message, hint, .. } = error else { return labelled("dial", error) };
    let why = match hint {
        Some(hint) => format!("{message}; {hint}"),
        None => message.clone(),
    };
    let words = match code.as_str() {
        "connection_refused" => text::CONNECTION_REFUSED.to_owned(),
        "node_not_found" | "resolve_denied" | "registry_unavailable" => text::resolve_node(node, why),
        "no_answer" | "unreadable" | "key_mismatch" | "untrusted" | "dial_timeout" => {
            format!("{}: {why}", text::DIAL_TIMEOUT)
        }
        _ => why,
    };
    format!("dial: daemon: {words}")
}

fn dial(h: u64, address: &str, limit: Option<Duration>, prefix: &str) -> Result<u64, String> {
    let handle = handles::driver(h)?;
    let address = address::parse(address).map_err(|error| format!("{prefix}{error}"))?;
    let gone = || "dial: daemon disconnected".to_owned();
    let driver = handle.driver().ok_or_else(gone)?;
    run(async {
        let dialling = within(limit, driver.dial(address));
        let stream = tokio::select! {
            dialled = dialling => match dialled {
                Some(Ok(stream)) => stream,
                Some(Err(error)) => return Err(dial_text(address.addr.node, &error)),
                None => return Err("dial: dial timeout".into()),
            },
            () = handle.closed.cancelled() => return Err(gone()),
        };
        Ok(handles::insert(Object::Conn(handle.adopt(stream).await.ok_or_else(gone)?)))
    })
}

/// Opens a stream to `N:NNNN.HHHH.LLLL:PORT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PilotDial(h: u64, addr: *const c_char) -> PilotDial_return {
    // SAFETY: the contract.
    let address = unsafe { text(addr) };
    let (r0, r1) = pair(|| dial(h, &address, Some(PATIENCE), "parse address: "));
    PilotDial_return { r0, r1 }
}

/// The same with another limit, in milliseconds; 0 means none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PilotDialTimeout(h: u64, addr: *const c_char, timeoutMs: u64) -> PilotDialTimeout_return {
    // SAFETY: the contract.
    let address = unsafe { text(addr) };
    let (r0, r1) = pair(|| dial(h, &address, (timeoutMs > 0).then(|| Duration::from_millis(timeoutMs)), ""));
    PilotDialTimeout_return { r0, r1 }
}

/// Binds a port for streams, and its datagrams for `PilotRecvFrom`.
#[unsafe(no_mangle)]
pub extern "C" fn PilotListen(h: u64, port: u16) -> PilotListen_return {
    let (r0, r1) = pair(|| listen(h, port));
    PilotListen_return { r0, r1 }
}

fn listen(h: u64, port: u16) -> Result<u64, String> {
    let handle = handles::driver(h)?;
    let gone = || "bind: daemon disconnected".to_owned();
    let driver = handle.driver().ok_or_else(gone)?;
    run(async {
        let listener = tokio::select! {
            bound = within(Some(PATIENCE), driver.listen(port)) => match bound {
                Some(bound) => bound.map_err(|error| labelled("bind", &error))?,
                None => return Err("bind: timeout".into()),
            },
            () = handle.closed.cancelled() => return Err(gone()),
        };
        Ok(handles::insert(Object::Door(handle.open_door(listener).await.ok_or_else(gone)?)))
    })
}

/// The next stream of a port.
#[unsafe(no_mangle)]
pub extern "C" fn PilotListenerAccept(lh: u64) -> PilotListenerAccept_return {
    let (r0, r1) = pair(|| accept(lh));
    PilotListenerAccept_return { r0, r1 }
}

fn accept(lh: u64) -> Result<u64, String> {
    let door = handles::door(lh)?;
    let closed = || "listener closed".to_owned();
    run(async {
        let listener = door.listener.read().await;
        let listener = listener.as_ref().ok_or_else(closed)?;
        let stream = tokio::select! {
            accepted = listener.accept() => accepted.map_err(|error| match error {
                Error::Disconnected { .. } | Error::ListenerClosed => closed(),
                other => labelled("accept", &other),
            })?,
            () = door.closed.cancelled() => return Err(closed()),
        };
        Ok(handles::insert(Object::Conn(door.driver.adopt(stream).await.ok_or_else(closed)?)))
    })
}

/// Frees a port; who waits for a stream of it is told.
#[unsafe(no_mangle)]
pub extern "C" fn PilotListenerClose(lh: u64) -> *mut c_char {
    void(|| {
        let door = handles::door(lh)?;
        handles::remove(lh);
        run(async {
            door.close().await;
            Ok(())
        })
    })
}

/// What an error of a stream is called. The end the peer made, and the loss of the daemon, are both `EOF`.
fn stream_text(error: &io::Error) -> String {
    match StreamError::of(error) {
        Some(StreamError::Ended(reason)) if reason.code() == "daemon_disconnected" => EOF.to_owned(),
        _ => error.to_string(),
    }
}

fn read(ch: u64, size: c_int) -> Result<Vec<u8>, String> {
    let conn = handles::conn(ch)?;
    let size = usize::try_from(size).ok().filter(|size| *size > 0).ok_or(format!("invalid read size: {size}"))?;
    run(async {
        let reading = async {
            let mut half = conn.read.lock().await;
            let half = half.as_mut().ok_or(EOF)?;
            // Room that nothing is read into is not touched: callers ask for megabytes and get what has come.
            let mut data = Vec::with_capacity(size.min(MAX_READ));
            match (&mut *half).take(data.capacity().min(size) as u64).read_buf(&mut data).await {
                Ok(0) => Err(EOF.to_owned()),
                Ok(_) => Ok(data),
                Err(error) => Err(stream_text(&error)),
            }
        };
        tokio::select! {
            data = reading => data,
            () = conn.closed.cancelled() => Err(EOF.to_owned()),
        }
    })
}

/// Reads what has come, at most `bufSize` bytes, waiting for the first.
#[unsafe(no_mangle)]
pub extern "C" fn PilotConnRead(ch: u64, bufSize: c_int) -> PilotConnRead_return {
    let (given, r2) = pair(|| read(ch, bufSize).map(|data| Some((data.len(), give_bytes(&data)))));
    match given {
        // The cap makes the cast lossless.
        Some((count, r1)) if !r1.is_null() => PilotConnRead_return { r0: count as c_int, r1, r2 },
        Some(_) => PilotConnRead_return { r0: 0, r1: std::ptr::null_mut(), r2: error("out of memory") },
        None => PilotConnRead_return { r0: 0, r1: std::ptr::null_mut(), r2 },
    }
}

/// Writes bytes. Waits while the peer does not keep up.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PilotConnWrite(ch: u64, data: *const c_void, dataLen: c_int) -> PilotConnWrite_return {
    // SAFETY: the contract.
    let data = unsafe { bytes(data, dataLen) };
    let (r0, r1) = pair(|| {
        write(ch, data)?;
        // What was given was counted in an int.
        Ok(data.len() as c_int)
    });
    PilotConnWrite_return { r0, r1 }
}

fn write(ch: u64, data: &[u8]) -> Result<(), String> {
    let conn = handles::conn(ch)?;
    run(async {
        let writing = async {
            let mut half = conn.write.lock().await;
            let half = half.as_mut().ok_or(CLOSED)?;
            half.write_all(data).await.map_err(|error| error.to_string())?;
            half.flush().await.map_err(|error| error.to_string())
        };
        tokio::select! {
            written = writing => written,
            () = conn.closed.cancelled() => Err(CLOSED.to_owned()),
        }
    })
}

/// Closes a stream; who waits on it is told. Takes other handles as well.
#[unsafe(no_mangle)]
pub extern "C" fn PilotConnClose(ch: u64) -> *mut c_char {
    void(|| {
        let object = handles::remove(ch).ok_or("invalid conn handle")?;
        run(async {
            match object {
                Object::Conn(conn) => conn.close().await,
                Object::Door(door) => door.close().await,
                Object::Driver(driver) => driver.close().await,
            }
            Ok(())
        })
    })
}

/// When reads give up, in nanoseconds of Unix time; 0 means never. A read that waits heeds it at once.
#[unsafe(no_mangle)]
pub extern "C" fn PilotConnSetReadDeadline(ch: u64, unixNanos: i64) -> *mut c_char {
    void(|| {
        let conn = handles::conn(ch)?;
        let at = (unixNanos != 0).then(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let at = Duration::from_nanos(u64::try_from(unixNanos).unwrap_or(0));
            Instant::now() + at.saturating_sub(now).min(FAR)
        });
        conn.deadlines.set_read(at);
        Ok(())
    })
}

/// Sends a datagram to `N:NNNN.HHHH.LLLL:PORT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PilotSendTo(
    h: u64,
    fullAddr: *const c_char,
    data: *const c_void,
    dataLen: c_int,
) -> *mut c_char {
    // SAFETY: the contract.
    let (address, data) = unsafe { (text(fullAddr), bytes(data, dataLen)) };
    void(|| {
        let handle = handles::driver(h)?;
        let address = address::parse(&address)?;
        if address.addr.is_broadcast() {
            return Err("broadcast address requires admin token: use Driver.Broadcast".to_owned());
        }
        let gone = || "sendto: daemon disconnected".to_owned();
        let driver = handle.driver().ok_or_else(gone)?;
        run(async {
            tokio::select! {
                sent = driver.send_to(address, data) => sent.map_err(|error| labelled("sendto", &error)),
                () = handle.closed.cancelled() => Err(gone()),
            }
        })
    })
}

/// The next datagram.
#[unsafe(no_mangle)]
pub extern "C" fn PilotRecvFrom(h: u64) -> *mut c_char {
    value(|| {
        let handle = handles::driver(h)?;
        let closed = || "driver closed".to_owned();
        let driver = handle.driver().ok_or_else(closed)?;
        run(async {
            let datagram = tokio::select! {
                came = driver.recv_from() => came.map_err(|_| closed())?,
                () = handle.closed.cancelled() => return Err(closed()),
            };
            let data = if datagram.data.is_empty() { Value::Null } else { base64::encode(&datagram.data).into() };
            Ok(json!({
                "src_addr": datagram.from.addr.to_string(),
                "src_port": datagram.from.port,
                "dst_port": datagram.port,
                "data": data,
            }))
        })
    })
}
