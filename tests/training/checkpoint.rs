//! Training that stops, is killed, diverges or finds a damaged checkpoint resumes to the same bits.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::common::{devices, rerun, rng};
use gru_wgpu::formats::safetensors;
use gru_wgpu::{
    Checkpoint, Clip, Device, Direction, Error, Event, Example, GruConfig, Head, Init, Learner,
    LearnerConfig, Loss, Network, Optimizer, ParamLayout, Params, Schedule, StopReason, Target,
    Trainer, TrainerConfig,
};
use ndarray::{Array2, Array3};
use rand::RngExt;
use tempfile::TempDir;

/// Returns sequences of 1 to 8 steps, each with an unrelated class, so that validation soon stops
/// improving.
fn examples(count: usize, seed: u64) -> Vec<Example> {
    let mut rng = rng(seed);
    let mut example = || {
        let steps = rng.random_range(1..9);
        let x = Array2::from_shape_simple_fn((steps, 2), || rng.random_range(-1.0..1.0));
        Example::new(x, Target::Class(rng.random_range(0..3)))
    };
    (0..count).map(|_| example()).collect()
}

/// Two batches per update, dropout, two layers of both directions, a schedule: everything that has
/// a state.
fn trainer(trainer_config: TrainerConfig, device: &Device) -> Trainer {
    let config = GruConfig::pytorch(2, 3).with_layers(2).with_direction(Direction::Both);
    let layout = ParamLayout::with_head(&config.with_dropout(0.2), Head::last(3)).unwrap();
    let params = Params::init_of(layout, Init::Uniform, 3).unwrap();
    let training = LearnerConfig::new(Loss::cross_entropy(), Optimizer::adamw(0.01), 0.01)
        .with_schedule(Schedule::Cosine { warmup: 10, updates: 200, last: 0.1 })
        .with_clip(Clip::Norm(1.0))
        .with_accumulation(2);
    Trainer::new(Learner::new(params, training, device).unwrap(), trainer_config).unwrap()
}

/// 71 batches per epoch, so that events come after 32, 64 and 71 of them, during validation and
/// after it.
const EXAMPLES: usize = 71;

fn trainer_config() -> TrainerConfig {
    TrainerConfig::new(6, 1).with_seed(5).with_patience(2)
}

fn continue_training(_: &mut Trainer, _: &Event<'_>) -> gru_wgpu::Result<ControlFlow<()>> {
    Ok(ControlFlow::Continue(()))
}

fn bits(params: &Params) -> Vec<u32> {
    params.as_slice().iter().map(|number| number.to_bits()).collect()
}

/// Checks that two checkpoints are equal to the last bit.
fn assert_same(got: &Checkpoint, expected: &Checkpoint) {
    assert_eq!(bits(&got.state.params), bits(&expected.state.params));
    assert_eq!(got, expected);
}

/// Returns the checkpoint of a run of one epoch.
fn checkpoint() -> Checkpoint {
    let mut trainer = trainer(TrainerConfig::new(1, 10), &Device::cpu());
    trainer.run(&examples(30, 1), &examples(9, 2), continue_training).unwrap();
    trainer.checkpoint().unwrap()
}

/// Returns a folder and a path in it.
fn temp_checkpoint_path() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("run.safetensors");
    (folder, path)
}

fn before(path: &Path) -> PathBuf {
    path.with_extension("safetensors.before")
}

