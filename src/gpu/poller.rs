//! [`Poller`]: a thread that polls a device for all async waiters.
//!
//! wgpu calls callbacks only during a poll, and while a task awaits a callback, no other thread may
//! be polling. The polling thread starts with the first wait, sleeps while there are no waiters,
//! and ends when its device is closed. A browser polls by itself and needs no thread.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Cause, Error, Result};
use crate::gpu::wait::{Deadline, Oneshot};
use crate::lock::lock;

/// An open device that the polling thread polls.
pub(crate) trait PolledDevice {
    /// Polls the device once, which calls the callbacks that are due. If `may_block` is true, first
    /// blocks until all queued work is done.
    fn poll_once(&self, may_block: bool) -> Result<()>;

    /// Checks that the device is not lost.
    fn check_lost(&self) -> Result<()>;
}

/// The waiters of a device and the thread that polls for them.
#[derive(Debug, Default)]
pub(crate) struct Poller(Arc<PollerShared>);

#[derive(Debug, Default)]
struct PollerShared {
    state: Mutex<PollerState>,
    /// Signals a new waiter, or that the device is closed.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct PollerState {
    waiters: Vec<Waiter>,
    /// Number of waiters added so far.
    arrivals: u64,
    thread: Option<PollerThread>,
    /// Number of threads started so far.
    threads: u64,
    closed: bool,
}

/// A task that awaits a callback.
#[derive(Debug)]
struct Waiter {
    oneshot: Arc<Oneshot>,
    deadline: Deadline,
}

/// The current polling thread.
#[derive(Clone, Copy, Debug)]
struct PollerThread {
    id: u64,
    /// True while the thread blocks in the driver until all queued work is done. It cannot be woken
    /// then.
    blocked: bool,
}

impl Poller {
    /// Adds a waiter: the polling thread polls the device until a value is sent to `oneshot`. If
    /// polling fails or the deadline passes, the thread sends the error. `open` is a weak handle:
    /// it returns the device while it is open, and does not keep it open.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the system cannot start the thread.
    pub fn wait<D: PolledDevice>(
        &self,
        open: impl Fn() -> Option<D> + Send + 'static,
        oneshot: &Arc<Oneshot>,
        deadline: Deadline,
    ) -> Result<()> {
        let mut state = lock(&self.0.state);
        // A blocked thread cannot keep a deadline. A new thread replaces it and takes all waiters.
        let serves = |thread: PollerThread| !(thread.blocked && deadline.is_limited());
        if !state.thread.is_some_and(serves) {
            let thread = PollerThread { id: state.threads, blocked: false };
            let shared = Arc::clone(&self.0);
            std::thread::Builder::new()
                .name("gru-wait".to_owned())
                .spawn(move || shared.run(thread.id, open))
                .map_err(|error| Error::OutOfMemory {
                    reason: format!("cannot start the thread that polls the device: {error}"),
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

    /// Ends the thread, when the device is closed.
    pub fn close(&self) {
        lock(&self.0.state).closed = true;
        self.0.changed.notify_all();
    }
}

impl PollerShared {
    /// Runs the polling thread with this id.
    fn run<D: PolledDevice>(&self, id: u64, open: impl Fn() -> Option<D>) {
        // When this thread ends, even by a panic, the next wait must start a new one.
        let _guard = ThreadGuard { shared: self, id };
        while let Some((arrivals, may_block)) = self.next(id) {
            let Some(device) = open() else { return };
            let polled = device.poll_once(may_block);
            // If every waiter has its result, the check for a lost device is not needed.
            let polled =
                polled.and_then(|()| if self.is_awaited() { device.check_lost() } else { Ok(()) });
            drop(device);
            self.notify(id, &polled, arrivals);
        }
    }

    /// Sleeps until there is a waiter. Returns the number of waiters added so far, and whether the
    /// poll may block in the driver. Returns `None` if this thread must end.
    fn next(&self, id: u64) -> Option<(u64, bool)> {
        let is_current =
            |state: &PollerState| !state.closed && state.thread.is_some_and(|now| now.id == id);
        let is_idle = |state: &mut PollerState| is_current(state) && !state.is_awaited();
        let state = self.changed.wait_while(lock(&self.state), is_idle);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        if !is_current(&state) {
            return None;
        }
        let blocked = !state.waiters.iter().any(|waiter| waiter.deadline.is_limited());
        state.thread = Some(PollerThread { id, blocked });
        Some((state.arrivals, blocked))
    }

    fn is_awaited(&self) -> bool {
        lock(&self.state).is_awaited()
    }

    /// Sends the error of a failed poll to all waiters, and a timeout to those whose deadline has
    /// passed. Without errors, pauses: another thread may have taken a callback and be about to
    /// call it. Deadlines shorten the pause, and a new waiter ends it.
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
            // A waker may run a task that waits again, which takes the lock.
            drop(state);
            failed.into_iter().for_each(|(oneshot, error)| oneshot.send(Err(error)));
        } else if !state.waiters.is_empty() {
            let same = |state: &mut PollerState| state.arrivals == arrivals && !state.closed;
            drop(self.changed.wait_timeout_while(state, pause, same));
        }
    }
}

/// Removes a thread from the state when it ends, unless another thread has replaced it.
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
    /// Returns true if there is a waiter. First removes waiters whose value was sent, and those
    /// whose future and callback were both dropped.
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
    fn a_blocked_thread_is_replaced_for_a_wait_with_a_deadline() {
        let (_, gpu) = test_device();
        let poller = Poller::default();
        {
            let mut state = lock(&poller.0.state);
            (state.thread, state.threads) = (Some(PollerThread { id: 0, blocked: true }), 1);
        }
        let wait = |limit| {
            let oneshot = Arc::new(Oneshot::default());
            poller.wait(gpu.downgrade(), &oneshot, Deadline::new("results", limit)).unwrap();
            (oneshot, lock(&poller.0.state).threads)
        };
        let (unlimited, threads) = wait(None);
        assert_eq!(threads, 1, "a wait without a deadline starts no second thread");
        let (limited, threads) = wait(Some(Duration::ZERO));
        assert_eq!(threads, 2);
        let result = pollster::block_on(std::future::poll_fn(|context| limited.poll(context)));
        assert!(matches!(result, Err(Error::Timeout { what: "results", .. })), "{result:?}");
        assert!(!unlimited.is_sent());
        // From then on the new thread serves all waiters.
        let (_, threads) = wait(None);
        assert_eq!(threads, 2);
        poller.close();
    }

    struct PanickingWaker(AtomicBool);

    impl Wake for PanickingWaker {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
            panic!("the caller's waker panics");
        }
    }

