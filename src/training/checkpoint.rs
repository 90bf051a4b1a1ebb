//! [`Checkpoint`]: the state from which a [`Trainer`] resumes, in a file or in memory.
//!
//! The file holds the network's tensors under the names that `save_network` uses, then tensors of
//! the same names with the prefixes `first_moment.`, `second_moment.` and, after a first
//! validation, `best.`, and, in a run that carries states from window to window, `carried_states`.
//! One metadata entry holds everything else: a hexadecimal checksum, a space,
//! and a JSON object.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{Cursor, Read, Seek, Write};
use std::path::{Path, PathBuf};

use ndarray::Array3;
use serde_json::{Value, json};

use crate::error::{Error, Result, check_shape};
use crate::fingerprint::Fnv1a;
use crate::formats::checkpoint_metadata::{
    CHECKPOINT_KEY, CheckpointMetadata, VERSION, write_checksum, wrong,
};
use crate::formats::files::{self, ByteSource};
use crate::formats::metadata::{read_config, write_config};
use crate::formats::safetensors::{Tensors, encode_tensors, network_tensors};
use crate::formats::state_dict::{PytorchNames, StateDict};
use crate::gpu::wait::Wait;
use crate::model::blocking::blocking_and_async;
use crate::model::device::Device;
use crate::model::network::Evaluation;
use crate::spec::config::GruConfig;
use crate::spec::optimizer::OptimizerState;
use crate::spec::params::{ParamLayout, Params};
use crate::training::config::TrainerConfig;
use crate::training::learner::{Learner, LearnerConfig, LearnerState};
use crate::training::progress::{BestNetwork, DataFingerprints, Progress};
use crate::training::trainer::Trainer;

mod encoding;

/// Prefix of the tensor names for each network in the file: parameters, first moments, second
/// moments, best parameters.
const PREFIXES: [&str; 4] = ["", "first_moment.", "second_moment.", "best."];

/// The name of the tensor with the carried states.
const CARRIED: &str = "carried_states";

/// The state of a training run, from which a [`Trainer`] resumes.
///
/// It holds the parameters, the optimizer state with the number of updates (the schedule depends on
/// it), the configurations with the seed, the progress within the epoch (the order of the examples
/// and the random numbers of dropout depend on both), and the network with the best validation
/// result.
///
/// ```
/// use gru_wgpu::{
///     Checkpoint, Device, GruConfig, Head, Init, Learner, Loss, Optimizer, ParamLayout, Params, TrainerConfig,
///     Trainer, LearnerConfig,
/// };
///
/// let layout = ParamLayout::with_head(&GruConfig::pytorch(1, 8), Head::last(2))?;
/// let params = Params::init_of(layout, Init::Uniform, 1)?;
/// let learner_config = LearnerConfig::new(Loss::cross_entropy(), Optimizer::adam(), 0.02);
/// let learner = Learner::new(params, learner_config, &Device::cpu())?;
/// let mut trainer = Trainer::new(learner, TrainerConfig::new(20, 16))?;
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("run.safetensors");
/// // During training: the listener of Trainer::run may save a checkpoint at any event.
/// trainer.checkpoint()?.save(&path)?;
/// // Later, in another process:
/// let (checkpoint, refused) = Checkpoint::load_last(&path)?;
/// assert_eq!(refused, None); // the last file is intact, so no fallback to the one before it
/// let trainer = Trainer::from_checkpoint(checkpoint, &Device::cpu())?;
/// # Ok::<(), gru_wgpu::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Checkpoint {
    /// The parameters and the optimizer state.
    pub state: LearnerState,
    /// The learner's settings: loss, optimizer, learning rate.
    pub learner_config: LearnerConfig,
    /// The trainer's settings: epochs, batch size, seed.
    pub trainer_config: TrainerConfig,
    /// The position of the run.
    pub progress: Progress,
    /// The network with the best validation result so far.
    pub best: Option<BestNetwork>,
    /// The states `[L·D, B, H]` that the next batch of windows continues from; see
    /// [`Dataset::stride`](crate::Dataset::stride).
    pub carried: Option<Array3<f32>>,
    /// Fingerprints of the training and validation sets. `None` before the first run.
    pub data: Option<DataFingerprints>,
    /// Entries of the calling program, under names of its own choice.
    pub notes: BTreeMap<String, String>,
}

/// The counters and results that are neither tensors nor settings.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Counters {
    /// Number of updates so far.
    steps: u64,
    progress: Progress,
    /// The epoch and the validation result of the best network.
    best: Option<(usize, Evaluation)>,
}

