//! Progress: a bar that redraws itself on a terminal, a line every few seconds in a pipe or a log file.

use std::io::Write;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::human;

/// How often a pipe gets a line, at most.
const LINE_EVERY: Duration = Duration::from_secs(3);
/// Steps of a bar.
pub(super) const STEPS: u32 = 1000;

/// How far something has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Measure {
    /// Files done.
    pub(crate) files: u64,
    /// Files in all, when known.
    pub(crate) of_files: Option<u64>,
    /// Bytes done.
    pub(crate) bytes: u64,
    /// Bytes in all, when known.
    pub(crate) of_bytes: Option<u64>,
    /// What else there is to say: shards, failures.
    pub(crate) note: String,
}

/// How fast it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pace {
    /// Bytes a second.
    pub(crate) bytes_per_second: Option<u64>,
    /// Time until the end.
    pub(crate) left: Option<Duration>,
}

impl Measure {
    /// Thousandths done; by bytes, or by files where there are no bytes.
    pub(super) fn permille(&self) -> Option<u32> {
        let of = |done: u64, all: Option<u64>| {
            let all = all.filter(|all| *all > 0)?;
            u32::try_from(u128::from(done.min(all)) * u128::from(STEPS) / u128::from(all)).ok()
        };
        of(self.bytes, self.of_bytes).or_else(|| of(self.files, self.of_files))
    }

    fn text(&self, running: Duration) -> String {
        // Rates of the first moments say nothing.
        let known = running > Duration::from_secs(1);
        let part = self.permille().filter(|part| (10..STEPS).contains(part));
        self.text_with(&Pace {
            bytes_per_second: (known && self.bytes > 0).then(|| human::per_second(self.bytes, running)),
            left: part.filter(|_| known).map(|part| running * (STEPS - part) / part),
        })
    }

    /// How far it has come, at a pace that is known.
    pub(super) fn text_with(&self, pace: &Pace) -> String {
        let mut parts = vec![match self.of_files {
            Some(all) => format!("{}/{}", human::count(self.files), human::number_of(all, "file")),
            None => human::number_of(self.files, "file"),
        }];
        if self.bytes > 0 || self.of_bytes.is_some() {
            let all = self.of_bytes.map(|all| format!("/{}", human::bytes(all))).unwrap_or_default();
            parts.push(format!("{}{all}", human::bytes(self.bytes)));
        }
        parts.extend(pace.bytes_per_second.map(|rate| format!("{}/s", human::bytes(rate))));
        parts.extend(pace.left.map(|left| format!("{} left", human::duration(left))));
        parts.extend(Some(self.note.clone()).filter(|note| !note.is_empty()));
        parts.join(", ")
    }
}

/// Shows a [`Measure`] as it grows.
#[derive(Debug)]
pub(crate) struct Meter {
    look: Look,
    label: String,
    started: Instant,
}

#[derive(Debug)]
enum Look {
    Bar(ProgressBar),
    Lines { last: Option<(Instant, Measure)> },
    Silent,
}

impl Meter {
    /// Shows nothing.
    pub(super) fn silent() -> Self {
        Self::with(Look::Silent, "")
    }

    /// A bar on standard error.
    pub(super) fn bar(label: &str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(u64::from(STEPS)), ProgressDrawTarget::stderr());
        bar.set_style(spinner_style());
        bar.set_prefix(label.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        Self::with(Look::Bar(bar), label)
    }

    /// Lines on standard error.
    pub(super) fn lines(label: &str) -> Self {
        Self::with(Look::Lines { last: None }, label)
    }

    fn with(look: Look, label: &str) -> Self {
        Self { look, label: label.to_owned(), started: Instant::now() }
    }

    /// Shows how far it has come.
    pub(crate) fn set(&mut self, measure: &Measure) {
        let running = self.started.elapsed();
        match &mut self.look {
            Look::Silent => {}
            Look::Bar(bar) => {
                if let Some(part) = measure.permille() {
                    if bar.position() == 0 {
                        bar.set_style(bar_style());
                    }
                    bar.set_position(u64::from(part.max(1)));
                }
                bar.set_message(measure.text(running));
            }
            Look::Lines { last } => {
                // The first line comes with the first tick of the interval, so short work leaves a log alone.
                let (since, before) = last.get_or_insert_with(|| (self.started, Measure::default()));
                if since.elapsed() >= LINE_EVERY && before != measure {
                    *last = Some((Instant::now(), measure.clone()));
                    say(&format!("{}: {}", self.label, measure.text(running)));
                }
            }
        }
    }

    /// Removes the bar.
    pub(crate) fn finish(self) -> Duration {
        if let Look::Bar(bar) = &self.look {
            bar.finish_and_clear();
        }
        self.started.elapsed()
    }

    /// Prints a line above the bar.
    pub(crate) fn say(&self, text: &str) {
        if !matches!(self.look, Look::Silent) {
            self.beside(|| say(text));
        }
    }

    /// Does something that prints, with the bar out of the way.
    pub(crate) fn beside<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.look {
            Look::Bar(bar) => bar.suspend(print),
            Look::Lines { .. } | Look::Silent => print(),
        }
    }
}

fn spinner_style() -> ProgressStyle {
    // The template is a literal; were it wrong, the plain default would do.
    ProgressStyle::with_template("{prefix:>9} {spinner} {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

pub(super) fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix:>9} [{bar:16}] {percent:>3}% {wide_msg}")
        .map_or_else(|_| ProgressStyle::default_bar(), |style| style.progress_chars("=> "))
}

/// Standard error may be closed; then there is nobody left to tell.
pub(super) fn say(text: &str) {
    let _nobody_to_tell = writeln!(std::io::stderr().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measure_says_how_far_and_how_long() {
        let half =
            Measure { files: 5, of_files: Some(10), bytes: 1 << 20, of_bytes: Some(2 << 20), note: "1 failed".into() };
        let text = half.text(Duration::from_secs(2));
        assert_eq!(text, "5/10 files, 1.0 MiB/2.0 MiB, 512 KiB/s, 2.0 s left, 1 failed");
        let unknown = Measure { files: 3, ..Measure::default() };
        assert_eq!(unknown.text(Duration::ZERO), "3 files");
        assert_eq!(unknown.permille(), None);
    }

    #[test]
    fn empty_files_count_by_number() {
        let measure = Measure { files: 1, of_files: Some(4), of_bytes: Some(0), ..Measure::default() };
        assert_eq!(measure.permille(), Some(250));
    }
}
