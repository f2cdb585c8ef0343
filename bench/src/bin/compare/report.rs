//! Medians, tables, and where they go.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use super::Failure;

/// What was measured, by name.
#[derive(Debug, Default)]
pub(super) struct Samples {
    values: BTreeMap<String, Vec<f64>>,
    notes: BTreeMap<String, u64>,
}

/// The middle one and how far the others are from it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spread {
    pub(super) lowest: f64,
    pub(super) median: f64,
    pub(super) highest: f64,
}

impl Samples {
    pub(super) fn add(&mut self, name: &str, value: f64) {
        self.values.entry(name.to_owned()).or_default().push(value);
    }

    /// A count that goes with a name, the same in every round.
    pub(super) fn note(&mut self, name: &str, count: u64) {
        self.notes.insert(name.to_owned(), count);
    }

    pub(super) fn noted(&self, name: &str) -> u64 {
        self.notes.get(name).copied().unwrap_or_default()
    }

    pub(super) fn spread(&self, name: &str) -> Option<Spread> {
        let mut all = self.values.get(name)?.clone();
        all.sort_by(f64::total_cmp);
        Some(Spread { lowest: *all.first()?, median: all[all.len() / 2], highest: *all.last()? })
    }
}

/// One thing divided by another.
#[derive(Clone, Debug)]
pub(super) struct Ratio {
    what: String,
    value: f64,
    /// As the issue words it; empty where nothing is asked for.
    wanted: String,
}

impl Ratio {
    pub(super) fn new(what: impl Into<String>, value: f64, wanted: &str) -> Self {
        Self { what: what.into(), value, wanted: wanted.to_owned() }
    }

    /// Of two medians, when both were measured.
    pub(super) fn of(samples: &Samples, (ours, theirs): (&str, &str), wanted: &str) -> Option<Self> {
        let (own, other) = (samples.spread(ours)?.median, samples.spread(theirs)?.median);
        let wanted = if wanted.is_empty() { String::new() } else { format!("at least {wanted}") };
        Some(Self::new(format!("{ours} / {theirs}"), own / other, &wanted))
    }
}

/// A table in Markdown; the first column is text, the others are numbers.
#[derive(Debug)]
pub(super) struct Table(String);

impl Table {
    pub(super) fn new(headings: &[&str]) -> Self {
        let rules = ["---:"].repeat(headings.len().saturating_sub(1)).join(" | ");
        Self(format!("| {} |\n| --- | {rules} |\n", headings.join(" | ")))
    }

    pub(super) fn row(&mut self, cells: &[String]) {
        writeln!(self.0, "| {} |", cells.join(" | ")).expect("a string takes any text");
    }
}

/// One part's results: what goes between its marks in docs/benchmarks.md.
#[derive(Debug)]
pub(super) struct Measured {
    name: &'static str,
    text: String,
    plots: Vec<(&'static str, String)>,
}

impl Measured {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, text: String::new(), plots: Vec::new() }
    }

    pub(super) fn say(&mut self, paragraph: &str) {
        writeln!(self.text, "{paragraph}\n").expect("a string takes any text");
    }

    pub(super) fn table(&mut self, table: &Table) {
        self.say(&table.0);
    }

    pub(super) fn ratios(&mut self, ratios: &[Ratio]) {
        let mut table = Table::new(&["ratio", "measured", "asked for"]);
        for Ratio { what, value, wanted } in ratios {
            table.row(&[what.clone(), format!("{value:.3}"), wanted.clone()]);
        }
        self.table(&table);
    }

    /// A picture, in `plots` beside the page.
    pub(super) fn plot(&mut self, file: &'static str, svg: String) {
        self.say(&format!("![{}](plots/{file})", self.name));
        self.plots.push((file, svg));
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Replaces what stands between `<!-- compare:NAME -->` and `<!-- /compare:NAME -->` of a page.
    pub(super) fn write(&self, page: &Path) -> Result<(), Failure> {
        let text = fs::read_to_string(page)?;
        let (begin, end) = (format!("<!-- compare:{} -->", self.name), format!("<!-- /compare:{} -->", self.name));
        let (before, rest) = text.split_once(&begin).ok_or_else(|| format!("no {begin} in {}", page.display()))?;
        let (_, after) = rest.split_once(&end).ok_or_else(|| format!("no {end} in {}", page.display()))?;
        let body = self.text.trim_end().replace("\n\n\n", "\n\n");
        fs::write(page, format!("{before}{begin}\n\n{body}\n\n{end}{after}"))?;
        let folder = page.parent().unwrap_or_else(|| Path::new(".")).join("plots");
        for (file, svg) in &self.plots {
            fs::create_dir_all(&folder)?;
            fs::write(folder.join(file), svg)?;
        }
        Ok(())
    }
}

/// `1,234,567`.
pub(super) fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
