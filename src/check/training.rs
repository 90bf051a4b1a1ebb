//! Compares losses and updates with the same computation in f64.

use ndarray::{Array2, Array3, ArrayD, Axis, IxDyn};

use super::{Findings, random};
use crate::error::Result;
use crate::model::device::Device;
use crate::reference;
use crate::spec::batch::Batch;
use crate::spec::config::{Direction, GruConfig, Layout, Shape};
use crate::spec::head::Head;
use crate::spec::linear::Linear;
use crate::spec::loss::{Loss, PreparedTargets, Targets};
use crate::spec::optimizer::{Adam, Clip, Optimizer};
use crate::spec::params::{Init, ParamLayout, Params};
use crate::training::learner::{Learner, LearnerConfig};

const STEPS: usize = 5;
const LENGTHS: [usize; 9] = [5, 2, 0, 5, 1, 3, 5, 4, 5];
const UPDATES: usize = 3;
const IGNORED: i32 = -1;

/// A network, a batch, and the settings of its training.
struct TrainingCase {
    params: Params,
    shape: Shape,
    head: Head,
    training: LearnerConfig,
    x: Array3<f32>,
    classes: ArrayD<i32>,
    values: ArrayD<f32>,
}

impl TrainingCase {
    fn new(
        config: &GruConfig,
        head: Head,
        training: LearnerConfig,
        layout: Layout,
    ) -> Result<Self> {
        let shape = config.shape(STEPS, LENGTHS.len())?.with_layout(layout);
        let params = Params::init_of(ParamLayout::with_head(config, head)?, Init::Uniform, 5)?;
        let array = |axes: &[usize], seed| {
            let data = random(axes.iter().product(), 1.0, seed);
            ArrayD::from_shape_vec(IxDyn(axes), data)
                .expect("the length is the product of the shape")
        };
        let mut axes = head.row_axes(shape);
        let of = |v: f32| ((v + 1.0) * 0.5 * (head.outputs + 1) as f32) as i32 - 1;
        let classes = array(&axes, 7).mapv(|v| of(v).clamp(IGNORED, head.outputs as i32 - 1));
        axes.push(head.outputs);
        let x = array(&shape.x(), 6).into_dimensionality().expect("three axes");
        Ok(Self { params, shape, head, training, x, classes, values: array(&axes, 8) })
    }

