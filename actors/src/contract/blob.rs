//! Content-addressed bytes.

use std::sync::Arc;

use folgore_protocol::Digest;

use crate::{LinkError, Links};

pub(super) async fn bytes_come_back(links: &Links) {
    let large: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    for bytes in [&b""[..], b"adapter", &large] {
        let bytes: Arc<[u8]> = bytes.into();
        let digest = links.blob.put(bytes.clone()).await.expect("put");
        assert_eq!(digest, Digest::of(&bytes));
        assert_eq!(links.blob.put(bytes.clone()).await, Ok(digest), "the same bytes are one blob");
        assert_eq!(links.blob.get(digest).await, Ok(bytes));
    }
    links.blob.delete(Digest::of(&large)).await.expect("delete");
    let mut put = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (links, large) = (links.clone(), large.clone());
        put.spawn(async move { links.blob.put(large.into()).await });
    }
    while let Some(done) = put.join_next().await {
        assert_eq!(done.expect("a task"), Ok(Digest::of(&large)), "storing at once is storing once");
    }
    let digest = Digest::of(&large);
    links.blob.delete(digest).await.expect("delete");
    links.blob.delete(digest).await.expect("deleting what is gone is no error");
    let gone = links.blob.get(digest).await.expect_err("it is gone");
    assert!(matches!(&gone, LinkError::Blob { name, .. } if *name == digest.hex()), "{gone}");
}
