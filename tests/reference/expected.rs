//! Numbers that this project did not compute: PyTorch's where PyTorch has the variant, and
//! otherwise those of the equations in NumPy. `tests/data/generate.py` made both.

use crate::common::assert_close;
use gru_wgpu::check::{TOLERANCE, Tolerance};
use gru_wgpu::{
    Activation, Activations, Batch, Bias, Device, Direction, Gradients, Gru, GruConfig, Layout,
    Output, Params, Reset, State, Update, reference,
};
use ndarray::{Array2, Array3, ArrayD, ArrayView3, Axis, IxDyn, NdFloat, concatenate, s};
use serde_json::Value;
use std::ops::Range;

/// Two double-precision programs that add in different orders.
const DOUBLE: Tolerance = Tolerance { atol: 1e-13, rtol: 1e-11 };

struct ExpectedCase {
    config: GruConfig,
    json: Value,
}

impl ExpectedCase {
    fn all() -> Vec<ExpectedCase> {
        let files = [include_str!("../data/pytorch.json"), include_str!("../data/equations.json")];
        let cases: Vec<_> = files.iter().flat_map(|text| ExpectedCase::parse(text)).collect();
        // Every variant once, each of the four once stacked in both directions, two more of
        // PyTorch's, eight with other activations, each of the four with lengths, five with resets,
        // six with dropout or zoneout, two in chunks, and three in reverse alone.
        assert_eq!(cases.len(), 12 + 4 + 2 + 8 + 4 + 5 + 6 + 2 + 3);
        cases
    }

