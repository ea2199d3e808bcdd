//! Files and directories.

use pilot_wire::service::dataexchange::file::{CHUNK, Piece, What};
use pilot_wire::service::dataexchange::ours::Transfer;
use pilot_wire::service::dataexchange::tree::{self as format, Head};
use pilot_wire::service::dataexchange::{FILE, FILESTREAM, TEXT, frame};
use serde_json::json;

use super::*;

pub(super) async fn file(name: &str, content: &[u8], id: Option<&str>) -> FileToSend {
    let source: Arc<dyn Source> = Arc::new(bytes::Bytes::copy_from_slice(content));
    let sha256 = hash(&source).await.unwrap();
    let transfer = Transfer { message_id: id.map(ToOwned::to_owned), ..Transfer::default() };
    FileToSend { name: name.to_owned(), source, sha256, transfer }
}

pub(super) async fn send(sender: &Machine, to: u32, file: &FileToSend) -> Result<FileDelivery, SendError> {
    let dial = || async { sender.cable.open(to).map_err(|error| SendError::Write(error.message)) };
    send_file(dial, None, file, &mut |_| ()).await.1
}

/// Says a piece and reads the answer.
async fn say(stream: &mut DuplexStream, id: [u8; 16], what: What<'_>) -> What<'static> {
    stream.write_all(&frame(FILESTREAM, &[&Piece { id, what }.emit()]).unwrap()).await.unwrap();
    let (kind, body) = read_frame(stream).await.unwrap();
    assert_eq!(kind, FILESTREAM);
    match Piece::parse(&body).unwrap().what {
        What::Ack { offset } => What::Ack { offset },
        What::InitAck { offset } => What::InitAck { offset },
        What::Complete { status, text } => What::Complete { status, text },
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_arrives_whole_once_for_each_id_and_with_its_sender() {
    let lab = Lab::new(21);
    let (sender, mut receiver) = (lab.machine(1), lab.machine(2));
    receiver.start().unwrap();
    let content: Vec<u8> = (0..3_000_000u32).map(|i| (i / 3) as u8).collect();
    let mut told = Vec::new();
    let sent = file("../../etc/data.tar.gz", &content, Some("f-1")).await;
    let dial = || async { Ok::<_, SendError>(sender.dial(2)) };
    let (peer, delivery) = send_file(dial, None, &sent, &mut |progress| told.push(progress.done)).await;
    let delivery = delivery.unwrap();
    assert!(matches!(peer, Some(Peer::Ours(_))));
    assert_eq!((delivery.chunked, delivery.resumed, delivery.duplicate, delivery.tagged), (true, 0, false, true));
    assert!(told.is_sorted() && told.last() == Some(&3_000_000));
    let names = receiver.list("received");
    assert_eq!(names.len(), 1);
    assert!(names[0].starts_with("data.tar-") && names[0].ends_with(".gz"), "{names:?}");
    assert_eq!(receiver.read("received", &names[0]), content);
    assert!(send(&sender, 2, &sent).await.unwrap().duplicate);
    receiver.crash().await;
    assert!(send(&sender, 2, &sent).await.unwrap().duplicate);
    // Another id is another file, though it has the same name and content.
    let again = file("data.tar.gz", &content, Some("f-2")).await;
    assert!(!send(&sender, 2, &again).await.unwrap().duplicate);
    assert_eq!(receiver.list("received").len(), 2);
    assert_eq!(receiver.list("received/.partial"), Vec::<String>::new());
    let (name, data) = receiver.heard.0.lock()[0].clone();
    assert_eq!((name, &data["filename"], &data["size"]), ("file.received", &json!("data.tar.gz"), &json!(3_000_000)));
}

#[tokio::test(start_paused = true)]
async fn the_recorded_conversation_of_newer_daemons_is_held_word_for_word() {
    let lab = Lab::new(22);
    let (sender, mut receiver) = (lab.machine(1), lab.machine(2));
    receiver.start().unwrap();
    let content = vec![b'z'; 102_400];
    let sent = file("f.bin", &content, None).await;
    let id: [u8; 16] = sent.sha256[..16].try_into().unwrap();
    let mut stream = sender.dial(2);
    let init = || What::Init { size: 102_400, sha256: sent.sha256, chunk: CHUNK, name: b"f.bin" };
    assert_eq!(say(&mut stream, id, init()).await, What::InitAck { offset: 0 });
    for (offset, end) in [(0, 49_152), (49_152, 98_304)] {
        let data = &content[offset as usize..end as usize];
        assert_eq!(say(&mut stream, id, What::Chunk { offset, data }).await, What::Ack { offset: end });
    }
    // The stream breaks; the next attempt goes on where it was.
    drop(stream);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut stream = sender.dial(2);
    assert_eq!(say(&mut stream, id, init()).await, What::InitAck { offset: 98_304 });
    let chunk = What::Chunk { offset: 98_304, data: &content[98_304..] };
    assert_eq!(say(&mut stream, id, chunk).await, What::Ack { offset: 102_400 });
    assert_eq!(say(&mut stream, id, What::Done).await, What::Complete { status: 0, text: String::new() });
    assert_eq!(receiver.read("received", &receiver.list("received")[0]), content);
    let unknown = say(&mut stream, id, What::Done).await;
    assert_eq!(unknown, What::Complete { status: 1, text: "no active transfer".into() });
}

#[tokio::test(start_paused = true)]
async fn a_partial_file_belongs_to_its_sender_and_a_bad_one_blocks_nobody() {
    let lab = Lab::new(23);
    let (sender, other, mut receiver) = (lab.machine(1), lab.machine(3), lab.machine(2));
    receiver.start().unwrap();
    let content = vec![7; 100_000];
    let sent = file("f.bin", &content, None).await;
    let id: [u8; 16] = sent.sha256[..16].try_into().unwrap();
    // Another node, which knows the hash, fills its own partial file with rubbish, to the last byte.
    let mut stream = other.dial(2);
    let init = || What::Init { size: 100_000, sha256: sent.sha256, chunk: CHUNK, name: b"f.bin" };
    say(&mut stream, id, init()).await;
    say(&mut stream, id, What::Chunk { offset: 0, data: &vec![0; 100_000] }).await;
    drop(stream);
    let delivery = send(&sender, 2, &sent).await.unwrap();
    assert_eq!((delivery.resumed, receiver.list("received").len()), (0, 1));
    // Its own next attempt finds the rubbish, and is through with the one after.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(send(&other, 2, &sent).await.unwrap().resumed, 0);
    assert_eq!(receiver.list("received").len(), 2);
    assert_eq!(receiver.list("received/.partial"), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_is_refused_at_once() {
    let lab = Lab::new(24);
    let (sender, mut receiver) = (lab.machine(1), lab.machine(2));
    receiver.offer.limits = Limits { received_bytes: 150_000, ..Limits::default() };
    receiver.start().unwrap();
    assert!(send(&sender, 2, &file("a", &vec![1; 100_000], None).await).await.is_ok());
    let refused = send(&sender, 2, &file("b", &vec![2; 100_000], None).await).await.unwrap_err();
    assert!(
        refused.to_string().contains("receiver disk quota exceeded: need 100000, 50000 of 150000 available"),
        "{refused}"
    );
    assert!(!refused.is_final() && !refused.outcome_unknown());
    receiver.env.sim().unwrap().sim_disk().set_capacity(FREE_DISK + 200_000);
    let refused = send(&sender, 2, &file("c", &vec![3; 40_000], None).await).await;
    assert!(refused.is_ok(), "{refused:?}");
    receiver.env.sim().unwrap().sim_disk().set_capacity(FREE_DISK);
    let refused = send(&sender, 2, &file("d", &vec![4; 1000], None).await).await.unwrap_err();
    assert!(refused.to_string().contains("receiver disk full"), "{refused}");
    // The same in one frame: the answer is heard though the file was on its way.
    let mut stream = sender.dial(2);
    let text = answer(&mut stream, &frame(FILE, &[b"\x00\x01x", &vec![5; 400_000]]).unwrap()).await;
    assert!(text.starts_with("ERR FILE save failed: receiver disk"), "{text}");
    assert_eq!(receiver.list("received").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn peers_without_chunks_get_one_frame_on_a_fresh_stream() {
    // Answers like 1.7.2; stays silent to chunks in the second round.
    for silent in [false, true] {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let streams = Arc::new(Mutex::new(0));
        let dial = || {
            let (heard, streams) = (heard.clone(), streams.clone());
            async move {
                *streams.lock() += 1;
                let (near, mut far) = tokio::io::duplex(64 * 1024);
                tokio::spawn(async move {
                    while let Some((kind, body)) = read_frame(&mut far).await {
                        let ack = match kind {
                            FILE => format!("ACK FILE {} bytes", body.len() - 2 - 5),
                            FILESTREAM if silent => continue,
                            other => format!("ACK UNKNOWN({other}) {} bytes", body.len()),
                        };
                        heard.lock().push((kind, body));
                        far.write_all(&frame(TEXT, &[ack.as_bytes()]).unwrap()).await.unwrap();
                    }
                });
                Ok::<_, SendError>(near)
            }
        };
        let sent = file("f.bin", &vec![9; 70_000], Some("f-1")).await;
        let (peer, delivery) = send_file(dial, None, &sent, &mut |_| ()).await;
        let delivery = delivery.unwrap();
        assert_eq!((peer, delivery.chunked, delivery.tagged), (Some(Peer::Plain), false, false));
        assert_eq!((delivery.ack.as_deref(), *streams.lock()), (Some("ACK FILE 70000 bytes"), 2));
        assert_eq!(heard.lock().iter().filter(|(kind, _)| *kind == FILE).count(), 1);
        // More than such a peer takes.
        let large: Arc<dyn Source> = Arc::new(bytes::Bytes::from(vec![0; (16 << 20) + 1]));
        let sent = FileToSend { source: large, ..sent };
        let error = send_file(dial, Some(Peer::Plain), &sent, &mut |_| ()).await.1.unwrap_err();
        assert_eq!(error.code(), "too_large");
        let tree = FileToSend { transfer: Transfer { tree: true, ..Transfer::default() }, ..sent };
        assert_eq!(send_file(dial, Some(Peer::Plain), &tree, &mut |_| ()).await.1.unwrap_err().code(), "unsupported");
    }
}

async fn directory(packed: impl Source, name: &str) -> FileToSend {
    let source: Arc<dyn Source> = Arc::new(packed);
    let sha256 = hash(&source).await.unwrap();
    let transfer = Transfer { message_id: Some("d-1".into()), reply_to: None, tree: true };
    FileToSend { name: name.into(), source, sha256, transfer }
}

#[tokio::test(start_paused = true)]
async fn a_directory_arrives_as_one() {
    let lab = Lab::new(25);
    let (sender, mut receiver) = (lab.machine(1), lab.machine(2));
    receiver.start().unwrap();
    let source = |bytes: Vec<u8>| Arc::new(bytes::Bytes::from(bytes)) as Arc<dyn Source>;
    let nodes = vec![
        TreeNode::Dir { path: "sub".into() },
        TreeNode::File { path: "sub/run.sh".into(), executable: true, source: source(b"#!/bin/sh\n".to_vec()) },
        TreeNode::File { path: "big".into(), executable: false, source: source(vec![3; 700_000]) },
        TreeNode::File { path: "empty".into(), executable: false, source: source(Vec::new()) },
    ];
    let sent = directory(Packed::new(nodes).unwrap(), "project").await;
    assert!(send(&sender, 2, &sent).await.unwrap().chunked);
    let check = |receiver: &Machine| {
        let names = receiver.list("received");
        assert!(names.len() == 1 && names[0].starts_with("project-"), "{names:?}");
        let dir = format!("received/{}", names[0]);
        assert_eq!(receiver.list(&dir), ["big", "empty", "sub"]);
        assert_eq!(receiver.read(&dir, "big"), vec![3; 700_000]);
        let script = receiver.env.fs().metadata(&receiver.path(&dir, "sub/run.sh")).unwrap();
        assert_eq!((script.len, script.mode), (10, 0o700));
    };
    check(&receiver);
    assert_eq!(receiver.list("received/.partial"), Vec::<String>::new());
    receiver.crash().await;
    check(&receiver);
    assert!(send(&sender, 2, &sent).await.unwrap().duplicate);
}

#[tokio::test(start_paused = true)]
async fn a_directory_never_reaches_outside() {
    let lab = Lab::new(26);
    let (sender, mut receiver) = (lab.machine(1), lab.machine(2));
    receiver.start().unwrap();
    let entry = |path: &str, data: &[u8]| {
        let head = Head::File { executable: false, path_len: path.len() as u16, len: data.len() as u64 };
        [&head.emit()[..], path.as_bytes(), data].concat()
    };
    let run = |entries: &[Vec<u8>], claimed: u64| {
        [&format::MAGIC[..], &entries.concat(), &Head::End { entries: claimed }.emit()].concat()
    };
    for (name, bytes) in [
        ("up", run(&[entry("../evil", b"x")], 1)),
        ("absolute", run(&[entry("/tmp/evil", b"x")], 1)),
        ("through a file", run(&[entry("a", b"x"), entry("a/b", b"x")], 2)),
        ("no such directory", run(&[entry("sub/b", b"x")], 1)),
        ("twice", run(&[entry("a", b"x"), entry("a", b"y")], 2)),
        ("wrong count", run(&[entry("a", b"x")], 2)),
        ("cut short", run(&[entry("a", b"x")], 1)[..30].to_vec()),
        ("no magic", b"hello, this is no directory".to_vec()),
    ] {
        let refused = send(&sender, 2, &directory(bytes::Bytes::from(bytes), "d").await).await;
        assert!(matches!(refused, Err(SendError::Refused { .. })), "{name}: {refused:?}");
    }
    assert_eq!(receiver.list("received"), Vec::<String>::new());
    assert_eq!(receiver.list("received/.partial"), Vec::<String>::new());
    assert_eq!(receiver.list("received/.meta"), Vec::<String>::new());
}
