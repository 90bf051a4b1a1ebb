//! [`Team`]: threads that compute parts of the same step.
//!
//! Starting a task of the thread pool for each step would take longer than many a step. So the
//! other members of a team are threads of its own, which spin between two steps. To start and to end
//! them takes 40 µs or so.
//!
//! **No deadlock.** The leader, the thread that runs the steps, waits only for a member that is
//! computing, and that waits for nothing. The leader computes the part of a member itself if its
//! thread is not there: it could not be started, or it is paused. Who computes a part does not
//! change the results.

use std::hint::spin_loop;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Scope, Thread};
use std::time::Duration;

use crate::clock::Instant;

/// A member's part of the steps, with its own copy of the operands and its own results.
pub(super) trait Part: Send {
    fn compute(&mut self);
}

/// A step that a team computes. Part 0 is the leader's.
pub(super) trait TeamStep<P> {
    /// Copies the operands of part `i` for its member.
    fn give(&self, i: usize, part: &mut P);

    /// Computes these parts on this thread.
    fn own(&mut self, parts: Range<usize>);

    /// Copies the results of part `i` from its member.
    fn take(&mut self, i: usize, part: &P);
}

/// The largest number of parts.
pub(super) const MAX_PARTS: usize = 64;

/// The split of some blocks into parts. Every step has the same, so that the weights of a part stay
/// in the cache of its member.
#[derive(Clone, Copy)]
pub(super) struct Parts {
    pub blocks: usize,
    /// At most [`MAX_PARTS`].
    pub count: usize,
}

impl Parts {
    /// Returns the blocks of these parts. The first is the largest: its thread begins first.
    pub fn blocks(self, parts: Range<usize>) -> Range<usize> {
        let first = |part: usize| (part * self.blocks).div_ceil(self.count);
        first(parts.start)..first(parts.end)
    }
}

/// The thread has not come yet.
const ABSENT: u8 = 0;
/// It waits for work.
const WAITS: u8 = 1;
/// The leader has given it work.
const GIVEN: u8 = 2;
/// It computes.
const BEGUN: u8 = 3;
const DONE: u8 = 4;
/// It sleeps: it got no work for a while.
const PARKED: u8 = 5;
/// The team has ended.
const ENDED: u8 = 6;

/// A member of a team, other than the leader. Each is in cache lines of its own.
#[repr(align(128))]
struct Member<P> {
    state: AtomicU8,
    /// Set when the thread is started: `None` if the system has no more threads.
    thread: OnceLock<Option<Thread>>,
    /// Locked by the leader unless the state is [`BEGUN`], by the member's thread only then. So
    /// nobody waits for the lock.
    part: Mutex<P>,
}

impl<P: Part> Member<P> {
    fn new(part: P) -> Self {
        Self { state: AtomicU8::new(ABSENT), thread: OnceLock::new(), part: Mutex::new(part) }
    }

    fn part(&self) -> MutexGuard<'_, P> {
        // A panic of the member goes on at the end of the team.
        self.part.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is(&self, state: u8) -> bool {
        self.state.load(Ordering::Acquire) == state
    }

    /// Changes the state from `from` to `to`. Returns false if it was another one.
    fn change(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Starts the thread, or wakes it if it sleeps.
    fn call<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        let thread = self.thread.get_or_init(|| {
            let builder = thread::Builder::new().name("gru-wgpu cpu".to_owned());
            let handle = builder.spawn_scoped(scope, || self.work());
            handle.ok().map(|handle| handle.thread().clone())
        });
        match thread {
            Some(thread) if self.change(PARKED, ABSENT) => thread.unpark(),
            _ => {}
        }
    }

