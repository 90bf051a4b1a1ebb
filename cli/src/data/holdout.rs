//! [`HoldOut`]: draws the validation set from the sequences of a table.

use anyhow::{Result, ensure};
use rand::seq::SliceRandom;
use rand::{SeedableRng, rngs::ChaCha8Rng};

use crate::data::features::SequenceTask;
use crate::data::labels::LabelReader;
use crate::data::table::SequenceTable;
use crate::data::time_axis::TimeAxis;

/// A fraction of a table's sequences to hold out, and the seed that draws them.
pub struct HoldOut {
    pub fraction: f64,
    pub seed: u64,
}

/// The indices of the training set and of the validation set, each in ascending order.
type HoldOutSplit = (Vec<usize>, Vec<usize>);

impl HoldOut {
    /// Draws from all sequences together.
    pub fn of_all(&self, table: &SequenceTable) -> Result<HoldOutSplit> {
        let count = table.sequences.len();
        ensure!(
            count >= 2,
            "{} holds a single sequence, so none can be held out; give a validation file with --valid, or cut the sequence \
             into windows with --window, which holds out its end",
            table.shown
        );
        Ok(self.draw(&mut [(0..count).collect()], &[self.count(count)]))
    }

    /// Takes the sequences that start last. Returns `None` if all start at the same time.
    pub fn latest(&self, table: &SequenceTable, axis: &TimeAxis) -> Option<HoldOutSplit> {
        let count = table.sequences.len();
        let start = |at: usize| axis.times[table.sequences[at].start];
        let mut order: Vec<_> = (0..count).collect();
        order.sort_by_key(|&at| start(at));
        let is_one = count < 2 || start(order[0]) == start(order[count - 1]);
        let mut held_out = order.split_off(count - self.count(count));
        order.sort_unstable();
        held_out.sort_unstable();
        (!is_one).then_some((order, held_out))
    }

    /// Draws the same fraction of each class, up to rounding. At least one sequence of each class
    /// stays in the training set.
    pub fn by_class(&self, table: &SequenceTable, task: SequenceTask<'_>) -> Result<HoldOutSplit> {
        let labels = LabelReader::new(table, task)?;
        let mut strata = vec![Vec::new(); task.columns.classes.len()];
        for (at, sequence) in table.sequences.iter().enumerate() {
            strata[labels.class(sequence)?].push(at);
        }
        let sizes: Vec<_> = strata.iter().map(Vec::len).collect();
        let counts = self.counts(&sizes);
        ensure!(
            counts.iter().any(|&count| count > 0),
            "{} holds a single sequence of each class, so none can be held out; give a validation file with \
             --valid",
            table.shown
        );
        Ok(self.draw(&mut strata, &counts))
    }

    /// Returns how many of `count` sequences or rows to hold out: at least one and, of two or more,
    /// not all.
    pub fn count(&self, count: usize) -> usize {
        self.fraction_of(count).clamp(1, count.max(2) - 1)
    }

    /// Returns the fraction of `count`, rounded.
    fn fraction_of(&self, count: usize) -> usize {
        (self.fraction * count as f64).round() as usize
    }

    /// Returns the number of sequences to hold out of each class (largest remainder method). Each
    /// class first gives its exact number rounded down. The rest comes from the classes with the
    /// largest remainders.
    fn counts(&self, sizes: &[usize]) -> Vec<usize> {
        let exact = |size: usize| self.fraction * size as f64;
        let limit = |size: usize| size.saturating_sub(1);
        let mut counts: Vec<_> =
            sizes.iter().map(|&size| (exact(size) as usize).min(limit(size))).collect();
        let all: usize = sizes.iter().sum();
        let room: usize = sizes.iter().map(|&size| limit(size)).sum();
        let size = self.fraction_of(all).max(1).min(room);
        // The seed decides the order of classes with equal remainders.
        let mut order: Vec<_> = (0..sizes.len()).collect();
        order.shuffle(&mut self.rng());
        order.reverse();
        let remainders: Vec<_> =
            sizes.iter().zip(&counts).map(|(&size, &count)| exact(size) - count as f64).collect();
        order.sort_by(|&a, &b| remainders[b].total_cmp(&remainders[a]));
        let mut missing = size.saturating_sub(counts.iter().sum());
        // The remainder of a class below its limit is less than 1, so each class gives one more
        // sequence before any gives a second.
        while missing > 0 {
            order.retain(|&class| counts[class] < limit(sizes[class]));
            order.iter().take(missing).for_each(|&class| counts[class] += 1);
            missing -= order.len().min(missing);
        }
        counts
    }

    /// Draws `counts` sequences of each stratum.
    fn draw(&self, strata: &mut [Vec<usize>], counts: &[usize]) -> HoldOutSplit {
        let (mut rest, mut held_out, mut rng) = (Vec::new(), Vec::new(), self.rng());
        for (stratum, &count) in strata.iter_mut().zip(counts) {
            stratum.shuffle(&mut rng);
            held_out.extend_from_slice(&stratum[..count]);
            rest.extend_from_slice(&stratum[count..]);
        }
        held_out.sort_unstable();
        rest.sort_unstable();
        (rest, held_out)
    }

    fn rng(&self) -> ChaCha8Rng {
        /// Makes the random numbers differ from those of the parameters, which use the seed itself.
        const STREAM: u64 = 0x686f_6c64;
        ChaCha8Rng::seed_from_u64(self.seed ^ STREAM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_gives_its_fraction_and_keeps_one() {
        for (fraction, sizes, expected) in [
            (0.1, &[30, 30, 30][..], &[3, 3, 3][..]),
            (0.1, &[96, 4, 1], &[10, 0, 0]),
            (0.5, &[1, 1, 4], &[0, 0, 3]),
            (0.9, &[2, 10, 1], &[1, 9, 0]),
            (0.1, &[2, 0, 1], &[1, 0, 0]),
            (0.5, &[1, 1], &[0, 0]),
        ] {
            let counts = HoldOut { fraction, seed: 1 }.counts(sizes);
            assert_eq!(counts, expected, "{fraction} of {sizes:?}");
        }
        // A tenth of 50 pairs is 10 sequences, one each from 10 classes that the seed chooses.
        let counts = |seed| HoldOut { fraction: 0.1, seed }.counts(&[2; 50]);
        assert_eq!(counts(1).iter().filter(|&&count| count == 1).count(), 10);
        assert_eq!(counts(1), counts(1));
        assert_ne!(counts(1), counts(2));
    }

    #[test]
    fn sets_are_in_order_and_complete() {
        let draw = |seed| {
            let strata = &mut [(0..40).collect(), (40..60).collect::<Vec<_>>()];
            HoldOut { fraction: 0.1, seed }.draw(strata, &[4, 2])
        };
        let (rest, held_out) = draw(1);
        assert!(rest.is_sorted() && held_out.is_sorted());
        assert_eq!(held_out.iter().filter(|&&at| at < 40).count(), 4);
        let mut all = [rest, held_out.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..60).collect::<Vec<_>>());
        assert_ne!(draw(2).1, held_out);
    }
}
