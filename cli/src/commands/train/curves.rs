//! `curves.svg`: the loss, and the accuracy or the error, over the epochs.

use anyhow::Result;
use plotters::element::DashedPathElement;
use plotters::prelude::*;

use crate::rundir::epochs::EpochMetrics;
use crate::ui::plot::{
    Area, Drawn, GREY, INK, Line, ORANGE, bounds, draw, draw_title, legend, legend_line, mesh,
};

/// The texts of the picture, and the baseline.
pub struct CurvesText<'a> {
    pub title: &'a str,
    pub subtitle: &'a str,
    pub metric: CurvesMetric,
    /// The baseline: its name, its loss and its metric.
    pub baseline: (&'a str, f64, f64),
}

/// The metric of the right panel.
#[derive(Clone, Copy, Debug)]
pub enum CurvesMetric {
    Accuracy,
    /// The root mean squared error of labels with this standard deviation.
    Rmse {
        deviation: f64,
    },
}

/// Draws the losses on the left, the metric on the right.
pub fn draw_curves(epochs: &[EpochMetrics], text: &CurvesText<'_>) -> Result<String> {
    draw((1280, 560), |root| {
        draw_title(root, text.title, text.subtitle)?;
        let (_, below) = root.split_vertically(76);
        let (left, right) = below.split_horizontally(640);
        let of = |value: &dyn Fn(&EpochMetrics) -> f64| -> Line {
            let points = epochs.iter().map(|epoch| (epoch.epoch as f64, value(epoch)));
            points.filter(|(_, value)| value.is_finite()).collect()
        };
        let train = of(&|epoch| f64::from(epoch.train_loss));
        let loss = of(&|epoch| epoch.valid_loss);
        let (what, top, metric) = match text.metric {
            CurvesMetric::Accuracy => {
                ("accuracy", 1.0, of(&|epoch| epoch.valid_accuracy.unwrap_or(f64::NAN)))
            }
            CurvesMetric::Rmse { deviation } => {
                ("RMSE", 0.0, of(&|epoch| deviation * epoch.valid_loss.sqrt()))
            }
        };
        let (name, of_loss, of_metric) = text.baseline;
        let lines = [("training", train, GREY), ("held out", loss, ORANGE)];
        panel(&left, "loss", &lines, (name, of_loss), 0.0)?;
        panel(&right, what, &[("held out", metric, ORANGE)], (name, of_metric), top)
    })
}

/// Draws a panel, from 0 to at least `top`.
fn panel(
    area: &Area,
    what: &str,
    lines: &[(&str, Line, RGBColor)],
    (name, baseline): (&str, f64),
    top: f64,
) -> Drawn {
    let points = || lines.iter().flat_map(|(_, line, _)| line);
    let end = points().map(|&(epoch, _)| epoch).fold(2.0, f64::max);
    let (_, high) = bounds(points().map(|&(_, value)| value).chain([baseline, top]), 0.06);
    let mut chart = ChartBuilder::on(area)
        .margin(20)
        .margin_top(8)
        .x_label_area_size(44)
        .y_label_area_size(80)
        .build_cartesian_2d(1.0..end, 0.0..high)?;
    mesh(&mut chart, "epoch", what, end as usize)?;
    chart
        .draw_series(DashedLineSeries::new([(1.0, baseline), (end, baseline)], 6, 5, INK.into()))?
        .label(name)
        .legend(|(x, y)| DashedPathElement::new([(x, y), (x + 26, y)], 6, 5, INK));
    for (name, line, colour) in lines {
        legend_line(&mut chart, std::slice::from_ref(line), *colour, 3, name)?;
        if let [point] = line[..] {
            chart.draw_series([Circle::new(point, 4, colour.filled())])?;
        }
    }
    // Losses start high and end low, accuracies the other way round.
    legend(&mut chart, SeriesLabelPosition::MiddleRight)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No line that is dashed in the picture is solid in the legend.
    #[test]
    fn what_is_dashed_is_dashed_in_the_legend() {
        let epoch = |epoch| EpochMetrics {
            epoch,
            updates: 9,
            learning_rate: 0.1,
            train_loss: 0.5,
            valid_loss: 0.6,
            valid_accuracy: Some(0.7),
            seconds: 1.0,
        };
        let (metric, baseline) = (CurvesMetric::Accuracy, ("baseline", 0.9, 0.4));
        let text = CurvesText { title: "a run", subtitle: "", metric, baseline };
        let svg = draw_curves(&[epoch(1), epoch(2)], &text).unwrap();
        let lines = svg.lines().filter(|line| line.contains("#2D343C") && line.contains("points="));
        let length = |line: &str| {
            let points = line.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
            let x: Vec<i32> = points
                .split_whitespace()
                .map(|p| p.split(',').next().unwrap().parse().unwrap())
                .collect();
            x.iter().max().unwrap() - x.iter().min().unwrap()
        };
        let lengths: Vec<_> = lines.map(length).collect();
        assert!(lengths.contains(&6) && !lengths.contains(&26), "{lengths:?}");
    }
}
