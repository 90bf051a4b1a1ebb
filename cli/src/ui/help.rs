//! The help of every command: examples first, then the options by topic. Each option is explained
//! once, in [`OPTIONS`]. `-h` shows the usual options and fits on a screen; `--help` shows all.

use clap::{Arg, ArgAction, Command};

/// The layout of a command's help.
const TEMPLATE: &str = "\
{about-with-newline}
{before-help}{usage-heading} {usage}

{all-args}{after-help}";

/// The help of an option.
struct OptionHelp {
    /// The commands that it is for; empty for all commands that have the option.
    commands: &'static [&'static str],
    id: &'static str,
    /// The name of its value, empty for a flag.
    value: &'static str,
    /// True if `-h` shows it.
    usual: bool,
    /// One line.
    text: &'static str,
    /// Further sentences for `--help`.
    more: &'static str,
}

/// A usual option of all commands that have it.
const fn option(id: &'static str, value: &'static str, text: &'static str) -> OptionHelp {
    OptionHelp { commands: &[], id, value, usual: true, text, more: "" }
}

impl OptionHelp {
    /// For options of one name that do different things.
    const fn only_for(self, commands: &'static [&'static str]) -> Self {
        Self { commands, ..self }
    }

    const fn rare(self) -> Self {
        Self { usual: false, ..self }
    }

    const fn more(self, more: &'static str) -> Self {
        Self { more, ..self }
    }
}

