//! Charts as SVG, plain enough to read in a browser or a Markdown page.

/// A chart of several series of points.
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) series: Vec<Series>,
}

/// What an axis shows.
pub(super) struct Axis {
    pub(super) label: String,
    pub(super) scale: Scale,
    /// How a value on it is written.
    pub(super) show: fn(f64) -> String,
}

/// How values are spread over an axis.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    Linear,
    /// Doubling takes the same way everywhere.
    Logarithmic,
}

/// Points that belong together, drawn in order of their x.
pub(super) struct Series {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// Values over two coordinates, 0 to 100.
pub(super) struct HeatMap {
    pub(super) title: String,
    pub(super) x_label: String,
    pub(super) y_label: String,
    pub(super) columns: Vec<String>,
    pub(super) rows: Vec<String>,
    /// `[rows][columns]`
    pub(super) values: Vec<Vec<Option<f64>>>,
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
/// Room around the plot: left, top, right (for names), bottom.
const MARGIN: [f64; 4] = [70.0, 40.0, 250.0, 60.0];

/// Colours that people with any colour vision can tell apart (Okabe and Ito, 2008), then dashes.
const COLOURS: [&str; 8] = [
    "#000000", "#e69f00", "#56b4e9", "#009e73", "#d55e00", "#0072b2", "#cc79a7", "#999999",
];

impl Chart {
    /// The chart as an SVG document.
    pub(super) fn draw(&self) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x = Span::of(points().map(|point| point.0), self.x.scale);
        let y = Span::of(points().map(|point| point.1), self.y.scale);
        let [left, top, right, bottom] = MARGIN;
        let (wide, high) = (WIDTH - left - right, HEIGHT - top - bottom);
        let place = |point: &(f64, f64)| {
            (
                left + wide * x.share(point.0),
                top + high * (1.0 - y.share(point.1)),
            )
        };
        let mut svg = open(WIDTH, HEIGHT, &self.title);
        for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
            let (across, down) = (left + wide * share, top + high * (1.0 - share));
            let (at_x, at_y) = ((self.x.show)(x.at(share)), (self.y.show)(y.at(share)));
            svg.push_str(&format!(
                "<line x1=\"{left}\" x2=\"{:.1}\" y1=\"{down:.1}\" y2=\"{down:.1}\" stroke=\"#ddd\"/>\n",
                left + wide
            ));
            svg.push_str(&text(across, top + high + 18.0, "middle", &at_x));
            svg.push_str(&text(left - 8.0, down + 4.0, "end", &at_y));
        }
        svg.push_str(&text(
            left + wide / 2.0,
            HEIGHT - 16.0,
            "middle",
            &self.x.label,
        ));
        svg.push_str(&format!(
            "<text transform=\"translate(18 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
            top + high / 2.0,
            escape(&self.y.label)
        ));
        for (at, series) in self.series.iter().enumerate() {
            let colour = COLOURS[at % COLOURS.len()];
            let dash = if at >= COLOURS.len() {
                " stroke-dasharray=\"5 3\""
            } else {
                ""
            };
            let mut points = series.points.clone();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            let places: Vec<(f64, f64)> = points.iter().map(place).collect();
            let path: Vec<String> = places
                .iter()
                .map(|(x, y)| format!("{x:.1},{y:.1}"))
                .collect();
            svg.push_str(&format!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"{dash}/>\n",
                path.join(" ")
            ));
            for (x, y) in &places {
                svg.push_str(&format!(
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>\n"
                ));
            }
            let (beside, down) = (left + wide + 20.0, top + 8.0 + 18.0 * at as f64);
            svg.push_str(&format!(
                "<line x1=\"{beside}\" x2=\"{:.1}\" y1=\"{down}\" y2=\"{down}\" stroke=\"{colour}\" \
                 stroke-width=\"3\"{dash}/>\n",
                beside + 18.0
            ));
            svg.push_str(&text(beside + 24.0, down + 4.0, "start", &series.name));
        }
        svg + "</svg>\n"
    }
}

