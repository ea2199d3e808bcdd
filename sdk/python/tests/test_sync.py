"""With threads, by the names of the official SDK."""

from __future__ import annotations

import base64
import inspect
import multiprocessing
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import threading
import time

import pilot
import pytest
from conftest import PATIENCE, Lab, until

UNASYNC = pathlib.Path(__file__).resolve().parents[1] / "unasync.py"


def test_the_sync_half_is_made_from_the_async_half() -> None:
    subprocess.run([sys.executable, str(UNASYNC), "--check"], check=True)


def test_both_halves_are_the_same_but_for_what_is_said() -> None:
    only_async = {"serve", "open_connection", "create_connection", "create_server", "start_server", "as_asyncio"}
    # At the end one gives nothing and the other fails; one calls back for as long as it is told to.
    different = {"read", "subscribe_event"}
    for ours_, theirs in (
        (pilot.Network, pilot.AsyncNetwork),
        (pilot.Conn, pilot.AsyncStream),
        (pilot.Listener, pilot.AsyncListener),
        (pilot.Events, pilot.AsyncEvents),
        (pilot.Subscription, pilot.AsyncSubscription),
        (pilot.Messages, pilot.AsyncMessages),
        (pilot.Tasks, pilot.AsyncTasks),
        (pilot.Task, pilot.AsyncTask),
        (pilot.SyncNode, pilot.AsyncNode),
    ):
        mine = {name for name in dir(ours_) if not name.startswith("_")}
        others = {name for name in dir(theirs) if not name.startswith("_")}
        assert mine == others - only_async
        for name in mine - different:
            if callable(getattr(ours_, name)):
                one, other = (inspect.signature(getattr(kind, name)).parameters for kind in (ours_, theirs))
                assert [str(p) for p in one.values()] == [str(p) for p in other.values()], name


def test_the_stubs_are_those_of_the_extension() -> None:
    project = UNASYNC.parent
    environment = {**os.environ, "MYPYPATH": str(project / "python"), "PYTHONPATH": str(project / "python")}
    checked = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "pilot._pilot"], env=environment, cwd=project, text=True, capture_output=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_streams_with_the_official_names(alice: pilot.Driver, bob: pilot.Driver) -> None:
    with bob.listen(2100) as listener:
        assert listener.port == 2100

        def serve() -> None:
            with listener.accept() as conn:
                while data := conn.recv():
                    conn.write(data.upper())

        server = threading.Thread(target=serve)
        server.start()
        with alice.dial(f"{bob.address()}:2100", timeout=PATIENCE) as conn:
            assert conn.peer_addr == f"{bob.address()}:2100"
            assert conn.write(b"hello") == 5
            assert conn.read_full(5) == b"HELLO"
            assert conn.read(0) == b""
            conn.write(b"one\ntwo\nthr")
            assert conn.readline() == b"ONE\n"
            assert conn.recv(2) == b"TW"
            conn.write_eof()
            assert [line for line in conn] == [b"O\n", b"THR"]
            with pytest.raises(pilot.PilotError, match="^EOF$") as caught:
                conn.read()
            assert caught.value.code == "eof" and isinstance(caught.value, EOFError)
            assert conn.recv() == b"" and conn.at_eof()
        assert conn.closed
        with pytest.raises(pilot.ClosedError, match="connection closed"):
            conn.read()
        conn.close()
        server.join(PATIENCE)
        assert not server.is_alive()
    with pytest.raises(pilot.PilotError, match="listener closed"):
        listener.accept()


def test_dialling_by_name_and_what_can_go_wrong(alice: pilot.Driver, bob: pilot.Driver) -> None:
    with bob.listen(2101) as listener:
        for target in ("bob:2101", "bob.pilot:2101", f"{bob.info()['node_id']}:2101"):
            with alice.dial(target, timeout=PATIENCE) as conn, listener.accept() as accepted:
                assert accepted.peer_addr.startswith(alice.address())
                conn.write(b"x")
                assert accepted.read() == b"x"
        with pytest.raises(pilot.PilotError) as taken:
            bob.listen(2101)
        assert taken.value.code == "port_in_use" and taken.value.hint
    with pytest.raises(pilot.PilotError) as refused:
        alice.dial("bob:2102", timeout=PATIENCE)
    assert refused.value.code == "connection_refused"
    for bad in ("bob", "0:0000.0000.0002", "a b:1", "bob:99999"):
        with pytest.raises(ValueError) as wrong:
            alice.dial(bad)
        assert isinstance(wrong.value, pilot.ArgumentError) and wrong.value.hint
    with pytest.raises(pilot.PilotError) as unknown:
        alice.dial("nobody-of-that-name:1")
    assert unknown.value.code


