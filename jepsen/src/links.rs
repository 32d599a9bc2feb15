//! Links between nodes that can be cut: a TCP proxy in front of each node's gRPC port, in user space, without privileges.
//!
//! ```text
//!   node 1 ──┐
//!   node 2 ──┼──▶ outer port of node 3: who calls? ──┬── cut: held, and nobody is told
//!   client ──┘                                       └── otherwise ──▶ inner port, where node 3 listens
//! ```
//!
//! The nodes are told each other's outer ports, and so are clients. For each connection the proxy looks up who holds its
//! other end: the inode of that socket stands in `/proc/net/tcp`, and in `/proc/<pid>/fd` of its process. Whoever is no
//! node is a client.
//!
//! A link has a direction, that of the call: cutting it stops whatever the connections carry that `from` opened to `to`,
//! requests and answers. They stay open, as when a network falls silent. Healing closes those that were held, so that who
//! opened them connects again at once.
//!
//! Invariant: what is sent over a link after it was cut never arrives, not even after healing.
//!
//! Linux only. Deliberately absent: loss, delay and reordering, which TCP would hide; and a connection that is not
//! answered: who opens one over a cut link is known only once it is accepted, so it opens and stays silent. The proxies
//! run in the caller's runtime: a test of one thread that blocks would stop the network.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Every TCP socket of this network namespace.
const SOCKETS: &str = "/proc/net/tcp";
/// Connections of one proxy at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 1_024;
const BUFFER_BYTES: usize = 64 << 10;
/// The kernel lists sockets piece by piece while they come and go, so one may be passed over.
const LOOKS: usize = 3;
/// A node that is down refuses at once, and its callers come again at once: here each time costs a search of `/proc`.
const PAUSE: Duration = Duration::from_millis(20);

/// Where calls to a node arrive, and where it listens; both on loopback.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// The node's id.
    pub node: u64,
    /// The port that everybody is told.
    pub outer: u16,
    /// The node's own port.
    pub inner: u16,
}

