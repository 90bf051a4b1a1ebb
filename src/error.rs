//! The one error type. Every message says what was expected and what came.

use std::ops::Range;

use crate::fingerprint::DataFingerprint;

mod allocate;
mod cause;

pub(crate) use allocate::{checked_len, try_array, try_grow, try_room, try_untouched, try_zeros};
pub use cause::Cause;

/// What can go wrong, one variant a cause.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A size that must be at least 1 is 0.
    #[error("{what} is 0; every size must be at least 1")]
    ZeroSize {
        /// Which size.
        what: &'static str,
    },

    /// An array does not have the shape that the model and the other arguments ask for.
    #[error("{what} has shape {got:?}, expected {expected:?}")]
    Shape {
        /// Which array, with the meaning of its axes.
        what: String,
        /// The shape asked for.
        expected: Vec<usize>,
        /// The shape that came.
        got: Vec<usize>,
    },

    /// A row's length is more than the steps there are.
    #[error("the length of row {row} is {length}, but x has {steps} steps")]
    Length {
        /// The batch row.
        row: usize,
        /// Its length.
        length: usize,
        /// T.
        steps: usize,
    },

    /// A probability of dropout or zoneout is not one that makes sense.
    #[error("{what} is {got}; expected a probability of at least 0 and less than 1")]
    Probability {
        /// Which one.
        what: &'static str,
        /// What came.
        got: String,
    },

    /// A number among the settings, of training for the most part, makes no sense there.
    #[error("{what} is {got}; expected {expected}")]
    Setting {
        /// Which one.
        what: &'static str,
        /// What came.
        got: String,
        /// What would make sense.
        expected: &'static str,
    },

    /// A target is none of the classes that the model tells apart.
    #[error("target {row} is class {class}; the model's outputs stand for classes 0 to {}", outputs - 1)]
    Class {
        /// The row of outputs, counted in the targets' order.
        row: usize,
        /// The class that came.
        class: i32,
        /// C.
        outputs: usize,
    },

    /// There is nothing to train on.
    #[error("there are no examples to train on")]
    NoExamples,

    /// A run was to go on over other examples than those it was started with.
    #[error(
        "the examples to {what} are {got}, but the run was started with {expected}; Trainer::with_data lets \
         it go on over others"
    )]
    OtherData {
        /// What they are for.
        what: &'static str,
        /// Those it was started with.
        expected: DataFingerprint,
        /// Those that came.
        got: DataFingerprint,
    },

    /// No row of a batch counts: all are padding or to be ignored.
    #[error("no target of this batch counts: all rows are padding or of the ignored class")]
    NoTarget,

    /// Training met a loss or a gradient that is not finite, or one that would have made a
    /// parameter or one of the optimizer's moments so. They are still those before.
    #[error(
        "step {step}{} diverged: loss {loss}, the gradient's norm {norm}, its largest element {largest} in \
         {parameter}{}", describe_made_from(made_from.as_deref()), describe_outcome(*loss, *norm)
    )]
    Diverged {
        /// The update, counted from 0.
        step: u64,
        /// Its loss.
        loss: f32,
        /// The Euclidean norm of the gradient.
        norm: f32,
        /// The gradient's largest element, where NaN counts as larger than any other.
        largest: f32,
        /// The parameter that it belongs to.
        parameter: String,
        /// What the update was made from, where a [`Trainer`](crate::Trainer) made it.
        made_from: Option<Box<MadeFrom>>,
    },

    /// After an epoch, the loss on the examples kept for validation is not finite.
    #[error("epoch {epoch} diverged: the loss of the examples that it is validated on is {loss}")]
    DivergedValidation {
        /// The epoch, from 0.
        epoch: usize,
        /// The loss.
        loss: f64,
    },

    /// A training run of a model with dropout or zoneout came without a seed to draw from.
    #[error(
        "dropout and zoneout draw random numbers while training; give each run a seed of its own \
         (Batch::with_seed)"
    )]
    NoSeed,

    /// Two things that cannot be combined.
    #[error("{what} cannot be combined: {why}")]
    Conflict {
        /// The two.
        what: &'static str,
        /// Why not.
        why: &'static str,
    },

    /// A caller's own buffer does not have what a run needs of it.
    #[error("the buffer for {what} has {got}, expected {expected}")]
    Buffer {
        /// Which one.
        what: &'static str,
        /// The size, usage or alignment asked for.
        expected: String,
        /// What came.
        got: String,
    },

    /// A stream or a forward pass was given to a model other than the one that made it.
    #[error("this {what} belongs to another model")]
    OtherModel {
        /// What was given.
        what: &'static str,
    },

    /// A stream was not made for chunks of this length.
    #[error("a chunk has {steps} steps, but the stream was made for chunks of {known:?}")]
    Chunk {
        /// The steps that came.
        steps: usize,
        /// The lengths it was made for.
        known: Vec<usize>,
    },

    /// A stream has no such row.
    #[error("there is no row {row}; the stream has {rows}")]
    Row {
        /// The row asked for.
        row: usize,
        /// B.
        rows: usize,
    },

    /// An earlier step of a stream, or an update of a learner, failed on the device, or its future
    /// was dropped before it was done; what is on the device cannot be relied on.
    #[error("an earlier step of this {what} was not brought to its end; make a new one")]
    Interrupted {
        /// Of what.
        what: &'static str,
    },

    /// A product of sizes does not fit this machine's address space.
    #[error("{what}: too large, the number of elements overflows")]
    Overflow {
        /// What was being sized.
        what: &'static str,
    },

    /// No parameter has this name.
    #[error("no parameter is named `{name}`; this model has {}", known.join(", "))]
    UnknownParameter {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },

    /// A model's parameters were replaced by those of another configuration.
    #[error("these parameters belong to a {got}, the model is a {expected}")]
    ParameterLayout {
        /// The model's configuration.
        expected: String,
        /// The configuration that the parameters were made for.
        got: String,
    },

    /// The work does not fit a limit of the adapter or of the kernels. Found by arithmetic, before
    /// any GPU call.
    #[error("{what} asks for {asked}, but {limit} is {allowed}")]
    Limit {
        /// What asked for too much.
        what: String,
        /// The limit's name, as WebGPU spells it.
        limit: &'static str,
        /// The size asked for.
        asked: u64,
        /// The size allowed.
        allowed: u64,
    },

    /// A file cannot be opened, read or written.
    #[error("{path} {reason}")]
    Io {
        /// The file.
        path: String,
        /// What could not be done, and the system's words.
        reason: String,
        /// The system's error, where there is one.
        source: Option<Cause>,
    },

    /// What a file holds is not what it should be, or is nothing that can be used. The file is
    /// named where there is one.
    #[error("{reason}")]
    Format {
        /// What is wrong with it.
        reason: String,
        /// The error of the parser that refused it, where there is one.
        source: Option<Cause>,
    },

    /// A file holds several models, or none, where one was to be taken, or not the one asked for.
    #[error("{within} {}", describe_choice(of, asked.as_deref(), found, by))]
    Choice {
        /// The file, or what stands for it.
        within: String,
        /// What there is to choose from.
        of: &'static str,
        /// The name asked for.
        asked: Option<String>,
        /// The names there are.
        found: Vec<String>,
        /// What a choice is made by.
        by: &'static str,
    },

    /// A word that names no [`DeviceKind`](crate::DeviceKind).
    #[error("{}", describe_unknown_device(.0))]
    UnknownDevice(String),

    /// A word that names no recurrence.
    #[error("unknown kernel `{0}`; expected auto, step or sequence")]
    UnknownRecurrence(String),

    /// The kind of adapter that was asked for by name is not on this machine.
    #[error("no {asked} adapter found ({}); {hint}", describe_adapters(found))]
    NoAdapter {
        /// The kind asked for.
        asked: &'static str,
        /// What was found instead, by name and kind.
        found: Vec<String>,
        /// What to do about it.
        hint: &'static str,
    },

    /// There are fewer hardware GPUs on this machine than the index asks for.
    #[error("there is no gpu:{index} ({}){}", describe_adapters(found), describe_other_kind(found))]
    NoGpuAt {
        /// The index asked for, from 0.
        index: usize,
        /// What there is: each GPU after its index, then the other adapters.
        found: Vec<String>,
    },

    /// The driver does not open the adapter.
    #[error("the adapter {adapter} would not open: {reason}")]
    OpenDevice {
        /// The adapter's name.
        adapter: String,
        /// The driver's words.
        reason: String,
        /// wgpu's error, where there is one.
        source: Option<Cause>,
    },

    /// The device was lost (driver reset, unplugged, destroyed). Nothing more can run on it.
    #[error("the GPU device is lost: {0}")]
    DeviceLost(String),

    /// The process forked after this was made. The child has none of its parent's threads, and its
    /// driver knows nothing of the child.
    #[error(
        "{what} belongs to process {parent}, and this is process {here}, forked from it; fork before the \
         first use, or use it in the parent alone"
    )]
    Forked {
        /// What belongs to the parent.
        what: &'static str,
        /// The process that it was made in.
        parent: u32,
        /// This process.
        here: u32,
    },

    /// The device did not finish within the limit of
    /// [`Device::with_wait_limit`](crate::Device::with_wait_limit).
    ///
    /// What was queued is still queued: it runs on, and what is asked for next comes after it.
    /// Models, their parameters and new calls are none the worse; what the call was to give is not
    /// given, a tape that it used is used up, and a stream or a learner in the middle of its own
    /// work says [`Self::Interrupted`] from then on.
    #[error("waited {limit:?} for {what}; the device has not finished")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// How long.
        limit: std::time::Duration,
    },

    /// The device or the host ran out of memory.
    #[error("out of memory: {reason}")]
    OutOfMemory {
        /// What there is no memory for.
        reason: String,
        /// wgpu's error, or the allocator's, where there is one.
        source: Option<Cause>,
    },

    /// wgpu refused a call on a device that is not lost. This is a defect of this library; please
    /// report it.
    #[error("wgpu reported an error: {reason}")]
    Gpu {
        /// wgpu's words.
        reason: String,
        /// wgpu's error, where there is one.
        source: Option<Cause>,
    },

    /// A [`Tape`](crate::Tape) was given to a model other than the one that recorded it, or the
    /// parameters changed since.
    #[error("this tape cannot be used: {0}")]
    Tape(&'static str),

    /// A backward pass was asked for without any gradient to start from.
    #[error("backward needs dy, dh_n or both; neither was given")]
    NoGradient,
}

