//! `Network`: outputs of many sequences, and losses against targets.

use crate::common::{devices, random3};
use gru_wgpu::{
    Batch, Direction, Error, GruConfig, Head, Init, Layout, Loss, Network, ParamLayout, Params,
    Targets,
};
use ndarray::{Array2, ArrayD, Axis, Dimension, Ix2, Ix3, IxDyn};

#[test]
fn sequences_of_any_lengths_equal_each_run_alone() {
    let sequences: Vec<Array2<f32>> = [3, 9, 1, 8, 17]
        .map(|steps| random3([steps, 1, 2], steps as u64).index_axis_move(Axis(1), 0))
        .to_vec();
    let config = GruConfig::pytorch(2, 5).with_direction(Direction::Both);
    for head in [Head::last(3), Head::every_step(3)] {
        let layout = ParamLayout::with_head(&config, head).unwrap();
        let params = Params::init_of(layout, Init::Uniform, 4).unwrap();
        for device in devices() {
            let network = Network::new(params.clone(), &device).unwrap();
            let together = network.forward_each(&sequences, 2).unwrap();
            assert_eq!(together.len(), sequences.len());
            for (outputs, x) in together.iter().zip(&sequences) {
                let alone = network.forward(&x.view().insert_axis(Axis(1)).to_owned()).unwrap();
                let alone = match head == Head::last(3) {
                    true => alone.into_dimensionality::<Ix2>().unwrap(),
                    false => {
                        alone.into_dimensionality::<Ix3>().unwrap().index_axis_move(Axis(1), 0)
                    }
                };
                assert_eq!(outputs.dim(), alone.dim());
                let largest = (outputs - &alone).iter().fold(0.0, |l: f32, d| l.max(d.abs()));
                assert!(largest < 1e-6, "{head:?} on {device}: {largest}");
            }
            assert!(network.forward_each(&[], 2).unwrap().is_empty());
            let empty = network.forward_each(&[Array2::zeros((0, 2))], 2);
            assert!(matches!(empty, Err(Error::ZeroSize { .. })), "{empty:?}");
            let wide = network.forward_each(&[Array2::zeros((4, 3))], 2);
            assert!(matches!(wide, Err(Error::Shape { .. })), "{wide:?}");
        }
    }
}

/// The adapter computes what the CPU computes: every loss, both kinds of head, padding, an ignored
/// class, ties, and NaN in a row.
#[test]
fn the_adapter_evaluates_as_the_cpu() {
    const LENGTHS: [usize; 5] = [9, 0, 4, 1, 9];
    let losses = [
        Loss::MeanSquared,
        Loss::Huber { delta: 0.3 },
        Loss::cross_entropy(),
        Loss::CrossEntropy { ignore: None },
    ];
    for (outputs, direction, layout) in [
        (3, Direction::Forward, Layout::TimeMajor),
        (1, Direction::Both, Layout::BatchFirst),
        (70, Direction::Reverse, Layout::BatchFirst),
    ] {
        let config = GruConfig::pytorch(2, 7).with_direction(direction);
        for head in [Head::last(outputs), Head::every_step(outputs)] {
            let params = ParamLayout::with_head(&config, head).unwrap();
            let mut params = Params::init_of(params, Init::Uniform, 4).unwrap();
            // Outputs that are equal in every row: the first one counts as the largest.
            let mut weight = params.get_mut("head.weight").unwrap();
            let tied = weight.index_axis(Axis(0), 0).to_owned();
            weight.index_axis_mut(Axis(0), outputs - 1).assign(&tied);
            let mut bias = params.get_mut("head.bias").unwrap();
            bias[outputs - 1] = bias[0];
            let [adapter, cpu] = [crate::common::adapter(), &gru_wgpu::Device::cpu()]
                .map(|device| Network::new(params.clone(), device).unwrap());
            let [outer, inner] = match layout {
                Layout::TimeMajor => [9, 5],
                Layout::BatchFirst => [5, 9],
            };
            let x = random3([outer, inner, 2], 3);
            let mut spoilt = x.clone();
            spoilt[[0, 0, 0]] = f32::NAN;
            for (x, lengths) in [(&x, None), (&x, Some(&LENGTHS[..])), (&spoilt, None)] {
                let mut batch = Batch::new(x.view()).with_layout(layout);
                batch.lengths = lengths;
                let axes = if head == Head::last(outputs) { vec![5] } else { vec![outer, inner] };
                for loss in losses {
                    let with_width = [&axes[..], &[outputs]].concat();
                    let values = ArrayD::from_shape_fn(IxDyn(&with_width), |at| {
                        at.slice().iter().sum::<usize>() as f32 * 0.3 - 1.0
                    });
                    let ignores = loss == Loss::cross_entropy();
                    let classes = ArrayD::from_shape_fn(IxDyn(&axes), |at| {
                        let class = at.slice().iter().sum::<usize>() % (outputs + 1);
                        if class < outputs { class as i32 } else { -100 * i32::from(ignores) }
                    });
                    let targets = || match loss {
                        Loss::CrossEntropy { .. } => Targets::Classes(classes.view()),
                        _ => Targets::Values(values.view()),
                    };
                    let [got, expected] = [&adapter, &cpu]
                        .map(|network| network.evaluate(&loss, batch, targets()).unwrap());
                    let case = format!("{config}, {head:?}, {loss:?}: {got:?}, {expected:?}");
                    assert_eq!(got.counted, expected.counted, "{case}");
                    assert_eq!(got.correct, expected.correct, "{case}");
                    assert_eq!(got.loss.is_nan(), std::ptr::eq(x, &spoilt), "{case}");
                    let difference = (got.loss - expected.loss).abs();
                    assert!(got.loss.is_nan() || difference <= 1e-5 * expected.loss, "{case}");
                }
            }
        }
    }
}
