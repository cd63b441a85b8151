//! A naive model of which pages are held: for every context its tokens, the slot of each, and the page
//! that each slot is in, shared or not. What the ledger counts must be the union of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use longview_kv::tier::{BlockKey, Origin};
use longview_kv::{BlockHash, Context, KvError, KvLayout, LayerState, Ledger, Store};

use super::rotated::Reader;
use super::{Operation, context, layout, origin, text_from};

/// Tokens of a page.
const PAGE: usize = 64;

/// Bytes of the pages of one layer: one head of 16 channels, keys and values in single precision.
const LAYER: u64 = 64 * 2 * 16 * 4;

/// Stands for a slot of a page in which no token is.
const NO_TOKEN: u32 = u32::MAX;

/// The pages of 64 slots that belong together, one a group.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Page {
    /// Full, or left before it was, and never written again, under this name.
    Sealed(BlockKey),
    /// Being written; with a number of its own.
    Open(usize),
}

/// A context, and what it must refer to.
struct Book {
    context: Context,
    tokens: Vec<u32>,
    /// The slot of every token.
    slots: Vec<usize>,
    /// The pages of every group by their places.
    pages: Vec<BTreeMap<usize, Page>>,
}

/// A group of layers: how far they see, and the bytes of a page of all of them.
#[derive(Clone, Copy)]
struct Group {
    window: usize,
    bytes: u64,
}

struct Shelf {
    layout: Arc<KvLayout>,
    store: Arc<Store>,
    origin: Arc<Origin>,
    reader: Reader,
    groups: Vec<Group>,
    books: Vec<Book>,
    /// Sealed pages in memory, whether a context refers to them or not.
    held: HashSet<BlockKey>,
    /// What is in the slots of each that was ever sealed.
    content: HashMap<BlockKey, [u32; PAGE]>,
    /// What pages are called that were read exactly, by all tokens up to their ends.
    names: HashMap<Vec<u32>, BlockHash>,
    /// Which of the pages made each is: text that is moved may give one page two names.
    bodies: HashMap<BlockKey, usize>,
    /// Pages made so far.
    made: usize,
}

/// Does `operations` on contexts in a store with memory for everything, and compares after each which
/// pages are held. Nothing is on disk, so nothing is lost or taken elsewhere.
pub(super) fn count(state: LayerState, operations: &[Operation]) {
    let ledger = Ledger::unlimited();
    let mut shelf = Shelf::new(state, &ledger);
    shelf.add(Vec::new(), Vec::new());
    for (step, operation) in operations.iter().enumerate() {
        let (books, chosen) = (shelf.books.len(), step * 7 % shelf.books.len());
        match *operation {
            Operation::Read { count, text } => shelf.read(chosen, count, text),
            Operation::Fork => {
                let fork = shelf.books[chosen].fork();
                shelf.books.push(fork);
            }
            Operation::Truncate { keep } => shelf.truncate(chosen, keep),
            Operation::Remove { start, count } => shelf.remove(chosen, start..start + count),
            Operation::Move { start, count } => {
                let other = shelf.books[(step * 7 + 1) % books].fork();
                shelf.append_moved(chosen, &other, start..start + count);
            }
            Operation::Drop if books > 1 => drop(shelf.books.swap_remove(chosen)),
            Operation::Open => shelf.open(chosen),
            Operation::Drop | Operation::Lose { .. } | Operation::Restart | Operation::Export => {}
        }
        if shelf.books.len() > 5 {
            shelf.books.remove(0);
        }
        shelf.check();
        assert_eq!(ledger.usage().kv, shelf.bytes(), "after {operation:?}");
    }
    drop(shelf);
    assert_eq!(ledger.usage().total(), 0, "bytes are given back");
}

impl Shelf {
    fn new(state: LayerState, ledger: &Ledger) -> Shelf {
        let group = |window, layers| Group {
            window,
            bytes: layers * LAYER,
        };
        Shelf {
            layout: layout(state),
            store: Arc::new(Store::new(ledger.clone(), Vec::new())),
            origin: origin(),
            reader: Reader::new(1),
            groups: match state {
                LayerState::Window { tokens } => vec![group(usize::MAX, 1), group(tokens, 1)],
                _ => vec![group(usize::MAX, 2)],
            },
            books: Vec::new(),
            held: HashSet::new(),
            content: HashMap::new(),
            names: HashMap::new(),
            bodies: HashMap::new(),
            made: 0,
        }
    }

