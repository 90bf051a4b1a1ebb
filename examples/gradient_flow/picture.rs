//! The picture, as SVG text: the fraction of the gradient against distance, on a logarithmic axis.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::{Model, Setup};

const SIZE: (u32, u32) = (1280, 800);
/// The lower end of the vertical axis, as a power of ten. Anything smaller is useless.
const FLOOR: f64 = -12.0;
const TOP: f64 = 0.4;
/// Half of the distance from 1 to the next f32, as a power of ten.
const F32_ROUNDING: f64 = -7.224_719_895_935_548;

const FONT: &str = "Helvetica, Arial, sans-serif";
const INK: RGBColor = RGBColor(45, 52, 60);
const GRID: RGBColor = RGBColor(228, 231, 235);
const GREY: RGBColor = RGBColor(110, 118, 128);
const ORANGE: RGBColor = RGBColor(214, 72, 40);
/// From a closed update gate to an open one: one hue, in different lightness.
const BLUES: [RGBColor; 4] =
    [RGBColor(12, 44, 92), RGBColor(32, 92, 160), RGBColor(64, 132, 194), RGBColor(96, 150, 200)];

/// The fraction of a model's gradient by distance, as powers of ten.
pub struct Curve {
    pub model: Model,
    pub points: Vec<CurvePoint>,
}

/// The range and the mean over all seeds.
pub struct CurvePoint {
    pub smallest: f64,
    pub mean: f64,
    pub largest: f64,
}

impl Curve {
    /// Makes a curve from each seed's fractions by distance.
    pub fn new(model: Model, runs: &[Vec<f64>]) -> Self {
        let point = |d: usize| {
            let powers = || runs.iter().map(|run| run[d].log10());
            CurvePoint {
                smallest: powers().fold(f64::INFINITY, f64::min),
                mean: powers().sum::<f64>() / runs.len() as f64,
                largest: powers().fold(f64::NEG_INFINITY, f64::max),
            }
        };
        Self { model, points: (0..runs[0].len()).map(point).collect() }
    }

    /// Returns the means, down to where they leave the picture.
    fn line(&self) -> Vec<(f64, f64)> {
        let mut line = Vec::new();
        for (d, point) in self.points.iter().enumerate() {
            if point.mean < FLOOR {
                let above = self.points[d - 1].mean;
                line.push((d as f64 - (FLOOR - point.mean) / (above - point.mean), FLOOR));
                break;
            }
            line.push((d as f64, point.mean));
        }
        line
    }

    /// Returns the seeds' range, around the line.
    fn band(&self) -> Vec<(f64, f64)> {
        let edge = |power: fn(&CurvePoint) -> f64| {
            self.points.iter().enumerate().map(move |(d, p)| (d as f64, power(p).max(FLOOR)))
        };
        edge(|p| p.largest).chain(edge(|p| p.smallest).rev()).collect()
    }

