//! Rules that spread a keep method's budget over the heads of a layer, or over layers and heads.

pub(crate) mod adakv;
pub(crate) mod d2o;
pub(crate) mod heads;
pub(crate) mod pyramidkv;
pub(crate) mod threshold;
pub(crate) mod uniform;
pub(crate) mod zigzagkv;
