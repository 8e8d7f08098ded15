//! The curve as a picture: tokens per second over the budget, a panel for prompts and one
//! for generation; paged, unpaged, and the law.
//!
//! ```text
//!  title
//!  ┌ legend ───────┬ legend ───────┐
//!  │ prefill       │ decode        │   each panel: points with their MAD, a dotted line
//!  │               │               │   for unpaged runs, a dashed one for the law, a
//!  └───────────────┴───────────────┘   cross for each budget that could not run
//! ```
//!
//! The font is part of the program: a picture looks the same on every machine.

use std::path::Path;
use std::sync::Once;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::Paging;
use super::case::Case;
use super::curve::{Law, Series, series};
use super::row::Row;
use super::statistics::{Spread, spread};
use crate::error::{Error, Result};

/// A kind of picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Picture {
    /// Lines and text, which scale.
    Svg,
    /// Pixels.
    Png,
}

/// Pixels of a panel.
const PANEL: (u32, u32) = (640, 460);
/// Pixels of the title.
const TITLE_HEIGHT: u32 = 64;
/// Pixels of a line of the legend.
const LEGEND_HEIGHT: u32 = 22;
/// A panel's picture has so many times more pixels, so that it can be read on dense screens.
const PNG_SCALE: u32 = 2;
/// Points of a line for the law.
const LAW_POINTS: u32 = 120;

/// Colours that people with any eyes can tell apart.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];
const INK: RGBColor = RGBColor(40, 40, 40);
const GRID: RGBColor = RGBColor(225, 225, 225);

type Area<'a, B> = DrawingArea<B, Shift>;
type Drawn<B> = std::result::Result<(), DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

impl Picture {
    /// The kind that the name of `path` ends in.
    ///
    /// # Errors
    /// `Usage` for another one.
    pub fn of(path: &Path) -> Result<Self> {
        let end = path
            .extension()
            .map(|end| end.to_string_lossy().to_lowercase());
        match end.as_deref() {
            Some("svg") => Ok(Self::Svg),
            Some("png") => Ok(Self::Png),
            _ => Err(Error::Usage(format!(
                "'{}' ends neither in .svg nor in .png; see --plot",
                path.display()
            ))),
        }
    }

    /// The picture's bytes.
    ///
    /// # Errors
    /// `Failed` when it cannot be drawn.
    pub fn draw(self, rows: &[Row], paging: &Paging) -> Result<Vec<u8>> {
        register_font();
        let panels = panels(rows);
        let count = u32::try_from(panels.len()).unwrap_or(1).max(1);
        let (width, height) = (PANEL.0 * count, PANEL.1 + TITLE_HEIGHT);
        let title = title(rows, paging);
        match self {
            Self::Svg => {
                let mut text = String::new();
                let root = SVGBackend::with_string(&mut text, (width, height)).into_drawing_area();
                draw(&root, &panels, rows, &title, 1).map_err(|error| failed(&error))?;
                drop(root);
                Ok(text.into_bytes())
            }
            Self::Png => {
                let size = (width * PNG_SCALE, height * PNG_SCALE);
                let mut pixels = vec![0; size.0 as usize * size.1 as usize * 3];
                let root = BitMapBackend::with_buffer(&mut pixels, size).into_drawing_area();
                draw(&root, &panels, rows, &title, PNG_SCALE).map_err(|error| failed(&error))?;
                drop(root);
                encode(&pixels, size)
            }
        }
    }
}

fn failed(error: &dyn std::fmt::Display) -> Error {
    Error::Failed(format!("could not draw the picture: {error}; see --plot"))
}

fn encode(pixels: &[u8], (width, height): (u32, u32)) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(|error| failed(&error))?;
    writer
        .write_image_data(pixels)
        .map_err(|error| failed(&error))?;
    writer.finish().map_err(|error| failed(&error))?;
    Ok(bytes)
}

