//! Rules that spread a keep method's budget over the heads of a layer, or over layers and heads.

pub(crate) mod adakv;
pub(crate) mod uniform;
