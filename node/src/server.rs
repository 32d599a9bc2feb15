//! Start and stop of one node.
//!
//! Start: settings, ports, data directory, state, consensus, doors; each complaint comes before anything is changed by
//! what follows it. Stop: hand leadership over, let calls end, close the state. A fault skips all of that: the process
//! ends at once and the log is the truth.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use openraft::SnapshotPolicy;
use parking_lot::Mutex;
use quorate_raft::apply::Happened;
use quorate_raft::consensus::log_storage::LogStorage;
use quorate_raft::consensus::network::Peers;
use quorate_raft::consensus::state_machine::StateMachine;
use quorate_raft::consensus::types::Raft;
use quorate_raft::replica::Replica;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;
use tonic::transport::server::TcpIncoming;
use tracing_subscriber::EnvFilter;

use crate::blobs::Blobs;
use crate::clock::Clock;
use crate::config::{Config, DevArgs, LogFormat, ServeArgs, Settings};
use crate::core::Core;
use crate::data_dir::DataDir;
use crate::disk::{self, Disk};
use crate::hub::Hubs;
use crate::leases::Leases;
use crate::members::UnderWay;
use crate::propose::Proposer;
use crate::reads::ReadBarrier;
use crate::roster::{self, Roster};
use crate::stop::{Reason, Stop};
use crate::{grpc, http, joining, leader, offline};

/// Between a fault for want of space and the new beginning: no disk is emptied in an instant.
const BEFORE_ANEW: Duration = Duration::from_secs(1);

/// `quorate serve`: one node of a cluster, until it is told to stop.
pub(crate) async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let settings = Settings::load(&args)?;
    if let Some(level) = args.pretend_level {
        quorate_raft::level::pretend(level);
    }
    start_logging(&settings.config)?;
    run(settings).await
}

/// `quorate dev`: a cluster of one on loopback.
pub(crate) async fn dev(args: DevArgs) -> anyhow::Result<()> {
    let throw_away = tempfile::Builder::new().prefix("quorate-dev-").tempdir().context("no temporary directory")?;
    let data_dir = args.data_dir.clone().unwrap_or_else(|| throw_away.path().to_owned());
    let mut settings = Settings::dev(&args, data_dir)?;
    settings.is_throw_away = args.data_dir.is_none();
    start_logging(&settings.config)?;
    run(settings).await
}

fn start_logging(config: &Config) -> anyhow::Result<()> {
    let filter = format!("{},openraft=error", config.log_level);
    let filter = if config.log_level.contains('=') { config.log_level.clone() } else { filter };
    let filter = EnvFilter::try_new(&filter).with_context(|| format!("log_level {:?}", config.log_level))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Json => lines.json().init(),
        LogFormat::Text => lines.with_target(false).init(),
    }
    Ok(())
}

async fn run(settings: Settings) -> anyhow::Result<()> {
    let grpc = bind("listen", &settings.config.listen).await?;
    let http = bind("http_listen", &settings.config.http_listen).await?;
    let data_dir = DataDir::open(&settings.config.data_dir, &settings.config.cluster_id, settings.config.node_id)?;
    stop_on_panic();
    let Config { disk_reserve_bytes, write_buffer_bytes, .. } = settings.config;
    disk::wait_for_space(&settings.config.data_dir, disk_reserve_bytes, write_buffer_bytes);
    let heals = !settings.is_throw_away && disk_reserve_bytes > 0;
    let (core, effects) = match build(settings, data_dir).await {
        Err(error) if heals && disk::is_no_space(&format!("{error:#}")) => {
            return Err(begin_anew(&format!("{error:#}")).await);
        }
        built => built?,
    };
    leader::start(&core, effects);
    crate::schedules::start(&core);
    crate::retention::start(&core);
    crate::blobs::start(&core);
    crate::neighbours::start(&core);
    crate::forget::start(&core);
    crate::backup::start(&core);
    crate::disk::start(&core);
    crate::slow::start(&core);
    tokio::spawn(roster::follow(core.clone()));
    tokio::spawn(joining::join(core.clone()));
    let grpc_addr = grpc.local_addr()?;
    let grpc_door = tokio::spawn(serve_grpc(core.clone(), grpc));
    let http_door = tokio::spawn(serve_http(core.clone(), http));
    tokio::spawn(stop_on_signal(core.stop.clone()));
    announce(&core, grpc_addr);

    let reason = core.stop.wait().await;
    if let Reason::Fault(fault) = reason {
        tracing::error!(%fault, "this node met a fault it cannot reason about and stops");
        if heals && disk::is_no_space(&fault) {
            return Err(begin_anew(&fault).await);
        }
        return Err(anyhow!("stopped by a fault: {fault}"));
    }
    tracing::info!("stopping");
    let ended = tokio::time::timeout(core.settings.shutdown_grace(), async {
        let _ended = (grpc_door.await, http_door.await);
    });
    if ended.await.is_err() {
        tracing::warn!("calls were still under way at the end of the grace period");
    }
    core.raft.shutdown().await.map_err(|e| anyhow!("consensus did not stop cleanly: {e}"))?;
    let replica = core.replica.clone();
    tokio::task::spawn_blocking(move || replica.flush()).await?.context("the state was not flushed")?;
    tracing::info!("stopped");
    Ok(())
}