    /// A book that has taken over `tokens` in the pages `pages`.
    fn add(&mut self, tokens: Vec<u32>, pages: Vec<BTreeMap<usize, Page>>) {
        let mut context = context(&self.layout, &self.store, &self.origin);
        assert_eq!(context.attach(&tokens).unwrap(), tokens.len());
        let none = || self.groups.iter().map(|_| BTreeMap::new()).collect();
        self.books.push(Book {
            context,
            slots: (0..tokens.len()).collect(),
            pages: if pages.is_empty() { none() } else { pages },
            tokens,
        });
    }

    fn read(&mut self, chosen: usize, count: usize, text: u32) {
        let open: HashMap<usize, usize> = self.uses();
        let Shelf {
            reader,
            groups,
            books,
            ..
        } = self;
        let book = &mut books[chosen];
        let (len, next) = (book.tokens.len(), book.next_slot());
        let new = text_from(len, count, text);
        reader.read(&mut book.context, &new, 2).unwrap();
        // What no token after the last full page sees is given up.
        let mut passed = Vec::new();
        for (pages, group) in book.pages.iter_mut().zip(&*groups) {
            let first = (len - len % PAGE + 1).saturating_sub(group.window);
            let seen = book.slots.get(first).copied().unwrap_or(next) / PAGE;
            let kept = pages.split_off(&seen);
            passed.extend(std::mem::replace(pages, kept).into_values());
        }
        self.give_back(&passed);
        // What is written is this context's own.
        let Shelf { books, made, .. } = self;
        let book = &mut books[chosen];
        let written = next / PAGE..(next + count).div_ceil(PAGE);
        for pages in &mut book.pages {
            for place in written.clone() {
                let is_own =
                    matches!(pages.get(&place), Some(Page::Open(number)) if open[number] == 1);
                if !is_own {
                    *made += 1;
                    pages.insert(place, Page::Open(*made));
                }
            }
        }
        book.tokens.extend(new);
        book.slots.extend(next..next + count);
        self.seal(chosen, written.start..(next + count) / PAGE);
    }

    /// Of sealed pages that nobody else refers to, memory is given back, one after another.
    fn give_back(&mut self, passed: &[Page]) {
        let still: HashSet<BlockKey> = self.books.iter().flat_map(Book::sealed).collect();
        for (at, page) in passed.iter().enumerate() {
            let Page::Sealed(key) = page else { continue };
            let body = self.bodies[key];
            let later = &passed[at + 1..];
            let is_needed = still.contains(key)
                || later.contains(page)
                || later.contains(&Page::Open(body))
                || self.uses()[&body] > 1;
            if !is_needed {
                self.held.remove(key);
            }
        }
    }

    /// Notes that the pages `places` of a book are sealed.
    fn seal(&mut self, chosen: usize, places: Range<usize>) {
        let book = &mut self.books[chosen];
        let is_exact = book.context.is_exact();
        for (group, pages) in book.pages.iter_mut().enumerate() {
            let mut names = book.context.keys();
            names.retain(|key| usize::from(key.group) == group);
            let is_named = |(place, page): (&usize, &Page)| {
                matches!(page, Page::Sealed(_)) || places.contains(place)
            };
            let own = pages.iter().filter(|page| is_named(*page)).count();
            // A cut context also names what its last full page sees and others still have.
            let others: Vec<BlockKey> = names.drain(..names.len() - own).collect();
            assert!(others.iter().all(|key| self.held.contains(key)));
            let mut names = names.into_iter();
            for (&place, page) in pages.iter_mut() {
                match page {
                    Page::Sealed(key) => assert_eq!(names.next(), Some(*key)),
                    Page::Open(number) if places.contains(&place) => {
                        let key = names.next().expect("a page that was left is sealed");
                        if self.held.insert(key) {
                            self.bodies.insert(key, *number);
                        }
                        *page = Page::Sealed(key);
                        let mut content = [NO_TOKEN; PAGE];
                        for (&slot, &token) in book.slots.iter().zip(&book.tokens) {
                            if slot / PAGE == place {
                                content[slot % PAGE] = token;
                            }
                        }
                        let known = *self.content.entry(key).or_insert(content);
                        assert_eq!(known, content, "equal names are equal texts");
                        if is_exact {
                            let text = book.tokens[..(place + 1) * PAGE].to_vec();
                            let name = *self.names.entry(text).or_insert(key.hash);
                            assert_eq!(name, key.hash, "equal texts have one name");
                        }
                    }
                    Page::Open(_) => {}
                }
            }
            assert_eq!(names.next(), None, "nothing else is sealed");
        }
    }

