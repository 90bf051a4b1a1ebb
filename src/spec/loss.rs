//! [`Loss`], a loss function, and [`Targets`], the targets of a run.
//!
//! The loops here run on the CPU. They are also the reference of `shaders/loss.wgsl`.

use ndarray::{ArrayView2, ArrayView3, ArrayViewD, NdFloat};

use crate::error::{Error, Result, check_shape, try_with_capacity};
use crate::spec::config::Shape;
use crate::spec::head::Head;

/// A loss function of the outputs o and the targets t, averaged over the rows that count. Rows of
/// padding and of an ignored class do not count.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case", deny_unknown_fields))]
#[non_exhaustive]
pub enum Loss {
    /// The mean squared error: (o − t)², the mean over the C outputs of every row that counts.
    MeanSquared,
    /// The Huber loss (Huber 1964) with d = o − t: d² / 2 up to |d| = δ, δ (|d| − δ/2) beyond. The
    /// mean is over the C outputs of every row that counts.
    Huber {
        /// δ, finite and above 0.
        delta: f32,
    },
    /// The cross-entropy: −log softmax(o)\[t\], the mean over the rows that count. Targets are
    /// classes from 0 to C − 1.
    CrossEntropy {
        /// The ignored class: rows with it do not count.
        #[cfg_attr(feature = "serde", serde(default = "pytorch_ignore"))]
        ignore: Option<i32>,
    },
}

/// The class that PyTorch's cross-entropy ignores by default.
fn pytorch_ignore() -> Option<i32> {
    Some(-100)
}

impl Loss {
    /// Returns the cross-entropy that ignores class −100, as PyTorch's does.
    pub fn cross_entropy() -> Self {
        Self::CrossEntropy { ignore: pytorch_ignore() }
    }

    /// Returns the ignored class.
    pub(crate) fn ignored(&self) -> Option<i32> {
        match *self {
            Self::CrossEntropy { ignore } => ignore,
            Self::MeanSquared | Self::Huber { .. } => None,
        }
    }

    /// Checks that δ is finite and above 0.
    pub(crate) fn validate(&self) -> Result<()> {
        match *self {
            Self::Huber { delta } if !(delta.is_finite() && delta > 0.0) => {
                Err(Error::setting("Huber's delta", delta, "a finite number above 0"))
            }
            _ => Ok(()),
        }
    }
}

/// The targets of a run, with the axes of its outputs. Targets of padding are not read.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Targets<'a> {
    /// Numbers, `[T, B, C]` (`[B, T, C]` in a batch-first run) or `[B, C]`.
    Values(ArrayViewD<'a, f32>),
    /// Classes, `[T, B]` (`[B, T]` in a batch-first run) or `[B]`.
    Classes(ArrayViewD<'a, i32>),
    /// Targets of which only some rows count; see [`Targets::with_mask`].
    Masked {
        /// The targets of all rows.
        targets: Box<Targets<'a>>,
        /// True for each row that counts, `[T, B]` (`[B, T]` in a batch-first run) or `[B]`.
        mask: ArrayViewD<'a, bool>,
    },
}

impl<'a> Targets<'a> {
    /// Counts only the rows of outputs where `mask` is true: the loss is the mean over them, and
    /// the targets of other rows are not read. The mask is `[T, B]` (`[B, T]` in a batch-first run)
    /// or `[B]`.
    ///
    /// ```
    /// use gru_wgpu::Targets;
    /// use ndarray::{Array2, Array3};
    ///
    /// // Only the last of 20 steps has a target.
    /// let values = Array3::<f32>::zeros((20, 4, 1));
    /// let mask = Array2::from_shape_fn((20, 4), |(t, _)| t == 19);
    /// let targets = Targets::from(values.view()).with_mask(mask.view().into_dyn());
    /// ```
    #[must_use]
    pub fn with_mask(self, mask: ArrayViewD<'a, bool>) -> Self {
        Self::Masked { targets: Box::new(self), mask }
    }
}

impl<'a> From<ArrayView3<'a, f32>> for Targets<'a> {
    fn from(values: ArrayView3<'a, f32>) -> Self {
        Self::Values(values.into_dyn())
    }
}

