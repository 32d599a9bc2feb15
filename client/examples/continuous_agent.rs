//! An agent that is always there: it adds up what it is sent. It is stopped half-way, and the one that comes after it goes
//! on with the same sum. Run `quorate dev` beside it.

#![allow(clippy::print_stdout)] // an example talks to its reader

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use quorate_client::v1::{BusMessage, SubscriptionSpec};
use quorate_client::{Client, Config, Consumer, ContinuousAgent, Session, Step};
use tokio::sync::oneshot;

fn number(bytes: &[u8]) -> Result<u64, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    if text.is_empty() { Ok(0) } else { text.parse().map_err(|_| format!("{text:?} is no number")) }
}

/// The state is the sum so far; every event adds a number and says the sum.
async fn add(state: Bytes, event: BusMessage) -> Result<Step, String> {
    let sum = (number(&state)? + number(&event.payload)?).to_string();
    Ok(Step::new(sum.clone()).output(sum))
}

/// Sends some numbers to an agent that runs meanwhile, and prints what it says.
async fn send(client: &Client, session: &Session, outputs: &mut Consumer, numbers: &[u64]) -> Result<()> {
    let agent = ContinuousAgent::new(client.clone(), "example-sum");
    let (input, (stop, stopped)) = (agent.input(), oneshot::channel::<()>());
    let running = tokio::spawn(async move { agent.run(add, async move { drop(stopped.await) }).await });
    for number in numbers {
        let message = BusMessage {
            subject: input.clone(),
            payload: number.to_string().into_bytes().into(),
            correlation_id: format!("plus-{number}"),
            ..BusMessage::default()
        };
        client.bus().publish(Some(session), message).await?;
    }
    for _ in numbers {
        let said = outputs.next().await.context("the consumer ended")??;
        println!("{}: {}", said.message().correlation_id, String::from_utf8_lossy(&said.message().payload));
        said.ack().await?;
    }
    drop(stop);
    println!("{:?}", running.await??);
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let client = Client::connect(Config::new(["127.0.0.1:7401"]))?;
    let session = client.sessions().open(Duration::from_secs(10)).await?;
    let agent = ContinuousAgent::new(client.clone(), "example-sum");

    // The agent creates its queue when it first runs; what is sent before that needs it too.
    let input = SubscriptionSpec { name: agent.input(), patterns: vec![agent.input()], ..SubscriptionSpec::default() };
    client.bus().subscribe(input).await?;
    let output = SubscriptionSpec {
        name: format!("example.{}", session.id()),
        patterns: vec![agent.output()],
        session_id: session.id().to_owned(),
        ..SubscriptionSpec::default()
    };
    let name = output.name.clone();
    client.bus().subscribe(output).await?;
    let mut outputs = client.bus().consume(&session, name).credit(8).start();

    send(&client, &session, &mut outputs, &[1, 2, 3]).await?;
    println!("another process takes over");
    send(&client, &session, &mut outputs, &[4, 5]).await?;

    client.kv().delete(agent.state_key()).request(&session).send().await?;
    client.bus().unsubscribe(&agent.input()).await?;
    outputs.close().await?;
    session.close().await?;
    Ok(())
}
