//! `/v1/contexts`: what a model has read, as things with names.

use std::convert::Infallible;
use std::fs::File;
use std::io::Write;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::{StreamExt, stream};
use longview::records::title_of;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use super::download;
use super::paging::{Lengths, Page, PageQuery, in_words};
use crate::app::{App, Guest, blocking};
use crate::contexts::{Change, Draft, Form, MOST_CONTEXTS, Shown, Status, check_title};
use crate::error::ApiError;
use crate::input::{Input, in_time};
use crate::prompt;
use crate::settings::ContextMethods;

/// How many contexts are listed at once.
const LENGTHS: Lengths = Lengths {
    usual: MOST_CONTEXTS,
    most: MOST_CONTEXTS,
};

/// Characters of a document's title or a file's name that tell it from others.
const MOST_TITLE: usize = 200;

/// A context to be made.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct CreateRequest {
    /// Its text.
    text: Option<String>,
    /// Several texts, one after another.
    documents: Option<Vec<Document>>,
    /// Files of the server's declared folders, one after another.
    files: Option<Vec<String>>,
    /// Whether it is a document to be asked about (the default) or a plain text to be continued.
    form: Option<Form>,
    /// Its name for people; no two contexts share one.
    label: Option<String>,
    /// What it is about; the first words, if it is not said.
    title: Option<String>,
    /// It goes when it was not used for so many seconds; 0 for never.
    ttl_seconds: Option<u64>,
    /// Whether it never goes by itself.
    pinned: Option<bool>,
    /// What it is read under, where that is not to be what the model defines. Such a context lives in memory.
    methods: Option<ContextMethods>,
}

/// A text with a name.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct Document {
    /// Stands above it.
    title: Option<String>,
    text: String,
}

/// Text to be put behind a context.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct AppendRequest {
    text: String,
}

/// How a copy is called.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub(crate) struct ForkRequest {
    label: Option<String>,
}

/// How a bundle is taken in.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ImportQuery {
    /// A new name for people.
    label: Option<String>,
}

type Answer = Result<Response, ApiError>;

/// Makes a context and begins to read it. The answer comes at once; reading goes on whoever leaves.
#[utoipa::path(
    post, path = "/v1/contexts", tag = "Contexts", request_body = CreateRequest,
    responses(
        (status = 202, description = "The context, which is being read", body = Shown),
        (status = 400, description = "The request is wrong"),
        (status = 409, description = "The label is taken, or there are as many contexts as there may be")
    )
)]
pub(crate) async fn create(
    State(app): State<App>,
    Extension(Guest(tenancy)): Extension<Guest>,
    Input { value, ignored, .. }: Input<CreateRequest>,
) -> Answer {
    let own = app.clone();
    let shown = app
        .prepare(move || {
            let app = own;
            let draft = draft(&app, value)?;
            let id = tenancy.contexts.create(&app, draft)?;
            tenancy.contexts.show(&app, &id)
        })
        .await?;
    Ok(ignored.on((StatusCode::ACCEPTED, Json(shown))))
}

/// Lists contexts, the last used first (with `order=asc` last). All of them, where no `limit` is given.
#[utoipa::path(
    get, path = "/v1/contexts", tag = "Contexts", params(PageQuery),
    responses(
        (status = 200, description = "The contexts", body = Page<Shown>),
        (status = 400, description = "The query is wrong")
    )
)]
pub(crate) async fn list(
    State(app): State<App>,
    Extension(Guest(tenancy)): Extension<Guest>,
    query: Result<Query<PageQuery>, QueryRejection>,
) -> Answer {
    let query = PageQuery::of(query)?;
    let mut shown = blocking(move || tenancy.contexts.list(app.times())).await?;
    // The longest unused first, as pages are cut.
    shown.reverse();
    let page = query.cut(shown, LENGTHS, |one| &one.id)?;
    Ok(Json(page).into_response())
}

