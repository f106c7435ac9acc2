//! [`plot`]: lines over logarithmic axes, as an SVG file.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

/// A line through points (x, y), all of them above 0.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Texts of a plot: the caption, and the labels of the axes with their units.
pub(crate) struct Texts<'a> {
    pub(crate) caption: &'a str,
    pub(crate) x: &'a str,
    pub(crate) y: &'a str,
}

const COLORS: [RGBColor; 9] = [
    RGBColor(0x1b, 0x7f, 0x5c),
    RGBColor(0x1f, 0x5f, 0xbf),
    RGBColor(0xc0, 0x50, 0x2d),
    RGBColor(0x8a, 0x3f, 0xa8),
    RGBColor(0xb0, 0x8a, 0x12),
    RGBColor(0x2a, 0x9d, 0xb5),
    RGBColor(0xc4, 0x3c, 0x78),
    RGBColor(0x6b, 0x6b, 0x6b),
    RGBColor(0x5a, 0x8f, 0x29),
];

/// Draws the series to the file `path`. A limit becomes a dashed line with its name.
///
/// # Errors
///
/// Fails if the file cannot be written, or if there is no point to draw.
pub(crate) fn plot(
    path: &Path,
    texts: &Texts<'_>,
    series: &[Series],
    limit: Option<(f64, &str)>,
) -> Result<(), Box<dyn Error>> {
    let points = || series.iter().flat_map(|series| &series.points).copied();
    let span = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::MAX, f64::MIN), |(least, most), value| (least.min(value), most.max(value)))
    };
    let (left, right) = span(&mut points().map(|(x, _)| x));
    let (least, most) = span(&mut points().map(|(_, y)| y).chain(limit.map(|(y, _)| y)));
    if left > right {
        return Err("there is nothing to draw".into());
    }
    // Axes end a little beyond whole powers of ten, because a number at the very end gets no label.
    let powers =
        |least: f64, most: f64| 0.8 * 10_f64.powf(least.log10().floor())..1.25 * 10_f64.powf(most.log10().ceil());
    // A third of the width is added on the right for the names.
    let wide = 0.8 * left..1.25 * right * (right / left).powf(0.35);

    let root = SVGBackend::new(path, (860, 520)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(texts.caption, ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(76)
        .build_cartesian_2d(wide.log_scale(), powers(least, most).log_scale())?;
    chart
        .configure_mesh()
        .x_desc(texts.x)
        .y_desc(texts.y)
        .x_label_formatter(&|x| label(*x))
        .y_label_formatter(&|y| label(*y))
        .label_style(("sans-serif", 14))
        .light_line_style(BLACK.mix(0.05))
        .bold_line_style(BLACK.mix(0.2))
        .draw()?;
    if let Some((height, name)) = limit {
        let ends = [(0.8 * left, height), (1.25 * right, height)];
        chart
            .draw_series(DashedLineSeries::new(ends, 8, 6, RED.stroke_width(2)))?
            .label(name)
            .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], RED.stroke_width(2)));
    }
    for (Series { name, points }, color) in series.iter().zip(COLORS.into_iter().cycle()) {
        chart
            .draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
        chart.draw_series(points.iter().map(|&point| Circle::new(point, 3, color.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::MiddleRight)
        .label_font(("sans-serif", 14))
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    Ok(())
}

/// Returns a power of ten as text, such as 0.1, 1, 10 k or 10 M.
fn label(number: f64) -> String {
    match number {
        ..1.0 => format!("{number}"),
        ..1e3 => format!("{number:.0}"),
        ..1e6 => format!("{:.0} k", number / 1e3),
        ..1e9 => format!("{:.0} M", number / 1e6),
        _ => format!("{:.0} G", number / 1e9),
    }
}
