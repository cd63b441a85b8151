//! Scores of a context, made once for all methods that score alike.

use std::sync::Arc;
use std::time::{Duration, Instant};

use longview_kernels::Exec;

use super::pace::Kept;
use super::view::LayerView;
use super::{AttentionOf, Keep, Scores};
use crate::context::Context;
use crate::error::KvError;
use crate::layout::KvLayout;
use crate::ledger::{Purpose, Reservation};
use crate::run::BlockRun;
use crate::shared::SharedList;
use crate::tokens::PIECE;

/// What a keep method's score makes of every pair of a context of which nothing has left: forks of it, and
/// contexts that have read the same tokens in the same way, need not be scored again by methods that differ
/// in budget, spread, merge or times only.
pub struct Scored {
    /// [`Keep::scored_as`] of the method.
    how: String,
    layout: Arc<KvLayout>,
    tokens: SharedList<u32, PIECE>,
    /// Of all layers with full attention, first layer first.
    layers: Vec<Scores>,
    time: Duration,
    /// Holds their bytes.
    _room: Reservation,
}

impl Scored {
    /// Whether `keep` would score as this was scored.
    pub fn is_by(&self, keep: &Keep) -> bool {
        keep.scored_as.as_ref() == Some(&self.how)
    }

    /// The scores of the layers with full attention, before what always stays is marked, if they are those
    /// that `kept` would give to `context`; and the time it took to make them.
    pub(super) fn of(&self, context: &Context, kept: &Kept) -> Option<(Vec<Scores>, Duration)> {
        let is_whole = kept.edge() == 0 && self.is_by(&kept.plan);
        let is_it = is_whole
            && Arc::ptr_eq(&self.layout, context.layout())
            && self.tokens.len() == context.len()
            && self.tokens.iter_from(0).eq(context.tokens.iter_from(0));
        is_it.then(|| (self.layers.clone(), self.time))
    }
}

impl Context {
    /// Scores every pair as the keep method in charge does when it decides, and drops nothing. `None`
    /// where it has nothing to decide, has decided before, or scores as no other does.
    ///
    /// # Errors
    /// [`KvError::OverLimit`] when memory lacks room for the scores, and what the score says.
    pub fn score(
        &mut self,
        exec: &Exec,
        model: &dyn AttentionOf,
    ) -> Result<Option<Arc<Scored>>, KvError> {
        let end = self.len();
        let is_asked = |kept: &Kept| {
            kept.plan.scored_as.is_some() && kept.edge() == 0 && kept.pairs(end) > kept.room(end)
        };
        if !self.kept.as_deref().is_some_and(is_asked) {
            return Ok(None);
        }
        self.bring_in()?;
        let scored = self.score_whole(exec, model);
        self.groups.iter_mut().for_each(BlockRun::unpin);
        scored
    }

    /// The keep method in charge chooses from `scored` when it decides, where these are the scores that it
    /// would give, and scores by itself otherwise. They count as made for it: their time is in its report.
    ///
    /// The context must have read its tokens in the same way as the one that was scored, as forks have.
    pub fn choose_from(&mut self, scored: &Arc<Scored>) {
        if let Some(kept) = &mut self.kept {
            kept.scored = Some(Arc::clone(scored));
        }
    }

    fn score_whole(
        &self,
        exec: &Exec,
        model: &dyn AttentionOf,
    ) -> Result<Option<Arc<Scored>>, KvError> {
        let begun = Instant::now();
        let Some(kept) = self.kept.as_deref() else {
            return Ok(None);
        };
        let Some(how) = kept.plan.scored_as.clone() else {
            return Ok(None);
        };
        let pairs = self.len() * kept.heads(self.layout());
        let bytes = (size_of::<f32>() * pairs) as u64;
        let room = self.ledger.reserve(Purpose::Scratch, bytes)?;
        let layers = score_all(kept, &self.views(exec, kept, model), exec)?;
        Ok(Some(Arc::new(Scored {
            how,
            layout: Arc::clone(self.layout()),
            tokens: self.tokens.clone(),
            layers,
            time: begun.elapsed(),
            _room: room,
        })))
    }

    /// The layers with full attention, first layer first, as `kept`, which was taken out, sees them.
    pub(super) fn views<'a>(
        &'a self,
        exec: &Exec,
        kept: &'a Kept,
        model: &'a dyn AttentionOf,
    ) -> Vec<LayerView<'a>> {
        let view = |(layer, _)| LayerView::new(exec.isa, self, kept, layer, self.len(), model);
        self.layout().full_layers().map(view).collect()
    }
}

/// Scores every pair of all `views`.
pub(super) fn score_all(
    kept: &Kept,
    views: &[LayerView<'_>],
    exec: &Exec,
) -> Result<Vec<Scores>, KvError> {
    let mut scored: Vec<Result<Scores, KvError>> = views
        .iter()
        .map(|view| {
            let of_head = |head| vec![0.0; view.pairs(head)];
            Ok(Scores {
                heads: (0..view.heads()).map(of_head).collect(),
            })
        })
        .collect();
    exec.pool.for_each(&mut scored, |index, result, _| {
        if let Ok(scores) = result
            && let Err(error) = kept.plan.score.score(&views[index], scores)
        {
            *result = Err(error);
        }
    });
    scored.into_iter().collect()
}
