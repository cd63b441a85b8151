//! A naive model of what contexts with recurrent layers hold: the pages of their tokens, a state each,
//! perhaps a spare one, and the states that were kept at block edges. What the ledger counts must be the
//! union of them, and a context goes back to what it has kept, whatever others do.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use longview_kv::{
    BLOCK_TOKENS, CHECKPOINT_TOKENS, Context, KvError, KvLayout, LayerState, Ledger, Store,
};

use super::world::{Control, HEAD_DIM, SHAPE, World, context_in, layout};
use super::{Operation, text_from};

/// Bytes of a page: two layers with one head, keys and values in single precision.
const PAGE: usize = 2 * BLOCK_TOKENS * 2 * HEAD_DIM * 4;

/// Bytes of the state of two layers.
fn state_bytes() -> usize {
    2 * SHAPE.state() * 4
}

/// States at the ends of messages that a context keeps.
const MESSAGES: usize = 4;

/// A context, and what it must refer to. Pages and states have numbers; equal ones are the same bytes.
struct Book {
    context: Context,
    tokens: Vec<u32>,
    /// The last page, where it is not full.
    open: Option<usize>,
    /// The state after all tokens; none before the first.
    state: Option<usize>,
    /// Whether there is another that the next pass writes.
    has_spare: bool,
    /// Tokens after which states are kept, regularly and at the ends of messages, ascending.
    regular: Vec<usize>,
    messages: Vec<usize>,
}

struct Shelf {
    world: World,
    layout: Arc<KvLayout>,
    store: Arc<Store>,
    books: Vec<Book>,
    /// Full pages, by all tokens up to their ends.
    pages: HashSet<Vec<u32>>,
    /// States that are kept, by the tokens they are of.
    kept: HashMap<Vec<u32>, usize>,
    /// Numbers given so far.
    made: usize,
}

/// Does `operations` on contexts in a store with memory for everything, and compares after each what is
/// held. Nothing is on disk, so nothing is lost or taken elsewhere.
pub(super) fn count(operations: &[Operation]) {
    let ledger = Ledger::unlimited();
    let mut shelf = Shelf {
        world: World::new(),
        layout: layout(LayerState::Full),
        store: Arc::new(Store::new(ledger.clone(), Vec::new())),
        books: Vec::new(),
        pages: HashSet::new(),
        kept: HashMap::new(),
        made: 0,
    };
    shelf.open(&[]);
    for (step, operation) in operations.iter().enumerate() {
        let chosen = step * 5 % shelf.books.len();
        let len = shelf.books[chosen].tokens.len();
        match *operation {
            Operation::Read { count, text } => shelf.prefill(chosen, count, text),
            Operation::Message { text } => {
                shelf.prefill(chosen, BLOCK_TOKENS - len % BLOCK_TOKENS, text);
            }
            Operation::GiveUp { count } => shelf.give_up(chosen, count),
            Operation::Fork => {
                let fork = shelf.books[chosen].fork();
                shelf.books.push(fork);
            }
            Operation::Truncate { most } => shelf.truncate(chosen, most),
            Operation::Remove { start, count } => shelf.remove(chosen, start, count),
            Operation::Drop if shelf.books.len() > 1 => drop(shelf.books.swap_remove(chosen)),
            Operation::Open => {
                let wanted = shelf.books[chosen].tokens.clone();
                shelf.open(&wanted);
            }
            Operation::Drop | Operation::Lose { .. } | Operation::Restart | Operation::Export => {}
        }
        if shelf.books.len() > 4 {
            shelf.books.remove(0);
        }
        for book in &shelf.books {
            book.check();
        }
        let held = ledger.usage().kv;
        assert_eq!(held, shelf.bytes() as u64, "after {operation:?}");
    }
    drop(shelf);
    assert_eq!(ledger.usage().total(), 0, "bytes are given back");
}

