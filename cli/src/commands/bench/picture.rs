//! The picture of a sweep: one line per device on logarithmic axes, and their crossings.

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::ui::plot::{
    Area, Drawn, FONT, GREY, GRID, INK, Line, ORANGE, draw as draw_svg, draw_title, plain, short,
};

/// One colour per device. The others are compared with the first.
const COLOURS: [RGBColor; 5] = [
    RGBColor(38, 96, 160),
    ORANGE,
    RGBColor(52, 140, 90),
    RGBColor(128, 82, 160),
    RGBColor(160, 120, 40),
];

/// The contents of `bench.svg`.
pub struct SweepPicture {
    pub title: String,
    pub subtitle: String,
    /// The name of the horizontal axis.
    pub axis: &'static str,
    /// One per device.
    pub names: Vec<String>,
    /// One per device, each with the same sizes: (size, ms).
    pub lines: Vec<Line>,
}

/// The crossing of a device's line with the first device's.
#[derive(Debug, PartialEq)]
pub struct LineCrossing {
    /// The other device.
    pub line: usize,
    /// The size, between two measured sizes, and the time there.
    pub at: f64,
    pub ms: f64,
    /// True if the other device is faster from there on.
    pub faster: bool,
}

/// Returns where each device's line crosses the first one's, interpolated linearly on logarithmic
/// axes.
pub fn crossings(picture: &SweepPicture) -> Vec<LineCrossing> {
    let mut found = Vec::new();
    let Some((first, others)) = picture.lines.split_first() else { return found };
    for (other, line) in others.iter().zip(1..) {
        // The ratio of the other device to the first, at each size.
        let above: Vec<_> =
            first.iter().zip(other).map(|(a, b)| (a.0.ln(), a.1.ln(), (b.1 / a.1).ln())).collect();
        for pair in above.windows(2) {
            let [(x0, y0, d0), (x1, y1, d1)] = [pair[0], pair[1]];
            if (d0 > 0.0) != (d1 > 0.0) {
                let t = d0 / (d0 - d1);
                let (x, y) = (x0 + t * (x1 - x0), y0 + t * (y1 - y0));
                found.push(LineCrossing { line, at: x.exp(), ms: y.exp(), faster: d1 <= 0.0 });
            }
        }
    }
    found
}

/// Draws the picture.
pub fn draw(picture: &SweepPicture) -> Result<String> {
    draw_svg((1280, 760), |root| {
        draw_title(root, &picture.title, &picture.subtitle)?;
        draw_lines(root, picture)
    })
}

fn draw_lines(root: &Area, picture: &SweepPicture) -> Drawn {
    let xs = picture.lines.iter().flatten().map(|point| point.0);
    let ys = picture.lines.iter().flatten().map(|point| point.1);
    let (left, right) = around(xs, 1.12);
    let (low, high) = around(ys, 1.6);
    let mut chart = ChartBuilder::on(root)
        .margin(20)
        .margin_top(88)
        .margin_right(36)
        .x_label_area_size(52)
        .y_label_area_size(88)
        .build_cartesian_2d(
            (left..right).log_scale().base(2.0),
            (low..high).log_scale().base(10.0),
        )?;
    let mut mesh = chart.configure_mesh();
    plain(&mut mesh)
        .x_desc(picture.axis)
        .y_desc("ms a call, median")
        .x_labels(16)
        .y_labels(12)
        .x_label_formatter(&|x| tick(*x))
        .y_label_formatter(&|y| tick(*y))
        .draw()?;
    for ((line, name), colour) in
        picture.lines.iter().zip(&picture.names).zip(COLOURS.into_iter().cycle())
    {
        chart
            .draw_series(LineSeries::new(line.iter().copied(), colour.stroke_width(3)))?
            .label(name)
            .legend(move |(x, y)| {
                PathElement::new(vec![(x, y), (x + 26, y)], colour.stroke_width(3))
            });
        chart.draw_series(line.iter().map(|&point| Circle::new(point, 5, colour.filled())))?;
    }
    let crossings = crossings(picture);
    for crossing in &crossings {
        let down = [(crossing.at, crossing.ms), (crossing.at, low)];
        chart.draw_series(DashedLineSeries::new(down, 6, 5, GREY.into()))?;
    }
    let labels: Vec<_> = crossings
        .iter()
        .map(|crossing| (chart.backend_coord(&(crossing.at, crossing.ms)), crossing))
        .collect();
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .margin(16)
        .legend_area_size(34)
        .background_style(WHITE.mix(0.9))
        .border_style(GRID)
        .label_font((FONT, 17).into_font().color(&INK))
        .draw()?;
    let right = root.dim_in_pixel().0 as i32;
    for ((x, y), crossing) in labels {
        root.draw(&Circle::new((x, y), 11, INK.stroke_width(2)))?;
        let name = picture.axis.split(',').next().unwrap_or(picture.axis);
        let text = format!("equal at {name} ≈ {}", rounded(crossing.at));
        // Below the lines, which rise to the right; on the side that has space.
        let (at, side) = if x > right - 160 { (x - 18, HPos::Right) } else { (x + 18, HPos::Left) };
        let style = (FONT, 18).into_font().style(FontStyle::Bold).color(&INK);
        root.draw_text(&text, &style.pos(Pos::new(side, VPos::Top)), (at, y + 8))?;
    }
    Ok(())
}

