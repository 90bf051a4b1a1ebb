//! [`Session`]: the buffers, pipelines and bind groups of a plan on a device, and its runs.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Result, try_with_capacity};
use crate::gpu::context::Gpu;
use crate::gpu::host_copy::Destination;
use crate::gpu::pipeline_store::PipelineKey;
use crate::gpu::transfer::Download;
use crate::gpu::wait::Wait;
use crate::kernels::{ArgsSpace, MAX_ARGS_SIZE};
use crate::plan::{
    ARGS_BLOCK, BufferId, BufferSlice, BufferSpec, Dispatch, ElementType, Pass, Plan, Role, Stage,
};
use crate::spec::element::BufferElement;

#[cfg(test)]
mod tests;
mod timed;

use timed::PassTimestamps;
pub(crate) use timed::Timing;

/// The most dispatches in one submit. Limits the memory that wgpu uses while it encodes.
const SUBMIT_DISPATCHES: usize = 4096;

/// Returns the u32s of a dispatch's block of arguments.
const fn block_len(space: ArgsSpace) -> usize {
    let bytes = match space {
        ArgsSpace::Storage => ARGS_BLOCK,
        ArgsSpace::Immediate => MAX_ARGS_SIZE,
    };
    bytes as usize / size_of::<u32>()
}

/// A buffer, and the byte offset at which bindings to it start.
#[derive(Clone, Debug)]
pub(crate) struct BufferBinding {
    pub buffer: wgpu::Buffer,
    pub offset: u64,
}

impl From<&wgpu::Buffer> for BufferBinding {
    fn from(buffer: &wgpu::Buffer) -> Self {
        Self { buffer: buffer.clone(), offset: 0 }
    }
}

/// A plan's buffers, pipelines, bind groups and kernel arguments on a device. A session is created
/// once and runs its plan any number of times.
#[derive(Debug)]
pub(crate) struct Session {
    gpu: Gpu,
    plan: Arc<Plan>,
    buffers: Vec<BufferBinding>,
    forward: Vec<PreparedStage>,
    backward: Vec<PreparedStage>,
    args: Arguments,
    /// The number of argument blocks for each of the plan's parities.
    parity_blocks: usize,
    /// Clears and copies that the current call queued to run before its next pass.
    prologue: Vec<Prologue>,
    /// Ranges of input buffers that are known to be zero. Kernels never write inputs.
    zeros: Vec<(BufferId, Range<usize>)>,
    /// True after the device reported an error during a run: the contents of the buffers are
    /// undefined.
    broken: bool,
}

/// The arguments of all dispatches, one block each.
#[derive(Debug)]
enum Arguments {
    /// A buffer, bound at the dynamic offset of a dispatch's block.
    Storage(wgpu::Buffer),
    /// Set before each dispatch.
    Immediate(Vec<u32>),
}

impl Arguments {
    fn new(gpu: &Gpu, blocks: Vec<u32>) -> Self {
        match gpu.caps().args_space() {
            ArgsSpace::Immediate => Self::Immediate(blocks),
            ArgsSpace::Storage => {
                let args = gpu.buffer("args", ElementType::U32.bytes(blocks.len()));
                gpu.upload(&args, 0, &blocks);
                Self::Storage(args)
            }
        }
    }

    /// Binds a dispatch's buffers, and its arguments.
    fn set(&self, pass: &mut wgpu::ComputePass<'_>, dispatch: &PreparedDispatch, block: usize) {
        match self {
            Self::Storage(_) => {
                let offset = (block as u64 * ARGS_BLOCK) as u32;
                pass.set_bind_group(0, &dispatch.bind_group, &[offset]);
            }
            Self::Immediate(blocks) => {
                let len = block_len(ArgsSpace::Immediate);
                let args = &blocks[block * len..][..dispatch.args];
                pass.set_bind_group(0, &dispatch.bind_group, &[]);
                pass.set_immediates(0, bytemuck::cast_slice(args));
            }
        }
    }
}

/// A range of a buffer to read, and where its elements go.
#[derive(Debug)]
pub(crate) struct Read<'a, T> {
    pub buffer: BufferId,
    pub range: Range<usize>,
    pub to: Destination<'a, T>,
}

/// A clear or copy of a buffer's elements before a pass.
#[derive(Debug)]
enum Prologue {
    Zero(BufferId, Range<usize>),
    Copy(wgpu::Buffer, BufferId, Vec<CopyRegion>),
}

