//! The body of a request, read with limits, checked, and its unknown fields named.

use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;

use crate::app::{App, blocking, body_pieces};
use crate::error::ApiError;
use crate::settings;

/// Names the fields of a request that mean nothing here.
pub(crate) const IGNORED: HeaderName = HeaderName::from_static("x-longview-ignored-fields");

/// How names of fields begin that no other server has.
const EXTRAS: &str = "longview.";

/// The most names that header holds.
const MOST_NAMES: usize = 32;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(120);

/// Bodies larger than this are understood beside the tasks that serve connections.
const LARGE: usize = 256 << 10;

/// A JSON body.
pub(crate) struct Input<T> {
    pub(crate) value: T,
    pub(crate) ignored: Ignored,
    /// Its share of the room for bodies, which ends with the handler.
    pub(crate) _room: Option<OwnedSemaphorePermit>,
}

/// Fields that were there and mean nothing here.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ignored(Vec<String>);

impl Ignored {
    /// The response with a header that names them.
    pub(crate) fn on(&self, response: impl IntoResponse) -> Response {
        let mut response = response.into_response();
        if !self.0.is_empty() {
            let names = self.0.join(", ");
            if let Ok(value) = HeaderValue::from_str(&names) {
                response.headers_mut().insert(IGNORED, value);
            }
        }
        response
    }
}

impl<T: DeserializeOwned> Input<T> {
    /// Understands `bytes`.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Input<T>, ApiError> {
        if let Err(error) = std::str::from_utf8(bytes) {
            return Err(ApiError::wrong(format!(
                "the body is not UTF-8 text: byte {} is wrong; JSON is written in UTF-8",
                error.valid_up_to()
            ))
            .code("invalid_utf8"));
        }
        // A list would be taken for the fields in their order.
        if bytes.trim_ascii_start().starts_with(b"[") {
            return Err(ApiError::wrong(
                "the body is a JSON list; send an object with the fields by their names",
            ));
        }
        let mut names: Vec<String> = Vec::new();
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let mut track = serde_path_to_error::Track::new();
        let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
        let mut note = |path: serde_ignored::Path<'_>| {
            if names.len() < MOST_NAMES {
                // Optional fields show as a step of their own.
                names.push(shown(&path.to_string().replace(".?", "")));
            }
        };
        let value = serde_ignored::deserialize(tracked, &mut note);
        let value = value.and_then(|value| json.end().map(|()| value));
        match value {
            Ok(value) => match names.iter().find_map(|name| name.strip_prefix(EXTRAS)) {
                // What only this server knows was meant for it.
                Some(name) => Err(settings::unknown_extra(name)),
                None => Ok(Input {
                    value,
                    ignored: Ignored(names),
                    _room: None,
                }),
            },
            Err(error) if error.is_data() => {
                let path = track.path().to_string();
                let param = (path != ".").then_some(path);
                let place = param
                    .as_deref()
                    .map_or_else(String::new, |path| format!("{path}: "));
                Err(ApiError {
                    param,
                    ..ApiError::wrong(format!("{place}{error}"))
                })
            }
            Err(error) => {
                Err(ApiError::wrong(format!("the body is not JSON: {error}")).code("invalid_json"))
            }
        }
    }
}

impl<T: DeserializeOwned + Send + 'static> FromRequest<App> for Input<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Input<T>, ApiError> {
        check_type(request.headers())?;
        let room = room(app, request.headers()).await?;
        let bytes = read(request, app.options().max_body_bytes).await?;
        // One that did not say how long it is had room for the largest.
        let needed = body_pieces(bytes.len()) as usize;
        let room = room.and_then(|mut all| all.split(needed.min(all.num_permits())));
        let input = match bytes.len() {
            ..LARGE => Input::parse(&bytes),
            _ => blocking(move || Input::parse(&bytes)).await,
        };
        Ok(Input {
            _room: room,
            ..input?
        })
    }
}

/// Room for the body of a request with these headers.
pub(crate) async fn room(
    app: &App,
    headers: &HeaderMap,
) -> Result<Option<OwnedSemaphorePermit>, ApiError> {
    // One that does not say how long it is may be as long as any.
    let length = length(headers).map_or(usize::MAX, |length| {
        usize::try_from(length).unwrap_or(usize::MAX)
    });
    let room = tokio::time::timeout(BODY_TIMEOUT, app.room_for_body(length)).await;
    room.map_err(|_| {
        ApiError::busy(
            "the bodies of other requests take all the room there is; ask again",
            5,
        )
    })
}