    fn targets(&self) -> Targets<'_> {
        match self.training.loss {
            Loss::CrossEntropy { .. } => Targets::Classes(self.classes.view()),
            Loss::MeanSquared | Loss::Huber { .. } => Targets::Values(self.values.view()),
        }
    }

    /// Returns the loss and the gradient norm of each update, and the parameters after all updates.
    fn expected(&self) -> Result<(Vec<[f64; 2]>, Params<f64>)> {
        let mut params: Params<f64> = self.params.cast();
        let mut moments = [0, 1].map(|_| vec![0.0; params.as_slice().len()]);
        let x = self.x.mapv(f64::from);
        let targets = self.targets();
        let Self { head, shape, training, .. } = self;
        let prepared =
            PreparedTargets::new(head, &training.loss, *shape, Some(&LENGTHS), &targets, 1.0)?;
        let mut metrics = Vec::new();
        for step in 0..UPDATES as u64 {
            let batch = Batch::new(x.view()).with_layout(shape.layout).with_lengths(&LENGTHS);
            let trace = reference::forward(&params, batch)?;
            let features = head.features(*shape, &trace.y(), &trace.h_n());
            let linear = Linear::new(&params);
            let mut doutputs: Array2<f64> = linear.forward(features.view());
            let outputs = doutputs.as_slice_mut().expect("standard layout");
            let loss = prepared.differentiate(&training.loss, outputs);
            let (dy, dh_n) = head.scatter(*shape, doutputs.dot(&linear.weight));
            let (dy, dh_n) = (dy.as_ref().map(|d| d.view()), dh_n.as_ref().map(|d| d.view()));
            let grads = reference::backward(&params, x.view(), &trace, dy, dh_n)?;
            let mut gradient = vec![0.0; params.as_slice().len()];
            gradient[..grads.params.as_slice().len()].copy_from_slice(grads.params.as_slice());
            let [weight, bias] = params.layout().head_ranges();
            let dweight = doutputs.t().dot(&features);
            gradient[weight].iter_mut().zip(&dweight).for_each(|(to, &from)| *to = from);
            let dbias = doutputs.sum_axis(Axis(0));
            gradient[bias].iter_mut().zip(&dbias).for_each(|(to, &from)| *to = from);
            let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
            metrics.push([loss, norm]);
            training.clip.apply(&mut gradient, norm);
            let constants = training.optimizer.constants(training.rate(step), step);
            let [first, second] = &mut moments;
            constants.apply(params.as_mut_slice(), &gradient, [first, second]);
        }
        Ok((metrics, params))
    }

    async fn check(&self, device: &Device, findings: &mut Findings<'_>) -> Result<()> {
        let (expected, params) = self.expected()?;
        let mut learner = Learner::new_async(self.params.clone(), self.training, device).await?;
        for _ in 0..UPDATES {
            let batch = Batch::new(self.x.view()).with_layout(self.shape.layout);
            learner.step_async(batch.with_lengths(&LENGTHS), self.targets()).await?;
        }
        let metrics = learner.metrics_async().await?;
        let state = learner.state_async().await?;
        let sizes = format!("C {}, {}", self.head.outputs, self.shape);
        let got: Vec<_> = metrics.iter().flat_map(|step| [step.loss, step.norm]).collect();
        findings.compare_slices("losses and gradient norms", &sizes, &got, expected.as_flattened());
        let name = match self.training.optimizer {
            Optimizer::Sgd { .. } => "parameters after SGD updates",
            Optimizer::Adam(_) => "parameters after Adam updates",
            Optimizer::AdamW(_) => "parameters after AdamW updates",
        };
        findings.compare_slices(name, &sizes, state.params.as_slice(), params.as_slice());
        Ok(())
    }
}

/// The number of cases.
pub(super) const CASES: usize = 5;

/// Checks all cases.
pub(super) async fn check(device: &Device, findings: &mut Findings<'_>) -> Result<()> {
    let one_way = GruConfig::pytorch(3, 5);
    let both = GruConfig::new(3, 5).with_layers(2).with_direction(Direction::Both);
    let sgd = Optimizer::Sgd { momentum: 0.9, weight_decay: 0.1 };
    // Adam divides by the size of the gradient. With a small ε, the update of an element near 0
    // would consist of rounding errors.
    let adam = Adam { epsilon: 0.01, weight_decay: 0.1, ..Adam::default() };
    let of = |loss, optimizer: Optimizer, rate| LearnerConfig::new(loss, optimizer, rate);
    let entropy = Loss::CrossEntropy { ignore: Some(IGNORED) };
    let huber = Loss::Huber { delta: 0.4 };
    let (time_major, batch_first) = (Layout::TimeMajor, Layout::BatchFirst);
    let cases: [_; CASES] = [
        (&one_way, Head::every_step(2), of(Loss::MeanSquared, sgd, 0.1), time_major),
        (&both, Head::every_step(7), of(huber, sgd, 0.1).with_clip(Clip::Value(0.02)), batch_first),
        (&both, Head::last(70), of(entropy, sgd, 0.5).with_clip(Clip::Norm(0.1)), time_major),
        (&one_way, Head::last(3), of(entropy, Optimizer::Adam(adam), 0.01), batch_first),
        (&both, Head::every_step(17), of(entropy, Optimizer::AdamW(adam), 0.01), time_major),
    ];
    for (config, head, training, layout) in cases {
        TrainingCase::new(config, head, training, layout)?.check(device, findings).await?;
        findings.case_done();
    }
    Ok(())
}
