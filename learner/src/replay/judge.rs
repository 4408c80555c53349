//! Asks the link `reward` for the verdicts that groups wait for: outside of any transaction, and again after a crash.

use std::{collections::BTreeSet, sync::Arc};

use folgore_actors::ServiceError;
use folgore_protocol::{
    Answer, Format, GroupId, Outcome, Scope, ScoreItem, ScoreRequest, SeatKey, Task, Trajectory, subjects,
};
use tokio::{task::JoinSet, time::sleep};

use super::{
    judging::item,
    service::{Desk, REOPEN_AFTER},
    spans,
};
use crate::record::RecordError;

/// How often a verdict is asked for where nobody gives one in time.
const ATTEMPTS: u32 = 4;

/// A group that waits, with its question and its members.
type Unjudged = (GroupId, Task, Vec<Trajectory>);

/// Has groups judged, for as long as it is polled.
///
/// # Errors
/// If the judging of a group panics.
pub(super) async fn judge_groups(desk: Arc<Desk>) -> Result<(), ServiceError> {
    let (mut asking, mut asked) = (JoinSet::new(), BTreeSet::new());
    loop {
        let changed = desk.changed.notified();
        tokio::pin!(changed);
        // Before looking, so that no change slips in between.
        changed.as_mut().enable();
        match desk.unjudged(asked.clone()).await {
            // A run that judges samples never has such a group, but for those that it was forced to go on with.
            Ok(groups) if groups.is_empty() && asked.is_empty() && !desk.setup.settings.judge_groups => {
                return std::future::pending().await;
            }
            Ok(groups) => {
                for group in groups {
                    asked.insert(group.0);
                    asking.spawn(judge(desk.clone(), group));
                }
            }
            Err(reason) => {
                tracing::debug!(reason, "nothing is judged");
                sleep(REOPEN_AFTER / 2).await;
                continue;
            }
        }
        tokio::select! {
            biased;
            Some(done) = asking.join_next() => {
                asked.remove(&done?);
            }
            () = changed => {}
        }
    }
}

async fn judge(desk: Arc<Desk>, (id, task, mut members): Unjudged) -> GroupId {
    let run = &desk.links.run;
    let mut span = spans::judging(run, &members);
    let outcomes = match span.scope(desk.verdict(&task, &members)).await {
        Ok(outcomes) => outcomes,
        Err(reason) => {
            tracing::warn!(group = %id, reason, "group not judged");
            span.fail("error", &reason);
            vec![Outcome::Error { reason: format!("score: {reason}") }; members.len()]
        }
    };
    members.iter_mut().zip(outcomes).for_each(|(member, outcome)| member.outcome = outcome);
    let judged = members.clone();
    match desk.with(move |store| store.change(|ledger| ledger.judged(id, judged))).await {
        Ok(ingested) => members.iter().zip(&ingested).for_each(|(member, ended)| desk.seats.ended(run, member, ended)),
        // The group waits still, and is asked about again.
        Err(reason) => span.fail("record", reason),
    }
    id
}

impl Desk {
    /// Groups that wait and are not among `asked`, as many as may be asked about beside those.
    async fn unjudged(self: &Arc<Self>, asked: BTreeSet<GroupId>) -> Result<Vec<Unjudged>, String> {
        let room = self.setup.settings.judge_concurrency.max(1).saturating_sub(asked.len());
        let read = self.with(move |store| {
            let waiting = store.ledger().unjudged().filter(|(id, _)| !asked.contains(id)).take(room);
            let groups = waiting.map(|(id, task)| Ok((id, task.clone(), store.members(id)?)));
            Ok((groups.collect::<Result<Vec<Unjudged>, RecordError>>()?, Vec::new()))
        });
        read.await
    }

    /// One outcome for each of `members`; the error says why there is none at all.
    async fn verdict(&self, task: &Task, members: &[Trajectory]) -> Result<Vec<Outcome>, String> {
        let items: Option<Vec<ScoreItem>> = members.iter().map(|member| item(task, member)).collect();
        let items = items.ok_or("a member of the group was judged before")?;
        let ids: Vec<SeatKey> = items.iter().map(|item| item.id).collect();
        let deadline = self.setup.settings.judge_deadline;
        let request = ScoreRequest { items, scope: Scope::Group, budget_ms: deadline.as_millis() as u64 };
        let key = spans::group_key(members);
        loop {
            match self.links.call_again(Format::Json, subjects::REWARD, &request, &key, deadline, ATTEMPTS).await {
                Ok(answer) => return Answer::outcomes(answer, subjects::REWARD, &ids),
                // Nobody there is no fault of the completions: they wait in the record, and the watchdog says for whom.
                Err(gave_up) if gave_up.nobody_serves() => {}
                Err(gave_up) => return Err(gave_up.to_string()),
            }
        }
    }
}