/// Stops a run at every event and resumes it from its file, on both devices. The bits stay the
/// same.
#[test]
fn a_run_resumes_from_its_file_bit_for_bit() {
    let (train, valid) = (examples(EXAMPLES, 1), examples(20, 2));
    for device in devices() {
        let mut whole = trainer(trainer_config(), &device);
        let mut losses = Vec::new();
        let ended = whole.run(&train, &valid, |_, event| {
            losses.extend(loss_of(event));
            Ok(ControlFlow::Continue(()))
        });
        assert_eq!(ended.unwrap(), StopReason::EarlyStopping, "on {device}");
        let whole = whole.checkpoint().unwrap();

        let (_folder, path) = temp_checkpoint_path();
        let mut stops = Vec::new();
        let (mut other_losses, mut validated) = (Vec::new(), HashSet::new());
        let mut now = trainer(trainer_config(), &device);
        loop {
            now.metrics_every([16, 3, 20, 16][stops.len().min(3)]);
            let ended = now.run(&train, &valid, |now, event| {
                other_losses.extend(loss_of(event));
                let is_over = matches!(event, Event::Validating(_))
                    && !validated.insert(now.progress().epoch);
                Ok(if is_over { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            });
            let checkpoint = now.checkpoint().unwrap();
            if ended.unwrap() == StopReason::EarlyStopping {
                assert_same(&checkpoint, &whole);
                break;
            }
            checkpoint.save(&path).unwrap();
            let read = Checkpoint::load(&path).unwrap();
            assert_same(&read, &checkpoint);
            stops.push((read.progress.epoch, read.progress.batch, read.progress.stale));
            now = Trainer::from_checkpoint(read, &device).unwrap();
        }
        let expected = [(0, 32, 0), (0, 38, 0), (0, 71, 0), (0, 71, 0), (1, 0, 0)];
        assert_eq!(stops[..5], expected, "on {device}");
        assert_eq!(stops.last().unwrap().2, 2);
        assert_eq!(losses, other_losses);
        assert!(whole.best.is_some_and(|best| best.params != whole.state.params));
    }
}

fn loss_of(event: &Event<'_>) -> Option<f32> {
    match event {
        Event::Epoch { loss, .. } => Some(*loss),
        _ => None,
    }
}

#[test]
fn unusual_numbers_and_notes_round_trip() {
    let mut odd = checkpoint();
    odd.state.params.as_mut_slice()[..4].copy_from_slice(&[
        -0.0,
        f32::INFINITY,
        f32::MIN_POSITIVE / 3.0,
        f32::MAX,
    ]);
    odd.state.moments.steps = (1 << 53) + 1;
    odd.trainer_config.seed = u64::MAX;
    odd.learner_config.learning_rate = 0.1 + 0.2;
    odd.progress.loss.0 = f64::MIN_POSITIVE;
    let notes = [("", ""), ("classes", "\"é\"\n\\ \u{0}"), ("version", "7")];
    odd.notes = notes.map(|(key, note)| (key.to_owned(), note.to_owned())).into();
    let (_folder, path) = temp_checkpoint_path();
    odd.save(&path).unwrap();
    assert_same(&Checkpoint::load(&path).unwrap(), &odd);
    assert_eq!(Checkpoint::load_notes(&path).unwrap(), odd.notes);
    let bytes = fs::read(&path).unwrap();
    odd.save(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes, "the same checkpoint is the same file");
    odd.best = None;
    odd.data = None;
    odd.save(&path).unwrap();
    assert_same(&Checkpoint::load(&path).unwrap(), &odd);
}

#[test]
fn checkpoints_in_memory_equal_checkpoints_in_files() {
    let checkpoint = checkpoint();
    let (_folder, path) = temp_checkpoint_path();
    checkpoint.save(&path).unwrap();
    let bytes = checkpoint.to_bytes().unwrap();
    assert!(bytes == fs::read(&path).unwrap());
    assert_same(&Checkpoint::from_bytes(&bytes).unwrap(), &checkpoint);
    let mut stream = std::io::Cursor::new(Vec::new());
    checkpoint.write(&mut stream).unwrap();
    assert_same(&Checkpoint::read(&mut stream).unwrap(), &checkpoint);
    assert!(stream.into_inner() == bytes);
    assert!(matches!(checkpoint.write(&mut [0_u8; 9][..]), Err(Error::Io { .. })));
    for cut in [&bytes[..bytes.len() - 1], &bytes[..9], &[]] {
        assert!(matches!(Checkpoint::from_bytes(cut), Err(Error::Format { .. })));
    }
    let mut changed = bytes;
    *changed.last_mut().unwrap() ^= 1;
    let error = Checkpoint::from_bytes(&changed).unwrap_err().to_string();
    assert!(error.contains("checksum does not match"), "{error}");
}

/// The async calls write and resume from the same bits.
#[test]
fn async_checkpoints_equal_blocking_ones() {
    let (train, valid) = (examples(EXAMPLES, 1), examples(20, 2));
    for device in devices() {
        let mut whole = trainer(trainer_config(), &device);
        let stop = |event: &Event<'_>| {
            Ok(match event {
                Event::Validating(_) => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            })
        };
        whole.run(&train, &valid, |_, event| stop(event)).unwrap();
        pollster::block_on(async {
            let mut now = trainer(trainer_config(), &device);
            now.run_async(&train, &valid, async |_: &mut Trainer, event: &Event<'_>| stop(event))
                .await
                .unwrap();
            let checkpoint = now.checkpoint_async().await.unwrap();
            assert_same(&checkpoint, &whole.checkpoint().unwrap());
            let own = now
                .learner()
                .checkpoint_async(trainer_config(), checkpoint.progress)
                .await
                .unwrap();
            assert_eq!(own.state, checkpoint.state);
            let mut again = Trainer::from_checkpoint_async(checkpoint, &device).await.unwrap();
            assert_same(&again.checkpoint().unwrap(), &now.checkpoint().unwrap());
        });
    }
}

#[test]
fn inconsistent_checkpoints_are_not_written() {
    let (_folder, path) = temp_checkpoint_path();
    let mut short = checkpoint();
    short.state.moments.second.pop();
    assert!(matches!(short.save(&path), Err(Error::Shape { .. })));
    let mut other = checkpoint();
    let layout = ParamLayout::with_head(&GruConfig::pytorch(1, 2), Head::last(3)).unwrap();
    other.best.as_mut().unwrap().params = Params::zeros_of(layout).unwrap();
    assert!(matches!(other.save(&path), Err(Error::ParameterLayout { .. })));
    assert!(!path.exists());
}

#[test]
fn a_damaged_checkpoint_is_refused_and_the_previous_one_used() {
    let (_folder, path) = temp_checkpoint_path();
    let first = checkpoint();
    let mut second = first.clone();
    second.progress.epoch += 1;
    first.save(&path).unwrap();
    assert!(!before(&path).exists());
    second.save(&path).unwrap();
    assert_same(&Checkpoint::load(before(&path)).unwrap(), &first);
    let (last, refused) = Checkpoint::load_last(&path).unwrap();
    assert_same(&last, &second);
    assert_eq!(refused, None);

    let bytes = fs::read(&path).unwrap();
    let takes_first = |what: &str| {
        let error = Checkpoint::load(&path).unwrap_err();
        assert!(matches!(error, Error::Format { .. } | Error::Io { .. }), "{what}: {error:?}");
        let (last, refused) = Checkpoint::load_last(&path).unwrap();
        assert_same(&last, &first);
        assert_eq!(refused, Some(error), "{what}");
    };
    for len in [0, 7, 8, 9, bytes.len() / 4, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..len]).unwrap();
        takes_first(&format!("cut to {len} bytes"));
    }
    // In the tensors' numbers only the checksum shows the damage.
    let tensors = bytes.len() - 4 * first.state.params.layout().parameter_count();
    for at in (tensors..bytes.len()).step_by(211) {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        fs::write(&path, &changed).unwrap();
        takes_first(&format!("byte {at}"));
    }
    fs::remove_file(&path).unwrap();
    takes_first("gone");

    // A damaged file does not replace the complete one.
    fs::write(&path, &bytes[..99]).unwrap();
    second.save(&path).unwrap();
    assert_same(&Checkpoint::load(&path).unwrap(), &second);
    assert_same(&Checkpoint::load(before(&path)).unwrap(), &first);

    for path in [&path, &before(&path)] {
        fs::write(path, &bytes[..99]).unwrap();
    }
    let error = Checkpoint::load_last(&path).unwrap_err().to_string();
    assert!(error.contains("run.safetensors`: its header takes"), "{error}");
}

