//! What a node is told: file < environment < flags.
//!
//! Everything that can be checked without opening the data directory is checked here, and every complaint names the
//! field and what would be accepted. An unknown key is refused wherever it stands: a misspelt limit must not be silence.

use std::collections::BTreeMap;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use serde::{Deserialize, Serialize};

/// Environment variables of the command line and the build, which are not settings of a node.
const OTHER_ENV: [&str; 15] = [
    "endpoints",
    "output",
    "timeout",
    "config",
    "bin",
    "cache",
    "task_id",
    "attempt",
    "token",
    "namespace",
    "outbox",
    "lock",
    "lock_token",
    "scope",
    "scope_token",
];

/// A mistake in the configuration: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ConfigError(pub(crate) String);

/// Every setting of a node. `deploy/quorate.example.toml` documents each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    pub(crate) node_id: u64,
    pub(crate) cluster_id: String,
    pub(crate) data_dir: PathBuf,
    pub(crate) listen: String,
    pub(crate) http_listen: String,
    pub(crate) advertise: String,
    pub(crate) peers: PeerList,
    pub(crate) join: bool,
    pub(crate) heartbeat_ms: u64,
    pub(crate) election_min_ms: u64,
    pub(crate) election_max_ms: u64,
    pub(crate) snapshot_every: u64,
    pub(crate) log_keep: u64,
    pub(crate) max_queued_bytes: u64,
    pub(crate) events_keep_ms: u64,
    pub(crate) events_max_bytes: u64,
    pub(crate) tasks_keep_ms: u64,
    pub(crate) dead_keep_ms: u64,
    pub(crate) disk_reserve_bytes: u64,
    pub(crate) write_buffer_bytes: u64,
    pub(crate) shutdown_grace_ms: u64,
    pub(crate) log_format: LogFormat,
    pub(crate) log_level: String,
    pub(crate) insecure_i_understand: bool,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One object a line, for programs.
    Json,
}

/// The members: a table in a file (`1 = "host:port"`), `1=host:port,2=host:port` in the environment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum PeerList {
    #[default]
    None,
    Table(BTreeMap<String, String>),
    Text(String),
}

impl Default for Config {
    fn default() -> Self {
        Config {
            node_id: 1,
            cluster_id: "quorate".to_owned(),
            data_dir: PathBuf::from("quorate-data"),
            listen: "127.0.0.1:7401".to_owned(),
            http_listen: "127.0.0.1:7402".to_owned(),
            advertise: String::new(),
            peers: PeerList::None,
            join: false,
            heartbeat_ms: 100,
            election_min_ms: 300,
            election_max_ms: 600,
            snapshot_every: 100_000,
            log_keep: 50_000,
            max_queued_bytes: 64 << 20,
            events_keep_ms: 7 * 86_400_000,
            events_max_bytes: 512 << 20,
            tasks_keep_ms: 7 * 86_400_000,
            dead_keep_ms: 30 * 86_400_000,
            disk_reserve_bytes: 1 << 30,
            write_buffer_bytes: 64 << 20,
            shutdown_grace_ms: 5_000,
            log_format: LogFormat::Text,
            log_level: "info".to_owned(),
            insecure_i_understand: false,
        }
    }
}

