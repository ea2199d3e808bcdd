//! Tasks on port 1003: frames and files of official programs.

use pilot_wire::service::tasks::{
    Content, Frame, Response, Results, Status, StatusUpdate, Submit, TaskError, TaskFile, id, is_id, kind,
};

use super::{bytes, load, rows, text};

#[test]
fn frames_parse_and_re_encode_to_the_same_bytes() {
    let file = load("services-task");
    for row in rows(&file, "frames") {
        let wire = bytes(text(row, "wire_hex"));
        let (frame, used) = Frame::parse(&wire).unwrap().unwrap();
        assert_eq!((used, frame.kind), (wire.len(), row["type"].as_u64().unwrap() as u32));
        assert_eq!(frame.body, text(row, "payload_utf8").as_bytes());
        for cut in 0..wire.len() {
            assert_eq!(Frame::parse(&wire[..cut]), Ok(None));
        }
        let body = match (frame.kind, text(row, "name")) {
            (kind::SUBMIT, "submit request") => Submit::parse(frame.body).unwrap().emit(),
            (kind::SUBMIT, _) => Response::parse(frame.body).unwrap().emit(),
            (kind::STATUS_UPDATE, _) => StatusUpdate::parse(frame.body).unwrap().emit(),
            (kind::SEND_RESULTS, _) => Results::parse(frame.body).unwrap().emit(),
            _ => frame.body.to_vec(),
        };
        assert_eq!(body, frame.body, "{row}");
        assert_eq!(frame.emit().unwrap(), wire);
    }
}

#[test]
fn files_parse_and_re_encode_to_the_same_text() {
    let file = load("services-task");
    for row in rows(&file, "task_files") {
        let task = TaskFile::parse(text(row, "file_utf8").as_bytes()).unwrap();
        assert_eq!(String::from_utf8(task.emit()).unwrap(), text(row, "file_utf8"));
        assert!(task.status().is_some() && task.created_ms() > 0);
    }
    let file = load("cli-files");
    let tasks =
        rows(&file, "files").iter().filter(|row| text(row, "path").starts_with("tasks/") && row["text"].is_string());
    let texts: Vec<String> = tasks
        .map(|row| text(row, "text").replace("<rfc3339>", "2026-02-27T10:11:12Z").replace("<task_id>", "a-1"))
        .collect();
    assert_eq!(texts.len(), 3);
    for text in texts {
        let task = TaskFile::parse(text.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(task.emit()).unwrap(), text);
    }
}

#[test]
fn ids_that_are_no_file_names_are_refused() {
    assert_eq!(id(*b"0123456789abcdef"), "30313233-3435-3637-3839-616263646566");
    for good in ["a", "2e28d2e9-b3dc-87c4-fd09-d2cb9a2df6ec", "-", &"x".repeat(64)] {
        assert!(is_id(good));
    }
    for bad in ["", "..", "../../trust", "a/b", "a.json", "a_b", "é", "a b", "a\0", &"x".repeat(65)] {
        assert!(!is_id(bad), "{bad}");
        let body = format!("{{\"task_id\":{}}}", serde_json::Value::from(bad));
        assert_eq!(Submit::parse(body.as_bytes()), Err(TaskError::Field("task_id")));
        assert_eq!(StatusUpdate::parse(body.as_bytes()), Err(TaskError::Field("task_id")));
        assert_eq!(Results::parse(body.as_bytes()), Err(TaskError::Field("task_id")));
    }
}

#[test]
fn what_the_official_decoder_takes_is_taken() {
    let text = br#" {"TASK_ID":"a","Status":"X","justification":null,"more":[1]} "#;
    let update = StatusUpdate { task_id: "a".into(), status: "X".into(), justification: String::new() };
    assert_eq!(StatusUpdate::parse(text), Ok(update));
    // A file without content counts as text.
    let results = Results::parse(br#"{"task_id":"a","result_type":"file","filename":"f","result_text":"t"}"#).unwrap();
    assert_eq!(results.content, Content::Text("t".into()));
    for bad in [
        &b"[]"[..],
        b"{",
        b"{\"task_id\":1}",
        b"{\"task_id\":\"a\",\"time_cpu_ms\":1.5}",
        b"{\"task_id\":\"a\",\"file_data\":\"?\"}",
    ] {
        assert!(Results::parse(bad).is_err());
    }
    assert_eq!(Frame::parse(b"\0\0\0\x01\x01\0\0\x01"), Err(TaskError::TooLarge(16_777_217)));
}

#[test]
fn life_never_goes_back() {
    use Status::{Accepted, Cancelled, Completed, Declined, Executing, Expired, New, Succeeded};
    for status in [New, Accepted, Declined, Executing, Completed, Succeeded, Cancelled, Expired] {
        assert_eq!(Status::from_name(status.as_str()), Some(status));
        assert!(!status.may_become(status) && !status.may_become(New));
    }
    assert!(New.may_become(Expired) && New.may_become(Succeeded) && Completed.may_become(Succeeded));
    assert!(!Succeeded.may_become(Completed) && !Declined.may_become(Executing) && !Executing.may_become(Accepted));
}
