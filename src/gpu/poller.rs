//! [`Poller`]: one thread per device that polls it for all tasks that await it.
//!
//! wgpu runs callbacks inside a poll. When a task awaits a result, no other thread may be polling.
//! The thread starts with the first wait, sleeps while nobody waits, and ends when its device is
//! closed. A browser polls its devices itself, so there is no thread.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Cause, Error, Result};
use crate::gpu::wait::{Deadline, Oneshot};
use crate::lock::lock;

/// The interface of an open device to the poller's thread.
pub(crate) trait PolledDevice {
    /// Runs the callbacks that are due. With `blocks` it first waits for all queued work.
    fn poll_once(&self, blocks: bool) -> Result<()>;

    /// Returns an error if the device is lost.
    fn check_lost(&self) -> Result<()>;
}

/// The waiters for a device and the thread that polls for them.
#[derive(Debug, Default)]
pub(crate) struct Poller(Arc<PollerShared>);

#[derive(Debug, Default)]
struct PollerShared {
    state: Mutex<PollerState>,
    /// Signals a new waiter or a closed device.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct PollerState {
    waiters: Vec<Waiter>,
    /// The number of waiters so far.
    arrivals: u64,
    thread: Option<PollerThread>,
    /// The number of threads so far.
    threads: u64,
    closed: bool,
}

/// A task that awaits a callback.
#[derive(Debug)]
struct Waiter {
    oneshot: Arc<Oneshot>,
    deadline: Deadline,
}

/// The polling thread.
#[derive(Clone, Copy, Debug)]
struct PollerThread {
    id: u64,
    /// True while it blocks in the driver until all queued work is done. It cannot be woken then.
    blocked: bool,
}

impl Poller {
    /// Polls the device until a value is sent to `oneshot`. If polling fails, sends the error.
    /// `open` returns the device while it is open, without keeping it open.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the system cannot start a thread.
    pub fn wait<D: PolledDevice>(
        &self,
        open: impl Fn() -> Option<D> + Send + 'static,
        oneshot: &Arc<Oneshot>,
        deadline: Deadline,
    ) -> Result<()> {
        let mut state = lock(&self.0.state);
        // A blocked thread cannot keep a deadline. A new thread takes over all its waiters.
        let serves = |thread: PollerThread| !(thread.blocked && deadline.is_limited());
        if !state.thread.is_some_and(serves) {
            let thread = PollerThread { id: state.threads, blocked: false };
            let shared = Arc::clone(&self.0);
            std::thread::Builder::new()
                .name("gru-wait".to_owned())
                .spawn(move || shared.run(thread.id, open))
                .map_err(|error| Error::OutOfMemory {
                    reason: format!("no thread to wait: {error}"),
                    source: Some(Cause::new(error)),
                })?;
            state.thread = Some(thread);
            state.threads += 1;
        }
        state.waiters.push(Waiter { oneshot: Arc::clone(oneshot), deadline });
        state.arrivals += 1;
        self.0.changed.notify_all();
        Ok(())
    }

    /// Ends the thread, because the device is closed.
    pub fn close(&self) {
        lock(&self.0.state).closed = true;
        self.0.changed.notify_all();
    }
}

impl PollerShared {
    /// The body of the polling thread.
    fn run<D: PolledDevice>(&self, id: u64, open: impl Fn() -> Option<D>) {
        // However this thread ends, also by a panic, the next wait must start a new thread.
        let _guard = ThreadGuard { shared: self, id };
        while let Some((arrivals, blocks)) = self.next(id) {
            let Some(device) = open() else { return };
            let polled = device.poll_once(blocks);
            // A task whose result has arrived does not need the state of the device.
            let polled =
                polled.and_then(|()| if self.is_awaited() { device.check_lost() } else { Ok(()) });
            drop(device);
            self.notify(id, &polled, arrivals);
        }
    }

