//! [`Example`]s, the order in which they come, and batches of them.

use ndarray::{Array2, Array3, ArrayD, Axis, IxDyn, s};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

use crate::error::{Error, Result, check_shape, try_array};
use crate::fingerprint::{DataFingerprint, Hash};
use crate::spec::batch::Batch;
use crate::spec::head::{Head, Readout};
use crate::spec::loss::Targets;
use crate::spec::sequences::{check_sequence, pad};

/// Batches whose examples are sorted by length together, so that little is padded.
const WINDOW: usize = 16;

/// A sequence, and what is wanted of it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Example {
    /// `[T, I]`, T at least 1.
    pub x: Array2<f32>,
    /// The same kind for all examples of a set.
    pub target: Target,
}

/// What is wanted of a sequence.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Target {
    /// A class, of a head over the last states.
    Class(i32),
    /// C numbers, of a head over the last states.
    Values(Vec<f32>),
    /// A class a step, of a head over every step.
    Classes(Vec<i32>),
    /// C numbers a step `[T, C]`, of a head over every step.
    Series(Array2<f32>),
}

impl Example {
    /// A sequence `[T, I]` and what is wanted of it.
    pub fn new(x: Array2<f32>, target: Target) -> Self {
        Self { x, target }
    }

    /// Whether any of its targets counts.
    pub(super) fn counts(&self, ignored: Option<i32>) -> bool {
        match &self.target {
            Target::Class(class) => Some(*class) != ignored,
            Target::Classes(all) => all.iter().any(|&class| Some(class) != ignored),
            Target::Values(_) | Target::Series(_) => true,
        }
    }

    /// `Ok` when it fits a model of so many inputs with this head.
    fn check(&self, at: usize, inputs: usize, head: &Head) -> Result<()> {
        let what = |what: &str| format!("{what} of example {at}");
        check_sequence(&what("x"), &self.x, inputs)?;
        let steps = self.x.nrows();
        match (&self.target, head.readout) {
            (Target::Class(_), Readout::LastState) => Ok(()),
            (Target::Values(v), Readout::LastState) => {
                check_shape(&what("the target [C]"), &[head.outputs], &[v.len()])
            }
            (Target::Classes(classes), Readout::EveryStep) => {
                check_shape(&what("the target [T]"), &[steps], &[classes.len()])
            }
            (Target::Series(v), Readout::EveryStep) => {
                check_shape(&what("the target [T, C]"), &[steps, head.outputs], v.shape())
            }
            (_, Readout::LastState) => Err(Error::Conflict {
                what: "a target a step and a head over the last states",
                why: "such a head puts out one row a sequence",
            }),
            (_, Readout::EveryStep) => Err(Error::Conflict {
                what: "one target a sequence and a head over every step",
                why: "such a head puts out a row a step",
            }),
        }
    }
}

impl DataFingerprint {
    /// That of `examples`. Takes a few milliseconds for each million numbers.
    pub fn of(examples: &[Example]) -> Self {
        let mut hash = Hash::default();
        for Example { x, target } in examples {
            hash.add(x.nrows() as u64);
            hash.add(x.ncols() as u64);
            x.iter().for_each(|number| hash.add(number.to_bits().into()));
            let mut add = |number: u32| hash.add(number.into());
            // One kind a set; how much each holds follows from the steps and the model.
            match target {
                Target::Class(class) => add(*class as u32),
                Target::Values(all) => all.iter().for_each(|number| add(number.to_bits())),
                Target::Classes(all) => all.iter().for_each(|&class| add(class as u32)),
                Target::Series(all) => all.iter().for_each(|number| add(number.to_bits())),
            }
        }
        Self { count: examples.len(), hash: hash.0 }
    }
}

/// `Ok` when all `examples` fit a model of so many inputs with this head, and each other.
pub(super) fn check(examples: &[Example], inputs: usize, head: &Head) -> Result<()> {
    for (at, example) in examples.iter().enumerate() {
        example.check(at, inputs, head)?;
        let kind = std::mem::discriminant::<Target>;
        if kind(&example.target) != kind(&examples[0].target) {
            return Err(Error::Conflict {
                what: "classes and numbers as targets of one set",
                why: "one loss takes one kind",
            });
        }
    }
    Ok(())
}

/// An epoch's batches, as indices of examples: the same for the same seed and epoch, whatever came before.
/// Examples of which no target counts are left out: a batch of them alone would have no loss.
pub(super) fn order(
    examples: &[Example],
    ignored: Option<i32>,
    batch: usize,
    seed: u64,
    epoch: usize,
) -> Vec<Vec<usize>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(epoch as u64);
    let mut all: Vec<usize> =
        (0..examples.len()).filter(|&at| examples[at].counts(ignored)).collect();
    all.shuffle(&mut rng);
    for window in all.chunks_mut(batch.saturating_mul(WINDOW)) {
        window.sort_by_key(|&at| examples[at].x.nrows());
    }
    let mut batches: Vec<_> = all.chunks(batch).map(<[usize]>::to_vec).collect();
    batches.shuffle(&mut rng);
    batches
}

/// What dropout of an epoch's batch draws from.
pub(super) fn noise_seed(seed: u64, epoch: usize, batch: usize) -> u64 {
    let mut rng = ChaCha8Rng::seed_from_u64(!seed);
    rng.set_stream(epoch as u64);
    rng.set_word_pos(2 * batch as u128);
    rng.random()
}

/// Some examples side by side, padded with zeros.
pub(super) struct Padded {
    x: Array3<f32>,
    lengths: Vec<usize>,
    targets: PaddedTargets,
}