    fn truncate(&mut self, chosen: usize, keep: usize) {
        let book = &mut self.books[chosen];
        match book.context.truncate(keep) {
            Err(KvError::BeyondEnd { .. }) => assert!(keep > book.tokens.len()),
            Err(KvError::WindowPassed { .. }) => {
                let first = |group: &Group| (keep + 1).saturating_sub(group.window);
                let lacks = |(group, pages): (&Group, &BTreeMap<usize, Page>)| {
                    !pages.contains_key(&(book.slots[first(group)] / PAGE))
                };
                assert!(self.groups.iter().zip(&book.pages).any(lacks));
            }
            other => {
                other.unwrap();
                book.cut(keep);
            }
        }
    }

    fn remove(&mut self, chosen: usize, span: Range<usize>) {
        let book = &mut self.books[chosen];
        match book.context.remove_span(span.clone()) {
            Err(KvError::BeyondEnd { .. }) => assert!(span.end > book.tokens.len()),
            Err(KvError::WindowPassed { .. }) => assert!(self.groups.len() > 1),
            other => {
                other.unwrap();
                if span.end == book.tokens.len() {
                    return book.cut(span.start);
                }
                book.tokens.drain(span.clone());
                book.slots.drain(span);
                let used: HashSet<usize> = book.slots.iter().map(|slot| slot / PAGE).collect();
                for pages in &mut book.pages {
                    pages.retain(|place, _| used.contains(place));
                }
            }
        }
    }

    fn append_moved(&mut self, chosen: usize, from: &Book, span: Range<usize>) {
        let book = &mut self.books[chosen];
        match book.context.append_moved(&from.context, span.clone()) {
            Err(KvError::BeyondEnd { .. }) => assert!(span.end > from.tokens.len()),
            Err(KvError::WindowPassed { .. }) => assert!(self.groups.len() > 1),
            other => {
                other.unwrap();
                let (first, last) = (
                    from.slots[span.start] / PAGE,
                    from.slots[span.end - 1] / PAGE,
                );
                // It begins with a page, as far into it as it was.
                let place = book.next_slot().div_ceil(PAGE);
                for (pages, there) in book.pages.iter_mut().zip(&from.pages) {
                    if !there.contains_key(&first) {
                        // A window has passed its beginning, and with it what is before it here.
                        pages.clear();
                    }
                    let taken = there.range(first..=last);
                    pages.extend(taken.map(|(at, page)| (place + at - first, *page)));
                }
                book.tokens.extend(&from.tokens[span.clone()]);
                let slots = from.slots[span].iter();
                book.slots
                    .extend(slots.map(|slot| slot + place * PAGE - first * PAGE));
                // No token comes to the pages before the last any more.
                let left = book.next_slot() / PAGE;
                self.seal(chosen, 0..left);
            }
        }
    }

    /// Opens a context for what another has read: as long as all pages are there that its end sees.
    fn open(&mut self, chosen: usize) {
        let wanted = self.books[chosen].tokens.clone();
        let names = (1..=wanted.len() / PAGE).map_while(|end| {
            let hash = *self.names.get(&wanted[..end * PAGE])?;
            let key = BlockKey { hash, group: 0 };
            self.held.contains(&key).then_some(hash)
        });
        let names: Vec<BlockHash> = names.collect();
        let pages = |group: usize, end: usize| {
            let first = (end * PAGE + 1).saturating_sub(self.groups[group].window) / PAGE;
            let page = |place: usize| {
                let key = BlockKey {
                    hash: names[place],
                    group: group as u16,
                };
                self.held
                    .contains(&key)
                    .then_some((place, Page::Sealed(key)))
            };
            (first..end).map(page).collect::<Option<BTreeMap<_, _>>>()
        };
        let all = |end: usize| {
            let groups = (0..self.groups.len()).map(|group| pages(group, end));
            groups.collect::<Option<Vec<_>>>()
        };
        let found = (1..=names.len())
            .rev()
            .find_map(|end| Some((end, all(end)?)));
        let (end, pages) = found.unwrap_or_default();
        // Where more were taken over, or less, there would be more tokens, or fewer.
        let mut probe = context(&self.layout, &self.store, &self.origin);
        assert_eq!(probe.attach(&wanted).unwrap(), end * PAGE);
        self.add(wanted[..end * PAGE].to_vec(), pages);
    }

