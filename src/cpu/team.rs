//! [`Team`]: threads that compute parts of the same step.
//!
//! Starting a task for each step would take longer than many a step. So the other members of a team
//! are tasks that spin between two steps, from the first to the last.
//!
//! **No deadlock.** The leader, the thread that runs the steps, computes the part of a member itself
//! if its task does not run (its thread has other work) or is late (another program has its core).
//! So neither waits for the other without limit, nor does the leader wait for the tasks to end: they
//! own what they use. Who computes a part does not change the results.
//!
//! Between the start and the end of a team, its leader must not wait for rayon: it might then run
//! another task for a long time, such as the steps of another team.

use std::hint::spin_loop;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::clock::Instant;

/// A member's part of the steps, with its own results.
pub(super) trait Part: Send + 'static {
    /// What all members read, such as the left side of a product.
    type Operand: Send + Sync;

    fn compute(&mut self, operand: &Self::Operand);
}

/// Something in a step that a team computes. Part 0 is the leader's.
pub(super) trait TeamStep<P: Part> {
    /// Copies what all members read.
    fn share(&self, operand: &mut P::Operand);

    /// Copies what only the member of part `i` reads.
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

/// The member has no task.
const ABSENT: u8 = 0;
/// Its task has been started, but may not run yet.
const CALLED: u8 = 1;
/// It waits for work.
const WAITS: u8 = 2;
/// The leader has given it work.
const GIVEN: u8 = 3;
/// It computes.
const BEGUN: u8 = 4;
const DONE: u8 = 5;
/// It computes what the leader no longer waits for.
const LATE: u8 = 6;
/// Its task is to end, because there is no work now.
const DISMISSED: u8 = 7;
/// The team has ended.
const ENDED: u8 = 8;

/// A member of a team, other than the leader. Each is in cache lines of its own.
#[repr(align(128))]
struct Member<P: Part> {
    state: AtomicU8,
    /// Locked by the task if the state is [`BEGUN`] or [`LATE`], by the leader only in other
    /// states. So nobody waits for the lock.
    part: Mutex<P>,
    /// Written by the leader only if no task reads it.
    operand: Arc<RwLock<P::Operand>>,
}

impl<P: Part> Member<P> {
    fn new(part: P, operand: &Arc<RwLock<P::Operand>>) -> Arc<Self> {
        let (state, part) = (AtomicU8::new(ABSENT), Mutex::new(part));
        Arc::new(Self { state, part, operand: operand.clone() })
    }

    fn part(&self) -> MutexGuard<'_, P> {
        // After a panic of `compute`, the leader computes the part itself.
        self.part.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is(&self, state: u8) -> bool {
        self.state.load(Ordering::Acquire) == state
    }

