//! Pairs of keys and values taken out of their pages, for merging.

/// Pairs of one KV head as numbers, ascending by position.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pairs {
    /// The tokens they are of.
    pub positions: Vec<u32>,
    /// Of how many tokens each is made, those that were merged into it included, where that is counted.
    pub tokens: Vec<u32>,
    /// `[pairs][head_dim]`
    pub keys: Vec<f32>,
    /// `[pairs][v_dim]`
    pub values: Vec<f32>,
    /// Channels of a key.
    pub head_dim: usize,
    /// Channels of a value.
    pub v_dim: usize,
}

impl Pairs {
    /// Bytes of a pair.
    pub(super) fn bytes_of(head_dim: usize, v_dim: usize) -> usize {
        size_of::<f32>() * (head_dim + v_dim) + 2 * size_of::<u32>()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// The key of a pair.
    pub fn key(&self, pair: usize) -> &[f32] {
        &self.keys[pair * self.head_dim..][..self.head_dim]
    }

    /// The value of a pair.
    pub fn value(&self, pair: usize) -> &[f32] {
        &self.values[pair * self.v_dim..][..self.v_dim]
    }

    /// The key of a pair, to be written.
    pub fn key_mut(&mut self, pair: usize) -> &mut [f32] {
        &mut self.keys[pair * self.head_dim..][..self.head_dim]
    }

    /// The value of a pair, to be written.
    pub fn value_mut(&mut self, pair: usize) -> &mut [f32] {
        &mut self.values[pair * self.v_dim..][..self.v_dim]
    }
}
