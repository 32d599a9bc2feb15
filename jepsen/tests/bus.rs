//! The bus on three nodes: what was accepted is delivered until it is acknowledged, in the order of its key, whoever dies
//! meanwhile; and agents find each other through it.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::{join, try_join_all};
use quorate_client::v1::{
    BusMessage, ListDeadMessagesRequest, ListSubscriptionsRequest, PublishRequest, RejectionCode, SubscriptionSpec,
};
use quorate_client::{Client, Config, Consumer, Delivery, Error, Requester, Session};
use quorate_jepsen::coordination::deliveries::Publications;
use quorate_jepsen::coordination::traffic::{self, Book, Desk, Producer, Survivors, kill_consumers};
use quorate_jepsen::coordination::{Mortal, Progress, backlog, drained, kill_leaders, standing};
use quorate_jepsen::rng::{Rng, env_u64, seed};
use quorate_jepsen::until::until;
use quorate_jepsen::{LocalCluster, faults};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

const LIMIT: Duration = Duration::from_secs(60);
/// Longer than the faults: no session ends here that is not meant to.
const LEASE: Duration = Duration::from_secs(60);
/// Several consumers share this one.
const GROUP: &str = "group";
const SINGLE: &str = "single";
const SHARING: usize = 4;
const PRODUCERS: u32 = 4;
/// So many are published, taken or acknowledged at once.
const BATCH: usize = 100;
/// More than that, so that a batch can be held.
const ENOUGH: u32 = 200;
const AGENTS: usize = 10;
/// So many tasks each agent sends to each other one.
const TASKS: usize = 5;

fn spec(name: &str, pattern: &str) -> SubscriptionSpec {
    SubscriptionSpec { name: name.to_owned(), patterns: vec![pattern.to_owned()], ..Default::default() }
}

fn message(subject: &str, payload: impl Into<String>) -> BusMessage {
    let payload: String = payload.into();
    BusMessage { subject: subject.to_owned(), payload: payload.into(), ..Default::default() }
}

fn text(message: &BusMessage) -> Result<&str> {
    Ok(std::str::from_utf8(&message.payload)?)
}

async fn next(consumer: &mut Consumer) -> Result<Delivery> {
    let next = tokio::time::timeout(LIMIT, consumer.next()).await.context("nothing was delivered")?;
    Ok(next.context("the consumer has ended")??)
}

