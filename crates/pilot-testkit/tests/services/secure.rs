//! The secure channel over streams of two nodes.

use std::sync::Arc;

use pilot_proto::identity::Identity;
use pilot_services::secure::{Authentication, Form, PORT, SecureStream, Seen};
use pilot_testkit::testnet::{TestNet, patient};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[tokio::test(flavor = "multi_thread")]
async fn both_forms_carry_data_over_real_streams_and_a_wrong_key_gets_none() {
    let net = TestNet::new(2).await.expect("network");
    net.befriend(0, 1).await.expect("trust");
    let (client, server) = (net.driver(0).await.expect("driver"), net.driver(1).await.expect("driver"));
    let listener = server.listen(PORT).await.expect("listen");
    let identity = |seed: u8| Arc::new(Identity::from_seed([seed; 32]));
    let (alice, bob, mallory) = (identity(1), identity(2), identity(3));
    let authentication = |node: u32, identity: &Arc<Identity>, nonce: u8| {
        let (alice, bob) = (alice.public_key(), bob.public_key());
        Authentication {
            node,
            identity: identity.clone(),
            find_key: Arc::new(move |node| {
                [(1, alice), (2, bob)].into_iter().find(|known| known.0 == node).map(|k| k.1)
            }),
            unix: 1_800_000_000,
            nonce: [nonce; 16],
            seen: Arc::new(Seen::default()),
        }
    };
    let cases = [
        (Form::February, None, true),
        (Form::Current, None, true),
        (Form::Current, Some((authentication(1, &alice, 1), authentication(2, &bob, 2))), true),
        // The right number with another key.
        (Form::Current, Some((authentication(1, &mallory, 3), authentication(2, &bob, 4))), false),
    ];
    for (form, authentications, works) in cases {
        let (ours, theirs) = authentications.map_or((None, None), |(a, b)| (Some(a), Some(b)));
        let serving = async {
            let stream = listener.accept().await?;
            let mut channel = SecureStream::accept(stream, &[8; 32], None, theirs).await?;
            let mut data = vec![0; 200_000];
            channel.read_exact(&mut data).await?;
            channel.write_all(&data).await?;
            channel.flush().await?;
            // The dialler ends it.
            let mut rest = Vec::new();
            channel.read_to_end(&mut rest).await?;
            anyhow::Ok((channel.peer(), channel.form()))
        };
        let dialling = async {
            let stream = client.dial(net.at(1, PORT)).await?;
            let mut channel = SecureStream::connect(stream, &[9; 32], form, ours).await?;
            let data: Vec<u8> = (0..200_000_u32).map(|i| (i / 7) as u8).collect();
            channel.write_all(&data).await?;
            channel.flush().await?;
            let mut back = vec![0; data.len()];
            channel.read_exact(&mut back).await?;
            anyhow::ensure!(back == data, "what came back differs");
            channel.shutdown().await?;
            anyhow::Ok(channel.peer())
        };
        let (served, dialled) = patient("a channel", async { tokio::join!(serving, dialling) }).await.expect("in time");
        if works {
            let (peer, seen) = served.expect("server");
            assert_eq!(seen, Some(form));
            assert_eq!(dialled.expect("client").is_some(), peer.is_some());
        } else {
            assert!(format!("{:#}", served.expect_err("a wrong key")).starts_with("secure channel:"));
            dialled.expect_err("nothing is sent to a server that refuses");
        }
    }
    net.shutdown().await;
}
