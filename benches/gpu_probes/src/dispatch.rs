//! The cost of an empty dispatch that depends on the one before it, with its arguments in a storage
//! buffer at a dynamic offset and as immediates, as the library passes them.

use anyhow::Result;
use gru_wgpu::wgpu;
use serde_json::{Value, json};

use crate::gpu::{Checks, Gpu};

/// The bytes from one dispatch's arguments to the next, as in the library.
const ARGS_BLOCK: u64 = 256;

/// The condition is never true, but no compiler knows. The dispatches depend on each other, because
/// all of them may write `y`.
const BODY: &str = "
@group(0) @binding(1) var<storage, read_write> y: array<u32>;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if args.never == 1u { y[id.x] += args.never; }
}
";

#[derive(clap::Args, Debug)]
pub struct DispatchArgs {
    /// The dispatches of a chain.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    count: u32,
    /// The workgroups of a dispatch.
    #[arg(long, default_values_t = [1, 132], value_delimiter = ',')]
    workgroups: Vec<u32>,
}

pub fn run(gpu: &Gpu, arguments: &DispatchArgs, repeats: u32) -> Result<Value> {
    let storage = Chain::storage(gpu, arguments)?;
    let immediate = gpu.has(wgpu::Features::IMMEDIATES).then(|| Chain::immediate(gpu, arguments));
    let immediate = immediate.transpose()?;
    let mut rows = Vec::new();
    for &workgroups in &arguments.workgroups {
        let us = |chain: &Chain| chain.us(gpu, workgroups, arguments.count, repeats);
        rows.push(json!({
            "workgroups": workgroups,
            "storage_us": us(&storage)?,
            // null: the adapter has no immediates.
            "immediates_us": immediate.as_ref().map(us).transpose()?,
        }));
    }
    Ok(json!({ "dispatches": arguments.count, "rows": rows }))
}

/// A chain of dispatches.
struct Chain {
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    immediates: bool,
}

impl Chain {
    fn storage(gpu: &Gpu, arguments: &DispatchArgs) -> Result<Self> {
        let source = "struct Args { never: u32 }
            @group(0) @binding(0) var<storage, read> args: Args;";
        let args = gpu.buffer(ARGS_BLOCK * u64::from(arguments.count))?;
        Self::new(gpu, source, Some(&args), arguments)
    }

    fn immediate(gpu: &Gpu, arguments: &DispatchArgs) -> Result<Self> {
        let source = "struct Args { never: u32 }
            var<immediate> args: Args;";
        Self::new(gpu, source, None, arguments)
    }

    fn new(
        gpu: &Gpu,
        source: &str,
        args: Option<&wgpu::Buffer>,
        arguments: &DispatchArgs,
    ) -> Result<Self> {
        let most = u64::from(arguments.workgroups.iter().copied().max().unwrap_or(1));
        let y = gpu.buffer(4 * 64 * most)?;
        let storage = |binding, read_only, has_dynamic_offset| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only },
                has_dynamic_offset,
                min_binding_size: wgpu::BufferSize::new(4),
            },
            count: None,
        };
        let mut entries = vec![storage(1, false, false)];
        let mut bindings = vec![(1, y.as_entire_buffer_binding())];
        if let Some(args) = args {
            let size = wgpu::BufferSize::new(4);
            entries.push(storage(0, true, true));
            bindings.push((0, wgpu::BufferBinding { buffer: args, offset: 0, size }));
        }
        let layout = gpu.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: None,
            entries: &entries,
        });
        let pipeline_layout = gpu.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: if args.is_none() { 4 } else { 0 },
        });
        let module = gpu.module(&format!("{source}{BODY}"), Checks::Library)?;
        let pipeline = gpu.pipeline(&module, Some(&pipeline_layout), &[])?;
        let group = gpu.bind_group(&layout, &bindings)?;
        Ok(Self { pipeline, group, immediates: args.is_none() })
    }

    /// Returns the µs of each dispatch.
    fn us(&self, gpu: &Gpu, workgroups: u32, count: u32, repeats: u32) -> Result<f64> {
        let time = gpu.time(
            repeats,
            |_| {},
            |pass| {
                pass.set_pipeline(&self.pipeline);
                for dispatch in 0..count {
                    if self.immediates {
                        pass.set_bind_group(0, &self.group, &[]);
                        pass.set_immediates(0, &[0; 4]);
                    } else {
                        pass.set_bind_group(0, &self.group, &[dispatch * ARGS_BLOCK as u32]);
                    }
                    pass.dispatch_workgroups(workgroups, 1, 1);
                }
            },
        )?;
        Ok(time / f64::from(count))
    }
}
