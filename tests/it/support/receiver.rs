//! A receiver of callbacks that does as it is told. That the signatures are right is shown elsewhere, by the published
//! libraries.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Instant,
};

use serde_json::Value;

/// A signing secret.
pub const CALLBACK_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// It is taken and never answered.
    Hang,
    /// 503, with so many seconds to stay away.
    Busy(u32),
    Take,
}

/// One request that has come.
#[derive(Debug, Clone)]
pub struct Got {
    pub at: Instant,
    pub mood: Mood,
    pub event: Value,
}

pub struct Receiver {
    pub url: String,
    mood: Arc<Mutex<Mood>>,
    got: Arc<Mutex<Vec<Got>>>,
}

impl Receiver {
    pub fn start(mood: Mood) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let receiver = Receiver {
            url: format!("http://{}/hook", listener.local_addr().unwrap()),
            mood: Arc::new(Mutex::new(mood)),
            got: Arc::default(),
        };
        let (mood, got) = (Arc::clone(&receiver.mood), Arc::clone(&receiver.got));
        thread::spawn(move || {
            let mut held = Vec::new();
            for stream in listener.incoming().flatten() {
                let Some(event) = request(&stream) else { continue };
                let mood = *mood.lock().unwrap();
                got.lock().unwrap().push(Got {
                    at: Instant::now(),
                    mood,
                    event,
                });
                let answer = match mood {
                    Mood::Hang => {
                        held.push(stream);
                        continue;
                    }
                    Mood::Busy(seconds) => format!("503 Service Unavailable\r\nRetry-After: {seconds}"),
                    Mood::Take => "204 No Content".to_owned(),
                };
                let _ = write!(
                    &stream,
                    "HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                );
            }
        });
        receiver
    }

    pub fn becomes(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    pub fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    /// The numbers of the events of a boot that were taken, each once, in the order in which they came.
    pub fn taken(&self, boot: &str) -> Vec<u64> {
        let mut seqs = Vec::new();
        for got in self.got() {
            let seq = got.event["seq"].as_u64().unwrap();
            if got.mood == Mood::Take && got.event["boot"] == boot && !seqs.contains(&seq) {
                seqs.push(seq);
            }
        }
        seqs
    }
}

/// The body of a request; `None` if it breaks off.
fn request(stream: &TcpStream) -> Option<Value> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line.trim_end().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    serde_json::from_slice(&body).ok()
}
