//! The report at the end of a run of `gru forecast`: a table of errors, and pictures.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::HumanDuration;
use ndarray::{Array2, Array3, ArrayD};

use super::plot::{self, ForecastPicture};
use super::series::ForecastRun;
use crate::commands::training_run::Outcome;
use crate::data::baselines::{self, baselines, rmse};
use crate::data::series::Series;
use crate::data::windows::{WindowSizes, WindowSplit};
use crate::rundir::epochs::EpochMetrics;
use crate::rundir::folder::RunDir;
use crate::ui::files::write_file;
use crate::ui::output::{TextTable, log, quote, quote_path};
use crate::ui::plot::ORANGE;

/// The pictures of a run without a folder.
pub const PICTURES: [&str; 2] = ["forecast.svg", "loss.svg"];

/// The shortest series whose picture has years on its axis, in years.
const MIN_YEARS: f64 = 3.0;

/// Forecasts, prints a table, and draws. Without a run folder the pictures go to `output`.
pub fn report(
    run: &ForecastRun,
    outcome: &mut Outcome,
    folder: Option<&RunDir>,
    output: &Path,
    out: &mut impl Write,
) -> Result<()> {
    let time = HumanDuration(Duration::from_secs_f64(outcome.seconds));
    // There is no loss if metrics.csv was deleted and no epoch is left to train.
    let loss = outcome.epochs.last().map(|epoch| format!(", loss {:.5}", epoch.train_loss));
    log(format_args!("trained in {time}{}", loss.unwrap_or_default()));

    let learner = &*outcome.trainer.learner();
    let forward = |x: &_| learner.forward(x);
    let of = |(series, split)| SeriesResult::new(run, series, split, forward);
    let results = run.table.series.iter().zip(&run.splits).map(of).collect::<Result<Vec<_>>>()?;
    match &results[..] {
        [one] => print_errors(run, one, out)?,
        several => print_series(run, several, out)?,
    }
    // If the run was not saved, its folder stays unchanged.
    if folder.is_some() && outcome.unsaved.is_some() {
        return Ok(());
    }
    // With several series, the picture shows the first.
    let shown = &results[0];
    let future = run.windows(shown.series).forecast(&[shown.series.values().len()], 1, forward)?;
    let forecast = plot::forecast(&picture(run, shown, &future))?;
    if let Some(label) = &shown.series.label {
        log(format_args!("forecast.svg shows series {}", quote(label)));
    }
    match folder {
        Some(folder) => {
            write_picture(folder.forecast(), &forecast)?;
            log(format_args!("all files are in {}", quote_path(folder.path())));
        }
        None => {
            let [forecast_path, loss_path] = PICTURES.map(|name| output.join(name));
            write_picture(forecast_path, &forecast)?;
            write_picture(loss_path, &losses(run, &outcome.epochs)?)?;
        }
    }
    Ok(())
}

fn losses(run: &ForecastRun, epochs: &[EpochMetrics]) -> Result<String> {
    let losses = epochs.iter().map(|epoch| f64::from(epoch.train_loss)).collect();
    let title = format!("{}: training loss", run.table.name());
    plot::losses(&title, &[("training", losses, ORANGE)])
}

fn write_picture(path: PathBuf, svg: &str) -> Result<()> {
    write_file(&path, svg.as_bytes())?;
    log(format_args!("wrote {}", quote_path(&path)));
    Ok(())
}

/// The forecasts of the held-out part of a series.
struct SeriesResult<'a> {
    series: &'a Series,
    split: &'a WindowSplit,
    /// `[windows, horizon]`
    forecasts: Array2<f64>,
    /// The model's error, then those of the baselines.
    errors: Vec<ForecastError>,
}

/// The root mean squared error of a way to forecast.
struct ForecastError {
    name: String,
    /// By rows ahead.
    ahead: Vec<f64>,
    all: f64,
}

impl<'a> SeriesResult<'a> {
    fn new(
        run: &ForecastRun,
        series: &'a Series,
        split: &'a WindowSplit,
        forward: impl Fn(&Array3<f32>) -> gru_wgpu::Result<ArrayD<f32>>,
    ) -> Result<Self> {
        let WindowSizes { horizon, season, .. } = run.config.windows;
        let (windows, origins) = (run.windows(series), &split.testing);
        let forecasts = windows.forecast(origins, run.config.training.batch, forward)?;
        windows.check(origins, &forecasts).with_context(|| run.table.title(series))?;
        let values = series.values();
        let error = |name: String, forecasts: &Array2<f64>| {
            let (ahead, all) = rmse(values, origins, forecasts.view());
            ForecastError { name, ahead, all }
        };
        let mut errors = vec![error("GRU".to_owned(), &forecasts)];
        for (name, baseline) in baselines(series.season_name(season)) {
            let forecasts = baselines::forecast(baseline, values, origins, season, horizon);
            errors.push(error(name, &forecasts));
        }
        Ok(Self { series, split, forecasts, errors })
    }

    fn best_baseline(&self) -> &ForecastError {
        let baselines = self.errors[1..].iter();
        baselines.min_by(|a, b| a.all.total_cmp(&b.all)).expect("there are baselines")
    }

