//! The tiles that the rules choose, for shapes and adapters of all kinds. A change here changes
//! performance: measure it.

use Recurrence::{Auto, Persistent, Sequence, Step};
use Reset::{After, Before};

use crate::spec::config::Reset;

use super::*;
use crate::plan::Limits;

const fn caps(kib: u64, threads: u64, software: bool) -> DeviceCaps {
    let limits = Limits {
        max_compute_workgroup_storage_size: kib << 10,
        max_compute_invocations_per_workgroup: threads,
        ..Limits::WEBGPU_DEFAULT
    };
    DeviceCaps::new(limits, software)
}

const GPU: DeviceCaps = DeviceCaps::WEBGPU;
const ROOMY: DeviceCaps = caps(48, 1024, false);
const NVIDIA: DeviceCaps = ROOMY.with_thread_weights(128);
const TIGHT: DeviceCaps = caps(8, 64, false);
const SOFTWARE: DeviceCaps = caps(32, 1024, true).with_cores(2);
const SWIFTSHADER: DeviceCaps = SOFTWARE
    .with_dispatch_cost(DeviceCaps::SWIFTSHADER_DISPATCH)
    .with_large_tile_flops(DeviceCaps::SWIFTSHADER_LARGE_TILE);
const SIXTEEN_CORES: DeviceCaps = SOFTWARE.with_cores(16);
const TINY_SOFTWARE: DeviceCaps = caps(4, 32, true).with_cores(2);

/// Returns for the forward and the backward kernel: quads of units, split-K lanes, rows of a
/// workgroup and of a thread, quads along k in workgroup memory, and 1 for whole sequences. Of
/// persistent kernels: quads of units, parts of k, rows, blocks, threads, and 2.
fn chosen(
    caps: &DeviceCaps,
    recurrence: Recurrence,
    hidden: usize,
    batch: usize,
    reset: Reset,
) -> Option<[[u32; 6]; 2]> {
    let config = GruConfig::new(3, hidden).with_reset(reset);
    let kernels = RecurrenceKernels::choose(&config, [64, batch], recurrence, caps).ok()?;
    Some([kernels.forward, kernels.backward].map(|kernel| match kernel {
        RecurrenceKernel::Step(tile) | RecurrenceKernel::Sequence(tile) => {
            let c = tile.constants(StepVariant::default());
            [c.unit_quads, c.split_k, c.row_groups * c.rows, c.rows, c.depth_quads, c.resident]
        }
        RecurrenceKernel::Persistent(tile) => {
            let c = tile.constants(StepVariant::default());
            [c.unit_quads, c.parts, c.rows, c.blocks, c.threads, 2]
        }
    }))
}

