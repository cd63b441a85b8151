use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use super::*;
use crate::tier::conformance::{self, Fixture};
use crate::tier::testing::{Chain, assert_held, contents, keys, put};

#[test]
fn a_folder_conforms() {
    conformance::run(|| {
        let home = tempfile::tempdir().unwrap();
        let url = url::Url::from_directory_path(home.path().join("new folder")).unwrap();
        Fixture {
            tier: Box::new(RemoteTier::open(url.as_str(), []).unwrap()),
            _home: Box::new(home),
        }
    });
}

#[test]
fn a_folder_is_shared() {
    let home = tempfile::tempdir().unwrap();
    let url = url::Url::from_directory_path(home.path()).unwrap();
    machines_share(url.as_str(), &[]);
}

/// Needs `moto_server` (PyPI `moto[server]`), in the path or named by `LONGVIEW_MOTO_SERVER`.
#[test]
fn an_s3_server_conforms_and_is_shared() {
    let Some(server) = Server::start() else {
        println!("skipped: moto_server is not installed (pip install 'moto[server]')");
        return;
    };
    let endpoint = format!("http://127.0.0.1:{}", server.port);
    let options = [
        ("aws_endpoint", endpoint.as_str()),
        ("aws_access_key_id", "anyone"),
        ("aws_secret_access_key", "anything"),
        ("aws_region", "us-east-1"),
        ("aws_allow_http", "true"),
    ];
    let next = std::cell::Cell::new(0);
    conformance::run(|| {
        next.set(next.get() + 1);
        let url = format!("s3://longview/store-{}", next.get());
        Fixture {
            tier: Box::new(RemoteTier::open(&url, options).unwrap()),
            _home: Box::new(()),
        }
    });
    machines_share("s3://longview/shared", &options);
    let error = RemoteTier::open("s3://no-such-bucket/x", options)
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("s3://no-such-bucket/x"),
        "{error}"
    );
}

#[test]
fn wrong_addresses_are_refused_by_name() {
    for url in ["no url", "gopher://x/y", "file://elsewhere/folder"] {
        let error = RemoteTier::open(url, []).err().unwrap();
        assert!(error.to_string().contains(url), "{error}");
    }
}

/// What one machine puts another finds, and a damaged object costs what is in it.
fn machines_share(url: &str, options: &[(&str, &str)]) {
    let open = || RemoteTier::open(url, options.iter().copied()).unwrap();
    let (one, two) = (open(), open());
    let infos = Chain::new("m").blocks(37, 1);
    put(&one, &infos);
    // Full spans are put in the background; the rest waits for a sync.
    let deadline = Instant::now() + Duration::from_secs(60);
    while two.find(&infos[31].key).is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_held(&two, &infos[..32]);
    assert_eq!(two.find(&infos[32].key), None);
    one.sync().unwrap();
    assert_held(&two, &infos);
    let three = open();
    assert_eq!(contents(&three), contents(&one));
    assert_eq!(three.usage(), one.usage());
    assert_held(&three, &infos);
    assert_ne!(three.read_rate(), Some(UNMEASURED));
    drop(three);

    let (object, _) = one.remote.state().objects.place(&infos[20].key).unwrap();
    let mut bytes = vec![0; object.bytes() as usize];
    one.remote.client.read(&object.name, 0, &mut bytes).unwrap();
    let slice = object.header.slice_offset(1, 4) as usize;
    bytes[slice] ^= 1;
    one.remote.client.put(object.header.clone(), bytes).unwrap();
    let four = open();
    let mut out = vec![0; 37 * 1000];
    let error = four.read(&keys(&infos), 1, &mut out).unwrap_err();
    assert!(
        matches!(error, TierError::Damaged { key, .. } if key == infos[20].key),
        "{error}"
    );
    assert!(four.take_notices()[0].contains(&object.name));
    assert_eq!(four.find(&infos[20].key), None);
    put(&four, &infos);
    four.sync().unwrap();
    assert_held(&four, &infos);
}

/// A real server of the S3 protocol, on a port of its own, with the bucket `longview`.
struct Server {
    process: Child,
    port: u16,
}

impl Server {
    /// `None` when it is not installed.
    fn start() -> Option<Server> {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let program = std::env::var("LONGVIEW_MOTO_SERVER");
        let program = program.unwrap_or_else(|_| "moto_server".to_owned());
        let process = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let server = Server { process, port };
        let deadline = Instant::now() + Duration::from_secs(120);
        let request = "PUT /longview HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                       Content-Length: 0\r\n\r\n";
        loop {
            let answer = TcpStream::connect(("127.0.0.1", port)).and_then(|mut stream| {
                stream.write_all(request.as_bytes())?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer)?;
                Ok(answer)
            });
            match answer {
                Ok(answer) if answer.starts_with("HTTP/1.1 200") => return Some(server),
                _ if Instant::now() > deadline => panic!("the server does not answer: {answer:?}"),
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
