//! Downloads that others disturb: servers that break off or refuse, and processes in the same cache.

mod server;
mod user;

use std::{
    fs::{self, File},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use folgore_hub::Need;
use server::{Hub, etag, sha256};
use user::{COMMIT, MODEL, NAME, User, as_python, names, repo};

#[test]
fn bytes_that_were_not_announced_are_thrown_away() {
    let hub = Hub::with(NAME, repo("tiny-tied"));
    let user = User::of(&hub);
    let weights = repo("tiny-tied").files["model.safetensors"].clone();
    let blob = user.folder().join("blobs").join(sha256(&weights));
    hub.state().faults.damage = true;
    user.is_refused(NAME, &["model.safetensors", "expected sha256", &sha256(&weights), "thrown away"]);
    assert!(!blob.exists() && !user.folder().join("refs/main").exists(), "{:?}", user.tree());
    hub.state().faults.damage = false;
    hub.state().faults.header = Some(("X-Linked-Size", "100".into()));
    user.is_refused(NAME, &["model.safetensors", "100 bytes", "more"]);
    assert!(!blob.exists());
    hub.state().faults.header = None;
    let got = user.gets(NAME, Need::Model);
    assert_eq!(fs::read(got.path.join("model.safetensors")).unwrap(), weights);
}

#[test]
fn what_was_interrupted_goes_on_where_it_was() {
    let hub = Hub::with(NAME, repo("tiny-tied"));
    let user = User::of(&hub);
    let weights = repo("tiny-tied").files["model.safetensors"].clone();
    (hub.state().faults.busy, hub.state().faults.cut) = (2, Some((2, 50_000)));
    let got = user.gets(NAME, Need::Model);
    assert_eq!(fs::read(got.path.join("model.safetensors")).unwrap(), weights);
    let from: Vec<u64> = hub.asked().into_iter().filter(|a| a.elsewhere).map(|a| a.from).collect();
    assert_eq!(from, [0, 50_000, 100_000]);
    assert!(user.said.lock().unwrap().iter().any(|line| line.contains("trying again")));

    // another process stopped in the middle: its part is used if it is right, and only then
    let blob = user.folder().join("blobs").join(sha256(&weights));
    let part = PathBuf::from(format!("{}.incomplete", blob.display()));
    let again = |start: &[u8]| -> Vec<u64> {
        fs::remove_file(&blob).unwrap();
        fs::write(&part, start).unwrap();
        user.gets(NAME, Need::Model);
        assert_eq!((fs::read(&blob).unwrap() == weights, part.exists()), (true, false));
        hub.asked().into_iter().filter(|a| a.elsewhere).map(|a| a.from).collect()
    };
    assert_eq!(again(&weights[..1000]), [1000]);
    assert_eq!(again(&weights), [] as [u64; 0]);
    assert_eq!(again(&[7; 1000]), [1000, 0]);
    assert_eq!(again(&vec![7; weights.len() + 1]), [0]);

    // whoever gets on may go on, more often than there are attempts
    fs::remove_file(&blob).unwrap();
    hub.state().faults.cut = Some((7, 1000));
    user.gets(NAME, Need::Model);
    let from: Vec<u64> = hub.asked().into_iter().filter(|a| a.elsewhere).map(|a| a.from).collect();
    assert_eq!(from, (0..8).map(|turn| turn * 1000).collect::<Vec<_>>());

    // it never ends well
    fs::remove_file(&blob).unwrap();
    hub.state().faults.cut = Some((99, 0));
    user.is_refused(NAME, &["model.safetensors", "HF_HUB_OFFLINE"]);
    assert!(!blob.exists());
}

#[test]
fn servers_that_give_no_parts_are_asked_for_all() {
    let hub = Hub::with(NAME, repo("tiny-tied"));
    let weights = repo("tiny-tied").files["model.safetensors"].clone();
    for (range, asked) in [("200", vec![1000]), ("416", vec![1000, 0])] {
        let user = User::of(&hub);
        let blob = user.folder().join("blobs").join(sha256(&weights));
        fs::create_dir_all(user.folder().join("blobs")).unwrap();
        fs::write(format!("{}.incomplete", blob.display()), &weights[..1000]).unwrap();
        hub.state().faults.range = Some(range);
        hub.asked();
        user.gets(NAME, Need::Model);
        let from: Vec<u64> = hub.asked().into_iter().filter(|a| a.elsewhere).map(|a| a.from).collect();
        assert_eq!((from, fs::read(blob).unwrap() == weights), (asked, true), "{range}");
    }
    hub.state().faults.range = Some("206");
    let user = User::of(&hub);
    user.is_refused(NAME, &["model.safetensors", "status 206"]);
    assert!(!user.folder().join("blobs").join(sha256(&weights)).exists());
}

#[test]
fn a_part_of_contents_that_are_not_named_is_not_believed() {
    let hub = Hub::with(NAME, repo("tiny-tied"));
    let user = User::of(&hub);
    let config = repo("tiny-tied").files["config.json"].clone();
    let blob = user.folder().join("blobs").join(etag("config.json", &config));
    let part = PathBuf::from(format!("{}.incomplete", blob.display()));
    fs::create_dir_all(user.folder().join("blobs")).unwrap();
    for other in [vec![b' '; config.len()], vec![b' '; 10]] {
        fs::write(&part, other).unwrap();
        let got = user.gets(NAME, Need::Model);
        assert_eq!(fs::read(got.path.join("config.json")).unwrap(), config);
        assert!(!part.exists());
        fs::remove_file(&blob).unwrap();
    }
    hub.state().faults.header = Some(("X-Linked-Size", "a lot".into()));
    let other = User::of(&hub);
    other.is_refused(NAME, &["size:", "a number of bytes", "a lot"]);
}

#[test]
fn whoever_refuses_is_named() {
    let hub = Hub::with(NAME, repo("tiny-tied"));
    let mut user = User::of(&hub);
    for token in [None, Some("hf_somebody")] {
        user.settings.token = token.map(str::to_owned);
        for status in ["401 Unauthorized", "403 Forbidden", "404 Not Found"] {
            let said = vec![("X-Error-Code", "GatedRepo"), ("X-Error-Message", "signature expired")];
            hub.state().faults.refusals = vec![(true, status, said)];
            let told = user.obtain(NAME, Need::Model).unwrap_err().to_string();
            let own = hub.url.trim_start_matches("http://");
            assert!(told.contains("127.0.0.1:") && !told.contains(own), "{told}");
            assert!(told.contains(&status[..3]) && told.contains("signature expired"), "{told}");
            assert!(!told.contains("gated") && !told.to_lowercase().contains("token"), "{told}");
        }
        hub.state().faults.refusals = vec![(false, "403 Forbidden", vec![("X-Error-Message", "not in your country")])];
        let told = user.obtain(NAME, Need::Model).unwrap_err().to_string();
        assert!(told.contains("403") && told.contains("says: not in your country"), "{told}");
        assert!(!told.contains("gated") && !told.contains("HF_TOKEN"), "{told}");
    }
    let said = |text| vec![("X-Error-Message", text)];
    hub.state().faults.refusals = vec![(false, "401 Unauthorized", said("Invalid credentials"))];
    user.is_refused(NAME, &["does not take this token", "says: Invalid credentials"]);
    hub.state().faults.refusals =
        vec![(false, "403 Forbidden", [vec![("X-Error-Code", "GatedRepo")], said("awaiting review")].concat())];
    user.is_refused(NAME, &["is gated", "says: awaiting review"]);
}

#[test]
fn a_server_that_asks_for_time_gets_it() {
    let hub = Hub::with(NAME, repo("tiny-tied"));
    let user = User::of(&hub);
    hub.state().faults.refusals = vec![(false, "429 Too Many Requests", vec![("Retry-After", "1")])];
    user.gets(NAME, Need::Tokenizer);
    assert!(user.said.lock().unwrap()[0].ends_with("status 429: trying again in 1s"), "{:?}", user.said);
}

#[test]
fn who_comes_second_waits_for_the_first() {
    let hub = Hub::with(NAME, repo("tiny-tied"));
    let user = User::of(&hub);
    thread::scope(|scope| {
        (0..4).for_each(|_| drop(scope.spawn(|| user.gets(NAME, Need::Model))));
    });
    assert_eq!(hub.asked().into_iter().filter(|asked| asked.elsewhere).count(), 1);
    assert_eq!(names(&user.folder().join("blobs")).len(), MODEL.len());
}

/// Waits until `user` has been told that somebody else downloads.
fn until_it_waits(user: &User) {
    let begin = Instant::now();
    while !user.said.lock().unwrap().iter().any(|line| line.contains("another process")) {
        assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", user.said);
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_lock_is_the_one_that_python_takes() {
    let hub = Hub::with(NAME, repo("tiny-tied"));
    let user = User::of(&hub);
    let weights = sha256(&repo("tiny-tied").files["model.safetensors"]);
    let locks = user.settings.cache.join(".locks/models--owner--tiny");
    let path = locks.join(format!("{weights}.lock"));
    fs::create_dir_all(&locks).unwrap();
    let first = File::create(&path).unwrap();
    first.lock().unwrap();
    thread::scope(|scope| {
        let waits = scope.spawn(|| user.gets(NAME, Need::Model));
        until_it_waits(&user);
        // who held it removes it, and the next one has a new file
        fs::remove_file(&path).unwrap();
        let second = File::create(&path).unwrap();
        second.lock().unwrap();
        drop(first);
        thread::sleep(Duration::from_millis(400));
        assert!(!hub.asked().iter().any(|asked| asked.elsewhere), "the second one downloads it");
        as_python(&user, &["model.safetensors"]);
        drop(second);
        waits.join().unwrap();
    });
    assert!(!hub.asked().iter().any(|asked| asked.elsewhere), "it was there");
    assert_eq!(names(&user.folder().join("blobs")).len(), MODEL.len());
    assert!(names(&user.folder().join("snapshots").join(COMMIT)).iter().all(|name| !name.starts_with('.')));
}
