//! [`Executor`]: a run on an adapter, chunk after chunk.
//!
//! A run that no plan can hold whole is made of several chunks, one after the other. A
//! [`ChunkedRun`] says as plain data what goes up for each of them, which schedules run, what comes
//! down and where that belongs in the whole; the executor finds the chunks and their sessions, and
//! does it. All runs go this way, those in one chunk too:
//!
//! ```text
//! SessionKey ─▶ chunks, planned ─▶ for each: session ─▶ uploads ─▶ passes ─▶ reads ─▶ collect
//! ```

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use ndarray::{CowArray, Ix3};

use crate::error::Result;
use crate::gpu::pool::{GradientAccumulator, PooledSession, SessionKey, SessionPool};
use crate::gpu::session::Session;
use crate::gpu::wait::Wait;
use crate::plan::{BufferId, Mode, Pass, Plan, RunPurpose};
use crate::spec::chunk::Chunk;
use crate::spec::config::Shape;
use crate::spec::element::ElementType;
use crate::spec::options::RunOptions;
use crate::spec::params::Params;

mod input;
mod states;
#[cfg(test)]
mod tests;

pub(crate) use input::RunInput;
pub(crate) use states::{BackwardRun, ForwardRun, RecordedRun};

/// A kind of run: what each of its chunks takes and gives.
pub(crate) trait ChunkedRun {
    /// The schedules of a chunk, in order.
    fn passes(&self) -> &'static [Pass] {
        &[Pass::Forward]
    }

    /// What goes up ahead of a chunk's passes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) where the host has no memory for a copy.
    fn uploads<'s>(&'s self, at: &ChunkPosition<'_>, plan: &Plan) -> Result<Vec<Upload<'s>>>;

    /// What comes down after them; where that is nothing, nobody waits for the device.
    fn reads(&self, at: &ChunkPosition<'_>, plan: &Plan) -> Vec<(BufferId, Range<usize>)>;

    /// Takes what came down, in the order of [`Self::reads`].
    ///
    /// # Errors
    /// What the run says of it.
    fn collect(&mut self, at: &ChunkPosition<'_>, results: Vec<Vec<f32>>) -> Result<()>;
}

/// The chunk that a run is at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChunkPosition<'a> {
    pub chunk: &'a Chunk,
    /// The chunk's own sizes.
    pub shape: Shape,
    /// The chunk that ran before it.
    pub previous: Option<&'a Chunk>,
    /// Whether the chunk is the whole run.
    pub is_whole: bool,
}

impl ChunkPosition<'_> {
    /// Whether the chunk goes on with the rows, and so the states, of the one that ran before it.
    pub fn continues(&self) -> bool {
        self.chunk.has_same_rows(self.previous)
    }
}

/// Elements of a session's buffer, and what they are to hold ahead of its next pass.
pub(crate) struct Upload<'a> {
    pub buffer: BufferId,
    pub range: Range<usize>,
    pub data: UploadData<'a>,
}

/// What an [`Upload`] writes.
pub(crate) enum UploadData<'a> {
    Zeros,
    F32(Cow<'a, [f32]>),
    U32(Cow<'a, [u32]>),
    /// Of any strides.
    Array(CowArray<'a, f32, Ix3>),
    /// All of a buffer on the same device.
    Buffer(&'a wgpu::Buffer),
}

impl UploadData<'_> {
    /// Bytes that travel from the host to the device.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Zeros | Self::Buffer(_) => 0,
            Self::F32(numbers) => ElementType::F32.bytes(numbers.len()),
            Self::U32(numbers) => ElementType::U32.bytes(numbers.len()),
            Self::Array(array) => ElementType::F32.bytes(array.len()),
        }
    }
}

impl Upload<'_> {
    async fn queue(&self, session: &mut Session) -> Result<()> {
        let (buffer, first) = (self.buffer, self.range.start);
        match &self.data {
            UploadData::Buffer(from) => session.copy_in(from, buffer, self.range.clone()),
            UploadData::Zeros => session.clear(buffer, self.range.clone()),
            UploadData::F32(numbers) => session.write(buffer, first, numbers).await?,
            UploadData::U32(numbers) => session.write(buffer, first, numbers).await?,
            UploadData::Array(array) => match array.as_slice() {
                Some(in_order) => session.write(buffer, first, in_order).await?,
                None => {
                    let copy = input::try_owned("an array in order", array.view())?;
                    session.write(buffer, first, copy.as_slice().expect("standard layout")).await?;
                }
            },
        }
        Ok(())
    }
}

/// What else happens around a chunk's transfers and passes.
pub(crate) trait Hooks {
    /// Ahead of uploads of so many bytes.
    async fn before_upload(&mut self, _session: &Session, _bytes: u64, _wait: Wait) -> Result<()> {
        Ok(())
    }

    /// After the uploads are queued, ahead of the first pass.
    async fn after_upload(&mut self, _session: &Session, _wait: Wait) -> Result<()> {
        Ok(())
    }

