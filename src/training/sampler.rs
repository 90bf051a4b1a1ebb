//! [`BatchSampler`]: splits the examples of each epoch into batches.

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

use crate::spec::loss::Loss;
use crate::training::config::{Order, TrainerConfig};
use crate::training::dataset::Dataset;

/// Batches per bucket. Examples are sorted by length within a bucket, so that batches need little
/// padding.
const BUCKET: usize = 16;

/// Mixed into the seed, so that shuffling and parameter initialization draw different numbers from
/// the same seed.
const SHUFFLE_STREAM: u64 = 0x6f72_6465;

/// Creates the batches of each epoch as lists of example indices.
pub(super) struct BatchSampler {
    order: Order,
    batch: usize,
    seed: u64,
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
        Self { order, batch, seed, examples, rng, epochs: 0 }
    }

    /// Returns true if no example has a target to train on.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// Returns the batches of an epoch. They depend on the seed and the epoch only, not on the
    /// epochs requested before. Request epochs in ascending order.
    pub fn batches(&mut self, data: &(impl Dataset + ?Sized), epoch: usize) -> Vec<Vec<usize>> {
        match self.order {
            Order::Bucketed => self.bucketed(data, epoch),
            Order::Shuffled => self.shuffled(epoch),
        }
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

/// Returns the dropout seed of one batch of an epoch.
pub(super) fn noise_seed(seed: u64, epoch: usize, batch: usize) -> u64 {
    let mut rng = ChaCha8Rng::seed_from_u64(!seed);
    rng.set_stream(epoch as u64);
    rng.set_word_pos(2 * batch as u128);
    rng.random()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::dataset::Example;
    use crate::training::dataset::tests::examples;

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
        sampler.batches(all, epoch)
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
}
