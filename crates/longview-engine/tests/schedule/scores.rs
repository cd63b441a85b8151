//! Probabilities of the tokens of prompts.

use longview_kv::{Segment, Wanted};

use super::*;

/// The logarithm of the probability of each token but the first, by the whole logits of one pass.
fn log_softmax(engine: &Engine, tokens: &[u32]) -> Vec<f64> {
    let mut context = engine.new_context(tokens.len()).unwrap();
    let segment = Segment {
        context: &mut context,
        tokens,
        wanted: Wanted::All,
    };
    let workspace = engine.pass([segment]).unwrap();
    let rows = workspace
        .logits()
        .chunks_exact(engine.model().blueprint().vocab);
    let known = rows.map(|row| &row[..engine.vocabulary()]);
    let of_row = |(row, &next): (&[f32], &u32)| {
        let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row
            .iter()
            .map(|&logit| f64::from(logit - highest).exp())
            .sum();
        f64::from(row[next as usize] - highest) - sum.ln()
    };
    known.zip(&tokens[1..]).map(of_row).collect()
}

#[test]
fn every_token_of_a_prompt_is_scored_whatever_is_known_of_it() {
    let _turn = turn();
    let engine = engine(None);
    let tenant = Arc::new(engine.tenant(""));
    let mut scheduler = Scheduler::new(Arc::clone(&engine), ScheduleOptions::default());
    let prompt = text(5, 300);
    let wanted = log_softmax(&engine, &prompt);
    // All of it is in the store, others write and read beside it, and one begins alike.
    let whole = Ear::default();
    scheduler.submit(request(&tenant, &prompt, vec![drawn(1, 4)], &whole));
    finish(&mut scheduler);
    let (beside, alike) = (Ear::default(), Ear::default());
    scheduler.submit(request(&tenant, &text(6, 500), vec![drawn(2, 30)], &beside));
    let ears = [Ear::default(), Ear::default()];
    for (ear, answers) in ears
        .iter()
        .zip([vec![drawn(1, 4), drawn(2, 4)], vec![drawn(1, 0)]])
    {
        scheduler.submit(Request {
            prompt_logprobs: Some(2),
            ..request(&tenant, &prompt, answers, ear)
        });
    }
    scheduler.submit(request(&tenant, &prompt, vec![drawn(1, 4)], &alike));
    finish(&mut scheduler);
    let first = ears[0].heard.lock().unwrap();
    assert_eq!(first.error, None);
    assert_eq!(first.ids[0], whole.heard.lock().unwrap().ids[0]);
    assert_eq!(first.ids[0], alike.heard.lock().unwrap().ids[0]);
    assert_eq!(first.reused, 0);
    assert!(
        first
            .read
            .windows(2)
            .all(|two| two[1] - two[0] <= SCORED_ROWS)
    );
    let scored = &first.scored;
    assert_eq!(scored.iter().map(|one| one.id).collect::<Vec<_>>(), prompt);
    assert_eq!((scored[0].logprob, scored[0].top.len()), (None, 0));
    for (one, wanted) in scored[1..].iter().zip(&wanted) {
        let logprob = one.logprob.unwrap();
        assert!(
            (f64::from(logprob) - wanted).abs() < 1e-4,
            "{logprob} for {wanted}"
        );
        assert!(one.top.len() == 2 && one.top[0].1 >= one.top[1].1 && one.top[0].1 >= logprob);
        assert!(
            one.top
                .iter()
                .all(|&(id, told)| id != one.id || told == logprob)
        );
    }
    // To the bit the same with no text to be written.
    let second = ears[1].heard.lock().unwrap();
    assert_eq!(second.scored, *scored);
    assert_eq!(second.finished, [(0, FinishReason::Length)]);
    assert_eq!((second.ids.len(), second.error.as_deref()), (0, None));
}
