//! [`Dataset`]: what a [`Trainer`](crate::Trainer) trains on, and [`Example`]s, the one in memory.

use std::sync::Arc;

use ndarray::{Array, Array2, Array3, ArrayD, Axis, Dimension, IxDyn, s};

use crate::error::{Error, Result, check_shape, try_array};
use crate::fingerprint::{DataFingerprint, Fnv1a};
use crate::spec::batch::Batch;
use crate::spec::config::{GruConfig, Layout};
use crate::spec::head::{Head, Readout};
use crate::spec::loss::{Loss, Targets};
use crate::spec::sequences::{check_sequence, pad};

/// Examples to train on or to validate on, of which a [`Trainer`](crate::Trainer) asks for some at
/// a time: sequences in memory, windows of a series, rows of a file.
///
/// Slices, arrays and vectors of [`Example`]s are data sets, and so are `&D`, `Box<D>` and `Arc<D>`
/// of any data set D.
///
/// ```
/// use gru_wgpu::{DataFingerprint, Dataset, Result, TrainingBatch};
/// use ndarray::{Array2, Array3};
///
/// /// Every window of 8 numbers of a series, with the number after it as its target.
/// struct Windows(Vec<f32>);
///
/// impl Dataset for Windows {
///     fn len(&self) -> usize {
///         self.0.len() - 8
///     }
///
///     fn steps(&self, _: usize) -> usize {
///         8
///     }
///
///     fn batch(&self, examples: &[usize]) -> Result<TrainingBatch> {
///         let x = Array3::from_shape_fn((8, examples.len(), 1), |(t, b, _)| self.0[examples[b] + t]);
///         let target = Array2::from_shape_fn((examples.len(), 1), |(b, _)| self.0[examples[b] + 8]);
///         Ok(TrainingBatch::new(x, target))
///     }
///
///     fn fingerprint(&self) -> DataFingerprint {
///         DataFingerprint::of_numbers(self.len(), self.0.iter().map(|x| x.to_bits().into()))
///     }
/// }
/// ```
pub trait Dataset {
    /// How many examples there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many steps example `index` has. [`Order::Bucketed`](crate::Order) puts examples of like
    /// lengths into a batch.
    fn steps(&self, index: usize) -> usize;

    /// Some of the examples, a row each in this order, with their targets.
    ///
    /// # Errors
    /// The data set's own.
    fn batch(&self, examples: &[usize]) -> Result<TrainingBatch>;

    /// What tells this data set from any other: a run goes on with the one it was started with.
    fn fingerprint(&self) -> DataFingerprint;

    /// Whether example `index` has a target that `loss` counts. Training leaves out those that have
    /// none: a batch of them alone would have no loss.
    fn has_target(&self, index: usize, loss: &Loss) -> bool {
        let _ = (index, loss);
        true
    }

