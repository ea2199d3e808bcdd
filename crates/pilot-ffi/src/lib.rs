//! libpilot: the C library that the official SDKs load, over this project's driver and node (06 §15 to §19).
//!
//! It has the functions of all official releases together. A call blocks its thread until it is answered or the daemon is
//! gone. Nothing a caller passes is trusted beyond the contract: handles are numbers that are looked up, no panic crosses
//! the boundary, and the one pointer that a binding is known not to pass is read by way of the kernel.
#![allow(clippy::disallowed_methods)] // a face: it runs in real programs
#![allow(non_snake_case)] // the names of the official header
#![allow(clippy::missing_safety_doc)] // the contract of every pointer is that of the header, told once here

mod address;
mod answer;
pub mod embedded;
mod handles;
pub mod managed;
mod memory;
mod process;
pub mod requests;
pub mod streams;

use std::ffi::{c_char, c_void};

/// Releases a string or a buffer that this library has given out. NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn FreeString(text: *mut c_char) {
    // SAFETY: the caller gives back what came from `malloc`, or NULL.
    unsafe { libc::free(text.cast::<c_void>()) }
}