    /// Changes the state from `from` to `to`. Returns false if it was another one.
    fn change(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Starts a task for this member if there is none.
    fn call(self: &Arc<Self>) {
        if let Some(pool) = member_pool().filter(|_| self.is(ABSENT)) {
            self.change(ABSENT, CALLED);
            let member = self.clone();
            pool.spawn(move || {
                // Without this, a panic would abort the process.
                if catch_unwind(AssertUnwindSafe(|| member.work())).is_err() {
                    _ = member.change(BEGUN, ABSENT) || member.change(LATE, ABSENT);
                }
            });
        }
    }

    /// Ends the task if it waits.
    fn dismiss(&self) {
        _ = self.is(WAITS) && self.change(WAITS, DISMISSED);
    }

    /// Ends the task for good.
    fn end(&self) {
        self.state.store(ENDED, Ordering::Release);
    }

    /// The task: does the work of this member until the team ends, or until no work comes.
    fn work(&self) {
        let (mut spin, mut idle) = (Spin::default(), Spin::default());
        // Before it gives work, the leader may compute a long step alone.
        let mut max_idle = MAX_IDLE_AT_FIRST;
        loop {
            match self.state.load(Ordering::Acquire) {
                ENDED => return,
                DISMISSED if self.change(DISMISSED, ABSENT) => return,
                CALLED => _ = self.change(CALLED, WAITS),
                GIVEN => {
                    self.compute_given();
                    max_idle = MAX_IDLE;
                }
                WAITS => {
                    if idle.next() > max_idle && self.change(WAITS, ABSENT) {
                        return;
                    }
                    continue;
                }
                _ => _ = spin.next(),
            }
            idle = Spin::default();
        }
    }

    /// Computes the work that was given, unless the leader takes it back.
    fn compute_given(&self) {
        // Read before the state says so: a late member may not have come further.
        let operand = self.operand.read().unwrap_or_else(PoisonError::into_inner);
        if self.change(GIVEN, BEGUN) {
            self.part().compute(&operand);
            drop(operand);
            self.finish();
        }
    }

    fn finish(&self) {
        _ = self.change(BEGUN, DONE) || self.change(LATE, WAITS);
    }

    /// Gives work to this member. Returns false if it has no task, or is late.
    fn give(&self, give: impl FnOnce(&mut P)) -> bool {
        matches!(self.state.load(Ordering::Acquire), CALLED | WAITS) && {
            give(&mut self.part());
            // The task may have begun to wait, or have ended, meanwhile.
            self.change(WAITS, GIVEN) || self.change(CALLED, GIVEN) || self.change(WAITS, GIVEN)
        }
    }

    /// Takes the results of the work that was given, if it is done within `limit` or so.
    fn take(&self, limit: Duration, take: impl FnOnce(&P)) -> Taken {
        if self.change(GIVEN, CALLED) {
            return Taken::NotBegun;
        }
        let mut spin = Spin::default();
        while self.is(BEGUN) {
            if spin.next() > limit && self.change(BEGUN, LATE) {
                return Taken::Late;
            }
        }
        if !self.is(DONE) {
            return Taken::NotBegun;
        }
        take(&self.part());
        self.change(DONE, WAITS);
        Taken::Results
    }
}

/// What the leader got from a member.
#[derive(Debug, PartialEq)]
enum Taken {
    Results,
    /// The member has not begun, or has panicked.
    NotBegun,
    /// The member is not done: its thread may have been interrupted for milliseconds.
    Late,
}

/// Returns the threads of the members, one less than the computer has cores: the leader has one.
/// They are not those of rayon's own pool, whose idle threads would take turns with members on the
/// same core. `None` if there is no other core, or if threads cannot be started.
fn member_pool() -> Option<&'static ThreadPool> {
    static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();
    let start = || {
        let others = std::thread::available_parallelism().ok()?.get() - 1;
        let name = |i| format!("gru-wgpu member {i}");
        let builder = ThreadPoolBuilder::new().num_threads(others.min(MAX_PARTS)).thread_name(name);
        if others > 0 { builder.build().ok() } else { None }
    };
    POOL.get_or_init(start).as_ref()
}

/// The leader waits for the others' parts as long as its own part takes, and so much longer.
const MAX_LATE: Duration = Duration::from_micros(20);

/// The time after which the task of a member without work ends.
const MAX_IDLE: Duration = Duration::from_millis(1);

/// The same before the member gets its first work.
const MAX_IDLE_AT_FIRST: Duration = Duration::from_millis(100);

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
        self.turns = self.turns.wrapping_add(1);
        if self.turns.is_multiple_of(SPINS) {
            self.waited = self.start.get_or_insert_with(Instant::now).elapsed();
            std::thread::yield_now();
        } else {
            spin_loop();
        }
        self.waited
    }
}

/// The leader's view of its team.
pub(super) struct Team<P: Part> {
    members: Vec<Arc<Member<P>>>,
    operand: Arc<RwLock<P::Operand>>,
    pace: Pace,
}

impl<P: Part> Team<P> {
    /// Returns the team of this thread and of a member for each of `parts`, for `steps` steps.
    pub fn new(parts: Vec<P>, operand: P::Operand, sharing: Sharing, steps: usize) -> Self {
        assert!(parts.len() < MAX_PARTS, "a team of {}", parts.len());
        let operand = Arc::new(RwLock::new(operand));
        let members = parts.into_iter().map(|part| Member::new(part, &operand)).collect();
        Self { members, operand, pace: Pace::new(sharing, steps) }
    }

