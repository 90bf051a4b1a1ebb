//! Configurations as JSON: every variant round trips, with the same words as in file metadata, and
//! unknown words are refused.

use std::fmt::Debug;

use gru_wgpu::{
    Activation, Activations, Adam, Bias, Clip, DeviceKind, Direction, Error, GruConfig, Head, Init,
    Layout, LearnerConfig, Loss, Optimizer, Order, Readout, Recurrence, Reset, RunOptions,
    Schedule, TrainerConfig, Update,
};
use serde_json::{Value, json};

/// Returns the value's JSON, which must read back as the value.
fn there_and_back<T>(value: &T) -> Value
where
    T: Debug + PartialEq + serde::Serialize + serde::de::DeserializeOwned,
{
    let text = serde_json::to_string(value).unwrap();
    assert_eq!(&serde_json::from_str::<T>(&text).unwrap(), value, "{text}");
    serde_json::from_str(&text).unwrap()
}

fn check<T>(cases: &[(T, Value)])
where
    T: Debug + PartialEq + serde::Serialize + serde::de::DeserializeOwned,
{
    for (value, expected) in cases {
        assert_eq!(&there_and_back(value), expected, "{value:?}");
    }
    for unknown in [json!("other"), json!(1), json!({ "other": {} }), json!("Other"), json!(null)] {
        let read = serde_json::from_value::<T>(unknown.clone());
        assert!(read.is_err(), "{unknown} is {read:?}");
    }
}

#[test]
fn words() {
    check(&[(Reset::Before, json!("before")), (Reset::After, json!("after"))]);
    check(&[(Update::Overwrites, json!("overwrites")), (Update::Keeps, json!("keeps"))]);
    check(&[(Bias::None, json!("none")), (Bias::One, json!("one")), (Bias::Two, json!("two"))]);
    check(&[
        (Direction::Forward, json!("forward")),
        (Direction::Reverse, json!("reverse")),
        (Direction::Both, json!("both")),
    ]);
    check(&[(Layout::TimeMajor, json!("time-major")), (Layout::BatchFirst, json!("batch-first"))]);
    let activations = [
        "sigmoid",
        "tanh",
        "relu",
        "hard-sigmoid(0.2,0.5)",
        "identity",
        "scaled-tanh(1.7159,0.6666667)",
        "leaky-relu(0.01)",
        "thresholded-relu(1)",
        "elu(1)",
        "softsign",
        "softplus",
    ];
    check(&std::iter::zip(Activation::ALL, activations.map(Value::from)).collect::<Vec<_>>());
    check(&[
        (Recurrence::Auto, json!("auto")),
        (Recurrence::Step, json!("step")),
        (Recurrence::Sequence, json!("sequence")),
        (Recurrence::Persistent, json!("persistent")),
    ]);
    for &recurrence in [Recurrence::Auto].iter().chain(Recurrence::ALL) {
        assert_eq!(there_and_back(&recurrence), json!(recurrence.to_string()));
    }
    check(&[
        (DeviceKind::Auto, json!("auto")),
        (DeviceKind::Cpu, json!("cpu")),
        (DeviceKind::Gpu, json!("gpu")),
        (DeviceKind::GpuAt(1), json!("gpu:1")),
        (DeviceKind::Software, json!("software")),
    ]);
    check(&[(Readout::EveryStep, json!("every-step")), (Readout::LastState, json!("last"))]);
    check(&[(Init::Uniform, json!("uniform")), (Init::Orthogonal, json!("orthogonal"))]);
}

