//! Sealed blocks in an object store: a folder, or a bucket that speaks the S3 protocol, which
//! several machines may share.
//!
//! Objects are runs of blocks in the format of extents and never change. A run is put in the
//! background when its span is complete, at once when much waits, or at [`Tier::sync`]; until then its
//! blocks are held in memory, and a process that dies loses them. Nothing is ever evicted here: that is
//! for the rules of the bucket.

mod client;
mod objects;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::extent::{SPAN_BLOCKS, block_bytes, checksum, unfit};
use super::{BlockInfo, BlockKey, Hold, Notices, Tier, TierError, TierUsage};
use crate::block::Block;
use crate::hash::BlockHash;
use client::Client;
use objects::{Object, Objects, Waiting, run_bytes};

/// Bytes that may wait in memory.
const MOST_WAITING: u64 = 64 << 20;
/// A block that is not found makes the whole store be listed again, this often at most.
const RELIST: Duration = Duration::from_secs(30);
/// A store that did not take what was put is left alone for so long.
const PAUSE: Duration = Duration::from_secs(30);
/// Bytes a second expected of a store that was not read from yet: an ordinary connection.
const UNMEASURED: f64 = 30e6;

/// A tier in an object store.
pub struct RemoteTier {
    remote: Arc<Remote>,
    /// Wakes the thread that puts complete spans, and the thread; it ends with the sender.
    uploader: Option<(Sender<()>, JoinHandle<()>)>,
}

/// What the tier shares with its thread.
struct Remote {
    client: Client,
    notices: Notices,
    state: Mutex<State>,
    /// Held while runs are put, so that none is put twice.
    putting: Mutex<()>,
}

struct State {
    objects: Objects,
    waiting: Waiting,
    listed: Instant,
    seconds_per_byte: Option<f64>,
    /// When something could not be put.
    failed: Option<Instant>,
}

/// A run of blocks in one object, to be read with one request.
struct Run {
    object: Arc<Object>,
    offset: u64,
    layer_bytes: usize,
    sums: Vec<u128>,
}

impl RemoteTier {
    /// Opens the store at `url`, such as `file:///folder` or `s3://bucket/folder`, and lists what
    /// is there. `options` are those of the `object_store` crate, such as `aws_endpoint`; what the
    /// environment says in variables that begin with `AWS_` counts as well. A bucket is spoken to with the
    /// provider of cryptography that the process has installed in `rustls`; where it has none, `ring` is installed.
    ///
    /// # Errors
    /// When the address is wrong or the store does not answer.
    pub fn open<'a>(
        url: &str,
        options: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<RemoteTier, TierError> {
        let remote = Remote {
            client: Client::open(url, options)?,
            notices: Notices::default(),
            state: Mutex::new(State {
                objects: Objects::default(),
                waiting: Waiting::default(),
                listed: Instant::now(),
                seconds_per_byte: None,
                failed: None,
            }),
            putting: Mutex::default(),
        };
        remote.refresh()?;
        let remote = Arc::new(remote);
        let (wake, woken) = channel();
        let shared = Arc::clone(&remote);
        let thread = std::thread::Builder::new().name("longview-upload".to_owned());
        let thread = thread.spawn(move || shared.upload(&woken));
        let thread = thread.map_err(|source| TierError::Io {
            place: url.to_owned(),
            action: "start the thread that puts blocks to",
            source,
        })?;
        Ok(RemoteTier {
            remote,
            uploader: Some((wake, thread)),
        })
    }

    /// Finds what others have put since.
    ///
    /// # Errors
    /// When the store does not answer.
    pub fn refresh(&self) -> Result<(), TierError> {
        self.remote.refresh()
    }
}

impl Remote {
    fn refresh(&self) -> Result<(), TierError> {
        self.state().listed = Instant::now();
        self.take_in(self.client.list(None)?);
        Ok(())
    }

