//! An HTTP server that answers a reward's request as the completion in it says.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// The server; it ends with its owner.
pub struct Server {
    port: u16,
    asked: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/score", self.port)
    }

    /// Requests so far.
    pub fn asked(&self) -> u32 {
        self.asked.load(SeqCst)
    }
}

/// Starts a server on a free port.
pub async fn start() -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, asked) = (listener.local_addr().unwrap().port(), Arc::<AtomicU32>::default());
    let (counter, failed) = (asked.clone(), Arc::<AtomicBool>::default());
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, counter.clone(), failed.clone()));
        }
    });
    Server { port, asked, task }
}

/// The next request's completion; none at the end of the connection.
async fn next(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let (mut length, mut line) = (0, String::new());
    loop {
        line.clear();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let request: Value = serde_json::from_slice(&body).unwrap();
    Some(request["items"][0]["completion"].as_str().unwrap().to_owned())
}

async fn serve(stream: TcpStream, asked: Arc<AtomicU32>, failed: Arc<AtomicBool>) {
    let mut stream = BufReader::new(stream);
    while let Some(what) = next(&mut stream).await {
        asked.fetch_add(1, SeqCst);
        let fails = what == "500" || (what == "500 once" && !failed.swap(true, SeqCst));
        let (status, body) = match what.as_str() {
            _ if fails => ("500 Internal Server Error", "no".to_owned()),
            "429" => ("429 Too Many Requests", String::new()),
            "404" => ("404 Not Found", "no such reward".to_owned()),
            "302" => ("302 Found", String::new()),
            "garbage" => ("200 OK", "<html>".to_owned()),
            "nan" => ("200 OK", r#"{"scores": [NaN]}"#.to_owned()),
            "error" => ("200 OK", r#"{"error": "ValueError: gone"}"#.to_owned()),
            "huge" => ("200 OK", " ".repeat(9 << 20)),
            "close" => return,
            "hang" => std::future::pending().await,
            _ => ("200 OK", r#"{"scores": [0.5]}"#.to_owned()),
        };
        let head = format!("HTTP/1.1 {status}\r\nLocation: /\r\nContent-Length: {}\r\n\r\n", body.len());
        let sent = stream.get_mut().write_all(format!("{head}{body}").as_bytes()).await;
        if sent.is_err() {
            return;
        }
    }
}
