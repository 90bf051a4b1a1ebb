//! Compares the kernels of products and `column_sum` with plain sums in f64.

use std::ops::Range;

use super::{Findings, random};
use crate::error::Result;
use crate::gpu::context::Gpu;
use crate::gpu::session::Session;
use crate::gpu::wait::Wait;
use crate::plan::{
    BufferId, BufferList, ColumnSum, DeviceCaps, ElementType, Epilogue, Operand, Pass, Plan,
    Product, ProductPlanner, Role, Stage, WeightGradient,
};
use crate::spec::config::Reset;

/// The sizes M, N, K of the product that is split along every axis, like a product too large for
/// one dispatch.
const SPLIT: [usize; 3] = [65, 97, 50];
/// The largest sizes of a dispatch of the split product.
const LARGEST: [usize; 3] = [32, 64, 16];

/// The sizes M, N, K of all products. K of the last exceeds the loop limit of lavapipe, so it is cut
/// into dispatches.
const MNK: [[usize; 3]; 15] = [
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
    [1, 1, 70_001],
];

/// The sizes of products that are made with the large tile whatever they are: tile ± 1, some and all
/// of a slice, and sums that are split. Where N is a multiple of 4, rows start at quads too.
const LARGE_MNK: [[usize; 3]; 7] = [
    [1, 1, 1],
    [127, 129, 7],
    [128, 128, 16],
    [130, 132, 21],
    [2, 264, 9],
    [65, 260, 1101],
    [131, 66, 1029],
];

/// A matrix of random elements inside a larger buffer, like the matrices inside `gates`: it starts
/// at element `first`, and its rows in memory are `stride` apart. All other elements are NaN, so
/// reading them is detected.
#[derive(Clone)]
struct TestMatrix {
    data: Vec<f32>,
    first: usize,
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
        let elements = random(major * minor, bound, seed);
        Self::laid_out(&elements, [major, minor], 1, minor + gap, transposed)
    }

    fn laid_out(
        elements: &[f32],
        [major, minor]: [usize; 2],
        first: usize,
        stride: usize,
        transposed: bool,
    ) -> Self {
        let mut data = vec![f32::NAN; first + major * stride];
        let rows = data[first..].chunks_exact_mut(stride).zip(elements.chunks_exact(minor));
        rows.for_each(|(row, elements)| row[..minor].copy_from_slice(elements));
        Self { data, first, stride, transposed }
    }

    /// Returns the same matrix with rows that start at multiples of four.
    fn aligned(&self, [rows, columns]: [usize; 2]) -> Self {
        let (major, minor) = if self.transposed { (columns, rows) } else { (rows, columns) };
        let row = |i| self.first + i * self.stride;
        let elements: Vec<_> =
            (0..major).flat_map(|i| &self.data[row(i)..row(i) + minor]).copied().collect();
        let stride = minor.next_multiple_of(4);
        Self::laid_out(&elements, [major, minor], 4, stride, self.transposed)
    }

    fn at(&self, row: usize, column: usize) -> f64 {
        let (major, minor) = if self.transposed { (column, row) } else { (row, column) };
        f64::from(self.data[self.first + major * self.stride + minor])
    }
}

/// The tiles of a product.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Tiles {
    /// Of this kind of adapter.
    Own,
    /// Of the other kind: of a GPU on a software adapter.
    Other,
    Large,
}