/// The links to all nodes. Whole at first. Dropping it ends every connection.
#[derive(Debug)]
pub struct Links {
    nodes: Vec<u64>,
    shared: Arc<Shared>,
    /// Each proxy, with the connections through it.
    _proxies: JoinSet<()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Caller {
    Client,
    Node(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Link {
    from: Caller,
    to: u64,
}

/// What is cut at the moment.
#[derive(Debug, Default)]
struct Cuts {
    links: BTreeSet<Link>,
    /// How often everything was healed.
    heals: u64,
}

impl Cuts {
    /// If the link is cut: since which healing, for whoever waits for the next one.
    fn since(&self, link: Link) -> Option<u64> {
        self.links.contains(&link).then_some(self.heals)
    }
}

/// Why a connection carries nothing more.
#[derive(Debug)]
enum Over {
    Closed,
    Cut { heals: u64 },
}

#[derive(Debug)]
struct Shared {
    cuts: watch::Sender<Cuts>,
    /// The latest process of each node.
    pids: Mutex<BTreeMap<u64, u32>>,
}

impl Links {
    /// Listens at every outer port. Must run within a tokio runtime.
    pub fn start(routes: &[Route]) -> Result<Self> {
        std::fs::metadata(SOCKETS).context("links tell callers apart by /proc, which only Linux has")?;
        let shared = Arc::new(Shared { cuts: watch::Sender::new(Cuts::default()), pids: Mutex::default() });
        let mut proxies = JoinSet::new();
        for route in routes {
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, route.outer))
                .with_context(|| format!("cannot listen for node {} at port {}", route.node, route.outer))?;
            listener.set_nonblocking(true)?;
            proxies.spawn(Arc::clone(&shared).accept(TcpListener::from_std(listener)?, *route));
        }
        Ok(Self { nodes: routes.iter().map(|route| route.node).collect(), shared, _proxies: proxies })
    }

    /// Starts a node's process, of which `start` gives the id. Until that is known no caller is looked up: a process
    /// that is not known yet would count as a client.
    pub fn introduce(&self, node: u64, start: impl FnOnce() -> Result<u32>) -> Result<()> {
        let mut pids = self.shared.pids.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = start()?;
        pids.insert(node, pid);
        Ok(())
    }

    /// Cuts the link from one node to another: no call of `from` reaches `to`, and no answer to one comes back. Calls of
    /// `to` still reach `from`, and are answered.
    pub fn cut(&self, from: u64, to: u64) {
        self.cut_all([Link { from: Caller::Node(from), to }]);
    }

    /// Cuts the links from all clients to a node.
    pub fn cut_clients(&self, node: u64) {
        self.cut_all([Link { from: Caller::Client, to: node }]);
    }

    /// The node reaches no other, and no other reaches it. Clients reach all.
    pub fn isolate(&self, node: u64) {
        self.halves(&[node]);
    }

    /// The given nodes and the others reach each other no more; each side stays whole.
    pub fn halves(&self, one_side: &[u64]) {
        self.cut_between(|from, to| one_side.contains(&from) != one_side.contains(&to));
    }

    /// The node reaches no other, but all others reach it.
    pub fn one_way(&self, node: u64) {
        self.cut_between(|from, _| from == node);
    }

    /// Only the given node reaches the others, and they only it.
    pub fn bridge(&self, over: u64) {
        self.cut_between(|from, to| from != over && to != over);
    }

    /// Each node reaches only the one after it, the last one the first.
    pub fn ring(&self) {
        let place = |node: u64| self.nodes.iter().position(|known| *known == node);
        let next = |node: u64| place(node).map(|place| self.nodes[(place + 1) % self.nodes.len()]);
        self.cut_between(|from, to| next(from) != Some(to));
    }

    /// Makes every link whole, and closes the connections that were held.
    pub fn heal(&self) {
        self.shared.cuts.send_modify(|cuts| {
            cuts.links.clear();
            cuts.heals += 1;
        });
    }

    fn cut_between(&self, is_cut: impl Fn(u64, u64) -> bool) {
        let pairs = self.nodes.iter().flat_map(|from| self.nodes.iter().map(move |to| (*from, *to)));
        let cut = pairs.filter(|(from, to)| from != to && is_cut(*from, *to));
        self.cut_all(cut.map(|(from, to)| Link { from: Caller::Node(from), to }));
    }

    /// All at once: no state between is seen.
    fn cut_all(&self, links: impl IntoIterator<Item = Link>) {
        self.shared.cuts.send_modify(|cuts| cuts.links.extend(links));
    }
}

impl Shared {
    async fn accept(self: Arc<Self>, listener: TcpListener, route: Route) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                    Ok((caller, _)) => {
                        connections.spawn(Arc::clone(&self).serve(route, caller));
                    }
                    Err(error) => {
                        eprintln!("no connection to node {} accepted: {error}", route.node);
                        tokio::time::sleep(PAUSE).await;
                    }
                },
                Some(_ended) = connections.join_next() => {}
            }
        }
    }

    /// One connection, from its first byte to its last.
    async fn serve(self: Arc<Self>, route: Route, caller: TcpStream) {
        let Some(from) = Arc::clone(&self).caller_of(&caller).await else { return };
        let link = Link { from, to: route.node };
        let cut = self.cuts.borrow().since(link);
        if let Some(heals) = cut {
            return self.swallow(caller, heals).await;
        }
        match TcpStream::connect((Ipv4Addr::LOCALHOST, route.inner)).await {
            Ok(node) => self.forward(link, caller, node).await,
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }

    /// Forwards both ways, until both are closed, or the link is cut: then everything stays as it is until it is healed.
    async fn forward(&self, link: Link, mut caller: TcpStream, mut node: TcpStream) {
        if caller.set_nodelay(true).and(node.set_nodelay(true)).is_err() {
            return;
        }
        let over = {
            let (from_caller, to_caller) = caller.split();
            let (from_node, to_node) = node.split();
            let there = self.pump(link, from_caller, to_node);
            let back = self.pump(link, from_node, to_caller);
            tokio::select! {
                both = async { tokio::try_join!(there, back) } => both.err(),
                over = self.cut_off(link) => Some(over),
            }
        };
        if let Some(Over::Cut { heals }) = over {
            self.healed(heals).await;
        }
    }

    async fn pump(
        &self,
        link: Link,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
    ) -> Result<(), Over> {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let read = from.read(&mut buffer).await;
            // Looked at in between: what is read after a cut, an end too, is not passed on.
            let cut = self.cuts.borrow().since(link);
            if let Some(heals) = cut {
                return Err(Over::Cut { heals });
            }
            let passed_on = match read {
                Ok(0) => return to.shutdown().await.map_err(|_| Over::Closed),
                Ok(bytes) => to.write_all(&buffer[..bytes]).await,
                Err(error) => Err(error),
            };
            passed_on.map_err(|_| Over::Closed)?;
        }
    }

    /// Accepted over a cut link: nobody is at the other end. Over when the link is healed, or the caller gives up.
    async fn swallow(&self, mut caller: TcpStream, heals: u64) {
        let mut nowhere = tokio::io::sink();
        tokio::select! {
            () = self.healed(heals) => {}
            _gave_up = tokio::io::copy(&mut caller, &mut nowhere) => {}
        }
    }

    async fn cut_off(&self, link: Link) -> Over {
        let mut cuts = self.cuts.subscribe();
        cuts.wait_for(|cuts| cuts.since(link).is_some())
            .await
            .map_or(Over::Closed, |cuts| Over::Cut { heals: cuts.heals })
    }

    async fn healed(&self, heals: u64) {
        let mut cuts = self.cuts.subscribe();
        let _healed = cuts.wait_for(|cuts| cuts.heals > heals).await.is_ok();
    }

    /// Who holds the other end of a connection. `None`: nobody any more.
    async fn caller_of(self: Arc<Self>, connection: &TcpStream) -> Option<Caller> {
        let (theirs, ours) = (connection.peer_addr().ok()?, connection.local_addr().ok()?);
        tokio::task::spawn_blocking(move || self.find_caller(theirs, ours)).await.ok().flatten()
    }

    fn find_caller(&self, theirs: SocketAddr, ours: SocketAddr) -> Option<Caller> {
        let inode = (0..LOOKS).find_map(|_| inode(theirs, ours))?;
        let socket = format!("socket:[{inode}]");
        // Read now, and not before: the connection is there, so whoever opened it was started, and is introduced.
        let pids = self.pids.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let node = pids.into_iter().find(|(_, pid)| holds(*pid, &socket));
        Some(node.map_or(Caller::Client, |(id, _)| Caller::Node(id)))
    }
}

