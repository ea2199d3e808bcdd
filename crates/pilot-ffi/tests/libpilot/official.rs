//! The official Python SDKs, installed from their wheels, over our library and our daemons.

use pilot_testkit::isolate::isolated;
use pilot_testkit::official::{self, NEWEST, SDKS, need_wheels};
use pilot_testkit::programs::{need_programs, ours};
use serde_json::{Value, json};

use crate::{Pair, embedded_settings, file, succeeds, with_interpreter};

fn run(name: &str, version: &str) {
    isolated(name, &[need_programs, need_wheels], || {
        let pair = Pair::start();
        let home = tempfile::tempdir().expect("home");
        let place = home.path();
        // Here, where no other host can be reached: what the wheel brings along is never started anywhere else.
        let wheel = official::wheel(version).expect("wheel");
        let python = official::install(&wheel, &place.join("venv")).expect("virtual environment");
        let agent = |agent: &pilot_testkit::agent::Agent| -> Value {
            json!({ "socket": agent.socket(), "home": agent.home() })
        };
        let settings = json!({
            "version": version,
            "place": place,
            "vectors": file("tests/vectors/cli-sdk-python.json"),
            "embedded_vectors": file("tests/vectors/cli-libpilot-embedded.json"),
            "alice": agent(&pair.alice),
            "bob": agent(&pair.bob),
            "pilotctl": ours().ctl,
            "registry": pair.rendezvous.registry().to_string(),
            "beacon": pair.rendezvous.beacon().to_string(),
            "quiet_flags": official::quiet_flags(version),
            "embedded": embedded_settings(&pair, place),
        });
        let mut script = with_interpreter(&python, "official_sdk.py", place);
        succeeds(script.arg(settings.to_string()));
    });
}

#[test]
fn the_newest_python_sdk_runs_unmodified() {
    run("official::the_newest_python_sdk_runs_unmodified", NEWEST);
}

#[test]
fn the_first_python_sdk_runs_unmodified() {
    run("official::the_first_python_sdk_runs_unmodified", SDKS[0]);
}
