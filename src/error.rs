//! [`Error`]: the one error type of this crate. Each message says what was expected, what came and
//! what to do next.

use std::ops::Range;

use crate::fingerprint::DataFingerprint;

mod allocate;
mod cause;

pub(crate) use allocate::{
    checked_len, try_array, try_grow, try_lazy_zeros, try_with_capacity, try_zeros,
};
pub use cause::Cause;

/// An error of this crate, one variant for each kind of failure.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A size that must be at least 1 is 0.
    #[error("{what} is 0; every size must be at least 1")]
    ZeroSize {
        /// The size's name.
        what: &'static str,
    },

    /// An array does not have the shape that the model and the other arguments require.
    #[error("{what} has shape {got:?}, expected {expected:?}")]
    Shape {
        /// The array's name, with the meaning of its axes.
        what: String,
        /// The required shape.
        expected: Vec<usize>,
        /// The array's shape.
        got: Vec<usize>,
    },

    /// A row's length is larger than the number of steps.
    #[error("the length of row {row} is {length}, but x has {steps} steps")]
    Length {
        /// The batch row, from 0.
        row: usize,
        /// The row's length.
        length: usize,
        /// T, the number of steps.
        steps: usize,
    },

    /// A probability of dropout or zoneout is not in 0 ≤ p < 1.
    #[error("{what} is {got}; expected a probability of at least 0 and less than 1")]
    Probability {
        /// The setting's name.
        what: &'static str,
        /// The value, as text.
        got: String,
    },

    /// A numeric setting, mostly of training, is out of range.
    #[error("{what} is {got}; expected {expected}")]
    Setting {
        /// The setting's name.
        what: &'static str,
        /// The value, as text.
        got: String,
        /// The range of valid values.
        expected: &'static str,
    },

    /// A target class is not below the head's number of outputs.
    #[error(
        "target {row} is class {class}; expected 0 to {}, since the head has {outputs} outputs; \
         to leave out a class, set it as the `ignore` of Loss::CrossEntropy", outputs - 1
    )]
    Class {
        /// The row of outputs, from 0, in the order of the targets.
        row: usize,
        /// The target class.
        class: i32,
        /// C, the head's number of outputs.
        outputs: usize,
    },

    /// The training set is empty.
    #[error("the training set is empty; give at least one example")]
    NoExamples,

    /// A run is continued with other examples than it was started with.
    #[error(
        "the examples to {what} are {got}, but the run was started with {expected}; use the same \
         examples, or allow others with Trainer::with_data(None)"
    )]
    OtherData {
        /// What the run uses the examples for: `train on` or `validate on`.
        what: &'static str,
        /// The fingerprint of the examples that the run was started with.
        expected: DataFingerprint,
        /// The fingerprint of the examples given now.
        got: DataFingerprint,
    },

    /// No row of a batch counts in the loss: all rows are padding or have the ignored class.
    #[error(
        "no target of this batch counts: every row is padding or has the ignored class; leave the \
         batch out"
    )]
    NoTarget,

    /// An update met a loss or a gradient that is not finite, or would have made a parameter or an
    /// optimizer moment not finite. Parameters and moments keep the values from before the update.
    #[error(
        "update {step}{} diverged: loss {loss}, gradient norm {norm}, largest gradient element \
         {largest} in {parameter}{}; lower the learning rate or clip the gradient (Clip::Norm)",
        describe_made_from(made_from.as_deref()), describe_outcome(*loss, *norm)
    )]
    Diverged {
        /// The update, from 0.
        step: u64,
        /// The update's loss.
        loss: f32,
        /// The Euclidean norm of the gradient.
        norm: f32,
        /// The gradient's largest absolute element. NaN counts as larger than any number.
        largest: f32,
        /// The name of the parameter that the largest element belongs to.
        parameter: String,
        /// The examples of the update, if a [`Trainer`](crate::Trainer) made it.
        made_from: Option<Box<MadeFrom>>,
    },

    /// The loss on the validation set after an epoch is not finite.
    #[error(
        "epoch {epoch} diverged: the validation loss is {loss}; check the validation set for values \
         that are not finite, or lower the learning rate"
    )]
    DivergedValidation {
        /// The epoch, from 0.
        epoch: usize,
        /// The validation loss.
        loss: f64,
    },

    /// A training run of a model with dropout or zoneout has no seed for its random numbers.
    #[error(
        "training with dropout or zoneout needs a seed, but the batch has none; give each run its own \
         (Batch::with_seed)"
    )]
    NoSeed,

    /// Two settings or arguments cannot be combined.
    #[error("{what} cannot be combined: {why}")]
    Conflict {
        /// The two settings or arguments.
        what: &'static str,
        /// The reason.
        why: &'static str,
    },

    /// A caller's buffer does not have the size, usage or alignment that a run requires.
    #[error("the buffer for {what} has {got}, expected {expected}")]
    Buffer {
        /// The tensor that the buffer is for.
        what: &'static str,
        /// The required size, usage or alignment.
        expected: String,
        /// The buffer's size, usage or alignment.
        got: String,
    },

    /// A stream or a forward pass was used with a model that did not make it.
    #[error("this {what} was made by another model; use it with the model that made it")]
    OtherModel {
        /// `stream` or `forward pass`.
        what: &'static str,
    },

    /// A chunk has a number of steps that the stream was not made for.
    #[error(
        "the chunk has {steps} steps, but the stream was made for chunks of {known:?} steps; list all \
         chunk lengths in Gru::stream"
    )]
    Chunk {
        /// The chunk's number of steps.
        steps: usize,
        /// The chunk lengths that the stream was made for.
        known: Vec<usize>,
    },

    /// A row index is not below the number of rows of a stream.
    #[error("there is no row {row}; the stream has {rows} rows, counted from 0")]
    Row {
        /// The requested row.
        row: usize,
        /// B, the number of rows.
        rows: usize,
    },

    /// An earlier step of a stream or update of a learner failed on the device, or its future was
    /// dropped before it finished. The contents of the device's buffers are unknown.
    #[error("an earlier step of this {what} failed or was cancelled; make a new {what}")]
    Interrupted {
        /// `stream` or `learner`.
        what: &'static str,
    },

    /// A product of sizes overflows the address space.
    #[error("{what}: the size overflows; use smaller sizes")]
    Overflow {
        /// The name of the size, or of the array that has it.
        what: &'static str,
    },

    /// No parameter has the requested name.
    #[error("no parameter is named `{name}`; this model has {}", known.join(", "))]
    UnknownParameter {
        /// The requested name.
        name: String,
        /// The names of all parameters.
        known: Vec<String>,
    },

    /// Parameters belong to another configuration than the model's.
    #[error(
        "the parameters belong to a {got}, but the model is a {expected}; use parameters of the \
         same configuration"
    )]
    ParameterLayout {
        /// The model's configuration.
        expected: String,
        /// The parameters' configuration.
        got: String,
    },

    /// The work exceeds a limit of the adapter or of the kernels. Computed before any GPU call.
    #[error(
        "{what}: {limit} is {allowed}, but {asked} is needed; use smaller sizes or a device with a \
         higher limit"
    )]
    Limit {
        /// The buffer, binding or kernel that exceeds the limit.
        what: String,
        /// The limit's name, as in [`Limits`](crate::plan::Limits) where it is one of its fields.
        limit: &'static str,
        /// The required size.
        asked: u64,
        /// The allowed size.
        allowed: u64,
    },

    /// A file cannot be opened, read or written.
    #[error("{path} {reason}")]
    Io {
        /// The file's path.
        path: String,
        /// What failed, and the operating system's message.
        reason: String,
        /// The operating system's error, if there is one.
        source: Option<Cause>,
    },

    /// The contents of a file are malformed or not supported. The message names the file, if there
    /// is one.
    #[error("{reason}")]
    Format {
        /// What is wrong with the contents.
        reason: String,
        /// The parser's error, if there is one.
        source: Option<Cause>,
    },

    /// A file does not hold exactly one model and none was chosen, or it does not hold the chosen
    /// one.
    #[error("{within} {}", describe_choice(of, asked.as_deref(), found, by))]
    Choice {
        /// The file, or the part of it that was searched.
        within: String,
        /// The kind of model, such as `GRU`.
        of: &'static str,
        /// The requested name, if there is one.
        asked: Option<String>,
        /// The names of all models found.
        found: Vec<String>,
        /// The option that chooses a model: `prefix` or `node`.
        by: &'static str,
    },

    /// A text is not the name of a [`DeviceKind`](crate::DeviceKind).
    #[error("{}", describe_unknown_device(.0))]
    UnknownDevice(String),

    /// A text is not the name of a [`Recurrence`](crate::Recurrence).
    #[error("unknown kernel family `{0}`; expected auto, step, sequence or persistent")]
    UnknownRecurrence(String),

    /// The computer has no adapter of the requested kind.
    #[error("no {asked} adapter found ({}); {hint}", describe_adapters(found))]
    NoAdapter {
        /// The requested kind.
        asked: &'static str,
        /// The name and kind of every adapter found.
        found: Vec<String>,
        /// What to install.
        hint: &'static str,
    },

    /// The computer has too few hardware GPUs for the requested index.
    #[error("there is no gpu:{index} ({}){}", describe_adapters(found), describe_other_kind(found))]
    NoGpuAt {
        /// The requested index, from 0.
        index: usize,
        /// Every adapter found: the hardware GPUs with their indices, then the others.
        found: Vec<String>,
    },

    /// The driver failed to open the adapter.
    #[error(
        "cannot open the adapter {adapter}: {reason}; update its driver or choose another device"
    )]
    OpenDevice {
        /// The adapter's name.
        adapter: String,
        /// The driver's message.
        reason: String,
        /// wgpu's error, if there is one.
        source: Option<Cause>,
    },

    /// The device was lost (driver reset, unplugged, destroyed). Nothing more can run on it.
    #[error("the GPU device is lost: {0}; open a new Device and move the model to it with Gru::to")]
    DeviceLost(String),

    /// A forked child process used something that its parent made. The child has none of its
    /// parent's threads, and the driver does not know the child.
    #[error(
        "{what} belongs to process {parent}, but this is process {here}, forked from it; fork before the \
         first use, or use it only in the parent"
    )]
    Forked {
        /// The object that belongs to the parent.
        what: &'static str,
        /// The id of the process that made the object.
        parent: u32,
        /// The id of this process.
        here: u32,
    },

    /// The device did not finish within the limit of
    /// [`Device::with_wait_limit`](crate::Device::with_wait_limit).
    ///
    /// Queued work stays queued: it continues to run, and later calls run after it. Models and
    /// their parameters remain usable, and so do new calls. The result of the call is lost, and a
    /// tape passed to it is consumed. A stream or a learner whose own step was interrupted returns
    /// [`Self::Interrupted`] from then on.
    #[error(
        "waited {limit:?} for {what}, but the device has not finished; raise the limit of \
         Device::with_wait_limit"
    )]
    Timeout {
        /// The result that the call waited for.
        what: &'static str,
        /// The time that the call waited.
        limit: std::time::Duration,
    },

    /// The device or the host ran out of memory.
    #[error("out of memory: {reason}")]
    OutOfMemory {
        /// The allocation that failed.
        reason: String,
        /// The error of wgpu or of the allocator, if there is one.
        source: Option<Cause>,
    },

    /// wgpu refused a call on a device that is not lost. This is a bug of this library; please
    /// report it.
    #[error("wgpu reported an error, which is a bug of gru-wgpu; please report it: {reason}")]
    Gpu {
        /// wgpu's message.
        reason: String,
        /// wgpu's error, if there is one.
        source: Option<Cause>,
    },

    /// A [`Tape`](crate::Tape) was used with a model that did not record it, or after the
    /// parameters changed.
    #[error("this tape cannot be used: {0}; record a new one with Gru::forward_train")]
    Tape(&'static str),

    /// A backward pass was called without a gradient to start from.
    #[error("backward needs dy, dh_n or both; neither was given")]
    NoGradient,
}