def test_errors_keep_code_and_hint_when_pickled() -> None:
    error = pilot.RefusedError("no", "untrusted", "ask for trust")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is pilot.RefusedError
    assert (str(again), again.code, again.hint) == ("no", "untrusted", "ask for trust")


def test_no_daemon_is_said_at_once(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConnectionError) as caught:
        pilot.Driver(tmp_path / "none.sock")
    assert isinstance(caught.value, pilot.DaemonError)
    assert caught.value.code == "not_running" and caught.value.hint
    assert "none.sock" in str(caught.value)


def test_read_deadlines(alice: pilot.Driver, bob: pilot.Driver) -> None:
    with bob.listen(2103) as listener, alice.dial("bob:2103") as conn, listener.accept() as accepted:
        conn.set_read_deadline(time.time() + 0.05)
        with pytest.raises(TimeoutError, match="i/o timeout"):
            conn.read()
        conn.set_read_deadline(None)
        accepted.write(b"late")
        assert conn.read_full(4) == b"late"


def test_datagrams(alice: pilot.Driver, bob: pilot.Driver) -> None:
    with bob.listen(2104):
        stop = threading.Event()

        def send() -> None:
            # They promise nothing: sent until one has arrived.
            while not stop.wait(0.1):
                alice.send_to("bob:2104", b"ping")

        sender = threading.Thread(target=send)
        sender.start()
        try:
            got = bob.receive()
            assert (got.data, got.src_addr, got.dst_port) == (b"ping", alice.address(), 2104)
            official = bob.recv_from()
            assert set(official) == {"src_addr", "src_port", "dst_port", "data"}
            assert base64.b64decode(official["data"]) == b"ping"
        finally:
            stop.set()
            sender.join()
        bob.send_to(got.source, b"pong")
        assert alice.receive().data == b"pong"


def test_the_node_and_its_names(alice: pilot.Driver, bob: pilot.Driver) -> None:
    info = alice.info()
    assert info["address"] == alice.address() and info["hostname"] == "alice"
    assert alice.health()["status"] == "ok"
    assert alice.resolve_hostname("bob")["node_id"] == bob.info()["node_id"]
    assert alice.resolve("bob.pilot") == bob.address() == alice.resolve(bob.address())
    assert alice.set_tags(["a", "b"])["tags"] == ["a", "b"]
    alice.set_tags([])
    alice.set_visibility(True)
    alice.set_visibility(False)
    alice.set_hostname("alice2")
    assert bob.resolve_hostname("alice2")["node_id"] == info["node_id"]
    alice.set_hostname("alice")
    alice.set_webhook("")
    alice.set_task_exec(True)
    assert any(peer["node_id"] == info["node_id"] for peer in bob.trusted_peers()["trusted"])
    assert alice.pending_handshakes()["pending"] == []
    assert alice.wait_for_trust(bob.info()["node_id"], 1000) is True
    assert alice.wait_for_trust(4_000_000, 10) is False
    assert alice.connection_state == "connected" and alice.daemon is not None
    assert isinstance(alice.network_list()["networks"], list)
    signed = alice.sign_request("example.com", b"\0" * 32)
    assert bob.verify_request(signed["envelope"], signed["signature"])["valid"] is True
    with pytest.raises(pilot.UnsupportedError):
        alice.policy_get(1)
    with pytest.raises(pilot.PilotError) as unknown:
        alice.call("no.such_method")
    assert unknown.value.code == "unknown_method"


