//! `quorate cluster init`: the settings files of a new cluster, one a node.
//!
//! Owns: what such a file says. Nothing is asked of any cluster, and no file is ever written over.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::super::Context;
use super::super::exit::Failure;

pub(super) const EXAMPLES: &str = "\
EXAMPLES:
  quorate cluster init fleet --node 127.0.0.1:7401 --node 127.0.0.1:7411 --node 127.0.0.1:7421
      three nodes on this machine, to try things out
  quorate cluster init fleet --node 10.0.0.1:7401 --node 10.0.0.2:7401 --node 10.0.0.3:7401 \\
      --http 7402 --dir conf --insecure-i-understand
      three machines; bring each its own file of conf/

The cluster's id is the name and eight random digits, so that two clusters never share one. A cluster of three goes on
while one node is down, a cluster of five while two are.";

/// How far from a node's port its HTTP port may be, in the order in which they are tried.
const HTTP_OFFSETS: [u16; 3] = [1, 100, 1_000];
/// The longest name: the id has nine characters more.
const MAX_NAME_BYTES: usize = 55;

/// `quorate cluster init …`
#[derive(Args)]
pub(crate) struct InitArgs {
    /// What the cluster is called: letters, digits, . _ -
    #[arg(value_name = "NAME")]
    name: String,
    /// Where the others and the clients reach a node; once for each, in the order of their numbers
    #[arg(long = "node", value_name = "HOST:PORT", required = true, value_delimiter = ',', value_parser = address)]
    nodes: Vec<String>,
    /// The HTTP port of every node, or an address for each (default: the port after the node's, if that is free)
    #[arg(long, value_name = "PORT|HOST:PORT,..", value_delimiter = ',')]
    http: Vec<String>,
    /// Where the files go
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Let the nodes listen beyond loopback although nothing is encrypted or authenticated yet
    #[arg(long)]
    insecure_i_understand: bool,
}

/// The settings of one node, as far as they are its own.
pub(super) struct NodeFile<'a> {
    pub(super) cluster_id: &'a str,
    pub(super) node_id: u64,
    pub(super) listen: &'a str,
    pub(super) http_listen: &'a str,
    pub(super) data_dir: &'a Path,
    pub(super) peers: &'a BTreeMap<u64, String>,
    pub(super) join: bool,
    pub(super) insecure: bool,
}

impl NodeFile<'_> {
    pub(super) fn text(&self) -> String {
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let mut text = format!(
            "# Node {} of the cluster {}. Every other setting has a default: see deploy/quorate.example.toml.\n\
             node_id = {}\ncluster_id = {}\ndata_dir = {}\nlisten = {}\nhttp_listen = {}\n",
            self.node_id,
            self.cluster_id,
            self.node_id,
            quoted(self.cluster_id),
            quoted(&self.data_dir.to_string_lossy()),
            quoted(self.listen),
            quoted(self.http_listen),
        );
        if self.join {
            text.push_str("join = true\n");
        }
        if self.insecure {
            text.push_str("insecure_i_understand = true\n");
        }
        text.push_str("\n# Every member, this node included.\n[peers]\n");
        for (node_id, address) in self.peers {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{node_id} = {}", quoted(address));
        }
        text
    }
}

/// Writes a file that was not there.
pub(super) fn write_new(path: &Path, text: &str) -> Result<(), Failure> {
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| Failure::bad_input(format!("{} cannot be written: {error}", path.display())))
}

/// Refuses what a node would refuse to listen on.
pub(super) fn check_insecure<'a>(
    addresses: impl IntoIterator<Item = &'a String>,
    understood: bool,
) -> Result<bool, Failure> {
    let outside = addresses.into_iter().find(|address| !is_loopback(address));
    match outside {
        Some(address) if !understood => Err(Failure::bad_input(format!(
            "{address} is reachable from other machines, and nothing is encrypted or authenticated yet; add \
             --insecure-i-understand on a network you trust"
        ))),
        outside => Ok(outside.is_some()),
    }
}

fn is_loopback(address: &str) -> bool {
    let host = host(address).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn host(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

/// `HOST:PORT`, of a host that can be reached under that name.
pub(super) fn address(text: &str) -> Result<String, String> {
    let wrong = || format!("expected HOST:PORT, such as 10.0.0.1:7401; got {text:?}");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    if host.is_empty() || host.contains(['/', ' ']) || !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Err(wrong());
    }
    if host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified()) {
        return Err(format!("{host} is every address of a machine; expected the one that the others reach it at"));
    }
    Ok(text.to_owned())
}

/// Where each node's HTTP port is.
pub(super) fn http_addresses(nodes: &[String], http: &[String]) -> Result<Vec<String>, Failure> {
    let on = |node: &String, port: u16| format!("{}:{port}", host(node));
    let is_free = |addresses: &Vec<String>| {
        let all: BTreeSet<&String> = nodes.iter().chain(addresses).collect();
        all.len() == nodes.len() + addresses.len()
    };
    let given = match http {
        [] => {
            let mut tries = HTTP_OFFSETS.iter().map(|offset| {
                let port = |node: &String| node.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
                let next = |node: &String| port(node)?.checked_add(*offset).map(|port| on(node, port));
                nodes.iter().filter_map(next).collect::<Vec<String>>()
            });
            tries.find(|tried| tried.len() == nodes.len() && is_free(tried)).unwrap_or_default()
        }
        [one] if one.parse::<u16>().is_ok() => {
            nodes.iter().filter_map(|node| one.parse().ok().map(|port| on(node, port))).collect()
        }
        many => many.iter().map(|one| address(one)).collect::<Result<_, _>>().map_err(Failure::bad_input)?,
    };
    if given.len() != nodes.len() || !is_free(&given) {
        let message = "--http: expected one port for every node, or an address for each, that nothing else has";
        return Err(Failure::bad_input(message));
    }
    Ok(given)
}

