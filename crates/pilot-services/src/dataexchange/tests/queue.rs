//! The outbox: retries, order, deadlines, receipts, bounds.

use serde_json::json;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_peer_may_be_away_for_days_and_both_may_restart() {
    let lab = Lab::new(31);
    let (mut sender, mut receiver) = (lab.machine(1), lab.machine(2));
    sender.start().unwrap();
    for (id, text) in [("m-1", "first"), ("m-2", "second"), ("m-3", "third")] {
        let lines = sender.put(2, text.as_bytes(), json!({ "type": "text", "message_id": id })).await.unwrap();
        assert_eq!((lines.len(), &lines[0]["state"], &lines[0]["message_id"]), (1, &json!("queued"), &json!(id)));
    }
    sender.env.sleep(Duration::from_secs(3 * 24 * 3600)).await;
    let status = sender.call("outbox.status", json!({ "message_id": "m-1" })).await.unwrap();
    // Three days: a handful of attempts at first, then one in ten minutes.
    let attempts = status["attempts"].as_u64().unwrap();
    assert!((300..700).contains(&attempts), "{attempts}");
    assert!(status["last_error"].as_str().unwrap().contains("did not answer"), "{status}");
    sender.crash().await;
    receiver.start().unwrap();
    sender.until("m-3", "delivered").await;
    assert_eq!(receiver.texts(), ["first", "second", "third"]);
    let status = sender.call("outbox.status", json!({ "message_id": "m-1" })).await.unwrap();
    assert_eq!((&status["ack"], &status["tagged"]), (&json!("ACK TEXT 5 bytes"), &json!(true)));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_shows_up_is_served_at_once() {
    let lab = Lab::new(32);
    let (mut sender, mut receiver) = (lab.machine(1), lab.machine(2));
    sender.start().unwrap();
    sender.put(2, b"hello", json!({ "type": "text", "message_id": "m-1" })).await.unwrap();
    sender.env.sleep(Duration::from_secs(24 * 3600)).await;
    receiver.start().unwrap();
    assert_eq!(sender.state("m-1").await, "queued");
    receiver.send(1, "I am back", "b-1").await.unwrap();
    sender.env.sleep(Duration::from_secs(1)).await;
    assert_eq!((sender.state("m-1").await.as_str(), receiver.texts()), ("delivered", vec!["hello".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_in_a_dead_letter_that_can_be_tried_again_or_thrown_away() {
    let lab = Lab::new(33);
    let (mut sender, mut receiver) = (lab.machine(1), lab.machine(2));
    sender.start().unwrap();
    for id in ["m-1", "m-2"] {
        let args = json!({ "type": "json", "message_id": id, "deadline_ms": 3_600_000, "wait": "delivery" });
        let lines = sender.put(2, b"{}", args).await.unwrap();
        let last = lines.last().unwrap();
        assert_eq!((&last["state"], &last["dead_letter"]), (&json!("expired"), &json!(true)));
        assert!(last["reason"].as_str().unwrap().contains("did not answer"), "{last}");
    }
    sender.crash().await;
    let listed = sender.call("outbox.list", json!({})).await.unwrap();
    assert_eq!(listed["messages"].as_array().unwrap().len(), 2);
    sender.call("outbox.cancel", json!({ "message_id": "m-2" })).await.unwrap();
    receiver.start().unwrap();
    sender.call("outbox.retry", json!({ "message_id": "m-1" })).await.unwrap();
    sender.until("m-1", "delivered").await;
    assert_eq!(receiver.texts(), ["{}"]);
    assert_eq!(sender.call("outbox.list", json!({})).await.unwrap(), json!({ "messages": [] }));
    for method in ["outbox.cancel", "outbox.retry", "outbox.status"] {
        assert_eq!(sender.call(method, json!({ "message_id": "nobody" })).await.unwrap_err().code, "not_found");
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_inbox_delays_and_a_message_taken_back_is_never_sent() {
    let lab = Lab::new(34);
    let (mut sender, mut receiver) = (lab.machine(1), lab.machine(2));
    receiver.offer.limits = Limits { inbox_messages: 2, ..Limits::default() };
    sender.start().unwrap();
    receiver.start().unwrap();
    for id in ["m-1", "m-2", "m-3"] {
        sender.put(2, id.as_bytes(), json!({ "type": "text", "message_id": id })).await.unwrap();
    }
    sender.until("m-1", "delivered").await;
    sender.env.sleep(Duration::from_secs(60)).await;
    assert_eq!(sender.state("m-2").await, "queued");
    let cancelled = sender.call("outbox.cancel", json!({ "message_id": "m-2" })).await.unwrap();
    assert_eq!(cancelled["state"], "cancelled");
    let name = receiver.list("inbox").remove(0);
    receiver.env.fs().remove_file(&receiver.path("inbox", &name)).unwrap();
    sender.until("m-3", "delivered").await;
    assert_eq!(receiver.texts(), ["m-3"]);
}

#[tokio::test(start_paused = true)]
async fn the_outbox_is_bounded_and_takes_an_id_once() {
    let lab = Lab::new(35);
    let mut sender = lab.machine(1);
    sender.offer.limits = Limits { outbox_messages: 4, outbox_bytes: 1000, ..Limits::default() };
    sender.start().unwrap();
    let put = async |to: u32, bytes: usize, id: &str| {
        let lines = sender.put(to, &vec![b'x'; bytes], json!({ "type": "text", "message_id": id })).await.unwrap();
        lines[0]["error"]["code"].as_str().unwrap_or("accepted").to_owned()
    };
    assert_eq!(put(2, 10, "m-1").await, "accepted");
    assert_eq!(put(2, 10, "m-1").await, "accepted", "the same one");
    assert_eq!(put(2, 10, "m-2").await, "accepted");
    assert_eq!(put(2, 10, "m-3").await, "outbox_full", "half of it for one peer");
    assert_eq!(put(3, 990, "m-4").await, "outbox_full", "too many bytes");
    assert_eq!(put(3, 10, "m-5").await, "accepted");
    assert_eq!(put(4, 10, "m-6").await, "accepted");
    assert_eq!(put(5, 10, "m-7").await, "outbox_full");
    assert_eq!(sender.call("outbox.list", json!({})).await.unwrap()["messages"].as_array().unwrap().len(), 4);
    for (args, code) in [
        (json!({ "type": "receipt" }), "invalid_argument"),
        (json!({ "type": "text", "message_id": "a b" }), "invalid_argument"),
        (json!({ "type": "file" }), "invalid_argument"),
        (json!({ "type": "text", "deadline_ms": 0 }), "invalid_argument"),
        (json!({ "type": "text", "wait": "for godot" }), "invalid_argument"),
    ] {
        assert_eq!(sender.put(2, b"", args).await.unwrap_err().code, code);
    }
}

#[tokio::test(start_paused = true)]
async fn replies_and_receipts_come_back_to_who_waits() {
    let lab = Lab::new(36);
    let (mut sender, mut receiver) = (lab.machine(1), lab.machine(2));
    sender.start().unwrap();
    receiver.start().unwrap();
    let replying = async {
        receiver.env.sleep(Duration::from_secs(10)).await;
        let mut reply = message("forty-two", Some("r-1"));
        reply.tag.reply_to = Some("q-1".into());
        Client::new(receiver.dial(1), None).send(&reply).await.unwrap();
    };
    let args = json!({ "type": "text", "message_id": "q-1", "wait": "reply" });
    let (lines, ()) = tokio::join!(sender.put(2, b"what is it?", args), replying);
    let last = lines.unwrap().pop().unwrap();
    assert_eq!((&last["state"], &last["reply"]["text"]), (&json!("replied"), &json!("forty-two")));

    let reading = async {
        receiver.env.sleep(Duration::from_secs(10)).await;
        let read = receiver.call("inbox.read", json!({})).await.unwrap();
        assert_eq!(read, json!({ "read": 2, "receipts": 1 }));
        // Marked once, told once.
        assert_eq!(receiver.call("inbox.read", json!({})).await.unwrap(), json!({ "read": 0, "receipts": 0 }));
    };
    let args = json!({ "type": "text", "message_id": "q-2", "wait": "read" });
    let (lines, ()) = tokio::join!(sender.put(2, b"read me", args), reading);
    let last = lines.unwrap().pop().unwrap();
    assert_eq!(last["state"], "read");
    sender.crash().await;
    assert_eq!(sender.state("q-2").await, "read");
    let record: Value =
        serde_json::from_slice(&receiver.read("inbox", receiver.list("inbox").last().unwrap())).unwrap();
    assert!(record["read_at"].is_string(), "{record}");
}

#[tokio::test(start_paused = true)]
async fn queued_files_of_any_size_arrive_once() {
    let lab = Lab::new(37);
    let (mut sender, mut receiver) = (lab.machine(1), lab.machine(2));
    sender.start().unwrap();
    let content: Vec<u8> = (0..900_000u32).map(|i| (i / 5) as u8).collect();
    let args = json!({ "type": "file", "filename": "data.bin", "message_id": "f-1" });
    let lines = sender.put(2, &content, args).await.unwrap();
    assert_eq!(lines[0]["bytes"], 900_000);
    sender.crash().await;
    receiver.start().unwrap();
    sender.until("f-1", "delivered").await;
    let names = receiver.list("received");
    assert_eq!((names.len(), receiver.read("received", &names[0])), (1, content));
    assert_eq!(sender.list("outbox"), ["finished.log"]);
}

#[tokio::test(start_paused = true)]
async fn followers_hear_of_each_message_once_it_is_safe() {
    let lab = Lab::new(38);
    let (sender, mut receiver) = (lab.machine(1), lab.machine(2));
    receiver.start().unwrap();
    let serve = receiver.local().open("inbox.follow", json!({})).await.unwrap();
    let (mut near, far) = tokio::io::duplex(64 * 1024);
    let serving = tokio::spawn(serve(Box::new(far)));
    sender.send(2, "a", "m-1").await.unwrap();
    let mut heard = vec![0; 4096];
    let n = near.read(&mut heard).await.unwrap();
    let line: Value = serde_json::from_slice(&heard[..n]).unwrap();
    assert_eq!((&line["message_id"], &line["type"], &line["bytes"]), (&json!("m-1"), &json!("text"), &json!(1)));
    assert_eq!(receiver.list("inbox"), [line["name"].as_str().unwrap()]);
    drop(near);
    serving.await.unwrap().unwrap();
    assert_eq!(receiver.local().open("inbox.eat", json!({})).await.err().unwrap().code, "unknown_method");
}

#[tokio::test(start_paused = true)]
async fn with_a_full_disk_the_outbox_refuses_and_nothing_is_half_there() {
    let lab = Lab::new(39);
    let (mut sender, mut receiver) = (lab.machine(1), lab.machine(2));
    sender.start().unwrap();
    receiver.start().unwrap();
    let disk = sender.env.sim().unwrap().sim_disk().clone();
    let put = async |id: &str| {
        let lines = sender.put(2, &[b'x'; 30_000], json!({ "type": "text", "message_id": id })).await;
        lines.and_then(|lines| match lines[0]["error"]["code"].as_str() {
            Some(code) => Err(CallError::new("refused", format!("{code}: {}", lines[0]["error"]["message"]))),
            None => Ok(()),
        })
    };
    disk.set_capacity(10_000);
    let refused = put("m-1").await.unwrap_err();
    assert!(refused.to_string().starts_with("storage: ") && refused.to_string().contains("30000 needed"), "{refused}");
    assert_eq!(sender.call("outbox.list", json!({})).await.unwrap(), json!({ "messages": [] }));
    disk.set_capacity(u64::MAX);
    put("m-1").await.unwrap();
    sender.until("m-1", "delivered").await;
    assert_eq!(receiver.texts().len(), 1);
}