impl Counters {
    /// Returns true if a run can reach these counters and continue from them without overflow.
    fn are_possible(&self) -> bool {
        let Progress { epoch, loss: (_, updates), stale, .. } = self.progress;
        let best = self.best.is_none_or(|(found, validation)| {
            found < epoch && validation.correct.is_none_or(|n| n <= validation.counted)
        });
        self.steps < 1 << 62 && updates as u64 <= self.steps && stale <= epoch && best
    }
}

impl Learner {
    blocking_and_async! {
        /// Returns a checkpoint of a training loop of your own, which is at `progress` and uses
        /// this configuration. Pass its state to [`Self::resume`] to continue. With a [`Trainer`],
        /// use [`Trainer::checkpoint`].
        ///
        /// # Errors
        /// The errors of [`Self::state`].
        pub fn checkpoint, checkpoint_async(
            &mut self,
            trainer_config: TrainerConfig,
            progress: Progress
        ) -> Result<Checkpoint> {
            |wait| self.run_checkpoint(trainer_config, progress, wait)
        }
    }

    async fn run_checkpoint(
        &mut self,
        trainer_config: TrainerConfig,
        progress: Progress,
        wait: Wait,
    ) -> Result<Checkpoint> {
        let state = self.run_state(wait).await?;
        let learner_config = *self.config();
        let (best, carried, data, notes) = Default::default();
        Ok(Checkpoint {
            state,
            learner_config,
            trainer_config,
            progress,
            best,
            carried,
            data,
            notes,
        })
    }
}

impl Trainer {
    blocking_and_async! {
        /// Waits for all queued work and returns the state from which training can resume.
        ///
        /// # Errors
        /// The errors of [`Learner::state`].
        pub fn checkpoint, checkpoint_async(&mut self) -> Result<Checkpoint> {
            |wait| self.run_checkpoint(wait)
        }

        /// Resumes a run from a checkpoint. On the same device the results have the same bits as
        /// without the interruption. [`Self::run`] then accepts only the data sets of the
        /// checkpoint. For a run with its own [`RunOptions`](crate::RunOptions), call
        /// [`Learner::resume`], [`Learner::with_options`], [`Self::resume`],
        /// [`Self::with_carried`] and [`Self::with_data`] instead.
        ///
        /// # Errors
        /// The errors of [`Learner::resume`] and [`Self::resume`].
        pub fn from_checkpoint, from_checkpoint_async(
            checkpoint: Checkpoint,
            device: &Device
        ) -> Result<Self> {
            |_| Self::restore(checkpoint, device)
        }
    }

    async fn run_checkpoint(&mut self, wait: Wait) -> Result<Checkpoint> {
        let (trainer_config, progress) = (*self.config(), self.progress());
        let (best, data) = (self.best().cloned(), self.data());
        let carried = match self.carried() {
            Some(states) => Some(states.read(wait).await?),
            None => None,
        };
        let checkpoint = self.learner().run_checkpoint(trainer_config, progress, wait).await?;
        Ok(Checkpoint { best, carried, data, ..checkpoint })
    }

    async fn restore(checkpoint: Checkpoint, device: &Device) -> Result<Self> {
        let Checkpoint {
            state, learner_config, trainer_config, progress, best, carried, data, ..
        } = checkpoint;
        let learner = Learner::resume_async(state, learner_config, device).await?;
        let trainer = Self::resume(learner, trainer_config, progress, best)?;
        Ok(trainer.with_carried(carried).with_data(data))
    }
}

