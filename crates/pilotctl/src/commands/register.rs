//! `register`: gives the identity of this home an address, without a daemon (06 §6.3, §24.33).

use pilot_wire::registry::{Register, Request};
use pilot_wire::{base64, signed};

use crate::app::App;
use crate::args::Args;
use crate::errors::Outcome;
use crate::identity::{self, Missing};
use crate::registry::Registry;
use crate::table::{Arg, Command};

pub(crate) const COMMAND: Command = Command {
    name: "register",
    args: &[Arg::new("[listen_addr]", "host:port of the tunnel, as the daemon will have it")],
    about: "register the identity of this home, without a daemon",
    details: "The daemon registers by itself when it starts; this is for telling the address of a node beforehand. Makes\n\
              the identity when there is none. The entry expires after some minutes without a daemon; the address stays.",
    returns: "node_id, address, public_key",
    raw: true,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let config = app.home.load()?;
    let registry = Registry::of(&app.home, &config)?;
    let (_lock, key) = identity::open(&app.home.identity(&config)?, Missing::Make)?;
    let listen_addr = args.word(0).to_owned();
    let public_key = key.public_key_base64();
    let signature = base64::encode(&key.sign(signed::register(&listen_addr, &public_key).as_bytes()));
    let request = Request::Register(Register {
        public_key,
        listen_addr,
        version: Some(pilot_node::VERSION.to_owned()),
        signature,
        ..Register::default()
    });
    let answer = registry.ask(&request).await.map_err(|failure| registry.explain("register", failure))?;
    app.out.object(&answer);
    Ok(0)
}
