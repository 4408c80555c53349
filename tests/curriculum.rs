//! A run with a curriculum: questions that none or all of a group have solved are put off and come back by the stated rule, and a kill
//! changes nothing of it.

mod support;

use std::{collections::BTreeMap, path::Path, process::Command};

use folgore_learner::{
    record::{Record, evidence::Fate},
    replay::tasks::task_index,
};
use support::{Running, folder, folgore, metrics, number, run, timeless};

const QUESTIONS: u64 = 24;
const REVISIT: u64 = 3;
const SEED: u64 = 5;

fn train(at: &Path) -> Command {
    let mut command = folgore(["train", "arithmetic", "--seed", "5", "--output-dir"]);
    command.arg(at).args([
        "run.name=r",
        "rollout.num_prompts=4",
        "rollout.num_generations=4",
        "optim.max_steps=30",
        "checkpoint.save_steps=5",
        "eval.before=false",
        "eval.after=false",
        "log.report=false",
        "replay.retention_steps=100",
        "algo.dynamic_sampling=true",
        "data.max_rows=24",
        "data.curriculum.mode=difficulty",
        "data.curriculum.revisit_steps=3",
    ]);
    command
}

/// Goes through all positions of the run and holds each to the rule. Gives how many were passed over, and how many questions came back.
fn held_to_the_rule(path: &Path) -> (u64, u64) {
    let record = Record::open(&path.join("record.redb")).unwrap();
    let ends = record.evidence().unwrap().ends;
    let visits = record.load().unwrap().visits;
    let (mut asked, mut passed, mut back) = (BTreeMap::<u64, (u64, bool)>::new(), 0, 0);
    let (mut names, mut in_a_row) = (BTreeMap::new(), 0);
    for (id, end) in &ends {
        let question = task_index(SEED, id.0, QUESTIONS);
        let known = asked.get(&question).copied().filter(|(step, _)| *step < end.step);
        let put_off = known.is_some_and(|(step, extreme)| extreme && end.step - step <= REVISIT);
        match &end.fate {
            Fate::Dropped(label) if label == "put_off" => {
                assert!(put_off, "group {id} of step {}: question {question}, last asked {known:?}", end.step);
                (passed, in_a_row) = (passed + 1, in_a_row + 1);
                continue;
            }
            // groups of equal rewards: none has solved it, or all have
            Fate::Dropped(label) if label == "equal_rewards" => drop(asked.insert(question, (end.step, true))),
            Fate::Dropped(other) => panic!("group {id} was dropped: {other}"),
            Fate::Batch => {
                let batch = record.batch(end.step).unwrap().unwrap();
                let group = batch.groups.iter().find(|group| group.id == *id).unwrap();
                names.insert(question, group.task.id.clone());
                asked.insert(question, (end.step, false));
            }
        }
        // after a whole epoch of such the next is asked all the same
        assert!(
            !put_off || in_a_row == QUESTIONS,
            "group {id} of step {} asks question {question}, which is put off: {known:?}",
            end.step
        );
        in_a_row = 0;
        back += u64::from(known.is_some_and(|(_, extreme)| extreme));
    }
    // what the record keeps of a question is what its groups came to
    for (question, name) in names {
        let last = visits[&name].last().unwrap();
        let (step, extreme) = asked[&question];
        assert_eq!((last.step, last.successes == 0 || last.successes == last.members), (step, extreme), "{name}");
    }
    (passed, back)
}

#[test]
fn questions_are_put_off_and_come_back_and_a_kill_changes_nothing() {
    let (calm, killed) = (folder(), folder());
    run(train(calm.path())).well();
    let path = calm.path().join("r");
    let (passed, back) = held_to_the_rule(&path);
    assert!(passed > 10 && back > 4, "{passed} positions passed over, {back} questions came back");
    let lines = metrics(&path);
    let told: f64 = lines
        .iter()
        .filter(|l| l.contains_key("curriculum/passed_over"))
        .map(|l| number(l, "curriculum/passed_over"))
        .sum();
    assert!(told > 0.0 && told <= passed as f64, "{told} of {passed}");

    let mut launch = Running::start(train(killed.path()));
    let of_run = killed.path().join("r");
    assert!(launch.until(|| metrics(&of_run).len() >= 13), "it ended too early");
    launch.kill();
    let mut resume = folgore(["train", "--resume", "r", "--output-dir"]);
    resume.arg(killed.path());
    run(resume).well();
    let timeless = |run: &Path| metrics(run).into_iter().map(timeless).collect::<Vec<_>>();
    assert_eq!(timeless(&path), timeless(&of_run));
    held_to_the_rule(&of_run);
    let mut check = folgore(["inspect", "r", "--check", "--output-dir"]);
    check.arg(killed.path());
    run(check).well();
}