    /// Queues a schedule.
    async fn run(&mut self, session: &mut Session, pass: Pass, _wait: Wait) -> Result<()> {
        session.run(pass).await
    }

    /// Ahead of what comes down.
    fn before_read(&mut self) {}

    /// After it has.
    fn after_read(&mut self) {}
}

/// Nothing else happens.
pub(crate) struct NoHooks;

impl Hooks for NoHooks {}

/// A model on an adapter, as its runs need it.
#[derive(Clone, Copy)]
pub(crate) struct AdapterModel<'a> {
    pub pool: &'a SessionPool,
    pub params: &'a Params,
    /// Counts changes of the parameters.
    pub version: u64,
    pub options: RunOptions,
}

/// The chunks of one run, and what runs them.
pub(crate) struct Executor<'a> {
    model: AdapterModel<'a>,
    key: SessionKey,
    chunks: Vec<ExecutorChunk>,
    accumulator: Option<&'a GradientAccumulator>,
    wait: Wait,
}

#[derive(Debug)]
struct ExecutorChunk {
    chunk: Chunk,
    plan: Option<Arc<Plan>>,
    /// Where it is held from before the run until after it.
    session: Option<PooledSession>,
}

impl<'a> Executor<'a> {
    /// Finds the chunks of a run of `shape`.
    ///
    /// # Errors
    /// [`Error::Limit`](crate::Error::Limit) where not the smallest chunk fits the device.
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
        Ok(Self { model, key, chunks: chunks.collect(), accumulator: None, wait })
    }

    /// The same with the gradient and the loss of each chunk added to `accumulator`.
    pub fn with_accumulator(self, accumulator: &'a GradientAccumulator) -> Self {
        Self { accumulator: Some(accumulator), ..self }
    }

    /// The sizes of the whole run.
    pub fn shape(&self) -> Shape {
        self.key.shape
    }

    pub fn mode(&self) -> Mode {
        self.key.mode
    }

    pub fn wait(&self) -> Wait {
        self.wait
    }

    /// Whether there are several chunks.
    pub fn is_chunked(&self) -> bool {
        self.chunks.len() > 1
    }

    /// In the order in which they run.
    pub fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        self.chunks.iter().map(|held| &held.chunk)
    }

    /// Takes a session for every chunk, and keeps them: for a tape, which needs all of them later.
    /// Where the device has no memory for them, nothing is computed in vain.
    pub async fn hold_sessions(&mut self) -> Result<()> {
        for at in 0..self.chunks.len() {
            self.chunks[at].session = Some(self.acquire(at).await?);
        }
        Ok(())
    }

    /// Runs all chunks in order.
    pub async fn run(&mut self, run: &mut impl ChunkedRun) -> Result<()> {
        self.run_with(run, &mut NoHooks).await
    }

    /// The same with `hooks` around each chunk.
    pub async fn run_with(
        &mut self,
        run: &mut impl ChunkedRun,
        hooks: &mut impl Hooks,
    ) -> Result<()> {
        for at in 0..self.chunks.len() {
            let held = self.chunks[at].session.take();
            let is_held = held.is_some();
            let mut session = match held {
                Some(session) => session,
                None => self.acquire(at).await?,
            };
            self.run_chunk(at, &mut session, run, hooks).await?;
            // Where it is not held, the next chunk can have it.
            self.chunks[at].session = is_held.then_some(session);
        }
        Ok(())
    }

    async fn run_chunk(
        &self,
        at: usize,
        session: &mut Session,
        run: &mut impl ChunkedRun,
        hooks: &mut impl Hooks,
    ) -> Result<()> {
        let position = self.position(at);
        let uploads = run.uploads(&position, session.plan())?;
        let bytes = uploads.iter().map(|upload| upload.data.bytes()).sum();
        hooks.before_upload(session, bytes, self.wait).await?;
        for upload in &uploads {
            upload.queue(session).await?;
        }
        drop(uploads);
        hooks.after_upload(session, self.wait).await?;
        for &pass in run.passes() {
            hooks.run(session, pass, self.wait).await?;
        }
        let reads = run.reads(&position, session.plan());
        hooks.before_read();
        let results = match reads.is_empty() {
            true => Vec::new(),
            false => session.read(&reads, self.wait).await?,
        };
        hooks.after_read();
        run.collect(&position, results)
    }

    fn position(&self, at: usize) -> ChunkPosition<'_> {
        let chunk = &self.chunks[at].chunk;
        let previous = at.checked_sub(1).map(|before| &self.chunks[before].chunk);
        let shape = chunk.shape(self.key.shape);
        ChunkPosition { chunk, shape, previous, is_whole: self.chunks.len() == 1 }
    }

    /// A session for a chunk, with the model's parameters there.
    async fn acquire(&mut self, at: usize) -> Result<PooledSession> {
        let ExecutorChunk { chunk, plan, .. } = &mut self.chunks[at];
        let key = SessionKey { shape: chunk.shape(self.key.shape), ..self.key };
        let (plan, AdapterModel { pool, params, version, .. }) = (plan.take(), self.model);
        pool.session(params, version, key, plan, self.accumulator).await
    }
}