def test_trust_is_asked_for_granted_and_ended(lab: Lab, bob: pilot.Driver) -> None:
    with lab.node(hostname="carol") as carol:
        mine, his = carol.info()["node_id"], bob.info()["node_id"]
        with pytest.raises(pilot.PilotError) as untrusted:
            carol.dial("bob:7")
        assert untrusted.value.code
        carol.handshake(his, "may I?")
        until(lambda: any(p["node_id"] == mine for p in bob.pending_handshakes()["pending"]), "the request")
        bob.approve_handshake(mine)
        assert carol.wait_for_trust(his, int(PATIENCE * 1000))
        with carol.dial("bob:7", timeout=PATIENCE) as echo:
            echo.write(b"echo")
            assert echo.read_full(4) == b"echo"
        bob.revoke_trust(mine)
        with pytest.raises(pilot.PilotError):
            bob.revoke_trust(mine)
    with lab.node(hostname="dave") as dave:
        mine = dave.info()["node_id"]
        dave.handshake(his, "may I?")
        until(lambda: any(p["node_id"] == mine for p in bob.pending_handshakes()["pending"]), "the request")
        bob.reject_handshake(mine, "not yet")
        assert all(p["node_id"] != mine for p in bob.pending_handshakes()["pending"])


def test_messages_and_files(alice: pilot.Driver, bob: pilot.Driver, tmp_path: pathlib.Path) -> None:
    with bob.messages(mark_read=True) as inbox:
        sent = alice.send_message("bob", b"\xff\x00", "binary", message_id="m1")
        assert (sent["sent"], sent["type"], sent["target"]) == (2, "binary", bob.address())
        assert sent["ack"].startswith("ACK") and not sent["duplicate"]
        assert alice.send_message("bob", b"\xff\x00", "binary", message_id="m1")["duplicate"]
        alice.send_message("bob", '{"n":1}', "json", reply_to="m1")
        first, second = inbox.next(), next(inbox)
    assert (first.data, first.type, first.sender) == (b"\xff\x00", "binary", alice.address())
    assert first.message_id == "m1"
    assert second.json() == {"n": 1} and second.reply_to == "m1"
    assert first.name not in [message.name for message in bob.inbox(unread=True)]
    assert [message.name for message in bob.inbox()][-2:] == [first.name, second.name]
    alice.send_message("bob", "later")
    with bob.messages(existing=True) as inbox:
        assert any(message.text == "later" for message in inbox)
    with pytest.raises(pilot.ArgumentError, match="unknown type"):
        alice.send_message("bob", "x", "video")
    path = tmp_path / "report.txt"
    path.write_bytes(b"r" * 300_000)
    with bob.events("file.*") as events:
        assert alice.send_file("bob", path)["sent"] == 300_000
        assert events.next().kind == "file.received"
    with pytest.raises(pilot.PilotError, match="^File not found: "):
        alice.send_file("bob", tmp_path / "missing")


def test_the_outbox_delivers_and_brings_the_answer(alice: pilot.Driver, bob: pilot.Driver) -> None:
    def answer() -> None:
        with bob.messages(existing=True) as inbox:
            for message in inbox:
                if message.message_id == "q1":
                    bob.send_message(message.sender, "42", reply_to="q1")
                    return

    answering = threading.Thread(target=answer)
    answering.start()
    done = alice.queue_message("bob", "6 by 7?", message_id="q1", wait="reply")
    answering.join(PATIENCE)
    assert done["state"] == "replied" and done["reply"].text == "42"
    assert any(entry["message_id"] == "q1" for entry in alice.outbox(all=True))
    with pytest.raises(pilot.PilotError) as wrong:
        alice.queue_message("bob", "x", wait="forever")
    assert wrong.value.code == "invalid_argument"


def test_events_of_brokers(alice: pilot.Driver, bob: pilot.Driver) -> None:
    with bob.subscribe("alice", "news/+", pattern=True) as subscription:
        told = alice.publish("alice", "news/today", b"\x00data")
        assert told["status"] == "published" and told["bytes"] == 5 and told["delivery"] == "stored"
        event = subscription.next()
        assert event is not None and event.number == told["number"]
        assert (event.topic, event.data, event.sender) == ("news/today", b"\x00data", alice.address())
    got: list[tuple[str, bytes]] = []
    begun = threading.Event()

    def publish() -> None:
        while not begun.wait(0.05):
            bob.publish_event("alice", "loop", b"tick")

    publisher = threading.Thread(target=publish)
    publisher.start()
    # Runs at once, without being iterated.
    alice.subscribe_event("alice", "loop", callback=lambda topic, data: got.append((topic, data)), timeout=2)
    begun.set()
    publisher.join()
    assert got and got[0] == ("loop", b"tick")
    bob.publish("alice", "state", "on", retain=True)
    with bob.subscribe("alice", "state", retained=True) as again:
        kept = again.next()
        assert kept is not None and kept.retained and kept.data == b"on"