    /// Computes something in a step.
    pub fn step(&mut self, mut step: impl TeamStep<P>) {
        let count = self.members.len() + 1;
        if count == 1 || !self.pace.shares() || !self.share(&step) {
            return step.own(0..count);
        }
        let mut given = 0_u64;
        for (i, member) in (1..).zip(&self.members) {
            self.pace.sharing.call(member);
            given |= u64::from(member.give(|part| step.give(i, part))) << i;
        }
        // The parts up to the first that was given are next to each other.
        let first_given = count.min(given.trailing_zeros() as usize);
        let start = Instant::now();
        step.own(0..first_given);
        let limit = start.elapsed() + MAX_LATE;
        self.pace.sharing.rehearse(&self.members);
        let mut is_late = false;
        for (i, member) in (1..).zip(&self.members).skip(first_given - 1) {
            let taken = match given >> i & 1 {
                0 => Taken::NotBegun,
                _ => member.take(limit, |part| step.take(i, part)),
            };
            if taken != Taken::Results {
                step.own(i..i + 1);
            }
            is_late |= taken == Taken::Late;
        }
        if is_late {
            // There may be more threads than cores.
            self.pace.choose(false);
        }
    }

    /// Copies what all members read. Returns false if a late member still reads the old one.
    fn share(&self, step: &impl TeamStep<P>) -> bool {
        self.operand.try_write().map(|mut operand| step.share(&mut operand)).is_ok()
    }

    /// Runs `work`, the calls of [`Self::step`] for one step of the recurrence. Every call does
    /// about the same work, and some are measured.
    pub fn measure<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        match self.pace.phase {
            // A thread that spins may slow another one down on the same core.
            Phase::Alone | Phase::Chosen { shares: false, .. } => {
                self.members.iter().for_each(|member| member.dismiss());
            }
            Phase::Coming { .. } => {
                self.members.iter().for_each(Member::call);
                if self.members.iter().all(|member| member.is(WAITS)) {
                    self.pace.phase = Phase::Shared;
                }
            }
            _ => {}
        }
        let start = self.pace.is_measuring().then(Instant::now);
        let result = work(self);
        self.pace.end_step(start.map(Instant::elapsed).unwrap_or_default());
        result
    }
}

impl<P: Part> Drop for Team<P> {
    fn drop(&mut self) {
        self.members.iter().for_each(|member| member.end());
    }
}

/// Whether the members of a team get work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Sharing {
    /// If it is measured to be faster. The first steps are not shared.
    Tried,
    /// Unless it is measured to be slower: in long steps a hand-over is short.
    Expected,
    /// Always, but the leader does the work of the members, so that a test knows who does it.
    #[cfg(test)]
    Rehearsed,
}

impl Sharing {
    fn call<P: Part>(self, member: &Arc<Member<P>>) {
        match self {
            Self::Tried | Self::Expected => member.call(),
            #[cfg(test)]
            Self::Rehearsed => _ = member.change(ABSENT, WAITS),
        }
    }

    /// In a rehearsal, does the work of the members.
    fn rehearse<P: Part>(self, members: &[Arc<Member<P>>]) {
        match self {
            Self::Tried | Self::Expected => _ = members,
            #[cfg(test)]
            Self::Rehearsed => {
                members.iter().for_each(|member| member.compute_given());
            }
        }
    }
}

/// The steps that are measured in each way.
const SAMPLES: u32 = 3;

/// The number of steps from which on it can be measured which way is faster.
pub(super) const MIN_MEASURED_STEPS: usize = 4 * SAMPLES as usize;

/// The steps after which they are measured again.
const PERIOD: usize = 256;

/// The longest such period: each time sharing loses, the period doubles.
const MAX_PERIOD: usize = 1 << 14;

/// The steps in which the members have to come.
const MAX_COMING: usize = 64;

