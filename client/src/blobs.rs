//! Blobs: content that is too large for a message or a document, which then refer to it.
//!
//! A blob is named by its content, so to put it again changes nothing, and what is read can be checked against its
//! name.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream;
use quorate_proto::v1::blobs_client::BlobsClient;
use quorate_proto::v1::{BlobRef, GetBlobRequest, PutBlobRequest};
use tonic::{Response, Status};

use crate::call::Plan;
use crate::channels::Channel;
use crate::client::Client;
use crate::error::Error;

/// How much of a blob one message brings.
const PIECE_BYTES: usize = 256 << 10;
/// What an attempt may take for every MiB, on top of what any attempt may.
const PER_MIB: Duration = Duration::from_secs(1);
/// The size of the largest blob.
const MAX_MIB: u64 = 256;

/// What is too large for the log.
#[derive(Debug, Clone)]
pub struct Blobs {
    pub(crate) client: Client,
}

fn stub(channel: Channel) -> BlobsClient<Channel> {
    BlobsClient::new(channel)
}

impl Blobs {
    /// Stores content of 1 byte to 256 MiB, and returns what a message or a document refers to it by. It is kept for an
    /// hour, and then as long as something refers to it.
    pub async fn put(&self, content: impl Into<Bytes>) -> Result<BlobRef, Error> {
        let content = content.into();
        let plan = Plan { hold: time_for(content.len() as u64), ..Plan::SAFE };
        let answer = self
            .client
            .call(plan, |channel| {
                let pieces = stream::iter(pieces(content.clone()));
                async move { stub(channel).put(pieces).await }
            })
            .await?;
        answer.blob.ok_or_else(|| Error::OutcomeUnknown { message: "the answer names no blob".to_owned() })
    }

    /// The content of a blob, whole and as it was put. Refused as not found if no node that can be reached has it.
    pub async fn get(&self, blob: &BlobRef) -> Result<Bytes, Error> {
        let plan = Plan { hold: time_for(blob.size_bytes), ..Plan::READ };
        self.client
            .call(plan, |channel| {
                let blob = blob.clone();
                async move { read(channel, blob).await.map(Response::new) }
            })
            .await
    }
}

/// One attempt. Content that is not what the blob is named by is a failure of this attempt: another node may do better.
async fn read(channel: Channel, blob: BlobRef) -> Result<Bytes, Status> {
    let (size, hash) = (blob.size_bytes, blob.hash.clone());
    let request = GetBlobRequest { blob: Some(blob), offset: 0, length: 0 };
    let mut pieces = stub(channel).get(request).await?.into_inner();
    let (mut content, mut hasher) = (BytesMut::new(), blake3::Hasher::new());
    while let Some(piece) = pieces.message().await? {
        // Piece by piece, so that no runtime thread is kept for long.
        hasher.update(&piece.data);
        content.extend_from_slice(&piece.data);
    }
    if content.len() as u64 != size || hasher.finalize().as_bytes().as_slice() != &hash[..] {
        return Err(Status::data_loss(format!("{} bytes came that are not the blob of {size}", content.len())));
    }
    Ok(content.freeze())
}

fn pieces(mut content: Bytes) -> impl Iterator<Item = PutBlobRequest> {
    std::iter::from_fn(move || {
        let data = content.split_to(content.len().min(PIECE_BYTES));
        (!data.is_empty()).then_some(PutBlobRequest { data })
    })
}

/// A size that somebody else claims may be anything.
fn time_for(bytes: u64) -> Duration {
    PER_MIB * bytes.div_ceil(1 << 20).min(MAX_MIB) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_sent_in_pieces_and_whole() {
        for length in [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES] {
            let content: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let sent: Vec<Bytes> = pieces(content.clone().into()).map(|piece| piece.data).collect();
            assert!(sent.iter().all(|data| (1..=PIECE_BYTES).contains(&data.len())), "{length} bytes");
            let whole: Vec<u8> = sent.iter().flat_map(|data| data.to_vec()).collect();
            assert!(whole == content, "{length} bytes");
        }
    }

    #[test]
    fn time_grows_with_the_size_up_to_a_bound() {
        assert_eq!(time_for(1), PER_MIB);
        assert_eq!(time_for(5 << 20), PER_MIB * 5);
        assert_eq!(time_for(u64::MAX), PER_MIB * 256);
    }
}