    fn label(&self) -> [String; 2] {
        let note = match self.model {
            Model::Gru(bias) => format!("1 − z ≈ {:.2}", 1.0 / (1.0 + bias.exp())),
            Model::Rnn => "no straight path".to_owned(),
        };
        [self.model.name(), note]
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Draws `curves`, each from `seeds` runs.
pub fn draw(curves: &[Curve], setup: Setup, seeds: usize) -> Result<String> {
    let mut svg = String::new();
    let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    let drawn = paint(&root, curves, setup, seeds);
    drawn.and_then(|()| Ok(root.present()?)).map_err(|e| anyhow!("cannot draw: {e}"))?;
    drop(root);
    Ok(svg)
}

fn paint(area: &Area, curves: &[Curve], setup: Setup, seeds: usize) -> Drawn {
    // A white background: readable on a dark page too.
    area.fill(&WHITE)?;
    let Setup { input, hidden, distance } = setup;
    let title = text(34, INK, VPos::Top);
    let title = TextStyle { font: title.font.style(FontStyle::Bold), ..title };
    area.draw_text("A gradient lives on where the update gate stays closed", &title, (24, 18))?;
    let subtitle = format!(
        "h' = (1 − z) ⊙ h + z ⊙ n, by the bias of the update gate z. {hidden} units, orthogonal W_h, \
         {input} inputs of white noise; mean and range of {seeds} seeds."
    );
    area.draw_text(&subtitle, &text(22, INK, VPos::Top), (24, 62))?;

    let mut chart = ChartBuilder::on(area)
        .margin(20)
        .margin_top(104)
        .margin_right(180)
        .x_label_area_size(62)
        .y_label_area_size(96)
        .build_cartesian_2d(0.0..distance as f64, FLOOR..TOP)?;
    draw_axes(&mut chart)?;
    draw_rounding(area, &mut chart, distance as f64)?;
    for (i, curve) in curves.iter().enumerate() {
        draw_curve(area, &mut chart, curve, BLUES[i % BLUES.len()])?;
    }
    Ok(())
}

fn text(size: u32, colour: RGBColor, above: VPos) -> TextStyle<'static> {
    (FONT, size).into_font().color(&colour).pos(Pos::new(HPos::Left, above))
}

fn draw_axes(chart: &mut Chart) -> Drawn {
    let style = |size: u32| (FONT, size).into_font().color(&INK);
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .max_light_lines(0)
        .axis_style(INK)
        .label_style(style(21))
        .axis_desc_style(style(23))
        .x_labels(11)
        .y_labels(7)
        .x_desc("distance T − t (time steps back)")
        .y_desc("gradient left, ‖∂h_T/∂h_t‖_F / √H  (1: all of it)")
        .x_label_formatter(&|d| format!("{d:.0}"))
        .y_label_formatter(&|&power| power_of_ten(power))
        .draw()?;
    Ok(())
}

fn draw_rounding(area: &Area, chart: &mut Chart, distance: f64) -> Drawn {
    let line = [(0.0, F32_ROUNDING), (distance, F32_ROUNDING)];
    chart.draw_series(DashedLineSeries::new(line, 3, 5, GREY.into()))?;
    // Placed where no line crosses it: after the GRU with a half-open gate, before the RNN.
    let (x, y) = chart.backend_coord(&(0.55 * distance, F32_ROUNDING));
    let note = "2⁻²⁴: below, f32 rounds it away beside a 1";
    Ok(area.draw_text(note, &text(19, GREY, VPos::Bottom), (x, y - 4))?)
}

/// Draws a curve with its name at its end. GRUs are `blue`; a plain RNN is orange and dashed.
fn draw_curve(area: &Area, chart: &mut Chart, curve: &Curve, blue: RGBColor) -> Drawn {
    let colour = if curve.model == Model::Rnn { ORANGE } else { blue };
    chart.draw_series([Polygon::new(curve.band(), colour.mix(0.2))])?;
    let (line, style) = (curve.line(), colour.stroke_width(3));
    let end = line.last().map(|end| chart.backend_coord(end));
    if curve.model == Model::Rnn {
        chart.draw_series(DashedLineSeries::new(line, 10, 5, style))?;
    } else {
        chart.draw_series(LineSeries::new(line, style))?;
    }
    let Some((x, y)) = end else { return Ok(()) };
    // The name of a line that leaves the picture is above the axis, after its band.
    let floor = chart.backend_coord(&(0.0, FLOOR)).1;
    let (x, y) = if y == floor { (x + 26, floor - 36) } else { (x + 12, y) };
    let [name, note] = curve.label();
    area.draw_text(&name, &text(24, colour, VPos::Center), (x, y - 10))?;
    Ok(area.draw_text(&note, &text(20, INK, VPos::Center), (x, y + 15))?)
}

/// Formats a power of ten: `10⁻⁴`; 1 as itself.
fn power_of_ten(power: f64) -> String {
    let digit = |c: char| match c {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        c => char::from_u32('⁰' as u32 + c.to_digit(10).unwrap_or(0)).unwrap_or(c),
    };
    match format!("{power:.0}").as_str() {
        "0" | "-0" => "1".to_owned(),
        digits => format!("10{}", digits.chars().map(digit).collect::<String>()),
    }
}