/// How long a body says that it is.
fn length(headers: &HeaderMap) -> Option<u64> {
    let length = headers.get(header::CONTENT_LENGTH)?;
    length.to_str().ok()?.parse().ok()
}

/// Reads the whole body, at most `limit` bytes of it.
pub(crate) async fn read(request: Request, limit: usize) -> Result<axum::body::Bytes, ApiError> {
    let length = length(request.headers());
    let too_large = || {
        let found = length.map_or_else(|| "more".to_owned(), |length| format!("{length} bytes"));
        ApiError::too_large(format!(
            "the body has {found}, but at most {limit} bytes are read; send less, or start the server \
             with a larger --max-body"
        ))
    };
    if length.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    match in_time(to_bytes(request.into_body(), limit)).await? {
        Ok(bytes) => Ok(bytes),
        Err(error) => {
            let limited = std::error::Error::source(&error)
                .is_some_and(|source| source.to_string().contains("length limit"));
            Err(if limited {
                too_large()
            } else {
                ApiError::wrong(format!("the body could not be read: {error}"))
            })
        }
    }
}

/// What arrives, unless that takes too long.
pub(crate) async fn in_time<T>(arriving: impl Future<Output = T>) -> Result<T, ApiError> {
    let arrived = tokio::time::timeout(BODY_TIMEOUT, arriving).await;
    arrived.map_err(|_| {
        ApiError::wrong(format!(
            "the body did not arrive within {} seconds",
            BODY_TIMEOUT.as_secs()
        ))
        .status(StatusCode::REQUEST_TIMEOUT)
    })
}

/// Refuses a body that says it is something else, or packed.
fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let packed = headers.get(header::CONTENT_ENCODING);
    let packed = packed.map(|how| how.to_str().unwrap_or("unreadable"));
    if let Some(how) = packed.filter(|how| !how.eq_ignore_ascii_case("identity")) {
        return Err(ApiError::wrong(format!(
            "the body is packed ({how:?}); send it as it is, without the header `Content-Encoding`"
        ))
        .status(StatusCode::UNSUPPORTED_MEDIA_TYPE));
    }
    let Some(found) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let found = found.to_str().unwrap_or("unreadable");
    if found.to_ascii_lowercase().contains("json") {
        return Ok(());
    }
    Err(ApiError::wrong(format!(
        "the content type is {found:?}; send JSON, with the header `Content-Type: application/json`"
    ))
    .status(StatusCode::UNSUPPORTED_MEDIA_TYPE))
}

/// A path as a header may hold it.
fn shown(path: &str) -> String {
    let clean = |c: char| match c {
        ' '..='~' if c != ',' => c,
        _ => '?',
    };
    path.chars().take(80).map(clean).collect()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Body {
        a: u32,
        b: Option<Inner>,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        c: String,
    }

    #[test]
    fn unknown_fields_are_named_and_wrong_ones_say_where() {
        let input: Input<Body> =
            Input::parse(br#"{"a": 1, "x": [1], "b": {"c": "d", "e,\u00e9": 2}}"#).unwrap();
        assert_eq!((input.value.a, input.value.b.unwrap().c.as_str()), (1, "d"));
        assert_eq!(input.ignored.0, ["x", "b.e??"]);
        let refused = |text: &[u8]| Input::<Body>::parse(text).err().unwrap();
        let wrong = refused(br#"{"a": 1, "b": {"c": 3}}"#);
        assert_eq!(wrong.param.as_deref(), Some("b.c"));
        assert!(wrong.message.contains("expected a string"), "{wrong:?}");
        assert_eq!(refused(b"{\"a\": 1").code, Some("invalid_json"));
        assert_eq!(refused(b"{\"a\": 1} x").code, Some("invalid_json"));
        assert_eq!(refused(b"{\"a\": \"\xff\"}").code, Some("invalid_utf8"));
        let list = refused(br#" [1, {"c": "d"}]"#);
        assert!(list.message.contains("a JSON list"), "{list:?}");
        assert_eq!(refused(b"").code, Some("invalid_json"));
        let deep = format!("{{\"a\": 1, \"x\": {}", "[".repeat(100_000));
        assert_eq!(refused(deep.as_bytes()).code, Some("invalid_json"));
    }
}