    fn end(&self) {
        self.state.store(ENDED, Ordering::Release);
        if let Some(Some(thread)) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Does the work of this member until the team ends.
    fn work(&self) {
        // After a panic of `compute`, the leader must not wait for this member.
        let _leave = OnDrop(|| _ = self.change(BEGUN, ABSENT));
        let mut spin = Spin::default();
        loop {
            match self.state.load(Ordering::Acquire) {
                ENDED => return,
                GIVEN if self.change(GIVEN, BEGUN) => {
                    self.part().compute();
                    self.change(BEGUN, DONE);
                    spin = Spin::default();
                }
                ABSENT if self.change(ABSENT, WAITS) => spin = Spin::default(),
                PARKED => thread::park(),
                _ if spin.next() > MAX_IDLE => _ = self.change(WAITS, PARKED),
                _ => {}
            }
        }
    }

    /// Gives work to this member. Returns false if its thread sleeps.
    fn give(&self, give: impl FnOnce(&mut P)) -> bool {
        let state = self.state.load(Ordering::Acquire);
        matches!(state, ABSENT | WAITS) && {
            give(&mut self.part());
            // A thread may have come or gone to sleep meanwhile.
            self.change(state, GIVEN) || self.change(WAITS, GIVEN)
        }
    }

    /// Takes the results of the work that was given. Returns false if the member has not begun, or
    /// failed.
    fn take(&self, take: impl FnOnce(&P)) -> bool {
        if self.change(GIVEN, ABSENT) {
            return false;
        }
        let mut spin = Spin::default();
        while self.is(BEGUN) {
            spin.next();
        }
        self.is(DONE) && {
            take(&self.part());
            self.change(DONE, WAITS)
        }
    }
}

/// The time after which a member without work sleeps.
const MAX_IDLE: Duration = Duration::from_millis(1);

/// The turns of a waiting loop, about 10 µs, after which a thread lets others run.
const SPINS: u32 = 256;

/// A waiting loop.
#[derive(Default)]
struct Spin {
    turns: u32,
    start: Option<Instant>,
    waited: Duration,
}

impl Spin {
    /// Waits a moment. Returns about how long the loop has waited.
    fn next(&mut self) -> Duration {
        self.turns += 1;
        if self.turns.is_multiple_of(SPINS) {
            self.waited = self.start.get_or_insert_with(Instant::now).elapsed();
            thread::yield_now();
        } else {
            spin_loop();
        }
        self.waited
    }
}

/// Calls a function when it is dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// The leader's view of its team.
pub(super) struct Team<'scope, 'env, P> {
    scope: &'scope Scope<'scope, 'env>,
    members: &'scope [Member<P>],
    pace: Pace,
}

impl<P: Part> Team<'_, '_, P> {
    /// Computes a step.
    pub fn step(&mut self, mut step: impl TeamStep<P>) {
        let count = self.members.len() + 1;
        if !self.pace.shares() {
            return step.own(0..count);
        }
        let mut given = 0_u64;
        for (i, member) in (1..).zip(self.members) {
            given |= u64::from(member.give(|part| step.give(i, part))) << i;
        }
        // The parts up to the first that was given are next to each other.
        let first_given = count.min(given.trailing_zeros() as usize);
        step.own(0..first_given);
        #[cfg(test)]
        if self.pace.sharing == Sharing::Rehearsed {
            self.members.iter().for_each(Member::rehearse);
        }
        for (i, member) in (1..).zip(self.members).skip(first_given - 1) {
            if given >> i & 1 == 0 {
                member.call(self.scope);
                step.own(i..i + 1);
            } else if !member.take(|part| step.take(i, part)) {
                step.own(i..i + 1);
            }
        }
    }

    /// Runs `work`, the calls of [`Self::step`] for one step of the recurrence. Every call does
    /// about the same work, and some are measured.
    pub fn measure<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        let start = self.pace.is_measuring().then(Instant::now);
        let result = work(self);
        self.pace.end_step(start.map(Instant::elapsed).unwrap_or_default());
        if start.is_some() && !self.pace.shares() {
            // A thread that spins may slow another one down on the same core.
            self.members.iter().for_each(|member| _ = member.change(WAITS, PARKED));
        }
        if matches!(self.pace.phase, Phase::Coming { .. }) {
            self.members.iter().for_each(|member| member.call(self.scope));
            if self.members.iter().all(|member| member.is(WAITS)) {
                self.pace.phase = Phase::Shared;
            }
        }
        result
    }
}

