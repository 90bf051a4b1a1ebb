//! [`Stream`]: sequences that arrive step by step, with their states kept on the device.

use ndarray::{Array3, ArrayView3, ArrayViewMut3, Axis, s};

use crate::cpu;
use crate::error::{Error, Result, check_shape};
use crate::gpu::wait::Wait;
use crate::model::blocking::blocking_and_async;
use crate::model::gru::Gru;
use crate::model::interop::Buffers;
use crate::reference;
use crate::spec::batch::Batch;
use crate::spec::config::{Direction, Shape};

mod adapter;
#[cfg(test)]
mod tests;

use adapter::AdapterStream;

/// A batch of sequences that arrive one step or several steps at a time, with their states kept on
/// the device.
///
/// The stream makes its pipelines, buffers and bind groups in advance; a step makes none. A stream
/// runs for inference: no dropout, zoneout by its expected value, as in [`Gru::forward`].
///
/// ```
/// use gru_wgpu::{Device, Gru, GruConfig, Init};
/// use ndarray::Array3;
///
/// let gru = Gru::new(GruConfig::pytorch(3, 8), Init::Uniform, 1, &Device::cpu())?;
/// let mut stream = gru.stream(100, &[1, 16])?; // 100 rows, chunks of 1 or 16 steps
/// let mut y = Array3::zeros((1, 100, 8));
/// gru.step(&mut stream, Array3::ones((1, 100, 3)).view(), y.view_mut())?;
/// stream.reset_row(7)?; // row 7's next step starts from zeros
/// gru.step(&mut stream, Array3::ones((1, 100, 3)).view(), y.view_mut())?;
/// # Ok::<(), gru_wgpu::Error>(())
/// ```
#[derive(Debug)]
pub struct Stream {
    model: u64,
    /// The shape of one step.
    shape: Shape,
    chunks: Vec<usize>,
    /// `[B]`: true for rows that start from the reset state at the next step.
    resets: Vec<bool>,
    storage: StreamStorage,
}

#[derive(Debug)]
enum StreamStorage {
    Host { state: Array3<f32>, reset_state: Array3<f32> },
    Adapter(Box<AdapterStream>),
}

impl Stream {
    /// Returns the number of rows B.
    pub fn rows(&self) -> usize {
        self.shape.batch
    }

    /// Returns the chunk lengths, in steps, that the stream was made for.
    pub fn chunks(&self) -> &[usize] {
        &self.chunks
    }

    /// Resets a row: its next step starts from the reset state.
    ///
    /// # Errors
    /// [`Error::Row`] if the stream has no such row.
    pub fn reset_row(&mut self, row: usize) -> Result<()> {
        let rows = self.rows();
        *self.resets.get_mut(row).ok_or(Error::Row { row, rows })? = true;
        Ok(())
    }

    /// Resets every row: the next step starts from the reset state.
    pub fn reset(&mut self) {
        self.resets.fill(true);
    }

    blocking_and_async! {
        /// Sets the reset state `[L, B, H]`, which is zeros at first. Resets by
        /// [`Self::reset_row`] and by a caller's step flags restore it from now on.
        ///
        /// Before this call, submit all steps that are already encoded: the queue writes the states
        /// before the next submit.
        ///
        /// # Errors
        /// [`Error::Shape`], and errors of the device.
        pub fn set_reset_state, set_reset_state_async(&mut self, given: ArrayView3<'_, f32>) -> Result<()> {
            |_| self.write_reset_state(given)
        }
    }

    async fn write_reset_state(&mut self, given: ArrayView3<'_, f32>) -> Result<()> {
        check_shape("the reset state [L, B, H]", &self.shape.state(), given.shape())?;
        match &mut self.storage {
            StreamStorage::Host { reset_state, .. } => reset_state.assign(&given),
            StreamStorage::Adapter(adapter) => adapter.set_reset_state(self.shape, given).await?,
        }
        Ok(())
    }

    blocking_and_async! {
        /// Sets the states `[L, B, H]` that the next step starts from, and cancels pending resets.
        ///
        /// Before this call, submit all steps that are already encoded: the queue writes the states
        /// before the next submit.
        ///
        /// # Errors
        /// [`Error::Shape`], and errors of the device.
        pub fn set_state, set_state_async(&mut self, given: ArrayView3<'_, f32>) -> Result<()> {
            |_| self.write_state(given)
        }
    }