    fn parse(text: &str) -> Vec<ExpectedCase> {
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
                    |array: &str| json["inputs"][array]["shape"][2].as_u64().unwrap() as usize;
                let (input, hidden) = (size("x"), size("h0"));
                let config = GruConfig::new(input, hidden)
                    .with_reset(reset)
                    .with_update(update)
                    .with_bias(bias)
                    .with_layers(json["layers"].as_u64().unwrap() as usize)
                    .with_direction(match json["direction"].as_str().unwrap() {
                        "forward" => Direction::Forward,
                        "reverse" => Direction::Reverse,
                        "both" => Direction::Both,
                        other => panic!("{other}"),
                    })
                    .with_activations(activation(&json["gate"]), activation(&json["candidate"]))
                    .with_reverse_activations(json["reverse"].as_array().map(|names| Activations {
                        gate: activation(&names[0]),
                        candidate: activation(&names[1]),
                    }))
                    .with_clip(json["clip"].as_f64().map(|clip| clip as f32))
                    .with_dropout(json["dropout"].as_f64().unwrap() as f32)
                    .with_zoneout(json["zoneout"].as_f64().unwrap() as f32);
                ExpectedCase { config, json }
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

    /// `[T, B]`
    fn resets(&self) -> Array2<bool> {
        let [steps, batch, _] = self.array("inputs", "x").shape()[..] else { panic!() };
        let mut resets = Array2::from_elem((steps, batch), false);
        for cut in self.json["resets"].as_array().unwrap() {
            resets[[0, 1].map(|i| cut[i].as_u64().unwrap() as usize)] = true;
        }
        resets
    }

    fn is_training(&self) -> bool {
        self.json["training"].as_bool().unwrap()
    }

    /// Returns the whole sequence, or chunks of it through which no gradient flows.
    fn chunks(&self) -> Vec<Range<usize>> {
        let steps = self.array("inputs", "x").shape()[0];
        let chunk = match self.json["chunk"].as_u64().unwrap() as usize {
            0 => steps,
            chunk => chunk,
        };
        (0..steps).step_by(chunk).map(|first| first..steps.min(first + chunk)).collect()
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
        grads: Option<&Gradients<F>>,
        tolerance: Tolerance,
    ) {
        let close = |name: &str, got: ArrayD<F>, expected: ArrayD<f64>| {
            let what = format!("{name} by {who}, {}", self.config);
            assert_close(&what, &got.mapv(Into::into), &expected, tolerance);
        };
        close("y", y.clone().into_dyn(), self.array("y", ""));
        close("h_n", h_n.clone().into_dyn(), self.array("h_n", ""));
        let Some(grads) = grads else { return };
        close("dx", grads.x.clone().into_dyn(), self.array("grads", "x"));
        close("dh0", grads.h0.clone().into_dyn(), self.array("grads", "h0"));
        let reset_state = grads.reset_state.clone().into_dyn();
        close("dreset_state", reset_state, self.array("grads", "reset_state"));
        for (name, grad) in grads.params.iter() {
            close(name, grad.to_owned(), self.array("grads", name));
        }
    }
}

fn activation(name: &Value) -> Activation {
    name.as_str().unwrap().parse().unwrap()
}

/// The results for one chunk of a case.
struct Ran<F> {
    y: Array3<F>,
    h_n: Array3<F>,
    grads: Option<Gradients<F>>,
}

/// Runs a case with `run`, chunk by chunk, time-major and batch-first, and compares the results
/// with the expected numbers. `run` gets a batch, dy and dh_n, and true for the first chunk, which
/// starts from h0; the others start where the previous one ended.
fn check_case<F: NdFloat + Into<f64>>(
    who: &str,
    case: &ExpectedCase,
    tolerance: Tolerance,
    mut run: impl FnMut(Batch<'_, F>, ArrayView3<'_, F>, Option<ArrayView3<'_, F>>, bool) -> Ran<F>,
) {
    let [x, h0, reset_state, dy, dh_n] =
        ["x", "h0", "reset_state", "dy", "dh_n"].map(|name| case.array3::<F>("inputs", name));
    let (lengths, resets) = (case.lengths(), case.resets());
    let steps = x.dim().0;
    for layout in [Layout::TimeMajor, Layout::BatchFirst] {
        let (mut ys, mut dxs, mut h_n) = (Vec::new(), Vec::new(), None);
        let mut grads: Option<Gradients<F>> = None;
        for Range { start, end } in case.chunks() {
            let [x, dy] =
                [&x, &dy].map(|array| in_layout(array.slice(s![start..end, .., ..]), layout));
            let resets = match layout {
                Layout::TimeMajor => resets.slice(s![start..end, ..]).to_owned(),
                Layout::BatchFirst => resets.slice(s![start..end, ..]).t().to_owned(),
            };
            let of = match layout {
                Layout::TimeMajor => Batch::new(x.view()),
                Layout::BatchFirst => Batch::batch_first(x.view()),
            };
            let mut batch = of
                .with_resets(resets.view())
                .with_reset_state(reset_state.view())
                .with_seed(case.json["seed"].as_u64().unwrap());
            if end - start == steps {
                batch = batch.with_lengths(&lengths);
            }
            if start == 0 {
                batch = batch.with_h0(h0.view());
            }
            let last = (end == steps).then_some(dh_n.view());
            let ran = run(batch, dy.view(), last, start == 0);
            ys.push(in_layout(ran.y.view(), layout));
            h_n = Some(ran.h_n);
            let Some(new) = ran.grads else { continue };
            dxs.push(in_layout(new.x.view(), layout));
            grads = Some(match grads.take() {
                None => new,
                Some(mut total) => {
                    let sums = total.params.as_mut_slice().iter_mut();
                    sums.zip(new.params.as_slice()).for_each(|(sum, &d)| *sum += d);
                    total
                }
            });
        }
        let join = |parts: &[Array3<F>]| {
            concatenate(Axis(0), &parts.iter().map(|part| part.view()).collect::<Vec<_>>()).unwrap()
        };
        if let Some(grads) = &mut grads {
            grads.x = join(&dxs);
        }
        let who = format!("{who}, {layout:?}");
        case.check(&who, [&join(&ys), &h_n.unwrap()], grads.as_ref(), tolerance);
    }
}

/// Converts `[T, B, ·]` to an array of `layout`, or back.
fn in_layout<F: NdFloat>(array: ArrayView3<'_, F>, layout: Layout) -> Array3<F> {
    match layout {
        Layout::TimeMajor => array.to_owned(),
        Layout::BatchFirst => array.permuted_axes([1, 0, 2]).as_standard_layout().to_owned(),
    }
}

fn check_reference<F: NdFloat + Into<f64>>(who: &str, tolerance: Tolerance) {
    for case in ExpectedCase::all() {
        let params = case.params::<F>();
        let mut state: Option<Array3<F>> = None;
        check_case(who, &case, tolerance, |batch, dy, dh_n, first| {
            let carried = state.take().filter(|_| !first);
            let batch = match &carried {
                Some(state) => batch.reborrow().with_h0(state.view()),
                None => batch.reborrow(),
            };
            let trace = match case.is_training() {
                true => reference::forward_train(&params, batch).unwrap(),
                false => reference::forward(&params, batch).unwrap(),
            };
            let grads = reference::backward(&params, batch.x, &trace, Some(dy), dh_n).unwrap();
            state = Some(trace.h_n());
            Ran { y: trace.y(), h_n: trace.h_n(), grads: Some(grads) }
        });
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
    for case in ExpectedCase::all() {
        let gru = Gru::with_params(case.params(), device).unwrap();
        let mut state: Option<State> = None;
        check_case(&device.to_string(), &case, TOLERANCE, |batch, dy, dh_n, first| {
            let carried = state.take().filter(|_| !first);
            if !case.is_training() {
                let Output { y, h_n, .. } = gru.forward(batch).unwrap();
                return Ran { y, h_n, grads: None };
            }
            let (output, tape) = match &carried {
                Some(state) => gru.forward_train_from(state, batch).unwrap(),
                None => gru.forward_train(batch).unwrap(),
            };
            if case.config.dropout == 0.0 && case.config.zoneout == 0.0 {
                let again = match &carried {
                    Some(state) => gru.forward_from(state, batch).unwrap(),
                    None => gru.forward(batch).unwrap(),
                };
                assert_eq!(again, output, "{}", case.config);
            }
            state = Some(tape.state().unwrap());
            let grads = gru.backward(tape, Some(dy), dh_n).unwrap();
            Ran { y: output.y, h_n: output.h_n, grads: Some(grads) }
        });
    }
}

#[test]
fn the_cpu_device_gives_the_expected_numbers() {
    check_device(&Device::cpu());
}

#[test]
fn the_adapter_gives_the_expected_numbers() {
    check_device(crate::common::adapter());
}