#[test]
fn the_recurrence_has_these_tiles() {
    for (caps, recurrence, hidden, batch, reset, expected) in [
        (GPU, Auto, 128, 5, After, Some([[32, 4, 4, 4, 32, 1], [32, 4, 4, 4, 96, 1]])),
        (GPU, Auto, 128, 5, Before, Some([[32, 4, 4, 4, 32, 1], [32, 4, 4, 4, 96, 1]])),
        (GPU, Auto, 129, 5, After, Some([[1, 32, 8, 4, 32, 0], [1, 32, 8, 8, 16, 0]])),
        (GPU, Auto, 129, 5, Before, Some([[1, 32, 8, 4, 32, 0], [1, 32, 8, 8, 16, 0]])),
        (GPU, Auto, 1, 1, After, Some([[4, 2, 4, 4, 4, 1], [4, 4, 4, 4, 12, 1]])),
        (GPU, Auto, 1, 1, Before, Some([[4, 2, 4, 4, 4, 1], [4, 4, 4, 4, 12, 1]])),
        (GPU, Auto, 7, 5, After, Some([[4, 2, 4, 4, 4, 1], [4, 4, 4, 4, 12, 1]])),
        (GPU, Auto, 7, 5, Before, Some([[4, 2, 4, 4, 4, 1], [4, 4, 4, 4, 12, 1]])),
        (GPU, Auto, 256, 128, After, Some([[2, 8, 32, 4, 8, 0], [2, 8, 32, 4, 8, 0]])),
        (GPU, Auto, 256, 128, Before, Some([[2, 8, 32, 4, 8, 0], [2, 8, 32, 4, 8, 0]])),
        (GPU, Step, 1024, 16, After, Some([[2, 16, 16, 4, 16, 0], [2, 16, 16, 4, 16, 0]])),
        (GPU, Step, 1024, 16, Before, Some([[2, 16, 16, 4, 16, 0], [2, 16, 16, 4, 16, 0]])),
        (GPU, Sequence, 64, 5, After, Some([[16, 8, 4, 4, 16, 1], [16, 8, 4, 4, 48, 1]])),
        (GPU, Sequence, 64, 5, Before, Some([[16, 8, 4, 4, 16, 1], [16, 8, 4, 4, 48, 1]])),
        (GPU, Sequence, 257, 5, After, None),
        (GPU, Sequence, 257, 5, Before, None),
        (ROOMY, Auto, 256, 127, After, Some([[2, 16, 32, 4, 32, 0], [2, 32, 32, 8, 16, 0]])),
        (ROOMY, Auto, 256, 127, Before, Some([[2, 16, 32, 4, 32, 0], [2, 32, 32, 8, 16, 0]])),
        (ROOMY, Auto, 256, 128, After, Some([[2, 16, 32, 4, 32, 0], [2, 32, 32, 8, 16, 0]])),
        (ROOMY, Auto, 256, 128, Before, Some([[2, 16, 32, 4, 32, 0], [2, 32, 32, 8, 16, 0]])),
        (ROOMY, Auto, 128, 16, After, Some([[32, 8, 4, 4, 32, 1], [32, 16, 4, 4, 96, 1]])),
        (ROOMY, Auto, 128, 16, Before, Some([[32, 8, 4, 4, 32, 1], [32, 16, 4, 4, 96, 1]])),
        (ROOMY, Sequence, 257, 1, After, Some([[68, 4, 4, 4, 68, 1], [68, 4, 4, 4, 204, 1]])),
        (ROOMY, Sequence, 257, 1, Before, Some([[68, 8, 4, 4, 68, 1], [68, 4, 4, 4, 204, 1]])),
        (ROOMY, Step, 7, 5, After, Some([[1, 2, 8, 4, 2, 0], [1, 2, 8, 8, 1, 0]])),
        (ROOMY, Step, 7, 5, Before, Some([[1, 2, 8, 4, 2, 0], [1, 2, 8, 8, 1, 0]])),
        (ROOMY, Step, 1024, 128, After, Some([[8, 4, 32, 4, 32, 0], [8, 8, 32, 8, 16, 0]])),
        (ROOMY, Step, 1024, 128, Before, Some([[8, 4, 32, 4, 32, 0], [8, 8, 32, 8, 16, 0]])),
        (NVIDIA, Auto, 1, 1, After, Some([[4, 4, 1, 1, 48, 2], [4, 4, 1, 1, 48, 2]])),
        (NVIDIA, Auto, 1, 1, Before, Some([[4, 4, 1, 1, 48, 2], [4, 4, 1, 1, 48, 2]])),
        (NVIDIA, Auto, 7, 129, After, Some([[4, 4, 2, 1, 48, 2], [4, 4, 2, 1, 48, 2]])),
        (NVIDIA, Auto, 7, 129, Before, Some([[4, 4, 2, 1, 48, 2], [4, 4, 2, 1, 48, 2]])),
        (NVIDIA, Auto, 32, 129, After, Some([[8, 8, 2, 1, 192, 2], [8, 8, 2, 1, 192, 2]])),
        (NVIDIA, Auto, 32, 129, Before, Some([[8, 8, 2, 1, 192, 2], [8, 8, 2, 1, 192, 2]])),
        (NVIDIA, Auto, 64, 5, After, Some([[16, 8, 1, 2, 384, 2], [16, 8, 1, 2, 384, 2]])),
        (NVIDIA, Auto, 64, 5, Before, Some([[16, 8, 1, 2, 384, 2], [16, 8, 1, 2, 384, 2]])),
        (NVIDIA, Auto, 97, 5, After, Some([[28, 4, 1, 7, 336, 2], [28, 4, 1, 7, 336, 2]])),
        (NVIDIA, Auto, 97, 5, Before, Some([[28, 4, 1, 7, 336, 2], [28, 4, 1, 7, 336, 2]])),
        (NVIDIA, Auto, 128, 128, After, Some([[32, 4, 1, 8, 384, 2], [32, 4, 1, 8, 384, 2]])),
        (NVIDIA, Auto, 128, 128, Before, Some([[32, 4, 1, 8, 384, 2], [32, 4, 1, 8, 384, 2]])),
        (NVIDIA, Auto, 128, 129, After, Some([[32, 4, 2, 8, 384, 2], [32, 4, 2, 8, 384, 2]])),
        (NVIDIA, Auto, 128, 129, Before, Some([[32, 4, 2, 8, 384, 2], [32, 4, 2, 8, 384, 2]])),
        (NVIDIA, Auto, 129, 5, After, Some([[1, 32, 8, 4, 32, 0], [1, 32, 8, 8, 16, 0]])),
        (NVIDIA, Auto, 129, 5, Before, Some([[1, 32, 8, 4, 32, 0], [1, 32, 8, 8, 16, 0]])),
        (NVIDIA, Persistent, 129, 5, After, None),
        (NVIDIA, Persistent, 129, 5, Before, None),
        (ROOMY, Auto, 64, 129, After, Some([[16, 8, 4, 4, 16, 1], [16, 16, 4, 4, 48, 1]])),
        (ROOMY, Auto, 64, 129, Before, Some([[16, 8, 4, 4, 16, 1], [16, 16, 4, 4, 48, 1]])),
        (ROOMY, Auto, 65, 5, After, Some([[20, 8, 4, 4, 20, 1], [20, 16, 4, 4, 60, 1]])),
        (ROOMY, Auto, 65, 5, Before, Some([[20, 8, 4, 4, 20, 1], [20, 16, 4, 4, 60, 1]])),
        (GPU, Persistent, 48, 5, After, Some([[12, 6, 1, 2, 216, 2], [12, 6, 1, 2, 216, 2]])),
        (GPU, Persistent, 48, 5, Before, Some([[12, 6, 1, 2, 216, 2], [12, 6, 1, 2, 216, 2]])),
        (GPU, Persistent, 64, 5, After, None),
        (GPU, Persistent, 64, 5, Before, None),
        (TIGHT, Auto, 7, 5, After, Some([[4, 2, 4, 4, 4, 1], [4, 4, 4, 4, 12, 1]])),
        (TIGHT, Auto, 7, 5, Before, Some([[4, 2, 4, 4, 4, 1], [4, 4, 4, 4, 12, 1]])),
        (TIGHT, Auto, 64, 5, After, Some([[16, 4, 4, 4, 16, 1], [16, 4, 4, 4, 48, 1]])),
        (TIGHT, Auto, 64, 5, Before, Some([[16, 4, 4, 4, 16, 1], [16, 4, 4, 4, 48, 1]])),
        (TIGHT, Auto, 128, 5, After, Some([[1, 16, 8, 4, 16, 0], [1, 16, 8, 8, 8, 0]])),
        (TIGHT, Auto, 128, 5, Before, Some([[1, 16, 8, 4, 16, 0], [1, 16, 8, 8, 8, 0]])),
        (TIGHT, Step, 1024, 5, After, Some([[2, 16, 8, 4, 16, 0], [2, 16, 8, 4, 16, 0]])),
        (TIGHT, Step, 1024, 5, Before, Some([[2, 16, 8, 4, 16, 0], [2, 16, 8, 4, 16, 0]])),
        (TIGHT, Sequence, 129, 5, After, None),
        (TIGHT, Sequence, 129, 5, Before, None),
        (SOFTWARE, Auto, 192, 1, After, Some([[48, 1, 1, 1, 48, 1], [48, 1, 1, 1, 144, 1]])),
        (SWIFTSHADER, Auto, 96, 1, After, Some([[24, 1, 1, 1, 24, 1], [24, 1, 1, 1, 72, 1]])),
        (SWIFTSHADER, Auto, 96, 1, Before, Some([[24, 1, 1, 1, 24, 1], [24, 1, 1, 1, 72, 1]])),
        (SOFTWARE, Auto, 64, 1, After, Some([[16, 1, 1, 1, 16, 1], [16, 1, 1, 1, 48, 1]])),
        (SOFTWARE, Auto, 128, 1, After, Some([[32, 1, 1, 1, 32, 1], [32, 1, 1, 1, 96, 1]])),
        (SOFTWARE, Auto, 128, 6, After, Some([[32, 1, 4, 4, 32, 1], [32, 1, 4, 4, 96, 1]])),
        (SOFTWARE, Auto, 128, 4, Before, Some([[32, 1, 4, 4, 32, 1], [32, 1, 4, 4, 96, 1]])),
        (SIXTEEN_CORES, Auto, 128, 6, After, Some([[32, 1, 1, 1, 32, 1], [32, 1, 1, 1, 96, 1]])),
        (SIXTEEN_CORES, Auto, 128, 64, After, Some([[32, 1, 4, 4, 32, 1], [32, 1, 4, 4, 96, 1]])),
        (SOFTWARE, Auto, 256, 5, After, Some([[64, 1, 4, 4, 64, 1], [64, 1, 4, 4, 192, 1]])),
        (SOFTWARE, Auto, 256, 5, Before, Some([[64, 1, 4, 4, 64, 1], [64, 1, 4, 4, 192, 1]])),
        (SOFTWARE, Auto, 256, 16, After, Some([[64, 1, 4, 4, 64, 1], [64, 1, 4, 4, 192, 1]])),
        (SOFTWARE, Auto, 256, 16, Before, Some([[64, 1, 8, 8, 64, 1], [64, 1, 4, 4, 192, 1]])),
        (SOFTWARE, Auto, 257, 5, After, Some([[8, 1, 8, 8, 32, 0], [8, 1, 8, 8, 32, 0]])),
        (SOFTWARE, Auto, 257, 5, Before, Some([[8, 1, 8, 8, 32, 0], [8, 1, 8, 8, 32, 0]])),
        (SOFTWARE, Step, 64, 1, After, Some([[8, 1, 1, 1, 32, 0], [8, 1, 1, 1, 32, 0]])),
        (SOFTWARE, Step, 64, 1, Before, Some([[8, 1, 1, 1, 32, 0], [8, 1, 1, 1, 32, 0]])),
        (SOFTWARE, Step, 64, 5, After, Some([[8, 1, 8, 8, 32, 0], [8, 1, 8, 8, 32, 0]])),
        (SOFTWARE, Step, 64, 5, Before, Some([[8, 1, 8, 8, 32, 0], [8, 1, 8, 8, 32, 0]])),
        (TINY_SOFTWARE, Auto, 7, 16, After, Some([[8, 1, 4, 4, 8, 1], [8, 1, 4, 4, 24, 1]])),
        (TINY_SOFTWARE, Auto, 7, 16, Before, Some([[8, 1, 8, 8, 8, 1], [8, 1, 4, 4, 24, 1]])),
        (TINY_SOFTWARE, Auto, 64, 16, After, Some([[8, 1, 8, 8, 32, 0], [8, 1, 8, 8, 32, 0]])),
        (TINY_SOFTWARE, Auto, 64, 16, Before, Some([[8, 1, 8, 8, 32, 0], [8, 1, 8, 8, 32, 0]])),
        (TINY_SOFTWARE, Step, 64, 5, After, Some([[8, 1, 8, 8, 32, 0], [8, 1, 8, 8, 32, 0]])),
        (TINY_SOFTWARE, Step, 64, 5, Before, Some([[8, 1, 8, 8, 32, 0], [8, 1, 8, 8, 32, 0]])),
    ] {
        let got = chosen(&caps, recurrence, hidden, batch, reset);
        assert_eq!(got, expected, "{caps:?}, {recurrence}, H {hidden}, B {batch}, {reset:?}");
    }
}

