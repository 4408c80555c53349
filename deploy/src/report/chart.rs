//! Line charts as inline SVG. Colours come from the page's style, so that they follow light and dark.

use std::fmt::Write as _;

use super::html::{escape, number};

/// Size of the drawing, in its own units.
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 232.0;
/// Room for the labels of the axes.
const LEFT: f64 = 52.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 34.0;
/// Points drawn of one line at most; more are averaged in equal parts.
const POINTS: usize = 400;

/// One line.
pub struct Series {
    /// What it is; empty: not in the legend.
    pub name: &'static str,
    /// Class of the style: `one`, `two`, `faint`.
    pub class: &'static str,
    /// (step, value), by step.
    pub points: Vec<(f64, f64)>,
}

/// A point with its standard error.
pub struct Mark {
    /// Step.
    pub x: f64,
    /// Value.
    pub y: f64,
    /// Half the height of the error bar.
    pub error: f64,
}

/// Marks joined by a line.
pub struct Marks {
    /// What they are.
    pub name: &'static str,
    /// Class of the style.
    pub class: &'static str,
    /// By step.
    pub marks: Vec<Mark>,
}

/// A range drawn behind the lines.
pub struct Band {
    /// What it is.
    pub name: &'static str,
    /// (step, low, high), by step.
    pub points: Vec<(f64, f64, f64)>,
}

/// A chart over steps.
#[derive(Default)]
pub struct Chart {
    /// Heading.
    pub title: &'static str,
    /// What it says, in a sentence.
    pub note: String,
    /// Lines, first drawn first.
    pub series: Vec<Series>,
    /// Measured points.
    pub marks: Vec<Marks>,
    /// Range.
    pub band: Option<Band>,
    /// Values that have to be on the axis.
    pub include: Vec<f64>,
}

impl Chart {
    /// True if there is nothing to draw.
    pub fn is_empty(&self) -> bool {
        self.series.iter().all(|s| s.points.is_empty()) && self.marks.iter().all(|m| m.marks.is_empty())
    }

    /// The figure.
    pub fn figure(&self) -> String {
        let (frame, label) = (Frame::around(self), escape(&self.in_words()));
        let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{label}\">\n");
        frame.axes(&mut svg);
        if let Some(band) = &self.band {
            frame.band(&mut svg, band);
        }
        self.series.iter().for_each(|s| frame.line(&mut svg, s.class, &thinned(&s.points)));
        self.marks.iter().for_each(|m| frame.marks(&mut svg, m));
        svg.push_str("</svg>\n");
        format!(
            "<figure class=\"chart\">\n<figcaption><h3>{}</h3>{}</figcaption>\n{svg}<p class=\"note\">{}</p>\n</figure>\n",
            escape(self.title),
            self.legend(),
            escape(&self.note)
        )
    }

    fn legend(&self) -> String {
        let lines = self.series.iter().filter(|s| !s.points.is_empty()).map(|s| (s.name, s.class));
        let marks = self.marks.iter().filter(|m| !m.marks.is_empty()).map(|m| (m.name, m.class));
        let band = self.band.iter().filter(|b| !b.points.is_empty()).map(|b| (b.name, "band"));
        let named: Vec<_> = lines.chain(marks).chain(band).filter(|(name, _)| !name.is_empty()).collect();
        if named.len() < 2 {
            return String::new();
        }
        let item = |(name, class): (&str, &str)| format!("<span class=\"key {class}\">{}</span>", escape(name));
        format!("<span class=\"legend\">{}</span>", named.into_iter().map(item).collect::<String>())
    }

    /// For those who cannot see it.
    fn in_words(&self) -> String {
        let lines = self.series.iter().map(|s| (s.name, s.points.first().copied(), s.points.last().copied()));
        let point = |m: &Mark| (m.x, m.y);
        let marks = self.marks.iter().map(|m| (m.name, m.marks.first().map(point), m.marks.last().map(point)));
        let mut words = format!("{}, by step.", self.title);
        for (name, first, last) in lines.chain(marks) {
            if let (false, Some(first), Some(last)) = (name.is_empty(), first, last) {
                let _ = write!(
                    words,
                    " {name}: {} at step {}, {} at step {}.",
                    number(first.1),
                    first.0,
                    number(last.1),
                    last.0
                );
            }
        }
        words
    }
}

/// Where values lie on the drawing.
struct Frame {
    x: (f64, f64),
    y: (f64, f64),
    y_ticks: Vec<f64>,
    y_step: f64,
}