    /// Waits until `condition` is true. Panics after ten seconds.
    fn wait_until(what: &str, condition: impl Fn() -> bool) {
        for _ in 0..10_000 {
            if condition() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("{what}: not true after ten seconds");
    }

    /// After a timeout, the polling thread itself calls the waker.
    #[test]
    fn a_panicking_waker_does_not_end_the_polling_thread() {
        let (_, gpu) = test_device();
        let poller = Poller::default();
        let limit = Some(Duration::from_millis(20));
        let wait = |waker: &Waker| {
            let oneshot = Arc::new(Oneshot::default());
            assert!(oneshot.poll(&mut Context::from_waker(waker)).is_pending());
            poller.wait(gpu.downgrade(), &oneshot, Deadline::new("results", limit)).unwrap();
            oneshot
        };
        let panicking = Arc::new(PanickingWaker(AtomicBool::new(false)));
        let first = wait(&Arc::clone(&panicking).into());
        wait_until("the waker was called", || panicking.0.load(Ordering::Relaxed));
        assert!(first.is_sent(), "the value is kept");
        let second = wait(Waker::noop());
        wait_until("the next waiter is served", || second.is_sent());
        assert_eq!(lock(&poller.0.state).threads, 1, "by the same thread");
        poller.close();
    }

    /// wgpu calls the waker during a poll, where a panic would be taken for a lost device.
    #[test]
    fn a_panicking_waker_is_not_a_lost_device() {
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
            panic!("the poll panics");
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
        wait_until("the thread is removed", || lock(&poller.0.state).thread.is_none());
        let second = Arc::new(Oneshot::default());
        poller.wait(gpu.downgrade(), &second, deadline).unwrap();
        wait_until("both waiters are served", || first.is_sent() && second.is_sent());
        assert_eq!(lock(&poller.0.state).threads, 2);
        poller.close();
    }

    /// A dropped callback sends nothing, and with a dropped future there is no task to wake.
    #[test]
    fn abandoned_and_finished_waiters_are_removed() {
        let mut state = PollerState::default();
        let deadline = Deadline::new("results", None);
        let oneshots = [(); 3].map(|()| Arc::new(Oneshot::default()));
        for oneshot in &oneshots {
            state.waiters.push(Waiter { oneshot: Arc::clone(oneshot), deadline });
        }
        let [waiting, abandoned, done] = oneshots;
        drop(abandoned);
        done.send(Ok(Ok(())));
        assert!(state.is_awaited());
        assert_eq!(state.waiters.len(), 1);
        drop(waiting);
        assert!(!state.is_awaited());
    }
}
