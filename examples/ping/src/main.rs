//! Serves ping on port 1004 through the daemon of this user (or the one at `PILOT_SOCKET`), as an application:
//! `cargo run -p example-ping`. The daemon needs no change for that.

use std::sync::Arc;

use example_ping::ping::Ping;
use example_ping::{Context, Service as _};
use pilot::Driver;
use pilot_env::Env;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let driver = Driver::connect_default().await?;
    let listener = driver.listen(Ping.port()).await?;
    println!("serving {} on port {}", Ping.name(), Ping.port());
    let env = Env::real();
    loop {
        let stream = listener.accept().await?;
        let env = env.clone();
        let context = Context { remote: stream.peer_addr(), unix: Arc::new(move || env.unix()) };
        let serving = Ping.serve(Box::new(stream), context);
        tokio::spawn(async move {
            if let Err(error) = serving.await {
                eprintln!("a stream ended early: {error}");
            }
        });
    }
}