/// `shaders/lanes.wgsl` stages the slices of a step in registers.
#[test]
fn a_thread_stages_one_to_sixteen_numbers_of_a_slice() {
    let memory = [4, 8, 12, 16, 24, 32, 48, 64];
    let all = memory.map(|kib| [64, 128, 256, 1024].map(|threads| caps(kib, threads, false)));
    for caps in all.as_flattened() {
        for hidden in [1, 3, 7, 31, 64, 129, 255, 256, 513, 1024, 2817] {
            for batch in [1, 2, 3, 5, 9, 16, 31, 33, 127, 1000] {
                for (reset, pass) in
                    [(After, Pass::Forward), (Before, Pass::Forward), (After, Pass::Backward)]
                {
                    let config = GruConfig::new(3, hidden).with_reset(reset);
                    let tile = StepTile::of_steps(&config, batch, pass, caps);
                    let c = tile.constants(StepVariant::default());
                    let numbers = 4 * c.depth_quads * c.rows;
                    let threads = c.unit_quads * c.split_k;
                    let what = format!("H {hidden}, B {batch}, {pass:?}, {caps:?}: {c:?}");
                    assert_eq!(numbers % threads, 0, "{what}");
                    assert!((1..=16).contains(&(numbers / threads)), "{what}");
                }
            }
        }
    }
}