/// A full disk heals: the process begins anew, and waits for space before it opens anything. Returns only why it could not.
async fn begin_anew(fault: &str) -> anyhow::Error {
    tokio::time::sleep(BEFORE_ANEW).await;
    let error = disk::start_again();
    anyhow!("stopped by a fault: {fault}; it could not begin anew: {error}")
}

async fn bind(field: &str, address: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => {
            anyhow!("{field} {address} is taken: another process listens there; stop it or choose another port")
        }
        _ => anyhow!("{field} {address} cannot be listened on: {e}"),
    })
}

/// A panic is a bug, and a node with a bug in an unknown place must not go on answering.
fn stop_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::abort();
    }));
}

async fn build(settings: Settings, data_dir: DataDir) -> anyhow::Result<(Arc<Core>, UnboundedReceiver<Vec<Happened>>)> {
    let config = &settings.config;
    let stop = Stop::new();
    let roster = Arc::new(Roster::new(&settings));
    let disk = Disk::open(data_dir.path(), config.disk_reserve_bytes, config.write_buffer_bytes)?;
    let disk = Arc::new(disk);
    let blobs = Arc::new(Blobs::open(&settings, roster.clone(), stop.clone())?);
    let (effects_in, effects) = tokio::sync::mpsc::unbounded_channel();
    let root = data_dir.path().to_owned();
    let opening = Instant::now();
    let write_buffer_bytes = config.write_buffer_bytes;
    let (replica, log) =
        tokio::task::spawn_blocking(move || open_storage(&root, write_buffer_bytes, effects_in)).await??;
    let peers = Peers::new(config.node_id, &config.cluster_id).map_err(|e| anyhow!(e))?;
    let raft = Raft::build(
        config.node_id,
        Arc::new(raft_config(config, data_dir.joined())?),
        peers.clone(),
        log.clone(),
        StateMachine::new(replica.clone()).with_peers(peers.clone()).behind(log.durable()),
    )
    .await
    .map_err(|e| anyhow!("consensus could not start: {e}"))?;
    raft.run();
    roster.learn(&raft);
    tracing::debug!(elapsed = ?opening.elapsed(), "state opened");
    let clock = Arc::new(Clock::new());
    let core = Core {
        proposer: Proposer::start(
            raft.clone(),
            peers.clone(),
            clock.clone(),
            disk.clone(),
            replica.clone(),
            config.max_queued_bytes,
        ),
        clock,
        reads: ReadBarrier::start(raft.clone(), peers.clone()),
        leases: Arc::new(Leases::default()),
        hubs: Arc::new(Hubs::default()),
        blobs,
        stop,
        closing: Stop::new(),
        disk,
        roster,
        neighbours: Arc::default(),
        members_change: UnderWay::default(),
        office: std::sync::atomic::AtomicU64::new(0),
        floor: Mutex::new(None),
        started: Instant::now(),
        data_dir: Mutex::new(data_dir),
        settings,
        raft,
        replica,
        log,
        peers,
    };
    Ok((Arc::new(core), effects))
}

