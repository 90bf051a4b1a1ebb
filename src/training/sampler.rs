//! [`BatchSampler`]: splits the examples of each epoch into batches.
//!
//! Windows of longer sequences, whose states are carried, are read in parallel. Training
//! concatenates all sequences in a random order and cuts them into as many equal parts as a batch
//! has rows; row b of the batches reads part b. A sequence that a cut divides starts from zeros
//! there. Validation gives each sequence a row, so that none is divided.

use std::ops::Range;

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

use crate::spec::loss::Loss;
use crate::spec::sequences::batch_ranges;
use crate::training::config::{Order, TrainerConfig};
use crate::training::dataset::Dataset;

/// Batches per bucket. Examples are sorted by length within a bucket, so that batches need little
/// padding.
const BUCKET: usize = 16;

/// Mixed into the seed, so that shuffling and parameter initialization draw different numbers from
/// the same seed.
const SHUFFLE_STREAM: u64 = 0x6f72_6465;

/// A batch of an epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct EpochBatch {
    /// Batches of windows without any target that come before. They only carry the states.
    pub skipped: Vec<Vec<usize>>,
    /// The indices of its examples.
    pub examples: Vec<usize>,
}

/// Mixed into the seed for the order of sequences that are cut into windows.
const WINDOW_STREAM: u64 = 0x7769_6e64;

/// Creates the batches of each epoch as lists of example indices.
pub(super) struct BatchSampler {
    order: Order,
    batch: usize,
    seed: u64,
    loss: Loss,
    /// Indices of the examples that have a target for the loss. With [`Order::Shuffled`], in the
    /// order of the last epoch created.
    examples: Vec<usize>,
    /// [`Order::Shuffled`] only: the generator, and the number of epochs created.
    rng: ChaCha8Rng,
    epochs: usize,
}

impl BatchSampler {
    pub fn new(data: &(impl Dataset + ?Sized), config: &TrainerConfig, loss: &Loss) -> Self {
        let TrainerConfig { batch, seed, order, .. } = *config;
        let examples = (0..data.len()).filter(|&index| data.has_target(index, loss)).collect();
        let rng = ChaCha8Rng::seed_from_u64(seed ^ SHUFFLE_STREAM);
        Self { order, batch, seed, loss: *loss, examples, rng, epochs: 0 }
    }

    /// Returns true if no example has a target to train on.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// Returns the batches of an epoch. They depend on the seed and the epoch only, not on the
    /// epochs requested before. Request epochs in ascending order.
    pub fn batches(&mut self, data: &(impl Dataset + ?Sized), epoch: usize) -> Vec<EpochBatch> {
        if data.stride().is_some() {
            return self.carried(data, epoch);
        }
        let batches = match self.order {
            Order::Bucketed => self.bucketed(data, epoch),
            Order::Shuffled => self.shuffled(epoch),
        };
        let batch = |examples| EpochBatch { skipped: Vec::new(), examples };
        batches.into_iter().map(batch).collect()
    }