/// Elements to copy from one buffer to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CopyRegion {
    /// The first element in the source.
    pub from: usize,
    /// The first element in the destination.
    pub to: usize,
    pub len: usize,
}

impl CopyRegion {
    /// Encodes the copy. Both buffers have elements of `element`.
    pub fn encode(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        element: ElementType,
        from: &wgpu::Buffer,
        to: &wgpu::Buffer,
    ) {
        let [source, target, size] = [self.from, self.to, self.len].map(|len| element.bytes(len));
        encoder.copy_buffer_to_buffer(from, source, to, target, Some(size));
    }
}

/// A stage with its pipelines and bind groups.
#[derive(Debug)]
struct PreparedStage {
    dispatches: Vec<PreparedDispatch>,
    /// How often the stage runs its dispatches.
    times: usize,
    /// The argument block of the first dispatch. The blocks of the others follow in order.
    first_block: usize,
}

#[derive(Debug)]
struct PreparedDispatch {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    /// The number of arguments.
    args: usize,
    workgroups: [u32; 3],
    flops: u64,
}

impl Session {
    /// Creates a session for `plan`. The session uses the `bound` buffers and creates all others.
    ///
    /// # Errors
    /// The errors of [`Plan::check`], and errors of the device.
    pub async fn new(
        gpu: &Gpu,
        plan: impl Into<Arc<Plan>>,
        bound: &[(BufferId, BufferBinding)],
    ) -> Result<Self> {
        let plan = plan.into();
        plan.check(gpu.limits())?;
        let stages = plan.forward().iter().chain(plan.backward());
        let pipelines = gpu.pipelines(stages.flat_map(|stage| stage.dispatches().0)).await?;
        let session = gpu.guard(|| Ok(Self::prepare(gpu, plan, &pipelines, bound))).await?;
        gpu.check_lost()?;
        Ok(session)
    }

    fn prepare(
        gpu: &Gpu,
        plan: Arc<Plan>,
        pipelines: &HashMap<PipelineKey, wgpu::ComputePipeline>,
        bound: &[(BufferId, BufferBinding)],
    ) -> Self {
        let buffer =
            |(i, spec): (usize, &BufferSpec)| match bound.iter().find(|(id, _)| id.index() == i) {
                Some((_, bound)) => bound.clone(),
                None => BufferBinding::from(&gpu.buffer(&spec.name, spec.bytes())),
            };
        let buffers: Vec<_> = plan.buffers().iter().enumerate().map(buffer).collect();
        let len = block_len(gpu.caps().args_space());
        let blocks: Vec<u32> =
            (0..plan.parities()).flat_map(|parity| argument_blocks(&plan, parity, len)).collect();
        let args = Arguments::new(gpu, blocks);

        let (bind_groups, next_block) = Default::default();
        let mut builder = SessionBuilder {
            gpu,
            pipelines,
            buffers: &buffers,
            args: &args,
            bind_groups,
            next_block,
        };
        let forward = plan.forward().iter().map(|stage| builder.stage(stage)).collect();
        let backward = plan.backward().iter().map(|stage| builder.stage(stage)).collect();
        let parity_blocks = builder.next_block;
        // wgpu zeroes new buffers. Bound buffers may hold other values.
        let is_own = |id: &BufferId| bound.iter().all(|(other, _)| other != id);
        let inputs = plan.buffers().iter().enumerate().filter(|(_, spec)| spec.role == Role::Input);
        let zeros = inputs.map(|(i, spec)| (BufferId(i), 0..spec.len));
        let zeros = zeros.filter(|(id, _)| is_own(id)).collect();
        let (prologue, gpu) = (Vec::new(), gpu.clone());
        let broken = false;
        Self { gpu, plan, buffers, forward, backward, args, parity_blocks, prologue, zeros, broken }
    }

    /// Returns the session for the next call, without queued clears and copies that never ran.
    /// Returns `None` if the contents of its buffers are undefined.
    pub fn into_idle(self) -> Option<Self> {
        let idle = Self { prologue: Vec::new(), ..self };
        (!idle.broken).then_some(idle)
    }

    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub fn buffer(&self, id: BufferId) -> &wgpu::Buffer {
        &self.buffers[id.index()].buffer
    }

