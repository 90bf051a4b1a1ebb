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
    topic: &'static str,
    /// True if `-h` shows it.
    usual: bool,
    /// One line.
    text: &'static str,
    /// Further sentences for `--help`.
    more: &'static str,
}

const DATA: &str = "Data";
const MODEL: &str = "Model";
const TRAINING: &str = "Training";
const RUN: &str = "Run folder";
const INPUT: &str = "Input";
const OUTPUT: &str = "Output";
const MEASUREMENT: &str = "Measurement";
const GENERAL: &str = "General";

/// A row of [`OPTIONS`] for all commands that have the option.
const fn any(
    id: &'static str,
    value: &'static str,
    topic: &'static str,
    usual: bool,
    text: &'static str,
    more: &'static str,
) -> OptionHelp {
    OptionHelp { commands: &[], id, value, topic, usual, text, more }
}

/// A row of [`OPTIONS`] for options of one name that do different things.
const fn of(
    commands: &'static [&'static str],
    id: &'static str,
    value: &'static str,
    topic: &'static str,
    text: &'static str,
) -> OptionHelp {
    OptionHelp { commands, id, value, topic, usual: true, text, more: "" }
}

const USUAL: bool = true;
const RARE: bool = false;

/// Every option, in order of topics.
static OPTIONS: &[OptionHelp] = &[
    any(
        "task",
        "classify|label",
        DATA,
        USUAL,
        "Predict a class per sequence, or per row",
        "Rows without a label count in neither the loss nor the accuracy.",
    ),
    any(
        "sequence",
        "COLUMN",
        DATA,
        RARE,
        "Column with the sequence's name [default: the first]",
        "A column's name, or its number from 1: 3 or #3.",
    ),
    any(
        "label",
        "COLUMN",
        DATA,
        USUAL,
        "Column with the labels [default: the last]",
        "An empty cell is no label. NA, null and none are classes like any other.",
    ),
    any("features", "COLUMN,…", DATA, USUAL, "Input columns [default: all others]", ""),
    any(
        "categorical",
        "COLUMN,…",
        DATA,
        RARE,
        "Columns to treat as categories, not as numbers",
        "Default: the columns in which most cells are not numbers. Name the label's column here if its \
         numbers are classes.",
    ),
    any(
        "column",
        "NAME[,NAME…]",
        DATA,
        USUAL,
        "Column to forecast [default: the last numeric one]",
        "Further columns are additional inputs. A column's name, or its number from 1.",
    ),
    any("valid", "CSV", DATA, USUAL, "Validation file [default: hold out a tenth]", ""),
    any(
        "holdout",
        "FRACTION",
        DATA,
        RARE,
        "Fraction of the data to hold out for validation",
        "train: of the sequences, from each class if sequences are classified. forecast: the end of the \
         series.",
    ),
    any(
        "missing",
        "WORD",
        DATA,
        RARE,
        "Further words for a missing value",
        "An empty cell, NA, N/A, null and none are always missing values. train: takes several words with \
         commas; missing inputs are replaced by their column's mean, and refused without this option. \
         forecast: missing values are interpolated.",
    ),
    any("delimiter", "CHAR", DATA, RARE, "Character between cells: , ; | : a space, or tab", ""),
    any(
        "header",
        "yes|no",
        DATA,
        RARE,
        "Whether the first row has the columns' names",
        "Default: detected.",
    ),
    of(&["forecast"], "input", "ROWS", DATA, "Rows that the model sees"),
    any("horizon", "ROWS", DATA, USUAL, "Rows to forecast", ""),
    any("season", "ROWS", DATA, USUAL, "Rows of a season, for the baselines", ""),
    any(
        "prefix",
        "PREFIX",
        MODEL,
        USUAL,
        "Prefix of the GRU's names in a .safetensors file",
        "The part before `weight_ih_l0`. Needed if the file has several GRUs.",
    ),
    any(
        "node",
        "NAME",
        MODEL,
        USUAL,
        "GRU node of an .onnx file, or `first..last` of a stack",
        "Needed if the file has several GRUs.",
    ),
    any("allow_non_finite", "", MODEL, USUAL, "Accept weights that are infinite or NaN", ""),
    any("hidden", "UNITS", MODEL, USUAL, "Hidden units per layer and direction", ""),
    any("layers", "LAYERS", MODEL, USUAL, "Stacked layers", ""),
    any(
        "direction",
        "forward|reverse|both",
        MODEL,
        USUAL,
        "Direction of reading",
        "With --task label, both lets a row's prediction use the rows after it.",
    ),
    any("bidirectional", "", MODEL, USUAL, "Run in both directions", ""),
    any(
        "reset",
        "after|before",
        MODEL,
        RARE,
        "Reset gate after or before the recurrent product",
        "after: as in PyTorch and cuDNN. before: as in ONNX by default. PyTorch can load a trained model \
         only with after.",
    ),
    any("dropout", "FRACTION", MODEL, RARE, "Probability of dropout between layers", ""),
    of(&["train"], "epochs", "EPOCHS", TRAINING, "Passes over the training set [default: 40]"),
    of(&["forecast"], "epochs", "EPOCHS", TRAINING, "Passes over the training set [default: 30]"),
    of(&["train"], "batch", "SEQUENCES", TRAINING, "Sequences per batch"),
    of(&["forecast"], "batch", "WINDOWS", TRAINING, "Windows per batch"),
    any(
        "accumulate",
        "BATCHES",
        TRAINING,
        RARE,
        "Batches per update; their gradients are averaged",
        "",
    ),
    of(&["train"], "learning_rate", "RATE", TRAINING, "Highest learning rate [default: 0.003]"),
    of(&["forecast"], "learning_rate", "RATE", TRAINING, "Highest learning rate [default: 0.01]"),
    any(
        "schedule",
        "SCHEDULE",
        TRAINING,
        RARE,
        "Learning rate: constant, cosine or step:EPOCHS:FACTOR",
        "cosine: rises during the warm-up, then falls along half a cosine to 0, or to a fraction of the rate \
         with cosine:FRACTION. step: multiplies the rate by FACTOR after every EPOCHS.",
    ),
    any(
        "warmup",
        "FRACTION",
        TRAINING,
        RARE,
        "Warm-up, as a fraction of all updates [default: 0.05]",
        "Only with --schedule cosine.",
    ),
    any("optimizer", "adamw|adam|sgd", TRAINING, RARE, "Optimizer", ""),
    any("momentum", "MOMENTUM", TRAINING, RARE, "Momentum of sgd [default: 0.9]", ""),
    any(
        "weight_decay",
        "DECAY",
        TRAINING,
        RARE,
        "Weight decay λ",
        "adamw subtracts learning rate · λ · parameter. adam and sgd add λ · parameter to the gradient.",
    ),
    any(
        "clip",
        "CLIP",
        TRAINING,
        RARE,
        "Gradient clipping: norm:X, value:X or none [default: norm:1]",
        "norm:X (or X) scales the whole gradient so that its norm is at most X. value:X clamps each \
         element.",
    ),
    any(
        "patience",
        "EPOCHS|none",
        TRAINING,
        USUAL,
        "Stop after EPOCHS without improvement [default: none]",
        "",
    ),
    any(
        "seed",
        "NUMBER",
        TRAINING,
        USUAL,
        "Seed of all random numbers",
        "The same seed gives the same results on the same device. grad: only for a model with dropout or \
         zoneout, which needs one.",
    ),
    any("run", "FOLDER", RUN, USUAL, "Folder for the run's files", ""),
    any(
        "resume",
        "FOLDER",
        RUN,
        USUAL,
        "Continue the run in FOLDER",
        "Uses the run's own data and settings, and gives the same bits on the same device as a run without a \
         break. --epochs, --learning-rate, --clip and (train) --patience may change; config.toml records the \
         change. If the data have moved, name the files again.",
    ),
    any("force", "", RUN, RARE, "Overwrite the run in the folder", ""),
    any(
        "checkpoint_every",
        "UPDATES|TIME",
        RUN,
        RARE,
        "Time between checkpoints: updates, or 30s, 10m, 1h",
        "Checked between updates, about four times a second and after every 16 updates.",
    ),
    of(&["run", "grad"], "input", "x.npy", INPUT, "Input x [T, B, I], float32, float64 or float16"),
    any(
        "h0",
        "h0.npy",
        INPUT,
        USUAL,
        "First states [L·D, B, H] [default: the model's, or zeros]",
        "",
    ),
    any(
        "lengths",
        "n.npy",
        INPUT,
        USUAL,
        "Length of each row [B] [default: the model's, or T]",
        "int32 or int64.",
    ),
    any("dy", "dy.npy", INPUT, USUAL, "Gradient of y, [T, B, D·H]", ""),
    any(
        "dhn",
        "dhn.npy",
        INPUT,
        USUAL,
        "Gradient of the last states, [L·D, B, H] [default: zeros]",
        "",
    ),
    any("batch_first", "", INPUT, USUAL, "x, y and their gradients are [B, T, ·]", ""),
    any("with_h0", "", OUTPUT, USUAL, ".onnx only: make the first states an input, h0", ""),
    any(
        "with_lengths",
        "",
        OUTPUT,
        USUAL,
        ".onnx only: make the lengths of rows an input, lengths",
        "",
    ),
    of(&["run"], "output", "y.npy", OUTPUT, "Write y, [T, B, D·H]"),
    of(&["grad"], "output", "grads.safetensors", OUTPUT, "Write the gradients"),
    of(&["predict"], "output", "FILE.csv", OUTPUT, "Write the predictions [default: stdout]"),
    of(&["forecast"], "output", "FOLDER", OUTPUT, "Folder for forecast.svg and loss.svg"),
    of(&["bench"], "output", "FILE.svg", OUTPUT, "Picture of a sweep [default: bench.svg]"),
    any("hn", "hn.npy", OUTPUT, USUAL, "Write the last states, [L·D, B, H]", ""),
    any("probabilities", "", OUTPUT, USUAL, "Write the probabilities of all classes", ""),
    any("shape", "T,B,I,H", MEASUREMENT, USUAL, "Steps, rows, inputs and hidden units", ""),
    any("mode", "forward|train", MEASUREMENT, USUAL, "Time the forward pass, or both passes", ""),
    any("repeats", "N", MEASUREMENT, USUAL, "Measured calls [default: 20, or fewer in 3 s]", ""),
    any(
        "kernel",
        "auto|step|sequence",
        MEASUREMENT,
        USUAL,
        "Kernel family on an adapter",
        "step: one or two dispatches per step. sequence: one dispatch for many steps, if H is small enough. \
         The CPU ignores it.",
    ),
    any(
        "recompute",
        "",
        MEASUREMENT,
        USUAL,
        "Recompute the gates in the backward pass, to save memory",
        "Only with --mode train.",
    ),
    any(
        "profile",
        "",
        MEASUREMENT,
        USUAL,
        "Also time each kernel of an adapter",
        "The fastest of up to 3 more runs counts.",
    ),
    any(
        "sweep",
        "AXIS[=SIZES]",
        MEASUREMENT,
        USUAL,
        "Vary T, B or H and plot the times: B or T=64,256",
        "A size that fails is listed; the other sizes are measured.",
    ),
    any(
        "plan",
        "",
        MEASUREMENT,
        USUAL,
        "Print an adapter's buffers and dispatches, run nothing",
        "For the CPU it prints the memory.",
    ),
    any("json", "", GENERAL, USUAL, "Print one JSON object", ""),
    any(
        "verbose",
        "",
        GENERAL,
        RARE,
        "Print all classes",
        "Default: the ten largest and the worst three.",
    ),
    any(
        "device",
        "DEVICE",
        GENERAL,
        USUAL,
        "auto, cpu, gpu, gpu:1 or software [default: $GRU_DEVICE or auto]",
        "auto: a hardware GPU, or else the CPU. gpu:1: the GPU with this index in `gru info`. software: a \
         software adapter. bench takes several, with commas.",
    ),
    any("help", "", GENERAL, USUAL, "Print help: -h in short, --help in full", ""),
    any("version", "", GENERAL, USUAL, "Print the version", ""),
];

/// Gives every command the same form of help, and every option its text from [`OPTIONS`].
pub fn arrange(program: Command) -> Command {
    let names: Vec<_> = program.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    let version = Arg::new("version").short('V').long("version").action(ArgAction::Version);
    let program =
        form(program).disable_version_flag(true).arg(version).mut_args(|arg| describe("", arg));
    names.into_iter().fold(program, |program, name| {
        program.mut_subcommand(&name, |command| {
            let has_more = command
                .get_arguments()
                .any(|arg| find(&name, arg.get_id().as_str()).is_some_and(|(_, help)| !help.usual));
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

fn find(command: &str, id: &str) -> Option<(usize, &'static OptionHelp)> {
    OPTIONS.iter().enumerate().find(|(_, help)| {
        help.id == id && (help.commands.is_empty() || help.commands.contains(&command))
    })
}

fn describe(command: &str, arg: Arg) -> Arg {
    if arg.is_positional() {
        return arg;
    }
    let Some((order, help)) = find(command, arg.get_id().as_str()) else { return arg };
    let arg = arg
        .display_order(order)
        .help(help.text)
        .help_heading(help.topic)
        .hide_short_help(!help.usual);
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
        for help in OPTIONS {
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
