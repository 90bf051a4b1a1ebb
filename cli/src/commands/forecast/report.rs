//! The report at the end of a run of `gru forecast`: a table of errors, and pictures.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use indicatif::HumanDuration;
use ndarray::Array2;

use super::plot::{self, ForecastPicture};
use super::series::ForecastRun;
use crate::commands::training_run::Outcome;
use crate::data::baselines::{self, baselines, rmse};
use crate::data::windows::WindowSizes;
use crate::rundir::epochs::EpochMetrics;
use crate::rundir::folder::RunDir;
use crate::ui::files::write_file;
use crate::ui::output::{TextTable, log, quote_path};
use crate::ui::plot::ORANGE;

/// The pictures of a run without a folder.
pub const PICTURES: [&str; 2] = ["forecast.svg", "loss.svg"];

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

    let (windows, batch) = (run.windows(), run.config.training.batch);
    let learner = &*outcome.trainer.learner();
    let forward = |x: &_| learner.forward(x);
    let forecasts = windows.forecast(&run.split.testing, batch, forward)?;
    windows.check(&run.split.testing, &forecasts)?;
    let errors = errors(run, &forecasts);
    print_errors(run, &errors, out)?;
    // If the run was not saved, its folder stays unchanged.
    if folder.is_some() && outcome.unsaved.is_some() {
        return Ok(());
    }
    let future = windows.forecast(&[run.series.values().len()], 1, forward)?;
    let forecast = plot::forecast(&picture(run, &forecasts, &future, &errors))?;
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
    let title = format!("{}: training loss", run.series.name());
    plot::losses(&title, &[("training", losses, ORANGE)])
}

fn write_picture(path: PathBuf, svg: &str) -> Result<()> {
    write_file(&path, svg.as_bytes())?;
    log(format_args!("wrote {}", quote_path(&path)));
    Ok(())
}

/// The errors of each forecast, the model's first: by steps ahead, and over all steps.
struct Errors(Vec<(String, Vec<f64>, f64)>);

fn errors(run: &ForecastRun, forecasts: &Array2<f64>) -> Errors {
    let ForecastRun { config, series, split, .. } = run;
    let WindowSizes { horizon, season, .. } = config.windows;
    let (values, origins) = (series.values(), &split.testing);
    let (each, all) = rmse(values, origins, forecasts.view());
    let mut rows = vec![("GRU".to_owned(), each, all)];
    for (name, baseline) in baselines(series.season_name(season)) {
        let forecasts = baselines::forecast(baseline, values, origins, season, horizon);
        let (each, all) = rmse(values, origins, forecasts.view());
        rows.push((name, each, all));
    }
    Errors(rows)
}

fn print_errors(run: &ForecastRun, errors: &Errors, out: &mut impl Write) -> Result<()> {
    let (horizon, windows) = (run.config.windows.horizon, run.split.testing.len());
    writeln!(out, "held-out RMSE over {windows} windows, {horizon} rows ahead of each")?;
    let mut ahead = vec![1, horizon / 4, horizon / 2, horizon];
    ahead.retain(|&k| k > 0);
    ahead.dedup();
    let mut header = vec!["forecast".to_owned()];
    header.extend(ahead.iter().map(|k| format!("{k} ahead")));
    header.push("all".to_owned());
    let mut table = TextTable::new(header);
    for (name, each, all) in &errors.0 {
        let mut row = vec![name.clone()];
        row.extend(ahead.iter().map(|k| figure(each[k - 1])));
        row.push(figure(*all));
        table.row(row);
    }
    write!(out, "{table}")?;
    let best =
        errors.0[1..].iter().min_by(|a, b| a.2.total_cmp(&b.2)).expect("there are baselines");
    // With an exact baseline there is no ratio.
    if best.2 > 1e-9 * errors.0[0].2 {
        let ratio = errors.0[0].2 / best.2;
        writeln!(out, "the GRU's error is {ratio:.2} × that of the best baseline, {}", best.0)?;
    }
    Ok(())
}

/// Formats four significant digits.
fn figure(value: f64) -> String {
    match value {
        v if v >= 1e6 || (v > 0.0 && v < 1e-3) => format!("{v:.3e}"),
        v => format!("{v:.*}", (3 - v.max(1.0).log10().floor() as i32).max(0) as usize),
    }
}

fn picture(
    run: &ForecastRun,
    forecasts: &Array2<f64>,
    future: &Array2<f64>,
    errors: &Errors,
) -> ForecastPicture {
    let ForecastRun { config, series, split, .. } = run;
    let WindowSizes { input, horizon, .. } = config.windows;
    let len = series.values().len();
    let x = |row: usize| match &series.years {
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
    let (name, each, _) = &errors.0[0];
    let now = (x(len - 1), series.values()[len - 1], 0.0);
    let ahead = (0..horizon).map(|k| (x(len + k), future[[0, k]], each[k]));
    ForecastPicture {
        title: format!("{}: {horizon} rows ahead by {name}", series.name()),
        subtitle: format!(
            "the held-out part, forecast every {horizon} rows from what lay before, and {horizon} rows \
             past the end"
        ),
        name: series.name(),
        time: if series.years.is_some() { "year" } else { "row" },
        history: line(split.row - shown..split.row),
        truth: line(split.row - 1..len),
        forecasts: (0..split.testing.len()).step_by(horizon).map(forecast_line).collect(),
        future: std::iter::once(now).chain(ahead).collect(),
        errors: errors.0.iter().map(|(name, each, _)| (name.clone(), each.clone())).collect(),
    }
}
