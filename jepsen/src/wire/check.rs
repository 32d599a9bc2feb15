//! The wire tried out: three echo servers, and every fault with what a client sees of it.
//!
//! Deliberately absent: the cluster. A fault that this finds to do nothing would prove nothing of a cluster either.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{Count, HARNESS, Links, Wire, echo_client};
use crate::until::until;

const NODES: [u64; 3] = [1, 2, 3];
/// Always the same choices: what is lost once is lost every time.
const SEED: u64 = 77;
const PORT: u16 = 7_000;
/// How long anything may take that is to succeed, on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);
/// How long an answer is waited for that must not come.
const SHORT: Duration = Duration::from_millis(700);
/// One way, and how much a busy machine may add to a round trip.
const DELAY: Duration = Duration::from_millis(200);
const SLACK: Duration = Duration::from_millis(150);
const LOSS: f64 = 0.3;
const DATAGRAMS: u64 = 1_000;
/// Sent at once: fewer than wait in any queue.
const BURST: u64 = 50;
/// Five standard deviations of how many of so many are lost are 73.
const SPREAD: u64 = 73;
const RATE: u64 = 50_000;
const BYTES: usize = 50_000;

/// Tries a wire out. To be run inside, by a program that knows `echo-server ADDRESS` and `echo-client ADDRESS MILLIS`.
pub async fn self_test() -> Result<()> {
    let bench = Bench::start().await?;
    bench.step("a healthy wire", bench.whole()).await?;
    bench.step("delay", bench.delay()).await?;
    bench.step("a cut has a direction", bench.cut()).await?;
    bench.step("isolation", bench.isolation()).await?;
    bench.step("loss", bench.loss()).await?;
    bench.step("rate", bench.rate()).await?;
    bench.step("a device that goes down", bench.device()).await
}

struct Bench {
    program: PathBuf,
    /// Before the wire: they end first.
    _servers: Vec<Child>,
    wire: Wire,
}

impl Bench {
    async fn start() -> Result<Self> {
        let wire = Wire::start(&NODES, SEED)?;
        let program = std::env::current_exe()?;
        let mut bench = Self { program, _servers: Vec::new(), wire };
        for node in NODES {
            let server = bench.within(node, "echo-server")?.arg(bench.at(node).to_string()).spawn()?;
            bench._servers.push(server);
        }
        for node in NODES {
            let address = bench.at(node);
            until("a server answers", LIMIT, || async { Ok(echo_client(address, LIMIT).await.ok()) }).await?;
        }
        Ok(bench)
    }

    /// One thing to try, and everything whole again after it.
    async fn step(&self, name: &str, step: impl Future<Output = Result<()>>) -> Result<()> {
        step.await.with_context(|| format!("{name}: {:?}", self.wire.counters()))?;
        self.wire.heal();
        for from in NODES {
            for to in NODES.into_iter().filter(|to| *to != from) {
                ensure!(self.reaches(from, to, LIMIT).await?, "{name}: node {from} does not reach {to} once healed");
            }
        }
        eprintln!("{name}: as it should be");
        Ok(())
    }

    async fn whole(&self) -> Result<()> {
        for node in NODES {
            ensure!(self.round_trip(node).await? < SLACK, "node {node} answers late without any fault");
        }
        Ok(())
    }

    async fn delay(&self) -> Result<()> {
        self.wire.delay(Links::Between(HARNESS, 1), DELAY, Duration::ZERO);
        let both_ways = self.round_trip(1).await?;
        ensure!((2 * DELAY..2 * DELAY + SLACK).contains(&both_ways), "delayed both ways: {both_ways:?}");
        self.wire.delay(Links::OutOf(HARNESS), Duration::ZERO, Duration::ZERO);
        let one_way = self.round_trip(1).await?;
        ensure!((DELAY..DELAY + SLACK).contains(&one_way), "delayed one way: {one_way:?}");
        let other = self.round_trip(2).await?;
        ensure!(other < SLACK, "another link is delayed: {other:?}");
        self.wire.heal();
        let healed = self.round_trip(1).await?;
        ensure!(healed < DELAY, "healed: {healed:?}");
        Ok(())
    }

    async fn cut(&self) -> Result<()> {
        self.wire.cut(2, 1);
        let before = (self.count(1, 2)?, self.count(2, 1)?);
        ensure!(!self.reaches(1, 2, SHORT).await?, "node 1 is answered over a cut link");
        let after = (self.count(1, 2)?, self.count(2, 1)?);
        ensure!(after.0.passed > before.0.passed, "nothing passed against the direction of the cut");
        ensure!(after.0.dropped == before.0.dropped, "dropped against the direction of the cut");
        ensure!(after.1.dropped > before.1.dropped, "nothing was dropped");
        ensure!(after.1.passed == before.1.passed, "passed over a cut link");
        ensure!(self.reaches(1, 3, LIMIT).await? && self.reaches(3, 2, LIMIT).await?, "another link is cut");
        Ok(())
    }

