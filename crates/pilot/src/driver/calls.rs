//! The commands of a daemon that answer with JSON (03 §8 to §10, 07 §12).

use std::time::Duration;

use pilot_wire::ipc::{HandshakeCommand, NetworkCommand, Request};
use pilot_wire::json;
use serde_json::{Value, json};

use super::Driver;
use crate::error::Error;
use crate::plain::link::Reply;

/// Whether a command may be sent again when the daemon went away before it answered: it asks a question, or sets
/// something to a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    Safe,
    /// It acts, and may have acted.
    Never,
}

impl Driver {
    async fn json(&self, op: &'static str, repeat: Repeat, request: &Request<'_>) -> Result<Value, Error> {
        let mut repeats = 0;
        loop {
            let link = self.core.session(op).await?;
            match link.request(op, request).await {
                Ok(Reply::Json(text)) => {
                    return json::parse(&text).map_err(|why| Error::Unmarshal { op, why: why.to_string() });
                }
                Ok(Reply::Done | Reply::Dialled(..)) => {
                    return Err(Error::Unmarshal { op, why: "not a JSON answer".into() });
                }
                Err(error) if repeat == Repeat::Safe && self.core.again(&error, &mut repeats).await => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The daemon's status (03 §8, 07 §12).
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
    /// let info = driver.info().await?;
    /// println!("{} with {} peers", info["address"], info["peers"]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As every request: [`Error::Daemon`], [`Error::Disconnected`], [`Error::Unmarshal`].
    pub async fn info(&self) -> Result<Value, Error> {
        self.json("info", Repeat::Safe, &Request::Info).await
    }

    /// A short status; daemons from April 2026 on.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
    /// assert_eq!(driver.health().await?["status"], "ok");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn health(&self) -> Result<Value, Error> {
        self.json("health", Repeat::Safe, &Request::Health).await
    }

    /// The node behind a host name: `address`, `hostname`, `node_id`, `public`.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
    /// let bob = driver.resolve_hostname("bob").await?;
    /// println!("bob is {}", bob["address"]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn resolve_hostname(&self, hostname: &str) -> Result<Value, Error> {
        self.json("resolve_hostname", Repeat::Safe, &Request::ResolveHostname { hostname: hostname.into() }).await
    }

    /// Sets the own host name; the empty one clears it.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
    /// driver.set_hostname("alice").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn set_hostname(&self, hostname: &str) -> Result<Value, Error> {
        self.json("set_hostname", Repeat::Safe, &Request::SetHostname { hostname: hostname.into() }).await
    }

