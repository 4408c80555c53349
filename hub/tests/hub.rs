//! Names turned into files: against a server that speaks as the hub does, and caches as Python leaves them.

mod server;
mod user;

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, SystemTime},
};

use folgore_hub::Need;
use server::{Hub, Repo, etag};
use user::{COMMIT, MODEL, NAME, OTHER, User, as_python, fixture, names, repo, set};

#[test]
fn only_what_is_needed_comes_into_the_layout_of_the_cache() {
    let (hub, files) = (Hub::with(NAME, repo("tiny-tied")), repo("tiny-tied").files);
    let user = User::of(&hub);
    let got = user.gets(NAME, Need::Model);
    assert_eq!((got.commit.as_str(), got.path.as_path()), (COMMIT, &*user.folder().join("snapshots").join(COMMIT)));
    assert_eq!(names(&got.path), set(&MODEL));
    for file in MODEL {
        assert_eq!(fs::read(got.path.join(file)).unwrap(), files[file], "{file}");
        let link = fs::read_link(got.path.join(file)).unwrap();
        assert_eq!(link, Path::new("../../blobs").join(etag(file, &files[file])), "{file}");
    }
    assert_eq!(fs::read_to_string(user.folder().join("refs/main")).unwrap(), COMMIT);
    assert!(user.folder().join(".no_exist").join(COMMIT).join("special_tokens_map.json").is_file());
    assert_eq!(names(&user.folder().join("blobs")).len(), MODEL.len(), "{:?}", user.tree());
    let asked = hub.asked();
    assert!(!asked.iter().any(|a| a.what.contains(".bin") || a.what.contains("README") || a.what.contains("onnx")));

    // a branch costs the question where it is, a commit nothing
    let before = user.tree();
    assert_eq!(user.gets(NAME, Need::Model), got);
    let asked: Vec<String> = hub.asked().into_iter().map(|asked| asked.what).collect();
    assert_eq!(asked, ["GET /api/models/owner/tiny/revision/main"]);
    assert_eq!(user.gets(&format!("{NAME}@{COMMIT}"), Need::Model), got);
    assert_eq!(user.gets(&format!("{NAME}@{COMMIT}"), Need::Tokenizer), got);
    assert_eq!((hub.asked(), user.tree()), (vec![], before));
}

