//! A server, and a client that speaks plain HTTP to it over a socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use longview::{Engine, EngineOptions, ModelSource, StoreOptions, StorePlace};
use longview_server::{Server, ServerOptions, Stopper};
use serde_json::{Value, json};

/// What questions are asked about.
pub(crate) const DOCUMENT: &str =
    "The code of the harbor is 4711. The sea was grey. The code of the tower is 88.";
pub(crate) const QUESTION: &str = "What is the code of the harbor?";
pub(crate) const ANSWER: &str = "The code of the harbor is 4711.";

/// A model of the reference model's tokenizer and keys and values, of small random matrices.
pub(crate) const STAND_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/stand-in");

/// A running server; it ends when dropped.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    stopper: Stopper,
    thread: Option<JoinHandle<Result<(), String>>>,
}

/// What a server answers.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// A stream of events as it comes.
pub(crate) struct Events {
    pub(crate) status: u16,
    /// Comments so far.
    pub(crate) comments: usize,
    lines: BufReader<Chunked>,
}

/// One event.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) name: Option<String>,
    pub(crate) data: String,
}

/// A text of so many words that do not repeat themselves.
pub(crate) fn words(seed: u32, count: usize) -> String {
    let mut x = seed;
    let mut next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let word: String = (0..4)
            .map(|at| char::from(b'a' + ((x >> (8 + 5 * at)) % 26) as u8))
            .collect();
        word
    };
    (0..count).map(|_| next() + " ").collect()
}

/// A question about the document.
pub(crate) fn ask(question: &str) -> Value {
    json!({
        "messages": [
            { "role": "system", "content": DOCUMENT },
            { "role": "user", "content": question }
        ],
        "max_tokens": 24
    })
}

/// A body with further fields.
pub(crate) fn with(mut value: Value, more: Value) -> Value {
    for (name, field) in more.as_object().unwrap() {
        value[name] = field.clone();
    }
    value
}

/// The text of a chat's first answer.
pub(crate) fn text(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

/// An engine on the reference model whose contexts are kept in `folder`.
pub(crate) fn engine(folder: &Path) -> Engine {
    Engine::open(&engine_options(folder)).unwrap()
}

/// The same on the stand-in, which reads long texts for little and knows nothing.
pub(crate) fn stand_in(folder: &Path) -> Engine {
    open(Path::new(STAND_IN), folder)
}

fn engine_options(folder: &Path) -> EngineOptions {
    EngineOptions {
        chunk_tokens: 256,
        threads: Some(2),
        memory_bytes: Some(4 << 30),
        store: Some(StoreOptions::new(
            StorePlace::Folder(folder.to_owned()),
            1 << 30,
        )),
        ..EngineOptions::default()
    }
}

/// The same of a copy of the stand-in in `model` with rotary frequencies of their own for contexts of more than
/// 256 tokens.
pub(crate) fn longrope(model: &Path, folder: &Path) -> Engine {
    let stand_in = Path::new(STAND_IN);
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ] {
        std::fs::copy(stand_in.join(name), model.join(name)).unwrap();
    }
    let config = std::fs::read(stand_in.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["original_max_position_embeddings"] = 256.into();
    config["rope_scaling"] = json!({
        "type": "longrope", "attention_factor": 1.0,
        "short_factor": vec![1.0; 32], "long_factor": vec![1.25; 32],
    });
    std::fs::write(model.join("config.json"), config.to_string()).unwrap();
    open(model, folder)
}

/// An engine on the model in `model`.
pub(crate) fn open(model: &Path, folder: &Path) -> Engine {
    Engine::open(&EngineOptions {
        model: ModelSource::Path(model.to_owned()),
        ..engine_options(folder)
    })
    .unwrap()
}

/// Options for a test: a free port, greedy like the reference model wants it.
pub(crate) fn options(folder: &Path) -> ServerOptions {
    ServerOptions {
        addresses: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
        sampling: Some(longview::methods::Sampling {
            temperature: Some(0.0),
            ..Default::default()
        }),
        contexts_folder: Some(PathBuf::from(folder)),
        keep_alive: Duration::from_millis(200),
        drain: Duration::from_secs(20),
        ..ServerOptions::default()
    }
}

impl Running {
    pub(crate) fn start(engine: Engine, options: ServerOptions) -> Running {
        let server = Server::bind(engine, options).unwrap();
        let address = server.addresses().unwrap()[0];
        let stopper = server.stopper();
        let tell = |warning: &str| println!("{warning}");
        let run = move || server.run(tell).map_err(|error| error.to_string());
        let thread = std::thread::spawn(run);
        Running {
            address,
            stopper,
            thread: Some(thread),
        }
    }

    /// A server with the usual options over a folder, on the reference model.
    pub(crate) fn usual(folder: &Path) -> Running {
        Running::start(engine(folder), options(folder))
    }

    /// A server with the usual options over a folder, on the stand-in.
    pub(crate) fn stand_in(folder: &Path) -> Running {
        Running::start(stand_in(folder), options(folder))
    }

    /// Asks it to stop; running requests finish.
    pub(crate) fn stop(&self) {
        self.stopper.stop();
    }

    /// Waits until it has stopped; returns how it ended.
    pub(crate) fn wait(&mut self) -> Result<(), String> {
        self.thread.take().unwrap().join().unwrap()
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[], body.to_string().as_bytes())
    }

    /// Takes a context in that was exported elsewhere.
    pub(crate) fn import(&self, label: &str, bundle: &[u8]) {
        let kind = [("content-type", "application/x-tar")];
        let path = format!("/v1/contexts/import?label={label}");
        let came = self.send("POST", &path, &kind, bundle);
        assert_eq!(came.status, 201, "{}", String::from_utf8_lossy(&came.body));
    }

    pub(crate) fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let mut stream = self.begin(method, path, headers, body);
        let (status, headers) = head(&mut stream);
        let mut body = Vec::new();
        reader(stream, &headers).read_to_end(&mut body).unwrap();
        Answer {
            status,
            headers,
            body,
        }
    }

    /// The value of a counter.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let answer = self.get("/metrics");
        assert_eq!(answer.status, 200);
        let text = String::from_utf8(answer.body).unwrap();
        let line = text
            .lines()
            .find(|line| line.split(' ').next() == Some(name));
        let value = line.unwrap_or_else(|| panic!("no {name} in {text}"));
        value.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Waits until nothing is computed.
    pub(crate) fn rest(&self) {
        let begun = Instant::now();
        while self.metric("longview_sequences_running") > 0.0 {
            assert!(begun.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The events of a streamed answer.
    pub(crate) fn events(&self, path: &str, body: &Value) -> Events {
        let mut stream = self.begin("POST", path, &[], body.to_string().as_bytes());
        let (status, headers) = head(&mut stream);
        Events {
            status,
            comments: 0,
            lines: BufReader::new(reader(stream, &headers)),
        }
    }

    pub(crate) fn get_events(&self, path: &str) -> Events {
        let mut stream = self.begin("GET", path, &[], b"");
        let (status, headers) = head(&mut stream);
        Events {
            status,
            comments: 0,
            lines: BufReader::new(reader(stream, &headers)),
        }
    }

    /// A connection on which a request was sent.
    pub(crate) fn begin(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(120)))
            .unwrap();
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-length: {}\r\n",
            self.address,
            body.len()
        );
        if !body.is_empty() && !headers.iter().any(|(name, _)| *name == "content-type") {
            request.push_str("content-type: application/json\r\n");
        }
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        // A server that refuses a large body may close before it has read it.
        let _ = stream.write_all(body);
        BufReader::new(stream)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stopper.stop();
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.unwrap().unwrap();
            }
        }
    }
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("{}: {}", self.status, String::from_utf8_lossy(&self.body)))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The JSON of a good answer.
    pub(crate) fn good(&self) -> Value {
        let text = String::from_utf8_lossy(&self.body);
        assert!((200..300).contains(&self.status), "{}: {text}", self.status);
        self.json()
    }

    /// Status, message and parameter of a refusal.
    pub(crate) fn refusal(&self) -> (u16, String, Option<String>) {
        let error = self.json()["error"].clone();
        let text = |name: &str| error[name].as_str().map(str::to_owned);
        (
            self.status,
            text("message").unwrap_or_default(),
            text("param"),
        )
    }
}

