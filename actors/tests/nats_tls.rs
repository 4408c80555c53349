//! Identities over TLS: the server proves itself to the client, and the client to the server, twice over (certificate, key).

mod with_server;

use std::{fs, path::Path};

use folgore_actors::nats::{
    Identity, NatsConfig, connect,
    server::{LocalServer, ServerOptions, nats_server_for_tests},
};
use folgore_protocol::Search;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::time::timeout;
use with_server::{LONG, config};

/// Signs certificates for one fleet.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    cert: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let key = KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), cert }
    }

    /// A certificate for `host` and its key.
    fn sign(&self, host: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([host.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// An identity in `folder` that trusts `trusted` and is signed by `signer`.
fn identity(folder: &Path, seed: &str, trusted: &Authority, signer: &Authority) -> Identity {
    fs::create_dir_all(folder).unwrap();
    let (cert, key) = signer.sign("w0");
    for (name, text) in [("nkey.seed", seed), ("ca.pem", &trusted.cert), ("cert.pem", &cert), ("key.pem", &key)] {
        fs::write(folder.join(name), text).unwrap();
    }
    Identity::read(folder).expect("an identity")
}

/// A server that takes the user `nkey` over TLS with a certificate by `authority`.
fn start_tls(dir: &Path, authority: &Authority, nkey: &str) -> LocalServer {
    let (cert, key) = authority.sign("127.0.0.1");
    let file = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let tls = format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true, min_version: \"1.3\", handshake_first: true }}",
        file("server.pem", &cert),
        file("server.key", &key),
        file("ca.pem", &authority.cert),
    );
    let text = format!("jetstream {{}}\n{tls}\nauthorization {{ users: [ {{ nkey: {nkey} }} ] }}\n");
    let config_file = Some(file("tls.conf", &text).into());
    let options = ServerOptions { config_file, ..ServerOptions::new(dir.join("store")) };
    LocalServer::start_with(nats_server_for_tests().unwrap(), options).expect("a running server")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_prove_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, impostor) = (Authority::new(), Authority::new());
    let (user, stranger) = (nkeys::KeyPair::new_user(), nkeys::KeyPair::new_user());
    let (seed, other_seed) = (user.seed().unwrap(), stranger.seed().unwrap());
    let mut server = start_tls(dir.path(), &authority, &user.public_key());
    let with = |identity: Option<Identity>| NatsConfig { identity, ..config(&server, "tls", "w0") };

    let good = with(Some(identity(&dir.path().join("good"), &seed, &authority, &authority)));
    let bad = [
        ("no identity", None),
        ("a key only", Some(Identity { ca: None, cert: None, key: None, ..good.identity.clone().unwrap() })),
        ("another key", Some(identity(&dir.path().join("key"), &other_seed, &authority, &authority))),
        ("another authority's certificate", Some(identity(&dir.path().join("cert"), &seed, &authority, &impostor))),
        ("a server it does not trust", Some(identity(&dir.path().join("ca"), &seed, &impostor, &authority))),
    ];
    for (what, identity) in bad {
        let mut config = with(identity);
        // A server that cannot be trusted is not tried again; one that says nothing may be busy.
        if config.identity.as_ref().is_some_and(|identity| identity.ca.is_some()) {
            config.connect_within = 10 * LONG;
        }
        let connected = timeout(LONG, connect(config)).await.unwrap_or_else(|_| panic!("{what}: tried again"));
        let error = connected.err().unwrap_or_else(|| panic!("{what}: was let in"));
        assert!(error.to_string().contains(&server.url()), "{what}: {error}");
    }

    let nats = connect(good).await.expect("a connection");
    let links = nats.links();
    let echo = |request: Search| async move { Ok::<_, String>(request) };
    let _served = links.serve_typed("search", 1, echo).await.unwrap();
    let request = Search { query: "Chad".into(), top_k: 1 };
    let answer = links.call::<_, Search>("search", &request, "k", LONG).await;
    assert_eq!(answer.expect("an answer"), request);
    server.restart(false).expect("a restart");
    let answer = links.call::<_, Search>("search", &request, "k", LONG).await;
    assert_eq!(answer.expect("the identity serves for reconnects too"), request);
    assert_eq!(nats.faults().server_errors, 0);
}
