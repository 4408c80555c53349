//! Signals of the operating system become requests to stop; alone in its file, because a signal reaches a whole process.
#![cfg(unix)]

use std::{process::Command, time::Duration};

use folgore_actors::{Level, Shutdown, on_ctrl_c};
use tokio::{sync::mpsc, time::timeout};

#[tokio::test]
async fn the_first_signal_asks_to_save_and_the_second_to_stop_now() {
    let shutdown = Shutdown::new();
    let (said, mut heard) = mpsc::unbounded_channel();
    on_ctrl_c(shutdown.clone(), move |level| said.send(level).unwrap()).unwrap();
    for (signal, level) in [("INT", Level::Stopping), ("TERM", Level::Now)] {
        let me = std::process::id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &me]).status().unwrap().success());
        let said = timeout(Duration::from_secs(10), heard.recv()).await.expect("said in time");
        assert_eq!(said, Some(level));
        assert_eq!(shutdown.level(), level);
    }
}
