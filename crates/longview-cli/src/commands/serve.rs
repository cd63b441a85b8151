//! `longview serve`: the engine behind HTTP.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use longview::human_bytes;
use longview::methods::Sampling;
use longview::schedule::ScheduleOptions;
use longview::{StorePlace, SystemMemory};
use longview_server::{ApiKeys, Server, ServerError, ServerOptions};
use serde_json::json;

use crate::args::{Format, ServeArgs};
use crate::failure::Failure;
use crate::input::variable;
use crate::output::{note, print_json, tell};
use crate::session::Session;

/// Names keys, beside `--api-keys`.
const KEYS_VARIABLE: &str = "LONGVIEW_API_KEYS";

/// Serves until told to stop.
pub(crate) fn run(args: &ServeArgs, format: Format) -> Result<(), Failure> {
    let keys = keys(args)?;
    let addresses = addresses(args, &keys)?;
    #[cfg(feature = "tls")]
    let tls = tls(args)?;
    let mut engine = args.engine.clone();
    // Many users on one number: without one, most of what the machine has to give.
    let memory = engine.memory.or_else(usual_memory);
    engine.memory = memory;
    let mut session = Session::open_keeping(&engine, &args.methods, &args.store)?;
    let tokens = session.engine.plan(1).longest_context;
    let limits = &args.limits;
    // Of the largest prompt there may be: what methods take of others is less.
    let prompt = tokens.saturating_sub(limits.max_answer).max(1);
    session.foretell(
        limits.max_prompt.map_or(prompt, |most| prompt.min(most)),
        tokens,
    )?;
    let recommended = session.recommended(&engine);
    let contexts_folder = match session.store_place() {
        Some(StorePlace::Folder(folder)) => Some(folder.clone()),
        _ => None,
    };
    #[cfg(feature = "tls")]
    let scheme = if tls.is_some() { "https" } else { "http" };
    #[cfg(not(feature = "tls"))]
    let scheme = "http";
    let options = ServerOptions {
        addresses,
        #[cfg(feature = "tls")]
        tls,
        hosts: [&args.access.hosts[..], std::slice::from_ref(&args.host)].concat(),
        keys,
        cors: args.access.cors.clone(),
        names: args.names.clone(),
        methods: session.methods.clone(),
        sampling: recommended
            .as_ref()
            .and_then(Sampling::from_generation_config),
        schedule: ScheduleOptions {
            most_running: limits.most_running as usize,
            decode_gap: Duration::from_millis(limits.decode_gap.into()),
        },
        queue: limits.queue as usize,
        max_body_bytes: usize::try_from(limits.max_body).unwrap_or(usize::MAX),
        max_prompt_tokens: limits.max_prompt,
        usual_answer_tokens: limits.max_answer,
        request_timeout: Some(Duration::from_secs(limits.timeout)).filter(|limit| !limit.is_zero()),
        keep_alive: Duration::from_secs(10),
        drain: Duration::from_secs(limits.drain),
        folders: args.folders.clone(),
        contexts_folder,
        salt: args.store.salt().to_owned(),
        ..ServerOptions::default()
    };
    let keyed = !options.keys.is_empty();
    let Session {
        engine, notices, ..
    } = session;
    let name = engine.describe().name;
    allow_many_connections();
    let server = Server::bind(engine, options)?;
    server.stop_on_signals()?;
    for notice in notices.iter().chain(server.notices()) {
        tell(notice);
    }
    let urls: Vec<String> = server
        .addresses()?
        .iter()
        .map(|address| format!("{scheme}://{address}"))
        .collect();
    note(format!("longview serves {name} on {}", urls.join(" and ")));
    if let Some(bytes) = memory {
        note(format!(
            "memory: at most {}; the longest context is {tokens} tokens; {}",
            human_bytes(bytes),
            if keyed {
                "API keys are wanted"
            } else {
                "no API key is wanted"
            }
        ));
    }
    if format == Format::Json {
        // For programs that start it: where it is, once it answers.
        print_json(&json!({ "model": name, "urls": urls, "longest_context": tokens }))?;
    }
    server.run(tell)?;
    note("longview has stopped; what was read is kept");
    Ok(())
}

/// Asks for as many open files as the system lets this process have: each connection is one.
fn allow_many_connections() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        let most = Rlimit {
            current: maximum,
            maximum,
        };
        // Where it is refused there are fewer connections at once, and the others wait.
        let _ = setrlimit(Resource::Nofile, most);
    }
}

/// Most of the memory that the machine has to give now.
pub(super) fn usual_memory() -> Option<u64> {
    SystemMemory::now().usable().map(|bytes| bytes / 4 * 3)
}

fn keys(args: &ServeArgs) -> Result<ApiKeys, Failure> {
    let mut text = String::new();
    if let Some(path) = &args.access.keys {
        let shown = path.display();
        text = std::fs::read_to_string(path).map_err(|error| Failure::io(shown, &error))?;
    }
    if let Some(more) = variable(KEYS_VARIABLE)? {
        text.push('\n');
        text.push_str(&more);
    }
    let keys = ApiKeys::parse(&text)?;
    if keys.is_empty() && args.access.keys.is_some() {
        return Err(Failure::wrong("--api-keys: the file holds no keys"));
    }
    Ok(keys)
}

#[cfg(feature = "tls")]
fn tls(args: &ServeArgs) -> Result<Option<longview_server::Tls>, Failure> {
    match (&args.tls.certificate, &args.tls.key) {
        (Some(certificate), Some(key)) => {
            Ok(Some(longview_server::Tls::from_files(certificate, key)?))
        }
        // The arguments want each other.
        _ => Ok(None),
    }
}

/// Where to listen. Beyond this machine, somebody has to say that anyone may come in.
fn addresses(args: &ServeArgs, keys: &ApiKeys) -> Result<Vec<SocketAddr>, Failure> {
    let host = args.host.trim_matches(['[', ']']);
    let found: Vec<SocketAddr> = match host.parse::<IpAddr>() {
        Ok(address) => vec![SocketAddr::new(address, args.port)],
        Err(_) => (host, args.port)
            .to_socket_addrs()
            .map_err(|error| Failure::wrong(format!("--host {host}: {error}")))?
            .collect(),
    };
    let mut addresses = found;
    addresses.dedup();
    if addresses.len() > 1 && args.port == 0 {
        // Each would get a port of its own.
        addresses.truncate(1);
    }
    let open = addresses.iter().any(|address| !address.ip().is_loopback());
    if open && keys.is_empty() && !args.access.allow_anyone {
        return Err(Failure::wrong(format!(
            "--host {host} can be reached from other machines, and there are no API keys: give some with \
             --api-keys or ${KEYS_VARIABLE}, or say --allow-anyone"
        )));
    }
    Ok(addresses)
}

impl From<ServerError> for Failure {
    fn from(error: ServerError) -> Failure {
        match error {
            ServerError::Engine(error) => (*error).into(),
            ServerError::System { .. } => Failure::failed(error),
            other => Failure::wrong(other),
        }
    }
}
