//! Baselines (forecasts that need no model), and the RMSE of forecasts.

use ndarray::{Array2, ArrayView2};

/// A baseline: returns the forecast for `ahead` rows after the origin, the first target row.
pub type Baseline = fn(series: &[f64], origin: usize, season: usize, ahead: usize) -> f64;

/// Returns the baselines with their names, weakest first. `season` is the word for a season in the
/// names.
pub fn baselines(season: &str) -> [(String, Baseline); 3] {
    [
        ("last value".to_owned(), last_value),
        (format!("a {season} before"), season_before),
        (format!("a {season} before plus drift"), season_before_plus_drift),
    ]
}

fn last_value(series: &[f64], origin: usize, _: usize, _: usize) -> f64 {
    series[origin - 1]
}

/// Returns the value at the same place in the last complete season before the origin.
fn season_before(series: &[f64], origin: usize, season: usize, ahead: usize) -> f64 {
    series[origin + ahead % season - season]
}

/// Adds a drift to [`season_before`]: for each season ahead, the difference between the last value
/// and the value one season before it.
fn season_before_plus_drift(series: &[f64], origin: usize, season: usize, ahead: usize) -> f64 {
    let drift = series[origin - 1] - series[origin - 1 - season];
    let seasons = (ahead / season + 1) as f64;
    season_before(series, origin, season, ahead) + seasons * drift
}

/// Returns a baseline's forecasts `[windows, horizon]`.
pub fn forecast(
    baseline: Baseline,
    series: &[f64],
    origins: &[usize],
    season: usize,
    horizon: usize,
) -> Array2<f64> {
    Array2::from_shape_fn((origins.len(), horizon), |(i, ahead)| {
        baseline(series, origins[i], season, ahead)
    })
}

/// Returns the root mean squared error of forecasts `[windows, horizon]`: for each distance ahead,
/// and for all together.
pub fn rmse(series: &[f64], origins: &[usize], forecasts: ArrayView2<'_, f64>) -> (Vec<f64>, f64) {
    let error = |((i, ahead), forecast): ((usize, usize), &f64)| {
        (ahead, forecast - series[origins[i] + ahead])
    };
    let errors = || forecasts.indexed_iter().map(error);
    // Divide by the largest error, so that squares neither overflow nor underflow.
    let largest = errors().map(|(_, e)| e.abs()).fold(0.0, f64::max);
    if largest == 0.0 {
        return (vec![0.0; forecasts.ncols()], 0.0);
    }
    let mut squares = vec![0.0; forecasts.ncols()];
    errors().for_each(|(ahead, e)| squares[ahead] += (e / largest).powi(2));
    let windows = origins.len() as f64;
    let all = squares.iter().sum::<f64>() / (windows * squares.len() as f64);
    (squares.iter().map(|s| largest * (s / windows).sqrt()).collect(), largest * all.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_baseline_is_exact_on_the_series_it_describes() {
        let season = 4;
        let wave = [0.0, 1.0, 5.0, 2.0];
        let series: Vec<f64> = (0..40).map(|i| wave[i % season]).collect();
        let rising: Vec<f64> =
            series.iter().zip(0..).map(|(v, i)| v + 0.5 * f64::from(i)).collect();
        let flat = vec![3.0; 40];
        let origins: Vec<usize> = (9..30).collect();
        for (series, (name, baseline)) in [flat, series, rising].iter().zip(baselines("season")) {
            let forecasts = forecast(baseline, series, &origins, season, 10);
            let (each, all) = rmse(series, &origins, forecasts.view());
            assert!(all < 1e-12 && each.iter().all(|&e| e < 1e-12), "{name}: {all}");
        }
    }

    #[test]
    fn rmse_is_the_root_of_the_mean_square() {
        let forecasts = ndarray::array![[1.0, 0.0], [1.0, 3.0]];
        let (each, all) = rmse(&[0.0; 4], &[1, 2], forecasts.view());
        let close = |got: f64, expected: f64| (got / expected - 1.0).abs() < 1e-12;
        assert!(close(each[0], 1.0) && close(each[1], 4.5f64.sqrt()), "{each:?}");
        assert!(close(all, (11.0f64 / 4.0).sqrt()), "{all}");
        for unit in [1e200, 1e-200] {
            let scaled = forecasts.mapv(|v| v * unit);
            assert!(close(rmse(&[0.0; 4], &[1, 2], scaled.view()).1, all * unit), "{unit}");
        }
    }
}
