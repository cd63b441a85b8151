//! Models split over several files: `NAME-00001-of-00003.gguf` and so on.

use std::path::{Path, PathBuf};

use super::{Part, Value};
use crate::error::{Result, WeightsError};
use crate::source::Source;

/// All parts of the model that `opened` (at `path`) belongs to, in order; just `opened` if it is
/// whole.
pub(super) fn open_all(path: &Path, opened: Part) -> Result<Vec<Part>> {
    let count = number(&opened, "split.count").unwrap_or(1);
    if count <= 1 {
        return Ok(vec![opened]);
    }
    let own = number(&opened, "split.no").unwrap_or(0);
    let refuse = |part: usize, file: String, what: String| {
        Err(WeightsError::Shard {
            file,
            part: part + 1,
            count,
            what,
        })
    };
    if own >= count {
        return refuse(own, opened.source.name, "there is no such part".into());
    }
    let Some(stem) = stem(path, own, count) else {
        let what = format!("its name must end in -{:05}-of-{count:05}.gguf", own + 1);
        return refuse(own, opened.source.name, what);
    };
    let expected = number(&opened, "split.tensors.count");

    let mut opened = Some(opened);
    let mut parts = Vec::new();
    for part in 0..count {
        if part == own {
            parts.extend(opened.take());
            continue;
        }
        let file = PathBuf::from(format!("{stem}{}", suffix(part, count)));
        if !file.exists() {
            let what = "there is no such file; download every part of the model".to_owned();
            return refuse(part, file.display().to_string(), what);
        }
        let read = Part::read(Source::map(&file)?)?;
        let claims = (number(&read, "split.no"), number(&read, "split.count"));
        if claims != (Some(part), Some(count)) {
            let what = "it says it is another part, or a part of another model".to_owned();
            return refuse(part, read.source.name, what);
        }
        parts.push(read);
    }
    let found: usize = parts.iter().map(|part| part.header.tensors.len()).sum();
    if let Some(expected) = expected
        && expected != found
    {
        let what = format!("the parts hold {found} tensors where {expected} are announced");
        return refuse(0, path.display().to_string(), what);
    }
    Ok(parts)
}

/// Whether a file name is that of a later part, which its first part stands for in listings.
pub(crate) fn is_later_part(file_name: &str) -> bool {
    let Some(stem) = file_name.strip_suffix(".gguf") else {
        return false;
    };
    let Some((rest, count)) = stem.rsplit_once("-of-") else {
        return false;
    };
    let Some((_, number)) = rest.rsplit_once('-') else {
        return false;
    };
    let five_digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    five_digits(count) && five_digits(number) && number != "00001"
}

/// The path without `-0000X-of-0000N.gguf`, if it ends so.
fn stem(path: &Path, own: usize, count: usize) -> Option<&str> {
    path.to_str()?.strip_suffix(&suffix(own, count))
}

fn suffix(part: usize, count: usize) -> String {
    format!("-{:05}-of-{count:05}.gguf", part + 1)
}

fn number(part: &Part, key: &str) -> Option<usize> {
    part.value(key)
        .as_ref()
        .and_then(Value::integer)
        .and_then(|v| usize::try_from(v).ok())
}

#[cfg(test)]
mod tests {
    use super::is_later_part;

    #[test]
    fn later_parts_are_told_by_their_names() {
        assert!(is_later_part("model-00002-of-00003.gguf"));
        assert!(!is_later_part("model-00001-of-00003.gguf"));
        assert!(!is_later_part("model-2-of-3.gguf"));
        assert!(!is_later_part("part-of-life.gguf"));
    }
}