/// The inode of the socket that is bound to `local` and connected to `remote`.
fn inode(local: SocketAddr, remote: SocketAddr) -> Option<u64> {
    let (local, remote) = (in_hex(local)?, in_hex(remote)?);
    let sockets = std::fs::read_to_string(SOCKETS).ok()?;
    sockets.lines().find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let is_meant = columns.get(1) == Some(&local.as_str()) && columns.get(2) == Some(&remote.as_str());
        // 0: closed by its process, and not yet forgotten by the kernel.
        columns.get(9).filter(|_| is_meant)?.parse::<u64>().ok().filter(|inode| *inode > 0)
    })
}

/// An address as `/proc/net/tcp` writes it: the four bytes as the machine reads a number, and the port.
fn in_hex(address: SocketAddr) -> Option<String> {
    match address.ip() {
        IpAddr::V4(ip) => Some(format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), address.port())),
        IpAddr::V6(_) => None,
    }
}

/// Whether the process has the socket open. One that has ended has nothing open.
fn holds(pid: u32, socket: &str) -> bool {
    let Ok(files) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    files.flatten().any(|file| std::fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == socket))
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::ports;

    const LIMIT: Duration = Duration::from_secs(10);
    /// Loopback takes far less; what has not arrived by then is held.
    const SILENCE: Duration = Duration::from_millis(200);

    /// Links to two nodes, which both send back what they get. This process is node 1, if it is one of them at all.
    async fn two_echoes(this_is_node_1: bool) -> Result<(Links, Vec<Route>, JoinSet<()>)> {
        let (mut routes, mut echoes) = (Vec::new(), JoinSet::new());
        for (node, outer) in (1..).zip(ports::free(2)?) {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            routes.push(Route { node, outer, inner: listener.local_addr()?.port() });
            echoes.spawn(async move {
                let mut connections = JoinSet::new();
                while let Ok((mut connection, _)) = listener.accept().await {
                    connections.spawn(async move {
                        let (mut from, mut to) = connection.split();
                        tokio::io::copy(&mut from, &mut to).await.is_ok()
                    });
                }
            });
        }
        let links = Links::start(&routes)?;
        if this_is_node_1 {
            links.introduce(1, || Ok(std::process::id()))?;
        }
        Ok((links, routes, echoes))
    }

    async fn connect(route: Route) -> Result<TcpStream> {
        Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, route.outer)).await?)
    }

    /// Sends a byte, and reads what comes: `None`, the connection was closed.
    async fn echo(connection: &mut TcpStream, byte: u8) -> Result<Option<u8>> {
        connection.write_all(&[byte]).await?;
        next(connection).await
    }

    async fn next(connection: &mut TcpStream) -> Result<Option<u8>> {
        let mut byte = [0];
        match timeout(LIMIT, connection.read(&mut byte)).await.context("neither an answer nor an end")? {
            Ok(1) => Ok(Some(byte[0])),
            // An end with bytes that were not read is a reset.
            Ok(_) | Err(_) => Ok(None),
        }
    }

    /// Sends a byte, to which nothing must come.
    async fn assert_silent(connection: &mut TcpStream) -> Result<()> {
        connection.write_all(b"x").await?;
        let mut byte = [0];
        let heard = timeout(SILENCE, connection.read(&mut byte)).await;
        assert!(heard.is_err(), "{heard:?} came over a cut link");
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_cut_link_holds_what_it_carries_until_it_is_healed() -> Result<()> {
        let (links, routes, _echoes) = two_echoes(true).await?;
        let mut before = connect(routes[1]).await?;
        assert_eq!(echo(&mut before, 1).await?, Some(1));
        links.cut(1, 2);
        assert_silent(&mut before).await?;
        let mut meanwhile = connect(routes[1]).await?;
        assert_silent(&mut meanwhile).await?;
        let mut elsewhere = connect(routes[0]).await?;
        assert_eq!(echo(&mut elsewhere, 2).await?, Some(2), "another link");

        links.heal();
        assert_eq!(next(&mut before).await?, None, "what was sent meanwhile must not come after all");
        assert_eq!(next(&mut meanwhile).await?, None);
        assert_eq!(echo(&mut elsewhere, 3).await?, Some(3), "it was never cut");
        let mut after = connect(routes[1]).await?;
        assert_eq!(echo(&mut after, 4).await?, Some(4));
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_link_is_cut_in_its_own_direction_only() -> Result<()> {
        let (links, routes, _echoes) = two_echoes(true).await?;
        links.cut(2, 1);
        let mut calling_2 = connect(routes[1]).await?;
        assert_eq!(echo(&mut calling_2, 1).await?, Some(1));
        links.isolate(2);
        assert_silent(&mut calling_2).await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn clients_are_cut_only_if_that_is_said() -> Result<()> {
        let (links, routes, _echoes) = two_echoes(false).await?;
        let mut client = connect(routes[1]).await?;
        links.isolate(2);
        assert_eq!(echo(&mut client, 1).await?, Some(1));
        links.cut_clients(2);
        assert_silent(&mut client).await?;
        links.heal();
        assert_eq!(next(&mut client).await?, None);
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_end_is_passed_on_and_a_node_that_is_down_takes_nothing() -> Result<()> {
        let (_links, routes, mut echoes) = two_echoes(false).await?;
        let mut client = connect(routes[0]).await?;
        assert_eq!(echo(&mut client, 1).await?, Some(1));
        client.shutdown().await?;
        assert_eq!(next(&mut client).await?, None);
        echoes.shutdown().await;
        let mut refused = connect(routes[0]).await?;
        assert_eq!(next(&mut refused).await?, None);
        Ok(())
    }

    #[tokio::test]
    async fn each_shape_cuts_its_own_links() -> Result<()> {
        let routes: Vec<Route> =
            (1..).zip(ports::free(3)?).map(|(node, outer)| Route { node, outer, inner: outer }).collect();
        let links = Links::start(&routes)?;
        let cut = |cut: &dyn Fn()| {
            links.heal();
            cut();
            let cuts = links.shared.cuts.borrow();
            cuts.links.iter().map(|link| (link.from, link.to)).collect::<Vec<_>>()
        };
        let between =
            |pairs: &[(u64, u64)]| pairs.iter().map(|(from, to)| (Caller::Node(*from), *to)).collect::<Vec<_>>();
        assert_eq!(cut(&|| links.isolate(2)), between(&[(1, 2), (2, 1), (2, 3), (3, 2)]));
        assert_eq!(cut(&|| links.halves(&[1, 3])), between(&[(1, 2), (2, 1), (2, 3), (3, 2)]));
        assert_eq!(cut(&|| links.one_way(2)), between(&[(2, 1), (2, 3)]));
        assert_eq!(cut(&|| links.bridge(2)), between(&[(1, 3), (3, 1)]));
        assert_eq!(cut(&|| links.ring()), between(&[(1, 3), (2, 1), (3, 2)]));
        assert_eq!(cut(&|| {}), between(&[]));
        Ok(())
    }
}
