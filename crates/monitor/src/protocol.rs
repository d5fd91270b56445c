//! What is said over `monitor.sock`: one JSON line from the client, then JSON lines back.
//!
//! ```text
//! client   {"version":1,"call":{"stop":{"signal":null,"timeout":null}}}\n
//! monitor  {"version":1,"ok":{"deaf":{"signal":15}}}\n          (at once; only where it applies)
//!          {"version":1,"ok":{"ended":{…state…}}}\n
//! monitor  {"version":1,"error":{…report…}}\n                   (instead)
//! ```
//! After the answer to `attach` the connection carries streams: to the client frames of Docker's
//! (one byte 1 for stdout or 2 for stderr, three zero bytes, the length as big-endian u32, the
//! bytes), or the terminal's bytes as they are; from the client the bytes of standard input, whose
//! end is the client's half-close. A connection carries one call, and a client sends nothing more
//! before its answer came.
//!
//! A newer client speaks to every older monitor that runs: calls and fields are added, never
//! changed; a monitor answers a call that it does not know with a report of class `unsupported`.

use knarr_diag::Report;
use serde::{Deserialize, Serialize};

use crate::request::{Restart, Size, Streams};
use crate::state::State;

/// The version of the protocol.
pub const PROTOCOL_VERSION: u32 = 1;

/// The longest line that either side accepts, in bytes.
pub(crate) const LINE_LIMIT: usize = 1 << 20;

/// What a client asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Call {
    /// Join the container's streams; answered by [`Answer::Attached`].
    Attach(Streams),
    /// Change the size of the terminal.
    Resize(Size),
    /// Answered by [`Answer::Ended`] when the container ends next, restarted afterwards or not; with
    /// `--rm` when it is gone.
    Wait,
    /// Send a signal to the first process.
    Signal {
        /// Its number.
        signal: i32,
    },
    /// End the container, and do not restart it; answered by [`Answer::Ended`].
    Stop {
        /// Instead of the configured one.
        signal: Option<i32>,
        /// Seconds until SIGKILL instead of the configured ones; negative waits for ever.
        timeout: Option<i64>,
    },
    /// Freeze all processes.
    Pause,
    /// Let them go on.
    Unpause,
    /// Freeze all processes for as long as this connection stays open, whoever ends it.
    Hold,
    /// Answered by [`Answer::State`].
    Status,
    /// Run one more process in the container, as a child of the monitor; answered by
    /// [`Answer::Exec`]. Three descriptors sent with the line (`SCM_RIGHTS`) become its standard
    /// streams, otherwise they are `/dev/null`. When it ended, `execs/<id>.json` in the run folder
    /// says how.
    Exec {
        /// A name for it, 1 to 64 of `[a-z0-9]`.
        id: String,
        /// What to run.
        plan: Box<knarr_runtime::ExecPlan>,
    },
    /// Join one more network.
    Connect(Box<knarr_net::Endpoint>),
    /// Leave a network.
    Disconnect {
        /// Its name.
        network: String,
    },
    /// Publish more ports.
    Publish {
        /// Which.
        ports: Vec<knarr_net::port::PortRequest>,
    },
    /// Cease to publish a port, or all of them.
    Unpublish {
        /// In the container.
        port: Option<(u16, knarr_net::port::Protocol)>,
    },
    /// Replace the restart policy.
    Update {
        /// The new one.
        restart: Restart,
    },
}

/// What the monitor answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It is done.
    Done,
    /// The streams follow.
    Attached {
        /// Without frames, as the container has a terminal.
        raw: bool,
    },
    /// How it is.
    State(Box<State>),
    /// It ended, and how.
    Ended(Box<State>),
    /// The first process neither handles the signal (`SigCgt` in `/proc/PID/status`) nor would the
    /// kernel deliver it to the init of a pid namespace without; the time-out will be waited for in
    /// vain. Another answer follows.
    Deaf {
        /// The signal.
        signal: i32,
    },
    /// The new process.
    Exec {
        /// Its number on the host.
        pid: u32,
    },
    /// The container runs (the first message to who spawned the monitor).
    Running {
        /// Its first process on the host.
        pid: u32,
    },
}

/// The client's line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Question {
    pub(crate) version: u32,
    pub(crate) call: Call,
}

/// The monitor's line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Reply {
    pub(crate) version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ok: Option<Answer>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<Report>,
}

impl Reply {
    pub(crate) fn ok(answer: Answer) -> Self {
        Self {
            version: PROTOCOL_VERSION,
            ok: Some(answer),
            error: None,
        }
    }

    pub(crate) fn error(report: Report) -> Self {
        Self {
            version: PROTOCOL_VERSION,
            ok: None,
            error: Some(report),
        }
    }

    pub(crate) fn to_line(&self) -> Vec<u8> {
        // Plain data always serializes.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What monitors that run already say and understand: never to be changed, only added to.
    #[test]
    fn the_wires_form_is_golden() {
        let calls = [
            (
                Call::Attach(Streams {
                    stdin: true,
                    stdout: true,
                    stderr: false,
                }),
                r#"{"attach":{"stdin":true,"stdout":true,"stderr":false}}"#,
            ),
            (
                Call::Resize(Size { rows: 24, cols: 80 }),
                r#"{"resize":{"rows":24,"cols":80}}"#,
            ),
            (Call::Wait, r#""wait""#),
            (Call::Signal { signal: 15 }, r#"{"signal":{"signal":15}}"#),
            (
                Call::Stop {
                    signal: None,
                    timeout: Some(-1),
                },
                r#"{"stop":{"signal":null,"timeout":-1}}"#,
            ),
            (Call::Pause, r#""pause""#),
            (Call::Unpause, r#""unpause""#),
            (Call::Hold, r#""hold""#),
            (Call::Status, r#""status""#),
            (
                Call::Update {
                    restart: Restart::OnFailure { max: 3 },
                },
                r#"{"update":{"restart":{"name":"on-failure","max":3}}}"#,
            ),
        ];
        for (call, golden) in calls {
            let line = format!(r#"{{"version":1,"call":{golden}}}"#);
            let question = Question {
                version: PROTOCOL_VERSION,
                call,
            };
            assert_eq!(serde_json::to_string(&question).unwrap(), line);
            let back: Question = serde_json::from_str(&line).unwrap();
            assert_eq!(serde_json::to_string(&back).unwrap(), line);
        }
        let answers = [
            (Answer::Done, r#""done""#),
            (
                Answer::Attached { raw: true },
                r#"{"attached":{"raw":true}}"#,
            ),
            (Answer::Deaf { signal: 15 }, r#"{"deaf":{"signal":15}}"#),
            (Answer::Exec { pid: 7 }, r#"{"exec":{"pid":7}}"#),
            (Answer::Running { pid: 7 }, r#"{"running":{"pid":7}}"#),
        ];
        for (answer, golden) in answers {
            let line = format!("{{\"version\":1,\"ok\":{golden}}}\n");
            assert_eq!(
                String::from_utf8(Reply::ok(answer).to_line()).unwrap(),
                line
            );
            let back: Reply = serde_json::from_str(&line).unwrap();
            assert_eq!(String::from_utf8(back.to_line()).unwrap(), line);
        }
    }
}
