//! The host's clock. In a browser, `std` has no clock for WebAssembly: elapsed times are zero
//! there, so waits have no time limit and submits are not measured.

use std::time::Duration;

/// A point in time of the host's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Instant {
    #[cfg(not(target_arch = "wasm32"))]
    std: std::time::Instant,
}

impl Instant {
    pub fn now() -> Self {
        Self {
            #[cfg(not(target_arch = "wasm32"))]
            std: std::time::Instant::now(),
        }
    }

    /// Returns the time since this instant, or zero without a clock.
    pub fn elapsed(self) -> Duration {
        #[cfg(not(target_arch = "wasm32"))]
        return self.std.elapsed();
        #[cfg(target_arch = "wasm32")]
        return Duration::ZERO;
    }
}