/// Flags of `quorate serve`. Each also exists as a key of the file and as `QUORATE_…` in the environment.
#[derive(Debug, Clone, Default, Args, Serialize)]
pub(crate) struct ServeArgs {
    /// Settings file (TOML); environment and flags override it
    #[arg(long, env = "QUORATE_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// This node's number, 1 or more, unique in the cluster and never reused
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    node_id: Option<u64>,
    /// The cluster's name; nodes and data of another cluster are refused
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_id: Option<String>,
    /// Where this node keeps its log and state
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    data_dir: Option<PathBuf>,
    /// Address of the gRPC port
    #[arg(long, value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<String>,
    /// Address of the HTTP port (health)
    #[arg(long, value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    http_listen: Option<String>,
    /// Address others reach this node at, if it is not the one it listens on
    #[arg(long, value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    advertise: Option<String>,
    /// A member of the cluster, this node included; repeat for each
    #[arg(long = "peer", value_name = "N=HOST:PORT")]
    #[serde(skip)]
    peer: Vec<String>,
    /// Join a cluster that runs already: the peers are its members, and `quorate cluster add` lets this node in
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    join: bool,
    /// Milliseconds between the leader's heartbeats
    #[arg(long, value_name = "MS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    heartbeat_ms: Option<u64>,
    /// Shortest silence after which a follower seeks election
    #[arg(long, value_name = "MS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    election_min_ms: Option<u64>,
    /// Longest silence after which a follower seeks election
    #[arg(long, value_name = "MS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    election_max_ms: Option<u64>,
    /// Log entries between snapshots
    #[arg(long, value_name = "ENTRIES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot_every: Option<u64>,
    /// Log entries kept behind a snapshot, for followers that lag
    #[arg(long, value_name = "ENTRIES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log_keep: Option<u64>,
    /// Bytes of commands that may wait to be proposed before new ones are turned away
    #[arg(long, value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_queued_bytes: Option<u64>,
    /// How long the event history goes back
    #[arg(long, value_name = "MS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    events_keep_ms: Option<u64>,
    /// About how many bytes the event history may take
    #[arg(long, value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    events_max_bytes: Option<u64>,
    /// How long tasks are kept after they completed, were cancelled or skipped
    #[arg(long, value_name = "MS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tasks_keep_ms: Option<u64>,
    /// How long tasks are kept after they failed for good
    #[arg(long, value_name = "MS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    dead_keep_ms: Option<u64>,
    /// Free disk space below which only what frees space is taken
    #[arg(long, value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_reserve_bytes: Option<u64>,
    /// Size of each write buffer of the databases; a small disk wants small ones
    #[arg(long, value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    write_buffer_bytes: Option<u64>,
    /// How long a stop waits for calls under way
    #[arg(long, value_name = "MS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    shutdown_grace_ms: Option<u64>,
    /// How log lines look
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    log_format: Option<LogFormat>,
    /// Least severe level to log, or a tracing filter
    #[arg(long, value_name = "LEVEL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log_level: Option<String>,
    /// Behave as a binary that understands commands up to this feature level, to rehearse an upgrade
    #[arg(long, hide = true, value_name = "LEVEL")]
    #[serde(skip)]
    pub(crate) pretend_level: Option<u32>,
    /// Listen beyond loopback although nothing is encrypted or authenticated yet
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    insecure_i_understand: bool,
}

/// Flags of `quorate dev`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct DevArgs {
    /// Keep the data here; without it everything is thrown away at exit
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Address of the gRPC port (loopback only)
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7401")]
    pub(crate) listen: String,
    /// Address of the HTTP port (loopback only)
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7402")]
    pub(crate) http_listen: String,
    /// Least severe level to log, or a tracing filter
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub(crate) log_level: String,
}

/// A configuration that was checked.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) config: Config,
    /// Every member by id, this node included.
    pub(crate) members: BTreeMap<u64, String>,
    /// The data goes with the process.
    pub(crate) is_throw_away: bool,
}

impl Settings {
    /// Merges file, environment and flags, and checks the whole.
    pub(crate) fn load(args: &ServeArgs) -> Result<Self, ConfigError> {
        let mut figment = Figment::from(Serialized::defaults(Config::default()));
        if let Some(path) = &args.config {
            figment = figment.merge(Toml::string(&read_file(path)?));
        }
        figment = figment.merge(Env::prefixed("QUORATE_").ignore(&OTHER_ENV)).merge(Serialized::defaults(args));
        let mut config: Config = figment.extract().map_err(|e| ConfigError(explain(&e, args.config.as_deref())))?;
        if !args.peer.is_empty() {
            config.peers = PeerList::Text(args.peer.join(","));
        }
        Settings::check(config)
    }

    /// A single node on loopback.
    pub(crate) fn dev(args: &DevArgs, data_dir: PathBuf) -> Result<Self, ConfigError> {
        Settings::check(Config {
            cluster_id: "dev".to_owned(),
            data_dir,
            listen: args.listen.clone(),
            http_listen: args.http_listen.clone(),
            log_level: args.log_level.clone(),
            heartbeat_ms: 50,
            election_min_ms: 100,
            election_max_ms: 200,
            ..Config::default()
        })
    }