/// Every option, by topic, in the order of the help.
static OPTIONS: &[(&str, &[OptionHelp])] = &[
("Data", &[
option("task", "classify|label|regress", "Predict a class per sequence or row, or numbers").more("Rows without a label count in neither the loss nor the metrics."),
option("per", "sequence|row", "With --task regress, what has one number").rare().more("Default: row if the label changes inside a sequence."),
option("sequence", "COLUMN|none", "Column with the sequence's name [default: the first]").rare().more("A column's name, or its number from 1: 3 or #3. none: the whole file is one sequence. With --window, \
         none is the default if the first column has time stamps."),
option("window", "ROWS", "Cut sequences into windows of ROWS rows").rare().more("With a label per row: truncated backpropagation; the state is carried from window to window, and each row of a \
         batch (--batch) reads another part. With a label per sequence: each window is an example with the label of \
         its last row. The end of a file with one sequence is held out."),
option("stride", "ROWS", "Rows between two windows [default: the window]").rare().more("With a label per row, at most the window: each update has STRIDE new rows, and gradients flow through a window."),
option("time", "COLUMN|none", "Column with time stamps: the latest sequences are held out").rare().more("Default: the first column of time stamps; their order is checked. date,time: days in one column, times of day in another. none: the held-out sequences are drawn. The rows of a sequence \
         must be in the order of time."),
option("label", "COLUMN", "Column with the labels [default: the last]").more("An empty cell is no label. NA, null and none are classes like any other, and no number."),
option("features", "COLUMN,…", "Input columns [default: all others]"),
option("categorical", "COLUMN,…", "Columns to treat as categories, not as numbers").rare().more("Default: the columns in which most cells are not numbers. Name the label's column here if its \
         numbers are classes."),
option("column", "NAME[,NAME…]", "Column to forecast [default: the last numeric one]").more("Further columns are additional inputs. A column's name, or its number from 1."),
option("series", "COLUMN", "Column that names the series of each row").rare().more("One model learns all series, each scaled by itself; the end of each is held out."),
option("valid", "CSV", "Validation file [default: hold out a tenth]"),
option("holdout", "FRACTION", "Fraction of the data to hold out for validation").rare().more("train: of the sequences, from each class if sequences are classified. forecast: the end of the \
         series."),
option("missing", "WORD", "Further words for a missing value").rare().more("An empty cell, NA, N/A, null and none are always missing values. train: takes several words with \
         commas; missing inputs are replaced by their column's mean (by 0 with --scale none), and refused without this option. \
         forecast: missing values are interpolated."),
option("scale", "standard|none", "Scaling of numeric inputs and labels").rare().more("standard: (cell - mean) / standard deviation, of the training set. none: the numbers as they are, and 0 for a \
         missing input; for a network that was trained so."),
option("delimiter", "CHAR", "Character between cells: , ; | : a space, or tab").rare().more("Default: the one of , ; tab | that gives all rows as many cells."),
option("quote", "CHAR", "Quote around cells: \" or '").rare().more("Default: ' if every cell that begins with it also ends with it, else \"."),
option("decimal", "CHAR", "Decimal mark of numbers: . or ,").rare().more("Default: a comma if numbers such as 20,5 occur and none such as 20.5, else a point. \
         If it is given, --thousands is not judged either."),
option("thousands", "CHAR", "Mark between groups of three digits: , . ' or `space`").rare().more("Default: the one in numbers such as 1.234,5 or 1,234,567. 1,234 alone is refused, because it \
         may be 1.234."),
option("header", "yes|no", "Whether the first row has the columns' names").rare().more("Default: detected."),
option("input", "ROWS", "Rows that the model sees").only_for(&["forecast"]),
option("horizon", "ROWS", "Rows to forecast"),
option("season", "ROWS", "Rows of a season, for the baselines"),
]),
("Model", &[
option("prefix", "PREFIX", "Prefix of the GRU's names in a file of named arrays").more("The part before `weight_ih_l0` or `kernel`. Needed if the file has several GRUs. Commas join cells to layers, \
         a plus joins two directions: `cell0,cell1`, `forward+backward`."),
option("layout", "LAYOUT", "Layout of the arrays: pytorch, keras, flax, mlx or onnx").rare().more("The framework whose names and axes they have. Default: the one that the names tell."),
option("reset", "after|before", "Reset gate after or before the recurrent product").only_for(&["run", "grad", "convert", "check"]).rare().more("For arrays that do not tell: those in the layout of onnx, and those of Keras without a bias."),
option("gate", "FUNCTION", "Activation of r and z [default: sigmoid]").rare().more("For files of arrays, which do not tell: `hard-sigmoid(0.16666667,0.5)` is that of Keras 3, PyTorch and JAX, \
         `hard-sigmoid(0.2,0.5)` that of Keras 2 and ONNX; also tanh, relu, identity, softsign, softplus, elu(α), \
         leaky-relu(α), thresholded-relu(α), affine(α,β), scaled-tanh(α,β)."),
option("candidate", "FUNCTION", "Activation of n [default: tanh]").rare().more("As --gate."),
option("node", "NAME", "GRU node of an .onnx file, or `first..last` of a stack").more("Needed if the file has several GRUs."),
option("allow_non_finite", "", "Accept weights that are infinite or NaN"),
option("hidden", "UNITS", "Hidden units per layer and direction"),
option("layers", "LAYERS", "Stacked layers"),
option("direction", "forward|reverse|both", "Direction of reading").more("With --task label, both lets a row's prediction use the rows after it."),
option("bidirectional", "", "Run in both directions"),
option("reset", "after|before", "Reset gate after or before the recurrent product").only_for(&["train", "forecast", "bench"]).rare().more("after: as in PyTorch and cuDNN. before: as in ONNX by default. PyTorch can load a trained model \
         only with after."),
option("dropout", "FRACTION", "Probability of dropout between layers").rare(),
option("init", "MODEL", "Start from the network of a model file").rare().more("The folder or the model of a run, or a state dict with a GRU and a linear head, found by its shape. The inputs are \
         scaled by --scale, and the outputs of classes are in the classes' order: sorted as text."),
option("init_prefix", "PREFIX", "Prefix of the GRU's names in --init").rare(),
option("init_head", "NAME|found|new", "Head of --init, by its name").rare().more("found: the only linear layer with the head's shape. new: the head is drawn, as without --init."),
]),
("Training", &[
option("epochs", "EPOCHS", "Passes over the training set [default: 40]").only_for(&["train"]),
option("epochs", "EPOCHS", "Passes over the training set [default: 30]").only_for(&["forecast"]),
option("batch", "ROWS", "Sequences or windows per batch [default: 32]").only_for(&["train"]).more("Default for windows whose state is carried: fewer, so that each row reads eight windows or more."),
option("batch", "WINDOWS", "Windows per batch").only_for(&["forecast"]),
option("accumulate", "BATCHES", "Batches per update; their gradients are averaged").rare(),
option("learning_rate", "RATE", "Highest learning rate [default: 0.003]").only_for(&["train"]),
option("learning_rate", "RATE", "Highest learning rate [default: 0.01]").only_for(&["forecast"]),
option("schedule", "SCHEDULE", "Learning rate: constant, cosine or step:EPOCHS:FACTOR").rare().more("cosine: rises during the warm-up, then falls along half a cosine to 0, or to a fraction of the rate \
         with cosine:FRACTION. step: multiplies the rate by FACTOR after every EPOCHS."),
option("warmup", "FRACTION", "Warm-up, as a fraction of all updates [default: 0.05]").rare().more("Only with --schedule cosine."),
option("optimizer", "adamw|adam|sgd", "Optimizer").rare(),
option("momentum", "MOMENTUM", "Momentum of sgd [default: 0.9]").rare(),
option("weight_decay", "DECAY", "Weight decay λ").rare().more("adamw subtracts learning rate · λ · parameter. adam and sgd add λ · parameter to the gradient."),
option("clip", "CLIP", "Gradient clipping: norm:X, value:X or none [default: norm:1]").rare().more("norm:X (or X) scales the whole gradient so that its norm is at most X. value:X clamps each \
         element."),
option("patience", "EPOCHS|none", "Stop after EPOCHS without improvement [default: none]"),
option("seed", "NUMBER", "Seed of all random numbers").more("The same seed gives the same results on the same device. grad: only for a model with dropout or \
         zoneout, which needs one."),
]),
("Run folder", &[
option("run", "FOLDER", "Folder for the run's files"),
option("resume", "FOLDER", "Continue the run in FOLDER").more("Uses the run's own data and settings, and gives the same bits on the same device as a run without a \
         break. --epochs, --learning-rate, --clip and (train) --patience may change; config.toml records the \
         change. If the data have moved, name the files again."),
option("force", "", "Overwrite the run in the folder").rare(),
option("checkpoint_every", "UPDATES|TIME", "Time between checkpoints: updates, or 30s, 10m, 1h").rare().more("Checked between updates, about four times a second and after every 16 updates."),
]),
("Input", &[
option("input", "x.npy", "Input x [T, B, I], float32, float64 or float16").only_for(&["run", "grad"]),
option("h0", "h0.npy", "First states [L·D, B, H] [default: the model's, or zeros]"),
option("lengths", "n.npy", "Length of each row [B] [default: the model's, or T]").more("int32 or int64."),
option("dy", "dy.npy", "Gradient of y, [T, B, D·H]"),
option("dhn", "dhn.npy", "Gradient of the last states, [L·D, B, H] [default: zeros]"),
option("batch_first", "", "x, y and their gradients are [B, T, ·]"),
]),
("Output", &[
option("output_layout", "LAYOUT", "pytorch, keras, flax, mlx or onnx [default: pytorch]").more("The framework whose names and axes the arrays of an .npz or .safetensors file get."),
option("with_h0", "", ".onnx only: make the first states an input, h0"),
option("with_lengths", "", ".onnx only: make the lengths of rows an input, lengths"),
option("output", "y.npy", "Write y, [T, B, D·H]").only_for(&["run"]),
option("output", "grads.safetensors", "Write the gradients").only_for(&["grad"]),
option("output", "FILE.csv", "Write the predictions [default: stdout]").only_for(&["predict"]),
option("output", "FOLDER", "Folder for forecast.svg and loss.svg").only_for(&["forecast"]),
option("output", "FILE.svg", "Picture of a sweep [default: bench.svg]").only_for(&["bench"]),
option("hn", "hn.npy", "Write the last states, [L·D, B, H]"),
option("probabilities", "", "Write the probabilities of all classes"),
]),
("Measurement", &[
option("shape", "T,B,I,H", "Steps, rows, inputs and hidden units"),
option("mode", "forward|train", "Time the forward pass, or both passes"),
option("repeats", "N", "Measured calls [default: 20, or fewer in 3 s]"),
option("kernel", "FAMILY", "auto, step, sequence or persistent kernels").more("step: one or two dispatches per step. sequence: one dispatch for many steps, if H is small enough. \
         persistent: the same, with the recurrent weights in registers. \
         For adapters: the CPU ignores it."),
option("recompute", "", "Recompute the gates in the backward pass, to save memory").more("Only with --mode train."),
option("profile", "", "Also time each kernel of an adapter").more("The fastest of up to 3 more runs counts."),
option("sweep", "AXIS[=SIZES]", "Vary T, B or H and plot the times: B or T=64,256").more("A size that fails is listed; the other sizes are measured."),
option("plan", "", "Print an adapter's buffers and dispatches, run nothing").more("For the CPU: its memory, and the plan for WebGPU's default limits."),
]),
("General", &[
option("json", "", "Print one JSON object"),
option("verbose", "", "Print all classes").rare().more("Default: the ten largest and the worst three."),
option("device", "DEVICE", "auto, cpu, gpu, gpu:1 or software [default: $GRU_DEVICE or auto]").more("auto: a hardware GPU, or else the CPU. gpu:1: the GPU with this index in `gru info`. software: a \
         software adapter. bench takes several, with commas."),
option("pipeline_cache", "FOLDER|none", "Where a GPU's compiled kernels are kept [default: the user's cache]").rare().more("Default: $GRU_PIPELINE_CACHE, or the platform's cache folder: ~/.cache/gru-wgpu on Linux (under \
         $XDG_CACHE_HOME if it is set), ~/Library/Caches/gru-wgpu on macOS, %LOCALAPPDATA%\\gru-wgpu on Windows. \
         Vulkan only; `gru info` shows the file."),
option("help", "", "Print help: -h in short, --help in full"),
option("version", "", "Print the version"),
]),
];

