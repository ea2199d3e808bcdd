//! The service manager (systemd): told when the daemon is ready, reloads and stops, and fed while its driver turns. Where
//! there is none (`NOTIFY_SOCKET` is not set) nothing happens.

use std::time::Duration;

use pilot_env::Env;
use sd_notify::NotifyState;

use crate::node::Monitor;

/// The watchdog is fed this many times within its time.
const FEEDS: u32 = 3;
/// However short the time is.
const SHORTEST: Duration = Duration::from_millis(10);

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}

/// Local programs are served.
pub(super) fn ready(monitor: &Monitor) {
    tell(&[NotifyState::Ready, NotifyState::Status(status(monitor.is_registered()))]);
}

/// The settings are read again; [`ready`] follows.
pub(super) fn reloading() {
    let now = NotifyState::monotonic_usec_now();
    tell(&[NotifyState::Reloading]);
    // Type=notify-reload wants to know when; without a monotonic clock it does without.
    if let Ok(now) = now {
        tell(&[now]);
    }
}

/// The end has begun.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

fn status(registered: bool) -> &'static str {
    if registered { "registered" } else { "not registered; trying again" }
}

/// Feeds the watchdog, if there is one, and keeps the status line true, until it is dropped.
pub(super) async fn attend(env: Env, monitor: Monitor) {
    let feeding = async {
        let Some(limit) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
        loop {
            env.sleep((limit / FEEDS).max(SHORTEST)).await;
            if monitor.is_alive().await {
                tell(&[NotifyState::Watchdog]);
            } else {
                tracing::error!("the driver does not turn; the service manager will restart the daemon");
            }
        }
    };
    let telling = async {
        while let Some(registered) = monitor.registration_changed().await {
            tell(&[NotifyState::Status(status(registered))]);
        }
    };
    tokio::join!(feeding, telling);
}