pub(super) async fn check_matmul(gpu: &Gpu, findings: &mut Findings<'_>) -> Result<()> {
    for (a_transposed, b_transposed, subject) in [
        (false, false, "matmul A·B"),
        (false, true, "matmul A·Bᵀ + bias"),
        (true, false, "matmul Aᵀ·B"),
        (true, true, "matmul Aᵀ·Bᵀ + bias"),
    ] {
        let own = MNK.map(|mnk| (mnk, &[Tiles::Own, Tiles::Other][..]));
        let large = LARGE_MNK.map(|mnk| (mnk, &[Tiles::Large][..]));
        let cases = own.into_iter().chain(large);
        for (seed, ([m, n, k], tiles)) in (0..).map(|i| 4 * i).zip(cases) {
            let a = TestMatrix::new([m, k], a_transposed, 2, 1.0, seed);
            let b = TestMatrix::new([k, n], b_transposed, 1, 1.0 / (k as f32).sqrt(), seed + 1);
            let bias = b_transposed.then(|| random(n, 1.0, seed + 2));
            let mut expected = product(&a, &b, [m, n, k], bias.as_deref());
            // The number of elements that are not NaN: none outside the result may be written.
            expected.push((m * n) as f64);
            let is_large = tiles == [Tiles::Large];
            let aligned =
                (is_large && n.is_multiple_of(4)).then(|| [a.aligned([m, k]), b.aligned([k, n])]);
            let operands: Vec<_> = std::iter::once([a, b]).chain(aligned).collect();
            for tiles in tiles {
                for [a, b] in &operands {
                    let c =
                        multiply(gpu, *tiles, subject, [m, n, k], a, b, bias.as_deref()).await?;
                    let mut got: Vec<f32> = (0..m * n).map(|i| c.at(i / n, i % n) as f32).collect();
                    got.push(c.data.iter().filter(|v| !v.is_nan()).count() as f32);
                    let sizes = format!("M {m}, N {n}, K {k}, {tiles:?} tiles, from {}", a.first);
                    findings.compare_slices(subject, &sizes, &got, &expected);
                }
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
    tiles: Tiles,
    title: &'static str,
    mnk: [usize; 3],
    a: &TestMatrix,
    b: &TestMatrix,
    bias: Option<&[f32]>,
) -> Result<TestMatrix> {
    let [m, n, _] = mnk;
    // Split-K needs a C without gaps between its rows.
    let gap = match (mnk[2], a.first) {
        (1001.., _) => 0,
        (_, 4) => 4,
        _ => 3,
    };
    let nothing = vec![f32::NAN; m * n];
    let mut c = TestMatrix::laid_out(&nothing, [m, n], a.first, n + gap, false);
    let own = gpu.caps();
    let software = if tiles == Tiles::Own { own.software } else { !own.software };
    let caps = &DeviceCaps { software: software && tiles != Tiles::Large, ..own };
    let no_bias = [0.0];
    let bias_data = bias.unwrap_or(&no_bias);

    let mut buffers = BufferList::default();
    let contents = [("a", &a.data[..]), ("b", &b.data), ("bias", bias_data), ("c", &c.data)];
    let ids = contents
        .map(|(name, data)| buffers.add(name, "", ElementType::F32, data.len(), Role::Input));
    let [a_slice, b_slice, bias_slice, c_slice] = ids.map(|id| buffers.whole(id));
    let operand = |slice, matrix: &TestMatrix| {
        let make = if matrix.transposed { Operand::transposed } else { Operand::plain };
        make(slice, matrix.first, matrix.stride)
    };
    let epilogue = if bias.is_some() { Epilogue::Bias(bias_slice) } else { Epilogue::Zero };
    let (a, b, to) = (operand(a_slice, a), operand(b_slice, b), operand(c_slice, &c));
    // Both tiles of a software adapter: the small one for even m.
    let plan_flops = if m % 2 == 0 { 0 } else { u64::MAX };
    let products = ProductPlanner::new(caps, plan_flops, &buffers);
    let products = if tiles == Tiles::Large { products.with_large_tiles() } else { products };
    let product = Product { label: title.to_owned(), mnk, a, b, epilogue, c: to };
    let stages = if mnk == SPLIT {
        products.matmul_in_dispatches(&product, LARGEST)
    } else {
        products.matmul(&product)
    };
    products.add_partials(&mut buffers);
    let inputs: Vec<_> = ids.into_iter().zip(contents.map(|(_, data)| data)).collect();
    c.data = run_stages(gpu, title, buffers, stages, &inputs, ids[3]).await?;
    Ok(c)
}

/// The gradients of a cell's parameters, as they lie in a buffer: dW_ih, dW_hh, db_ih and db_hh.
struct TestCell {
    hidden: usize,
    input: usize,
    rows: usize,
    /// The rows of x between which others lie.
    run: usize,
    reset: Reset,
}

impl TestCell {
    const GAP: usize = 8;

    fn starts(&self) -> [usize; 5] {
        let gates = 3 * self.hidden;
        let mut end = 0;
        [0, gates * self.input, gates * self.hidden, gates, gates].map(|len: usize| {
            end += len.next_multiple_of(64);
            end
        })
    }

    /// Returns the number of elements of x before row `row`.
    fn x_at(&self, row: usize) -> usize {
        row * self.input + row / self.run * Self::GAP
    }

    /// Returns the gradients, added to `before`. `da` is `[rows, 4H]`.
    fn expected(&self, da: &[f32], x: &[f32], h: &[f32], before: &[f32]) -> Vec<f64> {
        let (hidden, input) = (self.hidden, self.input);
        let mut sums: Vec<f64> = before.iter().map(|&v| f64::from(v)).collect();
        let [ih, hh, bias_ih, bias_hh, _] = self.starts();
        for row in 0..self.rows {
            let da = da[row * 4 * hidden..][..4 * hidden].iter().map(|&v| f64::from(v));
            let da: Vec<f64> = da.collect();
            for gate in 0..3 * hidden {
                let is_n = gate >= 2 * hidden;
                let (recurrent, past) = match self.reset {
                    Reset::After => (da[gate + if is_n { hidden } else { 0 }], None),
                    Reset::Before => (da[gate], is_n.then(|| &da[3 * hidden..])),
                };
                for i in 0..input {
                    let x = f64::from(x[self.x_at(row) + i]);
                    sums[ih + gate * input + i] += da[gate] * x;
                }
                for i in 0..hidden {
                    let h = past.map_or(f64::from(h[row * hidden + i]), |past| past[i]);
                    sums[hh + gate * hidden + i] += recurrent * h;
                }
                sums[bias_ih + gate] += da[gate];
                sums[bias_hh + gate] += recurrent;
            }
        }
        sums
    }
}

pub(super) async fn check_weight_gradients(gpu: &Gpu, findings: &mut Findings<'_>) -> Result<()> {
    for (seed, [hidden, input, rows, run]) in (0..).map(|i| 4 * i).zip([
        [1, 1, 1, 1],
        [20, 12, 37, 37],
        [44, 130, 24, 24],
        [21, 7, 1101, 1101],
        [20, 12, 1101, 1101],
        [20, 12, 1090, 10],
    ]) {
        for reset in [Reset::After, Reset::Before] {
            let cell = TestCell { hidden, input, rows, run, reset };
            check_cell(gpu, findings, &cell, seed).await?;
        }
    }
    Ok(())
}

async fn check_cell(
    gpu: &Gpu,
    findings: &mut Findings<'_>,
    cell: &TestCell,
    seed: u64,
) -> Result<()> {
    let &TestCell { hidden, input, rows, run, reset } = cell;
    let [ih, hh, bias_ih, bias_hh, len] = cell.starts();
    let bound = 1.0 / (rows as f32).sqrt();
    let da = random(rows * 4 * hidden, bound, seed);
    let x = random(cell.x_at(rows), 1.0, seed + 1);
    let h = random(rows * hidden, 1.0, seed + 2);
    let before = random(len, 1.0, seed + 3);
    let expected = cell.expected(&da, &x, &h, &before);
    let mut buffers = BufferList::default();
    let contents = [("da", &da), ("x", &x), ("h", &h), ("dparams", &before)];
    let ids = contents
        .map(|(name, data)| buffers.add(name, "", ElementType::F32, data.len(), Role::Input));
    let [gates, x_slice, h_slice, _] = ids.map(|id| buffers.whole(id));
    let part = |first, len| buffers.slice(ids[3], first..first + len);
    let column = |gate| Operand::transposed(gates, gate * hidden, 4 * hidden);
    let x_rows = Operand::plain(x_slice, 0, input);
    let x_rows = match run < rows {
        true => x_rows.in_runs(run, run * input + TestCell::GAP),
        false => x_rows,
    };
    let h_rows = Operand::plain(h_slice, 0, hidden);
    let (dn, past) = match reset {
        Reset::After => (column(3), h_rows),
        Reset::Before => (column(2), Operand::plain(gates, 3 * hidden, 4 * hidden)),
    };
    let gradient = |[m, n]: [usize; 2], a, b, (slice, first), (bias, bias_first)| {
        let (mnk, c) = ([m, n, rows], Operand::plain(slice, first, n));
        let label = "weight gradients".to_owned();
        let product = Product { label, mnk, a, b, epilogue: Epilogue::Present, c };
        let bias = Some((part(bias, 3 * hidden), bias_first));
        WeightGradient { product, bias, bias_label: String::new() }
    };
    let dw_ih = (part(ih, 3 * hidden * input), 0);
    let dw_hh = |gate| (part(hh, 3 * hidden * hidden), gate * hidden * hidden);
    let gradients = [
        gradient([3 * hidden, input], column(0), x_rows, dw_ih, (bias_ih, 0)),
        gradient([2 * hidden, hidden], column(0), h_rows, dw_hh(0), (bias_hh, 0)),
        gradient([hidden, hidden], dn, past, dw_hh(2), (bias_hh, 2 * hidden)),
    ];
    let own = gpu.caps();
    for (is_large, note) in [(false, ""), (true, ", large tiles")] {
        let caps = DeviceCaps { software: own.software && !is_large, ..own };
        let mut buffers = BufferList::default();
        for (name, data) in contents {
            buffers.add(name, "", ElementType::F32, data.len(), Role::Input);
        }
        let products = ProductPlanner::new(&caps, 0, &buffers);
        let products = if is_large { products.with_large_tiles() } else { products };
        let stages = products.weight_gradients("weight gradients", &gradients);
        products.add_partials(&mut buffers);
        let inputs: Vec<_> = ids.into_iter().zip(contents.map(|(_, data)| &data[..])).collect();
        let got = run_stages(gpu, "weight gradients", buffers, stages, &inputs, ids[3]).await?;
        let sizes =
            format!("H {hidden}, I {input}, {rows} rows in runs of {run}, reset {reset:?}{note}");
        findings.compare_slices("weight gradients", &sizes, &got, &expected);
    }
    Ok(())
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
        let got = sum_columns(gpu, &a, rows, FROM..stride, TO).await?;
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

/// Sums columns `range` of the rows of `a`. The sums start at element `to` of what is returned.
async fn sum_columns(
    gpu: &Gpu,
    a: &[f32],
    rows: usize,
    range: Range<usize>,
    to: usize,
) -> Result<Vec<f32>> {
    let out = vec![f32::NAN; range.len() + to];
    let mut buffers = BufferList::default();
    let [a_id, out_id] = [("a", a), ("out", &out)]
        .map(|(name, data)| buffers.add(name, "", ElementType::F32, data.len(), Role::Input));
    let caps = gpu.caps();
    let products = ProductPlanner::new(&caps, 0, &buffers);
    let of = ColumnSum { slice: buffers.whole(a_id), rows, stride: a.len() / rows, range };
    let stages = products.column_sum("column_sum", &of, buffers.whole(out_id), to, false);
    products.add_partials(&mut buffers);
    let inputs = [(a_id, a), (out_id, &out[..])];
    run_stages(gpu, "column_sum", buffers, stages, &inputs, out_id).await
}

/// Runs `stages` once over `inputs` and returns the contents of one buffer.
async fn run_stages(
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::device::{test_device, test_device_as_gpu};

    /// Half an ulp of 1: the largest error of one rounding.
    const ROUNDING: f64 = 5.96e-8;

    /// Returns numbers between 0 and 1: their sums grow steadily, and with them the roundings.
    fn positive(count: usize, seed: u64) -> Vec<f32> {
        random(count, 1.0, seed).iter().map(|number| number.abs()).collect()
    }

    /// Returns the root mean square of the relative errors.
    fn relative_error(got: &[f32], expected: &[f64]) -> f64 {
        assert_eq!(got.len(), expected.len());
        let error = |(&got, expected): (&f32, &f64)| (f64::from(got) / expected - 1.0).powi(2);
        let squares: f64 = got.iter().zip(expected).map(error).sum();
        (squares / got.len() as f64).sqrt()
    }

    /// One chain of n additions has an error of √n / 3 roundings, here 41.
    #[test]
    fn products_add_up_long_sums_in_blocks() {
        const MNK: [usize; 3] = [5, 12, 15_001];
        let [m, n, k] = MNK;
        let elements = [positive(m * k, 1), positive(k * n, 2)];
        let a = TestMatrix::laid_out(&elements[0], [m, k], 0, k, false);
        let b = TestMatrix::laid_out(&elements[1], [k, n], 0, n, false);
        let bias = vec![0.0; n];
        let expected = product(&a, &b, MNK, None);
        let devices = [(test_device().1, Tiles::Own), (test_device_as_gpu().1, Tiles::Own)];
        for (gpu, tiles) in devices.into_iter().chain([(test_device_as_gpu().1, Tiles::Large)]) {
            // A product with a bias is not computed in parts.
            for bias in [None, Some(&bias[..])] {
                let of = multiply(&gpu, tiles, "product", MNK, &a, &b, bias);
                let c = pollster::block_on(of).unwrap();
                let got: Vec<f32> = (0..m * n).map(|i| c.at(i / n, i % n) as f32).collect();
                let error = relative_error(&got, &expected) / ROUNDING;
                let what = format!("{tiles:?}, software: {}", gpu.caps().software);
                assert!(error < 8.0, "{error} roundings, {what}, bias: {}", bias.is_some());
            }
        }
    }

    /// As the loss of 200,000 rows is, and the gradients of biases.
    #[test]
    fn column_sums_add_up_long_sums_in_blocks() {
        const ROWS: usize = 200_000;
        const COLUMNS: usize = 17;
        let a = positive(ROWS * COLUMNS, 3);
        let sum = |column| a.iter().skip(column).step_by(COLUMNS).copied().map(f64::from).sum();
        let expected: Vec<f64> = (0..COLUMNS).map(sum).collect();
        for (_, gpu) in [test_device(), test_device_as_gpu()] {
            let got = pollster::block_on(sum_columns(&gpu, &a, ROWS, 0..COLUMNS, 0)).unwrap();
            let error = relative_error(&got, &expected) / ROUNDING;
            assert!(error < 1.5, "{error} roundings, software: {}", gpu.caps().software);
        }
    }
}
