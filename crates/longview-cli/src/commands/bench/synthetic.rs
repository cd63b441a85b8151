//! Depth without reading: random keys and values.

use longview::models::blueprint::LayerBlueprint;
use longview::sampling::Rng;
use longview::{Batch, Context, Engine, Segment, Wanted};

use crate::failure::Failure;
use crate::interrupt;

/// Appends `tokens` tokens with random keys and values to `context`.
///
/// Attention takes the same time whatever the numbers are; what is generated means nothing.
pub(super) fn fill(engine: &Engine, context: &mut Context, tokens: usize) -> Result<(), Failure> {
    let chunk = engine.chunk_tokens();
    let layers = &engine.model().blueprint().layers;
    // Recurrent layers take as long whatever their state is: it stays as it was.
    let width = |layer: &LayerBlueprint| {
        layer
            .attention()
            .map(|attention| attention.kv_heads * attention.head_dim)
    };
    let widest = layers.iter().filter_map(width).max().unwrap_or(0);
    let mut rng = Rng::new(1);
    let mut random = || (rng.next_f64() as f32 - 0.5) * 2.0;
    let keys: Vec<f32> = (0..chunk * widest).map(|_| random()).collect();
    let values: Vec<f32> = (0..chunk * widest).map(|_| random()).collect();
    let ids = vec![0; chunk];
    let mut left = tokens;
    while left > 0 {
        interrupt::check()?;
        let count = left.min(chunk);
        let identity = context.identity();
        let segment = Segment {
            context: &mut *context,
            tokens: &ids[..count],
            wanted: Wanted::Nothing,
        };
        let mut batch = Batch::new(vec![segment], identity).map_err(longview::EngineError::from)?;
        for (index, layer) in layers.iter().enumerate() {
            if let Some(width) = width(layer) {
                let all = count * width;
                batch.append(engine.exec(), index, &keys[..all], &values[..all]);
            }
        }
        batch.commit();
        left -= count;
    }
    Ok(())
}
