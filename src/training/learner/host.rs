//! [`HostBackend`]: training on the CPU.

use super::backend::{LearnerBackend, PreparedBatch, RawMetrics};
use crate::cpu::GradientsWanted;
use crate::error::Result;
use crate::gpu::wait::Wait;
use crate::model::network::Network;
use crate::model::state::State;
use crate::spec::linear::Linear;
use crate::spec::optimizer::{Clip, OptimizerState, UpdateConstants};
use crate::spec::params::Params;

/// The gradients and moments of a learner on the CPU.
#[derive(Debug)]
pub(super) struct HostBackend {
    /// Accumulated gradient of the current update.
    gradient: Params,
    loss: f64,
    moments: OptimizerState,
    metrics: Vec<RawMetrics>,
}

impl HostBackend {
    pub fn new(network: &Network, moments: OptimizerState) -> Result<Self> {
        let gradient = Params::zeros_of(network.params().layout().clone())?;
        Ok(Self { gradient, loss: 0.0, moments, metrics: Vec::new() })
    }
}

impl LearnerBackend for HostBackend {
    async fn accumulate(
        &mut self,
        network: &Network,
        batch: PreparedBatch<'_>,
        wait: Wait,
    ) -> Result<Option<State>> {
        let PreparedBatch { loss, shape, state, keeps_last, batch, targets, is_first } = batch;
        if is_first {
            self.gradient.as_mut_slice().fill(0.0);
            self.loss = 0.0;
        }
        let (out, tape) = network.gru().run_forward_train(state, batch, None, wait).await?;
        let features = network.head().features(shape, &out.y, &out.h_n);
        let head = Linear::new(network.params());
        let mut doutputs = head.forward(features.view());
        let outputs = doutputs.as_slice_mut().expect("standard layout");
        self.loss += targets.differentiate(&loss, outputs);
        let dfeatures = doutputs.dot(&head.weight);
        let (dy, dh_n) = network.head().scatter(shape, dfeatures);
        let (dy, dh_n) = (dy.as_ref().map(|dy| dy.view()), dh_n.as_ref().map(|dh_n| dh_n.view()));
        let grads =
            network.gru().run_backward(tape, dy, dh_n, GradientsWanted::AllButX, wait).await?;
        // The GRU's parameters come first in the flat buffer, then those of the head.
        let sum = self.gradient.as_mut_slice().iter_mut();
        sum.zip(grads.params.as_slice()).for_each(|(sum, &g)| *sum += g);
        let [dweight, dbias] = self.gradient.layout().head_ranges();
        let flat = self.gradient.as_mut_slice();
        let of_batch = doutputs.t().dot(&features);
        flat[dweight].iter_mut().zip(&of_batch).for_each(|(sum, &g)| *sum += g);
        // A sum over all rows of the batch, in f64: it may be long.
        let mut of_batch = vec![0.0; dbias.len()];
        for row in doutputs.rows() {
            of_batch.iter_mut().zip(row).for_each(|(sum, &g)| *sum += f64::from(g));
        }
        flat[dbias].iter_mut().zip(&of_batch).for_each(|(sum, &g)| *sum += g as f32);
        Ok(keeps_last.then(|| State::from_array(out.h_n)))
    }

    async fn gradient(&mut self, _: Wait) -> Result<(Vec<f32>, f32)> {
        Ok((self.gradient.as_slice().to_vec(), self.loss as f32))
    }

    async fn loss(&mut self, _: Wait) -> Result<f64> {
        Ok(self.loss)
    }

    async fn set_loss(&mut self, loss: f64, _: Wait) -> Result<()> {
        self.loss = loss;
        Ok(())
    }

    async fn set_gradient(&mut self, flat: &[f32], loss: f32, _: Wait) -> Result<()> {
        self.gradient.as_mut_slice().copy_from_slice(flat);
        self.loss = loss.into();
        Ok(())
    }

    async fn apply(
        &mut self,
        network: &mut Network,
        clip: Clip,
        constants: &UpdateConstants,
        _: Wait,
    ) -> Result<bool> {
        let gradient = self.gradient.as_mut_slice();
        let squares = gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
        let magnitude = |at: usize| gradient[at].to_bits() & (u32::MAX >> 1);
        let index = (0..gradient.len()).rev().max_by_key(|&at| magnitude(at)).unwrap_or(0);
        let (loss, norm) = (self.loss as f32, squares.sqrt() as f32);
        let largest = gradient[index].abs();
        clip.apply(gradient, norm);
        let OptimizerState { first, second, .. } = &mut self.moments;
        let stays_finite =
            || constants.keep_finite(network.params().as_slice(), gradient, [first, second]);
        let applied = loss.is_finite() && norm.is_finite() && stays_finite();
        self.metrics.push(RawMetrics { loss, norm, largest, index, applied });
        if applied {
            let params = network.gru_mut().params_mut().as_mut_slice();
            constants.apply(params, gradient, [first, second]);
        }
        Ok(true)
    }

    async fn take_metrics(&mut self, _: Wait) -> Result<Vec<RawMetrics>> {
        Ok(std::mem::take(&mut self.metrics))
    }

    async fn params(&mut self, network: &Network, _: Wait) -> Result<Params> {
        Ok(network.params().clone())
    }

    async fn state(&mut self, network: &Network, _: Wait) -> Result<(Params, [Vec<f32>; 2])> {
        let OptimizerState { first, second, .. } = self.moments.clone();
        Ok((network.params().clone(), [first, second]))
    }
}
