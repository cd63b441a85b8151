//! `longview explain`: what of a prompt would be taken over, from where, and why not more.

use longview::tier::Origin;
use longview::{BLOCK_TOKENS, EngineOptions, Explanation, Lookup, ReuseEnd, Specials, Tokenizer};
use serde_json::{Map, Value, json};

use crate::args::{ExplainArgs, Format};
use crate::date;
use crate::documents::Documents;
use crate::failure::Failure;
use crate::output;
use crate::prompt::{DocumentPrompt, Earlier, shown, template_notice};
use crate::saved::Saved;
use crate::session::refused;
use crate::size::human_count;

/// Tokens an answer may have where nobody says, as for `--max-tokens`.
const ANSWER: usize = 512;

/// Tokens shown before the place where two texts part, and after it.
const SHOWN: usize = 16;

/// Explains without loading weights: a prompt's tokens and the store are all it takes.
pub(crate) fn run(args: &ExplainArgs, format: Format) -> Result<(), Failure> {
    let methods = args.methods.methods()?;
    let mut notices = Vec::new();
    let kept = args.store.options(None, &mut notices)?;
    let saved = kept.records.map(Saved::new);
    let options = EngineOptions {
        store: kept.options,
        ..args.engine.options(&methods)?
    };
    let lookup = Lookup::open(&options).map_err(|error| refused(&options.model, error))?;
    let Some(lookup) = lookup else {
        return Err(Failure::wrong(notices.pop().unwrap_or_else(|| {
            "nothing is kept from one run to the next: --cache-max is 0".to_owned()
        })));
    };
    let tokens = tokens(args, &lookup, saved.as_ref(), &mut notices)?;
    let limit = lookup.describe().context_length;
    let planned = args.planned_tokens.unwrap_or(tokens.len() + ANSWER);
    let planned = planned.min(limit).max(tokens.len());
    let explanation = lookup.explain(&tokens, planned)?;
    notices.extend(lookup.store().take_warnings());
    let view = View {
        tokenizer: lookup.text().tokenizer(),
        tokens: &tokens,
        explanation: &explanation,
        origin: lookup.origin(planned)?,
    };
    match format {
        Format::Json => {
            let mut object = view.object()?;
            object.insert("notices".to_owned(), json!(notices));
            output::print_json(&object)
        }
        Format::Text => {
            for notice in &notices {
                output::tell(notice);
            }
            output::print(&view.text()?)
        }
    }
}

fn tokens(
    args: &ExplainArgs,
    lookup: &Lookup,
    saved: Option<&Saved>,
    notices: &mut Vec<String>,
) -> Result<Vec<u32>, Failure> {
    let side = lookup.text();
    if !args.file.is_empty() {
        let documents = Documents::read(&args.file)?;
        notices.extend(documents.notices.iter().cloned());
        notices.extend(template_notice(side));
        let prompt = documents_of(args, lookup, saved, &documents, notices)?;
        let question = match &args.question {
            Some(question) => prompt.question(side, question)?,
            None => Vec::new(),
        };
        return Ok([prompt.shared, question].concat());
    }
    let text = match (&args.prompt, &args.prompt_file) {
        (Some(text), _) => text.clone(),
        (None, Some(file)) => super::read_text(file)?,
        (None, None) => String::new(),
    };
    let specials = match args.special_tokens {
        true => Specials::Parse,
        false => Specials::AsText,
    };
    Ok(side.with_prefix(side.tokenizer().encode(&text, specials)?))
}

/// The documents with the date that `ask` would write.
fn documents_of(
    args: &ExplainArgs,
    lookup: &Lookup,
    saved: Option<&Saved>,
    documents: &Documents,
    notices: &mut Vec<String>,
) -> Result<DocumentPrompt, Failure> {
    if let Some(date) = args.date {
        return DocumentPrompt::new(lookup.text(), date, documents);
    }
    let earlier = Earlier {
        dates: &|| saved.map_or_else(Vec::new, |saved| saved.document_dates(lookup.origins())),
        reused: &|tokens| {
            let known = lookup.explain(tokens, tokens.len());
            known.map_or(0, |known| known.reused_tokens)
        },
    };
    let today = date::today();
    let prompt = DocumentPrompt::as_read(lookup.text(), today, documents, &earlier)?;
    notices.extend(date::notice(prompt.now, today));
    Ok(prompt)
}

/// An explanation and the prompt it is of.
struct View<'a> {
    tokenizer: &'a Tokenizer,
    tokens: &'a [u32],
    explanation: &'a Explanation,
    origin: &'a Origin,
}

/// Tokens `from` to `to` would be taken over from one place.
struct Range<'a> {
    from: usize,
    to: usize,
    place: &'a str,
}

