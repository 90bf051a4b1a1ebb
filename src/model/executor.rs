//! [`Executor`]: executes a run on an adapter, chunk by chunk.
//!
//! A run that is too large for one session is cut into chunks, which run one after the other. A
//! [`ChunkedRun`] describes, as plain data, the uploads, schedules and reads of each chunk. Reads go
//! straight to their place in the results. The executor finds the chunks and their sessions and
//! does the work. A run in one chunk takes the same path:
//!
//! ```text
//! SessionKey ─▶ planned chunks ─▶ for each: session ─▶ uploads ─▶ passes ─▶ reads
//! ```

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use ndarray::{CowArray, Ix3};

use crate::error::Result;
use crate::gpu::context::Gpu;
use crate::gpu::pool::{GradientAccumulator, PooledSession, SessionKey, SessionPool};
use crate::gpu::session::{CopyRegion, Read, Session};
use crate::gpu::wait::Wait;
use crate::model::state::{State, StateRows, state_rows};
use crate::plan::{BufferId, Mode, Pass, Plan, RunPurpose, StateSlot};
use crate::spec::chunk::Chunk;
use crate::spec::config::Shape;
use crate::spec::element::ElementType;
use crate::spec::options::RunOptions;
use crate::spec::params::Params;

mod input;
mod results;
mod states;
#[cfg(test)]
mod tests;

pub(crate) use input::RunInput;
pub(crate) use results::{GradientResults, OutputResults};
pub(crate) use states::{BackwardRun, ForwardRun, RecordedRun};

/// A kind of run: the uploads, schedules, reads and results of each chunk.
pub(crate) trait ChunkedRun {
    /// Returns the schedules of a chunk, in order.
    fn passes(&self) -> &'static [Pass] {
        &[Pass::Forward]
    }

    /// Returns the uploads before a chunk's passes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) if the host has no memory for a copy.
    fn uploads<'s>(&'s self, at: &ChunkPosition<'_>, plan: &Plan) -> Result<Vec<Upload<'s>>>;

    /// Returns the buffer ranges to read after the passes, and where their elements go. Without
    /// reads the executor does not wait for the device.
    fn reads<'s>(&'s mut self, at: &ChunkPosition<'_>, plan: &Plan) -> Vec<Read<'s, f32>>;

    /// Ends a chunk, after its reads.
    fn finish_chunk(&mut self, _at: &ChunkPosition<'_>) {}
}

/// The position of a chunk in its run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChunkPosition<'a> {
    pub chunk: &'a Chunk,
    /// The chunk's shape.
    pub shape: Shape,
    /// The chunk that ran before.
    pub previous: Option<&'a Chunk>,
    /// True if the run has only this chunk.
    pub is_whole: bool,
}

impl ChunkPosition<'_> {
    /// True if this chunk continues the rows of the previous chunk and starts from their states.
    pub fn continues(&self) -> bool {
        self.chunk.has_same_rows(self.previous)
    }
}

/// Data to write to elements of a session's buffer before the next pass.
pub(crate) struct Upload<'a> {
    pub buffer: BufferId,
    pub range: Range<usize>,
    pub data: UploadData<'a>,
}

/// The data of an [`Upload`].
pub(crate) enum UploadData<'a> {
    Zeros,
    F32(Cow<'a, [f32]>),
    U32(Cow<'a, [u32]>),
    /// An array with any strides.
    Array(CowArray<'a, f32, Ix3>),
    /// Elements of a buffer on the same device, and where they go in the session's buffer.
    Buffer(&'a wgpu::Buffer, Vec<CopyRegion>),
}

impl UploadData<'_> {
    /// Returns the number of bytes to transfer from the host to the device.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Zeros | Self::Buffer(..) => 0,
            Self::F32(numbers) => ElementType::F32.bytes(numbers.len()),
            Self::U32(numbers) => ElementType::U32.bytes(numbers.len()),
            Self::Array(array) => ElementType::F32.bytes(array.len()),
        }
    }
}

