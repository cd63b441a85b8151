//! Who comes next: shares of tenants, and the cut of a slice between prompts.

use std::collections::HashMap;

use super::pace::LEAST_SLICE;
use super::request::Priority;

/// What each tenant was served, so that the one that had least comes next.
///
/// Counts only matter against each other. A tenant that comes back after a pause starts at the least
/// count among those that are there, so that a pause saves nothing up.
#[derive(Default)]
pub(super) struct Shares {
    served: HashMap<u64, u64>,
}

impl Shares {
    /// Notes that `tenant` has work, while `active` have, itself perhaps among them.
    pub(super) fn enter(&mut self, tenant: u64, active: impl Iterator<Item = u64>) {
        let least = active
            .filter(|&other| other != tenant)
            .map(|other| self.of(other))
            .min()
            .unwrap_or(0);
        let own = self.served.entry(tenant).or_insert(0);
        *own = (*own).max(least);
    }

    /// Notes that `tokens` were computed for `tenant`.
    pub(super) fn serve(&mut self, tenant: u64, tokens: usize) {
        *self.served.entry(tenant).or_insert(0) += tokens as u64;
    }

    /// Tokens that `tenant` was served.
    pub(super) fn of(&self, tenant: u64) -> u64 {
        self.served.get(&tenant).copied().unwrap_or(0)
    }

    /// Forgets tenants that have nothing to do.
    pub(super) fn keep(&mut self, active: impl Fn(u64) -> bool) {
        self.served.retain(|&tenant, _| active(tenant));
    }
}

/// A prompt that is being read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader {
    /// Its rank.
    pub(super) priority: Priority,
    /// Whose it is.
    pub(super) tenant: u64,
    /// Tokens left to read.
    pub(super) left: usize,
}

/// Cuts `budget` tokens between `readers`; returns tokens for each. The highest rank present shares
/// it: equally between tenants, and a tenant's part equally between its prompts, so that a short
/// prompt is read soon whatever stands beside it. What a rank leaves goes to the next, and every
/// lower rank gets a few tokens even when nothing is left, so that none stands still.
pub(super) fn cut(budget: usize, readers: &[Reader]) -> Vec<usize> {
    let mut parts = vec![0; readers.len()];
    let mut left = budget;
    for priority in [Priority::High, Priority::Normal, Priority::Low] {
        let of_rank = |at: &usize| readers[*at].priority == priority;
        let rank: Vec<usize> = (0..readers.len()).filter(of_rank).collect();
        if rank.is_empty() {
            continue;
        }
        let budget = left.max(LEAST_SLICE.min(budget));
        let used = cut_rank(budget, &rank, readers, &mut parts);
        left = left.saturating_sub(used);
    }
    parts
}

/// Cuts `budget` between the readers `rank`; returns how much of it was used.
fn cut_rank(budget: usize, rank: &[usize], readers: &[Reader], parts: &mut [usize]) -> usize {
    let mut left = budget;
    loop {
        let hungry: Vec<usize> = rank
            .iter()
            .copied()
            .filter(|&at| parts[at] < readers[at].left)
            .collect();
        if hungry.is_empty() || left == 0 {
            return budget - left;
        }
        let mut tenants: Vec<u64> = hungry.iter().map(|&at| readers[at].tenant).collect();
        tenants.sort_unstable();
        tenants.dedup();
        let of_tenant = left / tenants.len();
        let before = left;
        for tenant in tenants {
            let own = || hungry.iter().filter(|&&at| readers[at].tenant == tenant);
            // Fewer than a few tokens each would make passes of crumbs.
            let each = (of_tenant / own().count()).max(LEAST_SLICE);
            for &at in own() {
                let part = each.min(readers[at].left - parts[at]).min(left);
                parts[at] += part;
                left -= part;
            }
        }
        debug_assert!(left < before, "every round gives something away");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(tenant: u64, left: usize) -> Reader {
        Reader {
            priority: Priority::Normal,
            tenant,
            left,
        }
    }

    #[test]
    fn a_slice_is_cut_between_tenants_and_then_between_prompts() {
        assert_eq!(cut(512, &[reader(1, 9000)]), [512]);
        let two = [reader(1, 9000), reader(1, 9000)];
        assert_eq!(cut(512, &two), [256, 256]);
        let mixed = [reader(1, 9000), reader(1, 9000), reader(2, 9000)];
        assert_eq!(cut(400, &mixed), [100, 100, 200]);
        // What a short prompt leaves goes to the others.
        assert_eq!(cut(400, &[reader(1, 50), reader(2, 9000)]), [50, 350]);
        // Small budgets go to few.
        assert_eq!(cut(20, &mixed), [16, 4, 0]);
        assert_eq!(cut(100, &[reader(1, 5), reader(2, 6)]), [5, 6]);
    }

    #[test]
    fn ranks_go_first_and_none_stands_still() {
        let low = Reader {
            priority: Priority::Low,
            ..reader(1, 9000)
        };
        let high = Reader {
            priority: Priority::High,
            ..reader(2, 9000)
        };
        assert_eq!(cut(512, &[low, high]), [LEAST_SLICE, 512]);
        let short = Reader { left: 40, ..high };
        assert_eq!(cut(512, &[low, short]), [472, 40]);
    }

    #[test]
    fn whoever_had_least_is_known_and_pauses_save_nothing_up() {
        let mut shares = Shares::default();
        shares.enter(1, [].into_iter());
        shares.serve(1, 1000);
        shares.enter(2, [1].into_iter());
        assert_eq!(shares.of(2), 1000);
        shares.serve(2, 10);
        assert!(shares.of(1) < shares.of(2));
        shares.keep(|tenant| tenant == 2);
        assert_eq!(shares.of(1), 0);
    }
}
