//! [`SubmitThrottle`]: measures how long submits take, and limits their size so that none reaches
//! the driver's timeout.

use std::time::Duration;

use crate::clock::Instant;

/// The target duration of a submit on a device that is slower than its plan assumes. Windows resets
/// a device after a submit of 2 seconds.
const TARGET: Duration = Duration::from_millis(170);

/// Above this mean duration, submits are made smaller.
const TOO_LONG: Duration = Duration::from_millis(500);

/// Below this mean duration, the limit is removed: the long submits before may have been slow only
/// because a kernel's first dispatch was compiled.
const SHORT: Duration = Duration::from_millis(100);

/// The measured speed of a device's submits. The size of submits does not change the results.
#[derive(Debug, Default)]
pub(crate) struct SubmitThrottle {
    /// The time at which the first submit in flight was queued.
    start: Option<Instant>,
    /// Submits in flight.
    submits: u32,
    /// Floating-point operations in flight.
    flops: u64,
    /// The limit of floating-point operations per submit; `None` unless submits took too long.
    max_flops: Option<u64>,
}

impl SubmitThrottle {
    /// Returns the limit of floating-point operations per submit.
    pub fn max_flops(&self) -> u64 {
        self.max_flops.unwrap_or(u64::MAX)
    }

    /// Records that a submit of `flops` floating-point operations was queued.
    pub fn record_submit(&mut self, flops: u64) {
        if self.submits == 0 {
            self.start = Some(Instant::now());
        }
        self.submits += 1;
        self.flops += flops;
    }

    /// Records that all queued work is done. The measured time includes the host's time between
    /// submits: when that is long, more submits cost nothing.
    pub fn record_done(&mut self) {
        if let Some(start) = self.start.take() {
            self.update_limit(start.elapsed());
        }
        (self.submits, self.flops) = (0, 0);
    }

    fn update_limit(&mut self, elapsed: Duration) {
        let mean = elapsed / self.submits.max(1);
        if mean > TOO_LONG {
            let max_flops = self.flops as f64 * TARGET.as_secs_f64() / elapsed.as_secs_f64();
            self.max_flops = Some(max_flops as u64);
        } else if mean < SHORT {
            self.max_flops = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(throttle: &mut SubmitThrottle, submits: u32, flops: u64, seconds: f64) {
        (0..submits).for_each(|_| throttle.record_submit(flops));
        throttle.start = None;
        throttle.update_limit(Duration::from_secs_f64(seconds));
        throttle.record_done();
    }

    #[test]
    fn long_submits_are_limited_and_stay_limited_on_a_slow_device() {
        let mut throttle = SubmitThrottle::default();
        record(&mut throttle, 10, 1_000_000, 1.7);
        assert_eq!(throttle.max_flops(), u64::MAX);
        // 1 MFLOP/s, so 0.17 MFLOP per submit.
        record(&mut throttle, 2, 1_000_000, 2.0);
        assert_eq!(throttle.max_flops(), 170_000);
        record(&mut throttle, 12, 170_000, 2.04);
        assert_eq!(throttle.max_flops(), 170_000);
    }

    #[test]
    fn the_limit_is_removed_after_a_slow_start() {
        let mut throttle = SubmitThrottle::default();
        record(&mut throttle, 1, 1_000_000, 1.0);
        assert_eq!(throttle.max_flops(), 170_000);
        record(&mut throttle, 6, 170_000, 0.01);
        assert_eq!(throttle.max_flops(), u64::MAX);
    }

    #[test]
    fn submits_without_time_or_work_set_no_limit() {
        let mut throttle = SubmitThrottle::default();
        throttle.record_done();
        record(&mut throttle, 1, 0, 0.0);
        assert_eq!(throttle.max_flops(), u64::MAX);
    }
}
