//! Shows progress to a person.

use indicatif::{ProgressBar, ProgressStyle};

use super::{Progress, Stage};

/// Draws each stage as a bar on stderr; where that is no terminal, logs its beginning instead.
pub fn progress_bar() -> impl FnMut(Progress) {
    let mut current: Option<(Stage, ProgressBar)> = None;
    move |progress| {
        if current.as_ref().is_none_or(|(stage, _)| *stage != progress.stage) {
            if let Some((_, bar)) = current.take() {
                bar.finish();
            }
            current = Some((progress.stage, start(progress)));
        }
        if let Some((_, bar)) = &current {
            bar.set_position(progress.done);
            if progress.total > 0 && progress.done == progress.total {
                bar.finish();
            }
        }
    }
}

fn start(progress: Progress) -> ProgressBar {
    let what = match progress.stage {
        Stage::Waiting => "waiting for another process that prepares the model",
        Stage::Download => "downloading the default model",
        Stage::Extract => "unpacking",
        Stage::Upcycle => "making experts",
    };
    let (bar, style) = if progress.total > 0 {
        (ProgressBar::new(progress.total), "{msg:30} {bar:30} {bytes} of {total_bytes}, {eta} left")
    } else {
        (ProgressBar::new_spinner(), "{msg}")
    };
    if bar.is_hidden() {
        tracing::info!(bytes = progress.total, "{what}");
    }
    bar.set_style(ProgressStyle::with_template(style).expect("the template is well formed"));
    bar.set_message(what);
    bar
}
