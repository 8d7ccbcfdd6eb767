//! An admitted request becomes a response: as a whole, as a stream of events, or in the background.
//!
//! Law: all three are made of the same steps. A response is kept before its last event is sent, so that it can be continued at once;
//! one whose client went away is not.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::http::header;
use axum::response::sse::KeepAlive;
use axum::response::{IntoResponse, Response as HttpResponse};
use futures_util::stream;

use super::background;
use super::body::{Asked, Response, ResponseUsage, Status};
use super::events::{Events, ResponseEvent};
use super::items::{Item, ItemStatus};
use super::output::Output;
use super::store::{Ended, Key, Running, Turns};
use crate::access::Line;
use crate::admit::{Admitted, constraint};
use crate::answer::{event_stream, first};
use crate::error::ApiError;
use crate::form::Form;
use crate::logprobs::Names;
use crate::state::State;
use crate::stream::{Answer, Ending, Piece};

/// A request ready to be submitted, and what is to become of its answer.
pub(crate) struct Request {
    pub(crate) admitted: Admitted,
    pub(crate) asked: Asked,
    /// What was said before.
    pub(crate) before: Turns,
    /// What is said now.
    pub(crate) input: Vec<Item>,
    pub(crate) background: bool,
    /// Whose it is.
    pub(crate) domain: [u8; 32],
}

/// Submits a request and answers it.
///
/// # Errors
/// What went wrong before the first byte of the answer.
pub(crate) async fn respond(
    state: &State,
    request: Request,
    line: Arc<Line>,
) -> Result<HttpResponse, ApiError> {
    let Request { admitted, asked, before, input, background, domain } = request;
    let admitted = constraint::compiled(state, admitted).await?;
    let engine = state.engine()?;
    let stream = admitted.stream;
    let key = admitted.prompts.first().map(|p| Form::key(p.request.seed, &p.request.prompt));
    let names = admitted
        .logprobs
        .map(|_| Names { tokenizer: engine.tokenizer.clone(), as_token_ids: admitted.as_token_ids });
    let keep = asked.store.then_some(Keep { domain, before, input });
    let output = Output::new(key.unwrap_or_default(), names, asked.reasoning.summary.is_some());
    let response = Response::new(asked, background, now());
    if background {
        line.outlive();
    }
    let answer = Answer::start(engine, admitted, line)?;
    let mut making = Making {
        state: state.clone(),
        answer,
        response,
        output,
        ending: Ending::default(),
        events: Events::new(stream),
        keep,
        ended: false,
    };
    if background {
        let body = making.response.json();
        background::start(making);
        return Ok(json(body));
    }
    if !stream {
        while let Some(piece) = making.answer.next().await {
            making.on_piece(piece?);
        }
        making.complete();
        return Ok(json(making.response.json()));
    }
    let keep_alive = state.settings().keep_alive;
    let first = first(&mut making.answer, keep_alive).await?;
    making.events.push(ResponseEvent::Created { response: &making.response });
    making.events.push(ResponseEvent::InProgress { response: &making.response });
    if let Some(piece) = first {
        making.on_piece(piece);
    }
    let events = stream::unfold(making, |mut making| async move {
        loop {
            if let Some(event) = making.events.pop() {
                return Some((Ok::<_, Infallible>(event), making));
            }
            if making.ended {
                return None;
            }
            making.step().await;
        }
    });
    Ok(event_stream(events, KeepAlive::new().interval(keep_alive)))
}

fn json(body: String) -> HttpResponse {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A response in the making.
pub(crate) struct Making {
    pub(super) state: State,
    pub(super) answer: Answer,
    pub(super) response: Response,
    output: Output,
    ending: Ending,
    events: Events,
    /// It is to be kept.
    keep: Option<Keep>,
    /// The last event is there.
    pub(super) ended: bool,
}

/// What is kept with a response.
struct Keep {
    domain: [u8; 32],
    before: Turns,
    input: Vec<Item>,
}

impl Making {
    /// Its name in the store.
    pub(super) fn key(&self) -> Option<Key> {
        self.keep.as_ref().map(|keep| (keep.domain, self.response.id.clone()))
    }

    /// As it is found while it runs.
    pub(super) fn running(&self) -> Option<Running> {
        let Keep { before, input, .. } = self.keep.as_ref()?;
        let input = serde_json::to_vec(input).expect("strings and numbers").into();
        Some(Running { body: self.response.json().into(), before: before.clone(), input })
    }

    /// Whatever comes next.
    pub(super) async fn step(&mut self) {
        match self.answer.next().await {
            Some(Ok(piece)) => self.on_piece(piece),
            Some(Err(error)) => self.fail(&error),
            None => self.complete(),
        }
    }

    fn on_piece(&mut self, piece: Piece) {
        match piece {
            Piece::More { parts, tokens, .. } => {
                self.output.score(&tokens);
                parts.into_iter().for_each(|part| self.output.add(part, &mut self.events));
            }
            Piece::Finish { ending, .. } => {
                let whole = ending.reason != "length";
                let status = if whole { ItemStatus::Completed } else { ItemStatus::Incomplete };
                self.output.close(status, &mut self.events);
                self.ending = ending;
            }
            // No field asks for it.
            Piece::Prompt { .. } => {}
        }
    }

    fn complete(&mut self) {
        self.response.end(&self.ending, now());
        self.end();
    }

    fn fail(&mut self, error: &ApiError) {
        self.output.close(ItemStatus::Incomplete, &mut self.events);
        self.response.fail(error);
        self.end();
    }

    /// Nobody wants more of it.
    pub(super) fn cancel(&mut self) {
        self.output.close(ItemStatus::Incomplete, &mut self.events);
        self.response.status = Status::Cancelled;
        self.end();
    }

    fn end(&mut self) {
        let currency = self.state.settings().currency.as_deref();
        self.response.output = self.output.take();
        if self.response.status.can_be_continued() {
            self.response.usage = Some(ResponseUsage::new(self.answer.totals(), currency));
        }
        self.ended = true;
        if !self.response.in_background()
            && let (Some(key), Some(ended)) = (self.key(), self.kept())
        {
            self.state.responses().put(key, ended, Instant::now());
        }
        self.events.push(ResponseEvent::last(&self.response));
    }

    /// As it is kept.
    pub(super) fn kept(&mut self) -> Option<Ended> {
        let Keep { domain, before, input } = self.keep.take()?;
        let items: Vec<&Item> = input.iter().chain(&self.response.output).collect();
        Some(Ended {
            body: self.response.json().into(),
            background: self.response.in_background(),
            can_be_continued: self.response.status.can_be_continued(),
            turn: self.state.responses().turn(domain, &items),
            inputs: input.len(),
            before,
        })
    }
}
