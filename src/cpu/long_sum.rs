//! [`LongSum`]: sums of any number of arrays, in short chains of additions.

use crate::error::{Result, try_zeros};

/// The arrays that are added up before their sum moves to the next level.
const RADIX: usize = 16;

/// The upper levels of a sum of arrays. The lowest level is the caller's: it holds the sum of up to
/// [`RADIX`] arrays, level 1 of up to `RADIX` such sums, and so on. So each array takes part in at
/// most `RADIX` additions per level, instead of one for each array after it, and the rounding error
/// grows with the logarithm of their number.
#[derive(Debug, Default)]
pub(super) struct LongSum {
    /// The number of arrays that were added.
    added: usize,
    /// Level 1 and above, each made when it is first needed.
    levels: Vec<Vec<f32>>,
}

impl LongSum {
    /// Call this after an array was added to `sum`, the lowest level.
    pub fn array_added(&mut self, sum: &mut [f32]) -> Result<()> {
        self.added += 1;
        let (mut arrays, mut level) = (RADIX, 0);
        while self.added.is_multiple_of(arrays) {
            if level == self.levels.len() {
                self.levels.push(try_zeros("the upper levels of a sum", sum.len())?);
            }
            let (below, levels) = self.levels.split_at_mut(level);
            let below = below.last_mut().map_or(&mut *sum, |below| below);
            add(&mut levels[0], below);
            below.fill(0.0);
            (arrays, level) = (arrays * RADIX, level + 1);
        }
        Ok(())
    }

    /// Adds all levels to `sum`, the lowest.
    pub fn finish(self, sum: &mut [f32]) {
        self.levels.iter().for_each(|level| add(sum, level));
    }
}

fn add(sum: &mut [f32], terms: &[f32]) {
    sum.iter_mut().zip(terms).for_each(|(sum, &term)| *sum += term);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A chain of 10,000 additions of 0.1 is off by 1.6e-4 of the sum.
    #[test]
    fn a_sum_of_many_arrays_is_exact_to_a_few_roundings() {
        for count in [1, 15, 16, 17, 255, 256, 257, 4097, 10_000] {
            let mut sum = [0.0; 3];
            let mut long_sum = LongSum::default();
            for _ in 0..count {
                add(&mut sum, &[0.1, -0.3, 1.0]);
                long_sum.array_added(&mut sum).unwrap();
            }
            long_sum.finish(&mut sum);
            let terms = [0.1_f32, -0.3, 1.0].map(f64::from);
            for (sum, term) in sum.iter().zip(terms) {
                let error = f64::from(*sum) / (term * f64::from(count)) - 1.0;
                assert!(error.abs() < 1e-6, "{count} × {term}: {sum}, off by {error}");
            }
        }
    }
}
