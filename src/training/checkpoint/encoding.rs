//! Encodes the settings and counters of a checkpoint as `key=value` text. (Tensors and notes are
//! stored elsewhere in the file.)
//!
//! Floats are written with the fewest digits that restore the same bits, integers with all digits.

use std::fmt::Display;

use super::Counters;
use crate::error::{Error, Result};
use crate::fingerprint::DataFingerprint;
use crate::formats::metadata::{KeyValues, word};
use crate::model::network::Evaluation;
use crate::spec::loss::Loss;
use crate::spec::optimizer::{Adam, Clip, Optimizer, Schedule};
use crate::training::config::Order;
use crate::training::config::TrainerConfig;
use crate::training::learner::LearnerConfig;
use crate::training::progress::{DataFingerprints, Progress};

/// The kind of a loss, optimizer, schedule or clip. The kind's own numbers follow it in the text.
#[derive(Clone, Copy, PartialEq)]
enum SettingKind {
    MeanSquared,
    Huber,
    CrossEntropy,
    Sgd,
    Adam,
    AdamW,
    Constant,
    Cosine,
    Steps,
    None,
    Norm,
    Value,
}

const LOSSES: &[(SettingKind, &str)] = &[
    (SettingKind::MeanSquared, "mean-squared"),
    (SettingKind::Huber, "huber"),
    (SettingKind::CrossEntropy, "cross-entropy"),
];
const OPTIMIZERS: &[(SettingKind, &str)] =
    &[(SettingKind::Sgd, "sgd"), (SettingKind::Adam, "adam"), (SettingKind::AdamW, "adamw")];
const SCHEDULES: &[(SettingKind, &str)] = &[
    (SettingKind::Constant, "constant"),
    (SettingKind::Cosine, "cosine"),
    (SettingKind::Steps, "steps"),
];
const CLIPS: &[(SettingKind, &str)] =
    &[(SettingKind::None, "none"), (SettingKind::Norm, "norm"), (SettingKind::Value, "value")];

const ORDERS: &[(Order, &str)] = &[(Order::Bucketed, "bucketed"), (Order::Shuffled, "shuffled")];

/// Encodes a configuration as `loss=huber delta=1e0 optimizer=adam beta1=9e-1 …`.
pub(super) fn write_learner(learner_config: &LearnerConfig) -> String {
    let LearnerConfig { loss, optimizer, learning_rate, schedule, clip, accumulation } =
        learner_config;
    let loss = match loss {
        Loss::MeanSquared => word(LOSSES, SettingKind::MeanSquared).to_owned(),
        Loss::Huber { delta } => format!("{} delta={delta:e}", word(LOSSES, SettingKind::Huber)),
        Loss::CrossEntropy { ignore } => {
            format!("{} ignore={}", word(LOSSES, SettingKind::CrossEntropy), write_option(ignore))
        }
    };
    let adam = |kind, Adam { beta1, beta2, epsilon, weight_decay }: &Adam| {
        let kind = word(OPTIMIZERS, kind);
        format!("{kind} beta1={beta1:e} beta2={beta2:e} epsilon={epsilon:e} decay={weight_decay:e}")
    };
    let optimizer = match optimizer {
        Optimizer::Sgd { momentum, weight_decay } => {
            let kind = word(OPTIMIZERS, SettingKind::Sgd);
            format!("{kind} momentum={momentum:e} decay={weight_decay:e}")
        }
        Optimizer::Adam(constants) => adam(SettingKind::Adam, constants),
        Optimizer::AdamW(constants) => adam(SettingKind::AdamW, constants),
    };
    let schedule = match schedule {
        Schedule::Constant => word(SCHEDULES, SettingKind::Constant).to_owned(),
        Schedule::Cosine { warmup, updates, last } => {
            let kind = word(SCHEDULES, SettingKind::Cosine);
            format!("{kind} warmup={warmup} updates={updates} last={last:e}")
        }
        Schedule::Steps { every, factor } => {
            format!("{} every={every} factor={factor:e}", word(SCHEDULES, SettingKind::Steps))
        }
    };
    let clip = match clip {
        Clip::None => word(CLIPS, SettingKind::None).to_owned(),
        Clip::Norm(bound) => format!("{} bound={bound:e}", word(CLIPS, SettingKind::Norm)),
        Clip::Value(bound) => format!("{} bound={bound:e}", word(CLIPS, SettingKind::Value)),
    };
    format!(
        "loss={loss} optimizer={optimizer} rate={learning_rate:e} schedule={schedule} clip={clip} \
         accumulation={accumulation}"
    )
}