/// Shows a context: its tokens, its bytes by where they are, how far it is read.
#[utoipa::path(
    get, path = "/v1/contexts/{id}", tag = "Contexts",
    params(("id" = String, Path, description = "Its id or label")),
    responses(
        (status = 200, description = "The context", body = Shown),
        (status = 404, description = "There is no such context")
    )
)]
pub(crate) async fn show(
    State(app): State<App>,
    Extension(Guest(tenancy)): Extension<Guest>,
    Path(id): Path<String>,
) -> Answer {
    let shown = blocking(move || tenancy.contexts.show(&app, &id)).await?;
    Ok(Json(shown).into_response())
}

/// Changes label, title, pin or time to live.
#[utoipa::path(
    patch, path = "/v1/contexts/{id}", tag = "Contexts", request_body = Change,
    params(("id" = String, Path, description = "Its id or label")),
    responses(
        (status = 200, description = "The context as it is now", body = Shown),
        (status = 404, description = "There is no such context"),
        (status = 409, description = "The label is taken")
    )
)]
pub(crate) async fn change(
    State(app): State<App>,
    Extension(Guest(tenancy)): Extension<Guest>,
    Path(id): Path<String>,
    Input { value, ignored, .. }: Input<Change>,
) -> Answer {
    let shown = blocking(move || tenancy.contexts.change(&app, &id, value)).await?;
    Ok(ignored.on(Json(shown)))
}

/// Removes a context. Its blocks stay until there is no room for them.
#[utoipa::path(
    delete, path = "/v1/contexts/{id}", tag = "Contexts",
    params(("id" = String, Path, description = "Its id or label")),
    responses(
        (status = 200, description = "It is removed"),
        (status = 404, description = "There is no such context")
    )
)]
pub(crate) async fn delete(
    State(app): State<App>,
    Extension(Guest(tenancy)): Extension<Guest>,
    Path(id): Path<String>,
) -> Answer {
    let id = blocking(move || tenancy.contexts.delete(&app, &id)).await?;
    Ok(Json(json!({ "id": id, "object": "context.deleted", "deleted": true })).into_response())
}

/// Streams how far a context is read, until that ends.
#[utoipa::path(
    get, path = "/v1/contexts/{id}/events", tag = "Contexts",
    params(("id" = String, Path, description = "Its id or label")),
    responses(
        (status = 200, description = "A stream of `progress` events, the last of them `done`"),
        (status = 404, description = "There is no such context")
    )
)]
pub(crate) async fn events(
    State(app): State<App>,
    Extension(Guest(tenancy)): Extension<Guest>,
    Path(id): Path<String>,
) -> Answer {
    let keep_alive = app.options().keep_alive;
    let mut watch = blocking(move || tenancy.contexts.watch(&app, &id)).await?;
    watch.mark_changed();
    let progress = stream::unfold(Some(watch), |watch| async move {
        let mut watch = watch?;
        // The context may be removed meanwhile; then there is nothing more to say.
        watch.changed().await.ok()?;
        let progress = watch.borrow_and_update().clone();
        let over = !matches!(progress.status, Status::Queued | Status::Reading);
        let event = Event::default()
            .event(if over { "done" } else { "progress" })
            .data(json!(progress).to_string());
        Some((Ok::<_, Infallible>(event), (!over).then_some(watch)))
    });
    let alive = KeepAlive::new().interval(keep_alive);
    Ok(Sse::new(progress).keep_alive(alive).into_response())
}

/// Puts text behind a context and begins to read it.
#[utoipa::path(
    post, path = "/v1/contexts/{id}/append", tag = "Contexts", request_body = AppendRequest,
    params(("id" = String, Path, description = "Its id or label")),
    responses(
        (status = 202, description = "The context, which is being read", body = Shown),
        (status = 404, description = "There is no such context"),
        (status = 409, description = "It is being read")
    )
)]
pub(crate) async fn append(
    State(app): State<App>,
    Extension(Guest(tenancy)): Extension<Guest>,
    Path(id): Path<String>,
    Input { value, ignored, .. }: Input<AppendRequest>,
) -> Answer {
    let own = app.clone();
    let shown = app
        .prepare(move || {
            let app = own;
            if value.text.is_empty() {
                return Err(ApiError::field("text", "the text is empty; give some"));
            }
            let tokens = prompt::continued(app.engine(), &value.text)?;
            let id = tenancy.contexts.append(&app, &id, &tokens)?;
            tenancy.contexts.show(&app, &id)
        })
        .await?;
    Ok(ignored.on((StatusCode::ACCEPTED, Json(shown))))
}

