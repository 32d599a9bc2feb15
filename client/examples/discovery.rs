//! Agents find each other by what they can do: three register, one looks for a translator and sends it a task through the
//! bus, and finds nobody once it has gone. Nobody knows an address. Run `quorate dev` beside it.

#![allow(clippy::print_stdout)] // an example talks to its reader

use std::time::Duration;

use anyhow::{Context, Result};
use quorate_client::v1::{AgentFilter, BusMessage, FindAgentsRequest, RegisterAgentRequest};
use quorate_client::{Client, Config, Session};

/// A session of its own for each: with it, its agent goes.
async fn join(client: &Client, agent_id: &str, capabilities: &[&str]) -> Result<Session> {
    let session = client.sessions().open(Duration::from_secs(10)).await?;
    let capabilities = capabilities.iter().map(|capability| (*capability).to_owned()).collect();
    let request =
        RegisterAgentRequest { agent_id: agent_id.to_owned(), capabilities, ..RegisterAgentRequest::default() };
    client.agents().register(&session, request).await?;
    Ok(session)
}

/// Who can do it, the least busy first.
async fn who_can(client: &Client, capability: &str) -> Result<Vec<String>> {
    let filter = AgentFilter { capabilities: vec![capability.to_owned()], ..AgentFilter::default() };
    let request = FindAgentsRequest { filter: Some(filter), ..FindAgentsRequest::default() };
    let found = client.agents().find(request).await?;
    Ok(found.agents.into_iter().map(|agent| agent.id).collect())
}

/// Takes one task from its own queue.
async fn work_once(client: &Client, session: &Session, agent_id: &str) -> Result<String> {
    let mut tasks = client.bus().consume(session, format!("agent.{agent_id}.tasks")).start();
    let task = tasks.next().await.context("the consumer ended")??;
    let text = String::from_utf8_lossy(&task.message().payload).into_owned();
    task.ack().await?;
    tasks.close().await?;
    Ok(text)
}

#[tokio::main]
async fn main() -> Result<()> {
    let client = Client::connect(Config::new(["127.0.0.1:7401"]))?;
    let writer = join(&client, "example-writer", &["writing"]).await?;
    let translator = join(&client, "example-translator", &["example-translation", "writing"]).await?;
    let reader = join(&client, "example-reader", &["reading"]).await?;
    println!("who can write: {:?}", who_can(&client, "writing").await?);

    let found = who_can(&client, "example-translation").await?;
    let chosen = found.first().context("nobody translates")?;
    let task =
        BusMessage { from: "example-writer".to_owned(), payload: "good morning".into(), ..BusMessage::default() };
    // Its queue is there from now on, whether or not it has ever looked at it.
    client.bus().send_task(&writer, chosen, task).await?;
    println!("{chosen} was sent {:?}", work_once(&client, &translator, chosen).await?);

    client.agents().deregister(chosen).await?;
    client.bus().unsubscribe(&format!("agent.{chosen}.tasks")).await?;
    println!("who can translate now: {:?}", who_can(&client, "example-translation").await?);
    for session in [writer, translator, reader] {
        session.close().await?;
    }
    Ok(())
}
