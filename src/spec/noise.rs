//! [`Noise`]: the random draws of dropout and zoneout, from a generator without state.
//!
//! A draw depends only on the seed and on its index (layer, step, row, unit). So every device draws
//! the same bits, in any order and for any chunks and layout, and a backward pass draws them again
//! instead of storing them. `shaders/step.wgsl` has the same generator.

use crate::spec::config::GruConfig;
use crate::spec::options::Mode;

/// The dropout and zoneout of one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Noise {
    seed: u64,
    dropout: f32,
    /// The index of the last layer, whose output has no dropout.
    last_layer: usize,
    zoneout: Zoneout,
}

/// The fraction of the old state that zoneout keeps, in addition to the gates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Zoneout {
    None,
    /// In inference: the expected value, this fraction for every unit.
    Expected(f32),
    /// While training: 1 with this probability, else 0.
    Drawn(f32),
}

/// The index of a draw: the element that it decides about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DrawIndex {
    pub layer: usize,
    pub time: usize,
    pub row: usize,
    /// The unit, below D·H: the reverse direction's units follow the forward direction's.
    pub unit: usize,
}

/// The purpose of a draw. Dropout and zoneout draw different numbers at the same index.
#[derive(Clone, Copy)]
enum DrawPurpose {
    Dropout,
    Zoneout,
}

impl Noise {
    pub fn new(config: &GruConfig, mode: Mode, seed: u64) -> Self {
        let training = mode == Mode::Training;
        let dropout = if training { config.dropout } else { 0.0 };
        let last_layer = config.layers - 1;
        Self { seed, dropout, last_layer, zoneout: Zoneout::of(config, mode) }
    }

    /// Returns true if a layer's output has dropout in this run.
    pub fn drops(&self, layer: usize) -> bool {
        self.dropout != 0.0 && layer != self.last_layer
    }

    /// Returns true if this run has zoneout.
    pub fn has_zoneout(&self) -> bool {
        self.zoneout != Zoneout::None
    }

    /// Returns the factor of an element of a layer's output on the way to the next layer: 0 if it
    /// is dropped, else 1 / (1 − p); 1 without dropout.
    pub fn dropout_factor(&self, index: DrawIndex) -> f32 {
        if !self.drops(index.layer) {
            return 1.0;
        }
        let dropped = self.draw(index, DrawPurpose::Dropout) < threshold(self.dropout);
        if dropped { 0.0 } else { kept_scale(self.dropout) }
    }

    /// Returns the fraction of its old state that a unit keeps by zoneout.
    pub fn zoneout_fraction(&self, index: DrawIndex) -> f32 {
        match self.zoneout {
            Zoneout::None => 0.0,
            Zoneout::Expected(fraction) => fraction,
            Zoneout::Drawn(p) if self.draw(index, DrawPurpose::Zoneout) < threshold(p) => 1.0,
            Zoneout::Drawn(_) => 0.0,
        }
    }

    fn draw(&self, index: DrawIndex, purpose: DrawPurpose) -> u32 {
        // Every index of a run fits u32 on every device; see `check_indices` in `plan/limits.rs`.
        let DrawIndex { layer, time, row, unit } = index;
        let counter = [unit, row, time, 2 * layer + purpose as usize].map(|n| n as u32);
        philox(counter, philox_key(self.seed))[0]
    }
}

impl Zoneout {
    pub fn of(config: &GruConfig, mode: Mode) -> Self {
        match (config.zoneout, mode) {
            (0.0, _) => Self::None,
            (p, Mode::Inference) => Self::Expected(p),
            (p, Mode::Training) => Self::Drawn(p),
        }
    }

    /// Returns the number of this value in `shaders/step.wgsl`.
    pub fn code(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Expected(_) => 1,
            Self::Drawn(_) => 2,
        }
    }
}

/// Returns the threshold that a u32 draw is below with probability `p`.
pub(crate) fn threshold(p: f32) -> u32 {
    (f64::from(p) * 2f64.powi(32)).round() as u32
}

