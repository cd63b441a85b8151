//! The page, and what the server says of itself.

use crate::support::Running;

#[test]
fn the_page_and_the_documents_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::usual(folder.path());
    for (path, kind) in [
        ("/", "text/html"),
        ("/page.css", "text/css"),
        ("/page.js", "text/javascript"),
    ] {
        let answer = server.get(path);
        assert_eq!(answer.status, 200);
        assert!(answer.header("content-type").unwrap().starts_with(kind));
        assert!(
            answer
                .header("content-security-policy")
                .unwrap()
                .contains("default-src 'none'")
        );
    }
    let models = server.get("/v1/models").good();
    let name = models["data"][0]["id"].as_str().unwrap();
    assert_eq!(server.get(&format!("/v1/models/{name}")).good()["id"], name);
    assert_eq!(server.get("/v1/models/gpt-9").status, 404);
    let document = server.get("/openapi.json").good();
    for path in ["/v1/chat/completions", "/v1/contexts/{id}", "/v1/messages"] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
}

#[test]
fn the_committed_openapi_document_is_the_servers() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
    let made = longview_server::openapi_document() + "\n";
    if std::env::var_os("LONGVIEW_BLESS").is_some() {
        std::fs::write(path, &made).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == made,
        "docs/openapi.json is not what the types say; LONGVIEW_BLESS=1 cargo test -p longview-server renews it"
    );
}
