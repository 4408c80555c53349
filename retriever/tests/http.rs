//! Retrievers elsewhere, against servers that behave well and badly.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use folgore_protocol::Search;
use folgore_retriever::{Remote, Retriever, SearchError, Web};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

type Seen = Arc<Mutex<Vec<(String, Value)>>>;

/// A server that answers each body as `answer` says, with a status; none: it never answers. Heads and bodies are kept.
async fn server(answer: fn(&Value) -> Option<(u16, String)>) -> (String, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/retrieve", listener.local_addr().unwrap());
    let seen = Seen::default();
    let log = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, answer, log.clone()));
        }
    });
    (url, seen)
}

async fn serve(stream: TcpStream, answer: fn(&Value) -> Option<(u16, String)>, log: Seen) {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            if let Some(n) = line.to_lowercase().strip_prefix("content-length:") {
                length = n.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
            head.push_str(&line);
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        log.lock().unwrap().push((head, body.clone()));
        let Some((status, text)) = answer(&body) else { return std::future::pending().await };
        let reply = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{text}", text.len());
        stream.write_all(reply.as_bytes()).await.unwrap();
    }
}

fn searches(queries: &[(&str, u32)]) -> Vec<Search> {
    queries.iter().map(|(query, top_k)| Search { query: (*query).to_owned(), top_k: *top_k }).collect()
}

const SOON: Duration = Duration::from_secs(20);

/// As Search-R1's server: `topk` documents for each query.
fn like_search_r1(body: &Value) -> Option<(u16, String)> {
    assert_eq!(body["return_scores"], true, "without scores its own server fails");
    let list = |query: &Value| {
        let found = |i: u64| {
            let contents = format!("\"{}\"\ntext {i}", query.as_str().unwrap());
            json!({"document": {"id": i.to_string(), "contents": contents}, "score": 10.0 - i as f64})
        };
        Value::from_iter((0..body["topk"].as_u64().unwrap()).map(found))
    };
    let lists: Vec<Value> = body["queries"].as_array().unwrap().iter().map(list).collect();
    Some((200, json!({"result": lists}).to_string()))
}

#[tokio::test]
async fn a_server_like_search_r1s_is_asked_once_for_many_queries() {
    let (url, seen) = server(like_search_r1).await;
    let remote = Remote::new(&url, SOON).unwrap();
    assert_eq!(remote.corpus(), None);
    let found = remote.search(&searches(&[("a", 2), ("b", 3), ("c", 2)])).await;
    let shown: Vec<(usize, &str, &str)> = found
        .iter()
        .map(|found| {
            let passages = &found.as_ref().unwrap().passages;
            (passages.len(), passages[1].title.as_str(), passages[1].text.as_str())
        })
        .collect();
    assert_eq!(shown, [(2, "\"a\"", "text 1"), (3, "\"b\"", "text 1"), (2, "\"c\"", "text 1")]);
    assert_eq!(found[0].as_ref().unwrap().passages[1].score, 9.0);
    let bodies: Vec<Value> = seen.lock().unwrap().iter().map(|(_, body)| body["queries"].clone()).collect();
    assert_eq!(bodies, [json!(["a", "c"]), json!(["b"])], "one request for each number of passages");
}

#[tokio::test]
async fn what_is_no_answer_is_a_reason_and_never_an_empty_list() {
    type Bad = (fn(&Value) -> Option<(u16, String)>, bool, &'static str);
    let cases: [Bad; 7] = [
        (|_| Some((500, "broken".into())), true, "status 500"),
        (|_| Some((429, "slowly".into())), true, "status 429"),
        (|_| Some((404, "not here".into())), false, "status 404"),
        (|_| Some((200, "<html>".into())), false, "the reply"),
        (|_| Some((200, r#"{"result": []}"#.into())), false, "expected 1 lists, got 0"),
        (
            |_| Some((200, r#"{"result": [[{"document": {"id": "1"}, "score": 1}]]}"#.into())),
            false,
            "expected contents",
        ),
        (|_| None, true, "no reply within"),
    ];
    for (answer, passing, reason) in cases {
        let (url, _) = server(answer).await;
        let deadline = if reason.starts_with("no reply") { Duration::from_millis(100) } else { SOON };
        let error = Remote::new(&url, deadline).unwrap().search(&searches(&[("a", 1)])).await.remove(0).unwrap_err();
        assert_eq!(matches!(error, SearchError::Unavailable(_)), passing, "{error}");
        assert!(error.to_string().contains(reason) && error.to_string().contains(&url), "{error}");
    }
    let nobody = Remote::new("http://127.0.0.1:9/retrieve", SOON).unwrap();
    let error = nobody.search(&searches(&[("a", 1)])).await.remove(0).unwrap_err();
    assert!(matches!(error, SearchError::Unavailable(_)), "{error}");
}

#[tokio::test]
async fn a_web_search_is_asked_with_its_key() {
    let (url, seen) = server(|body| match body["q"].as_str().unwrap() {
        "nothing" => Some((200, json!({"searchParameters": {}}).to_string())),
        "forbidden" => Some((403, "no credits".into())),
        query => {
            let found =
                |i: u32| json!({"title": query, "link": format!("https://x/{i}"), "snippet": "s", "position": i});
            Some((200, json!({"organic": [found(1), found(2), found(3)]}).to_string()))
        }
    })
    .await;
    let web = Web::new(&url, " secret ", SOON).unwrap();
    let found = web.search(&searches(&[("a", 2), ("nothing", 2), ("forbidden", 2), ("b", 9)])).await;
    let first = &found[0].as_ref().unwrap().passages;
    assert_eq!(
        (first.len(), first[1].id.as_str(), first[1].title.as_str(), first[1].text.as_str()),
        (2, "https://x/2", "a", "s")
    );
    assert!(first[0].score > first[1].score);
    assert!(found[1].as_ref().unwrap().passages.is_empty(), "the web may have nothing");
    let error = found[2].as_ref().unwrap_err().to_string();
    assert!(error.contains("status 403") && !error.contains("secret"), "{error}");
    assert_eq!(found[3].as_ref().unwrap().passages.len(), 3);
    let seen = seen.lock().unwrap();
    assert!(seen.iter().all(|(head, _)| head.to_lowercase().contains("x-api-key: secret")), "{seen:?}");
    assert!(seen.iter().any(|(_, body)| *body == json!({"q": "b", "num": 9})));
    assert!(Web::new(&url, "", SOON).err().unwrap().contains("SERPER_API_KEY"));
}
