//! Requests to the hub and to the hosts it redirects to.
//!
//! Law: the token goes to the endpoint's own scheme, host and port, and nowhere else; from https there is no way
//! to http. Every wait is bounded: for a connection, for a response, between two reads, between two attempts.

use std::thread;
use std::time::Duration;

use ureq::http::header::{AUTHORIZATION, LOCATION, RANGE, RETRY_AFTER};
use ureq::http::{HeaderValue, Response, StatusCode, Uri};
use ureq::{Agent, Body};

use super::error::clean;
use super::listing::{self, Listing};
use super::{Hub, HubError, HubRef};

/// How patient we are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// For a name, a connection and its handshake.
    pub(super) connect: Duration,
    /// For a response, and between two reads of it.
    pub(super) read: Duration,
    /// For the whole of a small response.
    pub(super) small: Duration,
    /// Of a large one, this long may bring too little before it is given up.
    pub(super) window: Duration,
    /// What is not too little.
    pub(super) window_bytes: u64,
    /// Attempts in a row that bring nothing.
    pub(super) attempts: u32,
    /// Before the second attempt; twice as long before each further one.
    pub(super) pause: Duration,
    /// Longest wait that a server may ask for.
    pub(super) pause_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            read: Duration::from_secs(30),
            small: Duration::from_secs(60),
            window: Duration::from_secs(60),
            window_bytes: 256 << 10,
            attempts: 5,
            pause: Duration::from_secs(1),
            pause_max: Duration::from_secs(120),
        }
    }
}

/// Most redirects in a row.
const REDIRECTS_MAX: u32 = 8;

/// How an attempt failed.
pub(super) struct Failure {
    pub(super) error: HubError,
    /// Whether another attempt may do better, and after which wait the server says so.
    pub(super) again: Option<Option<Duration>>,
    /// Whether the attempt brought something, so that it does not count.
    pub(super) progress: bool,
}

impl Failure {
    pub(super) fn last(error: HubError) -> Self {
        Self { error, again: None, progress: false }
    }

    pub(super) fn again(error: HubError) -> Self {
        Self { error, again: Some(None), progress: false }
    }
}

/// What a server answered.
pub(super) struct Answer {
    pub(super) host: String,
    pub(super) response: Response<Body>,
}

/// A connection to one hub, for one repository.
pub(super) struct Client<'a> {
    agent: Agent,
    hub: &'a Hub,
    reference: &'a HubRef,
    endpoint: Uri,
    authorization: Option<HeaderValue>,
    pub(super) limits: Limits,
}

/// Scheme, host and port.
fn origin(uri: &Uri) -> Option<(String, String, u16)> {
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let port = match scheme.as_str() {
        "https" => 443,
        "http" => 80,
        _ => return None,
    };
    Some((scheme, uri.host()?.to_ascii_lowercase(), uri.port_u16().unwrap_or(port)))
}

