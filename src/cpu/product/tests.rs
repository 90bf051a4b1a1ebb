//! Prints the rates of products on this machine, one thread.

use super::*;
use crate::check::random;
use crate::clock::Instant;

/// The rate of a product whose left side is packed for it, as in a step.
fn rate(level: SimdLevel, rows: usize, depth: usize, columns: usize) -> f64 {
    let (lanes, weight) = (level.lanes(), random(columns * depth, 1.0, 1));
    let panels = columns.div_ceil(lanes);
    let right = PackedRight::new(level, depth, panels, false, |panel| {
        PanelSource::Transposed(&weight, panel * lanes, columns - panel * lanes)
    });
    let (right, left) = (right.unwrap(), random(rows * depth, 1.0, 2));
    let (mut scratch, mut out) = (Vec::new(), vec![0.0; panels * rows * lanes]);
    let mut run = || {
        let left = PackedLeft::pack(level, &left, depth, [0..depth, 0..0], &mut scratch);
        let (left, depth) = (left.unwrap(), 0..depth);
        level.run(AddProduct { left, right: &right, depth, first: 0, out: &mut out });
    };
    median_rate(2.0 * (rows * depth * columns) as f64, &mut run)
}

/// The rate of a weight gradient: 48 gate columns, as of a task.
fn transposed_rate(level: SimdLevel, depth: usize, columns: usize) -> f64 {
    let (lanes, left) = (level.lanes(), random(depth * 48, 1.0, 1));
    let matrix = random(depth * columns, 1.0, 2);
    let right = PackedRight::new(level, depth, columns.div_ceil(lanes), false, |panel| {
        PanelSource::Rows(&matrix, columns, panel * lanes)
    });
    let (right, mut to, mut sums) = (right.unwrap(), vec![0.0; 48 * columns], vec![0.0; 48]);
    let mut scratch = vec![0.0; AddTransposed::scratch_len(level, 48, depth)];
    let mut run = || {
        level.run(AddTransposed {
            left: &left,
            stride: 48,
            first: 0,
            sums: &mut sums,
            products: vec![(&right, &mut to[..])],
            scratch: &mut scratch,
        });
    };
    median_rate(2.0 * (48 * depth * columns) as f64, &mut run)
}

/// The median GFLOP/s of 15 runs, each long enough for the clock.
fn median_rate(flops: f64, run: &mut dyn FnMut()) -> f64 {
    let repeats = (2e7 / flops).ceil() as usize;
    let mut rates: Vec<f64> = (0..15)
        .map(|_| {
            let start = Instant::now();
            (0..repeats).for_each(|_| run());
            flops * repeats as f64 / start.elapsed().as_secs_f64() / 1e9
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    rates[7]
}

#[test]
#[ignore = "prints rates"]
fn rates_of_products() {
    let sizes = [(128, 384), (192, 576), (320, 960), (513, 1539), (1024, 3072)];
    for level in SimdLevel::all().skip(1) {
        println!("{level:?}: rows × depth × columns, GFLOP/s");
        for (depth, columns) in sizes {
            let rows = [1, 2, 3, 4, 5, 7, 8, 10, 12, 16, 17, 24, 48];
            let rates = rows.map(|m| format!("{:7.1}", rate(level, m, depth, columns)));
            println!("  × {depth:4} × {columns:4}, rows {rows:?}: {}", rates.concat());
        }
        for columns in [31, 64, 128, 257, 512] {
            let rates = [32, 100, 256, 512]
                .map(|depth| format!("{:7.1}", transposed_rate(level, depth, columns)));
            println!("  48 columnsᵀ × 32, 100, 256, 512 × {columns}: {}", rates.concat());
        }
    }
}