    /// Returns batches of windows: row b of each batch continues row b of the batch before, except
    /// where a sequence starts.
    fn carried(&self, data: &(impl Dataset + ?Sized), epoch: usize) -> Vec<EpochBatch> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ WINDOW_STREAM);
        rng.set_stream(epoch as u64);
        let mut sequences = sequences(data);
        sequences.shuffle(&mut rng);
        let mut windows: Vec<_> = sequences.into_iter().flatten().collect();
        let rows = self.batch.min(windows.len());
        let [short, longer] = [windows.len() / rows, windows.len() % rows];
        // The cuts are at other places in each epoch.
        windows.rotate_left(rng.random_range(0..short.max(1)));
        // The first rows are those with one window more, so that the last batch has no gap.
        let start = |row: usize| row * short + row.min(longer);
        let batch = |at: usize| {
            let rows = if at < short { rows } else { longer };
            (0..rows).map(|row| windows[start(row) + at]).collect::<Vec<_>>()
        };
        let mut batches = Vec::new();
        let mut skipped = Vec::new();
        for examples in (0..short + usize::from(longer > 0)).map(batch) {
            if examples.iter().any(|&index| data.has_target(index, &self.loss)) {
                batches.push(EpochBatch { skipped: std::mem::take(&mut skipped), examples });
            } else {
                skipped.push(examples);
            }
        }
        batches
    }

    fn bucketed(&self, data: &(impl Dataset + ?Sized), epoch: usize) -> Vec<Vec<usize>> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(epoch as u64);
        let mut examples = self.examples.clone();
        examples.shuffle(&mut rng);
        for bucket in examples.chunks_mut(self.batch.saturating_mul(BUCKET)) {
            bucket.sort_by_key(|&index| data.steps(index));
        }
        let mut batches: Vec<_> = examples.chunks(self.batch).map(<[usize]>::to_vec).collect();
        batches.shuffle(&mut rng);
        batches
    }

    fn shuffled(&mut self, epoch: usize) -> Vec<Vec<usize>> {
        while self.epochs <= epoch {
            self.examples.shuffle(&mut self.rng);
            self.epochs += 1;
        }
        self.examples.chunks(self.batch).map(<[usize]>::to_vec).collect()
    }
}

impl TrainerConfig {
    /// Returns the number of updates in an epoch over `data`, for a schedule, with `accumulation`
    /// batches per update. Batches without a target for `loss` make none. If states are carried
    /// from window to window, the number is that of the first epoch: the batches of later ones may
    /// lack targets elsewhere.
    pub fn updates(&self, data: &(impl Dataset + ?Sized), loss: &Loss, accumulation: usize) -> u64 {
        let mut sampler = BatchSampler::new(data, self, loss);
        if sampler.is_empty() || self.batch == 0 {
            return 0;
        }
        sampler.batches(data, 0).len().div_ceil(accumulation.max(1)) as u64
    }
}

/// Returns the batches of a validation set, in order, of at most `rows` rows. Row b of a batch of
/// windows continues row b of the batch before, except where a sequence starts.
pub(super) fn validation_batches(data: &(impl Dataset + ?Sized), rows: usize) -> Vec<Vec<usize>> {
    if data.stride().is_none() {
        return batch_ranges(data.len(), rows).map(Iterator::collect).collect();
    }
    let mut batches = Vec::new();
    for group in sequences(data).chunks_mut(rows) {
        // The longest first: sequences that have ended leave no gap between those that go on.
        group.sort_by_key(|windows| std::cmp::Reverse(windows.len()));
        let of_step = |at: usize| {
            let starts = group.iter().map(|windows| windows.clone().nth(at));
            starts.map_while(|window| window).collect::<Vec<_>>()
        };
        let count = group.first().map_or(0, ExactSizeIterator::len);
        batches.extend((0..count).map(of_step));
    }
    batches
}

/// Returns the windows of each sequence.
fn sequences(data: &(impl Dataset + ?Sized)) -> Vec<Range<usize>> {
    let mut sequences: Vec<Range<usize>> = Vec::new();
    for index in 0..data.len() {
        match sequences.last_mut() {
            Some(last) if data.continues(index) => last.end = index + 1,
            _ => sequences.push(index..index + 1),
        }
    }
    sequences
}

