//! One small process per container: it makes the container, keeps its streams and logs, sees its end.
pub mod client;
mod error;
pub mod events;
pub mod pending;
pub mod protocol;
pub mod request;
pub mod state;

pub use error::{Error, Result};
pub use request::Request;
pub use state::State;
