//! How soon does a watcher hear of a put, at the leader and at a follower?
//!
//! Documents are put by a schedule that waits for no answer, each under a key of its own. Each watcher knows one node
//! only, and is there before the first put.
//!
//! Deliberately absent: catching up. What is measured is news.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use quorate_client::v1::{WatchFilter, WatchRequest};
use quorate_client::{Client, Config, Error, Kv, Watch};
use quorate_jepsen::{LocalCluster, Rng};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::paced::{self, Calls, Heard, News};
use crate::payload::payload;
use crate::report::{Form, Table};

const VALUE_BYTES: usize = 256;
const PREFIX: &str = "watched/";

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Puts a second, evenly spaced
    #[arg(long, default_value_t = 500)]
    rate: u64,
    /// Length of the measurement
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
}

/// A watch that tells what it hears.
struct Watcher {
    told: mpsc::UnboundedReceiver<News>,
    listening: JoinHandle<Result<()>>,
}

/// Puts by the schedule with both watchers there, and prints how long the events took. Fails if one was lost.
pub(crate) async fn run(args: Args) -> Result<()> {
    paced::check(args.rate, args.seconds)?;
    let cluster = LocalCluster::builder().start().await?;
    let leader = cluster.leader().await?;
    let follower = *cluster.followers().await?.first().context("a cluster without followers")?;
    let at_leader = Watcher::start(cluster.endpoint(leader)?).await?;
    let at_follower = Watcher::start(cluster.endpoint(follower)?).await?;

    let kv = cluster.client()?.kv();
    let calls = paced::calls(args.rate, args.seconds, |number| put(kv.clone(), number)).await?;
    let about = format!("{} puts/s for {} s; {}", args.rate, args.seconds, paced::ABOUT);
    let mut table = Table::new("watch", about, paced::COLUMNS);
    let lost_at_leader = at_leader.hear("leader", &calls, &mut table).await?;
    let lost_at_follower = at_follower.hear("follower", &calls, &mut table).await?;
    table.print(args.output)?;
    calls.count()?;
    ensure!(cluster.leader().await? == leader, "the leader changed: the rows are not what they say");
    ensure!(lost_at_leader == 0, "the watcher at the leader missed {lost_at_leader} events");
    ensure!(lost_at_follower == 0, "the watcher at a follower missed {lost_at_follower} events");
    cluster.close()
}

impl Watcher {
    /// Is there when this returns.
    async fn start(endpoint: String) -> Result<Watcher> {
        let client = Client::connect(Config::new([endpoint]))?;
        let filter = WatchFilter { room: "kv".into(), prefix: PREFIX.into(), ..Default::default() };
        let mut watch = client.watch(WatchRequest { filters: vec![filter], ..Default::default() });
        // The first response comes at once and says where "from now on" is.
        watch.next().await.context("the watch ended before it began")??;
        let (tell, told) = mpsc::unbounded_channel();
        Ok(Watcher { told, listening: tokio::spawn(listen(watch, tell)) })
    }

    /// Waits for every acknowledged put and adds a row. How many were not heard of.
    async fn hear(mut self, name: &str, calls: &Calls, table: &mut Table) -> Result<usize> {
        let mut heard = Heard::default();
        let lost = heard.wait_for(calls, &mut self.told).await;
        heard.row(name, calls, table)?;
        if self.listening.is_finished() {
            self.listening.await?.with_context(|| format!("the watch at the {name} ended"))?;
        } else {
            self.listening.abort();
        }
        Ok(lost)
    }
}

async fn put(kv: Kv, number: u64) -> Result<(), Error> {
    let value = payload(VALUE_BYTES, &mut Rng::new(number));
    kv.put(format!("{PREFIX}{number}"), value).send().await.map(drop)
}

async fn listen(mut watch: Watch, tell: mpsc::UnboundedSender<News>) -> Result<()> {
    while let Some(response) = watch.next().await {
        let response = response?;
        let at = Instant::now();
        for number in response.events.iter().filter_map(|event| number_of(&event.key)) {
            if tell.send((number, at)).is_err() {
                // Nobody listens any longer.
                return Ok(());
            }
        }
    }
    Ok(())
}

fn number_of(key: &str) -> Option<u64> {
    key.strip_prefix(PREFIX)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_gives_its_number_back() {
        assert_eq!(number_of(&format!("{PREFIX}258")), Some(258));
        assert_eq!(number_of("another/258"), None);
    }
}
