//! One kernel of a plan by itself: as the plan has it, with other override constants, arguments and
//! workgroups, or without index checks. Its numbers are random, so its results mean nothing.

use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use gru_wgpu::plan::{
    BufferSpec, DeviceCaps, Dispatch, ElementType, Mode, Plan, Role, Shader, Stage,
};
use gru_wgpu::{Device, GruConfig, Recurrence, RunOptions, wgpu};
use serde_json::{Value, json};

use crate::gpu::{Checks, Gpu};

#[derive(clap::Args, Debug)]
pub struct KernelArgs {
    /// The shape of the plan: steps, rows of the batch, inputs, hidden units.
    #[arg(value_name = "T,B,I,H", value_delimiter = ',', num_args = 1, required = true)]
    shape: Vec<usize>,
    /// Which plan.
    #[arg(long, value_enum, default_value_t = ModeArg::Forward)]
    mode: ModeArg,
    /// The recurrence's kernel family, as in `gru bench --kernel`.
    #[arg(long, default_value_t = Recurrence::Auto)]
    kernel: Recurrence,
    /// The kernel whose largest dispatch is timed: the name of its file in shaders/.
    #[arg(long)]
    name: String,
    /// Override constants in place of the plan's.
    #[arg(long, value_delimiter = ',')]
    constants: Vec<Setting>,
    /// Arguments in place of the plan's.
    #[arg(long, value_delimiter = ',')]
    args: Vec<Setting>,
    /// Workgroups in place of the plan's: x,y,z.
    #[arg(long, value_delimiter = ',', num_args = 1)]
    workgroups: Option<Vec<u32>>,
    #[arg(long, value_enum, default_value_t = Checks::Library)]
    checks: Checks,
    /// How often the dispatch runs in one compute pass, each time after the one before.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    chain: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ModeArg {
    Forward,
    Train,
}

/// NAME=VALUE.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Setting {
    name: String,
    value: u32,
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let setting = text.split_once('=').and_then(|(name, value)| {
            Some(Self { name: name.to_owned(), value: value.parse().ok()? })
        });
        setting.ok_or_else(|| format!("expected NAME=VALUE with a whole number, got `{text}`"))
    }
}

pub fn run(gpu: &Gpu, arguments: &KernelArgs, repeats: u32) -> Result<Value> {
    let caps = gpu_caps(gpu)?;
    let plan = plan(arguments, &caps)?;
    let (dispatch, step) = find(&plan, &arguments.name)?;
    let mut shader = dispatch.shader(&caps);
    set(&mut shader.constants, &arguments.constants, "constant")?;
    let mut args: Vec<_> = dispatch.args().collect();
    if let Some(step) = step {
        let value = step as u32;
        set(&mut args, &[Setting { name: "step".to_owned(), value }], "argument")?;
    }
    set(&mut args, &arguments.args, "argument")?;
    let workgroups = match &arguments.workgroups {
        None => dispatch.workgroups.map(|count| count as u32).to_vec(),
        Some(workgroups) => workgroups.clone(),
    };
    ensure!(workgroups.len() == 3, "expected workgroups x,y,z, got {workgroups:?}");
    let args: Vec<u32> = args.into_iter().map(|(_, value)| value).collect();
    let probe = Probe::new(gpu, &plan, dispatch, &shader, &args, &caps, arguments.checks)?;
    let us = probe.us(gpu, &args, &workgroups, arguments.chain, repeats)?;
    let constants: serde_json::Map<String, Value> =
        shader.constants.iter().map(|&(name, value)| (name.to_owned(), value.into())).collect();
    Ok(json!({
        "kernel": shader.name,
        "label": dispatch.label,
        "constants": constants,
        // null: the dispatch is in no loop.
        "step": step,
        "workgroups": workgroups,
        "checks": match arguments.checks { Checks::Library => "library", Checks::Unchecked => "unchecked" },
        "chain": arguments.chain,
        "us": us,
        // null: the kernel has no steps.
        "us_per_step": dispatch.recurrent_steps().map(|steps| us / steps as f64),
        // Of the plan's dispatch, whatever the arguments.
        "gflops": dispatch.flops as f64 / us / 1e3,
    }))
}

