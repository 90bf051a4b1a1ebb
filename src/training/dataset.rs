//! [`Dataset`], the trait that a [`Trainer`](crate::Trainer) reads examples from, and [`Example`],
//! which implements it in memory.

use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array, Array2, Array3, ArrayD, Axis, Dimension, IxDyn, s};

use crate::error::{Error, Result, check_shape, try_array};
use crate::fingerprint::{DataFingerprint, Fnv1a};
use crate::spec::batch::Batch;
use crate::spec::config::{GruConfig, Layout};
use crate::spec::head::{Head, Readout};
use crate::spec::loss::{Loss, Targets};
use crate::spec::sequences::{check_sequence, pad};

/// A source of training or validation examples: sequences in memory, windows of a series, rows of a
/// file. A [`Trainer`](crate::Trainer) reads it batch by batch.
///
/// Like PyTorch's map-style `Dataset`, it has a length and returns examples by index. It builds
/// whole batches, so it also does the work of a `collate_fn`.
///
/// Slices, arrays and vectors of [`Example`]s implement it, and so do `&D`, `Box<D>` and `Arc<D>`
/// for any data set D.
///
/// ```
/// use gru_wgpu::{DataFingerprint, Dataset, Result, TrainingBatch};
/// use ndarray::{Array2, Array3};
///
/// /// All windows of 8 values of a series. The target is the value after the window.
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
    /// Returns the number of examples.
    fn len(&self) -> usize;

    /// Returns true if there are no examples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of time steps of example `index`. [`Order::Bucketed`](crate::Order)
    /// groups examples of similar lengths into a batch.
    fn steps(&self, index: usize) -> usize;

    /// Returns these examples and their targets as one batch, with one row per index, in this
    /// order.
    ///
    /// # Errors
    /// Defined by the data set.
    fn batch(&self, examples: &[usize]) -> Result<TrainingBatch>;

    /// Returns a fingerprint of the contents. A run refuses to resume with other data than it
    /// started with.
    fn fingerprint(&self) -> DataFingerprint;

    /// Returns true if example `index` has a target that `loss` counts. Training skips the other
    /// examples, because a batch without any target has no loss.
    fn has_target(&self, index: usize, loss: &Loss) -> bool {
        let _ = (index, loss);
        true
    }

    /// If the examples are windows of longer sequences whose states a run carries from window to
    /// window, returns the number of steps between the starts of two windows. The run then trains
    /// the windows of a sequence in order (truncated backpropagation through time), and
    /// [`Order`](crate::Order) has no effect. See [`SequenceWindows`](crate::SequenceWindows).
    fn stride(&self) -> Option<usize> {
        None
    }

    /// Returns true if example `index` is the window that starts [`Self::stride`] steps after the
    /// start of example `index` − 1. Otherwise it starts from zeros.
    fn continues(&self, index: usize) -> bool {
        let _ = index;
        false
    }

    /// Checks that all examples fit a network with this configuration and head. A run calls it
    /// before its first update. [`Learner::step`](crate::Learner::step) refuses a mismatch that
    /// this check misses.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::ZeroSize`] or [`Error::Conflict`] for the first example that does
    /// not fit.
    fn check(&self, config: &GruConfig, head: &Head) -> Result<()> {
        let _ = (config, head);
        Ok(())
    }
}

/// A batch of examples and their targets, as a [`Dataset`] returns it. It owns the arrays that
/// [`Batch`] and [`Targets`] borrow.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TrainingBatch {
    /// Inputs `[T, B, I]`, or `[B, T, I]` in the batch-first layout.
    pub x: Array3<f32>,
    /// Order of the axes T and B in x, the resets and the targets.
    pub layout: Layout,
    /// First states `[L·D, B, H]`; zeros if `None`.
    pub h0: Option<Array3<f32>>,
    /// Length of each row `[B]`; T for all rows if `None`.
    pub lengths: Option<Vec<usize>>,
    /// Steps before which a row's state is reset, `[T, B]` or `[B, T]`; see [`Batch::resets`].
    pub resets: Option<Array2<bool>>,
    /// State after a reset `[L·D, B, H]`; zeros if `None`.
    pub reset_state: Option<Array3<f32>>,
    /// Targets that fit the head and the loss.
    pub targets: TargetArray,
}

/// The targets of a [`TrainingBatch`]: [`Targets`] that own their array.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum TargetArray {
    /// Values: `[T, B, C]` (batch-first: `[B, T, C]`) for each step, or `[B, C]` for each row.
    Values(ArrayD<f32>),
    /// Class indices: `[T, B]` (batch-first: `[B, T]`) for each step, or `[B]` for each row.
    Classes(ArrayD<i32>),
    /// Targets of which only some rows count; see [`Targets::with_mask`].
    Masked {
        /// The targets of all rows.
        targets: Box<TargetArray>,
        /// True for each row that counts: `[T, B]` (batch-first: `[B, T]`) or `[B]`.
        mask: ArrayD<bool>,
    },
}

