//! [`Checkpoint`]: all that a [`Trainer`] goes on from, in a file or in memory.
//!
//! The tensors are those of the network under the names of `save_network`, and the same again under
//! `first_moment.`, `second_moment.` and, once there was a validation, `best.`. One entry of the
//! metadata holds the rest: a checksum in hexadecimal, a space, and an object of JSON.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{Cursor, Read, Seek, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::{Error, Result, check_shape};
use crate::fingerprint::Fnv1a;
use crate::formats::checkpoint_metadata::{
    CHECKPOINT_KEY, CheckpointMetadata, VERSION, write_checksum, wrong,
};
use crate::formats::files::{self, ByteSource};
use crate::formats::metadata::{read_config, write_config};
use crate::formats::safetensors::{Tensors, encode_tensors, network_tensors};
use crate::gpu::wait::Wait;
use crate::model::blocking::blocking_and_async;
use crate::model::device::Device;
use crate::model::network::Evaluation;
use crate::spec::optimizer::OptimizerState;
use crate::spec::params::{ParamLayout, Params};
use crate::training::config::TrainerConfig;
use crate::training::learner::{Learner, LearnerConfig, LearnerState};
use crate::training::progress::{BestNetwork, DataFingerprints, Progress};
use crate::training::trainer::Trainer;

mod words;

/// What stands in front of the names of each of the networks that are in the file.
const PARENTS: [&str; 4] = ["", "first_moment.", "second_moment.", "best."];

/// All that a [`Trainer`] goes on from: the parameters, the optimizer's moments and its count of
/// updates (which the schedule goes by), the seed and the progress in the epoch (which the order of
/// the examples and the random numbers of dropout follow from), and the network that did best on
/// validation.
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
/// // While it trains: what Trainer::run calls may do this at any event.
/// trainer.checkpoint()?.save(&path)?;
/// // Another day:
/// let (checkpoint, refused) = Checkpoint::load_last(&path)?;
/// assert_eq!(refused, None); // the file was whole, so not the one before it
/// let trainer = Trainer::from_checkpoint(checkpoint, &Device::cpu())?;
/// # Ok::<(), gru_wgpu::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Checkpoint {
    /// The parameters and the optimizer's moments.
    pub state: LearnerState,
    /// How they are trained.
    pub learner_config: LearnerConfig,
    /// How long, and from which seed.
    pub trainer_config: TrainerConfig,
    /// Where the run stood.
    pub progress: Progress,
    /// The network that did best on validation so far.
    pub best: Option<BestNetwork>,
    /// Which data sets it was trained and validated on, once it was.
    pub data: Option<DataFingerprints>,
    /// Whatever the program wants to find again, by names of its own.
    pub notes: BTreeMap<String, String>,
}

/// The numbers that are neither tensors nor settings.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Counters {
    /// Updates so far.
    steps: u64,
    progress: Progress,
    /// When the best network was found, and how it does.
    best: Option<(usize, Evaluation)>,
}

impl Counters {
    /// Whether a run can come to them, and can count on from them.
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
        /// As [`Trainer::checkpoint`], of a loop of one's own that stands at `progress` with this
        /// configuration: [`Self::resume`] goes on from its state.
        ///
        /// # Errors
        /// The device's own.
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
        let (best, data, notes) = (None, None, BTreeMap::new());
        Ok(Checkpoint { state, learner_config, trainer_config, progress, best, data, notes })
    }
}

impl Trainer {
    blocking_and_async! {
        /// Waits for all that was queued and takes all that training goes on from.
        ///
        /// # Errors
        /// The device's own.
        pub fn checkpoint, checkpoint_async(&mut self) -> Result<Checkpoint> {
            |wait| self.run_checkpoint(wait)
        }

        /// Goes on from where [`Self::checkpoint`] was taken: over the same data sets, and
        /// [`Self::run`] takes no others, on the same device to the same bits as if it had not been
        /// interrupted. A run with [`RunOptions`](crate::RunOptions) of its own goes on by
        /// [`Learner::resume`], [`Learner::with_options`], [`Self::resume`] and
        /// [`Self::with_data`].
        ///
        /// # Errors
        /// As [`Learner::resume`] and [`Self::resume`].
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
        let checkpoint = self.learner().run_checkpoint(trainer_config, progress, wait).await?;
        Ok(Checkpoint { best, data, ..checkpoint })
    }