/// What an update of a [`Trainer`](crate::Trainer) was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MadeFrom {
    /// The epoch, from 0.
    pub epoch: usize,
    /// Its batches, counted from 0 in the epoch.
    pub batches: Range<usize>,
    /// All their examples, by their places in what the trainer was given.
    pub examples: Vec<usize>,
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn describe_adapters(found: &[String]) -> String {
    if found.is_empty() {
        "this machine shows no adapter at all".to_owned()
    } else {
        format!("this machine shows {}", found.join(", "))
    }
}

fn describe_unknown_device(word: &str) -> String {
    let digits = word.strip_prefix("gpu:").filter(|digits| !digits.is_empty());
    if digits.is_some_and(|digits| digits.bytes().all(|c| c.is_ascii_digit())) {
        return format!("device `{word}` has too large an index; the first GPU is gpu:0");
    }
    format!(
        "unknown device `{word}`; expected auto, cpu, gpu or software, or gpu:0, gpu:1 and so on for \
         one of several GPUs"
    )
}

/// What to ask for where there are adapters and none of them is a hardware GPU.
fn describe_other_kind(found: &[String]) -> &'static str {
    match !found.is_empty() && found.iter().all(|adapter| !adapter.starts_with("gpu:")) {
        true => "; it is no hardware GPU: --device software takes a software adapter",
        false => "",
    }
}

