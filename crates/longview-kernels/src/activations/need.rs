use crate::packed::layout::Grain;

/// The forms of activations that products read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Need {
    /// f32, for float weights and for [`crate::Numerics::F32`].
    pub f32: bool,
    /// int8 in blocks of 32, for weights whose blocks have scales of their own.
    pub blocks: bool,
    /// int8 in blocks of 256, for weights whose scales are small whole numbers (the K formats) or are rounded to such
    /// (Q4_0).
    pub wide_blocks: bool,
}

impl Need {
    /// f32 alone.
    pub const F32: Need = Need {
        f32: true,
        blocks: false,
        wide_blocks: false,
    };
    /// int8 in blocks of 32 alone.
    pub const BLOCKS: Need = Need {
        f32: false,
        blocks: true,
        wide_blocks: false,
    };
    /// int8 in blocks of 256 alone.
    pub const WIDE_BLOCKS: Need = Need {
        f32: false,
        blocks: false,
        wide_blocks: true,
    };

    /// What serves both `self` and `other`.
    pub fn and(self, other: Need) -> Need {
        Need {
            f32: self.f32 || other.f32,
            blocks: self.blocks || other.blocks,
            wide_blocks: self.wide_blocks || other.wide_blocks,
        }
    }

    /// Whether all that `other` asks for is there.
    pub fn covers(self, other: Need) -> bool {
        self.and(other) == self
    }

    /// One of the int8 forms alone.
    pub(crate) fn of(grain: Grain) -> Need {
        match grain {
            Grain::Block => Need::BLOCKS,
            Grain::Segment => Need::WIDE_BLOCKS,
        }
    }

    /// The int8 forms among them.
    pub(crate) fn grains(self) -> impl Iterator<Item = Grain> {
        let both = [Grain::Block, Grain::Segment].into_iter();
        both.filter(move |&grain| self.covers(Need::of(grain)))
    }
}
