//! [`AdapterStream`]: a stream on an adapter, with sessions that share one buffer of states.

use ndarray::{Array3, ArrayView3, ArrayViewMut3};

use crate::error::{Cause, Error, Result};
use crate::gpu::context::Gpu;
use crate::gpu::pool::SessionPool;
use crate::gpu::report::one_line;
use crate::gpu::session::{BufferBinding, Session};
use crate::gpu::wait::Wait;
use crate::model::gru::Gru;
use crate::model::interop::Buffers;
use crate::plan::{Mode, StateSlot};
use crate::spec::config::Shape;
use crate::spec::element::ElementType::F32;

/// A stream's sessions and states on an adapter.
#[derive(Debug)]
pub(super) struct AdapterStream {
    gpu: Gpu,
    /// One session for each chunk length. All use the same states.
    sessions: Vec<Session>,
    /// `[3, L, B, H]`. The first and the last third swap roles after each step.
    states: wgpu::Buffer,
    /// The third that the next step starts from: the first (0) or the last (1).
    parity: usize,
    /// `[L, B, H]`; `None` if resets restore zeros.
    reset_state: Option<wgpu::Buffer>,
    /// `None` over a caller's own buffers.
    staging: Option<Staging>,
    /// True if a step failed on the device or its future was dropped.
    interrupted: bool,
}

/// The staging buffers, which the host maps, for a step's x and y.
#[derive(Debug)]
struct Staging {
    upload: wgpu::Buffer,
    download: wgpu::Buffer,
}

impl Staging {
    /// Makes staging buffers for the longest chunk.
    async fn new(gpu: &Gpu, shapes: &[Shape]) -> Result<Self> {
        let longest = shapes
            .iter()
            .max_by_key(|shape| shape.steps)
            .expect("a stream has at least one chunk length");
        let [x, y] = [longest.x(), longest.y()].map(|shape| F32.bytes(shape.iter().product()));
        let make = || {
            let upload = gpu.staging("stream.upload", x, wgpu::MapMode::Write);
            let download = gpu.staging("stream.download", y, wgpu::MapMode::Read);
            Ok(Self { upload, download })
        };
        gpu.guard(make).await
    }
}