    /// Writes `data` to `buffer`, starting at element `first`.
    pub async fn write<T: BufferElement>(
        &mut self,
        buffer: BufferId,
        first: usize,
        data: &[T],
        wait: Wait,
    ) -> Result<()> {
        let range = first..first + data.len();
        self.assert_holds::<T>(buffer, &range);
        self.zeros.retain(|(id, zero)| *id != buffer || !overlap(zero, &range));
        let uploaded = self.gpu.upload_large(self.buffer(buffer), first, data, wait).await;
        uploaded.inspect_err(|_| self.broken = true)
    }

    /// Queues a clear of a range of a buffer, to run before the next pass.
    pub fn clear(&mut self, buffer: BufferId, range: Range<usize>) {
        if !self.is_zero(buffer, &range) {
            self.prologue.push(Prologue::Zero(buffer, range));
        }
    }

    /// True if a range of an input buffer is known to be zero.
    fn is_zero(&self, buffer: BufferId, range: &Range<usize>) -> bool {
        let holds = |zero: &Range<usize>| zero.start <= range.start && range.end <= zero.end;
        self.zeros.iter().any(|(id, zero)| *id == buffer && holds(zero))
    }

    /// Panics unless the buffer has elements of type `T` and holds `range`. A wrong type or range
    /// is a bug in this crate.
    fn assert_holds<T: BufferElement>(&self, buffer: BufferId, range: &Range<usize>) {
        let BufferSpec { name, element, len, .. } = self.plan.spec(buffer);
        assert_eq!(*element, T::TYPE, "the element type of {name}");
        assert!(range.end <= *len, "{range:?} is out of range for the {len} elements of {name}");
    }

    /// Queues copies of elements of `from`, of the same type, to a buffer, to run before the next
    /// pass.
    pub fn copy_in(&mut self, from: &wgpu::Buffer, to: BufferId, regions: Vec<CopyRegion>) {
        for CopyRegion { to: first, len, .. } in &regions {
            let range = *first..first + len;
            self.zeros.retain(|(id, zero)| *id != to || !overlap(zero, &range));
        }
        self.prologue.push(Prologue::Copy(from.clone(), to, regions));
    }

    /// Queues copies of elements of a buffer to `to`.
    pub async fn copy_out(
        &self,
        from: BufferId,
        to: &wgpu::Buffer,
        regions: &[CopyRegion],
    ) -> Result<()> {
        let BufferSpec { name, element, .. } = self.plan.spec(from);
        let copy = || {
            let mut encoder = self.gpu.encoder(name);
            for region in regions {
                region.encode(&mut encoder, *element, self.buffer(from), to);
            }
            self.gpu.submit(encoder.finish());
            Ok(())
        };
        self.gpu.guard(copy).await
    }

    /// Queues one of the plan's schedules. Returns before the schedule has run.
    pub async fn run(&mut self, pass: Pass) -> Result<()> {
        let prologue = self.take_prologue(pass);
        let queue = || {
            self.queue(pass, &prologue, None);
            Ok(())
        };
        self.gpu.guard(queue).await.inspect_err(|_| self.broken = true)
    }

    /// Takes the clears and copies to run before a pass, and records the ranges that the clears
    /// make zero. Recording them before they run is safe: a session whose pass fails is not used
    /// again.
    fn take_prologue(&mut self, pass: Pass) -> Vec<Prologue> {
        let mut prologue = std::mem::take(&mut self.prologue);
        for cleared in &prologue {
            if let Prologue::Zero(id, range) = cleared {
                if self.plan.buffers()[id.index()].role == Role::Input {
                    self.zeros.push((*id, range.clone()));
                }
            }
        }
        if pass == Pass::Backward {
            let whole = |id: &BufferId| (*id, 0..self.plan.spec(*id).len);
            let zeros = self.plan.accumulators().iter().map(whole);
            prologue.extend(zeros.map(|(id, range)| Prologue::Zero(id, range)));
        }
        prologue
    }

    /// Queues a schedule. Its compute passes write `timestamps`.
    fn queue(&self, pass: Pass, prologue: &[Prologue], timestamps: Option<PassTimestamps<'_>>) {
        self.queue_dispatches(pass, prologue, self.dispatches(pass, 0), timestamps);
    }

