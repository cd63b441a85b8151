//! Who may come in: hosts, pages of other origins, and API keys.

use std::panic::AssertUnwindSafe;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;

use crate::app::{App, Guest, new_id};
use crate::error::ApiError;

/// Paths that need no key: they tell nothing of anybody.
const OPEN: [&str; 6] = [
    "/health",
    "/ready",
    "/",
    "/page.css",
    "/page.js",
    "/openapi.json",
];

/// Names a request.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Checks where a request comes from, and lets it on as a tenant's.
///
/// Without keys the server trusts whoever can reach it. A browser can reach it on behalf of any page,
/// so requests under a foreign host name (a name that was made to point here) and those of pages of
/// other origins are refused unless they were allowed.
pub(crate) async fn check(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let anthropic = path.starts_with("/v1/messages");
    let refuse = |error: ApiError| match anthropic {
        true => error.response(error.anthropic()),
        false => error.into_response(),
    };
    let origin = request.headers().get(header::ORIGIN).cloned();
    let allowed = match allowed_origin(&app, request.headers()) {
        Ok(allowed) => allowed,
        Err(error) => return answered(&app, refuse(error)),
    };
    if request.method() == Method::OPTIONS && origin.is_some() {
        return answered(&app, with_cors(preflight(request.headers()), allowed));
    }
    let response = match tenant(&app, &path, request.headers()) {
        Err(error) => refuse(error),
        Ok(guest) => {
            request.extensions_mut().insert(guest);
            let answer = AssertUnwindSafe(next.run(request)).catch_unwind();
            answer.await.unwrap_or_else(|_| {
                refuse(ApiError::failed(
                    "the server has met a bug, which its log tells of; other requests go on",
                ))
            })
        }
    };
    answered(&app, with_cors(response, allowed))
}

fn answered(app: &App, mut response: Response) -> Response {
    app.metrics().answered(response.status().as_u16());
    // What clients note and people quote when they ask about an answer.
    if let Ok(id) = HeaderValue::from_str(&new_id("req_")) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// The tenant that a request's key stands for.
fn tenant(app: &App, path: &str, headers: &HeaderMap) -> Result<Guest, ApiError> {
    let keys = &app.options().keys;
    let salt = if keys.is_empty() {
        check_host(app, headers)?;
        app.options().salt.as_str()
    } else if OPEN.contains(&path) {
        keys.tenants()[0]
    } else {
        let key = key(headers).ok_or_else(|| {
            ApiError::unauthorized(
                "this server wants an API key; send it as `Authorization: Bearer KEY` or `x-api-key: KEY`",
            )
        })?;
        keys.tenant(key)
            .ok_or_else(|| ApiError::unauthorized("the API key is not known here; check it"))?
    };
    let tenancy = app
        .tenancy(salt)
        .ok_or_else(|| ApiError::failed("the key's tenant is not there; restart the server"))?;
    Ok(Guest(tenancy.clone()))
}

fn key(headers: &HeaderMap) -> Option<&str> {
    if let Some(key) = headers.get("x-api-key") {
        return key.to_str().ok();
    }
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// Refuses names of hosts that are not this machine's.
fn check_host(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(host) = headers.get(header::HOST) else {
        return Ok(());
    };
    let host = host.to_str().unwrap_or("");
    let name = host_name(host);
    let known = name.is_empty()
        || name.eq_ignore_ascii_case("localhost")
        || name
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok()
        || app
            .options()
            .hosts
            .iter()
            .any(|allowed| allowed.eq_ignore_ascii_case(name));
    if known {
        return Ok(());
    }
    Err(ApiError::forbidden(format!(
        "this server does not answer to the host name {name:?}; start it with --allowed-host {name}, or \
         with API keys"
    )))
}

/// A host without its port.
fn host_name(host: &str) -> &str {
    match host.rfind(':') {
        // The colons of an address in brackets are its own.
        Some(at) if !host[at..].contains(']') => &host[..at],
        _ => host,
    }
}

/// What is said of a request's origin; `None` for none. Refuses pages that are not allowed.
fn allowed_origin(app: &App, headers: &HeaderMap) -> Result<Option<HeaderValue>, ApiError> {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return Ok(None);
    };
    let text = origin.to_str().unwrap_or("");
    let allowed = &app.options().cors;
    if allowed.iter().any(|one| one == "*") {
        return Ok(Some(HeaderValue::from_static("*")));
    }
    if allowed.iter().any(|one| one.eq_ignore_ascii_case(text)) {
        return Ok(Some(origin.clone()));
    }
    let own = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let of_origin = text.split_once("://").map(|(_, host)| host);
    if own.is_some() && own == of_origin {
        return Ok(None);
    }
    Err(ApiError::forbidden(format!(
        "pages of {text:?} may not ask this server; start it with --cors {text} to allow them"
    )))
}

/// What a browser asks before it asks.
fn preflight(headers: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let out = response.headers_mut();
    out.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, POST, PATCH, PUT, DELETE"),
    );
    if let Some(wanted) = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        out.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    out.insert(
        header::ACCESS_CONTROL_MAX_AGE,
        HeaderValue::from_static("600"),
    );
    response
}

fn with_cors(mut response: Response, allowed: Option<HeaderValue>) -> Response {
    if let Some(origin) = allowed {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.append(header::VARY, HeaderValue::from_static("origin"));
        headers.insert(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static("x-longview-ignored-fields, x-request-id, retry-after"),
        );
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_lose_their_ports_and_keys_their_schemes() {
        assert_eq!(host_name("localhost:8080"), "localhost");
        assert_eq!(host_name("localhost"), "localhost");
        assert_eq!(host_name("[::1]:8080"), "[::1]");
        assert_eq!(host_name("[::1]"), "[::1]");
        let mut headers = HeaderMap::new();
        assert_eq!(key(&headers), None);
        headers.insert(
            header::AUTHORIZATION,
            HeaderValue::from_static("bearer abc"),
        );
        assert_eq!(key(&headers), Some("abc"));
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Basic abc"));
        assert_eq!(key(&headers), None);
        headers.insert("x-api-key", HeaderValue::from_static("def"));
        assert_eq!(key(&headers), Some("def"));
    }
}
