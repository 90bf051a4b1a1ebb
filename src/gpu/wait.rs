//! Waiting for a device: blocking or async, with a deadline, for a callback of wgpu.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::clock::Instant;
use crate::error::{Error, Result};
use crate::lock::lock;

/// How a call waits for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// The calling thread blocks in the driver.
    Block,
    /// The call is a future; the caller's executor can run other tasks meanwhile.
    Async,
}

/// The time limit of one wait, if it has one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    /// The awaited thing, for the error message.
    what: &'static str,
    start: Instant,
    /// `None` for a wait without a limit.
    limit: Option<Duration>,
}

impl Deadline {
    /// Creates the deadline of a wait that starts now.
    pub fn new(what: &'static str, limit: Option<Duration>) -> Self {
        Self { what, start: Instant::now(), limit }
    }

    pub fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    /// Returns the time to wait for a callback before the device is polled again.
    ///
    /// # Errors
    /// [`Error::Timeout`] once the limit is reached.
    pub fn pause(&self) -> Result<Duration> {
        const LONGEST: Duration = Duration::from_millis(1);
        // Without a limit the poll blocks until the work is done. If the callback has not been
        // called by then, another thread took it and is about to call it.
        const CALLBACK: Duration = Duration::from_millis(5);
        let Some(limit) = self.limit else { return Ok(CALLBACK) };
        let elapsed = self.start.elapsed();
        let left = limit.saturating_sub(elapsed);
        if left.is_zero() {
            return Err(Error::Timeout { what: self.what, limit });
        }
        // Poll less often as the wait gets longer: a pause is at most 1/8 of the time so far.
        Ok((elapsed / 8).clamp(Duration::from_micros(20), LONGEST).min(left))
    }
}

/// The result of waiting for a mapped buffer. Outer: an error of polling. Inner: the result that
/// wgpu passes to the callback of `map_async`.
pub(crate) type MapResult = Result<Result<(), wgpu::BufferAsyncError>>;

/// A oneshot channel from a callback of wgpu to a waiting thread or task.
#[derive(Debug, Default)]
pub(crate) struct Oneshot {
    state: Mutex<OneshotState>,
    sent: Condvar,
}

#[derive(Debug, Default)]
struct OneshotState {
    value: Option<MapResult>,
    waker: Option<Waker>,
}

impl Oneshot {
    /// Sends a value. Only the first value sent is kept.
    pub fn send(&self, value: MapResult) {
        let mut state = lock(&self.state);
        state.value.get_or_insert(value);
        self.sent.notify_all();
        let waker = state.waker.take();
        // A waker may run the task at once, and the task locks this state to poll it.
        drop(state);
        if let Some(waker) = waker {
            // The waker is the caller's code and may panic. A panic must not unwind from here: it
            // would end the thread that polls for all other waiters, or cross a callback of wgpu,
            // where it would be taken for a lost device. The panic is discarded: no caller is on
            // this stack to receive it, and the panic hook has already reported it. The value
            // stays in place.
            drop(catch_unwind(AssertUnwindSafe(|| waker.wake())));
        }
    }

    /// True once a value was sent.
    pub fn is_sent(&self) -> bool {
        lock(&self.state).value.is_some()
    }

    /// Polls for the value and registers the task's waker.
    pub fn poll(&self, context: &mut Context<'_>) -> Poll<MapResult> {
        let mut state = lock(&self.state);
        match &state.value {
            Some(value) => Poll::Ready(value.clone()),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Blocks until a value was sent. This thread polls the device itself: `poll_once` polls it,
    /// and may block until all queued work is done if its argument is true.
    ///
    /// One poll is not enough. When threads share the device, another thread's poll may have taken
    /// the callback and not yet called it when this thread's poll returns.
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

/// A buffer that is being mapped.
#[derive(Debug)]
pub(crate) struct Mapping {
    pub mapped: Arc<Oneshot>,
    /// The submit after which the buffer is mapped; `None` for the last one.
    pub submission: Option<wgpu::SubmissionIndex>,
}

impl Mapping {
    /// Starts to map the first `size` bytes of a buffer that is used last by `submission`.
    pub fn start(
        buffer: &wgpu::Buffer,
        mode: wgpu::MapMode,
        size: u64,
        submission: Option<wgpu::SubmissionIndex>,
    ) -> Self {
        let mapped = Arc::new(Oneshot::default());
        // Does not hold the buffer: a device that is dropped before the call would never be freed.
        let callback = Arc::clone(&mapped);
        buffer.slice(..size).map_async(mode, move |mapped| callback.send(Ok(mapped)));
        Self { mapped, submission }
    }

    /// True if waiting for it takes no time.
    pub fn is_done(&self) -> bool {
        self.mapped.is_sent()
    }
}
