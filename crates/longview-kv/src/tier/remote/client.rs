//! The object store, for callers that wait: requests run on threads of their own.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, ObjectStoreScheme, RetryConfig};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use super::objects::Object;
use crate::block::Block;
use crate::hash::BlockHash;
use crate::ledger::Ledger;
use crate::tier::extent::{Header, Slot, SlotState, checksum};
use crate::tier::{BlockInfo, BlockKey, TierError};

/// Read at once from the beginning of an object; most headers and records are shorter.
const FIRST_READ: u64 = 16 << 10;
/// A request is tried again for so long.
const RETRY: Duration = Duration::from_secs(10);
/// Longer reads are cut into requests that run at once.
const REQUEST: usize = 4 << 20;

pub(super) struct Client {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    url: String,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
}

impl Client {
    pub(super) fn open<'a>(
        url: &str,
        options: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Client, TierError> {
        let fail = |source: io::Error| TierError::Io {
            place: url.to_owned(),
            action: "open",
            source,
        };
        let address = url::Url::parse(url).map_err(|error| fail(io::Error::other(error)))?;
        if address.scheme() == "file" {
            // The library wants the folder to be there.
            let folder = address.to_file_path();
            let folder = folder.map_err(|()| fail(io::ErrorKind::InvalidInput.into()))?;
            std::fs::create_dir_all(folder).map_err(fail)?;
        }
        let environment = std::env::vars().filter(|(name, _)| name.starts_with("AWS_"));
        let given = options
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let options = environment
            .map(|(name, value)| (name.to_lowercase(), value))
            .chain(given);
        let (store, prefix) = store_at(&address, options).map_err(|error| {
            let kind = match &error {
                object_store::Error::NotFound { .. } => io::ErrorKind::NotFound,
                _ => io::ErrorKind::Other,
            };
            fail(io::Error::new(kind, error))
        })?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("longview-remote")
            .enable_all()
            .build()
            .map_err(fail)?;
        Ok(Client {
            store,
            prefix,
            url: url.trim_end_matches('/').to_owned(),
            runtime: Some(runtime),
        })
    }

    /// An object as people find it.
    pub(super) fn place(&self, name: &str) -> String {
        format!("{}/{name}", self.url)
    }

    /// The names of all objects, or of those that begin with a block.
    pub(super) fn list(&self, first: Option<&BlockKey>) -> Result<Vec<String>, TierError> {
        let folder = match first {
            None => "extents".to_owned(),
            Some(key) => folder_of(key),
        };
        let store = Arc::clone(&self.store);
        let path = self.path(&folder);
        let listed = self.wait(async move {
            let mut found = Vec::new();
            let mut folders = vec![path];
            // Folder by folder: a bucket answers with what a folder holds, without what is below.
            while let Some(folder) = folders.pop() {
                let here = store.list_with_delimiter(Some(&folder)).await?;
                folders.extend(here.common_prefixes);
                found.extend(here.objects.into_iter().map(|object| object.location));
            }
            Ok(found)
        });
        let listed = listed.map_err(|source| self.error(&folder, "list", source))?;
        let names = listed.iter().filter_map(|path| self.name_of(path));
        Ok(names.collect())
    }

    /// Reads header and records of an object.
    pub(super) fn header(&self, name: &str) -> Result<Object, TierError> {
        let unreadable = |what: String| TierError::Unreadable {
            place: self.place(name),
            what: format!("skipped: {what}"),
        };
        let mut bytes = self.front(name, FIRST_READ)?;
        let len = Header::encoded_len_of(&bytes).map_err(|error| unreadable(error.to_string()))?;
        if len > bytes.len() {
            bytes = self.front(name, len as u64)?;
        }
        let header = Header::decode(&bytes).map_err(|error| unreadable(error.to_string()))?;
        if name != name_of(&header) {
            return Err(unreadable(
                "its name is not that of its contents".to_owned(),
            ));
        }
        if header.payload_offset() > bytes.len() as u64 {
            bytes = self.front(name, header.payload_offset())?;
        }
        let table = bytes
            .get(header.table_offset() as usize..)
            .unwrap_or_default();
        let slots = Slot::decode_table(&header, table);
        let slots = slots.into_iter().map(|state| match state {
            SlotState::Valid(slot) => Some(slot),
            SlotState::Empty | SlotState::Torn => None,
        });
        Ok(Object {
            name: name.to_owned(),
            slots: slots.collect(),
            header,
        })
    }

    /// Puts an object. Whoever put the same run before put the same bytes.
    pub(super) fn put(&self, header: Header, bytes: Vec<u8>) -> Result<Object, TierError> {
        let name = name_of(&header);
        let table = &bytes[header.table_offset() as usize..][..header.table_bytes()];
        let slots = Slot::decode_table(&header, table)
            .into_iter()
            .map(|state| match state {
                SlotState::Valid(slot) => Some(slot),
                SlotState::Empty | SlotState::Torn => None,
            });
        let slots = slots.collect();
        let (store, path) = (Arc::clone(&self.store), self.path(&name));
        let put = self.wait(async move { store.put(&path, bytes.into()).await });
        put.map_err(|source| self.error(&name, "put", source))?;
        Ok(Object {
            name,
            slots,
            header,
        })
    }

