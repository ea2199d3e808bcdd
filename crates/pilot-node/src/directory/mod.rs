//! The node's view of the registry: questions with answers over one connection. The session itself, what is told to the
//! registry when and what follows from its answers, is [`pilot_proto::directory`].

mod link;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use pilot_env::Env;
use pilot_proto::directory::{self as core, Call, CallError, CallId, DirectoryConfig, DirectoryEvent};
use pilot_proto::identity::Identity;
use pilot_wire::registry::{Fields, LookupOk, NetworkPolicyOk, ResolveOk};
use serde_json::Value;
use tokio::sync::{Notify, mpsc, oneshot, watch};

pub(crate) use link::{LinkState, Target};

/// Events of the session that wait for the node. The session waits when there are more.
const EVENTS: usize = 64;

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
    /// It was asked, and the connection ended before it answered.
    #[error("registry: {0}")]
    Lost(String),
    /// This node has no id yet.
    #[error("registry: this node is not registered yet")]
    NotRegistered,
    /// Its answer lacks what an answer must have.
    #[error("registry: incomplete answer to {0}")]
    Incomplete(&'static str),
    /// The registry has it, this host does not: after a restart the node says what it said before.
    #[error("the registry has it, but this node would forget it at a restart: {0}")]
    NotSaved(String),
    /// Something in its answer is not what it has to be.
    #[error("registry: the answer to {0} cannot be used: {1}")]
    Unreadable(&'static str, String),
}

impl DirectoryError {
    /// Stable name.
    pub fn code(&self) -> &str {
        match self {
            Self::Refused { code: Some(code), .. } => code,
            Self::Refused { .. } => "registry_refused",
            Self::Unavailable(_) => "registry_unavailable",
            Self::Lost(_) => "registry_lost",
            Self::NotRegistered => "not_registered",
            Self::Incomplete(_) => "registry_incomplete",
            Self::NotSaved(_) => "not_saved",
            Self::Unreadable(..) => "registry_unreadable",
        }
    }

    /// Whether the registry says that there is no such node. Every other refusal may be one of the moment; February's
    /// registry, which hides its reasons, never says this.
    pub(crate) fn is_not_found(&self) -> bool {
        match self {
            Self::Refused { code: Some(code), .. } => code == "node_not_found",
            Self::Refused { code: None, text } => text.contains("not found"),
            _ => false,
        }
    }

    /// Whether this is how a registry answers what it does not know (07 §9.3).
    pub(crate) fn is_unknown_request(&self) -> bool {
        match self {
            Self::Refused { code: Some(code), .. } => code == "unknown_type",
            Self::Refused { code: None, text } => {
                text == "request failed" || text.contains("unknown type") || text.contains("unknown message type")
            }
            _ => false,
        }
    }

    /// Whether the registry was reached at all.
    pub(crate) fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Lost(_))
    }
}

impl From<CallError> for DirectoryError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused { text, code } => Self::Refused { text, code },
            CallError::Lost { reason } => Self::Lost(reason),
            CallError::Offline { reason } => Self::Unavailable(reason),
            // The others name the registry themselves.
            other => Self::Unavailable(other.to_string().trim_start_matches("registry: ").to_owned()),
        }
    }
}

type Answered = Result<Fields, CallError>;

/// The session and who waits for its answers.
pub(super) struct Session {
    env: Env,
    state: Mutex<State>,
    /// Raised after each change, so that the link looks again.
    wake: Notify,
    /// Raised when the connection is not to be waited for any longer.
    moved: Notify,
    closed: watch::Sender<bool>,
}

struct State {
    core: core::Directory,
    waiting: BTreeMap<CallId, oneshot::Sender<Answered>>,
}

impl Session {
    fn with<R>(&self, work: impl FnOnce(&mut core::Directory, Instant) -> R) -> R {
        work(&mut self.state.lock().core, self.env.now())
    }

    fn answer(&self, id: CallId, result: Answered) {
        if let Some(waiting) = self.state.lock().waiting.remove(&id) {
            // Nobody waits any more for an answer nobody takes.
            let _ = waiting.send(result);
        }
    }

    fn closed(&self) {
        self.closed.send_replace(true);
    }
}

/// Asks the registry. Cheap to share; the connection behind it runs in [`Directory::start`]'s task.
pub(crate) struct Directory {
    session: Arc<Session>,
    state: watch::Receiver<LinkState>,
}

type Result<T, E = DirectoryError> = std::result::Result<T, E>;