    /// Shows the endpoint to everybody, or only to trusted nodes.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
    /// driver.set_visibility(true).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn set_visibility(&self, public: bool) -> Result<Value, Error> {
        self.json("set_visibility", Repeat::Safe, &Request::SetVisibility { public }).await
    }

    /// Takes the node off the registry; the daemon goes on and registers again later.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
    /// driver.deregister().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn deregister(&self) -> Result<Value, Error> {
        self.json("deregister", Repeat::Never, &Request::Deregister).await
    }

    /// Replaces the identity key by a new one, which the registry accepts because the old one signs for it: `node_id`,
    /// `address`, `public_key`. Daemons from 1.9.1 on.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
    /// println!("the new key is {}", driver.rotate_key().await?["public_key"]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn rotate_key(&self) -> Result<Value, Error> {
        self.json("rotate_key", Repeat::Never, &Request::RotateKey).await
    }

    /// Replaces the own tags, three at most; none clears them.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
    /// driver.set_tags(&["translation", "german"]).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn set_tags(&self, tags: &[&str]) -> Result<Value, Error> {
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        self.json("set_tags", Repeat::Safe, &Request::SetTags { tags }).await
    }

    /// Sets the address that events are posted to; the empty one turns them off.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
    /// driver.set_webhook("http://127.0.0.1:8000/events").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn set_webhook(&self, url: &str) -> Result<Value, Error> {
        self.json("set_webhook", Repeat::Safe, &Request::SetWebhook { url: url.into() }).await
    }

    /// Offers or withdraws task execution; daemons up to 1.9.1.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
    /// driver.set_task_exec(false).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn set_task_exec(&self, enabled: bool) -> Result<Value, Error> {
        self.json("set_task_exec", Repeat::Safe, &Request::SetTaskExec { enabled }).await
    }

    /// Network commands; daemons from April 2026 on.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
    /// use pilot::NetworkCommand;
    /// let networks = driver.network(NetworkCommand::List).await?;
    /// println!("{networks}");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn network(&self, command: NetworkCommand) -> Result<Value, Error> {
        use NetworkCommand as C;
        let question = matches!(command, C::List | C::Members { .. } | C::PollInvites);
        let repeat = if question { Repeat::Safe } else { Repeat::Never };
        self.json("network", repeat, &Request::Network(command)).await
    }

    /// Sends a datagram to every member of a network, through an official daemon that wants the registry's admin token;
    /// daemons from 1.9.1 on. An empty object, as they say nothing of the single members:
    /// [`Pilot::broadcast`](crate::Pilot::broadcast) does, with daemons of ours.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
    /// driver.broadcast_with_token(7, 1000, b"hello", "secret").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn broadcast_with_token(
        &self,
        network: u16,
        port: u16,
        data: &[u8],
        admin_token: &str,
    ) -> Result<Value, Error> {
        let request = Request::Broadcast { network, port, token: admin_token.as_bytes(), data };
        let link = self.core.session("broadcast").await?;
        match link.request("broadcast", &request).await? {
            Reply::Json(text) if !text.is_empty() => {
                json::parse(&text).map_err(|why| Error::Unmarshal { op: "broadcast", why: why.to_string() })
            }
            // Official daemons answer with nothing.
            _ => Ok(Value::Object(serde_json::Map::new())),
        }
    }

    /// Asks the daemon to reach a node directly rather than through the relay; daemons from 1.12.8 on.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
    /// let answer = driver.prefer_direct(5).await?;
    /// println!("was relayed: {}", answer["was_relay_active"]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn prefer_direct(&self, node: u32) -> Result<Value, Error> {
        self.json("prefer_direct", Repeat::Safe, &Request::PreferDirect { node }).await
    }

    /// Asks the engine for managed networks of an official daemon: `sub` is one of
    /// [`pilot_wire::ipc::managed`], `rest` what follows it (03 §10, 07 §12).
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
    /// // The status of network 7.
    /// println!("{}", driver.managed(2, &7_u16.to_be_bytes()).await?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`info`](Self::info). A daemon without such an engine says so.
    pub async fn managed(&self, sub: u8, rest: &[u8]) -> Result<Value, Error> {
        self.json("managed", Repeat::Never, &Request::Managed { sub, rest }).await
    }

    /// Signs a request for a third party as this node, now: `envelope`, `signature`, `address`. `body_hash` is the SHA-256 of
    /// what is asked; `audience` names whom it is meant for (1 to 64 of `a-z 0-9 . -`). Daemons from 1.12.8 on (07 §12).
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver, hash: [u8; 32]) -> Result<(), pilot::Error> {
    /// let signed = driver.sign_request("api.example.org", &hash).await?;
    /// println!("X-Pilot-Envelope: {}\nX-Pilot-Request-Signature: {}", signed["envelope"], signed["signature"]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn sign_request(&self, audience: &str, body_hash: &[u8; 32]) -> Result<Value, Error> {
        let hash: String = body_hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let body = json::to_vec(&json!({ "audience": audience, "body_hash": hash }));
        self.json("sign_request", Repeat::Safe, &Request::SignEnvelope(&body)).await
    }

    /// Verifies a request that some node has signed: `valid`, `reason`, and from our daemon what was signed: `node_id`,
    /// `address`, `timestamp`, `nonce`, `body_hash`, `audience`. An answer with `valid` false is no error. The caller
    /// compares hash and audience with what it received and who it is, and remembers nonces if a request must not
    /// count twice. Daemons from 1.12.8 on (07 §12).
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver, envelope: &str, signature: &str) -> Result<(), pilot::Error> {
    /// let verdict = driver.verify_request(envelope, signature, None, false).await?;
    /// println!("valid: {} {}", verdict["valid"], verdict["reason"]);
    /// # Ok(()) }
    /// ```
    ///
    /// `max_skew`: how far the signer's clock may be off, in whole seconds; `None` is the daemon's default, 300 s.
    /// `standing`: whether the standing of the signer is asked for as well.
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn verify_request(
        &self,
        envelope: &str,
        signature: &str,
        max_skew: Option<Duration>,
        standing: bool,
    ) -> Result<Value, Error> {
        let body = json::to_vec(&json!({
            "envelope": envelope,
            "signature": signature,
            "check_standing": standing,
            "max_skew_secs": max_skew.map_or(0, |skew| skew.as_secs().max(1)),
        }));
        self.json("verify_request", Repeat::Safe, &Request::VerifyEnvelope(&body)).await
    }

    // --- Trust ---------------------------------------------------------------------------------------------------

    /// Asks a node for trust: `node_id`, `status` (`sent`). Says nothing about the answer: poll
    /// [`trusted`](Self::trusted), or [`wait_trusted`](Self::wait_trusted).
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
    /// driver.handshake(5, "we work on the same dataset").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn handshake(&self, node: u32, justification: &str) -> Result<Value, Error> {
        let justification = justification.into();
        self.json("handshake", Repeat::Never, &Request::Handshake(HandshakeCommand::Request { node, justification }))
            .await
    }

    /// Grants a waiting request.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
    /// for request in driver.pending().await?["pending"].as_array().into_iter().flatten() {
    ///     println!("{} says: {}", request["address"], request["justification"]);
    /// }
    /// driver.approve(5).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn approve(&self, node: u32) -> Result<Value, Error> {
        self.json("approve", Repeat::Never, &Request::Handshake(HandshakeCommand::Approve { node })).await
    }

    /// Refuses a waiting request.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
    /// driver.reject(5, "we do not know each other").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn reject(&self, node: u32, reason: &str) -> Result<Value, Error> {
        self.json(
            "reject",
            Repeat::Never,
            &Request::Handshake(HandshakeCommand::Reject { node, reason: reason.into() }),
        )
        .await
    }

    /// Requests that wait: `pending`, a list of `node_id`, `public_key`, `justification`, `received_at`.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
    /// println!("{}", driver.pending().await?["pending"]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn pending(&self) -> Result<Value, Error> {
        self.json("pending", Repeat::Safe, &Request::Handshake(HandshakeCommand::Pending)).await
    }

    /// Trusted nodes: `trusted`, a list of `node_id`, `public_key`, `approved_at`, `mutual`, `network`.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
    /// println!("{}", driver.trusted().await?["trusted"]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn trusted(&self) -> Result<Value, Error> {
        self.json("trusted", Repeat::Safe, &Request::Handshake(HandshakeCommand::Trusted)).await
    }

    /// Ends trust in a node.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
    /// driver.revoke(5).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn revoke(&self, node: u32) -> Result<Value, Error> {
        self.json("revoke", Repeat::Never, &Request::Handshake(HandshakeCommand::Revoke { node })).await
    }

    /// Waits until a node is trusted, at most half a minute: `node_id`, `trusted`. Daemons before 1.10.5 cannot wait, and
    /// are asked over and over instead.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
    /// use std::time::Duration;
    /// driver.handshake(5, "").await?;
    /// let answer = driver.wait_trusted(5, Duration::from_secs(30)).await?;
    /// println!("trusted: {}", answer["trusted"]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn wait_trusted(&self, node: u32, limit: Duration) -> Result<Value, Error> {
        let millis = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        let wait = Request::Handshake(HandshakeCommand::Wait { node, millis });
        match self.json("handshake", Repeat::Safe, &wait).await {
            Err(error) if error.is_unsupported() => {}
            other => return other,
        }
        let mut over = std::pin::pin!(tokio::time::sleep(limit.min(LONGEST_WAIT)));
        loop {
            let answer = self.trusted().await?;
            let peers = answer["trusted"].as_array().map_or(&[][..], Vec::as_slice);
            let trusted = peers.iter().any(|peer| peer["node_id"] == node);
            if trusted || over.is_elapsed() {
                return Ok(json!({ "node_id": node, "trusted": trusted }));
            }
            tokio::select! {
                () = &mut over => {}
                () = tokio::time::sleep(TRUST_PAUSE) => {}
            }
        }
    }
}

/// How often a daemon that cannot wait is asked whether it trusts a node.
const TRUST_PAUSE: Duration = Duration::from_millis(250);
/// How long daemons wait at most (07 §12).
const LONGEST_WAIT: Duration = Duration::from_millis(pilot_wire::ipc::MAX_HANDSHAKE_WAIT_MS as u64);
