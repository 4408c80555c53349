//! Groups that are judged as a whole, for rewards that compare their members: a seat is filled without a score then, and the
//! group is closed by a verdict on all of them.
//!
//! What waits is in the record with its text, so that whoever takes the run over asks again. A verdict is taken only if it is
//! on the members that are there now. A member without a score is drawn again, and as it was judged with the others, their
//! scores do not count either: they wait with it.

use folgore_protocol::{GroupId, Outcome, ScoreItem, SeatKey, Task, Trajectory};

use super::{
    ingest::{Ingested, check_reward},
    ledger::{Ledger, rewards},
};
use crate::record::{Write, evidence::DrawEnd};

impl Ledger {
    /// Groups that wait to be judged, in order, each with its question.
    pub fn unjudged(&self) -> impl Iterator<Item = (GroupId, &Task)> {
        self.groups.iter().filter(|(_, group)| group.is_unjudged()).map(|(id, group)| (*id, &group.task))
    }

    /// Takes the verdict on a group: all its members, each with its outcome. Gives what came of each; duplicates where
    /// nothing changed for it.
    pub fn judged(&mut self, id: GroupId, members: Vec<Trajectory>) -> Vec<Ingested> {
        let unchanged = vec![Ingested::Duplicate; members.len()];
        let Some(group) = self.groups.get(&id).filter(|group| group.is_unjudged()) else { return unchanged };
        let seats = group.seats.iter().zip(0..);
        let present = seats.map(|(seat, sample)| SeatKey { group: id, sample, draw: seat.draw });
        if !present.eq(members.iter().map(|member| member.seat)) {
            return unchanged;
        }
        let failures: Vec<Option<(DrawEnd, String)>> = members.iter().map(|member| failure(&member.outcome)).collect();
        let ingested = if failures.iter().all(Option::is_none) {
            self.accept(id, members);
            vec![Ingested::Taken; failures.len()]
        } else {
            members.iter().zip(failures).map(|(member, failure)| self.reject(member.seat, failure)).collect()
        };
        self.advance();
        ingested
    }

    fn accept(&mut self, id: GroupId, members: Vec<Trajectory>) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        for (filled, member) in group.seats.iter_mut().filter_map(|seat| seat.filled.as_mut()).zip(members) {
            self.counters.filled += 1;
            filled.total = member.outcome.total();
            self.change.writes.push(Write::Trajectory(Box::new(member)));
        }
        let (step, rewards) = (group.step, rewards(group));
        self.dirty_groups.insert(id);
        self.close_group(id, step, &rewards);
    }

    /// Draws `seat` again if it failed; its group may have been dropped for another member by then.
    fn reject(&mut self, seat: SeatKey, failure: Option<(DrawEnd, String)>) -> Ingested {
        let Some((end, reason)) = failure else { return Ingested::Duplicate };
        if let Some(group) = self.groups.get_mut(&seat.group) {
            group.seats[seat.sample as usize].filled = None;
            self.change.writes.push(Write::RemoveTrajectory(seat.group, seat.sample));
            self.redraw(seat, end, &reason);
        }
        Ingested::Redrawn(reason)
    }
}

/// Why an outcome is no score; none if it is one.
fn failure(outcome: &Outcome) -> Option<(DrawEnd, String)> {
    match outcome {
        Outcome::Scored { .. } => check_reward(outcome).err().map(|reason| (DrawEnd::Reward, reason)),
        Outcome::Unscorable { reason } => Some((DrawEnd::Unscorable, reason.clone())),
        Outcome::Error { reason } => Some((DrawEnd::RewardError, reason.clone())),
        Outcome::Unjudged { .. } => Some((DrawEnd::RewardError, "it was not judged".to_owned())),
    }
}

/// What is judged of `member`, which answers `task`; none if it has been judged.
pub(super) fn item(task: &Task, member: &Trajectory) -> Option<ScoreItem> {
    let Outcome::Unjudged { completion, said } = &member.outcome else { return None };
    Some(ScoreItem {
        id: member.seat,
        columns: task.columns.clone(),
        prompt: task.prompt.clone(),
        completion: completion.clone(),
        completion_ids: member.completion_ids(),
        stop_reason: member.stop_reason,
        said: said.clone(),
    })
}
