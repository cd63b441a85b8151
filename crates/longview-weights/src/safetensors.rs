//! The header of a safetensors file, checked against the file.

use ::safetensors::tensor::Metadata;

use crate::error::{Result, WeightsError};
use crate::source::Source;

/// The most the header of a safetensors file may have; the format's own bound.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The header of a safetensors file and where the data begins. All tensors lie one after another
/// from there to the end of the file.
pub(crate) fn read_header(source: &Source) -> Result<(usize, Metadata)> {
    let (file, bytes) = (&source.name, source.bytes());
    let truncated = |what: &str, offset: usize, needed: u64| WeightsError::Truncated {
        file: file.clone(),
        what: what.to_owned(),
        offset,
        needed,
        left: bytes.len().saturating_sub(offset) as u64,
    };
    let damaged = |offset: usize, what: String| WeightsError::Header {
        file: file.clone(),
        offset,
        what,
    };
    let Some(length) = bytes.first_chunk::<8>() else {
        return Err(truncated("the length of the header", 0, 8));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        let what = format!(
            "a header of {length} bytes, at most {MAX_HEADER_BYTES} are read; is this a \
             safetensors file?"
        );
        return Err(damaged(0, what));
    }
    let start = 8 + length as usize;
    let Some(json) = bytes.get(8..start) else {
        return Err(truncated("the header", 8, length));
    };
    // Checks that tensors follow each other without gap or overlap and that shapes fit sizes.
    let header: Metadata =
        serde_json::from_slice(json).map_err(|error| damaged(8, error.to_string()))?;
    let data = header.data_len();
    match data.cmp(&(bytes.len() - start)) {
        std::cmp::Ordering::Equal => Ok((start, header)),
        std::cmp::Ordering::Greater => Err(truncated("the tensor data", start, data as u64)),
        std::cmp::Ordering::Less => {
            let extra = bytes.len() - start - data;
            Err(damaged(
                start + data,
                format!("{extra} bytes after the last tensor"),
            ))
        }
    }
}
