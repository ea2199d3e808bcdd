//! Where a client sits: as a task in this process, or as a process of its own. Either can be asked the same things.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::client::Client;
use super::plan::{Order, Plan, Report};

/// Where all clients report: client, daemon, report.
pub(super) type Inbox = mpsc::UnboundedSender<(usize, usize, Report)>;

/// A client at work.
pub(super) struct Seat {
    orders: mpsc::UnboundedSender<Order>,
    body: Body,
}

enum Body {
    Task(JoinHandle<()>),
    Process { child: Child, reader: JoinHandle<()>, expected: Arc<AtomicBool> },
}

impl Seat {
    /// A client as a task.
    pub(super) fn task(plan: Plan, inbox: &Inbox) -> Self {
        let (orders, received) = mpsc::unbounded_channel();
        let (reports, mut out) = mpsc::unbounded_channel();
        let (inbox, client, daemon) = (inbox.clone(), plan.client, plan.daemon);
        let task = tokio::spawn(async move {
            let work = tokio::spawn(Client::new(plan, received, reports).run());
            while let Some(report) = out.recv().await {
                // The conductor outlives its clients.
                let _ = inbox.send((client, daemon, report));
            }
            if let Err(error) = work.await {
                let _ = inbox.send((client, daemon, Report::Wrong(format!("client {client}: {error}"))));
            }
        });
        Self { orders, body: Body::Task(task) }
    }

    /// A client as a process.
    pub(super) fn process(plan: &Plan, inbox: &Inbox, log: PathBuf) -> Result<Self> {
        let log = std::fs::File::options().create(true).append(true).open(log)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("client").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true);
        let mut child = command.spawn().context("start a client process")?;
        let (mut input, output) = child.stdin.take().zip(child.stdout.take()).context("pipes")?;
        let (orders, mut received) = mpsc::unbounded_channel::<Order>();
        let mut line = serde_json::to_string(plan)?;
        tokio::spawn(async move {
            loop {
                line.push('\n');
                // A process that was killed reads no more.
                if input.write_all(line.as_bytes()).await.is_err() {
                    return;
                }
                let Some(order) = received.recv().await else { return };
                line = serde_json::to_string(&order).unwrap_or_default();
            }
        });
        let expected = Arc::new(AtomicBool::new(false));
        let (inbox, client, daemon, wanted) = (inbox.clone(), plan.client, plan.daemon, expected.clone());
        let reader = tokio::spawn(async move {
            let mut lines = BufReader::new(output).lines();
            let mut torn = None;
            while let Ok(Some(line)) = lines.next_line().await {
                let report = match serde_json::from_str(&line) {
                    Ok(report) => report,
                    Err(_) => {
                        torn = Some(line);
                        continue;
                    }
                };
                if matches!(report, Report::Stopped) {
                    wanted.store(true, Ordering::Relaxed);
                }
                let _ = inbox.send((client, daemon, report));
            }
            // Only a process that was killed ends in the middle of a line.
            if !wanted.load(Ordering::Relaxed) {
                let text = format!("client process {client} ended by itself; last words: {torn:?}");
                let _ = inbox.send((client, daemon, Report::Wrong(text)));
            }
        });
        Ok(Self { orders, body: Body::Process { child, reader, expected } })
    }

    /// Tells the client something.
    pub(super) fn order(&self, order: Order) {
        // A client that has ended says so itself.
        let _ = self.orders.send(order);
    }

    /// Process id, if it is a process.
    pub(super) fn pid(&self) -> Option<u32> {
        match &self.body {
            Body::Task(_) => None,
            Body::Process { child, .. } => child.id(),
        }
    }

    /// SIGKILL, and waits until everything it had said was read. A task cannot be killed.
    pub(super) async fn kill(self) -> Result<()> {
        if let Body::Process { mut child, reader, expected } = self.body {
            expected.store(true, Ordering::Relaxed);
            child.kill().await?;
            reader.await?;
        }
        Ok(())
    }

    /// Closes everything and waits for the end.
    pub(super) async fn stop(self) -> Result<()> {
        self.order(Order::Stop);
        match self.body {
            Body::Task(task) => task.await?,
            Body::Process { mut child, reader, .. } => {
                reader.await?;
                let status = child.wait().await?;
                anyhow::ensure!(status.success(), "a client process ended with {status}");
            }
        }
        Ok(())
    }
}
