//! Products of tiles, one at a time between other work.
//!
//! While a tile product is under way, of the two ports that calculate with floats one is taken; an operation
//! that waits for it waits for all products before it. So products are spread among the operations of
//! registers, one after every few of those.

use std::ops::Range;

use super::room::TOKEN_STEPS;
use super::split::{FLOAT_PARTS, HALF_PARTS};
use crate::amx::{self, TILE};
use crate::page::PAGE_TOKENS;

/// Tiles that sums are in.
pub(super) const SUMS: usize = 4;
/// Passes of a round: which part of rows and which of the others are multiplied, in this order.
pub(super) const PASSES: [(usize, usize); 5] = [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1)];

/// The queries of a tile of rows times the keys of a page.
#[derive(Clone, Copy)]
pub(super) struct Scores {
    /// `[steps][3]` tiles.
    pub queries: *const u8,
    /// `[steps][4][2]` tiles.
    pub keys: *const u8,
    pub steps: usize,
    /// `[16][64]`
    pub to: *mut f32,
}

/// The weights of a tile of rows times the values of a page.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    /// `[2][3]` tiles.
    pub weights: *const u8,
    /// `[2][groups][2]` tiles.
    pub values: *const u8,
    /// Sixteen channels each.
    pub groups: usize,
    /// `[16][groups][16]`, to which the products are added.
    pub to: *mut f32,
}

/// What is to be multiplied, in rounds of 32 channels or tokens. A round has five passes, of one part with all
/// tiles of sums each, so that a product need not wait for the one before it.
///
/// What it points to has to be there until [`Products::write`], and tiles have to be cut.
#[derive(Default)]
pub(super) struct Products {
    scores: Option<Scores>,
    sums: Option<Sums>,
    of_scores: usize,
    rounds: usize,
    /// Tiles of sums of all rounds that [`Products::go_on`] is done with.
    done: usize,
    /// What tiles hold that is to be written.
    held: Option<Place>,
    round: Option<Round>,
}

/// Where the sums of some tiles are in memory.
#[derive(Clone, Copy)]
struct Place {
    start: *mut f32,
    stride: usize,
    tiles: usize,
}

/// The products of a round.
pub(super) struct Round {
    rows: *const u8,
    by: *const u8,
    place: Place,
    /// Whether sums begin here, and whether they do with what is in memory.
    begins: bool,
    goes_on: bool,
    /// Whether they end here.
    ends: bool,
    /// What is to be written before.
    before: Option<Place>,
}

impl Products {
    /// Begins with other products; all rounds of those before have to be done.
    pub(super) fn begin(&mut self, scores: Option<Scores>, sums: Option<Sums>) {
        self.of_scores = scores.map_or(0, |it| it.steps);
        self.rounds = self.of_scores + sums.map_or(0, |it| it.groups.div_ceil(SUMS) * TOKEN_STEPS);
        (self.scores, self.sums, self.done) = (scores, sums, 0);
    }

    pub(super) fn rounds(&self) -> usize {
        self.rounds
    }

    /// Round `at`, which the caller does now, and before the others.
    #[inline(always)]
    pub(super) fn round(&mut self, at: usize) -> &Round {
        let round = self.round.insert(match (self.scores, self.sums) {
            (Some(it), _) if at < self.of_scores => Round {
                rows: it.queries.wrapping_add(at * FLOAT_PARTS * TILE),
                by: it.keys.wrapping_add(at * SUMS * HALF_PARTS * TILE),
                place: Place {
                    start: it.to,
                    stride: PAGE_TOKENS,
                    tiles: SUMS,
                },
                begins: at == 0,
                goes_on: false,
                ends: at + 1 == it.steps,
                before: None,
            },
            (_, Some(it)) => {
                let at = at - self.of_scores;
                let (first, step) = (at / TOKEN_STEPS * SUMS, at % TOKEN_STEPS);
                let tile = (step * it.groups + first) * HALF_PARTS;
                Round {
                    rows: it.weights.wrapping_add(step * FLOAT_PARTS * TILE),
                    by: it.values.wrapping_add(tile * TILE),
                    place: Place {
                        start: it.to.wrapping_add(16 * first),
                        stride: 16 * it.groups,
                        tiles: SUMS.min(it.groups - first),
                    },
                    begins: step == 0,
                    goes_on: true,
                    ends: step + 1 == TOKEN_STEPS,
                    before: None,
                }
            }
            _ => unreachable!("products of one or the other"),
        });
        if round.begins {
            round.before = self.held.take();
        }
        if round.ends {
            self.held = Some(round.place);
        }
        round
    }

