//! A second for each reader, from the same seed as the command line's: the corpus and some thousands of damaged files.

use std::time::Duration;

use folgore_fuzz::{Run, TARGETS};

#[test]
fn no_reader_panics_or_takes_more_memory_than_its_input_accounts_for() {
    for target in TARGETS {
        let run = Run::new(target.name, 1).unwrap();
        let tally = run.run(Duration::from_millis(1100), 0).unwrap_or_else(|e| {
            let _ = std::panic::take_hook();
            panic!("{}: {e}", target.name)
        });
        println!("{}: {tally:?}", target.name);
        assert!(tally.inputs > 10, "{}: {tally:?}", target.name);
        assert!(tally.taken > 0, "{}: not even its corpus is valid", target.name);
    }
}

#[test]
fn an_input_depends_on_seed_and_number_alone() {
    let inputs = |seed| {
        let run = Run::new("config", seed).unwrap();
        (50..60).map(|number| run.input(number)).collect::<Vec<_>>()
    };
    assert_eq!(inputs(3), inputs(3));
    assert_ne!(inputs(3), inputs(4));
}
