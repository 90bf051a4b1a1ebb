//! Weights in other frameworks' layouts: round trips are exact, and the outputs equal each
//! framework's own equations.

use crate::common::{assert_close, random3, within};
use gru_wgpu::formats::{Cell, MlxCell};
use gru_wgpu::{Bias, Device, Direction, Error, Gru, GruConfig, Init, Params, Reset, Update};
use ndarray::{Array1, Array2, Axis, array, s};

fn sigmoid(a: Array1<f32>) -> Array1<f32> {
    a.mapv(|a| 1.0 / (1.0 + (-a).exp()))
}

/// Returns every variant, with several layers, in both directions.
fn models() -> Vec<Params> {
    GruConfig::all_variants(3, 5)
        .into_iter()
        .map(|config| config.with_layers(2).with_direction(Direction::Both))
        .map(|config| Params::init(&config, Init::Uniform, 1).unwrap())
        .collect()
}

#[test]
fn every_layout_round_trips_bit_for_bit() {
    for params in models() {
        let config = params.layout().config();
        let cells = params.to_cells();
        assert_eq!(cells.len(), 4);
        assert_eq!(Params::from_cells(config, &cells).unwrap(), params, "{config}");
        for cell in &cells {
            let zeros = || Array1::zeros(cell.weight_hh.nrows());
            let both_or_none = |bias: &Option<Array1<f32>>| {
                let any = cell.bias_ih.is_some() || cell.bias_hh.is_some();
                any.then(|| bias.clone().unwrap_or_else(zeros))
            };
            let (kernel, recurrent, bias) = cell.to_keras(config.reset);
            let bias = bias.as_ref().map(|bias| bias.view());
            let back = Cell::from_keras(kernel.view(), recurrent.view(), bias).unwrap();
            assert_eq!((&back.weight_ih, &back.weight_hh), (&cell.weight_ih, &cell.weight_hh));
            match (config.reset, &cell.bias_ih, &cell.bias_hh) {
                (Reset::After, ih, hh) => {
                    assert_eq!((back.bias_ih, back.bias_hh), (both_or_none(ih), both_or_none(hh)));
                }
                // Two biases with the same effect are added into one.
                (Reset::Before, Some(ih), Some(hh)) => assert_eq!(back.bias_ih, Some(ih + hh)),
                (Reset::Before, ih, _) => {
                    assert_eq!((back.bias_ih, back.bias_hh), (ih.clone(), None))
                }
            }
            assert_eq!(Cell::from_flax(&cell.to_flax()).unwrap().to_mlx(), cell.to_mlx());
            let (w, r, b) = cell.to_onnx();
            let back = Cell::from_onnx(w.view(), r.view(), b.as_ref().map(|b| b.view())).unwrap();
            assert_eq!((&back.weight_ih, &back.weight_hh), (&cell.weight_ih, &cell.weight_hh));
            assert_eq!(back.bias_ih, cell.bias_ih);
            // ONNX has both halves of the bias or none.
            let zeros = || cell.bias_ih.as_ref().map(|bias| Array1::zeros(bias.len()));
            assert_eq!(back.bias_hh, cell.bias_hh.clone().or_else(zeros));
        }
    }
}