#[test]
fn a_tokenizer_needs_no_weights_and_shards_come_by_their_index() {
    let hub = Hub::with(NAME, repo("tiny-tied-bf16-sharded"));
    let user = User::of(&hub);
    let tokenizer = user.gets(NAME, Need::Tokenizer);
    assert_eq!(names(&tokenizer.path), set(&["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]));
    let model = user.gets(NAME, Need::Model);
    assert_eq!(tokenizer, model);
    let shards = names(&model.path).into_iter().filter(|name| name.starts_with("model-")).count();
    assert_eq!((shards, model.path.join("model.safetensors.index.json").is_file()), (4, true));

    // a shard that was lost comes again, alone
    hub.asked();
    let lost = model.path.join("model-00002-of-00004.safetensors");
    fs::remove_file(fs::canonicalize(&lost).unwrap()).unwrap();
    user.gets(&format!("{NAME}@{COMMIT}"), Need::Model);
    let elsewhere = hub.asked().into_iter().filter(|asked| asked.elsewhere).count();
    assert_eq!((elsewhere, lost.is_file()), (1, true));
}

#[test]
fn revisions_adapters_and_gguf_files() {
    let hub = Hub::with(NAME, repo("tiny-tied"));
    let mut second = Repo::of(&fixture("adapter-untied"), OTHER);
    second.revisions = vec!["refs/pr/1".into(), "v1.0".into()];
    second.files.insert("q/tiny.gguf".into(), fs::read(fixture("tiny-gguf/tiny.gguf")).unwrap());
    hub.state().repos.get_mut(NAME).unwrap().push(second);
    let user = User::of(&hub);
    let adapter = user.gets("owner/tiny@refs/pr/1", Need::Adapter);
    assert_eq!((adapter.commit.as_str(), names(&adapter.path).len()), (OTHER, 2));
    assert_eq!(fs::read_to_string(user.folder().join("refs/refs/pr/1")).unwrap(), OTHER);
    let gguf = user.gets("owner/tiny@v1.0:q/tiny.gguf", Need::Model);
    assert_eq!(gguf.path, user.folder().join("snapshots").join(OTHER).join("q/tiny.gguf"));
    assert!(fs::read_link(&gguf.path).unwrap().starts_with("../../../blobs"));
    assert_eq!(fs::read(&gguf.path).unwrap(), fs::read(fixture("tiny-gguf/tiny.gguf")).unwrap());
    assert_eq!(user.gets(NAME, Need::Model).commit, COMMIT);

    // a branch that moves is followed; what both commits have is downloaded once
    let mut moved = repo("tiny-tied");
    (moved.commit, moved.revisions) = ("1".repeat(40), vec!["main".into()]);
    moved.files.insert("generation_config.json".into(), b"{}".to_vec());
    let moved_commit = moved.commit.clone();
    let mut repos = vec![moved];
    hub.state().repos.get_mut(NAME).unwrap()[0].revisions.clear();
    hub.state().repos.get_mut(NAME).unwrap().append(&mut repos);
    hub.asked();
    assert_eq!(user.gets(NAME, Need::Model).commit, moved_commit);
    let contents = hub.asked().into_iter().filter(|a| a.what.starts_with("GET /") && !a.what.contains("/revision/"));
    let contents: Vec<String> = contents.map(|asked| asked.what).collect();
    assert!(contents.iter().all(|what| what.ends_with("generation_config.json")), "{contents:?}");
    assert_eq!(fs::read_to_string(user.folder().join("refs/main")).unwrap(), moved_commit);
}

#[test]
fn offline_and_cut_off_the_cache_counts() {
    let hub = Hub::with(NAME, repo("tiny-tied"));
    let mut user = User::of(&hub);
    user.settings.offline = true;
    user.is_refused(NAME, &["owner/tiny", "HF_HUB_OFFLINE", "revision main", user.settings.cache.to_str().unwrap()]);
    assert_eq!(hub.asked(), []);
    user.settings.offline = false;
    let got = user.gets(NAME, Need::Model);
    hub.asked();

    user.settings.offline = true;
    assert_eq!(user.gets(NAME, Need::Model), got);
    user.is_refused("owner/tiny@v1.0", &["revision v1.0", "HF_HUB_OFFLINE"]);
    user.is_refused("owner/tiny:tiny.gguf", &["no tiny.gguf"]);
    fs::remove_file(got.path.join("model.safetensors")).unwrap();
    user.is_refused(NAME, &["no model.safetensors", "HF_HUB_OFFLINE"]);
    assert_eq!(hub.asked(), [], "offline means that nothing is asked");

    // an index that is none
    fs::write(got.path.join("model.safetensors.index.json"), "{}").unwrap();
    user.is_refused(NAME, &["no usable model.safetensors.index.json", "weight_map"]);
    fs::remove_file(got.path.join("model.safetensors.index.json")).unwrap();

    // a server that does not answer
    user.settings.offline = false;
    user.gets(NAME, Need::Model);
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    user.settings.endpoint = format!("http://{}", deaf.local_addr().unwrap());
    thread::spawn(move || deaf.incoming().for_each(drop));
    user.said.lock().unwrap().clear();
    assert_eq!(user.gets(NAME, Need::Model), got);
    let said = user.said.lock().unwrap().join("\n");
    assert!(said.contains("warning: owner/tiny") && said.contains("in the cache"), "{said}");
    user.is_refused("owner/other", &["owner/other", &user.settings.endpoint, "cannot be asked", "revision main"]);
}

#[test]
fn who_may_not_read_is_told_what_to_do() {
    let mut gated = repo("tiny-tied");
    gated.gate = Some("hf_let_in".into());
    let hub = Hub::with(NAME, gated);
    let mut user = User::of(&hub);
    let page = format!("{}/owner/tiny", hub.url);
    user.is_refused(NAME, &["owner/tiny is gated", &page, "set HF_TOKEN"]);
    user.is_refused("owner/nothing", &["owner/nothing", "no such model", "private", "set HF_TOKEN"]);
    user.is_refused("owner/tiny@v9", &["owner/tiny", "no revision \"v9\""]);
    user.settings.token = Some("hf_somebody".into());
    user.is_refused(NAME, &["owner/tiny is gated", &page, "token of the account that did so"]);
    user.is_refused("owner/nothing", &["no such model", "must be of an account"]);
    hub.state().known = Some("hf_known".into());
    user.is_refused(NAME, &["does not take this token", "401", &format!("{}/settings/tokens", hub.url)]);
    user.settings.token = Some("line\nbreak".into());
    user.is_refused(NAME, &["HF_TOKEN"]);
    assert!(!user.tree().iter().any(|path| path.contains("blobs")), "{:?}", user.tree());

    hub.state().known = None;
    hub.asked();
    user.settings.token = Some("hf_let_in".into());
    user.gets(NAME, Need::Model);
    let asked = hub.asked();
    let (elsewhere, own): (Vec<_>, Vec<_>) = asked.into_iter().partition(|asked| asked.elsewhere);
    assert!(own.iter().all(|asked| asked.token.as_deref() == Some("hf_let_in")), "{own:?}");
    assert!(
        !elsewhere.is_empty() && elsewhere.iter().all(|asked| asked.token.is_none()),
        "the token is for the hub alone"
    );
}

#[test]
fn answers_that_lead_elsewhere_are_refused() {
    let hub = Hub::with(NAME, repo("tiny-tied"));
    let user = User::of(&hub);
    for bad in ["../../../evil", "/etc/passwd", "a/../../b", "c\\d", "x\u{7}", "a:b.json"] {
        hub.state().faults.sibling = Some(bad.into());
        let other = User::of(&hub);
        assert_eq!(names(&other.gets(NAME, Need::Model).path), set(&MODEL), "{bad:?}");
        let written = other.tree();
        let last = bad.rsplit('/').next().unwrap();
        assert!(!written.iter().any(|path| path.ends_with(&format!("/{last}"))), "{bad:?}: {written:?}");
        assert!(!hub.asked().iter().any(|asked| asked.what.ends_with(&format!("/{last}"))), "{bad:?} was asked for");
    }
    hub.state().faults.sibling = None;
    for bad in ["../..", "main", "", &"A".repeat(40)] {
        hub.state().faults.sha = Some(bad.to_owned());
        user.is_refused(NAME, &["sha:", "commit"]);
    }
    hub.state().faults.sha = Some(OTHER.into());
    user.is_refused(&format!("{NAME}@{COMMIT}"), &["sha:", OTHER]);
    hub.state().faults.sha = None;
    for (header, bad, told) in [
        ("ETag", "\"../../evil\"", "etag"),
        ("ETag", "\"\"", "etag"),
        ("X-Repo-Commit", OTHER, "commit"),
        ("Location", "file:///etc/passwd", "redirect"),
    ] {
        hub.state().faults.header = Some((header, bad.into()));
        user.is_refused(NAME, &["owner/tiny", told]);
    }
    hub.state().faults.header = None;
    let mut lying = repo("tiny-tied-bf16-sharded");
    lying
        .files
        .insert("model.safetensors.index.json".into(), br#"{"weight_map": {"x": "../../../x.safetensors"}}"#.to_vec());
    hub.state().repos.insert(NAME.into(), vec![lying]);
    user.is_refused(NAME, &["model.safetensors.index.json", "weight_map", "../../../x.safetensors"]);
    let outside = |path: &&String| !path.starts_with("hub/models--owner--tiny/") && !path.starts_with("hub/.locks/");
    assert_eq!(user.tree().iter().find(outside), None);
}

#[test]
fn a_repository_that_lacks_something_is_refused_before_its_weights_come() {
    let hub = Hub::with(NAME, repo("tiny-tied"));
    let user = User::of(&hub);
    let without = |file: &str, instead: &str| {
        let mut repo = repo("tiny-tied");
        repo.files.remove(file);
        repo.files.insert(instead.into(), b"x".to_vec());
        hub.state().repos.insert(NAME.into(), vec![repo]);
    };
    without("tokenizer.json", "tokenizer.model");
    user.is_refused(NAME, &["no tokenizer.json", "tokenizer.model", "save the tokenizer anew"]);
    without("model.safetensors", "training_args.bin");
    user.is_refused(NAME, &["no model.safetensors", "pytorch_model.bin, a pickle"]);
    let mut sharded = repo("tiny-tied-bf16-sharded");
    sharded.files.remove("model-00004-of-00004.safetensors");
    hub.state().repos.insert(NAME.into(), vec![sharded]);
    user.is_refused(NAME, &["no model-00004-of-00004.safetensors"]);
    without("config.json", "tiny.Q4_0.gguf");
    user.is_refused(NAME, &["no config.json", "owner/tiny:tiny.Q4_0.gguf"]);
    user.is_refused("owner/tiny:other.gguf", &["no other.gguf", "owner/tiny:tiny.Q4_0.gguf"]);
    assert!(hub.asked().iter().all(|asked| !asked.elsewhere));
}

#[test]
fn what_python_downloaded_is_used() {
    let hub = Hub::with(NAME, repo("tiny-tied"));
    let mut user = User::of(&hub);
    as_python(&user, &MODEL);
    user.settings.offline = true;
    let got = user.gets(NAME, Need::Model);
    assert_eq!(names(&got.path), set(&MODEL));
    user.settings.offline = false;
    let before = names(&user.folder().join("blobs"));
    assert_eq!(user.gets(NAME, Need::Model), got);
    assert_eq!(names(&user.folder().join("blobs")), before);
    assert!(hub.asked().iter().all(|asked| asked.what.contains("/revision/")));

    // it had not asked for the tokenizer, and a commit does not hide that there may be a template
    let partly = User::of(&hub);
    as_python(&partly, &["config.json", "model.safetensors"]);
    let got = partly.gets(&format!("{NAME}@{COMMIT}"), Need::Model);
    assert_eq!(names(&got.path), set(&MODEL));
    assert!(hub.asked().iter().all(|asked| !asked.elsewhere), "the weights were there");
}

#[test]
fn a_cache_for_reading_only_will_do() {
    let hub = Hub::with(NAME, repo("tiny-tied"));
    let user = User::of(&hub);
    let got = user.gets(NAME, Need::Model);
    user.said.lock().unwrap().clear();
    let notes = [format!(".no_exist/{COMMIT}/special_tokens_map.json"), "refs/main".into()];
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    for note in &notes {
        fs::File::options().append(true).open(user.folder().join(note)).unwrap().set_modified(old).unwrap();
    }
    assert_eq!(user.gets(NAME, Need::Model), got);
    for note in &notes {
        assert_eq!(
            fs::metadata(user.folder().join(note)).unwrap().modified().unwrap(),
            old,
            "{note} was written again"
        );
    }
    assert!(user.said.lock().unwrap().is_empty());

    // nothing can be noted in what is no folder, whoever the user is
    let other = User::of(&hub);
    as_python(&other, &MODEL);
    for folder in ["refs", ".no_exist"] {
        drop(fs::remove_dir_all(other.folder().join(folder)));
        fs::write(other.folder().join(folder), "").unwrap();
    }
    other.gets(NAME, Need::Model);
    let said = other.said.lock().unwrap().clone();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said.iter().all(|line| line.starts_with("warning: owner/tiny: the cache takes no note")), "{said:?}");
}

#[test]
fn a_caller_may_be_in_a_runtime() {
    let hub = Hub::with(NAME, repo("tiny-tied"));
    let user = User::of(&hub);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async { user.gets(NAME, Need::Tokenizer) });
}