/// The batches and examples that an update of a [`Trainer`](crate::Trainer) was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MadeFrom {
    /// The epoch, from 0.
    pub epoch: usize,
    /// The indices of the batches within the epoch, from 0.
    pub batches: Range<usize>,
    /// The indices of the batches' examples in the training set.
    pub examples: Vec<usize>,
}

/// A `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn describe_adapters(found: &[String]) -> String {
    if found.is_empty() {
        "no adapters are available".to_owned()
    } else {
        format!("available: {}", found.join(", "))
    }
}

fn describe_unknown_device(word: &str) -> String {
    let digits = word.strip_prefix("gpu:").filter(|digits| !digits.is_empty());
    if digits.is_some_and(|digits| digits.bytes().all(|c| c.is_ascii_digit())) {
        return format!("the index of device `{word}` is too large; the first GPU is gpu:0");
    }
    format!(
        "unknown device `{word}`; expected auto, cpu, gpu, software, or gpu:0, gpu:1, ... for one of \
         several GPUs"
    )
}

/// Suggests a software adapter if there are adapters but no hardware GPU.
fn describe_other_kind(found: &[String]) -> &'static str {
    match !found.is_empty() && found.iter().all(|adapter| !adapter.starts_with("gpu:")) {
        true => "; none is a hardware GPU: use Device::software (--device software)",
        false => "",
    }
}

