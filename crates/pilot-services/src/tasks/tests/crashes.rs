//! The machine of one side stops between any two changes of its disk, and what was not synced is forgotten or torn. What
//! was answered is there afterwards, a task is there once, and it can be brought to its end.

use super::*;

const ID: &str = "t-1";
const RESULT: &str = "the result";

/// Goes on with a task from wherever it is, to the results.
async fn finish(alice: &Node, bob: &Node, what: &str) {
    let again = alice.tasks.submit(bob.address(), "work".into(), Some(ID.into())).await;
    let again = again.unwrap_or_else(|error| panic!("{what}: submit: {error}"));
    assert_eq!(again.status, 200, "{what}: {}", again.message);
    for _ in 0..4 {
        // Each may have been done before the stop, or wait for a delivery that is tried again.
        match bob.status(Side::Received, ID).await.as_str() {
            "NEW" => drop(bob.tasks.decide(ID, Decision::Accept).await.unwrap()),
            "ACCEPTED" => drop(bob.tasks.execute().await),
            "EXECUTING" => drop(bob.tasks.send_results(ID, Content::Text(RESULT.into())).await),
            _ => break,
        }
    }
    bob.until(Side::Received, ID, Status::Succeeded).await;
    alice.until(Side::Submitted, ID, Status::Succeeded).await;
    assert_eq!(alice.file(&format!("results/{ID}_result.txt")).as_deref(), Some(RESULT), "{what}");
    for (node, side) in [(alice, Side::Submitted), (bob, Side::Received)] {
        assert_eq!(node.tasks.list(side).await.unwrap().len(), 1, "{what}");
    }
}

async fn a_side_may_stop_anywhere(worker_stops: bool) -> u64 {
    let mut at = 0;
    for seed in [21, 22] {
        at = 0;
        loop {
            let what = format!("seed {seed}, change {at}, the worker stops: {worker_stops}");
            let (mut alice, mut bob, _net) = pair(seed * 1000 + at);
            let stopping = if worker_stops { &bob } else { &alice };
            let disk = stopping.env.sim().unwrap().sim_disk().clone();
            disk.stop_after(at);
            let submitted = alice.tasks.submit(bob.address(), "work".into(), Some(ID.into())).await;
            let submitted = submitted.is_ok_and(|answer| answer.status == 200);
            let accepted = bob.tasks.decide(ID, Decision::Accept).await.is_ok();
            let executed = bob.tasks.execute().await.is_ok();
            let sent = bob.tasks.send_results(ID, Content::Text(RESULT.into())).await.is_ok();
            let stopped = disk.refused() > 0;
            if worker_stops {
                bob = bob.crash();
            } else {
                alice = alice.crash();
            }
            if submitted {
                assert_ne!(alice.status(Side::Submitted, ID).await, "", "{what}");
                assert_ne!(bob.status(Side::Received, ID).await, "", "{what}");
            }
            let is = bob.status(Side::Received, ID).await;
            assert!(!accepted || is != "NEW", "{what}: accepted, and then {is}");
            assert!(!executed || !["NEW", "ACCEPTED"].contains(&is.as_str()), "{what}: begun, and then {is}");
            if sent {
                assert_eq!(is, "SUCCEEDED", "{what}");
                assert_eq!(alice.file(&format!("results/{ID}_result.txt")).as_deref(), Some(RESULT), "{what}");
            }
            finish(&alice, &bob, &what).await;
            if !stopped {
                break;
            }
            at += 1;
            assert!(at < 2000, "the scenario never ends");
        }
    }
    at
}

#[tokio::test(start_paused = true)]
async fn the_worker_may_stop_anywhere() {
    let points = a_side_may_stop_anywhere(true).await;
    assert!(points >= 12, "{points} points");
}

#[tokio::test(start_paused = true)]
async fn the_submitter_may_stop_anywhere() {
    let points = a_side_may_stop_anywhere(false).await;
    assert!(points >= 8, "{points} points");
}