/// Makes another context with the same text, which costs no keys or values.
#[utoipa::path(
    post, path = "/v1/contexts/{id}/fork", tag = "Contexts", request_body = ForkRequest,
    params(("id" = String, Path, description = "Its id or label")),
    responses(
        (status = 201, description = "The new context", body = Shown),
        (status = 404, description = "There is no such context"),
        (status = 409, description = "The label is taken")
    )
)]
pub(crate) async fn fork(
    State(app): State<App>,
    Extension(Guest(tenancy)): Extension<Guest>,
    Path(id): Path<String>,
    Input { value, ignored, .. }: Input<ForkRequest>,
) -> Answer {
    let shown = blocking(move || {
        let id = tenancy.contexts.fork(&app, &id, value.label)?;
        tenancy.contexts.show(&app, &id)
    })
    .await?;
    Ok(ignored.on((StatusCode::CREATED, Json(shown))))
}

/// Ends the reading of a context; what is read stays.
#[utoipa::path(
    post, path = "/v1/contexts/{id}/cancel", tag = "Contexts",
    params(("id" = String, Path, description = "Its id or label")),
    responses(
        (status = 202, description = "It ends in a moment", body = Shown),
        (status = 404, description = "There is no such context"),
        (status = 409, description = "It is not being read")
    )
)]
pub(crate) async fn cancel(
    State(app): State<App>,
    Extension(Guest(tenancy)): Extension<Guest>,
    Path(id): Path<String>,
) -> Answer {
    let shown = blocking(move || {
        let id = tenancy.contexts.cancel(&app, &id)?;
        tenancy.contexts.show(&app, &id)
    })
    .await?;
    Ok((StatusCode::ACCEPTED, Json(shown)).into_response())
}

/// Goes on with the reading of a context.
#[utoipa::path(
    post, path = "/v1/contexts/{id}/resume", tag = "Contexts",
    params(("id" = String, Path, description = "Its id or label")),
    responses(
        (status = 202, description = "The context, which is being read unless it is ready", body = Shown),
        (status = 404, description = "There is no such context"),
        (status = 409, description = "It is being read already")
    )
)]
pub(crate) async fn resume(
    State(app): State<App>,
    Extension(Guest(tenancy)): Extension<Guest>,
    Path(id): Path<String>,
) -> Answer {
    let shown = blocking(move || {
        let id = tenancy.contexts.resume(&app, &id)?;
        tenancy.contexts.show(&app, &id)
    })
    .await?;
    Ok((StatusCode::ACCEPTED, Json(shown)).into_response())
}

/// Makes a context survive a restart, and what was read of it a power loss.
#[utoipa::path(
    post, path = "/v1/contexts/{id}/save", tag = "Contexts",
    params(("id" = String, Path, description = "Its id or label")),
    responses(
        (status = 200, description = "The context", body = Shown),
        (status = 404, description = "There is no such context"),
        (status = 409, description = "Contexts are not kept here")
    )
)]
pub(crate) async fn save(
    State(app): State<App>,
    Extension(Guest(tenancy)): Extension<Guest>,
    Path(id): Path<String>,
) -> Answer {
    let shown = blocking(move || {
        if !tenancy.contexts.save(&app, &id)? {
            return Err(ApiError::conflict(
                "contexts are not kept here: the server was started without a folder for them (--cache-dir)",
            ));
        }
        tenancy.contexts.show(&app, &id)
    })
    .await?;
    Ok(Json(shown).into_response())
}

