//! One HTTP/1.1 GET by hand: enough to ask a node for its health.
//!
//! Deliberately absent: keep-alive, chunked bodies, TLS.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A local node answers in milliseconds or is not there.
const LIMIT: Duration = Duration::from_secs(2);

/// The status code and the text after the headers.
pub async fn get(address: &str, path: &str) -> Result<(u16, String)> {
    tokio::time::timeout(LIMIT, exchange(address, path)).await.context("no answer in time")?
}

async fn exchange(address: &str, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status line in the answer")?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}
