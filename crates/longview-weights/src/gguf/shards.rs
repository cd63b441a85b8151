//! Models split over several files: `NAME-00001-of-00003.gguf` and so on.

use std::fmt;
use std::path::Path;

use super::{Part, Value};
use crate::error::{Result, WeightsError};
use crate::source::Source;

/// The file name of a part of a model: `NAME-00001-of-00003.gguf`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartName<'a> {
    /// What stands before the numbers.
    pub stem: &'a str,
    /// Which part it is, counted from 1.
    pub number: usize,
    /// How many there are.
    pub count: usize,
}

impl<'a> PartName<'a> {
    /// Of a file name without its folder; `None` for files that are no part by their name.
    pub fn parse(file_name: &'a str) -> Option<PartName<'a>> {
        let (rest, count) = file_name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let five_digits = |text: &str| {
            let plain = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| text.parse().ok()).flatten()
        };
        Some(PartName {
            stem,
            number: five_digits(number)?,
            count: five_digits(count)?,
        })
    }

    /// Whether it is the part that stands for all of them in listings.
    pub fn is_first(&self) -> bool {
        self.number == 1
    }
}

impl fmt::Display for PartName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}-{:05}-of-{:05}.gguf",
            self.stem, self.number, self.count
        )
    }
}

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
    let file_name = path.file_name().and_then(|name| name.to_str());
    let name = file_name
        .and_then(PartName::parse)
        .filter(|name| (name.number, name.count) == (own + 1, count));
    let Some(name) = name else {
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
        let name = PartName {
            number: part + 1,
            ..name
        };
        let file = path.with_file_name(name.to_string());
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

fn number(part: &Part, key: &str) -> Option<usize> {
    part.value(key)
        .as_ref()
        .and_then(Value::integer)
        .and_then(|v| usize::try_from(v).ok())
}

#[cfg(test)]
mod tests {
    use super::PartName;

    #[test]
    fn parts_are_told_by_their_names() {
        let name = "my-model-00002-of-00003.gguf";
        let part = PartName::parse(name).unwrap();
        assert_eq!(
            (part.stem, part.number, part.count),
            ("my-model", 2, 3),
            "{name}"
        );
        assert_eq!(part.to_string(), name);
        assert!(!part.is_first());
        assert!(PartName::parse("m-00001-of-00003.gguf").unwrap().is_first());
        for other in [
            "model-2-of-3.gguf",
            "part-of-life.gguf",
            "m-00001-of-00003",
            "m.gguf",
        ] {
            assert_eq!(PartName::parse(other), None, "{other}");
        }
    }
}