    async fn write_state(&mut self, given: ArrayView3<'_, f32>) -> Result<()> {
        check_shape("the state [L, B, H]", &self.shape.state(), given.shape())?;
        self.resets.fill(false);
        match &mut self.storage {
            StreamStorage::Host { state, .. } => state.assign(&given),
            StreamStorage::Adapter(adapter) => adapter.set_state(self.shape, given).await?,
        }
        Ok(())
    }

    blocking_and_async! {
        /// Reads the states `[L, B, H]` from the device, after all queued work and pending resets.
        ///
        /// # Errors
        /// Errors of the device.
        pub fn state, state_async(&mut self) -> Result<Array3<f32>> {
            |wait| self.read_state(wait)
        }
    }

    async fn read_state(&mut self, wait: Wait) -> Result<Array3<f32>> {
        let (shape, resets) = (self.shape, &mut self.resets);
        match &mut self.storage {
            StreamStorage::Host { state, reset_state } => {
                reset_rows(resets, state, reset_state);
                Ok(state.clone())
            }
            StreamStorage::Adapter(adapter) => adapter.read_state(shape, resets, wait).await,
        }
    }

    /// Returns the index in `chunks` of the length `steps`.
    fn chunk_index(&self, steps: usize) -> Result<usize> {
        let index = self.chunks.iter().position(|&chunk| chunk == steps);
        index.ok_or_else(|| Error::Chunk { steps, known: self.chunks.clone() })
    }
}

/// Writes the reset state to the rows to reset, and clears `resets`. The CPU version of
/// [`AdapterStream::encode_resets`].
fn reset_rows(resets: &mut [bool], state: &mut Array3<f32>, reset_state: &Array3<f32>) {
    for (row, reset) in resets.iter_mut().enumerate() {
        if std::mem::take(reset) {
            state.slice_mut(s![.., row, ..]).assign(&reset_state.index_axis(Axis(1), row));
        }
    }
}

impl Gru {
    blocking_and_async! {
        /// Makes a stream of `rows` sequences, which start from zeros. `chunks` lists the numbers
        /// of steps that may arrive at once; `&[1]` means one step at a time.
        ///
        /// # Errors
        /// [`Error::Conflict`] for a model with a reverse direction, which starts at the end of a
        /// sequence: a stream has no end. [`Error::ZeroSize`], [`Error::Limit`], and errors of the
        /// device.
        pub fn stream, stream_async(&self, rows: usize, chunks: &[usize]) -> Result<Stream> {
            |_| self.open_stream(rows, chunks)
        }
    }

    async fn open_stream(&self, rows: usize, chunks: &[usize]) -> Result<Stream> {
        let shapes = self.stream_shapes(rows, chunks)?;
        let Ok(pool) = self.session_pool() else {
            let state = reference::zeros("a stream's states", shapes[0].state())?;
            let reset_state = state.clone();
            return Ok(self.make_stream(&shapes, StreamStorage::Host { state, reset_state }));
        };
        let adapter = AdapterStream::new(pool, self, &shapes, None).await?;
        Ok(self.make_stream(&shapes, StreamStorage::Adapter(Box::new(adapter))))
    }

    blocking_and_async! {
        /// Makes a stream over a caller's own buffers, for [`Self::encode_step`]. A step reads a
        /// chunk from x and writes its outputs to y. A chunk shorter than the longest uses the
        /// first elements of the buffers.
        ///
        /// # Errors
        /// The errors of [`Self::stream`] and [`Gru::forward_pass`], and [`Error::Conflict`] if the
        /// buffers include h0, reset_state or h_n: a stream keeps its states itself.
        pub fn stream_over, stream_over_async(
            &self,
            rows: usize,
            chunks: &[usize],
            buffers: &Buffers<'_>,
        ) -> Result<Stream> {
            |_| self.open_stream_over(rows, chunks, buffers)
        }
    }

    async fn open_stream_over(
        &self,
        rows: usize,
        chunks: &[usize],
        buffers: &Buffers<'_>,
    ) -> Result<Stream> {
        let shapes = self.stream_shapes(rows, chunks)?;
        let pool = self.session_pool()?;
        if buffers.h0.is_some() || buffers.h_n.is_some() || buffers.reset_state.is_some() {
            return Err(Error::Conflict {
                what: "a stream and buffers for its states",
                why: "a stream keeps its states itself; use Stream::set_state and set_reset_state",
            });
        }
        for &shape in &shapes {
            buffers.check(pool.gpu(), shape)?;
        }
        let adapter = AdapterStream::new(pool, self, &shapes, Some(buffers)).await?;
        Ok(self.make_stream(&shapes, StreamStorage::Adapter(Box::new(adapter))))
    }

