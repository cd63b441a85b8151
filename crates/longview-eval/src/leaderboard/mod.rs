//! The leaderboard: every method of the registry on the tasks that the dense path does not fail.

mod page;

use longview_engine::{Control, Engine};
use longview_kv::keep::Question;
use longview_methods::{Method, Role, Stage, registry};

pub use page::{leaderboard_page, remarks_of};

use crate::error::EvalError;
use crate::outcome::{Row, Sight};
use crate::record::{Identity, Record};
use crate::report::{DENSE_FAILS_BELOW, dense_fails};
use crate::run::{Evaluation, Material, Plan, Refusal, RunProgress, Subject};
use crate::setup::{Setup, split};
use crate::share::Share;
use crate::task::Task;

/// The samples of all boards are measured in so many shares, one board after the other in each: what
/// is stopped early has some of everything.
const ROUNDS: usize = 10;

/// A task that the dense path fails is given up after so many samples, if it fails by more than chance.
const GIVEN_UP_AFTER: usize = 10;

/// What rules for budgets are measured with, and what merges are, up to the parameter that names them: the
/// papers of merges keep the first 4 tokens.
const SCORE_OF_BUDGETS: &str = "snapkv(";
const SCORE_OF_MERGES: &str = "h2o(sinks=4, ";

/// What is measured beside the registry's defaults: forms of the store of half the bits, with a window that
/// a text of 4,096 tokens does not fit, and as sparse as was claimed; such a window while a prompt is read; what
/// any score can be wrapped by, with one score; and the modes that a paper has beside its default.
const ALSO: [(&str, &str); 7] = [
    ("a-shape", "prefill=a-shape(local=1024)"),
    ("kivi", "store=kivi(bits=2)"),
    ("accllm", "store=accllm(window=1024)"),
    ("mustafar", "store=mustafar(sparsity=70%)"),
    ("snapkv", "keep=snapkv(chunks=16)"),
    ("kvzip", "keep=kvzip(alloc=uniform)"),
    ("kvzip", "keep=kvzip(alloc=heads)"),
];

/// What the leaderboard measures at one length.
#[derive(Clone, Debug)]
pub struct Board {
    /// Tokens of a sample.
    pub length: usize,
    /// Samples of a task.
    pub samples: usize,
    /// Budgets of methods that have one, in per cent.
    pub budgets: Vec<u32>,
    /// Methods with parameters, measured beside those of the registry: setups, to which the budgets are
    /// added where they name none.
    pub also: Vec<String>,
}

/// A setup on the board.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The method that is looked at.
    pub method: &'static Method,
    /// The text without the budget.
    pub family: String,
    /// Its budget in per cent, where it was given one.
    pub budget: Option<u32>,
    /// The whole text.
    pub setup: Setup,
}

/// Boards one after another, with one record.
pub struct Leaderboard<'a> {
    engine: &'a Engine,
    material: &'a Material,
    boards: &'a [Board],
    seed: u64,
    share: Share,
    /// What could not be used on each board, and why.
    refused: Vec<Vec<Refusal>>,
}

/// What was measured of one board.
#[derive(Clone, Debug)]
pub struct Standing {
    /// The board.
    pub board: Board,
    /// Its setups.
    pub entries: Vec<Entry>,
    /// Every task under the dense path; under the methods those that it does not fail.
    pub rows: Vec<Row>,
    /// Setups that could not be used, and why.
    pub refused: Vec<Refusal>,
}