impl Checkpoint {
    /// Writes the checkpoint as a safetensors file. The write is atomic: the file is complete and
    /// flushed to disk, or it does not change. The previous file is kept as `<path>.before` if
    /// [`Self::load`] accepts it; otherwise an older `<path>.before` stays. At least one of the two
    /// files is complete at any time.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Shape`] or [`Error::ParameterLayout`] if the moments or the best
    /// network belong to another model.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let bytes = self.to_bytes()?;
        let keep_if_valid =
            |last: &Path| if Self::load(last).is_ok() { keep_previous(last) } else { Ok(()) };
        files::replace_whole(path.as_ref(), |to| to.write_all(&bytes), keep_if_valid)
    }

    /// Writes the checkpoint to a stream. No previous checkpoint is kept.
    ///
    /// # Errors
    /// The errors of [`Self::save`].
    pub fn write(&self, to: impl Write) -> Result<()> {
        let bytes = self.to_bytes()?;
        files::write_stream(to, |to| to.write_all(&bytes))
    }

    /// Returns the bytes of the file that [`Self::save`] writes, for other kinds of storage.
    ///
    /// # Errors
    /// The errors of [`Self::save`], except [`Error::Io`].
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let layout = self.state.params.layout();
        let networks = self.networks()?;
        let json = self.json()?;
        let checksum = checksum(&json, layout, &networks, self.carried.as_ref());
        let checksum = write_checksum(checksum);
        let entry = format!("{checksum} {json}");
        let tensors = PREFIXES.iter().zip(networks);
        let tensors = tensors.flat_map(|(prefix, flat)| network_tensors(prefix, layout, flat));
        let carried =
            self.carried.iter().map(|states| (CARRIED.to_owned(), states.view().into_dyn()));
        encode_tensors(tensors.chain(carried), Some((CHECKPOINT_KEY, entry)))
    }

    /// Reads a checkpoint from the bytes of [`Self::to_bytes`] or of a file.
    ///
    /// # Errors
    /// The errors of [`Self::load`], except [`Error::Io`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::read(Cursor::new(bytes))
    }

    /// Reads a checkpoint file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] if the file is truncated, was changed or is no checkpoint;
    /// and the errors of settings that are not valid, such as those of
    /// [`LearnerConfig::validate`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        files::open(path.as_ref(), read_source)
    }

    /// Reads only the [`notes`](Self::notes) of a checkpoint file, not its tensors. So it takes no
    /// longer for a large model, but does not notice a tensor that was changed.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] if the file is no checkpoint.
    pub fn load_notes(path: impl AsRef<Path>) -> Result<BTreeMap<String, String>> {
        files::open(path.as_ref(), |source| notes(&read_metadata(&Tensors::open(source)?)?))
    }

    /// Reads a checkpoint from a seekable stream.
    ///
    /// # Errors
    /// The errors of [`Self::load`].
    pub fn read(source: impl Read + Seek) -> Result<Self> {
        read_source(ByteSource::new(source)?)
    }

    /// Loads the last checkpoint saved to `path`. If that file is refused, loads the previous one
    /// (`<path>.before`) and returns the error of the last one with it.
    ///
    /// # Errors
    /// The errors of [`Self::load`] for the last checkpoint, if both are refused.
    pub fn load_last(path: impl AsRef<Path>) -> Result<(Self, Option<Error>)> {
        let path = path.as_ref();
        let refused = match Self::load(path) {
            Ok(last) => return Ok((last, None)),
            Err(refused) => refused,
        };
        let target = files::target_of(path).unwrap_or_else(|_| path.to_owned());
        match Self::load(previous_path(&target)) {
            Ok(previous) => Ok((previous, Some(refused))),
            Err(_) => Err(refused),
        }
    }

    /// Returns the flat buffers that become tensors, in the order of [`PREFIXES`].
    fn networks(&self) -> Result<Vec<&[f32]>> {
        let LearnerState { params, moments } = &self.state;
        let len = [params.layout().flat_len()];
        check_shape("the first moments", &len, &[moments.first.len()])?;
        check_shape("the second moments", &len, &[moments.second.len()])?;
        let mut networks = vec![params.as_slice(), &moments.first, &moments.second];
        if let Some(best) = &self.best {
            if best.params.layout() != params.layout() {
                let [expected, got] =
                    [params, &best.params].map(|of| of.layout().config().to_string());
                return Err(Error::ParameterLayout { expected, got });
            }
            networks.push(best.params.as_slice());
        }
        Ok(networks)
    }

    /// Returns everything except the tensors, as JSON.
    fn json(&self) -> Result<String> {
        let layout = self.state.params.layout();
        let counters = Counters {
            steps: self.state.moments.steps,
            progress: self.progress,
            best: self.best.as_ref().map(|best| (best.epoch, best.validation)),
        };
        let model = write_config(layout.config(), Some(layout.required_head()?.readout));
        let mut entries = json!({
            "version": VERSION,
            "model": model,
            "learner": encoding::write_learner(&self.learner_config),
            "trainer": encoding::write_trainer(&self.trainer_config),
            "progress": encoding::write_counters(&counters),
            "notes": self.notes,
        });
        if let Some(data) = &self.data {
            entries["data"] = encoding::write_data(data).into();
        }
        Ok(entries.to_string())
    }
}

