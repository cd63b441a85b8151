//! The tensors of a model over one or several files, found by name.

use std::collections::HashMap;
use std::ops::Range;

use longview_kernels::Format;

use crate::error::{Result, WeightsError};
use crate::source::Source;
use crate::tensor::Tensor;
use crate::weight_file::WeightPart;

/// Files and the tensors in them, in the order of the files.
#[derive(Debug, Default)]
pub(crate) struct Table {
    sources: Vec<Source>,
    tensors: Vec<Placed>,
    by_name: HashMap<String, usize>,
}

/// A tensor's description, checked: `bytes` lies inside the source and holds exactly `shape`.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) format: Format,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Range<usize>,
}

#[derive(Debug)]
struct Placed {
    source: usize,
    entry: Entry,
}

impl Table {
    /// Adds a file and its tensors; refuses a name that is already there.
    pub(crate) fn add(&mut self, source: Source, entries: Vec<Entry>) -> Result<()> {
        for entry in entries {
            debug_assert!(source.bytes().get(entry.bytes.clone()).is_some());
            let number = self.tensors.len();
            if let Some(earlier) = self.by_name.insert(entry.name.clone(), number) {
                let file = match self.sources.get(self.tensors[earlier].source) {
                    Some(other) => other.name.clone(),
                    None => source.name.clone(),
                };
                let place = format!("in {}", source.name);
                return Err(WeightsError::DuplicateTensor {
                    file,
                    tensor: entry.name,
                    place,
                });
            }
            self.tensors.push(Placed {
                source: self.sources.len(),
                entry,
            });
        }
        self.sources.push(source);
        Ok(())
    }

    /// Keeps the tensors that `rename` gives a name, under that name, and returns the names of the
    /// others.
    pub(crate) fn select(
        &mut self,
        rename: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Vec<String>> {
        let mut left_out = Vec::new();
        self.by_name.clear();
        for mut placed in std::mem::take(&mut self.tensors) {
            let Some(name) = rename(&placed.entry.name) else {
                left_out.push(placed.entry.name);
                continue;
            };
            let number = self.tensors.len();
            if self.by_name.insert(name.clone(), number).is_some() {
                return Err(WeightsError::DuplicateTensor {
                    file: self.sources[placed.source].name.clone(),
                    tensor: name,
                    place: format!("as {:?}", placed.entry.name),
                });
            }
            placed.entry.name = name;
            self.tensors.push(placed);
        }
        Ok(left_out)
    }

    pub(crate) fn sources(&self) -> &[Source] {
        &self.sources
    }

    pub(crate) fn len(&self) -> usize {
        self.tensors.len()
    }

    pub(crate) fn get(&self, name: &str) -> Option<Tensor<'_>> {
        self.by_name
            .get(name)
            .map(|&number| self.view(&self.tensors[number]))
    }

    /// The tensor, or an error that names `model` and a tensor called almost the same.
    pub(crate) fn require(&self, model: &str, name: &str) -> Result<Tensor<'_>> {
        self.get(name).ok_or_else(|| {
            let hint = match self.resembling(name) {
                Some(other) => format!("; there is {other:?}"),
                None => format!(" among its {}", self.len()),
            };
            WeightsError::MissingTensor {
                file: model.to_owned(),
                tensor: name.to_owned(),
                hint,
            }
        })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Tensor<'_>> {
        self.tensors.iter().map(|placed| self.view(placed))
    }

    /// Refuses files that were written to since they were mapped.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        self.sources.iter().try_for_each(Source::check_unchanged)
    }

    pub(crate) fn parts(&self) -> Vec<WeightPart<'_>> {
        self.sources.iter().map(Source::part).collect()
    }

    /// Sizes of all files together.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.sources
            .iter()
            .map(|source| source.bytes().len() as u64)
            .sum()
    }

    /// Whether pages of the tensor can be given back.
    pub(crate) fn can_release(&self, name: &str) -> bool {
        self.by_name
            .get(name)
            .is_some_and(|&number| self.sources[self.tensors[number].source].can_release())
    }

    /// Gives the pages of all files back to the operating system.
    pub(crate) fn release_all(&self) {
        for source in &self.sources {
            source.release(0..source.bytes().len());
        }
    }

    /// Bytes of the files that take memory once they were read, and go on taking it.
    pub(crate) fn staying_bytes(&self) -> usize {
        self.sources.iter().map(Source::staying_bytes).sum()
    }

    /// Gives the pages of `bytes` of the tensor back to the operating system.
    pub(crate) fn release(&self, name: &str, bytes: Range<usize>) {
        if let Some((source, bytes)) = self.in_file(name, bytes) {
            source.release(bytes);
        }
    }

    /// Lets the disk begin with `bytes` of the tensor.
    pub(crate) fn read_ahead(&self, name: &str, bytes: Range<usize>) {
        if let Some((source, bytes)) = self.in_file(name, bytes) {
            source.read_ahead(bytes);
        }
    }

    /// Where `bytes` of the tensor lie, as far as it has them.
    fn in_file(&self, name: &str, bytes: Range<usize>) -> Option<(&Source, Range<usize>)> {
        let Placed { source, entry } = &self.tensors[*self.by_name.get(name)?];
        let of_file = |at: usize| entry.bytes.start + at.min(entry.bytes.len());
        Some((
            &self.sources[*source],
            of_file(bytes.start)..of_file(bytes.end),
        ))
    }

    fn view<'a>(&'a self, placed: &'a Placed) -> Tensor<'a> {
        let entry = &placed.entry;
        Tensor {
            name: &entry.name,
            format: entry.format,
            shape: &entry.shape,
            data: &self.sources[placed.source].bytes()[entry.bytes.clone()],
        }
    }

    /// The tensor with the longest ending in common, if that is at least one dotted part.
    fn resembling(&self, name: &str) -> Option<&str> {
        let parts = |other: &str| {
            other
                .rsplit('.')
                .zip(name.rsplit('.'))
                .take_while(|(a, b)| a == b)
                .count()
        };
        let best = self
            .tensors
            .iter()
            .max_by_key(|placed| parts(&placed.entry.name))?;
        (parts(&best.entry.name) > 1).then_some(best.entry.name.as_str())
    }
}