/// Returns the dropout seed of one batch of an epoch.
pub(super) fn noise_seed(seed: u64, epoch: usize, batch: usize) -> u64 {
    let mut rng = ChaCha8Rng::seed_from_u64(!seed);
    rng.set_stream(epoch as u64);
    rng.set_word_pos(2 * batch as u128);
    rng.random()
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;
    use crate::training::dataset::tests::examples;
    use crate::training::dataset::{Example, Target};
    use crate::training::windows::SequenceWindows;

    /// Returns the batches of an epoch from a sampler that created the epochs `before` first.
    fn batches(
        all: &[Example],
        config: TrainerConfig,
        loss: Loss,
        epoch: usize,
        before: std::ops::Range<usize>,
    ) -> Vec<Vec<usize>> {
        let mut sampler = BatchSampler::new(all, &config, &loss);
        before.for_each(|epoch| drop(sampler.batches(all, epoch)));
        sampler.batches(all, epoch).into_iter().map(|batch| batch.examples).collect()
    }

    /// If this fails, the release cannot resume older runs with the same bits.
    #[test]
    fn example_order_of_a_seed_stays_the_same_across_releases() {
        let all = examples(&[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]);
        let orders = |order| {
            [(1, 0), (1, 1), (7, 0)].map(|(seed, epoch)| {
                let config = TrainerConfig::new(9, 4).with_seed(seed).with_order(order);
                batches(&all, config, Loss::MeanSquared, epoch, 0..0)
            })
        };
        let expected: [[&[usize]; 3]; 3] = [
            [&[0, 2, 8, 10], &[4, 7, 5], &[3, 1, 6, 9]],
            [&[9, 2, 8, 10], &[3, 1, 6, 0], &[4, 7, 5]],
            [&[9, 2, 10, 4], &[8, 7, 5], &[1, 3, 6, 0]],
        ];
        assert_eq!(orders(Order::Bucketed), expected);
        let expected: [[&[usize]; 3]; 3] = [
            [&[4, 3, 10, 9], &[6, 2, 0, 1], &[8, 5, 7]],
            [&[4, 5, 8, 0], &[6, 1, 10, 7], &[3, 9, 2]],
            [&[5, 10, 4, 2], &[6, 0, 1, 8], &[7, 3, 9]],
        ];
        assert_eq!(orders(Order::Shuffled), expected);
        let drawn =
            [(1, 0, 0), (1, 0, 1), (1, 1, 0), (7, 0, 0)].map(|(s, e, b)| noise_seed(s, e, b));
        let expected = [
            5_641_281_297_171_923_779,
            16_416_165_445_556_359_732,
            11_935_988_668_211_152_614,
            12_922_757_042_021_387_447,
        ];
        assert_eq!(drawn, expected);
    }

    #[test]
    fn an_epoch_has_every_example_once_in_an_order_by_seed_and_epoch() {
        let all = examples(&[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]);
        let loss = Loss::CrossEntropy { ignore: Some(9) };
        for order in [Order::Bucketed, Order::Shuffled] {
            let orders = [(1, 0, 0..0), (1, 1, 0..0), (2, 0, 0..0), (1, 0, 0..0), (1, 1, 0..1)];
            let orders = orders.map(|(seed, epoch, before)| {
                let config = TrainerConfig::new(9, 3).with_seed(seed).with_order(order);
                batches(&all, config, loss, epoch, before)
            });
            for order in &orders {
                assert_eq!(order.iter().map(Vec::len).sum::<usize>(), 10);
                assert!(order.iter().all(|batch| batch.len() <= 3));
                let mut seen: Vec<_> = order.iter().flatten().copied().collect();
                seen.sort_unstable();
                // All examples except the one with the ignored class.
                assert_eq!(seen, (0..11).filter(|&at| at != 5).collect::<Vec<_>>());
            }
            assert_eq!(orders[0], orders[3]);
            assert!(orders[0] != orders[1] && orders[0] != orders[2]);
            // A resumed run creates the same batches as one that was never interrupted.
            assert_eq!(orders[1], orders[4]);
        }
    }

    /// Returns windows of 2 steps of sequences of these numbers of windows.
    fn windows(counts: &[usize]) -> SequenceWindows {
        let all = counts.iter().map(|&count| {
            let x = Array2::zeros((2 * count, 1));
            Example::new(x, Target::Classes(vec![0; 2 * count]))
        });
        SequenceWindows::every_step(all.collect(), 2, 2).unwrap()
    }

    #[test]
    fn rows_of_windows_continue_the_rows_before() {
        let data = windows(&[5, 1, 9, 3]);
        let config = TrainerConfig::new(9, 4).with_seed(3);
        let mut sampler = BatchSampler::new(&data, &config, &Loss::cross_entropy());
        let mut firsts = Vec::new();
        for epoch in 0..4 {
            let batches = sampler.batches(&data, epoch);
            let mut seen: Vec<_> =
                batches.iter().flat_map(|batch| batch.examples.clone()).collect();
            // 18 windows in 4 rows: 4 whole batches, and one of 2 rows.
            assert_eq!(
                batches.iter().map(|b| b.examples.len()).collect::<Vec<_>>(),
                [4, 4, 4, 4, 2]
            );
            let continued = |pair: &[EpochBatch]| {
                let rows = pair[0].examples.iter().zip(&pair[1].examples);
                rows.filter(|&(&before, &now)| now == before + 1 && data.continues(now)).count()
            };
            // 14 windows continue others. At most 4 are cut off, one of them by the rotation.
            let continued: usize = batches.windows(2).map(continued).sum();
            assert!((10..=14).contains(&continued), "{continued}");
            firsts.push(batches[0].examples.clone());
            seen.sort_unstable();
            assert_eq!(seen, (0..18).collect::<Vec<_>>());
        }
        assert!(firsts.windows(2).any(|pair| pair[0] != pair[1]));
        let mut again = BatchSampler::new(&data, &config, &Loss::cross_entropy());
        assert_eq!(again.batches(&data, 3)[0].examples, firsts[3]);
    }

    #[test]
    fn windows_without_targets_are_skipped_and_carry_their_states() {
        let mask = (0..12).map(|t| (6..8).contains(&t)).collect::<Vec<_>>();
        let sequence = Example::new(Array2::zeros((12, 1)), Target::Classes(vec![0; 12]));
        let data = SequenceWindows::every_step(vec![sequence.with_mask(mask)], 2, 2).unwrap();
        let config = TrainerConfig::new(9, 1);
        let mut sampler = BatchSampler::new(&data, &config, &Loss::cross_entropy());
        let batches = sampler.batches(&data, 0);
        assert_eq!(batches.len(), 1);
        assert_eq!(batches[0].examples, [3]);
        // The epoch starts at a random window of the only row.
        let skipped: Vec<_> = batches[0].skipped.iter().map(|examples| examples[0]).collect();
        assert!(
            skipped.iter().rev().zip((0..3).rev()).all(|(&window, expected)| window == expected)
        );
    }

    #[test]
    fn no_sequence_of_a_validation_set_is_cut() {
        let data = windows(&[2, 4, 1, 3, 1]);
        let expected =
            vec![vec![2, 0, 6], vec![3, 1], vec![4], vec![5], vec![7, 10], vec![8], vec![9]];
        assert_eq!(validation_batches(&data, 3), expected);
        assert_eq!(validation_batches(&examples(&[3, 1, 2]), 2), [vec![0, 1], vec![2]]);
    }

    /// A schedule is stretched over the updates that are made.
    #[test]
    fn examples_without_targets_make_no_updates() {
        let loss = Loss::CrossEntropy { ignore: Some(9) };
        let config = TrainerConfig::new(2, 2);
        let all = examples(&[3, 9, 9, 4, 9, 5, 9]);
        assert_eq!((config.updates(&all, &loss, 1), config.updates(&all, &loss, 2)), (2, 1));
        assert_eq!(config.updates(&examples(&[9, 9]), &loss, 1), 0);
        let data = windows(&[5, 1, 9, 3]);
        assert_eq!(TrainerConfig::new(1, 4).updates(&data, &Loss::cross_entropy(), 1), 5);
    }
}
