//! A job that is watched: a bar for the job and one for each shard under way on a terminal, lines elsewhere.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::human;
use super::progress::{Measure, Pace, STEPS, bar_style, say};
use super::written;
use crate::error::CliError;

/// How often a pipe gets a line, at most, while nothing but numbers changes.
const LINE_EVERY: Duration = Duration::from_secs(3);
/// Most shards that get a bar.
const MOST_ROWS: usize = 30;

/// One shard under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// Tells it from others.
    pub(crate) id: String,
    /// For people.
    pub(crate) label: String,
    /// Bytes done.
    pub(crate) done: u64,
    /// Bytes in all.
    pub(crate) of: u64,
}

/// Shows a job as it goes.
#[derive(Debug)]
pub(crate) struct Board(Look);

#[derive(Debug)]
enum Look {
    Bars { all: MultiProgress, job: ProgressBar, rows: BTreeMap<String, ProgressBar> },
    Lines { last: Option<(Instant, String, String)> },
    Silent,
}

impl Board {
    /// Shows nothing.
    pub(super) fn silent() -> Self {
        Self(Look::Silent)
    }

    /// Bars on standard error.
    pub(super) fn bars() -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let job = all.add(ProgressBar::new(u64::from(STEPS)));
        job.set_style(bar_style());
        Self(Look::Bars { all, job, rows: BTreeMap::new() })
    }

    /// Lines on standard output.
    pub(super) fn lines() -> Self {
        Self(Look::Lines { last: None })
    }

    /// Shows how a job stands.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub(crate) fn show(
        &mut self,
        state: &str,
        measure: &Measure,
        pace: &Pace,
        under_way: &[Row],
    ) -> Result<(), CliError> {
        match &mut self.0 {
            Look::Silent => {}
            Look::Bars { all, job, rows } => {
                job.set_prefix(state.to_owned());
                job.set_position(u64::from(measure.permille().unwrap_or(0)));
                job.set_message(measure.text_with(pace));
                show_rows(all, rows, under_way);
            }
            Look::Lines { last } => {
                let workers = number_under_way(under_way.len());
                let text = format!("{state}: {}{workers}", measure.text_with(pace));
                let due = match last {
                    None => true,
                    Some((at, before, line)) => {
                        before != state || (at.elapsed() >= LINE_EVERY && without_pace(line) != without_pace(&text))
                    }
                };
                if due {
                    written(writeln!(std::io::stdout().lock(), "{text}"))?;
                    *last = Some((Instant::now(), state.to_owned(), text));
                }
            }
        }
        Ok(())
    }

    /// A remark beside the bars.
    pub(crate) fn say(&self, text: &str) {
        match &self.0 {
            Look::Silent => {}
            Look::Bars { all, .. } => all.suspend(|| say(text)),
            Look::Lines { .. } => say(text),
        }
    }

    /// Removes the bars.
    pub(crate) fn finish(self) {
        if let Look::Bars { all, job, rows } = self.0 {
            rows.values().for_each(ProgressBar::finish_and_clear);
            job.finish_and_clear();
            drop(all.clear());
        }
    }
}

/// Bars of shards that are done go, new ones come, the others move.
fn show_rows(all: &MultiProgress, rows: &mut BTreeMap<String, ProgressBar>, under_way: &[Row]) {
    rows.retain(|id, bar| {
        let stays = under_way.iter().any(|row| row.id == *id);
        if !stays {
            bar.finish_and_clear();
            all.remove(bar);
        }
        stays
    });
    for row in under_way {
        if !rows.contains_key(&row.id) && rows.len() < MOST_ROWS {
            let bar = all.add(ProgressBar::new(0));
            bar.set_style(row_style());
            rows.insert(row.id.clone(), bar);
        }
        if let Some(bar) = rows.get(&row.id) {
            bar.set_length(row.of.max(1));
            bar.set_position(row.done.min(row.of));
            bar.set_message(format!("{}/{}, {}", human::bytes(row.done), human::bytes(row.of), row.label));
        }
    }
}

fn row_style() -> ProgressStyle {
    ProgressStyle::with_template("          [{bar:16}] {percent:>3}% {wide_msg}")
        .map_or_else(|_| ProgressStyle::default_bar(), |style| style.progress_chars("=> "))
}

fn number_under_way(shards: usize) -> String {
    if shards == 0 { String::new() } else { format!(", {} under way", human::number_of(shards as u64, "shard")) }
}

/// A line without what changes while nothing happens.
fn without_pace(line: &str) -> String {
    line.split(", ").filter(|part| !part.ends_with("/s") && !part.ends_with(" left")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_goes_by_is_no_news() {
        let line = "running: 1/2 files, 3 B/4 B, 1 B/s, 2.0 s left, 1/2 shards";
        assert_eq!(without_pace(line), without_pace(&line.replace("2.0 s", "9 s").replace("1 B/s", "2 B/s")));
        assert_ne!(without_pace(line), without_pace(&line.replace("1/2 files", "2/2 files")));
    }

    #[test]
    fn rows_come_and_go() {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        let mut rows = BTreeMap::new();
        let row = |id: &str, done| Row { id: id.into(), label: "w".into(), done, of: 10 };
        show_rows(&all, &mut rows, &[row("a", 1), row("b", 2)]);
        show_rows(&all, &mut rows, &[row("b", 7), row("c", 99)]);
        let at: Vec<(&str, u64)> = rows.iter().map(|(id, bar)| (id.as_str(), bar.position())).collect();
        assert_eq!(at, [("b", 7), ("c", 10)]);
        let many: Vec<Row> = (0..100).map(|n| row(&n.to_string(), 0)).collect();
        show_rows(&all, &mut rows, &many);
        assert_eq!(rows.len(), MOST_ROWS, "a cluster of workers does not fill the screen");
    }
}
