//! The test network itself: hosts are joined, fragments are dropped and counted, and nothing else is reachable.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // plain sockets, to judge the network without our code

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use pilot_testkit::isolate::isolated;
use pilot_testkit::lab::{Lab, needed};

#[test]
fn whole_datagrams_cross_the_link_and_fragments_do_not() {
    isolated("whole_datagrams_cross_the_link_and_fragments_do_not", &[needed], || {
        let lab = Lab::new().expect("lab");
        let to = SocketAddr::new(lab.right.ip(), 4000);
        let receiver = lab.right.on(|| UdpSocket::bind(to)).expect("host").expect("bind");
        receiver.set_read_timeout(Some(Duration::from_millis(300))).expect("time-out");
        let sender = lab.left.on(|| UdpSocket::bind((lab.left.ip(), 0))).expect("host").expect("bind");
        let mut buf = [0; 9000];

        sender.send_to(&[1; 1472], to).expect("send");
        assert_eq!(receiver.recv(&mut buf).expect("a full 1500-byte packet arrives"), 1472);
        assert_eq!(lab.fragments_dropped().expect("counter"), 0);

        sender.send_to(&[2; 4096], to).expect("send");
        assert!(receiver.recv(&mut buf).is_err(), "a fragmented datagram arrived");
        assert!(lab.fragments_dropped().expect("counter") >= 2);
    });
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
