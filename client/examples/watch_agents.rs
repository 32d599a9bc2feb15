//! Prints every change of the registry until it is interrupted. Run `quorate dev` and some workers beside it.

#![allow(clippy::print_stdout)] // an example talks to its reader

use futures::StreamExt;
use quorate_client::v1::AgentFilter;
use quorate_client::{Client, Config};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let client = Client::connect(Config::new(["127.0.0.1:7401"]))?;
    let mut events = std::pin::pin!(client.agents().watch(AgentFilter::default()));
    while let Some(event) = events.next().await {
        let event = event?;
        let agent = event.agent.clone().unwrap_or_default();
        println!("{:?} {} {:?} load {}/{}", event.kind(), agent.id, agent.status(), agent.load, agent.capacity);
    }
    Ok(())
}
