//! A part of an evaluation's samples, so that several processes or machines can measure one.

use std::fmt;
use std::str::FromStr;

/// Every so many-th sample of each task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which of the parts, from 0.
    index: usize,
    /// Parts in all.
    of: usize,
}

impl Share {
    /// Every sample.
    pub const ALL: Share = Share { index: 0, of: 1 };

    /// Whether sample number `sample` belongs to it.
    pub fn has(self, sample: usize) -> bool {
        sample % self.of == self.index
    }

    /// Whether it is every sample.
    pub fn is_all(self) -> bool {
        self.of == 1
    }

    /// The file of its outcomes in a folder that all shares of an evaluation may have together.
    pub(crate) fn file_name(self) -> String {
        match self.is_all() {
            true => "results.jsonl".to_owned(),
            false => format!("results-{}-of-{}.jsonl", self.index + 1, self.of),
        }
    }
}

/// As it is written, counted from 1: `3/16`.
impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index + 1, self.of)
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Share, String> {
        let parts = text.split_once('/');
        let numbers = parts.and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((k, n)) if (1..=n).contains(&k) => Ok(Share {
                index: k - 1,
                of: n,
            }),
            _ => Err(format!(
                "{text:?} is no share: write K/N with K from 1 to N, as in 3/16"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_have_every_sample_once() {
        let shares: Vec<Share> = (1..=3).map(|k| format!("{k}/3").parse().unwrap()).collect();
        for sample in 0..20 {
            let having = shares.iter().filter(|share| share.has(sample)).count();
            assert_eq!(having, 1, "{sample}");
            assert!(Share::ALL.has(sample));
        }
        assert_eq!(shares[2].to_string(), "3/3");
        assert_eq!("1/1".parse(), Ok(Share::ALL));
    }

    #[test]
    fn what_is_no_share_is_refused() {
        for text in ["", "3", "0/4", "5/4", "1/0", "-1/4", "a/b", "1/2/3"] {
            assert!(text.parse::<Share>().is_err(), "{text}");
        }
    }
}
