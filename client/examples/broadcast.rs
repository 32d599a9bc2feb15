//! One event for everybody: five agents subscribe to `agent.broadcast`, each with a queue of its own, and each hears what
//! is said once. Run `quorate dev` beside it.

#![allow(clippy::print_stdout)] // an example talks to its reader

use std::time::Duration;

use anyhow::{Context, Result};
use quorate_client::v1::{BusMessage, SubscriptionSpec};
use quorate_client::{Client, Config, Session};

const SUBJECT: &str = "agent.broadcast";

/// Listens until it has heard as much as was said.
async fn listen(client: Client, session: Session, name: String, count: usize) -> Result<Vec<String>> {
    let mut consumer = client.bus().consume(&session, name).credit(8).start();
    let mut heard = Vec::new();
    while heard.len() < count {
        let delivery = consumer.next().await.context("the consumer ended")??;
        heard.push(String::from_utf8_lossy(&delivery.message().payload).into_owned());
        delivery.ack().await?;
    }
    consumer.close().await?;
    Ok(heard)
}

#[tokio::main]
async fn main() -> Result<()> {
    let client = Client::connect(Config::new(["127.0.0.1:7401"]))?;
    let session = client.sessions().open(Duration::from_secs(10)).await?;
    let bus = client.bus();
    let news = ["a plan was made", "a plan was changed"];

    let mut listening = Vec::new();
    for agent in 1..=5 {
        let name = format!("example.{agent}.{}", session.id());
        let spec = SubscriptionSpec {
            name: name.clone(),
            patterns: vec![SUBJECT.to_owned()],
            session_id: session.id().to_owned(),
            ..SubscriptionSpec::default()
        };
        // Before anything is said: what was published earlier is not delivered.
        bus.subscribe(spec).await?;
        listening.push((agent, tokio::spawn(listen(client.clone(), session.clone(), name, news.len()))));
    }

    for text in news {
        let message = BusMessage { subject: SUBJECT.to_owned(), payload: text.into(), ..BusMessage::default() };
        let published = bus.publish(Some(&session), message).await?;
        println!("said {text:?} to {} subscriptions", published.matched);
    }
    for (agent, heard) in listening {
        println!("agent {agent} heard {:?}", heard.await??);
    }
    session.close().await?;
    Ok(())
}