impl Directory {
    /// A directory, the task that runs its connection, and the events the node acts on.
    pub(crate) fn start(
        env: Env,
        target: Target,
        config: DirectoryConfig,
    ) -> (Self, impl Future<Output = ()> + Send + 'static, mpsc::Receiver<DirectoryEvent>) {
        let core = core::Directory::new(env.now(), config, env.seed());
        let session = Arc::new(Session {
            state: Mutex::new(State { core, waiting: BTreeMap::new() }),
            wake: Notify::new(),
            moved: Notify::new(),
            closed: watch::Sender::new(false),
            env: env.clone(),
        });
        let (sender, state) = watch::channel(LinkState::Idle);
        let (events, receiver) = mpsc::channel(EVENTS);
        let run = link::run(env, target, session.clone(), sender, events);
        (Self { session, state }, run, receiver)
    }

    /// Who we are to the registry; 0 before the first registration.
    pub(crate) fn node(&self) -> u32 {
        self.session.with(|core, _| core.node())
    }

    /// The state of the connection.
    pub(crate) fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// Changes the session, and lets the link carry out what follows.
    fn tell(&self, change: impl FnOnce(&mut core::Directory, Instant)) {
        self.session.with(change);
        self.session.wake.notify_one();
    }

    async fn ask(&self, call: Call) -> Result<Fields> {
        let receiver = {
            let mut state = self.session.state.lock();
            let (sender, receiver) = oneshot::channel();
            let id = state.core.call(self.session.env.now(), call);
            // The answer is taken under the same lock, so it cannot come before this.
            state.waiting.insert(id, sender);
            receiver
        };
        self.session.wake.notify_one();
        // The session answers every question within its deadline; it is gone only when the node is.
        receiver.await.unwrap_or(Err(CallError::Closed)).map_err(DirectoryError::from)
    }

    /// As [`Directory::ask`], for what has to be signed with our id.
    async fn ask_registered(&self, call: Call) -> Result<Fields> {
        if self.node() == 0 {
            return Err(DirectoryError::NotRegistered);
        }
        self.ask(call).await
    }

    /// Gives up the connection and makes another: the host's address, at one end of it, is gone.
    pub(crate) fn reconnect(&self) {
        self.session.moved.notify_waiters();
    }

    /// Where we are; registered at once, and again when it changes.
    pub(crate) fn set_listen_addr(&self, listen_addr: &str) {
        self.tell(|core, now| core.set_listen_addr(now, listen_addr));
    }

    /// What is known of a node.
    pub(crate) async fn lookup(&self, node: u32) -> Result<LookupOk> {
        let fields = self.ask(Call::Lookup { node }).await?;
        LookupOk::from_fields(&fields).ok_or(DirectoryError::Incomplete("lookup"))
    }

    /// Where a node is.
    pub(crate) async fn resolve(&self, node: u32) -> Result<ResolveOk> {
        let fields = self.ask_registered(Call::Resolve { node }).await?;
        ResolveOk::from_fields(&fields).ok_or(DirectoryError::Incomplete("resolve"))
    }

    /// Who has a hostname; the answer as the registry gave it.
    pub(crate) async fn resolve_hostname(&self, hostname: &str) -> Result<Value> {
        self.ask(Call::ResolveHostname { hostname: hostname.to_owned() }).await.map(value)
    }

    /// Claims or (empty) gives up a hostname.
    pub(crate) async fn set_hostname(&self, hostname: &str) -> Result<Value> {
        self.ask_registered(Call::SetHostname { hostname: hostname.to_owned() }).await.map(value)
    }

    /// Lets everybody have our endpoint, or only those who trust us.
    pub(crate) async fn set_visibility(&self, public: bool) -> Result<Value> {
        self.ask_registered(Call::SetVisibility { public }).await.map(value)
    }

    /// Replaces the tags.
    pub(crate) async fn set_tags(&self, tags: Vec<String>) -> Result<Value> {
        self.ask_registered(Call::SetTags { tags }).await.map(value)
    }

    /// Says whether this node takes tasks.
    pub(crate) async fn set_task_exec(&self, enabled: bool) -> Result<Value> {
        self.ask_registered(Call::SetTaskExec { enabled }).await.map(value)
    }

    /// All networks.
    pub(crate) async fn list_networks(&self) -> Result<Value> {
        self.ask(Call::ListNetworks).await.map(value)
    }

    /// Members of a network.
    pub(crate) async fn list_nodes(&self, network: u16) -> Result<Value> {
        self.ask(Call::ListNodes { network }).await.map(value)
    }

