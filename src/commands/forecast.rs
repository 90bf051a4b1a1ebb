//! `gru forecast`: trains a forecaster on a series and holds it against rules that need no model.

mod baselines;
mod model;
mod plot;
mod series;
mod windows;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use gru_wgpu::DeviceKind;
use gru_wgpu::formats::{quote, write_whole};
use indicatif::HumanDuration;
use ndarray::Array2;

use super::arguments::{at_least_one, delimiter, positive, share, yes_or_no};
use super::output::{Table, check_directory, note, open, quote_path};
use super::progress::Progress;
use super::sheet::Reading;
use baselines::{rmse, rules};
use model::{Forecaster, Recipe};
use plot::ForecastPicture;
use series::Series;
use windows::{Windows, origins};

/// Train a forecaster on a real series and print its error beside simple rules.
///
/// Reads a numeric column of a CSV file, or several, holds out its last part, trains a GRU with a linear head
/// on windows of the rest, forecasts the held-out part from every row of it, and writes
/// forecast.svg and loss.svg. Missing values are filled by straight lines first, wherever they are.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  \
    gru forecast data/mauna_loa_co2_weekly.csv\n  \
    gru forecast sales.csv --column revenue --season 7 --input 28 --horizon 14\n  \
    gru forecast sales.csv --column revenue,visitors,price --season 7 --input 28 --horizon 14\n  \
    gru forecast data/mauna_loa_co2_weekly.csv --device software --epochs 2")]
pub struct Arguments {
    /// The CSV file.
    csv: PathBuf,
    /// The column's name, or its number from 1 [default: the last numeric one]. After a comma, others that
    /// the model sees besides, each scaled by its own changes; the first is forecast.
    #[arg(long, value_name = "NAME[,NAME…]")]
    column: Option<String>,
    /// The character between cells.
    #[arg(long, value_name = "CHAR", default_value = ",", value_parser = delimiter)]
    delimiter: u8,
    /// A word that means a missing value, besides an empty cell, NA, N/A, null and none.
    #[arg(long, value_name = "WORD")]
    missing: Option<String>,
    /// Whether the first row names the columns [default: judged by its looks].
    #[arg(long, value_name = "yes|no", value_parser = yes_or_no)]
    header: Option<bool>,
    /// Rows that a window shows the model.
    #[arg(long, value_name = "ROWS", default_value_t = 104, value_parser = at_least_one)]
    input: usize,
    /// Rows to forecast.
    #[arg(long, value_name = "ROWS", default_value_t = 52, value_parser = at_least_one)]
    horizon: usize,
    /// Rows of a season, for the rules.
    #[arg(long, value_name = "ROWS", default_value_t = 52, value_parser = at_least_one)]
    season: usize,
    /// The share of the series held out at its end.
    #[arg(long, value_name = "SHARE", default_value_t = 0.2, value_parser = share)]
    holdout: f64,
    /// Hidden units.
    #[arg(long, value_name = "UNITS", default_value_t = 32, value_parser = at_least_one)]
    hidden: usize,
    /// Passes over the training windows.
    #[arg(long, value_name = "TIMES", default_value_t = 30, value_parser = at_least_one)]
    epochs: usize,
    /// Windows a training step.
    #[arg(long, value_name = "WINDOWS", default_value_t = 64, value_parser = at_least_one)]
    batch: usize,
    /// Adam's learning rate at the start; it falls to 0 along half a cosine.
    #[arg(long, value_name = "RATE", default_value_t = 0.01, value_parser = positive::<f64>)]
    learning_rate: f64,
    /// The largest norm of a step's gradient.
    #[arg(long, value_name = "NORM", default_value_t = 1.0, value_parser = positive::<f32>)]
    clip: f32,
    /// Seed of the fresh parameters and of the windows' order.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// The directory for forecast.svg and loss.svg.
    #[arg(long, value_name = "DIR", default_value = ".")]
    output: PathBuf,
}

