use super::*;

/// Places of two nodes; the third is the harness.
const A: usize = 0;
const B: usize = 1;
const MILLI: Duration = Duration::from_millis(1);

fn rules(seed: u64) -> Rules {
    Rules::new(&[1, 2], seed)
}

fn set(rules: &mut Rules, links: Links, change: impl Fn(&mut Setting)) {
    rules.set(|from, to| links.has(from, to), change);
}

fn count(rules: &Rules, from: u64, to: u64) -> Count {
    rules.counts().into_iter().find(|count| (count.from, count.to) == (from, to)).unwrap()
}

/// What becomes of so many packets from A to B, one every millisecond, if each is delivered when it is due.
fn fates(rules: &mut Rules, packets: u32, begin: Instant) -> Vec<Fate> {
    let mut fates = Vec::new();
    for nth in 0..packets {
        let fate = rules.decide(A, B, 100, begin + nth * MILLI);
        if matches!(fate, Fate::Later(_)) {
            rules.release(A, B);
        }
        fates.push(fate);
    }
    fates
}

fn dropped(fates: &[Fate]) -> usize {
    fates.iter().filter(|fate| **fate == Fate::Drop).count()
}

#[test]
fn whole_links_pass_everything() {
    let mut rules = rules(1);
    assert!(fates(&mut rules, 100, Instant::now()).iter().all(|fate| *fate == Fate::Pass));
    let all = rules.counts();
    assert_eq!(all.len(), 6, "two nodes and the harness, each to each: {all:?}");
    assert_eq!(count(&rules, 1, 2), Count { from: 1, to: 2, passed: 100, dropped: 0, delayed: 0 });
    assert_eq!(count(&rules, 2, 1).passed, 0);
}

#[test]
fn nothing_goes_to_itself_or_nowhere() {
    let mut rules = rules(1);
    let now = Instant::now();
    for (from, to) in [(A, A), (A, 3), (3, A), (1_000, 1_000)] {
        assert_eq!(rules.decide(from, to, 100, now), Fate::Drop, "{from} to {to}");
        assert!(!rules.release(from, to), "{from} to {to}");
    }
}

#[test]
fn a_cut_has_a_direction_and_is_healed() {
    let mut rules = rules(1);
    let now = Instant::now();
    set(&mut rules, Links::OutOf(1), |setting| setting.cut = true);
    assert_eq!(rules.decide(A, B, 100, now), Fate::Drop);
    assert_eq!(rules.decide(B, A, 100, now), Fate::Pass);
    assert_eq!(rules.decide(A, 2, 100, now), Fate::Pass, "to the harness");
    rules.heal();
    assert_eq!(rules.decide(A, B, 100, now), Fate::Pass);
    rules.cut_between(|_, _| true);
    assert_eq!(rules.decide(A, B, 100, now), Fate::Drop);
    assert_eq!(rules.decide(B, 2, 100, now), Fate::Pass, "the harness is no node");
}

#[test]
fn loss_is_as_likely_as_said_and_the_same_again() {
    let lossy = |seed| {
        let mut rules = rules(seed);
        set(&mut rules, Links::All, |setting| setting.loss = 0.2);
        fates(&mut rules, 10_000, Instant::now())
    };
    // Five standard deviations are 200.
    let first = lossy(7);
    assert!(dropped(&first).abs_diff(2_000) < 200, "{} lost", dropped(&first));
    assert_eq!(first, lossy(7));
    assert_ne!(first, lossy(8));
    let mut none = rules(7);
    set(&mut none, Links::All, |setting| setting.loss = 1.0);
    assert_eq!(dropped(&fates(&mut none, 100, Instant::now())), 100);
}

#[test]
fn what_a_packet_draws_does_not_depend_on_those_before_it() {
    let from_the_101st = |before: fn(&mut Setting)| {
        let mut rules = rules(7);
        set(&mut rules, Links::All, before);
        fates(&mut rules, 100, Instant::now());
        set(&mut rules, Links::All, |setting| *setting = Setting { loss: 0.5, ..Setting::default() });
        fates(&mut rules, 100, Instant::now()).iter().map(|fate| *fate == Fate::Drop).collect::<Vec<_>>()
    };
    let unharmed = from_the_101st(|_| {});
    assert!(unharmed.contains(&true) && unharmed.contains(&false));
    assert_eq!(from_the_101st(|setting| setting.cut = true), unharmed);
    assert_eq!(from_the_101st(|setting| setting.jitter = MILLI), unharmed);
}

