//! The native half of the Python package `pilot`: everything that waits is an [`op::Op`], which Python either waits for
//! (without holding the interpreter's lock) or starts and is told of through a [`op::Bell`]. No thread of the runtime ever
//! touches the interpreter, so neither a busy nor an ending interpreter can hold up the network.
//!
//! What people see (`Driver`, `Stream`, iterators, type hints) is written in Python over this.

// A face: the clock is asked here.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod convert;
mod errors;
mod network;
mod node;
mod op;
mod runtime;
mod scope;
mod services;
mod stream;

use pyo3::prelude::*;

/// What `python/pilot` imports.
#[pymodule]
fn _pilot(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    m.add("SOCKET_VARIABLE", pilot::SOCKET_VARIABLE)?;
    m.add("DEFAULT_SOCKET_PATH", pilot::DEFAULT_SOCKET)?;
    m.add_class::<op::Bell>()?;
    m.add_class::<op::Op>()?;
    m.add_class::<network::Network>()?;
    m.add_class::<stream::Stream>()?;
    m.add_class::<stream::Listener>()?;
    m.add_class::<services::Events>()?;
    m.add_class::<services::Subscription>()?;
    m.add_function(wrap_pyfunction!(network::connect, m)?)?;
    m.add_function(wrap_pyfunction!(network::default_sockets, m)?)?;
    m.add_function(wrap_pyfunction!(node::start_node, m)?)?;
    Ok(())
}
