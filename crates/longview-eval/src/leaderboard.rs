//! The leaderboard: every method of the registry on the tasks that the dense path does not fail.

use longview_engine::{Control, Engine};
use longview_methods::{Stage, registry};

use crate::error::EvalError;
use crate::outcome::{Row, Sight};
use crate::record::{Identity, Record};
use crate::report::{dense_fails, markdown_table, summaries, summary_table, table};
use crate::run::{Evaluation, Material, Plan, Refusal, RunProgress, Subject};
use crate::setup::Setup;
use crate::task::Task;

/// What the leaderboard measures at one length.
#[derive(Clone, Debug)]
pub struct Board {
    /// Tokens of a sample.
    pub length: usize,
    /// Samples of a task.
    pub samples: usize,
    /// Budgets of the keep methods, in per cent.
    pub budgets: Vec<u32>,
}

/// Boards one after another, with one record.
pub struct Leaderboard<'a> {
    engine: &'a Engine,
    material: &'a Material,
    boards: &'a [Board],
    seed: u64,
}

/// What was measured of one board.
#[derive(Clone, Debug)]
pub struct Standing {
    /// The board.
    pub board: Board,
    /// Every task under the dense path; under the methods those that it does not fail.
    pub rows: Vec<Row>,
    /// Setups that could not be used, and why.
    pub refused: Vec<Refusal>,
}

impl Board {
    /// Every keep and read method with every budget, and every store method, as the registry has them;
    /// and those that cannot be written without something only a user knows.
    pub fn setups(&self) -> (Vec<Setup>, Vec<Refusal>) {
        let budgeted = [Stage::Keep, Stage::Read].into_iter().flat_map(|stage| {
            registry::of(stage).filter(|method| {
                let mut parameters = method.parameters.iter();
                parameters.any(|parameter| parameter.name == "budget")
            })
        });
        let kept = budgeted.flat_map(|method| {
            let (stage, name) = (method.stage, method.name);
            let of = |budget: &u32| format!("{stage}={name}(budget={budget}%)");
            self.budgets.iter().map(of).collect::<Vec<_>>()
        });
        let stored = registry::of(Stage::Store)
            .filter(|method| !method.exact)
            .map(|method| format!("store={}", method.name));
        let more = ["store=kivi(bits=2)".to_owned()];
        let (mut setups, mut refused) = (Vec::new(), Vec::new());
        for text in kept.chain(stored).chain(more) {
            match Setup::parse(&text) {
                Ok(setup) => setups.push(setup),
                Err(error) => refused.push(Refusal {
                    setup: text,
                    why: error.to_string(),
                }),
            }
        }
        (setups, refused)
    }

    fn plan(&self, tasks: Vec<Subject>, setups: Vec<Setup>, seed: u64) -> Plan {
        Plan {
            subjects: tasks,
            lengths: vec![self.length],
            setups,
            samples: self.samples,
            depths: Vec::new(),
            question: Sight::Unseen,
            generate: 0,
            seed,
        }
    }
}

impl<'a> Leaderboard<'a> {
    /// A leaderboard of `engine`.
    pub fn new(
        engine: &'a Engine,
        material: &'a Material,
        boards: &'a [Board],
        seed: u64,
    ) -> Leaderboard<'a> {
        Leaderboard {
            engine,
            material,
            boards,
            seed,
        }
    }

    /// What its outcomes depend on.
    ///
    /// # Errors
    /// When a length is beyond the model's context.
    pub fn identity(&self) -> Result<Identity, EvalError> {
        let plan = self.boards[0].plan(Vec::new(), Vec::new(), self.seed);
        Ok(Evaluation::new(self.engine, self.material, &plan)?.identity())
    }

    /// Measures what `record` lacks, the dense path first.
    ///
    /// # Errors
    /// As [`Evaluation::run`].
    pub fn run(
        &self,
        record: &mut Record,
        on: &mut dyn FnMut(&RunProgress) -> Control,
    ) -> Result<Vec<Standing>, EvalError> {
        let tasks: Vec<Subject> = Task::ruler().iter().map(Subject::Task).collect();
        let mut standings = Vec::new();
        for board in self.boards {
            let dense = board.plan(tasks.clone(), Vec::new(), self.seed);
            let evaluation = Evaluation::new(self.engine, self.material, &dense)?;
            evaluation.run(record, on)?;
            let mut rows = evaluation.rows(record);
            let passes = |subject: &&Subject| {
                let fails = rows
                    .iter()
                    .find(|row| row.task == subject.name())
                    .is_none_or(dense_fails);
                !fails
            };
            let solved: Vec<Subject> = tasks.iter().filter(passes).copied().collect();
            let (setups, mut refused) = board.setups();
            let plan = board.plan(solved, setups, self.seed);
            let evaluation = Evaluation::new(self.engine, self.material, &plan)?;
            refused.extend(evaluation.run(record, on)?);
            let under_methods = evaluation.rows(record).into_iter();
            rows.extend(under_methods.filter(|row| row.setup != "dense"));
            standings.push(Standing {
                board: board.clone(),
                rows,
                refused,
            });
        }
        Ok(standings)
    }
}

