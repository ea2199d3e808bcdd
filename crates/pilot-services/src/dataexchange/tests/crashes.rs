//! The machine stops between any two changes of its disk, and what was not synced is forgotten or torn. What was
//! acknowledged is there afterwards; what has an id is there once.

use serde_json::json;

use super::*;

/// Runs `round` with the disk stopping after 0, 1, 2, … changes, until it no longer stops in time.
async fn at_every_change<F>(mut round: impl FnMut(u64, u64) -> F) -> u64
where
    F: Future<Output = bool>,
{
    let mut at = 0;
    for seed in [11, 12] {
        at = 0;
        while round(seed, at).await {
            at += 1;
            assert!(at < 2000, "the scenario never ends");
        }
    }
    at
}

fn count(texts: &[String], text: &str) -> usize {
    texts.iter().filter(|other| *other == text).count()
}

#[tokio::test(start_paused = true)]
async fn the_receiver_of_messages_may_stop_anywhere() {
    let points = at_every_change(|seed, at| async move {
        let lab = Lab::new(seed * 1000 + at);
        let (sender, mut receiver) = (Arc::new(lab.machine(1)), lab.machine(2));
        receiver.start().unwrap();
        let disk = receiver.env.sim().unwrap().sim_disk().clone();
        disk.stop_after(at);
        // Three at once, which share a sync, then one more.
        let together: Vec<_> = ["a", "b", "c"]
            .map(|text| {
                let sender = sender.clone();
                tokio::spawn(async move { (text, sender.send(2, text, text).await.is_ok()) })
            })
            .into();
        let mut acknowledged = Vec::new();
        for sent in together {
            let (text, ok) = sent.await.unwrap();
            acknowledged.extend(ok.then_some(text));
        }
        acknowledged.extend(sender.send(2, "d", "d").await.is_ok().then_some("d"));
        let stopped = disk.refused() > 0;
        receiver.crash().await;
        let texts = receiver.texts();
        for text in &acknowledged {
            assert_eq!(count(&texts, text), 1, "{text} was acknowledged; seed {seed}, change {at}: {texts:?}");
        }
        // The sender, in doubt, sends everything again.
        for text in ["a", "b", "c", "d"] {
            sender.send(2, text, text).await.unwrap();
        }
        let mut texts = receiver.texts();
        texts.sort();
        assert_eq!(texts, ["a", "b", "c", "d"], "seed {seed}, change {at}");
        stopped
    });
    let points = points.await;
    assert!(points >= 12, "{points} points");
}

#[tokio::test(start_paused = true)]
async fn the_receiver_of_files_may_stop_anywhere() {
    let points = at_every_change(|seed, at| async move {
        let lab = Lab::new(seed * 1000 + at);
        let (sender, mut receiver) = (lab.machine(1), lab.machine(2));
        receiver.start().unwrap();
        let disk = receiver.env.sim().unwrap().sim_disk().clone();
        let content: Vec<u8> = (0..600_000u32).map(|i| (i / 7) as u8).collect();
        let file = super::files::file("report.pdf", &content, Some("f-1")).await;
        disk.stop_after(at);
        let first = super::files::send(&sender, 2, &file).await;
        receiver.crash().await;
        let there = |receiver: &Machine| -> Vec<Vec<u8>> {
            receiver.list("received").iter().map(|name| receiver.read("received", name)).collect()
        };
        if first.is_ok() {
            assert_eq!(there(&receiver), [content.as_slice()], "acknowledged; seed {seed}, change {at}");
        }
        // Whole or not at all.
        assert!(there(&receiver).iter().all(|file| *file == content), "seed {seed}, change {at}");
        super::files::send(&sender, 2, &file).await.unwrap_or_else(|error| panic!("seed {seed}, change {at}: {error}"));
        assert_eq!(there(&receiver), [content.as_slice()], "seed {seed}, change {at}");
        let described = receiver.list("received").remove(0);
        let meta: Value =
            serde_json::from_slice(&receiver.read("received/.meta", &format!("{described}.json"))).unwrap();
        assert_eq!((&meta["from"], &meta["filename"]), (&json!("0:0000.0000.0001"), &json!("report.pdf")));
        disk.refused() > 0
    });
    let points = points.await;
    assert!(points >= 12, "{points} points");
}