impl TargetArray {
    /// Counts only the rows where `mask` is true; see [`Targets::with_mask`].
    #[must_use]
    pub fn with_mask<D: Dimension>(self, mask: Array<bool, D>) -> Self {
        Self::Masked { targets: Box::new(self), mask: mask.into_dyn() }
    }

    /// Borrows the targets as [`Targets`].
    pub fn view(&self) -> Targets<'_> {
        match self {
            Self::Values(values) => Targets::Values(values.view()),
            Self::Classes(classes) => Targets::Classes(classes.view()),
            Self::Masked { targets, mask } => targets.view().with_mask(mask.view()),
        }
    }
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
    /// Creates a batch from x `[T, B, I]` and its targets. The first states are zeros and every row
    /// has length T.
    pub fn new(x: Array3<f32>, targets: impl Into<TargetArray>) -> Self {
        let targets = targets.into();
        let layout = Layout::TimeMajor;
        Self { x, layout, h0: None, lengths: None, resets: None, reset_state: None, targets }
    }

    /// Sets the layout of x, the resets and the targets.
    #[must_use]
    pub fn with_layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// Sets the first states h0 `[L·D, B, H]`. `None` stands for zeros.
    #[must_use]
    pub fn with_h0(self, h0: impl Into<Option<Array3<f32>>>) -> Self {
        Self { h0: h0.into(), ..self }
    }

    /// Sets the length of each row `[B]`.
    #[must_use]
    pub fn with_lengths(self, lengths: Vec<usize>) -> Self {
        Self { lengths: Some(lengths), ..self }
    }

    /// Resets a row's state before each step where `resets` is true. Its shape is `[T, B]`, or
    /// `[B, T]` in the batch-first layout.
    #[must_use]
    pub fn with_resets(self, resets: Array2<bool>) -> Self {
        Self { resets: Some(resets), ..self }
    }

    /// Sets the state after a reset `[L·D, B, H]`. `None` stands for zeros.
    #[must_use]
    pub fn with_reset_state(self, state: impl Into<Option<Array3<f32>>>) -> Self {
        Self { reset_state: state.into(), ..self }
    }

    /// Borrows the sequences as a [`Batch`].
    pub fn batch(&self) -> Batch<'_> {
        let mut batch = Batch::new(self.x.view())
            .with_layout(self.layout)
            .with_h0(self.h0.as_ref().map(|h0| h0.view()))
            .with_reset_state(self.reset_state.as_ref().map(|state| state.view()));
        batch.lengths = self.lengths.as_deref();
        batch.resets = self.resets.as_ref().map(|resets| resets.view());
        batch
    }

    /// Borrows the targets as [`Targets`].
    pub fn targets(&self) -> Targets<'_> {
        self.targets.view()
    }
}

/// One sequence and its target.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Example {
    /// Inputs `[T, I]`, T at least 1.
    pub x: Array2<f32>,
    /// The target. All examples of a data set have targets of the same kind.
    pub target: Target,
    /// The steps whose target counts, `[T]`; all if `None`. Only for a target per time step.
    pub mask: Option<Vec<bool>>,
}

/// The target of one sequence.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Target {
    /// One class index per sequence, for a head with [`Readout::LastState`].
    Class(i32),
    /// C values per sequence, for a head with [`Readout::LastState`].
    Values(Vec<f32>),
    /// One class index per time step `[T]`, for a head with [`Readout::EveryStep`].
    Classes(Vec<i32>),
    /// C values per time step `[T, C]`, for a head with [`Readout::EveryStep`].
    Series(Array2<f32>),
}

/// Batches are padded with zeros.
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
        check_examples(self, config.input_size, head)
    }
}

/// Checks that all examples fit a model with this input size and head, and have targets of one
/// kind.
pub(super) fn check_examples(examples: &[Example], inputs: usize, head: &Head) -> Result<()> {
    for (at, example) in examples.iter().enumerate() {
        example.check(at, inputs, head)?;
        let kind = std::mem::discriminant::<Target>;
        if kind(&example.target) != kind(&examples[0].target) {
            return Err(Error::Conflict {
                what: "examples of one data set with different kinds of targets",
                why: "the loss needs targets of one kind: all classes or all values",
            });
        }
    }
    Ok(())
}

