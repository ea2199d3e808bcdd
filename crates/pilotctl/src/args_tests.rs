//! The argument rules as a table.

use super::*;
use crate::table;

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn run(command: &str, line: &str) -> Result<Args, CliError> {
    match Args::parse(table::find(command).unwrap(), &words(line))? {
        Parsed::Run(args) => Ok(args),
        Parsed::Help => panic!("help"),
    }
}

fn message(command: &str, line: &str) -> String {
    run(command, line).unwrap_err().message
}

#[test]
fn a_flag_is_written_in_five_ways() {
    for line in ["bob --count 3", "--count 3 bob", "bob --count=3", "-count 3 bob", "bob -count=3"] {
        let args = run("ping", line).unwrap();
        assert_eq!((args.word(0), args.int("count", 4)), ("bob", Ok(3)), "{line}");
    }
}

#[test]
fn the_last_flag_counts_and_negative_numbers_are_words() {
    assert_eq!(run("ping", "bob --count 3 --count 5").unwrap().int("count", 4), Ok(5));
    let args = run("bench", "alice -1").unwrap();
    assert_eq!((args.word(0), args.word(1)), ("alice", "-1"));
    assert_eq!(run("recv", "3000 --timeout -1s").unwrap().span("timeout", Span::seconds(30)), Ok(Span::seconds(-1)));
}

#[test]
fn values_may_begin_with_dashes_when_attached() {
    assert_eq!(run("send", "1 7 --data=--x").unwrap().flag("data"), Some("--x"));
    assert_eq!(run("send", "1 7 --data=a=b").unwrap().flag("data"), Some("a=b"));
}

#[test]
fn mistakes_are_reported_and_not_guessed_around() {
    assert_eq!(message("send", "1 7 --data"), "--data needs a value");
    assert_eq!(message("send", "1 7 --data --timeout 2s"), "--data needs a value");
    assert_eq!(message("ping", "bob --cuont 3"), "unknown flag \"--cuont\" for ping");
    assert_eq!(message("ping", "bob -x"), "unknown flag \"-x\" for ping");
    assert_eq!(message("ping", "bob carol"), "unexpected argument \"carol\"");
    assert_eq!(message("info", "now"), "unexpected argument \"now\"");
    assert_eq!(message("daemon status", "--check=maybe"), "invalid boolean for --check: \"maybe\"");
    assert_eq!(message("daemon status", "--check now"), "unexpected argument \"now\"");
}

#[test]
fn switches_read_truth_values_and_nothing_else() {
    for line in ["--check", "--check=true", "--check=1", "--check=", "--check true", "-check"] {
        assert!(run("daemon status", line).unwrap().is_set("check"), "{line}");
    }
    for line in ["", "--check=false", "--check false", "--check --check=0"] {
        assert!(!run("daemon status", line).unwrap().is_set("check"), "{line}");
    }
}

#[test]
fn raw_commands_take_dashes_as_text() {
    let args = Args::parse(table::find("handshake").unwrap(), &["bob".into(), "--please".into()]).unwrap();
    let Parsed::Run(args) = args else { panic!("help") };
    assert_eq!(args.get(1), Some("--please"));
    assert!(matches!(Args::parse(table::find("handshake").unwrap(), &words("--help")), Ok(Parsed::Help)));
    assert!(matches!(Args::parse(table::find("ping").unwrap(), &words("bob -h")), Ok(Parsed::Help)));
}

#[test]
fn json_is_taken_off_the_line_wherever_it_stands() {
    let mut line = words("--json connect x --message --json y");
    assert!(take_json(&mut line));
    assert_eq!(line, words("connect x --message y"));
    assert!(!take_json(&mut line));
}

#[test]
fn numbers_fail_in_the_official_words() {
    assert_eq!(
        port("abc").unwrap_err().message,
        "invalid port \"abc\": strconv.ParseUint: parsing \"abc\": invalid syntax"
    );
    assert_eq!(
        node("4294967296").unwrap_err().message,
        "invalid node_id \"4294967296\": strconv.ParseUint: parsing \"4294967296\": value out of range"
    );
    assert_eq!(
        bare_node("abc").unwrap_err().message,
        "invalid node_id: strconv.ParseUint: parsing \"abc\": invalid syntax"
    );
}

#[test]
fn a_switch_can_stand_for_the_first_word() {
    assert_eq!(run("broadcast", "--trusted hello").unwrap().words(), ["hello"]);
    assert_eq!(run("broadcast", "7 hello").unwrap().words(), ["7", "hello"]);
    for short in ["", "7", "--trusted", "--trusted=false hello"] {
        assert!(
            message("broadcast", short).starts_with("usage: pilotctl broadcast <network_id> <message>"),
            "{short:?}"
        );
    }
}