    async fn restore(checkpoint: Checkpoint, device: &Device) -> Result<Self> {
        let Checkpoint { state, learner_config, trainer_config, progress, best, data, .. } =
            checkpoint;
        let learner = Learner::resume_async(state, learner_config, device).await?;
        Ok(Self::resume(learner, trainer_config, progress, best)?.with_data(data))
    }
}

impl Checkpoint {
    /// Writes it as a safetensors file: whole, flushed to the disk, or not at all. What was at
    /// `path` before stays beside it, as `<path>.before`, unless [`Self::load`] would refuse it:
    /// then the one before it stays. At every moment at least one of the two is whole.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Shape`] or [`Error::ParameterLayout`] when the moments or the best
    /// network were replaced by those of another.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let bytes = self.to_bytes()?;
        let keep_whole = |last: &Path| if Self::load(last).is_ok() { keep(last) } else { Ok(()) };
        files::replace_whole(path.as_ref(), |to| to.write_all(&bytes), keep_whole)
    }

    /// The same to any stream, which keeps no copy of the one before.
    ///
    /// # Errors
    /// As [`Self::save`].
    pub fn write(&self, to: impl Write) -> Result<()> {
        let bytes = self.to_bytes()?;
        files::write_stream(to, |to| to.write_all(&bytes))
    }

    /// The bytes of the file that [`Self::save`] writes, for wherever else they are kept.
    ///
    /// # Errors
    /// As [`Self::save`], but for [`Error::Io`].
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let layout = self.state.params.layout();
        let networks = self.networks()?;
        let json = self.json()?;
        let checksum = write_checksum(checksum(&json, layout, &networks));
        let entry = format!("{checksum} {json}");
        let tensors = PARENTS.iter().zip(networks);
        let tensors = tensors.flat_map(|(parent, flat)| network_tensors(parent, layout, flat));
        encode_tensors(tensors, Some((CHECKPOINT_KEY, entry)))
    }

    /// Reads what [`Self::to_bytes`] gave, or the bytes of a file.
    ///
    /// # Errors
    /// As [`Self::load`], but for [`Error::Io`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::read(Cursor::new(bytes))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] when it is cut short, was changed, or is none; and those of
    /// what it holds that makes no sense, as [`LearnerConfig::validate`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        files::open(path.as_ref(), read_source)
    }

    /// As [`Self::load`], from any source.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn read(source: impl Read + Seek) -> Result<Self> {
        read_source(ByteSource::new(source)?)
    }

    /// Loads the last one saved to `path`, or where that is refused the one before it, with the
    /// reason why the last was refused.
    ///
    /// # Errors
    /// As [`Self::load`], when both are refused: that of the last.
    pub fn load_last(path: impl AsRef<Path>) -> Result<(Self, Option<Error>)> {
        let path = path.as_ref();
        let refused = match Self::load(path) {
            Ok(last) => return Ok((last, None)),
            Err(refused) => refused,
        };
        let target = files::target_of(path).unwrap_or_else(|_| path.to_owned());
        match Self::load(before(&target)) {
            Ok(before) => Ok((before, Some(refused))),
            Err(_) => Err(refused),
        }
    }

    /// The flat buffers that become tensors, in the order of [`PARENTS`].
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

    /// What is no tensor.
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
            "learner": words::write_learner(&self.learner_config),
            "trainer": words::write_trainer(&self.trainer_config),
            "progress": words::write_counters(&counters),
            "notes": self.notes,
        });
        if let Some(data) = &self.data {
            entries["data"] = words::write_data(data).into();
        }
        Ok(entries.to_string())
    }
}