/// Implements [`Dataset`] for a type by forwarding every call to `$inner`, the data set that it
/// holds or points to.
macro_rules! forward_dataset {
    ([$($generics:tt)*] $type:ty, |$this:ident| $inner:expr) => {
        impl<$($generics)*> Dataset for $type {
            fn len(&self) -> usize {
                let $this = self;
                Dataset::len($inner)
            }

            // Forward this default method too, because `$inner` may override it.
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

            fn stride(&self) -> Option<usize> {
                let $this = self;
                Dataset::stride($inner)
            }

            fn continues(&self, index: usize) -> bool {
                let $this = self;
                Dataset::continues($inner, index)
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
    /// Creates an example from a sequence `[T, I]` and its target.
    pub fn new(x: Array2<f32>, target: Target) -> Self {
        Self { x, target, mask: None }
    }

    /// Counts the targets only of the steps where `mask` `[T]` is true.
    #[must_use]
    pub fn with_mask(self, mask: impl Into<Option<Vec<bool>>>) -> Self {
        Self { mask: mask.into(), ..self }
    }

    /// Returns true if `loss` counts at least one target of the example.
    fn has_target(&self, loss: &Loss) -> bool {
        self.counts_at(loss, 0..self.x.nrows())
    }

    /// Returns true if `loss` counts at least one target of these steps. A target per sequence
    /// belongs to all of them.
    pub(super) fn counts_at(&self, loss: &Loss, steps: Range<usize>) -> bool {
        let ignored = loss.ignored();
        let mut counted = steps.filter(|&t| self.mask.as_ref().is_none_or(|mask| mask[t]));
        match &self.target {
            Target::Class(class) => Some(*class) != ignored,
            Target::Classes(all) => counted.any(|t| Some(all[t]) != ignored),
            Target::Values(_) => true,
            Target::Series(_) => counted.next().is_some(),
        }
    }

    /// Checks that example number `at` fits a model with this input size and head.
    pub(super) fn check(&self, at: usize, inputs: usize, head: &Head) -> Result<()> {
        let what = |what: &str| format!("{what} of example {at}");
        check_sequence(&what("x"), &self.x, inputs)?;
        let steps = self.x.nrows();
        if let Some(mask) = &self.mask {
            check_shape(&what("the mask [T]"), &[steps], &[mask.len()])?;
            if matches!(self.target, Target::Class(_) | Target::Values(_)) {
                return Err(Error::Conflict {
                    what: "a mask of time steps and one target per sequence",
                    why: "a mask says which time steps have a target; leave it out",
                });
            }
        }
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
                what: "a target per time step and a head over the last state",
                why: "such a head returns one output row per sequence",
            }),
            (_, Readout::EveryStep) => Err(Error::Conflict {
                what: "one target per sequence and a head over every step",
                why: "such a head returns one output row per time step",
            }),
        }
    }
}

impl DataFingerprint {
    /// Returns the fingerprint of `examples`. Takes a few milliseconds per million values.
    pub fn of(examples: &[Example]) -> Self {
        let mut hash = Fnv1a::default();
        for Example { x, target, mask } in examples {
            hash.add(x.nrows() as u64);
            hash.add(x.ncols() as u64);
            x.iter().for_each(|number| hash.add(number.to_bits().into()));
            let mut add = |number: u32| hash.add(number.into());
            // The kind and the length need no hash: a data set has targets of one kind, and the
            // length follows from the steps and the model.
            match target {
                Target::Class(class) => add(*class as u32),
                Target::Values(all) => all.iter().for_each(|number| add(number.to_bits())),
                Target::Classes(all) => all.iter().for_each(|&class| add(class as u32)),
                Target::Series(all) => all.iter().for_each(|number| add(number.to_bits())),
            }
            mask.iter().flatten().for_each(|&counts| add(counts.into()));
        }
        Self { count: examples.len(), hash: hash.0 }
    }
}

/// Requests a batch of these examples and checks that it has one row per example.
///
/// # Errors
/// The errors of the data set, and [`Error::Shape`] if the number of rows is different.
pub(super) fn load_batch<D: Dataset + ?Sized>(
    data: &D,
    examples: &[usize],
) -> Result<TrainingBatch> {
    let batch = data.batch(examples)?;
    let (first, second, _) = batch.x.dim();
    let [_, rows] = batch.layout.order(first, second);
    check_shape("the batch that Dataset::batch returned [B]", &[examples.len()], &[rows])?;
    Ok(batch)
}

/// The name of the mask of a batch in error messages.
const MASK: &str = "the mask of a batch of padded sequences";

/// Pads the examples with zeros and stacks them into one batch.
///
/// # Errors
/// Those of [`pad`], and [`Error::Shape`] if the targets do not fit the sequences or each other.
fn pad_examples(examples: &[&Example]) -> Result<TrainingBatch> {
    let (x, lengths) = pad(examples.iter().map(|example| &example.x))?;
    let steps = x.dim().0;
    let mut targets = pad_targets(examples, &lengths, steps)?;
    if examples.iter().any(|example| example.mask.is_some()) {
        targets = targets.with_mask(pad_masks(examples, steps)?);
    }
    Ok(TrainingBatch::new(x, targets).with_lengths(lengths))
}

