//! Questions and answers: an agent translates what it is asked; nobody answers on another subject, which is known at
//! once. Run `quorate dev` beside it.

#![allow(clippy::print_stdout)] // an example talks to its reader

use std::time::Duration;

use anyhow::Result;
use quorate_client::v1::{BusMessage, SubscriptionSpec};
use quorate_client::{Client, Config, Session};

const SUBJECT: &str = "example.translate";
const LIMIT: Duration = Duration::from_secs(5);

/// Answers whatever it is asked, until it is told to stop.
async fn translate(client: Client, session: Session, stop: tokio::sync::oneshot::Receiver<()>) -> Result<()> {
    let bus = client.bus();
    let mut questions = bus.consume(&session, SUBJECT).start();
    let mut stop = std::pin::pin!(stop);
    loop {
        let question = tokio::select! {
            _told = stop.as_mut() => break,
            question = questions.next() => question,
        };
        let Some(question) = question else { break };
        let question = question?;
        let answer = match &question.message().payload[..] {
            b"one" => "eins",
            b"two" => "zwei",
            _ => "?",
        };
        bus.reply(&session, question.message(), answer).await?;
        question.ack().await?;
    }
    questions.close().await?;
    Ok(())
}

fn question(subject: &str, text: &'static str) -> BusMessage {
    BusMessage { subject: subject.to_owned(), payload: text.into(), ..BusMessage::default() }
}

#[tokio::main]
async fn main() -> Result<()> {
    let client = Client::connect(Config::new(["127.0.0.1:7401"]))?;
    let session = client.sessions().open(Duration::from_secs(10)).await?;
    let bus = client.bus();

    // It goes with the session, so that the next run begins with an empty one.
    let spec = SubscriptionSpec {
        name: SUBJECT.to_owned(),
        patterns: vec![SUBJECT.to_owned()],
        session_id: session.id().to_owned(),
        ..SubscriptionSpec::default()
    };
    bus.subscribe(spec).await?;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let translating = tokio::spawn(translate(client.clone(), session.clone(), stopped));

    let requester = bus.requester(&session).await?;
    for text in ["one", "two", "three"] {
        let answer = requester.request(question(SUBJECT, text), LIMIT).await?;
        println!("{text} is {}", String::from_utf8_lossy(&answer.payload));
    }
    match requester.request(question("example.nobody", "anyone?"), LIMIT).await {
        Ok(_) => println!("this would be a bug"),
        Err(error) => println!("nobody: {error}"),
    }

    drop(stop);
    translating.await??;
    session.close().await?;
    Ok(())
}
