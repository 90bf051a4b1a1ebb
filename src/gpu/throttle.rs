//! [`SubmitThrottle`]: measures how long submits take and keeps them shorter than the driver's time
//! limit.

use std::time::Duration;

use crate::gpu::clock::Instant;

/// The time that a submit should take if the device is slower than its plan assumes. Windows ends a
/// submit after 2 seconds.
const AIM: Duration = Duration::from_millis(170);

/// A mean above this makes submits smaller, ...
const LONG: Duration = Duration::from_millis(500);

/// ... and a mean below this lifts the bound again: a kernel's first dispatch may take long to
/// compile.
const SHORT: Duration = Duration::from_millis(100);

/// Measurements of a device's submits. The boundaries of submits do not change results.
#[derive(Debug, Default)]
pub(crate) struct SubmitThrottle {
    /// The time at which the first submit in flight was queued.
    start: Option<Instant>,
    submits: u32,
    flops: u64,
    /// The most work of one submit, once submits took long.
    most: Option<u64>,
}

impl SubmitThrottle {
    /// Returns the most work that one submit may have, in FLOPs.
    pub fn most(&self) -> u64 {
        self.most.unwrap_or(u64::MAX)
    }

    /// Records that a submit with this much work was queued.
    pub fn queued(&mut self, flops: u64) {
        if self.submits == 0 {
            self.start = Some(Instant::now());
        }
        self.submits += 1;
        self.flops += flops;
    }

    /// Records that all queued work is done. The host's time between submits counts too: if it is
    /// long, another submit costs nothing.
    pub fn done(&mut self) {
        if let Some(start) = self.start.take() {
            self.measured(start.elapsed());
        }
        (self.submits, self.flops) = (0, 0);
    }

    fn measured(&mut self, all: Duration) {
        let mean = all / self.submits.max(1);
        if mean > LONG {
            let most = self.flops as f64 * AIM.as_secs_f64() / all.as_secs_f64();
            self.most = Some(most as u64);
        } else if mean < SHORT {
            self.most = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(throttle: &mut SubmitThrottle, submits: u32, flops: u64, seconds: f64) {
        (0..submits).for_each(|_| throttle.queued(flops));
        throttle.start = None;
        throttle.measured(Duration::from_secs_f64(seconds));
        throttle.done();
    }

    #[test]
    fn long_submits_become_short_ones_and_stay_so_on_a_slow_device() {
        let mut throttle = SubmitThrottle::default();
        take(&mut throttle, 10, 1_000_000, 1.7);
        assert_eq!(throttle.most(), u64::MAX);
        // 1 MFLOP/s, so 0.17 MFLOP per submit.
        take(&mut throttle, 2, 1_000_000, 2.0);
        assert_eq!(throttle.most(), 170_000);
        take(&mut throttle, 12, 170_000, 2.04);
        assert_eq!(throttle.most(), 170_000);
    }

    #[test]
    fn one_slow_beginning_is_forgotten() {
        let mut throttle = SubmitThrottle::default();
        take(&mut throttle, 1, 1_000_000, 1.0);
        assert_eq!(throttle.most(), 170_000);
        take(&mut throttle, 6, 170_000, 0.01);
        assert_eq!(throttle.most(), u64::MAX);
    }

    #[test]
    fn what_takes_no_time_and_does_nothing_is_no_measure() {
        let mut throttle = SubmitThrottle::default();
        throttle.done();
        take(&mut throttle, 1, 0, 0.0);
        assert_eq!(throttle.most(), u64::MAX);
    }
}
