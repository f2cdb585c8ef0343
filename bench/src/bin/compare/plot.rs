//! A plot of bars as SVG, readable on light and dark pages.

use std::fmt::Write;

const WIDTH: f64 = 760.0;
const LABELS: f64 = 260.0;
const ROW: f64 = 24.0;

/// One bar.
#[derive(Clone, Debug)]
pub(super) struct Bar<'a> {
    pub(super) name: &'a str,
    pub(super) value: f64,
    /// What stands behind it.
    pub(super) text: String,
}

/// Bars from the left, longest value full width. Ours, theirs and limits have colours of their own, by their names.
pub(super) fn bars(title: &str, bars: &[Bar<'_>]) -> String {
    let most = bars.iter().map(|bar| bar.value).fold(f64::MIN_POSITIVE, f64::max);
    let height = ROW * (bars.len() as f64 + 2.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"12\" y=\"24\" font-size=\"15\" font-weight=\"bold\" fill=\"#222\">{}</text>\n",
        escaped(title)
    );
    for (at, bar) in bars.iter().enumerate() {
        let top = ROW * (at as f64 + 1.6);
        let length = (bar.value / most * (WIDTH - LABELS - 90.0)).max(1.0);
        let colour = match bar.name {
            name if name.starts_with("DES") => "#1f6feb",
            name if name.starts_with("limit") => "#c9d1d9",
            _ => "#8c959f",
        };
        let middle = top + ROW * 0.62;
        let (name, text) = (escaped(bar.name), escaped(&bar.text));
        writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{middle:.1}\" text-anchor=\"end\" fill=\"#222\">{name}</text>\
             <rect x=\"{LABELS}\" y=\"{:.1}\" width=\"{length:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{middle:.1}\" fill=\"#222\">{text}</text>",
            LABELS - 8.0,
            top + 3.0,
            ROW - 8.0,
            LABELS + length + 6.0,
        )
        .expect("a string takes any text");
    }
    svg.push_str("</svg>\n");
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
