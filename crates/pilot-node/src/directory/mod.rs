//! The node's view of the registry: typed, signed requests with deadlines over one connection.

mod link;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use pilot_env::Env;
use pilot_proto::identity::Identity;
use pilot_wire::registry::{Fields, LookupOk, PollOk, Register, RegisterOk, Request, ResolveOk};
use pilot_wire::{base64, signed};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

use link::Job;
pub(crate) use link::{LinkState, Target};

/// Why the registry gave no answer to go by. The text is what local programs see (03 §5).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// It answered with an error; February's hides every reason behind `request failed`.
    #[error("registry: {text}")]
    Refused {
        /// Its words.
        text: String,
        /// A stable name, from our own registry only.
        code: Option<String>,
    },
    /// It could not be asked.
    #[error("registry: {0}")]
    Unavailable(String),
    /// This node has no id yet.
    #[error("registry: this node is not registered yet")]
    NotRegistered,
    /// Its answer lacks what an answer must have.
    #[error("registry: incomplete answer to {0}")]
    Incomplete(&'static str),
}

impl DirectoryError {
    /// Stable name.
    pub fn code(&self) -> &str {
        match self {
            Self::Refused { code: Some(code), .. } => code,
            Self::Refused { .. } => "registry_refused",
            Self::Unavailable(_) => "registry_unavailable",
            Self::NotRegistered => "not_registered",
            Self::Incomplete(_) => "registry_incomplete",
        }
    }

    /// Whether the registry was reached at all.
    pub(crate) fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

/// Asks the registry. Cheap to share; the connection behind it runs in [`Directory::start`]'s task.
pub(crate) struct Directory {
    env: Env,
    jobs: mpsc::Sender<Job>,
    state: watch::Receiver<LinkState>,
    identity: Arc<Identity>,
    node: AtomicU32,
}

type Result<T> = std::result::Result<T, DirectoryError>;

impl Directory {
    /// A directory, and the task that runs its connection.
    pub(crate) fn start(
        env: Env,
        target: Target,
        identity: Arc<Identity>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (jobs, receiver) = mpsc::channel(link::QUEUE);
        let (sender, state) = watch::channel(LinkState::Idle);
        let run = link::run(env.clone(), target, receiver, sender);
        (Self { env, jobs, state, identity, node: AtomicU32::new(0) }, run)
    }

    /// Who we are to the registry; 0 before the first registration.
    pub(crate) fn node(&self) -> u32 {
        self.node.load(Ordering::Relaxed)
    }

    pub(crate) fn set_node(&self, node: u32) {
        self.node.store(node, Ordering::Relaxed);
    }

    /// The state of the connection.
    pub(crate) fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    async fn ask(&self, request: Request) -> Result<Fields> {
        let (answer, receiver) = oneshot::channel();
        let deadline = self.env.now() + link::ANSWER_TIMEOUT;
        let job = Job { request, answer, deadline, retried: false };
        let down = || DirectoryError::Unavailable(crate::texts::REGISTRY_BUSY.to_owned());
        self.jobs.try_send(job).map_err(|_| down())?;
        // The link answers within the deadline, give or take a connection attempt; this bounds the sum.
        match tokio::time::timeout(link::ANSWER_TIMEOUT * 2, receiver).await {
            Ok(Ok(result)) => result,
            _ => Err(down()),
        }
    }

    fn registered(&self) -> Result<u32> {
        match self.node() {
            0 => Err(DirectoryError::NotRegistered),
            node => Ok(node),
        }
    }

    fn sign(&self, text: &str) -> String {
        base64::encode(&self.identity.sign(text.as_bytes()))
    }

    /// Registers this key with this endpoint.
    pub(crate) async fn register(&self, listen_addr: &str, owner: &str, hostname: &str) -> Result<RegisterOk> {
        let public_key = self.identity.public_key_base64();
        let request = Register {
            signature: self.sign(&signed::register(listen_addr, &public_key)),
            public_key,
            listen_addr: listen_addr.to_owned(),
            owner: owner.to_owned(),
            hostname: hostname.to_owned(),
            version: Some(crate::VERSION.to_owned()),
            ..Register::default()
        };
        let fields = self.ask(Request::Register(request)).await?;
        RegisterOk::from_fields(&fields).filter(|ok| ok.node != 0).ok_or(DirectoryError::Incomplete("register"))
    }

    /// Says that this node lives.
    pub(crate) async fn heartbeat(&self) -> Result<()> {
        let node = self.registered()?;
        let signature = self.sign(&signed::heartbeat(node));
        self.ask(Request::Heartbeat { node, signature }).await.map(drop)
    }

