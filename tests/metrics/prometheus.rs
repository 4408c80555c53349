//! A reader of Prometheus' text format that believes nothing, and the plain sockets to get it with.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

/// Longest wait for an answer.
const DEADLINE: Duration = Duration::from_secs(120);

type Labels = BTreeMap<String, String>;

/// What one look showed.
#[derive(Debug)]
pub struct Page(Vec<(String, Labels, f64)>);

impl Page {
    /// The value of the series `name` with at least these labels, which must be one.
    pub fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let has = |own: &Labels| labels.iter().all(|(k, v)| own.get(*k).is_some_and(|own| own == v));
        let found: Vec<f64> = self.0.iter().filter(|(n, own, _)| n == name && has(own)).map(|(_, _, v)| *v).collect();
        assert!(found.len() < 2, "{name} {labels:?} is not one series: {found:?}");
        found.first().copied()
    }

    /// The same, which must be there.
    #[track_caller]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels).unwrap_or_else(|| panic!("no {name} {labels:?} in {:#?}", self.0))
    }
}

/// Looks once.
#[track_caller]
pub fn scrape(address: &str) -> Page {
    let answer = send(address, b"GET /metrics HTTP/1.1\r\nhost: localhost\r\naccept: */*\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.to_lowercase().contains("content-type: text/plain; version=0.0.4"), "{head}");
    Page(parse(body))
}

/// Sends `bytes` and reads what comes until the other side closes; nothing if it refuses to listen.
pub fn send(address: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    // it may close before it has read everything
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("neither an answer nor an end"),
        _ => String::from_utf8(answer).unwrap(),
    }
}

/// A connection that never says what it wants.
pub fn half_a_request(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metr").unwrap();
    stream
}

fn parse(text: &str) -> Vec<(String, Labels, f64)> {
    let (mut found, mut kinds) = (Vec::new(), BTreeMap::new());
    let mut current = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(!help.is_empty() && !kinds.contains_key(name), "{line}");
            current = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(name == current && ["gauge", "counter"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            kinds.insert(name.to_owned(), kind.to_owned());
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap();
            assert_eq!(name, current, "samples of one metric are together");
            let labels = self::labels(labels.strip_suffix('}').unwrap());
            assert!(labels.contains_key("run") && labels.contains_key("role"), "{line}");
            assert!(!found.iter().any(|(n, l, _)| n == name && *l == labels), "twice: {line}");
            found.push((name.to_owned(), labels, value.parse().unwrap()));
        }
    }
    found
}

/// `a="x",b="y"`; values of these runs hold no quotes.
fn labels(text: &str) -> Labels {
    let pairs = text.split("\",").map(|pair| pair.split_once("=\"").unwrap());
    pairs.map(|(name, value)| (name.to_owned(), value.trim_end_matches('"').to_owned())).collect()
}
