//! [`Session`]: a plan made real, and run.

use std::collections::HashMap;
use std::ops::Range;

use crate::error::Result;
use crate::gpu::Gpu;
use crate::plan::{ARGS_BLOCK, BufferId, DISPATCH_FLOPS, Dispatch, Plan, Role, Slice, Stage};

/// Dispatches of one submit: bounds what wgpu holds while it encodes.
const SUBMIT_DISPATCHES: usize = 4096;

/// Which of a plan's two schedules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    Forward,
    Backward,
}

/// A plan made real on a device: its buffers, bind groups and arguments, made once and used for any
/// number of runs of that shape.
#[derive(Debug)]
pub(crate) struct Session {
    gpu: Gpu,
    plan: Plan,
    buffers: Vec<wgpu::Buffer>,
    forward: Vec<Prepared>,
    backward: Vec<Prepared>,
    /// To be zeroed before the next pass.
    clears: Vec<(BufferId, Range<usize>)>,
    /// The device reported an error during a run: the contents cannot be relied on.
    broken: bool,
}

/// A stage with its pipelines and bind groups.
#[derive(Debug)]
struct Prepared {
    calls: Vec<Call>,
    times: usize,
    /// Where the arguments of its first dispatch lie; the others follow in order.
    first_block: usize,
}

#[derive(Debug)]
struct Call {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    workgroups: [u32; 3],
    flops: u64,
}

impl Session {
    /// Makes everything that `plan` asks for. `params` is bound as its buffer of that role.
    pub fn new(gpu: &Gpu, plan: Plan, params: Option<&wgpu::Buffer>) -> Result<Self> {
        plan.check(gpu.limits())?;
        gpu.guard(|| Self::prepare(gpu, plan, params))
    }

    fn prepare(gpu: &Gpu, plan: Plan, params: Option<&wgpu::Buffer>) -> Result<Self> {
        let buffers: Vec<_> = plan
            .buffers()
            .iter()
            .map(|spec| match (spec.role, params) {
                (Role::Parameters, Some(params)) => params.clone(),
                _ => gpu.buffer(&spec.name, spec.len, wgpu::BufferUsages::STORAGE),
            })
            .collect();
        let words = argument_words(&plan);
        let args = gpu.buffer("args", words.len(), wgpu::BufferUsages::STORAGE);
        gpu.upload(&args, 0, bytemuck::cast_slice(&words));

        let mut preparation = Preparation {
            gpu,
            buffers: &buffers,
            args: &args,
            bind_groups: HashMap::new(),
            next_block: 0,
        };
        let forward = preparation.stages(plan.forward())?;
        let backward = preparation.stages(plan.backward())?;
        let clears = Vec::new();
        Ok(Self { gpu: gpu.clone(), plan, buffers, forward, backward, clears, broken: false })
    }

    /// Whether the device reported an error during a run: the contents cannot be relied on.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Writes `data` to `buffer` from its element `first`, or zeros to `len` elements of it.
    pub fn write(
        &mut self,
        buffer: BufferId,
        first: usize,
        len: usize,
        data: Option<&[f32]>,
    ) -> Result<()> {
        let Some(data) = data else {
            self.clears.push((buffer, first..first + len));
            return Ok(());
        };
        assert_eq!(data.len(), len, "wrong amount of data for {buffer:?}");
        let upload = || {
            self.gpu.upload(&self.buffers[buffer.0], first, data);
            Ok(())
        };
        self.gpu.guard(upload).inspect_err(|_| self.broken = true)
    }

    /// Queues one of the plan's schedules. Returns before it has run.
    pub fn run(&mut self, pass: Pass) -> Result<()> {
        let clears = std::mem::take(&mut self.clears);
        let queue = || {
            self.queue(pass, &clears);
            Ok(())
        };
        self.gpu.guard(queue).inspect_err(|_| self.broken = true)
    }

