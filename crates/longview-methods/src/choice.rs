//! What was chosen for every stage.

use std::sync::Arc;

use longview_engine::{ContextMethods, Prune, Reuse};
use longview_kv::keep::Keep;
use longview_kv::pattern::Prefill;
use longview_kv::read::Read;
use longview_kv::{KvForms, KvType};

use crate::decode::Decode;
use crate::error::MethodError;
use crate::method::{Build, Method, Stage};
use crate::registry;
use crate::store::{self, Chosen};

/// One method a stage, and for decode a chain; the exact path until something else is set.
#[derive(Clone, Debug)]
pub struct Methods {
    /// The canonical text of the stages before decode; nothing for the default.
    texts: [Option<String>; 6],
    prefill: Option<Arc<Prefill>>,
    keep: Option<Arc<Keep>>,
    prune: Option<Prune>,
    store: Option<Chosen>,
    read: Option<Arc<Read>>,
    reuse: Reuse,
    decode: Decode,
}

impl Methods {
    /// Dense and exact, with the most likely token at every step.
    pub fn new() -> Methods {
        Methods {
            texts: Default::default(),
            prefill: None,
            keep: None,
            prune: None,
            store: None,
            read: None,
            reuse: Reuse::Prefix,
            decode: Decode::greedy(),
        }
    }

    /// Sets the method of a stage from text.
    ///
    /// # Errors
    /// When the text names no method of the stage or gives it what it does not take.
    pub fn set(&mut self, stage: Stage, text: &str) -> Result<(), MethodError> {
        let before = self.clone();
        self.set_in_conversation(stage, text)?;
        match self.prune {
            Some(_) if stage == Stage::Keep => {
                let text = self.text(stage, KvType::F16);
                *self = before;
                Err(MethodError::Conversation { stage, text })
            }
            _ => Ok(()),
        }
    }

    /// The same for a conversation, which may also have methods that act between its turns.
    ///
    /// # Errors
    /// As [`Methods::set`].
    pub fn set_in_conversation(&mut self, stage: Stage, text: &str) -> Result<(), MethodError> {
        if stage == Stage::Decode {
            self.decode = text.parse()?;
            return Ok(());
        }
        if stage == Stage::Store {
            let chosen = store::choose(text)?;
            self.texts[stage as usize] = Some(chosen.text.clone());
            self.store = Some(chosen);
            return Ok(());
        }
        let resolved = registry::resolve(stage, text)?;
        let [(method, arguments)] = resolved.as_slice() else {
            return Err(MethodError::OneMethod {
                stage,
                count: resolved.len(),
                text: text.to_owned(),
            });
        };
        match method.build {
            Build::Reuse(build) => self.reuse = build(arguments),
            Build::Keep(build) => {
                (self.keep, self.prune) = (Some(Arc::new(build(arguments)?)), None);
            }
            Build::Prune(build) => (self.keep, self.prune) = (None, Some(build(arguments))),
            Build::Nothing if stage == Stage::Keep => (self.keep, self.prune) = (None, None),
            Build::Prefill(build) => {
                self.prefill = Some(Arc::new(Prefill {
                    text: arguments.to_string(),
                    pattern: build(arguments),
                }));
            }
            Build::Nothing if stage == Stage::Prefill => self.prefill = None,
            Build::Read(build) => {
                self.read = Some(Arc::new(Read {
                    text: arguments.to_string(),
                    select: build(arguments)?,
                }));
            }
            Build::Nothing if stage == Stage::Read => self.read = None,
            Build::Nothing
            | Build::Store(_)
            | Build::Allocate(_)
            | Build::Merge(_)
            | Build::Sampler(_)
            | Build::Finish(_) => {}
        }
        self.texts[stage as usize] = Some(arguments.to_string());
        Ok(())
    }

    /// Sets the decode stage.
    pub fn set_decode(&mut self, decode: Decode) {
        self.decode = decode;
    }

    /// The decode stage.
    pub fn decode(&self) -> &Decode {
        &self.decode
    }

    /// The forms of keys and values, if any were asked for.
    pub fn kv_forms(&self) -> Option<KvForms> {
        self.store.as_ref().map(|chosen| chosen.forms)
    }

    /// What the queries of a prompt attend to, unless it is everything.
    pub fn prefill(&self) -> Option<&Arc<Prefill>> {
        self.prefill.as_ref()
    }

    /// What decides which pairs stay, unless all do.
    pub fn keep(&self) -> Option<&Arc<Keep>> {
        self.keep.as_ref()
    }

