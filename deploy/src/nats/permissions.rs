//! What each role may say and hear on the server: allow-lists, derived from the names of `protocol`.
//!
//! The run is a wildcard wherever it is a token of its own, so that a new run needs no change of the server's users: one
//! server is one fleet. The last token of `traj.<name>` and `hb.<role>.<name>` is the identity's own name, so what arrives
//! there is proof of who sent it.
//!
//! No worker may create a consumer: the server delivers what a consumer reads to any subject that its creator names, past
//! the creator's own permissions. Workers read latest values and objects with direct gets instead.

use folgore_protocol::{
    Names, Role, RunName,
    names::{REPLAY_CONSUMER, ROLLOUT_CONSUMER},
    subjects,
};

/// The allow-lists of one identity. What is not listed is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    /// Subjects that it may publish to.
    pub publish: Vec<String>,
    /// Subjects that it may subscribe to; `subject queue` allows members of that queue group only.
    pub subscribe: Vec<String>,
}

/// What the identity `name` may do in `role`.
pub fn of(role: Role, name: &str) -> Permissions {
    let runs = Runs::new();
    let mut own = Permissions::default();
    own.publish(runs.all([runs.names.heartbeat(role, name), runs.names.events_of(role)]));
    own.subscribe([format!("_INBOX.{name}.>")]);
    match role {
        Role::Head => head(&runs, &mut own),
        Role::Rollout => rollout(&runs, name, &mut own),
        Role::Reward => {
            answers(&runs, subjects::REWARD, &mut own);
            // long requests, which lie with long jobs and trajectories; no adapters
            let bodies = runs.names.bodies_bucket();
            let get = format!("$JS.API.DIRECT.GET.OBJ_{bodies}");
            own.publish([format!("{get}.$O.{bodies}.M.*"), get]);
        }
        Role::Retriever => answers(&runs, subjects::SEARCH, &mut own),
        Role::Console => console(&runs, &mut own),
    }
    own
}

/// The head issues jobs, takes trajectories, writes policies, and sets its run up, also after the server lost everything.
fn head(runs: &Runs, own: &mut Permissions) {
    own.publish(runs.all([
        runs.names.rollout_jobs(),
        runs.names.dead_letters("*"),
        runs.names.request(subjects::REWARD),
        runs.names.request(subjects::SEARCH),
        runs.names.request(subjects::HELLO),
    ]));
    own.publish(pull_from(REPLAY_CONSUMER));
    own.publish(["$KV.*.>", "$O.*.>", "_INBOX.*.>"]);
    own.publish(["$JS.API.INFO", "$JS.API.STREAM.>", "$JS.API.DIRECT.>", "$JS.FC.>"]);
    own.publish(["CREATE", "INFO", "DELETE", "LIST", "NAMES"].map(|verb| format!("$JS.API.CONSUMER.{verb}.>")));
    own.subscribe(runs.all([runs.names.heartbeats(), runs.names.events()]));
    own.subscribe([runs.queue(subjects::HELLO)]);
    own.subscribe(["$KV.*.>"]);
}

/// A rollout worker pulls jobs, asks for scores and passages, and hands in trajectories under its own name only.
fn rollout(runs: &Runs, name: &str, own: &mut Permissions) {
    joins(runs, own);
    own.publish(runs.all([
        runs.names.trajectories_by(name),
        runs.names.dead_letters("job"),
        runs.names.request(subjects::REWARD),
        runs.names.request(subjects::SEARCH),
    ]));
    own.publish(pull_from(ROLLOUT_CONSUMER));
    // what an object is, and its chunks; only buckets answer direct gets, so that no job or trajectory is read in this way
    own.publish(["$JS.API.DIRECT.GET.*.$O.*.M.*", "$JS.API.DIRECT.GET.*"]);
    // a body that is put again is found by its digest, hence nothing is ever purged
    let bodies = runs.names.bodies_bucket();
    own.publish([format!("$O.{bodies}.C.*"), format!("$O.{bodies}.M.*")]);
}

/// A reward worker or a retriever answers one kind of request, wherever the asker waits.
fn answers(runs: &Runs, kind: &str, own: &mut Permissions) {
    joins(runs, own);
    own.publish(["_INBOX.*.>"]);
    own.subscribe([runs.queue(kind)]);
}

/// Somebody who looks on: what there is, the latest values, and what is told to people.
fn console(runs: &Runs, own: &mut Permissions) {
    own.publish(LOOKS);
    own.publish(["$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST", "$JS.API.DIRECT.GET.*.$KV.*.*"]);
    own.subscribe(runs.all([runs.names.heartbeats(), runs.names.events()]));
}

/// What every worker does: it asks to be let in, reads what the run is made of, and looks whether its stores are there.
fn joins(runs: &Runs, own: &mut Permissions) {
    let keys = [subjects::POLICY, subjects::CONFIG, subjects::EPOCH];
    own.publish(runs.all([runs.names.request(subjects::HELLO)]));
    own.publish(LOOKS);
    // the latest value of a key, and values as they are written
    own.publish(keys.map(|key| format!("$JS.API.DIRECT.GET.*.$KV.*.{key}")));
    own.subscribe(keys.map(|key| format!("$KV.*.{key}")));
}

/// How much there is of what; nothing of what is in it.
const LOOKS: [&str; 2] = ["$JS.API.STREAM.INFO.*", "$JS.API.CONSUMER.INFO.*.*"];

