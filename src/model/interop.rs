//! [`Buffers`] and [`ForwardPass`]: forward passes over a caller's own wgpu buffers, encoded into
//! the caller's command encoder.

use crate::error::{Error, Result};
use crate::gpu::context::Gpu;
use crate::gpu::session::{BufferBinding, Session};
use crate::model::blocking::blocking_and_async;
use crate::model::gru::Gru;
use crate::plan::{BufferId, ElementType, Mode, RunBuffers, StateSlot};
use crate::spec::config::Shape;

/// A caller's own buffers, for a [`ForwardPass`] or a [`Stream`](crate::Stream).
///
/// | | elements | required usage | offset is a multiple of |
/// |---|---|---|---|
/// | x | `[T, B, I]` of f32 | `STORAGE` | the device's `min_storage_buffer_offset_alignment` |
/// | y | `[T, B, D·H]` of f32 | `STORAGE` | the same |
/// | step_flags | `[T, B]` of u32, bits of [`step_flag`](mod@crate::step_flag) | `STORAGE` | the same |
/// | h0, reset_state | `[L·D, B, H]` of f32 | `COPY_SRC` | 4 |
/// | h_n | `[L·D, B, H]` of f32 | `COPY_DST` | 4 |
///
/// With [`Layout::BatchFirst`](crate::Layout::BatchFirst) the first two axes of x and y are
/// swapped; step_flags keeps `[T, B]`.
///
/// y and step_flags must be in different buffers: one dispatch writes y and reads step_flags, and
/// WebGPU forbids both in one buffer. The others may share a buffer. x must include the elements at
/// padding, but their values are ignored.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Buffers<'a> {
    /// The input.
    pub x: wgpu::BufferBinding<'a>,
    /// The last layer's state after every step, 0 at padding. The layers below use the buffer as
    /// scratch memory.
    pub y: wgpu::BufferBinding<'a>,
    /// The flags of each step and row: padding and resets. No flags when `None`.
    pub step_flags: Option<wgpu::BufferBinding<'a>>,
    /// The first states; zeros when `None`.
    pub h0: Option<wgpu::BufferBinding<'a>>,
    /// The states that resets restore; zeros when `None`.
    pub reset_state: Option<wgpu::BufferBinding<'a>>,
    /// The destination of the last states; not written when `None`.
    pub h_n: Option<wgpu::BufferBinding<'a>>,
}

impl<'a> Buffers<'a> {
    /// Makes buffers with x and y alone. [`wgpu::Buffer::as_entire_buffer_binding`] binds a whole
    /// buffer.
    pub fn new(x: wgpu::BufferBinding<'a>, y: wgpu::BufferBinding<'a>) -> Self {
        Self { x, y, step_flags: None, h0: None, reset_state: None, h_n: None }
    }

    /// Sets the step flags.
    #[must_use]
    pub fn with_step_flags(self, step_flags: wgpu::BufferBinding<'a>) -> Self {
        Self { step_flags: Some(step_flags), ..self }
    }

    /// Sets the first states.
    #[must_use]
    pub fn with_h0(self, h0: wgpu::BufferBinding<'a>) -> Self {
        Self { h0: Some(h0), ..self }
    }

    /// Sets the states that resets restore.
    #[must_use]
    pub fn with_reset_state(self, reset_state: wgpu::BufferBinding<'a>) -> Self {
        Self { reset_state: Some(reset_state), ..self }
    }

    /// Sets the destination of the last states.
    #[must_use]
    pub fn with_h_n(self, h_n: wgpu::BufferBinding<'a>) -> Self {
        Self { h_n: Some(h_n), ..self }
    }