    /// What the policy of a network says.
    pub(crate) async fn network_policy(&self, network: u16) -> Result<NetworkPolicyOk> {
        let fields = self.ask(Call::NetworkPolicy { network }).await?;
        NetworkPolicyOk::from_fields(&fields)
            .map_err(|why| DirectoryError::Unreadable("get_network_policy", why.to_string()))
    }

    /// A command about membership, with the registry's answer.
    pub(crate) async fn network(&self, call: Call) -> Result<Value> {
        self.ask_registered(call).await.map(value)
    }

    /// Replaces our key; [`DirectoryEvent::Rotated`] says when it is decided. False when it cannot begin.
    pub(crate) fn rotate_key(&self, next: Arc<Identity>) -> bool {
        let begun = self.session.with(|core, now| core.rotate_key(now, next));
        self.session.wake.notify_one();
        begun
    }

    /// The polo score of a node.
    pub(crate) async fn score(&self, node: u32) -> Result<i64> {
        score_of(&self.ask_registered(Call::GetScore { node }).await?)
    }

    /// Changes the polo score of a node; the new one.
    pub(crate) async fn add_score(&self, node: u32, delta: i64) -> Result<i64> {
        score_of(&self.ask_registered(Call::AddScore { node, delta }).await?)
    }

    /// Removes this node's entry. The key keeps its id.
    pub(crate) async fn deregister(&self) -> Result<Value> {
        self.ask_registered(Call::Deregister).await.map(value)
    }

    /// Says that we trust a node, so that it may resolve us; said again whenever the registry has forgotten it.
    pub(crate) fn report_trust(&self, peer: u32) {
        self.tell(|core, now| core.report_trust(now, peer));
    }

    /// Says that trust has ended, until the registry has heard it.
    pub(crate) fn revoke_trust(&self, peer: u32) {
        self.tell(|core, now| core.revoke_trust(now, peer));
    }

    /// Leaves a trust request for a node at the registry.
    pub(crate) async fn request_handshake(&self, to: u32, justification: &str) -> Result<()> {
        let call = Call::RequestHandshake { node: to, justification: justification.to_owned() };
        self.ask_registered(call).await.map(drop)
    }

    /// Answers a trust request that came through the registry.
    pub(crate) async fn respond_handshake(&self, peer: u32, accept: bool) -> Result<()> {
        self.ask_registered(Call::RespondHandshake { node: peer, accept }).await.map(drop)
    }

    /// Asks for relayed trust messages now; they come as an event.
    pub(crate) fn poll_handshakes(&self) {
        self.tell(core::Directory::poll_handshakes);
    }

    /// Asks for them often for a while: an answer to a request of ours may be among them.
    pub(crate) fn expect_answer(&self) {
        self.tell(core::Directory::expect_answer);
    }

    /// The beacon says that some wait.
    pub(crate) fn handle_notify(&self) {
        self.tell(core::Directory::handle_notify);
    }

    /// Leaves the registry for good. Returns when that is done, or has taken too long.
    pub(crate) async fn shutdown(&self) {
        let mut closed = self.session.closed.subscribe();
        self.tell(core::Directory::shutdown);
        // The sender lives as long as `self`.
        let _ = closed.wait_for(|closed| *closed).await;
    }
}

fn score_of(fields: &Fields) -> Result<i64> {
    fields.i64("polo_score").ok_or(DirectoryError::Incomplete("polo score"))
}

fn value(fields: Fields) -> Value {
    Value::Object(fields.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_words_that_say_so_mean_that_a_node_is_gone_or_a_request_unknown() {
        let refused = |text: &str, code: Option<&str>| DirectoryError::Refused {
            text: text.to_owned(),
            code: code.map(str::to_owned),
        };
        let told = |error: DirectoryError| (error.is_not_found(), error.is_unknown_request());
        // Ours.
        assert_eq!(told(refused("node 5 not found", Some("node_not_found"))), (true, false));
        assert_eq!(told(refused("request failed", Some("unknown_type"))), (false, true));
        for code in ["busy", "internal", "rate_limited", "network_not_found", "signature_failed"] {
            assert_eq!(told(refused("request failed", Some(code))), (false, false), "{code}");
        }
        // Official ones.
        assert_eq!(told(refused("node not found", None)), (true, false));
        assert_eq!(told(refused("request failed", None)), (false, true));
        for text in ["rate limited: try again", "signature verification failed", "cannot serve this now"] {
            assert_eq!(told(refused(text, None)), (false, false), "{text}");
        }
        assert_eq!(told(DirectoryError::Unavailable("node not found".to_owned())), (false, false));
        assert_eq!(told(DirectoryError::Lost("request failed".to_owned())), (false, false));
    }
}