fn describe_made_from(made_from: Option<&MadeFrom>) -> String {
    const MAX_LISTED: usize = 20;
    let Some(MadeFrom { epoch, batches, examples }) = made_from else { return String::new() };
    let batches = match batches.len() {
        1 => format!("batch {}", batches.start),
        _ => format!("batches {} to {}", batches.start, batches.end.saturating_sub(1)),
    };
    let mut listed: Vec<_> = examples.iter().take(MAX_LISTED).map(ToString::to_string).collect();
    if examples.len() > MAX_LISTED {
        listed.push(format!("{} more", examples.len() - MAX_LISTED));
    }
    format!(" (epoch {epoch}, {batches}, examples {})", listed.join(", "))
}

/// Explains a divergence whose loss and gradient are finite.
fn describe_outcome(loss: f32, norm: f32) -> &'static str {
    match loss.is_finite() && norm.is_finite() {
        true => ", and parameters or moments would not be finite after it",
        false => "",
    }
}

fn describe_choice(of: &str, asked: Option<&str>, found: &[String], by: &str) -> String {
    const MAX_LISTED: usize = 20;
    let listed: Vec<_> = found.iter().take(MAX_LISTED).map(|name| quote(name)).collect();
    let mut listed = listed.join(", ");
    if found.len() > MAX_LISTED {
        listed = format!("{listed} and {} more", found.len() - MAX_LISTED);
    }
    match (asked, found.len()) {
        (None, 0) => format!("holds no {of}"),
        (None, count) => format!("holds {count} {of}s; choose one by its {by}: {listed}"),
        (Some(asked), 0) => format!("holds no {of}, so none named {}", quote(asked)),
        (Some(asked), _) => {
            format!("holds no {of} {}; choose one by its {by}: {listed}", quote(asked))
        }
    }
}

