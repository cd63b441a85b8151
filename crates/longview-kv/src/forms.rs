//! In what form the layers of a model store keys and values.

use std::fmt;
use std::ops::RangeInclusive;

use longview_kernels::page::KvType;

use crate::error::KvError;

/// The most ranges of layers that have forms of their own.
const MOST_EXCEPTIONS: usize = 8;

/// The forms of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvForm {
    /// How keys are stored.
    pub k: KvType,
    /// How values are stored.
    pub v: KvType,
    /// The latest tokens, at least so many, that are stored in half precision where keys or values
    /// are quantised or sparse; without meaning elsewhere.
    pub recent_tokens: usize,
    /// The first tokens of a context, at least so many, for which the same holds.
    pub sink_tokens: usize,
    /// Of the tokens after those the latest so many stay, and the others are forgotten; all stay where
    /// nothing is said. For layers whose attention is full.
    pub window_tokens: Option<usize>,
}

/// The forms of all layers: one for most of them, and ranges of layers with their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvForms {
    form: KvForm,
    /// The first and last layer of each range; of those that overlap the last one counts.
    exceptions: [Option<(u32, u32, KvForm)>; MOST_EXCEPTIONS],
}

impl KvForm {
    /// Whether the latest tokens, or the first ones, are held in half precision beside the others:
    /// always where keys or values are made of whole pages, and where it is asked for.
    pub fn is_split(&self) -> bool {
        let is_float = |kv_type| matches!(kv_type, KvType::F32 | KvType::F16 | KvType::BF16);
        let is_exempting = self.recent_tokens > 0 || self.sink_tokens > 0;
        self.k.is_whole()
            || self.v.is_whole()
            || self.window_tokens.is_some()
            || is_exempting && !(is_float(self.k) && is_float(self.v))
    }
}

/// Keys and values alike, written token by token.
impl From<KvType> for KvForm {
    fn from(kv_type: KvType) -> KvForm {
        KvForm {
            k: kv_type,
            v: kv_type,
            recent_tokens: 0,
            sink_tokens: 0,
            window_tokens: None,
        }
    }
}

impl KvForms {
    /// The same for all layers.
    pub fn new(form: KvForm) -> KvForms {
        KvForms {
            form,
            exceptions: [None; MOST_EXCEPTIONS],
        }
    }

    /// The same with `form` for the layers `layers`; `None` where there are too many ranges already.
    pub fn with_layers(mut self, layers: RangeInclusive<u32>, form: KvForm) -> Option<KvForms> {
        let free = self
            .exceptions
            .iter_mut()
            .find(|exception| exception.is_none())?;
        *free = Some((*layers.start(), *layers.end(), form));
        Some(self)
    }

    /// Checks that a model with `layers` layers has all those that have forms of their own.
    ///
    /// # Errors
    /// [`KvError::NoSuchLayers`] where it lacks some.
    pub fn check(&self, layers: usize) -> Result<(), KvError> {
        let beyond = |(_, last, _): &&(u32, u32, KvForm)| *last as usize >= layers;
        let mut exceptions = self.exceptions.iter().flatten();
        match exceptions.find(beyond) {
            Some(&(first, last, form)) => Err(KvError::NoSuchLayers {
                first,
                last,
                form,
                layers,
            }),
            None => Ok(()),
        }
    }

    /// The form of most layers.
    pub fn form(&self) -> KvForm {
        self.form
    }

    /// The form of layer `layer`.
    pub fn of(&self, layer: usize) -> KvForm {
        let holds = |(first, last, _): &&(u32, u32, KvForm)| {
            (*first as usize..=*last as usize).contains(&layer)
        };
        let mut exceptions = self.exceptions.iter().flatten();
        exceptions
            .rfind(holds)
            .map_or(self.form, |(.., form)| *form)
    }

    /// The same with every form changed by `change`.
    #[must_use]
    pub fn map(mut self, change: impl Fn(KvForm) -> KvForm) -> KvForms {
        self.form = change(self.form);
        for (.., form) in self.exceptions.iter_mut().flatten() {
            *form = change(*form);
        }
        self
    }
}

impl From<KvForm> for KvForms {
    fn from(form: KvForm) -> KvForms {
        KvForms::new(form)
    }
}

impl From<KvType> for KvForms {
    fn from(kv_type: KvType) -> KvForms {
        KvForms::new(kv_type.into())
    }
}

impl fmt::Display for KvForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.k == self.v {
            write!(f, "{}", self.k)?;
        } else {
            write!(f, "k={}, v={}", self.k, self.v)?;
        }
        if self.is_split() {
            write!(f, " after {}", self.recent_tokens)?;
            if self.sink_tokens > 0 {
                write!(f, " without the first {}", self.sink_tokens)?;
            }
            if let Some(tokens) = self.window_tokens {
                write!(f, " of the last {tokens}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for KvForms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.form.fmt(f)?;
        for (first, last, form) in self.exceptions.iter().flatten() {
            write!(f, ", layers {first}-{last}={form}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longview_kernels::page::Sparse;

    #[test]
    fn the_last_range_that_holds_a_layer_counts() {
        let sparse = KvForm {
            k: KvType::Sparse(Sparse { percent: 50 }),
            v: KvType::Q8,
            recent_tokens: 32,
            sink_tokens: 0,
            window_tokens: None,
        };
        let forms = KvForms::from(KvType::Q8)
            .with_layers(0..=3, KvType::F16.into())
            .and_then(|forms| forms.with_layers(2..=2, sparse))
            .unwrap();
        let found: Vec<KvType> = (0..5).map(|layer| forms.of(layer).k).collect();
        assert_eq!(
            found,
            [KvType::F16, KvType::F16, sparse.k, KvType::F16, KvType::Q8]
        );
        assert!(forms.of(2).is_split() && !forms.of(0).is_split());
        let exempt = forms.map(|form| KvForm {
            sink_tokens: 64,
            ..form
        });
        let split: Vec<bool> = (0..5).map(|layer| exempt.of(layer).is_split()).collect();
        assert_eq!(split, [false, false, true, false, true]);
        assert!(
            exempt
                .to_string()
                .starts_with("q8 after 0 without the first 64, layers")
        );
        let text = "q8, layers 0-3=f16, layers 2-2=k=sparse50, v=q8 after 32";
        assert_eq!(forms.to_string(), text);
        // Of five layers the last is number 4.
        assert!(forms.check(5).is_ok());
        let beyond = forms.with_layers(4..=5, sparse).unwrap();
        let message = beyond.check(5).unwrap_err().to_string();
        assert!(
            message.contains("layers 4-5") && message.contains("up to 4"),
            "{message}"
        );
        let many = (0..9).try_fold(forms, |forms, at| forms.with_layers(at..=at, sparse));
        assert!(many.is_none());
    }
}