/// Sends a context with all its blocks as one file, to be taken elsewhere.
#[utoipa::path(
    get, path = "/v1/contexts/{id}/export", tag = "Contexts",
    params(("id" = String, Path, description = "Its id or label")),
    responses(
        (status = 200, description = "A bundle", content_type = "application/x-tar"),
        (status = 404, description = "There is no such context"),
        (status = 409, description = "Contexts are not kept here")
    )
)]
pub(crate) async fn export(
    State(app): State<App>,
    Extension(Guest(tenancy)): Extension<Guest>,
    Path(id): Path<String>,
) -> Answer {
    let (id, file, bytes) = blocking(move || tenancy.contexts.export(&app, &id)).await?;
    let mut response = download::respond(file, bytes, "application/x-tar");
    let name = format!("attachment; filename=\"{id}.longview\"");
    if let Ok(name) = HeaderValue::from_str(&name) {
        response
            .headers_mut()
            .insert(header::CONTENT_DISPOSITION, name);
    }
    Ok(response)
}

/// Takes a context in that was exported elsewhere. Take bundles from people you trust: that the
/// numbers in them are those the model computes cannot be checked.
#[utoipa::path(
    post, path = "/v1/contexts/import", tag = "Contexts", params(ImportQuery),
    request_body(content = Vec<u8>, content_type = "application/x-tar"),
    responses(
        (status = 201, description = "The context", body = Shown),
        (status = 400, description = "It is no bundle, or damaged"),
        (status = 409, description = "It is of another model, or contexts are not kept here, or there are as many as there may be")
    )
)]
pub(crate) async fn import(
    State(app): State<App>,
    Extension(Guest(tenancy)): Extension<Guest>,
    query: Result<Query<ImportQuery>, QueryRejection>,
    request: Request,
) -> Answer {
    let Query(query) = in_words(query)?;
    let file = received(&app, request).await?;
    let (shown, taken) = blocking(move || {
        let (id, taken) = tenancy.contexts.import(&app, file)?;
        if let Some(label) = query.label {
            let change = Change {
                label: Some(label),
                ..Change::default()
            };
            tenancy.contexts.change(&app, &id, change)?;
        }
        Ok((tenancy.contexts.show(&app, &id)?, taken))
    })
    .await?;
    let mut body: Value = json!(shown);
    if let Some(label) = taken {
        body["notices"] = json!([format!(
            "another context is labelled {label:?}, so this one came in without its label"
        )]);
    }
    Ok((StatusCode::CREATED, Json(body)).into_response())
}

/// Writes a body as large as the largest context of this model into a temporary file.
async fn received(app: &App, request: Request) -> Result<File, ApiError> {
    let engine = app.engine();
    let plan = engine.plan(engine.model().blueprint().max_positions);
    // Blocks stand in files of their own, and a record beside them.
    let limit = plan.kv.saturating_mul(2).saturating_add(64 << 20);
    let mut left = limit;
    let mut file = {
        let app = app.clone();
        blocking(move || crate::contexts::temporary(&app)).await?
    };
    let mut pieces = request.into_body().into_data_stream();
    // A bundle may take as long as it likes, a piece of it not.
    while let Some(piece) = in_time(pieces.next()).await? {
        let piece = piece
            .map_err(|error| ApiError::wrong(format!("the bundle did not arrive: {error}")))?;
        left = left.checked_sub(piece.len() as u64).ok_or_else(|| {
            ApiError::too_large(format!(
                "the bundle has more than {limit} bytes, which no context of this model has"
            ))
        })?;
        file = blocking(move || {
            file.write_all(&piece).map_err(|error| {
                ApiError::of_io(
                    error.kind(),
                    format!("the bundle cannot be stored: {error}"),
                )
            })?;
            Ok(file)
        })
        .await?;
    }
    blocking(move || {
        std::io::Seek::rewind(&mut file)
            .map_err(|error| ApiError::failed(format!("the bundle cannot be read: {error}")))?;
        Ok(file)
    })
    .await
}