    /// What is known of a node.
    pub(crate) async fn lookup(&self, node: u32) -> Result<LookupOk> {
        let fields = self.ask(Request::Lookup { node }).await?;
        LookupOk::from_fields(&fields).ok_or(DirectoryError::Incomplete("lookup"))
    }

    /// Where a node is.
    pub(crate) async fn resolve(&self, node: u32) -> Result<ResolveOk> {
        let requester = self.registered()?;
        let signature = self.sign(&signed::resolve(requester, node));
        let fields = self.ask(Request::Resolve { node, requester, signature }).await?;
        ResolveOk::from_fields(&fields).ok_or(DirectoryError::Incomplete("resolve"))
    }

    /// Who has a hostname; the answer as the registry gave it.
    pub(crate) async fn resolve_hostname(&self, hostname: &str) -> Result<Value> {
        let requester = self.node();
        let request = Request::ResolveHostname { hostname: hostname.to_owned(), requester };
        self.ask(request).await.map(value)
    }

    /// Claims or (empty) gives up a hostname.
    pub(crate) async fn set_hostname(&self, hostname: &str) -> Result<Value> {
        let node = self.registered()?;
        let signature = self.sign(&signed::set_hostname(node));
        self.ask(Request::SetHostname { node, hostname: hostname.to_owned(), signature }).await.map(value)
    }

    /// Lets everybody have our endpoint, or only those who trust us.
    pub(crate) async fn set_visibility(&self, public: bool) -> Result<Value> {
        let node = self.registered()?;
        let signature = self.sign(&signed::set_visibility(node));
        self.ask(Request::SetVisibility { node, public, signature }).await.map(value)
    }

    /// Replaces the tags.
    pub(crate) async fn set_tags(&self, tags: Vec<String>) -> Result<Value> {
        let node = self.registered()?;
        let signature = self.sign(&signed::set_tags(node));
        self.ask(Request::SetTags { node, tags, signature }).await.map(value)
    }

    /// Says whether this node takes tasks.
    pub(crate) async fn set_task_exec(&self, enabled: bool) -> Result<Value> {
        let node = self.registered()?;
        let signature = self.sign(&signed::set_task_exec(node));
        self.ask(Request::SetTaskExec { node, enabled, signature }).await.map(value)
    }

    /// Removes this node's entry. The key keeps its id.
    pub(crate) async fn deregister(&self) -> Result<Value> {
        let node = self.registered()?;
        let signature = self.sign(&signed::deregister(node));
        self.ask(Request::Deregister { node, signature }).await.map(value)
    }

    /// Says that we trust a node, so that it may resolve us.
    pub(crate) async fn report_trust(&self, peer: u32) -> Result<()> {
        let node = self.registered()?;
        let signature = self.sign(&signed::report_trust(node, peer));
        self.ask(Request::ReportTrust { node, peer, signature }).await.map(drop)
    }

    /// Says that trust has ended.
    pub(crate) async fn revoke_trust(&self, peer: u32) -> Result<()> {
        let node = self.registered()?;
        let signature = self.sign(&signed::revoke_trust(node, peer));
        self.ask(Request::RevokeTrust { node, peer, signature }).await.map(drop)
    }

    /// Leaves a trust request for a node at the registry.
    pub(crate) async fn request_handshake(&self, to: u32, justification: &str) -> Result<()> {
        let from = self.registered()?;
        let signature = self.sign(&signed::handshake(from, to));
        let justification = justification.to_owned();
        self.ask(Request::RequestHandshake { from, to, justification, signature }).await.map(drop)
    }

    /// Fetches waiting trust requests and answers; the registry forgets them with the answer.
    pub(crate) async fn poll_handshakes(&self) -> Result<PollOk> {
        let node = self.registered()?;
        let signature = self.sign(&signed::poll_handshakes(node));
        let fields = self.ask(Request::PollHandshakes { node, signature }).await?;
        Ok(PollOk::from_fields(&fields))
    }

    /// Answers a trust request that came through the registry.
    pub(crate) async fn respond_handshake(&self, peer: u32, accept: bool) -> Result<()> {
        let node = self.registered()?;
        let signature = self.sign(&signed::respond(node, peer));
        self.ask(Request::RespondHandshake { node, peer, accept, signature }).await.map(drop)
    }
}

fn value(fields: Fields) -> Value {
    Value::Object(fields.0)
}
