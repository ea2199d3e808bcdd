//! Two nodes over in-memory streams, on simulated machines whose power can fail.

mod crashes;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pilot_env::Env;
use pilot_wire::service::tasks::{Frame, Response, Results, Status, StatusUpdate, Submit, kind};
use pilot_wire::{Address, SocketAddress};
use serde_json::{Map, Value, json};

use super::*;
use crate::{Dialing, Events, Network, NoEvents, Scoring};

/// Everything between the nodes: who is reachable, and the registry's scores.
#[derive(Default)]
struct Net {
    services: Mutex<BTreeMap<u32, Arc<dyn Service>>>,
    scores: Mutex<BTreeMap<u32, i64>>,
    settled: Mutex<Vec<(u32, i64)>>,
    no_registry: Mutex<bool>,
}

struct Member {
    net: Arc<Net>,
    node: u32,
    env: Env,
}

impl Network for Member {
    fn address(&self) -> Address {
        Address::backbone(self.node)
    }

    fn dial(&self, remote: SocketAddress) -> Dialing {
        let service = self.net.services.lock().get(&remote.addr.node).cloned();
        let from = SocketAddress::new(self.address(), 40_000);
        let env = self.env.clone();
        Box::pin(async move {
            let service = service.ok_or_else(|| CallError::new("no_answer", "dial timeout"))?;
            let (near, far) = tokio::io::duplex(1 << 16);
            let context = Context { remote: from, unix: Arc::new(move || env.unix()) };
            tokio::spawn(service.serve(Box::new(far), context));
            Ok(Box::new(near) as Box<dyn Stream>)
        })
    }

    fn trusted(&self) -> Vec<u32> {
        Vec::new()
    }

    fn score(&self, node: u32) -> Scoring {
        let score = self.net.scores.lock().get(&node).copied().unwrap_or(0);
        let down = *self.net.no_registry.lock();
        Box::pin(async move { if down { Err(CallError::new("registry_unavailable", "down")) } else { Ok(score) } })
    }

    fn add_score(&self, node: u32, delta: i64) -> Scoring {
        self.net.settled.lock().push((node, delta));
        let mut scores = self.net.scores.lock();
        let score = scores.entry(node).or_default();
        *score += delta;
        let score = *score;
        Box::pin(async move { Ok(score) })
    }
}

impl Net {
    /// What was paid, by node: which side comes to the registry first is not said.
    fn settled(&self) -> Vec<(u32, i64)> {
        let mut settled = self.settled.lock().clone();
        settled.sort_unstable();
        settled
    }
}

/// A node, with its work going on.
struct Node {
    net: Arc<Net>,
    env: Env,
    id: u32,
    tasks: Arc<Tasks>,
    work: tokio::task::JoinHandle<()>,
}

impl Node {
    fn start(net: &Arc<Net>, id: u32, env: Env) -> Self {
        let network = Arc::new(Member { net: net.clone(), node: id, env: env.clone() });
        let host = Host { env: env.clone(), dir: Some(PathBuf::from("/pilot")), events: Arc::new(NoEvents), network };
        let tasks = Tasks::open(&host).unwrap();
        net.services.lock().insert(id, Arc::new(Serve(tasks.clone())));
        let work = tokio::spawn(tasks.clone().work());
        Self { net: net.clone(), env, id, tasks, work }
    }

    fn address(&self) -> Address {
        Address::backbone(self.id)
    }

    fn away(&self) {
        self.net.services.lock().remove(&self.id);
    }

    /// Power cut and restart.
    fn crash(self) -> Self {
        self.work.abort();
        self.away();
        self.env.sim().unwrap().crash_disk();
        Self::start(&self.net, self.id, self.env.clone())
    }

    async fn status(&self, side: Side, id: &str) -> String {
        let tasks = self.tasks.list(side).await.unwrap();
        tasks.into_iter().find(|task| task.task_id == id).map(|task| task.status).unwrap_or_default()
    }

