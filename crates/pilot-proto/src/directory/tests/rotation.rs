//! A new key while the registry answers, refuses, or cannot be heard.

use super::*;

fn next_identity() -> Arc<Identity> {
    Arc::new(Identity::from_seed([9; 32]))
}

fn rotated(pair: &mut Pair) -> Option<Result<(), String>> {
    let at = pair.events.iter().position(|event| matches!(event, DirectoryEvent::Rotated { .. }))?;
    match pair.events.remove(at) {
        DirectoryEvent::Rotated { public_key, result } => {
            assert_eq!(public_key, next_identity().public_key());
            Some(result)
        }
        _ => None,
    }
}

#[test]
fn a_rotation_is_signed_by_the_old_key_and_everything_behind_it_by_the_new_one() {
    let mut pair = Pair::plain();
    assert!(pair.directory.rotate_key(pair.now, next_identity()));
    assert!(!pair.directory.rotate_key(pair.now, next_identity()), "one at a time");
    // A question asked meanwhile waits: nobody knows with which key to sign it.
    pair.directory.call(pair.now, Call::SetVisibility { public: true });
    pair.drain();
    let Request::RotateKey { node: 7, new_public_key, signature } = pair.next() else { panic!("no rotation") };
    assert!(pair.requests.is_empty());
    assert_eq!(new_public_key, next_identity().public_key_base64());
    let signature = base64::decode_array(&signature).unwrap();
    assert!(verify(&identity().public_key(), signed::rotate_to(7, &new_public_key).as_bytes(), &signature));
    pair.reply(&Answer::RotateKey { node: 7, public_key: new_public_key });
    assert_eq!(rotated(&mut pair), Some(Ok(())));
    let Request::SetVisibility { signature, .. } = pair.next() else { panic!("the question is lost") };
    let signature = base64::decode_array(&signature).unwrap();
    assert!(verify(&next_identity().public_key(), signed::set_visibility(7).as_bytes(), &signature));
    // 07 §16 item 40: so are the heartbeats.
    pair.reply(&Answer::SetVisibility { node: 7, public: true });
    let log = pair.run(HEARTBEAT * 2, 7);
    let beats: Vec<_> = log.iter().filter(|(_, request)| matches!(request, Request::Heartbeat { .. })).collect();
    assert!(!beats.is_empty());
    for (_, beat) in beats {
        let Request::Heartbeat { signature, .. } = beat else { unreachable!() };
        let signature = base64::decode_array(signature).unwrap();
        assert!(verify(&next_identity().public_key(), signed::heartbeat(7).as_bytes(), &signature));
    }
}

#[test]
fn a_rotation_that_is_refused_changes_nothing() {
    let mut pair = Pair::plain();
    assert!(pair.directory.rotate_key(pair.now, next_identity()));
    pair.drain();
    assert!(matches!(pair.next(), Request::RotateKey { .. }));
    pair.reply(&Answer::error("key in use", Some("key_in_use")));
    assert_eq!(rotated(&mut pair), Some(Err("key in use".to_owned())));
    assert!(pair.directory.rotate_key(pair.now, next_identity()), "it may be tried again");
}

#[test]
fn a_registry_that_knows_only_the_text_of_february_gets_it_after_it_refused_the_other() {
    let mut pair = Pair::plain();
    assert!(pair.directory.rotate_key(pair.now, next_identity()));
    pair.drain();
    assert!(matches!(pair.next(), Request::RotateKey { .. }));
    pair.reply(&Answer::error("request failed", None));
    let Request::RotateKey { node: 7, new_public_key, signature } = pair.next() else { panic!("not tried again") };
    let signature = base64::decode_array(&signature).unwrap();
    assert!(verify(&identity().public_key(), signed::rotate(7).as_bytes(), &signature));
    pair.reply(&Answer::RotateKey { node: 7, public_key: new_public_key });
    assert_eq!(rotated(&mut pair), Some(Ok(())));
    // And once more is enough.
    let mut pair = Pair::plain();
    assert!(pair.directory.rotate_key(pair.now, next_identity()));
    pair.drain();
    for _ in 0..2 {
        assert!(matches!(pair.next(), Request::RotateKey { .. }));
        pair.reply(&Answer::error("request failed", None));
    }
    assert_eq!(rotated(&mut pair), Some(Err("request failed".to_owned())));
}

#[test]
fn a_rotation_whose_answer_is_lost_is_settled_before_anything_else_is_said() {
    for (holds_new, expected) in [(true, Ok(())), (false, Err("the request did not reach the registry".to_owned()))] {
        let mut pair = Pair::plain();
        assert!(pair.directory.rotate_key(pair.now, next_identity()));
        pair.drain();
        pair.directory.handle_disconnected(pair.now, "gone");
        pair.connect();
        if pair.requests.is_empty() {
            pair.now += RECONNECT_MAX;
            pair.directory.handle_timeout(pair.now);
            pair.drain();
            pair.connect();
        }
        assert!(matches!(pair.next(), Request::Lookup { node: 7 }), "nothing is registered before it is known");
        assert!(pair.requests.is_empty());
        let key = if holds_new { next_identity() } else { identity() };
        pair.reply(&Answer::Lookup(LookupOk { node: 7, public_key: key.public_key_base64(), ..LookupOk::default() }));
        assert_eq!(rotated(&mut pair), Some(expected));
        // What follows is signed with the key that counts.
        let Request::Heartbeat { signature, .. } = pair.next() else { panic!("no greeting") };
        let signature = base64::decode_array(&signature).unwrap();
        assert!(verify(&key.public_key(), signed::heartbeat(7).as_bytes(), &signature));
    }
}

#[test]
fn a_rotation_cut_off_by_a_crash_is_settled_at_the_next_start() {
    let config = DirectoryConfig { node: 7, next_identity: Some(next_identity()), ..DirectoryConfig::new(identity()) };
    let mut pair = Pair::new(config);
    pair.directory.set_listen_addr(pair.now, "198.51.100.7:4000");
    pair.connect();
    assert!(matches!(pair.next(), Request::Lookup { node: 7 }));
    assert!(pair.requests.is_empty());
    let public_key = next_identity().public_key_base64();
    pair.reply(&Answer::Lookup(LookupOk { node: 7, public_key: public_key.clone(), ..LookupOk::default() }));
    assert_eq!(rotated(&mut pair), Some(Ok(())));
    let Request::Register(register) = pair.next() else { panic!("no registration") };
    assert_eq!(register.public_key, public_key);
}