fn read_source<S: Read + Seek>(source: ByteSource<S>) -> Result<Checkpoint> {
    let mut file = Tensors::open(source)?;
    let entry = read_metadata(&file)?;
    let learner_config = encoding::read_learner(entry.text("learner")?)?;
    let trainer_config = encoding::read_trainer(entry.text("trainer")?)?;
    let counters = encoding::read_counters(entry.text("progress")?)?;
    let has_data = entry.values.contains_key("data");
    let data = has_data.then(|| encoding::read_data(entry.text("data")?)).transpose()?;
    let (config, readout) = read_config(entry.model()?)?;
    let readout = readout.ok_or_else(|| wrong("describes a model without a head"))?;
    let prefixes = &PREFIXES[..if counters.best.is_some() { 4 } else { 3 }];
    let mut networks = Vec::new();
    let mut tensors = 0;
    for prefix in prefixes {
        let gru = format!("{prefix}gru.");
        let layout = file.network_layout(&gru, &config, readout)?;
        tensors += layout.entries().len();
        // Accept NaN and infinities: loading returns what was saved, even if the caller changed it.
        networks.push(file.params(&gru, layout, true)?);
    }
    let carried = file.has(CARRIED).then(|| read_carried(&mut file, &config)).transpose()?;
    tensors += usize::from(carried.is_some());
    let layout = networks[0].layout();
    if networks.iter().any(|network| network.layout() != layout) || tensors != file.count() {
        return Err(Error::format(
            "it holds tensors that do not belong to its networks".to_owned(),
        ));
    }
    let flat: Vec<_> = networks.iter().map(Params::as_slice).collect();
    if checksum(&entry.json, layout, &flat, carried.as_ref()) != entry.checksum {
        return Err(Error::format(
            "its checksum does not match; the file was changed after it was saved".to_owned(),
        ));
    }
    let best = counters.best.and_then(|(epoch, validation)| {
        Some(BestNetwork { epoch, validation, params: networks.pop()? })
    });
    let [second, first, params] = [networks.pop(), networks.pop(), networks.pop()]
        .map(|network| network.expect("three networks were read"));
    let [first, second] = [first, second].map(Params::into_flat);
    let moments = OptimizerState { first, second, steps: counters.steps };
    Ok(Checkpoint {
        state: LearnerState { params, moments },
        learner_config,
        trainer_config,
        progress: counters.progress,
        best,
        carried,
        data,
        notes: notes(&entry)?,
    })
}

/// Reads the carried states of a model with this configuration.
fn read_carried<S: Read + Seek>(file: &mut Tensors<S>, config: &GruConfig) -> Result<Array3<f32>> {
    let states = file.tensor(CARRIED)?;
    let expected = [
        config.layers * config.directions(),
        states.shape().get(1).copied().unwrap_or(0),
        config.hidden_size,
    ];
    check_shape(CARRIED, &expected, states.shape())?;
    Ok(states.into_dimensionality().expect("three axes"))
}

fn read_metadata<S: Read + Seek>(file: &Tensors<S>) -> Result<CheckpointMetadata> {
    let entry = file.entry(CHECKPOINT_KEY).ok_or_else(|| {
        Error::format(format!(
            "it is not a training checkpoint; its metadata has no entry {CHECKPOINT_KEY}"
        ))
    })?;
    CheckpointMetadata::parse(entry)
}

/// Returns the calling program's entries.
fn notes(entry: &CheckpointMetadata) -> Result<BTreeMap<String, String>> {
    let notes = entry.values.get("notes").and_then(Value::as_object);
    let notes = notes.ok_or_else(|| wrong("lacks `notes`"))?;
    let note = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    let notes: Option<_> = notes.iter().map(note).collect();
    notes.ok_or_else(|| wrong("has a note that is not a string"))
}

/// Returns the checksum of the JSON and of every byte of the tensors.
fn checksum(
    json: &str,
    layout: &ParamLayout,
    networks: &[&[f32]],
    carried: Option<&Array3<f32>>,
) -> u64 {
    let mut hash = Fnv1a::default();
    let mut add = |bytes: &[u8]| bytes.iter().for_each(|&byte| hash.add(byte.into()));
    add(json.as_bytes());
    let tensors = networks.iter().flat_map(|flat| layout.named(flat));
    tensors.for_each(|(_, tensor)| tensor.iter().for_each(|number| add(&number.to_le_bytes())));
    carried.into_iter().flatten().for_each(|number| add(&number.to_le_bytes()));
    hash.0
}

/// Returns the path of the previous checkpoint.
fn previous_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".before");
    name.into()
}

/// Keeps an intact file under the name of the previous checkpoint too.
fn keep_previous(last: &Path) -> std::io::Result<()> {
    let previous = previous_path(last);
    match std::fs::remove_file(&previous) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // A hard link keeps the file under its own name all the time. Rename on file systems without
    // hard links.
    std::fs::hard_link(last, &previous).or_else(|_| std::fs::rename(last, &previous))
}