fn describe_made_from(made_from: Option<&MadeFrom>) -> String {
    const MOST: usize = 20;
    let Some(MadeFrom { epoch, batches, examples }) = made_from else { return String::new() };
    let batches = match batches.len() {
        1 => format!("batch {}", batches.start),
        _ => format!("batches {} to {}", batches.start, batches.end.saturating_sub(1)),
    };
    let mut listed: Vec<_> = examples.iter().take(MOST).map(ToString::to_string).collect();
    if examples.len() > MOST {
        listed.push(format!("{} more", examples.len() - MOST));
    }
    format!(" (epoch {epoch}, {batches}, of examples {})", listed.join(", "))
}

/// What is said where all that led to an update is finite.
fn describe_outcome(loss: f32, norm: f32) -> &'static str {
    match loss.is_finite() && norm.is_finite() {
        true => "; parameters or moments would not be finite after it",
        false => "",
    }
}

fn describe_choice(of: &str, asked: Option<&str>, found: &[String], by: &str) -> String {
    const MOST: usize = 20;
    let listed: Vec<_> = found.iter().take(MOST).map(|name| quote(name)).collect();
    let mut listed = listed.join(", ");
    if found.len() > MOST {
        listed = format!("{listed} and {} more", found.len() - MOST);
    }
    match (asked, found.len()) {
        (None, 0) => format!("holds no {of}"),
        (None, count) => format!("holds {count} {of}s; choose one by its {by}: {listed}"),
        (Some(asked), 0) => format!("holds no {of} {}, nor any other", quote(asked)),
        (Some(asked), _) => format!("holds no {of} {}, but {listed}", quote(asked)),
    }
}