    /// Sleeps until there is a waiter. Returns the number of waiters so far and whether to block in
    /// the driver for them, or `None` if this thread must end.
    fn next(&self, id: u64) -> Option<(u64, bool)> {
        let serves =
            |state: &PollerState| !state.closed && state.thread.is_some_and(|now| now.id == id);
        let idle = |state: &mut PollerState| serves(state) && !state.is_awaited();
        let state = self.changed.wait_while(lock(&self.state), idle);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        if !serves(&state) {
            return None;
        }
        let blocked = !state.waiters.iter().any(|waiter| waiter.deadline.is_limited());
        state.thread = Some(PollerThread { id, blocked });
        Some((state.arrivals, blocked))
    }

    fn is_awaited(&self) -> bool {
        lock(&self.state).is_awaited()
    }

    /// Sends a failed poll or a passed deadline to the waiters. Then pauses, because another thread
    /// may be about to run the callback; a deadline shortens the pause, and a new waiter ends it.
    fn notify(&self, id: u64, polled: &Result<()>, arrivals: u64) {
        let mut state = lock(&self.state);
        if let Some(thread) = state.thread.as_mut().filter(|thread| thread.id == id) {
            thread.blocked = false;
        }
        let (mut pause, mut failed) = (Duration::MAX, Vec::new());
        if state.is_awaited() {
            state.waiters.retain(|waiter| {
                match polled.clone().and_then(|()| waiter.deadline.pause()) {
                    Ok(longest) => pause = pause.min(longest),
                    Err(error) => {
                        failed.push((Arc::clone(&waiter.oneshot), error));
                        return false;
                    }
                }
                true
            });
        }
        if !failed.is_empty() {
            // A waker may run a task that waits again, for which it takes the lock.
            drop(state);
            failed.into_iter().for_each(|(oneshot, error)| oneshot.send(Err(error)));
        } else if !state.waiters.is_empty() {
            let same = |state: &mut PollerState| state.arrivals == arrivals && !state.closed;
            drop(self.changed.wait_timeout_while(state, pause, same));
        }
    }
}

/// Forgets a thread when it ends, unless it has a successor.
struct ThreadGuard<'a> {
    shared: &'a PollerShared,
    id: u64,
}

impl Drop for ThreadGuard<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.thread = state.thread.filter(|thread| thread.id != self.id);
    }
}

impl PollerState {
    /// Returns true if there is a waiter. Removes waiters whose value was sent, and waiters whose
    /// future and callback were both dropped.
    fn is_awaited(&mut self) -> bool {
        let awaits = |oneshot: &Arc<Oneshot>| !oneshot.is_sent() && Arc::strong_count(oneshot) > 1;
        self.waiters.retain(|waiter| awaits(&waiter.oneshot));
        !self.waiters.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Wake, Waker};

    use super::*;
    use crate::model::device::test_device;

    /// A thread that blocks in the driver cannot be woken, and the driver may hang.
    #[test]
    fn a_blocked_thread_leaves_deadlines_to_a_successor() {
        let (_, gpu) = test_device();
        let poller = Poller::default();
        {
            let mut state = lock(&poller.0.state);
            (state.thread, state.threads) = (Some(PollerThread { id: 0, blocked: true }), 1);
        }
        let wait = |limit| {
            let oneshot = Arc::new(Oneshot::default());
            poller.wait(gpu.while_open(), &oneshot, Deadline::new("results", limit)).unwrap();
            (oneshot, lock(&poller.0.state).threads)
        };
        let (unlimited, threads) = wait(None);
        assert_eq!(threads, 1, "that one returns some day");
        let (limited, threads) = wait(Some(Duration::ZERO));
        assert_eq!(threads, 2);
        let result = pollster::block_on(std::future::poll_fn(|context| limited.poll(context)));
        assert!(matches!(result, Err(Error::Timeout { what: "results", .. })), "{result:?}");
        assert!(!unlimited.is_sent());
        // The new thread serves all of them from now on.
        let (_, threads) = wait(None);
        assert_eq!(threads, 2);
        poller.close();
    }