    fn queue(&self, pass: Pass, clears: &[(BufferId, Range<usize>)]) {
        let (name, stages) = match pass {
            Pass::Forward => ("forward", &self.forward),
            Pass::Backward => ("backward", &self.backward),
        };
        let mut clears = clears.iter();
        let mut calls = stages.iter().flat_map(Prepared::calls).peekable();
        while calls.peek().is_some() {
            let mut encoder = self.gpu.encoder(name);
            // All of them ahead of the first pass.
            for (buffer, range) in clears.by_ref() {
                let (offset, size) = (4 * range.start as u64, 4 * range.len() as u64);
                encoder.clear_buffer(&self.buffers[buffer.0], offset, Some(size));
            }
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: Some(&format!("gru.{name}")),
                timestamp_writes: None,
            });
            let (mut flops, mut dispatches) = (0, 0);
            while flops < DISPATCH_FLOPS && dispatches < SUBMIT_DISPATCHES {
                let Some((call, block)) = calls.next() else { break };
                let [x, y, z] = call.workgroups;
                let offset = (block as u64 * ARGS_BLOCK) as u32;
                pass.set_pipeline(&call.pipeline);
                pass.set_bind_group(0, &call.bind_group, &[offset]);
                pass.dispatch_workgroups(x, y, z);
                flops += call.flops;
                dispatches += 1;
            }
            drop(pass);
            self.gpu.submit(encoder.finish());
        }
    }

    /// Waits for all that was queued and reads parts of buffers.
    pub fn read(&mut self, parts: &[(BufferId, Range<usize>)]) -> Result<Vec<Vec<f32>>> {
        let parts: Vec<_> = parts
            .iter()
            .map(|(id, range)| (&self.buffers[id.0], range.start, range.len()))
            .collect();
        self.gpu.guard(|| self.gpu.download(&parts)).inspect_err(|_| self.broken = true)
    }
}

impl Prepared {
    /// Its dispatches in order, each with the block of its arguments.
    fn calls(&self) -> impl Iterator<Item = (&Call, usize)> {
        let body = self.calls.len();
        (0..self.times * body).map(move |i| (&self.calls[i % body], self.first_block + i))
    }
}

/// What the stages of a session share while it is made.
struct Preparation<'a> {
    gpu: &'a Gpu,
    buffers: &'a [wgpu::Buffer],
    args: &'a wgpu::Buffer,
    /// One for each kernel, variant and set of slices; the arguments differ by offset alone.
    bind_groups: HashMap<(&'static str, Vec<u32>, Vec<Slice>), wgpu::BindGroup>,
    next_block: usize,
}

impl Preparation<'_> {
    fn stages(&mut self, stages: &[Stage]) -> Result<Vec<Prepared>> {
        stages.iter().map(|stage| self.stage(stage)).collect()
    }

    fn stage(&mut self, stage: &Stage) -> Result<Prepared> {
        let (body, times) = stage.dispatches();
        let calls = body.iter().map(|dispatch| self.call(dispatch)).collect::<Result<_>>()?;
        let first_block = self.next_block;
        self.next_block += body.len() * times;
        Ok(Prepared { calls, times, first_block })
    }

    fn call(&mut self, dispatch: &Dispatch) -> Result<Call> {
        let pipeline = self.gpu.pipeline(dispatch.kernel, &dispatch.constants)?;
        let key = (dispatch.kernel.name, dispatch.constants.clone(), dispatch.bindings.clone());
        let bind_group = match self.bind_groups.get(&key) {
            Some(group) => group.clone(),
            None => {
                let group = self.bind(dispatch, &pipeline);
                self.bind_groups.insert(key, group.clone());
                group
            }
        };
        // Plan::check held them against the adapter's limit, which is a u32.
        let workgroups = dispatch.workgroups.map(|n| n as u32);
        Ok(Call { pipeline, bind_group, workgroups, flops: dispatch.padded_flops })
    }

    fn bind(&self, dispatch: &Dispatch, pipeline: &wgpu::ComputePipeline) -> wgpu::BindGroup {
        let part = |buffer, offset, size| {
            wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer,
                offset,
                size: wgpu::BufferSize::new(size),
            })
        };
        let args = wgpu::BindGroupEntry { binding: 0, resource: part(self.args, 0, ARGS_BLOCK) };
        let slices = dispatch.bindings.iter().zip(1..).map(|(slice, binding)| {
            let (first, len) = (4 * slice.first as u64, 4 * slice.len as u64);
            let resource = part(&self.buffers[slice.buffer.0], first, len);
            wgpu::BindGroupEntry { binding, resource }
        });
        let entries: Vec<_> = std::iter::once(args).chain(slices).collect();
        self.gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(&format!("gru.{}", dispatch.kernel.name)),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        })
    }
}

/// The arguments of every dispatch in the order they run, a block each, the loops' steps filled in.
fn argument_words(plan: &Plan) -> Vec<u32> {
    const BLOCK: usize = ARGS_BLOCK as usize / 4;
    let mut words = Vec::new();
    for stage in plan.forward().iter().chain(plan.backward()) {
        let (body, _) = stage.dispatches();
        for step in stage.steps() {
            for dispatch in body {
                let block = words.len();
                words.extend_from_slice(&dispatch.args);
                if let Some(step) = step {
                    let at = dispatch.kernel.args.iter().position(|&name| name == "step");
                    words[block + at.expect("a kernel in a loop takes its step")] = step;
                }
                words.resize(block + BLOCK, 0);
            }
        }
    }
    words
}
