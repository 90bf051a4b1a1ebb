//! [`Stream`]: sequences that arrive step by step, their states kept on the device.

use ndarray::{Array3, ArrayView3, ArrayViewMut3, Axis, s};

use crate::cpu;
use crate::error::{Error, Result, check_shape};
use crate::gpu::context::{Gpu, one_line};
use crate::gpu::pool::SessionPool;
use crate::gpu::session::{Bound, Session};
use crate::gpu::transfer::Wait;
use crate::model::gru::Gru;
use crate::model::interop::Buffers;
use crate::plan::{Mode, States};
use crate::reference;
use crate::spec::batch::Batch;
use crate::spec::config::{Direction, Shape};
use crate::spec::element::ElementType::F32;

/// Many sequences that arrive a step or a chunk at a time, their states kept on the device.
///
/// Everything a step needs is made with the stream: a step makes no pipeline, no buffer and no bind
/// group. Nothing is drawn: dropout and zoneout are as in [`Gru::forward`].
///
/// ```
/// use gru_wgpu::{Device, Gru, GruConfig, Init};
/// use ndarray::Array3;
///
/// let gru = Gru::new(GruConfig::pytorch(3, 8), Init::Uniform, 1, &Device::cpu())?;
/// let mut stream = gru.stream(100, &[1, 16])?; // 100 rows, one step or sixteen at a time
/// let mut y = Array3::zeros((1, 100, 8));
/// gru.step(&mut stream, Array3::ones((1, 100, 3)).view(), y.view_mut())?;
/// stream.reset_row(7)?; // row 7's next step starts from zeros
/// gru.step(&mut stream, Array3::ones((1, 100, 3)).view(), y.view_mut())?;
/// # Ok::<(), gru_wgpu::Error>(())
/// ```
#[derive(Debug)]
pub struct Stream {
    model: u64,
    /// Of one step.
    shape: Shape,
    chunks: Vec<usize>,
    /// Rows that start afresh at the next step.
    resets: Vec<bool>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Cpu { state: Array3<f32>, reset_state: Array3<f32> },
    Gpu(Box<OnGpu>),
}

/// A stream on an adapter.
#[derive(Debug)]
struct OnGpu {
    gpu: Gpu,
    /// One for each length of chunk, all over the same states.
    sessions: Vec<Session>,
    /// `[3, L, B, H]`; the sessions' first and last third take turns.
    states: wgpu::Buffer,
    /// Which of the two turns is next.
    turn: usize,
    /// `[L, B, H]`, where resets do not go back to zeros.
    reset_state: Option<wgpu::Buffer>,
    /// `None` over a caller's own buffers.
    staging: Option<Staging>,
    /// A step was not waited for to its end, or failed in it.
    interrupted: bool,
}

/// What a step's x and y go through, on the host's side.
#[derive(Debug)]
struct Staging {
    up: wgpu::Buffer,
    down: wgpu::Buffer,
}

impl Stream {
    /// B, the rows.
    pub fn rows(&self) -> usize {
        self.shape.batch
    }

    /// The lengths of chunks it was made for.
    pub fn chunks(&self) -> &[usize] {
        &self.chunks
    }

    /// Has a row's next step start afresh.
    ///
    /// # Errors
    /// [`Error::Row`] when there is no such row.
    pub fn reset_row(&mut self, row: usize) -> Result<()> {
        let rows = self.rows();
        *self.resets.get_mut(row).ok_or(Error::Row { row, rows })? = true;
        Ok(())
    }

    /// Has every row's next step start afresh.
    pub fn reset(&mut self) {
        self.resets.fill(true);
    }

    /// Has resets go back to these states `[L, B, H]` from now on, instead of zeros: those of
    /// [`Self::reset_row`] and those in a caller's marks. Submit steps that are encoded already first:
    /// the queue writes ahead of the next submit.
    ///
    /// # Errors
    /// [`Error::Shape`], and the device's own.
    pub fn set_reset_state(&mut self, given: ArrayView3<'_, f32>) -> Result<()> {
        pollster::block_on(self.set_reset_state_async(given))
    }