/// Quotes text from a file for a message: escaped to one line, and cut after 120 characters.
pub(crate) fn quote(text: &str) -> String {
    const MAX_CHARS: usize = 120;
    let mut escaped = String::new();
    for c in text.chars().take(MAX_CHARS) {
        match c {
            // Not escaped: harmless in a message, and frequent in paths.
            '\'' | '"' | '\\' => escaped.push(c),
            c => escaped.extend(c.escape_debug()),
        }
    }
    let rest = if text.chars().nth(MAX_CHARS).is_some() { "…" } else { "" };
    format!("`{escaped}{rest}`")
}

impl Error {
    /// Returns an [`Error::Setting`].
    pub(crate) fn setting(
        what: &'static str,
        got: impl std::fmt::Display,
        expected: &'static str,
    ) -> Self {
        Self::Setting { what, got: got.to_string(), expected }
    }
}

#[cfg(any(feature = "npy", feature = "onnx", feature = "pytorch", feature = "safetensors"))]
impl Error {
    /// Returns an [`Error::Format`] without a source, for errors that this library itself detects.
    pub(crate) fn format(reason: impl Into<String>) -> Self {
        Self::Format { reason: reason.into(), source: None }
    }

    /// Returns an [`Error::Format`] with a parser's error as its source.
    pub(crate) fn format_from(
        reason: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Format { reason: reason.into(), source: Some(Cause::new(source)) }
    }

    /// Puts the name of a file or of a part of one in front of an [`Error::Format`]'s reason.
    /// Other errors stay unchanged.
    pub(crate) fn within(self, name: &str) -> Self {
        match self {
            Self::Format { reason, source } => {
                Self::Format { reason: format!("{name}: {reason}"), source }
            }
            other => other,
        }
    }
}

/// Returns `Ok` if `got` equals `expected`, else an [`Error::Shape`] that names `what`.
pub(crate) fn check_shape(what: &str, expected: &[usize], got: &[usize]) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(Error::Shape { what: what.to_owned(), expected: expected.to_vec(), got: got.to_vec() })
}
