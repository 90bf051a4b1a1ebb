//! What all plots of the program share. They are SVG text.

use std::ops::Range;

use anyhow::{Result, anyhow};
use plotters::chart::MeshStyle;
use plotters::coord::CoordTranslate;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

pub const FONT: &str = "Helvetica, Arial, sans-serif";
pub const INK: RGBColor = RGBColor(45, 52, 60);
pub const GRID: RGBColor = RGBColor(228, 231, 235);
pub const GREY: RGBColor = RGBColor(150, 158, 168);
pub const ORANGE: RGBColor = RGBColor(214, 72, 40);

/// The points of a line.
pub type Line = Vec<(f64, f64)>;

pub type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
pub type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Returns the SVG text that `paint` draws on a white background of this size.
pub fn draw(size: (u32, u32), paint: impl FnOnce(&Area) -> Drawn) -> Result<String> {
    let mut svg = String::new();
    let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    let drawn = root.fill(&WHITE).map_err(Into::into).and_then(|()| paint(&root));
    drawn.and_then(|()| Ok(root.present()?)).map_err(|e| anyhow!("cannot draw: {e}"))?;
    drop(root);
    Ok(svg)
}

/// Draws a title, and smaller text below it.
pub fn draw_title(area: &Area, title: &str, subtitle: &str) -> Drawn {
    let anchor = Pos::new(HPos::Left, VPos::Top);
    let style = (FONT, 26).into_font().style(FontStyle::Bold).color(&INK).pos(anchor);
    area.draw_text(title, &style, (24, 18))?;
    Ok(area.draw_text(subtitle, &(FONT, 16).into_font().color(&INK).pos(anchor), (24, 52))?)
}

/// Gives a mesh the style of all axes.
pub fn plain<'m, 'a, 'b, X: Ranged, Y: Ranged, Backend: DrawingBackend>(
    mesh: &'m mut MeshStyle<'a, 'b, X, Y, Backend>,
) -> &'m mut MeshStyle<'a, 'b, X, Y, Backend> {
    mesh.bold_line_style(GRID)
        .light_line_style(WHITE)
        .axis_style(INK)
        .label_style((FONT, 15).into_font().color(&INK))
}

/// Returns the smallest and the largest value, widened on both sides by the fraction `margin` of
/// their distance.
pub fn bounds(values: impl Iterator<Item = f64>, margin: f64) -> (f64, f64) {
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        return (0.0, 1.0);
    }
    let room = if high > low { (high - low) * margin } else { low.abs().max(1.0) * 0.5 };
    (low - room, high + room)
}

/// Formats a tick label: a number with as few digits as are useful.
pub fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        v if !(1e-3..1e6).contains(&v) => {
            let text = format!("{value:.3e}");
            let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
            format!("{}e{power}", digits.trim_end_matches('0').trim_end_matches('.'))
        }
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 1.0 => format!("{:.1}", value),
        _ => format!("{value:.4}").trim_end_matches('0').to_owned(),
    }
}

/// A chart with a number on each axis.
pub type Chart<'a, 'b> =
    ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// Draws the axes, with at most `most` labels on the horizontal one.
pub fn mesh(chart: &mut Chart, x: &str, y: &str, most: usize) -> Drawn {
    let Range { start, end } = chart.x_range();
    let decimals = if end - start < most.min(14) as f64 / 2.0 { 1 } else { 0 };
    let mut mesh = chart.configure_mesh();
    plain(&mut mesh)
        .x_labels(most.clamp(2, 14))
        .y_labels(7)
        .x_desc(x)
        .y_desc(y)
        .x_label_formatter(&|x| format!("{x:.decimals$}"))
        .y_label_formatter(&|y| short(*y))
        .draw()?;
    Ok(())
}

/// Draws lines of one colour under one entry of the legend.
pub fn legend_line(
    chart: &mut Chart,
    lines: &[Line],
    colour: RGBColor,
    width: u32,
    name: &str,
) -> Drawn {
    for (i, line) in lines.iter().enumerate() {
        let drawn =
            chart.draw_series(LineSeries::new(line.iter().copied(), colour.stroke_width(width)))?;
        if i == 0 {
            drawn.label(name).legend(move |(x, y)| {
                PathElement::new(vec![(x, y), (x + 26, y)], colour.stroke_width(width))
            });
        }
    }
    Ok(())
}

/// Draws the legend: the names of all lines that have one.
pub fn legend<'a, 'b: 'a, C: CoordTranslate>(
    chart: &mut ChartContext<'a, SVGBackend<'b>, C>,
    position: SeriesLabelPosition,
) -> Drawn {
    chart
        .configure_series_labels()
        .position(position)
        .margin(16)
        .legend_area_size(34)
        .background_style(WHITE.mix(0.9))
        .border_style(GRID)
        .label_font((FONT, 16).into_font().color(&INK))
        .draw()?;
    Ok(())
}
