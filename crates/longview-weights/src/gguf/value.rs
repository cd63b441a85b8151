//! Metadata values of a GGUF file, borrowed from its bytes.

use std::fmt;

/// The type of a metadata value, with the number GGUF gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An unsigned byte.
    U8 = 0,
    /// A signed byte.
    I8 = 1,
    /// Unsigned, 2 bytes.
    U16 = 2,
    /// Signed, 2 bytes.
    I16 = 3,
    /// Unsigned, 4 bytes.
    U32 = 4,
    /// Signed, 4 bytes.
    I32 = 5,
    /// Single precision.
    F32 = 6,
    /// One byte, 0 or 1.
    Bool = 7,
    /// A length in 8 bytes and so many bytes of text.
    String = 8,
    /// The kind of its items, their number in 8 bytes, and the items.
    Array = 9,
    /// Unsigned, 8 bytes.
    U64 = 10,
    /// Signed, 8 bytes.
    I64 = 11,
    /// Double precision.
    F64 = 12,
}

/// One metadata value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// An unsigned byte.
    U8(u8),
    /// A signed byte.
    I8(i8),
    /// Unsigned, 2 bytes.
    U16(u16),
    /// Signed, 2 bytes.
    I16(i16),
    /// Unsigned, 4 bytes.
    U32(u32),
    /// Signed, 4 bytes.
    I32(i32),
    /// Single precision; any bits, NaN too.
    F32(f32),
    /// A truth value.
    Bool(bool),
    /// Text, normally UTF-8; kept as bytes because not every converter saw to that.
    String(&'a [u8]),
    /// Items of one kind, which may be arrays themselves.
    Array(Array<'a>),
    /// Unsigned, 8 bytes.
    U64(u64),
    /// Signed, 8 bytes.
    I64(i64),
    /// Double precision; any bits, NaN too.
    F64(f64),
}

/// An array in the metadata; its items are decoded as they are asked for.
#[derive(Clone, Copy, PartialEq)]
pub struct Array<'a> {
    kind: Kind,
    len: usize,
    /// The packed items, already checked to be whole.
    bytes: &'a [u8],
}

impl Kind {
    pub(crate) fn from_number(number: u32) -> Option<Kind> {
        use Kind::*;
        [
            U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64,
        ]
        .into_iter()
        .find(|kind| *kind as u32 == number)
    }

    /// Bytes of a value, or `None` where that varies.
    pub(crate) fn size(self) -> Option<usize> {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => Some(1),
            Kind::U16 | Kind::I16 => Some(2),
            Kind::U32 | Kind::I32 | Kind::F32 => Some(4),
            Kind::U64 | Kind::I64 | Kind::F64 => Some(8),
            Kind::String | Kind::Array => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::U8 => "u8",
            Kind::I8 => "i8",
            Kind::U16 => "u16",
            Kind::I16 => "i16",
            Kind::U32 => "u32",
            Kind::I32 => "i32",
            Kind::F32 => "f32",
            Kind::Bool => "bool",
            Kind::String => "string",
            Kind::Array => "array",
            Kind::U64 => "u64",
            Kind::I64 => "i64",
            Kind::F64 => "f64",
        }
    }
}

impl<'a> Value<'a> {
    /// The type of this value.
    pub fn kind(&self) -> Kind {
        match self {
            Value::U8(_) => Kind::U8,
            Value::I8(_) => Kind::I8,
            Value::U16(_) => Kind::U16,
            Value::I16(_) => Kind::I16,
            Value::U32(_) => Kind::U32,
            Value::I32(_) => Kind::I32,
            Value::F32(_) => Kind::F32,
            Value::Bool(_) => Kind::Bool,
            Value::String(_) => Kind::String,
            Value::Array(_) => Kind::Array,
            Value::U64(_) => Kind::U64,
            Value::I64(_) => Kind::I64,
            Value::F64(_) => Kind::F64,
        }
    }

