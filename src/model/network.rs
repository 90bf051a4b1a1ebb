//! [`Network`]: a GRU with a linear head, to predict with.

use ndarray::{Array2, Array3, ArrayD, s};

use crate::cpu;
use crate::error::{Result, try_untouched};
use crate::gpu::transfer::Wait;
use crate::model::device::Device;
use crate::model::executor::Input;
use crate::model::gru::Gru;
use crate::plan::{Mode, Pass, Purpose, States};
use crate::spec::batch::Batch;
use crate::spec::chunk::Chunk;
use crate::spec::config::Shape;
use crate::spec::head::{Head, Readout};
use crate::spec::linear::Linear;
use crate::spec::loss::{Loss, PreparedTargets, Targets};
use crate::spec::options::RunOptions;
use crate::spec::params::Params;
use crate::spec::sequences::{check_sequence, in_order, pad};

/// A [`Gru`] with a linear [`Head`]: from sequences to outputs. On an adapter only x goes up and the
/// outputs come down.
///
/// ```
/// use gru_wgpu::{Device, GruConfig, Head, Init, Network, ParamLayout, Params};
/// use ndarray::Array3;
///
/// let layout = ParamLayout::with_head(&GruConfig::pytorch(3, 8), Head::last(5))?;
/// let network = Network::new(Params::init_of(layout, Init::Uniform, 1)?, &Device::cpu())?;
/// let outputs = network.forward(&Array3::ones((10, 2, 3)))?; // T 10, B 2, I 3
/// assert_eq!(outputs.shape(), [2, 5]);
/// # Ok::<(), gru_wgpu::Error>(())
/// ```
#[derive(Debug)]
pub struct Network {
    gru: Gru,
    head: Head,
}

impl Network {
    /// With these parameters, whose layout has a head.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it has none; as [`Gru::with_params`].
    pub fn new(params: Params, device: &Device) -> Result<Self> {
        pollster::block_on(Self::new_async(params, device))
    }

