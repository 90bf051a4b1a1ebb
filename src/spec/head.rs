//! [`Head`]: a linear layer on top of a GRU. The loops here run on the CPU. They are also the
//! reference of `plan/head.rs`.

use ndarray::{Array2, Array3, Axis, NdFloat, s};

use crate::error::{Result, try_with_capacity};
use crate::spec::chunk::Chunk;
use crate::spec::config::Shape;

/// A linear layer on top of a GRU: outputs = W · features + b. W is the parameter `head.weight`
/// `[C, D·H]`, b is `head.bias` `[C]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
#[non_exhaustive]
pub struct Head {
    /// C, the number of outputs per row.
    pub outputs: usize,
    /// The part of the GRU's output that the head reads.
    pub readout: Readout,
}

/// The part of a GRU's output that a head reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Readout {
    /// y at every step, for sequence labelling: outputs `[T, B, C]`, or `[B, T, C]` in a
    /// batch-first run.
    EveryStep,
    /// The last layer's last states, with both directions concatenated, for classification:
    /// outputs `[B, C]`. The reverse direction's last state is at the first step, so both
    /// directions have read the whole sequence.
    #[cfg_attr(feature = "serde", serde(rename = "last"))]
    LastState,
}

impl std::fmt::Display for Head {
    /// `4 outputs of the last state`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let of = match self.readout {
            Readout::EveryStep => "every step",
            Readout::LastState => "the last state",
        };
        write!(f, "{} outputs of {of}", self.outputs)
    }
}

impl Head {
    /// Returns a head with `outputs` outputs at every step.
    pub fn every_step(outputs: usize) -> Self {
        Self { outputs, readout: Readout::EveryStep }
    }

    /// Returns a head with `outputs` outputs per sequence.
    pub fn last(outputs: usize) -> Self {
        Self { outputs, readout: Readout::LastState }
    }

    /// Returns the number of rows of outputs in a run: T·B or B.
    pub(crate) fn rows(&self, shape: Shape) -> usize {
        match self.readout {
            Readout::EveryStep => shape.steps * shape.batch,
            Readout::LastState => shape.batch,
        }
    }

    /// Returns the shape of the outputs without the last axis, in the run's layout.
    pub(crate) fn row_axes(&self, shape: Shape) -> Vec<usize> {
        match self.readout {
            Readout::EveryStep => shape.y()[..2].to_vec(),
            Readout::LastState => vec![shape.batch],
        }
    }

    /// Returns one flag for each row of outputs, true if the row is valid: its step is within the
    /// batch row's length, or its sequence has at least one step.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory): x may be a broadcast view of any size.
    pub(crate) fn valid(&self, shape: Shape, lengths: Option<&[usize]>) -> Result<Vec<bool>> {
        let rows = self.rows(shape);
        let mut valid = try_with_capacity("the rows of outputs", rows)?;
        let Some(lengths) = lengths else {
            valid.resize(rows, true);
            return Ok(valid);
        };
        match self.readout {
            Readout::LastState => valid.extend(lengths.iter().map(|&length| length > 0)),
            Readout::EveryStep => {
                let [_, inner, _] = shape.y();
                valid.extend((0..rows).map(|at| {
                    let [step, row] = shape.layout.order(at / inner, at % inner);
                    step < lengths[row]
                }));
            }
        }
        Ok(valid)
    }

    /// Returns the indices of a chunk's rows of outputs among the run's rows of outputs, in the
    /// chunk's order.
    pub(crate) fn rows_of(&self, chunk: &Chunk, shape: Shape) -> Vec<usize> {
        match self.readout {
            Readout::LastState => chunk.rows.clone().collect(),
            Readout::EveryStep => {
                let [outer, inner] = shape.layout.order(chunk.steps.clone(), chunk.rows.clone());
                let [_, width, _] = shape.y();
                outer.flat_map(|i| inner.clone().map(move |j| i * width + j)).collect()
            }
        }
    }

    /// Returns the features that the head reads from a run's y or h_n, `[rows, D·H]`.
    pub(crate) fn features<F: NdFloat>(
        &self,
        shape: Shape,
        y: &Array3<F>,
        h_n: &Array3<F>,
    ) -> Array2<F> {
        let Shape { batch, hidden, directions, .. } = shape;
        let rows = self.rows(shape);
        match self.readout {
            Readout::EveryStep => {
                let y = y.as_standard_layout().into_owned();
                y.into_shape_with_order((rows, directions * hidden)).expect("equal lengths")
            }
            Readout::LastState => {
                Array2::from_shape_fn((batch, directions * hidden), |(row, at)| {
                    h_n[[last_cell(shape, at / hidden), row, at % hidden]]
                })
            }
        }
    }

    /// Converts the gradient of the features to dy or dh_n.
    pub(crate) fn scatter<F: NdFloat>(
        &self,
        shape: Shape,
        dfeatures: Array2<F>,
    ) -> (Option<Array3<F>>, Option<Array3<F>>) {
        let Shape { hidden, directions, .. } = shape;
        match self.readout {
            Readout::EveryStep => {
                let dfeatures = dfeatures.as_standard_layout().into_owned();
                let dy = dfeatures.into_shape_with_order(shape.y()).expect("equal lengths");
                (Some(dy), None)
            }
            Readout::LastState => {
                let mut dh_n = Array3::zeros(shape.state());
                for direction in 0..directions {
                    let columns = s![.., direction * hidden..(direction + 1) * hidden];
                    let cell = last_cell(shape, direction);
                    dh_n.index_axis_mut(Axis(0), cell).assign(&dfeatures.slice(columns));
                }
                (None, Some(dh_n))
            }
        }
    }
}

/// Returns the index among all cells of a direction of the last layer.
fn last_cell(shape: Shape, direction: usize) -> usize {
    (shape.layers - 1) * shape.directions + direction
}