fn register_font() {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        let font = dejavu::sans::regular();
        for style in [FontStyle::Normal, FontStyle::Bold] {
            // Refused only for a file that is no font: the picture then says so.
            let _is_font = plotters::style::register_font("sans-serif", style, font).is_ok();
        }
    });
}

/// What one panel shows.
struct Panel<'a> {
    title: &'static str,
    series: Vec<Series<'a>>,
    /// Budgets at which nothing ran, in bytes.
    failed: Vec<u64>,
}

/// Whether a case belongs in a panel.
type Belongs = fn(&Case) -> bool;

fn panels(rows: &[Row]) -> Vec<Panel<'_>> {
    let kinds: [(&str, Belongs); 3] = [
        ("Prefill (prompt processing)", |case| case.n_gen == 0),
        ("Decode (text generation)", |case| case.n_prompt == 0),
        ("Prompt and generation", |case| {
            case.n_prompt > 0 && case.n_gen > 0
        }),
    ];
    let mut panels = Vec::new();
    for (title, is_of) in kinds {
        let mut all = series(rows);
        all.retain(|series| is_of(series.case()));
        let failed = rows
            .iter()
            .filter(|row| is_of(&row.case) && row.samples.is_empty());
        let failed = failed.filter_map(|row| row.case.variant.budget_bytes());
        if !all.is_empty() {
            panels.push(Panel {
                title,
                series: all,
                failed: failed.collect(),
            });
        }
    }
    panels
}

/// Two lines: what was measured, and where.
fn title(rows: &[Row], paging: &Paging) -> [String; 2] {
    let mut models: Vec<String> = Vec::new();
    for row in rows {
        let kind = row.model.clone().unwrap_or_default().model_type;
        if !kind.is_empty() && !models.contains(&kind) {
            models.push(kind);
        }
    }
    let mut threads: Vec<String> = rows
        .iter()
        .map(|row| row.case.n_threads.to_string())
        .collect();
    threads.dedup();
    let rate = rows.iter().filter_map(Row::copy_rate).collect::<Vec<_>>();
    let rate = spread(&rate).map_or("nothing was copied".to_owned(), |rate| {
        format!("copies at {:.2} GB/s", rate.median / 1e9)
    });
    let first = format!("{}: speed over the memory budget", models.join(", "));
    let second = format!(
        "paged: {}; -t {}; law: max(bytes copied per token / rate, computing when resident), \
         {rate}",
        paging.words(),
        threads.join(", ")
    );
    [first, second]
}