/// What a request says a context is made from.
fn draft(app: &App, request: CreateRequest) -> Result<Draft, ApiError> {
    let given = [
        request.text.is_some(),
        request.documents.is_some(),
        request.files.is_some(),
    ];
    if given.iter().filter(|given| **given).count() != 1 {
        return Err(ApiError::wrong(
            "give one of \"text\", \"documents\" and \"files\"",
        ));
    }
    let mut title = request.title.clone();
    let text = if let Some(text) = request.text {
        text
    } else if let Some(documents) = request.documents {
        title = title.or_else(|| documents.iter().find_map(|document| document.title.clone()));
        let joined: Vec<String> = documents.into_iter().map(Document::headed).collect();
        joined.join("\n\n")
    } else {
        let names = request.files.unwrap_or_default();
        title = title.or_else(|| names.first().cloned());
        let mut texts = Vec::with_capacity(names.len());
        for (at, name) in names.iter().enumerate() {
            texts.push(
                file_text(&app.options().folders, name)
                    .map_err(|error| ApiError::field(format!("files[{at}]"), error))?,
            );
        }
        texts.join("\n\n")
    };
    if text.trim().is_empty() {
        return Err(ApiError::wrong("the context is empty; give some text"));
    }
    check_title(request.title.as_deref())?;
    let methods = match &request.methods {
        None => None,
        Some(methods) => methods.settle(app)?,
    };
    let form = request.form.unwrap_or_default();
    let tokens = match form {
        Form::Document => prompt::document(app.engine(), &text, app.today())?,
        Form::Plain => prompt::plain(app.engine(), &text)?,
    };
    Ok(Draft {
        title: title
            .unwrap_or_else(|| title_of(&text))
            .chars()
            .take(MOST_TITLE)
            .collect(),
        label: request.label,
        form,
        tokens,
        ttl_seconds: request.ttl_seconds.filter(|&seconds| seconds > 0),
        pinned: request.pinned.unwrap_or(false),
        methods: methods.map(Arc::new),
    })
}

impl Document {
    fn headed(self) -> String {
        match self.title {
            Some(title) => format!("{title}\n\n{}", self.text),
            None => self.text,
        }
    }
}

/// The text of a file that lies in one of `folders`, wherever links lead.
fn file_text(folders: &[PathBuf], name: &str) -> Result<String, String> {
    if folders.is_empty() {
        return Err(
            "this server reads no files: it was started without --folder; send the text instead"
                .to_owned(),
        );
    }
    let unknown = || format!("{name:?} is not in the folders that this server may read");
    let inside = |folder: &PathBuf| -> Option<PathBuf> {
        let folder = folder.canonicalize().ok()?;
        let path = folder.join(FilePath::new(name)).canonicalize().ok()?;
        (path.starts_with(&folder) && path.is_file()).then_some(path)
    };
    let path = folders.iter().find_map(inside).ok_or_else(unknown)?;
    let bytes =
        std::fs::read(&path).map_err(|error| format!("{name:?} cannot be read: {error}"))?;
    String::from_utf8(bytes).map_err(|error| {
        format!(
            "{name:?} is not UTF-8 text: byte {} is wrong",
            error.utf8_error().valid_up_to()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_declared_folders_are_read() {
        let root = tempfile::tempdir().unwrap();
        let open = root.path().join("open");
        std::fs::create_dir_all(open.join("sub")).unwrap();
        std::fs::write(root.path().join("secret"), "s").unwrap();
        std::fs::write(open.join("sub/a.txt"), "text").unwrap();
        std::fs::write(open.join("b.bin"), [0xff]).unwrap();
        let folders = [open.clone()];
        assert_eq!(file_text(&folders, "sub/a.txt").unwrap(), "text");
        assert!(file_text(&folders, "b.bin").unwrap_err().contains("UTF-8"));
        let absolute = root.path().join("secret").display().to_string();
        for name in [
            "../secret",
            "sub/../../secret",
            &absolute,
            "sub",
            "none",
            "",
        ] {
            let refused = file_text(&folders, name).unwrap_err();
            assert!(refused.contains("not in the folders"), "{name}: {refused}");
        }
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(root.path().join("secret"), open.join("link")).unwrap();
            assert!(file_text(&folders, "link").is_err());
        }
        assert!(file_text(&[], "a").unwrap_err().contains("--folder"));
    }
}