impl Shelf {
    fn prefill(&mut self, chosen: usize, count: usize, text: usize) {
        let new = text_from(self.books[chosen].tokens.len(), count, text);
        let mut rest = &new[..];
        while !rest.is_empty() {
            let book = &mut self.books[chosen];
            let count = book.context.next_pass(rest.len(), 96);
            let (pass, left) = rest.split_at(count);
            self.world.read(&mut book.context, pass);
            self.read(chosen, pass);
            rest = left;
            if rest.len() < BLOCK_TOKENS {
                self.books[chosen].context.checkpoint();
                self.keep(chosen);
            }
        }
    }

    /// Notes a pass over `new`.
    fn read(&mut self, chosen: usize, new: &[u32]) {
        self.begin(chosen);
        let number = self.number();
        let is_own = self.books[chosen].state.is_some_and(|state| {
            let kept = self.kept.values().filter(|kept| **kept == state).count();
            let in_use = self.books.iter().filter(|book| book.state == Some(state));
            kept + in_use.count() == 1
        });
        let page = self.number();
        let book = &mut self.books[chosen];
        // What was the state is written next, unless others refer to it.
        book.has_spare = is_own;
        book.state = Some(number);
        let before = book.tokens.len() / BLOCK_TOKENS;
        book.tokens.extend(new);
        let (full, rest) = (
            book.tokens.len() / BLOCK_TOKENS,
            book.tokens.len() % BLOCK_TOKENS,
        );
        book.open = match book.open.filter(|_| full == before) {
            Some(open) => Some(open),
            None => (rest > 0).then_some(page),
        };
        let texts = (before..full).map(|page| book.tokens[..(page + 1) * BLOCK_TOKENS].to_vec());
        self.pages.extend(texts);
        if book.tokens.len().is_multiple_of(CHECKPOINT_TOKENS) {
            self.keep(chosen);
        }
    }

    /// A pass that is not finished: the last page and the state that it would have written stay.
    fn give_up(&mut self, chosen: usize, count: usize) {
        let book = &mut self.books[chosen];
        let given_up = self
            .world
            .pass(&mut book.context, &vec![9; count], Control::GiveUp);
        given_up.unwrap();
        self.begin(chosen);
        self.books[chosen].has_spare = true;
    }

    /// Makes the page that a pass writes to a book's own.
    fn begin(&mut self, chosen: usize) {
        let open = self.books[chosen].open;
        let uses = self.books.iter().filter(|book| book.open == open).count();
        if open.is_some() && uses > 1 {
            self.books[chosen].open = Some(self.number());
        }
    }

    /// Notes that the state is kept, if this is a block edge.
    fn keep(&mut self, chosen: usize) {
        let book = &mut self.books[chosen];
        let len = book.tokens.len();
        let is_kept = book.regular.contains(&len) || book.messages.contains(&len);
        if len == 0 || !len.is_multiple_of(BLOCK_TOKENS) || is_kept {
            return;
        }
        let state = book.state.expect("what has tokens has a state");
        // Equal states are held once.
        book.state = Some(*self.kept.entry(book.tokens.clone()).or_insert(state));
        match len.is_multiple_of(CHECKPOINT_TOKENS) {
            true => book.regular.push(len),
            false => book.messages.push(len),
        }
        if book.messages.len() <= MESSAGES {
            return;
        }
        let text = book.tokens[..book.messages.remove(0)].to_vec();
        let state = self.kept[&text];
        let is_needed = |book: &Book| book.has_kept(&text) || book.state == Some(state);
        if !self.books.iter().any(is_needed) {
            self.kept.remove(&text);
        }
    }

    fn truncate(&mut self, chosen: usize, most: usize) {
        let book = &mut self.books[chosen];
        let len = book.tokens.len();
        let nearest = book.nearest(most);
        assert_eq!(book.context.resumable(most), Some(nearest));
        if nearest < most.min(len) {
            let refused = book.context.truncate(most.min(len)).unwrap_err();
            assert!(matches!(refused, KvError::NoCheckpoint { nearest: at, .. } if at == nearest));
        }
        book.context.truncate(nearest).unwrap();
        if nearest < len {
            let state = self.kept.get(&book.tokens[..nearest]);
            book.cut(nearest, state.copied());
        }
    }