    /// `Ok` when all examples fit a network with this configuration and head. A run asks before its
    /// first update; what is not refused here is refused by
    /// [`Learner::step`](crate::Learner::step).
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::ZeroSize`] or [`Error::Conflict`], by the example that does not
    /// fit.
    fn check(&self, config: &GruConfig, head: &Head) -> Result<()> {
        let _ = (config, head);
        Ok(())
    }
}

/// Examples of a [`Dataset`] side by side, with their targets: what a [`Batch`] and [`Targets`]
/// borrow.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TrainingBatch {
    /// `[T, B, I]`, or `[B, T, I]` where the layout says so.
    pub x: Array3<f32>,
    /// The order of the axes T and B in x, the resets and the targets.
    pub layout: Layout,
    /// `[L·D, B, H]`; zeros when `None`.
    pub h0: Option<Array3<f32>>,
    /// `[B]`; all T when `None`.
    pub lengths: Option<Vec<usize>>,
    /// `[T, B]` or `[B, T]`, as [`Batch::resets`].
    pub resets: Option<Array2<bool>>,
    /// `[L·D, B, H]`: the state that resets go back to; zeros when `None`.
    pub reset_state: Option<Array3<f32>>,
    /// As the head and the loss take them.
    pub targets: TargetArray,
}

/// Targets of a [`TrainingBatch`]: as [`Targets`], in memory of their own.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum TargetArray {
    /// Numbers `[T, B, C]` (`[B, T, C]` of a batch-first batch) or `[B, C]`.
    Values(ArrayD<f32>),
    /// Classes `[T, B]` (`[B, T]`) or `[B]`.
    Classes(ArrayD<i32>),
}

impl<D: Dimension> From<Array<f32, D>> for TargetArray {
    fn from(values: Array<f32, D>) -> Self {
        Self::Values(values.into_dyn())
    }
}

impl<D: Dimension> From<Array<i32, D>> for TargetArray {
    fn from(classes: Array<i32, D>) -> Self {
        Self::Classes(classes.into_dyn())
    }
}

impl TrainingBatch {
    /// x `[T, B, I]` with its targets, from zeros, every row of length T.
    pub fn new(x: Array3<f32>, targets: impl Into<TargetArray>) -> Self {
        let targets = targets.into();
        let layout = Layout::TimeMajor;
        Self { x, layout, h0: None, lengths: None, resets: None, reset_state: None, targets }
    }

    /// The same with x, the resets and the targets in this layout.
    #[must_use]
    pub fn with_layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// The same from the states h0 `[L·D, B, H]`, or from zeros.
    #[must_use]
    pub fn with_h0(self, h0: impl Into<Option<Array3<f32>>>) -> Self {
        Self { h0: h0.into(), ..self }
    }

    /// The same with a length for each row `[B]`.
    #[must_use]
    pub fn with_lengths(self, lengths: Vec<usize>) -> Self {
        Self { lengths: Some(lengths), ..self }
    }

    /// The same with rows cut before the steps where `resets [T, B]` (or `[B, T]`, as x) is true.
    #[must_use]
    pub fn with_resets(self, resets: Array2<bool>) -> Self {
        Self { resets: Some(resets), ..self }
    }

    /// The same with resets going back to these states `[L·D, B, H]`, or to zeros.
    #[must_use]
    pub fn with_reset_state(self, state: impl Into<Option<Array3<f32>>>) -> Self {
        Self { reset_state: state.into(), ..self }
    }

    /// Its sequences, as a run takes them.
    pub fn batch(&self) -> Batch<'_> {
        let mut batch = Batch::new(self.x.view())
            .with_layout(self.layout)
            .with_h0(self.h0.as_ref().map(|h0| h0.view()))
            .with_reset_state(self.reset_state.as_ref().map(|state| state.view()));
        batch.lengths = self.lengths.as_deref();
        batch.resets = self.resets.as_ref().map(|resets| resets.view());
        batch
    }

    /// Its targets, as a loss takes them.
    pub fn targets(&self) -> Targets<'_> {
        match &self.targets {
            TargetArray::Values(values) => Targets::Values(values.view()),
            TargetArray::Classes(classes) => Targets::Classes(classes.view()),
        }
    }
}

/// A sequence and its target.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Example {
    /// `[T, I]`, T at least 1.
    pub x: Array2<f32>,
    /// The same kind for all examples of a set.
    pub target: Target,
}

/// The target of a sequence.
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

/// A batch of examples is padded with zeros.
impl Dataset for [Example] {
    fn len(&self) -> usize {
        <[Example]>::len(self)
    }

    fn steps(&self, index: usize) -> usize {
        self.get(index).map_or(0, |example| example.x.nrows())
    }

    fn batch(&self, examples: &[usize]) -> Result<TrainingBatch> {
        let example = |&index: &usize| {
            let expected = "below the number of examples";
            self.get(index)
                .ok_or_else(|| Error::setting("the index of an example", index, expected))
        };
        pad_examples(&examples.iter().map(example).collect::<Result<Vec<_>>>()?)
    }

    fn fingerprint(&self) -> DataFingerprint {
        DataFingerprint::of(self)
    }

    fn has_target(&self, index: usize, loss: &Loss) -> bool {
        self.get(index).is_some_and(|example| example.has_target(loss))
    }

    fn check(&self, config: &GruConfig, head: &Head) -> Result<()> {
        for (at, example) in self.iter().enumerate() {
            example.check(at, config.input_size, head)?;
            let kind = std::mem::discriminant::<Target>;
            if kind(&example.target) != kind(&self[0].target) {
                return Err(Error::Conflict {
                    what: "classes and numbers as targets of one set",
                    why: "one loss takes one kind",
                });
            }
        }
        Ok(())
    }
}

/// Implements [`Dataset`] for a type by the data set `$inner` that it holds or points to.
macro_rules! forward_dataset {
    ([$($generics:tt)*] $type:ty, |$this:ident| $inner:expr) => {
        impl<$($generics)*> Dataset for $type {
            fn len(&self) -> usize {
                let $this = self;
                Dataset::len($inner)
            }

            // Forwarded too: a data set may have its own.
            fn is_empty(&self) -> bool {
                let $this = self;
                Dataset::is_empty($inner)
            }

            fn steps(&self, index: usize) -> usize {
                let $this = self;
                Dataset::steps($inner, index)
            }

            fn batch(&self, examples: &[usize]) -> Result<TrainingBatch> {
                let $this = self;
                Dataset::batch($inner, examples)
            }

            fn fingerprint(&self) -> DataFingerprint {
                let $this = self;
                Dataset::fingerprint($inner)
            }

            fn has_target(&self, index: usize, loss: &Loss) -> bool {
                let $this = self;
                Dataset::has_target($inner, index, loss)
            }

            fn check(&self, config: &GruConfig, head: &Head) -> Result<()> {
                let $this = self;
                Dataset::check($inner, config, head)
            }
        }
    };
}

forward_dataset!([] Vec<Example>, |this| this.as_slice());
forward_dataset!([const N: usize] [Example; N], |this| this.as_slice());
forward_dataset!([D: Dataset + ?Sized] &D, |this| &**this);
forward_dataset!([D: Dataset + ?Sized] Box<D>, |this| &**this);
forward_dataset!([D: Dataset + ?Sized] Arc<D>, |this| &**this);

impl Example {
    /// A sequence `[T, I]` with its target.
    pub fn new(x: Array2<f32>, target: Target) -> Self {
        Self { x, target }
    }

    /// Whether it has a target that counts.
    fn has_target(&self, loss: &Loss) -> bool {
        let ignored = loss.ignored();
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
        let mut hash = Fnv1a::default();
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

/// Examples side by side, padded with zeros.
///
/// # Errors
/// As [`pad`], and [`Error::Shape`] when the targets do not fit the sequences or each other.
fn pad_examples(examples: &[&Example]) -> Result<TrainingBatch> {
    let (x, lengths) = pad(examples.iter().map(|example| &example.x))?;
    let targets = pad_targets(examples, &lengths, x.dim().0)?;
    Ok(TrainingBatch::new(x, targets).with_lengths(lengths))
}

fn pad_targets(examples: &[&Example], lengths: &[usize], steps: usize) -> Result<TargetArray> {
    let rows = lengths.len();
    let (mut classes, mut values) = (ArrayD::zeros(IxDyn(&[0])), ArrayD::zeros(IxDyn(&[0])));
    for (row, Example { target, .. }) in examples.iter().enumerate() {
        let length = lengths[row];
        match target {
            Target::Class(class) => {
                grow(&mut classes, &[rows])?;
                classes[[row]] = *class;
            }
            Target::Values(numbers) => {
                grow(&mut values, &[rows, numbers.len()])?;
                check_shape("a target [C]", &values.shape()[1..], &[numbers.len()])?;
                values.index_axis_mut(Axis(0), row).assign(&ndarray::aview1(numbers));
            }
            Target::Classes(all) => {
                grow(&mut classes, &[steps, rows])?;
                check_shape("a target [T]", &[length], &[all.len()])?;
                classes.slice_mut(s![..length, row]).assign(&ndarray::aview1(all));
            }
            Target::Series(series) => {
                grow(&mut values, &[steps, rows, series.ncols()])?;
                check_shape("a target [T, C]", &[length, values.shape()[2]], series.shape())?;
                values.slice_mut(s![..length, row, ..]).assign(series);
            }
        }
    }
    Ok(match values.is_empty() {
        true => TargetArray::Classes(classes),
        false => TargetArray::Values(values),
    })
}

/// Gives the array this shape unless it has one.
fn grow<A: bytemuck::Zeroable>(array: &mut ArrayD<A>, shape: &[usize]) -> Result<()> {
    if array.is_empty() {
        *array = try_array("the targets of a batch of padded sequences", shape)?;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Sequences of these lengths, whose numbers and classes are their length.
    pub fn examples(lengths: &[usize]) -> Vec<Example> {
        let make = |&steps: &usize| {
            let x = Array2::from_elem((steps, 2), steps as f32);
            Example::new(x, Target::Classes(vec![steps as i32; steps]))
        };
        lengths.iter().map(make).collect()
    }

    /// A release in which this fails refuses the runs of the one before.
    #[test]
    fn the_fingerprint_of_a_set_is_the_one_that_it_was() {
        let all = examples(&[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]);
        assert_eq!(
            DataFingerprint::of(&all),
            DataFingerprint { count: 11, hash: 14_094_256_144_268_147_763 }
        );
    }

    /// A data set of which everything that has a default is its own.
    struct Odd;

    impl Dataset for Odd {
        fn len(&self) -> usize {
            7
        }

        fn is_empty(&self) -> bool {
            true
        }

        fn steps(&self, index: usize) -> usize {
            index + 1
        }

        fn batch(&self, _: &[usize]) -> Result<TrainingBatch> {
            Err(Error::NoTarget)
        }

        fn fingerprint(&self) -> DataFingerprint {
            DataFingerprint { count: 7, hash: 1 }
        }

        fn has_target(&self, index: usize, _: &Loss) -> bool {
            index == 3
        }

        fn check(&self, _: &GruConfig, _: &Head) -> Result<()> {
            Err(Error::NoExamples)
        }
    }

    #[test]
    fn what_points_to_a_data_set_is_that_data_set() {
        fn check(data: impl Dataset) {
            let loss = Loss::MeanSquared;
            assert_eq!((data.len(), data.is_empty(), data.steps(4)), (7, true, 5));
            assert_eq!((data.has_target(3, &loss), data.has_target(2, &loss)), (true, false));
            assert_eq!(data.fingerprint(), DataFingerprint { count: 7, hash: 1 });
            assert_eq!(data.batch(&[0]), Err(Error::NoTarget));
            assert_eq!(data.check(&GruConfig::new(1, 1), &Head::last(1)), Err(Error::NoExamples));
        }
        check(Odd);
        check(&Odd);
        check(Box::new(Odd));
        check(Arc::new(Odd));
        check(Box::new(Odd) as Box<dyn Dataset>);
        check(&&Odd as &dyn Dataset);
    }

    #[test]
    fn examples_are_a_data_set_however_they_are_held() {
        fn check(data: impl Dataset) {
            assert_eq!((data.len(), data.is_empty()), (2, false));
            assert_eq!((data.steps(0), data.steps(1), data.steps(2)), (3, 9, 0));
            assert_eq!(data.batch(&[1]).unwrap().x.dim().1, 1);
            assert!(data.batch(&[2]).is_err());
        }
        let all = examples(&[3, 9]);
        check(all.as_slice());
        check(&all);
        check(<[Example; 2]>::try_from(all.clone()).unwrap());
        check(Arc::<[Example]>::from(all.clone()));
        check(all.clone().into_boxed_slice());
        check(all);
    }

    #[test]
    fn a_batch_is_padded_to_a_length_that_recurs() {
        let all = examples(&[3, 9, 1]);
        let padded = all.batch(&[0, 1, 2]).unwrap();
        assert_eq!((padded.x.dim(), padded.lengths.as_deref()), ((16, 3, 2), Some(&[3, 9, 1][..])));
        assert_eq!((padded.x[[2, 0, 1]], padded.x[[3, 0, 1]]), (3.0, 0.0));
        let Targets::Classes(classes) = padded.targets() else { panic!() };
        assert_eq!((classes[[8, 1]], classes[[9, 1]]), (9, 0));
    }
}