impl<'a> From<ArrayView2<'a, f32>> for Targets<'a> {
    fn from(values: ArrayView2<'a, f32>) -> Self {
        Self::Values(values.into_dyn())
    }
}

impl<'a> From<ArrayView2<'a, i32>> for Targets<'a> {
    fn from(classes: ArrayView2<'a, i32>) -> Self {
        Self::Classes(classes.into_dyn())
    }
}

impl<'a> From<&'a [i32]> for Targets<'a> {
    fn from(classes: &'a [i32]) -> Self {
        Self::Classes(ndarray::aview1(classes).into_dyn())
    }
}

/// Targets and weights in the form that the kernels and the loops here read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PreparedTargets {
    pub targets: TargetData,
    /// The weight of each row of outputs: a factor over the number of values in the mean, or 0 for
    /// a row that does not count.
    pub weights: Vec<f32>,
}

/// The targets of all rows of outputs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum TargetData {
    /// C numbers per row.
    Values(Vec<f32>),
    /// A class per row, any class for a row that does not count.
    Classes(Vec<u32>),
}

impl PreparedTargets {
    /// Prepares `targets` for the outputs of `head` in a run of `shape`. The weights are multiplied
    /// by `factor`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Class`], [`Error::Conflict`] or [`Error::NoTarget`].
    pub fn new(
        head: &Head,
        loss: &Loss,
        shape: Shape,
        lengths: Option<&[usize]>,
        targets: &Targets<'_>,
        factor: f64,
    ) -> Result<Self> {
        let mut counts = head.valid(shape, lengths)?;
        let mut axes = head.row_axes(shape);
        let mut targets = targets;
        while let Targets::Masked { targets: inner, mask } = targets {
            check_shape("the mask of targets", &axes, mask.shape())?;
            counts.iter_mut().zip(mask).for_each(|(counts, &counted)| *counts &= counted);
            targets = inner;
        }
        let (targets, each) = match (targets, loss) {
            (Targets::Masked { .. }, _) => unreachable!("the masks are applied"),
            (Targets::Values(values), Loss::MeanSquared | Loss::Huber { .. }) => {
                axes.push(head.outputs);
                check_shape("targets", &axes, values.shape())?;
                let mut all = try_with_capacity("targets", values.len())?;
                all.extend(values);
                (TargetData::Values(all), head.outputs)
            }
            (Targets::Classes(classes), Loss::CrossEntropy { ignore }) => {
                check_shape("targets", &axes, classes.shape())?;
                let indices = class_indices(classes, head.outputs, *ignore, &mut counts)?;
                (TargetData::Classes(indices), 1)
            }
            (Targets::Values(_), Loss::CrossEntropy { .. }) => {
                let why = "cross-entropy takes classes (i32); pass classes or choose another loss";
                return Err(Error::Conflict {
                    what: "cross-entropy and targets that are numbers",
                    why,
                });
            }
            (Targets::Classes(_), _) => {
                let why = "only cross-entropy takes classes; pass numbers or choose cross-entropy";
                return Err(Error::Conflict {
                    what: "this loss and targets that are classes",
                    why,
                });
            }
        };
        let counted = counts.iter().filter(|&&counts| counts).count();
        if counted == 0 {
            return Err(Error::NoTarget);
        }
        let weight = (factor / (counted as f64 * each as f64)) as f32;
        let mut weights = try_with_capacity("the weights of targets", counts.len())?;
        weights.extend(counts.into_iter().map(|counts| if counts { weight } else { 0.0 }));
        Ok(Self { targets, weights })
    }

    /// Returns the targets and weights of these rows of outputs.
    pub fn of_rows(&self, rows: &[usize]) -> Self {
        let targets = match &self.targets {
            TargetData::Classes(classes) => {
                TargetData::Classes(rows.iter().map(|&at| classes[at]).collect())
            }
            TargetData::Values(values) => {
                let width = values.len() / self.weights.len();
                let row = |&at: &usize| &values[at * width..(at + 1) * width];
                TargetData::Values(rows.iter().flat_map(row).copied().collect())
            }
        };
        Self { targets, weights: rows.iter().map(|&at| self.weights[at]).collect() }
    }

    /// Returns the number of rows that count.
    pub fn counted(&self) -> usize {
        self.weights.iter().filter(|&&weight| weight != 0.0).count()
    }