    async fn until(&self, side: Side, id: &str, status: Status) {
        for _ in 0..20_000 {
            if self.status(side, id).await == status.as_str() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        panic!("task {id} never became {}: {}", status.as_str(), self.status(side, id).await);
    }

    fn file(&self, path: &str) -> Option<String> {
        let bytes = self.env.fs().read(&Path::new("/pilot/tasks").join(path)).ok()?;
        Some(String::from_utf8(bytes).unwrap())
    }
}

/// A submitter (node 1) and a worker (node 2).
fn pair(seed: u64) -> (Node, Node, Arc<Net>) {
    let net = Arc::new(Net::default());
    let node = |id: u32| Node::start(&net, id, Env::simulated(seed * 10 + u64::from(id)));
    (node(1), node(2), net.clone())
}

/// Submits, and answers the id.
async fn submit(from: &Node, to: &Node, what: &str) -> String {
    let answer = from.tasks.submit(to.address(), what.to_owned(), None).await.unwrap();
    assert_eq!((answer.status, answer.message.as_str()), (200, "Task received with status NEW"));
    answer.task_id
}

/// Sends a frame from a node and returns the answers of the peer.
async fn send(from: u32, to: &Node, frames: &[(u32, Vec<u8>)]) -> Vec<Response> {
    let mut stream = Member { net: to.net.clone(), node: from, env: to.env.clone() }
        .dial(SocketAddress::new(to.address(), PORT))
        .await
        .unwrap();
    for (kind, body) in frames {
        stream.write_all(&Frame { kind: *kind, body }.emit().unwrap()).await.unwrap();
    }
    stream.shutdown().await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    let mut rest = &bytes[..];
    let mut answers = Vec::new();
    while let Some((frame, used)) = Frame::parse(rest).unwrap() {
        answers.push(Response::parse(frame.body).unwrap());
        rest = &rest[used..];
    }
    answers
}

fn results(id: &str, content: Content) -> (u32, Vec<u8>) {
    let times = (0, 0, 0);
    let results = Results {
        task_id: id.into(),
        content,
        completed_at: "2026-02-27T10:11:12Z".into(),
        idle_ms: times.0,
        staged_ms: times.1,
        cpu_ms: times.2,
    };
    (kind::SEND_RESULTS, results.emit())
}

fn update(id: &str, status: &str) -> (u32, Vec<u8>) {
    let update = StatusUpdate { task_id: id.into(), status: status.into(), justification: "why".into() };
    (kind::STATUS_UPDATE, update.emit())
}

#[tokio::test(start_paused = true)]
async fn a_task_goes_its_way_from_submission_to_results_and_reward() {
    let (alice, bob, net) = pair(1);
    let id = submit(&alice, &bob, "sum <1..10>").await;
    assert_eq!(alice.status(Side::Submitted, &id).await, "NEW");
    tokio::time::sleep(Duration::from_secs(30)).await;
    let (task, told) = bob.tasks.decide(&id, Decision::Accept).await.unwrap();
    assert!(told && (30_000..32_000).contains(&task.idle_ms), "{task:?}");
    assert_eq!(alice.status(Side::Submitted, &id).await, "ACCEPTED");
    assert_eq!(bob.tasks.queue().await.unwrap().len(), 1);
    let task = bob.tasks.execute().await.unwrap();
    assert_eq!((task.status.as_str(), task.task_id.as_str()), ("EXECUTING", id.as_str()));
    assert!(!task.staged_at.is_empty() && !task.execute_started_at.is_empty() && task.staged_ms >= 30_000);
    assert_eq!(alice.status(Side::Submitted, &id).await, "EXECUTING");
    tokio::time::sleep(Duration::from_secs(600)).await;
    let task = bob.tasks.send_results(&id, Content::Text("the answer is 55".into())).await.unwrap();
    assert_eq!((task.status.as_str(), task.justification.as_str()), ("SUCCEEDED", "Results sent successfully"));
    assert!((600_000..602_000).contains(&task.cpu_ms) && !task.completed_at.is_empty(), "{task:?}");
    alice.until(Side::Submitted, &id, Status::Succeeded).await;
    assert_eq!(alice.file(&format!("results/{id}_result.txt")).unwrap(), "the answer is 55");
    // 10 minutes of work, half idle: the third worked example but for the staging.
    let expected = reward(task.idle_ms, task.staged_ms, task.cpu_ms);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(net.settled(), [(1, -1), (2, expected)]);
    assert!(expected >= 3);
    // Nothing is done twice, and the next task needs a better score.
    let answer = alice.tasks.submit(bob.address(), "more".into(), None).await.unwrap();
    assert_eq!(answer.status, 400);
    assert_eq!(answer.message, format!("Polo score too low: submitter=-1, receiver={expected}"));
    assert_eq!(alice.tasks.list(Side::Submitted).await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn files_have_the_recorded_text() {
    let (alice, bob, _net) = pair(2);
    let id = submit(&alice, &bob, "summarise").await;
    for (node, path) in [(&bob, "received"), (&alice, "submitted")] {
        let text = node.file(&format!("{path}/{id}.json")).unwrap();
        let created = TaskFile::parse(text.as_bytes()).unwrap().created_at;
        assert_eq!(
            text,
            format!(
                "{{\n  \"task_id\": \"{id}\",\n  \"task_description\": \"summarise\",\n  \"created_at\": \"{created}\",\n  \
                 \"status\": \"NEW\",\n  \"status_justification\": \"A new task was created\",\n  \"from\": \
                 \"0:0000.0000.0001\",\n  \"to\": \"0:0000.0000.0002\"\n}}"
            )
        );
    }
    let fs = bob.env.fs();
    let mode = |path: &str| fs.metadata(&Path::new("/pilot/tasks").join(path)).unwrap().mode & 0o777;
    assert_eq!((mode("received"), mode(&format!("received/{id}.json"))), (0o700, 0o600));
}

#[tokio::test(start_paused = true)]
async fn one_id_runs_once_and_belongs_to_its_submitter() {
    let (alice, bob, _net) = pair(3);
    let id = submit(&alice, &bob, "once").await;
    bob.tasks.decide(&id, Decision::Accept).await.unwrap();
    // Sent again, by retry or by an official tool: the same answer, and nothing starts over.
    let again = alice.tasks.submit(bob.address(), "once".into(), Some(id.clone())).await.unwrap();
    assert_eq!(again.status, 200);
    assert_eq!(bob.status(Side::Received, &id).await, "ACCEPTED");
    let body = |what: &str| {
        let submit = Submit {
            task_id: id.clone(),
            description: what.into(),
            from: "0:0000.0000.0001".into(),
            to: "0:0000.0000.0002".into(),
        };
        (kind::SUBMIT, submit.emit())
    };
    for (from, what) in [(1, "other"), (3, "once")] {
        let answers = send(from, &bob, &[body(what)]).await;
        assert_eq!((answers[0].status, answers[0].message.as_str()), (400, "Task id is already in use"));
    }
    assert_eq!(bob.tasks.queue().await.unwrap().len(), 1);
    // Whoever claims to be somebody else is still itself.
    let mut forged = body("forged");
    forged.1 = String::from_utf8(forged.1).unwrap().replace(&id, "forged-id").into_bytes();
    assert_eq!(send(3, &bob, &[forged]).await[0].status, 200);
    let task = bob.tasks.list(Side::Received).await.unwrap().into_iter().find(|t| t.task_id == "forged-id").unwrap();
    assert_eq!(task.from, "0:0000.0000.0003");
    let bad = alice.tasks.submit(bob.address(), "x".into(), Some("../x".into())).await.unwrap_err();
    assert_eq!(bad.code, "invalid_argument");
}

#[tokio::test(start_paused = true)]
async fn a_third_party_can_neither_change_nor_finish_a_task() {
    let (alice, bob, net) = pair(4);
    let id = submit(&alice, &bob, "mine").await;
    for frame in [update(&id, "DECLINED"), results(&id, Content::Text("forged".into()))] {
        let answers = send(3, &alice, &[frame]).await;
        assert_eq!((answers[0].status, answers[0].message.as_str()), (404, "No such task"));
    }
    // The worker itself cannot go back, skip to the end that is ours to find, or invent a status.
    for (status, expected) in [("COMPLETED", 409), ("NEWER", 400), ("ACCEPTED", 200), ("NEW", 409), ("ACCEPTED", 200)] {
        assert_eq!(send(2, &alice, &[update(&id, status)]).await[0].status, expected, "{status}");
    }
    assert_eq!(alice.status(Side::Submitted, &id).await, "ACCEPTED");
    // Results come once; the same ones again are acknowledged, others are refused, and nothing is paid twice.
    let (good, other) = (results(&id, Content::Text("good".into())), results(&id, Content::Text("better".into())));
    let answers = send(2, &alice, &[good.clone(), update(&id, "SUCCEEDED"), good.clone(), other]).await;
    let statuses: Vec<i64> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [200, 200, 200, 409]);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(net.settled(), [(1, -1), (2, 1)]);
    assert_eq!(alice.file(&format!("results/{id}_result.txt")).unwrap(), "good");
    // A worker that claims a thousand years is paid for the time that has passed.
    let second = {
        net.scores.lock().clear();
        submit(&alice, &bob, "long").await
    };
    let long = Results {
        task_id: second.clone(),
        content: Content::Text("x".into()),
        completed_at: String::new(),
        idle_ms: 0,
        staged_ms: 0,
        cpu_ms: i64::MAX,
    };
    assert_eq!(send(2, &alice, &[(kind::SEND_RESULTS, long.emit())]).await[0].status, 200);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(net.settled(), [(1, -1), (1, -1), (2, 1), (2, 1)]);
}

#[tokio::test(start_paused = true)]
async fn hostile_ids_and_names_stay_inside_the_directory() {
    let (alice, bob, _net) = pair(5);
    let id = submit(&alice, &bob, "file").await;
    for (name, status) in [("/../../../../.ssh/authorized_keys", 400), ("run.sh", 400), ("../../trust.json", 400)] {
        let file = Content::File { name: name.into(), data: b"evil".to_vec() };
        assert_eq!(send(2, &alice, &[results(&id, file)]).await[0].status, status, "{name}");
    }
    let file = Content::File { name: "/../../../evil.txt".into(), data: b"data".to_vec() };
    assert_eq!(send(2, &alice, &[results(&id, file)]).await[0].status, 200);
    assert_eq!(alice.file(&format!("results/{id}_evil.txt")).unwrap(), "data");
    for bad in ["../../../evil", "../received/x", "a/b", ""] {
        for body in [
            format!("{{\"task_id\":\"{bad}\",\"status\":\"ACCEPTED\"}}"),
            format!("{{\"task_id\":\"{bad}\",\"result_type\":\"text\",\"result_text\":\"x\"}}"),
        ] {
            let frames = [(kind::STATUS_UPDATE, body.clone().into()), (kind::SEND_RESULTS, body.into())];
            assert!(send(2, &alice, &frames).await.iter().all(|answer| answer.status >= 400));
        }
        let submit = format!("{{\"task_id\":\"{bad}\",\"task_description\":\"x\"}}");
        assert!(send(1, &bob, &[(kind::SUBMIT, submit.into())]).await.is_empty());
    }
    let outside = bob.env.fs().list(Path::new("/")).unwrap();
    assert_eq!(outside.iter().map(|entry| entry.name.to_str().unwrap()).collect::<Vec<_>>(), ["pilot"]);
    assert!(send(1, &bob, &[(2, b"{}".to_vec())]).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn undecided_tasks_are_cancelled_stale_ones_expire_and_the_submitter_is_told() {
    let (alice, bob, net) = pair(6);
    let (first, second) = (submit(&alice, &bob, "first").await, submit(&alice, &bob, "second").await);
    bob.tasks.decide(&second, Decision::Accept).await.unwrap();
    tokio::time::sleep(Duration::from_secs(61)).await;
    bob.until(Side::Received, &first, Status::Cancelled).await;
    alice.until(Side::Submitted, &first, Status::Cancelled).await;
    let error = bob.tasks.decide(&first, Decision::Accept).await.unwrap_err();
    assert_eq!((error.code.as_str(), error.message), ("invalid_state", format!("task {first} is already CANCELLED")));
    // An hour at the head of the queue, which it reached when the first one left.
    tokio::time::sleep(Duration::from_secs(3500)).await;
    assert_eq!(bob.status(Side::Received, &second).await, "ACCEPTED");
    bob.until(Side::Received, &second, Status::Expired).await;
    alice.until(Side::Submitted, &second, Status::Expired).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(*net.settled.lock(), [(2, -1)]);
    let task = bob.tasks.list(Side::Received).await.unwrap().into_iter().find(|t| t.task_id == second).unwrap();
    assert!(task.staged_ms > 3_600_000 && !task.staged_at.is_empty());
    // A task that is finished or declined leaves the queue and never expires.
    net.scores.lock().clear();
    let (third, fourth) = (submit(&alice, &bob, "third").await, submit(&alice, &bob, "fourth").await);
    bob.tasks.decide(&third, Decision::Decline("busy".into())).await.unwrap();
    bob.tasks.decide(&fourth, Decision::Accept).await.unwrap();
    bob.tasks.execute().await.unwrap();
    bob.tasks.send_results(&fourth, Content::Text("done".into())).await.unwrap();
    tokio::time::sleep(Duration::from_secs(9000)).await;
    assert_eq!(bob.status(Side::Received, &third).await, "DECLINED");
    assert_eq!(bob.status(Side::Received, &fourth).await, "SUCCEEDED");
    assert_eq!(alice.status(Side::Submitted, &third).await, "DECLINED");
    let declined = alice.tasks.list(Side::Submitted).await.unwrap().into_iter().find(|t| t.task_id == third).unwrap();
    assert_eq!(declined.justification, "busy");
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_first_in_first_out_and_survives_power_cuts() {
    for seed in 0..10 {
        let (alice, mut bob, net) = pair(100 + seed);
        let mut ids = Vec::new();
        for n in 0..6 {
            let id = submit(&alice, &bob, &format!("task {n}")).await;
            // Accepted in another order than they came.
            ids.push(id);
            net.scores.lock().clear();
        }
        bob = bob.crash();
        for id in ids.iter().rev() {
            bob.tasks.decide(id, Decision::Accept).await.unwrap();
        }
        bob = bob.crash();
        for (n, id) in ids.iter().enumerate() {
            let task = bob.tasks.execute().await.unwrap();
            assert_eq!((&task.task_id, task.description), (id, format!("task {n}")), "seed {seed}");
            if n % 2 == 0 {
                bob = bob.crash();
            }
        }
        assert_eq!(bob.tasks.execute().await.unwrap_err().code, "not_found");
    }
}

#[tokio::test(start_paused = true)]
async fn results_wait_for_a_submitter_that_is_away_across_restarts_of_both() {
    for seed in 0..4 {
        let (alice, bob, net) = pair(200 + seed);
        let id = submit(&alice, &bob, "patience").await;
        bob.tasks.decide(&id, Decision::Accept).await.unwrap();
        alice.away();
        let error = bob.tasks.send_results(&id, Content::Text("worth waiting for".into())).await.unwrap_err();
        assert_eq!(error.code, "connection_failed");
        assert!(error.message.starts_with("cannot connect to submitter 0:0000.0000.0001"), "{error}");
        // Not done before the submitter has them, and not lost.
        assert_eq!(bob.status(Side::Received, &id).await, "ACCEPTED");
        let again = bob.tasks.send_results(&id, Content::Text("other".into())).await.unwrap_err();
        assert_eq!(again.code, "invalid_state");
        let bob = bob.crash();
        tokio::time::sleep(Duration::from_secs(3 * 3600)).await;
        assert_eq!(alice.status(Side::Submitted, &id).await, "ACCEPTED");
        let alice = alice.crash();
        bob.until(Side::Received, &id, Status::Succeeded).await;
        alice.until(Side::Submitted, &id, Status::Succeeded).await;
        assert_eq!(alice.file(&format!("results/{id}_result.txt")).unwrap(), "worth waiting for");
        // What the submitter has acknowledged survives its power failing.
        let alice = alice.crash();
        assert_eq!(alice.file(&format!("results/{id}_result.txt")).unwrap(), "worth waiting for");
        tokio::time::sleep(Duration::from_secs(5)).await;
        let settled = net.settled.lock().clone();
        assert_eq!(settled.iter().filter(|(node, _)| *node == 1).count(), 1, "{settled:?}");
        assert_eq!(settled.iter().filter(|(node, _)| *node == 2).count(), 1, "{settled:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_that_was_answered_survives_a_power_cut_at_both_ends() {
    for seed in 0..20 {
        let (alice, bob, _net) = pair(300 + seed);
        let id = submit(&alice, &bob, "keep").await;
        let (alice, bob) = (alice.crash(), bob.crash());
        assert_eq!(alice.status(Side::Submitted, &id).await, "NEW");
        assert_eq!(bob.status(Side::Received, &id).await, "NEW");
        let again = alice.tasks.submit(bob.address(), "keep".into(), Some(id.clone())).await.unwrap();
        assert_eq!((again.status, bob.tasks.list(Side::Received).await.unwrap().len()), (200, 1));
    }
}

/// An official submitter: takes one frame, answers nothing, and ends the stream.
struct OneFrame(Arc<Mutex<Vec<(u32, Value)>>>);

impl Service for OneFrame {
    fn name(&self) -> &'static str {
        NAME
    }
    fn port(&self) -> u16 {
        PORT
    }
    fn serve(&self, mut stream: Box<dyn Stream>, _context: Context) -> Serving {
        let taken = self.0.clone();
        Box::pin(async move {
            let mut buf = Vec::new();
            loop {
                if let Some((frame, _)) = Frame::parse(&buf).unwrap() {
                    taken.lock().push((frame.kind, serde_json::from_slice(frame.body).unwrap()));
                    return stream.shutdown().await;
                }
                assert_ne!(stream.read_buf(&mut buf).await.unwrap(), 0);
            }
        })
    }
}

#[tokio::test(start_paused = true)]
async fn an_official_submitter_gets_one_frame_on_each_stream() {
    let (alice, bob, net) = pair(7);
    let id = submit(&alice, &bob, "old").await;
    let taken = Arc::new(Mutex::new(Vec::new()));
    net.services.lock().insert(1, Arc::new(OneFrame(taken.clone())));
    bob.tasks.decide(&id, Decision::Accept).await.unwrap();
    bob.tasks.execute().await.unwrap();
    let file = Content::File { name: "out.csv".into(), data: b"a,b\n1,2\n".to_vec() };
    bob.tasks.send_results(&id, file).await.unwrap();
    let taken: Vec<_> = taken.lock().iter().map(|(kind, body)| (*kind, body["status"].clone())).collect();
    let expected = [(3, json!("ACCEPTED")), (3, json!("EXECUTING")), (4, Value::Null), (3, json!("SUCCEEDED"))];
    assert_eq!(taken, expected);
    assert_eq!(bob.status(Side::Received, &id).await, "SUCCEEDED");
}

#[tokio::test(start_paused = true)]
async fn without_scores_or_room_tasks_are_refused_in_words() {
    let (alice, bob, net) = pair(8);
    *net.no_registry.lock() = true;
    let answer = alice.tasks.submit(bob.address(), "x".into(), None).await.unwrap();
    assert_eq!((answer.status, answer.message.as_str()), (400, "Failed to verify polo score"));
    *net.no_registry.lock() = false;
    assert!(alice.tasks.list(Side::Submitted).await.unwrap().is_empty());
    for n in 0..OPEN_TASKS_PER_PEER {
        assert_eq!(alice.tasks.submit(bob.address(), n.to_string(), None).await.unwrap().status, 200);
    }
    let answer = alice.tasks.submit(bob.address(), "x".into(), None).await.unwrap();
    assert_eq!((answer.status, answer.message.as_str()), (400, "Too many unfinished tasks"));
    bob.away();
    let error = alice.tasks.submit(bob.address(), "x".into(), None).await.unwrap_err();
    assert_eq!(error.code, "connection_failed");
    assert_eq!(alice.tasks.list(Side::Submitted).await.unwrap().len(), OPEN_TASKS_PER_PEER);
}

#[tokio::test(start_paused = true)]
async fn what_official_tools_write_beside_the_daemon_counts() {
    let (alice, bob, _net) = pair(9);
    let id = submit(&alice, &bob, "by hand").await;
    let path = PathBuf::from(format!("/pilot/tasks/received/{id}.json"));
    let text = bob.file(&format!("received/{id}.json")).unwrap().replace("\"NEW\"", "\"ACCEPTED\"");
    bob.env.fs().write_atomic(&path, text.as_bytes(), 0o600).unwrap();
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(bob.status(Side::Received, &id).await, "ACCEPTED");
    alice.until(Side::Submitted, &id, Status::Accepted).await;
    assert_eq!(bob.tasks.execute().await.unwrap().task_id, id);
}

struct Loud(Mutex<Vec<&'static str>>);

impl Events for Loud {
    fn emit(&self, name: &'static str, _data: Map<String, Value>) {
        self.0.lock().push(name);
    }
}

#[tokio::test(start_paused = true)]
async fn agents_hear_of_their_tasks() {
    let (alice, bob, net) = pair(10);
    let loud = Arc::new(Loud(Mutex::default()));
    let env = Env::simulated(77);
    let network = Arc::new(Member { net: net.clone(), node: 5, env: env.clone() });
    let host = Host { env, dir: Some(PathBuf::from("/pilot")), events: loud.clone(), network };
    let tasks = Tasks::open(&host).unwrap();
    net.services.lock().insert(5, Arc::new(Serve(tasks.clone())));
    let answer = alice.tasks.submit(Address::backbone(5), "hear".into(), None).await.unwrap();
    let answer2 = tasks.submit(bob.address(), "mine".into(), None).await.unwrap();
    bob.tasks.decide(&answer2.task_id, Decision::Accept).await.unwrap();
    bob.tasks.send_results(&answer2.task_id, Content::Text("r".into())).await.unwrap();
    assert_eq!(answer.status, 200);
    let heard = loud.0.lock().clone();
    assert_eq!(heard, ["task.received", "task.status", "task.completed", "task.status"]);
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_stops_half_way_ends_in_time_and_leaves_nothing() {
    let (alice, bob, net) = pair(11);
    let member = Member { net, node: alice.id, env: alice.env.clone() };
    let body = Submit {
        task_id: "half".into(),
        description: "x".into(),
        from: alice.address().to_string(),
        to: bob.address().to_string(),
    }
    .emit();
    let frame = Frame { kind: kind::SUBMIT, body: &body }.emit().unwrap();
    for sent in [4, 8, frame.len() - 1] {
        let mut stream = member.dial(SocketAddress::new(bob.address(), PORT)).await.unwrap();
        stream.write_all(&frame[..sent]).await.unwrap();
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(120), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok() && rest.is_empty(), "after {sent} bytes: {ended:?}, {rest:?}");
    }
    assert!(bob.tasks.list(Side::Received).await.unwrap().is_empty());
}