#[test]
fn links_choose_each_for_itself() {
    let mut rules = rules(7);
    set(&mut rules, Links::All, |setting| setting.loss = 0.5);
    let now = Instant::now();
    let mut choices = |from, to| (0..64).map(|_| rules.decide(from, to, 100, now) == Fate::Drop).collect::<Vec<_>>();
    assert_ne!(choices(A, B), choices(B, A));
}

#[test]
fn delay_and_jitter_keep_the_order() {
    let mut rules = rules(3);
    set(&mut rules, Links::All, |setting| (setting.delay, setting.jitter) = (50 * MILLI, 20 * MILLI));
    let begin = Instant::now();
    let mut last = begin;
    let mut waits = Vec::new();
    for nth in 0..500_u32 {
        let now = begin + nth * MILLI;
        let Fate::Later(due) = rules.decide(A, B, 100, now) else { panic!("packet {nth} is not delayed") };
        assert!(due >= last, "packet {nth} overtakes the one before it");
        assert!((50 * MILLI..70 * MILLI).contains(&(due - now)), "packet {nth} waits {:?}", due - now);
        waits.push(due - now);
        last = due;
    }
    assert!(waits.iter().max() > waits.iter().min(), "no jitter");
    assert_eq!(count(&rules, 1, 2).delayed, 500);
}

#[test]
fn nothing_overtakes_what_is_under_way() {
    let mut rules = rules(3);
    let now = Instant::now();
    set(&mut rules, Links::All, |setting| setting.delay = 50 * MILLI);
    assert_eq!(rules.decide(A, B, 100, now), Fate::Later(now + 50 * MILLI));
    set(&mut rules, Links::All, |setting| setting.delay = Duration::ZERO);
    assert_eq!(rules.decide(A, B, 100, now + MILLI), Fate::Later(now + 50 * MILLI));
    assert_eq!(rules.decide(A, B, 100, now + 60 * MILLI), Fate::Later(now + 60 * MILLI), "due, but not there yet");
    for _ in 0..3 {
        assert!(rules.release(A, B));
    }
    assert_eq!(rules.decide(A, B, 100, now + 61 * MILLI), Fate::Pass);
}

#[test]
fn reordered_packets_are_held_back_while_others_pass() {
    let mut rules = rules(3);
    set(&mut rules, Links::All, |setting| setting.reorder = 0.25);
    let begin = Instant::now();
    let fates = fates(&mut rules, 4_000, begin);
    let held: Vec<Duration> = (0_u32..)
        .zip(&fates)
        .filter_map(|(nth, fate)| match fate {
            Fate::Later(due) => Some(*due - (begin + nth * MILLI)),
            _ => None,
        })
        .collect();
    // Five standard deviations are 137.
    assert!(held.len().abs_diff(1_000) < 137, "{} held back", held.len());
    assert!(held.iter().all(|wait| (5 * MILLI..15 * MILLI).contains(wait)), "{held:?}");
    assert_eq!(dropped(&fates), 0);
    // One that is held back holds nobody up.
    set(&mut rules, Links::All, |setting| setting.reorder = 1.0);
    let now = begin + 5_000 * MILLI;
    let Fate::Later(late) = rules.decide(A, B, 100, now) else { panic!("not held back") };
    set(&mut rules, Links::All, |setting| setting.reorder = 0.0);
    assert_eq!(rules.decide(A, B, 100, now), Fate::Later(now));
    assert!(late > now);
}