#[tokio::test(start_paused = true)]
async fn the_sender_of_queued_messages_may_stop_anywhere() {
    let long = "x".repeat(40_000);
    let points = at_every_change(|seed, at| {
        let long = long.clone();
        async move {
            let lab = Lab::new(seed * 1000 + at);
            let (mut sender, mut receiver) = (lab.machine(1), lab.machine(2));
            sender.start().unwrap();
            receiver.start().unwrap();
            let disk = sender.env.sim().unwrap().sim_disk().clone();
            disk.stop_after(at);
            let mut accepted = Vec::new();
            for (id, text) in [("m-1", "short"), ("m-2", &long), ("m-3", "last")] {
                let lines = sender.put(2, text.as_bytes(), json!({ "type": "text", "message_id": id })).await;
                let line = lines.ok().and_then(|lines| lines.first().cloned()).unwrap_or_default();
                if line["error"].is_null() {
                    accepted.push((id, text));
                }
            }
            // Time to be delivered, as far as the disk goes along.
            sender.env.sleep(Duration::from_secs(5)).await;
            let stopped = disk.refused() > 0;
            sender.crash().await;
            for (id, text) in &accepted {
                sender.until(id, "delivered").await;
                assert_eq!(count(&receiver.texts(), text), 1, "{id}; seed {seed}, change {at}");
            }
            // What was not accepted was delivered at most once, or not at all.
            for text in ["short", &long, "last"] {
                assert!(count(&receiver.texts(), text) <= 1, "seed {seed}, change {at}");
            }
            // Nothing that is done is left behind.
            sender.env.sleep(Duration::from_secs(60)).await;
            sender.crash().await;
            assert_eq!(sender.call("outbox.list", json!({})).await.unwrap(), json!({ "messages": [] }));
            stopped
        }
    });
    let points = points.await;
    assert!(points >= 20, "{points} points");
}

#[tokio::test(start_paused = true)]
async fn dead_letters_survive_a_stop_anywhere() {
    let long = "x".repeat(40_000);
    let points = at_every_change(|seed, at| {
        let long = long.clone();
        async move {
            let lab = Lab::new(seed * 1000 + at);
            let (mut sender, mut receiver) = (lab.machine(1), lab.machine(2));
            sender.start().unwrap();
            let args = json!({ "type": "text", "message_id": "m-1", "deadline_ms": 60_000 });
            sender.put(2, long.as_bytes(), args).await.unwrap();
            let disk = sender.env.sim().unwrap().sim_disk().clone();
            disk.stop_after(at);
            sender.env.sleep(Duration::from_secs(120)).await;
            // Tried again, which may be cut short, too.
            let _ = sender.call("outbox.retry", json!({ "message_id": "m-1" })).await;
            let stopped = disk.refused() > 0;
            sender.crash().await;
            let state = sender.state("m-1").await;
            assert!(matches!(state.as_str(), "queued" | "expired" | "sending"), "{state}: seed {seed}, change {at}");
            receiver.start().unwrap();
            if sender.state("m-1").await == "queued" {
                sender.env.sleep(Duration::from_secs(90)).await;
            }
            if sender.state("m-1").await == "expired" {
                sender.call("outbox.retry", json!({ "message_id": "m-1" })).await.unwrap();
            }
            sender.until("m-1", "delivered").await;
            assert_eq!(receiver.texts(), [long], "seed {seed}, change {at}");
            stopped
        }
    });
    let points = points.await;
    assert!(points >= 6, "{points} points");
}
