//! Shows progress to a person.

use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

use super::{Progress, Stage};

/// Draws each stage as a bar on stderr; where that is no terminal, logs each tenth of it instead.
pub fn progress_bar() -> impl FnMut(Progress) {
    let mut current: Option<Shown> = None;
    move |progress| {
        if current.as_ref().is_none_or(|shown| shown.first.stage != progress.stage) {
            if let Some(shown) = current.take() {
                shown.bar.finish();
            }
            current = Some(Shown::start(progress));
        }
        if let Some(shown) = &mut current {
            shown.update(progress);
        }
    }
}

/// A stage that is being shown.
struct Shown {
    bar: ProgressBar,
    /// With what it began, and when.
    first: Progress,
    begun: Instant,
    /// Logged last.
    tenths: u64,
}

impl Shown {
    fn start(progress: Progress) -> Self {
        let bar = bar(progress);
        Self { bar, first: progress, begun: Instant::now(), tenths: tenths(progress) }
    }

    fn update(&mut self, progress: Progress) {
        let Progress { stage, done, total } = progress;
        self.bar.set_position(done);
        if self.bar.is_hidden() && tenths(progress) > self.tenths {
            self.tenths = tenths(progress);
            let came = done.saturating_sub(self.first.done) as f64;
            let per_s = (came / self.begun.elapsed().as_secs_f64().max(0.001)).round();
            tracing::info!(bytes = done, of = total, per_s, "{}", what(stage));
        }
        if total > 0 && done == total {
            self.bar.finish();
        }
    }
}

fn tenths(progress: Progress) -> u64 {
    progress.done.saturating_mul(10).checked_div(progress.total).unwrap_or(0)
}

fn what(stage: Stage) -> &'static str {
    match stage {
        Stage::Waiting => "waiting for another process that prepares the model",
        Stage::Download => "downloading the model",
        Stage::Extract => "unpacking",
        Stage::Upcycle => "making experts",
        Stage::Pack => "packing",
    }
}

fn bar(progress: Progress) -> ProgressBar {
    let what = what(progress.stage);
    let (bar, style) = if progress.total > 0 {
        let style = "{msg:30} {bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        (ProgressBar::new(progress.total), style)
    } else {
        (ProgressBar::new_spinner(), "{msg}")
    };
    if bar.is_hidden() {
        tracing::info!(bytes = progress.total, "{what}");
    }
    bar.set_style(ProgressStyle::with_template(style).expect("the template is well formed"));
    bar.set_message(what);
    // What an earlier start brought is no measure of speed.
    bar.set_position(progress.done);
    bar.reset_eta();
    bar
}
