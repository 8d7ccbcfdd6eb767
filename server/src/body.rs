//! Bodies of requests: each bounded in size and time, all of them together in memory.
//!
//! Small ones are as many as there are connections. A larger one needs room for what it announces, or for all it may have, among
//! [`TOGETHER`] of the largest kind, and keeps it until the work on it is done.

use std::ops::Deref;
use std::sync::Arc;

use axum::body::HttpBody as _;
use axum::extract::Request;
use axum::http::header;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::ApiError;
use crate::settings::Limits;

/// What needs no room.
pub(crate) const SMALL_BYTES: usize = 64 << 10;

/// Bodies of the largest size that there is room for.
const TOGETHER: usize = 32;

/// Seconds after which a client that found no room may come back.
const RETRY_AFTER_S: u32 = 1;

/// Bytes to a permit.
const UNIT: usize = 1 << 10;

/// Room for bodies that are not small.
#[derive(Debug)]
pub(crate) struct Room(Arc<Semaphore>);

/// A body, and the room that it takes.
pub(crate) struct Body {
    bytes: Vec<u8>,
    room: Option<OwnedSemaphorePermit>,
}

impl Deref for Body {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Room {
    /// For bodies of at most so many bytes.
    pub(crate) fn new(largest: usize) -> Self {
        let permits = units(largest).saturating_mul(TOGETHER).min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Semaphore::new(permits)))
    }

    /// Reads a JSON body.
    ///
    /// Only `application/json` is taken: a web page can make a browser send other types to this machine without
    /// asking, and tokens cost money.
    pub(crate) async fn read(&self, request: Request, limits: &Limits) -> Result<Body, ApiError> {
        let media_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let essence = media_type.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            return Err(ApiError::media_type());
        }
        let body = self.collect(request, limits.body_bytes);
        tokio::time::timeout(limits.body_time, body).await.unwrap_or_else(|_| Err(ApiError::body_timeout()))
    }

    async fn collect(&self, request: Request, most: usize) -> Result<Body, ApiError> {
        let announced = request.body().size_hint().upper().and_then(|bytes| usize::try_from(bytes).ok());
        let announced = announced.map_or(most, |bytes| bytes.min(most));
        let mut rest = Limited::new(request.into_body(), most);
        let mut body = Body { bytes: Vec::new(), room: None };
        while let Some(frame) = rest.frame().await {
            let frame = frame.map_err(|error| match error.is::<LengthLimitError>() {
                true => ApiError::body_too_large(most),
                false => ApiError::malformed("The request's body could not be read"),
            })?;
            let Ok(data) = frame.into_data() else { continue };
            if body.room.is_none() && body.bytes.len() + data.len() > SMALL_BYTES {
                body.room = Some(self.take(announced)?);
                body.bytes.reserve_exact(announced.saturating_sub(body.bytes.len()));
            }
            body.bytes.extend_from_slice(&data);
        }
        if let Some(room) = &mut body.room {
            // What was announced and did not come, or never announced.
            body.bytes.shrink_to_fit();
            drop(room.split(room.num_permits().saturating_sub(units(body.bytes.len()))));
        }
        Ok(body)
    }

    fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let permits = u32::try_from(units(bytes)).unwrap_or(u32::MAX);
        let room = self.0.clone().try_acquire_many_owned(permits);
        room.map_err(|_| ApiError::overloaded(RETRY_AFTER_S))
    }
}

fn units(bytes: usize) -> usize {
    bytes.div_ceil(UNIT)
}

#[cfg(test)]
mod tests {
    use axum::body::Body as Sent;
    use axum::http::StatusCode;
    use futures_util::stream;

    use super::*;

    fn request(bytes: usize, whole: bool) -> Request {
        let text = vec![b'1'; bytes];
        let body = match whole {
            true => Sent::from(text),
            // Says nothing of its length.
            false => Sent::from_stream(stream::iter(
                text.chunks(10_000).map(|c| Ok::<_, std::io::Error>(c.to_vec())).collect::<Vec<_>>(),
            )),
        };
        Request::builder().header(header::CONTENT_TYPE, "application/json").body(body).expect("a request")
    }

    #[tokio::test]
    async fn large_bodies_share_what_room_there_is_and_small_ones_need_none() {
        let limits = Limits { body_bytes: 200_000, ..Limits::default() };
        let room = Room::new(limits.body_bytes);
        let mut held = Vec::new();
        for whole in [true, false].into_iter().cycle().take(TOGETHER) {
            let body = room.read(request(200_000, whole), &limits).await.expect("room");
            assert_eq!(body.len(), 200_000);
            held.push(body);
        }
        for whole in [true, false] {
            let refused = room.read(request(SMALL_BYTES + 1, whole), &limits).await.err().expect("no room");
            assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(
                room.read(request(SMALL_BYTES, whole), &limits).await.expect("small").len(),
                SMALL_BYTES
            );
        }
        held.pop();
        drop(room.read(request(SMALL_BYTES + 1, true), &limits).await.expect("room again"));
        let refused = room.read(request(200_001, false), &limits).await.err().expect("too large");
        assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(
            room.read(request(200_000, true), &limits).await.expect("it was given back").len(),
            200_000
        );
    }
}
