//! The kernels for matrix products and for sums over rows.

use bytemuck::{Pod, Zeroable};

use super::{Binding, Kernel, Workgroup};
use crate::spec::element::ElementType::F32;

args! {
    /// Arguments of the products.
    MatmulArgs {
        /// Rows of C.
        m,
        /// Columns of C.
        n,
        /// Length of the sum over k.
        k,
        /// The part of the sum that one workgroup computes.
        k_part,
        /// [`MATMUL`] and [`MATMUL_LARGE`]: the part of that which is added to C at once.
        k_block,
        /// 1: A's rows in memory are its columns.
        a_transposed,
        /// Index of A's first element.
        a_first,
        /// Distance between A's rows.
        a_stride,
        /// The row of its first run at which A's first element is.
        a_row,
        /// Rows of a run of A.
        a_run,
        /// Distance between A's runs.
        a_skip,
        /// 1: B's rows in memory are its columns.
        b_transposed,
        /// Index of B's first element.
        b_first,
        /// Distance between B's rows.
        b_stride,
        /// The row of its first run at which B's first element is.
        b_row,
        /// Rows of a run of B.
        b_run,
        /// Distance between B's runs.
        b_skip,
        /// Index of C's first element.
        c_first,
        /// Distance between C's rows.
        c_stride,
        /// The row of its first run at which C's first element is.
        c_row,
        /// Rows of a run of C.
        c_run,
        /// Distance between C's runs.
        c_skip,
        /// Distance between the partial results in C.
        part_apart,
        /// Index of the bias for C's first column.
        bias_first,
        /// 1: adds the bias to every row.
        add_bias,
        /// 1: adds to the contents of C.
        accumulate,
        /// [`MATMUL_BLOCKS`]: threads of a workgroup along C's columns.
        n_threads,
        /// [`MATMUL_LARGE`]: the first row of a transposed A after the gap.
        a_gap_at,
        /// [`MATMUL_LARGE`]: the elements of the gap.
        a_gap,
        /// [`MATMUL_LARGE`]: 1: also stores the sums of the rows of a transposed A.
        row_sums,
        /// [`MATMUL_LARGE`]: index of the first of these sums.
        sums_first,
    }
}

args! {
    /// The override constants of [`MATMUL`], in the order of their names in WGSL.
    MatmulConstants {
        /// 1: rows come in runs.
        runs,
        /// Threads along C's rows.
        m_threads,
        /// Threads along C's columns.
        n_threads,
        /// Quads of columns per thread.
        n_quads,
        /// Elements along k staged at once.
        depth,
    }
}

const MATMUL_CONSTANTS: &[&str] = &["RUNS", "M_THREADS", "N_THREADS", "N_QUADS", "DEPTH"];

/// The three arrays of `shaders/matmul.wgsl`: slices of A and B, and the threads' blocks, all of
/// vec4.
fn matmul_workgroup(constants: &[u32]) -> Workgroup {
    let constants: [u32; MATMUL_CONSTANTS.len()] =
        constants.try_into().expect("one value for each name");
    let MatmulConstants { m_threads, n_threads, n_quads, depth, .. } = bytemuck::cast(constants);
    let threads = m_threads * n_threads;
    let slices = depth * (2 * m_threads + 1 + n_quads * n_threads + 1);
    let tile = [4 * n_quads * n_threads, 8 * m_threads];
    let bytes = 4 * F32.size() * u64::from(slices + 4 * threads);
    Workgroup { threads: threads.into(), bytes, tile }
}

/// `C = A · B`, with either operand transposed and an optional bias. Computes the products on a GPU
/// that have too few results for [`MATMUL_LARGE`].
pub static MATMUL: Kernel = Kernel {
    name: "matmul",
    file: "matmul",
    source: kernel_source!("product", "store_one", "matmul"),
    bindings: &[
        Binding::read("a", F32),
        Binding::read("b", F32),
        Binding::read("bias", F32),
        Binding::read_write("c", F32),
    ],
    args: MatmulArgs::FIELDS,
    constants: MATMUL_CONSTANTS,
    workgroup: matmul_workgroup,
};

/// The elements along k of the slices of [`MATMUL_LARGE`].
pub const LARGE_DEPTH: usize = 8;

/// The rows and columns of a tile of [`MATMUL_LARGE`].
pub const LARGE_SIDE: usize = 128;

/// Two slices of A and of B, all of the workgroup memory that every WebGPU implementation has.
fn large_workgroup(_: &[u32]) -> Workgroup {
    let tile = [LARGE_SIDE as u32; 2];
    let bytes = F32.bytes(2 * LARGE_DEPTH * (LARGE_SIDE + LARGE_SIDE));
    Workgroup { threads: 256, bytes, tile }
}

