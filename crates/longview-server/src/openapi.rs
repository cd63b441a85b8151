//! What the server offers, as an OpenAPI document made from the types.

use utoipa::OpenApi;
use utoipa::openapi::ResponseBuilder;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};

use crate::api;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Longview",
        description = "Long-context inference: OpenAI's and Anthropic's protocols, and contexts as things with names.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    paths(
        api::chat::create,
        api::completions::create,
        api::responses::create,
        api::responses::show,
        api::responses::input_items,
        api::responses::delete,
        api::embeddings::create,
        api::messages::create,
        api::messages::count,
        api::models::list,
        api::models::show,
        api::contexts::create,
        api::contexts::list,
        api::contexts::show,
        api::contexts::change,
        api::contexts::delete,
        api::contexts::events,
        api::contexts::append,
        api::contexts::fork,
        api::contexts::cancel,
        api::contexts::resume,
        api::contexts::save,
        api::contexts::export,
        api::contexts::import,
        api::files::create,
        api::files::list,
        api::files::show,
        api::files::content,
        api::files::delete,
        api::batches::create,
        api::batches::list,
        api::batches::show,
        api::batches::cancel,
        api::tokens::tokenize,
        api::tokens::detokenize,
        api::tokens::info,
        api::status::drop_cache,
        api::status::health,
        api::status::ready,
        api::status::metrics,
        api::status::openapi,
    ),
    modifiers(&Keys, &Refusals),
    security(("key" = []))
)]
struct Api;

/// Whatever is refused or fails is said in one shape.
struct Refusals;

impl utoipa::Modify for Refusals {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        for item in document.paths.paths.values_mut() {
            let operations = [
                &mut item.get,
                &mut item.post,
                &mut item.patch,
                &mut item.delete,
            ];
            for operation in operations.into_iter().flatten() {
                let refusal = ResponseBuilder::new().description(
                    "A refusal or a failure: `error.message` says what is wrong and what to do",
                );
                let responses = &mut operation.responses.responses;
                responses.insert("default".to_owned(), refusal.build().into());
            }
        }
    }
}

/// Keys are wanted where the server was started with some.
struct Keys;

impl utoipa::Modify for Keys {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("key", SecurityScheme::Http(bearer));
    }
}

/// The document as JSON.
pub fn document() -> String {
    Api::openapi()
        .to_pretty_json()
        .expect("the document is made of strings and maps")
}
