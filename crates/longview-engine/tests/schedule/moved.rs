//! Text that requests take over from earlier versions of their prompts.

use longview_engine::Reuse;
use longview_engine::schedule::MovedText;

use super::*;

const LEAST: usize = 64;

/// A request that takes over what `reuse shift` lets it.
fn shifted(engine: &Engine, tenant: &Arc<Tenant>, prompt: &[u32], ear: &Ear) -> Request {
    let earlier = engine.earlier_version(tenant, prompt, prompt.len() + 64);
    Request {
        moved: Some(MovedText {
            least_tokens: LEAST,
            earlier: earlier.unwrap(),
        }),
        ..request(tenant, prompt, vec![drawn(3, 16), drawn(4, 16)], ear)
    }
}

fn answered(scheduler: &mut Scheduler, request: Request, ear: &Ear) -> (Vec<Vec<u32>>, Summary) {
    scheduler.submit(request);
    finish(scheduler);
    let heard = ear.heard.lock().unwrap();
    assert_eq!(heard.error, None);
    (heard.ids.clone(), heard.summary.unwrap())
}

#[test]
fn text_behind_a_change_is_moved_as_in_a_conversation() {
    let _turn = turn();
    let engine = engine(None);
    let tenant = Arc::new(engine.tenant("ann"));
    let other = Arc::new(engine.tenant("bob"));
    let options = ScheduleOptions::default();
    let mut scheduler = Scheduler::new(Arc::clone(&engine), options);
    let mut ask = |request: &dyn Fn(&Ear) -> Request| {
        let ear = Ear::default();
        answered(&mut scheduler, request(&ear), &ear)
    };
    let old = text(1, 700);
    let (_, first) = ask(&|ear| shifted(&engine, &tenant, &old, ear));
    assert_eq!((first.reused_tokens, first.moved_tokens), (0, 0));
    // A stamp is another, a passage is gone, and the question is new: 640 tokens are in whole blocks.
    let new = [
        &old[..200],
        &[11, 12, 13],
        &old[205..400],
        &old[500..640],
        &text(2, 30),
    ]
    .concat();

    // Nobody else has an earlier version of it.
    let (exact, summary) = ask(&|ear| shifted(&engine, &other, &new, ear));
    assert_eq!((summary.reused_tokens, summary.moved_tokens), (0, 0));
    assert_eq!(exact, [3, 4].map(|seed| alone(&engine, &new, seed, 16)));

    let (ids, summary) = ask(&|ear| shifted(&engine, &tenant, &new, ear));
    assert_eq!(summary.moved_tokens, 195 + 140);
    assert_eq!(summary.reused_tokens, 200 + 195 + 140);
    // The same context, made step by step.
    let mut version = engine
        .earlier_version(&tenant, &new, 1000)
        .unwrap()
        .unwrap();
    assert!(version.is_exact() && version.len() >= 640);
    let shift = Reuse::Shift {
        least_tokens: LEAST,
    };
    let held = engine
        .realign(&mut version, &new, shift, &mut |_| Control::Continue)
        .unwrap()
        .held;
    assert!(!version.is_exact());
    for (answer, seed) in [(0, 3), (1, 4)] {
        let mut context = version.fork();
        let mut options = GenerateOptions::greedy(16);
        options.chain = Chain::new(Vec::new(), Finish::Draw(Rng::new(seed)));
        let go_on = &mut |_: longview_engine::Event<'_>| Control::Continue;
        let generated = engine.generate(&mut context, &new[held..], &mut options, go_on);
        assert_eq!(ids[answer], generated.unwrap().ids);
    }

    // The next turn goes on from the text that was complete last, the first: all of it is there.
    let next = [&new[..], &ids[0][..15], &text(3, 20)].concat();
    let (_, summary) = ask(&|ear| shifted(&engine, &tenant, &next, ear));
    assert_eq!(summary.moved_tokens, 195 + 140);
    assert_eq!(summary.reused_tokens, new.len() + 15);
    // Whoever wants what the model defines gets that, from what is exact.
    let (ids, summary) = ask(&|ear| request(&tenant, &next, vec![drawn(3, 16)], ear));
    assert_eq!((summary.reused_tokens, summary.moved_tokens), (192, 0));
    assert_eq!(ids, [alone(&engine, &next, 3, 16)]);
    assert!(scheduler.forget() && !scheduler.forget());
}

#[test]
fn what_is_remembered_gives_way() {
    let _turn = turn();
    let first = text(8, 600);
    let plan = engine(None).plan(1500);
    let engine = engine(Some(plan.total() + (plan.total() - plan.kv) / 8));
    let tenant = Arc::new(engine.tenant(""));
    let mut scheduler = Scheduler::new(Arc::clone(&engine), ScheduleOptions::default());
    let ear = Ear::default();
    answered(
        &mut scheduler,
        shifted(&engine, &tenant, &first, &ear),
        &ear,
    );
    for round in 0..6 {
        let prompt = [&text(20 + round, 40)[..], &first[..576]].concat();
        let ear = Ear::default();
        let (_, summary) = answered(
            &mut scheduler,
            shifted(&engine, &tenant, &prompt, &ear),
            &ear,
        );
        assert_eq!(summary.moved_tokens, 575, "round {round}");
    }
    // Two that fill what is allowed.
    let ears = [Ear::default(), Ear::default()];
    for (seed, ear) in (40..).zip(&ears) {
        scheduler.submit(request(&tenant, &text(seed, 700), vec![drawn(1, 16)], ear));
    }
    finish(&mut scheduler);
    for ear in &ears {
        assert_eq!(ear.heard.lock().unwrap().error, None);
    }
    assert!(engine.ledger().usage().peak <= engine.ledger().limit());
}
