//! `quorate cluster join`: the settings file of a node that is to join a cluster which runs already.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::super::Context;
use super::super::exit::Failure;
use super::init::{NodeFile, address, check_insecure, http_addresses, write_new};

pub(super) const EXAMPLES: &str = "\
EXAMPLES:
  quorate --endpoints 10.0.0.1:7401 cluster join --listen 10.0.0.4:7401 --insecure-i-understand
      on the new machine: writes node-4.toml, with a number that no node ever had, and says what to run next

The node gets no vote and no data by this: `quorate cluster add` lets it in.";

/// `quorate cluster join …`
#[derive(Args)]
pub(crate) struct JoinArgs {
    /// Where the others and the clients will reach the new node
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    listen: String,
    /// Its HTTP port (default: the port after that)
    #[arg(long, value_name = "PORT|HOST:PORT")]
    http: Option<String>,
    /// Where it will keep its data (default: quorate-data/node-N)
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The file to write (default: node-N.toml)
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Let it listen beyond loopback although nothing is encrypted or authenticated yet
    #[arg(long)]
    insecure_i_understand: bool,
}

/// Asks the cluster for what the node must know, and writes it down.
pub(super) async fn run(context: &Context, args: JoinArgs) -> Result<(), Failure> {
    let listen = args.listen;
    let given: Vec<String> = args.http.into_iter().collect();
    let http = http_addresses(std::slice::from_ref(&listen), &given)?;
    let insecure = check_insecure([&listen].into_iter().chain(&http), args.insecure_i_understand)?;
    let info = context.client.cluster().join_info().await?;
    if let Some(known) = info.members.iter().find(|member| member.address == listen) {
        let message = format!("{listen} is node {}'s; each node has an address of its own", known.node_id);
        return Err(Failure::bad_input(message));
    }
    let node_id = info.next_node_id;
    let mut peers: BTreeMap<u64, String> = info.members.into_iter().map(|one| (one.node_id, one.address)).collect();
    peers.insert(node_id, listen.clone());
    let data_dir = args.data_dir.unwrap_or_else(|| PathBuf::from(format!("quorate-data/node-{node_id}")));
    let file = args.file.unwrap_or_else(|| PathBuf::from(format!("node-{node_id}.toml")));
    let settings = NodeFile {
        cluster_id: &info.cluster_id,
        node_id,
        listen: &listen,
        http_listen: http.first().map_or("", String::as_str),
        data_dir: &data_dir,
        peers: &peers,
        join: true,
        insecure,
    };
    write_new(&file, &settings.text())?;
    let shown = file.display();
    let endpoints = context.endpoints.join(",");
    context.out.show(
        || json!({ "cluster_id": info.cluster_id, "node_id": node_id, "address": listen, "file": shown.to_string() }),
        || {
            format!(
                "node {node_id} of the cluster {}\n\nStart it, then let it in:\n  quorate serve --config {shown}\n  \
                 quorate --endpoints {endpoints} cluster add {node_id}={listen}",
                info.cluster_id
            )
        },
    )
}
