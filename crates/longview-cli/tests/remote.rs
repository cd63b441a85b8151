//! Machines that share what they have read through an object store. The S3 protocol itself is tested
//! where the store is, in `longview-kv`.
#![cfg(feature = "remote")]

mod common;

use common::{Folder, command, longview, ran, story};
use serde_json::Value;

const FALCON: &str = "What is the special magic number for amber falcon?";

fn number(json: &Value, key: &str) -> u64 {
    json[key]
        .as_u64()
        .unwrap_or_else(|| panic!("{key} in {json}"))
}

#[test]
fn what_one_machine_has_read_another_takes_over_and_keeps() {
    let folder = Folder::new();
    // Of a small random model it would be faster to compute than to fetch.
    let book = folder.write("book.txt", story(1000));
    let url = format!("file://{}", folder.path("shared"));
    let ask = |machine: &str, remote: &[&str]| {
        let store = folder.path(machine);
        let flags = ["--cache-dir", &store, "--cache-max", "1GiB"];
        let ask = ["ask", "--json", "--file", &book, "-n", "4", FALCON];
        longview(&[&ask[..], &flags, remote].concat()).done().json()
    };
    let remote = ["--cache-remote", url.as_str()];
    let first = ask("one", &remote);
    let found = ask("two", &remote);
    assert_eq!(found["generated_ids"], first["generated_ids"]);
    assert!(number(&found["reuse"], "remote") > 1000, "{found}");
    // It is in the other machine's own folder now.
    let without = ask("two", &[]);
    assert!(number(&without["reuse"], "disk") > 1000, "{without}");
    // A machine that keeps nothing itself.
    let mut nothing = command(&["ask", "--json", "--file", &book, "-n", "4", FALCON]);
    nothing.env("LONGVIEW_CACHE_REMOTE", &url);
    let nothing = ran(nothing.output().unwrap()).done().json();
    assert!(number(&nothing["reuse"], "remote") > 1000, "{nothing}");
}

#[test]
fn every_form_of_keys_and_values_goes_from_machine_to_machine() {
    let folder = Folder::new();
    let book = folder.write("book.txt", story(400));
    let url = format!("file://{}", folder.path("shared"));
    for form in ["q8", "q4", "kivi", "kivi(bits=2)", "mustafar", "accllm"] {
        let ask = |machine: &str| {
            let store = folder.path(&format!("{machine} {form}"));
            let flags = [
                "--cache-dir",
                &store,
                "--cache-remote",
                &url,
                "--store",
                form,
            ];
            let ask = ["ask", "--json", "--file", &book, "-n", "4", FALCON];
            longview(&[&ask[..], &flags].concat()).done().json()
        };
        let (first, found) = (ask("one"), ask("two"));
        // Nothing of the forms before is taken for this one.
        assert_eq!(first["reuse"]["remote"].as_u64().unwrap_or(0), 0, "{form}");
        assert!(number(&found["reuse"], "remote") > 300, "{form}: {found}");
        assert_eq!(found["generated_ids"], first["generated_ids"], "{form}");
    }
}

#[test]
fn a_store_that_cannot_be_reached_is_refused_by_name() {
    let run = ["run", "--prompt", "x", "-n", "1", "--cache-remote"];
    for (url, words) in [
        ("gopher://x/y", "gopher://x/y"),
        ("no address", "no address"),
    ] {
        longview(&[&run[..], &[url]].concat()).refused(2, &[words, "cannot"]);
    }
    // Nobody listens there.
    let mut s3 = command(&[&run[..], &["s3://bucket/folder"]].concat());
    s3.env("AWS_ENDPOINT", "http://127.0.0.1:9")
        .env("AWS_ALLOW_HTTP", "true")
        .env("AWS_ACCESS_KEY_ID", "anyone")
        .env("AWS_SECRET_ACCESS_KEY", "anything")
        .env("AWS_REGION", "us-east-1");
    ran(s3.output().unwrap()).refused(2, &["s3://bucket/folder", "cannot"]);
}