/// Runs the command.
pub fn run(arguments: &Arguments, kind: DeviceKind, out: &mut impl Write) -> Result<()> {
    // What can be refused is refused before the work, not after it.
    check_directory(&arguments.output)?;
    let series = read(arguments)?;
    let parts = Parts::new(arguments, &series)?;
    let windows = Windows::new(&series.columns, parts.split, arguments.input, arguments.horizon)?;
    let device = open(kind)?;
    announce(arguments, &series, &parts);

    let recipe = Recipe {
        hidden: arguments.hidden,
        epochs: arguments.epochs,
        batch: arguments.batch,
        learning_rate: arguments.learning_rate,
        clip: arguments.clip,
        seed: arguments.seed,
    };
    let mut model = Forecaster::new(&recipe, &windows, parts.training.len(), &device)?;
    note(format_args!("training {} parameters on {device}", model.parameter_count()));
    let losses = train(&mut model, &windows, &parts.training, &recipe)?;

    let forecasts = model.forecast(&windows, &parts.testing, arguments.batch)?;
    ensure!(
        forecasts.iter().all(|v| v.is_finite()),
        "the trained model forecasts values that are not finite; try a lower --learning-rate"
    );
    let errors = errors(arguments, &series, &parts, &forecasts);
    let future = model.forecast(&windows, &[series.values().len()], 1)?;
    let picture = picture(arguments, &series, &parts, &forecasts, &future, &errors);
    let loss_title = format!("{}: training loss", series.name());
    for (name, svg) in [
        ("forecast.svg", plot::forecast(&picture)?),
        ("loss.svg", plot::loss(&loss_title, &losses)?),
    ] {
        let path = arguments.output.join(name);
        write_whole(&path, |to| to.write_all(svg.as_bytes()))?;
        note(format_args!("wrote {}", quote_path(&path)));
    }
    print_errors(arguments, &errors, parts.testing.len(), out)
}

fn read(arguments: &Arguments) -> Result<Series> {
    let Arguments { csv, column, delimiter, missing, header, .. } = arguments;
    let reading = Reading { delimiter: *delimiter, missing: missing.as_deref(), header: *header };
    Series::read(csv, column.as_deref(), reading)
}

/// Where the held-out part starts, and the origins of the windows on either side.
struct Parts {
    split: usize,
    training: Vec<usize>,
    testing: Vec<usize>,
}

impl Parts {
    fn new(arguments: &Arguments, series: &Series) -> Result<Self> {
        let Arguments { input, horizon, season, holdout, .. } = *arguments;
        let len = series.values().len();
        let split = ((1.0 - holdout) * len as f64).round() as usize;
        let training: Vec<_> = origins(input, horizon, 0, split).collect();
        let testing: Vec<_> = origins(input, horizon, split, len).collect();
        if training.is_empty() || testing.is_empty() {
            bail!(
                "{} rows are too few: the first {split} must hold a window of {input} + {horizon} \
                 rows (--input, --horizon), and the {} held out (--holdout) at least {horizon}",
                len,
                len - split
            );
        }
        ensure!(
            season < testing[0],
            "a season of {season} rows (--season) leaves nothing before the held-out part, which \
             starts after {} rows",
            testing[0]
        );
        Ok(Self { split, training, testing })
    }
}

fn announce(arguments: &Arguments, series: &Series, parts: &Parts) {
    let (rows, filled) = (series.values().len(), series.filled);
    let shown = quote_path(&arguments.csv);
    note(format_args!(
        "{shown}: {} {}, {rows} rows, {filled} missing ones interpolated",
        if series.names.len() == 1 { "column" } else { "columns" },
        series.names.iter().map(|name| quote(name)).collect::<Vec<_>>().join(", ")
    ));
    let (input, horizon) = (arguments.input, arguments.horizon);
    let (training, testing) = (parts.training.len(), parts.testing.len());
    note(format_args!(
        "{input} rows in, {horizon} out: {training} windows to train on, {testing} held out"
    ));
}

fn train(
    model: &mut Forecaster,
    windows: &Windows,
    origins: &[usize],
    recipe: &Recipe,
) -> Result<Vec<f32>> {
    let total = (recipe.epochs as u64).saturating_mul(origins.len() as u64);
    let mut progress = Progress::new(total, recipe.epochs, "windows")?;
    let losses = model.train(windows, origins, recipe, |epoch, count, loss| {
        progress.add(epoch, count, loss);
        if progress.seen() == origins.len() {
            progress.end_epoch("");
        }
    })?;
    let last = losses.last().copied().unwrap_or(f32::NAN);
    progress.clear();
    note(format_args!("trained in {}, loss {last:.5}", HumanDuration(progress.elapsed())));
    Ok(losses)
}

/// The error of each forecast, the model's first: by steps ahead, and of all together.
struct Errors(Vec<(String, Vec<f64>, f64)>);

