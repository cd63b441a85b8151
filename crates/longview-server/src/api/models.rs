//! `GET /v1/models`.

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;
use crate::error::ApiError;

/// A list of models.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelList {
    object: &'static str,
    data: Vec<ModelCard>,
}

/// A model.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelCard {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// Tokens of the longest context.
    context_length: usize,
    /// Parameters in all.
    parameters: u64,
    architecture: &'static str,
    /// The tensor format that most parameters are stored in.
    format: String,
    /// Bytes of keys and values a token adds.
    kv_bytes_per_token: f64,
    /// Other names it answers to.
    aliases: Vec<String>,
}

/// Lists the model that this server runs.
#[utoipa::path(
    get, path = "/v1/models", tag = "OpenAI",
    responses((status = 200, description = "The models", body = ModelList))
)]
pub(crate) async fn list(State(app): State<App>) -> Json<ModelList> {
    Json(ModelList {
        object: "list",
        data: vec![card(&app)],
    })
}

/// Shows a model.
#[utoipa::path(
    get, path = "/v1/models/{name}", tag = "OpenAI",
    params(("name" = String, Path, description = "One of its names")),
    responses(
        (status = 200, description = "The model", body = ModelCard),
        (status = 404, description = "There is no such model")
    )
)]
pub(crate) async fn show(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Json<ModelCard>, ApiError> {
    app.check_model(Some(&name))?;
    Ok(Json(card(&app)))
}

fn card(app: &App) -> ModelCard {
    let about = app.engine().describe();
    ModelCard {
        id: app.model().to_owned(),
        object: "model",
        created: app.times().started(),
        owned_by: "longview",
        context_length: about.context_length,
        parameters: about.parameters,
        architecture: about.architecture,
        format: about.format,
        kv_bytes_per_token: about.kv_bytes_per_token,
        aliases: app.names()[1..].to_vec(),
    }
}
