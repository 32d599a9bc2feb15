//! The simulation of itself: it repeats, it is clean, and it finds what is planted.

use clap::ValueEnum;

use crate::plant::Plant;
use crate::run::run;
use crate::world::Options;
use crate::{Cli, read_range};

#[test]
fn the_same_seed_gives_the_same_run_whatever_ran_before() {
    let first = run(3, Options::default());
    let _other = run(4, Options::default());
    assert_eq!(first, run(3, Options::default()));
    assert_ne!(first.hash, run(5, Options::default()).hash);
}

#[test]
fn twenty_seeds_are_clean_and_not_idle() {
    for seed in 0..20 {
        let outcome = run(seed, Options::default());
        assert!(outcome.violations.is_empty(), "seed {seed}: {:#?}\n{:#?}", outcome.violations, outcome.tail);
        let totals = outcome.totals;
        assert!(totals.answered > 50 && totals.elections > 0 && totals.entries > 50, "seed {seed}: {totals}");
    }
}

#[test]
fn every_planted_bug_is_found() {
    for plant in Plant::value_variants() {
        let options = Options { plant: Some(*plant), ..Options::default() };
        let found = (0..200).find(|seed| !run(*seed, options).violations.is_empty());
        assert!(found.is_some(), "{plant:?} was not found in 200 seeds");
    }
}

#[test]
fn faults_of_every_kind_happen() {
    let mut totals = crate::world::Totals::default();
    (0..10).for_each(|seed| totals.add(&run(seed, Options::default()).totals));
    assert!(totals.crashes > 0 && totals.partitions > 0 && totals.snapshots > 0 && totals.installs > 0, "{totals}");
}

#[test]
fn a_range_of_seeds_is_read() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
    assert_eq!(read_range("3..9"), Ok(3..9));
    assert!(["9..3", "3..3", "x..3", "3"].into_iter().all(|text| read_range(text).is_err()));
}