fn open_storage(
    root: &Path,
    write_buffer_bytes: u64,
    effects: tokio::sync::mpsc::UnboundedSender<Vec<Happened>>,
) -> anyhow::Result<(Arc<Replica>, LogStorage)> {
    let explain = |what: &'static str| move |fatal| offline::explain(root, what, &fatal);
    let log = LogStorage::open(&root.join("log"), write_buffer_bytes).map_err(explain("log"))?;
    let replica = Replica::open(root, write_buffer_bytes, effects).map_err(explain("state"))?;
    // Before consensus sees either: it would close a hole between them in silence.
    log.check(&replica).map_err(explain("log"))?;
    Ok((Arc::new(replica), log))
}

fn raft_config(config: &Config, joined: bool) -> anyhow::Result<openraft::Config> {
    let raft = openraft::Config {
        cluster_name: config.cluster_id.clone(),
        heartbeat_interval: config.heartbeat_ms,
        election_timeout_min: config.election_min_ms,
        election_timeout_max: config.election_max_ms,
        install_snapshot_timeout: 10 * 60 * 1_000,
        max_payload_entries: 256,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.snapshot_every),
        max_in_snapshot_log_to_keep: config.log_keep,
        purge_batch_size: (config.log_keep / 4).clamp(1, 8_192),
        replication_lag_threshold: config.log_keep.max(config.snapshot_every),
        api_channel_size: Some(4_096),
        enable_pre_vote: Some(true),
        // Until this node knows its cluster's log it does not campaign.
        enable_elect: joined,
        // Without a durable commit point a restored leader could answer from an older state.
        enable_leader_restore: Some(false),
        ..openraft::Config::default()
    };
    raft.validate().map_err(|e| anyhow!("the Raft timing is not valid: {e}"))
}

fn announce(core: &Core, grpc: SocketAddr) {
    let config = &core.settings.config;
    tracing::info!(
        node = config.node_id,
        cluster = config.cluster_id,
        %grpc,
        http = config.http_listen,
        data_dir = %config.data_dir.display(),
        members = core.members().len(),
        "quorate {} is up",
        env!("CARGO_PKG_VERSION")
    );
}

async fn serve_grpc(core: Arc<Core>, listener: TcpListener) {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let stop = core.stop.clone();
    let leaving = core.clone();
    let served = tonic::transport::Server::builder()
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20)
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .add_routes(grpc::routes(&core))
        .serve_with_incoming_shutdown(incoming, async move {
            let reason = stop.wait().await;
            leave_office(&leaving).await;
            leaving.closing.now(reason);
        })
        .await;
    if let Err(error) = served {
        core.stop.now(Reason::Fault(format!("the gRPC port failed: {error}")));
    }
}

/// Hands leadership over while calls are still served: a client notices a redirect and nothing else.
async fn leave_office(core: &Core) {
    let leads = core.metrics().current_leader == Some(core.settings.config.node_id);
    if !leads || core.is_alone() {
        return;
    }
    let handed = tokio::time::timeout(core.settings.shutdown_grace() / 2, grpc::hand_over(core, 0)).await;
    match handed.unwrap_or_else(|_| Err("it took too long".to_owned())) {
        Ok(leader) => tracing::info!(leader, "leadership handed over"),
        Err(error) => tracing::warn!(%error, "leadership was not handed over; the others will elect"),
    }
}

async fn serve_http(core: Arc<Core>, listener: TcpListener) {
    let stop = core.stop.clone();
    let served = axum::serve(listener, http::router(core.clone())).with_graceful_shutdown(async move {
        stop.wait().await;
    });
    if let Err(error) = served.await {
        core.stop.now(Reason::Fault(format!("the HTTP port failed: {error}")));
    }
}

async fn stop_on_signal(stop: Stop) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return stop.now(Reason::Fault("signals cannot be received".to_owned()));
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.now(Reason::Signal);
}