/// Rows and columns of a workgroup's results, and elements along k at once.
#[test]
fn products_have_these_tiles() {
    const SMALL: u64 = 1_000_000;
    const LARGE: u64 = 1 << 40;
    for (caps, mnk, flops, expected) in [
        (GPU, [1, 1, 1], LARGE, [64, 4, 4]),
        (GPU, [64, 4, 9], LARGE, [64, 4, 8]),
        (GPU, [65, 4, 9], LARGE, [256, 4, 8]),
        (GPU, [8, 100, 9], LARGE, [8, 256, 8]),
        (GPU, [9, 16, 16], LARGE, [256, 16, 8]),
        (GPU, [9, 17, 4], LARGE, [64, 64, 4]),
        (GPU, [65, 65, 16], LARGE, [64, 64, 16]),
        (GPU, [1024, 1024, 3], LARGE, [64, 64, 4]),
        (GPU, [1200, 1300, 64], LARGE, [128, 128, 8]),
        (GPU, [2048, 2048, 512], LARGE, [128, 128, 8]),
        (GPU, [63, 65536, 512], LARGE, [64, 64, 16]),
        (GPU, [64, 65536, 512], LARGE, [128, 128, 8]),
        (GPU, [1024, 896, 512], LARGE, [64, 64, 16]),
        (GPU, [1024, 897, 31], LARGE, [64, 64, 16]),
        (GPU, [1024, 897, 32], LARGE, [128, 128, 8]),
        (ROOMY, [1, 1, 1], LARGE, [64, 4, 4]),
        (ROOMY, [64, 4, 9], LARGE, [64, 4, 8]),
        (ROOMY, [65, 4, 9], LARGE, [256, 4, 8]),
        (ROOMY, [8, 100, 9], LARGE, [8, 256, 8]),
        (ROOMY, [9, 16, 16], LARGE, [256, 16, 8]),
        (ROOMY, [9, 17, 4], LARGE, [64, 64, 4]),
        (ROOMY, [65, 65, 16], LARGE, [64, 64, 16]),
        (ROOMY, [1024, 1024, 3], LARGE, [64, 64, 4]),
        (ROOMY, [1200, 1300, 64], LARGE, [128, 128, 8]),
        (ROOMY, [2048, 2048, 512], LARGE, [128, 128, 8]),
        (TIGHT, [1200, 1300, 64], LARGE, [64, 64, 16]),
        (ROOMY, [64, 65536, 512], LARGE, [128, 128, 8]),
        (SOFTWARE, [1, 1, 1], SMALL, [16, 16, 4]),
        (SOFTWARE, [1, 1, 1], LARGE, [32, 32, 4]),
        (SWIFTSHADER, [1, 1, 1], SMALL, [32, 32, 4]),
        (SOFTWARE, [64, 4, 9], SMALL, [64, 4, 4]),
        (SOFTWARE, [64, 4, 9], LARGE, [64, 16, 4]),
        (SOFTWARE, [128, 8, 9], SMALL, [32, 8, 4]),
        (SOFTWARE, [128, 8, 9], LARGE, [128, 8, 4]),
        (SOFTWARE, [8, 100, 9], SMALL, [8, 32, 4]),
        (SOFTWARE, [8, 100, 9], LARGE, [8, 128, 4]),
        (SOFTWARE, [9, 16, 16], SMALL, [16, 16, 4]),
        (SOFTWARE, [9, 16, 16], LARGE, [32, 32, 4]),
        (SOFTWARE, [144, 240, 48], SMALL, [16, 16, 4]),
        (SOFTWARE, [144, 240, 48], LARGE, [16, 64, 4]),
        (SOFTWARE, [1024, 1024, 3], SMALL, [16, 16, 4]),
        (SOFTWARE, [1024, 1024, 3], LARGE, [32, 32, 4]),
    ] {
        let tile = ProductTile::choose(mnk, 1, flops, &caps);
        let got = [tile.rows(), tile.columns(), tile.depth()];
        assert_eq!(got, expected, "{caps:?}, {mnk:?}, {flops}");
    }
}