    fn check(config: Config) -> Result<Self, ConfigError> {
        let fail = |message: String| Err(ConfigError(message));
        if config.node_id == 0 {
            return fail("node_id must be 1 or more; 0 means \"no node\"".to_owned());
        }
        let name_fits = (1..=64).contains(&config.cluster_id.len())
            && config.cluster_id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !name_fits {
            return fail(format!("cluster_id must be 1 to 64 letters, digits or . _ -; got {:?}", config.cluster_id));
        }
        for (field, address) in [("listen", &config.listen), ("http_listen", &config.http_listen)] {
            check_bind(field, address, config.insecure_i_understand)?;
        }
        if config.heartbeat_ms < 10 || config.election_min_ms < 2 * config.heartbeat_ms {
            return fail(format!(
                "heartbeat_ms must be at least 10 and election_min_ms at least twice that; got {} and {}",
                config.heartbeat_ms, config.election_min_ms
            ));
        }
        if config.election_max_ms <= config.election_min_ms {
            return fail(format!(
                "election_max_ms must be greater than election_min_ms ({}); got {}",
                config.election_min_ms, config.election_max_ms
            ));
        }
        if config.snapshot_every == 0 || config.log_keep == 0 {
            return fail("snapshot_every and log_keep must be 1 or more".to_owned());
        }
        if config.max_queued_bytes < 4 << 20 {
            return fail(format!("max_queued_bytes must be at least 4194304; got {}", config.max_queued_bytes));
        }
        if config.events_keep_ms < 1_000 {
            return fail(format!("events_keep_ms must be at least 1000; got {}", config.events_keep_ms));
        }
        if config.events_max_bytes < 64 << 20 {
            return fail(format!("events_max_bytes must be at least 67108864; got {}", config.events_max_bytes));
        }
        if config.tasks_keep_ms < 1_000 || config.dead_keep_ms < 1_000 {
            let (tasks, dead) = (config.tasks_keep_ms, config.dead_keep_ms);
            return fail(format!("tasks_keep_ms and dead_keep_ms must be at least 1000; got {tasks} and {dead}"));
        }
        if config.write_buffer_bytes < 1 << 20 {
            return fail(format!("write_buffer_bytes must be at least 1048576; got {}", config.write_buffer_bytes));
        }
        let members = members(&config)?;
        Ok(Settings { config, members, is_throw_away: false })
    }

    /// The address others reach this node at.
    pub(crate) fn advertised(&self) -> &str {
        self.members.get(&self.config.node_id).map_or(&self.config.listen, String::as_str)
    }

    /// How long a graceful stop may take.
    pub(crate) fn shutdown_grace(&self) -> Duration {
        Duration::from_millis(self.config.shutdown_grace_ms)
    }
}

fn read_file(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path)
        .map_err(|e| ConfigError(format!("the settings file {} cannot be read: {e}", path.display())))
}

/// figment's complaint, with the file it may have come from.
fn explain(error: &figment::Error, file: Option<&Path>) -> String {
    let origin = file.map_or_else(String::new, |path| format!(" (settings file {})", path.display()));
    let known = "known keys are in deploy/quorate.example.toml";
    match &error.kind {
        figment::error::Kind::UnknownField(field, _) => format!("unknown setting {field:?}{origin}; {known}"),
        _ => format!("the settings are not valid: {error}{origin}"),
    }
}

fn check_bind(field: &str, address: &str, insecure: bool) -> Result<(), ConfigError> {
    let resolved = address.to_socket_addrs().map_err(|e| {
        ConfigError(format!("{field} must be HOST:PORT, for example 127.0.0.1:7401; got {address:?}: {e}"))
    })?;
    let outside: Vec<IpAddr> = resolved.map(|a| a.ip()).filter(|ip| !ip.is_loopback()).collect();
    match outside.first() {
        Some(ip) if !insecure => Err(ConfigError(format!(
            "{field} {address} is reachable from other machines ({ip}), and nothing is encrypted or authenticated yet; \
             use a loopback address, or --insecure-i-understand on a network you trust"
        ))),
        _ => Ok(()),
    }
}

