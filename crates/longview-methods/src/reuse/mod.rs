//! The reuse stage: what a request may take over from what was read before.

mod prefix;
mod shift;

use crate::method::Method;

/// The methods of this stage; the first is the default.
pub(crate) static METHODS: &[Method] = &[prefix::METHOD, shift::METHOD];
