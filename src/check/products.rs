//! Compares the kernels `matmul` and `column_sum` with plain sums in f64.

use super::{Findings, random};
use crate::error::Result;
use crate::gpu::context::Gpu;
use crate::gpu::session::Session;
use crate::gpu::wait::Wait;
use crate::plan::{
    BufferId, BufferList, ColumnSum, DeviceCaps, ElementType, Epilogue, Operand, Pass, Plan,
    ProductPlanner, Role, Stage,
};

/// The sizes M, N, K of the product that is split along every axis, like a product too large for
/// one dispatch.
const SPLIT: [usize; 3] = [65, 97, 50];
/// The largest sizes of a dispatch of the split product.
const LARGEST: [usize; 3] = [32, 64, 16];

/// The sizes M, N, K of all products. The last but one has enough tiles for large tiles to be
/// chosen on a GPU. K of the last exceeds the loop limit of lavapipe, so it is cut into dispatches.
const MNK: [[usize; 3]; 16] = [
    [1, 1, 1],
    [2, 3, 5],
    [31, 33, 17],
    [32, 32, 16],
    [33, 31, 15],
    [65, 2, 33],
    [1, 97, 100],
    SPLIT,
    [64, 65, 4],
    [257, 4, 17],
    [3, 16, 3],
    [259, 13, 16],
    [70, 5, 1301],
    [129, 131, 19],
    [12_285, 65, 9],
    [1, 1, 70_001],
];

/// A matrix of random elements inside a larger buffer, like the matrices inside `gates`: it starts
/// at element 1, and its rows in memory are `stride` apart. All other elements are NaN, so reading
/// them is detected.
struct TestMatrix {
    data: Vec<f32>,
    stride: usize,
    transposed: bool,
}

impl TestMatrix {
    fn new(
        [rows, columns]: [usize; 2],
        transposed: bool,
        gap: usize,
        bound: f32,
        seed: u64,
    ) -> Self {
        let (major, minor) = if transposed { (columns, rows) } else { (rows, columns) };
        let stride = minor + gap;
        let mut data = vec![f32::NAN; 1 + major * stride];
        let elements = random(major * minor, bound, seed);
        for (row, elements) in data[1..].chunks_exact_mut(stride).zip(elements.chunks_exact(minor))
        {
            row[..minor].copy_from_slice(elements);
        }
        Self { data, stride, transposed }
    }

    fn at(&self, row: usize, column: usize) -> f64 {
        let (major, minor) = if self.transposed { (column, row) } else { (row, column) };
        f64::from(self.data[1 + major * self.stride + minor])
    }
}

pub(super) async fn check_matmul(gpu: &Gpu, findings: &mut Findings<'_>) -> Result<()> {
    for (a_transposed, b_transposed, subject) in [
        (false, false, "matmul A·B"),
        (false, true, "matmul A·Bᵀ + bias"),
        (true, false, "matmul Aᵀ·B"),
        (true, true, "matmul Aᵀ·Bᵀ + bias"),
    ] {
        for (seed, [m, n, k]) in (0..).map(|i| 4 * i).zip(MNK) {
            let a = TestMatrix::new([m, k], a_transposed, 2, 1.0, seed);
            let b = TestMatrix::new([k, n], b_transposed, 1, 1.0 / (k as f32).sqrt(), seed + 1);
            let bias = b_transposed.then(|| random(n, 1.0, seed + 2));
            let mut expected = product(&a, &b, [m, n, k], bias.as_deref());
            // The number of elements that are not NaN: none outside the result may be written.
            expected.push((m * n) as f64);
            // With the tiles for this kind of adapter, and with the tiles for the other kind.
            for (software, tiles) in
                [(gpu.caps().software, ""), (!gpu.caps().software, ", other tiles")]
            {
                let caps = DeviceCaps { software, ..gpu.caps() };
                let c = multiply(gpu, &caps, subject, [m, n, k], &a, &b, bias.as_deref()).await?;
                let mut got: Vec<f32> = (0..m * n).map(|i| c.at(i / n, i % n) as f32).collect();
                got.push(c.data.iter().filter(|v| !v.is_nan()).count() as f32);
                let sizes = format!("M {m}, N {n}, K {k}{tiles}");
                findings.compare_slices(subject, &sizes, &got, &expected);
            }
        }
    }
    Ok(())
}

/// Returns the elements of the product, row-major.
fn product(
    a: &TestMatrix,
    b: &TestMatrix,
    [m, n, k]: [usize; 3],
    bias: Option<&[f32]>,
) -> Vec<f64> {
    let element = |i, j| -> f64 {
        let sum: f64 = (0..k).map(|l| a.at(i, l) * b.at(l, j)).sum();
        sum + bias.map_or(0.0, |bias| f64::from(bias[j]))
    };
    (0..m * n).map(|i| element(i / n, i % n)).collect()
}