    blocking_and_async! {
        /// Runs all rows through a chunk x `[T, B, I]` and writes y `[T, B, H]`.
        ///
        /// # Errors
        /// [`Error::Chunk`] if the stream was not made for chunks of T steps, [`Error::Shape`],
        /// [`Error::OtherModel`], [`Error::Interrupted`] after a step that failed on the device or
        /// whose future was dropped, and errors of the device.
        pub fn step, step_async(
            &self,
            stream: &mut Stream,
            x: ArrayView3<'_, f32>,
            y: ArrayViewMut3<'_, f32>,
        ) -> Result<()> {
            |wait| self.run_step(stream, x, y, wait)
        }
    }

    async fn run_step(
        &self,
        stream: &mut Stream,
        x: ArrayView3<'_, f32>,
        mut y: ArrayViewMut3<'_, f32>,
        wait: Wait,
    ) -> Result<()> {
        self.check_stream(stream)?;
        let steps = x.dim().0;
        let chunk = stream.chunk_index(steps)?;
        let shape = Shape { steps, ..stream.shape };
        check_shape("x [T, B, I]", &shape.x(), x.shape())?;
        check_shape("y [T, B, H]", &shape.y(), y.shape())?;
        match &mut stream.storage {
            StreamStorage::Host { state, reset_state } => {
                reset_rows(&mut stream.resets, state, reset_state);
                let batch = Batch::new(x).reborrow().with_h0(state.view());
                let (out, h_n) = cpu::forward(self.params(), self.cpu_weights(), batch)?;
                y.assign(&out);
                *state = h_n;
                Ok(())
            }
            StreamStorage::Adapter(adapter) => {
                let pool = self.session_pool()?;
                pool.with_parameters(self.params(), self.version(), || Ok(())).await?;
                adapter.step(chunk, shape, &mut stream.resets, x, y, wait).await
            }
        }
    }

    /// Encodes the next chunk of `steps` steps into `encoder`, with the model's current parameters.
    /// The commands are the pending resets and one compute pass from the caller's x to the caller's
    /// y. The stream requires that you submit each encoder once, in the order of these calls.
    ///
    /// # Errors
    /// [`Error::Chunk`], [`Error::OtherModel`], and [`Error::Conflict`] if the stream was not made
    /// with [`Self::stream_over`].
    pub fn encode_step(
        &self,
        stream: &mut Stream,
        steps: usize,
        encoder: &mut wgpu::CommandEncoder,
    ) -> Result<()> {
        self.check_stream(stream)?;
        let chunk = stream.chunk_index(steps)?;
        match &mut stream.storage {
            StreamStorage::Adapter(adapter) if adapter.is_over_buffers() => {
                let (shape, resets) = (stream.shape, &mut stream.resets);
                let work = || adapter.encode(chunk, shape, resets, encoder);
                self.session_pool()?.with_parameters_now(self.params(), self.version(), work)
            }
            _ => Err(Error::Conflict {
                what: "a stream over arrays and an encoder",
                why: "make the stream with Gru::stream_over to encode its steps",
            }),
        }
    }

    fn check_stream(&self, stream: &Stream) -> Result<()> {
        self.check_usable()?;
        match stream.model == self.id() {
            true => Ok(()),
            false => Err(Error::OtherModel { what: "stream" }),
        }
    }

    /// Returns the shape of each chunk.
    fn stream_shapes(&self, rows: usize, chunks: &[usize]) -> Result<Vec<Shape>> {
        if self.config().direction != Direction::Forward {
            return Err(Error::Conflict {
                what: "a stream and a reverse direction",
                why: "a reverse direction starts at the end of a sequence, and a stream has no end",
            });
        }
        if chunks.is_empty() {
            return Err(Error::ZeroSize { what: "the number of chunk lengths" });
        }
        chunks.iter().map(|&steps| self.config().shape(steps, rows)).collect()
    }

    fn make_stream(&self, shapes: &[Shape], storage: StreamStorage) -> Stream {
        Stream {
            model: self.id(),
            shape: Shape { steps: 1, ..shapes[0] },
            chunks: shapes.iter().map(|shape| shape.steps).collect(),
            resets: vec![false; shapes[0].batch],
            storage,
        }
    }
}