fn read_source<S: Read + Seek>(source: ByteSource<S>) -> Result<Checkpoint> {
    let mut file = Tensors::open(source)?;
    let entry = file.entry(CHECKPOINT_KEY).ok_or_else(|| {
        Error::format(
            "its metadata does not say that it is a checkpoint of a training run".to_owned(),
        )
    })?;
    let entry = CheckpointMetadata::parse(entry)?;
    let learner_config = words::read_learner(entry.text("learner")?)?;
    let trainer_config = words::read_trainer(entry.text("trainer")?)?;
    let counters = words::read_counters(entry.text("progress")?)?;
    let has_data = entry.values.contains_key("data");
    let data = has_data.then(|| words::read_data(entry.text("data")?)).transpose()?;
    let (config, over) = read_config(entry.model()?)?;
    let over = over.ok_or_else(|| wrong("tells of no head"))?;
    let parents = &PARENTS[..if counters.best.is_some() { 4 } else { 3 }];
    let mut networks = Vec::new();
    let mut tensors = 0;
    for parent in parents {
        let gru = format!("{parent}gru.");
        let layout = file.network_layout(&gru, &config, over)?;
        tensors += layout.entries().len();
        // What comes back is what was written, whatever a caller put there.
        networks.push(file.params(&gru, layout, true)?);
    }
    let layout = networks[0].layout();
    if networks.iter().any(|network| network.layout() != layout) || tensors != file.count() {
        return Err(Error::format("it holds tensors that are none of its networks'".to_owned()));
    }
    let flat: Vec<_> = networks.iter().map(Params::as_slice).collect();
    if checksum(&entry.json, layout, &flat) != entry.checksum {
        return Err(Error::format("its contents were changed: the checksum is another".to_owned()));
    }
    let best = counters.best.and_then(|(epoch, validation)| {
        Some(BestNetwork { epoch, validation, params: networks.pop()? })
    });
    let [second, first, params] = [networks.pop(), networks.pop(), networks.pop()]
        .map(|network| network.expect("three were read"));
    let [first, second] = [first, second].map(Params::into_flat);
    let moments = OptimizerState { first, second, steps: counters.steps };
    Ok(Checkpoint {
        state: LearnerState { params, moments },
        learner_config,
        trainer_config,
        progress: counters.progress,
        best,
        data,
        notes: notes(&entry)?,
    })
}

/// The program's own entries, by their names.
fn notes(entry: &CheckpointMetadata) -> Result<BTreeMap<String, String>> {
    let notes = entry.values.get("notes").and_then(Value::as_object);
    let notes = notes.ok_or_else(|| wrong("lacks `notes`"))?;
    let note = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    let notes: Option<_> = notes.iter().map(note).collect();
    notes.ok_or_else(|| wrong("has notes that are no text"))
}

/// Over every byte.
fn checksum(json: &str, layout: &ParamLayout, networks: &[&[f32]]) -> u64 {
    let mut hash = Fnv1a::default();
    let mut add = |bytes: &[u8]| bytes.iter().for_each(|&byte| hash.add(byte.into()));
    add(json.as_bytes());
    let tensors = networks.iter().flat_map(|flat| layout.named(flat));
    tensors.for_each(|(_, tensor)| tensor.iter().for_each(|number| add(&number.to_le_bytes())));
    hash.0
}

/// Where the one before is.
fn before(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".before");
    name.into()
}

/// Gives a file, which is whole, the name of the one before as well.
fn keep(last: &Path) -> std::io::Result<()> {
    let before = before(last);
    match std::fs::remove_file(&before) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // A second name, so that the first one is there all the time; not every file system has those.
    std::fs::hard_link(last, &before).or_else(|_| std::fs::rename(last, &before))
}