#[test]
fn other_files_and_versions_are_refused_with_the_reason() {
    let (_folder, path) = temp_checkpoint_path();
    let checkpoint = checkpoint();
    safetensors::save_network(&path, &checkpoint.state.params).unwrap();
    let error = Checkpoint::load(&path).unwrap_err().to_string();
    assert!(error.contains("not a training checkpoint"), "{error}");
    checkpoint.save(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let (header, data) = bytes[8..].split_at(len);
    let header = std::str::from_utf8(header).unwrap();
    for (from, to, expected) in [
        (r#"\"version\":1"#, r#"\"version\":2"#, "is of version `2`; this library reads version 1"),
        (r#"\"version\":1"#, r#"\"versoin\":1"#, "has no version"),
        ("hidden=3", "hidden=7", "shape [9, 2], expected [21, 2]"),
        ("direction=both", "direction=reverse", "has shape [9, 6], expected [9, 3]"),
        ("layers=2", "layers=9", "there is no tensor `gru."),
        ("head=last", "haed=last", "`haed`, which is unknown"),
        ("epochs=1", "epochs=0", "the number of epochs is 0"),
        ("epochs=1", "epochs=2", "checksum does not match"),
        ("best=0", "bets=0", "which is unknown"),
        ("best=0", "best=9", "that no run can reach"),
        (
            "second_moment.head.bias",
            "second_moment.head.bise",
            "no tensor `second_moment.head.bias`",
        ),
        (r#"\"notes\":{}"#, r#"\"notes\":[]"#, "lacks `notes`"),
    ] {
        assert!(header.contains(from), "{header}");
        let header = header.replacen(from, to, 1);
        let len = (header.len() as u64).to_le_bytes();
        fs::write(&path, [&len, header.as_bytes(), data].concat()).unwrap();
        let error = Checkpoint::load(&path).unwrap_err().to_string();
        let seen = error.contains(expected) || error.contains("checksum does not match");
        assert!(seen, "{from} → {to}: {error}");
    }
}

/// An example with NaN is named, with the batch that contains it. After it is corrected, the kept
/// state continues to the same bits as a run that never had it.
#[test]
fn a_diverging_run_names_the_batch_and_keeps_the_last_finite_state() {
    let train = examples(EXAMPLES, 1);
    for device in devices() {
        let mut whole = trainer(TrainerConfig::new(1, 1), &device);
        whole.run(&train, &[], continue_training).unwrap();
        for bad in [0, 17, EXAMPLES - 1] {
            let mut spoilt = train.clone();
            spoilt[bad].x[[0, 1]] = f32::NAN;
            let mut now = trainer(TrainerConfig::new(1, 1), &device);
            let error = now.run(&spoilt, &[], continue_training).unwrap_err();
            let Error::Diverged { step, parameter, made_from: Some(made_from), .. } = &error else {
                panic!("{error:?}");
            };
            assert_eq!(parameter, "weight_ih_l0", "{error}");
            let position = now.progress();
            assert_eq!((made_from.epoch, made_from.batches.start), (0, position.batch), "{error}");
            assert_eq!(*step as usize, position.batch / 2, "{error}");
            assert_eq!(position.loss.1, position.batch / 2, "{error}");
            let last = made_from.batches.end == EXAMPLES;
            assert_eq!(made_from.examples.len(), if last { 1 } else { 2 }, "{error}");
            assert!(made_from.examples.contains(&bad), "{error}");
            let words = format!("(epoch 0, batch{}", if last { " 70" } else { "es" });
            assert!(error.to_string().contains(&words), "{error}");
            let (_folder, path) = temp_checkpoint_path();
            now.checkpoint().unwrap().save(&path).unwrap();
            let kept = Checkpoint::load(&path).unwrap();
            let now = Trainer::from_checkpoint(kept, &device).unwrap();
            let mut now = now.with_data(None);
            now.run(&train, &[], continue_training).unwrap();
            assert_same(&now.checkpoint().unwrap(), &whole.checkpoint().unwrap());
        }
    }
}

/// A learning rate that makes the parameters infinite in the very last update: the kept state is
/// from before it.
#[test]
fn a_last_update_to_infinite_parameters_is_not_kept() {
    let (train, valid) = (examples(30, 1), examples(9, 2));
    for device in devices() {
        let mut now = trainer(TrainerConfig::new(2, 10), &device);
        now.run(&train, &valid, |trainer, event| {
            let first = matches!(event, Event::Epoch { epoch: 0, .. });
            Ok(if first && trainer.best().is_some() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        })
        .unwrap();
        let mut kept = now.checkpoint().unwrap();
        let best = kept.best.clone().unwrap();
        // Three batches make two updates: 0 and 1 are over, 2 and 3 to come.
        kept.learner_config.schedule = Schedule::Constant;
        kept.learner_config.learning_rate = 1e38;
        let mut last = Trainer::from_checkpoint(kept.clone(), &device).unwrap();
        let error = last.run(&train, &valid, continue_training).unwrap_err();
        let Error::Diverged { step: 2, loss, made_from: Some(made_from), .. } = &error else {
            panic!("{error} on {device}");
        };
        assert!(loss.is_finite(), "{error}");
        assert_eq!((made_from.epoch, made_from.batches.clone()), (1, 0..2), "{error}");
        assert_same(&last.checkpoint().unwrap(), &kept);
        assert_eq!(last.best(), Some(&best));
    }
}

/// Finite parameters with outputs that are not finite.
#[test]
fn a_validation_loss_that_is_not_finite_is_reported() {
    let train = examples(30, 1);
    let mut valid = examples(9, 2);
    valid[4].x[[0, 0]] = f32::NAN;
    for device in devices() {
        let mut now = trainer(TrainerConfig::new(2, 10), &device);
        let error = now.run(&train, &valid, continue_training).unwrap_err();
        assert!(matches!(error, Error::DivergedValidation { epoch: 0, .. }), "{error} on {device}");
        assert_eq!(
            error.to_string(),
            "epoch 0 diverged: the validation loss is NaN; check the validation set for values that are not \
             finite, or lower the learning rate"
        );
        assert_eq!(now.best(), None);
        assert_eq!((now.progress().epoch, now.progress().batch), (0, 3));
    }
}

/// Every change is detected: fewer, more, another order, another number, another class, in either
/// set.
#[test]
fn a_run_does_not_resume_on_other_examples() {
    let (train, valid) = (examples(30, 1), examples(9, 2));
    let mut first = trainer(TrainerConfig::new(2, 10), &Device::cpu());
    assert_eq!(first.data(), None);
    first.run(&train, &valid, |_, _| Ok(ControlFlow::Break(()))).unwrap();
    let (_folder, path) = temp_checkpoint_path();
    first.checkpoint().unwrap().save(&path).unwrap();
    let kept = Checkpoint::load(&path).unwrap();
    let changes: [fn(&mut Vec<Example>); 6] = [
        |all| drop(all.pop()),
        |all| all.push(all[0].clone()),
        |all| all.swap(0, 1),
        |all| all[3].x[[0, 1]] += 1e-6,
        |all| all[3].target = Target::Class(i32::from(all[3].target == Target::Class(0))),
        |all| all[3].x = Array2::zeros((9, 2)),
    ];
    for change in changes {
        let (mut other_train, mut other_valid) = (train.clone(), valid.clone());
        change(&mut other_train);
        change(&mut other_valid);
        for (train, valid, for_what) in
            [(&other_train, &valid, "train on"), (&train, &other_valid, "validate on")]
        {
            let mut now = Trainer::from_checkpoint(kept.clone(), &Device::cpu()).unwrap();
            let error = now.run(train, valid, continue_training).unwrap_err();
            let Error::OtherData { what, expected, got } = &error else { panic!("{error}") };
            let (own, other) = if for_what == "train on" { (30, train) } else { (9, valid) };
            assert_eq!((*what, expected.count, got.count), (for_what, own, other.len()));
            assert!(expected.hash != got.hash, "{error}");
            assert_same(&now.checkpoint().unwrap(), &kept);
            now.with_data(None).run(train, valid, continue_training).unwrap();
        }
    }
    Trainer::from_checkpoint(kept, &Device::cpu())
        .unwrap()
        .run(&train, &valid, continue_training)
        .unwrap();
}

/// An error before any update: an invalid class in the second batch of an update.
#[test]
fn a_refused_batch_leaves_the_position_before_it() {
    let train = examples(EXAMPLES, 1);
    let mut whole = trainer(TrainerConfig::new(1, 1), &Device::cpu());
    whole.run(&train, &[], continue_training).unwrap();
    for bad in 0..12 {
        let mut spoilt = train.clone();
        spoilt[bad].target = Target::Class(3);
        let mut now = trainer(TrainerConfig::new(1, 1), &Device::cpu());
        let error = now.run(&spoilt, &[], continue_training).unwrap_err();
        assert!(matches!(error, Error::Class { class: 3, .. }), "{error}");
        let mut now = now.with_data(None);
        now.run(&train, &[], continue_training).unwrap();
        assert_same(&now.checkpoint().unwrap(), &whole.checkpoint().unwrap());
    }
}

#[test]
fn a_network_loads_from_its_file_and_from_a_checkpoint() {
    let (_folder, path) = temp_checkpoint_path();
    let checkpoint = checkpoint();
    let params = &checkpoint.state.params;
    let options = safetensors::SafetensorsOptions::new;
    safetensors::save_network(&path, params).unwrap();
    assert_eq!(safetensors::load_network(&path, &options()).unwrap(), *params);
    assert_eq!(safetensors::prefixes(&path).unwrap(), ["gru."]);
    // The GRU alone, as `gru run --prefix gru.` takes it, and as `save` writes it.
    let gru = safetensors::load(&path, &options().with_prefix("gru.")).unwrap();
    assert_eq!(gru.layout().head(), None);
    let of_head = |name: &str| name.starts_with("head.");
    assert!(gru.iter().eq(params.iter().filter(|(name, _)| !of_head(name))));
    let header = fs::read(&path).unwrap();
    let header = String::from_utf8_lossy(&header);
    for name in ["gru.weight_ih_l0", "gru.bias_hh_l1_reverse", "head.weight", "head.bias"] {
        assert!(header.contains(&format!("\"{name}\"")), "{header}");
    }
    safetensors::save(&path, params).unwrap();
    assert_eq!(safetensors::load(&path, &options()).unwrap(), gru);
    let error = safetensors::load_network(&path, &options()).unwrap_err().to_string();
    assert!(error.contains("does not say what its head reads"), "{error}");
    assert!(matches!(safetensors::save_network(&path, &gru), Err(Error::Conflict { .. })));

    checkpoint.save(&path).unwrap();
    let best = safetensors::load_network(&path, &options().with_prefix("best.gru")).unwrap();
    assert_eq!(best, checkpoint.best.unwrap().params);
    let last = safetensors::load_network(&path, &options().with_prefix("gru")).unwrap();
    assert_eq!(last, *params);
    let error = safetensors::load_network(&path, &options()).unwrap_err();
    assert!(matches!(error, Error::Choice { .. }), "{error}");
    let network = Network::new(last, &Device::cpu()).unwrap();
    assert_eq!(network.forward(&Array3::ones((4, 2, 2))).unwrap().shape(), [2, 3]);
}

/// The path that the child writes to.
const CHILD: &str = "GRU_WGPU_TEST_CHECKPOINT";

/// Long enough to be killed many times.
fn killed_config() -> TrainerConfig {
    TrainerConfig::new(14, 1).with_seed(9)
}

/// Trains from the last checkpoint, writes a checkpoint at every event, and prints it.
fn child(path: &Path) {
    let mut trainer = match Checkpoint::load_last(path) {
        Ok((last, _)) => Trainer::from_checkpoint(last, &Device::cpu()).unwrap(),
        Err(error) => {
            assert!(!path.exists() && !before(path).exists(), "{error}");
            trainer(killed_config(), &Device::cpu())
        }
    };
    let mut out = std::io::stdout();
    trainer
        .run(&examples(EXAMPLES, 1), &examples(5, 2), |trainer, _| {
            trainer.checkpoint()?.save(path)?;
            out.write_all(b"\nevent\n").unwrap();
            out.flush().unwrap();
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
}

/// The child is this program, run again for this test only.
#[test]
fn a_run_killed_many_times_ends_with_the_same_bits() {
    const KILLS: usize = 10;
    if let Some(path) = std::env::var_os(CHILD) {
        return child(Path::new(&path));
    }
    let (_folder, path) = temp_checkpoint_path();
    let start = || {
        let name = "a_run_killed_many_times_ends_with_the_same_bits";
        rerun(module_path!(), name).env(CHILD, &path).stdout(Stdio::piped()).spawn().unwrap()
    };
    let mut rng = rng(1);
    for kill in 0..KILLS {
        let mut child = start();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut events = lines.map_while(Result::ok).filter(|line| line == "event");
        let wanted = rng.random_range(1..5);
        // The child's end of the pipe stays open: only the kill ends it.
        let seen = events.by_ref().take(wanted).count();
        std::thread::sleep(Duration::from_micros(rng.random_range(0..20_000)));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert!(seen == wanted && !status.success(), "kill {kill}: it was over, {status}");
    }
    let status = start().wait_with_output().unwrap().status;
    assert!(status.success(), "{status}");
    let mut whole = trainer(killed_config(), &Device::cpu());
    whole.run(&examples(EXAMPLES, 1), &examples(5, 2), continue_training).unwrap();
    assert_same(&Checkpoint::load(&path).unwrap(), &whole.checkpoint().unwrap());
}
