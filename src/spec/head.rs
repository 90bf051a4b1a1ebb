//! [`Head`]: a linear layer on a GRU. The loops here are the CPU's and the specification of
//! `plan/head.rs`.

use ndarray::{Array2, Array3, Axis, NdFloat, s};

use crate::error::{Result, try_with_capacity};
use crate::spec::chunk::Chunk;
use crate::spec::config::Shape;

/// A linear layer on a GRU: outputs = W · features + b, with `head.weight` `[C, D·H]` and
/// `head.bias` `[C]` among the parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
#[non_exhaustive]
pub struct Head {
    /// C, the outputs of a row.
    pub outputs: usize,
    /// What it reads.
    pub readout: Readout,
}

/// What a head reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Readout {
    /// y, at every step: outputs `[T, B, C]`, or `[B, T, C]` of a batch-first run. For labelling.
    EveryStep,
    /// The last layer's last states, of both directions side by side: outputs `[B, C]`. Of the
    /// reverse direction that is its state at the sequence's start, so both have read all of it.
    /// For classification.
    #[cfg_attr(feature = "serde", serde(rename = "last"))]
    LastState,
}

impl Head {
    /// Of `outputs` numbers at every step.
    pub fn every_step(outputs: usize) -> Self {
        Self { outputs, readout: Readout::EveryStep }
    }

    /// Of `outputs` numbers a sequence.
    pub fn last(outputs: usize) -> Self {
        Self { outputs, readout: Readout::LastState }
    }

    /// Rows of outputs that a run makes.
    pub(crate) fn rows(&self, shape: Shape) -> usize {
        match self.readout {
            Readout::EveryStep => shape.steps * shape.batch,
            Readout::LastState => shape.batch,
        }
    }

    /// The axes of the outputs but the last, in the run's layout.
    pub(crate) fn row_axes(&self, shape: Shape) -> Vec<usize> {
        match self.readout {
            Readout::EveryStep => shape.y()[..2].to_vec(),
            Readout::LastState => vec![shape.batch],
        }
    }

    /// Whether each row of outputs is of a valid step, or of a sequence that has one.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory): a batch may be a view of one number
    /// repeated.
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

    /// Which of a run's rows of outputs are those of a chunk, in the chunk's order.
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

    /// What the head reads of a run's y and h_n: `[rows, D·H]`.
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
                y.into_shape_with_order((rows, directions * hidden)).expect("as many elements")
            }
            Readout::LastState => {
                Array2::from_shape_fn((batch, directions * hidden), |(row, at)| {
                    h_n[[last_cell(shape, at / hidden), row, at % hidden]]
                })
            }
        }
    }

    /// The gradient of the features as that of y or of h_n.
    pub(crate) fn scatter<F: NdFloat>(
        &self,
        shape: Shape,
        dfeatures: Array2<F>,
    ) -> (Option<Array3<F>>, Option<Array3<F>>) {
        let Shape { hidden, directions, .. } = shape;
        match self.readout {
            Readout::EveryStep => {
                let dfeatures = dfeatures.as_standard_layout().into_owned();
                let dy = dfeatures.into_shape_with_order(shape.y()).expect("as many elements");
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

/// A direction of the last layer, among all cells.
fn last_cell(shape: Shape, direction: usize) -> usize {
    (shape.layers - 1) * shape.directions + direction
}
