//! The batch of a step is the same whatever the order of arrival, with duplicates, refills, drops, crashes and resumes.

use folgore_protocol::{Batch, RolloutJob, seed};
use proptest::prelude::*;

use crate::common::*;

const STEPS: u64 = 4;

/// Dice of one trouble-making run.
struct Dice(u64, u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.1 += 1;
        seed::below(self.0, self.1, sides)
    }
}

/// The same run with everything that can happen: jobs handed out in any portion and order, answers twice and late, the
/// process killed at any point, the learner resumed from any checkpoint. Gives the batches as they were first trained on.
fn run_in_trouble(settings: folgore_learner::replay::ReplaySettings, temper: Temper, dice: &mut Dice) -> Vec<Batch> {
    let mut disk = MemoryDisk::default();
    let mut store = open(settings.clone(), &disk);
    let mut jobs: Vec<RolloutJob> = Vec::new();
    let mut trained: Vec<Batch> = Vec::new();
    let mut step = 1;
    let mut now_ms = 0;
    for _ in 0..20_000 {
        now_ms += dice.roll(400);
        match dice.roll(40) {
            0 => {
                drop(store);
                disk = disk.crash(dice.roll(2) == 0);
                store = open(settings.clone(), &disk);
                let report = store.check().unwrap();
                assert!(report.holds(), "{report}");
                if dice.roll(2) == 0 {
                    jobs.clear();
                }
            }
            1 => {
                step = 1 + dice.roll(step);
                change(&mut store, |ledger| ledger.resume(step - 1, Some(policy(step - 1)), 0, 0)).unwrap();
            }
            2..10 => {
                let (max, reissue) = (1 + dice.roll(5) as usize, dice.roll(9) == 0);
                jobs.extend(change(&mut store, |ledger| ledger.open_seats(now_ms, max, reissue)));
            }
            10..37 if !jobs.is_empty() => {
                let at = dice.roll(jobs.len() as u64) as usize;
                let trajectory = play(&jobs[at], policy_for(&jobs[at]), temper);
                change(&mut store, |ledger| ledger.ingest(trajectory));
                if dice.roll(3) > 0 {
                    jobs.swap_remove(at);
                }
            }
            _ => {
                if let Some(batch) = store.batch(step).unwrap() {
                    match trained.get(step as usize - 1) {
                        Some(before) => assert_eq!(*before, batch, "step {step} was served otherwise after a resume"),
                        None => trained.push(batch),
                    }
                    change(&mut store, |ledger| ledger.commit(step, policy(step))).unwrap();
                    if step == STEPS {
                        let report = store.check().unwrap();
                        assert!(report.holds(), "{report}");
                        return trained;
                    }
                    step += 1;
                }
            }
        }
    }
    panic!("no end: {:?}", store.ledger().status());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn batches_follow_from_the_seed_alone(dice in any::<u64>(), drop_equal in any::<bool>(), fails_one_in in prop::sample::select(vec![0u64, 2, 6]), reward_max in 1u64..4) {
        // Many issues, so that no seat is given up: that depends on time, by intention.
        let settings = folgore_learner::replay::ReplaySettings { drop_equal_rewards: drop_equal, max_issues: 100_000, ..settings() };
        let temper = Temper { fails_one_in, reward_max };
        let calm = run_calmly(&mut open(settings.clone(), &MemoryDisk::default()), 1..=STEPS, temper);
        let troubled = run_in_trouble(settings, temper, &mut Dice(dice, 0));
        prop_assert_eq!(calm, troubled);
    }
}
