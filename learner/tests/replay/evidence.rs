//! What a record proves: it holds after every trouble, and each proof fails where the record was tampered with.

use folgore_learner::{
    record::{
        Record, Write,
        check::{Report, check},
        evidence::{DrawEnd, Fate, LogEntry, Span},
    },
    replay::{ReplaySettings, Store},
};
use folgore_protocol::{Digest, GroupId, PolicyId};

use crate::common::*;

fn settings_with_drops() -> ReplaySettings {
    ReplaySettings { drop_equal_rewards: true, max_staleness: 1, ..settings() }
}

/// A run with redraws, drops, an evaluation, a takeover that cuts two steps off, and a step that lies open.
fn eventful(disk: &MemoryDisk) -> Store {
    let mut store = open(settings_with_drops(), disk);
    let temper = Temper { fails_one_in: 4, reward_max: 2 };
    change(&mut store, |l| l.resume(0, Some(policy(0)), 0, 0)).unwrap();
    change(&mut store, |l| l.open_eval("before", policy(0), false, 2, 1..4)).unwrap();
    run_calmly(&mut store, 1..=4, temper);
    change(&mut store, |l| l.resume(2, Some(policy(2)), 0, 0)).unwrap();
    run_calmly(&mut store, 3..=5, temper);
    change(&mut store, |l| l.forget(1));
    let jobs = change(&mut store, |l| l.open_seats(0, 3, true));
    change(&mut store, |l| l.ingest(play(&jobs[0], policy_for(&jobs[0]), CALM)));
    store
}

fn report(disk: &MemoryDisk) -> Report {
    check(&Record::on_backend(disk.clone()).unwrap()).unwrap()
}