    /// Returns the model's error as a multiple of the best baseline's. With an exact baseline there
    /// is none.
    fn ratio(&self) -> Option<f64> {
        let (own, best) = (self.errors[0].all, self.best_baseline().all);
        (best > 1e-9 * own).then_some(own / best)
    }
}

fn print_errors(run: &ForecastRun, result: &SeriesResult<'_>, out: &mut impl Write) -> Result<()> {
    let (horizon, windows) = (run.config.windows.horizon, result.split.testing.len());
    writeln!(out, "held-out RMSE over {windows} windows, {horizon} rows ahead of each")?;
    let mut ahead = vec![1, horizon / 4, horizon / 2, horizon];
    ahead.retain(|&k| k > 0);
    ahead.dedup();
    let mut header = vec!["forecast".to_owned()];
    header.extend(ahead.iter().map(|k| format!("{k} ahead")));
    header.push("all".to_owned());
    let mut table = TextTable::new(header);
    for error in &result.errors {
        let mut row = vec![error.name.clone()];
        row.extend(ahead.iter().map(|k| figure(error.ahead[k - 1])));
        row.push(figure(error.all));
        table.row(row);
    }
    write!(out, "{table}")?;
    if let Some(ratio) = result.ratio() {
        let best = &result.best_baseline().name;
        writeln!(out, "the GRU's error is {ratio:.2} × that of the best baseline, {best}")?;
    }
    Ok(())
}

/// Prints a row for each series.
fn print_series(
    run: &ForecastRun,
    results: &[SeriesResult<'_>],
    out: &mut impl Write,
) -> Result<()> {
    let horizon = run.config.windows.horizon;
    writeln!(out, "held-out RMSE of {} series, {horizon} rows ahead", results.len())?;
    let header = ["series", "windows", "GRU", "best baseline", "its name", "ratio"];
    let mut table = TextTable::new(header.map(str::to_owned).to_vec());
    for result in results {
        let best = result.best_baseline();
        table.row(vec![
            quote(result.series.label.as_deref().unwrap_or_default()),
            result.split.testing.len().to_string(),
            figure(result.errors[0].all),
            figure(best.all),
            best.name.clone(),
            result.ratio().map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}")),
        ]);
    }
    write!(out, "{table}")?;
    let better = results.iter().filter(|result| result.ratio().is_some_and(|ratio| ratio < 1.0));
    writeln!(
        out,
        "the GRU's error is below that of the best baseline in {} of {} series",
        better.count(),
        results.len()
    )?;
    Ok(())
}

/// Formats four significant digits.
fn figure(value: f64) -> String {
    match value {
        v if v >= 1e6 || (v > 0.0 && v < 1e-3) => format!("{v:.3e}"),
        v => format!("{v:.*}", (3 - v.max(1.0).log10().floor() as i32).max(0) as usize),
    }
}

fn picture(run: &ForecastRun, result: &SeriesResult<'_>, future: &Array2<f64>) -> ForecastPicture {
    let SeriesResult { series, split, forecasts, errors } = result;
    let WindowSizes { input, horizon, .. } = run.config.windows;
    let len = series.values().len();
    // Labels with a tenth of a year are too coarse for shorter series.
    let years = series.years.as_ref().filter(|years| years[len - 1] - years[0] >= MIN_YEARS);
    let x = |row: usize| match years {
        Some(years) if row < len => years[row],
        // After the end of the series, at its mean time step.
        Some(years) => {
            let pace = (years[len - 1] - years[0]) / (len - 1).max(1) as f64;
            years[len - 1] + pace * (row + 1 - len) as f64
        }
        None => (row + 1) as f64,
    };
    let line =
        |rows: std::ops::Range<usize>| rows.map(|row| (x(row), series.values()[row])).collect();
    // As much history as is held out, and at least the input of the first forecast.
    let shown = (len - split.row).max(input).min(split.row);
    // Each forecast starts at the last value that its model saw.
    let forecast_line = |index: usize| {
        let origin = split.testing[index];
        let start = (x(origin - 1), series.values()[origin - 1]);
        let ahead = (0..horizon).map(|k| (x(origin + k), forecasts[[index, k]]));
        std::iter::once(start).chain(ahead).collect()
    };
    let ForecastError { name, ahead: each, .. } = &errors[0];
    let now = (x(len - 1), series.values()[len - 1], 0.0);
    let ahead = (0..horizon).map(|k| (x(len + k), future[[0, k]], each[k]));
    ForecastPicture {
        title: format!("{}: {horizon} rows ahead by {name}", run.table.title(series)),
        subtitle: format!(
            "the held-out part, forecast every {horizon} rows from what lay before, and {horizon} rows \
             past the end"
        ),
        name: run.table.title(series),
        time: if years.is_some() { "year" } else { "row" },
        history: line(split.row - shown..split.row),
        truth: line(split.row - 1..len),
        forecasts: (0..split.testing.len()).step_by(horizon).map(forecast_line).collect(),
        future: std::iter::once(now).chain(ahead).collect(),
        errors: errors.iter().map(|error| (error.name.clone(), error.ahead.clone())).collect(),
    }
}
