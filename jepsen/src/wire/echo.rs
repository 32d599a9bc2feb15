//! A server that sends back what it gets, and a client that asks it: what the wire is tested with.
//!
//! Deliberately absent: the cluster. Here only the network is judged.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

/// The largest datagram.
const DATAGRAM_BYTES: usize = 64 << 10;

/// Sends back all that comes to the address, by TCP and by UDP, for as long as it is let.
pub async fn echo_server(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen at {address}"))?;
    let socket = UdpSocket::bind(address).await.with_context(|| format!("no datagrams at {address}"))?;
    tokio::try_join!(echo_streams(listener), echo_datagrams(socket)).map(|_: (Infallible, Infallible)| ())
}

/// Opens a connection, sends a byte and waits until it is back. Gives how long that took once the connection was open:
/// one round trip.
pub async fn echo_client(address: SocketAddr, patience: Duration) -> Result<Duration> {
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let begun = Instant::now();
        stream.write_all(b"x").await?;
        stream.read_exact(&mut [0]).await?;
        Ok::<_, std::io::Error>(begun.elapsed())
    };
    let answer = timeout(patience, asked).await.with_context(|| format!("{address} did not answer in {patience:?}"))?;
    answer.with_context(|| format!("{address} cannot be asked"))
}

async fn echo_streams(listener: TcpListener) -> Result<Infallible> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        // However one ends, the others go on.
        tokio::spawn(async move {
            stream.set_nodelay(true)?;
            let (mut from, mut to) = stream.split();
            tokio::io::copy(&mut from, &mut to).await
        });
    }
}

async fn echo_datagrams(socket: UdpSocket) -> Result<Infallible> {
    let mut buffer = vec![0_u8; DATAGRAM_BYTES];
    loop {
        let (bytes, from) = socket.recv_from(&mut buffer).await?;
        // Refused while the device is down: lost, as a datagram may be.
        let _sent = socket.send_to(buffer.get(..bytes).unwrap_or_default(), from).await.is_ok();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::ports;
    use crate::until::until;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn what_is_sent_comes_back() -> Result<()> {
        let port = ports::free(1)?[0];
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        assert!(echo_client(address, LIMIT).await.is_err(), "nobody is there yet");
        let server = tokio::spawn(echo_server(address));
        until("the server answers", LIMIT, || async { Ok(echo_client(address, LIMIT).await.ok()) }).await?;
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        socket.send_to(b"ping", address).await?;
        let mut answer = [0; 8];
        let (bytes, from) = timeout(LIMIT, socket.recv_from(&mut answer)).await??;
        assert_eq!((&answer[..bytes], from), (&b"ping"[..], address));
        server.abort();
        Ok(())
    }
}
