//! The test network itself: hosts are joined, fragments are dropped and counted, and nothing else is reachable.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // plain sockets, to judge the network without our code

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use pilot_testkit::isolate::isolated;
use pilot_testkit::lab::{Lab, needed};

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