    struct PanickingWaker(AtomicBool);

    impl Wake for PanickingWaker {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
            panic!("a caller's waker");
        }
    }

    /// Waits until `is_true`, or fails.
    fn wait_until(what: &str, is_true: impl Fn() -> bool) {
        for _ in 0..10_000 {
            if is_true() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("{what}: still not so after ten seconds");
    }

    /// The polling thread calls the waker after a timeout.
    #[test]
    fn a_panicking_waker_ends_no_thread() {
        let (_, gpu) = test_device();
        let poller = Poller::default();
        let limit = Some(Duration::from_millis(20));
        let wait = |waker: &Waker| {
            let oneshot = Arc::new(Oneshot::default());
            assert!(oneshot.poll(&mut Context::from_waker(waker)).is_pending());
            poller.wait(gpu.while_open(), &oneshot, Deadline::new("results", limit)).unwrap();
            oneshot
        };
        let panicking = Arc::new(PanickingWaker(AtomicBool::new(false)));
        let first = wait(&Arc::clone(&panicking).into());
        wait_until("the waker was called", || panicking.0.load(Ordering::Relaxed));
        assert!(first.is_sent(), "the value stays");
        let second = wait(Waker::noop());
        wait_until("the next waiter is served", || second.is_sent());
        assert_eq!(lock(&poller.0.state).threads, 1, "by the same thread");
        poller.close();
    }

    /// wgpu calls the waker inside a poll, where a panic would look like a lost device.
    #[test]
    fn a_panicking_waker_loses_no_device() {
        let (_, gpu) = test_device();
        let oneshot = Arc::new(Oneshot::default());
        let panicking = Arc::new(PanickingWaker(AtomicBool::new(false)));
        let waker = Arc::clone(&panicking).into();
        assert!(oneshot.poll(&mut Context::from_waker(&waker)).is_pending());
        let sender = Arc::clone(&oneshot);
        gpu.queue().on_submitted_work_done(move || sender.send(Ok(Ok(()))));
        gpu.wait().unwrap();
        assert!(panicking.0.load(Ordering::Relaxed) && oneshot.is_sent());
        gpu.check_lost().unwrap();
    }

    struct PanickingDevice;

    impl PolledDevice for PanickingDevice {
        fn poll_once(&self, _: bool) -> Result<()> {
            panic!("while it is polled");
        }

        fn check_lost(&self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_thread_that_panicked_is_replaced() {
        let (_, gpu) = test_device();
        let poller = Poller::default();
        let deadline = Deadline::new("results", Some(Duration::ZERO));
        let first = Arc::new(Oneshot::default());
        poller.wait(|| Some(PanickingDevice), &first, deadline).unwrap();
        wait_until("its thread is forgotten", || lock(&poller.0.state).thread.is_none());
        let second = Arc::new(Oneshot::default());
        poller.wait(gpu.while_open(), &second, deadline).unwrap();
        wait_until("both waiters are served", || first.is_sent() && second.is_sent());
        assert_eq!(lock(&poller.0.state).threads, 2);
        poller.close();
    }

    /// A callback dropped with its future sends nothing and has no receiver.
    #[test]
    fn whoever_went_away_is_forgotten() {
        let mut state = PollerState::default();
        let deadline = Deadline::new("results", None);
        let oneshots = [(); 3].map(|()| Arc::new(Oneshot::default()));
        for oneshot in &oneshots {
            state.waiters.push(Waiter { oneshot: Arc::clone(oneshot), deadline });
        }
        let [here, gone, done] = oneshots;
        drop(gone);
        done.send(Ok(Ok(())));
        assert!(state.is_awaited());
        assert_eq!(state.waiters.len(), 1);
        drop(here);
        assert!(!state.is_awaited());
    }
}