    /// Puts complete spans whenever there may be some.
    fn upload(&self, woken: &Receiver<()>) {
        while woken.recv().is_ok() {
            // Many may have been told of meanwhile.
            while woken.try_recv().is_ok() {}
            let complete = |last: &BlockInfo| last.index % SPAN_BLOCKS == SPAN_BLOCKS - 1;
            if !self.is_paused()
                && let Err(error) = self.flush(complete)
            {
                self.notices.push(error.to_string());
            }
        }
    }

    /// Whether the store is left alone because it did not take something.
    fn is_paused(&self) -> bool {
        let failed = self.state().failed;
        failed.is_some_and(|then| then.elapsed() < PAUSE)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What is known can only lag behind the store.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the headers of objects that are not known.
    fn take_in(&self, names: Vec<String>) {
        for name in names {
            if self.state().objects.knows(&name) {
                continue;
            }
            match self.client.header(&name) {
                Ok(object) => self.state().objects.add(object),
                Err(error) => self.notices.push(error.to_string()),
            }
        }
    }

    /// Looks for a block that others may have put.
    fn locate(&self, key: &BlockKey) {
        if self.state().holds(key) {
            return;
        }
        // An object that cannot be listed is not there.
        self.take_in(self.client.list(Some(key)).unwrap_or_default());
        let stale = {
            let state = self.state();
            !state.holds(key) && state.listed.elapsed() > RELIST
        };
        if stale && let Err(error) = self.refresh() {
            self.notices.push(error.to_string());
        }
    }

    /// Puts the runs that wait: those that `ready` says.
    fn flush(&self, ready: impl Fn(&BlockInfo) -> bool) -> Result<(), TierError> {
        let _putting = self.putting.lock().unwrap_or_else(PoisonError::into_inner);
        let runs = self.state().waiting.runs(ready);
        let mut outcome = Ok(());
        for run in runs {
            let (header, bytes) = run_bytes(&run);
            match self.client.put(header, bytes) {
                Ok(object) => {
                    let mut state = self.state();
                    state.objects.add(object);
                    for (info, _) in &run {
                        state.waiting.remove(&info.key);
                    }
                }
                // What could not be put waits on.
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        self.state().failed = outcome.is_err().then(Instant::now);
        outcome
    }

    /// The longest run that the first of `keys` begins; `None` when it waits in memory.
    fn run(&self, keys: &[BlockKey], layer: usize) -> Result<Option<Run>, TierError> {
        self.locate(&keys[0]);
        let state = self.state();
        if state.waiting.get(&keys[0]).is_some() {
            return Ok(None);
        }
        let missing = || TierError::Missing(keys[0]);
        let (object, first) = state.objects.place(&keys[0]).ok_or_else(missing)?;
        if layer >= object.header.shape.layers {
            return Err(wrong_layer(&keys[0]));
        }
        let mut sums = Vec::new();
        for (key, at) in keys.iter().zip(first..) {
            // A block that is damaged here may be whole in another object.
            let here = state.objects.place(key);
            let here = here.filter(|(held, slot)| Arc::ptr_eq(held, &object) && *slot == at);
            match here.and_then(|_| object.slots[at as usize].as_ref()) {
                Some(slot) => sums.push(slot.sums[layer]),
                None => break,
            }
        }
        Ok(Some(Run {
            offset: object.header.slice_offset(layer, first),
            layer_bytes: object.header.shape.layer_bytes,
            object,
            sums,
        }))
    }

    fn read_run(
        &self,
        keys: &[BlockKey],
        layer: usize,
        run: &Run,
        out: &mut [u8],
    ) -> Result<(), TierError> {
        let name = &run.object.name;
        let started = Instant::now();
        match self.client.read(name, run.offset, out) {
            Ok(()) => {}
            Err(TierError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                self.state().objects.forget(name);
                return Err(TierError::Missing(keys[0]));
            }
            Err(error) => return Err(error),
        }
        self.state().note(out.len(), started.elapsed());
        let slices = out.chunks_exact(run.layer_bytes).zip(&run.sums);
        let right = slices.map(|(slice, sum)| checksum(slice) == *sum);
        let Some((_, key)) = right.zip(keys).find(|(right, _)| !right) else {
            return Ok(());
        };
        self.state().objects.drop_place(name, key);
        let error = TierError::Damaged {
            place: self.client.place(name),
            key: *key,
            what: format!("checksum of layer {layer}"),
        };
        self.notices.push(error.to_string());
        Err(error)
    }

    /// Reads a layer of a block that waits.
    fn read_waiting(
        &self,
        key: &BlockKey,
        layer: usize,
        out: &mut [u8],
    ) -> Result<Option<usize>, TierError> {
        let waiting = self.state().waiting.get(key).cloned();
        let Some((info, block)) = waiting else {
            return Ok(None);
        };
        let bytes = info.shape.layer_bytes;
        if layer >= info.shape.layers {
            return Err(wrong_layer(key));
        }
        let into = out.get_mut(..bytes).ok_or_else(|| short_buffer(key))?;
        into.copy_from_slice(&block.bytes()[layer * bytes..(layer + 1) * bytes]);
        Ok(Some(bytes))
    }
}

impl State {
    fn holds(&self, key: &BlockKey) -> bool {
        self.waiting.get(key).is_some() || self.objects.place(key).is_some()
    }

    fn info(&self, key: &BlockKey) -> Option<BlockInfo> {
        match self.waiting.get(key) {
            Some((info, _)) => Some(info.clone()),
            None => self.objects.info(key),
        }
    }

    fn note(&mut self, bytes: usize, time: Duration) {
        let now = time.as_secs_f64() / bytes.max(1) as f64;
        let before = self.seconds_per_byte.unwrap_or(now);
        self.seconds_per_byte = Some(before + 0.1 * (now - before));
    }

    fn infos(&self) -> Vec<BlockInfo> {
        let waiting = self.waiting.infos().cloned();
        let objects = self
            .objects
            .keys()
            .filter(|key| self.waiting.get(key).is_none());
        let objects = objects.filter_map(|key| self.objects.info(key));
        waiting.chain(objects).collect()
    }
}

impl Tier for RemoteTier {
    fn name(&self) -> &str {
        "remote"
    }

    fn put(&self, info: &BlockInfo, block: &Arc<Block>) -> Result<(), TierError> {
        if let Some(what) = unfit(info, block.bytes().len()) {
            return Err(TierError::Unfit {
                key: info.key,
                what,
            });
        }
        let full = {
            let mut state = self.remote.state();
            if state.holds(&info.key) {
                return Ok(());
            }
            state.waiting.add(info, block);
            state.waiting.bytes() > MOST_WAITING
        };
        if !full {
            if let Some((wake, _)) = &self.uploader {
                // It ends with the tier only.
                let _ = wake.send(());
            }
            return Ok(());
        }
        let outcome = match self.remote.is_paused() {
            false => self.remote.flush(|_| true),
            true => Err(TierError::Full {
                place: self.remote.client.place(""),
                wanted: block_bytes(info.shape),
                what: "much waits to be put, and the store does not take it".to_owned(),
            }),
        };
        if outcome.is_err() {
            self.remote.state().waiting.remove(&info.key);
        }
        outcome
    }

    fn find(&self, key: &BlockKey) -> Option<BlockInfo> {
        self.remote.locate(key);
        self.remote.state().info(key)
    }

    fn knows(&self, key: &BlockKey) -> bool {
        self.remote.state().holds(key)
    }

    fn after(&self, parent: &BlockHash) -> Vec<BlockInfo> {
        let mut infos = self.remote.state().infos();
        infos.retain(|info| info.parent == *parent && info.key.group == 0);
        infos
    }

    fn resident(&self, key: &BlockKey) -> Option<Arc<Block>> {
        let state = self.remote.state();
        let (_, block) = state.waiting.get(key)?;
        Some(Arc::clone(block))
    }

    fn read(&self, keys: &[BlockKey], layer: usize, out: &mut [u8]) -> Result<(), TierError> {
        let (mut keys, mut out) = (keys, out);
        while let Some(first) = keys.first() {
            let (blocks, bytes) = match self.remote.run(keys, layer)? {
                Some(run) => {
                    let bytes = run.sums.len() * run.layer_bytes;
                    let into = out.get_mut(..bytes).ok_or_else(|| short_buffer(first))?;
                    self.remote.read_run(keys, layer, &run, into)?;
                    (run.sums.len(), bytes)
                }
                None => match self.remote.read_waiting(first, layer, out)? {
                    Some(bytes) => (1, bytes),
                    // Put just now: it is in an object.
                    None => continue,
                },
            };
            keys = &keys[blocks..];
            out = &mut out[bytes..];
        }
        Ok(())
    }

    fn touch(&self, _keys: &[BlockKey]) {}

    fn hold(&self, keys: &[BlockKey]) -> Result<Hold, TierError> {
        for key in keys {
            self.find(key).ok_or(TierError::Missing(*key))?;
        }
        Ok(Hold::new(()))
    }

    fn remove(&self, key: &BlockKey) -> Result<(), TierError> {
        self.remote.locate(key);
        let _putting = self
            .remote
            .putting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.remote.state().waiting.remove(key);
        loop {
            let Some((object, _)) = self.remote.state().objects.place(key) else {
                return Ok(());
            };
            // Objects do not change: what else is in it is put anew first.
            let mut kept = Waiting::default();
            for info in object.infos().filter(|info| info.key != *key) {
                match self.remote.client.block(&object, &info) {
                    Ok(block) => kept.add(&info, &Arc::new(block)),
                    Err(error) => self.remote.notices.push(error.to_string()),
                }
            }
            for run in kept.runs(|_| true) {
                let (header, bytes) = run_bytes(&run);
                let object = self.remote.client.put(header, bytes)?;
                self.remote.state().objects.add(object);
            }
            self.remote.client.remove(&object.name)?;
            self.remote.state().objects.forget(&object.name);
        }
    }

    fn sync(&self) -> Result<(), TierError> {
        self.remote.flush(|_| true)
    }

    fn usage(&self) -> TierUsage {
        let state = self.remote.state();
        TierUsage {
            blocks: state.infos().len() as u64,
            bytes: state.objects.bytes() + state.waiting.bytes(),
        }
    }

    fn for_each(&self, visit: &mut dyn FnMut(&BlockInfo)) {
        let infos = self.remote.state().infos();
        infos.iter().for_each(visit);
    }

    fn read_rate(&self) -> Option<f64> {
        let measured = self.remote.state().seconds_per_byte.map(f64::recip);
        Some(measured.unwrap_or(UNMEASURED))
    }

    fn relieve(&self) {
        let waits = self.remote.state().waiting.bytes() > 0;
        if waits && (self.remote.is_paused() || self.remote.flush(|_| true).is_err()) {
            self.remote.state().waiting = Waiting::default();
            self.remote.notices.push(format!(
                "{} does not take what is put, and memory is needed: it is not kept there",
                self.remote.client.place("")
            ));
        }
    }

    fn take_notices(&self) -> Vec<String> {
        self.remote.notices.take()
    }
}

impl Drop for RemoteTier {
    fn drop(&mut self) {
        if let Some((wake, thread)) = self.uploader.take() {
            drop(wake);
            // It does not panic; were it to, there is nothing left to do here.
            let _ = thread.join();
        }
        if !self.remote.is_paused() {
            // Nobody is left to be told; what is lost is computed again.
            let _ = self.remote.flush(|_| true);
        }
    }
}

fn wrong_layer(key: &BlockKey) -> TierError {
    TierError::Unfit {
        key: *key,
        what: "it has fewer layers than are read",
    }
}

fn short_buffer(key: &BlockKey) -> TierError {
    TierError::Unfit {
        key: *key,
        what: "the buffer is shorter than the blocks that are read",
    }
}

#[cfg(test)]
mod tests;