/// What pulling from a durable consumer and settling what came takes. The stream is a token that holds the run, hence a
/// wildcard: consumers are told apart by their own names.
fn pull_from(consumer: &str) -> [String; 2] {
    [format!("$JS.API.CONSUMER.MSG.NEXT.*.{consumer}"), format!("$JS.ACK.*.{consumer}.>")]
}

impl Permissions {
    fn publish<S: Into<String>>(&mut self, subjects: impl IntoIterator<Item = S>) {
        self.publish.extend(subjects.into_iter().map(Into::into));
    }

    fn subscribe<S: Into<String>>(&mut self, subjects: impl IntoIterator<Item = S>) {
        self.subscribe.extend(subjects.into_iter().map(Into::into));
    }
}

/// The names of every run: those of one, with its name made a wildcard.
struct Runs {
    names: Names,
}

/// Stands for any run; no subject has this token elsewhere.
const ANY: &str = "ANY-RUN";

impl Runs {
    fn new() -> Self {
        let name = RunName::new(ANY).expect("a usable name");
        Self { names: Names::new(&name).expect("one token") }
    }

    /// Requests of `kind`, as one of those who share them: nobody listens to what others are asked.
    fn queue(&self, kind: &str) -> String {
        format!("{} {kind}", self.names.request(kind).replace(ANY, "*"))
    }

    fn all<const N: usize>(&self, subjects: [String; N]) -> [String; N] {
        subjects.map(|subject| subject.replace(ANY, "*"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether `pattern` of a permission covers `subject`.
    fn covers(pattern: &str, subject: &str) -> bool {
        let pattern = pattern.split(' ').next().unwrap_or_default();
        let (mut asked, mut allowed) = (subject.split('.'), pattern.split('.'));
        loop {
            match (allowed.next(), asked.next()) {
                (None, None) => return true,
                (Some(">"), Some(_)) => return true,
                (Some("*"), Some(_)) => {}
                (Some(a), Some(b)) if a == b => {}
                _ => return false,
            }
        }
    }

    fn may_publish(role: Role, name: &str, subject: &str) -> bool {
        of(role, name).publish.iter().any(|p| covers(p, subject))
    }

    fn may_subscribe(role: Role, name: &str, subject: &str) -> bool {
        of(role, name).subscribe.iter().any(|p| covers(p, subject))
    }

    #[test]
    fn a_name_is_proof_of_the_sender() {
        for role in Role::ALL {
            assert!(may_publish(role, "me", &format!("rl.v1.demo.hb.{role}.me")), "{role}");
            assert!(!may_publish(role, "me", &format!("rl.v1.demo.hb.{role}.you")), "{role}");
            assert!(!may_publish(role, "me", "rl.v1.demo.traj.you"), "{role}");
            assert_eq!(may_publish(role, "me", "rl.v1.demo.traj.me"), role == Role::Rollout, "{role}");
            assert!(may_subscribe(role, "me", "_INBOX.me.a.b") && !may_subscribe(role, "me", "_INBOX.you.a"), "{role}");
        }
    }

    #[test]
    fn only_the_head_writes_what_others_follow() {
        let heads = [
            "rl.v1.demo.job.rollout",
            "$KV.rl_demo_state.policy",
            "$KV.rl_demo_state.epoch",
            "$KV.rl_demo_lease.head",
            "$O.rl_demo_adapters.M.x",
            "$JS.API.STREAM.CREATE.RL_demo_JOBS",
            "$JS.API.STREAM.PURGE.RL_demo_TRAJ",
            "$JS.API.CONSUMER.CREATE.RL_demo_TRAJ.mine",
            "$JS.API.CONSUMER.CREATE.KV_rl_demo_state",
            "$JS.API.CONSUMER.DELETE.RL_demo_TRAJ.replay",
            "$JS.API.CONSUMER.MSG.NEXT.RL_demo_TRAJ.replay",
            "$JS.ACK.RL_demo_TRAJ.replay.1.1.1.1.0",
        ];
        for subject in heads {
            for role in Role::ALL {
                assert_eq!(may_publish(role, "me", subject), role == Role::Head, "{role} {subject}");
            }
        }
    }

    #[test]
    fn a_worker_stores_bodies_and_no_policies() {
        let bodies = Runs::new().names.bodies_bucket();
        assert!(may_publish(Role::Rollout, "me", &format!("$O.{bodies}.C.abc")));
        assert!(!may_publish(Role::Rollout, "me", "$O.rl_demo_adapters.C.abc"));
        assert!(!may_publish(Role::Reward, "me", &format!("$O.{bodies}.C.abc")));
    }

    #[test]
    fn nobody_hears_everything() {
        for role in Role::ALL {
            for subject in [">", "rl.>", "_INBOX.>", "$JS.>", "$SYS.>", "rl.v1.demo.traj.w"] {
                assert!(!may_subscribe(role, "me", subject), "{role} {subject}");
            }
            let all = of(role, "me");
            for list in [&all.publish, &all.subscribe] {
                assert!(list.iter().all(|p| !p.starts_with('>') && !p.starts_with('*')), "{role} {list:?}");
                assert!(!list.iter().any(|p| p.contains(ANY)), "{role} {list:?}");
            }
        }
    }
}