    /// Does all rounds `rounds`.
    pub(super) fn do_rounds(&mut self, rounds: Range<usize>) {
        for at in rounds {
            self.round(at).all();
        }
    }

    /// Goes on so that `part` of `whole` is done, all parts for one tile of sums after another: for fewer than
    /// sixteen rows it is another tile to multiply with that takes time.
    #[inline(always)]
    pub(super) fn go_on(&mut self, part: usize, whole: usize) {
        let due = self.rounds * SUMS * part;
        while (self.done + 1) * whole <= due {
            let tile = self.done % SUMS;
            if tile == 0 {
                self.round(self.done / SUMS).load_all();
            }
            if let Some(round) = &self.round {
                round.add_all_to(tile);
            }
            self.done += 1;
        }
    }

    /// Writes what tiles hold.
    pub(super) fn write(&mut self) {
        if let Some(place) = self.held.take() {
            place.write::<0>();
            place.write::<1>();
            place.write::<2>();
            place.write::<3>();
        }
    }
}

impl Round {
    /// All of its products.
    fn all(&self) {
        for pass in 0..PASSES.len() {
            self.pass(pass);
        }
    }

    /// Those of a pass.
    fn pass(&self, pass: usize) {
        self.load(pass);
        self.add::<0>(pass);
        self.add::<1>(pass);
        self.add::<2>(pass);
        self.add::<3>(pass);
    }

    /// Loads what pass `pass` multiplies.
    #[inline(always)]
    pub(super) fn load(&self, pass: usize) {
        // SAFETY: see `Products`.
        unsafe { amx::load_rows(self.rows.wrapping_add(PASSES[pass].0 * TILE)) };
    }

    /// The product of pass `pass` for tile `tile`.
    #[inline(always)]
    pub(super) fn add_to(&self, pass: usize, tile: usize) {
        match tile {
            0 => self.add::<0>(pass),
            1 => self.add::<1>(pass),
            2 => self.add::<2>(pass),
            _ => self.add::<3>(pass),
        }
    }

    #[inline(always)]
    fn add<const AT: usize>(&self, pass: usize) {
        if pass == 0 && self.begins {
            self.begin::<AT>();
        }
        if AT < self.place.tiles {
            let tile = AT * HALF_PARTS + PASSES[pass].1;
            // SAFETY: see `Products`.
            unsafe { amx::add_floats::<AT>(self.by.wrapping_add(tile * TILE)) };
        }
    }

    /// Loads what all passes multiply.
    #[inline(always)]
    fn load_all(&self) {
        // SAFETY: see `Products`.
        unsafe { amx::load_all_rows(self.rows) };
    }

    /// The products of all passes for tile `tile`.
    #[inline(always)]
    fn add_all_to(&self, tile: usize) {
        match tile {
            0 => self.add_all::<0>(),
            1 => self.add_all::<1>(),
            2 => self.add_all::<2>(),
            _ => self.add_all::<3>(),
        }
    }

    #[inline(always)]
    fn add_all<const AT: usize>(&self) {
        if self.begins {
            self.begin::<AT>();
        }
        if AT < self.place.tiles {
            // SAFETY: see `Products`.
            unsafe { amx::add_all_floats::<AT>(self.by.wrapping_add(AT * HALF_PARTS * TILE)) };
        }
    }

    /// Makes the sums of a tile what they begin with.
    #[inline(always)]
    fn begin<const AT: usize>(&self) {
        if let Some(before) = self.before {
            before.write::<AT>();
        }
        // SAFETY: see `Products`.
        unsafe {
            if !self.goes_on {
                amx::clear_sums::<AT>();
            } else if AT < self.place.tiles {
                amx::load_sums::<AT>(self.place.start.wrapping_add(16 * AT), self.place.stride);
            }
        }
    }
}

impl Place {
    #[inline(always)]
    fn write<const AT: usize>(&self) {
        if AT < self.tiles {
            // SAFETY: see `Products`.
            unsafe { amx::store_sums::<AT>(self.start.wrapping_add(16 * AT), self.stride) };
        }
    }
}