/// Returns the capabilities of the device, and those of a GPU on a software adapter: the rehearsal
/// has the kernels that a GPU's plans have.
fn gpu_caps(gpu: &Gpu) -> Result<DeviceCaps> {
    let caps = Device::from_wgpu(&gpu.adapter, &gpu.device, &gpu.queue)?.caps();
    if !caps.software {
        return Ok(caps);
    }
    let caps = DeviceCaps::new(caps.limits, false).with_immediates(caps.immediates);
    Ok(caps.with_discrete(true).with_thread_weights(128))
}

fn plan(arguments: &KernelArgs, caps: &DeviceCaps) -> Result<Plan> {
    let shape = <[usize; 4]>::try_from(&arguments.shape[..]);
    let [steps, batch, input, hidden] =
        shape.ok().with_context(|| format!("expected T,B,I,H, got {:?}", arguments.shape))?;
    let config = GruConfig::pytorch(input, hidden);
    let mode = match arguments.mode {
        ModeArg::Forward => Mode::Inference,
        ModeArg::Train => Mode::Training,
    };
    let options = RunOptions::default().with_recurrence(arguments.kernel);
    let plan = Plan::with_options(&config, config.shape(steps, batch)?, mode, options, caps)?;
    plan.check(&caps.limits)?;
    Ok(plan)
}

/// Returns the dispatch with the most FLOPs in all its runs, of those of a kernel, and a step in
/// the middle of its loop: backward, the first one has no product.
fn find<'a>(plan: &'a Plan, name: &str) -> Result<(&'a Dispatch, Option<usize>)> {
    let stages = || plan.forward().iter().chain(plan.backward());
    let dispatches = || stages().flat_map(|stage| stage.dispatches().0);
    let named = stages().flat_map(|stage| {
        let (dispatches, times) = stage.dispatches();
        let step = match stage {
            Stage::Once(_) => None,
            Stage::Steps { first, last, .. } => Some(first.midpoint(*last)),
        };
        let named = dispatches.iter().filter(|dispatch| dispatch.kernel_name() == name);
        named.map(move |dispatch| (dispatch.flops * times as u64, dispatch, step))
    });
    let found = named.max_by_key(|(flops, ..)| *flops).with_context(|| {
        let mut names: Vec<_> = dispatches().map(Dispatch::kernel_name).collect();
        names.sort_unstable();
        names.dedup();
        format!("the plan has no kernel {name}; it has {}", names.join(", "))
    })?;
    Ok((found.1, found.2))
}