enum PaddedTargets {
    Classes(ArrayD<i32>),
    Values(ArrayD<f32>),
}

impl Padded {
    /// Of at least one.
    ///
    /// # Errors
    /// As [`pad`].
    pub fn new<'a>(examples: impl Iterator<Item = &'a Example> + Clone) -> Result<Self> {
        let (x, lengths) = pad(examples.clone().map(|example| &example.x))?;
        let targets = targets(examples, &lengths, x.dim().0)?;
        Ok(Self { x, targets, lengths })
    }

    pub fn batch(&self) -> Batch<'_> {
        Batch::new(self.x.view()).with_lengths(&self.lengths)
    }

    pub fn targets(&self) -> Targets<'_> {
        match &self.targets {
            PaddedTargets::Classes(classes) => Targets::Classes(classes.view()),
            PaddedTargets::Values(values) => Targets::Values(values.view()),
        }
    }
}

fn targets<'a>(
    examples: impl Iterator<Item = &'a Example>,
    lengths: &[usize],
    steps: usize,
) -> Result<PaddedTargets> {
    let rows = lengths.len();
    let (mut classes, mut values) = (ArrayD::zeros(IxDyn(&[0])), ArrayD::zeros(IxDyn(&[0])));
    for (row, Example { target, .. }) in examples.enumerate() {
        match target {
            Target::Class(class) => {
                grow(&mut classes, &[rows])?;
                classes[[row]] = *class;
            }
            Target::Values(numbers) => {
                grow(&mut values, &[rows, numbers.len()])?;
                values.index_axis_mut(Axis(0), row).assign(&ndarray::aview1(numbers));
            }
            Target::Classes(all) => {
                grow(&mut classes, &[steps, rows])?;
                classes.slice_mut(s![..all.len(), row]).assign(&ndarray::aview1(all));
            }
            Target::Series(series) => {
                grow(&mut values, &[steps, rows, series.ncols()])?;
                values.slice_mut(s![..series.nrows(), row, ..]).assign(series);
            }
        }
    }
    Ok(match values.is_empty() {
        true => PaddedTargets::Classes(classes),
        false => PaddedTargets::Values(values),
    })
}

fn grow<A: bytemuck::Zeroable>(array: &mut ArrayD<A>, shape: &[usize]) -> Result<()> {
    if array.is_empty() {
        *array = try_array("the targets of a batch of padded sequences", shape)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A release in which this fails does not go on with the runs of the one before to the same bits.
    #[test]
    fn the_order_of_a_seed_is_the_one_that_it_was() {
        let all = examples(&[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]);
        let orders =
            [(1, 0), (1, 1), (7, 0)].map(|(seed, epoch)| order(&all, None, 4, seed, epoch));
        let expected: [[&[usize]; 3]; 3] = [
            [&[0, 2, 8, 10], &[4, 7, 5], &[3, 1, 6, 9]],
            [&[9, 2, 8, 10], &[3, 1, 6, 0], &[4, 7, 5]],
            [&[9, 2, 10, 4], &[8, 7, 5], &[1, 3, 6, 0]],
        ];
        assert_eq!(orders, expected);
        let drawn =
            [(1, 0, 0), (1, 0, 1), (1, 1, 0), (7, 0, 0)].map(|(s, e, b)| noise_seed(s, e, b));
        let expected = [
            5_641_281_297_171_923_779,
            16_416_165_445_556_359_732,
            11_935_988_668_211_152_614,
            12_922_757_042_021_387_447,
        ];
        assert_eq!(drawn, expected);
        assert_eq!(
            DataFingerprint::of(&all),
            DataFingerprint { count: 11, hash: 14_094_256_144_268_147_763 }
        );
    }

    fn examples(lengths: &[usize]) -> Vec<Example> {
        let make = |&steps: &usize| {
            let x = Array2::from_elem((steps, 2), steps as f32);
            Example::new(x, Target::Classes(vec![steps as i32; steps]))
        };
        lengths.iter().map(make).collect()
    }

    #[test]
    fn an_epoch_has_every_example_once_and_orders_by_seed_and_epoch() {
        let all = examples(&[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]);
        let orders = [(1, 0), (1, 1), (2, 0), (1, 0)]
            .map(|(seed, epoch)| order(&all, Some(9), 3, seed, epoch));
        for order in &orders {
            assert_eq!(order.iter().map(Vec::len).sum::<usize>(), 10);
            assert!(order.iter().all(|batch| batch.len() <= 3));
            let mut seen: Vec<_> = order.iter().flatten().copied().collect();
            seen.sort_unstable();
            // All but the one whose class is the ignored one.
            assert_eq!(seen, (0..11).filter(|&at| at != 5).collect::<Vec<_>>());
        }
        assert_eq!(orders[0], orders[3]);
        assert!(orders[0] != orders[1] && orders[0] != orders[2]);
    }

    #[test]
    fn a_batch_is_padded_to_a_length_that_recurs() {
        let all = examples(&[3, 9, 1]);
        let padded = Padded::new(all.iter()).unwrap();
        assert_eq!((padded.x.dim(), &padded.lengths[..]), ((16, 3, 2), &[3, 9, 1][..]));
        assert_eq!((padded.x[[2, 0, 1]], padded.x[[3, 0, 1]]), (3.0, 0.0));
        let Targets::Classes(classes) = padded.targets() else { panic!() };
        assert_eq!((classes[[8, 1]], classes[[9, 1]]), (9, 0));
    }
}
