//! A model's tensors as a table for people.

use std::collections::BTreeMap;
use std::fmt;

use longview_kernels::Format;

use crate::weight_file::WeightFile;

/// Prints every tensor of a model, one a line, and a summary by format.
#[derive(Clone, Copy, Debug)]
pub struct Listing<'a>(pub &'a WeightFile);

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut totals: BTreeMap<Format, (usize, usize)> = BTreeMap::new();
        let width = self.0.names().map(str::len).max().unwrap_or(0);
        for tensor in self.0.tensors() {
            let shape: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
            let (format, bytes) = (tensor.format.name(), tensor.data.len());
            writeln!(
                f,
                "{:width$}  {format:7} {:>18} {bytes:>14}",
                tensor.name,
                shape.join(" × ")
            )?;
            let total = totals.entry(tensor.format).or_default();
            *total = (total.0 + 1, total.1 + bytes);
        }
        for (format, (count, bytes)) in totals {
            writeln!(f, "{count} tensors of {format}, {bytes} bytes")?;
        }
        writeln!(f, "{} bytes in files", self.0.file_bytes())
    }
}