fn errors(
    arguments: &Arguments,
    series: &Series,
    parts: &Parts,
    forecasts: &Array2<f64>,
) -> Errors {
    let (values, origins) = (series.values(), &parts.testing);
    let (each, all) = rmse(values, origins, forecasts.view());
    let mut rows = vec![("GRU".to_owned(), each, all)];
    for (name, rule) in rules(series.season_name(arguments.season)) {
        let forecasts =
            baselines::forecast(rule, values, origins, arguments.season, arguments.horizon);
        let (each, all) = rmse(values, origins, forecasts.view());
        rows.push((name, each, all));
    }
    Errors(rows)
}

fn print_errors(
    arguments: &Arguments,
    errors: &Errors,
    windows: usize,
    out: &mut impl Write,
) -> Result<()> {
    let horizon = arguments.horizon;
    writeln!(out, "held-out RMSE over {windows} windows, {horizon} rows ahead of each")?;
    let mut ahead = vec![1, horizon / 4, horizon / 2, horizon];
    ahead.retain(|&k| k > 0);
    ahead.dedup();
    let mut header = vec!["forecast".to_owned()];
    header.extend(ahead.iter().map(|k| format!("{k} ahead")));
    header.push("all".to_owned());
    let mut table = Table::new(header);
    for (name, each, all) in &errors.0 {
        let mut row = vec![name.clone()];
        row.extend(ahead.iter().map(|k| figure(each[k - 1])));
        row.push(figure(*all));
        table.row(row);
    }
    write!(out, "{table}")?;
    let best = errors.0[1..].iter().min_by(|a, b| a.2.total_cmp(&b.2)).expect("there are rules");
    // Where a rule is exact there is nothing to be compared with.
    if best.2 > 1e-9 * errors.0[0].2 {
        let share = errors.0[0].2 / best.2;
        writeln!(out, "the GRU's error is {share:.2} × that of the best rule, {}", best.0)?;
    }
    Ok(())
}

/// Four figures.
fn figure(value: f64) -> String {
    match value {
        v if v >= 1e6 || (v > 0.0 && v < 1e-3) => format!("{v:.3e}"),
        v => format!("{v:.*}", (3 - v.max(1.0).log10().floor() as i32).max(0) as usize),
    }
}

fn picture(
    arguments: &Arguments,
    series: &Series,
    parts: &Parts,
    forecasts: &Array2<f64>,
    future: &Array2<f64>,
    errors: &Errors,
) -> ForecastPicture {
    let len = series.values().len();
    let horizon = arguments.horizon;
    let x = |row: usize| match &series.years {
        Some(years) if row < len => years[row],
        // Past the end at the series' mean pace.
        Some(years) => {
            let pace = (years[len - 1] - years[0]) / (len - 1).max(1) as f64;
            years[len - 1] + pace * (row + 1 - len) as f64
        }
        None => (row + 1) as f64,
    };
    let line =
        |rows: std::ops::Range<usize>| rows.map(|row| (x(row), series.values()[row])).collect();
    // As much history as is held out, and at least what the first forecast was made from.
    let shown = (len - parts.split).max(arguments.input).min(parts.split);
    // Each forecast starts from the last value that its model saw.
    let forecast_line = |index: usize| {
        let origin = parts.testing[index];
        let start = (x(origin - 1), series.values()[origin - 1]);
        let ahead = (0..horizon).map(|k| (x(origin + k), forecasts[[index, k]]));
        std::iter::once(start).chain(ahead).collect()
    };
    let (name, each, _) = &errors.0[0];
    let now = (x(len - 1), series.values()[len - 1], 0.0);
    let ahead = (0..horizon).map(|k| (x(len + k), future[[0, k]], each[k]));
    ForecastPicture {
        title: format!("{}: {horizon} rows ahead by {name}", series.name()),
        subtitle: format!(
            "the held-out part, forecast every {horizon} rows from what lay before, and {horizon} rows \
             past the end"
        ),
        name: series.name().to_owned(),
        time: if series.years.is_some() { "year" } else { "row" },
        history: line(parts.split - shown..parts.split),
        truth: line(parts.split - 1..len),
        forecasts: (0..parts.testing.len()).step_by(horizon).map(forecast_line).collect(),
        future: std::iter::once(now).chain(ahead).collect(),
        errors: errors.0.iter().map(|(name, each, _)| (name.clone(), each.clone())).collect(),
    }
}