    /// Fills `out` from an offset.
    pub(super) fn read(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<(), TierError> {
        let (store, path) = (Arc::clone(&self.store), self.path(name));
        let lengths: Vec<_> = out.chunks(REQUEST).map(|part| part.len() as u64).collect();
        let read = self.wait(async move {
            let mut requests = JoinSet::new();
            let mut from = offset;
            for (number, len) in lengths.into_iter().enumerate() {
                let (store, path, range) = (Arc::clone(&store), path.clone(), from..from + len);
                from += len;
                requests.spawn(async move { (number, store.get_range(&path, range).await) });
            }
            let mut parts = Vec::new();
            while let Some(done) = requests.join_next().await {
                // A request does not panic; if it did, so may this.
                let (number, part) =
                    done.map_err(|source| object_store::Error::JoinError { source })?;
                parts.push((number, part?));
            }
            parts.sort_by_key(|(number, _)| *number);
            Ok(parts)
        });
        let parts = read.map_err(|source| self.error(name, "read", source))?;
        for (into, (_, part)) in out.chunks_mut(REQUEST).zip(parts) {
            if into.len() != part.len() {
                let short = io::ErrorKind::UnexpectedEof.into();
                return Err(TierError::Io {
                    place: self.place(name),
                    action: "read",
                    source: short,
                });
            }
            into.copy_from_slice(&part);
        }
        Ok(())
    }

    /// Reads a whole block of an object.
    pub(super) fn block(&self, object: &Object, info: &BlockInfo) -> Result<Block, TierError> {
        let at = info.index - object.header.first;
        let damaged = || TierError::Damaged {
            place: self.place(&object.name),
            key: info.key,
            what: "checksum".to_owned(),
        };
        let slot = object.slots.get(at as usize).and_then(Option::as_ref);
        let slot = slot.ok_or_else(damaged)?;
        let bytes = object.header.block_bytes() as usize;
        // It only passes through.
        let block = Block::zeroed(bytes, &Ledger::unlimited());
        let mut block = block.map_err(|_| TierError::Missing(info.key))?;
        let slices = block.bytes_mut().chunks_exact_mut(info.shape.layer_bytes);
        for ((layer, slice), sum) in slices.enumerate().zip(&slot.sums) {
            self.read(&object.name, object.header.slice_offset(layer, at), slice)?;
            if checksum(slice) != *sum {
                return Err(damaged());
            }
        }
        Ok(block)
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), TierError> {
        let (store, path) = (Arc::clone(&self.store), self.path(name));
        match self.wait(async move { store.delete(&path).await }) {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            other => other.map_err(|source| self.error(name, "remove", source)),
        }
    }

    /// The beginning of an object, or all of a shorter one.
    fn front(&self, name: &str, len: u64) -> Result<Vec<u8>, TierError> {
        let (store, path) = (Arc::clone(&self.store), self.path(name));
        let bytes = self.wait(async move {
            let size = store.head(&path).await?.size;
            store.get_range(&path, 0..len.min(size)).await
        });
        let bytes = bytes.map_err(|source| self.error(name, "read", source))?;
        Ok(bytes.to_vec())
    }

    /// Runs a request on the threads of the client. Works inside other runtimes, too, where
    /// waiting for a future would panic.
    fn wait<T: Send + 'static>(
        &self,
        request: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> object_store::Result<T> {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let runtime = self
            .runtime
            .as_ref()
            .expect("there is one until the client is dropped");
        runtime.spawn(async move {
            // Whoever asked waits until it is told.
            let _ = tell.send(request.await);
        });
        told.recv().unwrap_or_else(|_| {
            Err(object_store::Error::Generic {
                store: "remote",
                source: "the request was given up".into(),
            })
        })
    }

    fn path(&self, name: &str) -> Path {
        let parts = name.split('/');
        parts.fold(self.prefix.clone(), |path, part| path.join(part))
    }

    fn name_of(&self, path: &Path) -> Option<String> {
        let parts: Vec<_> = path
            .prefix_match(&self.prefix)?
            .map(|part| part.as_ref().to_owned())
            .collect();
        Some(parts.join("/"))
    }

    fn error(&self, name: &str, action: &'static str, source: object_store::Error) -> TierError {
        let kind = match source {
            object_store::Error::NotFound { .. } => io::ErrorKind::NotFound,
            object_store::Error::PermissionDenied { .. } => io::ErrorKind::PermissionDenied,
            _ => io::ErrorKind::Other,
        };
        TierError::Io {
            place: self.place(name),
            action,
            source: io::Error::new(kind, source),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting for its threads would panic inside another runtime.
            runtime.shutdown_background();
        }
    }
}

/// The store at an address, and the path in it. One in the S3 protocol that does not answer is given up
/// after seconds, not minutes: whatever is not kept there can be computed.
fn store_at(
    address: &url::Url,
    options: impl Iterator<Item = (String, String)>,
) -> object_store::Result<(Arc<dyn ObjectStore>, Path)> {
    let (scheme, path) = ObjectStoreScheme::parse(address)?;
    if scheme != ObjectStoreScheme::AmazonS3 {
        let (store, path) = object_store::parse_url_opts(address, options)?;
        return Ok((Arc::from(store), path));
    }
    // Clients encrypt with what their process has chosen. An error says that it has already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let retry = RetryConfig {
        max_retries: 3,
        retry_timeout: RETRY,
        ..RetryConfig::default()
    };
    let mut builder = AmazonS3Builder::new()
        .with_url(address.as_str())
        .with_retry(retry);
    for (name, value) in options {
        if let Ok(key) = name.parse() {
            builder = builder.with_config(key, value);
        }
    }
    Ok((Arc::new(builder.build()?), path))
}

/// The folder of the objects that begin with a block.
fn folder_of(key: &BlockKey) -> String {
    let BlockKey { hash, group } = key;
    let prefix = &BlockHash::to_string(hash)[..2];
    format!("extents/{prefix}/{hash}-{group}")
}

fn name_of(header: &Header) -> String {
    format!("{}/{}.kv", folder_of(&header.key()), header.capacity)
}
