//! What can go wrong, and how clients are told.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use longview::EngineError;
use longview::methods::Stage;
use longview::sampling::SamplingError;
use longview::text::TextError;
use longview::tier::TierError;
use serde_json::{Value, json};

/// Why a server does not start or does not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The address cannot be listened on.
    #[error("{address} cannot be listened on: {source}; choose another with --host and --port")]
    Bind {
        /// The address.
        address: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// Something the system was asked for.
    #[error("{what}: {source}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// What the system says.
        source: std::io::Error,
    },
    /// The API keys given make no sense.
    #[error("API keys: {0}")]
    Keys(String),
    /// The certificate or the key of TLS cannot be used.
    #[cfg(feature = "tls")]
    #[error("{file}: {what}")]
    Tls {
        /// The file that is wrong.
        file: String,
        /// What is wrong with it.
        what: String,
    },
    /// A setting makes no sense.
    #[error("{0}")]
    Setting(String),
    /// The engine refuses.
    #[error(transparent)]
    Engine(Box<EngineError>),
}

impl From<EngineError> for ServerError {
    fn from(error: EngineError) -> ServerError {
        ServerError::Engine(Box::new(error))
    }
}

/// A refusal or a failure as a client sees it, in whatever protocol it speaks.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) kind: &'static str,
    pub(crate) code: Option<&'static str>,
    pub(crate) message: String,
    pub(crate) param: Option<String>,
    pub(crate) retry_after: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> ApiError {
        ApiError {
            status,
            kind,
            code: None,
            message: message.into(),
            param: None,
            retry_after: None,
        }
    }

    /// The request is wrong.
    pub(crate) fn wrong(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// The field `param` of the request is wrong.
    pub(crate) fn field(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError {
            param: Some(param.into()),
            ..ApiError::wrong(message)
        }
    }

    /// There is no such thing.
    pub(crate) fn not_found(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", message).code("not_found")
    }

    /// There is none of what is called `what` under this id.
    pub(crate) fn missing(what: &str, id: &str) -> ApiError {
        ApiError::not_found(format!("there is no {what} {id:?}"))
    }

    /// The state of things does not allow it.
    pub(crate) fn conflict(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::CONFLICT, "invalid_request_error", message).code("conflict")
    }

    /// Not without a key.
    pub(crate) fn unauthorized(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::UNAUTHORIZED, "authentication_error", message)
            .code("invalid_api_key")
    }

    /// Not from there.
    pub(crate) fn forbidden(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, "permission_error", message)
    }

    /// Too much at once.
    pub(crate) fn too_large(message: impl Into<String>) -> ApiError {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "invalid_request_error",
            message,
        )
        .code("too_large")
    }

    /// Too many at once.
    pub(crate) fn busy(message: impl Into<String>, retry_after: u64) -> ApiError {
        ApiError {
            retry_after: Some(retry_after),
            ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
                .code("queue_full")
        }
    }

    /// Not now.
    pub(crate) fn unavailable(message: impl Into<String>) -> ApiError {
        ApiError {
            retry_after: Some(5),
            ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "api_error", message)
        }
    }

    /// It took too long.
    pub(crate) fn timeout(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::GATEWAY_TIMEOUT, "api_error", message).code("timeout")
    }

    /// There is no room left on a disk.
    pub(crate) fn disk_full(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INSUFFICIENT_STORAGE, "api_error", message).code("disk_full")
    }

    /// The system refused to write something, as `message` says.
    pub(crate) fn of_io(kind: std::io::ErrorKind, message: impl Into<String>) -> ApiError {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let message = message.into();
        match kind {
            StorageFull | QuotaExceeded | FileTooLarge => {
                ApiError::disk_full(format!("{message}; make room and ask again"))
            }
            _ => ApiError::failed(message),
        }
    }

    /// Something failed that the request is not to blame for.
    pub(crate) fn failed(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "api_error", message)
    }

    /// The same with another status.
    pub(crate) fn status(mut self, status: StatusCode) -> ApiError {
        self.status = status;
        self
    }

    /// The same with a code for programs.
    pub(crate) fn code(mut self, code: &'static str) -> ApiError {
        self.code = Some(code);
        self
    }

    /// As OpenAI's clients read it.
    pub(crate) fn openai(&self) -> Value {
        json!({
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        })
    }

    /// As Anthropic's clients read it.
    pub(crate) fn anthropic(&self) -> Value {
        let kind = match self.status {
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
            StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
            _ => self.kind,
        };
        json!({ "type": "error", "error": { "type": kind, "message": self.message } })
    }

    /// A response with this body.
    pub(crate) fn response(&self, body: Value) -> Response {
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let bearer = HeaderValue::from_static("Bearer");
            headers.insert(header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.response(self.openai())
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> ApiError {
        let message = error.to_string();
        match error {
            EngineError::DoesNotFit(_) => ApiError::wrong(message).code("insufficient_memory"),
            EngineError::TextTooLarge { .. } => ApiError::too_large(message),
            EngineError::Sampling(SamplingError::NoCandidate { .. }) => {
                ApiError::wrong(with_fields(message.replace("--logit-bias", "logit_bias")))
                    .code("no_token_left")
            }
            error if error.is_out_of_memory() => {
                ApiError::unavailable(message).code("insufficient_memory")
            }
            error if error.is_request_error() => ApiError::wrong(with_fields(message)),
            _ => ApiError::failed(message),
        }
    }
}

/// A message about methods for whoever chose them by the fields of a request.
fn with_fields(message: String) -> String {
    let in_place =
        |message: String, stage: Stage| message.replace(stage.flag(), &format!("longview.{stage}"));
    Stage::ALL.into_iter().fold(message, in_place)
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> ApiError {
        // What is rendered and tokenised here is the client's, except the model's own files.
        ApiError::wrong(error.to_string())
    }
}

impl From<TierError> for ApiError {
    fn from(error: TierError) -> ApiError {
        let message = error.to_string();
        match error {
            TierError::NoContext { .. } => ApiError::not_found(message).code("context_not_found"),
            TierError::Ambiguous { .. }
            | TierError::LabelTaken { .. }
            | TierError::OtherModel { .. } => ApiError::conflict(message),
            TierError::BadLabel { .. } => ApiError::field("label", message),
            TierError::Io { source, .. } => ApiError::of_io(source.kind(), message),
            _ => ApiError::failed(message),
        }
    }
}