/// The shortest time of the remaining steps for which the members are called. It is several times
/// what is lost if sharing turns out to be slower.
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
    /// The last steps, one after the other, in which sharing was slower.
    slow: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// The leader computes alone, and is measured.
    Alone,
    /// The leader computes alone until the members have come, or until so many steps are left.
    Coming { until: usize },
    /// All compute, and are measured.
    Shared,
    /// The faster way, until so many steps are left, or to the end.
    Chosen { shares: bool, until: Option<usize> },
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

    fn are_complete(&self) -> bool {
        self.count >= SAMPLES
    }

    /// Returns the time of all but the longest: weights that are not in the cache, or an
    /// interruption.
    fn time(&self) -> Duration {
        self.sum - self.longest
    }

    /// Returns the time of a step.
    fn mean(&self) -> Duration {
        self.time() / (SAMPLES - 1)
    }
}

impl Pace {
    fn new(sharing: Sharing, steps: usize) -> Self {
        let phase = match sharing {
            Sharing::Tried => Phase::Alone,
            Sharing::Expected => Phase::Shared,
            #[cfg(test)]
            Sharing::Rehearsed => Phase::Chosen { shares: true, until: None },
        };
        let (alone, shared) = Default::default();
        Self { sharing, phase, steps, period: PERIOD, alone, shared, slow: 0 }
    }

    fn is_measuring(&self) -> bool {
        !matches!(self.phase, Phase::Coming { .. } | Phase::Chosen { shares: false, .. })
    }

    fn shares(&self) -> bool {
        matches!(self.phase, Phase::Shared | Phase::Chosen { shares: true, .. })
    }

    /// Ends a step that took this time, if it is measured.
    fn end_step(&mut self, time: Duration) {
        self.steps = self.steps.saturating_sub(1);
        match self.phase {
            Phase::Alone => self.end_alone(time),
            Phase::Coming { until } => {
                if self.steps <= until {
                    self.choose(false);
                }
            }
            Phase::Shared => self.end_shared(time),
            Phase::Chosen { shares, until } => self.end_chosen(shares, until, time),
        }
    }

    fn end_alone(&mut self, time: Duration) {
        self.alone.add(time);
        if !self.alone.are_complete() {
            return;
        }
        let steps = u32::try_from(self.steps).unwrap_or(u32::MAX);
        if self.shared.are_complete() {
            self.choose_faster();
        } else if self.alone.mean().saturating_mul(steps) < MIN_REMAINING {
            self.phase = Phase::Chosen { shares: false, until: None };
        } else {
            self.phase = Phase::Coming { until: self.steps.saturating_sub(MAX_COMING) };
        }
    }

    fn end_shared(&mut self, time: Duration) {
        self.shared.add(time);
        match (self.alone.are_complete(), self.shared.are_complete()) {
            (false, true) => self.phase = Phase::Alone,
            (true, true) => self.choose_faster(),
            // A step in which a thread is interrupted can take a hundred times as long.
            (true, false) if self.shared.time() > self.alone.time() => self.choose(false),
            (_, false) => {}
        }
    }

    fn end_chosen(&mut self, shares: bool, until: Option<usize>, time: Duration) {
        if until.is_some_and(|until| self.steps <= until) {
            self.phase = Phase::Alone;
            (self.alone, self.shared) = Default::default();
        } else if shares && self.alone.are_complete() {
            self.slow = if time > self.alone.mean() { self.slow + 1 } else { 0 };
            if self.slow == SAMPLES {
                self.choose(false);
            }
        }
    }

    /// Chooses the faster way. A tenth is worth another core.
    fn choose_faster(&mut self) {
        self.choose(self.shared.time() * 10 < self.alone.time() * 9);
    }

    /// Chooses a way for the next steps.
    fn choose(&mut self, shares: bool) {
        self.slow = 0;
        self.period = if shares { PERIOD } else { MAX_PERIOD.min(2 * self.period) };
        let until = self.steps.checked_sub(self.period).filter(|&until| until >= self.period);
        self.phase = Phase::Chosen { shares, until };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Doubles a number plus the operand. Counts how often.
    #[derive(Default)]
    struct Double {
        number: u32,
        computed: u32,
        panics: bool,
    }

    impl Part for Double {
        type Operand = u32;

        fn compute(&mut self, operand: &u32) {
            assert!(!self.panics, "as intended");
            self.number = 2 * (self.number + operand);
            self.computed += 1;
        }
    }

    /// Doubles three numbers plus an operand.
    struct Doubles<'a> {
        operand: u32,
        results: [u32; 3],
        by_members: &'a mut u32,
    }

