//! Files to named tensors: GGUF and Hugging Face folders, memory-mapped, hostile files refused.
//!
//! [`WeightFile::open`] takes a path of either kind and gives [`Tensor`]s: a name, a [`Format`], a
//! row-major shape and the bytes, borrowed from the map. Nothing is copied, and nothing is read
//! before it is asked for except the headers, which are checked whole: every tensor a file offers
//! lies inside that file, fills whole blocks and overlaps no other.
//!
//! What the metadata *means* (how many heads, which rotary base) is the business of the model crates;
//! here it is typed values with errors that name the file and the key.
//!
//! [`Format`]: longview_kernels::Format

mod error;
pub mod gguf;
mod huggingface;
mod json;
mod safetensors;
mod source;
pub mod spelling;
mod table;
mod tensor;
mod weight_file;

pub use error::WeightsError;
pub use gguf::{GgufFile, GgufHeader, GgufWriter, PartName};
pub use huggingface::{HuggingFaceFolder, chat_template_in};
pub use tensor::Tensor;
pub use weight_file::{WeightFile, WeightPart};