#[test]
fn a_rate_lets_so_much_pass_and_no_more() {
    let mut rules = rules(3);
    set(&mut rules, Links::All, |setting| setting.rate = Some(100_000));
    let begin = Instant::now();
    // Twice as much as the link carries, for 10 s.
    let mut last = begin;
    for nth in 0..2_000_u32 {
        let now = begin + nth * 5 * MILLI;
        match rules.decide(A, B, 1_000, now) {
            Fate::Pass => {}
            Fate::Drop => continue,
            Fate::Later(due) => {
                assert!(due >= last && due <= now + QUEUE_TIME + 10 * MILLI, "packet {nth}");
                last = due;
                rules.release(A, B);
            }
        }
    }
    let passed = count(&rules, 1, 2).passed;
    // 1,000 in 10 s, 40 that wait at the end, and 4 at once when it was idle.
    assert!((1_035..1_050).contains(&passed), "{passed} passed");
    assert_eq!(count(&rules, 1, 2).dropped, 2_000 - passed);
}

#[test]
fn a_slow_link_that_is_idle_takes_a_large_packet() {
    let mut rules = rules(3);
    set(&mut rules, Links::All, |setting| setting.rate = Some(1_000));
    let begin = Instant::now();
    for _ in 0..2 {
        assert_eq!(rules.decide(A, B, BURST_BYTES / 2, begin), Fate::Pass, "a burst");
    }
    let Fate::Later(due) = rules.decide(A, B, 1_500, begin) else { panic!("refused") };
    assert_eq!(due - begin, 1_500 * MILLI, "alone it takes longer than a queue may be");
    assert_eq!(rules.decide(A, B, 1_500, begin), Fate::Drop, "behind it is no room");
    assert!(rules.release(A, B));
    assert!(matches!(rules.decide(A, B, 1_500, due), Fate::Later(_)), "room again");
}

#[test]
fn what_is_under_way_is_bounded() {
    let mut rules = rules(3);
    set(&mut rules, Links::All, |setting| setting.delay = 1_000 * MILLI);
    let now = Instant::now();
    let taken = (0..2 * QUEUE_PACKETS).filter(|_| rules.decide(A, B, 100, now) != Fate::Drop).count();
    assert_eq!(taken, QUEUE_PACKETS);
    assert!(matches!(rules.decide(B, A, 100, now), Fate::Later(_)), "another link has room");
    assert!(rules.release(A, B));
    assert!(matches!(rules.decide(A, B, 100, now), Fate::Later(_)), "there is room again");
}

#[test]
fn what_is_under_way_is_lost_when_its_link_is_cut() {
    let mut rules = rules(3);
    let now = Instant::now();
    set(&mut rules, Links::All, |setting| setting.delay = MILLI);
    for _ in 0..2 {
        assert!(matches!(rules.decide(A, B, 100, now), Fate::Later(_)));
    }
    set(&mut rules, Links::Into(2), |setting| setting.cut = true);
    assert!(!rules.release(A, B));
    rules.heal();
    assert!(rules.release(A, B));
    assert_eq!(rules.heals(), 1);
    assert_eq!(rules.decide(A, B, 100, now), Fate::Pass, "nothing is under way any more");
    assert_eq!(count(&rules, 1, 2), Count { from: 1, to: 2, passed: 2, dropped: 1, delayed: 2 });
    rules.refused(A, B);
    assert_eq!(count(&rules, 1, 2), Count { from: 1, to: 2, passed: 1, dropped: 2, delayed: 2 });
}

#[test]
fn a_node_that_is_down_neither_sends_nor_hears() {
    let mut rules = rules(3);
    let now = Instant::now();
    rules.set_down(2, true);
    assert_eq!(rules.down(), [2]);
    for (from, to, fate) in [(A, B, Fate::Drop), (B, A, Fate::Drop), (2, B, Fate::Drop), (2, A, Fate::Pass)] {
        assert_eq!(rules.decide(from, to, 100, now), fate, "{from} to {to}");
    }
    rules.set_down(2, false);
    assert_eq!(rules.decide(A, B, 100, now), Fate::Pass);
    rules.set_down(1, true);
    rules.heal();
    assert_eq!(rules.decide(A, B, 100, now), Fate::Pass);
    assert!(rules.down().is_empty());
}

#[test]
fn no_delay_overflows() {
    let mut rules = rules(3);
    set(&mut rules, Links::All, |setting| {
        *setting = Setting { delay: Duration::MAX, jitter: Duration::MAX, rate: Some(0), ..Setting::default() };
    });
    let now = Instant::now();
    let Fate::Later(due) = rules.decide(A, B, 64 << 10, now) else { panic!("not delayed") };
    assert!(due > now);
}
