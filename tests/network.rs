//! `Network`: outputs of many sequences.

mod common;

use common::{devices, random3};
use gru_wgpu::{Direction, Error, GruConfig, Head, Init, Network, ParamLayout, Params};
use ndarray::{Array2, Axis, Ix2, Ix3};

#[test]
fn sequences_of_any_lengths_come_out_as_each_alone() {
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