/// Gives every command the same form of help, and every option its text from [`OPTIONS`].
pub fn arrange(program: Command) -> Command {
    let names: Vec<_> = program.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    let version = Arg::new("version").short('V').long("version").action(ArgAction::Version);
    let program =
        form(program).disable_version_flag(true).arg(version).mut_args(|arg| describe("", arg));
    names.into_iter().fold(program, |program, name| {
        program.mut_subcommand(&name, |command| {
            let has_more = command.get_arguments().any(|arg| {
                find(&name, arg.get_id().as_str()).is_some_and(|(.., help)| !help.usual)
            });
            let command = form(command).mut_args(|arg| describe(&name, arg));
            match has_more {
                true => command.after_help(format!("More options: gru {name} --help")),
                false => command,
            }
        })
    })
}

/// One line per option, and a `--help` of its own.
fn form(command: Command) -> Command {
    let help = Arg::new("help").short('h').long("help").action(ArgAction::Help);
    command
        .help_template(TEMPLATE)
        .next_line_help(false)
        .max_term_width(100)
        .disable_help_flag(true)
        .arg(help)
}

/// Every option with its place in the table and its topic.
fn options() -> impl Iterator<Item = (usize, &'static str, &'static OptionHelp)> {
    let rows = OPTIONS.iter().flat_map(|(topic, rows)| rows.iter().map(move |row| (*topic, row)));
    rows.enumerate().map(|(place, (topic, row))| (place, topic, row))
}