impl View<'_> {
    fn ranges(&self) -> Vec<Range<'_>> {
        let mut ranges: Vec<Range<'_>> = Vec::new();
        for (block, place) in self.explanation.places.iter().enumerate() {
            let to = (block + 1) * BLOCK_TOKENS;
            match ranges.last_mut() {
                Some(last) if last.place == place => last.to = to,
                _ => ranges.push(Range {
                    from: block * BLOCK_TOKENS,
                    to,
                    place,
                }),
            }
        }
        ranges
    }

    /// The texts on both sides of the place where the stored one goes on otherwise.
    fn parting(&self, token: usize, stored: &[u32]) -> Result<[String; 3], Failure> {
        let before = &self.tokens[token.saturating_sub(SHOWN)..token];
        let after = &self.tokens[token..self.tokens.len().min(token + SHOWN)];
        let stored = &stored[..stored.len().min(SHOWN)];
        let text = |ids| shown(self.tokenizer, ids);
        Ok([text(before)?, text(stored)?, text(after)?])
    }

    fn object(&self) -> Result<Map<String, Value>, Failure> {
        let reused = self.explanation.reused_tokens;
        let ranges = self.ranges();
        let ranges = ranges
            .iter()
            .map(|range| json!({ "from": range.from, "to": range.to, "place": range.place }));
        let value = json!({
            "prompt_tokens": self.tokens.len(),
            "reused_tokens": reused,
            "computed_tokens": self.tokens.len() - reused,
            "reuse": ranges.collect::<Vec<_>>(),
            "end": self.end_object()?,
            "seconds_to_read": self.explanation.seconds_to_read,
            "seconds_it_took_to_compute": self.explanation.seconds_to_compute,
            "model": self.origin.model,
            "identity": self.origin.identity,
        });
        match value {
            Value::Object(object) => Ok(object),
            _ => unreachable!("json! of braces is an object"),
        }
    }

    fn end_object(&self) -> Result<Value, Failure> {
        let at = self.explanation.reused_tokens;
        Ok(match &self.explanation.end {
            ReuseEnd::Tail => json!({ "reason": "tail", "token": at }),
            ReuseEnd::Differs { token, stored } => {
                let [before, stored, prompt] = self.parting(*token, stored)?;
                json!({
                    "reason": "differs",
                    "token": token,
                    "text_before": before,
                    "stored_text": stored,
                    "prompt_text": prompt,
                })
            }
            ReuseEnd::OtherIdentity(others) => {
                let others = others
                    .iter()
                    .map(|other| json!({ "model": other.model, "identity": other.identity }));
                json!({
                    "reason": "other_identity",
                    "token": at,
                    "read_by": others.collect::<Vec<_>>(),
                })
            }
            ReuseEnd::NoCheckpoint { full_tokens } => {
                json!({ "reason": "no_checkpoint", "token": at, "full_tokens": full_tokens })
            }
            ReuseEnd::SlowToRead { stored_tokens } => {
                json!({ "reason": "slow_to_read", "token": at, "stored_tokens": stored_tokens })
            }
            _ => json!({ "reason": "nothing_beyond", "token": at }),
        })
    }

    fn text(&self) -> Result<String, Failure> {
        let reused = self.explanation.reused_tokens;
        let mut text = format!(
            "{} tokens for {} ({})\n",
            human_count(self.tokens.len()),
            self.origin.model,
            self.origin.identity
        );
        for range in self.ranges() {
            text.push_str(&format!(
                "  {:>9} to {:>9}  taken over from {}\n",
                human_count(range.from),
                human_count(range.to),
                range.place
            ));
        }
        text.push_str(&format!(
            "  {:>9} to {:>9}  to be read: {}\n",
            human_count(reused),
            human_count(self.tokens.len()),
            self.why()?
        ));
        if reused > 0 || self.explanation.seconds_to_read > 0.0 {
            text.push_str(&format!(
                "reading what is kept is expected to take {:.3} s; computing it took {:.3} s\n",
                self.explanation.seconds_to_read, self.explanation.seconds_to_compute
            ));
        }
        Ok(text)
    }

    /// Why no more is taken over, in words.
    fn why(&self) -> Result<String, Failure> {
        Ok(match &self.explanation.end {
            ReuseEnd::Tail => format!(
                "what is kept ends in whole blocks of {BLOCK_TOKENS} tokens, and the last token is \
                 always computed"
            ),
            ReuseEnd::Differs { token, stored } => {
                let [before, stored, prompt] = self.parting(*token, stored)?;
                format!(
                    "the texts part at token {}\n    after        {before:?}\n    kept         \
                     {stored:?}\n    this prompt  {prompt:?}",
                    human_count(*token)
                )
            }
            ReuseEnd::OtherIdentity(others) => {
                let others: Vec<String> = others
                    .iter()
                    .map(|other| format!("{} ({})", other.model, other.identity))
                    .collect();
                format!(
                    "it was read by {}, whose keys and values are not these",
                    others.join("; ")
                )
            }
            ReuseEnd::NoCheckpoint { full_tokens } => format!(
                "{} tokens are kept, but the model's sliding-window or recurrent layers kept nothing \
                 to go on from there",
                human_count(*full_tokens)
            ),
            ReuseEnd::SlowToRead { stored_tokens } => format!(
                "{} tokens are kept, but reading them is expected to take longer than computing them",
                human_count(*stored_tokens)
            ),
            _ => "nothing that was read goes on from here".to_owned(),
        })
    }
}