    async fn isolation(&self) -> Result<()> {
        self.wire.isolate(2);
        ensure!(!self.reaches(1, 2, SHORT).await? && !self.reaches(2, 3, SHORT).await?, "node 2 is not isolated");
        ensure!(self.reaches(1, 3, LIMIT).await?, "the others are cut off too");
        self.round_trip(2).await.context("a client must reach an isolated node")?;
        self.wire.isolate_from_all(2);
        ensure!(echo_client(self.at(2), SHORT).await.is_err(), "a client reaches a node that is isolated from all");
        Ok(())
    }

    async fn loss(&self) -> Result<()> {
        self.wire.loss(Links::OutOf(HARNESS), LOSS);
        let answered = self.datagrams(3, DATAGRAMS).await?;
        let expected = (DATAGRAMS as f64 * (1.0 - LOSS)) as u64;
        ensure!(answered.abs_diff(expected) <= SPREAD, "{answered} answers, where about {expected} were to come");
        self.wire.heal();
        let answered = self.datagrams(3, DATAGRAMS).await?;
        ensure!(answered == DATAGRAMS, "{answered} of {DATAGRAMS} answers from a healed wire");
        Ok(())
    }

    /// Sends datagrams to a node's server, burst by burst, and counts the answers.
    async fn datagrams(&self, node: u64, count: u64) -> Result<u64> {
        let socket = UdpSocket::bind((Wire::harness(), 0)).await?;
        let before = self.count(HARNESS, node)?;
        let (mut sent, mut answered, mut buffer) = (0, 0, [0_u8; 8]);
        while sent < count {
            for _ in 0..BURST {
                socket.send_to(b"x", self.at(node)).await?;
            }
            sent += BURST;
            let decided = until("every datagram is decided about", LIMIT, || async {
                let decided = self.count(HARNESS, node)?.since(&before);
                Ok((decided.passed + decided.dropped >= sent).then_some(decided))
            })
            .await?;
            while answered < decided.passed {
                let answer = timeout(LIMIT, socket.recv_from(&mut buffer)).await;
                answer.context("a datagram that passed is not answered")??;
                answered += 1;
            }
        }
        let more = timeout(SHORT, socket.recv_from(&mut buffer)).await;
        ensure!(more.is_err(), "more answers came than datagrams passed");
        Ok(answered)
    }

    async fn rate(&self) -> Result<()> {
        let mut stream = TcpStream::connect(self.at(1)).await?;
        self.wire.rate(Links::OutOf(HARNESS), RATE);
        let begun = Instant::now();
        let (mut from, mut to) = stream.split();
        let (piece, mut answer) = (vec![7_u8; BYTES], vec![0_u8; BYTES]);
        let exchange = async { tokio::try_join!(to.write_all(&piece), from.read_exact(&mut answer)) };
        timeout(LIMIT, exchange).await.context("too slow")??;
        let (took, least) = (begun.elapsed(), Duration::from_secs(1) * 4 / 5);
        ensure!(took >= least, "{BYTES} bytes took {took:?} at {RATE} bytes a second");
        ensure!(answer == piece, "other bytes came back than were sent");
        Ok(())
    }

    async fn device(&self) -> Result<()> {
        self.wire.down(2);
        ensure!(!self.reaches(1, 2, SHORT).await? && !self.reaches(2, 1, SHORT).await?, "the device is not down");
        ensure!(self.reaches(1, 3, LIMIT).await?, "the others are down too");
        self.wire.up(2);
        ensure!(self.reaches(2, 1, LIMIT).await?, "the device is not up again");
        self.wire.down(2);
        // Healing takes it up: the step ends with that, and looks.
        Ok(())
    }

    /// A round trip from the harness.
    async fn round_trip(&self, node: u64) -> Result<Duration> {
        echo_client(self.at(node), LIMIT).await
    }

    /// Whether one node is answered by another.
    async fn reaches(&self, from: u64, to: u64, patience: Duration) -> Result<bool> {
        let mut client = self.within(from, "echo-client")?;
        client.arg(self.at(to).to_string()).arg(patience.as_millis().to_string());
        // What it has to say of an answer that must not come would look like a failure.
        let status = client.stderr(Stdio::null()).status().await.context("no client can be started")?;
        Ok(status.success())
    }

    /// This program within a node's namespace.
    fn within(&self, node: u64, subcommand: &str) -> Result<Command> {
        let prefix = self.wire.command(node);
        let (program, args) = prefix.split_first().with_context(|| format!("no node {node}"))?;
        let mut command = Command::new(program);
        command.args(args).arg(&self.program).arg(subcommand);
        command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        Ok(command)
    }

    fn at(&self, node: u64) -> SocketAddr {
        SocketAddr::from((Wire::address(node), PORT))
    }

    fn count(&self, from: u64, to: u64) -> Result<Count> {
        let found = self.wire.counters().into_iter().find(|count| (count.from, count.to) == (from, to));
        found.with_context(|| format!("no link from {from} to {to}"))
    }
}