/// Pads the targets of the examples with zeros to `steps` and stacks them.
fn pad_targets(examples: &[&Example], lengths: &[usize], steps: usize) -> Result<TargetArray> {
    let rows = lengths.len();
    let (mut classes, mut values) = (ArrayD::zeros(IxDyn(&[0])), ArrayD::zeros(IxDyn(&[0])));
    for (row, Example { target, .. }) in examples.iter().enumerate() {
        let length = lengths[row];
        match target {
            Target::Class(class) => {
                allocate_once(&mut classes, &[rows])?;
                classes[[row]] = *class;
            }
            Target::Values(numbers) => {
                allocate_once(&mut values, &[rows, numbers.len()])?;
                check_shape("a target [C]", &values.shape()[1..], &[numbers.len()])?;
                values.index_axis_mut(Axis(0), row).assign(&ndarray::aview1(numbers));
            }
            Target::Classes(all) => {
                allocate_once(&mut classes, &[steps, rows])?;
                check_shape("a target [T]", &[length], &[all.len()])?;
                classes.slice_mut(s![..length, row]).assign(&ndarray::aview1(all));
            }
            Target::Series(series) => {
                allocate_once(&mut values, &[steps, rows, series.ncols()])?;
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

/// Pads the masks of the examples to `steps` and stacks them, `[T, B]`.
fn pad_masks(examples: &[&Example], steps: usize) -> Result<Array2<bool>> {
    let mut masks: Array2<bool> = try_array(MASK, [steps, examples.len()])?;
    for (row, example) in examples.iter().enumerate() {
        match &example.mask {
            None => masks.column_mut(row).fill(true),
            Some(mask) => {
                check_shape("a mask [T]", &[example.x.nrows()], &[mask.len()])?;
                masks.slice_mut(s![..mask.len(), row]).assign(&ndarray::aview1(mask));
            }
        }
    }
    Ok(masks)
}

/// Allocates the array with this shape if it is still empty.
fn allocate_once<A: bytemuck::Zeroable>(array: &mut ArrayD<A>, shape: &[usize]) -> Result<()> {
    if array.is_empty() {
        *array = try_array("the targets of a batch of padded sequences", shape)?;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Returns sequences of these lengths. All inputs and classes of a sequence equal its length.
    pub fn examples(lengths: &[usize]) -> Vec<Example> {
        let make = |&steps: &usize| {
            let x = Array2::from_elem((steps, 2), steps as f32);
            Example::new(x, Target::Classes(vec![steps as i32; steps]))
        };
        lengths.iter().map(make).collect()
    }

    /// If this fails, the release refuses to resume older runs.
    #[test]
    fn fingerprint_of_a_data_set_stays_the_same_across_releases() {
        let all = examples(&[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]);
        assert_eq!(
            DataFingerprint::of(&all),
            DataFingerprint { count: 11, hash: 14_094_256_144_268_147_763 }
        );
    }

    /// A data set that overrides every default method.
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

        fn stride(&self) -> Option<usize> {
            Some(6)
        }

        fn continues(&self, index: usize) -> bool {
            index == 2
        }

        fn check(&self, _: &GruConfig, _: &Head) -> Result<()> {
            Err(Error::NoExamples)
        }
    }

    #[test]
    fn references_and_pointers_forward_every_method() {
        fn check(data: impl Dataset) {
            let loss = Loss::MeanSquared;
            assert_eq!((data.len(), data.is_empty(), data.steps(4)), (7, true, 5));
            assert_eq!((data.has_target(3, &loss), data.has_target(2, &loss)), (true, false));
            assert_eq!(data.fingerprint(), DataFingerprint { count: 7, hash: 1 });
            assert_eq!(
                (data.stride(), data.continues(1), data.continues(2)),
                (Some(6), false, true)
            );
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
    fn every_container_of_examples_is_a_data_set() {
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
    fn a_batch_is_padded_to_a_multiple_of_8_steps() {
        let all = examples(&[3, 9, 1]);
        let padded = all.batch(&[0, 1, 2]).unwrap();
        assert_eq!((padded.x.dim(), padded.lengths.as_deref()), ((16, 3, 2), Some(&[3, 9, 1][..])));
        assert_eq!((padded.x[[2, 0, 1]], padded.x[[3, 0, 1]]), (3.0, 0.0));
        let Targets::Classes(classes) = padded.targets() else { panic!() };
        assert_eq!((classes[[8, 1]], classes[[9, 1]]), (9, 0));
    }
}