/// Replaces values by name.
fn set(values: &mut [(&'static str, u32)], settings: &[Setting], what: &str) -> Result<()> {
    for Setting { name, value } in settings {
        let known = values.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let found = values.iter_mut().find(|(other, _)| other == name);
        found.with_context(|| format!("the kernel has no {what} {name}; it has {known}"))?.1 =
            *value;
    }
    Ok(())
}

/// A kernel with buffers of random numbers.
struct Probe {
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    immediates: bool,
}

impl Probe {
    fn new(
        gpu: &Gpu,
        plan: &Plan,
        dispatch: &Dispatch,
        shader: &Shader,
        args: &[u32],
        caps: &DeviceCaps,
        checks: Checks,
    ) -> Result<Self> {
        let module = gpu.module(&shader.source, checks)?;
        let constants: Vec<_> =
            shader.constants.iter().map(|&(name, value)| (name, f64::from(value))).collect();
        let pipeline = gpu.pipeline(&module, None, &constants)?;
        let (fill, slices) = (Fill::new(gpu)?, dispatch.bindings());
        let mut buffers: Vec<(usize, wgpu::Buffer)> = Vec::new();
        for slice in slices {
            let index = slice.buffer.index();
            if buffers.iter().all(|(other, _)| *other != index) {
                buffers.push((index, fill.buffer(gpu, &plan.buffers()[index])?));
            }
        }
        let args = gpu.buffer_of(args)?;
        let mut bindings = Vec::new();
        if !caps.immediates {
            bindings.push((0, args.as_entire_buffer_binding()));
        }
        for (slice, binding) in slices.iter().zip(1..) {
            let (_, buffer) = buffers
                .iter()
                .find(|(index, _)| *index == slice.buffer.index())
                .expect("every slice's buffer was made");
            let size = wgpu::BufferSize::new(slice.bytes());
            bindings.push((binding, wgpu::BufferBinding { buffer, offset: slice.offset(), size }));
        }
        let group = gpu.bind_group(&pipeline.get_bind_group_layout(0), &bindings)?;
        Ok(Self { pipeline, group, immediates: caps.immediates })
    }

    /// Returns the µs of a dispatch.
    fn us(
        &self,
        gpu: &Gpu,
        args: &[u32],
        workgroups: &[u32],
        chain: u32,
        repeats: u32,
    ) -> Result<f64> {
        let time = gpu.time(
            repeats,
            |_| {},
            |pass| {
                pass.set_pipeline(&self.pipeline);
                for _ in 0..chain {
                    pass.set_bind_group(0, &self.group, &[]);
                    if self.immediates {
                        pass.set_immediates(0, bytemuck::cast_slice(args));
                    }
                    pass.dispatch_workgroups(workgroups[0], workgroups[1], workgroups[2]);
                }
            },
        )?;
        Ok(time / f64::from(chain))
    }
}

/// Fills buffers with random numbers: zeros would need less power, and make a GPU faster.
struct Fill {
    pipeline: wgpu::ComputePipeline,
}

/// Numbers from -1/16 to 1/16. A thread writes every 2²³rd, so that no loop is long.
const FILL: &str = "
@group(0) @binding(0) var<storage, read_write> y: array<f32>;
@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>) {
    for (var i = id.x; i < arrayLength(&y); i += 256u * count.x) {
        let hash = (i ^ (i >> 13u)) * 0x9e3779b1u;
        y[i] = (f32((hash ^ (hash >> 16u)) & 0xffffu) - 32768.0) / 524288.0;
    }
}
";

impl Fill {
    fn new(gpu: &Gpu) -> Result<Self> {
        let module = gpu.module(FILL, Checks::Library)?;
        Ok(Self { pipeline: gpu.pipeline(&module, None, &[])? })
    }

    /// Creates a buffer of a plan. Flags, and what is zero in the plan, stay zero.
    fn buffer(&self, gpu: &Gpu, spec: &BufferSpec) -> Result<wgpu::Buffer> {
        let buffer = gpu.buffer(spec.bytes())?;
        if spec.element != ElementType::F32 || spec.role == Role::Zeros || spec.len == 0 {
            return Ok(buffer);
        }
        let most = u64::from(gpu.device.limits().max_compute_workgroups_per_dimension).min(1 << 15);
        // A binding is limited, a buffer is not; and a binding starts at a whole number of blocks.
        let chunk = gpu.device.limits().max_storage_buffer_binding_size & !255;
        let mut offset = 0;
        while offset < buffer.size() {
            let size = wgpu::BufferSize::new((buffer.size() - offset).min(chunk));
            let binding = wgpu::BufferBinding { buffer: &buffer, offset, size };
            let group = gpu.bind_group(&self.pipeline.get_bind_group_layout(0), &[(0, binding)])?;
            let mut encoder = gpu.device.create_command_encoder(&Default::default());
            {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                pass.set_pipeline(&self.pipeline);
                pass.set_bind_group(0, &group, &[]);
                let groups = (buffer.size() - offset).min(chunk).div_ceil(4 * 256).min(most);
                pass.dispatch_workgroups(groups as u32, 1, 1);
            }
            gpu.queue.submit([encoder.finish()]);
            offset += chunk;
        }
        gpu.check().map(|()| buffer)
    }
}
