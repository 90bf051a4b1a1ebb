//! Ring one: numbers that this project did not compute. PyTorch's where PyTorch has the variant, a
//! statement of the equations in NumPy elsewhere; `tests/data/generate.py` made both.

mod common;

use common::assert_close;
use gru_wgpu::check::{TOLERANCE, Tolerance};
use gru_wgpu::{
    Activation, Batch, Bias, Device, Gradients, Gru, GruConfig, Params, Reset, Update, reference,
};
use ndarray::{Array3, ArrayD, IxDyn, NdFloat};
use serde_json::Value;

/// Two double-precision programs that add in different orders.
const DOUBLE: Tolerance = Tolerance { atol: 1e-13, rtol: 1e-11 };

struct Case {
    config: GruConfig,
    json: Value,
}

impl Case {
    fn all() -> Vec<Case> {
        let files = [include_str!("data/pytorch.json"), include_str!("data/equations.json")];
        let cases: Vec<_> = files.iter().flat_map(|text| Case::parse(text)).collect();
        // Every variant once, each of the four once stacked in both directions, two more of PyTorch's,
        // three with other activations, and each of the four with lengths.
        assert_eq!(cases.len(), 12 + 4 + 2 + 3 + 4);
        cases
    }

    fn parse(text: &str) -> Vec<Case> {
        let json: Vec<Value> = serde_json::from_str(text).unwrap();
        json.into_iter()
            .map(|json| {
                let reset = match json["reset"].as_str().unwrap() {
                    "before" => Reset::Before,
                    "after" => Reset::After,
                    other => panic!("{other}"),
                };
                let update = match json["update"].as_str().unwrap() {
                    "overwrites" => Update::Overwrites,
                    "keeps" => Update::Keeps,
                    other => panic!("{other}"),
                };
                let bias = match json["bias"].as_str().unwrap() {
                    "none" => Bias::None,
                    "one" => Bias::One,
                    "two" => Bias::Two,
                    other => panic!("{other}"),
                };
                let size =
                    |tensor: &str| json["params"][tensor]["shape"][1].as_u64().unwrap() as usize;
                let (input, hidden) = (size("weight_ih_l0"), size("weight_hh_l0"));
                let config = GruConfig::new(input, hidden)
                    .with_reset(reset)
                    .with_update(update)
                    .with_bias(bias)
                    .with_layers(json["layers"].as_u64().unwrap() as usize)
                    .with_bidirectional(json["directions"] == 2)
                    .with_activations(activation(&json["gate"]), activation(&json["candidate"]));
                Case { config, json }
            })
            .collect()
    }

    fn array(&self, group: &str, name: &str) -> ArrayD<f64> {
        let tensor = if name.is_empty() { &self.json[group] } else { &self.json[group][name] };
        let numbers = |key: &str| tensor[key].as_array().unwrap().clone();
        let shape: Vec<_> = numbers("shape").iter().map(|v| v.as_u64().unwrap() as usize).collect();
        let data: Vec<_> = numbers("data").iter().map(|v| v.as_f64().unwrap()).collect();
        ArrayD::from_shape_vec(IxDyn(&shape), data).unwrap()
    }

    fn array3<F: NdFloat>(&self, group: &str, name: &str) -> Array3<F> {
        let array = self.array(group, name).into_dimensionality().unwrap();
        array.mapv(|v| F::from(v).unwrap())
    }

    fn lengths(&self) -> Vec<usize> {
        let lengths = self.json["lengths"].as_array().unwrap();
        lengths.iter().map(|length| length.as_u64().unwrap() as usize).collect()
    }

    fn params<F: NdFloat>(&self) -> Params<F> {
        let mut params = Params::zeros(&self.config).unwrap();
        let names = self.json["params"].as_object().unwrap().keys();
        assert_eq!(names.len(), params.layout().entries().len(), "{}", self.config);
        for name in names {
            let values = self.array("params", name).mapv(|v| F::from(v).unwrap());
            params.set(name, values.view()).unwrap();
        }
        params
    }

    fn check<F: NdFloat + Into<f64>>(
        &self,
        who: &str,
        [y, h_n]: [&Array3<F>; 2],
        grads: &Gradients<F>,
        tolerance: Tolerance,
    ) {
        let close = |name: &str, got: ArrayD<F>, expected: ArrayD<f64>| {
            let what = format!("{name} by {who}, {}", self.config);
            assert_close(&what, &got.mapv(Into::into), &expected, tolerance);
        };
        close("y", y.clone().into_dyn(), self.array("y", ""));
        close("h_n", h_n.clone().into_dyn(), self.array("h_n", ""));
        close("dx", grads.x.clone().into_dyn(), self.array("grads", "x"));
        close("dh0", grads.h0.clone().into_dyn(), self.array("grads", "h0"));
        for (name, grad) in grads.params.iter() {
            close(name, grad.to_owned(), self.array("grads", name));
        }
    }
}

fn activation(name: &Value) -> Activation {
    *Activation::ALL.iter().find(|activation| *name == activation.to_string()).unwrap()
}

fn check_reference<F: NdFloat + Into<f64>>(who: &str, tolerance: Tolerance) {
    for case in Case::all() {
        let [x, h0, dy, dh_n] = ["x", "h0", "dy", "dh_n"].map(|n| case.array3::<F>("inputs", n));
        let params = case.params::<F>();
        let trace = reference::forward(
            &params,
            Batch::new(x.view()).with_h0(h0.view()).with_lengths(&case.lengths()),
        )
        .unwrap();
        let (dy, dh_n) = (Some(dy.view()), Some(dh_n.view()));
        let grads = reference::backward(&params, x.view(), &trace, dy, dh_n).unwrap();
        case.check(who, [&trace.y(), &trace.h_n()], &grads, tolerance);
    }
}

#[test]
fn the_reference_in_f64_gives_the_expected_numbers() {
    check_reference::<f64>("the reference in f64", DOUBLE);
}

#[test]
fn the_reference_in_f32_gives_the_expected_numbers() {
    check_reference::<f32>("the reference in f32", TOLERANCE);
}

fn check_device(device: &Device) {
    for case in Case::all() {
        let [x, h0, dy, dh_n] = ["x", "h0", "dy", "dh_n"].map(|n| case.array3::<f32>("inputs", n));
        let gru = Gru::with_params(case.params(), device).unwrap();
        let (output, tape) = gru
            .forward_train(Batch::new(x.view()).with_h0(h0.view()).with_lengths(&case.lengths()))
            .unwrap();
        let grads = gru.backward(tape, Some(dy.view()), Some(dh_n.view())).unwrap();
        case.check(&device.to_string(), [&output.y, &output.h_n], &grads, TOLERANCE);
        assert_eq!(
            gru.forward(Batch::new(x.view()).with_h0(h0.view()).with_lengths(&case.lengths()))
                .unwrap(),
            output,
            "{}",
            case.config
        );
    }
}

#[test]
fn the_cpu_device_gives_the_expected_numbers() {
    check_device(&Device::cpu());
}

#[test]
fn the_adapter_gives_the_expected_numbers() {
    check_device(common::adapter());
}