/// Formats a size between two measured sizes, with the digits that are certain.
pub fn rounded(size: f64) -> String {
    if size < 9.95 { format!("{size:.1}") } else { format!("{size:.0}") }
}

/// Formats whole numbers without a point.
fn tick(value: f64) -> String {
    if value.fract() == 0.0 && value < 1e6 { format!("{value}") } else { short(value) }
}

/// Returns the smallest and the largest value, with a margin. A time of 0 has no logarithm.
fn around(values: impl Iterator<Item = f64>, room: f64) -> (f64, f64) {
    let values = values.filter(|&value| value > 0.0);
    let (low, high) =
        values.fold((f64::INFINITY, 0.0), |(l, h), v| (f64::min(l, v), f64::max(h, v)));
    if low > high { (0.1, 10.0) } else { (low / room, high * room) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(lines: Vec<Line>) -> SweepPicture {
        let names = (0..lines.len()).map(|i| format!("device {i}")).collect();
        let (title, subtitle) = Default::default();
        SweepPicture { title, subtitle, axis: "B, batch rows", names, lines }
    }

    #[test]
    fn lines_cross_where_one_becomes_the_faster() {
        // y = x against y = 8: they meet at 8.
        let (rising, flat) = (vec![(1.0, 1.0), (4.0, 4.0), (16.0, 16.0)], |y: f64| {
            vec![(1.0, y), (4.0, y), (16.0, y)]
        });
        let found = crossings(&picture(vec![rising.clone(), flat(8.0), flat(0.5), flat(99.0)]));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!((found[0].at - 8.0).abs() < 1e-9 && (found[0].ms - 8.0).abs() < 1e-9);
        assert!(found[0].line == 1 && found[0].faster);
        let found = crossings(&picture(vec![flat(8.0), rising]));
        assert!(found.len() == 1 && !found[0].faster, "{found:?}");
    }

    #[test]
    fn a_crossing_is_named_in_the_picture() {
        let cpu = vec![(1.0, 0.3), (4.0, 1.1), (16.0, 4.2), (64.0, 17.0), (256.0, 68.0)];
        let gpu = vec![(1.0, 1.9), (4.0, 2.0), (16.0, 2.1), (64.0, 2.6), (256.0, 5.1)];
        let svg = draw(&picture(vec![cpu, gpu])).unwrap();
        assert!(svg.contains("equal at B ≈ 7.6"), "{svg}");
    }

    #[test]
    fn one_point_and_times_of_zero_are_drawn() {
        for lines in [vec![vec![(1.0, 1.0)]], vec![vec![(1.0, 0.0)]], vec![vec![(1.0, 1.0)]; 7]] {
            let svg = draw(&picture(lines)).unwrap();
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        }
    }
}
