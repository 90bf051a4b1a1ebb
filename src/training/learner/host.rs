//! Training on the CPU.

use ndarray::Axis;

use super::{Part, RawMetrics};
use crate::cpu::Asked;
use crate::error::Result;
use crate::gpu::transfer::Wait;
use crate::model::network::Network;
use crate::spec::linear::Linear;
use crate::spec::optimizer::{Clip, Constants, OptimizerState};
use crate::spec::params::Params;

/// What a learner on the CPU holds besides its network.
#[derive(Debug)]
pub(super) struct OnHost {
    /// Of the update under way.
    gradient: Params,
    loss: f64,
    moments: OptimizerState,
    reports: Vec<RawMetrics>,
}

impl OnHost {
    pub fn new(network: &Network, moments: OptimizerState) -> Result<Self> {
        let gradient = Params::zeros_of(network.params().layout().clone())?;
        Ok(Self { gradient, loss: 0.0, moments, reports: Vec::new() })
    }

    pub fn moments(&self) -> &OptimizerState {
        &self.moments
    }

    pub fn take_metrics(&mut self) -> Vec<RawMetrics> {
        std::mem::take(&mut self.reports)
    }

    /// Adds a batch's loss and gradient to those of the update.
    pub fn gather(&mut self, part: Part<'_>) -> Result<()> {
        let Part { network, loss, shape, batch, wanted, is_first } = part;
        if is_first {
            self.gradient.as_mut_slice().fill(0.0);
            self.loss = 0.0;
        }
        let (out, tape) = network.gru().forward_train(batch)?;
        let features = network.head().features(shape, &out.y, &out.h_n);
        let head = Linear::of(network.params());
        let mut doutputs = head.forward(features.view());
        let outputs = doutputs.as_slice_mut().expect("standard layout");
        self.loss += wanted.differentiate(&loss, outputs);
        let dfeatures = doutputs.dot(&head.weight);
        let (dy, dh_n) = network.head().scatter(shape, dfeatures);
        let (dy, dh_n) = (dy.as_ref().map(|dy| dy.view()), dh_n.as_ref().map(|dh_n| dh_n.view()));
        let (asked, wait) = (Asked::AllButX, Wait::Block);
        // On the CPU there is nothing to wait for.
        let grads = pollster::block_on(network.gru().run_backward(tape, dy, dh_n, asked, wait))?;
        // The GRU's parameters come first.
        let sum = self.gradient.as_mut_slice().iter_mut();
        sum.zip(grads.params.as_slice()).for_each(|(sum, &g)| *sum += g);
        let [dweight, dbias] = self.gradient.layout().head_ranges();
        let flat = self.gradient.as_mut_slice();
        let more = doutputs.t().dot(&features);
        flat[dweight].iter_mut().zip(&more).for_each(|(sum, &g)| *sum += g);
        let more = doutputs.sum_axis(Axis(0));
        flat[dbias].iter_mut().zip(&more).for_each(|(sum, &g)| *sum += g);
        Ok(())
    }

    /// Moves the parameters, unless something is not finite. Returns whether there is something to report.
    pub fn update(&mut self, network: &mut Network, clip: Clip, constants: &Constants) -> bool {
        let gradient = self.gradient.as_mut_slice();
        let squares = gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
        let magnitude = |at: usize| gradient[at].to_bits() & (u32::MAX >> 1);
        let largest = (0..gradient.len()).rev().max_by_key(|&at| magnitude(at)).unwrap_or(0);
        let (loss, norm) = (self.loss as f32, squares.sqrt() as f32);
        let (largest, place) = (gradient[largest].abs(), largest);
        clip.apply(gradient, norm);
        let OptimizerState { first, second, .. } = &mut self.moments;
        let stays_finite =
            || constants.keep_finite(network.params().as_slice(), gradient, [first, second]);
        let moved = loss.is_finite() && norm.is_finite() && stays_finite();
        self.reports.push(RawMetrics { loss, norm, largest, place, moved });
        if moved {
            let params = network.gru_mut().params_mut().as_mut_slice();
            constants.apply(params, gradient, [first, second]);
        }
        true
    }
}
