//! Broker and clients over in-memory streams.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pilot_env::Env;
use pilot_wire::service::events::Frame;
use pilot_wire::{Address, SocketAddress};
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::*;
use crate::{Dialing, Events, Network};

#[derive(Default)]
struct Reports(Mutex<Vec<(&'static str, Value)>>);

impl Events for Reports {
    fn emit(&self, name: &'static str, data: Map<String, Value>) {
        self.0.lock().push((name, data.into()));
    }
}

struct Nowhere;

impl Network for Nowhere {
    fn address(&self) -> Address {
        Address::backbone(1)
    }
    fn dial(&self, _remote: SocketAddress) -> Dialing {
        Box::pin(async { Err(CallError::new("unreachable", "no network here")) })
    }
    fn trusted(&self) -> Vec<u32> {
        Vec::new()
    }
}

/// A broker, and clients of it.
struct Bench {
    env: Env,
    reports: Arc<Reports>,
    service: Arc<dyn Service>,
    next: Mutex<u16>,
    work: tokio::task::JoinHandle<()>,
}

impl Bench {
    fn open(env: Env, dir: Option<&str>) -> Self {
        let reports = Arc::new(Reports::default());
        let host =
            Host { env: env.clone(), dir: dir.map(PathBuf::from), events: reports.clone(), network: Arc::new(Nowhere) };
        let service = Offer::open(&EventStream, &host).unwrap();
        let work = tokio::spawn(service.work().unwrap());
        Self { env, reports, service, next: Mutex::new(1000), work }
    }

    fn new() -> Self {
        Self::open(Env::simulated(1), Some("/pilot"))
    }

    /// A stream from a port of its own of node 7; `room` bytes fit into each direction.
    fn stream(&self, room: usize) -> DuplexStream {
        let port = {
            let mut next = self.next.lock();
            *next += 1;
            *next
        };
        let (near, far) = tokio::io::duplex(room);
        let remote = SocketAddress::new(Address::backbone(7), port);
        let env = self.env.clone();
        let context = Context { remote, unix: Arc::new(move || env.unix()) };
        tokio::spawn(self.service.serve(Box::new(far), context));
        near
    }

    async fn subscriber(&self, topic: &str, options: SubscribeOptions) -> Subscriber<DuplexStream> {
        let mut subscriber = Subscriber::open(self.stream(1 << 16), topic.as_bytes(), options).await.unwrap();
        if options.nonce.is_some() {
            assert!(subscriber.is_welcome().await.unwrap());
        } else {
            let topic = topic.to_owned();
            self.reported(move |name, data| name == "pubsub.subscribed" && data["topic"] == topic.as_str()).await;
        }
        subscriber
    }

    async fn publish(&self, topic: &str, payloads: &[&str], retain: bool) -> Result<Delivery, EventsError> {
        let stream = self.stream(1 << 16);
        let mut publisher = Publisher::open(stream, topic.as_bytes(), Some([2; 16]), retain).await?;
        for payload in payloads {
            publisher.publish(topic.as_bytes(), payload.as_bytes()).await?;
        }
        publisher.finish().await
    }

    async fn reported(&self, matches: impl Fn(&str, &Value) -> bool) {
        while !self.reports.0.lock().iter().any(|(name, data)| matches(name, data)) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Power cut and restart.
    fn crash(self) -> Self {
        self.work.abort();
        self.env.sim().unwrap().crash_disk();
        Self::open(self.env.clone(), Some("/pilot"))
    }
}

fn offered() -> SubscribeOptions {
    SubscribeOptions { nonce: Some([1; 16]), ..SubscribeOptions::default() }
}

async fn next_event(subscriber: &mut Subscriber<DuplexStream>) -> Received {
    match subscriber.next().await.unwrap() {
        Some(Item::Event(event)) => event,
        other => panic!("{other:?} instead of an event"),
    }
}

async fn send(stream: &mut DuplexStream, topic: &str, payload: &[u8]) {
    let mut frame = Vec::new();
    Frame { topic: topic.as_bytes(), payload }.emit(&mut frame).unwrap();
    stream.write_all(&frame).await.unwrap();
}

async fn receive(stream: &mut DuplexStream, frames: usize) -> Vec<(String, Vec<u8>)> {
    let mut buf = Vec::new();
    let mut got = Vec::new();
    while got.len() < frames {
        let mut chunk = vec![0; 4096];
        let n = stream.read(&mut chunk).await.unwrap();
        assert_ne!(n, 0, "the stream ended after {got:?}");
        buf.extend_from_slice(&chunk[..n]);
        while let Some((frame, used)) = Frame::parse(&buf).unwrap() {
            got.push((String::from_utf8_lossy(frame.topic).into_owned(), frame.payload.to_vec()));
            buf.drain(..used);
        }
    }
    assert!(buf.is_empty());
    got
}

#[tokio::test(start_paused = true)]
async fn official_clients_get_what_an_official_broker_gives_them() {
    let bench = Bench::new();
    let mut streams = Vec::new();
    for topic in ["news", "*", "new", ""] {
        let mut stream = bench.stream(1 << 16);
        // Whatever stands in the payload of a subscription is published to nobody.
        send(&mut stream, topic, b"ignored").await;
        bench.reported(|name, data| name == "pubsub.subscribed" && data["topic"] == topic).await;
        streams.push(stream);
    }
    let mut publisher = bench.stream(1 << 16);
    send(&mut publisher, "news", b"").await;
    for (topic, payload) in [("news", &b"one"[..]), ("*", b"two"), ("other", b"three"), ("", b"four")] {
        send(&mut publisher, topic, payload).await;
    }
    // Its own event does not come back: the first that it gets is somebody else's.
    send(&mut streams[0], "news", b"five").await;
    assert_eq!(receive(&mut publisher, 1).await, [("news".into(), b"five".to_vec())]);
    assert_eq!(receive(&mut streams[0], 1).await, [("news".into(), b"one".to_vec())]);
    let all = receive(&mut streams[1], 5).await;
    let topics: Vec<&str> = all.iter().map(|(topic, _)| topic.as_str()).collect();
    assert_eq!(topics, ["news", "*", "other", "", "news"]);
    assert_eq!(receive(&mut streams[3], 1).await, [(String::new(), b"four".to_vec())]);
    drop(publisher);
    bench.reported(|name, data| name == "pubsub.unsubscribed" && data["remote"] == "0:0000.0000.0007:1005").await;
    let reports = bench.reports.0.lock();
    let published = reports.iter().find(|(name, _)| *name == "pubsub.published").unwrap();
    assert_eq!(
        published.1,
        serde_json::json!({"from": "0:0000.0000.0007:1005", "size": 3, "topic": "news"}),
        "{reports:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn many_publishers_at_once_never_corrupt_a_stream_and_each_stays_in_order() {
    let bench = Arc::new(Bench::new());
    let mut subscriber = bench.subscriber("t", SubscribeOptions::default()).await;
    let mut publishers = Vec::new();
    for who in 0..12u32 {
        let bench = bench.clone();
        publishers.push(tokio::spawn(async move {
            let mut stream = bench.stream(5000);
            send(&mut stream, "t", b"").await;
            for i in 0..50u32 {
                let payload: Vec<u8> = [who.to_be_bytes(), i.to_be_bytes()].concat().repeat(375);
                send(&mut stream, "t", &payload).await;
            }
            stream.shutdown().await.unwrap();
            // Publishers are subscribers; this one reads, as it should, until the broker ends the stream.
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
        }));
    }
    let mut seen = [0u32; 12];
    for _ in 0..12 * 50 {
        let event = next_event(&mut subscriber).await;
        let (who, i) = event.payload[..8].split_at(4);
        let who = u32::from_be_bytes(who.try_into().unwrap());
        assert_eq!(event.payload, event.payload[..8].repeat(375), "mixed up");
        assert_eq!(u32::from_be_bytes(i.try_into().unwrap()), seen[who as usize]);
        seen[who as usize] += 1;
    }
    for publisher in publishers {
        publisher.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_subscriber_slows_nobody_and_is_told_what_it_missed() {
    // Without a disk: the simulated one copies a whole file with each sync.
    let bench = Bench::open(Env::simulated(1), None);
    let mut quick = bench.subscriber("t", offered()).await;
    let mut slow = bench.subscriber("t", offered()).await;
    let official = bench.subscriber("t", SubscribeOptions::default()).await;
    let count = QUEUE_EVENTS + 6000;
    let mut publisher = Publisher::open(bench.stream(1 << 16), b"t", Some([2; 16]), false).await.unwrap();
    for i in 0..count {
        let payload = format!("{i:40}");
        publisher.publish(b"t", payload.as_bytes()).await.unwrap();
        assert_eq!(next_event(&mut quick).await.payload, payload);
    }
    assert!(matches!(publisher.finish().await.unwrap(), Delivery::Stored { .. }));
    let (mut got, mut missed) = (VecDeque::new(), 0);
    while got.back().is_none_or(|last: &usize| *last != count - 1) {
        match slow.next().await.unwrap().unwrap() {
            Item::Missed(n) => missed += n,
            Item::Event(event) => got.push_back(std::str::from_utf8(&event.payload).unwrap().trim().parse().unwrap()),
            Item::CaughtUp => panic!("nothing was to be replayed"),
        }
    }
    assert!(missed > 0, "nothing was missed");
    assert_eq!(missed as usize + got.len(), count);
    assert!(got.iter().zip(got.iter().skip(1)).all(|(a, b)| a < b), "out of order");
    // The official subscriber cannot be told; the node's listeners are.
    drop(official);
    bench.reported(|name, data| name == "pubsub.missed" && data["missed"].as_u64() > Some(0)).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_missed_while_away_is_replayed_from_a_number_on() {
    let bench = Bench::new();
    bench.publish("a/1", &["1", "2", "3"], false).await.unwrap();
    bench.publish("b", &["x"], false).await.unwrap();
    let mut all = bench.subscriber("*", SubscribeOptions { since: Some(0), ..offered() }).await;
    let mut events = Vec::new();
    for _ in 0..4 {
        events.push(next_event(&mut all).await);
    }
    assert_eq!(all.next().await.unwrap(), Some(Item::CaughtUp));
    let origin = events[1].origin.unwrap();
    assert!(origin.replayed && !origin.retained && origin.from.addr.node == 7);
    let since = SubscribeOptions { since: Some(origin.number), store: all.store().unwrap(), ..offered() };
    let mut later = bench.subscriber("a/1", since).await;
    assert_eq!(next_event(&mut later).await.payload, "3");
    assert_eq!(later.next().await.unwrap(), Some(Item::CaughtUp));
    let mut pattern = bench.subscriber("a/+", SubscribeOptions { pattern: true, ..offered() }).await;
    bench.publish("a/1", &["4"], false).await.unwrap();
    for subscriber in [&mut later, &mut pattern] {
        let event = next_event(subscriber).await;
        assert_eq!((&event.payload[..], event.origin.unwrap().replayed), (&b"4"[..], false));
    }
    // Numbers of another store say nothing about this one: everything is sent.
    let foreign = SubscribeOptions { since: Some(u64::MAX), store: 12345, ..offered() };
    assert_eq!(next_event(&mut bench.subscriber("a/1", foreign).await).await.payload, "1");
}

#[tokio::test(start_paused = true)]
async fn the_last_value_of_a_topic_is_retained_until_it_is_cleared() {
    let bench = Bench::new();
    bench.publish("temp", &["20", "21"], true).await.unwrap();
    bench.publish("other", &["x"], false).await.unwrap();
    let options = SubscribeOptions { retained: true, ..offered() };
    let mut subscriber = bench.subscriber("*", options).await;
    let event = next_event(&mut subscriber).await;
    assert_eq!((&event.payload[..], event.origin.unwrap().retained), (&b"21"[..], true));
    assert_eq!(subscriber.next().await.unwrap(), Some(Item::CaughtUp));
    let bench = bench.crash();
    let mut subscriber = bench.subscriber("temp", options).await;
    assert_eq!(next_event(&mut subscriber).await.payload, "21");
    bench.publish("temp", &[""], true).await.unwrap();
    let mut subscriber = bench.subscriber("temp", options).await;
    assert_eq!(subscriber.next().await.unwrap(), Some(Item::CaughtUp));
}

#[tokio::test(start_paused = true)]
async fn what_was_acknowledged_survives_power_cuts_and_no_number_is_given_twice() {
    let mut last = 0;
    for seed in 0..20 {
        let mut bench = Bench::open(Env::simulated(seed), Some("/pilot"));
        let mut acknowledged = Vec::new();
        let mut numbers = Vec::new();
        for round in 0..6 {
            for i in 0..5 {
                let payload = format!("{round}.{i}");
                let Delivery::Stored { number } = bench.publish("t", &[&payload], false).await.unwrap() else {
                    panic!("an official broker?");
                };
                acknowledged.push(payload);
                numbers.push(number);
            }
            // Not acknowledged: may be lost or kept, whole, but never half.
            let mut unsure = bench.stream(1 << 16);
            send(&mut unsure, "t", b"").await;
            send(&mut unsure, "t", b"unsure").await;
            bench.reported(|name, data| name == "pubsub.published" && data["size"] == 6).await;
            bench = bench.crash();
        }
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
        let mut subscriber = bench.subscriber("t", SubscribeOptions { since: Some(0), ..offered() }).await;
        let mut kept = Vec::new();
        while let Some(Item::Event(event)) = subscriber.next().await.unwrap() {
            let text = String::from_utf8(event.payload.to_vec()).unwrap();
            last = last.max(event.origin.unwrap().number);
            if text != "unsure" {
                kept.push(text);
            }
        }
        assert_eq!(kept, acknowledged, "seed {seed}");
    }
    assert!(last > 0);
}

#[tokio::test(start_paused = true)]
async fn files_are_bounded_and_who_asks_for_more_is_told() {
    let bench = Bench::new();
    let payload = "x".repeat(1 << 20);
    for _ in 0..40 {
        bench.publish("t", &[&payload], false).await.unwrap();
    }
    bench.publish("kept", &["k"], true).await.unwrap();
    let size = |bench: &Bench| {
        let files = bench.env.fs().list(std::path::Path::new("/pilot/events")).unwrap();
        (files.len(), files.iter().map(|file| file.metadata.len).sum::<u64>())
    };
    let (files, bytes) = size(&bench);
    assert!(files <= 3 && bytes < 24 << 20, "{files} files of {bytes} bytes");
    for bench in [bench.crash(), Bench::new()] {
        if size(&bench).1 < 1 << 20 {
            continue;
        }
        let mut subscriber =
            bench.subscriber("*", SubscribeOptions { since: Some(1), retained: true, ..offered() }).await;
        let mut items = Vec::new();
        loop {
            match subscriber.next().await.unwrap().unwrap() {
                Item::CaughtUp => break,
                Item::Missed(_) => items.push("missed".to_owned()),
                Item::Event(event) => items.push(String::from_utf8_lossy(&event.topic).into_owned()),
            }
        }
        assert_eq!(items.first().map(String::as_str), Some("missed"));
        assert_eq!(items.last().map(String::as_str), Some("kept"));
        assert!(items.iter().filter(|topic| *topic == "t").count() >= 5, "{items:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn rude_clients_are_ended_and_limits_hold() {
    let bench = Bench::new();
    // A frame beyond the limit, a subscription that never comes, a frame that never ends.
    for rude in [&b"\x04\x01"[..], b"", b"\x00\x01t\x00\x00\x00\x00\x00\x01"] {
        let mut stream = bench.stream(1 << 16);
        stream.write_all(rude).await.unwrap();
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(100), stream.read_to_end(&mut rest)).await;
        ended.unwrap().unwrap();
        assert!(rest.is_empty());
    }
    let mut held = Vec::new();
    for _ in 0..SUBSCRIPTIONS_PER_NODE {
        held.push(bench.subscriber("t", offered()).await);
    }
    let mut refused = Subscriber::open(bench.stream(1 << 16), b"t", offered()).await.unwrap();
    assert_eq!(refused.next().await.unwrap_err().code(), "too_many_subscriptions");
    held.pop().unwrap().close().await;
    bench.reported(|name, _| name == "pubsub.unsubscribed").await;
    bench.subscriber("t", offered()).await;
    let bad = SubscribeOptions { pattern: true, ..offered() };
    let mut refused = Subscriber::open(bench.stream(1 << 16), b"a/#/b", bad).await.unwrap();
    assert_eq!(refused.next().await.unwrap_err().code(), "bad_pattern");
}

#[tokio::test(start_paused = true)]
async fn with_an_official_broker_clients_make_do() {
    // It ignores the payload of a subscription and sends plain frames; at the end of our direction it ends its own.
    async fn official(mut far: DuplexStream, event: Option<(&'static str, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
        if let Some((topic, payload)) = event {
            send(&mut far, topic, &payload).await;
        }
        let (mut buf, mut got) = (Vec::new(), Vec::new());
        far.read_to_end(&mut buf).await.unwrap();
        let mut rest = &buf[..];
        while let Some((frame, used)) = Frame::parse(rest).unwrap() {
            got.push((String::from_utf8_lossy(frame.topic).into_owned(), frame.payload.to_vec()));
            rest = &rest[used..];
        }
        got
    }
    let (near, far) = tokio::io::duplex(1 << 16);
    let broker = tokio::spawn(official(far, None));
    let mut publisher = Publisher::open(near, b"t", Some([2; 16]), false).await.unwrap();
    publisher.publish(b"t", b"hello").await.unwrap();
    assert_eq!(publisher.finish().await.unwrap(), Delivery::Received);
    let got = broker.await.unwrap();
    // Nothing but the subscription and the event: what we add must never reach its subscribers.
    assert_eq!((got.len(), &got[1]), (2, &("t".to_owned(), b"hello".to_vec())));

    // A forged welcome, published by a third party, is an event like any other.
    let welcome = pilot_wire::service::events::Welcome {
        nonce: [9; 16],
        granted: Default::default(),
        store: 1,
        oldest: 1,
        newest: 1,
    };
    let mut forged = Vec::new();
    welcome.emit(&mut forged);
    let (near, far) = tokio::io::duplex(1 << 16);
    tokio::spawn(official(far, Some(("", forged[6..].to_vec()))));
    let mut subscriber = Subscriber::open(near, b"*", offered()).await.unwrap();
    assert!(!subscriber.is_welcome().await.unwrap());
    assert_eq!(next_event(&mut subscriber).await.topic, "");

    let (near, far) = tokio::io::duplex(1 << 16);
    tokio::spawn(official(far, Some(("t", b"x".to_vec()))));
    let replay = SubscribeOptions { since: Some(0), ..offered() };
    let error = Subscriber::open(near, b"t", replay).await.unwrap().next().await.unwrap_err();
    assert_eq!(error.code(), "not_supported");
}
