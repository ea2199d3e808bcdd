//! A service whose methods do to their callers what services may do.
#![allow(unreachable_pub, reason = "a module of a test program")]

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pilot_services::{CallError, Calling, Context, LocalMethods, Opening, Serve, Service, Serving, Stream};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[derive(Clone)]
pub struct Trial;

impl Service for Trial {
    fn name(&self) -> &'static str {
        "trial"
    }

    fn port(&self) -> u16 {
        4321
    }

    fn serve(&self, stream: Box<dyn Stream>, _context: Context) -> Serving {
        drop(stream);
        Box::pin(async { Ok(()) })
    }

    fn local(&self) -> Option<Arc<dyn LocalMethods>> {
        Some(Arc::new(Self))
    }
}

impl LocalMethods for Trial {
    fn methods(&self) -> &'static [&'static str] {
        &["trial.call", "trial.huge", "trial.never", "trial.refuse", "trial.echo", "trial.fail", "trial.deaf"]
    }

    fn call(&self, method: &str, args: Value) -> Calling {
        let method = method.to_owned();
        Box::pin(async move {
            match &method[..] {
                "trial.call" => Ok(json!({ "got": args })),
                "trial.huge" => Ok(Value::from("x".repeat(1 << 20))),
                "trial.never" => std::future::pending().await,
                _ => Err(CallError::new("not_today", "refused").hint("tomorrow")),
            }
        })
    }

    fn open(&self, method: &str, _args: Value) -> Opening {
        let method = method.to_owned();
        Box::pin(async move {
            match &method[..] {
                "trial.echo" => Ok(Box::new(|stream| -> Serving { Box::pin(echo(stream)) }) as Serve),
                "trial.fail" => Ok(Box::new(|stream| -> Serving { Box::pin(fail(stream)) }) as Serve),
                "trial.deaf" => Ok(Box::new(|stream| -> Serving { Box::pin(deaf(stream)) }) as Serve),
                _ => Err(CallError::new("not_today", "refused").hint("tomorrow")),
            }
        })
    }
}

async fn echo(mut stream: Box<dyn Stream>) -> io::Result<()> {
    let mut buf = vec![0; 10_000];
    loop {
        let n = stream.read(&mut buf).await?;
        if n == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(&buf[..n]).await?;
    }
}

async fn fail(mut stream: Box<dyn Stream>) -> io::Result<()> {
    stream.write_all(b"partial").await?;
    Err(io::Error::other(CallError::new("disk_full", "no room left").hint("make room")))
}

/// Neither reads nor ends.
async fn deaf(stream: Box<dyn Stream>) -> io::Result<()> {
    tokio::time::sleep(Duration::from_secs(3600)).await;
    drop(stream);
    Ok(())
}