    /// Compares what every book refers to with what its context says.
    fn check(&mut self) {
        for chosen in 0..self.books.len() {
            self.seal(chosen, 0..0);
            let book = &self.books[chosen];
            assert_eq!(book.context.tokens(), book.tokens);
            let mut bytes = 0;
            for (pages, group) in book.pages.iter().zip(&self.groups) {
                bytes += group.bytes * pages.len() as u64;
                let used: HashSet<usize> = book.slots.iter().map(|slot| slot / PAGE).collect();
                assert!(pages.keys().all(|place| used.contains(place)));
                let first = (book.tokens.len() + 1).saturating_sub(group.window);
                let mut seen = book.slots[first.min(book.slots.len())..].iter();
                assert!(seen.all(|slot| pages.contains_key(&(slot / PAGE))));
            }
            assert_eq!(book.context.kv_bytes(), bytes);
            for (&slot, &token) in book.slots.iter().zip(&book.tokens) {
                for pages in &book.pages {
                    if let Some(Page::Sealed(key)) = pages.get(&(slot / PAGE)) {
                        assert_eq!(self.content[key][slot % PAGE], token);
                    }
                }
            }
        }
    }

    /// Bytes of all pages that must be held, each once.
    fn bytes(&self) -> u64 {
        let of_group =
            |(index, group): (usize, &Group)| group.bytes * self.pages_held(index).len() as u64;
        self.groups.iter().enumerate().map(of_group).sum()
    }

    /// The numbers of a group's pages, open and sealed.
    fn pages_held(&self, group: usize) -> HashSet<usize> {
        let pages = self
            .books
            .iter()
            .flat_map(|book| book.pages[group].values());
        let open = pages.filter_map(|page| match page {
            Page::Open(number) => Some(*number),
            Page::Sealed(_) => None,
        });
        let sealed = self.held.iter();
        let sealed = sealed.filter(|key| usize::from(key.group) == group);
        open.chain(sealed.map(|key| self.bodies[key])).collect()
    }

    /// How many books and places refer to each page as an open one, and names that it has.
    fn uses(&self) -> HashMap<usize, usize> {
        let mut uses = HashMap::new();
        for key in &self.held {
            *uses.entry(self.bodies[key]).or_default() += 1;
        }
        let pages = self.books.iter().flat_map(|book| &book.pages);
        for page in pages.flat_map(BTreeMap::values) {
            if let Page::Open(number) = page {
                *uses.entry(*number).or_default() += 1;
            }
        }
        uses
    }
}

impl Book {
    fn fork(&self) -> Book {
        Book {
            context: self.context.fork(),
            tokens: self.tokens.clone(),
            slots: self.slots.clone(),
            pages: self.pages.clone(),
        }
    }

    /// The sealed pages it refers to.
    fn sealed(&self) -> impl Iterator<Item = BlockKey> {
        let pages = self.pages.iter().flat_map(BTreeMap::values);
        pages.filter_map(|page| match page {
            Page::Sealed(key) => Some(*key),
            Page::Open(_) => None,
        })
    }

    /// Where the next token goes.
    fn next_slot(&self) -> usize {
        self.slots.last().map_or(0, |slot| slot + 1)
    }

    /// Forgets tokens from `len` on, and the pages behind the last one.
    fn cut(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.slots.truncate(len);
        let end = self.next_slot().div_ceil(PAGE);
        for pages in &mut self.pages {
            pages.retain(|place, _| *place < end);
        }
    }
}