#[test]
fn an_eventful_run_is_accounted_for() {
    let disk = MemoryDisk::default();
    let store = eventful(&disk);
    let report = store.check().unwrap();
    assert!(report.holds(), "{report}");
    let text = report.to_string();
    for part in
        ["30 trained", "no_score", "equal_rewards", "epoch 2 step 5", "2 trained again after 2 takeovers", "6 samples"]
    {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    assert_eq!((report.committed_step, report.line[&5].digest), (5, policy(5).digest));
}

#[test]
fn folded_evidence_keeps_its_numbers() {
    let disk = MemoryDisk::default();
    let mut setup = setup(settings_with_drops(), &disk);
    let backend = disk.clone();
    setup.open = std::sync::Arc::new(move || Ok(Record::on_backend(backend.clone())?.with_evidence_rows(5)));
    let mut store = Store::open(&setup).unwrap();
    change(&mut store, |l| l.resume(0, Some(policy(0)), 0, 0)).unwrap();
    run_calmly(&mut store, 1..=8, Temper { fails_one_in: 4, reward_max: 2 });
    change(&mut store, |l| l.forget(7));
    let report = store.check().unwrap();
    assert!(report.holds(), "{report}");
    let text = report.to_string();
    // One takeover and eight commits, of which five are kept as they were.
    assert!(text.contains("5 batches trained once") && text.contains("4 commits and takeovers before"), "{text}");
    drop(store);
    let record = Record::on_backend(disk.clone()).unwrap();
    let evidence = record.evidence().unwrap();
    assert_eq!((evidence.ends.len(), evidence.log.len()), (5, 5));
    assert!(evidence.pruned.chain.is_some() && evidence.pruned.groups > 15);
    let mut counters = record.load().unwrap().counters;
    counters.filled += 1;
    record.apply(&[Write::Counters(counters)]).unwrap();
    assert!(!check(&record).unwrap().holds(), "folded numbers are not compared");
}

#[test]
fn a_checkpoint_ahead_of_its_record_is_told_and_no_violation() {
    let mut store = open(settings(), &MemoryDisk::default());
    play_all(&mut store, CALM);
    change(&mut store, |l| l.resume(1, Some(policy(1)), 0, 0)).unwrap();
    change(&mut store, |l| l.resume(4, Some(policy(4)), 20, 7)).unwrap();
    run_calmly(&mut store, 5..=5, CALM);
    let report = store.check().unwrap();
    assert!(report.holds(), "{report}");
    let text = report.to_string();
    assert!(text.contains("3 steps known from their checkpoint only") && text.contains("epoch 7"), "{text}");
    assert!(text.contains("overtaken 6") && text.contains("14 skipped"), "{text}");
}

/// Spoils the record of an eventful run; gives the rows to write.
type Tamper = fn(&Record) -> Vec<Write>;

/// The first group that was trained in step 5, with its end.
fn trained(record: &Record) -> (GroupId, folgore_learner::record::evidence::GroupEnd) {
    let ends = record.evidence().unwrap().ends;
    ends.into_iter().find(|(_, end)| end.fate == Fate::Batch && end.step == 5).unwrap()
}

fn with_end(record: &Record, spoil: impl Fn(&mut folgore_learner::record::evidence::GroupEnd)) -> Vec<Write> {
    let (id, mut end) = trained(record);
    spoil(&mut end);
    vec![Write::GroupEnd(id, end)]
}

fn with_counters(record: &Record, spoil: impl Fn(&mut folgore_learner::record::rows::Counters)) -> Vec<Write> {
    let mut counters = record.load().unwrap().counters;
    spoil(&mut counters);
    vec![Write::Counters(counters)]
}

/// Appends to the log, with the counter that belongs to it.
fn with_entry(record: &Record, make: impl Fn(LogEntry) -> LogEntry) -> Vec<Write> {
    let mut counters = record.load().unwrap().counters;
    let last = record.evidence().unwrap().log.pop().unwrap().1;
    let write = Write::Log(counters.next_entry, make(last));
    counters.next_entry += 1;
    vec![write, Write::Counters(counters)]
}

#[test]
fn every_proof_fails_where_the_record_was_tampered_with() {
    let cases: [(&str, &str, Tamper); 22] = [
        ("groups", "has ended and is open", |r| {
            let (id, end) = trained(r);
            let open = *r.load().unwrap().groups.keys().next().unwrap();
            assert!(open > id);
            vec![Write::GroupEnd(open, end)]
        }),
        ("groups", "without an end: g", |r| with_counters(r, |c| c.next_group += 1)),
        ("groups", "was never opened", |r| with_counters(r, |c| c.next_group = 3)),
        ("seats", "2 draws were opened, 0 were rejected", |r| with_end(r, |e| e.seats[0].draws = 2)),
        ("seats", "in a batch, and empty", |r| with_end(r, |e| e.seats[1].filled = None)),
        ("seats", "drawn 9 times", |r| {
            with_end(r, |e| (e.seats[0].draws, e.seats[0].rejected) = (9, vec![DrawEnd::RewardError; 8]))
        }),
        ("batches", "not its 2", |r| with_end(r, |e| e.fate = Fate::Dropped("stale".into()))),
        ("batches", "has 1 seats", |r| with_end(r, |e| drop(e.seats.pop()))),
        ("batches", "keeps groups", |r| {
            let mut row = r.load().unwrap().steps.remove(&5).unwrap();
            row.batch.as_mut().unwrap().swap(0, 1);
            vec![Write::Step(5, row)]
        }),
        ("batches", "is not whole", |r| vec![Write::RemoveGroup(trained(r).0)]),
        ("line", "step 5 was trained already", |r| with_entry(r, |last| last)),
        ("line", "on another batch than before", |r| {
            with_entry(r, |last| match last {
                LogEntry::Commit { epoch, policy, groups, opened, .. } => {
                    LogEntry::Commit { epoch, step: 3, policy, groups, opened, digest: Digest::of(b"x") }
                }
                other => panic!("{other:?}"),
            })
        }),
        ("line", "on the batch of step 5", |r| {
            with_entry(r, |last| match last {
                LogEntry::Commit { epoch, groups, opened, digest, .. } => {
                    LogEntry::Commit { epoch, step: 6, policy: Some(policy(6)), groups, opened, digest }
                }
                other => panic!("{other:?}"),
            })
        }),
        ("versions", "epoch 2 after epoch 2", |r| {
            with_entry(r, |_| LogEntry::Takeover { epoch: 2, step: 5, policy: None, skipped: (0, 0) })
        }),
        ("versions", "the log ends at epoch 2 step 5", |r| with_counters(r, |c| c.committed_step = 4)),
        ("versions", "is not on the line", |_| {
            vec![Write::Policy(5, PolicyId { digest: Digest::of(b"x"), ..policy(5) })]
        }),
        ("staleness", "policies 1 to 4", |r| with_end(r, |e| e.seats[0].filled = Some(Span { oldest: 1, newest: 4 }))),
        ("staleness", "policies 5 to 5", |r| with_end(r, |e| e.seats[0].filled = Some(Span { oldest: 5, newest: 5 }))),
        ("staleness", "never published", |r| {
            let (id, _) = trained(r);
            let mut group = r.evidence().unwrap().groups.remove(&id).unwrap();
            let filled = group.seats[0].filled.as_mut().unwrap();
            filled.policies[0].digest = Digest::of(b"x");
            vec![Write::Group(id, group)]
        }),
        ("trajectories", "is another or missing", |r| vec![Write::RemoveTrajectory(trained(r).0, 1)]),
        ("counters", "seats filled", |r| with_counters(r, |c| c.filled += 1)),
        ("evaluations", "was awaited", |r| {
            let (label, mut row) = r.load().unwrap().evals.pop_first().unwrap();
            row.draws[0] += 1;
            vec![Write::Eval(label, row)]
        }),
    ];
    let whole = MemoryDisk::default();
    drop(eventful(&whole));
    for (name, words, tamper) in cases {
        let disk = whole.crash(false);
        let record = Record::on_backend(disk.clone()).unwrap();
        record.apply(&tamper(&record)).unwrap();
        drop(record);
        let report = report(&disk);
        let found = report.invariants.iter().find(|i| i.name == name).unwrap();
        assert!(found.violations.iter().any(|v| v.contains(words)), "{name} does not say {words:?}:\n{report}");
        assert!(!report.holds());
    }
}
