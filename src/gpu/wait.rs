//! Waiting for a device: how to wait, for how long, and for what.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::gpu::clock::Instant;
use crate::lock::lock;

/// How a call waits for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// The calling thread blocks in the driver.
    Block,
    /// The caller's executor runs other tasks.
    Async,
}

/// The time limit of a wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    /// What the wait is for, for the error message.
    what: &'static str,
    start: Instant,
    /// `None` for a wait without a limit.
    limit: Option<Duration>,
}

impl Deadline {
    /// Makes the deadline of a wait that starts now.
    pub fn new(what: &'static str, limit: Option<Duration>) -> Self {
        Self { what, start: Instant::now(), limit }
    }

    pub fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    /// Returns how long to wait for a callback before polling the device again.
    ///
    /// # Errors
    /// [`Error::Timeout`] once the limit is reached.
    pub fn pause(&self) -> Result<Duration> {
        const LONGEST: Duration = Duration::from_millis(1);
        // The driver has finished, so another thread has taken the callback and is about to call
        // it.
        const CALLBACK: Duration = Duration::from_millis(5);
        let Some(limit) = self.limit else { return Ok(CALLBACK) };
        let elapsed = self.start.elapsed();
        let left = limit.saturating_sub(elapsed);
        if left.is_zero() {
            return Err(Error::Timeout { what: self.what, limit });
        }
        // The longer the wait was, the less a little more matters.
        Ok((elapsed / 8).clamp(Duration::from_micros(20), LONGEST).min(left))
    }
}

/// The result of a wait: the result of polling, and the result of mapping a buffer that the
/// callback received.
pub(crate) type Mapped = Result<Result<(), wgpu::BufferAsyncError>>;

/// A oneshot channel from a callback of wgpu to a waiting thread or task.
#[derive(Debug, Default)]
pub(crate) struct Oneshot {
    state: Mutex<OneshotState>,
    sent: Condvar,
}

#[derive(Debug, Default)]
struct OneshotState {
    value: Option<Mapped>,
    waker: Option<Waker>,
}

impl Oneshot {
    /// Sends a value. Only the first one is kept.
    pub fn send(&self, value: Mapped) {
        let mut state = lock(&self.state);
        state.value.get_or_insert(value);
        self.sent.notify_all();
        let waker = state.waker.take();
        // A waker may run the task immediately, and the task polls this channel.
        drop(state);
        if let Some(waker) = waker {
            // The waker is the caller's code, which may panic. A panic must not unwind from here:
            // it would end the thread that polls for all other waiters, or cross a callback of
            // wgpu, where it looks like a lost device. The panic is dropped, since no caller is on
            // this stack to receive it; the panic hook has already reported it. The value stays in
            // the channel.
            drop(catch_unwind(AssertUnwindSafe(|| waker.wake())));
        }
    }

    /// Returns true if a value was sent.
    pub fn is_sent(&self) -> bool {
        lock(&self.state).value.is_some()
    }

    /// Polls for the value, for a task.
    pub fn poll(&self, context: &mut Context<'_>) -> Poll<Mapped> {
        let mut state = lock(&self.state);
        match &state.value {
            Some(value) => Poll::Ready(value.clone()),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Blocks until a value is sent, on a thread that polls the device itself. The argument of
    /// `poll_once` allows it to block until all work is done.
    ///
    /// Polling once is not enough. When threads share the device, another thread's poll may have
    /// taken the callback and not yet called it when our own poll returns.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], [`Error::Timeout`].
    pub fn block(&self, deadline: &Deadline, poll_once: impl Fn(bool) -> Result<()>) -> Result<()> {
        loop {
            let polled = poll_once(!deadline.is_limited());
            let state = lock(&self.state);
            if state.value.is_some() {
                return Ok(());
            }
            let pause = polled.and_then(|()| deadline.pause())?;
            drop(self.sent.wait_timeout_while(state, pause, |state| state.value.is_none()));
        }
    }
}