    /// What the tokens of an answer read, unless it is everything.
    pub fn read(&self) -> Option<&Arc<Read>> {
        self.read.as_ref()
    }

    /// The methods that act on a context, whose form is taken to be the engine's.
    pub fn acting(&self) -> ContextMethods {
        ContextMethods {
            prefill: self.prefill.clone(),
            keep: self.keep.clone(),
            store: None,
            read: self.read.clone(),
        }
    }

    /// What leaves a conversation between its turns, if anything does.
    pub fn prune(&self) -> Option<Prune> {
        self.prune
    }

    /// What requests may take over from what was read before.
    pub fn reuse(&self) -> Reuse {
        self.reuse
    }

    /// The canonical text of a stage. For the store stage without a choice that is the type the
    /// numerics class brings, which the caller knows: `kv_type`.
    pub fn text(&self, stage: Stage, kv_type: KvType) -> String {
        if stage == Stage::Decode {
            return self.decode.to_string();
        }
        match (&self.texts[stage as usize], stage) {
            (Some(text), _) => text.clone(),
            (None, Stage::Store) => store::plain_name(kv_type).to_owned(),
            (None, _) => registry::of(stage)
                .next()
                .expect("every stage has a default method, as a test of the registry checks")
                .name
                .to_owned(),
        }
    }

    /// What a user should be told of the methods that change the model's logits.
    pub fn notices(&self) -> Vec<String> {
        let stages = Stage::ALL.iter().zip(&self.texts);
        let alone = stages.filter_map(|(&stage, text)| {
            let name = text.as_deref()?.split('(').next()?;
            registry::find(stage, name)
                .ok()
                .filter(|_| stage != Stage::Store)
        });
        let mut methods: Vec<&Method> = alone.collect();
        methods.extend(self.store.iter().flat_map(|chosen| &chosen.methods));
        methods.dedup_by_key(|method| method.name);
        let approximate = methods.into_iter().filter(|method| !method.exact);
        let line = |method: &Method| {
            let Method {
                stage, name, doc, ..
            } = method;
            format!("{stage} {name} is approximate: {doc}")
        };
        approximate.map(line).collect()
    }

    /// The canonical text of every stage, in order.
    pub fn texts(&self, kv_type: KvType) -> Vec<(Stage, String)> {
        Stage::ALL
            .map(|stage| (stage, self.text(stage, kv_type)))
            .into()
    }
}

impl Default for Methods {
    fn default() -> Methods {
        Methods::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_exact_and_named() {
        let methods = Methods::new();
        let texts: Vec<String> = methods
            .texts(KvType::F16)
            .into_iter()
            .map(|(_, text)| text)
            .collect();
        assert_eq!(
            texts,
            ["whole", "dense", "all", "f16", "dense", "prefix", "greedy"]
        );
        assert_eq!(methods.text(Stage::Store, KvType::F32), "f32");
        assert!(methods.kv_forms().is_none());
    }

    #[test]
    fn what_is_approximate_says_so() {
        let mut methods = Methods::new();
        methods.set(Stage::Store, "f32").unwrap();
        assert!(methods.notices().is_empty());
        methods.set(Stage::Store, "q8").unwrap();
        let notices = methods.notices();
        assert_eq!(notices.len(), 1);
        assert!(notices[0].starts_with("store q8 is approximate: keys and values in 8 bits"));
    }

    #[test]
    fn stages_are_set_by_text() {
        let mut methods = Methods::new();
        methods.set(Stage::Store, " f32() ").unwrap();
        assert_eq!(methods.kv_forms(), Some(KvType::F32.into()));
        assert_eq!(methods.text(Stage::Store, KvType::F16), "f32");
        let is_plain = |kv_type: &KvType| !matches!(kv_type, KvType::Dotted(_));
        for kv_type in KvType::ALL.into_iter().filter(is_plain) {
            let name = store::plain_name(kv_type);
            assert_eq!(name, kv_type.to_string());
            methods.set(Stage::Store, name).unwrap();
            assert_eq!(methods.kv_forms(), Some(kv_type.into()));
        }
        methods
            .set(Stage::Decode, "top-k(4), draw(seed=1)")
            .unwrap();
        assert_eq!(
            methods.text(Stage::Decode, KvType::F16),
            "top-k(k=4), draw(seed=1)"
        );
        let message = methods
            .set(Stage::Store, "f16, f32")
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("--store takes one method, not 2"),
            "{message}"
        );
        assert!(
            methods
                .set(Stage::Store, "q3")
                .unwrap_err()
                .to_string()
                .contains("known: f16, f32, bf16, q8, q4, kivi, mustafar")
        );
    }
}
