//! What every handler may use: settings from the start, the engine once the model is loaded.

use std::sync::{Arc, OnceLock};

use axum::http::HeaderValue;
use frugal_models::constraint::ConstraintEngine;
use frugal_models::step::SamplingParams;
use frugal_models::template::ChatTemplate;
use frugal_models::tokenizer::Tokenizer;
use frugal_scheduler::handle::Handle;

use crate::auth::Keys;
use crate::body::Room;
use crate::error::ApiError;
use crate::form::ModelForm;
use crate::metrics::{Facts, HttpCounts};
use crate::responses::store::Store;
use crate::settings::Settings;
use crate::text::TextPool;
use crate::traces::Traces;

/// Shared by all handlers; cloning shares.
#[derive(Clone)]
pub struct State(Arc<Shared>);

struct Shared {
    settings: Settings,
    operations: Operations,
    http: HttpCounts,
    text: TextPool,
    bodies: Room,
    responses: Arc<Store>,
    engine: OnceLock<Engine>,
}

/// What concerns who runs the server rather than who asks it.
#[derive(Clone, Default)]
pub struct Operations {
    /// Who is let in.
    pub keys: Keys,
    /// What metrics say beside the engine's numbers.
    pub facts: Facts,
    /// Serve `/debug/selfcheck`.
    pub selfcheck: bool,
    /// It and `/metrics` are served by [`crate::admin`] alone.
    pub apart: bool,
    /// Origins whose pages may read answers; `*` for all.
    pub cors_origins: Vec<HeaderValue>,
    /// Whoever reaches it from this machine is let in, and no one else reaches it: then web pages must call it by a name of its own.
    pub local: bool,
    /// Where traces go; None for nowhere.
    pub traces: Option<Traces>,
}

/// Known once the model is loaded.
pub struct Engine {
    /// Where requests are submitted.
    pub handle: Handle,
    /// The model's tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The model's chat template; None if it has none, and then there is no chat.
    pub template: Option<Arc<ChatTemplate>>,
    /// See [`crate::fingerprint`].
    pub fingerprint: Arc<str>,
    /// How its answers are formed.
    pub form: ModelForm,
    /// For requests that do not say; `logit_bias` and `logprobs` are not looked at.
    pub sampling: SamplingParams,
    /// Compiles what answers must be.
    pub grammars: Arc<ConstraintEngine>,
}

impl State {
    /// A server whose model is still to come: it is alive and not ready. Everyone is let in.
    ///
    /// # Panics
    /// If `settings` name no model.
    pub fn new(settings: Settings) -> Self {
        Self::operated(settings, Operations::default())
    }

    /// The same, operated as said.
    ///
    /// # Panics
    /// If `settings` name no model.
    pub fn operated(settings: Settings, operations: Operations) -> Self {
        assert!(!settings.models.is_empty(), "a server serves a model");
        let text = TextPool::new(settings.limits.text_threads, settings.limits.text_queue);
        let bodies = Room::new(settings.limits.body_bytes);
        let http = HttpCounts::default();
        let responses = Arc::new(Store::new(settings.responses));
        Self(Arc::new(Shared {
            settings,
            operations,
            http,
            text,
            bodies,
            responses,
            engine: OnceLock::new(),
        }))
    }

    /// From now on requests are served.
    ///
    /// # Panics
    /// If called twice.
    pub fn set_engine(&self, engine: Engine) {
        assert!(self.0.engine.set(engine).is_ok(), "a server loads one model");
    }

    /// What was known from the start.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// How it is operated.
    pub fn operations(&self) -> &Operations {
        &self.0.operations
    }

    /// Responses so far.
    pub fn http(&self) -> &HttpCounts {
        &self.0.http
    }

    /// Where requests become tokens.
    pub fn text(&self) -> &TextPool {
        &self.0.text
    }

    /// Room for what clients send.
    pub(crate) fn bodies(&self) -> &Room {
        &self.0.bodies
    }

    /// Responses that can be retrieved and continued.
    pub(crate) fn responses(&self) -> &Arc<Store> {
        &self.0.responses
    }

    /// The engine, if the model is loaded.
    pub fn try_engine(&self) -> Option<&Engine> {
        self.0.engine.get()
    }

    /// The engine, or the error that says that the model is being loaded.
    pub fn engine(&self) -> Result<&Engine, ApiError> {
        self.try_engine().ok_or_else(ApiError::loading)
    }

    /// The name under which clients see the model.
    pub fn model(&self) -> &str {
        self.0.settings.models.first().map_or("", String::as_str)
    }
}