impl Board {
    /// Every keep and read method with every budget, rules for budgets and merges with one score each, and
    /// every store method, as the registry has them, and what is measured beside them; and those that
    /// cannot be written without something only a user knows.
    pub fn entries(&self) -> (Vec<Entry>, Vec<Refusal>) {
        let mut wanted: Vec<(&'static Method, String)> = Vec::new();
        let budgeted = [Stage::Keep, Stage::Read].into_iter().flat_map(|stage| {
            registry::of(stage).filter(|method| {
                let mut parameters = method.parameters.iter();
                parameters.any(|parameter| parameter.name == "budget")
            })
        });
        wanted.extend(budgeted.map(|method| (method, format!("{}={}", method.stage, method.name))));
        for (role, score) in [
            (Role::Budgets, SCORE_OF_BUDGETS),
            (Role::Merge, SCORE_OF_MERGES),
        ] {
            let with = |part: &'static Method| {
                let text = format!("keep={score}{}={})", role.parameter(), part.name);
                (part, text)
            };
            wanted.extend(registry::parts(role).map(with));
        }
        for stage in [Stage::Prefill, Stage::Store] {
            for method in registry::of(stage).filter(|method| !method.exact) {
                wanted.push((method, format!("{stage}={}", method.name)));
            }
        }
        for (name, text) in ALSO {
            let found = wanted.iter().find(|(method, _)| method.name == name);
            wanted.extend(found.map(|(method, _)| (*method, text.to_owned())));
        }
        let mut refused = Vec::new();
        for text in &self.also {
            let parsed = Setup::parse(text).map_err(|error| error.to_string());
            match parsed.and_then(|setup| setup.first_method()) {
                Ok(method) => wanted.push((method, text.trim().to_owned())),
                Err(why) => refused.push(refusal(text, why)),
            }
        }
        let mut entries: Vec<Entry> = Vec::new();
        for (method, family) in wanted {
            let budgets: Vec<Option<u32>> = match takes_budget(method, &family) {
                true => self.budgets.iter().copied().map(Some).collect(),
                false => vec![None],
            };
            for budget in budgets {
                let text = match budget {
                    Some(budget) => with_budget(&family, budget),
                    None => family.clone(),
                };
                match Setup::parse(&text) {
                    Ok(setup) if entries.iter().any(|entry| entry.setup == setup) => {}
                    Ok(setup) => entries.push(Entry {
                        method,
                        family: family.clone(),
                        budget,
                        setup,
                    }),
                    // The same with every budget.
                    Err(_) if refused.iter().any(|known: &Refusal| known.setup == family) => {}
                    Err(error) => refused.push(refusal(&family, error.to_string())),
                }
            }
        }
        // What lacks a file is there with one.
        refused.retain(|refusal| {
            let is_of = |entry: &Entry| refusal.setup == format!("keep={}", entry.method.name);
            !entries.iter().any(is_of)
        });
        let between_turns = registry::of(Stage::Keep).filter(|method| {
            !method.exact && !method.parameters.iter().any(|p| p.name == "budget")
        });
        refused.extend(between_turns.map(|method| {
            let why = "it acts between the turns of a conversation, and tasks have one";
            refusal(&format!("keep={}", method.name), why.to_owned())
        }));
        (entries, refused)
    }

    fn plan(&self, tasks: Vec<Subject>, setups: Vec<Setup>, question: Sight, seed: u64) -> Plan {
        Plan {
            subjects: tasks,
            lengths: vec![self.length],
            setups,
            floors: false,
            samples: self.samples,
            depths: Vec::new(),
            question,
            generate: 0,
            seed,
            share: Share::ALL,
        }
    }

    /// Samples of the first `round` of the rounds together.
    fn samples_until(&self, round: usize) -> usize {
        (self.samples * round).div_ceil(ROUNDS)
    }
}

impl Entry {
    /// Whether it looks at the question, so that it is measured with the question seen as well.
    fn wants_question(&self) -> bool {
        let keep = self.setup.methods().keep();
        keep.is_some_and(|keep| keep.question == Question::Seen)
    }
}

