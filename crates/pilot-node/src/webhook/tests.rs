//! Webhooks against a real HTTP server on loopback that fails in every way.

use std::collections::VecDeque;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State as Extract;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use pilot_services::Events as _;
use serde_json::{Map, Value, json};

use super::*;

/// Longest wait for anything; nothing is timed.
const PATIENCE: Duration = Duration::from_secs(60);

type Got = (HeaderMap, Vec<u8>);

#[derive(Default)]
struct Server {
    /// Statuses to answer with, then 200.
    script: Mutex<VecDeque<u16>>,
    got: Mutex<Vec<Got>>,
    arrived: Notify,
}

impl Server {
    async fn start(script: &[u16]) -> (Arc<Self>, String) {
        let server = Arc::new(Self { script: Mutex::new(script.iter().copied().collect()), ..Self::default() });
        let app = Router::new().route("/hook", post(take)).with_state(server.clone());
        #[allow(clippy::disallowed_types)] // the server is the test's own
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        (server, url)
    }

    /// Waits until so many requests came.
    async fn wait(&self, count: usize) -> Vec<Got> {
        let all = async {
            loop {
                let arrived = self.arrived.notified();
                if self.got.lock().len() >= count {
                    return self.got.lock().clone();
                }
                arrived.await;
            }
        };
        tokio::time::timeout(PATIENCE, all).await.unwrap()
    }
}

async fn take(Extract(server): Extract<Arc<Server>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let status = server.script.lock().pop_front().unwrap_or(200);
    server.got.lock().push((headers, body.to_vec()));
    server.arrived.notify_waiters();
    StatusCode::from_u16(status).unwrap()
}

struct Rig {
    bus: Arc<EventBus>,
    webhook: Arc<Webhook>,
    _node: watch::Sender<u32>,
}

impl Rig {
    fn new() -> Self {
        let env = Env::real();
        let bus = Arc::new(EventBus::new(env.clone()));
        let webhook = Arc::new(Webhook::new(&env, &bus));
        let node = watch::Sender::new(7);
        tokio::spawn(webhook.clone().collect());
        tokio::spawn(webhook.clone().deliver(node.subscribe()));
        Self { bus, webhook, _node: node }
    }

    fn set(&self, url: &str) {
        self.webhook.set(Some(WebhookTarget::new(url).unwrap())).unwrap();
    }

    fn emit(&self, number: u64) {
        let Value::Object(data) = json!({ "n": number }) else { unreachable!() };
        self.bus.emit("test", data);
    }

    async fn until(&self, fits: impl Fn(Counts) -> bool) -> Counts {
        let wait = async {
            loop {
                let counts = self.webhook.counts();
                if fits(counts) {
                    return counts;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{:?}", self.webhook.counts()))
    }
}

fn number(got: &Got) -> u64 {
    serde_json::from_slice::<Value>(&got.1).unwrap()["data"]["n"].as_u64().unwrap()
}

#[tokio::test]
async fn events_arrive_in_order_signed_and_with_an_id() {
    let (server, url) = Server::start(&[]).await;
    let rig = Rig::new();
    let target = WebhookTarget::new(&url).unwrap().signed(b"key".to_vec());
    rig.webhook.set(Some(target)).unwrap();
    for n in 0..20 {
        rig.emit(n);
    }
    let got = server.wait(20).await;
    assert_eq!(got.iter().map(number).collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
    let (headers, body) = &got[0];
    let expected = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, b"key"), body);
    assert_eq!(headers["x-pilot-signature"], format!("sha256={}", hex(expected.as_ref())));
    assert_eq!(headers["content-type"], "application/json");
    let ids: std::collections::BTreeSet<_> =
        got.iter().map(|(headers, _)| headers["x-pilot-event-id"].to_str().unwrap().to_owned()).collect();
    assert_eq!(ids.len(), 20);
    assert_eq!(rig.until(|c| c.delivered == 20).await.failed, 0);
}

#[tokio::test]
async fn what_a_busy_receiver_does_not_take_is_sent_again_under_the_same_id() {
    let (server, url) = Server::start(&[503, 429, 200]).await;
    let rig = Rig::new();
    rig.set(&url);
    rig.emit(1);
    rig.emit(2);
    let got = server.wait(4).await;
    assert_eq!(got.iter().map(number).collect::<Vec<_>>(), [1, 1, 1, 2]);
    let id = |i: usize| got[i].0["x-pilot-event-id"].clone();
    assert!(id(0) == id(2) && id(2) != id(3));
    assert_eq!(got[2].0["x-pilot-attempt"], "3");
}

#[tokio::test]
async fn what_is_refused_for_good_is_given_up_and_counted() {
    let (server, url) = Server::start(&[404, 301]).await;
    let rig = Rig::new();
    rig.set(&url);
    for n in 0..3 {
        rig.emit(n);
    }
    let got = server.wait(3).await;
    assert_eq!(got.iter().map(number).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(rig.until(|c| c.delivered == 1).await.failed, 2);
}

#[tokio::test]
async fn a_dead_receiver_costs_a_bounded_queue_and_its_successor_gets_what_waits() {
    let rig = Rig::new();
    // Nobody listens on the discard port of loopback.
    rig.set("http://127.0.0.1:9/hook");
    for n in 0..QUEUE as u64 + 10 {
        rig.emit(n);
        // Let the collector keep up, so that the queue and not the ring overflows.
        tokio::task::yield_now().await;
    }
    rig.until(|c| c.dropped == 10 && c.queued == QUEUE).await;
    let (server, url) = Server::start(&[]).await;
    rig.set(&url);
    let got = server.wait(QUEUE).await;
    assert_eq!(got.iter().map(number).collect::<Vec<_>>(), (0..QUEUE as u64).collect::<Vec<_>>());
}

#[tokio::test]
async fn changing_the_target_under_load_neither_panics_nor_loses_the_stream_of_events() {
    let (server, url) = Server::start(&[]).await;
    let rig = Rig::new();
    for n in 0..200 {
        rig.set(&url);
        rig.emit(n);
        if n % 3 == 0 {
            rig.webhook.set(None).unwrap();
        }
        tokio::task::yield_now().await;
    }
    rig.set(&url);
    rig.emit(1000);
    let last = async {
        loop {
            if server.got.lock().iter().any(|got| number(got) == 1000) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, last).await.unwrap();
}

#[tokio::test]
async fn a_stop_sends_what_waits_but_does_not_wait_for_a_dead_receiver() {
    let (server, url) = Server::start(&[]).await;
    let rig = Rig::new();
    rig.set(&url);
    rig.bus.emit("node.deregistered", Map::new());
    rig.webhook.finish().await;
    let got = server.wait(1).await;
    let body = String::from_utf8(got[0].1.clone()).unwrap();
    assert!(body.starts_with("{\"event\":\"node.deregistered\",\"node_id\":7,") && !body.contains("data"), "{body}");

    let rig = Rig::new();
    rig.set("http://127.0.0.1:9/hook");
    rig.emit(1);
    tokio::time::timeout(PATIENCE, rig.webhook.finish()).await.unwrap();
}

#[test]
fn a_url_that_is_none_is_refused_in_the_official_words() {
    for bad in ["", "ftp://x", "example.org", "javascript:alert(1)"] {
        assert_eq!(WebhookTarget::new(bad).unwrap_err(), "webhook URL must start with http:// or https://");
    }
    assert!(WebhookTarget::new("http://").is_err());
    let shown = format!("{:?}", WebhookTarget::new("https://u:p@example.org/secret").unwrap().signed(b"k".to_vec()));
    assert_eq!(shown, "WebhookTarget(https://example.org, signed: true)");
}