impl Upload<'_> {
    async fn queue(&self, session: &mut Session, wait: Wait) -> Result<()> {
        let (buffer, first) = (self.buffer, self.range.start);
        match &self.data {
            UploadData::Buffer(from, regions) => session.copy_in(from, buffer, regions.clone()),
            UploadData::Zeros => session.clear(buffer, self.range.clone()),
            UploadData::F32(numbers) => session.write(buffer, first, numbers, wait).await?,
            UploadData::U32(numbers) => session.write(buffer, first, numbers, wait).await?,
            UploadData::Array(array) => match array.as_slice() {
                Some(contiguous) => session.write(buffer, first, contiguous, wait).await?,
                None => {
                    let copy = input::try_owned("a contiguous copy of an array", array.view())?;
                    let copy = copy.as_slice().expect("standard layout");
                    session.write(buffer, first, copy, wait).await?;
                }
            },
        }
        Ok(())
    }
}

/// Hooks around a chunk's transfers and passes.
pub(crate) trait Hooks {
    /// Runs before the uploads, which transfer `_bytes` bytes.
    async fn before_upload(&mut self, _session: &Session, _bytes: u64, _wait: Wait) -> Result<()> {
        Ok(())
    }

    /// Runs after the uploads are queued and before the first pass.
    async fn after_upload(&mut self, _session: &Session, _wait: Wait) -> Result<()> {
        Ok(())
    }

    /// Queues a pass's schedule.
    async fn run(&mut self, session: &mut Session, pass: Pass, _wait: Wait) -> Result<()> {
        session.run(pass).await
    }

    /// Runs before the reads, which transfer `_bytes` bytes.
    fn before_read(&mut self, _bytes: u64) {}

    /// Runs after the reads.
    fn after_read(&mut self) {}
}

/// [`Hooks`] that do nothing.
pub(crate) struct NoHooks;

impl Hooks for NoHooks {}

/// The parts of a model that a run on an adapter needs.
#[derive(Clone, Copy)]
pub(crate) struct AdapterModel<'a> {
    pub pool: &'a SessionPool,
    pub params: &'a Params,
    /// The number of changes of the parameters.
    pub version: u64,
    pub options: RunOptions,
}

/// Executes the chunks of one run.
pub(crate) struct Executor<'a> {
    model: AdapterModel<'a>,
    key: SessionKey,
    chunks: Vec<ExecutorChunk>,
    accumulator: Option<&'a GradientAccumulator>,
    /// `[L·D, B, H]`: receives the states after the last steps, if they are kept.
    last_states: Option<wgpu::Buffer>,
    wait: Wait,
}

#[derive(Debug)]
struct ExecutorChunk {
    chunk: Chunk,
    plan: Option<Arc<Plan>>,
    /// `Some` if the run holds its session from before the run until after it.
    session: Option<PooledSession>,
}

impl<'a> Executor<'a> {
    /// Finds the chunks of a run of `shape`.
    ///
    /// # Errors
    /// [`Error::Limit`](crate::Error::Limit) if not even the smallest chunk fits the device.
    pub fn new(
        model: AdapterModel<'a>,
        shape: Shape,
        mode: Mode,
        purpose: RunPurpose,
        wait: Wait,
    ) -> Result<Self> {
        let key = SessionKey { shape, mode, options: model.options, purpose };
        let planned = model.pool.chunks(model.params.layout(), key)?.into_iter();
        let chunks = planned.map(|planned| ExecutorChunk {
            chunk: planned.chunk,
            plan: planned.plan,
            session: None,
        });
        let (accumulator, last_states) = Default::default();
        Ok(Self { model, key, chunks: chunks.collect(), accumulator, last_states, wait })
    }

    /// Adds the gradient and the loss of each chunk to `accumulator`.
    pub fn with_accumulator(self, accumulator: &'a GradientAccumulator) -> Self {
        Self { accumulator: Some(accumulator), ..self }
    }

    /// Keeps the states after the last steps, for [`Self::into_last_states`].
    pub async fn keep_last_states(&mut self) -> Result<()> {
        self.last_states = Some(new_states(self.model.pool.gpu(), self.key.shape).await?);
        Ok(())
    }

    /// Returns the states after the last steps, if they were kept.
    pub fn into_last_states(self) -> Option<State> {
        let Self { model, key, last_states, .. } = self;
        last_states.map(|states| State::from_buffer(model.pool.gpu(), states, key.shape.state()))
    }

    /// Returns the shape of the whole run.
    pub fn shape(&self) -> Shape {
        self.key.shape
    }

    pub fn mode(&self) -> Mode {
        self.key.mode
    }

    /// True if the run has several chunks.
    pub fn is_chunked(&self) -> bool {
        self.chunks.len() > 1
    }