/// Decodes the text of [`write_learner`].
pub(super) fn read_learner(text: &str) -> Result<LearnerConfig> {
    let mut pairs = KeyValues::parse("learner", text)?;
    let loss = match pairs.named("loss", LOSSES)? {
        SettingKind::Huber => Loss::Huber { delta: pairs.number("delta")? },
        SettingKind::CrossEntropy => Loss::CrossEntropy { ignore: pairs.option("ignore")? },
        _ => Loss::MeanSquared,
    };
    let optimizer = match pairs.named("optimizer", OPTIMIZERS)? {
        SettingKind::Adam => Optimizer::Adam(read_adam(&mut pairs)?),
        SettingKind::AdamW => Optimizer::AdamW(read_adam(&mut pairs)?),
        _ => Optimizer::Sgd {
            momentum: pairs.number("momentum")?,
            weight_decay: pairs.number("decay")?,
        },
    };
    let schedule = match pairs.named("schedule", SCHEDULES)? {
        SettingKind::Cosine => Schedule::Cosine {
            warmup: pairs.number("warmup")?,
            updates: pairs.number("updates")?,
            last: pairs.number("last")?,
        },
        SettingKind::Steps => {
            Schedule::Steps { every: pairs.number("every")?, factor: pairs.number("factor")? }
        }
        _ => Schedule::Constant,
    };
    let clip = match pairs.named("clip", CLIPS)? {
        SettingKind::Norm => Clip::Norm(pairs.number("bound")?),
        SettingKind::Value => Clip::Value(pairs.number("bound")?),
        _ => Clip::None,
    };
    let learner_config = LearnerConfig::new(loss, optimizer, pairs.number("rate")?)
        .with_schedule(schedule)
        .with_clip(clip)
        .with_accumulation(pairs.number("accumulation")?);
    pairs.end()?;
    learner_config.validate()?;
    Ok(learner_config)
}

fn read_adam(pairs: &mut KeyValues<'_>) -> Result<Adam> {
    Ok(Adam {
        beta1: pairs.number("beta1")?,
        beta2: pairs.number("beta2")?,
        epsilon: pairs.number("epsilon")?,
        weight_decay: pairs.number("decay")?,
    })
}

/// Encodes a configuration as `epochs=20 batch=16 seed=1 patience=none order=bucketed`.
pub(super) fn write_trainer(trainer_config: &TrainerConfig) -> String {
    let TrainerConfig { epochs, batch, seed, patience, order } = trainer_config;
    let (patience, order) = (write_option(patience), word(ORDERS, *order));
    format!("epochs={epochs} batch={batch} seed={seed} patience={patience} order={order}")
}

/// Decodes the text of [`write_trainer`].
pub(super) fn read_trainer(text: &str) -> Result<TrainerConfig> {
    let mut pairs = KeyValues::parse("trainer", text)?;
    let trainer_config = TrainerConfig::new(pairs.number("epochs")?, pairs.number("batch")?)
        .with_seed(pairs.number("seed")?)
        .with_patience(pairs.option::<usize>("patience")?)
        .with_order(pairs.named("order", ORDERS)?);
    pairs.end()?;
    trainer_config.validate()?;
    Ok(trainer_config)
}

/// Encodes counters as `steps=12 epoch=0 batch=12 examples=48 loss=7.2e1 updates=12 stale=0`. If
/// there is a best network, ` best=3 counted=100 mean=5e-1 correct=90` follows.
pub(super) fn write_counters(counters: &Counters) -> String {
    let Counters { steps, progress, best } = counters;
    let Progress { epoch, batch, examples, loss: (loss, updates), stale } = progress;
    let best = best.map_or_else(String::new, |(epoch, validation)| {
        let Evaluation { counted, loss, correct } = validation;
        format!(" best={epoch} counted={counted} mean={loss:e} correct={}", write_option(&correct))
    });
    format!(
        "steps={steps} epoch={epoch} batch={batch} examples={examples} loss={loss:e} updates={updates} \
         stale={stale}{best}"
    )
}

/// Decodes the text of [`write_counters`].
pub(super) fn read_counters(text: &str) -> Result<Counters> {
    let mut pairs = KeyValues::parse("progress", text)?;
    let steps = pairs.number("steps")?;
    let progress = Progress {
        epoch: pairs.number("epoch")?,
        batch: pairs.number("batch")?,
        examples: pairs.number("examples")?,
        loss: (pairs.number("loss")?, pairs.number("updates")?),
        stale: pairs.number("stale")?,
    };
    let best = if pairs.has("best") {
        let (counted, loss) = (pairs.number("counted")?, pairs.number("mean")?);
        let validation = Evaluation { counted, loss, correct: pairs.option("correct")? };
        Some((pairs.number("best")?, validation))
    } else {
        None
    };
    pairs.end()?;
    let counters = Counters { steps, progress, best };
    if counters.are_possible() {
        return Ok(counters);
    }
    Err(Error::format("its metadata progress has counters that no run can reach".to_owned()))
}

/// Encodes fingerprints as `train=150 hash=123 valid=50 valid_hash=456`.
pub(super) fn write_data(data: &DataFingerprints) -> String {
    let DataFingerprints { train, valid } = data;
    format!(
        "train={} hash={} valid={} valid_hash={}",
        train.count, train.hash, valid.count, valid.hash
    )
}