    impl TeamStep<Double> for Doubles<'_> {
        fn share(&self, operand: &mut u32) {
            *operand = self.operand;
        }

        fn give(&self, i: usize, part: &mut Double) {
            part.number = self.results[i];
        }

        fn own(&mut self, parts: Range<usize>) {
            let operand = self.operand;
            self.results[parts].iter_mut().for_each(|number| *number = 2 * (*number + operand));
        }

        fn take(&mut self, i: usize, part: &Double) {
            self.results[i] = part.number;
            *self.by_members = part.computed.max(*self.by_members);
        }
    }

    impl Drop for Doubles<'_> {
        fn drop(&mut self) {
            assert_eq!(self.results, [0, 1, 2].map(|i| 2 * (i + self.operand)));
        }
    }

    fn team(sharing: Sharing, steps: usize) -> Team<Double> {
        Team::new(vec![Double::default(), Double::default()], 0, sharing, steps)
    }

    fn member() -> Arc<Member<Double>> {
        Member::new(Double::default(), &Arc::default())
    }

    /// Runs `steps` steps. Returns how many parts a member computed.
    fn run(team: &mut Team<Double>, steps: usize) -> u32 {
        let mut by_members = 0;
        for step in 0..steps {
            let by_members = &mut by_members;
            let doubles = Doubles { operand: step as u32, results: [0, 1, 2], by_members };
            team.measure(|team| team.step(doubles));
        }
        by_members
    }

    #[test]
    fn members_compute_their_parts() {
        assert_eq!(run(&mut team(Sharing::Rehearsed, 20), 20), 20);
        for sharing in [Sharing::Tried, Sharing::Expected] {
            run(&mut team(sharing, 2_000), 2_000);
        }
    }

    #[test]
    fn the_leader_computes_parts_whose_tasks_do_not_run() {
        let mut team = team(Sharing::Expected, 100);
        // As if the tasks had been started, but no thread had time for them.
        team.members.iter().for_each(|member| member.state.store(CALLED, Ordering::Release));
        assert_eq!(run(&mut team, 100), 0);
    }

    #[test]
    fn members_come_back() {
        let mut team = team(Sharing::Rehearsed, 3);
        for state in [DISMISSED, ABSENT, WAITS] {
            assert_eq!(team.members[0].state.swap(ABSENT, Ordering::AcqRel), ABSENT, "{state}");
            run(&mut team, 1);
            team.members[0].dismiss();
            team.members[0].work();
        }
    }

    #[test]
    fn a_panic_of_a_task_is_not_waited_for() {
        let part = Double { panics: true, ..Double::default() };
        let panicking = Member::new(part, &Arc::default());
        panicking.call();
        let mut spin = Spin::default();
        while !panicking.give(|_| ()) {
            spin.next();
        }
        let mut taken = Taken::NotBegun;
        while !panicking.is(ABSENT) {
            taken = panicking.take(MAX_LATE, |_| ());
        }
        assert_ne!(taken, Taken::Results);
    }

    #[test]
    fn a_late_member_is_not_waited_for() {
        let late = member();
        late.change(ABSENT, WAITS);
        assert!(late.give(|part| part.number = 3) && late.change(GIVEN, BEGUN));
        assert_eq!(late.take(Duration::ZERO, |_| ()), Taken::Late);
        assert!(!late.give(|_| ()), "it has no time for more work");
        late.finish();
        assert!(late.is(WAITS));
    }

    #[test]
    fn the_operand_of_a_late_member_is_not_overwritten() {
        let mut team = team(Sharing::Rehearsed, 2);
        let operand = team.operand.clone();
        let reads = operand.read().unwrap();
        assert_eq!(run(&mut team, 2), 0);
        assert_eq!(*reads, 0);
    }

    #[test]
    fn a_member_that_is_late_ends_sharing() {
        let mut team = team(Sharing::Expected, 1_000);
        team.pace.phase = Phase::Chosen { shares: true, until: None };
        team.members.iter().for_each(|member| _ = member.change(ABSENT, CALLED));
        // A thread that begins, and is interrupted until the leader no longer waits.
        let member = team.members[0].clone();
        let interrupted = std::thread::spawn(move || {
            let mut spin = Spin::default();
            while !member.change(GIVEN, BEGUN) {
                spin.next();
            }
            while member.is(BEGUN) {
                spin.next();
            }
            member.finish();
        });
        while team.pace.shares() {
            run(&mut team, 1);
        }
        interrupted.join().unwrap();
        assert!(team.members[0].is(WAITS));
        // It is not needed now.
        run(&mut team, 1);
        assert!(team.members[0].is(DISMISSED));
    }

    #[test]
    fn tasks_without_work_end() {
        let idle = member();
        idle.change(ABSENT, CALLED);
        idle.work();
        assert!(idle.is(ABSENT));
        idle.change(ABSENT, WAITS);
        idle.dismiss();
        idle.work();
        assert!(idle.is(ABSENT));
        idle.end();
        idle.work();
        assert!(idle.is(ENDED));
    }

    #[test]
    fn teams_on_all_threads_of_a_pool_finish() {
        use rayon::prelude::*;
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                (0..40).into_par_iter().for_each(|_| {
                    run(&mut team(Sharing::Expected, 500), 500);
                });
            });
        }
    }

    const ALONE: Duration = Duration::from_millis(1);

    /// Measures steps that take [`ALONE`] without sharing and `shared` with it.
    fn measured(pace: &mut Pace, shared: Duration) -> Phase {
        while !matches!(pace.phase, Phase::Chosen { .. }) {
            match pace.phase {
                Phase::Coming { .. } => pace.phase = Phase::Shared,
                _ => pace.end_step(if pace.shares() { shared } else { ALONE }),
            }
        }
        pace.phase
    }

    #[test]
    fn the_faster_way_is_used() {
        for sharing in [Sharing::Tried, Sharing::Expected] {
            for (shared, shares) in [(600, true), (950, false), (1_001, false), (90_000, false)] {
                let mut pace = Pace::new(sharing, 100_000);
                let phase = measured(&mut pace, Duration::from_micros(shared));
                let period = if shares { PERIOD } else { 2 * PERIOD };
                assert_eq!(phase, Phase::Chosen { shares, until: Some(pace.steps - period) });
            }
        }
    }

    #[test]
    fn ways_are_measured_again() {
        let mut pace = Pace::new(Sharing::Tried, 100 * PERIOD);
        for _ in 0..2 {
            assert!(matches!(measured(&mut pace, 2 * ALONE), Phase::Chosen { shares: false, .. }));
            while matches!(pace.phase, Phase::Chosen { until: Some(_), .. }) {
                pace.end_step(Duration::ZERO);
            }
            assert_eq!(pace.phase, Phase::Alone);
        }
        assert_eq!(pace.period, 4 * PERIOD);
    }

    #[test]
    fn sharing_that_becomes_slower_ends() {
        let mut pace = Pace::new(Sharing::Expected, 1_000);
        measured(&mut pace, ALONE / 2);
        for slow in [2, 1, 1, 2] {
            // Some slow steps, and a fast one.
            (0..slow.min(SAMPLES - 1)).for_each(|_| pace.end_step(2 * ALONE));
            assert!(pace.shares());
            pace.end_step(ALONE / 2);
        }
        (0..SAMPLES).for_each(|_| pace.end_step(2 * ALONE));
        assert!(!pace.shares());
    }

    #[test]
    fn few_steps_call_nobody() {
        let mut pace = Pace::new(Sharing::Tried, 40);
        (0..SAMPLES).for_each(|_| pace.end_step(Duration::from_micros(5)));
        assert_eq!(pace.phase, Phase::Chosen { shares: false, until: None });
    }

    #[test]
    fn members_that_do_not_come_are_not_waited_for() {
        let mut pace = Pace::new(Sharing::Tried, 1_000);
        (0..SAMPLES as usize + MAX_COMING).for_each(|_| pace.end_step(ALONE));
        assert!(matches!(pace.phase, Phase::Chosen { shares: false, .. }));
    }
}
