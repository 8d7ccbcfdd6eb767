//! `/openapi.json`: the API, described by the types that requests and answers are made of.
//!
//! Law: a request's schema holds exactly the fields that are read from it or known to change nothing (`tests` compares
//! them by name and value); paths and methods are the router's own; answers are the structs that are serialized.

mod generation;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ContentBuilder, HeaderBuilder, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoResponses, Modify, OpenApi};

use crate::anthropic::answer::MessageEvent;
use crate::anthropic::error::Refusal;
use crate::error::ErrorResponse;
use crate::responses::events::Numbered;

pub use generation::{CacheRetention, ServiceTier, Stop, StreamOptions, StructuredOutputs};
pub(crate) use generation::{generation_request, sampled_request};

/// What is not an endpoint's own.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Frugal",
        description = "OpenAI's API, and Anthropic's, over one model. A request's field that is not listed is refused with a 400 that names it, \
                       unless its value asks for nothing (null, false, an empty list). An answer's header `x-request-id` \
                       is the request's own, if it brought one of at most 128 visible ASCII characters."
    ),
    components(schemas(ErrorResponse, MessageEvent, Numbered<'static>, Refusal)),
    modifiers(&BearerKeys),
    tags(
        (name = "inference", description = "OpenAI's endpoints and Anthropic's, with extensions of vLLM and llama.cpp"),
        (name = "text", description = "What a prompt becomes before it is computed"),
        (name = "operation", description = "For probes, collectors and people; they need no key")
    )
)]
pub(crate) struct Base;

struct BearerKeys;

impl Modify for BearerKeys {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("key", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
        let header = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("x-api-key")));
        components.add_security_scheme("x-api-key", header);
    }
}

/// A refusal or failure in OpenAI's shape, by status.
fn refusal(description: &str, retry_after: bool) -> RefOr<Response> {
    let schema = RefOr::Ref(Ref::from_schema_name("ErrorResponse"));
    let content = ContentBuilder::new().schema(Some(schema)).build();
    let response = ResponseBuilder::new().description(description).content("application/json", content);
    let seconds = || HeaderBuilder::new().description(Some("Seconds after which to try again")).build();
    RefOr::T(if retry_after { response.header("Retry-After", seconds()) } else { response }.build())
}

/// Of endpoints that only need a key.
pub(crate) struct Refusals;

impl IntoResponses for Refusals {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let all = [
            (401, "No API key, or one that is not known", false),
            (431, "The request's line and headers are too large", false),
            (500, "A fault of the server", false),
        ];
        all.into_iter().map(|(status, text, retry)| (status.to_string(), refusal(text, retry))).collect()
    }
}

/// Of endpoints that read a body and need the model.
pub(crate) struct BodyRefusals;

impl IntoResponses for BodyRefusals {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let more = [
            (
                400,
                "The request asks for something that is impossible or not honoured; `param` names the field",
                false,
            ),
            (404, "No such model", false),
            (408, "The body did not arrive in time", false),
            (413, "The body is too large", false),
            (415, "The body does not claim to be JSON", false),
            (
                429,
                "This API key has used its requests or tokens of a minute, or has too many requests in progress",
                true,
            ),
            (503, "The server is overloaded, loading its model or shutting down", true),
        ];
        let more = more.into_iter().map(|(status, text, retry)| (status.to_string(), refusal(text, retry)));
        Refusals::responses().into_iter().chain(more).collect()
    }
}

/// Of endpoints that run the model.
pub(crate) struct ModelRefusals;

impl IntoResponses for ModelRefusals {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let late = refusal("The request was not finished within the server's time limit", false);
        BodyRefusals::responses().into_iter().chain([("504".to_owned(), late)]).collect()
    }
}

/// The same refusals, as Anthropic's clients know them.
fn anthropics(refusals: BTreeMap<String, RefOr<Response>>) -> BTreeMap<String, RefOr<Response>> {
    let translated = |(status, response): (String, RefOr<Response>)| {
        let RefOr::T(mut response) = response else { return (status, response) };
        let schema = RefOr::Ref(Ref::from_schema_name("MessagesErrorResponse"));
        let content = ContentBuilder::new().schema(Some(schema)).build();
        response.content.insert("application/json".to_owned(), content);
        (status, RefOr::T(response))
    };
    refusals.into_iter().map(translated).collect()
}

/// Of Anthropic's endpoint that runs the model.
pub(crate) struct MessagesRefusals;

impl IntoResponses for MessagesRefusals {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        anthropics(ModelRefusals::responses())
    }
}

/// Of Anthropic's endpoint that needs the model and does not run it.
pub(crate) struct CountRefusals;

impl IntoResponses for CountRefusals {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        anthropics(BodyRefusals::responses())
    }
}

/// The table of endpoints, for the README.
pub fn reference() -> String {
    let mut table = String::from("| endpoint | what it does |\n|---|---|\n");
    for (path, item) in crate::openapi(false).paths.paths {
        for (method, operation) in [("GET", item.get), ("POST", item.post), ("DELETE", item.delete)] {
            if let Some(operation) = operation {
                let summary = operation.summary.unwrap_or_default();
                writeln!(table, "| `{method} {path}` | {summary} |").expect("a string");
            }
        }
    }
    table
}