/// Decodes the text of [`write_data`].
pub(super) fn read_data(text: &str) -> Result<DataFingerprints> {
    let mut pairs = KeyValues::parse("data", text)?;
    let data = DataFingerprints {
        train: DataFingerprint { count: pairs.number("train")?, hash: pairs.number("hash")? },
        valid: DataFingerprint { count: pairs.number("valid")?, hash: pairs.number("valid_hash")? },
    };
    pairs.end()?;
    Ok(data)
}

fn write_option(value: &Option<impl Display>) -> String {
    value.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Includes the largest and the smallest floats, and floats that need all of their digits.
    #[test]
    fn values_round_trip_bit_for_bit() {
        let odd = 0.1 + 0.2;
        let adam =
            Adam { beta1: odd, beta2: 1.0 - f64::EPSILON, epsilon: 5e-324, weight_decay: 0.0 };
        let losses = [
            Loss::MeanSquared,
            Loss::Huber { delta: 0.1 },
            Loss::CrossEntropy { ignore: None },
            Loss::CrossEntropy { ignore: Some(i32::MIN) },
        ];
        let optimizers = [
            Optimizer::Sgd { momentum: odd, weight_decay: f64::MAX },
            Optimizer::Adam(adam),
            Optimizer::AdamW(adam),
        ];
        let schedules = [
            Schedule::Constant,
            Schedule::Cosine { warmup: u64::MAX - 1, updates: u64::MAX, last: odd },
            Schedule::Steps { every: u64::MAX, factor: odd },
        ];
        let clips = [Clip::None, Clip::Norm(f32::MIN_POSITIVE), Clip::Value(0.3)];
        for loss in losses {
            for optimizer in optimizers {
                for schedule in schedules {
                    for clip in clips {
                        let learner_config = LearnerConfig::new(loss, optimizer, odd * 1e-300)
                            .with_schedule(schedule)
                            .with_clip(clip)
                            .with_accumulation(usize::MAX);
                        let text = write_learner(&learner_config);
                        assert_eq!(read_learner(&text).unwrap(), learner_config, "{text}");
                    }
                }
            }
        }
        for patience in [None, Some(usize::MAX)] {
            for order in [Order::Bucketed, Order::Shuffled] {
                let trainer_config = TrainerConfig::new(usize::MAX, 1)
                    .with_seed(u64::MAX)
                    .with_patience(patience)
                    .with_order(order);
                let text = write_trainer(&trainer_config);
                assert_eq!(read_trainer(&text).unwrap(), trainer_config, "{text}");
            }
        }
        let [train, valid] = [u64::MAX, 0].map(|hash| DataFingerprint { count: usize::MAX, hash });
        let data = DataFingerprints { train, valid };
        assert_eq!(read_data(&write_data(&data)).unwrap(), data);
        let progress = Progress { epoch: 7, batch: 9, examples: 17, loss: (odd, 9), stale: 7 };
        for correct in [None, Some(3)] {
            let validation = Evaluation { counted: 3, loss: odd, correct };
            for best in [None, Some((6, validation))] {
                let counters = Counters { steps: (1 << 53) + 1, progress, best };
                assert_eq!(read_counters(&write_counters(&counters)).unwrap(), counters);
            }
        }
    }

    #[test]
    fn values_that_no_run_writes_are_refused() {
        let text = write_learner(&LearnerConfig::new(Loss::MeanSquared, Optimizer::adam(), 0.1));
        for (from, to, expected) in [
            ("rate=1e-1", "rate=NaN", "learning rate is NaN"),
            ("rate=1e-1", "", "its metadata learner lacks `rate`"),
            ("beta1=9e-1", "beta1=x", "has `x` for `beta1`"),
            ("loss=mean-squared", "loss=mean-squared delta=1", "has `delta`, which is unknown"),
            ("clip=none", "clip=norm", "lacks `bound`"),
            ("accumulation=1", "accumulation=0", "is 0; expected at least 1"),
        ] {
            assert!(text.contains(from), "{text}");
            let error = read_learner(&text.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        for text in [
            "steps=18446744073709551615 epoch=0 batch=0 examples=0 loss=0 updates=0 stale=0",
            "steps=1 epoch=0 batch=2 examples=0 loss=0 updates=2 stale=0",
            "steps=1 epoch=1 batch=0 examples=0 loss=0 updates=0 stale=2",
            "steps=1 epoch=1 batch=0 examples=0 loss=0 updates=0 stale=0 best=1 counted=1 mean=0 correct=none",
            "steps=1 epoch=1 batch=0 examples=0 loss=0 updates=0 stale=0 best=0 counted=1 mean=0 correct=2",
        ] {
            let error = read_counters(text).unwrap_err().to_string();
            assert!(error.contains("that no run can reach"), "{text}: {error}");
        }
        assert!(read_trainer("epochs=0 batch=1 seed=1 patience=none order=bucketed").is_err());
    }
}
