//! Requests over a store that is damaged.

use super::*;

#[test]
fn what_could_not_be_read_is_not_counted_as_taken_over() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let prompt = text(5, 660);
    let ask = || {
        let engine = engine_at(StorePlace::Folder(folder.path().to_owned()), None);
        let tenant = Arc::new(engine.tenant("ann"));
        let mut scheduler = Scheduler::new(engine, ScheduleOptions::default());
        let ear = Ear::default();
        scheduler.submit(request(&tenant, &prompt, vec![drawn(3, 16)], &ear));
        finish(&mut scheduler);
        let heard = ear.heard.lock().unwrap();
        (heard.ids.clone(), heard.summary.unwrap().reused_tokens)
    };
    let (ids, _) = ask();
    assert_eq!(ask(), (ids.clone(), 640));
    // One bit of the last block.
    let extents = std::fs::read_dir(folder.path().join("extents")).unwrap();
    let files = extents.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
    for file in files {
        let path = file.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let place = bytes.len() - 100;
        bytes[place] ^= 16;
        std::fs::write(path, bytes).unwrap();
    }
    assert_eq!(ask(), (ids, 640 - 64));
}