impl AdapterStream {
    /// Makes a stream over the caller's `buffers`. Without them the stream has its own buffers and
    /// copies arrays to and from them.
    pub async fn new(
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
            let mut bindings = vec![(run.states, BufferBinding::from(&states))];
            bindings.extend(buffers.iter().flat_map(|buffers| buffers.bindings(run)));
            sessions.push(pool.create_session(plan, &bindings).await?);
        }
        let staging = match buffers {
            Some(_) => None,
            None => Some(Staging::new(&gpu, shapes).await?),
        };
        let (parity, reset_state, interrupted) = Default::default();
        Ok(Self { gpu, sessions, states, parity, reset_state, staging, interrupted })
    }

    /// True if the stream is over a caller's own buffers.
    pub fn is_over_buffers(&self) -> bool {
        self.staging.is_none()
    }

    pub async fn set_reset_state(
        &mut self,
        shape: Shape,
        given: ArrayView3<'_, f32>,
    ) -> Result<()> {
        let first = StateSlot::Reset.range(shape).start;
        let make = || {
            let buffer = self.gpu.buffer("reset_state", F32.bytes(given.len()));
            upload(&self.gpu, &buffer, 0, given);
            // Kernels read the reset state here, for resets in a caller's step flags.
            upload(&self.gpu, &self.states, first, given);
            Ok(buffer)
        };
        self.reset_state = Some(self.gpu.guard(make).await?);
        Ok(())
    }

    pub async fn set_state(&mut self, shape: Shape, given: ArrayView3<'_, f32>) -> Result<()> {
        let first = self.current_slot().range(shape).start;
        let write = || {
            upload(&self.gpu, &self.states, first, given);
            Ok(())
        };
        self.gpu.guard(write).await
    }

    /// Applies the pending resets and reads the states `[L, B, H]`.
    pub async fn read_state(
        &mut self,
        shape: Shape,
        resets: &mut [bool],
        wait: Wait,
    ) -> Result<Array3<f32>> {
        let submit = || {
            let mut encoder = self.gpu.encoder("stream");
            self.encode_resets(shape, resets, &mut encoder);
            self.gpu.submit(encoder.finish());
            Ok(())
        };
        self.gpu.guard(submit).await?;
        let range = self.current_slot().range(shape);
        let sources = [(&self.states, range.start, range.len())];
        let read = self.gpu.download(&sources, wait).await?.swap_remove(0);
        Ok(Array3::from_shape_vec(shape.state(), read).expect("the length matches"))
    }

    /// Returns the third of `states` that the next step starts from.
    fn current_slot(&self) -> StateSlot {
        if self.parity == 0 { StateSlot::First } else { StateSlot::Last }
    }

    /// Encodes writes of the reset state to the rows to reset, and clears `resets`.
    fn encode_resets(&self, shape: Shape, resets: &mut [bool], encoder: &mut wgpu::CommandEncoder) {
        let Shape { batch, hidden, layers, .. } = shape;
        let current = self.current_slot().range(shape).start;
        let mut row = 0;
        while let Some(skipped) = resets[row..].iter().position(|&reset| reset) {
            let first = row + skipped;
            let rows = resets[first..].iter().take_while(|&&reset| reset).count();
            for layer in 0..layers {
                let from = (layer * batch + first) * hidden;
                let [from, to, len] = [from, current + from, rows * hidden].map(|n| F32.bytes(n));
                match &self.reset_state {
                    None => encoder.clear_buffer(&self.states, to, Some(len)),
                    Some(reset_state) => {
                        encoder.copy_buffer_to_buffer(reset_state, from, &self.states, to, len);
                    }
                }
            }
            row = first + rows;
        }
        resets.fill(false);
    }

    /// Encodes the pending resets and a chunk's pass into `encoder`.
    pub fn encode(
        &mut self,
        chunk: usize,
        shape: Shape,
        resets: &mut [bool],
        encoder: &mut wgpu::CommandEncoder,
    ) {
        self.encode_resets(shape, resets, encoder);
        self.sessions[chunk].encode(encoder, self.parity);
        self.parity = 1 - self.parity;
    }

    /// Runs a chunk: uploads x, waits, and writes y.
    pub async fn step(
        &mut self,
        chunk: usize,
        shape: Shape,
        resets: &mut [bool],
        x: ArrayView3<'_, f32>,
        mut y: ArrayViewMut3<'_, f32>,
        wait: Wait,
    ) -> Result<()> {
        let Some(Staging { upload, download }) = &self.staging else {
            return Err(Error::Conflict {
                what: "a stream over a caller's buffers and a step over arrays",
                why: "use Gru::encode_step, or make the stream with Gru::stream",
            });
        };
        let (upload, download) = (upload.clone(), download.clone());
        if self.interrupted {
            return Err(Error::Interrupted { what: "stream" });
        }
        self.interrupted = true;
        let gpu = self.gpu.clone();
        let submit = || {
            write_mapped(&upload, x)?;
            upload.unmap();
            let run = self.sessions[chunk].plan().run_buffers();
            let [run_x, run_y] = [run.x, run.y].map(|id| self.sessions[chunk].buffer(id).clone());
            let mut encoder = gpu.encoder("stream");
            encoder.copy_buffer_to_buffer(&upload, 0, &run_x, 0, F32.bytes(x.len()));
            self.encode(chunk, shape, resets, &mut encoder);
            encoder.copy_buffer_to_buffer(&run_y, 0, &download, 0, F32.bytes(y.len()));
            gpu.submit(encoder.finish());
            Ok(())
        };
        gpu.guard(submit).await?;
        gpu.map(&download, wgpu::MapMode::Read, F32.bytes(y.len()), "a step of a stream", wait)
            .await?;
        gpu.read_mapped(&download, y.len(), |read| {
            y.iter_mut().zip(read).for_each(|(y, &read)| *y = read);
        })?;
        gpu.map(&upload, wgpu::MapMode::Write, upload.size(), "a step of a stream", wait).await?;
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
    let mut view = view.map_err(|error| Error::Gpu {
        reason: one_line(&error.to_string()),
        source: Some(Cause::new(error)),
    })?;
    if let Some(numbers) = array.as_slice() {
        view.slice(..).copy_from_slice(bytemuck::cast_slice(numbers));
    } else {
        let size = size_of::<f32>();
        for (i, number) in array.iter().enumerate() {
            view.slice(size * i..size * (i + 1)).copy_from_slice(&number.to_ne_bytes());
        }
    }
    Ok(())
}
