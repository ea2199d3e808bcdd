use super::*;
use proptest::prelude::*;

const PROGRAM: Program = Program {
    name: "test-program",
    about: "shows flags",
    flags: &[
        Flag::text("config", "", "JSON config file"),
        Flag::uint("n", "7", 0, 2_000_000, "a number"),
        Flag::switch_on("encrypt", "encrypt"),
        Flag::switch("tls", "serve TLS"),
        Flag::duration("keepalive", "9s", "interval"),
        Flag::text("s-x", "def", "text"),
        Flag::host_port("listen", ":9000", "where to listen"),
        Flag::one_of("log-level", &["debug", "info", "warn", "error"], "info", "verbosity"),
    ],
};

fn parse(args: &[&str]) -> Result<Flags, ArgsError> {
    PROGRAM.parse_with(args.iter().map(OsString::from), |path| Err(format!("no file {path} here")))
}

fn parse_file(text: &str, args: &[&str]) -> Result<Flags, ArgsError> {
    let args = ["-config", "c.json"].iter().chain(args).map(OsString::from);
    PROGRAM.parse_with(args, |_| Ok(text.to_owned()))
}

#[test]
fn the_declaration_is_sound() {
    PROGRAM.check();
}

#[test]
fn all_spellings_of_a_flag_mean_the_same() {
    for args in [&["-n", "5"][..], &["-n=5"], &["--n", "5"], &["--n=5"], &["-n", "0x5"], &["-n=0b101"]] {
        assert_eq!(parse(args).unwrap().uint("n"), 5, "{args:?}");
    }
    for args in [&["-tls"][..], &["--tls"], &["-tls=true"], &["--tls=1"], &["-tls=T"]] {
        assert!(parse(args).unwrap().bool("tls"), "{args:?}");
    }
    assert!(!parse(&["-encrypt=false"]).unwrap().bool("encrypt"));
    assert_eq!(parse(&["-s-x="]).unwrap().text("s-x"), "");
    assert_eq!(parse(&["-s-x", "-n"]).unwrap().text("s-x"), "-n", "the word after a flag is its value");
    assert_eq!(parse(&["-n", "1", "-n", "2"]).unwrap().uint("n"), 2, "the last one counts");
    assert_eq!(parse(&["-log-level", "WARN"]).unwrap().text("log-level"), "warn");
}

#[test]
fn defaults_apply_when_nothing_is_given() {
    let flags = parse(&[]).unwrap();
    assert_eq!(flags.uint("n"), 7);
    assert!(flags.bool("encrypt"));
    assert_eq!(flags.duration("keepalive"), Duration::from_secs(9));
    assert_eq!(flags.text("listen"), ":9000");
    assert_eq!(flags.source("n"), Source::Default);
    assert!(!flags.is_set("n"));
    assert_eq!(flags.non_empty("config"), None);
}

#[test]
fn a_bad_command_line_says_what_and_what_was_expected() {
    let text = |args: &[&str]| {
        let error = parse(args).unwrap_err();
        assert_eq!(error.exit_status(), 2);
        error.to_string()
    };
    assert_eq!(text(&["-keepaliv", "3s"]), "unknown flag -keepaliv (did you mean keepalive?)");
    assert_eq!(text(&["-log_level", "info"]), "unknown flag -log_level (did you mean log-level?)");
    assert_eq!(text(&["-zzz"]), "unknown flag -zzz");
    assert_eq!(text(&["-n"]), "flag -n needs a value: an integer from 0 to 2000000");
    assert_eq!(text(&["-n", "x"]), "invalid value \"x\" for flag -n: expected an integer from 0 to 2000000");
    assert!(text(&["-n", "2000001"]).contains("from 0 to 2000000"));
    assert!(text(&["-n", "-1"]).contains("expected an integer"));
    assert!(text(&["-tls=yes"]).contains("true or false"));
    assert!(text(&["-keepalive", "30"]).contains("with a unit"));
    assert!(text(&["-listen", "9000"]).contains("host:port"));
    assert!(text(&["-log-level", "loud"]).contains("debug, info, warn, error"));
    assert!(text(&["-tls", "false"]).contains("write -tls=VALUE"));
    for junk in ["word", "-", "--", "---n", "-=5"] {
        assert_eq!(parse(&[junk]).unwrap_err().code(), "unexpected_argument", "{junk}");
    }
    for help in ["-h", "--help", "-help"] {
        let error = parse(&[help]).unwrap_err();
        assert_eq!((error.clone(), error.exit_status()), (ArgsError::Help, 0));
    }
}

