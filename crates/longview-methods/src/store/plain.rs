//! Forms in which every number stands for itself or shares a scale with its neighbours.

use longview_kv::{DottedBits, KvType, QueryBits};

use crate::arguments::Arguments;
use crate::method::{Build, Domain, Method, Parameter, Stage};

/// What attention rounds to before it multiplies with codes.
const QUERIES: Parameter = Parameter {
    name: "queries",
    default: "float",
    unit: "",
    doc: "float: codes are multiplied with floats; int16, int8: with whole numbers, queries rounded to so \
          many bits by blocks of 32 channels, and weights times scales of values",
    domain: Domain::Added(&Domain::Word(&["float", "int16", "int8"])),
};

/// The form `plain`, or where whole numbers are asked for, its codes laid out for them.
fn with_queries(arguments: &Arguments, plain: KvType, bits: DottedBits) -> KvType {
    match arguments.word("queries") {
        "int16" => KvType::dotted(bits, QueryBits::Sixteen),
        "int8" => KvType::dotted(bits, QueryBits::Eight),
        _ => plain,
    }
}

/// `f16`.
pub(super) const F16: Method = Method {
    stage: Stage::Store,
    name: "f16",
    exact: true,
    paper: None,
    claim: None,
    doc: "keys and values in half precision, as the default numerics class does",
    parameters: &[],
    build: Build::Store(|_| Ok(KvType::F16.into())),
};

/// `f32`.
pub(super) const F32: Method = Method {
    name: "f32",
    doc: "keys and values in single precision, as --numerics f32 does",
    build: Build::Store(|_| Ok(KvType::F32.into())),
    ..F16
};

/// `bf16`.
pub(super) const BF16: Method = Method {
    name: "bf16",
    exact: false,
    doc: "keys and values as bfloat16: each rounded by up to 0.4 %, of any size",
    build: Build::Store(|_| Ok(KvType::BF16.into())),
    ..F16
};

/// `q8`.
pub(super) const Q8: Method = Method {
    name: "q8",
    exact: false,
    doc: "keys and values in 8 bits, a scale for every 32 channels of a token: each rounded by up to \
          0.4 % of the largest of its 32",
    parameters: &[QUERIES],
    build: Build::Store(|arguments| {
        Ok(with_queries(arguments, KvType::Q8, DottedBits::Eight).into())
    }),
    ..F16
};

/// `q4`.
pub(super) const Q4: Method = Method {
    name: "q4",
    exact: false,
    doc: "keys and values in 4 bits, a scale for every 32 channels of a token: each rounded by up to \
          6.7 % of the largest of its 32",
    parameters: &[QUERIES],
    build: Build::Store(|arguments| {
        Ok(with_queries(arguments, KvType::Q4, DottedBits::Four).into())
    }),
    ..F16
};