#[test]
fn words_with_numbers() {
    check(&[
        (Loss::MeanSquared, json!("mean-squared")),
        (Loss::Huber { delta: 0.5 }, json!({ "huber": { "delta": 0.5 } })),
        (Loss::cross_entropy(), json!({ "cross-entropy": { "ignore": -100 } })),
        (Loss::CrossEntropy { ignore: None }, json!({ "cross-entropy": { "ignore": null } })),
    ]);
    let adam = json!({ "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.25 });
    let constants = Adam { weight_decay: 0.25, ..Adam::default() };
    check(&[
        (
            Optimizer::Sgd { momentum: 0.5, weight_decay: 0.0 },
            json!({ "sgd": { "momentum": 0.5, "weight_decay": 0.0 } }),
        ),
        (Optimizer::Adam(constants), json!({ "adam": adam })),
        (Optimizer::AdamW(constants), json!({ "adamw": adam })),
    ]);
    check(&[
        (Clip::None, json!("none")),
        (Clip::Norm(0.5), json!({ "norm": 0.5 })),
        (Clip::Value(2.0), json!({ "value": 2.0 })),
    ]);
    check(&[
        (Schedule::Constant, json!("constant")),
        (
            Schedule::Cosine { warmup: 2, updates: 20, last: 0.125 },
            json!({ "cosine": { "warmup": 2, "updates": 20, "last": 0.125 } }),
        ),
        (
            Schedule::Steps { every: 3, factor: 0.5 },
            json!({ "steps": { "every": 3, "factor": 0.5 } }),
        ),
    ]);
}

#[test]
fn structures() {
    for config in GruConfig::all_variants(3, 5) {
        for direction in [Direction::Forward, Direction::Reverse, Direction::Both] {
            for gate in Activation::ALL {
                // Numbers without a short decimal form are restored too.
                let (dropout, zoneout) = (0.1 + f32::EPSILON, 1.0 / 3.0);
                let config = config.clone().with_layers(2).with_direction(direction);
                there_and_back(
                    &config
                        .with_activations(gate, gate)
                        .with_reverse_activations(
                            (direction == Direction::Both).then_some(Activations {
                                gate: Activation::Softsign,
                                candidate: gate,
                            }),
                        )
                        .with_clip(Some(0.1))
                        .with_dropout(dropout)
                        .with_zoneout(zoneout),
                );
            }
        }
    }
    there_and_back(&Head::every_step(3));
    there_and_back(&Head::last(usize::MAX));
    there_and_back(
        &RunOptions::default().with_recurrence(Recurrence::Sequence).with_recompute(true),
    );
    there_and_back(&Adam { beta1: 1.0 / 3.0, ..Adam::default() });
    let config = LearnerConfig::new(Loss::cross_entropy(), Optimizer::adamw(0.01), 1.0 / 3.0);
    there_and_back(&config);
    let schedule = Schedule::cosine(100);
    there_and_back(&config.with_clip(Clip::Norm(1.5)).with_schedule(schedule).with_accumulation(4));
    there_and_back(&TrainerConfig::new(20, 16));
    there_and_back(&TrainerConfig::new(20, 16).with_seed(u64::MAX).with_patience(3));
    let shuffled = there_and_back(&TrainerConfig::new(20, 16).with_order(Order::Shuffled));
    assert_eq!(shuffled["order"], "shuffled");
}

/// Missing fields have the constructors' defaults, except for the definition of the GRU, which is
/// required.
#[test]
fn optional_fields_may_be_missing() {
    let least = json!({
        "input_size": 3, "hidden_size": 5, "reset": "after", "update": "keeps", "bias": "two"
    });
    let config: GruConfig = serde_json::from_value(least.clone()).unwrap();
    assert_eq!(config, GruConfig::pytorch(3, 5));
    for field in ["input_size", "hidden_size", "reset", "update", "bias"] {
        let mut less = least.clone();
        less.as_object_mut().unwrap().remove(field);
        let error = serde_json::from_value::<GruConfig>(less).unwrap_err().to_string();
        assert!(error.contains(field), "{error}");
    }
    let options: RunOptions = serde_json::from_value(json!({})).unwrap();
    assert_eq!(options, RunOptions::default());
    let adam: Optimizer = serde_json::from_value(json!({ "adam": {} })).unwrap();
    assert_eq!(adam, Optimizer::adam());
    let adamw: Optimizer = serde_json::from_value(json!({ "adamw": {} })).unwrap();
    assert_eq!(adamw, Optimizer::AdamW(Adam::default()));
    let sgd: Optimizer = serde_json::from_value(json!({ "sgd": {} })).unwrap();
    assert_eq!(sgd, Optimizer::sgd());
    let loss: Loss = serde_json::from_value(json!({ "cross-entropy": {} })).unwrap();
    assert_eq!(loss, Loss::cross_entropy());
    let learner = json!({ "loss": "mean-squared", "optimizer": adam, "learning_rate": 0.5 });
    let learner: LearnerConfig = serde_json::from_value(learner).unwrap();
    assert_eq!(learner, LearnerConfig::new(Loss::MeanSquared, Optimizer::adam(), 0.5));
    let trainer = json!({ "epochs": 3, "batch": 4 });
    let trainer: TrainerConfig = serde_json::from_value(trainer).unwrap();
    assert_eq!(trainer, TrainerConfig::new(3, 4));
}

fn refused<T: Debug + serde::de::DeserializeOwned>(value: Value) {
    let error = serde_json::from_value::<T>(value.clone()).unwrap_err().to_string();
    assert!(error.contains("unknown field `more`"), "{value}: {error}");
}

#[test]
fn unknown_fields_are_refused() {
    let with = |mut value: Value| {
        value.as_object_mut().unwrap().insert("more".to_owned(), json!(1));
        value
    };
    refused::<GruConfig>(with(there_and_back(&GruConfig::new(3, 5))));
    refused::<Head>(with(there_and_back(&Head::last(2))));
    refused::<RunOptions>(with(there_and_back(&RunOptions::default())));
    refused::<Adam>(with(there_and_back(&Adam::default())));
    let learner = LearnerConfig::new(Loss::MeanSquared, Optimizer::sgd(), 0.1);
    refused::<LearnerConfig>(with(there_and_back(&learner)));
    refused::<TrainerConfig>(with(there_and_back(&TrainerConfig::new(1, 1))));
    refused::<Loss>(json!({ "huber": { "delta": 1.0, "more": 1 } }));
    refused::<Optimizer>(json!({ "sgd": { "momentum": 0.0, "weight_decay": 0.0, "more": 1 } }));
    refused::<Optimizer>(json!({ "adam": { "more": 1 } }));
    refused::<Schedule>(json!({ "steps": { "every": 1, "factor": 0.5, "more": 1 } }));
}

/// Reading a configuration does not check it: that happens where it is used.
#[test]
fn invalid_values_are_refused_at_their_use() {
    let mut config = there_and_back(&GruConfig::new(3, 5));
    config["dropout"] = json!(2.0);
    config["layers"] = json!(2);
    let config: GruConfig = serde_json::from_value(config).unwrap();
    assert!(matches!(config.validate().unwrap_err(), Error::Probability { .. }));
    let learner = LearnerConfig::new(Loss::Huber { delta: -1.0 }, Optimizer::sgd(), 0.1);
    let learner: LearnerConfig = serde_json::from_value(there_and_back(&learner)).unwrap();
    assert!(matches!(learner.validate().unwrap_err(), Error::Setting { .. }));
}