#[test]
fn the_command_line_wins_over_the_file_and_the_file_over_the_default() {
    let flags = parse_file(r#"{"n": 1000000, "keepalive": "30s", "log_level": "error"}"#, &["-keepalive=5s"]).unwrap();
    assert_eq!((flags.uint("n"), flags.source("n")), (1_000_000, Source::File));
    assert_eq!((flags.duration("keepalive"), flags.source("keepalive")), (Duration::from_secs(5), Source::CommandLine));
    assert_eq!(flags.text("log-level"), "error");
    assert_eq!(parse_file(r#"{"s_x":"under","s-x":"hyphen"}"#, &[]).unwrap().text("s-x"), "hyphen");
    assert_eq!(parse_file(r#"{"s-x":5}"#, &[]).unwrap().text("s-x"), "5");
    assert_eq!(parse_file(r#"{"n":1e6}"#, &[]).unwrap().uint("n"), 1_000_000);
    assert!(!parse_file(r#"{"encrypt":0}"#, &[]).unwrap().bool("encrypt"));
}

#[test]
fn a_bad_file_is_an_error_and_never_a_silent_default() {
    let text = |file: &str| {
        let error = parse_file(file, &[]).unwrap_err();
        assert_eq!(error.exit_status(), 1);
        error.to_string()
    };
    assert_eq!(
        text(r#"{"encrypt": "yes"}"#),
        r#"config file c.json: invalid value "yes" for "encrypt": expected true or false"#
    );
    assert_eq!(
        text(r#"{"keepalive": 30}"#),
        "config file c.json: invalid value 30 for \"keepalive\": expected a duration with a unit, such as 30s, 1m30s or 250ms"
    );
    assert!(text(r#"{"encrpt": true}"#).contains("unknown key \"encrpt\" (did you mean encrypt?)"));
    for bad in
        [r#"{"n": 2.5}"#, r#"{"n":true}"#, r#"{"n":-1}"#, r#"{"s-x":["a"]}"#, r#"{"s-x":null}"#, r#"{"n":"abc"}"#]
    {
        assert!(text(bad).contains("invalid value"), "{bad}");
    }
    for bad in ["[]", "", "{", r#"{"s-x":"a"} junk"#, "null", "5"] {
        assert!(text(bad).contains("not a JSON object"), "{bad}");
    }
    // An error in the file is found even where the command line overrides the value.
    assert!(parse_file(r#"{"n":"abc"}"#, &["-n=1"]).is_err());
    assert!(parse(&["-config", "gone.json"]).unwrap_err().to_string().contains("gone.json"));
}

#[test]
fn a_config_file_is_read_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.json");
    assert_eq!(PROGRAM.parse(["-config".into(), path.clone().into()]).unwrap_err().code(), "config_unreadable");
    let mut file = tempfile::Builder::new().tempfile_in(&dir).unwrap();
    std::io::Write::write_all(&mut file, br#"{"n": 11}"#).unwrap();
    assert_eq!(PROGRAM.parse(["-config".into(), file.path().into()]).unwrap().uint("n"), 11);
    assert_eq!(PROGRAM.parse(["-config".into(), dir.path().into()]).unwrap_err().code(), "config_unreadable");
}

#[test]
fn durations_are_read_as_the_official_programs_write_them() {
    let ms = Duration::from_millis;
    for (text, expected) in [
        ("0", Some(ms(0))),
        ("30s", Some(ms(30_000))),
        ("1m30s", Some(ms(90_000))),
        ("1.5h", Some(ms(5_400_000))),
        (".5s", Some(ms(500))),
        ("250ms", Some(ms(250))),
        ("1us", Some(Duration::from_micros(1))),
        ("1µs", Some(Duration::from_micros(1))),
        ("+3s", Some(ms(3000))),
        ("-3s", None),
        ("30", None),
        ("s", None),
        ("", None),
        (".", None),
        (".s", None),
        ("3 s", None),
        ("3d", None),
        ("1e3s", None),
        ("99999999999999999999h", None),
    ] {
        assert_eq!(parse_duration(text), expected, "{text}");
    }
}

#[test]
fn addresses_split_at_the_last_colon() {
    for (text, expected) in [
        (":9000", Some(("", 9000))),
        ("127.0.0.1:9000", Some(("127.0.0.1", 9000))),
        ("[::1]:0", Some(("::1", 0))),
        ("registry.example:65535", Some(("registry.example", 65535))),
        ("::1:9000", None),
        ("[host]:9000", None),
        ("host", None),
        ("host:", None),
        ("host:http", None),
        ("host:65536", None),
        ("host:+5", None),
        ("ho st:5", None),
    ] {
        assert_eq!(split_host_port(text), expected, "{text}");
    }
}

#[test]
fn usage_names_every_flag_and_default() {
    let usage = PROGRAM.usage();
    for flag in PROGRAM.flags {
        assert!(usage.contains(&format!("  -{}", flag.name)), "{usage}");
    }
    assert!(usage.contains("(default 9s)") && usage.contains("(debug, info, warn, error)"), "{usage}");
}

proptest! {
    #[test]
    fn any_arguments_and_any_file_give_values_or_an_error(args in prop::collection::vec(".{0,12}", 0..6), file in ".{0,40}") {
        let _ = PROGRAM.parse_with(args.iter().map(OsString::from), |_| Ok(file.clone()));
        let _ = PROGRAM.parse_with(["-config".into(), "x".into()], |_| Ok(file.clone()));
        let _ = parse_duration(&file);
        let _ = split_host_port(&file);
    }
}
