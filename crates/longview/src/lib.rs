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
//! Everything computed is exact in the numerics class chosen (see [`Numerics`]), unless a method is
//! asked for. Methods are written as text, as on the command line, and a store keeps what was read
//! from one process to the next:
//!
//! ```no_run
//! use longview::methods::{Methods, Stage};
//! use longview::{Engine, EngineOptions, ModelSource, Specials, StoreOptions, StorePlace};
//!
//! let mut methods = Methods::new();
//! methods.set(Stage::Keep, "snapkv(budget=10%)")?;
//! methods.set(Stage::Store, "q8")?;
//! let engine = Engine::open(&EngineOptions {
//!     model: ModelSource::Path("llama.gguf".into()),
//!     memory_bytes: Some(4 << 30),
//!     kv_forms: methods.kv_forms(),
//!     store: Some(StoreOptions::new(StorePlace::Folder("contexts".into()), 10 << 30)),
//!     ..EngineOptions::default()
//! })?;
//! let acting = methods.acting();
//! let prompt = engine.tokenizer().encode(&std::fs::read_to_string("book.txt")?, Specials::Parse)?;
//! let mut context = engine.new_context_with(&acting, prompt.len(), prompt.len() + 500)?;
//! // What was read before is taken over; methods may have to see some tokens computed.
//! let held = context.attach(&prompt[..acting.reusable_tokens(prompt.len())])?;
//! println!("{held} tokens were read before");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Where things are
//!
//! | module | what is in it |
//! |---|---|
//! | [`schedule`] | many requests on one engine, as the server runs them |
//! | [`methods`] | every method of every stage, and their grammar |
//! | [`keep`], [`read`], [`pattern`], [`sampling`] | the traits that methods of a stage implement |
//! | [`tier`], [`records`], [`bundle`] | places that hold blocks, the list of contexts kept, contexts in one file |
//! | [`models`], [`weights`], [`text`] | architectures, files of weights, tokenizers and chat templates |

pub use longview_engine::{
    AttentionPicture, ContextMethods, ContextWork, Continuation, Control, EndOfText, Engine,
    EngineError, EngineOptions, Event, FinishReason, GenerateOptions, Generated, Lookup,
    MemoryPlan, ModelDescription, ModelSource, PicturePart, PrefillProgress, ProcessMemory, Prune,
    Pruned, Realigned, Reuse, StoreOptions, StorePlace, SystemMemory, Tail, TemplateOrigin, Tenant,
    TextSide, dates, finished_work, inspect, open_tokenizer, plan, sampling, schedule,
};
pub use longview_kernels::{Exec, Format, Isa, Numerics, Pool, isa, limits};
pub use longview_kv::{
    AttentionMap, BLOCK_TOKENS, Batch, BlockHash, Context, Explanation, KvError, KvForm, KvForms,
    KvType, Ledger, Purpose, ReuseEnd, Segment, Store, StoreCounts, Tokens, Usage, Wanted, bundle,
    human_bytes, keep, pattern, read, records, tier,
};
pub use longview_methods as methods;
pub use longview_models as models;
pub use longview_text as text;
pub use longview_text::{ShowSpecials, Specials, Tokenizer};
pub use longview_weights as weights;