fn draw<B: DrawingBackend>(
    root: &Area<'_, B>,
    panels: &[Panel<'_>],
    rows: &[Row],
    title: &[String; 2],
    scale: u32,
) -> Drawn<B> {
    root.fill(&WHITE)?;
    let (top, rest) = root.split_vertically(TITLE_HEIGHT * scale);
    let at = |x: u32, y: u32| (pixel(x * scale), pixel(y * scale));
    let big = ("sans-serif", 20 * scale).into_font().color(&INK);
    let small = ("sans-serif", 13 * scale).into_font().color(&INK.mix(0.75));
    top.draw(&Text::new(title[0].as_str(), at(16, 12), big))?;
    top.draw(&Text::new(title[1].as_str(), at(16, 40), small))?;
    for (area, panel) in rest.split_evenly((1, panels.len())).iter().zip(panels) {
        draw_panel(area, panel, rows, scale)?;
    }
    root.present()
}

/// A number of pixels as a place.
fn pixel(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// A budget on the axis, in its unit.
#[allow(clippy::cast_precision_loss, reason = "a place on an axis")]
fn in_unit(bytes: u64, unit: f64) -> f64 {
    bytes as f64 / unit
}

/// What a series draws, in the axis' units.
struct Curve {
    colour: RGBColor,
    label: String,
    points: Vec<(f64, Spread)>,
    stock: Option<f64>,
    law: Vec<(f64, f64)>,
}

fn curves(panel: &Panel<'_>, rows: &[Row], unit: f64) -> Vec<Curve> {
    let labels = labels(&panel.series);
    let all = panel.series.iter().zip(labels).zip(COLOURS.iter().cycle());
    let curve = |((series, label), colour): ((&Series<'_>, String), &RGBColor)| {
        let budget = |row: &Row| row.case.variant.budget_bytes().unwrap_or(0);
        let place = |row: &Row| Some((in_unit(budget(row), unit), spread(&row.speeds())?));
        let points: Vec<_> = series.paged.iter().filter_map(|row| place(row)).collect();
        let law = Law::new(series, rows);
        let (first, last) = match (points.first(), points.last()) {
            (Some(first), Some(last)) => (first.0, last.0),
            _ => (0.0, 0.0),
        };
        let step = (last - first) / f64::from(LAW_POINTS);
        let places = (0..=LAW_POINTS).map(|index| first + step * f64::from(index));
        let on_law = |x: f64| Some((x, law.tokens_per_second((x * unit).min(last * unit))?));
        Curve {
            colour: *colour,
            label,
            stock: series
                .stock
                .and_then(|row| Some(spread(&row.speeds())?.median)),
            law: places.filter_map(on_law).collect(),
            points,
        }
    };
    all.map(curve).collect()
}

/// What tells the series of a panel apart.
fn labels(all: &[Series<'_>]) -> Vec<String> {
    let facts = |series: &Series<'_>| {
        let case = series.case();
        let kind = series.paged[0].model.clone().unwrap_or_default().model_type;
        [
            kind,
            case.model.shown.clone(),
            format!("ngl {}", case.n_gpu_layers),
            format!("lm {}", case.load_mode),
            format!("batch {}", case.n_batch),
            format!("ubatch {}", case.n_ubatch),
            format!("K {}", case.type_k),
            format!("V {}", case.type_v),
            format!("fa {}", case.flash_attn),
            format!("{} threads", case.n_threads),
            format!("poll {}", case.poll),
            format!("cold {}", case.variant.cold().unwrap_or_default().word()),
        ]
    };
    let facts: Vec<_> = all.iter().map(facts).collect();
    let differs = |index: usize| facts.iter().any(|other| other[index] != facts[0][index]);
    let label = |(series, own): (&Series<'_>, &[String; 12])| {
        let mut parts = vec![series.case().test()];
        let more = own.iter().enumerate().filter(|(index, _)| differs(*index));
        parts.extend(more.map(|(_, fact)| fact.clone()));
        parts.join(", ")
    };
    all.iter().zip(&facts).map(label).collect()
}

/// Binary units of an axis, and the budgets from which they are used.
const MIB: f64 = 1024.0 * 1024.0;
const GIB: f64 = 1024.0 * MIB;

fn draw_panel<B: DrawingBackend>(
    area: &Area<'_, B>,
    panel: &Panel<'_>,
    rows: &[Row],
    scale: u32,
) -> Drawn<B> {
    let budgets = panel.series.iter().flat_map(|series| &series.paged);
    let budgets = budgets.filter_map(|row| row.case.variant.budget_bytes());
    let most = budgets
        .chain(panel.failed.iter().copied())
        .max()
        .unwrap_or(1);
    let (unit, name) = if in_unit(most, GIB) >= 4.0 {
        (GIB, "GiB")
    } else {
        (MIB, "MiB")
    };
    let curves = curves(panel, rows, unit);
    let failed: Vec<f64> = panel
        .failed
        .iter()
        .map(|bytes| in_unit(*bytes, unit))
        .collect();
    let entries = entries(&curves, !failed.is_empty());
    let lines = legend_lines(area, &entries, scale)?;
    let height = LEGEND_HEIGHT * u32::try_from(lines.len()).unwrap_or(1) + 8;
    let (head, area) = area.split_vertically((30 + height) * scale);
    draw_legend(&head, panel.title, &entries, &lines, scale)?;

    let highest = curves.iter().flat_map(|curve| {
        let points = curve.points.iter().map(|(_, y)| y.median + y.mad);
        points
            .chain(curve.law.iter().map(|(_, y)| *y))
            .chain(curve.stock)
    });
    let top = highest.fold(0.0, f64::max) * 1.08;
    let right = in_unit(most, unit) * 1.05;
    let top = if top > 0.0 { top } else { 1.0 };
    let mut chart = ChartBuilder::on(&area)
        .margin_left(14 * scale)
        .margin_right(24 * scale)
        .margin_bottom(8 * scale)
        .margin_top(4 * scale)
        .x_label_area_size(46 * scale)
        .y_label_area_size(76 * scale)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    let (digits_x, digits_y) = (digits(right), digits(top));
    chart
        .configure_mesh()
        .x_labels(7)
        .y_labels(7)
        .x_label_formatter(&|x| format!("{x:.digits_x$}"))
        .y_label_formatter(&|y| format!("{y:.digits_y$}"))
        .x_desc(format!("memory budget, {name}"))
        .y_desc("tokens per second")
        .label_style(("sans-serif", 13 * scale).into_font().color(&INK))
        .axis_desc_style(("sans-serif", 14 * scale).into_font().color(&INK))
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(INK.mix(0.6))
        .draw()?;
    for curve in &curves {
        draw_curve(&mut chart, curve, right, scale)?;
    }
    let cross = INK.mix(0.7).stroke_width(2 * scale);
    let crosses = failed
        .iter()
        .map(|x| Cross::new((*x, top * 0.02), 4 * scale, cross));
    chart.draw_series(crosses)?;
    Ok(())
}

/// Digits behind the point of an axis' labels, when it goes up to `most`.
fn digits(most: f64) -> usize {
    match most {
        most if most < 0.5 => 3,
        most if most < 5.0 => 2,
        most if most < 20.0 => 1,
        _ => 0,
    }
}

type Chart<'a, B> = ChartContext<
    'a,
    B,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;

fn draw_curve<B: DrawingBackend>(
    chart: &mut Chart<'_, B>,
    curve: &Curve,
    right: f64,
    scale: u32,
) -> Drawn<B> {
    let colour = curve.colour;
    if let Some(stock) = curve.stock {
        let line = [(0.0, stock), (right, stock)];
        let style = colour.stroke_width(2 * scale);
        chart.draw_series(DashedLineSeries::new(line, 2 * scale, 4 * scale, style))?;
    }
    let style = colour.mix(0.65).stroke_width(2 * scale);
    let law = curve.law.iter().copied();
    chart.draw_series(DashedLineSeries::new(law, 9 * scale, 6 * scale, style))?;
    let points = curve.points.iter().map(|(x, y)| (*x, y.median));
    chart.draw_series(LineSeries::new(
        points.clone(),
        colour.stroke_width(2 * scale),
    ))?;
    let bars = curve.points.iter().map(|(x, y)| {
        let bar = vec![(*x, (y.median - y.mad).max(0.0)), (*x, y.median + y.mad)];
        PathElement::new(bar, colour.stroke_width(scale))
    });
    chart.draw_series(bars)?;
    // Many points stand closer together.
    let size = if curve.points.len() > 15 { 3 } else { 4 };
    chart.draw_series(points.map(|at| Circle::new(at, size * scale, colour.filled())))?;
    Ok(())
}

/// An entry of the legend.
struct Entry {
    text: String,
    colour: RGBColor,
    sign: Sign,
}

#[derive(Clone, Copy, PartialEq)]
enum Sign {
    Points,
    Dotted,
    Dashed,
    Cross,
}

fn entries(curves: &[Curve], failed: bool) -> Vec<Entry> {
    let entry = |text: &str, colour, sign| Entry {
        text: text.to_owned(),
        colour,
        sign,
    };
    let mut all: Vec<Entry> = curves
        .iter()
        .map(|curve| {
            entry(
                &format!("{} paged", curve.label),
                curve.colour,
                Sign::Points,
            )
        })
        .collect();
    // Where there is one curve, its colour; otherwise each colour has such a line.
    let colour = if curves.len() == 1 {
        curves[0].colour
    } else {
        INK
    };
    if curves.iter().any(|curve| curve.stock.is_some()) {
        all.push(entry("stock", colour, Sign::Dotted));
    }
    if curves.iter().any(|curve| !curve.law.is_empty()) {
        all.push(entry("law", colour, Sign::Dashed));
    }
    if failed {
        all.push(entry("cannot run", INK, Sign::Cross));
    }
    all
}

/// Pixels of a sign of the legend, and between entries.
const SIGN_WIDTH: u32 = 36;
const GAP: u32 = 18;
/// Where the legend begins.
const LEGEND_LEFT: u32 = 90;

/// A line of the legend: which entry begins where.
type Line = Vec<(usize, u32)>;

/// Which entry begins where, line by line.
fn legend_lines<B: DrawingBackend>(
    area: &Area<'_, B>,
    entries: &[Entry],
    scale: u32,
) -> std::result::Result<Vec<Line>, DrawingAreaErrorKind<B::ErrorType>> {
    let style = ("sans-serif", 13 * scale).into_text_style(area);
    let (width, _) = area.dim_in_pixel();
    let (mut lines, mut x) = (vec![Vec::new()], LEGEND_LEFT * scale);
    for (index, entry) in entries.iter().enumerate() {
        let (text, _) = area.estimate_text_size(&entry.text, &style)?;
        let wide = (SIGN_WIDTH + GAP) * scale + text;
        if x + wide > width && x > LEGEND_LEFT * scale {
            lines.push(Vec::new());
            x = LEGEND_LEFT * scale;
        }
        if let Some(line) = lines.last_mut() {
            line.push((index, x));
        }
        x += wide;
    }
    Ok(lines)
}

fn draw_legend<B: DrawingBackend>(
    area: &Area<'_, B>,
    title: &str,
    entries: &[Entry],
    lines: &[Line],
    scale: u32,
) -> Drawn<B> {
    let heading = ("sans-serif", 16 * scale).into_font().color(&INK);
    let at = (pixel(LEGEND_LEFT * scale), pixel(6 * scale));
    area.draw(&Text::new(title, at, heading))?;
    let style = ("sans-serif", 13 * scale).into_font().color(&INK);
    let style = style.pos(Pos::new(HPos::Left, VPos::Center));
    for (number, line) in lines.iter().enumerate() {
        let y = 30 + LEGEND_HEIGHT * u32::try_from(number).unwrap_or(0) + LEGEND_HEIGHT / 2;
        let y = pixel(y * scale);
        for (index, x) in line {
            let entry = &entries[*index];
            draw_sign(area, entry, (pixel(*x), y), scale)?;
            let at = (pixel(x + SIGN_WIDTH * scale), y);
            area.draw(&Text::new(entry.text.as_str(), at, style.clone()))?;
        }
    }
    Ok(())
}

fn draw_sign<B: DrawingBackend>(
    area: &Area<'_, B>,
    entry: &Entry,
    (x, y): (i32, i32),
    scale: u32,
) -> Drawn<B> {
    let (colour, step) = (entry.colour, pixel(scale));
    let style = colour.stroke_width(2 * scale);
    let line = |from: i32, to: i32| {
        PathElement::new(vec![(x + from * step, y), (x + to * step, y)], style)
    };
    let middle = (x + 14 * step, y);
    match entry.sign {
        Sign::Points => {
            area.draw(&line(0, 28))?;
            area.draw(&Circle::new(middle, 4 * scale, colour.filled()))
        }
        Sign::Dotted => (0..5).try_for_each(|dot| area.draw(&line(dot * 6, dot * 6 + 2))),
        Sign::Dashed => (0..2).try_for_each(|dash| area.draw(&line(dash * 16, dash * 16 + 10))),
        Sign::Cross => area.draw(&Cross::new(middle, 4 * scale, style)),
    }
}
