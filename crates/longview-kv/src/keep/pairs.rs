//! Pairs of keys and values taken out of their pages, for merging.

/// Pairs of one KV head as numbers, ascending by position.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pairs {
    /// The tokens they are of.
    pub positions: Vec<u32>,
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