    /// Checks that the buffers fit a run of `shape` on `gpu`.
    pub(crate) fn check(&self, gpu: &Gpu, shape: Shape) -> Result<()> {
        use wgpu::BufferUsages as Usage;
        let storage = u64::from(gpu.device().limits().min_storage_buffer_offset_alignment);
        let copy = wgpu::COPY_BUFFER_ALIGNMENT;
        let [x, y, state] =
            [shape.x(), shape.y(), shape.state()].map(|shape| shape.iter().product::<usize>());
        let [x, y, state] = [x, y, state].map(|len| ElementType::F32.bytes(len));
        let flags = ElementType::U32.bytes(shape.steps * shape.batch);
        for (what, binding, bytes, usage, alignment) in [
            ("x", Some(&self.x), x, Usage::STORAGE, storage),
            ("y", Some(&self.y), y, Usage::STORAGE, storage),
            ("step flags", self.step_flags.as_ref(), flags, Usage::STORAGE, storage),
            ("h0", self.h0.as_ref(), state, Usage::COPY_SRC, copy),
            ("the reset state", self.reset_state.as_ref(), state, Usage::COPY_SRC, copy),
            ("h_n", self.h_n.as_ref(), state, Usage::COPY_DST, copy),
        ] {
            if let Some(binding) = binding {
                check_binding(what, binding, bytes, usage, alignment)?;
            }
        }
        if self.step_flags.as_ref().is_some_and(|step_flags| step_flags.buffer == self.y.buffer) {
            return Err(Error::Conflict {
                what: "step flags and y in one buffer",
                why: "a kernel reads the step flags while it writes y; use two buffers",
            });
        }
        Ok(())
    }

    /// Returns the bindings of x, y and the step flags for a session.
    pub(crate) fn bindings(&self, run: &RunBuffers) -> Vec<(BufferId, BufferBinding)> {
        let bindings = [
            (run.x, Some(&self.x)),
            (run.y, Some(&self.y)),
            (run.step_flags, self.step_flags.as_ref()),
        ];
        bindings
            .into_iter()
            .filter_map(|(id, binding)| Some((id, BufferBinding::from(binding?))))
            .collect()
    }
}

impl From<&wgpu::BufferBinding<'_>> for BufferBinding {
    fn from(binding: &wgpu::BufferBinding<'_>) -> Self {
        Self { buffer: binding.buffer.clone(), offset: binding.offset }
    }
}

/// Checks the usage, the alignment and the size in bytes of a caller's buffer.
fn check_binding(
    what: &'static str,
    binding: &wgpu::BufferBinding<'_>,
    bytes: u64,
    usage: wgpu::BufferUsages,
    alignment: u64,
) -> Result<()> {
    let rest = binding.buffer.size().saturating_sub(binding.offset);
    let given = binding.size.map_or(rest, |size| size.get().min(rest));
    let error = |expected: String, got: String| Err(Error::Buffer { what, expected, got });
    if !binding.buffer.usage().contains(usage) {
        let names = |usage: wgpu::BufferUsages| {
            let names: Vec<_> = usage.iter_names().map(|(name, _)| name).collect();
            format!("usage {}", names.join(" | "))
        };
        return error(names(usage), names(binding.buffer.usage()));
    }
    if !binding.offset.is_multiple_of(alignment) {
        let got = format!("the offset {}", binding.offset);
        return error(format!("a multiple of {alignment}"), got);
    }
    if given < bytes {
        return error(format!("at least {bytes}"), format!("{given} bytes"));
    }
    Ok(())
}

/// A forward pass over a caller's own [`Buffers`]. Prepare it once, then encode it any number of
/// times into a command encoder. Encoding submits nothing, waits for nothing and copies nothing to
/// the host.
///
/// ```no_run
/// use gru_wgpu::{Buffers, Device, Gru, GruConfig, Init, wgpu};
///
/// # fn example(
/// #     adapter: wgpu::Adapter, device: wgpu::Device, queue: wgpu::Queue,
/// #     x: wgpu::Buffer, y: wgpu::Buffer,
/// # ) -> gru_wgpu::Result<()> {
/// let shared = Device::from_wgpu(&adapter, &device, &queue)?;
/// let gru = Gru::new(GruConfig::pytorch(3, 16), Init::Uniform, 1, &shared)?;
/// let buffers = Buffers::new(x.as_entire_buffer_binding(), y.as_entire_buffer_binding());
/// let mut pass = gru.forward_pass(gru.config().shape(50, 8)?, &buffers)?;
///
/// let mut encoder = device.create_command_encoder(&Default::default());
/// // … commands that write x …
/// gru.encode(&mut pass, &mut encoder)?;
/// // … commands that read y …
/// queue.submit([encoder.finish()]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ForwardPass {
    model: u64,
    shape: Shape,
    session: Session,
    /// Buffers to copy to `states` before the pass.
    initial_copies: Vec<(BufferBinding, StateSlot)>,
    /// The destination of the last states after the pass.
    h_n: Option<BufferBinding>,
}