    /// A span cannot be removed, except from the end, which is going back.
    fn remove(&mut self, chosen: usize, start: usize, count: usize) {
        let book = &mut self.books[chosen];
        let (end, len) = (start + count, book.tokens.len());
        let moved = book.context.fork();
        assert!(book.context.append_moved(&moved, start..end).is_err());
        match book.context.remove_span(start..end) {
            Ok(()) => {
                assert_eq!((end, book.nearest(start)), (len, start));
                let state = self.kept.get(&book.tokens[..start]);
                book.cut(start, state.copied());
            }
            Err(KvError::BeyondEnd { .. }) => assert!(end > len),
            Err(KvError::SpanInState { span }) => assert!(span == (start..end) && end < len),
            Err(KvError::NoCheckpoint { nearest, .. }) => {
                assert_eq!((end, book.nearest(start)), (len, nearest));
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// A book with what is held of `wanted`: up to the last kept state on its way.
    fn open(&mut self, wanted: &[u32]) {
        let is_there = |end: &usize| {
            let ends = (BLOCK_TOKENS..=*end).step_by(BLOCK_TOKENS);
            let mut pages = ends.map(|end| self.pages.contains(&wanted[..end]));
            self.kept.contains_key(&wanted[..*end]) && pages.all(|page| page)
        };
        let ends = (1..=wanted.len() / BLOCK_TOKENS).map(|pages| pages * BLOCK_TOKENS);
        let end = ends.rev().find(is_there).unwrap_or(0);
        let mut context = context_in(&self.layout, &self.store);
        assert_eq!(context.attach(wanted).unwrap(), end);
        let (mut regular, mut messages) = (Vec::new(), Vec::new());
        if end > 0 {
            match end.is_multiple_of(CHECKPOINT_TOKENS) {
                true => regular.push(end),
                false => messages.push(end),
            }
        }
        self.books.push(Book {
            context,
            tokens: wanted[..end].to_vec(),
            open: None,
            state: self.kept.get(&wanted[..end]).copied(),
            has_spare: false,
            regular,
            messages,
        });
    }

    fn number(&mut self) -> usize {
        self.made += 1;
        self.made
    }

    /// Bytes of all pages and states that must be held, each once.
    fn bytes(&self) -> usize {
        let open: HashSet<usize> = self.books.iter().filter_map(|book| book.open).collect();
        let states = self.books.iter().filter_map(|book| book.state);
        let states: HashSet<usize> = states.chain(self.kept.values().copied()).collect();
        let spare = self.books.iter().filter(|book| book.has_spare).count();
        PAGE * (self.pages.len() + open.len()) + state_bytes() * (states.len() + spare)
    }
}

impl Book {
    fn fork(&self) -> Book {
        Book {
            context: self.context.fork(),
            tokens: self.tokens.clone(),
            open: self.open,
            state: self.state,
            has_spare: false,
            regular: self.regular.clone(),
            messages: self.messages.clone(),
        }
    }

    /// The longest prefix of at most `most` tokens that it can go back to.
    fn nearest(&self, most: usize) -> usize {
        if most >= self.tokens.len() {
            return self.tokens.len();
        }
        let kept = self.regular.iter().chain(&self.messages);
        kept.copied().filter(|&at| at <= most).max().unwrap_or(0)
    }

    /// Whether it has kept the state after `text`.
    fn has_kept(&self, text: &[u32]) -> bool {
        let is_kept = self.messages.contains(&text.len()) || self.regular.contains(&text.len());
        is_kept && self.tokens.starts_with(text)
    }

    /// Goes back to `len` tokens, where `state` was kept.
    fn cut(&mut self, len: usize, state: Option<usize>) {
        self.tokens.truncate(len);
        self.regular.retain(|&at| at <= len);
        self.messages.retain(|&at| at <= len);
        (self.open, self.state) = (None, state);
    }

    fn check(&self) {
        assert_eq!(self.context.tokens(), self.tokens);
        let pages = self.tokens.len().div_ceil(BLOCK_TOKENS);
        let states = usize::from(!self.tokens.is_empty());
        let bytes = PAGE * pages + state_bytes() * states;
        assert_eq!(self.context.kv_bytes(), bytes as u64);
    }
}
