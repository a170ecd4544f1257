//! What is told to people and machines: log lines, session lines, and the words for how a session ended.

mod edge;
mod end;
mod log;
mod session_line;
mod session_log;
mod whole;

pub use edge::Edge;
pub use end::{Cause, End, Side, Stage};
pub use log::{Filter, FilterError, LogDropped, LogError, LogOptions, Logging, Reopen, path_hint, set_up};
pub use session_log::{LineFormat, SessionLines, SessionLog, SessionRecord, SessionWriter};