impl ForwardPass {
    /// Returns the shape of the run.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        let plan = self.session.plan();
        let id = plan.run_buffers().states;
        let states = self.session.buffer(id);
        let bytes = |slot: StateSlot| plan.spec(id).byte_range(&slot.range(self.shape));
        for (from, slot) in &self.initial_copies {
            let (to, len) = bytes(*slot);
            encoder.copy_buffer_to_buffer(&from.buffer, from.offset, states, to, len);
        }
        self.session.encode(encoder, 0);
        if let Some(to) = &self.h_n {
            let (from, len) = bytes(StateSlot::Last);
            encoder.copy_buffer_to_buffer(states, from, &to.buffer, to.offset, len);
        }
    }

    /// Returns the number of multiplications and additions of one run. Use it to keep a submit
    /// short, for example in a program that also renders frames.
    pub fn flops(&self) -> u64 {
        self.session.plan().forward_flops()
    }
}

impl Gru {
    blocking_and_async! {
        /// Prepares a forward pass of `shape` over the caller's own buffers.
        ///
        /// # Errors
        /// [`Error::Buffer`] if a buffer lacks the required size, usage or alignment,
        /// [`Error::Conflict`] on the CPU device, [`Error::Shape`] if another configuration made
        /// `shape`, [`Error::Limit`], and errors of the device.
        pub fn forward_pass, forward_pass_async(&self, shape: Shape, buffers: &Buffers<'_>) -> Result<ForwardPass> {
            |_| self.prepare_forward_pass(shape, buffers)
        }
    }

    async fn prepare_forward_pass(
        &self,
        shape: Shape,
        buffers: &Buffers<'_>,
    ) -> Result<ForwardPass> {
        let pool = self.session_pool()?;
        let plan = self.plan(shape, Mode::Inference)?;
        buffers.check(pool.gpu(), shape)?;
        let bindings = buffers.bindings(plan.run_buffers());
        let session = pool.create_session(plan, &bindings).await?;
        let copies = [(&buffers.h0, StateSlot::First), (&buffers.reset_state, StateSlot::Reset)];
        let initial_copies = copies
            .into_iter()
            .filter_map(|(binding, slot)| Some((BufferBinding::from(binding.as_ref()?), slot)))
            .collect();
        let h_n = buffers.h_n.as_ref().map(BufferBinding::from);
        Ok(ForwardPass { model: self.id(), shape, session, initial_copies, h_n })
    }

    /// Encodes a prepared forward pass into `encoder`, with the model's current parameters. The
    /// commands are copies from h0 and the reset state, one compute pass, and a copy to h_n.
    ///
    /// Runs of one [`ForwardPass`] share its internal buffers, so they execute one after the other
    /// in the order of their submits.
    ///
    /// Parameters that changed since the last call are written to the queue, which uploads them
    /// before the next submit.
    ///
    /// # Errors
    /// [`Error::OtherModel`], [`Error::ParameterLayout`], and errors of the device while commands
    /// are recorded. wgpu reports errors of the encoder as a whole in
    /// [`wgpu::CommandEncoder::finish`].
    pub fn encode(&self, pass: &mut ForwardPass, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        self.check_usable()?;
        if pass.model != self.id() {
            return Err(Error::OtherModel { what: "forward pass" });
        }
        let work = || pass.encode(encoder);
        self.session_pool()?.with_parameters_now(self.params(), self.version(), work)
    }
}