/// Runs `work` with a team for `steps` steps: this thread, and a member for each of `parts`.
pub(super) fn with_team<P: Part, T>(
    parts: Vec<P>,
    sharing: Sharing,
    steps: usize,
    work: impl FnOnce(&mut Team<'_, '_, P>) -> T,
) -> T {
    assert!(parts.len() < MAX_PARTS, "a team of {}", parts.len());
    let members: Vec<_> = parts.into_iter().map(Member::new).collect();
    // Without members there is nothing to measure.
    let sharing = if members.is_empty() { Sharing::Always } else { sharing };
    thread::scope(|scope| {
        // Also if `work` panics, the members end: the scope waits for them.
        let _end = OnDrop(|| members.iter().for_each(Member::end));
        if sharing == Sharing::Always {
            members.iter().for_each(|member| member.call(scope));
        }
        work(&mut Team { scope, members: &members, pace: Pace::new(sharing, steps) })
    })
}

/// Whether the members of a team get work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Sharing {
    /// Always: long steps, next to which a hand-over is short.
    Always,
    /// If it is measured to be faster.
    IfFaster,
    /// Always, but the leader does the work of the members, so that a test knows who does it.
    #[cfg(test)]
    Rehearsed,
}

/// The steps that are measured in each way.
const SAMPLES: u32 = 3;

/// The steps after which they are measured again.
const PERIOD: usize = 256;

/// The steps in which the members have to come.
const MAX_COMING: usize = 64;

/// The longest such period: each time sharing loses, the period doubles.
const MAX_PERIOD: usize = 1 << 14;

/// The shortest time of the remaining steps for which a team starts its threads. It is several
/// times what is lost if sharing turns out to be slower.
const MIN_REMAINING: Duration = Duration::from_micros(500);

/// Whether a team shares its steps now. What it costs to hand over work depends on the machine and
/// on what else runs there, so some steps are measured without sharing and some with it.
struct Pace {
    sharing: Sharing,
    phase: Phase,
    /// The steps that are left.
    steps: usize,
    period: usize,
    alone: Samples,
    shared: Samples,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// The leader computes alone, and is measured.
    Alone,
    /// The leader computes alone until the members have come, or until so many steps are left.
    Coming { until: usize },
    /// All compute, and are measured.
    Shared,
    /// The faster way, until so many steps are left.
    Chosen { shares: bool, until: usize },
}

/// The times of some steps.
#[derive(Clone, Copy, Default)]
struct Samples {
    count: u32,
    sum: Duration,
    longest: Duration,
}

impl Samples {
    fn add(&mut self, time: Duration) {
        self.count += 1;
        self.sum += time;
        self.longest = self.longest.max(time);
    }

    /// Returns the time of all but the longest: weights that are not in the cache, or an
    /// interruption.
    fn time(&self) -> Duration {
        self.sum - self.longest
    }
}

impl Pace {
    fn new(sharing: Sharing, steps: usize) -> Self {
        let phase = match sharing {
            Sharing::IfFaster => Phase::Alone,
            _ => Phase::Chosen { shares: true, until: 0 },
        };
        let (alone, shared) = (Samples::default(), Samples::default());
        Self { sharing, phase, steps, period: PERIOD, alone, shared }
    }

    fn is_measuring(&self) -> bool {
        matches!(self.phase, Phase::Alone | Phase::Shared)
    }

    fn shares(&self) -> bool {
        matches!(self.phase, Phase::Shared | Phase::Chosen { shares: true, .. })
    }

