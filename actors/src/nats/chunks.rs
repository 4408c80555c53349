//! The chunks of one object, in their order.

use async_nats::{Message, StatusCode, Subscriber};
use futures_util::StreamExt;
use serde_json::json;

use super::{Nats, headers};

/// Chunks asked for at once; what one reader may have on its way is bounded by it.
const WINDOW: usize = 16;
/// What the server says after the last chunk of a window.
const END_OF_BATCH: u16 = 204;

/// Reads the chunks of one object by direct gets.
pub(super) struct Chunks {
    nats: Nats,
    /// Where to ask.
    api: String,
    /// What the chunks are stored under.
    subject: String,
    /// Where the answers come.
    answers: Option<(async_nats::Subject, Subscriber)>,
    /// Sequence number after the last chunk that was read.
    from: u64,
    /// Whether a window is on its way.
    asked: bool,
}

impl Chunks {
    /// The chunks called `nuid` of `bucket`; nothing is asked yet.
    pub(super) fn of(nats: &Nats, bucket: &str, nuid: &str) -> Self {
        let (api, subject) = (format!("$JS.API.DIRECT.GET.OBJ_{bucket}"), format!("$O.{bucket}.C.{nuid}"));
        Self { nats: nats.clone(), api, subject, answers: None, from: 1, asked: false }
    }

    /// The next chunk; none after the last one. Waits for as long as the server is silent, hence it needs a deadline.
    pub(super) async fn next(&mut self) -> Result<Option<Message>, async_nats::Error> {
        loop {
            if !self.asked {
                self.ask().await?;
            }
            let Some((_, answers)) = &mut self.answers else { return Ok(None) };
            let answer = answers.next().await.ok_or("the connection is closed")?;
            match answer.status {
                None => {
                    let sequence = answer.headers.as_ref().and_then(|h| headers::text(h, "Nats-Sequence"));
                    let sequence: u64 =
                        sequence.and_then(|text| text.parse().ok()).ok_or("a chunk without a number")?;
                    if sequence < self.from {
                        return Err("a chunk out of order".into());
                    }
                    self.from = sequence + 1;
                    return Ok(Some(answer));
                }
                Some(StatusCode::NOT_FOUND) => return Ok(None),
                Some(status) if status.as_u16() == END_OF_BATCH => self.asked = false,
                Some(StatusCode::NO_RESPONDERS) => return Err("nobody answers: no such bucket".into()),
                Some(status) => return Err(format!("{status}").into()),
            }
        }
    }

    /// Asks for the next window.
    async fn ask(&mut self) -> Result<(), async_nats::Error> {
        let client = &self.nats.client;
        let inbox = match &self.answers {
            Some((inbox, _)) => inbox.clone(),
            None => {
                let inbox = async_nats::Subject::from(client.new_inbox());
                let answers = client.subscribe(inbox.clone()).await?;
                self.answers.insert((inbox, answers)).0.clone()
            }
        };
        let window = json!({ "seq": self.from, "next_by_subj": self.subject, "batch": WINDOW });
        client.publish_with_reply(self.api.clone(), inbox, window.to_string().into()).await?;
        self.asked = true;
        Ok(())
    }
}