impl<'a> Client<'a> {
    pub(super) fn new(hub: &'a Hub, reference: &'a HubRef, limits: Limits) -> Result<Self, HubError> {
        let endpoint: Option<Uri> = hub.endpoint.parse().ok();
        let endpoint = endpoint
            .filter(|uri| origin(uri).is_some() && uri.query().is_none())
            .ok_or_else(|| HubError::Endpoint { endpoint: clean(&hub.endpoint) })?;
        let header = |token: &String| {
            let header = HeaderValue::from_str(&format!("Bearer {token}"));
            header.map(|mut header| {
                header.set_sensitive(true);
                header
            })
        };
        let authorization = hub.token.as_ref().map(header).transpose().map_err(|_| HubError::Token)?;
        let agent = Agent::config_builder()
            .user_agent(concat!("frugal/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_resolve(Some(limits.connect))
            .timeout_connect(Some(limits.connect))
            .timeout_send_request(Some(limits.read))
            .timeout_recv_response(Some(limits.read))
            .timeout_per_read(Some(limits.read))
            .build()
            .new_agent();
        Ok(Self { agent, hub, reference, endpoint, authorization, limits })
    }

    /// What the repository has.
    pub(super) fn listing(&self) -> Result<Listing, HubError> {
        let HubRef { repo, revision, .. } = self.reference;
        let url = format!("/api/models/{repo}/revision/{}?blobs=true", encode(revision, false));
        self.retrying(|| {
            let Answer { host, mut response } = self.get(&url, 0, Some(self.limits.small))?;
            let body = response.body_mut().with_config().limit(listing::BYTES_MAX).read_to_vec();
            match body {
                Ok(json) => Listing::read(&json).map_err(Failure::last),
                Err(ureq::Error::BodyExceedsLimit(limit)) => Err(Failure::last(HubError::Listing {
                    problem: format!("it has more than {limit} bytes"),
                })),
                Err(error) => Err(Failure::again(transport(&host, error))),
            }
        })
    }

    /// The content of a file of a commit, from byte `from` if the server can.
    pub(super) fn file(&self, commit: &str, name: &str, from: u64) -> Result<Answer, Failure> {
        self.get(&format!("/{}/resolve/{commit}/{}", self.reference.repo, encode(name, true)), from, None)
    }

    /// Calls `attempt` until it succeeds, fails for good, or has failed too often without progress.
    pub(super) fn retrying<T>(&self, mut attempt: impl FnMut() -> Result<T, Failure>) -> Result<T, HubError> {
        let mut failed = 0;
        loop {
            let Failure { error, again, progress } = match attempt() {
                Ok(done) => return Ok(done),
                Err(failure) => failure,
            };
            let Some(asked) = again else { return Err(error) };
            failed = if progress { 1 } else { failed + 1 };
            if failed >= self.limits.attempts {
                return Err(error);
            }
            let pause = asked.unwrap_or(self.limits.pause * (1 << (failed - 1).min(6)));
            tracing::warn!(error = %chain(&error), pause_s = pause.as_secs_f64(), "trying again");
            thread::sleep(pause);
        }
    }

    fn get(&self, path: &str, from: u64, whole: Option<Duration>) -> Result<Answer, Failure> {
        let mut url = format!("{}{path}", self.hub.endpoint.trim_end_matches('/'));
        for _ in 0..=REDIRECTS_MAX {
            let bad = || Failure::last(redirect(&self.endpoint, "to what is no address"));
            let uri: Uri = url.parse().map_err(|_| bad())?;
            let (scheme, host, _) = origin(&uri).ok_or_else(bad)?;
            let mut request = self.agent.get(uri.clone());
            if let Some(token) = &self.authorization
                && origin(&uri) == origin(&self.endpoint)
            {
                request = request.header(AUTHORIZATION, token.clone());
            }
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let sent = request.config().timeout_recv_body(whole).build().call();
            let response = sent.map_err(|error| Failure::again(transport(&host, error)))?;
            match response.status().as_u16() {
                301 | 302 | 303 | 307 | 308 => {}
                _ => return self.judge(host, response),
            }
            let location = response.headers().get(LOCATION).and_then(|to| to.to_str().ok()).unwrap_or("");
            url = match location {
                to if to.starts_with("//") => format!("{scheme}:{to}"),
                to if to.starts_with('/') => {
                    format!("{scheme}://{}{to}", uri.authority().map_or("", |a| a.as_str()))
                }
                to => to.to_owned(),
            };
            if scheme == "https" && !url.to_ascii_lowercase().starts_with("https://") {
                return Err(Failure::last(redirect(&uri, "from https to something else")));
            }
        }
        Err(Failure::last(redirect(&self.endpoint, "too often")))
    }

    /// Sorts answers into good ones, those to ask again for, and those that stay.
    fn judge(&self, host: String, response: Response<Body>) -> Result<Answer, Failure> {
        let status = response.status();
        let header = |name: &str| {
            let value = response.headers().get(name).and_then(|value| value.to_str().ok());
            clean(value.unwrap_or_default())
        };
        // 416 is the caller's: what it has is longer than the file.
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(Answer { host, response });
        }
        let said = match header("x-error-message") {
            said if said.is_empty() => String::new(),
            said => format!(" ({said})"),
        };
        let code = status.as_u16();
        let own = self.endpoint.host().is_some_and(|own| own.eq_ignore_ascii_case(&host));
        if own && let Some(advice) = self.advice(code, &header("x-error-code")) {
            return Err(Failure::last(HubError::Denied { host, status: code, said, advice }));
        }
        let asked = header(RETRY_AFTER.as_str()).parse::<u64>().ok();
        if let Some(seconds) = asked
            && Duration::from_secs(seconds) > self.limits.pause_max
        {
            return Err(Failure::last(HubError::Busy { host, seconds }));
        }
        // What the hub redirects to is open for a time; it gives a new address.
        let expired = !own && matches!(code, 401 | 403);
        let again = expired || matches!(code, 408 | 429) || status.is_server_error();
        let error = HubError::Status { host, status: code, said };
        Err(Failure { error, again: again.then_some(asked.map(Duration::from_secs)), progress: false })
    }

    fn advice(&self, status: u16, code: &str) -> Option<String> {
        let HubRef { repo, revision, .. } = self.reference;
        let page = format!("{}/{repo}", self.hub.endpoint.trim_end_matches('/'));
        let token = self.authorization.is_some();
        Some(match (status, code) {
            (401 | 403, "GatedRepo") if !token => {
                format!(
                    "the repository is gated: accept its terms at {page}, then set HF_TOKEN to your token"
                )
            }
            (403, _) | (401, "GatedRepo") if token => {
                format!(
                    "your token does not open it: accept the terms at {page}, and let the token read gated repositories"
                )
            }
            // The hub does not tell strangers whether a private repository exists.
            (401, _) if !token => format!(
                "there is no public repository {repo}: a typo, or it is private and HF_TOKEN must be set"
            ),
            (401, _) => "the hub does not know the token: check HF_TOKEN and the token file".to_owned(),
            (403, _) => format!("it is not open to everyone: see {page}, and set HF_TOKEN"),
            (404, "RevisionNotFound") => format!("{repo} has no revision {revision}"),
            (404, "EntryNotFound") => "the file is gone".to_owned(),
            (404, _) => {
                format!("there is no repository {repo} with a revision {revision}: a typo, or it is private")
            }
            _ => return None,
        })
    }
}

pub(super) fn transport(host: &str, source: ureq::Error) -> HubError {
    HubError::Transport { host: host.to_owned(), source: Box::new(source) }
}

fn redirect(from: &Uri, how: &'static str) -> HubError {
    HubError::Redirect { host: from.host().unwrap_or_default().to_owned(), how }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}

/// Percent-encodes all but what may stand in a path; `/` stays if it separates folders.
fn encode(text: &str, folders: bool) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b) || (folders && b == b'/');
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
