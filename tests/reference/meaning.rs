//! The gates do what the equations say, on the CPU and on an adapter, for every variant.

use crate::common::{assert_close, devices, random3, within};
use gru_wgpu::{Batch, Bias, Gru, GruConfig, Init, Params, Update, reference};
use ndarray::{Array3, s};

const H: usize = 5;

/// Drives a gate's pre-activation to ±1e4 by its bias.
fn drive(params: &mut Params, gate: usize, to: f32) {
    let mut bias = params.get_mut("bias_ih_l0").unwrap();
    bias.slice_each_axis_mut(|_| (gate * H..(gate + 1) * H).into()).fill((2.0 * to - 1.0) * 1e4);
}

/// Returns the target of z that overwrites the state completely (1) or keeps it (0).
fn z_for(config: &GruConfig, overwrite: bool) -> f32 {
    f32::from(u8::from(overwrite == (config.update == Update::Overwrites)))
}

const R: usize = 0;
const Z: usize = 1;

fn for_each_model(check: impl Fn(GruConfig, &dyn Fn(Params) -> Gru)) {
    for device in devices() {
        for config in GruConfig::all_variants(3, H).into_iter().filter(|c| c.bias != Bias::None) {
            check(config, &|params| Gru::with_params(params, &device).unwrap());
        }
    }
}

fn params(config: &GruConfig) -> Params {
    Params::init(config, Init::Uniform, 9).unwrap()
}

#[test]
fn a_closed_update_gate_keeps_the_state_and_its_gradient() {
    for_each_model(|config, make| {
        let mut params = params(&config);
        drive(&mut params, Z, z_for(&config, false));
        let gru = make(params);
        let x = random3([1000, 2, 3], 1);
        let h0 = random3([1, 2, H], 2);
        let (output, tape) = gru.forward_train(Batch::new(x.view()).with_h0(h0.view())).unwrap();
        // WGSL lets 1 / 1 be off by 2.5 units in the last place, a thousand times over.
        let close = |got: &Array3<f32>, expected: &Array3<f32>| {
            got.iter().zip(expected).all(|(g, e)| (g - e).abs() <= 2e-4 * e.abs())
        };
        assert!(close(&output.h_n, &h0), "{config}: h after 1000 steps is {}", output.h_n);
        let dh_n = random3([1, 2, H], 3);
        let grads = gru.backward(tape, None, Some(dh_n.view())).unwrap();
        assert!(close(&grads.h0, &dh_n), "{config}: ∂h_T/∂h_0 is the identity: {}", grads.h0);
        assert!(grads.x.iter().all(|&v| v.abs() < 1e-5), "{config}: the input is not looked at");
    });
}

#[test]
fn an_open_update_gate_replaces_the_state_by_the_candidate() {
    for_each_model(|config, make| {
        let mut params = params(&config);
        drive(&mut params, Z, z_for(&config, true));
        let [x, h0] = [random3([1, 2, 3], 1), random3([1, 2, H], 2)];
        let trace = reference::forward(&params, Batch::new(x.view()).with_h0(h0.view())).unwrap();
        let candidate = trace.cells[0].gates.slice(s![.., .., 2 * H..3 * H]).to_owned();
        let output = make(params).forward(Batch::new(x.view()).with_h0(h0.view())).unwrap();
        assert_close(&config.to_string(), &output.y, &candidate, within(1e-6));
    });
}

#[test]
fn a_closed_reset_gate_hides_the_state_from_the_candidate() {
    for_each_model(|config, make| {
        // With the update gate open the state is the candidate, so nothing of the past is left.
        let mut params = params(&config);
        drive(&mut params, R, 0.0);
        drive(&mut params, Z, z_for(&config, true));
        let gru = make(params);
        let x = random3([1, 2, 3], 1);
        let run =
            |h0: &Array3<f32>| gru.forward_train(Batch::new(x.view()).with_h0(h0.view())).unwrap();
        let (one, tape) = run(&random3([1, 2, H], 2));
        let (other, _) = run(&random3([1, 2, H], 3));
        // Exact, except for the 2.5 units in the last place that WGSL allows for a division.
        assert!((&one.y - &other.y).iter().all(|v| v.abs() < 1e-5), "{config}");
        let grads = gru.backward(tape, Some(one.y.view()), None).unwrap();
        assert!(grads.h0.iter().all(|&v| v.abs() < 1e-5), "{config}: dh0 {}", grads.h0);
    });
}

#[test]
fn a_missing_h0_counts_as_zeros() {
    for_each_model(|config, make| {
        let gru = make(params(&config));
        let x = random3([3, 2, 3], 1);
        // A state left over from an earlier run would show.
        gru.forward(Batch::new(x.view()).with_h0(random3([1, 2, H], 2).view())).unwrap();
        let none = gru.forward(x.view()).unwrap();
        let zeros =
            gru.forward(Batch::new(x.view()).with_h0(Array3::zeros((1, 2, H)).view())).unwrap();
        assert_eq!(none, zeros, "{config}");
        if config.bias == Bias::Two {
            let mut params = params(&config);
            params.get_mut("bias_hh_l0").unwrap().fill(0.0);
            assert_ne!(make(params).forward(x.view()).unwrap(), none, "{config}");
        }
    });
}