/// Writes the files and says what to do with them.
pub(super) fn run(context: &Context, args: &InitArgs) -> Result<(), Failure> {
    let name_fits = (1..=MAX_NAME_BYTES).contains(&args.name.len())
        && args.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if !name_fits {
        let name = &args.name;
        return Err(Failure::bad_input(format!("NAME: expected 1 to {MAX_NAME_BYTES} of a-z 0-9 . _ -; got {name:?}")));
    }
    let random = uuid::Uuid::new_v4().simple().to_string();
    let cluster_id = format!("{}-{}", args.name, &random[..8]);
    let http = http_addresses(&args.nodes, &args.http)?;
    let insecure = check_insecure(args.nodes.iter().chain(&http), args.insecure_i_understand)?;
    let peers: BTreeMap<u64, String> = (1..).zip(args.nodes.iter().cloned()).collect();
    let paths: Vec<PathBuf> = peers.keys().map(|id| args.dir.join(format!("node-{id}.toml"))).collect();
    if let Some(there) = paths.iter().find(|path| path.exists()) {
        return Err(Failure::bad_input(format!("{} is there already; choose another --dir", there.display())));
    }
    std::fs::create_dir_all(&args.dir)
        .map_err(|error| Failure::bad_input(format!("{} cannot be created: {error}", args.dir.display())))?;
    for (((node_id, listen), http_listen), path) in peers.iter().zip(&http).zip(&paths) {
        let data_dir = Path::new("quorate-data").join(format!("node-{node_id}"));
        let file = NodeFile {
            cluster_id: &cluster_id,
            node_id: *node_id,
            listen,
            http_listen,
            data_dir: &data_dir,
            peers: &peers,
            join: false,
            insecure,
        };
        write_new(path, &file.text())?;
    }
    let files: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    context.out.show(|| json!({ "cluster_id": cluster_id, "files": files }), || next(&cluster_id, &args.nodes, &files))
}

fn next(cluster_id: &str, nodes: &[String], files: &[String]) -> String {
    let mut text = format!("cluster {cluster_id}\n\nOn each machine, with its own file:\n");
    for (node, file) in nodes.iter().zip(files) {
        let _ = writeln!(text, "  {node}   quorate serve --config {file}");
    }
    let endpoints = nodes.join(",");
    let _ = write!(
        text,
        "\nThe cluster begins once all of them are up. Then look at it:\n  quorate --endpoints {endpoints} cluster status"
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, PeerList};

    #[test]
    fn a_file_reads_back_as_the_settings_it_was_made_of() {
        let peers = BTreeMap::from([(1, "a:1".to_owned()), (4, "b \"x\":2".to_owned())]);
        let file = NodeFile {
            cluster_id: "fleet-12345678",
            node_id: 4,
            listen: "b:2",
            http_listen: "b:3",
            data_dir: Path::new("some dir/node-4"),
            peers: &peers,
            join: true,
            insecure: true,
        };
        let config: Config = toml::from_str(&file.text()).unwrap();
        let wanted = Config {
            node_id: 4,
            cluster_id: "fleet-12345678".to_owned(),
            data_dir: PathBuf::from("some dir/node-4"),
            listen: "b:2".to_owned(),
            http_listen: "b:3".to_owned(),
            peers: PeerList::Table(peers.iter().map(|(id, address)| (id.to_string(), address.clone())).collect()),
            join: true,
            insecure_i_understand: true,
            ..Config::default()
        };
        assert_eq!(config, wanted);
    }

    #[test]
    fn no_two_ports_are_the_same() {
        let nodes = |list: &[&str]| list.iter().map(|one| (*one).to_owned()).collect::<Vec<String>>();
        let apart = nodes(&["a:7401", "b:7401"]);
        assert_eq!(http_addresses(&apart, &[]).unwrap(), ["a:7402", "b:7402"]);
        assert_eq!(http_addresses(&apart, &nodes(&["80"])).unwrap(), ["a:80", "b:80"]);
        assert_eq!(http_addresses(&apart, &nodes(&["x:1", "x:2"])).unwrap(), ["x:1", "x:2"]);
        assert!(http_addresses(&apart, &nodes(&["x:1"])).is_err());
        assert!(http_addresses(&apart, &nodes(&["7401"])).is_err());
        let beside = nodes(&["a:7401", "a:7402", "a:7403"]);
        assert_eq!(http_addresses(&beside, &[]).unwrap(), ["a:7501", "a:7502", "a:7503"]);
        assert!(http_addresses(&beside, &nodes(&["80"])).is_err());
    }

    #[test]
    fn nobody_listens_to_the_world_unawares() {
        let on = |address: &str| vec![address.to_owned()];
        assert!(!check_insecure(&on("127.0.0.1:1"), false).unwrap());
        assert!(!check_insecure(&on("[::1]:1"), false).unwrap());
        assert!(check_insecure(&on("10.0.0.1:1"), true).unwrap());
        assert!(check_insecure(&on("db.example:1"), false).unwrap_err().to_string().contains("--insecure"));
        assert!(address("0.0.0.0:7401").unwrap_err().contains("the others reach it"));
        for bad in ["", "a", "a:", "a:0", ":1", "http://a:1"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_is_never_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node-1.toml");
        write_new(&path, "first").unwrap();
        assert!(write_new(&path, "second").is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "first");
    }
}
