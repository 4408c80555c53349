//! Datasets by name: what is downloaded, what of it is meant, and what the cache is good for without the hub.

mod server;
mod user;

use std::{fs, path::Path, sync::Mutex};

use folgore_config::HubName;
use folgore_hub::{HubError, Obtained, obtain_rows};
use server::{Hub, Repo, etag};
use user::{COMMIT, OTHER, User, names, set};

/// As the server knows it, and as users name it.
const KNOWN: &str = "datasets/owner/sums";
const NAME: &str = "owner/sums";

fn repo(files: &[&str]) -> Repo {
    let files = files.iter().map(|file| ((*file).to_owned(), format!("{{\"prompt\": \"{file}\"}}\n").into_bytes()));
    Repo { files: files.collect(), revisions: vec!["main".into()], commit: COMMIT.into(), gate: None }
}

fn obtain(user: &User, name: &str) -> Result<Obtained, HubError> {
    let say = |line: &str| user.said.lock().unwrap().push(line.to_owned());
    obtain_rows(&user.settings, &HubName::parse_dataset(name).unwrap(), &say)
}

#[track_caller]
fn gets(user: &User, name: &str) -> Obtained {
    obtain(user, name).unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn is_refused(user: &User, name: &str, words: &[&str]) {
    let told = obtain(user, name).expect_err("it was given").to_string();
    words.iter().for_each(|word| assert!(told.contains(word), "{word:?} is not in {told:?}"));
}

fn said(user: &User) -> String {
    std::mem::take(&mut *Mutex::lock(&user.said).unwrap()).join("\n")
}

#[test]
fn the_rows_of_a_name_come_into_the_cache_and_nothing_else() {
    let hub = Hub::with(KNOWN, repo(&["README.md", "data/train-0.jsonl", "data/test-0.jsonl", "raw/x.csv", "load.py"]));
    let mut user = User::of(&hub);
    let got = gets(&user, NAME);
    let folder = user.settings.cache.join("datasets--owner--sums");
    assert_eq!((got.commit.as_str(), got.path), (COMMIT, folder.join("snapshots").join(COMMIT).join("data")));
    assert_eq!(names(&folder.join("snapshots").join(COMMIT).join("data")), set(&["test-0.jsonl", "train-0.jsonl"]));
    assert_eq!(names(&folder.join("snapshots").join(COMMIT)), set(&["data"]));
    assert_eq!(fs::read_to_string(folder.join("refs/main")).unwrap(), COMMIT);
    let (told, asked) = (said(&user), hub.asked());
    assert!(told.contains("data is taken; raw is not"), "{told}");
    assert_eq!(asked[0].what, "GET /api/datasets/owner/sums/revision/main");
    assert!(asked.iter().all(|a| !a.what.contains("README") && !a.what.contains("load.py")), "{asked:?}");

    // a commit that is here costs no question, a branch one, and another part what it has
    assert_eq!(gets(&user, &format!("{NAME}@{COMMIT}")).commit, COMMIT);
    assert_eq!(hub.asked(), []);
    gets(&user, NAME);
    assert_eq!(hub.asked().len(), 1);
    let file = gets(&user, &format!("{NAME}:raw/x.csv"));
    assert!(file.path.ends_with("raw/x.csv") && file.path.is_file());
    is_refused(&user, &format!("{NAME}:other"), &["no rows in other", "data, raw"]);

    // without the hub
    user.settings.offline = true;
    hub.asked();
    assert!(gets(&user, NAME).path.ends_with("data"));
    is_refused(&user, "owner/other", &["owner/other", "HF_HUB_OFFLINE", "revision main"]);
    fs::remove_file(folder.join("snapshots").join(COMMIT).join("data/test-0.jsonl")).unwrap();
    is_refused(&user, NAME, &["has no data/test-0.jsonl"]);
    user.settings.offline = false;
    user.settings.endpoint = "http://127.0.0.1:9".into();
    is_refused(&user, NAME, &["cannot be asked", "data/test-0.jsonl"]);
    gets(&user, &format!("{NAME}:raw"));
    assert!(said(&user).contains("warning: owner/sums:raw"));
    assert_eq!(hub.asked(), []);
}

#[test]
fn what_is_no_dataset_is_refused_with_a_way_out() {
    let hub = Hub::with(KNOWN, repo(&["main/train.jsonl", "socratic/train.jsonl"]));
    let user = User::of(&hub);
    is_refused(&user, NAME, &["several parts: main, socratic", "owner/sums:main"]);
    assert!(gets(&user, "owner/sums:socratic").path.ends_with("socratic"));
    is_refused(&user, "owner/nothing", &["no such dataset", "private", "HF_TOKEN"]);
    is_refused(&user, "owner/sums@v2:main", &["no revision \"v2\""]);
    hub.state().repos.insert(KNOWN.into(), vec![repo(&["README.md", "sums.py"])]);
    is_refused(&user, NAME, &["no file of rows", "owner/sums@refs/convert/parquet"]);
    hub.state().repos.insert(KNOWN.into(), vec![Repo { gate: Some("hf_in".into()), ..repo(&["a.jsonl"]) }]);
    is_refused(&user, NAME, &["owner/sums is gated", &format!("{}/datasets/owner/sums", hub.url)]);
    // a model of that name is another repository
    assert!(!user.tree().iter().any(|path| path.contains("models--")), "{:?}", user.tree());
}

#[test]
fn what_python_downloaded_is_used_unless_a_shard_is_missing() {
    let hub = Hub::with(KNOWN, repo(&["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]));
    let mut user = User::of(&hub);
    let folder = user.settings.cache.join("datasets--owner--sums");
    let put = |file: &str| {
        let (bytes, data) = (&repo(&[file]).files[file], folder.join("snapshots").join(OTHER).join("data"));
        let blob = etag(file, bytes);
        for place in [&folder.join("refs"), &folder.join("blobs"), &data] {
            fs::create_dir_all(place).unwrap();
        }
        fs::write(folder.join("blobs").join(&blob), bytes).unwrap();
        let link = folder.join("snapshots").join(OTHER).join(file);
        std::os::unix::fs::symlink(Path::new("../../../blobs").join(blob), link).unwrap();
        fs::write(folder.join("refs/main"), OTHER).unwrap();
    };
    user.settings.offline = true;
    put("data/train-00000-of-00002.parquet");
    is_refused(&user, NAME, &["HF_HUB_OFFLINE", "no whole set of its files"]);
    put("data/train-00001-of-00002.parquet");
    assert!(gets(&user, NAME).path.join("data/train-00001-of-00002.parquet").is_file());
    assert!(said(&user).contains("used as it is"));
    user.settings.offline = false;
    assert_eq!(gets(&user, NAME).commit, COMMIT, "the hub knows better");
}