impl Iterator for Events {
    type Item = Event;

    /// The next event; comments are counted.
    fn next(&mut self) -> Option<Event> {
        let (mut name, mut data) = (None, String::new());
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let line = line.trim_end_matches(['\r', '\n']);
            if let Some(value) = line.strip_prefix("event: ") {
                name = Some(value.to_owned());
            } else if let Some(value) = line.strip_prefix("data: ") {
                data.push_str(value);
            } else if line.starts_with(':') {
                self.comments += 1;
            } else if line.is_empty() && !data.is_empty() {
                return Some(Event { name, data });
            }
        }
    }
}

impl Event {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|_| panic!("{}", self.data))
    }
}

fn head(stream: &mut BufReader<TcpStream>) -> (u16, Vec<(String, String)>) {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    let status = line
        .split(' ')
        .nth(1)
        .unwrap_or_else(|| panic!("no status in {line:?}"));
    let status = status.parse().unwrap();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        match line.trim_end().split_once(':') {
            Some((name, value)) => {
                headers.push((name.to_ascii_lowercase(), value.trim().to_owned()))
            }
            None => return (status, headers),
        }
    }
}

fn reader(stream: BufReader<TcpStream>, headers: &[(String, String)]) -> Chunked {
    let is_chunked =
        |(name, value): &(String, String)| name == "transfer-encoding" && value == "chunked";
    Chunked {
        stream,
        left: match headers.iter().any(is_chunked) {
            true => Some(0),
            false => None,
        },
        over: false,
    }
}

/// A body, taken out of its chunks.
struct Chunked {
    stream: BufReader<TcpStream>,
    /// Bytes left of the chunk; `None` for a body that is no chunks.
    left: Option<usize>,
    over: bool,
}

impl Read for Chunked {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let Some(left) = &mut self.left else {
            return self.stream.read(out);
        };
        if self.over {
            return Ok(0);
        }
        if *left == 0 {
            let mut line = String::new();
            self.stream.read_line(&mut line)?;
            if line.trim().is_empty() {
                line.clear();
                self.stream.read_line(&mut line)?;
            }
            *left = usize::from_str_radix(line.trim(), 16).unwrap_or(0);
            if *left == 0 {
                self.over = true;
                return Ok(0);
            }
        }
        let most = out.len().min(*left);
        let count = self.stream.read(&mut out[..most])?;
        *left -= count;
        Ok(count)
    }
}