def test_tasks(alice: pilot.Driver, bob: pilot.Driver) -> None:
    with bob.tasks() as tasks:
        submitted = alice.submit_task("bob", {"op": "add", "a": 1, "b": 2})
        task = tasks.next()
        assert task.id == submitted["task_id"] and task.sender == alice.address()
        assert task.json() == {"op": "add", "a": 1, "b": 2}
        task.complete({"sum": 3})
        until(
            lambda: any(t["task_id"] == task.id and t["status"] == "SUCCEEDED" for t in alice.list_tasks("submitted")),
            "the results",
        )
    # Alice has paid with her score, so that now it is bob who may ask.
    with alice.tasks() as tasks:
        other = bob.submit_task("alice", {"task_id": "t-2", "task_description": "no"})
        assert other["task_id"] == "t-2"
        second = tasks.next()
        assert second.description == "no"
        second.decline("not today")
        assert second.status == "DECLINED"


def test_what_waits_lets_others_run_and_close_wakes_it(sockets: tuple[str, str]) -> None:
    driver = pilot.Driver(sockets[1])
    listener = driver.listen(2105)
    failures: list[pilot.PilotError] = []

    def wait(call: object) -> None:
        assert callable(call)
        try:
            call()
        except pilot.PilotError as error:
            failures.append(error)

    events = driver.events()
    calls = (listener.accept, driver.receive, lambda: [None for _ in events])
    threads = [threading.Thread(target=wait, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    # The interpreter is free while three threads wait.
    assert sum(range(100_000)) == 4_999_950_000
    driver.close()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert len(failures) == 3 and all(isinstance(error, pilot.ClosedError) for error in failures)
    with pytest.raises(pilot.ClosedError):
        driver.info()
    driver.close()


def test_ctrl_c_interrupts_a_wait(sockets: tuple[str, str]) -> None:
    with pilot.Driver(sockets[1]) as driver, driver.listen(2106) as listener:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            listener.accept()


def _in_child(driver: pilot.Driver, socket: str, told: object) -> None:
    send = getattr(told, "send")
    try:
        driver.info()
        send("used")
    except pilot.PilotError as error:
        send(error.code)
    with pilot.Driver(socket) as own:
        send(own.info()["hostname"])


def test_after_a_fork_the_child_is_told(alice: pilot.Driver, sockets: tuple[str, str]) -> None:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_in_child, args=(alice, sockets[0], theirs))
    process.start()
    assert ours.poll(PATIENCE) and ours.recv() == "forked"
    assert ours.poll(PATIENCE) and ours.recv() == "alice"
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert alice.info()["hostname"] == "alice"


def _reads_in_child(conn: pilot.Conn, inbox: pilot.Messages, told: object) -> None:
    send = getattr(told, "send")
    for read in (conn.recv, inbox.next):
        try:
            read()
        except pilot.PilotError as error:
            send(error.code)


def test_after_a_fork_the_child_waits_for_no_thread_of_its_parent(alice: pilot.Driver, bob: pilot.Driver) -> None:
    with bob.listen(2107) as listener, alice.dial("bob:2107") as conn, listener.accept() as accepted:
        with alice.messages() as inbox:
            got: list[object] = []
            waiting = [threading.Thread(target=lambda: got.append(conn.recv()))]
            waiting.append(threading.Thread(target=lambda: got.append(inbox.next())))
            for thread in waiting:
                thread.start()
            until(lambda: conn._lock.locked() and inbox._lock.locked(), "both to wait")
            ours, theirs = multiprocessing.Pipe()
            process = multiprocessing.get_context("fork").Process(target=_reads_in_child, args=(conn, inbox, theirs))
            process.start()
            for _ in range(2):
                assert ours.poll(PATIENCE) and ours.recv() == "forked"
            process.join(PATIENCE)
            accepted.write(b"x")
            bob.send_message("alice", "x")
            for thread in waiting:
                thread.join(PATIENCE)
            assert len(got) == 2