    /// As [`Self::set_reset_state`], for where blocking is not possible.
    ///
    /// # Errors
    /// As [`Self::set_reset_state`].
    pub async fn set_reset_state_async(&mut self, given: ArrayView3<'_, f32>) -> Result<()> {
        check_shape("the reset state [L, B, H]", &self.shape.state(), given.shape())?;
        match &mut self.place {
            Place::Cpu { reset_state, .. } => reset_state.assign(&given),
            Place::Gpu(on) => {
                let third = States::Reset.range(self.shape).start;
                let make = || {
                    let buffer = on.gpu.buffer("reset_state", F32.bytes(given.len()));
                    upload(&on.gpu, &buffer, 0, given);
                    // Where a caller's marks have the kernels look for it.
                    upload(&on.gpu, &on.states, third, given);
                    Ok(buffer)
                };
                on.reset_state = Some(on.gpu.guard(make).await?);
            }
        }
        Ok(())
    }

    /// Goes on from these states `[L, B, H]`. Resets asked for before are forgotten. Submit steps that are
    /// encoded already first: the queue writes ahead of the next submit.
    ///
    /// # Errors
    /// [`Error::Shape`], and the device's own.
    pub fn set_state(&mut self, given: ArrayView3<'_, f32>) -> Result<()> {
        pollster::block_on(self.set_state_async(given))
    }

    /// As [`Self::set_state`], for where blocking is not possible.
    ///
    /// # Errors
    /// As [`Self::set_state`].
    pub async fn set_state_async(&mut self, given: ArrayView3<'_, f32>) -> Result<()> {
        check_shape("the state [L, B, H]", &self.shape.state(), given.shape())?;
        self.resets.fill(false);
        match &mut self.place {
            Place::Cpu { state, .. } => state.assign(&given),
            Place::Gpu(on) => {
                let first = on.now().range(self.shape).start;
                let write = || {
                    upload(&on.gpu, &on.states, first, given);
                    Ok(())
                };
                on.gpu.guard(write).await?;
            }
        }
        Ok(())
    }

    /// The states `[L, B, H]`, read from the device after all work queued.
    ///
    /// # Errors
    /// The device's own.
    pub fn state(&mut self) -> Result<Array3<f32>> {
        pollster::block_on(self.read_state(Wait::Block))
    }

    /// As [`Self::state`], for where blocking is not possible.
    ///
    /// # Errors
    /// As [`Self::state`].
    pub async fn state_async(&mut self) -> Result<Array3<f32>> {
        self.read_state(Wait::Async).await
    }

    async fn read_state(&mut self, wait: Wait) -> Result<Array3<f32>> {
        let (shape, resets) = (self.shape, &mut self.resets);
        match &mut self.place {
            Place::Cpu { state, reset_state } => {
                reset_rows(resets, state, reset_state);
                Ok(state.clone())
            }
            Place::Gpu(on) => {
                let submit = || {
                    let mut encoder = on.gpu.encoder("stream");
                    on.encode_resets(shape, resets, &mut encoder);
                    on.gpu.submit(encoder.finish());
                    Ok(())
                };
                on.gpu.guard(submit).await?;
                let range = on.now().range(shape);
                let parts = [(&on.states, range.start, range.len())];
                let read = on.gpu.download(&parts, wait).await?.swap_remove(0);
                Ok(Array3::from_shape_vec(shape.state(), read).expect("as many as it holds"))
            }
        }
    }

    /// Which of the chunks is `steps` long.
    fn chunk(&self, steps: usize) -> Result<usize> {
        let known = || self.chunks.clone();
        let found = self.chunks.iter().position(|&chunk| chunk == steps);
        found.ok_or_else(|| Error::Chunk { steps, known: known() })
    }
}