    /// Ends a step that took this time, if it is measured.
    fn end_step(&mut self, time: Duration) {
        self.steps = self.steps.saturating_sub(1);
        match self.phase {
            Phase::Alone => {
                self.alone.add(time);
                if self.alone.count == SAMPLES {
                    let steps = u32::try_from(self.steps).unwrap_or(u32::MAX);
                    let remaining = (self.alone.time() / (SAMPLES - 1)).saturating_mul(steps);
                    self.phase = match remaining > MIN_REMAINING {
                        true => Phase::Coming { until: self.steps.saturating_sub(MAX_COMING) },
                        false => Phase::Chosen { shares: false, until: 0 },
                    };
                }
            }
            Phase::Coming { until } => {
                if self.steps <= until {
                    self.choose(false);
                }
            }
            Phase::Shared => {
                self.shared.add(time);
                // A step in which a thread was interrupted can take a hundred times as long.
                let is_slower = self.shared.time() > self.alone.time();
                if self.shared.count == SAMPLES || is_slower {
                    // A tenth is worth another core.
                    self.choose(self.shared.time() * 10 < self.alone.time() * 9);
                }
            }
            Phase::Chosen { until, .. } => {
                if self.sharing == Sharing::IfFaster && until > 0 && self.steps <= until {
                    self.phase = Phase::Alone;
                    (self.alone, self.shared) = Default::default();
                }
            }
        }
    }

    /// Chooses a way for the next steps.
    fn choose(&mut self, shares: bool) {
        self.period = if shares { PERIOD } else { MAX_PERIOD.min(2 * self.period) };
        let is_last = self.steps < 2 * self.period;
        let until = if is_last { 0 } else { self.steps - self.period };
        self.phase = Phase::Chosen { shares, until };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl<P: Part> Member<P> {
        /// Does the work that was given on this thread.
        pub(super) fn rehearse(&self) {
            if self.change(GIVEN, BEGUN) {
                self.part().compute();
                self.change(BEGUN, DONE);
            }
        }
    }

    /// Doubles a number. Counts how often.
    #[derive(Default)]
    struct Double {
        number: u32,
        computed: u32,
        panics: bool,
    }

    impl Part for Double {
        fn compute(&mut self) {
            assert!(!self.panics, "as intended");
            self.number *= 2;
            self.computed += 1;
        }
    }

    /// Doubles three numbers.
    struct Doubles<'a> {
        results: [u32; 3],
        by_members: &'a mut u32,
    }

    impl TeamStep<Double> for Doubles<'_> {
        fn give(&self, i: usize, part: &mut Double) {
            part.number = self.results[i];
        }

        fn own(&mut self, parts: Range<usize>) {
            self.results[parts].iter_mut().for_each(|number| *number *= 2);
        }

