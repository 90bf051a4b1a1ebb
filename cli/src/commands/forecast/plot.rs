//! The two pictures, as SVG text.

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::ui::plot::{
    Area, Drawn, FONT, GREY as HISTORY, INK, Line, ORANGE as FORECAST, bounds, draw, draw_title,
    legend, legend_line, mesh, plain, short,
};

const SIZE: (u32, u32) = (1280, 820);
/// The colours of the baselines, weakest first.
const BASELINES: [RGBColor; 3] =
    [RGBColor(188, 195, 204), RGBColor(120, 160, 200), RGBColor(38, 96, 160)];

/// The contents of `forecast.svg`.
pub struct ForecastPicture {
    pub title: String,
    pub subtitle: String,
    /// The name of the series, on the vertical axis.
    pub name: String,
    /// `year` or `row`.
    pub time: &'static str,
    /// Values before the held-out part.
    pub history: Line,
    /// Held-out values.
    pub truth: Line,
    /// Forecasts of the held-out part, one after another.
    pub forecasts: Vec<Line>,
    /// The forecast after the end of the series: (x, value, typical error).
    pub future: Vec<(f64, f64, f64)>,
    /// Root mean squared error by steps ahead, each with its name; the model's first.
    pub errors: Vec<(String, Vec<f64>)>,
}

/// Draws the held-out part above, and the errors by steps ahead below.
pub fn forecast(picture: &ForecastPicture) -> Result<String> {
    draw(SIZE, |root| {
        let (upper, lower) = root.split_vertically(540);
        draw_series(&upper, picture)?;
        draw_errors(&lower, picture)
    })
}

/// Draws losses by epoch, on one scale.
pub fn losses(title: &str, lines: &[(&str, Vec<f64>, RGBColor)]) -> Result<String> {
    draw((960, 520), |root| {
        // A logarithmic axis cannot show a loss of 0.
        let drawn = |losses: &[f64]| -> Line {
            let points = (1..).zip(losses).map(|(epoch, &loss)| (f64::from(epoch), loss));
            points.filter(|&(_, loss)| loss.is_finite() && loss > 0.0).collect()
        };
        let all = lines.iter().flat_map(|(_, losses, _)| losses.iter().copied());
        let (low, high) = bounds(all.filter(|&loss| loss.is_finite() && loss > 0.0), 0.0);
        let epochs = lines.iter().map(|(_, losses, _)| losses.len()).max().unwrap_or(0);
        let end = epochs.max(2) as f64;
        draw_title(root, title, "")?;
        let mut chart = ChartBuilder::on(root)
            .margin(20)
            .margin_top(64)
            .x_label_area_size(48)
            .y_label_area_size(88)
            .build_cartesian_2d(1.0..end, (low / 1.25..high * 1.25).log_scale().base(2.0))?;
        let mut mesh = chart.configure_mesh();
        plain(&mut mesh)
            .y_labels(24)
            .x_labels(epochs.clamp(2, 12))
            .x_desc("epoch")
            .y_desc(match lines {
                [(name, ..)] => format!("{name} loss (mean squared error, scaled)"),
                _ => "loss (mean squared error, scaled)".to_owned(),
            })
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| short(*y))
            .draw()?;
        for (name, losses, colour) in lines {
            let (line, colour) = (drawn(losses), *colour);
            chart
                .draw_series(LineSeries::new(line.iter().copied(), colour.stroke_width(3)))?
                .label(*name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 26, y)], colour));
            chart.draw_series(line.iter().map(|&point| Circle::new(point, 4, colour.filled())))?;
        }
        if lines.len() > 1 { legend(&mut chart, SeriesLabelPosition::UpperRight) } else { Ok(()) }
    })
}

