//! Two deployers want one lock: the first gets it, the second waits in line. Then a write under the lock, and the same
//! write after it is over, which is refused. At last two agents share a repository by its paths. Run `quorate dev` beside
//! it.

#![allow(clippy::print_stdout)] // an example talks to its reader

use std::time::Duration;

use anyhow::Result;
use quorate_client::{Client, Config, Session};

/// Deploys for a while, alone.
async fn deploy(client: Client, session: Session, who: &'static str) -> Result<u64> {
    let guard =
        client.locks().lock(&session, "example-deploy").wait(Duration::from_secs(10)).note(who).acquire().await?;
    println!("{who} deploys under token {}", guard.token());
    tokio::time::sleep(Duration::from_millis(200)).await;
    println!("{who} is done");
    let token = guard.token();
    guard.release().await?;
    Ok(token)
}

/// What is written under a fence is written while the grant lasts, and not after.
async fn write_under_a_fence(client: &Client, session: &Session) -> Result<()> {
    let guard = client.locks().lock(session, "example-config").ttl(Duration::from_secs(5)).acquire().await?;
    let fenced = client.fenced([guard.fence()])?;
    fenced.kv().put("example/config", "written while the lock was held").send().await?;
    guard.release().await?;
    match fenced.kv().put("example/config", "written too late").send().await {
        Ok(_) => println!("this would be a bug"),
        Err(error) => println!("too late: {error}"),
    }
    Ok(())
}

async fn share_a_repository(client: &Client, session: &Session) -> Result<()> {
    let locks = client.locks();
    let frontend = locks.acquire_scope(session, "repo:example", ["web/**"]).note("the frontend").acquire().await?;
    let backend = locks.acquire_scope(session, "repo:example", ["server/**"]).note("the backend").acquire().await?;
    println!("{:?} and {:?} do not touch", frontend.lease().globs, backend.lease().globs);
    match locks.acquire_scope(session, "repo:example", ["**/*.css"]).acquire().await {
        Ok(_) => println!("this would be a bug"),
        Err(error) => println!("all style sheets: {error}"),
    }
    frontend.release().await?;
    backend.release().await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let client = Client::connect(Config::new(["127.0.0.1:7401"]))?;
    let session = client.sessions().open(Duration::from_secs(10)).await?;

    let blue = tokio::spawn(deploy(client.clone(), session.clone(), "blue"));
    let green = tokio::spawn(deploy(client.clone(), session.clone(), "green"));
    let (blue, green) = (blue.await??, green.await??);
    println!("the later grant has the larger token: {} < {}", blue.min(green), blue.max(green));

    write_under_a_fence(&client, &session).await?;
    share_a_repository(&client, &session).await?;
    session.close().await?;
    Ok(())
}