impl<'a> Leaderboard<'a> {
    /// A leaderboard of `engine`, of which `share` is measured here.
    pub fn new(
        engine: &'a Engine,
        material: &'a Material,
        boards: &'a [Board],
        seed: u64,
        share: Share,
    ) -> Leaderboard<'a> {
        Leaderboard {
            engine,
            material,
            boards,
            seed,
            share,
            refused: vec![Vec::new(); boards.len()],
        }
    }

    /// What its outcomes depend on.
    ///
    /// # Errors
    /// When a length is beyond the model's context.
    pub fn identity(&self) -> Result<Identity, EvalError> {
        let plan = self.boards[0].plan(Vec::new(), Vec::new(), Sight::Unseen, self.seed);
        Ok(Evaluation::new(self.engine, self.material, &plan)?.identity())
    }

    /// Measures what `record` lacks, the dense path first: some samples of every board, then some more.
    ///
    /// # Errors
    /// As [`Evaluation::run`]. What was measured until then is in the record and in
    /// [`Leaderboard::standings`].
    pub fn run(
        &mut self,
        record: &mut Record,
        on: &mut dyn FnMut(&RunProgress) -> Control,
    ) -> Result<(), EvalError> {
        for round in 1..=ROUNDS {
            for (at, board) in self.boards.iter().enumerate() {
                let samples = board.samples_until(round);
                let mut run = |plan: &mut Plan, record: &mut Record| {
                    plan.samples = samples;
                    plan.share = self.share;
                    Evaluation::new(self.engine, self.material, plan)?.run(record, on)
                };
                // Where it is not known that the dense path solves a task it goes first, and alone;
                // elsewhere it shares its reading with the methods.
                let known = self.dense_rows(board, record)?;
                let open = unsolved(&known);
                let mut plan = board.plan(open, Vec::new(), Sight::Unseen, self.seed);
                run(&mut plan, record)?;
                let solved = solved(&self.dense_rows(board, record)?);
                let (entries, _) = board.entries();
                let seen = entries.iter().filter(|entry| entry.wants_question());
                let seen: Vec<Setup> = seen.map(|entry| entry.setup.clone()).collect();
                let unseen = entries.into_iter().map(|entry| entry.setup).collect();
                for (setups, sight) in [(unseen, Sight::Unseen), (seen, Sight::Seen)] {
                    let mut plan = board.plan(solved.clone(), setups, sight, self.seed);
                    for refusal in run(&mut plan, record)? {
                        if !self.refused[at].contains(&refusal) {
                            self.refused[at].push(refusal);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// What `record` has of every board.
    ///
    /// # Errors
    /// When a length is beyond the model's context.
    pub fn standings(&self, record: &Record) -> Result<Vec<Standing>, EvalError> {
        let mut standings = Vec::new();
        for (board, refused) in self.boards.iter().zip(&self.refused) {
            let mut rows = self.dense_rows(board, record)?;
            let solved = solved(&rows);
            let (entries, cannot) = board.entries();
            for sight in [Sight::Unseen, Sight::Seen] {
                let setups = entries.iter().map(|entry| entry.setup.clone()).collect();
                let plan = board.plan(solved.clone(), setups, sight, self.seed);
                let evaluation = Evaluation::new(self.engine, self.material, &plan)?;
                let of_plan = evaluation.rows(record).into_iter();
                // The dense path with the question unseen is there already, on all tasks.
                let is_new = |row: &Row| row.setup != "dense" || sight == Sight::Seen;
                rows.extend(of_plan.filter(is_new));
            }
            standings.push(Standing {
                board: board.clone(),
                entries,
                rows,
                refused: cannot.iter().chain(refused).cloned().collect(),
            });
        }
        Ok(standings)
    }

    /// Every task of `board` under the dense path.
    fn dense_rows(&self, board: &Board, record: &Record) -> Result<Vec<Row>, EvalError> {
        let tasks = Task::ruler().iter().map(Subject::Task).collect();
        let plan = board.plan(tasks, Vec::new(), Sight::Unseen, self.seed);
        Ok(Evaluation::new(self.engine, self.material, &plan)?.rows(record))
    }
}

/// The tasks that the dense path does not fail in `rows`, which are its own.
fn solved(rows: &[Row]) -> Vec<Subject> {
    let passes = |task: &&Task| {
        let mut of_task = rows.iter().filter(|row| row.task == task.name);
        of_task.any(|row| !dense_fails(row))
    };
    let tasks = Task::ruler().iter().filter(passes);
    tasks.map(Subject::Task).collect()
}

/// The tasks of which that is not known, but for those that it fails by more than chance.
fn unsolved(rows: &[Row]) -> Vec<Subject> {
    let is_open = |task: &&Task| {
        let mut of_task = rows.iter().filter(|row| row.task == task.name);
        of_task.all(|row| {
            let ends_below = row.interval.is_some_and(|[_, end]| end < DENSE_FAILS_BELOW);
            let given_up = row.samples >= GIVEN_UP_AFTER && ends_below;
            dense_fails(row) && !given_up
        })
    };
    let tasks = Task::ruler().iter().filter(is_open);
    tasks.map(Subject::Task).collect()
}

/// Whether budgets are to be added to `family`, a text of `method`.
fn takes_budget(method: &Method, family: &str) -> bool {
    let is_part = method.role() != Role::Method;
    let declares = method.parameters.iter().any(|p| p.name == "budget");
    (is_part || declares) && !family.contains("budget=")
}

/// `family`, which has no budget, with one of `budget` per cent.
fn with_budget(family: &str, budget: u32) -> String {
    let parts = split(family, '+');
    let first = parts[0].trim();
    let first = match first.strip_suffix(')') {
        Some(open) => format!("{open}, budget={budget}%)"),
        None => format!("{first}(budget={budget}%)"),
    };
    let all: Vec<&str> = std::iter::once(&*first)
        .chain(parts[1..].iter().copied())
        .collect();
    all.join("+")
}

fn refusal(setup: &str, why: String) -> Refusal {
    Refusal {
        setup: setup.to_owned(),
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn board() -> Board {
        Board {
            length: 1024,
            samples: 1,
            budgets: vec![10, 50],
            also: vec![
                "snapkv(kernel=21)+q8".to_owned(),
                "label-words(labels=\"a|b\")".to_owned(),
                "snapkv(kernal=21)".to_owned(),
            ],
        }
    }

    #[test]
    fn every_method_of_the_registry_is_on_it() {
        let (entries, refused) = board().entries();
        let texts: Vec<String> = entries.iter().map(|one| one.setup.to_string()).collect();
        let stages = [Stage::Prefill, Stage::Store, Stage::Keep, Stage::Read];
        let methods = stages.into_iter().flat_map(registry::of);
        let parts = [Role::Budgets, Role::Merge]
            .into_iter()
            .flat_map(registry::parts);
        for method in methods.chain(parts).filter(|method| !method.exact) {
            let name = method.name;
            let count = entries.iter().filter(|one| one.method == method).count();
            let is_it = |refusal: &&Refusal| refusal.setup == format!("keep={name}");
            let left_out = refused.iter().filter(is_it).count();
            // Equal shares are what a score has without a rule.
            let is_there = texts.iter().any(|text| text.contains(name));
            assert!(
                count + left_out > 0 || is_there,
                "{name}: {texts:?} {refused:?}"
            );
            assert!(count == 0 || left_out == 0, "{name}");
        }
        for wanted in [
            "snapkv(budget=50%",
            "label-words(labels=\"a|b\"",
            "kivi(bits=2",
            "accllm(window=1024",
            "mustafar(sparsity=0.7",
            "snapkv(budget=50%, window=32, kernel=5, pool=avg, sinks=0, alloc=uniform, merge=none, decode=never, chunks=16",
            "kvzip(budget=10%, part=2048, sinks=4, recent=8, alloc=uniform",
            "kvzip(budget=10%, part=2048, sinks=4, recent=8, alloc=heads",
        ] {
            let there = texts.iter().any(|text| text.starts_with(wanted));
            assert!(there, "{wanted}: {texts:?}");
        }
        assert!(
            texts
                .iter()
                .any(|text| text.ends_with("+q8") && text.contains("kernel=21"))
        );
        let why = |setup: &str| {
            let found = refused.iter().find(|refusal| refusal.setup == setup);
            found.map(|refusal| refusal.why.clone()).unwrap_or_default()
        };
        assert!(why("snapkv(kernal=21)").contains("did you mean \"kernel\"?"));
        assert!(why("keep=timrun").contains("between the turns"));
    }

    #[test]
    fn the_dense_path_goes_on_alone_while_it_may_yet_solve_a_task() {
        use crate::outcome::rows;
        use crate::outcome::tests::outcome;
        let of = |task: &str, right: usize, samples: usize| {
            let outcomes = (0..samples).map(|sample| {
                let score = if sample < right { 100.0 } else { 0.0 };
                outcome(task, "dense", sample, score)
            });
            rows(&outcomes.collect::<Vec<_>>())
        };
        let known = [
            of("vt", 1, 12),
            of("cwe", 8, 12),
            of("fwe", 12, 12),
            of("qa-1", 0, 4),
        ]
        .concat();
        let names = |subjects: Vec<Subject>| -> Vec<&str> {
            subjects.iter().map(|subject| subject.name()).collect()
        };
        assert_eq!(names(solved(&known)), ["fwe"]);
        let open = names(unsolved(&known));
        assert_eq!(
            open.len(),
            11,
            "all but vt, which is given up, and fwe: {open:?}"
        );
        assert!(!open.contains(&"vt") && !open.contains(&"fwe") && open.contains(&"qa-1"));
    }

    #[test]
    fn a_board_stopped_early_has_some_of_everything() {
        let board = Board {
            samples: 25,
            ..board()
        };
        let shares: Vec<usize> = (1..=ROUNDS)
            .map(|round| board.samples_until(round))
            .collect();
        assert_eq!(shares, [3, 5, 8, 10, 13, 15, 18, 20, 23, 25]);
    }
}