    /// An integer of any width.
    pub fn integer(&self) -> Option<i128> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::I8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::I16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::I32(v) => Some(v.into()),
            Value::U64(v) => Some(v.into()),
            Value::I64(v) => Some(v.into()),
            _ => None,
        }
    }

    /// A number of any type, as f64; beyond 2^53 an integer is rounded.
    pub fn number(&self) -> Option<f64> {
        match *self {
            Value::F32(v) => Some(v.into()),
            Value::F64(v) => Some(v),
            _ => self.integer().map(|v| v as f64),
        }
    }

    /// A truth value.
    pub fn bool(&self) -> Option<bool> {
        match *self {
            Value::Bool(v) => Some(v),
            _ => None,
        }
    }

    /// A string that is valid UTF-8.
    pub fn str(&self) -> Option<&'a str> {
        match *self {
            Value::String(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// An array.
    pub fn array(&self) -> Option<Array<'a>> {
        match *self {
            Value::Array(array) => Some(array),
            _ => None,
        }
    }

    /// Decodes the value of type `kind` at the start of `bytes`; also gives the bytes it took.
    /// `None` where `bytes` is too short, which checked bytes never are.
    pub(crate) fn decode(kind: Kind, bytes: &'a [u8]) -> Option<(Value<'a>, usize)> {
        let value = match kind {
            Kind::U8 => Value::U8(bytes.first().copied()?),
            Kind::I8 => Value::I8(bytes.first().copied()? as i8),
            Kind::Bool => Value::Bool(bytes.first().copied()? != 0),
            Kind::U16 => Value::U16(u16::from_le_bytes(*bytes.first_chunk()?)),
            Kind::I16 => Value::I16(i16::from_le_bytes(*bytes.first_chunk()?)),
            Kind::U32 => Value::U32(u32::from_le_bytes(*bytes.first_chunk()?)),
            Kind::I32 => Value::I32(i32::from_le_bytes(*bytes.first_chunk()?)),
            Kind::F32 => Value::F32(f32::from_le_bytes(*bytes.first_chunk()?)),
            Kind::U64 => Value::U64(u64::from_le_bytes(*bytes.first_chunk()?)),
            Kind::I64 => Value::I64(i64::from_le_bytes(*bytes.first_chunk()?)),
            Kind::F64 => Value::F64(f64::from_le_bytes(*bytes.first_chunk()?)),
            Kind::String => {
                let length = u64::from_le_bytes(*bytes.first_chunk()?);
                let text = bytes[8..].get(..usize::try_from(length).ok()?)?;
                return Some((Value::String(text), 8 + text.len()));
            }
            Kind::Array => {
                let kind = Kind::from_number(u32::from_le_bytes(*bytes.first_chunk()?))?;
                let len = u64::from_le_bytes(*bytes[4..].first_chunk()?);
                let mut array = Array {
                    kind,
                    len: usize::try_from(len).ok()?,
                    bytes: &bytes[12..],
                };
                let taken = match kind.size() {
                    Some(size) => array.len.checked_mul(size)?,
                    None => {
                        let mut rest = array.bytes;
                        for _ in 0..array.len {
                            rest = &rest[Value::decode(kind, rest)?.1..];
                        }
                        array.bytes.len() - rest.len()
                    }
                };
                array.bytes = array.bytes.get(..taken)?;
                return Some((Value::Array(array), 12 + taken));
            }
        };
        Some((value, kind.size()?))
    }
}

impl<'a> Array<'a> {
    /// An array over packed items.
    pub(crate) fn new(kind: Kind, len: usize, bytes: &'a [u8]) -> Array<'a> {
        Array { kind, len, bytes }
    }

    /// The type of every item.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The number of items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no items.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The items in order.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let (kind, mut rest) = (self.kind, self.bytes);
        (0..self.len).map_while(move |_| {
            let (value, taken) = Value::decode(kind, rest)?;
            rest = &rest[taken..];
            Some(value)
        })
    }

    /// The items as they are packed in the file.
    pub(crate) fn packed(&self) -> &'a [u8] {
        self.bytes
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One line: long strings and arrays are cut, with their length.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 64;
        match self {
            Value::String(bytes) => {
                let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * SHOWN)]);
                let shown: String = text.chars().take(SHOWN).collect();
                write!(f, "{shown:?}")?;
                if shown.len() < bytes.len() {
                    write!(f, "… ({} bytes)", bytes.len())
                } else {
                    Ok(())
                }
            }
            Value::Array(array) => write!(f, "{array:?}"),
            Value::Bool(v) => write!(f, "{v}"),
            Value::F32(v) => write!(f, "{v}"),
            Value::F64(v) => write!(f, "{v}"),
            other => write!(f, "{}", other.integer().unwrap_or_default()),
        }
    }
}

impl fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} × {}", self.len, self.kind)
    }
}