/// Computes A·B on the adapter.
async fn multiply(
    gpu: &Gpu,
    caps: &DeviceCaps,
    title: &'static str,
    mnk: [usize; 3],
    a: &TestMatrix,
    b: &TestMatrix,
    bias: Option<&[f32]>,
) -> Result<TestMatrix> {
    let [m, n, _] = mnk;
    // Split-K needs a C without gaps between its rows.
    let gap = if mnk[2] > 1000 { 0 } else { 3 };
    let mut c = TestMatrix::new([m, n], false, gap, 1.0, 0);
    c.data.fill(f32::NAN);
    let no_bias = [0.0];
    let bias_data = bias.unwrap_or(&no_bias);

    let mut buffers = BufferList::default();
    let contents = [("a", &a.data[..]), ("b", &b.data), ("bias", bias_data), ("c", &c.data)];
    let ids = contents
        .map(|(name, data)| buffers.add(name, "", ElementType::F32, data.len(), Role::Input));
    let [a_slice, b_slice, bias_slice, c_slice] = ids.map(|id| buffers.whole(id));
    let operand = |slice, matrix: &TestMatrix| {
        let make = if matrix.transposed { Operand::transposed } else { Operand::plain };
        make(slice, 1, matrix.stride)
    };
    let epilogue = if bias.is_some() { Epilogue::Bias(bias_slice) } else { Epilogue::Zero };
    let (a, b, to) = (operand(a_slice, a), operand(b_slice, b), operand(c_slice, &c));
    // Both tiles of a software adapter: the small one for even m.
    let plan_flops = if m % 2 == 0 { 0 } else { u64::MAX };
    let products = ProductPlanner::new(caps, plan_flops, &buffers);
    let stages = if mnk == SPLIT {
        products.matmul_in_dispatches(title, mnk, LARGEST, a, b, epilogue, to)
    } else {
        products.matmul(title, mnk, a, b, epilogue, to)
    };
    products.add_partials(&mut buffers);
    let inputs: Vec<_> = ids.into_iter().zip(contents.map(|(_, data)| data)).collect();
    c.data = run(gpu, title, buffers, stages, &inputs, ids[3]).await?;
    Ok(c)
}

pub(super) async fn check_column_sum(gpu: &Gpu, findings: &mut Findings<'_>) -> Result<()> {
    // The sums start at column 1 of the rows, and are written from element 2 of the output.
    const FROM: usize = 1;
    const TO: usize = 2;
    // The last size has more rows than one dispatch sums.
    let sizes = [(1, 1), (15, 17), (16, 16), (17, 15), (257, 5), (2111, 17), (600_011, 1)];
    for (seed, (rows, columns)) in (0..).zip(sizes) {
        let stride = columns + FROM;
        let a = random(rows * stride, 1.0 / (rows as f32).sqrt(), seed);
        let out = vec![f32::NAN; columns + TO];
        let mut buffers = BufferList::default();
        let [a_id, out_id] = [("a", &a), ("out", &out)]
            .map(|(name, data)| buffers.add(name, "", ElementType::F32, data.len(), Role::Input));
        let (from, to) = (buffers.whole(a_id), buffers.whole(out_id));
        let caps = gpu.caps();
        let products = ProductPlanner::new(&caps, 0, &buffers);
        let of = ColumnSum { slice: from, rows, stride, range: FROM..stride };
        let stages = products.column_sum("column_sum", &of, to, TO, false);
        products.add_partials(&mut buffers);
        let inputs = [(a_id, &a[..]), (out_id, &out[..])];
        let got = run(gpu, "column_sum", buffers, stages, &inputs, out_id).await?;
        let sum = |column: usize| -> f64 {
            a.chunks_exact(stride).map(|row| f64::from(row[column])).sum()
        };
        let mut expected = vec![f64::NAN; TO];
        expected.extend((FROM..stride).map(sum));
        let sizes = format!("{rows} rows, {columns} columns");
        findings.compare_slices("column_sum", &sizes, &got, &expected);
    }
    Ok(())
}

/// Runs `stages` once over `inputs` and returns the contents of one buffer.
async fn run(
    gpu: &Gpu,
    title: &str,
    buffers: BufferList,
    stages: Vec<Stage>,
    inputs: &[(BufferId, &[f32])],
    output: BufferId,
) -> Result<Vec<f32>> {
    let len = buffers.whole(output).len;
    let plan = Plan::of_stages(title, buffers.into_specs(), stages, &gpu.caps());
    let mut session = Session::new(gpu, plan, &[]).await?;
    for &(id, data) in inputs {
        session.write(id, 0, data, Wait::Async).await?;
    }
    session.run(Pass::Forward).await?;
    Ok(session.read(&[(output, 0..len)], Wait::Async).await?.swap_remove(0))
}