impl Frame {
    fn around(chart: &Chart) -> Self {
        let lines = chart.series.iter().flat_map(|s| s.points.iter().copied());
        let marks = chart.marks.iter().flat_map(|m| &m.marks);
        let marks = marks.flat_map(|m| [(m.x, m.y - m.error), (m.x, m.y + m.error)]);
        let band = chart.band.iter().flat_map(|b| &b.points).flat_map(|(x, low, high)| [(*x, *low), (*x, *high)]);
        let all: Vec<(f64, f64)> = lines.chain(marks).chain(band).collect();
        let range = |values: &mut dyn Iterator<Item = f64>| {
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
        };
        let mut x = range(&mut all.iter().map(|p| p.0));
        let (low, high) = range(&mut all.iter().map(|p| p.1).chain(chart.include.iter().copied()));
        if x.1 <= x.0 {
            x = (x.0 - 0.5, x.0 + 0.5);
        }
        let (low, high) =
            if high > low { (low, high) } else { (low - low.abs().max(1.0) / 2.0, high + high.abs().max(1.0) / 2.0) };
        let y_step = nice_step((high - low) / 4.0);
        let (bottom, top) = ((low / y_step).floor() * y_step, (high / y_step).ceil() * y_step);
        let count = ((top - bottom) / y_step).round() as usize;
        let y_ticks = (0..=count).map(|i| bottom + i as f64 * y_step).collect();
        Self { x, y: (bottom, top), y_ticks, y_step }
    }

    fn at(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let across = (x - self.x.0) / (self.x.1 - self.x.0);
        let up = (y - self.y.0) / (self.y.1 - self.y.0);
        (LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM))
    }

    fn axes(&self, svg: &mut String) {
        for tick in &self.y_ticks {
            let (_, y) = self.at((self.x.0, *tick));
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
                WIDTH - RIGHT
            );
            let _ = writeln!(
                svg,
                "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                y + 4.0,
                tick_text(*tick, self.y_step)
            );
        }
        let step = nice_step((self.x.1 - self.x.0) / 6.0).max(1.0);
        let first = (self.x.0 / step).ceil() as i64;
        let last = (self.x.1 / step).floor() as i64;
        for tick in (first..=last).map(|i| i as f64 * step) {
            let (x, _) = self.at((tick, self.y.0));
            let y = HEIGHT - BOTTOM;
            let _ = writeln!(svg, "<line class=\"axis\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{y}\" y2=\"{}\"/>", y + 4.0);
            let _ = writeln!(
                svg,
                "<text class=\"tick\" x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                y + 17.0,
                tick_text(tick, step)
            );
        }
        let y = HEIGHT - BOTTOM;
        let _ = writeln!(svg, "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y}\" y2=\"{y}\"/>", WIDTH - RIGHT);
        let _ = writeln!(
            svg,
            "<text class=\"tick\" x=\"{:.1}\" y=\"{}\" text-anchor=\"end\">step</text>",
            WIDTH - RIGHT,
            HEIGHT - 3.0
        );
    }

    fn line(&self, svg: &mut String, class: &str, points: &[(f64, f64)]) {
        if points.is_empty() {
            return;
        }
        if let [only] = points {
            let (x, y) = self.at(*only);
            let _ = writeln!(svg, "<circle class=\"dot {class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>");
            return;
        }
        let _ = writeln!(svg, "<polyline class=\"line {class}\" points=\"{}\"/>", self.path(points.iter().copied()));
    }

    fn path(&self, points: impl Iterator<Item = (f64, f64)>) -> String {
        let place = |point| {
            let (x, y) = self.at(point);
            format!("{x:.1},{y:.1}")
        };
        points.map(place).collect::<Vec<_>>().join(" ")
    }

    fn band(&self, svg: &mut String, band: &Band) {
        if band.points.len() < 2 {
            return;
        }
        let lows: Vec<(f64, f64)> = band.points.iter().map(|(x, low, _)| (*x, *low)).collect();
        let highs: Vec<(f64, f64)> = band.points.iter().map(|(x, _, high)| (*x, *high)).collect();
        let outline = thinned(&highs).into_iter().chain(thinned(&lows).into_iter().rev());
        let _ = writeln!(svg, "<polygon class=\"band\" points=\"{}\"/>", self.path(outline));
    }

    fn marks(&self, svg: &mut String, marks: &Marks) {
        let class = marks.class;
        self.line(svg, &format!("{class} thin"), &marks.marks.iter().map(|m| (m.x, m.y)).collect::<Vec<_>>());
        for mark in &marks.marks {
            let (x, y) = self.at((mark.x, mark.y));
            let (_, low) = self.at((mark.x, mark.y - mark.error));
            let (_, high) = self.at((mark.x, mark.y + mark.error));
            let title = format!("{}: {} at step {}", marks.name, number(mark.y), mark.x);
            let _ = writeln!(
                svg,
                "<line class=\"error {class}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{low:.1}\" y2=\"{high:.1}\"/>"
            );
            let _ = writeln!(
                svg,
                "<circle class=\"dot {class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"><title>{}</title></circle>",
                escape(&title)
            );
        }
    }
}