        fn take(&mut self, i: usize, part: &Double) {
            self.results[i] = part.number;
            *self.by_members = part.computed.max(*self.by_members);
        }
    }

    impl Drop for Doubles<'_> {
        fn drop(&mut self) {
            let [first, ..] = self.results;
            assert_eq!(self.results, [first, first + 2, first + 4]);
        }
    }

    /// Runs `steps` steps of a team of three. Returns how many parts a member computed.
    fn run(steps: usize, sharing: Sharing) -> u32 {
        let mut by_members = 0;
        with_team(vec![Double::default(), Double::default()], sharing, steps, |team| {
            for step in 0..steps {
                let by_members = &mut by_members;
                let results = [0, 1, 2].map(|i| step as u32 + i);
                team.measure(|team| team.step(Doubles { results, by_members }));
            }
        });
        by_members
    }

    #[test]
    fn members_compute_their_parts() {
        // On a busy computer, a member may not begin before the leader takes its part back.
        assert!((0..1_000).any(|_| run(2_000, Sharing::Always) > 0), "the members did nothing");
        run(2_000, Sharing::IfFaster);
        assert_eq!(run(20, Sharing::Rehearsed), 20);
    }

    #[test]
    fn a_leader_without_other_threads_computes_all_parts() {
        let members = [(); 2].map(|()| Member::new(Double::default()));
        members.iter().for_each(|member| member.thread.set(None).unwrap());
        let mut by_members = 0;
        thread::scope(|scope| {
            let pace = Pace::new(Sharing::Always, 1);
            let mut team = Team { scope, members: &members, pace };
            team.step(Doubles { results: [1, 2, 3], by_members: &mut by_members });
        });
        assert_eq!(by_members, 0);
    }

    #[test]
    fn a_panic_ends_the_team() {
        let panicked = std::panic::catch_unwind(|| {
            let parts = vec![Double::default()];
            with_team(parts, Sharing::Always, 1, |_| panic!("as intended"))
        });
        assert!(panicked.is_err());
        let member = Member::new(Double { panics: true, ..Double::default() });
        assert!(member.give(|_| ()));
        let work = std::panic::AssertUnwindSafe(|| member.work());
        assert!(std::panic::catch_unwind(work).is_err());
        assert!(!member.take(|_| ()), "the leader took results of a panic");
    }

    #[test]
    fn members_without_work_sleep_until_they_are_called() {
        let member = Member::new(Double::default());
        thread::scope(|scope| {
            let _end = OnDrop(|| member.end());
            for _ in 0..2 {
                member.call(scope);
                while !member.is(PARKED) {
                    thread::yield_now();
                }
            }
        });
    }

    #[test]
    fn teams_on_all_threads_of_a_pool_finish() {
        use rayon::prelude::*;
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                (0..40).into_par_iter().for_each(|_| _ = run(500, Sharing::Always));
            });
        }
    }

    /// Measures steps that take 1 ms alone and `shared` in a team.
    fn measured(pace: &mut Pace, shared: Duration) -> Phase {
        while pace.phase == Phase::Alone {
            pace.end_step(Duration::from_millis(1));
        }
        if matches!(pace.phase, Phase::Coming { .. }) {
            pace.phase = Phase::Shared;
        }
        while pace.phase == Phase::Shared {
            pace.end_step(shared);
        }
        pace.phase
    }

    #[test]
    fn the_faster_way_is_used() {
        for (shared, shares) in [(600, true), (950, false), (1_001, false), (90_000, false)] {
            let mut pace = Pace::new(Sharing::IfFaster, 100_000);
            let phase = measured(&mut pace, Duration::from_micros(shared));
            let period = if shares { PERIOD } else { 2 * PERIOD };
            assert_eq!(phase, Phase::Chosen { shares, until: pace.steps - period });
        }
    }

    #[test]
    fn ways_are_measured_again() {
        let mut pace = Pace::new(Sharing::IfFaster, 100 * PERIOD);
        let slow = Duration::from_millis(2);
        for _ in 0..2 {
            assert!(!matches!(measured(&mut pace, slow), Phase::Chosen { shares: true, .. }));
            while matches!(pace.phase, Phase::Chosen { until: 1.., .. }) {
                pace.end_step(Duration::ZERO);
            }
            assert_eq!(pace.phase, Phase::Alone);
        }
        assert_eq!(pace.period, 4 * PERIOD);
    }

    #[test]
    fn few_steps_start_no_thread() {
        let mut pace = Pace::new(Sharing::IfFaster, 40);
        (0..SAMPLES).for_each(|_| pace.end_step(Duration::from_micros(5)));
        assert_eq!(pace.phase, Phase::Chosen { shares: false, until: 0 });
    }

    #[test]
    fn members_that_do_not_come_are_not_waited_for() {
        let mut pace = Pace::new(Sharing::IfFaster, 1_000);
        (0..SAMPLES as usize + MAX_COMING).for_each(|_| pace.end_step(Duration::from_millis(1)));
        assert!(matches!(pace.phase, Phase::Chosen { shares: false, .. }));
    }
}
