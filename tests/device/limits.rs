//! The smallest limits that a device must have. With `GRU_LIMITS` all tests run on such a device.

use crate::common::{assert_close, open_wgpu, random3, within};
use gru_wgpu::{Bias, Device, Direction, Gru, GruConfig, Init, Recurrence, Reset, RunOptions};

#[test]
fn the_needed_limits_are_enough() {
    let (adapter, device, queue) = open_wgpu(|_| Device::needed_limits());
    let device = Device::from_wgpu(&adapter, &device, &queue).unwrap();
    let x = random3([5, 3, 7], 2);
    for reset in [Reset::Before, Reset::After] {
        for &recurrence in Recurrence::ALL {
            let config = GruConfig::new(7, 17).with_reset(reset).with_bias(Bias::Two);
            let config = config.with_direction(Direction::Both);
            let [got, expected] = [&device, &Device::cpu()].map(|device| {
                let gru = Gru::new(config.clone(), Init::Uniform, 1, device).unwrap();
                let gru = gru.with_options(RunOptions::default().with_recurrence(recurrence));
                let (output, tape) = gru.forward_train(x.view()).unwrap();
                gru.backward(tape, None, Some(output.h_n.view())).unwrap().params
            });
            let case = format!("{reset:?}, {recurrence}");
            assert_close(&case, got.as_slice(), expected.as_slice(), within(1e-5));
        }
    }
}
