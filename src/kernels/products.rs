//! The kernels for matrix products and for sums over rows.

use bytemuck::{Pod, Zeroable};

use super::{Binding, Kernel, Workgroup};
use crate::spec::element::ElementType::F32;

args! {
    /// Arguments of [`MATMUL`].
    MatmulArgs {
        /// Rows of C.
        m,
        /// Columns of C.
        n,
        /// Length of the sum over k.
        k,
        /// The part of the sum that one workgroup computes.
        k_part,
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
    }
}

args! {
    /// The override constants of [`MATMUL`], in the order of their names in WGSL.
    MatmulConstants {
        /// 1: A's rows in memory are its columns.
        a_transposed,
        /// 1: B's rows in memory are its columns.
        b_transposed,
        /// 1: rows come in runs.
        runs,
        /// Threads along C's rows.
        m_threads,
        /// Threads along C's columns.
        n_threads,
        /// Quads of rows per thread.
        m_quads,
        /// Quads of columns per thread.
        n_quads,
        /// Elements along k staged at once.
        depth,
        /// 1: operands are staged in workgroup memory.
        staged,
    }
}

const MATMUL_CONSTANTS: &[&str] = &[
    "A_TRANSPOSED",
    "B_TRANSPOSED",
    "RUNS",
    "M_THREADS",
    "N_THREADS",
    "M_QUADS",
    "N_QUADS",
    "DEPTH",
    "STAGED",
];

/// The three arrays of `shaders/matmul.wgsl`: slices of A and B, and the threads' blocks, all of
/// vec4.
fn matmul_workgroup(constants: &[u32]) -> Workgroup {
    let constants: [u32; MATMUL_CONSTANTS.len()] =
        constants.try_into().expect("one value for each name");
    let MatmulConstants { m_threads, n_threads, m_quads, n_quads, depth, .. } =
        bytemuck::cast(constants);
    let threads = m_threads * n_threads;
    let slices = depth * (m_quads * m_threads + 1 + n_quads * n_threads + 1);
    let tile = [4 * n_quads * n_threads, 4 * m_quads * m_threads];
    let bytes = 4 * F32.size() * u64::from(slices + 4 * threads);
    Workgroup { threads: threads.into(), bytes, tile }
}

/// `C = A · B`, with either operand transposed and an optional bias. Computes every large product.
pub static MATMUL: Kernel = Kernel {
    name: "matmul",
    source: kernel_source!("matmul"),
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
    }
}

/// Sums over rows, for the gradients of the biases.
pub static COLUMN_SUM: Kernel = Kernel {
    name: "column_sum",
    source: kernel_source!("column_sum"),
    bindings: &[Binding::read("a", F32), Binding::read_write("out", F32)],
    args: ColumnSumArgs::FIELDS,
    constants: &[],
    workgroup: |_| Workgroup { threads: 256, bytes: F32.bytes(16 * 16), tile: [16, 1] },
};