    fn queue_dispatches<'a>(
        &self,
        pass: Pass,
        prologue: &[Prologue],
        dispatches: impl Iterator<Item = (&'a PreparedDispatch, usize)>,
        mut timestamps: Option<PassTimestamps<'_>>,
    ) {
        let mut prologue = prologue.iter();
        let mut dispatches = dispatches.peekable();
        let max_flops = self.plan.submit_flops().min(self.gpu.throttle().max_flops());
        while dispatches.peek().is_some() {
            let mut encoder = self.gpu.encoder(pass.name());
            // The first encoder takes the whole prologue.
            prologue.by_ref().for_each(|prologue| self.encode_prologue(prologue, &mut encoder));
            let (mut flops, mut count) = (0, 0);
            let submitted = std::iter::from_fn(|| {
                // A submit has at least one dispatch, regardless of its size.
                let fits = |dispatch: &PreparedDispatch| {
                    flops + dispatch.flops <= max_flops && count < SUBMIT_DISPATCHES
                };
                let (dispatch, block) =
                    dispatches.next_if(|(dispatch, _)| count == 0 || fits(dispatch))?;
                flops += dispatch.flops;
                count += 1;
                Some((dispatch, block))
            });
            let writes = timestamps.as_mut().map(PassTimestamps::next_pass);
            self.encode_dispatches(&mut encoder, pass, submitted, writes);
            self.gpu.submit(encoder.finish());
            self.gpu.throttle().record_submit(flops);
        }
    }

    fn encode_prologue(&self, prologue: &Prologue, encoder: &mut wgpu::CommandEncoder) {
        match prologue {
            Prologue::Zero(id, range) => {
                let (offset, size) = self.plan.spec(*id).byte_range(range);
                encoder.clear_buffer(self.buffer(*id), offset, Some(size));
            }
            Prologue::Copy(from, id, regions) => {
                let element = self.plan.spec(*id).element;
                for region in regions {
                    region.encode(encoder, element, from, self.buffer(*id));
                }
            }
        }
    }

