//! Namespaces: what divides a cluster, and how much each part may hold. A client of one is
//! [`Client::in_namespace`](crate::Client::in_namespace).

use quorate_proto::v1::namespaces_client::NamespacesClient;
use quorate_proto::v1::{
    DeleteNamespaceRequest, DeleteNamespaceResponse, ListNamespacesRequest, ListNamespacesResponse, Quotas,
    SetNamespaceRequest, SetNamespaceResponse,
};

use crate::call::Plan;
use crate::channels::Channel;
use crate::client::Client;
use crate::error::Error;
use crate::requests::removed;

/// The parts of a cluster.
#[derive(Debug, Clone)]
pub struct Namespaces {
    pub(crate) client: Client,
}

fn stub(channel: Channel) -> NamespacesClient<Channel> {
    NamespacesClient::new(channel).max_decoding_message_size(crate::MAX_MESSAGE_BYTES)
}

impl Namespaces {
    /// Creates a namespace, or changes its quotas. What it holds beyond a lower quota stays; nothing is added to it.
    pub async fn set(&self, name: &str, quotas: Quotas) -> Result<SetNamespaceResponse, Error> {
        let request = SetNamespaceRequest { name: name.to_owned(), quotas: Some(quotas), request: None };
        self.client
            .call(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).set(request).await }
            })
            .await
    }

    /// Removes an empty namespace. `Rejected` with `FAILED_PRECONDITION`: it is not empty, or it is `default`.
    pub async fn delete(&self, name: &str) -> Result<DeleteNamespaceResponse, Error> {
        let request = DeleteNamespaceRequest { name: name.to_owned(), request: None };
        let outcome = self
            .client
            .call_in_full(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).delete(request).await }
            })
            .await;
        removed(outcome)
    }

    /// Every namespace with what it holds, by name.
    pub async fn list(&self) -> Result<ListNamespacesResponse, Error> {
        let request = ListNamespacesRequest { consistency: 0 };
        self.client.call(Plan::READ, |channel| async move { stub(channel).list(request).await }).await
    }
}