impl OnGpu {
    /// The third of `states` that the next step starts from.
    fn now(&self) -> States {
        if self.turn == 0 { States::First } else { States::Last }
    }

    /// Writes fresh states to the rows that ask for them, and forgets that they asked.
    fn encode_resets(&self, shape: Shape, resets: &mut [bool], encoder: &mut wgpu::CommandEncoder) {
        let Shape { batch, hidden, layers, .. } = shape;
        let now = self.now().range(shape).start;
        let mut row = 0;
        while let Some(prologue) = resets[row..].iter().position(|&reset| reset) {
            let first = row + prologue;
            let rows = resets[first..].iter().take_while(|&&reset| reset).count();
            for layer in 0..layers {
                let from = (layer * batch + first) * hidden;
                let [from, to, len] = [from, now + from, rows * hidden].map(|n| F32.bytes(n));
                match &self.reset_state {
                    None => encoder.clear_buffer(&self.states, to, Some(len)),
                    Some(fresh) => {
                        encoder.copy_buffer_to_buffer(fresh, from, &self.states, to, len);
                    }
                }
            }
            row = first + rows;
        }
        resets.fill(false);
    }

    fn encode(
        &mut self,
        chunk: usize,
        shape: Shape,
        resets: &mut [bool],
        encoder: &mut wgpu::CommandEncoder,
    ) {
        self.encode_resets(shape, resets, encoder);
        self.sessions[chunk].encode(encoder, self.turn);
        self.turn = 1 - self.turn;
    }

    async fn step(
        &mut self,
        chunk: usize,
        shape: Shape,
        resets: &mut [bool],
        x: ArrayView3<'_, f32>,
        mut y: ArrayViewMut3<'_, f32>,
        wait: Wait,
    ) -> Result<()> {
        let Some(Staging { up, down }) = &self.staging else {
            return Err(Error::Conflict {
                what: "a stream over a caller's buffers and a step over arrays",
                why: "encode its steps instead",
            });
        };
        let (up, down) = (up.clone(), down.clone());
        if self.interrupted {
            return Err(Error::Interrupted { what: "stream" });
        }
        self.interrupted = true;
        let gpu = self.gpu.clone();
        let submit = || {
            write_mapped(&up, x)?;
            up.unmap();
            let run = self.sessions[chunk].plan().run_buffers();
            let [run_x, run_y] = [run.x, run.y].map(|id| self.sessions[chunk].buffer(id).clone());
            let mut encoder = gpu.encoder("stream");
            encoder.copy_buffer_to_buffer(&up, 0, &run_x, 0, F32.bytes(x.len()));
            self.encode(chunk, shape, resets, &mut encoder);
            encoder.copy_buffer_to_buffer(&run_y, 0, &down, 0, F32.bytes(y.len()));
            gpu.submit(encoder.finish());
            Ok(())
        };
        gpu.guard(submit).await?;
        let size = F32.bytes(y.len());
        gpu.map(&down, wgpu::MapMode::Read, size, "a step of a stream", wait).await?;
        gpu.read_mapped(&down, y.len(), |read: &[f32]| {
            y.iter_mut().zip(read).for_each(|(y, &read)| *y = read);
        })?;
        gpu.map(&up, wgpu::MapMode::Write, up.size(), "a step of a stream", wait).await?;
        self.interrupted = false;
        Ok(())
    }
}

fn upload(gpu: &Gpu, buffer: &wgpu::Buffer, first: usize, array: ArrayView3<'_, f32>) {
    let array = array.as_standard_layout();
    gpu.upload(buffer, first, array.as_slice().expect("standard layout"));
}