    /// Iterates over the chunks in the order in which they run.
    pub fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        self.chunks.iter().map(|entry| &entry.chunk)
    }

    /// Acquires a session for every chunk and holds them until after the run, for a tape. If the
    /// device has no memory for all of them, this fails before anything is computed.
    pub async fn hold_sessions(&mut self) -> Result<()> {
        for index in 0..self.chunks.len() {
            self.chunks[index].session = Some(self.acquire(index).await?);
        }
        Ok(())
    }

    /// Runs all chunks in order.
    pub async fn run(&mut self, run: &mut impl ChunkedRun) -> Result<()> {
        self.run_with(run, &mut NoHooks).await
    }

    /// Runs all chunks in order, with `hooks` around each.
    pub async fn run_with(
        &mut self,
        run: &mut impl ChunkedRun,
        hooks: &mut impl Hooks,
    ) -> Result<()> {
        for index in 0..self.chunks.len() {
            let held = self.chunks[index].session.take();
            let is_held = held.is_some();
            let mut session = match held {
                Some(session) => session,
                None => self.acquire(index).await?,
            };
            self.run_chunk(index, &mut session, run, hooks).await?;
            // A session that is not held returns to the pool, where the next chunk can acquire it.
            self.chunks[index].session = is_held.then_some(session);
        }
        Ok(())
    }

    async fn run_chunk(
        &self,
        index: usize,
        session: &mut Session,
        run: &mut impl ChunkedRun,
        hooks: &mut impl Hooks,
    ) -> Result<()> {
        let position = self.position(index);
        let uploads = run.uploads(&position, session.plan())?;
        let bytes = uploads.iter().map(|upload| upload.data.bytes()).sum();
        hooks.before_upload(session, bytes, self.wait).await?;
        for upload in &uploads {
            upload.queue(session, self.wait).await?;
        }
        drop(uploads);
        hooks.after_upload(session, self.wait).await?;
        for &pass in run.passes() {
            hooks.run(session, pass, self.wait).await?;
        }
        if let Some(states) = &self.last_states {
            copy_last_states(session, position.chunk, self.key.shape, states).await?;
        }
        let reads = run.reads(&position, session.plan());
        hooks.before_read(reads.iter().map(|read| ElementType::F32.bytes(read.range.len())).sum());
        if !reads.is_empty() {
            session.read_into(reads, self.wait).await?;
        }
        hooks.after_read();
        run.finish_chunk(&position);
        Ok(())
    }

    fn position(&self, index: usize) -> ChunkPosition<'_> {
        let chunk = &self.chunks[index].chunk;
        let previous = index.checked_sub(1).map(|previous| &self.chunks[previous].chunk);
        let shape = chunk.shape(self.key.shape);
        ChunkPosition { chunk, shape, previous, is_whole: self.chunks.len() == 1 }
    }

    /// Acquires a session for a chunk, with the model's parameters on the device.
    async fn acquire(&mut self, index: usize) -> Result<PooledSession> {
        let ExecutorChunk { chunk, plan, .. } = &mut self.chunks[index];
        let key = SessionKey { shape: chunk.shape(self.key.shape), ..self.key };
        let (plan, AdapterModel { pool, params, version, .. }) = (plan.take(), self.model);
        pool.session(params, version, key, plan, self.accumulator).await
    }
}

/// Makes a buffer for the states `[L·D, B, H]` of a run of `shape`.
async fn new_states(gpu: &Gpu, shape: Shape) -> Result<wgpu::Buffer> {
    let bytes = ElementType::F32.bytes(shape.state().iter().product());
    gpu.guard(|| Ok(gpu.buffer("state", bytes))).await
}

/// Queues a copy of the states after a chunk's last steps to their rows in `states`, those of the
/// whole run. Of several chunks with the same rows, the last one has the run's last states.
async fn copy_last_states(
    session: &Session,
    chunk: &Chunk,
    whole: Shape,
    states: &wgpu::Buffer,
) -> Result<()> {
    let shape = chunk.shape(whole);
    let last = StateSlot::Last.range(shape).start;
    let rows = state_rows(shape.state(), whole.batch, chunk.rows.start);
    let region = |rows: StateRows| {
        let StateRows { of_rows, of_all, len } = rows;
        CopyRegion { from: last + of_rows, to: of_all, len }
    };
    let regions: Vec<_> = rows.map(region).collect();
    session.copy_out(session.plan().run_buffers().states, states, &regions).await
}
