//! The test network itself: hosts are joined, fragments are dropped and counted, and nothing else is reachable.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // plain sockets, to judge the network without our code

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use pilot_testkit::agent::{Agent, AgentOptions, make_trust};
use pilot_testkit::isolate::isolated;
use pilot_testkit::lab::{Lab, Star, needed};
use pilot_testkit::programs::{RendezvousProcess, need_programs, ours};
use pilot_wire::beacon::BeaconMessage;

#[test]
fn whole_datagrams_cross_the_link_and_fragments_do_not() {
    isolated("whole_datagrams_cross_the_link_and_fragments_do_not", &[needed], || {
        let lab = Lab::new().expect("lab");
        // The headers of IP and UDP leave this much of 1500 bytes.
        for (from, to, largest) in [(lab.left.ip(), lab.right.ip(), 1472), (lab.left.ipv6(), lab.right.ipv6(), 1452)] {
            crosses(&lab, from, SocketAddr::new(to, 4000), largest);
        }
    });
}

/// A datagram of `largest` bytes arrives whole; one that needs fragments does not, and is counted.
fn crosses(lab: &Lab, from: IpAddr, to: SocketAddr, largest: usize) {
    let before = lab.fragments_dropped().expect("counter");
    let receiver = lab.right.on(|| UdpSocket::bind(to)).expect("host").expect("bind");
    receiver.set_read_timeout(Some(Duration::from_millis(300))).expect("time-out");
    let sender = lab.left.on(|| UdpSocket::bind((from, 0))).expect("host").expect("bind");
    let mut buf = [0; 9000];

    sender.send_to(&vec![1; largest], to).expect("send");
    assert_eq!(receiver.recv(&mut buf).expect("a full 1500-byte packet arrives"), largest);
    assert_eq!(lab.fragments_dropped().expect("counter"), before);

    sender.send_to(&[2; 4096], to).expect("send");
    assert!(receiver.recv(&mut buf).is_err(), "a fragmented datagram arrived");
    assert!(lab.fragments_dropped().expect("counter") >= before + 2);
}

#[test]
fn an_isolated_test_has_loopback_and_no_way_out() {
    isolated("an_isolated_test_has_loopback_and_no_way_out", &[], || {
        let here = UdpSocket::bind("127.0.0.1:0").expect("bind");
        here.send_to(b"x", here.local_addr().expect("address")).expect("loopback works");
        let mut buf = [0; 4];
        assert_eq!(here.recv(&mut buf).expect("own datagram"), 1);
        // A documentation address (RFC 5737): nothing may route there.
        let out = TcpStream::connect_timeout(&"192.0.2.1:80".parse().expect("address"), Duration::from_secs(2));
        let error = out.expect_err("no route leaves the namespace");
        assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH), "{error}");
    });
}

/// Old daemons send segments of 4,096 bytes: relayed, each is three fragments on an ordinary link.
#[test]
fn the_beacon_relays_frames_larger_than_the_link() {
    isolated("the_beacon_relays_frames_larger_than_the_link", &[needed, need_programs], || {
        let star = Star::new().expect("star");
        let rendezvous = RendezvousProcess::start_at(Star::ROUTER, None, |_| {}).expect("rendezvous");
        rendezvous.wait_ready().expect("rendezvous");
        let ends = [(&star.left, 7u32), (&star.right, 8)].map(|(host, node)| {
            let socket = host.on(|| UdpSocket::bind((host.ip(), 0))).expect("host").expect("bind");
            socket.set_read_timeout(Some(Duration::from_secs(20))).expect("time-out");
            let mut discover = Vec::new();
            BeaconMessage::Discover { node }.emit(&mut discover);
            socket.send_to(&discover, rendezvous.beacon()).expect("discover");
            let mut buf = [0; 64];
            let (_, from) = socket.recv_from(&mut buf).expect("the beacon answers");
            assert_eq!(from, rendezvous.beacon());
            socket
        });
        let mut buf = vec![0; 65_535];
        // As many as the buffer of a plain socket holds.
        for (size, count) in [(1_400, 8), (1_500, 8), (4_175, 8), (60_000, 1)] {
            for serial in 0..count {
                let (mut message, frame) = (Vec::new(), vec![serial; size]);
                BeaconMessage::Relay { src: 7, dst: 8, frame: &frame }.emit(&mut message);
                ends[0].send_to(&message, rendezvous.beacon()).expect("send");
            }
            for serial in 0..count {
                let n = ends[1].recv(&mut buf).expect("a relayed frame arrives");
                match BeaconMessage::parse(&buf[..n]) {
                    Some(BeaconMessage::RelayDeliver { src: 7, frame }) => {
                        let whole = frame.len() == size && frame.iter().all(|&b| b == serial);
                        assert!(whole, "frame {serial} of {size} bytes: {} bytes of {:?}", frame.len(), frame.first());
                    }
                    _ => panic!("another message of {n} bytes"),
                }
            }
        }
    });
}

/// Whoever has not spoken to it yet knows only what the registry and the beacon know, and to these it would speak next in
/// 25 s (07 §16.16).
#[test]
fn a_host_that_changes_its_address_is_reached_within_seconds() {
    isolated("a_host_that_changes_its_address_is_reached_within_seconds", &[needed, need_programs], || {
        let limit = Duration::from_secs(60);
        let star = Star::new().expect("star");
        star.forward(true).expect("forwarding");
        let rendezvous = RendezvousProcess::start_at(Star::ROUTER, None, |_| {}).expect("rendezvous");
        rendezvous.wait_ready().expect("rendezvous");
        let start = |host: &pilot_testkit::lab::Host, name: &str| {
            let mut options = AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), name);
            options.listen = SocketAddr::from(([0, 0, 0, 0], 0));
            Agent::start_at(&ours(), &options, |command| host.place(command)).expect("daemon")
        };
        let (mut left, mut right) = (start(&star.left, "left"), start(&star.right, "right"));
        make_trust(&left, &right, limit).expect("trust");
        // From here on neither has heard of the other.
        left.crash_and_restart_at(|command| star.left.place(command)).expect("restart");
        right.crash_and_restart_at(|command| star.right.place(command)).expect("restart");

        star.readdress(&star.left, Ipv4Addr::new(10, 98, 1, 7)).expect("another address");
        std::thread::sleep(Duration::from_secs(4));
        let answer = right.ctl(&["connect", left.address(), "7", "--message", "found you"]).expect("connect");
        assert_eq!(answer["response"], "found you");
        let moved =
            |me: &Agent| Ok(me.ctl(&["info"])?["endpoint"].as_str().is_some_and(|e| e.starts_with("10.98.1.7:")));
        left.wait("the new address in its status", limit, moved).expect("endpoint");
        // The registry, too, is reached from the new address.
        right.ctl(&["find", "left"]).expect("find");
        left.ctl(&["find", "right"]).expect("find");
    });
}