fn draw_series(area: &Area, picture: &ForecastPicture) -> Drawn {
    let xs = picture.history.iter().chain(&picture.truth).map(|p| p.0);
    let (start, end) = bounds(xs.chain(picture.future.iter().map(|f| f.0)), 0.0);
    let ys = picture.history.iter().chain(&picture.truth).chain(picture.forecasts.iter().flatten());
    let band = picture.future.iter().flat_map(|&(_, y, e)| [y - 2.0 * e, y + 2.0 * e]);
    let (low, high) = bounds(ys.map(|p| p.1).chain(band), 0.06);

    draw_title(area, &picture.title, &picture.subtitle)?;
    let mut chart = ChartBuilder::on(area)
        .margin(20)
        .margin_top(84)
        .x_label_area_size(44)
        .y_label_area_size(88)
        .build_cartesian_2d(start..end, low..high)?;
    mesh(&mut chart, picture.time, &picture.name, 14)?;

    if let Some(&(split, _)) = picture.truth.first() {
        let line = DashedLineSeries::new([(split, low), (split, high)], 6, 5, HISTORY.into());
        chart.draw_series(line)?;
        let style = (FONT, 15).into_font().color(&HISTORY);
        let at = (split + (end - start) * 0.006, high - (high - low) * 0.02);
        chart.draw_series([Text::new("held out from here on", at, style)])?;
    }
    let upper = picture.future.iter().map(|&(x, y, e)| (x, y + 2.0 * e));
    let lower = picture.future.iter().rev().map(|&(x, y, e)| (x, y - 2.0 * e));
    chart
        .draw_series([Polygon::new(upper.chain(lower).collect::<Line>(), FORECAST.mix(0.18))])?
        .label("± 2 RMSE at that distance")
        .legend(|(x, y)| {
            Rectangle::new([(x, y - 6), (x + 26, y + 6)], FORECAST.mix(0.18).filled())
        });
    legend_line(&mut chart, std::slice::from_ref(&picture.history), HISTORY, 2, "history")?;
    legend_line(&mut chart, std::slice::from_ref(&picture.truth), INK, 2, "truth")?;
    let future: Line = picture.future.iter().map(|&(x, y, _)| (x, y)).collect();
    let mut forecasts = picture.forecasts.clone();
    forecasts.push(future);
    legend_line(&mut chart, &forecasts, FORECAST, 3, "forecast")?;
    legend(&mut chart, free_corner(&picture.history, (start, end), (low, high)))
}

/// Returns the left corner with more free space.
fn free_corner(
    line: &Line,
    (start, end): (f64, f64),
    (low, high): (f64, f64),
) -> SeriesLabelPosition {
    let left = line.iter().filter(|(x, _)| x - start < 0.25 * (end - start));
    let heights: Vec<f64> = left.map(|(_, y)| (y - low) / (high - low)).collect();
    let above = heights.iter().filter(|&&height| height > 0.7).count();
    let below = heights.iter().filter(|&&height| height < 0.3).count();
    if above <= below { SeriesLabelPosition::UpperLeft } else { SeriesLabelPosition::LowerLeft }
}

fn draw_errors(area: &Area, picture: &ForecastPicture) -> Drawn {
    let (_, high) = bounds(picture.errors.iter().flat_map(|(_, e)| e.iter().copied()), 0.0);
    let steps = picture.errors.first().map_or(1, |(_, errors)| errors.len());
    let mut chart = ChartBuilder::on(area)
        .margin(20)
        .margin_top(6)
        .margin_right(LABEL_WIDTH)
        .x_label_area_size(44)
        .y_label_area_size(88)
        .build_cartesian_2d(1.0..steps.max(2) as f64, 0.0..high * 1.08)?;
    mesh(&mut chart, "rows ahead", "held-out RMSE", steps)?;
    let mut labels = Vec::new();
    for (i, (name, errors)) in picture.errors.iter().enumerate().rev() {
        let line: Line = errors.iter().zip(1..).map(|(&e, k)| (f64::from(k), e)).collect();
        let (colour, width) = if i == 0 { (FORECAST, 3) } else { (BASELINES[(i - 1) % 3], 2) };
        labels.extend(line.last().map(|end| (chart.backend_coord(end), name, colour)));
        chart.draw_series(LineSeries::new(line, colour.stroke_width(width)))?;
    }
    // Each name is at its line's end. Names that would overlap are moved apart, from the lowest
    // upwards.
    labels.sort_by_key(|((_, y), ..)| std::cmp::Reverse(*y));
    let (top, mut free) = (area.get_base_pixel().1, i32::MAX);
    for ((x, y), name, colour) in labels {
        let y = y.min(free);
        free = y - LABEL_HEIGHT;
        let place = Pos::new(HPos::Left, VPos::Center);
        let style = (FONT, 16).into_font().color(&colour).pos(place);
        area.draw_text(name, &style, (x + 10, y - top))?;
    }
    Ok(())
}

/// The width in pixels of the names beside the error lines.
const LABEL_WIDTH: u32 = 230;
const LABEL_HEIGHT: i32 = 19;
