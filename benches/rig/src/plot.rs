//! Curves as SVG: what one costs at 1, 10 and 100 times as much. A level line is a cost that grows in proportion.

use std::fmt::Write as _;

use crate::store::Results;
use crate::table::median;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 64.0;
/// Room for the names of the curves.
const RIGHT: f64 = 150.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 52.0;

/// Between the names of two curves that end close to each other.
const LEADING: f64 = 15.0;

/// Name and colour, the same in every plot; they stay apart for the colour-blind.
const THINGS: [(&str, &str, &str); 5] = [
    ("mailkey", "Mailkey", "#0072b2"),
    ("dovecot", "Dovecot", "#d55e00"),
    ("haproxy", "HAProxy", "#009e73"),
    ("nginx", "nginx", "#b8860b"),
    ("pipe", "bare pipe", "#777777"),
];

struct Plot {
    file: &'static str,
    title: &'static str,
    across: &'static str,
    points: [(&'static str, &'static str); 3],
}

const PLOTS: [Plot; 3] = [
    Plot {
        file: "growth-logins.svg",
        title: "Processor time of one IMAP login, µs",
        across: "logins in flight",
        points: [("1", "in_flight_1.cpu_us"), ("10", "in_flight_10.cpu_us"), ("100", "in_flight_100.cpu_us")],
    },
    Plot {
        file: "growth-sessions.svg",
        title: "Memory of one idle IMAP session, KiB",
        across: "idle sessions",
        points: [("99", "sessions_99.kib"), ("990", "sessions_990.kib"), ("9,900", "sessions_9900.kib")],
    },
    Plot {
        file: "growth-accounts.svg",
        title: "Processor time of one IMAP login, µs, its token in hand",
        across: "accounts, each with an entry of its own",
        points: [
            ("10", "accounts_10.cpu_us"),
            ("100", "accounts_100.cpu_us"),
            ("1,000", "accounts_1000.cpu_us"),
        ],
    },
];

/// File name, title and picture, for each plot that there are figures for.
pub fn of(results: &Results) -> Vec<(&'static str, &'static str, String)> {
    PLOTS.iter().filter_map(|plot| Some((plot.file, plot.title, plot.draw(results)?))).collect()
}

struct Curve {
    name: &'static str,
    colour: &'static str,
    values: Vec<f64>,
}

impl Plot {
    fn draw(&self, results: &Results) -> Option<String> {
        let value = |thing: &str, metric: &str| {
            let mut values: Vec<f64> =
                results.values(thing, metric).into_iter().map(|(_, value)| value).collect();
            median(&mut values)
        };
        let curves: Vec<Curve> = THINGS
            .iter()
            .filter_map(|(thing, name, colour)| {
                let values =
                    self.points.iter().map(|(_, metric)| value(thing, metric)).collect::<Option<_>>()?;
                Some(Curve { name, colour, values })
            })
            .collect();
        let highest = curves.iter().flat_map(|curve| &curve.values).copied().fold(0.0, f64::max);
        (highest > 0.0).then(|| self.picture(&curves, highest))
    }

    fn picture(&self, curves: &[Curve], highest: f64) -> String {
        let step = round_step(highest / 5.0);
        let top = (highest / step).ceil() * step;
        let x = |place: usize| LEFT + 24.0 + (WIDTH - LEFT - RIGHT - 48.0) * place as f64 / 2.0;
        let y = |value: f64| HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"13\" fill=\"#333\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n\
             <text x=\"16\" y=\"26\" font-size=\"15\" font-weight=\"bold\">{}</text>\n",
            self.title
        );
        let mut tick = 0.0;
        while tick <= top + step / 2.0 {
            let height = y(tick);
            let _ = writeln!(
                svg,
                "<line x1=\"{LEFT}\" y1=\"{height:.1}\" x2=\"{:.1}\" y2=\"{height:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{tick}</text>",
                WIDTH - RIGHT,
                LEFT - 8.0,
                height + 4.5
            );
            tick += step;
        }
        for (place, (name, _)) in self.points.iter().enumerate() {
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{name}</text>",
                x(place),
                HEIGHT - BOTTOM + 20.0
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            x(1),
            HEIGHT - 12.0,
            self.across
        );
        for (curve, label) in curves.iter().zip(labels(curves, &y)) {
            let points: Vec<String> = curve
                .values
                .iter()
                .enumerate()
                .map(|(place, value)| format!("{:.1},{:.1}", x(place), y(*value)))
                .collect();
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2.5\"/>",
                points.join(" "),
                curve.colour
            );
            for point in points {
                let (across, up) = point.split_once(',').unwrap_or_default();
                let _ = writeln!(
                    svg,
                    "<circle cx=\"{across}\" cy=\"{up}\" r=\"3.5\" fill=\"{}\"/>",
                    curve.colour
                );
            }
            let last = curve.values.last().copied().unwrap_or_default();
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{label:.1}\" fill=\"{}\">{} {}</text>",
                WIDTH - RIGHT - 12.0,
                curve.colour,
                curve.name,
                if last < 100.0 { format!("{last:.1}") } else { format!("{last:.0}") }
            );
        }
        svg.push_str("</svg>\n");
        svg
    }
}

/// Where the names stand: at the curves' ends, pushed apart where two are close.
fn labels(curves: &[Curve], y: &impl Fn(f64) -> f64) -> Vec<f64> {
    let mut places: Vec<(usize, f64)> = curves
        .iter()
        .enumerate()
        .map(|(number, curve)| (number, y(curve.values.last().copied().unwrap_or_default()) + 4.5))
        .collect();
    // from the bottom up, so that none leaves the picture
    places.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    let mut free = f64::INFINITY;
    for (_, place) in &mut places {
        *place = place.min(free);
        free = *place - LEADING;
    }
    places.sort_by_key(|(number, _)| *number);
    places.into_iter().map(|(_, place)| place).collect()
}

/// The next of 1, 2, 5, 10, 20, 50, …
fn round_step(least: f64) -> f64 {
    let power = 10_f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|part| part * power).find(|step| *step >= least).unwrap_or(least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round() {
        assert!((round_step(31.0) - 50.0).abs() < 1e-9);
        assert!((round_step(0.7) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn names_of_curves_do_not_lie_on_each_other() {
        let curve = |value| Curve { name: "", colour: "", values: vec![value] };
        let places = labels(&[curve(5.0), curve(5.1), curve(50.0)], &|value| 300.0 - value);
        assert!(
            (places[0] - places[1]).abs() >= LEADING && (places[1] - places[2]).abs() >= LEADING,
            "{places:?}"
        );
    }
}
