//! The head's way to the server, on which its acks of trajectories can be stopped.
//!
//! Between a commit and its ack lie microseconds. With the ack stopped on its way, a head that is killed then was for certain
//! killed between the two, as far as the server knows.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread,
};

/// What the wire does with what the head sends.
const PASS: u8 = 0;
/// It waits for an ack.
const WAIT: u8 = 1;
/// It has seen one, and nothing passes any more.
const STOPPED: u8 = 2;

/// A relay between one head and its server.
pub struct Wire {
    port: u16,
    state: Arc<AtomicU8>,
}

impl Wire {
    /// A relay to the server at `url` that stops at publications to subjects that begin with `subject`, when it is told to.
    pub fn to(url: &str, subject: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, state) = (listener.local_addr().unwrap().port(), Arc::new(AtomicU8::new(PASS)));
        let address = url.trim_start_matches("nats://").to_owned();
        let (shared, stop_at) = (state.clone(), format!("PUB {subject}"));
        // They end with their connections, and the last one with the test.
        thread::spawn(move || {
            for head in listener.incoming() {
                let (Ok(head), Ok(server)) = (head, TcpStream::connect(&address)) else { continue };
                let (down, up) = ((server.try_clone().unwrap(), head.try_clone().unwrap()), (head, server));
                let (state, stop_at) = (shared.clone(), stop_at.clone());
                thread::spawn(move || relay(down.0, down.1, |_| true));
                thread::spawn(move || relay(up.0, up.1, |bytes| passes(&state, bytes, stop_at.as_bytes())));
            }
        });
        Self { port, state }
    }

    /// Where the head finds the server.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Stops at the next ack.
    pub fn stop_at_next(&self) {
        self.state.store(WAIT, Ordering::SeqCst);
    }

    /// Whether one was stopped.
    pub fn has_stopped(&self) -> bool {
        self.state.load(Ordering::SeqCst) == STOPPED
    }

    /// Lets everything pass again, for the next head.
    pub fn open(&self) {
        self.state.store(PASS, Ordering::SeqCst);
    }
}

/// Whether `bytes` may pass. An ack that is cut in two by the relay's buffer passes, and the next one does not.
fn passes(state: &AtomicU8, bytes: &[u8], stop_at: &[u8]) -> bool {
    if state.load(Ordering::SeqCst) == WAIT && bytes.windows(stop_at.len()).any(|window| window == stop_at) {
        state.store(STOPPED, Ordering::SeqCst);
    }
    state.load(Ordering::SeqCst) != STOPPED
}

/// Carries bytes one way until either side ends; what may not pass is kept back.
fn relay(mut from: TcpStream, mut to: TcpStream, passes: impl Fn(&[u8]) -> bool) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read) = from.read(&mut buffer) {
        if read == 0 || passes(&buffer[..read]) && to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    // The other side may have ended already.
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