fn members(config: &Config) -> Result<BTreeMap<u64, String>, ConfigError> {
    let pairs: Vec<(String, String)> = match &config.peers {
        PeerList::None => Vec::new(),
        PeerList::Table(table) => table.iter().map(|(id, address)| (id.clone(), address.clone())).collect(),
        PeerList::Text(text) => text
            .split(',')
            .filter(|part| !part.trim().is_empty())
            .map(|part| match part.split_once('=') {
                Some((id, address)) => Ok((id.trim().to_owned(), address.trim().to_owned())),
                None => Err(ConfigError(format!("peers must be N=HOST:PORT; got {part:?}"))),
            })
            .collect::<Result<_, _>>()?,
    };
    let own = if config.advertise.is_empty() { &config.listen } else { &config.advertise };
    if pairs.is_empty() {
        return Ok(BTreeMap::from([(config.node_id, own.clone())]));
    }
    let mut members = BTreeMap::new();
    for (id, address) in pairs {
        let id: u64 = match id.parse() {
            Ok(id) if id > 0 => id,
            _ => return Err(ConfigError(format!("peers: {id:?} must be a node number, 1 or more"))),
        };
        if !address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
            return Err(ConfigError(format!("peers: node {id} must have HOST:PORT; got {address:?}")));
        }
        if members.values().any(|known| known == &address) {
            return Err(ConfigError(format!("peers: {address} is named twice; each node has an address of its own")));
        }
        if members.insert(id, address).is_some() {
            return Err(ConfigError(format!("peers: node {id} is named twice")));
        }
    }
    if !members.contains_key(&config.node_id) {
        return Err(ConfigError(format!("peers must include this node ({})", config.node_id)));
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = fn(&mut Config);

    fn with(change: impl FnOnce(&mut Config)) -> Result<Settings, ConfigError> {
        let mut config = Config::default();
        change(&mut config);
        Settings::check(config)
    }

    #[test]
    fn complaints_name_the_field() {
        let cases: [(&str, Change); 8] = [
            ("node_id", |c| c.node_id = 0),
            ("cluster_id", |c| c.cluster_id = "two words".to_owned()),
            ("listen", |c| c.listen = "nonsense".to_owned()),
            ("--insecure-i-understand", |c| c.listen = "0.0.0.0:1".to_owned()),
            ("election_max_ms", |c| c.election_max_ms = 1),
            ("peers", |c| c.peers = PeerList::Text("x=127.0.0.1:1".to_owned())),
            ("include this node", |c| c.peers = PeerList::Text("9=127.0.0.1:1".to_owned())),
            ("named twice", |c| c.peers = PeerList::Text("1=127.0.0.1:1,1=127.0.0.1:2".to_owned())),
        ];
        for (wanted, change) in cases {
            let message = with(change).unwrap_err().to_string();
            assert!(message.contains(wanted), "{message:?} does not say {wanted:?}");
        }
    }

    #[test]
    fn unknown_keys_are_refused_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q.toml");
        std::fs::write(&path, "node_id = 2\nelection_max = 5\n").unwrap();
        let args = ServeArgs { config: Some(path), ..ServeArgs::default() };
        assert!(Settings::load(&args).unwrap_err().to_string().contains("election_max"));
    }

    #[test]
    fn flags_override_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q.toml");
        std::fs::write(&path, "node_id = 2\ncluster_id = \"file\"\n[peers]\n2 = \"h:1\"\n3 = \"h:2\"\n").unwrap();
        let args = ServeArgs { config: Some(path), cluster_id: Some("flag".to_owned()), ..ServeArgs::default() };
        let settings = Settings::load(&args).unwrap();
        assert_eq!((settings.config.node_id, settings.config.cluster_id.as_str()), (2, "flag"));
        assert_eq!(settings.members.len(), 2);
    }

    /// The example is the documentation of every setting: it must name each, with its default.
    #[test]
    fn the_example_file_names_every_setting_with_its_default() {
        let text = include_str!("../../deploy/quorate.example.toml");
        let uncommented: String =
            text.lines().map(|line| line.strip_prefix("#= ").unwrap_or(line)).map(|l| format!("{l}\n")).collect();
        let example: toml::Table = uncommented.parse().unwrap();
        let defaults = toml::Table::try_from(Config { peers: PeerList::Table(BTreeMap::new()), ..Config::default() });
        for (key, value) in defaults.unwrap() {
            let shown = example.get(&key).unwrap_or_else(|| panic!("the example does not name {key}"));
            if key != "peers" {
                assert_eq!(shown, &value, "the example's default of {key}");
            }
        }
        assert_eq!(example.len(), 24, "the example names a setting that does not exist");
    }
}
