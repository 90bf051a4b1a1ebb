//! The picture, as SVG text: a share of the gradient against distance, on a logarithmic axis.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::{Model, Setup};

const SIZE: (u32, u32) = (1280, 780);
/// Powers of ten, the vertical axis' ends. What falls below is past every use.
const FLOOR: f64 = -12.0;
const TOP: f64 = 0.4;
/// Half of the distance from 1 to the next f32, as a power of ten.
const F32_ROUNDING: f64 = -7.224_719_895_935_548;

const FONT: &str = "Helvetica, Arial, sans-serif";
const INK: RGBColor = RGBColor(45, 52, 60);
const GRID: RGBColor = RGBColor(228, 231, 235);
const GREY: RGBColor = RGBColor(110, 118, 128);
const ORANGE: RGBColor = RGBColor(214, 72, 40);
/// From a closed update gate to an open one: one hue, told apart by lightness.
const BLUES: [RGBColor; 4] =
    [RGBColor(12, 44, 92), RGBColor(32, 92, 160), RGBColor(64, 132, 194), RGBColor(112, 164, 208)];

/// What is left of a model's gradient by distance, as powers of ten.
pub struct Curve {
    pub model: Model,
    pub points: Vec<Point>,
}

/// Over all seeds.
pub struct Point {
    pub smallest: f64,
    pub mean: f64,
    pub largest: f64,
}

impl Curve {
    /// `runs` has each seed's shares by distance.
    pub fn new(model: Model, runs: &[Vec<f64>]) -> Self {
        let point = |d: usize| {
            let powers = || runs.iter().map(|run| run[d].log10());
            Point {
                smallest: powers().fold(f64::INFINITY, f64::min),
                mean: powers().sum::<f64>() / runs.len() as f64,
                largest: powers().fold(f64::NEG_INFINITY, f64::max),
            }
        };
        Self { model, points: (0..runs[0].len()).map(point).collect() }
    }

    /// The means down to where they leave the picture.
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

    /// The seeds' range, around the line.
    fn band(&self) -> Vec<(f64, f64)> {
        let edge = |power: fn(&Point) -> f64| {
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
type Drawn<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// The picture of `curves`, each of `seeds` runs.
pub fn draw(curves: &[Curve], setup: Setup, seeds: usize) -> Result<String> {
    let mut svg = String::new();
    let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    let drawn = paint(&root, curves, setup, seeds);
    drawn.and_then(|()| Ok(root.present()?)).map_err(|e| anyhow!("cannot draw: {e}"))?;
    drop(root);
    Ok(svg)
}

fn paint(area: &Area, curves: &[Curve], setup: Setup, seeds: usize) -> Drawn {
    // A sheet of its own: readable on a dark page too.
    area.fill(&WHITE)?;
    let Setup { input, hidden, distance } = setup;
    let text = |size: u32, colour| (FONT, size).into_font().color(&colour);
    let place = Pos::new(HPos::Left, VPos::Top);
    let title = (FONT, 30).into_font().style(FontStyle::Bold).color(&INK).pos(place);
    area.draw_text("A gradient lives on where the update gate stays closed", &title, (24, 18))?;
    let subtitle = format!(
        "h' = (1 − z) ⊙ h + z ⊙ n, by the bias b_z of z. {hidden} units, orthogonal W_h, {input} inputs of white noise; \
         mean and range of {seeds} seeds."
    );
    area.draw_text(&subtitle, &text(19, INK).pos(place), (24, 58))?;

    let mut chart = ChartBuilder::on(area)
        .margin(20)
        .margin_top(96)
        .margin_right(200)
        .x_label_area_size(56)
        .y_label_area_size(88)
        .build_cartesian_2d(0.0..distance as f64, FLOOR..TOP)?;
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .max_light_lines(0)
        .axis_style(INK)
        .label_style(text(18, INK))
        .axis_desc_style(text(20, INK))
        .x_labels(11)
        .y_labels(7)
        .x_desc("distance T − t (time steps back)")
        .y_desc("gradient left, ‖∂h_T/∂h_t‖_F / √H  (1: all of it)")
        .x_label_formatter(&|d| format!("{d:.0}"))
        .y_label_formatter(&|&power| power_of_ten(power))
        .draw()?;

    let rounding = [(0.0, F32_ROUNDING), (distance as f64, F32_ROUNDING)];
    chart.draw_series(DashedLineSeries::new(rounding, 3, 5, GREY.into()))?;
    let note = text(16, GREY).pos(Pos::new(HPos::Left, VPos::Bottom));
    let (x, y) = chart.backend_coord(&(0.0, F32_ROUNDING));
    area.draw_text("2⁻²⁴: below, f32 rounds it away beside a 1", &note, (x + 8, y - 4))?;

    let mut blues = BLUES.iter();
    for curve in curves {
        let (colour, dash) = match curve.model {
            Model::Gru(_) => (*blues.next().unwrap_or(&INK), 0),
            Model::Rnn => (ORANGE, 5),
        };
        chart.draw_series([Polygon::new(curve.band(), colour.mix(0.2))])?;
        let (line, style) = (curve.line(), colour.stroke_width(3));
        let end = line.last().map(|end| chart.backend_coord(end));
        match dash {
            0 => chart.draw_series(LineSeries::new(line, style)).map(|_| ())?,
            _ => chart.draw_series(DashedLineSeries::new(line, 10, dash, style)).map(|_| ())?,
        }
        let Some((x, y)) = end else { continue };
        // Beside the line's end, and above the axis that it may end on.
        let y = y.min(chart.backend_coord(&(0.0, FLOOR)).1 - 30);
        let [name, note] = curve.label();
        area.draw_text(
            &name,
            &text(20, colour).pos(Pos::new(HPos::Left, VPos::Center)),
            (x + 12, y - 8),
        )?;
        area.draw_text(
            &note,
            &text(17, INK).pos(Pos::new(HPos::Left, VPos::Center)),
            (x + 12, y + 14),
        )?;
    }
    Ok(())
}

/// `10⁻⁴`; 1 as itself.
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