/// The leaderboard as a Markdown page. `about` says what was run, a paragraph each; `remarks` is what
/// there is to say of it.
pub fn leaderboard_page(standings: &[Standing], about: &[String], remarks: &str) -> String {
    let mut text = String::from("# Leaderboard\n\n");
    for paragraph in about {
        text.push_str(&format!("{paragraph}\n\n"));
    }
    text.push_str(remarks.trim());
    text.push('\n');
    for standing in standings {
        let Standing {
            board,
            rows,
            refused,
        } = standing;
        text.push_str(&format!(
            "\n## {} tokens, {} samples a task\n\nMeans over the tasks that the dense path does not fail, \
             best first.\n\n",
            board.length, board.samples
        ));
        let mut means = summaries(rows);
        means.sort_by(|a, b| b.score.total_cmp(&a.score));
        text.push_str(&markdown_table(&summary_table(&means)));
        let failed: Vec<&str> = rows
            .iter()
            .filter(|row| row.setup == "dense" && dense_fails(row))
            .map(|row| row.task.as_str())
            .collect();
        if !failed.is_empty() {
            let failed = failed.join(", ");
            text.push_str(&format!(
                "\nThe dense path fails {failed}; nothing was run there under methods.\n"
            ));
        }
        for refusal in refused {
            text.push_str(&format!(
                "\nNot measured: {} ({}).\n",
                refusal.setup, refusal.why
            ));
        }
        text.push_str("\n<details><summary>Every task</summary>\n\n");
        text.push_str(&markdown_table(&table(rows)));
        text.push_str("\n</details>\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::rows;
    use crate::outcome::tests::outcome;

    fn board() -> Board {
        Board {
            length: 1024,
            samples: 1,
            budgets: vec![10, 50],
        }
    }

    #[test]
    fn every_method_of_the_registry_is_on_it() {
        let (setups, refused) = board().setups();
        let setups: Vec<String> = setups.iter().map(Setup::to_string).collect();
        for method in registry::of(Stage::Store).filter(|method| !method.exact) {
            let there = |setup: &String| setup.starts_with(method.name);
            assert!(setups.iter().any(there), "{}: {setups:?}", method.name);
        }
        let budgeted = registry::of(Stage::Keep)
            .filter(|method| method.parameters.iter().any(|p| p.name == "budget"));
        for method in budgeted {
            let name = method.name;
            let measured = setups
                .iter()
                .filter(|setup| setup.starts_with(&format!("{name}(")));
            let left_out = refused
                .iter()
                .filter(|refusal| refusal.setup.starts_with(&format!("keep={name}(")));
            assert_eq!(
                measured.count() + left_out.count(),
                2,
                "{name}: {setups:?} {refused:?}"
            );
        }
    }

    #[test]
    fn the_page_says_what_failed_and_what_was_refused() {
        let standing = Standing {
            board: board(),
            rows: rows(&[
                outcome("easy", "dense", 0, 100.0),
                outcome("hard", "dense", 0, 10.0),
                outcome("easy", "q4", 0, 90.0),
            ]),
            refused: vec![Refusal {
                setup: "x(budget=10%)".to_owned(),
                why: "it needs a file".to_owned(),
            }],
        };
        let page = leaderboard_page(&[standing], &["On a model.".to_owned()], "Look here.");
        for words in [
            "On a model.",
            "Look here.",
            "fails hard",
            "x(budget=10%) (it needs a file)",
            "| q4 | 1024 |",
        ] {
            assert!(page.contains(words), "{words} in {page}");
        }
        assert!(
            page.find("| dense | 1024") < page.find("| q4 | 1024"),
            "best first: {page}"
        );
    }
}
