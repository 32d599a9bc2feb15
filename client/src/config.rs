//! What a client is told.

use std::time::Duration;

use crate::error::Error;

/// Where the cluster is, and how long to try.
#[derive(Debug, Clone)]
pub struct Config {
    /// `host:port` of the nodes' gRPC, any number of them, in any order.
    pub endpoints: Vec<String>,
    /// One call with all its retries.
    pub call_timeout: Duration,
    /// One attempt at one node.
    pub attempt_timeout: Duration,
    /// The namespace that calls are about; empty: `default`.
    pub namespace: String,
    /// Free text that people see beside this client's sessions.
    pub client_name: String,
}

impl Config {
    /// The given endpoints, 30 s a call, 5 s an attempt.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Config {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            call_timeout: Duration::from_secs(30),
            attempt_timeout: Duration::from_secs(5),
            namespace: String::new(),
            client_name: format!("quorate-client {} pid {}", env!("CARGO_PKG_VERSION"), std::process::id()),
        }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.endpoints.is_empty() {
            return Err(Error::Config { message: "endpoints must name at least one host:port".to_owned() });
        }
        match self.endpoints.iter().find(|endpoint| !is_host_port(endpoint)) {
            Some(bad) => Err(Error::Config { message: format!("endpoints must be host:port; got {bad:?}") }),
            None => Ok(()),
        }
    }
}

pub(crate) fn is_host_port(endpoint: &str) -> bool {
    endpoint.rsplit_once(':').is_some_and(|(host, port)| {
        let host_fits = !host.is_empty() && !host.contains('/') && !host.contains(char::is_whitespace);
        host_fits && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_host_and_port() {
        for good in ["127.0.0.1:7401", "node-1:1", "[::1]:7401"] {
            assert!(Config::new([good]).check().is_ok(), "{good}");
        }
        for bad in ["", "host", "host:", "host:0", "host:70000", "http://host:1", ":1", "a b:1"] {
            assert!(Config::new([bad]).check().is_err(), "{bad}");
        }
        assert!(Config::new(Vec::<String>::new()).check().is_err());
    }
}