    /// Returns the number of rows that count and whose largest output is the target class's, or
    /// `None` if the targets are numbers.
    pub fn correct(&self, outputs: &[f32]) -> Option<usize> {
        let TargetData::Classes(classes) = &self.targets else { return None };
        let rows = outputs.chunks_exact(outputs.len() / self.weights.len());
        let is_correct = |((row, &class), &weight): ((&[f32], &u32), &f32)| {
            let own = row[class as usize];
            // Of several largest outputs, the first one is the prediction.
            let first = row[..class as usize].iter().all(|&other| other < own);
            weight != 0.0 && first && row[class as usize..].iter().all(|&other| other <= own)
        };
        Some(rows.zip(classes).zip(&self.weights).filter(|&row| is_correct(row)).count())
    }

    /// Returns the loss of `outputs` `[rows, C]`, and overwrites them with its gradient.
    pub fn differentiate<F: NdFloat>(&self, loss: &Loss, outputs: &mut [F]) -> f64 {
        let width = outputs.len() / self.weights.len();
        let rows = outputs.chunks_exact_mut(width).zip(&self.weights).enumerate();
        let mut sum = 0.0;
        for (at, (row, &weight)) in rows {
            if weight == 0.0 {
                // Not multiplied by the weight 0: the outputs may be infinite or NaN.
                row.fill(F::zero());
                continue;
            }
            let weight = cast::<F>(weight.into());
            let value = match (&self.targets, loss) {
                (TargetData::Classes(classes), _) => softmax_row(row, classes[at] as usize),
                (TargetData::Values(values), _) => {
                    difference_row(row, &values[at * width..(at + 1) * width], loss)
                }
            };
            row.iter_mut().for_each(|v| *v *= weight);
            sum += (value * weight).to_f64().expect("a float");
        }
        sum
    }
}

/// Converts classes to u32 indices, and sets `counts` to false for rows of the ignored class.
fn class_indices(
    classes: &ArrayViewD<'_, i32>,
    outputs: usize,
    ignore: Option<i32>,
    counts: &mut [bool],
) -> Result<Vec<u32>> {
    let index = |(row, (&class, counts)): (usize, (&i32, &mut bool))| {
        *counts &= ignore != Some(class);
        match usize::try_from(class) {
            _ if !*counts => Ok(0),
            Ok(class) if class < outputs => Ok(class as u32),
            _ => Err(Error::Class { row, class, outputs }),
        }
    };
    let mut all = try_with_capacity("targets", classes.len())?;
    for class in classes.iter().zip(counts).enumerate().map(index) {
        all.push(class?);
    }
    Ok(all)
}

/// Returns the cross-entropy of a row of outputs, and overwrites the row with softmax − one-hot.
fn softmax_row<F: NdFloat>(row: &mut [F], class: usize) -> F {
    // `b > a` is false for NaN, so `largest` skips it. The sum, and so the loss, is still NaN.
    let largest = row.iter().fold(F::neg_infinity(), |a, &b| if b > a { b } else { a });
    let own = row[class] - largest;
    row.iter_mut().for_each(|v| *v = (*v - largest).exp());
    let sum: F = row.iter().fold(F::zero(), |a, &b| a + b);
    row.iter_mut().for_each(|v| *v /= sum);
    row[class] -= F::one();
    sum.ln() - own
}

/// Returns the sum of a row's losses, and overwrites its outputs with their derivatives.
fn difference_row<F: NdFloat>(row: &mut [F], targets: &[f32], loss: &Loss) -> F {
    let two = F::one() + F::one();
    let mut sum = F::zero();
    for (output, &target) in row.iter_mut().zip(targets) {
        let d = *output - cast(target.into());
        let (value, derivative) = match *loss {
            Loss::Huber { delta } => {
                let delta = cast::<F>(delta.into());
                // Comparisons instead of `min` and `max`, so that NaN stays NaN.
                let near = if d > delta {
                    delta
                } else if d < -delta {
                    -delta
                } else {
                    d
                };
                (near * (d - near / two), near)
            }
            _ => (d * d, d + d),
        };
        *output = derivative;
        sum += value;
    }
    sum
}

fn cast<F: NdFloat>(value: f64) -> F {
    F::from(value).expect("every float converts to a float")
}
