//! [`SubmitThrottle`]: how long submits take, so that none comes to last as long as a driver lets one.

use std::time::Duration;

use crate::gpu::clock::Instant;

/// What a submit is to take, if the device is slower than its plan supposes: Windows ends one after 2
/// seconds.
const AIM: Duration = Duration::from_millis(170);

/// A mean from which submits are made smaller, ...
const LONG: Duration = Duration::from_millis(500);

/// ... and one up to which they need not have been: a kernel's first dispatch may take long to compile.
const SHORT: Duration = Duration::from_millis(100);

/// What was measured of a device's submits. Where they are cut changes nothing in the results.
#[derive(Debug, Default)]
pub(crate) struct SubmitThrottle {
    /// When the first of those in flight was queued.
    start: Option<Instant>,
    submits: u32,
    flops: u64,
    /// Work of one submit at most, once submits took long.
    most: Option<u64>,
}

impl SubmitThrottle {
    /// Work of one submit at most.
    pub fn most(&self) -> u64 {
        self.most.unwrap_or(u64::MAX)
    }

    /// A submit of so much work was queued.
    pub fn queued(&mut self, flops: u64) {
        if self.submits == 0 {
            self.start = Some(Instant::now());
        }
        self.submits += 1;
        self.flops += flops;
    }

    /// All that was queued is done. What the host took between its submits counts too: where that is
    /// long, a submit more costs nothing.
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
        // 1 MFLOP/s, so 0.17 MFLOP a submit.
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