/// The smallest of 1, 2, 5 times a power of ten that reaches `rough`.
fn nice_step(rough: f64) -> f64 {
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|m| m * power)
        .find(|step| *step >= rough * (1.0 - 1e-9))
        .unwrap_or(10.0 * power)
}

/// A tick with the decimals that its distance to the next one needs.
fn tick_text(tick: f64, step: f64) -> String {
    let tick = if tick.abs() < step * 1e-6 { 0.0 } else { tick };
    if !(1e-4..1e5).contains(&step) {
        return number(tick);
    }
    let decimals = (-step.log10().floor()).clamp(0.0, 6.0) as usize;
    let text = format!("{tick:.decimals$}");
    text.replace('-', "\u{2212}")
}

/// At most [`POINTS`] points: means of equal parts.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= POINTS {
        return points.to_vec();
    }
    let part = |i: usize| &points[i * points.len() / POINTS..(i + 1) * points.len() / POINTS];
    let mean = |part: &[(f64, f64)]| {
        let n = part.len() as f64;
        (part.iter().map(|p| p.0).sum::<f64>() / n, part.iter().map(|p| p.1).sum::<f64>() / n)
    };
    (0..POINTS).map(|i| mean(part(i))).collect()
}

/// Means over the `window` values around each.
pub fn smoothed(points: &[(f64, f64)], window: usize) -> Vec<(f64, f64)> {
    let half = window / 2;
    let mean = |i: usize| {
        let near = &points[i.saturating_sub(half)..(i + half + 1).min(points.len())];
        near.iter().map(|p| p.1).sum::<f64>() / near.len() as f64
    };
    (0..points.len()).map(|i| (points[i].0, mean(i))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(points: Vec<(f64, f64)>) -> Chart {
        Chart { title: "t", series: vec![Series { name: "n", class: "one", points }], ..Chart::default() }
    }

    #[test]
    fn steps_and_ticks_are_round() {
        for (rough, want) in [(0.11, 0.2), (0.2, 0.2), (0.26, 0.5), (7.0, 10.0), (3e-5, 5e-5)] {
            assert!((nice_step(rough) - want).abs() < 1e-12, "{rough}: {}", nice_step(rough));
        }
        assert_eq!((tick_text(0.0, 5e-5), tick_text(1e-4, 5e-5)), ("0".into(), "1e\u{2212}4".into()));
        assert_eq!(
            (tick_text(0.30000000000000004, 0.1), tick_text(-1e-17, 0.1), tick_text(-40.0, 20.0)),
            ("0.3".into(), "0.0".into(), "\u{2212}40".into())
        );
    }

    #[test]
    fn every_point_lies_inside_the_frame() {
        for points in [
            vec![(1.0, 0.2), (2.0, -3.7), (3.0, 9.1)],
            vec![(5.0, 2.0)],
            vec![(1.0, 0.0), (2.0, 0.0)],
            vec![(1.0, 1e-9), (2.0, 2e-9)],
        ] {
            let frame = Frame::around(&line(points.clone()));
            for point in points {
                let (x, y) = frame.at(point);
                assert!(
                    (LEFT..=WIDTH - RIGHT).contains(&x) && (TOP - 1e-6..=HEIGHT - BOTTOM + 1e-6).contains(&y),
                    "{point:?} at {x}, {y}"
                );
            }
        }
    }

    #[test]
    fn long_lines_are_thinned_and_keep_their_course() {
        let points: Vec<_> = (0..10_000).map(|i| (f64::from(i), f64::from(i))).collect();
        let few = thinned(&points);
        assert_eq!(few.len(), POINTS);
        assert!(few.windows(2).all(|w| w[0].0 < w[1].0) && few.iter().all(|(x, y)| x == y));
        assert_eq!(smoothed(&[(1.0, 0.0), (2.0, 3.0), (3.0, 6.0)], 3), [(1.0, 1.5), (2.0, 3.0), (3.0, 4.5)]);
    }

    #[test]
    fn a_figure_says_itself_in_words() {
        let figure = line(vec![(1.0, 0.25), (8.0, 0.75)]).figure();
        assert!(figure.contains("n: 0.250 at step 1, 0.750 at step 8"), "{figure}");
    }
}