/// Returns the factor of the elements that dropout keeps, 1 / (1 − p), which preserves the expected
/// value.
pub(crate) fn kept_scale(p: f32) -> f32 {
    (1.0 / (1.0 - f64::from(p))) as f32
}

/// Returns the low and the high half of a seed.
fn philox_key(seed: u64) -> [u32; 2] {
    [seed as u32, (seed >> 32) as u32]
}

/// Returns the four u32 that follow a run's step flags in their buffer, for the draws of the
/// kernels: the seed's low and high half, and the first step and row of the chunk within the whole
/// run.
pub(crate) fn draw_seed(seed: u64, first: [usize; 2]) -> [u32; DRAW_SEED_LEN] {
    let ([low, high], [step, row]) = (philox_key(seed), first.map(|n| n as u32));
    [low, high, step, row]
}

/// The length of [`draw_seed`]'s result.
pub(crate) const DRAW_SEED_LEN: usize = 4;

/// The rounds of [`philox`].
pub(crate) const ROUNDS: u32 = 10;

/// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), the generator
/// of cuRAND and PyTorch on CUDA.
fn philox(mut c: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    let product = |a: u32, b: u32| {
        let wide = u64::from(a) * u64::from(b);
        ((wide >> 32) as u32, wide as u32)
    };
    for _ in 0..ROUNDS {
        let (high0, low0) = product(0xD251_1F53, c[0]);
        let (high1, low1) = product(0xCD9E_8D57, c[2]);
        c = [high1 ^ c[1] ^ key[0], low1, high0 ^ c[3] ^ key[1], low0];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test vectors that the generator's authors published.
    #[test]
    fn philox_gives_the_published_numbers() {
        for (counter, key, expected) in [
            ([0; 4], [0; 2], [0x6627_E8D5, 0xE169_C58D, 0xBC57_AC4C, 0x9B00_DBD8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408F_276D, 0x41C8_3B0E, 0xA20B_C7C6, 0x6D54_51FD]),
            (
                [0x243F_6A88, 0x85A3_08D3, 0x1319_8A2E, 0x0370_7344],
                [0xA409_3822, 0x299F_31D0],
                [0xD16C_FE09, 0x94FD_CCEB, 0x5001_E420, 0x2412_6EA1],
            ),
        ] {
            assert_eq!(philox(counter, key), expected);
        }
    }

    #[test]
    fn draws_have_their_probability_and_differ_by_index_and_purpose() {
        let config = GruConfig::new(1, 1).with_layers(4).with_dropout(0.3).with_zoneout(0.3);
        let noise = Noise::new(&config, Mode::Training, 7);
        let index = |i: usize| DrawIndex { layer: i % 3, time: i / 3 % 50, row: i / 150, unit: 5 };
        let drops: Vec<_> = (0..30_000).map(|i| noise.dropout_factor(index(i))).collect();
        let zones: Vec<_> = (0..30_000).map(|i| noise.zoneout_fraction(index(i))).collect();
        // Four standard deviations of a fraction of 0.3 in 30,000 draws are 0.011.
        let dropped = drops.iter().filter(|&&f| f == 0.0).count() as f64 / 30_000.0;
        assert!((dropped - 0.3).abs() < 0.011, "{dropped}");
        assert!((f64::from(zones.iter().sum::<f32>()) / 30_000.0 - 0.3).abs() < 0.011);
        assert!(drops.iter().all(|&f| f == 0.0 || f == 1.0 / 0.7));
        // The two are independent, so both happen in 0.09 of the draws; four standard deviations
        // are 0.0066.
        let both = drops.iter().zip(&zones).filter(|&(&f, &z)| f == 0.0 && z == 1.0).count();
        assert!((both as f64 / 30_000.0 - 0.09).abs() < 0.0066, "{both}");
        let inference = Noise::new(&config, Mode::Inference, 7);
        assert_eq!(
            (inference.dropout_factor(index(1)), inference.zoneout_fraction(index(1))),
            (1.0, 0.3)
        );
    }
}