    /// Encodes the forward schedule, with the arguments of one parity, as one compute pass of the
    /// caller's encoder.
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder, parity: usize) {
        let dispatches = self.dispatches(Pass::Forward, parity);
        self.encode_dispatches(encoder, Pass::Forward, dispatches, None);
    }

    fn encode_dispatches<'a>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        pass: Pass,
        dispatches: impl Iterator<Item = (&'a PreparedDispatch, usize)>,
        timestamp_writes: Option<wgpu::ComputePassTimestampWrites<'_>>,
    ) {
        let label = match pass {
            Pass::Forward => "gru.forward",
            Pass::Backward => "gru.backward",
        };
        let descriptor = wgpu::ComputePassDescriptor { label: Some(label), timestamp_writes };
        let mut pass = encoder.begin_compute_pass(&descriptor);
        for (dispatch, block) in dispatches {
            let [x, y, z] = dispatch.workgroups;
            pass.set_pipeline(&dispatch.pipeline);
            self.args.set(&mut pass, dispatch, block);
            pass.dispatch_workgroups(x, y, z);
        }
    }

    fn stages(&self, pass: Pass) -> &[PreparedStage] {
        match pass {
            Pass::Forward => &self.forward,
            Pass::Backward => &self.backward,
        }
    }

    /// Returns the dispatches of a schedule in order, each with the index of its argument block.
    fn dispatches(
        &self,
        pass: Pass,
        parity: usize,
    ) -> impl Iterator<Item = (&PreparedDispatch, usize)> {
        let first = parity * self.parity_blocks;
        self.stages(pass)
            .iter()
            .flat_map(PreparedStage::dispatches)
            .map(move |(dispatch, block)| (dispatch, first + block))
    }

    /// Waits for all queued work and reads ranges of buffers, all of one element type.
    pub async fn read<T: BufferElement>(
        &mut self,
        ranges: &[(BufferId, Range<usize>)],
        wait: Wait,
    ) -> Result<Vec<Vec<T>>> {
        let room = |(_, range): &(_, Range<usize>)| try_with_capacity("results", range.len());
        let mut results: Vec<Vec<T>> = ranges.iter().map(room).collect::<Result<_>>()?;
        let reads = ranges.iter().cloned().zip(&mut results).map(|((buffer, range), to)| {
            let to = Destination::Vec(to);
            Read { buffer, range, to }
        });
        self.read_into(reads.collect(), wait).await?;
        Ok(results)
    }

    /// Waits for all queued work and reads ranges of buffers into their destinations.
    pub async fn read_into<T: BufferElement>(
        &mut self,
        reads: Vec<Read<'_, T>>,
        wait: Wait,
    ) -> Result<()> {
        reads.iter().for_each(|read| self.assert_holds::<T>(read.buffer, &read.range));
        // The session stays broken if the caller drops this future before it completes.
        let broken = std::mem::replace(&mut self.broken, true);
        let downloads = reads.into_iter().map(|Read { buffer, range, to }| {
            let (first, len) = (range.start, range.len());
            Download { buffer: self.buffer(buffer), first, len, to }
        });
        self.gpu.download_into(downloads.collect(), wait).await?;
        self.broken = broken;
        Ok(())
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

impl PreparedStage {
    /// Returns the stage's dispatches in order, each with the index of its argument block.
    fn dispatches(&self) -> impl Iterator<Item = (&PreparedDispatch, usize)> {
        let body = self.dispatches.len();
        (0..self.times * body).map(move |i| (&self.dispatches[i % body], self.first_block + i))
    }
}

/// Prepares the stages of a session.
struct SessionBuilder<'a> {
    gpu: &'a Gpu,
    pipelines: &'a HashMap<PipelineKey, wgpu::ComputePipeline>,
    buffers: &'a [BufferBinding],
    args: &'a Arguments,
    /// One bind group for each kernel, set of override constants and list of buffer slices.
    /// Dispatches of the same bind group select their arguments by a dynamic offset.
    bind_groups: HashMap<(&'static str, Vec<u32>, Vec<BufferSlice>), wgpu::BindGroup>,
    next_block: usize,
}

impl SessionBuilder<'_> {
    fn stage(&mut self, stage: &Stage) -> PreparedStage {
        let (body, times) = stage.dispatches();
        let dispatches = body.iter().map(|dispatch| self.dispatch(dispatch)).collect();
        let first_block = self.next_block;
        self.next_block += body.len() * times;
        PreparedStage { dispatches, times, first_block }
    }

    fn dispatch(&mut self, dispatch: &Dispatch) -> PreparedDispatch {
        let pipeline = &self.pipelines[&(dispatch.kernel.name, dispatch.constants.clone())];
        let key = (dispatch.kernel.name, dispatch.constants.clone(), dispatch.bindings.clone());
        let bind_group = match self.bind_groups.get(&key) {
            Some(group) => group.clone(),
            None => {
                let group = self.bind(dispatch, pipeline);
                self.bind_groups.insert(key, group.clone());
                group
            }
        };
        // Plan::check compared them with the adapter's limit, which is a u32.
        let workgroups = dispatch.workgroups.map(|n| n as u32);
        PreparedDispatch {
            pipeline: pipeline.clone(),
            bind_group,
            args: dispatch.args.len(),
            workgroups,
            flops: dispatch.padded_flops,
        }
    }

    fn bind(&self, dispatch: &Dispatch, pipeline: &wgpu::ComputePipeline) -> wgpu::BindGroup {
        let binding_of = |buffer, offset, size| {
            wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer,
                offset,
                size: wgpu::BufferSize::new(size),
            })
        };
        let args = match self.args {
            Arguments::Storage(buffer) => Some(wgpu::BindGroupEntry {
                binding: 0,
                resource: binding_of(buffer, 0, ARGS_BLOCK),
            }),
            Arguments::Immediate(_) => None,
        };
        let slices = dispatch.bindings.iter().zip(1..).map(|(slice, binding)| {
            let BufferBinding { buffer, offset } = &self.buffers[slice.buffer.index()];
            let resource = binding_of(buffer, offset + slice.offset(), slice.bytes());
            wgpu::BindGroupEntry { binding, resource }
        });
        let entries: Vec<_> = args.into_iter().chain(slices).collect();
        self.gpu.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(&format!("gru.{}", dispatch.kernel.name)),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        })
    }
}

/// Returns the arguments of every dispatch, one block of `block_len` each, in the order they run,
/// with the step of each loop iteration filled in. Parity 1 swaps the positions of the first and
/// last states.
fn argument_blocks(plan: &Plan, parity: usize, block_len: usize) -> Vec<u32> {
    let mut blocks = Vec::new();
    for stage in plan.forward().iter().chain(plan.backward()) {
        let (body, _) = stage.dispatches();
        for step in stage.steps() {
            for dispatch in body {
                let block = blocks.len();
                blocks.extend_from_slice(&dispatch.args);
                let at = |name| dispatch.kernel.argument(name);
                if let Some(step) = step {
                    blocks[block + at("step").expect("a kernel in a loop takes its step")] = step;
                }
                if let (1, Some(first), Some(last)) = (parity, at("first_state"), at("last_state"))
                {
                    blocks.swap(block + first, block + last);
                }
                blocks.resize(block + block_len, 0);
            }
        }
    }
    blocks
}