/// Writes an array of any strides to a mapped staging buffer.
fn write_mapped(staging: &wgpu::Buffer, array: ArrayView3<'_, f32>) -> Result<()> {
    let view = staging.slice(..F32.bytes(array.len())).get_mapped_range_mut();
    let mut view = view.map_err(|error| Error::Gpu(one_line(&error.to_string())))?;
    if let Some(numbers) = array.as_slice() {
        view.slice(..).copy_from_slice(bytemuck::cast_slice(numbers));
    } else {
        for (i, number) in array.iter().enumerate() {
            let bytes = number.to_ne_bytes();
            view.slice(i * bytes.len()..(i + 1) * bytes.len()).copy_from_slice(&bytes);
        }
    }
    Ok(())
}

/// The CPU's [`OnGpu::encode_resets`].
fn reset_rows(resets: &mut [bool], state: &mut Array3<f32>, fresh: &Array3<f32>) {
    for (row, reset) in resets.iter_mut().enumerate() {
        if std::mem::take(reset) {
            state.slice_mut(s![.., row, ..]).assign(&fresh.index_axis(Axis(1), row));
        }
    }
}

impl Gru {
    /// Prepares a stream of `rows` sequences, all from zeros, that arrive in chunks of any of these
    /// lengths: `&[1]` for step by step.
    ///
    /// # Errors
    /// [`Error::Conflict`] for a model with a reverse direction: that one starts at a sequence's end,
    /// which a stream does not have. [`Error::ZeroSize`], [`Error::Limit`], and the device's own.
    pub fn stream(&self, rows: usize, chunks: &[usize]) -> Result<Stream> {
        pollster::block_on(self.stream_async(rows, chunks))
    }

    /// As [`Self::stream`], for where blocking is not possible.
    ///
    /// # Errors
    /// As [`Self::stream`].
    pub async fn stream_async(&self, rows: usize, chunks: &[usize]) -> Result<Stream> {
        let shapes = self.stream_shapes(rows, chunks)?;
        let Ok(pool) = self.session_pool() else {
            let state = reference::zeros("a stream's states", shapes[0].state())?;
            let reset_state = state.clone();
            return Ok(self.stream_at(&shapes, Place::Cpu { state, reset_state }));
        };
        let longest = shapes.iter().max_by_key(|shape| shape.steps).expect("at least one");
        let [x, y] = [longest.x(), longest.y()].map(|shape| shape.iter().product());
        let gpu = pool.gpu();
        let stage = || {
            let up = gpu.staging("stream.up", F32.bytes(x), wgpu::MapMode::Write);
            let down = gpu.staging("stream.down", F32.bytes(y), wgpu::MapMode::Read);
            Ok(Staging { up, down })
        };
        let mut on = OnGpu::new(pool, self, &shapes, None).await?;
        on.staging = Some(gpu.guard(stage).await?);
        Ok(self.stream_at(&shapes, Place::Gpu(Box::new(on))))
    }

    /// Prepares a stream over a caller's own buffers, to be encoded with [`Self::encode_step`]: a chunk
    /// is read from x and its outputs go to y. Chunks shorter than the longest use the front of them.
    ///
    /// # Errors
    /// As [`Self::stream`] and [`Gru::forward_pass`]; [`Error::Conflict`] when an h0, a reset state or
    /// an h_n is among the buffers: a stream keeps its states itself.
    pub fn stream_over(
        &self,
        rows: usize,
        chunks: &[usize],
        buffers: &Buffers<'_>,
    ) -> Result<Stream> {
        pollster::block_on(self.stream_over_async(rows, chunks, buffers))
    }