/// The products of [`MATMUL`] with many results, over operands and results whose rows start at
/// whole vec4. A second file and not a tile of [`MATMUL`]: its threads load one vec4 of each
/// operand per slice, which only tiles of this size have.
pub static MATMUL_LARGE: Kernel = Kernel {
    name: "matmul_large",
    file: "matmul_large",
    source: kernel_source!("product", "load_quads", "store_quads", "matmul_large"),
    bindings: &[
        Binding::read_quads("a", F32),
        Binding::read_quads("b", F32),
        Binding::read("bias", F32),
        Binding::read_write_quads("c", F32),
    ],
    args: MatmulArgs::FIELDS,
    constants: &["RUNS"],
    workgroup: large_workgroup,
};

/// [`MATMUL_LARGE`] over operands and results whose rows start anywhere.
pub static MATMUL_LARGE_SCALAR: Kernel = Kernel {
    name: "matmul_large_scalar",
    source: kernel_source!("product", "load_scalars", "store_scalars", "matmul_large"),
    bindings: MATMUL.bindings,
    ..MATMUL_LARGE
};

/// The threads of a workgroup of [`MATMUL_BLOCKS`].
pub const BLOCKS_THREADS: usize = 16;

/// The elements along k that [`MATMUL_BLOCKS`] adds up in registers.
pub const BLOCKS_DEPTH: usize = 64;

/// The results of a thread. The argument n_threads shapes the tile of a workgroup.
fn blocks_workgroup(constants: &[u32]) -> Workgroup {
    Workgroup { threads: BLOCKS_THREADS as u64, bytes: 0, tile: [constants[1]; 2] }
}

/// The products of [`MATMUL`] on a software adapter, over operands whose rows start at whole vec4.
pub static MATMUL_BLOCKS: Kernel = Kernel {
    name: "matmul_blocks",
    file: "matmul_blocks",
    source: kernel_source!("product", "load_quads", "store_one", "matmul_blocks"),
    bindings: &[
        Binding::read_quads("a", F32),
        Binding::read_quads("b", F32),
        Binding::read("bias", F32),
        Binding::read_write("c", F32),
    ],
    args: MatmulArgs::FIELDS,
    constants: &["RUNS", "SIDE"],
    workgroup: blocks_workgroup,
};

/// [`MATMUL_BLOCKS`] over operands whose rows start anywhere.
pub static MATMUL_BLOCKS_SCALAR: Kernel = Kernel {
    name: "matmul_blocks_scalar",
    source: kernel_source!("product", "load_scalars", "store_one", "matmul_blocks"),
    bindings: MATMUL.bindings,
    ..MATMUL_BLOCKS
};

args! {
    /// Arguments of [`COLUMN_SUM`].
    ColumnSumArgs {
        /// Rows to sum.
        rows,
        /// The rows that one workgroup sums.
        rows_part,
        /// Columns; each has its own sum.
        columns,
        /// Index of the first element.
        first,
        /// Distance between rows.
        stride,
        /// Index of the first sum in the output.
        out_first,
        /// Distance between the partial sums.
        part_apart,
        /// 1: adds to the contents of the output.
        accumulate,
        /// Threads per column, a power of two up to 16.
        lanes,
    }
}

/// The threads of a workgroup of [`COLUMN_SUM`].
pub const COLUMN_SUM_THREADS: usize = 256;

/// The most threads for a column. The workgroup's tile depends on an argument, so that all sums of a
/// run share a pipeline.
pub const COLUMN_SUM_LANES: usize = 16;

/// The rows that a thread of [`COLUMN_SUM`] adds up first, and the number of these sums that it
/// adds up then.
pub const COLUMN_SUM_BLOCK: usize = 8;

/// Sums over rows, for the gradients of the biases and for partial results.
pub static COLUMN_SUM: Kernel = Kernel {
    name: "column_sum",
    file: "column_sum",
    source: kernel_source!("column_sum"),
    bindings: &[Binding::read("a", F32), Binding::read_write("out", F32)],
    args: ColumnSumArgs::FIELDS,
    constants: &[],
    workgroup: |_| Workgroup {
        threads: COLUMN_SUM_THREADS as u64,
        bytes: F32.bytes(COLUMN_SUM_THREADS),
        tile: [(COLUMN_SUM_THREADS / COLUMN_SUM_LANES) as u32, 1],
    },
};