impl HeatMap {
    /// The map as an SVG document.
    pub(super) fn draw(&self) -> String {
        let (cell, left, top) = (54.0, 110.0, 60.0);
        let wide = left + cell * self.columns.len() as f64 + 30.0;
        let high = top + 30.0 * self.rows.len() as f64 + 60.0;
        let mut svg = open(wide.max(420.0), high, &self.title);
        for (row, name) in self.rows.iter().enumerate() {
            let y = top + 30.0 * row as f64;
            svg.push_str(&text(left - 8.0, y + 20.0, "end", name));
            for (column, value) in self.values[row].iter().enumerate() {
                let x = left + cell * column as f64;
                let (fill, shown) = match value {
                    None => ("#eeeeee".to_owned(), "–".to_owned()),
                    Some(value) => (heat(*value), format!("{value:.0}")),
                };
                svg.push_str(&format!(
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"28\" fill=\"{fill}\"/>\n",
                    cell - 2.0
                ));
                svg.push_str(&text(x + cell / 2.0, y + 19.0, "middle", &shown));
            }
        }
        let below = top + 30.0 * self.rows.len() as f64 + 18.0;
        for (column, name) in self.columns.iter().enumerate() {
            let x = left + cell * (column as f64 + 0.5);
            svg.push_str(&text(x, below, "middle", name));
        }
        svg.push_str(&text(left, below + 24.0, "start", &self.x_label));
        svg.push_str(&text(12.0, top - 10.0, "start", &self.y_label));
        svg + "</svg>\n"
    }
}

/// The values that an axis covers.
struct Span {
    low: f64,
    high: f64,
    scale: Scale,
}

impl Span {
    fn of(values: impl Iterator<Item = f64>, scale: Scale) -> Span {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values {
            let value = if scale == Scale::Logarithmic {
                value.max(1.0).ln()
            } else {
                value
            };
            (low, high) = (low.min(value), high.max(value));
        }
        if scale == Scale::Linear {
            // Scores are read from nothing up.
            low = low.min(0.0);
        }
        if !low.is_finite() || high <= low {
            (low, high) = (low.min(high).max(0.0) - 0.5, low.min(high).max(0.0) + 0.5);
        }
        Span { low, high, scale }
    }

    /// Where `value` is, 0 to 1.
    fn share(&self, value: f64) -> f64 {
        let value = if self.scale == Scale::Logarithmic {
            value.max(1.0).ln()
        } else {
            value
        };
        (value - self.low) / (self.high - self.low)
    }

    /// The value at `share`.
    fn at(&self, share: f64) -> f64 {
        let value = self.low + share * (self.high - self.low);
        if self.scale == Scale::Logarithmic {
            value.exp()
        } else {
            value
        }
    }
}

fn open(wide: f64, high: f64, title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {wide:.0} {high:.0}\" \
         width=\"{wide:.0}\" height=\"{high:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{}",
        text(wide / 2.0, 22.0, "middle", title)
    )
}

fn text(x: f64, y: f64, anchor: &str, words: &str) -> String {
    let words = escape(words);
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>\n")
}

fn escape(words: &str) -> String {
    words
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// Green for 100 over yellow to red for 0, light enough to read black on it.
fn heat(value: f64) -> String {
    let share = (value / 100.0).clamp(0.0, 1.0);
    let (red, green, blue) = if share < 0.5 {
        (235.0, 110.0 + 220.0 * share, 100.0)
    } else {
        let rest = 2.0 * share - 1.0;
        (
            235.0 - 105.0 * rest,
            220.0 - 20.0 * rest,
            100.0 + 20.0 * rest,
        )
    };
    format!("#{:02x}{:02x}{:02x}", red as u8, green as u8, blue as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_placed_by_their_scale() {
        let span = Span::of([1024.0, 4096.0].into_iter(), Scale::Logarithmic);
        assert!((span.share(2048.0) - 0.5).abs() < 1e-9);
        assert!((span.at(0.5) - 2048.0).abs() < 1e-6);
        let span = Span::of([50.0, 100.0].into_iter(), Scale::Linear);
        assert_eq!((span.share(0.0), span.share(100.0)), (0.0, 1.0));
        for lonely in [
            Span::of([7.0].into_iter(), Scale::Logarithmic),
            Span::of([0.0].into_iter(), Scale::Linear),
            Span::of([].into_iter(), Scale::Linear),
        ] {
            assert!(lonely.high > lonely.low);
        }
    }
}