    /// As [`Self::stream_over`], for where blocking is not possible.
    ///
    /// # Errors
    /// As [`Self::stream_over`].
    pub async fn stream_over_async(
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
                why: "a stream keeps them itself; see Stream::set_state and set_reset_state",
            });
        }
        for &shape in &shapes {
            buffers.check(pool.gpu(), shape)?;
        }
        let on = OnGpu::new(pool, self, &shapes, Some(buffers)).await?;
        Ok(self.stream_at(&shapes, Place::Gpu(Box::new(on))))
    }

    /// Takes a chunk x `[T, B, I]` of every row and writes y `[T, B, H]`.
    ///
    /// # Errors
    /// [`Error::Chunk`] when the stream was not made for chunks of this length, [`Error::Shape`],
    /// [`Error::OtherModel`], [`Error::Interrupted`] after a step that failed on the device or whose
    /// future was dropped, and the device's own.
    pub fn step(
        &self,
        stream: &mut Stream,
        x: ArrayView3<'_, f32>,
        y: ArrayViewMut3<'_, f32>,
    ) -> Result<()> {
        pollster::block_on(self.run_step(stream, x, y, Wait::Block))
    }

    /// As [`Self::step`], for where blocking is not possible.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub async fn step_async(
        &self,
        stream: &mut Stream,
        x: ArrayView3<'_, f32>,
        y: ArrayViewMut3<'_, f32>,
    ) -> Result<()> {
        self.run_step(stream, x, y, Wait::Async).await
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
        let chunk = stream.chunk(steps)?;
        let shape = Shape { steps, ..stream.shape };
        check_shape("x [T, B, I]", &shape.x(), x.shape())?;
        check_shape("y [T, B, H]", &shape.y(), y.shape())?;
        match &mut stream.place {
            Place::Cpu { state, reset_state } => {
                reset_rows(&mut stream.resets, state, reset_state);
                let batch = Batch::new(x).reborrow().with_h0(state.view());
                let (out, h_n) = cpu::forward(self.params(), self.cpu_weights(), batch)?;
                y.assign(&out);
                *state = h_n;
                Ok(())
            }
            Place::Gpu(on) => {
                let pool = self.session_pool()?;
                pool.with_parameters(self.params(), self.version(), || Ok(())).await?;
                on.step(chunk, shape, &mut stream.resets, x, y, wait).await
            }
        }
    }

    /// Puts the next chunk of `steps` steps into `encoder`, with the model's present parameters: resets
    /// that were asked for, and one compute pass from the caller's x to the caller's y. Submit encoders
    /// in the order they were made, each once: the stream counts on it.
    ///
    /// # Errors
    /// [`Error::Chunk`], [`Error::OtherModel`], [`Error::Conflict`] when the stream was not made with
    /// [`Self::stream_over`].
    pub fn encode_step(
        &self,
        stream: &mut Stream,
        steps: usize,
        encoder: &mut wgpu::CommandEncoder,
    ) -> Result<()> {
        self.check_stream(stream)?;
        let chunk = stream.chunk(steps)?;
        match &mut stream.place {
            Place::Gpu(on) if on.staging.is_none() => {
                let (shape, resets) = (stream.shape, &mut stream.resets);
                let work = || on.encode(chunk, shape, resets, encoder);
                self.session_pool()?.with_parameters_now(self.params(), self.version(), work)
            }
            _ => Err(Error::Conflict {
                what: "a stream over arrays and an encoder",
                why: "encoding needs buffers of the caller's; make it with stream_over",
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

    /// The shape of each chunk.
    fn stream_shapes(&self, rows: usize, chunks: &[usize]) -> Result<Vec<Shape>> {
        if self.config().direction != Direction::Forward {
            return Err(Error::Conflict {
                what: "a stream and a reverse direction",
                why: "that one starts at a sequence's end, which a stream does not have",
            });
        }
        if chunks.is_empty() {
            return Err(Error::ZeroSize { what: "the number of chunk lengths" });
        }
        chunks.iter().map(|&steps| self.config().shape(steps, rows)).collect()
    }

    fn stream_at(&self, shapes: &[Shape], place: Place) -> Stream {
        Stream {
            model: self.id(),
            shape: Shape { steps: 1, ..shapes[0] },
            chunks: shapes.iter().map(|shape| shape.steps).collect(),
            resets: vec![false; shapes[0].batch],
            place,
        }
    }
}

impl OnGpu {
    async fn new(
        pool: &SessionPool,
        gru: &Gru,
        shapes: &[Shape],
        buffers: Option<&Buffers<'_>>,
    ) -> Result<Self> {
        let gpu = pool.gpu().clone();
        let state: usize = shapes[0].state().iter().product();
        let mut plans = Vec::new();
        for &shape in shapes {
            let plan = gru.plan(shape, Mode::Inference)?.carrying();
            plan.check(gpu.limits())?;
            plans.push(plan);
        }
        let states = gpu.guard(|| Ok(gpu.buffer("states", F32.bytes(3 * state)))).await?;
        let mut sessions = Vec::new();
        for plan in plans {
            let run = plan.run_buffers();
            let mut bound = vec![(run.states, Bound::from(&states))];
            bound.extend(buffers.iter().flat_map(|buffers| buffers.bound(run)));
            sessions.push(pool.make(plan, &bound).await?);
        }
        let (turn, reset_state, staging, interrupted) = Default::default();
        Ok(Self { gpu, sessions, states, turn, reset_state, staging, interrupted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::device::test_device;
    use crate::spec::config::GruConfig;
    use crate::spec::params::Init;

    /// What is alive on a device, and how many allocations hold it.
    fn alive(gpu: &Gpu) -> [isize; 6] {
        let counters = gpu.device().get_internal_counters().hal;
        [
            counters.buffers.read(),
            counters.bind_groups.read(),
            counters.bind_group_layouts.read(),
            counters.compute_pipelines.read(),
            counters.shader_modules.read(),
            counters.memory_allocations.read(),
        ]
    }

    #[test]
    fn a_step_makes_no_buffer_no_bind_group_and_no_pipeline() {
        let (device, gpu) = test_device();
        let config = GruConfig::new(3, 5).with_layers(2);
        let gru = Gru::new(config, Init::Uniform, 1, &device).unwrap();
        let mut stream = gru.stream(4, &[1, 3]).unwrap();
        stream.set_reset_state(Array3::ones((2, 4, 5)).view()).unwrap();
        let mut y = Array3::zeros((3, 4, 5));
        let x = Array3::ones((3, 4, 3));
        let mut take = |steps: usize, row: usize| {
            stream.reset_row(row).unwrap();
            let x = x.slice(s![..steps, .., ..]);
            gru.step(&mut stream, x, y.slice_mut(s![..steps, .., ..])).unwrap();
        };
        // The parameters go up with the first step.
        take(1, 0);
        gpu.wait().unwrap();
        let (made, before) = (gpu.created(), alive(&gpu));
        assert!(before[0] > 0 && before[3] > 0, "{before:?}");
        for step in 0..100 {
            take(if step % 2 == 0 { 1 } else { 3 }, step % 4);
            // Between two steps nothing new is alive, and nothing was made to be dropped again.
            assert_eq!((gpu.created(), alive(&gpu)), (made, before), "step {step}");
        }
    }

    #[test]
    fn encoding_a_step_makes_nothing_either() {
        let (device, gpu) = test_device();
        let gru = Gru::new(GruConfig::new(3, 5), Init::Uniform, 1, &device).unwrap();
        let [x, y] = [("x", 12), ("y", 20)].map(|(name, len)| gpu.buffer(name, F32.bytes(len)));
        let buffers = Buffers::new(x.as_entire_buffer_binding(), y.as_entire_buffer_binding());
        let mut stream = gru.stream_over(4, &[1], &buffers).unwrap();
        let mut take = || {
            stream.reset_row(2).unwrap();
            let mut encoder = gpu.encoder("test");
            gru.encode_step(&mut stream, 1, &mut encoder).unwrap();
            gpu.submit(encoder.finish());
            gpu.wait().unwrap();
        };
        take();
        let (made, before) = (gpu.created(), alive(&gpu));
        for _ in 0..100 {
            take();
            assert_eq!((gpu.created(), alive(&gpu)), (made, before));
        }
    }
}