/// How many each publisher publishes.
fn shares(messages: u64) -> Result<Vec<u32>> {
    let messages = u32::try_from(messages)?;
    Ok((0..PRODUCERS).map(|number| messages / PRODUCERS + u32::from(number < messages % PRODUCERS)).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn acked_publishes_are_delivered_until_acked() -> Result<()> {
    let seed = seed();
    let (messages, kills) = (env_u64("QUORATE_MESSAGES", 8_000), env_u64("QUORATE_KILLS", 2));
    let mut cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    for (name, pattern) in [(GROUP, "work.>"), (SINGLE, "work.*")] {
        // That somebody dies here is not the message's fault.
        let patient = SubscriptionSpec { max_attempts: 100, backoff_ms: vec![20], ..spec(name, pattern) };
        client.bus().subscribe(SubscriptionSpec { max_messages: 10_000_000, ..patient }).await?;
    }
    let (leave, leaving) = watch::channel(false);
    let (spare, spared) = watch::channel(false);
    let (group, single) = (Book::default(), Book::default());
    let desk = |subscription: &'static str, credit: u32, book: &Book| {
        let (endpoints, stop, book) = (cluster.endpoints(), leaving.clone(), Arc::clone(book));
        Desk { endpoints, subscription, credit, seed, book, stop }
    };
    let mut desks = vec![desk(GROUP, 16, &group); SHARING];
    desks.push(desk(SINGLE, 64, &single));
    let killing = tokio::spawn(kill_consumers(desks, Rng::new(seed), spared));

    let began = Instant::now();
    let progress = Arc::new(Progress::of(messages));
    let producers = (0..PRODUCERS).map(|number| Producer::new(cluster.endpoints(), number, &[GROUP, SINGLE]));
    let producing = try_join_all(producers).await?.into_iter().zip(shares(messages)?);
    let producing = producing.map(|(producer, count)| producer.produce(count, Arc::clone(&progress)));
    let producing = tokio::spawn(try_join_all(producing.collect::<Vec<_>>()));
    let killed = kill_leaders(&mut cluster, kills, &progress, &producing).await?;
    let mut published = Publications::default();
    producing.await??.into_iter().for_each(|one| published.add(one));
    spare.send_replace(true);
    let Survivors { consumers, deaths } = killing.await??;
    for name in [GROUP, SINGLE] {
        drained(&client, name).await?;
    }
    eprintln!("{messages} messages in {:?}; {killed} leaders and {deaths} consumers killed", began.elapsed());
    leave.send_replace(true);
    for consumer in consumers {
        consumer.end().await?;
    }
    faults::sessions_end(&cluster, LIMIT).await?;

    ensure!(killed == kills && (deaths > 0 || messages < 10_000), "too little happened to say anything");
    check(&client, &published, &[(GROUP, &group), (SINGLE, &single)]).await?;
    let same = traffic::open(&group).numbers().eq(traffic::open(&single).numbers());
    ensure!(same, "{GROUP} and {SINGLE} had different messages");
    cluster.check_replicas_equal().await?;
    cluster.close()
}

/// Each subscription by itself, and against its own counters.
async fn check(client: &Client, published: &Publications, books: &[(&str, &Book)]) -> Result<()> {
    let (accepted, unknown) = (published.accepted.len(), published.unknown.len());
    let (duplicates, unanswered) = (published.duplicates, published.unanswered);
    eprintln!("{accepted} accepted, {unknown} unknown, {duplicates} known by their id, {unanswered} calls unanswered");
    for (name, book) in books {
        let (row, stats) = standing(client, name).await?;
        let book = traffic::open(book);
        eprintln!("{name}: {}", book.summary());
        book.check(published).with_context(|| (*name).to_owned())?;
        ensure!(book.nacks() > 0 || book.len() < 1_000, "{name}: nothing ever failed");
        let count = book.len() as u64;
        let counts = (row.published, row.acked, row.dead + row.expired + row.dropped);
        ensure!(counts == (count, count, 0), "{name}: given {count}; published, acknowledged, gone: {counts:?}");
        ensure!(stats.consumers.is_empty(), "{name}: consumers whose sessions have ended: {:?}", stats.consumers);
    }
    Ok(())
}

/// A consumer that is killed by the first message it gets.
async fn die_of_a_message(endpoints: Vec<String>, subscription: &'static str) -> Result<u32> {
    let (tell, got) = oneshot::channel();
    let consumer = Mortal::start(async move {
        let client = Client::connect(Config::new(endpoints))?;
        let session = client.sessions().open(Duration::from_secs(1)).await?;
        let mut consumer = client.bus().consume(&session, subscription).start();
        let delivery = next(&mut consumer).await?;
        // If the test has failed meanwhile, there is nobody to tell.
        let _ = tell.send(delivery.attempt());
        std::future::pending::<()>().await;
        drop((delivery, consumer));
        Ok(())
    })?;
    let attempt = got.await.context("the consumer got nothing")?;
    consumer.kill();
    Ok(attempt)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_kills_its_consumers_is_dead_after_five() -> Result<()> {
    const DOOMED: &str = "doomed";
    const REASON: &str = "not this one";
    let mut cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    client.bus().subscribe(SubscriptionSpec { backoff_ms: vec![10], ..spec(DOOMED, DOOMED) }).await?;
    let session = client.sessions().open(LEASE).await?;
    let poison = client.bus().publish(Some(&session), message(DOOMED, "poison")).await?.seq;
    let attempt = die_of_a_message(cluster.endpoints(), DOOMED).await?;
    ensure!(attempt == 1, "the first attempt is {attempt}");
    let mut consumer = client.bus().consume(&session, DOOMED).start();
    for attempt in 2..=5 {
        let delivery = next(&mut consumer).await?;
        let got = (delivery.attempt(), delivery.message().seq);
        ensure!(got == (attempt, poison), "attempt {attempt} at {poison} is {got:?}");
        if attempt == 3 {
            faults::replace_leader(&mut cluster).await?;
        }
        delivery.nack(REASON).await?;
    }
    // A sixth would come before it: it is older.
    let after = client.bus().publish(Some(&session), message(DOOMED, "harmless")).await?.seq;
    let delivery = next(&mut consumer).await?;
    ensure!(delivery.message().seq == after, "a sixth delivery: {:?}", delivery.message());
    delivery.ack().await?;
    ensure!(backlog(&client, DOOMED).await? == 0, "something is left in it");

    let dead = ListDeadMessagesRequest { subscription: DOOMED.to_owned(), ..Default::default() };
    let listed = client.bus().dead(dead.clone()).await?;
    ensure!(listed.total == 1 && listed.messages.len() == 1, "dead messages: {listed:?}");
    let buried = listed.messages.first().context("no dead message")?;
    let body = buried.message.as_ref().context("a dead message without a message")?;
    ensure!(body.seq == poison && text(body)? == "poison", "{body:?} is dead");
    let attempts: Vec<u32> = buried.failures.iter().map(|failure| failure.attempt).collect();
    let reasons = buried.failures.iter().map(|failure| failure.reason == REASON);
    ensure!(attempts == [1, 2, 3, 4, 5] && reasons.eq([false, true, true, true, true]), "{:?}", buried.failures);

    let redriven = client.bus().redrive_dead(Some(&session), DOOMED, vec![poison]).await?;
    ensure!((redriven.redriven, redriven.left) == (1, 0), "{redriven:?}");
    let delivery = next(&mut consumer).await?;
    let again = (delivery.attempt(), text(delivery.message())?, delivery.message().seq > after);
    ensure!(again == (1, "poison", true), "it came back as {again:?}");
    delivery.ack().await?;
    consumer.close().await?;
    session.close().await?;
    let (row, _) = standing(&client, DOOMED).await?;
    ensure!((row.acked, row.dead) == (2, 1) && client.bus().dead(dead).await?.total == 0, "{row:?}");
    cluster.check_replicas_equal().await?;
    cluster.close()
}

/// Publishes numbers, each with its id, without a session: nothing that a restart could end.
async fn publish_numbers(client: &Client, subject: &str, numbers: Range<u64>) -> Result<()> {
    let all: Vec<u64> = numbers.collect();
    for batch in all.chunks(BATCH) {
        let numbered = |n: &u64| BusMessage { id: format!("{subject}-{n}"), ..message(subject, n.to_string()) };
        let request = PublishRequest { messages: batch.iter().map(numbered).collect(), ..Default::default() };
        let published = client.bus().publish_all(None, request).await?.published;
        ensure!(published.len() == batch.len(), "{} answers to {}", published.len(), batch.len());
    }
    Ok(())
}

/// Takes the numbers from a subscription, each at its first attempt, in their order.
async fn take_numbers(consumer: &mut Consumer, numbers: Range<u64>) -> Result<()> {
    let all: Vec<u64> = numbers.collect();
    for batch in all.chunks(BATCH) {
        let mut taken = Vec::new();
        for n in batch {
            let delivery = next(consumer).await?;
            let got = (text(delivery.message())?, delivery.attempt());
            ensure!(got == (n.to_string().as_str(), 1), "where {n} was to come, it is {got:?}");
            taken.push(delivery);
        }
        try_join_all(taken.iter().map(Delivery::ack)).await?;
    }
    Ok(())
}

/// The leader waits for what is due in ten minutes when the nack makes something due in 20 ms, and nothing else happens that
/// could wake it.
#[tokio::test(flavor = "multi_thread")]
async fn a_nack_on_a_quiet_bus_comes_again_in_its_time() -> Result<()> {
    const SOON: Duration = Duration::from_secs(10);
    let cluster = LocalCluster::builder().nodes(1).start().await?;
    let client = cluster.client()?;
    client.bus().subscribe(SubscriptionSpec { backoff_ms: vec![20], max_attempts: 10, ..spec("q", "q") }).await?;
    let session = client.sessions().open(LEASE).await?;
    let mut consumer = client.bus().consume(&session, "q").credit(1).start();
    // Its id is remembered for ten minutes.
    client.bus().publish(Some(&session), BusMessage { id: "remembered".to_owned(), ..message("q", "x") }).await?;
    let mut delivery = next(&mut consumer).await?;
    for attempt in 2..=4 {
        delivery.nack("again").await?;
        delivery = tokio::time::timeout(SOON, next(&mut consumer)).await.context("it did not come again")??;
        ensure!(delivery.attempt() == attempt, "attempt {} instead of {attempt}", delivery.attempt());
    }
    delivery.ack().await?;
    consumer.close().await?;
    session.close().await?;
    cluster.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_survives_a_stop_of_all_nodes() -> Result<()> {
    const EACH: u64 = 1_000;
    const QUEUE: &str = "orders";
    let mut cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    client.bus().subscribe(spec(QUEUE, QUEUE)).await?;
    publish_numbers(&client, QUEUE, 0..EACH).await?;
    for id in cluster.node_ids() {
        cluster.request_stop(id)?;
    }
    for id in cluster.node_ids() {
        cluster.terminate(id).await?;
    }
    cluster.start_all().await?;
    publish_numbers(&client, QUEUE, EACH..2 * EACH).await?;
    cluster.kill_all()?;
    cluster.start_all().await?;

    // What was published before is known by its id.
    publish_numbers(&client, QUEUE, 2 * EACH - BATCH as u64..2 * EACH).await?;
    let session = client.sessions().open(LEASE).await?;
    let mut consumer = client.bus().consume(&session, QUEUE).credit(ENOUGH).start();
    take_numbers(&mut consumer, 0..2 * EACH).await?;
    consumer.close().await?;
    session.close().await?;
    let (row, _) = standing(&client, QUEUE).await?;
    let counts = (row.published, row.acked, backlog(&client, QUEUE).await?);
    ensure!(counts == (2 * EACH, 2 * EACH, 0), "published, acknowledged, left: {counts:?}");
    cluster.check_replicas_equal().await?;
    cluster.close()
}

/// An agent that hears broadcasts for as long as its session lives.
async fn listen(client: &Client, number: u64) -> Result<(Session, Consumer)> {
    let session = client.sessions().open(LEASE).await?;
    let name = format!("agent.{number}.broadcast");
    let own = SubscriptionSpec { session_id: session.id().to_owned(), ..spec(&name, "agent.broadcast") };
    client.bus().subscribe(own).await?;
    let consumer = client.bus().consume(&session, name).start();
    Ok((session, consumer))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_broadcast_reaches_fifty() -> Result<()> {
    let agents = env_u64("QUORATE_AGENTS", 50);
    let cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    let listening = try_join_all((0..agents).map(|number| listen(&client, number))).await?;
    let publisher = client.sessions().open(LEASE).await?;
    for said in ["attention", "that was all"] {
        let published = client.bus().publish(Some(&publisher), message("agent.broadcast", said)).await?;
        ensure!(u64::from(published.matched) == agents, "{said:?} goes to {} of {agents}", published.matched);
    }
    let hearing = listening.into_iter().map(|(session, mut consumer)| async move {
        for expected in ["attention", "that was all"] {
            let delivery = next(&mut consumer).await?;
            let heard = (text(delivery.message())?, delivery.attempt());
            ensure!(heard == (expected, 1), "{} heard {heard:?} for {expected:?}", delivery.subscription());
            delivery.ack().await?;
        }
        session.close().await?;
        anyhow::Ok(())
    });
    try_join_all(hearing).await?;
    publisher.close().await?;
    until("no agent, no subscription", LIMIT, || async {
        let left = client.bus().subscriptions(ListSubscriptionsRequest::default()).await?;
        Ok(left.subscriptions.is_empty().then_some(()))
    })
    .await?;
    cluster.check_replicas_equal().await?;
    cluster.close()
}

fn agent_id(number: usize) -> String {
    format!("agent-{number}")
}

/// One that sends tasks to all others, does what it is sent, and waits for its answers. Gives how many came.
async fn work_together(client: Client, number: usize) -> Result<usize> {
    let me = agent_id(number);
    let session = client.sessions().open(LEASE).await?;
    let requester = client.bus().requester(&session).await?;
    let queue = format!("agent.{me}.tasks");
    client.bus().subscribe(spec(&queue, &queue)).await?;
    let mut consumer = client.bus().consume(&session, queue).credit(4).start();
    let sending = async {
        let mut asked = Vec::new();
        for other in (0..AGENTS).filter(|other| *other != number) {
            for task in 0..TASKS {
                let work = format!("{me} asks {task}");
                let sent = BusMessage {
                    from: me.clone(),
                    reply_to: requester.subject().to_owned(),
                    ..message("", work.as_str())
                };
                let correlation_id = client.bus().send_task(&session, &agent_id(other), sent).await?;
                asked.push((other, correlation_id, work));
            }
        }
        let mut answered = 0;
        for (other, correlation_id, work) in asked {
            let answer = requester.wait_for(&correlation_id, LIMIT).await?;
            let got = (answer.from.as_str(), answer.to.as_str(), text(&answer)?);
            ensure!(got == (agent_id(other).as_str(), me.as_str(), format!("done: {work}").as_str()), "{got:?}");
            answered += 1;
        }
        anyhow::Ok(answered)
    };
    let serving = async {
        for _ in 0..(AGENTS - 1) * TASKS {
            let delivery = next(&mut consumer).await?;
            ensure!(delivery.attempt() == 1, "{:?} comes again", delivery.message());
            let done = format!("done: {}", text(delivery.message())?);
            client.bus().reply(&session, delivery.message(), done).await?;
            delivery.ack().await?;
        }
        anyhow::Ok(())
    };
    let (answered, ()) = tokio::try_join!(sending, serving)?;
    consumer.close().await?;
    session.close().await?;
    Ok(answered)
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_agents_send_to_each_other() -> Result<()> {
    let cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    let mut working = Vec::new();
    for number in 0..AGENTS {
        working.push(tokio::spawn(work_together(cluster.client()?, number)));
    }
    let mut answers = 0;
    for agent in working {
        answers += agent.await??;
    }
    ensure!(answers == AGENTS * (AGENTS - 1) * TASKS, "{answers} answers");
    for number in 0..AGENTS {
        let queue = format!("agent.{}.tasks", agent_id(number));
        let (row, _) = standing(&client, &queue).await?;
        let count = ((AGENTS - 1) * TASKS) as u64;
        let counts = (row.published, row.acked, row.redelivered, backlog(&client, &queue).await?);
        ensure!(counts == (count, count, 0, 0), "{queue}: published, acknowledged, again, left: {counts:?}");
    }
    cluster.check_replicas_equal().await?;
    cluster.close()
}

/// Asks in the background.
fn ask(requester: &Requester, what: &'static str) -> JoinHandle<Result<BusMessage, Error>> {
    let requester = requester.clone();
    tokio::spawn(async move { requester.request(message("questions", what), LIMIT).await })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_gets_its_reply_or_times_out() -> Result<()> {
    let mut cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    client.bus().subscribe(spec("questions", "questions")).await?;
    let asker = client.sessions().open(LEASE).await?;
    let answerer = client.sessions().open(LEASE).await?;
    let requester = client.bus().requester(&asker).await?;
    let mut consumer = client.bus().consume(&answerer, "questions").credit(2).start();

    let (first, second) = (ask(&requester, "one"), ask(&requester, "two"));
    let taken = [next(&mut consumer).await?, next(&mut consumer).await?];
    faults::replace_leader(&mut cluster).await?;
    // The other way round than they were asked: an answer finds its question.
    for delivery in taken.iter().rev() {
        let answer = format!("{} is answered", text(delivery.message())?);
        client.bus().reply(&answerer, delivery.message(), answer).await?;
        delivery.ack().await?;
    }
    for (asked, what) in [(first, "one is answered"), (second, "two is answered")] {
        let answer = asked.await??;
        ensure!(text(&answer)? == what, "{what:?} is {answer:?}");
    }

    let own = BusMessage { correlation_id: "c-late".to_owned(), ..message("questions", "who is there?") };
    let unanswered = requester.request(own, Duration::from_secs(1)).await;
    ensure!(matches!(unanswered, Err(Error::TimedOut { .. })), "silence gave {unanswered:?}");
    let delivery = next(&mut consumer).await?;
    client.bus().reply(&answerer, delivery.message(), "sorry, late").await?;
    delivery.ack().await?;
    let late = requester.wait_for("c-late", LIMIT).await?;
    ensure!(text(&late)? == "sorry, late", "the late answer is {late:?}");
    let nobody = requester.request(message("nobody.hears", "this"), LIMIT).await;
    let refused = matches!(nobody, Err(Error::Rejected { code: RejectionCode::FailedPrecondition, .. }));
    ensure!(refused, "a question that nobody hears gave {nobody:?}");
    consumer.close().await?;
    for session in [asker, answerer] {
        session.close().await?;
    }
    cluster.check_replicas_equal().await?;
    cluster.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_close_redelivers_nothing() -> Result<()> {
    const QUEUE: &str = "builds";
    const COUNT: u64 = 200;
    const CREDIT: u32 = 64;
    const ACKED: usize = 40;
    let cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    client.bus().subscribe(spec(QUEUE, QUEUE)).await?;
    publish_numbers(&client, QUEUE, 0..COUNT).await?;
    let first = client.sessions().open(LEASE).await?;
    let mut consumer = client.bus().consume(&first, QUEUE).credit(CREDIT).start();
    let mut taken = Vec::new();
    for _ in 0..ACKED {
        taken.push(next(&mut consumer).await?);
    }
    until("it holds as many as it may", LIMIT, || async {
        Ok((standing(&client, QUEUE).await?.1.in_flight == u64::from(CREDIT)).then_some(()))
    })
    .await?;
    // Said before it leaves, and answered on the way out.
    let (acked, closed) = join(try_join_all(taken.iter().map(Delivery::ack)), consumer.close()).await;
    acked.context("an acknowledgement was lost in the close")?;
    closed?;

    let second = client.sessions().open(LEASE).await?;
    let mut consumer = client.bus().consume(&second, QUEUE).credit(ENOUGH).start();
    take_numbers(&mut consumer, ACKED as u64..COUNT).await?;
    consumer.close().await?;
    let (row, _) = standing(&client, QUEUE).await?;
    let counts = (row.acked, row.redelivered, backlog(&client, QUEUE).await?);
    ensure!(counts == (COUNT, 0, 0), "acknowledged, delivered again, left: {counts:?}");
    for session in [first, second] {
        session.close().await?;
    }
    cluster.check_replicas_equal().await?;
    cluster.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_goes_on_when_its_node_dies() -> Result<()> {
    const QUEUE: &str = "events";
    const EACH: u64 = 50;
    let kills = env_u64("QUORATE_KILLS", 2);
    let mut cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    client.bus().subscribe(spec(QUEUE, QUEUE)).await?;
    let session = client.sessions().open(LEASE).await?;
    let mut consumer = client.bus().consume(&session, QUEUE).credit(ENOUGH).start();
    for round in 0..kills {
        let (from, to) = (round * (EACH + 1), (round + 1) * (EACH + 1));
        publish_numbers(&client, QUEUE, from..to).await?;
        take_numbers(&mut consumer, from..to - 1).await?;
        // Taken and not acknowledged when the node dies that delivers.
        let held = next(&mut consumer).await?;
        faults::replace_leader(&mut cluster).await?;
        ensure!(text(held.message())? == (to - 1).to_string(), "held: {:?}", held.message());
        held.ack().await?;
    }
    publish_numbers(&client, QUEUE, kills * (EACH + 1)..(kills + 1) * (EACH + 1)).await?;
    take_numbers(&mut consumer, kills * (EACH + 1)..(kills + 1) * (EACH + 1)).await?;
    consumer.close().await?;
    let (row, _) = standing(&client, QUEUE).await?;
    let counts = (row.published, row.acked, row.redelivered, backlog(&client, QUEUE).await?);
    let all = (kills + 1) * (EACH + 1);
    ensure!(counts == (all, all, 0, 0), "published, acknowledged, delivered again, left: {counts:?}");
    session.close().await?;
    cluster.check_replicas_equal().await?;
    cluster.close()
}