/// Text from a file as it may appear in a message: on one line, no longer than can be read.
pub(crate) fn quote(text: &str) -> String {
    const LONGEST: usize = 120;
    let mut escaped = String::new();
    for c in text.chars().take(LONGEST) {
        match c {
            // They do no harm, and paths are full of the last one.
            '\'' | '"' | '\\' => escaped.push(c),
            c => escaped.extend(c.escape_debug()),
        }
    }
    let rest = if text.chars().nth(LONGEST).is_some() { "…" } else { "" };
    format!("`{escaped}{rest}`")
}

impl Error {
    /// [`Error::Setting`] of a number that came.
    pub(crate) fn setting(
        what: &'static str,
        got: impl std::fmt::Display,
        expected: &'static str,
    ) -> Self {
        Self::Setting { what, got: got.to_string(), expected }
    }
}

#[cfg(any(feature = "npy", feature = "onnx", feature = "safetensors"))]
impl Error {
    /// [`Error::Format`] of what this library itself found wrong.
    pub(crate) fn format(reason: impl Into<String>) -> Self {
        Self::Format { reason: reason.into(), source: None }
    }

    /// [`Error::Format`] of what a parser refused.
    pub(crate) fn format_from(
        reason: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Format { reason: reason.into(), source: Some(Cause::new(source)) }
    }

    /// The same error, where it is an [`Error::Format`] with the name of the file or of the part in
    /// front.
    pub(crate) fn within(self, name: &str) -> Self {
        match self {
            Self::Format { reason, source } => {
                Self::Format { reason: format!("{name}: {reason}"), source }
            }
            other => other,
        }
    }
}

/// `Ok` when `got` is `expected`, else an [`Error::Shape`] that names `what`.
pub(crate) fn check_shape(what: &str, expected: &[usize], got: &[usize]) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(Error::Shape { what: what.to_owned(), expected: expected.to_vec(), got: got.to_vec() })
}
