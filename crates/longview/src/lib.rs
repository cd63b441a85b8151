//! Longview as a library: open a model, read a document of any length, ask it questions.
//!
//! ```
//! use longview::{Control, Engine, EngineOptions, GenerateOptions, Specials};
//!
//! let engine = Engine::open(&EngineOptions::default())?; // the embedded reference model
//! let encode = |text| engine.tokenizer().encode(text, Specials::Parse);
//! let document = encode("<|bos|> The code of the harbor is 4711. The sea was grey.")?;
//! let question = encode("<|user|> What is the code of the harbor?<|assistant|>")?;
//!
//! let mut book = engine.new_context(document.len())?;
//! engine.prefill(&mut book, &document, &mut |_| Control::Continue)?;
//!
//! let mut fork = book.fork(); // costs no keys or values; the book can be asked again
//! let mut options = GenerateOptions::greedy(20);
//! let answer = engine.generate(&mut fork, &question, &mut options, &mut |_| Control::Continue)?;
//! assert_eq!(answer.text, " The code of the harbor is 4711.");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Everything computed is exact in the numerics class chosen (see [`Numerics`]); see the crates
//! behind this one for the parts: `longview-kv` owns keys and values, `longview-models` runs the
//! decoder, `longview-methods` names what can be chosen at every stage.

pub use longview_engine::{
    AttentionPicture, ContextMethods, Control, EndOfText, Engine, EngineError, EngineOptions,
    Event, FinishReason, GenerateOptions, Generated, Lookup, MemoryPlan, ModelDescription,
    ModelSource, PicturePart, PrefillProgress, ProcessMemory, Prune, Pruned, Realigned, Reuse,
    StoreOptions, StorePlace, SystemMemory, Tail, TemplateOrigin, Tenant, TextSide, finished_work,
    inspect, open_tokenizer, plan, sampling, schedule,
};
pub use longview_kernels::{Exec, Format, Isa, Numerics, Pool, isa, limits};
pub use longview_kv::{
    AttentionMap, Context, Explanation, KvType, Ledger, ReuseEnd, Segment, Store, StoreCounts,
    Tokens, Usage, Wanted, bundle, human_bytes, keep, pattern, read, records, tier,
};
pub use longview_methods as methods;
pub use longview_models as models;
pub use longview_text as text;
pub use longview_text::{ShowSpecials, Specials, Tokenizer};
pub use longview_weights as weights;