/// Computes the state after one step from Keras' documented equations.
#[test]
fn keras_weights_compute_what_keras_computes() {
    let (kernel, recurrent) = (random3([1, 4, 15], 1), random3([1, 5, 15], 2));
    let (kernel, recurrent) = (kernel.index_axis(Axis(0), 0), recurrent.index_axis(Axis(0), 0));
    let biases = random3([1, 2, 15], 3);
    let (x, h0) = (random3([1, 1, 4], 4), random3([1, 1, 5], 5));
    let (xv, hv) = (x.slice(s![0, 0, ..]), h0.slice(s![0, 0, ..]));
    for reset in [Reset::Before, Reset::After] {
        let after = reset == Reset::After;
        let bias = match after {
            true => biases.index_axis(Axis(0), 0).to_owned().into_dyn(),
            false => biases.slice(s![0, 0, ..]).to_owned().into_dyn(),
        };
        let cell = Cell::from_keras(kernel, recurrent, Some(bias.view())).unwrap();
        let config = GruConfig::new(4, 5).with_reset(reset).with_update(Update::Keeps);
        let config = config.with_bias(if after { Bias::Two } else { Bias::One });
        let params = Params::from_cells(&config, &[cell]).unwrap();
        let gru = Gru::with_params(params, &Device::cpu()).unwrap();
        let got = gru.forward(gru_wgpu::Batch::new(x.view()).with_h0(h0.view())).unwrap().h_n;

        let of =
            |gate: usize, from: &Array1<f32>| from.slice(s![gate * 5..gate * 5 + 5]).to_owned();
        let input = kernel.t().dot(&xv) + biases.slice(s![0, 0, ..]);
        let second = if after { biases.slice(s![0, 1, ..]).to_owned() } else { Array1::zeros(15) };
        let inner = recurrent.t().dot(&hv) + &second;
        let z = sigmoid(of(0, &input) + of(0, &inner));
        let r = sigmoid(of(1, &input) + of(1, &inner));
        let candidate = match after {
            true => of(2, &input) + &r * &of(2, &inner),
            false => of(2, &input) + recurrent.slice(s![.., 10..]).t().dot(&(&r * &hv)),
        };
        let expected = &z * &hv + (1.0 - &z) * candidate.mapv(f32::tanh);
        let got = got.slice(s![0, 0, ..]).to_owned();
        assert_close("y", &got, &expected, within(1e-6));
    }
}

#[test]
fn mlx_and_flax_weights_map_to_the_right_gates() {
    let params = Params::init(&GruConfig::pytorch(4, 5), Init::Uniform, 1).unwrap();
    let cell = params.to_cells().remove(0);
    let MlxCell { wx, wh, b, bhn } = cell.to_mlx();
    let (b, bhn) = (b.unwrap(), bhn.unwrap());
    let mlx = Cell::from_mlx(wx.view(), wh.view(), Some(b.view()), Some(bhn.view())).unwrap();
    assert_eq!(Cell::from_flax(&cell.to_flax()).unwrap(), mlx);
    // The same numbers with fewer biases.
    let x = random3([6, 2, 4], 2);
    let run =
        |params: Params| Gru::with_params(params, &Device::cpu()).unwrap().forward(&x).unwrap().y;
    let other = Params::from_cells(&GruConfig::pytorch(4, 5), &[mlx]).unwrap();
    let [got, expected] = [run(other), run(params)];
    assert_close("y", &got, &expected, within(1e-6));
}

#[test]
fn weights_that_do_not_fit_are_refused() {
    let (w, r) = (Array2::<f32>::zeros((15, 4)), Array2::<f32>::zeros((15, 5)));
    let error = Cell::from_onnx(w.view(), w.view(), None).unwrap_err().to_string();
    assert_eq!(error, "W [3H, I] has shape [15, 4], expected [12, 4]");
    let short = array![1.0];
    let error = Cell::from_onnx(w.view(), r.view(), Some(short.view())).unwrap_err().to_string();
    assert_eq!(error, "B [6H] has shape [1], expected [30]");
    let error = Cell::from_keras(w.t(), w.view(), None).unwrap_err();
    assert!(matches!(error, Error::Shape { .. }), "{error}");
    let error = Cell::from_keras(w.t(), r.t(), Some(short.view().into_dyn())).unwrap_err();
    assert_eq!(error.to_string(), "the bias [3U] has shape [1], expected [15]");
    let cell = Cell::from_onnx(w.view(), r.view(), None).unwrap();
    let two = GruConfig::new(4, 5).with_layers(2);
    let error = Params::from_cells(&two, std::slice::from_ref(&cell)).unwrap_err();
    assert_eq!(error.to_string(), "the cells [L·D] has shape [1], expected [2]");
    let biased = Cell::from_mlx(w.view(), r.view(), Some(Array1::ones(15).view()), None).unwrap();
    let none = GruConfig::new(4, 5).with_bias(Bias::None);
    let error = Params::from_cells(&none, &[biased]).unwrap_err();
    assert!(matches!(error, Error::Conflict { .. }), "{error}");
    assert!(Params::from_cells(&none, &[cell]).is_ok());
}