    /// As [`Self::new`], for where blocking is not possible.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub async fn new_async(params: Params, device: &Device) -> Result<Self> {
        let head = params.layout().required_head()?;
        Ok(Self { gru: Gru::with_params_async(params, device).await?, head })
    }

    /// The same network run another way.
    #[must_use]
    pub fn with_options(self, options: RunOptions) -> Self {
        Self { gru: self.gru.with_options(options), ..self }
    }

    /// Its GRU, whose parameters are the whole network's.
    pub fn gru(&self) -> &Gru {
        &self.gru
    }

    /// The same, to be changed.
    pub(crate) fn gru_mut(&mut self) -> &mut Gru {
        &mut self.gru
    }

    /// Its head.
    pub fn head(&self) -> Head {
        self.head
    }

    /// All its parameters.
    pub fn params(&self) -> &Params {
        self.gru.params()
    }

    /// The outputs `[T, B, C]` (`[B, T, C]` of a batch-first run) or `[B, C]`, as the head says. Those of
    /// padding are the bias.
    ///
    /// # Errors
    /// As [`Gru::forward`].
    pub fn forward<'a>(&self, batch: impl Into<Batch<'a>>) -> Result<ArrayD<f32>> {
        pollster::block_on(self.run(batch.into(), Wait::Block))
    }

    /// As [`Self::forward`], for where blocking is not possible.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub async fn forward_async<'a>(&self, batch: impl Into<Batch<'a>>) -> Result<ArrayD<f32>> {
        self.run(batch.into(), Wait::Async).await
    }

    /// The outputs of sequences `[T, I]` of unequal lengths, `batch` of them at a time: of each `[T, C]`, or
    /// `[1, C]` where the head is over the last states.
    ///
    /// # Errors
    /// [`Error::ZeroSize`] when a sequence has no step, [`Error::Shape`] when one has another number of
    /// inputs, and as [`Self::forward`].
    pub fn forward_each(
        &self,
        sequences: &[Array2<f32>],
        batch: usize,
    ) -> Result<Vec<Array2<f32>>> {
        let inputs = self.gru.config().input_size;
        for (at, sequence) in sequences.iter().enumerate() {
            check_sequence(&format!("sequence {at}"), sequence, inputs)?;
        }
        let mut all = Vec::with_capacity(sequences.len());
        for range in in_order(sequences.len(), batch) {
            let (x, lengths) = pad(sequences[range].iter())?;
            let outputs = self.forward(Batch::new(x.view()).with_lengths(&lengths))?;
            for (row, &length) in lengths.iter().enumerate() {
                all.push(match self.head.readout {
                    Readout::LastState => outputs.slice(s![row..=row, ..]).to_owned(),
                    Readout::EveryStep => outputs.slice(s![..length, row, ..]).to_owned(),
                });
            }
        }
        Ok(all)
    }

    /// How its outputs for a batch do against these targets, without dropout.
    ///
    /// # Errors
    /// As [`Self::forward`], and [`Error::Shape`], [`Error::Class`], [`Error::Conflict`] or
    /// [`Error::NoTarget`] when the targets do not fit.
    pub fn evaluate<'b, 't>(
        &self,
        loss: &Loss,
        batch: impl Into<Batch<'b>>,
        targets: impl Into<Targets<'t>>,
    ) -> Result<Evaluation> {
        let (batch, targets) = (batch.into(), targets.into());
        let shape = batch.check(self.gru.config())?;
        let wanted = PreparedTargets::new(&self.head, loss, shape, batch.lengths, &targets, 1.0)?;
        let mut outputs = self.forward(batch)?;
        let outputs = outputs.as_slice_mut().expect("standard layout");
        let correct = wanted.correct(outputs);
        let loss = wanted.differentiate(loss, outputs);
        Ok(Evaluation { counted: wanted.counted(), loss, correct })
    }

    async fn run(&self, batch: Batch<'_>, wait: Wait) -> Result<ArrayD<f32>> {
        let (batch, shape) = self.gru.check(None, batch.reborrow())?;
        if self.gru.device().is_adapter() {
            return self.run_on(shape, batch, wait).await;
        }
        let (y, h_n) = cpu::forward(self.params(), self.gru.cpu_weights(), batch)?;
        let features = self.head.features(shape, &y, &h_n);
        let outputs = Linear::of(self.params()).forward(features.view());
        Ok(self.outputs(shape, outputs.into_raw_vec_and_offset().0))
    }

    async fn run_on(&self, shape: Shape, batch: Batch<'_>, wait: Wait) -> Result<ArrayD<f32>> {
        let (mode, purpose) = (Mode::Inference, Purpose::Outputs);
        let chunks = self.gru.chunks_of(shape, mode, purpose)?;
        let input = Input::new(shape, mode, &chunks, None, batch, wait).await?;
        let mut before = None::<(&Chunk, Array3<f32>)>;
        let len = if chunks.len() == 1 { 0 } else { self.head.rows(shape) * self.head.outputs };
        let mut all: Vec<f32> = try_untouched("the outputs", len)?;
        for chunk in &chunks {
            let part = chunk.shape(shape);
            let mut session = self.gru.session(part, mode, purpose, None).await?;
            let carried = before.as_ref().filter(|(before, _)| chunk.has_rows_of(Some(before)));
            let carried = carried.map(|(_, h_n)| h_n.view());
            input.upload(&mut session, chunk, carried).await?;
            session.run(Pass::Forward).await?;
            let outputs = session.plan().head_buffers().outputs;
            let outputs = (outputs, 0..self.head.rows(part) * self.head.outputs);
            let states = (session.plan().run_buffers().states, States::Last.range(part));
            let [outputs, h_n] =
                session.read(&[outputs, states], wait).await?.try_into().expect("two parts");
            if part == shape {
                return Ok(self.outputs(shape, outputs));
            }
            let width = self.head.outputs;
            let rows = self.head.rows_of(chunk, shape).into_iter().zip(outputs.chunks(width));
            rows.for_each(|(at, row)| all[width * at..][..width].copy_from_slice(row));
            let h_n = Array3::from_shape_vec(part.state(), h_n).expect("as many as it holds");
            before = Some((chunk, h_n));
        }
        Ok(self.outputs(shape, all))
    }

    /// Row by row.
    fn outputs(&self, shape: Shape, outputs: Vec<f32>) -> ArrayD<f32> {
        let mut axes = self.head.row_axes(shape);
        axes.push(self.head.outputs);
        ArrayD::from_shape_vec(axes, outputs).expect("C numbers a row")
    }
}

/// How a network does on some targets.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Evaluation {
    /// Rows of outputs that count.
    pub counted: usize,
    /// Their mean loss.
    pub loss: f64,
    /// Of classes, how many rows' largest output is that of their class.
    pub correct: Option<usize>,
}

impl Evaluation {
    /// The share of rows that are correct, of classes.
    pub fn accuracy(&self) -> Option<f64> {
        self.correct.map(|correct| correct as f64 / self.counted as f64)
    }

    /// By accuracy where there is one, then by loss.
    pub fn is_better_than(&self, other: &Self) -> bool {
        let (now, then) = (self.accuracy(), other.accuracy());
        now > then || (now == then && self.loss < other.loss)
    }
}

/// Of all rows together.
impl std::ops::AddAssign for Evaluation {
    fn add_assign(&mut self, more: Self) {
        let sum = self.loss * self.counted as f64 + more.loss * more.counted as f64;
        // The first ones say whether there are classes.
        self.correct = match (self.counted, self.correct) {
            (0, _) => more.correct,
            (_, correct) => correct.zip(more.correct).map(|(a, b)| a + b),
        };
        self.counted += more.counted;
        self.loss = if self.counted == 0 { 0.0 } else { sum / self.counted as f64 };
    }
}