fn find(command: &str, id: &str) -> Option<(usize, &'static str, &'static OptionHelp)> {
    options().find(|(.., help)| {
        help.id == id && (help.commands.is_empty() || help.commands.contains(&command))
    })
}

fn describe(command: &str, arg: Arg) -> Arg {
    if arg.is_positional() {
        return arg;
    }
    let Some((order, topic, help)) = find(command, arg.get_id().as_str()) else { return arg };
    let arg =
        arg.display_order(order).help(help.text).help_heading(topic).hide_short_help(!help.usual);
    let arg = match help.more {
        "" => arg.long_help(help.text),
        more => arg.long_help(format!("{}. {more}", help.text)),
    };
    match help.value {
        "" => arg,
        value => arg.value_name(value).hide_possible_values(true).allow_negative_numbers(true),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn program() -> Command {
        let mut program = arrange(crate::Cli::command()).disable_help_subcommand(true);
        program.build();
        program
    }

    #[test]
    fn every_option_has_one_text() {
        let program = program();
        for command in program.get_subcommands() {
            for arg in command.get_arguments().filter(|arg| !arg.is_positional()) {
                let (name, id) = (command.get_name(), arg.get_id().as_str());
                assert!(find(name, id).is_some(), "`gru {name}` has no help for {id}");
            }
        }
        for (.., help) in options() {
            let has = |command: &Command| {
                let is_named =
                    help.commands.is_empty() || help.commands.contains(&command.get_name());
                is_named && command.get_arguments().any(|arg| arg.get_id() == help.id)
            };
            let is_used = has(&program) || program.get_subcommands().any(has);
            assert!(is_used, "no command has {}", help.id);
        }
    }

    #[test]
    fn short_help_fits_on_a_screen() {
        for command in std::iter::once(&mut program()).chain(program().get_subcommands_mut()) {
            let help = command.render_help().to_string();
            let (lines, name) = (help.lines().count(), command.get_name());
            assert!(lines <= 40, "`gru {name} -h` has {lines} lines:\n{help}");
            let long = help.lines().find(|line| line.chars().count() > 100);
            assert_eq!(long, None, "in `gru {name} -h`");
            let is_continued = |line: &&str| line.starts_with("          ");
            let continued = help.lines().find(is_continued);
            assert_eq!(continued, None, "an option with two lines in `gru {name} -h`");
        }
    }

    /// clap would break a longer line once more, and with it a command to copy.
    #[test]
    fn details_are_wrapped_for_100_columns() {
        for command in program().get_subcommands() {
            let details = command.get_after_long_help().map(ToString::to_string);
            let long = details.iter().flat_map(|details| details.lines());
            let long: Vec<_> = long.filter(|line| line.chars().count() > 100).collect();
            assert!(long.is_empty(), "`gru {} --help`: {long:?}", command.get_name());
        }
    }

    #[test]
    fn positional_arguments_have_their_own_text() {
        let help = program().find_subcommand_mut("predict").unwrap().render_help().to_string();
        let folder = help.find("  <FOLDER>  The run's folder").unwrap();
        assert!(folder < help.find("  <CSV>").unwrap(), "{help}");
    }

    #[test]
    fn examples_come_before_the_options() {
        for command in std::iter::once(&mut program()).chain(program().get_subcommands_mut()) {
            for help in [command.render_help(), command.render_long_help()] {
                let (help, name) = (help.to_string(), command.get_name());
                let examples = help.find("Examples:").unwrap_or_else(|| panic!("`gru {name}`"));
                assert!(examples < help.find("Usage:").unwrap(), "`gru {name}`:\n{help}");
            }
        }
    }
}
